//! `flight.rs` and what it knows of its own room.

use std::io;
use std::path::Path;

pub type Result<T> = io::Result<T>;

pub struct RunError;

impl RunError {
    pub fn io(_op: &str, _path: &Path, source: io::Error) -> io::Error {
        source
    }
}

#[path = "../../src/run/flight.rs"]
pub mod flight;
#[path = "kernel.rs"]
pub mod marker;
