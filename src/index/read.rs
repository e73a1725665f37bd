//! Questions to the index, answered by a small pool of reading connections.
//!
//! Invariants: a question never waits for the writer (WAL); each is one short read
//! transaction, so that checkpoints are not held up; pages are bounded by their `limit`.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::keys::{Kept, Known};
use super::schema::{key_name, key_number};
use super::writer::Recall;
use super::{
    Backed, BlobRow, EntryRow, Glance, InTier, Index, IndexError, PackRow, Result, Totals, from_columns,
    schema, sqlite,
};
use crate::model::manifest::Top;
use crate::model::{BlobHash, EntryKey, ManifestHash};
use crate::store::PackId;

/// Connections kept open when idle; more are opened when more threads ask at once.
const KEPT: usize = 4;
/// How often the files are put back for one connection, which only somebody who goes on replacing them can need.
const PUT_BACK: u32 = 8;

/// The pool.
pub(super) struct Readers {
    file: PathBuf,
    /// Idle connections, and how often the pool was emptied for a new file.
    idle: Mutex<(u64, Vec<Connection>)>,
    recall: Recall,
}

impl Readers {
    pub(super) fn new(file: &Path, recall: Recall) -> Readers {
        Readers { file: file.to_owned(), idle: Mutex::new((0, Vec::new())), recall }
    }

    /// A new connection to the files that the writer has.
    fn connect(&self) -> Result<Connection> {
        let mut tries = 0;
        loop {
            let had = self.recall.files();
            let opened = schema::open_reader(&self.file);
            // What was opened may be what stood there before somebody else had them put back.
            if self.recall.is_in_place(&self.file) && self.recall.files() == had || tries == PUT_BACK {
                return opened;
            }
            drop(opened);
            self.recall.put_back()?;
            tries += 1;
        }
    }

    /// Closes idle connections, and lent ones when they come back.
    pub(super) fn forget(&self) {
        let mut idle = self.idle.lock();
        idle.0 += 1;
        idle.1.clear();
    }

    pub(super) fn with<T>(
        &self,
        op: &'static str,
        ask: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let (age, idle) = {
            let mut idle = self.idle.lock();
            (idle.0, idle.1.pop())
        };
        let db = match idle {
            Some(db) => db,
            None => self.connect()?,
        };
        let answer = ask(&db).map_err(sqlite(op));
        let mut idle = self.idle.lock();
        if answer.is_ok() && idle.0 == age && idle.1.len() < KEPT {
            idle.1.push(db);
        }
        answer
    }
}

pub(super) const ENTRY: &str = "SELECT id, key, manifest, task_id, sealed_at, accessed_at, logical, files, inferred, readable, \
                     top_perm, top_nlink, top_mtime, metadata, backed, tier, dropped_at FROM entries";
const BLOB: &str = "SELECT hash, size, refs, pack, off, backed FROM blobs";

fn key_at(r: &Row<'_>, column: usize) -> rusqlite::Result<EntryKey> {
    let text = r.get_ref(column)?.as_str()?;
    EntryKey::parse(text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

pub(super) fn entry_row(r: &Row<'_>) -> rusqlite::Result<EntryRow> {
    Ok(EntryRow {
        id: r.get(0)?,
        key: key_at(r, 1)?,
        manifest: ManifestHash(r.get(2)?),
        task_id: r.get(3)?,
        sealed_at_ns: r.get(4)?,
        accessed_at_ns: r.get(5)?,
        logical_bytes: r.get::<_, i64>(6)? as u64,
        files: r.get::<_, i64>(7)? as u64,
        inferred: r.get(8)?,
        readable: r.get(9)?,
        top: top_at(r, 10)?,
        metadata_bytes: r.get::<_, i64>(13)? as u64,
        in_tier: InTier { backed: Backed::of(r.get(14)?), tier: r.get(15)?, dropped_at_ns: r.get(16)? },
    })
}

fn top_at(r: &Row<'_>, column: usize) -> rusqlite::Result<Option<Top>> {
    let Some(perm) = r.get(column)? else { return Ok(None) };
    Ok(Some(Top { perm, nlink: r.get(column + 1)?, mtime_ns: r.get(column + 2)? }))
}

fn blob_row(r: &Row<'_>) -> rusqlite::Result<BlobRow> {
    Ok(BlobRow {
        hash: BlobHash(r.get(0)?),
        size: r.get::<_, i64>(1)? as u64,
        refs: r.get::<_, i64>(2)? as u64,
        location: from_columns(r.get(3)?, r.get(4)?),
        backed: r.get::<_, i64>(5)? as u64,
    })
}

/// The entry with this key, on any connection.
pub(super) fn entry_by_key(db: &Connection, key: &EntryKey) -> rusqlite::Result<Option<EntryRow>> {
    let mut q = db.prepare_cached(&format!("{ENTRY} WHERE number = ?1 AND key = ?2"))?;
    q.query_row(params![key_number(key) as i64, key.as_str()], entry_row).optional()
}

impl Index {
    /// The entry with this key.
    pub fn entry(&self, key: &EntryKey) -> Result<Option<EntryRow>> {
        self.entry_if(self.keys.find(key_name(key)), key)
    }

    fn entry_if(&self, known: Known, key: &EntryKey) -> Result<Option<EntryRow>> {
        match known {
            Known::Absent => return Ok(None),
            Known::There(kept) => {
                if let Some(row) = self.entry_by_id(kept.id)?.filter(|row| row.key == *key) {
                    return Ok(Some(row));
                }
            }
            Known::Unclear => {}
        }
        self.readers.with("look up an entry", |db| entry_by_key(db, key))
    }

    /// Whether there is an entry with this key, and what it looks like: from memory where that is known. That it
    /// is this key's and no other's is as sure as 80 bits of a hash are, until its row is read.
    pub fn glance(&self, key: &EntryKey) -> Result<Option<Glance>> {
        match self.keys.find(key_name(key)) {
            Known::There(Kept { id, sealed_at_ns, top: Some(top) }) => {
                Ok(Some(Glance { id, sealed_at_ns, top: Some(top), row: None }))
            }
            known => Ok(self.entry_if(known, key)?.map(Glance::from)),
        }
    }

    /// The entry with this row id.
    pub fn entry_by_id(&self, id: i64) -> Result<Option<EntryRow>> {
        self.readers.with("look up an entry", |db| {
            db.prepare_cached(&format!("{ENTRY} WHERE id = ?1"))?.query_row([id], entry_row).optional()
        })
    }

    /// Takes up to `limit` rows with ids above `after` (at first 0) into the table of keys in memory; where to go on,
    /// `None` at the end. From then on a key is found, and that one is absent, without a look into SQLite.
    pub fn load_keys(&self, after: i64, limit: usize) -> Result<Option<i64>> {
        if self.keys.is_complete() || self.keys.has_given_up() {
            return Ok(None);
        }
        if after == 0 {
            self.keys.expect(self.totals()?.entries as usize);
        }
        let age = self.keys.age();
        let rows: Vec<(EntryKey, Kept)> = self.readers.with("list keys", |db| {
            let mut q = db.prepare_cached(
                "SELECT id, key, sealed_at, top_perm, top_nlink, top_mtime FROM entries WHERE id > ?1
                 ORDER BY id LIMIT ?2",
            )?;
            let row = |r: &Row<'_>| {
                Ok((key_at(r, 1)?, Kept { id: r.get(0)?, sealed_at_ns: r.get(2)?, top: top_at(r, 3)? }))
            };
            q.query_map(params![after, limit as i64], row)?.collect()
        })?;
        rows.iter().for_each(|(key, kept)| self.keys.load(age, key_name(key), kept));
        if rows.len() < limit {
            self.keys.complete();
        }
        Ok(rows.last().map(|(_, kept)| kept.id).filter(|_| rows.len() == limit))
    }

    /// Whether all keys are in memory.
    pub fn has_keys(&self) -> bool {
        self.keys.is_complete()
    }

    /// Up to `limit` entries with `id > after`, by id.
    pub fn entries_after(&self, after: i64, limit: usize) -> Result<Vec<EntryRow>> {
        self.readers.with("list entries", |db| {
            let mut q = db.prepare_cached(&format!("{ENTRY} WHERE id > ?1 ORDER BY id LIMIT ?2"))?;
            q.query_map(params![after, limit as i64], entry_row)?.collect()
        })
    }

    /// How many entries have `id > after`.
    pub fn count_after(&self, after: i64) -> Result<u64> {
        self.readers.with("count entries", |db| {
            let mut q = db.prepare_cached("SELECT count(*) FROM entries WHERE id > ?1")?;
            q.query_row([after], |r| r.get::<_, i64>(0)).map(|n| n as u64)
        })
    }

    /// Up to `limit` (id, key) pairs with `id > after`, by id: for listing the root.
    pub fn keys_after(&self, after: i64, limit: usize) -> Result<Vec<(i64, EntryKey)>> {
        self.readers.with("list keys", |db| {
            let mut q =
                db.prepare_cached("SELECT id, key FROM entries WHERE id > ?1 ORDER BY id LIMIT ?2")?;
            q.query_map(params![after, limit as i64], |r| Ok((r.get(0)?, key_at(r, 1)?)))?.collect()
        })
    }

    /// Up to `limit` entries, least recently used first, with `(accessed_at, id)` after `after`.
    pub fn oldest(&self, after: Option<(i64, i64)>, limit: usize) -> Result<Vec<EntryRow>> {
        let (at, id) = after.unwrap_or((i64::MIN, i64::MIN));
        self.readers.with("list the oldest entries", |db| {
            let mut q = db.prepare_cached(&format!(
                "{ENTRY} WHERE (accessed_at, id) > (?1, ?2) ORDER BY accessed_at, id LIMIT ?3"
            ))?;
            q.query_map(params![at, id, limit as i64], entry_row)?.collect()
        })
    }

    /// A task's entries, newest first.
    pub fn by_task(&self, task_id: &str, limit: usize) -> Result<Vec<EntryRow>> {
        self.readers.with("list a task's entries", |db| {
            let mut q = db.prepare_cached(&format!(
                "{ENTRY} WHERE task_id = ?1 ORDER BY sealed_at DESC, id DESC LIMIT ?2"
            ))?;
            q.query_map(params![task_id, limit as i64], entry_row)?.collect()
        })
    }

    /// Distinct task ids after `after`, in order; the empty one is none.
    pub fn tasks_after(&self, after: &str, limit: usize) -> Result<Vec<String>> {
        self.readers.with("list tasks", |db| {
            // One seek per task: a DISTINCT would walk over all entries of each.
            let mut q = db.prepare_cached("SELECT min(task_id) FROM entries WHERE task_id > ?1")?;
            let mut found: Vec<String> = Vec::new();
            while found.len() < limit {
                let last = found.last().map_or(after, String::as_str);
                let Some(next) = q.query_row([last], |r| r.get::<_, Option<String>>(0))? else { break };
                found.push(next);
            }
            Ok(found)
        })
    }

    /// A blob.
    pub fn blob(&self, hash: &BlobHash) -> Result<Option<BlobRow>> {
        Ok(self.blobs(std::slice::from_ref(hash))?.pop().flatten())
    }

    /// What is known of each of `hashes`, in the same order.
    pub fn blobs(&self, hashes: &[BlobHash]) -> Result<Vec<Option<BlobRow>>> {
        self.readers.with("look up blobs", |db| {
            let mut q = db.prepare_cached(&format!("{BLOB} WHERE hash = ?1"))?;
            hashes.iter().map(|h| q.query_row([&h.0], blob_row).optional()).collect()
        })
    }

    /// Every blob row, in pages by hash: for fsck.
    pub fn blobs_after(&self, after: Option<&BlobHash>, limit: usize) -> Result<Vec<BlobRow>> {
        self.readers.with("list blobs", |db| {
            let mut q = db.prepare_cached(&format!("{BLOB} WHERE hash > ?1 ORDER BY hash LIMIT ?2"))?;
            let after = after.map_or(&[][..], |h| &h.0[..]);
            q.query_map(params![after, limit as i64], blob_row)?.collect()
        })
    }

    /// Up to `limit` blobs that have rows and no references: candidates for
    /// [`drop_unreferenced`](Self::drop_unreferenced).
    pub fn unreferenced(&self, limit: usize) -> Result<Vec<BlobHash>> {
        self.readers.with("list unreferenced blobs", |db| {
            let mut q = db.prepare_cached("SELECT hash FROM blobs WHERE refs = 0 LIMIT ?1")?;
            q.query_map([limit as i64], |r| Ok(BlobHash(r.get(0)?)))?.collect()
        })
    }

    /// Which of these manifests are no entry's.
    pub fn unknown_manifests(&self, names: &[ManifestHash]) -> Result<Vec<ManifestHash>> {
        self.readers.with("look up manifests", |db| {
            let mut q = db.prepare_cached("SELECT 1 FROM entries WHERE manifest = ?1")?;
            let mut unknown = Vec::new();
            for name in names {
                if !q.exists([&name.0])? {
                    unknown.push(*name);
                }
            }
            Ok(unknown)
        })
    }

    /// The blobs of a pack, in the order they lie in it.
    pub fn pack_blobs(&self, id: PackId) -> Result<Vec<BlobRow>> {
        self.readers.with("list a pack's blobs", |db| {
            let mut q = db.prepare_cached(&format!("{BLOB} WHERE pack = ?1 AND pack > 0 ORDER BY off"))?;
            q.query_map([id.0 as i64], blob_row)?.collect()
        })
    }

    /// A pack.
    pub fn pack(&self, id: PackId) -> Result<Option<PackRow>> {
        self.readers.with("look up a pack", |db| {
            let mut q = db.prepare_cached("SELECT id, live, blobs, total FROM packs WHERE id = ?1")?;
            q.query_row([id.0 as i64], pack_row).optional()
        })
    }

    /// Up to `limit` packs with ids above `after`, by id.
    pub fn packs_after(&self, after: PackId, limit: usize) -> Result<Vec<PackRow>> {
        self.readers.with("list packs", |db| {
            let mut q = db.prepare_cached(
                "SELECT id, live, blobs, total FROM packs WHERE id > ?1 ORDER BY id LIMIT ?2",
            )?;
            q.query_map(params![after.0 as i64, limit as i64], pack_row)?.collect()
        })
    }

    /// Totals.
    pub fn totals(&self) -> Result<Totals> {
        self.readers.with("read its totals", |db| {
            db.prepare_cached(
                "SELECT entries, blobs, loose_bytes, pack_bytes, live_bytes, logical_bytes, unreferenced_bytes,
                 occupied_bytes, metadata_bytes, elsewhere_bytes FROM totals",
            )?
            .query_row([], |r| {
                let n = |column| Ok::<u64, rusqlite::Error>(r.get::<_, i64>(column)?.max(0) as u64);
                Ok(Totals {
                    entries: n(0)?,
                    blobs: n(1)?,
                    loose_bytes: n(2)?,
                    pack_bytes: n(3)?,
                    dead_bytes: n(3)?.saturating_sub(n(4)?),
                    logical_bytes: n(5)?,
                    unreferenced_bytes: n(6)?,
                    occupied_bytes: n(7)?,
                    metadata_bytes: n(8)?,
                    elsewhere_bytes: n(9)?,
                })
            })
        })
    }

    /// SQLite's own integrity check and the index's sums against its rows: a list of complaints,
    /// empty when sound. Whether the rows are true is for fsck to find out.
    pub fn integrity(&self) -> Result<Vec<String>> {
        let mut complaints: Vec<String> = self.readers.with("check its integrity", |db| {
            let mut q = db.prepare("PRAGMA integrity_check(100)")?;
            q.query_map([], |r| r.get(0))?.collect()
        })?;
        complaints.retain(|c| c != "ok");
        if !complaints.is_empty() {
            return Ok(complaints);
        }
        for (what, sql) in SUMS {
            let wrong: i64 = self.readers.with("check its sums", |db| db.query_row(sql, [], |r| r.get(0)))?;
            if wrong != 0 {
                complaints.push((*what).to_owned());
            }
        }
        Ok(complaints)
    }
}

fn pack_row(r: &Row<'_>) -> rusqlite::Result<PackRow> {
    Ok(PackRow {
        id: PackId(r.get::<_, i64>(0)? as u64),
        live: r.get::<_, i64>(1)? as u64,
        blobs: r.get::<_, i64>(2)? as u64,
        total: r.get::<_, i64>(3)? as u64,
    })
}

/// Each counts what contradicts itself.
const SUMS: &[(&str, &str)] = &[
    (
        "the totals of entries differ from the entries",
        "SELECT count(*) FROM totals t, (SELECT count(*) n, coalesce(sum(logical), 0) l,
            coalesce(sum(metadata), 0) m FROM entries) e
         WHERE t.entries <> e.n OR t.logical_bytes <> e.l OR t.metadata_bytes <> e.m",
    ),
    (
        "the totals of blobs differ from the blobs",
        "SELECT count(*) FROM totals t, (SELECT count(*) n,
            coalesce(sum(CASE WHEN pack = 0 AND off = 0 THEN size END), 0) l,
            coalesce(sum(CASE WHEN pack = 0 AND off = 2 THEN size END), 0) e,
            coalesce(sum(CASE WHEN refs = 0 AND (pack > 0 OR off = 0) THEN size END), 0) u FROM blobs) b
         WHERE t.blobs <> b.n OR t.loose_bytes <> b.l OR t.elsewhere_bytes <> b.e OR t.unreferenced_bytes <> b.u",
    ),
    (
        "the totals of packs differ from the packs",
        "SELECT count(*) FROM totals t,
            (SELECT coalesce(sum(total), 0) n, coalesce(sum(live), 0) l FROM packs) p
         WHERE t.pack_bytes <> p.n OR t.live_bytes <> p.l",
    ),
    (
        "the total of what is occupied differs from packs and blobs",
        "SELECT count(*) FROM totals WHERE occupied_bytes <>
            (SELECT coalesce(sum((size + 4095) / 4096), 0) * 4096 FROM blobs WHERE pack = 0 AND off = 0) +
            (SELECT coalesce(sum((total + 4095) / 4096), 0) * 4096 FROM packs)",
    ),
    (
        "a pack's counters differ from its blobs",
        "SELECT count(*) FROM packs p LEFT JOIN (SELECT pack, count(*) n,
            sum(CASE WHEN refs > 0 THEN size ELSE 0 END) l FROM blobs WHERE pack > 0 GROUP BY pack) b
         ON b.pack = p.id WHERE p.blobs <> coalesce(b.n, 0) OR p.live <> coalesce(b.l, 0)",
    ),
    (
        "blobs lie in packs that are not listed",
        "SELECT count(*) FROM blobs WHERE pack > 0 AND pack NOT IN (SELECT id FROM packs)",
    ),
    ("tiers have more of a blob than there are entries with it", "SELECT count(*) FROM blobs WHERE backed > refs"),
    ("blobs lie nowhere", "SELECT count(*) FROM blobs WHERE pack < 0 OR pack = 0 AND off NOT IN (0, 2)"),
];

impl IndexError {
    /// The index's file itself is damaged, as opposed to a disk in trouble.
    pub fn is_damage(&self) -> bool {
        matches!(self, IndexError::Sqlite { source, .. } if schema::is_unusable(source)
            || matches!(source, rusqlite::Error::FromSqlConversionFailure(..)))
    }
}
