//! How far a long piece of work is: counted by whoever does it, read by whoever watches from another thread.
//!
//! The figures are for people: they agree with each other only roughly. Must not know: how they are shown.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count of things (files, entries) and bytes, done and expected.
#[derive(Debug, Default)]
pub struct Work {
    done: Count,
    expected: Count,
}

#[derive(Debug, Default)]
struct Count {
    things: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    fn add(&self, things: u64, bytes: u64) {
        self.things.fetch_add(things, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn read(&self) -> (u64, u64) {
        (self.things.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

impl Work {
    pub(crate) fn expect(&self, things: u64, bytes: u64) {
        self.expected.add(things, bytes);
    }

    pub(crate) fn did(&self, things: u64, bytes: u64) {
        self.done.add(things, bytes);
    }

    /// Things and bytes that are done.
    pub fn done(&self) -> (u64, u64) {
        self.done.read()
    }

    /// Things and bytes in all; zeros while that is not known.
    pub fn expected(&self) -> (u64, u64) {
        self.expected.read()
    }
}
