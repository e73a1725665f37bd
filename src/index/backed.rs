//! What tiers have: entries that can be read without their bytes here, and giving those bytes up.
//!
//! Invariants: a blob's `backed` is the number of entries that have it and that a tier has; only one that all
//! its entries can read from tiers (`backed` = `refs` > 0) becomes elsewhere. Must not know: which tiers there are.

use rusqlite::{Connection, OptionalExtension, params};

use super::read::{ENTRY, entry_row};
use super::sums::Sums;
use super::write::place;
use super::{Backed, EntryRow, Freed, Index, Result, from_columns, sqlite};
use crate::model::{BlobHash, ManifestHash};
use crate::store::Location;

impl Index {
    /// The tier called `tier` was brought the entry with this row id, manifest and these distinct blobs; what says where they are
    /// there takes so many bytes. False when there is no such entry, or it was known.
    pub fn back_entry(
        &self,
        id: i64,
        manifest: &ManifestHash,
        tier: &str,
        blobs: Vec<BlobHash>,
        bytes: u64,
    ) -> Result<bool> {
        let (manifest, tier) = (*manifest, tier.to_owned());
        let note = move |db: &Connection| {
            let changed = db
                .prepare_cached(
                    "UPDATE entries SET backed = ?3, tier = ?4, metadata = metadata + ?5
                     WHERE id = ?1 AND manifest = ?2 AND backed = 0",
                )
                .and_then(|mut q| {
                    q.execute(params![id, manifest.0, Backed::Brought as i64, tier, bytes as i64])
                })
                .map_err(sqlite("note what a tier has"))?;
            if changed == 0 {
                return Ok(false);
            }
            for hash in &blobs {
                count(db, hash, 1)?;
            }
            Sums::of_metadata(bytes as i64).apply(db, &mut Freed::default())?;
            Ok(true)
        };
        self.changing(|writer| writer.run(note))
    }

    /// Has those of `blobs` be elsewhere that all their entries can read from tiers: the caller deletes what is freed, and
    /// nobody reserves them meanwhile. With `entry` (its row id) it is noted that it gave up its bytes now.
    pub fn let_go(&self, entry: Option<(i64, i64)>, blobs: Vec<BlobHash>) -> Result<Freed> {
        self.writer.run_freeing(move |db| {
            let (mut sums, mut freed) = (Sums::default(), Freed::default());
            for hash in &blobs {
                let_go(db, hash, &mut sums, &mut freed)?;
            }
            if let Some((id, now)) = entry {
                db.prepare_cached("UPDATE entries SET dropped_at = ?2 WHERE id = ?1")
                    .and_then(|mut q| q.execute([id, now]))
                    .map_err(sqlite("note what was given up"))?;
            }
            sums.apply(db, &mut freed)?;
            Ok(freed)
        })
    }

    /// Up to `limit` entries that tiers have and that may have bytes here, least recently used first, with
    /// `(accessed_at, id)` after `after`.
    pub fn oldest_backed(&self, after: Option<(i64, i64)>, limit: usize) -> Result<Vec<EntryRow>> {
        let (at, id) = after.unwrap_or((i64::MIN, i64::MIN));
        self.readers.with("list what tiers have", |db| {
            let mut q = db.prepare_cached(&format!(
                "{ENTRY} WHERE backed > 0 AND accessed_at > dropped_at AND (accessed_at, id) > (?1, ?2)
                 ORDER BY accessed_at, id LIMIT ?3"
            ))?;
            q.query_map(params![at, id, limit as i64], entry_row)?.collect()
        })
    }
}

/// Counts one more entry that a tier has, or one less.
pub(super) fn count(db: &Connection, hash: &BlobHash, more: i64) -> Result<()> {
    db.prepare_cached("UPDATE blobs SET backed = max(backed + ?2, 0) WHERE hash = ?1")
        .and_then(|mut q| q.execute(params![hash.0, more]))
        .map_err(sqlite("count what a tier has"))?;
    Ok(())
}

fn let_go(db: &Connection, hash: &BlobHash, sums: &mut Sums, freed: &mut Freed) -> Result<()> {
    let backed: Option<(i64, Location)> = db
        .prepare_cached("SELECT size, pack, off FROM blobs WHERE hash = ?1 AND refs > 0 AND backed = refs")
        .and_then(|mut q| {
            q.query_row([&hash.0], |r| Ok((r.get(0)?, from_columns(r.get(1)?, r.get(2)?)))).optional()
        })
        .map_err(sqlite("look up a blob"))?;
    let Some((size, at)) = backed else { return Ok(()) };
    match at {
        Location::Pack { pack, .. } => sums.pack(pack.0 as i64).died += size,
        Location::Loose => freed.loose.push((*hash, size as u64)),
        // Some of it may be here.
        Location::Elsewhere => {
            freed.elsewhere.push(*hash);
            return Ok(());
        }
    }
    place(db, hash, Location::Elsewhere)?;
    sums.row(at, size, true, -1);
    sums.row(Location::Elsewhere, size, true, 1);
    Ok(())
}
