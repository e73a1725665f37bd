//! Blobs that are held for their own sake, not as part of an entry.
//!
//! Invariant: a held blob keeps its row and its bytes, also when no entry refers to it any more; what was
//! let go is freed by the next tick. Taking one never waits: a blob that is just being freed is gone.
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
    /// Holds a blob that some entry refers to; `None` when there is no such.
    pub fn hold_blob(&self, hash: &BlobHash) -> Result<Option<HeldBlob>> {
        // Reserved before the index is asked: what it says then stays true.
        let Some(reservation) = self.inner.leases.try_reserve(*hash) else { return Ok(None) };
        let row: Option<BlobRow> = self.inner.index.blob(hash)?.filter(|row| row.refs > 0);
        let held = |row: BlobRow| {
            self.inner.upkeep.held_blobs.fetch_add(1, Ordering::Relaxed);
            let _after = LetGo { hash: *hash, cache: self.clone() };
            HeldBlob { size: row.size, _reservation: reservation, _after }
        };
        Ok(row.map(held))
    }

    /// Frees blobs that were let go and that no entry refers to.
    pub(super) fn free_let_go(&self) -> Result<()> {
        let hashes = std::mem::take(&mut *self.inner.upkeep.let_go.lock());
        if !hashes.is_empty() {
            self.free_blobs(hashes)?;
        }
        Ok(())
    }
}
