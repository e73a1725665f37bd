//! The control protocol: what a client may ask of a store, and how it is asked.
//!
//! Purpose: one [`Request`]/[`Reply`] pair and one [`dispatch()`] that answers it on a
//! [`Cache`](crate::cache::Cache). The daemon's socket and a command that owns the store by itself
//! use the same function, so results are the same with and without a daemon. On the socket:
//! versioned JSON lines, with raw bytes after `data` frames.
//! Invariants: only the store's owner and root may ask; a request has exactly one `done` or
//! `failed` frame. Must not know: mounting (the daemon adds that), terminals.

mod client;
mod dispatch;
mod failure;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod limits;
mod patient;
mod raw;
mod reply;
mod request;
mod server;
mod socket;
#[cfg(test)]
mod tests;
mod wire;

pub use client::{Client, ConnectError};
pub use dispatch::{Caller, dispatch, hit};
pub use failure::{Failure, Kind};
pub use limits::{LimitFlags, Period, Span};
pub use raw::RawPath;
pub use reply::*;
pub use request::*;
pub use server::{Handler, Server};

use std::io::{self, Read};

/// The protocol's version: client and server must have the same. (A daemon of any version can be stopped.)
pub const VERSION: u32 = 5;

/// The socket's name below the store.
pub const SOCKET: &str = "control.sock";

/// How far a long operation is.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// What is being done, for people.
    pub what: String,
    /// Units done.
    pub done: u64,
    /// Units in all, when known.
    pub total: Option<u64>,
}

/// The byte streams and progress that go beside a request and its reply. A client
/// implements it with its standard streams, the server with frames on the socket.
pub trait Channel {
    /// The next bytes of the result.
    fn data(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// What the client streams in (for requests that [want input](Request::wants_input)).
    fn input(&mut self) -> &mut dyn Read;
    /// Progress; may be dropped.
    fn progress(&mut self, progress: Progress);
}

/// Writes to a channel's data.
pub(crate) struct DataWriter<'a>(pub &'a mut dyn Channel);

impl io::Write for DataWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.data(bytes).map(|()| bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
