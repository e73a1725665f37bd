//! Reading stored content again to see whether it is still what it was; for the check and for the scrub.
//!
//! Invariants: nothing is changed by looking; what went or moved while it was looked at is no damage.
//! Must not know: what becomes of what is bad, how fast one may read.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};

use super::{Cache, Result};
use crate::index::{BlobRow, EntryRow};
use crate::model::EventKind;
use crate::model::groups::GroupHasher;
use crate::store::{Location, PackId, Store, StoreError};

/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// Hears how many bytes were read since it was called last; false ends the reading.
pub(super) type Reading<'a> = dyn FnMut(u64) -> bool + 'a;

/// What a pack turned out to be.
pub(super) struct PackFound {
    /// Blobs that the index has in it and that cannot be read.
    pub lost: Vec<(BlobRow, StoreError)>,
    /// What else is wrong with its bytes.
    pub damage: Option<StoreError>,
}

/// Whether a loose blob has its length and, where `reading` is given, its content; `None` when that ended it.
pub(super) fn loose_blob(
    store: &Store,
    row: &BlobRow,
    reading: Option<&mut Reading<'_>>,
) -> std::result::Result<Option<()>, StoreError> {
    let path = store.root().join("blobs").join(row.hash.shard()).join(row.hash.to_hex());
    let corrupt = |why: String| StoreError::Corrupt { path: path.clone(), line: None, why };
    let io = |op, e| StoreError::io(op, path.clone(), e);
    let file = store.blob_file(&row.hash)?;
    let len = file.metadata().map_err(|e| io("stat", e))?.len();
    if len != row.size {
        return Err(corrupt(format!("it has {len} bytes and should have {}", row.size)));
    }
    let Some(reading) = reading else { return Ok(Some(())) };
    let mut hasher = GroupHasher::default();
    let mut reader = BufReader::with_capacity(PIECE, file);
    loop {
        let piece = reader.fill_buf().map_err(|e| io("read", e))?;
        if piece.is_empty() {
            break;
        }
        hasher.update(piece);
        let n = piece.len();
        reader.consume(n);
        if !reading(n as u64) {
            return Ok(None);
        }
    }
    match hasher.finish().0 == row.hash {
        true => Ok(Some(())),
        false => Err(corrupt(format!("the content of blob {} differs", row.hash))),
    }
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
            let mut content = vec![0; row.size as usize];
            let read = store.read_verified(&row.hash, row.size, &[], row.location, 0, &mut content);
            if let Err(e) = read {
                lost.push((row, e));
            }
        }
        let damage = match scan {
            // Compacted meanwhile.
            Err(StoreError::Corrupt { .. } | StoreError::Missing { .. }) if index.pack(id)?.is_none() => None,
            Err(e @ (StoreError::Corrupt { .. } | StoreError::Missing { .. })) => Some(e),
            other => other.map(|()| None)?,
        };
        Ok(Some(PackFound { lost, damage }))
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
        let known = || inner.damaged.lock().contains(&row.hash);
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
                inner.damaged.lock().insert(row.hash);
            }
            Ok(true)
        })
    }
}
