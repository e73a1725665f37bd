//! Blobs that are held for their own sake, not as part of an entry.
//!
//! Invariant: a held blob keeps its row and its bytes, also when no entry refers to it any more; what was
//! let go is freed by the next tick. What is claimed by whoever frees may have other entries, so that taking it waits.
//! Must not know: who holds it.

use std::sync::atomic::Ordering;

use super::lease::Reservation;
use super::{Cache, Result};
use crate::index::BlobRow;
use crate::model::BlobHash;

/// Keeps a blob from being freed; dropping gives it back.
pub struct HeldBlob {
    /// Bytes.
    pub size: u64,
    // Before `_after`: fields are dropped in this order.
    _reservation: Reservation,
    _after: LetGo,
}

/// Tells the next tick to free the blob, if nobody else wants it.
struct LetGo {
    hash: BlobHash,
    cache: Cache,
}

impl Drop for LetGo {
    fn drop(&mut self) {
        let upkeep = &self.cache.inner.upkeep;
        upkeep.let_go.lock().push(self.hash);
        upkeep.held_blobs.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Cache {
    /// Holds a blob that some entry refers to; `None` when there is no such, and while the index is made anew. Waits while somebody is
    /// [freeing it](Cache::may_go): only then is it known whether it stays.
    pub fn hold_blob(&self, hash: &BlobHash) -> Result<Option<HeldBlob>> {
        let Some(_stands) = self.index_stands_now() else { return Ok(None) };
        // Reserved before the index is asked: what it says then stays true.
        let reservation = self.reserve(std::slice::from_ref(hash));
        let row: Option<BlobRow> = self.inner.index.blob(hash)?.filter(|row| row.refs > 0);
        let held = |row: BlobRow| {
            self.inner.upkeep.held_blobs.fetch_add(1, Ordering::Relaxed);
            let _after = LetGo { hash: *hash, cache: self.clone() };
            HeldBlob { size: row.size, _reservation: reservation, _after }
        };
        Ok(row.map(held))
    }

    /// Whether somebody is just freeing this blob, if no entry refers to it.
    pub fn may_go(&self, hash: &BlobHash) -> bool {
        self.inner.leases.is_claimed(hash)
    }

    /// Frees blobs that were let go and that no entry refers to.
    pub(super) fn free_let_go(&self) -> Result<()> {
        let Some(_stands) = self.index_stands_now() else { return Ok(()) };
        let hashes = std::mem::take(&mut *self.inner.upkeep.let_go.lock());
        // By an index that lacks something nothing is freed: a sweep finds it later.
        if !hashes.is_empty() && self.inner.index.is_finished() {
            self.free_blobs(hashes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::tests::Fixture;

    #[test]
    fn a_blob_that_other_entries_have_is_never_taken_for_gone() {
        let f = Fixture::new();
        let dir = f.odd_tree("tree");
        let entry = f.put("abcd", &dir).unwrap().into_entry();
        let manifest = entry.manifest().unwrap();
        let (hash, size, _) = manifest.blobs()[0];
        // Somebody frees what another entry shared with this one.
        let claim = f.cache.inner.leases.claim([hash]);
        assert!(f.cache.may_go(&hash));
        std::thread::scope(|s| {
            let held = s.spawn(|| f.cache.hold_blob(&hash).unwrap().map(|held| held.size));
            let end = Instant::now() + Duration::from_millis(20);
            while Instant::now() < end {
                assert!(!held.is_finished(), "it is not known yet whether it stays");
            }
            drop(claim);
            assert_eq!(held.join().unwrap(), Some(size));
        });
    }
}
