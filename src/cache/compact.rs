//! Compaction: packs that are mostly dead give their live blobs to a new pack and go.
//!
//! Invariants: the new pack is durable before the index names it, and the index names it
//! before an old one is unlinked; readers that still look into an old one ask the index again.
//! Blobs without references move too: somebody may have reserved them. A pack in which a
//! blob is damaged stays for fsck.

use std::sync::atomic::Ordering;

use super::{Cache, CacheError, Result};
use crate::index::{BlobRow, PackRow};
use crate::model::{BlobHash, EventKind};
use crate::store::{Location, PackId, PackWriter, StoreError};

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
        let Some(_all) = self.index_knows_all() else { return Ok(None) };
        let page = self.inner.index.packs_after(after, PAGE)?;
        let next = page.last().filter(|_| page.len() == PAGE).map(|p| p.id);
        let mut move_ = Move::new(self);
        for pack in page.iter().filter(|p| is_sparse(p)) {
            let rows = self.inner.index.pack_blobs(pack.id)?;
            // Those without references that somebody holds move, too: they must be worth it.
            let kept = rows.iter().map(|row| row.size).sum();
            if is_sparse(&PackRow { live: kept, ..*pack }) {
                self.or_sweep(move_.take(pack.id, &rows))?;
            }
            if move_.bytes >= TARGET {
                self.or_sweep(std::mem::replace(&mut move_, Move::new(self)).finish())?;
            }
        }
        self.or_sweep(move_.finish())?;
        Ok(next)
    }
}

/// What lives in some packs on its way to a new one.
struct Move<'a> {
    cache: &'a Cache,
    from: Vec<PackId>,
    writer: Option<PackWriter>,
    moved: Vec<(BlobHash, Location)>,
    /// Content of the new pack.
    bytes: u64,
}

impl<'a> Move<'a> {
    fn new(cache: &'a Cache) -> Move<'a> {
        Move { cache, from: Vec::new(), writer: None, moved: Vec::new(), bytes: 0 }
    }

    /// Copies what these rows have in a pack. From one that is damaged nothing moves: what was copied of it is of no use.
    fn take(&mut self, pack: PackId, rows: &[BlobRow]) -> Result<()> {
        let before = self.moved.len();
        match self.copy(rows) {
            Ok(()) => self.from.push(pack),
            Err(CacheError::Store(e)) if e.is_damage() => {
                self.moved.truncate(before);
                // Evicted since the index was asked: nothing is damaged, nothing is left to move.
                let gone = matches!(e, StoreError::Missing { .. })
                    && self.cache.inner.index.pack_blobs(pack)?.is_empty();
                if !gone {
                    let what = format!("a pack, noticed when it was compacted: {e}");
                    self.cache.note(EventKind::Damaged { what }, None, false);
                }
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn copy(&mut self, rows: &[BlobRow]) -> Result<()> {
        let store = &self.cache.inner.store;
        for row in rows {
            let mut content = vec![0; row.size as usize];
            store.read_verified(&row.hash, row.size, &[], row.location, 0, &mut content)?;
            let writer = match &mut self.writer {
                Some(writer) => writer,
                none => none.insert(store.new_pack()?),
            };
            self.moved.push((row.hash, writer.append(&row.hash, &content)?));
            self.bytes += row.size;
        }
        Ok(())
    }

    /// The new pack is durable, then the index knows it, then the old ones go.
    fn finish(self) -> Result<()> {
        let Move { cache, from, writer, moved, .. } = self;
        if from.is_empty() {
            return Ok(());
        }
        let (store, index) = (&cache.inner.store, &cache.inner.index);
        let writer = writer.filter(|_| !moved.is_empty());
        let added = writer.map(|w| w.finish()).transpose()?.map(|p| (p.id, p.bytes));
        let relocated = index.relocate(moved, added, from);
        if let (Err(_), Some((new, _))) = (&relocated, added) {
            // If the index has it all the same, or will have it after a death, the sweep finds that out.
            if !index.is_in_doubt() && index.pack(new).is_ok_and(|row| row.is_none()) {
                store.remove_pack(new)?;
            }
        }
        let gone = relocated?;
        cache.inner.upkeep.compacted.fetch_add(gone.len() as u64, Ordering::Relaxed);
        for (pack, _) in gone {
            store.remove_pack(pack)?;
        }
        Ok(())
    }
}
