//! `flight.rs` and what it knows of its own room.

#[path = "../../src/run/flight.rs"]
pub mod flight;
#[path = "kernel.rs"]
pub mod marker;
