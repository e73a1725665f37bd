//! How the memory that a process may take is divided among what it keeps.
//!
//! Invariant: the shares and what the program needs for itself are the whole, so that whoever gets more takes it from another
//! here. What is held on others' behalf (entries that a kernel knows, open files) is no cache and not counted.
//! Must not know: what is kept.

use crate::model::units::Bytes;

/// What the program takes before it keeps anything of a store: its code, what threads work with, and SQLite's
/// pages (8 MiB for the writer, 1 MiB for each reader).
const ITSELF: u64 = 32 << 20;

/// Bytes for each.
pub(super) struct Shares {
    /// The keys of all entries, and what their top directories look like.
    pub keys: usize,
    /// Manifests and location tables in use.
    pub manifests: usize,
    /// Parts of large manifests.
    pub peeks: usize,
}

impl Shares {
    pub fn of(memory: Bytes) -> Shares {
        let rest = memory.0.saturating_sub(ITSELF) as usize;
        let (keys, manifests) = (rest / 2, rest / 8 * 3);
        Shares { keys, manifests, peeks: rest - keys - manifests }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_the_whole_and_the_default_is_enough_for_more_than_a_million_keys() {
        for mib in [0, 16, 33, 48, 128, 4096] {
            let s = Shares::of(Bytes(mib << 20));
            let sum = (s.keys + s.manifests + s.peeks) as u64 + ITSELF;
            assert_eq!(sum, (mib << 20).max(ITSELF), "{mib} MiB");
        }
        assert!(Shares::of(crate::cache::Limits::default().memory).keys > 1_250_000 * 39);
    }
}
