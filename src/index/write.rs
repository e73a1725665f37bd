//! Changes of the index; each runs on the writer thread inside a savepoint.
//!
//! Invariants: a blob's `refs` is the number of entries that refer to it; a pack's `live` the
//! size of its blobs with references, its `blobs` the number of rows that name it; the totals
//! are their sums. A blob's first place wins, but for one elsewhere, which any place here takes over, and for one that was
//! damaged and is stored anew. A pack without a row
//! that names it is gone.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, params};

use super::keys::{Kept, Keys};
use super::read::entry_by_key;
use super::schema::{key_name, key_number};
use super::sums::{RECOUNT, Sums, blocks};
use super::writer::Writer;
use super::{
    Commit, EntryRow, Freed, Index, NewEntry, Result, backed, from_columns, schema, sqlite, to_columns,
};
use crate::model::{BlobHash, EntryKey, ManifestHash};
use crate::store::{Location, PackId};

impl Index {
    /// Opens (or creates) the index in `file`; the flag says whether it was new (or unusable and
    /// set aside as `<file>.bad`, or never [`finish`](Self::finish)ed), so that the caller rebuilds it. Keys take up
    /// at most `keys` bytes of memory.
    pub fn open(file: &Path, keys: usize) -> Result<(Index, bool)> {
        let (db, new) = schema::open_writer(file)?;
        let epoch =
            db.query_row("SELECT epoch FROM totals", [], |r| r.get(0)).map_err(sqlite("read its epoch"))?;
        let last: Option<i64> = db
            .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'entries'", [], |r| r.get(0))
            .optional()
            .map_err(sqlite("read its last row id"))?;
        let keys = Arc::new(Keys::new(keys));
        let (writer, readers) = Writer::start(db, file, keys.clone())?;
        let index = Index {
            file: file.to_owned(),
            finished: AtomicBool::new(!new),
            epoch: AtomicU32::new(epoch),
            writer,
            readers,
            keys,
            last_id: Arc::new(AtomicI64::new(last.unwrap_or(0))),
            changes: Arc::default(),
        };
        Ok((index, new))
    }

    /// Opens a copy, at another path, of an index that nobody has open and that cannot be written to. One that has to be made anew is an error.
    pub fn open_copy(file: &Path, copy: &Path, keys: usize) -> Result<Index> {
        let io = |source| super::IndexError::Io { op: "copy", path: file.to_owned(), source };
        schema::copy(file, copy).map_err(io)?;
        match Index::open(copy, keys)? {
            (index, false) => Ok(index),
            (_, true) => {
                let why = "it has to be made anew, for which the store has to be writable";
                Err(io(std::io::Error::other(why)))
            }
        }
    }

    /// Grows each time the index was created anew; part of event cursors.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// How many changes of entries there were; `None` while there is one. What was read while it stayed the same agrees.
    pub fn changes(&self) -> Option<u64> {
        let ended = self.changes.ended.load(Ordering::SeqCst);
        // Equal, all that had begun by now had ended before.
        (self.changes.begun.load(Ordering::SeqCst) == ended).then_some(ended)
    }

    /// The same, when there is none for a moment; `None` when that does not happen within a second.
    pub fn changes_at_rest(&self) -> Option<u64> {
        let until = Instant::now() + Duration::from_secs(1);
        loop {
            match self.changes() {
                None if Instant::now() < until => std::thread::sleep(Duration::from_micros(200)),
                changes => return changes,
            }
        }
    }

    pub(super) fn changing<T: Send + 'static>(&self, change: impl FnOnce(&Writer) -> Result<T>) -> Result<T> {
        self.changes.begun.fetch_add(1, Ordering::SeqCst);
        let result = change(&self.writer);
        self.changes.ended.fetch_add(1, Ordering::SeqCst);
        result
    }

    /// It knows all that the store has: what it does not know is of no entry.
    pub fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    /// After it was new or reset: from now on it knows all that the store has. Until then every opening says that
    /// it is new.
    pub fn finish(&self) -> Result<()> {
        self.writer.run(schema::finish)?;
        self.finished.store(true, Ordering::Release);
        Ok(())
    }

    /// Throws everything away and begins anew with a greater epoch; the file is set aside as
    /// `<file>.bad`. Row ids go on growing. Nobody else may be writing.
    pub fn reset(&self) -> Result<()> {
        let (epoch, last) =
            (schema::fresh_epoch().max(self.epoch() + 1), self.last_id.load(Ordering::Relaxed));
        self.finished.store(false, Ordering::Release);
        self.writer.reset()?;
        self.writer.run(move |db| {
            db.execute("UPDATE totals SET epoch = ?1", [epoch]).map_err(sqlite("write its epoch"))?;
            db.execute("INSERT INTO sqlite_sequence(name, seq) VALUES('entries', ?1)", [last])
                .map_err(sqlite("write its last row id"))?;
            Ok(())
        })?;
        self.epoch.store(epoch, Ordering::Relaxed);
        Ok(())
    }

    /// Adds an entry; durable when it returns. Counts a reference per distinct blob, adds new
    /// blobs and packs. `Taken` if the key exists and `replaces` is not its manifest.
    pub fn commit(&self, new: NewEntry) -> Result<Commit> {
        let (last_id, keys) = (self.last_id.clone(), self.keys.clone());
        let key = new.row.key.clone();
        let done = self.changing(|w| w.run(move |db| commit(db, &new, &last_id, &keys)))?;
        self.committed(&key, &done);
        Ok(done)
    }

    /// Adds many entries in one transaction: all or, on an error, none.
    pub fn commit_all(&self, new: Vec<NewEntry>) -> Result<Vec<Commit>> {
        let (last_id, keys) = (self.last_id.clone(), self.keys.clone());
        let names: Vec<EntryKey> = new.iter().map(|n| n.row.key.clone()).collect();
        let commit_all = move |db: &Connection| new.iter().map(|n| commit(db, n, &last_id, &keys)).collect();
        let done: Vec<Commit> = self.changing(|w| w.run(commit_all))?;
        names.iter().zip(&done).for_each(|(key, done)| self.committed(key, done));
        Ok(done)
    }

    /// The table of keys learns how a commit ended.
    fn committed(&self, key: &EntryKey, done: &Commit) {
        let Commit::Done(id, replaced) = done else { return };
        let name = key_name(key);
        // In this order there is never none, and never one that is not there.
        self.keys.confirm(name, *id);
        if let Some(old) = replaced {
            self.keys.remove(name, old.id);
        }
    }

    /// Removes an entry whose distinct blobs are `blobs`, if `manifest` is still its manifest;
    /// blobs for which `keep` is true keep their rows with zero references (asked before the
    /// transaction, so the answer must hold until this returns). `None` when it was not there.
    pub fn remove_entry(
        &self,
        key: &EntryKey,
        manifest: &ManifestHash,
        blobs: &[BlobHash],
        keep: &dyn Fn(&BlobHash) -> bool,
    ) -> Result<Option<Freed>> {
        let (key, manifest) = (key.clone(), *manifest);
        let blobs: Vec<_> = blobs.iter().map(|h| (*h, keep(h))).collect();
        let remove = move |db: &Connection| {
            let Some(row) = entry_by_key(db, &key).map_err(sqlite("look up an entry"))? else {
                return Ok(None);
            };
            if row.manifest != manifest {
                return Ok(None);
            }
            let mut sums = Sums::default();
            let mut freed =
                Freed { manifest: Some(manifest), metadata: row.metadata_bytes, ..Freed::default() };
            delete_entry(db, &row, &mut sums)?;
            for (hash, keep) in &blobs {
                unrefer(db, hash, row.in_tier.is_backed(), &mut sums)?;
                if !keep {
                    drop_if_unreferenced(db, hash, &mut sums, &mut freed)?;
                }
            }
            sums.apply(db, &mut freed)?;
            Ok(Some((row, freed)))
        };
        let Some((row, freed)) = self.changing(|w| w.run_freeing(remove))? else { return Ok(None) };
        self.keys.remove(key_name(&row.key), row.id);
        Ok(Some(freed))
    }

    /// Rebuilding: takes up blobs that lie in the store, without references, and packs. What is
    /// known already stays as it is.
    pub fn adopt(&self, packs: Vec<(PackId, u64)>, blobs: Vec<(BlobHash, u64, Location)>) -> Result<()> {
        self.writer.run(move |db| {
            let mut sums = Sums::default();
            for (id, bytes) in &packs {
                add_pack(db, *id, *bytes, &mut sums)?;
            }
            for (hash, size, at) in &blobs {
                add_blob(db, hash, *size, 0, *at, &mut sums)?;
            }
            sums.apply(db, &mut Freed::default())
        })
    }

    /// Repairing: sets the numbers of references, and of those of entries that tiers have, and counts all sums anew.
    /// Only if entries have not [changed](Index::changes) since then: else false.
    pub fn set_references(&self, refs: Vec<(BlobHash, u64, u64)>, since: u64) -> Result<bool> {
        let changes = self.changes.clone();
        self.writer.run(move |db| {
            if changes.begun.load(Ordering::SeqCst) != since {
                return Ok(false);
            }
            for (hash, n, backed) in &refs {
                db.prepare_cached("UPDATE blobs SET refs = ?2, backed = ?3 WHERE hash = ?1")
                    .and_then(|mut q| q.execute(params![hash.0, *n as i64, *backed as i64]))
                    .map_err(sqlite("correct references"))?;
            }
            db.execute_batch(RECOUNT).map_err(sqlite("count its sums anew"))?;
            Ok(true)
        })
    }

    /// Drops those of `hashes` that have a row without references; what that frees. The caller
    /// makes sure that nobody reserves them meanwhile.
    pub fn drop_unreferenced(&self, hashes: Vec<BlobHash>) -> Result<Freed> {
        self.writer.run_freeing(move |db| {
            let (mut sums, mut freed) = (Sums::default(), Freed::default());
            for hash in &hashes {
                drop_if_unreferenced(db, hash, &mut sums, &mut freed)?;
            }
            sums.apply(db, &mut freed)?;
            Ok(freed)
        })
    }

    /// Compaction: moves blobs to their new places and adds the new pack, in one transaction. A
    /// blob that is not in one of `from` any more, nor elsewhere, stays where it is. Returns the packs (of
    /// `from` and `added`) that no row names now: their rows are gone, the caller removes them.
    pub fn relocate(
        &self,
        moved: Vec<(BlobHash, Location)>,
        added: Option<(PackId, u64)>,
        from: Vec<PackId>,
    ) -> Result<Vec<(PackId, u64)>> {
        self.writer.run_freeing(move |db| {
            let (mut sums, mut freed) = (Sums::default(), Freed::default());
            if let Some((id, bytes)) = added {
                add_pack(db, id, bytes, &mut sums)?;
            }
            for (hash, to) in &moved {
                move_blob(db, hash, *to, &from, &mut sums)?;
            }
            for id in from.iter().chain(added.iter().map(|(id, _)| id)) {
                sums.pack(id.0 as i64);
            }
            sums.apply(db, &mut freed)?;
            Ok(freed.packs)
        })
    }

    /// Records accesses (row id, nanoseconds since 1970); an older one than is known changes nothing.
    pub fn touch(&self, accessed: &[(i64, i64)]) -> Result<()> {
        let accessed = accessed.to_vec();
        self.writer.run(move |db| {
            let mut q = db
                .prepare_cached("UPDATE entries SET accessed_at = ?2 WHERE id = ?1 AND accessed_at < ?2")
                .map_err(sqlite("record accesses"))?;
            for (id, at) in &accessed {
                q.execute([id, at]).map_err(sqlite("record accesses"))?;
            }
            Ok(())
        })
    }

    /// Sees to it that its files have their names: whoever deletes or replaces them while they are in use deletes nothing.
    pub fn put_back(&self) -> Result<()> {
        self.writer.put_back()
    }

    /// What failed last may count after a death: nothing that was written for it may be deleted before something was committed,
    /// or the next owner has looked.
    pub fn is_in_doubt(&self) -> bool {
        self.writer.is_in_doubt()
    }

    /// Finishes the writer thread and checkpoints; changes fail from then on.
    pub fn close(&self) -> Result<()> {
        self.writer.close()
    }
}

fn commit(db: &Connection, new: &NewEntry, last_id: &AtomicI64, keys: &Keys) -> Result<Commit> {
    let mut sums = Sums::default();
    let old = entry_by_key(db, &new.row.key).map_err(sqlite("look up an entry"))?;
    if let Some(old) = &old {
        let Some(replaced) = new.replaces.as_ref().filter(|r| r.manifest == old.manifest) else {
            return Ok(Commit::Taken(Box::new(old.clone())));
        };
        delete_entry(db, old, &mut sums)?;
        for hash in &replaced.blobs {
            unrefer(db, hash, old.in_tier.is_backed(), &mut sums)?;
        }
    }
    for (id, bytes) in &new.packs {
        add_pack(db, *id, *bytes, &mut sums)?;
    }
    for (hash, size, at) in &new.blobs {
        refer(db, hash, *size, *at, new.healed.contains(hash), &mut sums)?;
        if new.row.in_tier.is_backed() {
            backed::count(db, hash, 1)?;
        }
    }
    let id = insert_entry(db, &new.row, &mut sums)?;
    let kept = Kept { id, sealed_at_ns: new.row.sealed_at_ns, top: new.row.top };
    keys.announce(key_name(&new.row.key), &kept);
    // A new pack of which every blob was known elsewhere stays until compaction takes it: others
    // of the same group of commits may still refer to it.
    let mut freed = Freed::default();
    sums.apply(db, &mut freed)?;
    last_id.fetch_max(id, Ordering::Relaxed);
    Ok(Commit::Done(id, old.map(Box::new)))
}

fn insert_entry(db: &Connection, row: &EntryRow, sums: &mut Sums) -> Result<i64> {
    sums.entries += 1;
    sums.logical += row.logical_bytes as i64;
    sums.metadata += row.metadata_bytes as i64;
    db.prepare_cached(
        "INSERT INTO entries(key, manifest, task_id, sealed_at, accessed_at, logical, files, inferred, readable, top_perm,
         top_nlink, top_mtime, metadata, number, backed, tier, dropped_at)
         VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
    )
    .and_then(|mut q| {
        q.insert(params![
            row.key.as_str(),
            row.manifest.0,
            row.task_id,
            row.sealed_at_ns,
            row.accessed_at_ns,
            row.logical_bytes as i64,
            row.files as i64,
            row.inferred,
            row.readable,
            row.top.map(|t| t.perm),
            row.top.map(|t| t.nlink),
            row.top.map(|t| t.mtime_ns),
            row.metadata_bytes as i64,
            key_number(&row.key) as i64,
            row.in_tier.backed as i64,
            row.in_tier.tier,
            row.in_tier.dropped_at_ns
        ])
    })
    .map_err(sqlite("add an entry"))
}

fn delete_entry(db: &Connection, row: &EntryRow, sums: &mut Sums) -> Result<()> {
    sums.entries -= 1;
    sums.logical -= row.logical_bytes as i64;
    sums.metadata -= row.metadata_bytes as i64;
    db.prepare_cached("DELETE FROM entries WHERE id = ?1")
        .and_then(|mut q| q.execute([row.id]))
        .map_err(sqlite("remove an entry"))?;
    Ok(())
}

/// A pack that is known already (it serves several commits) stays as it is.
fn add_pack(db: &Connection, id: PackId, bytes: u64, sums: &mut Sums) -> Result<()> {
    let added = db
        .prepare_cached("INSERT OR IGNORE INTO packs(id, total, live, blobs) VALUES(?1, ?2, 0, 0)")
        .and_then(|mut q| q.execute([id.0 as i64, bytes as i64]))
        .map_err(sqlite("add a pack"))?;
    if added > 0 {
        sums.pack_bytes += bytes as i64;
        sums.occupied += blocks(bytes as i64);
    }
    Ok(())
}

/// Counts one more reference; a new blob gets the given place, a known one keeps its own if that is here and not `moves`.
fn refer(
    db: &Connection,
    hash: &BlobHash,
    size: u64,
    at: Location,
    moves: bool,
    sums: &mut Sums,
) -> Result<()> {
    let known: Option<(i64, i64, Location)> = db
        .prepare_cached("UPDATE blobs SET refs = refs + 1 WHERE hash = ?1 RETURNING refs, size, pack, off")
        .and_then(|mut q| {
            q.query_row([&hash.0], |r| Ok((r.get(0)?, r.get(1)?, from_columns(r.get(2)?, r.get(3)?))))
                .optional()
        })
        .map_err(sqlite("count a reference"))?;
    let Some((refs, known, there)) = known else {
        add_blob(db, hash, size, 1, at, sums)?;
        return Ok(());
    };
    if refs == 1 {
        sums.referred(there, known, true);
    }
    if (there == Location::Elsewhere || moves) && at != there {
        place(db, hash, at)?;
        sums.row(there, known, true, -1);
        // How large it is was a tier's word until now.
        if size as i64 != known {
            db.prepare_cached("UPDATE blobs SET size = ?2 WHERE hash = ?1")
                .and_then(|mut q| q.execute(params![hash.0, size as i64]))
                .map_err(sqlite("correct the size of a blob"))?;
        }
        sums.row(at, size as i64, true, 1);
    }
    Ok(())
}

/// Writes a blob's place into its row.
pub(super) fn place(db: &Connection, hash: &BlobHash, at: Location) -> Result<()> {
    let (pack, off) = to_columns(at);
    db.prepare_cached("UPDATE blobs SET pack = ?2, off = ?3 WHERE hash = ?1")
        .and_then(|mut q| q.execute(params![hash.0, pack, off]))
        .map_err(sqlite("move a blob"))?;
    Ok(())
}

/// Adds a blob's row, if there is none.
fn add_blob(
    db: &Connection,
    hash: &BlobHash,
    size: u64,
    refs: i64,
    at: Location,
    sums: &mut Sums,
) -> Result<()> {
    let (pack, off) = to_columns(at);
    let added = db
        .prepare_cached("INSERT OR IGNORE INTO blobs(hash, size, refs, pack, off) VALUES(?1, ?2, ?3, ?4, ?5)")
        .and_then(|mut q| q.execute(params![hash.0, size as i64, refs, pack, off]))
        .map_err(sqlite("add a blob"))?;
    if added > 0 {
        sums.blobs += 1;
        sums.row(at, size as i64, refs > 0, 1);
    }
    Ok(())
}

/// Counts one reference less; the row stays.
fn unrefer(db: &Connection, hash: &BlobHash, backed: bool, sums: &mut Sums) -> Result<()> {
    if backed {
        backed::count(db, hash, -1)?;
    }
    let left: Option<(i64, i64, Location)> = db
        .prepare_cached(
            "UPDATE blobs SET refs = refs - 1 WHERE hash = ?1 AND refs > 0 RETURNING refs, size, pack, off",
        )
        .and_then(|mut q| {
            q.query_row([&hash.0], |r| Ok((r.get(0)?, r.get(1)?, from_columns(r.get(2)?, r.get(3)?))))
                .optional()
        })
        .map_err(sqlite("drop a reference"))?;
    if let Some((0, size, at)) = left {
        sums.referred(at, size, false);
    }
    Ok(())
}

fn drop_if_unreferenced(db: &Connection, hash: &BlobHash, sums: &mut Sums, freed: &mut Freed) -> Result<()> {
    let gone: Option<(i64, Location)> = db
        .prepare_cached("DELETE FROM blobs WHERE hash = ?1 AND refs = 0 RETURNING size, pack, off")
        .and_then(|mut q| {
            q.query_row([&hash.0], |r| Ok((r.get(0)?, from_columns(r.get(1)?, r.get(2)?)))).optional()
        })
        .map_err(sqlite("remove a blob"))?;
    let Some((size, at)) = gone else { return Ok(()) };
    db.prepare_cached("DELETE FROM digests WHERE hash = ?1")
        .and_then(|mut q| q.execute([&hash.0]))
        .map_err(sqlite("forget a digest"))?;
    sums.blobs -= 1;
    sums.row(at, size, false, -1);
    match at {
        Location::Pack { pack, .. } => sums.pack(pack.0 as i64).died += size,
        Location::Loose => freed.loose.push((*hash, size as u64)),
        Location::Elsewhere => freed.elsewhere.push(*hash),
    }
    Ok(())
}

fn move_blob(db: &Connection, hash: &BlobHash, to: Location, from: &[PackId], sums: &mut Sums) -> Result<()> {
    let known: Option<(i64, i64, Location)> = db
        .prepare_cached("SELECT refs, size, pack, off FROM blobs WHERE hash = ?1")
        .and_then(|mut q| {
            q.query_row([&hash.0], |r| Ok((r.get(0)?, r.get(1)?, from_columns(r.get(2)?, r.get(3)?))))
                .optional()
        })
        .map_err(sqlite("look up a blob"))?;
    let Some((refs, size, old)) = known else { return Ok(()) };
    match old {
        Location::Pack { pack, .. } if from.contains(&pack) => {}
        Location::Elsewhere => {}
        _ => return Ok(()),
    }
    place(db, hash, to)?;
    sums.row(old, size, refs > 0, -1);
    sums.row(to, size, refs > 0, 1);
    Ok(())
}
