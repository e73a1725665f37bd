//! What a change adds to the totals and to packs' counters, and all of that counted anew from the rows.
//!
//! Invariant: after each change the totals and the counters are the sums over the rows.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension};

use super::{Freed, IndexError, Result, sqlite};
use crate::store::{Location, PackId};

/// What one change adds to the totals and to packs' counters.
#[derive(Default)]
pub(super) struct Sums {
    pub(super) entries: i64,
    pub(super) blobs: i64,
    pub(super) loose: i64,
    pub(super) elsewhere: i64,
    pub(super) unreferenced: i64,
    pub(super) logical: i64,
    pub(super) pack_bytes: i64,
    pub(super) live_bytes: i64,
    pub(super) occupied: i64,
    pub(super) metadata: i64,
    pub(super) packs: BTreeMap<i64, PackSums>,
}

/// Of one pack.
#[derive(Default)]
pub(super) struct PackSums {
    live: i64,
    rows: i64,
    /// Bytes whose rows went.
    pub(super) died: i64,
}

impl Sums {
    /// So many more bytes of manifests and the like.
    pub(super) fn of_metadata(bytes: i64) -> Sums {
        Sums { metadata: bytes, ..Sums::default() }
    }

    pub(super) fn pack(&mut self, id: i64) -> &mut PackSums {
        self.packs.entry(id).or_default()
    }

    /// What a blob's row at this place counts for, added (`sign` 1) or taken away (-1).
    pub(super) fn row(&mut self, at: Location, size: i64, referred: bool, sign: i64) {
        let bytes = sign * size;
        match at {
            Location::Pack { pack, .. } => {
                let live = if referred { bytes } else { 0 };
                let sums = self.pack(pack.0 as i64);
                sums.rows += sign;
                sums.live += live;
                self.live_bytes += live;
            }
            Location::Loose => {
                self.loose += bytes;
                self.occupied += sign * blocks(size);
            }
            Location::Elsewhere => self.elsewhere += bytes,
        }
        if !referred && at != Location::Elsewhere {
            self.unreferenced += bytes;
        }
    }

    /// The same row, where it is referred to and where it is not.
    pub(super) fn referred(&mut self, at: Location, size: i64, now: bool) {
        self.row(at, size, !now, -1);
        self.row(at, size, now, 1);
    }

    /// Writes everything; packs that are empty now go.
    pub(super) fn apply(mut self, db: &Connection, freed: &mut Freed) -> Result<()> {
        let packs = std::mem::take(&mut self.packs);
        for (id, PackSums { live, rows, died }) in packs {
            let after: Option<(i64, i64)> = db
                .prepare_cached(
                    "UPDATE packs SET live = live + ?2, blobs = blobs + ?3 WHERE id = ?1 RETURNING blobs, total",
                )
                .and_then(|mut q| {
                    q.query_row([id, live, rows], |r| Ok((r.get(0)?, r.get(1)?))).optional()
                })
                .map_err(sqlite("count a pack's blobs"))?;
            match after {
                // A row may only name a pack that is there.
                None if rows > 0 => return Err(IndexError::Unknown(format!("the pack {id}"))),
                Some((0, total)) => {
                    db.execute("DELETE FROM packs WHERE id = ?1", [id]).map_err(sqlite("remove a pack"))?;
                    self.pack_bytes -= total;
                    self.occupied -= blocks(total);
                    freed.packs.push((PackId(id as u64), total as u64));
                }
                _ => freed.dead_in_packs += died as u64,
            }
        }
        db.prepare_cached(
            "UPDATE totals SET entries = entries + ?1, blobs = blobs + ?2, loose_bytes = loose_bytes + ?3,
             logical_bytes = logical_bytes + ?4, pack_bytes = pack_bytes + ?5, live_bytes = live_bytes + ?6,
             unreferenced_bytes = unreferenced_bytes + ?7, occupied_bytes = occupied_bytes + ?8,
             metadata_bytes = metadata_bytes + ?9, elsewhere_bytes = elsewhere_bytes + ?10",
        )
        .and_then(|mut q| {
            q.execute([
                self.entries,
                self.blobs,
                self.loose,
                self.logical,
                self.pack_bytes,
                self.live_bytes,
                self.unreferenced,
                self.occupied,
                self.metadata,
                self.elsewhere,
            ])
        })
        .map_err(sqlite("write its totals"))?;
        Ok(())
    }
}

pub(super) fn blocks(len: i64) -> i64 {
    super::occupied(len as u64) as i64
}

/// All sums from the rows themselves.
pub(super) const RECOUNT: &str = "
    UPDATE packs SET live = 0, blobs = 0;
    UPDATE packs SET blobs = b.n, live = b.l FROM (SELECT pack, count(*) n,
        sum(CASE WHEN refs > 0 THEN size ELSE 0 END) l FROM blobs WHERE pack > 0 GROUP BY pack) b
        WHERE b.pack = packs.id;
    UPDATE totals SET
        entries = (SELECT count(*) FROM entries),
        logical_bytes = (SELECT coalesce(sum(logical), 0) FROM entries),
        blobs = (SELECT count(*) FROM blobs),
        loose_bytes = (SELECT coalesce(sum(size), 0) FROM blobs WHERE pack = 0 AND off = 0),
        elsewhere_bytes = (SELECT coalesce(sum(size), 0) FROM blobs WHERE pack = 0 AND off = 2),
        unreferenced_bytes = (SELECT coalesce(sum(size), 0) FROM blobs WHERE refs = 0 AND (pack > 0 OR off = 0)),
        pack_bytes = (SELECT coalesce(sum(total), 0) FROM packs),
        live_bytes = (SELECT coalesce(sum(live), 0) FROM packs),
        metadata_bytes = (SELECT coalesce(sum(metadata), 0) FROM entries),
        occupied_bytes =
            (SELECT coalesce(sum((size + 4095) / 4096), 0) * 4096 FROM blobs WHERE pack = 0 AND off = 0) +
            (SELECT coalesce(sum((total + 4095) / 4096), 0) * 4096 FROM packs)";
