//! The directories `00` to `ff` over which what is named by its hash is spread, by the hash's first byte.
//!
//! Invariants: whoever looks at one or at all of them asks here which there are. Must not know: what lies in them.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// Which bits of the first byte count: all, but in tests.
static BITS: AtomicU8 = AtomicU8::new(0xff);

/// All of them.
pub(crate) fn all() -> RangeInclusive<u8> {
    0..=BITS.load(Relaxed)
}

/// The name of one.
pub(super) fn name(shard: u8) -> String {
    format!("{shard:02x}")
}

/// The name of the one that has what is named by this hash.
pub(crate) fn of(hash: &[u8; 32]) -> String {
    name(hash[0] & BITS.load(Relaxed))
}

/// Has the stores of this process four of them, for tests that try what can happen at each: what is done with one is the same
/// however many there are. Nobody else can read such a store.
pub fn four_shards() {
    BITS.store(0b11, Relaxed);
}
