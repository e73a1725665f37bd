//! From stored contents to a committed entry: manifest, index, and who is told.
//!
//! Invariants: the manifest is durable before the index knows the entry; an existing entry is replaced
//! only if it does not count or the request says so (Semantics 5).

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use super::compare::first_difference;
use super::content::Storer;
use super::here::now_ns;
use super::lease::Reservation;
use super::memory::SEALED_FILE;
use super::put::{made_attrs, metadata};
use super::stash::Stash;
use super::{Cache, CacheError, Draft, Entry, LeaseKind, Result, SealRequest};
use crate::index::{BlobRow, Commit, EntryRow, NewEntry, Replaced};
use crate::model::manifest::{Seal, TreeBuilder};
use crate::model::{BlobHash, EventKind, Manifest, ManifestHash};
use crate::store::{Location, PackId, StoreError, parts_of};

/// What a tree's `metadata.json` is.
pub(super) enum Found {
    /// There is none.
    Missing,
    /// It parses.
    Read {
        /// The task it names.
        task_id: String,
    },
    /// Why it does not parse.
    Broken(String),
}

/// A tree whose contents are stored.
pub(super) struct Tree {
    pub builder: TreeBuilder,
    pub blobs: Vec<(BlobHash, u64)>,
    pub metadata: Found,
}

/// An entry that lacks only its row in the index.
struct Made {
    manifest: Manifest,
    blobs: Vec<(BlobHash, u64, Location)>,
    hashes: HashSet<BlobHash>,
    /// By record.
    table: Vec<Option<Location>>,
    packs: Vec<(PackId, u64)>,
    task_id: String,
    broken: Option<String>,
}

/// How a commit ended.
pub(super) enum Outcome {
    /// The entry, and the loose blobs that came with it.
    New(Entry, Vec<BlobHash>),
    /// What was there already.
    Same(Entry),
    /// Something changed under it: prepare again.
    Stale,
}

impl Cache {
    /// Makes an entry of what was prepared. Its blobs are held against others meanwhile.
    /// A draft that it comes from is noted to be that entry, so that it does not come back after a death: it shares files with it.
    pub(super) fn commit(
        &self,
        stash: &Stash,
        tree: Tree,
        request: &SealRequest,
        draft: Option<&Draft>,
    ) -> Result<Outcome> {
        let _stands = self.index_stands();
        if stash.doubt_damaged(self, &tree.blobs)
            || !stash.hold(self, &tree.blobs.iter().map(|(h, _)| *h).collect())
        {
            return Ok(Outcome::Stale);
        }
        let outcome = self.commit_held(stash, tree, request, draft);
        if !matches!(outcome, Ok(Outcome::New(..))) {
            stash.let_go(self);
        }
        outcome
    }

    fn commit_held(
        &self,
        stash: &Stash,
        tree: Tree,
        request: &SealRequest,
        draft: Option<&Draft>,
    ) -> Result<Outcome> {
        let old = match self.inner.index.entry(&request.key)? {
            Some(row) => match self.open_old(&row)? {
                Some(old) => Some((row, old)),
                // It is being freed right now.
                None => return Ok(Outcome::Stale),
            },
            None => None,
        };
        let replaces = old.as_ref().map(|(row, _)| row.manifest);
        let Some(made) = self.make(stash, tree, request, replaces)? else { return Ok(Outcome::Stale) };
        if let Some((row, Some(old))) = &old
            && let Some(kept) = self.judge_old(row, old, &made.manifest, request)?
        {
            return Ok(kept);
        }
        // First: the syncing of the manifest's directory carries it.
        if let Some(draft) = draft {
            self.inner.store.note_sealing(draft.id(), &made.manifest.hash())?;
        }
        self.write_out(&made)?;
        let records = made.manifest.records().len() as u64;
        let outcome = self.write_row(stash, made, old.map(|(row, _)| row));
        if matches!(outcome, Ok(Outcome::New(..))) {
            self.make_way(&request.key, draft);
        }
        self.note_let_go(records * SEALED_FILE);
        outcome
    }

    /// Makes everything of an entry that can be made without the index; `None` when a blob was
    /// lost meanwhile.
    fn make(
        &self,
        stash: &Stash,
        mut tree: Tree,
        request: &SealRequest,
        replaces: Option<ManifestHash>,
    ) -> Result<Option<Made>> {
        if let Found::Missing = tree.metadata {
            self.add_metadata(stash, &mut tree, request)?;
        }
        let seal = Seal {
            key: request.key.clone(),
            sealed_at_ns: now_ns(),
            inferred: request.inferred,
            replaces,
            origin: request.origin.clone(),
        };
        let bytes = tree.builder.finish(&seal)?;
        let manifest = Manifest::parse(bytes).map_err(|e| CacheError::BadInput {
            what: format!("the tree for {}", request.key),
            why: e.to_string(),
        })?;
        let located: Option<Vec<_>> =
            tree.blobs.iter().map(|(h, n)| Some((*h, *n, stash.location(h)?))).collect();
        let Some(blobs) = located else { return Ok(None) };
        let (task_id, broken) = match tree.metadata {
            Found::Missing => (String::new(), None),
            Found::Read { task_id } => (task_id, None),
            Found::Broken(why) => (String::new(), Some(why)),
        };
        let packs = stash.packs_of(blobs.iter().map(|(_, _, at)| *at));
        let hashes = blobs.iter().map(|(h, _, _)| *h).collect();
        let at: HashMap<_, _> = blobs.iter().map(|(h, _, l)| (*h, *l)).collect();
        let table = manifest.records().iter().map(|r| at.get(&r.hash()?).copied()).collect();
        Ok(Some(Made { manifest, blobs, hashes, table, packs, task_id, broken }))
    }

    /// Writes the manifest durably, and the location table beside it.
    fn write_out(&self, made: &Made) -> Result<()> {
        let name = self.inner.store.write_manifest(made.manifest.as_bytes())?;
        Ok(self.inner.store.write_locations(&name, &made.table, &parts_of(&made.manifest))?)
    }

    /// The entry that has the key already; inner `None` when it is damaged beyond opening.
    fn open_old(&self, row: &EntryRow) -> Result<Option<Option<Entry>>> {
        let Some(entry) = self.open_entry(row.clone(), LeaseKind::Hold)? else { return Ok(None) };
        match entry.manifest() {
            Ok(_) => Ok(Some(Some(entry))),
            // One that cannot be read just now is no worse than it was: the first result wins.
            Err(CacheError::Store(e @ (StoreError::Corrupt { .. } | StoreError::Missing { .. }))) => {
                tracing::warn!("the entry {} cannot be opened and is replaced: {e}", row.key);
                Ok(Some(None))
            }
            Err(e) => Err(e),
        }
    }

    /// Does the existing entry stay (`Some`), or is it replaced?
    fn judge_old(
        &self,
        row: &EntryRow,
        old: &Entry,
        new: &Manifest,
        request: &SealRequest,
    ) -> Result<Option<Outcome>> {
        let counts_not = !row.readable
            || row.inferred && !request.inferred
            || self.rejection(&row.key, Some(&row.manifest)).is_some();
        let old_manifest = old.manifest()?;
        let blobs = if self.knows_damage() { old_manifest.blobs() } else { Vec::new() };
        let damaged = self.is_any_damaged(blobs.iter().map(|(hash, ..)| hash));
        let compared: &[u8] = if request.replace { b"" } else { b"outputs" };
        match first_difference(&old_manifest, new, compared) {
            _ if counts_not => Ok(None),
            // The new one is whole.
            None if damaged => Ok(None),
            None => Ok(Some(Outcome::Same(old.clone()))),
            Some(_) if request.replace || row.inferred => Ok(None),
            Some(differs) => {
                let event = EventKind::NotDeterministic { path: differs.clone() };
                self.inner.store.append_event(event, Some(&row.key), false)?;
                Err(CacheError::Exists { key: row.key.clone(), differs })
            }
        }
    }

    /// Adds a `metadata.json` that says what is known.
    fn add_metadata(&self, stash: &Stash, tree: &mut Tree, request: &SealRequest) -> Result<()> {
        let bytes = metadata(&request.key, &Default::default()).to_bytes();
        let storer =
            Storer { cache: self, stash, memory: None, deadline: Instant::now(), work: None, known: None };
        let content = storer.pack_one(bytes)?;
        let top = tree.builder.top();
        let node = tree.builder.file(top, b"metadata.json", made_attrs(0o644), None)?;
        if !tree.blobs.contains(&(content.hash, content.size)) {
            tree.blobs.push((content.hash, content.size));
        }
        tree.builder.set_content(node, content);
        Ok(())
    }

    /// The index transaction, and everybody who wants to know.
    fn write_row(&self, stash: &Stash, made: Made, old: Option<EntryRow>) -> Result<Outcome> {
        let row = made.row();
        let healed = self.healed(stash, &made.blobs);
        let old_rows = self.inner.index.blobs(&healed)?;
        let Made { manifest, blobs, hashes, table, packs, broken, .. } = made;
        let how = manifest.seal().origin.how.clone();
        let sealed =
            EventKind::Sealed { manifest: row.manifest, how, bytes: row.logical_bytes, files: row.files };
        let events = [Some(sealed), broken.map(|why| EventKind::BadMetadata { why })];
        let manifest = self.keep_loaded(manifest.into(), table);
        // The replaced entry's blobs stay until its last reader has gone.
        let noted = old.clone().map(|row| self.inner.upkeep.leaving.note(row));
        let replaced = |row: EntryRow| -> Result<Replaced> {
            Ok(Replaced { manifest: row.manifest, blobs: self.blobs_of(&row)? })
        };
        let replaces = old.map(replaced).transpose()?;
        let old_held = self.reserve(replaces.as_ref().map_or(&[][..], |r| &r.blobs));
        let new =
            NewEntry { row: row.clone(), blobs, packs: packs.clone(), replaces, healed: healed.clone() };
        // Who evicts it waits until it is open here: it must not be gone before the draft that it was made of.
        let birth = self.inner.births.enter(&row.key);
        let Commit::Done(id, replaced) = self.inner.index.commit(new)? else {
            self.inner.store.remove_manifest(&manifest)?;
            return Ok(Outcome::Stale);
        };
        let linked = stash.committed(self, &hashes, &packs);
        // From here on the entry is there, and large files of its draft are its blobs: whatever fails now
        // must not leave the draft open to writers.
        self.unmark_damaged(&healed);
        let left = self.remove_left_packs(old_rows.into_iter().flatten());
        if let Err(e) = self.or_sweep(left) {
            tracing::warn!("a pack of which nothing is left cannot be deleted yet: {e}");
        }
        let row = EntryRow { id, ..row };
        let entry = self.open_entry(row.clone(), LeaseKind::Hold);
        drop(birth);
        let outcome = self.told((entry?, row), events, replaced.map(|old| (old, old_held)), linked);
        drop(noted);
        outcome
    }

    /// Events, rejections and the replaced entry, after a commit.
    fn told(
        &self,
        (entry, row): (Option<Entry>, EntryRow),
        events: [Option<EventKind>; 2],
        replaced: Option<(Box<EntryRow>, Reservation)>,
        linked: Vec<BlobHash>,
    ) -> Result<Outcome> {
        let manifest = row.manifest;
        let Some(entry) = entry else {
            if let Some((old, held)) = replaced {
                self.free_replaced(&old, held);
            }
            return Ok(Outcome::Stale);
        };
        for event in events.into_iter().flatten() {
            self.note(event, Some(entry.key()), false);
        }
        if let Err(e) = self.rejection_replaced(entry.key(), &manifest) {
            tracing::warn!("the rejection of {} cannot be taken away: {e}", entry.key());
        }
        if let Some((old, held)) = replaced {
            self.free_replaced(&old, held);
        }
        Ok(Outcome::New(entry, linked))
    }

    /// Of the packs in which these blobs were, those go that had nothing else.
    fn remove_left_packs(&self, rows: impl Iterator<Item = BlobRow>) -> Result<()> {
        let packs = rows.filter_map(|row| match row.location {
            Location::Pack { pack, .. } => Some(pack),
            Location::Loose | Location::Elsewhere => None,
        });
        for pack in packs.collect::<HashSet<PackId>>() {
            if self.inner.index.pack(pack)?.is_none() {
                self.inner.store.remove_pack(pack)?;
            }
        }
        Ok(())
    }
}

impl Made {
    fn row(&self) -> EntryRow {
        let seal = self.manifest.seal();
        EntryRow {
            id: 0,
            key: seal.key.clone(),
            manifest: self.manifest.hash(),
            task_id: self.task_id.clone(),
            sealed_at_ns: seal.sealed_at_ns,
            accessed_at_ns: seal.sealed_at_ns,
            logical_bytes: self.manifest.logical_bytes(),
            files: self.manifest.files(),
            inferred: seal.inferred,
            readable: self.broken.is_none(),
            metadata_bytes: super::usage::metadata_bytes(&self.manifest, 0),
            top: Some(self.manifest.top()),
            in_tier: Default::default(),
        }
    }
}
