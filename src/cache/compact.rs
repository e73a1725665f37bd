//! Compaction: packs that are mostly dead give their live blobs to a new pack and go.
//!
//! Invariants: the new pack is durable before the index names it, and the index names it
//! before an old one is unlinked; readers that still look into an old one ask the index again.
//! Blobs without references move too: somebody may have reserved them. A pack in which a
//! blob is damaged stays for fsck.

use super::{Cache, CacheError, Result};
use crate::index::{BlobRow, PackRow};
use crate::model::{BlobHash, EventKind};
use crate::store::{Location, PackId, StoreError};

/// What a blob costs in a pack beside its content, and a pack beside its blobs.
const BLOB_OVERHEAD: u64 = 48;
const PACK_OVERHEAD: u64 = 16;
/// Packs read from the index at a time.
const PAGE: usize = 4096;
/// The new pack's content, about.
const TARGET: u64 = 32 << 20;
/// Below so many dead bytes the background does not start.
const WORTH: u64 = 4 << 20;

/// Mostly dead, and rewriting it gains something.
fn is_sparse(pack: &PackRow) -> bool {
    let kept = pack.live + pack.blobs * BLOB_OVERHEAD + PACK_OVERHEAD;
    pack.blobs == 0 || kept * 2 < pack.total
}

impl Cache {
    /// Compacts when enough is dead; a bounded piece of work.
    pub(super) fn compact_if_worth_it(&self) -> Result<()> {
        let totals = self.inner.index.totals()?;
        if !self.inner.index.is_finished() {
            return Ok(());
        }
        if totals.dead_bytes < WORTH || totals.dead_bytes * 8 < totals.pack_bytes {
            return Ok(());
        }
        let Some(mut cursor) = self.inner.upkeep.compacting.try_lock() else { return Ok(()) };
        *cursor = self.compact_page(cursor.unwrap_or(PackId(0)))?;
        Ok(())
    }

    /// Compacts all packs that are mostly dead.
    pub fn compact(&self) -> Result<()> {
        let _one = self.inner.upkeep.compacting.lock();
        let mut after = PackId(0);
        while let Some(next) = self.compact_page(after)? {
            after = next;
        }
        Ok(())
    }

    /// The same, where a disk too full for a new pack is no failure: it is done when there is room.
    pub(super) fn compact_if_there_is_room(&self) -> Result<()> {
        match self.compact() {
            Err(CacheError::NoSpace(why)) => {
                tracing::warn!("packs are not compacted yet: {why}");
                Ok(())
            }
            other => other,
        }
    }

    /// Compacts the sparse ones among the next packs; where to go on, `None` after the last.
    fn compact_page(&self, after: PackId) -> Result<Option<PackId>> {
        let page = self.inner.index.packs_after(after, PAGE)?;
        let next = page.last().filter(|_| page.len() == PAGE).map(|p| p.id);
        let mut group: Vec<PackId> = Vec::new();
        let mut bytes = 0;
        for pack in page.iter().filter(|p| is_sparse(p)) {
            // Those without references that somebody holds move, too: they must be worth it.
            let kept = self.inner.index.pack_blobs(pack.id)?.iter().map(|row| row.size).sum();
            if !is_sparse(&PackRow { live: kept, ..*pack }) {
                continue;
            }
            group.push(pack.id);
            bytes += kept;
            if bytes >= TARGET {
                self.compact_packs(&std::mem::take(&mut group))?;
                bytes = 0;
            }
        }
        self.compact_packs(&group)?;
        Ok(next)
    }

    /// Moves what lives in `packs` to one new pack, and removes them.
    pub(super) fn compact_packs(&self, packs: &[PackId]) -> Result<()> {
        self.or_sweep(self.move_and_remove(packs))
    }

    fn move_and_remove(&self, packs: &[PackId]) -> Result<()> {
        if packs.is_empty() {
            return Ok(());
        }
        let mut from = Vec::new();
        let mut moved: Vec<(BlobHash, Location)> = Vec::new();
        let mut writer = None;
        for &pack in packs {
            let rows = self.inner.index.pack_blobs(pack)?;
            match self.read_rows(&rows) {
                Ok(contents) => {
                    for (row, content) in rows.iter().zip(contents) {
                        if writer.is_none() {
                            writer = Some(self.inner.store.new_pack()?);
                        }
                        if let Some(w) = &mut writer {
                            moved.push((row.hash, w.append(&row.hash, &content)?));
                        }
                    }
                    from.push(pack);
                }
                // Evicted since the index was asked: nothing is damaged, nothing is left to move.
                Err(StoreError::Missing { .. }) if self.inner.index.pack_blobs(pack)?.is_empty() => {}
                Err(e @ (StoreError::Corrupt { .. } | StoreError::Missing { .. })) => {
                    let what = format!("a pack, noticed when it was compacted: {e}");
                    self.note(EventKind::Damaged { what }, None, false);
                }
                Err(e) => return Err(e.into()),
            }
        }
        let added = writer.map(|w| w.finish()).transpose()?.map(|p| (p.id, p.bytes));
        let relocated = self.inner.index.relocate(moved, added, from);
        if let (Err(_), Some((new, _))) = (&relocated, added) {
            // If the index has it all the same, the sweep finds that out.
            if self.inner.index.pack(new).is_ok_and(|row| row.is_none()) {
                self.inner.store.remove_pack(new)?;
            }
        }
        for (gone, _) in relocated? {
            self.inner.store.remove_pack(gone)?;
        }
        Ok(())
    }

    fn read_rows(&self, rows: &[BlobRow]) -> std::result::Result<Vec<Vec<u8>>, StoreError> {
        rows.iter()
            .map(|row| {
                let mut content = vec![0; row.size as usize];
                self.inner.store.read_verified(&row.hash, row.size, &[], row.location, 0, &mut content)?;
                Ok(content)
            })
            .collect()
    }
}
