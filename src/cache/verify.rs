//! Reading stored content again to see whether it is still what it was; for the check and for the scrub.
//!
//! Invariants: nothing is changed by looking; what went or moved while it was looked at is no damage.
//! Must not know: what becomes of what is bad, how fast one may read.

use std::collections::HashMap;

use super::{Cache, Result};
use crate::index::{BlobRow, EntryRow};
use crate::model::EventKind;
use crate::store::{Location, PACK_LIMIT, PackId, StoreError, twice};

/// Hears how many bytes were read since it was called last; false ends the reading.
pub(super) type Reading<'a> = dyn FnMut(u64) -> bool + 'a;

/// What a pack turned out to be.
pub(super) struct PackFound {
    /// Blobs that the index has in it and that cannot be read.
    pub lost: Vec<(BlobRow, StoreError)>,
    /// What else is wrong with its bytes.
    pub damage: Option<StoreError>,
}

impl Cache {
    /// A pack's headers, and with `contents` its contents, against the rows of the index; `None` when `reading` has
    /// ended it.
    pub(super) fn verify_pack(
        &self,
        id: PackId,
        contents: bool,
        reading: &mut Reading<'_>,
    ) -> Result<Option<PackFound>> {
        let (store, index) = (&self.inner.store, &self.inner.index);
        let mut found = HashMap::new();
        let mut on = true;
        let scan = store.scan_pack(id, contents, &mut |hash, size, at| {
            found.insert((hash, size), at);
            on = !contents || reading(size);
            on
        });
        if !on {
            return Ok(None);
        }
        let mut lost = Vec::new();
        for row in index.pack_blobs(id)? {
            if found.get(&(row.hash, row.size)) == Some(&row.location) {
                continue;
            }
            // Behind a damaged header, or really lost: its bytes tell.
            match self.verify_packed(&row) {
                Err(e) if !e.is_damage() => return Err(e.into()),
                Err(e) => lost.push((row, e)),
                Ok(()) => {}
            }
        }
        let damage = match scan {
            // Compacted meanwhile.
            Err(e) if e.is_damage() && index.pack(id)?.is_none() => None,
            Err(e) if e.is_damage() => Some(e),
            other => other.map(|()| None)?,
        };
        Ok(Some(PackFound { lost, damage }))
    }

    /// Whether a blob in a pack can be read.
    pub(super) fn verify_packed(&self, row: &BlobRow) -> std::result::Result<(), StoreError> {
        let store = &self.inner.store;
        if row.size > PACK_LIMIT {
            let (path, why) = (store.root().to_owned(), "it has another size than its row says".to_owned());
            return Err(StoreError::Corrupt { path, line: None, why });
        }
        twice(|| store.read_again(&row.hash, row.size, &[], row.location)).map(drop)
    }

    /// The manifest of an entry was found damaged or lost: an event says so, once, and a damaged one is set aside.
    /// True when it was not known.
    pub(super) fn bad_manifest(&self, row: &EntryRow, error: &StoreError) -> Result<bool> {
        // One that was set aside is missing from then on.
        let new = self.inner.bad_manifests.lock().insert(row.manifest);
        if new {
            self.report_damage(Some(&row.key), &format!("the manifest: {error}"));
        }
        if matches!(error, StoreError::Corrupt { .. }) {
            match self.inner.store.quarantine_manifest(&row.manifest) {
                Ok(()) | Err(StoreError::Missing { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.inner.peeks.forget(&row.manifest);
        Ok(new)
    }

    /// Whether the blob is still where it was when its row was read.
    pub(super) fn is_still_there(&self, row: &BlobRow) -> Result<bool> {
        Ok(self.inner.index.blob(&row.hash)?.is_some_and(|now| now.location == row.location))
    }

    /// A blob was found bad at a place. From now on it counts as damaged, and a damaged file of its own is set
    /// aside; a damaged blob in a pack stays where it is, because its neighbours are sound. `still` looks again, while
    /// nobody can store it anew. False when it is not bad any more, or known to be.
    pub(super) fn bad_blob(
        &self,
        row: &BlobRow,
        error: &StoreError,
        still: impl FnOnce() -> bool,
    ) -> Result<bool> {
        let inner = &self.inner;
        let known = || self.is_damaged(&row.hash);
        // Asked first, too: nobody who reads it has to wait for who is just storing it anew.
        if known() {
            return Ok(false);
        }
        inner.claims.alone_with(&row.hash, || {
            if known() || !still() {
                return Ok(false);
            }
            if matches!(error, StoreError::Corrupt { .. }) && row.location == Location::Loose {
                match inner.store.quarantine_blob(&row.hash) {
                    Ok(()) | Err(StoreError::Missing { .. }) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            if self.is_elsewhere_instead(&row.hash)? {
                let what = format!("the content {} is fetched from a tier when it is read next", row.hash);
                self.note(EventKind::Repaired { what }, None, true);
            } else {
                self.mark_damaged(&row.hash);
            }
            Ok(true)
        })
    }
}
