//! Sealing: from a tree on disk to a durable, immutable, indexed entry.
//!
//! The order: contents (packs and loose blobs, synced), then the manifest (synced), then one index
//! transaction; only then is the draft's tree deleted. All but the last two is done by
//! [`Cache::prepare`], without keeping anybody from changing the draft: what was prepared
//! is used only if the draft's generation is still the same under the exclusive gate.
//! Invariants: one sealer per key at a time; the first sealed result wins (Semantics 5).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::compare::first_difference;
use super::content::{PATIENCE, Storer};
use super::draft::{Stage, now_ns};
use super::stash::Stash;
use super::walk::{Metafile, Plan, Tree, top_attrs};
use super::{Cache, CacheError, Draft, Entry, LeaseKind, Result, SealRequest, Sealed};
use crate::index::{Commit, EntryRow, NewEntry, Replaced};
use crate::model::manifest::{Seal, TreeBuilder};
use crate::model::{BlobHash, EntryKey, EventKind, Manifest, ManifestHash, Metadata};
use crate::store::{DraftPlace, Location};

/// Everything of an entry but its key and its commit.
pub(super) struct Prepared {
    generation: u64,
    builder: TreeBuilder,
    blobs: Vec<(BlobHash, u64)>,
    metadata: Found,
}

/// What the tree's `metadata.json` is.
enum Found {
    Missing,
    Read { task_id: String },
    Broken(String),
}

/// The keys that are being sealed.
#[derive(Default)]
pub(super) struct Sealing {
    keys: Mutex<HashSet<EntryKey>>,
    left: Condvar,
}

/// The right to seal a key.
struct Turn<'a>(&'a Sealing, EntryKey);

impl Sealing {
    fn enter(&self, key: &EntryKey) -> Turn<'_> {
        let mut keys = self.keys.lock();
        while !keys.insert(key.clone()) {
            self.left.wait(&mut keys);
        }
        Turn(self, key.clone())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.keys.lock().remove(&self.1);
        self.0.left.notify_all();
    }
}

/// How a commit ended.
enum Outcome {
    /// The entry, and the loose blobs that came with it.
    New(Entry, Vec<BlobHash>),
    Same(Entry),
    /// Something changed under it: prepare again.
    Stale,
}

impl Cache {
    /// Does all that can be done before sealing: hashes, packs and syncs what the draft holds.
    /// The result is kept in the draft and used by `seal` if nothing has changed since.
    pub fn prepare(&self, draft: &Arc<Draft>) -> Result<()> {
        self.prepare_until(draft, Instant::now() + PATIENCE)
    }

    fn prepare_until(&self, draft: &Draft, deadline: Instant) -> Result<()> {
        let mut kept = draft.prepared.lock();
        let generation = {
            // Exclusively: no change is half done when the generation is read.
            let _alone = draft.alone(deadline)?;
            draft.generation.load(std::sync::atomic::Ordering::Acquire)
        };
        if kept.as_ref().is_some_and(|p| p.generation == generation) {
            return Ok(());
        }
        *kept = None;
        let storer = Storer { cache: self, stash: &draft.stash, memory: Some(&draft.memory), deadline };
        let top = top_attrs(draft.tree()).map_err(|e| CacheError::io("read", draft.name(), e))?;
        let mut plan = Plan::new(top);
        let root = plan.builder.top();
        plan.add_tree(root, Tree::new(draft.tree(), "", true)?)?;
        *kept = Some(Prepared { generation, ..self.store_plan(&storer, plan)? });
        Ok(())
    }

    /// Stores the contents of a plan.
    pub(super) fn store_plan(&self, storer: &Storer<'_>, mut plan: Plan) -> Result<Prepared> {
        let metafile = plan.metadata;
        let keep = match metafile {
            Metafile::Source(i) => Some(i),
            _ => None,
        };
        let mut contents = storer.store(&plan, keep)?;
        let metadata = match metafile {
            Metafile::Missing => Found::Missing,
            Metafile::NoFile => Found::Broken("metadata.json is not a file".into()),
            Metafile::Source(i) => {
                self.judge(contents.kept.take(), contents.of[i].as_ref().map(|c| c.hash))?
            }
        };
        let mut seen = HashSet::new();
        let mut blobs = Vec::new();
        for (source, content) in plan.sources.iter().zip(contents.of) {
            let content = content.expect("every source was stored, or is a link of one that was");
            if seen.insert(content.hash) {
                blobs.push((content.hash, content.size));
            }
            plan.builder.set_content(source.node, content);
        }
        Ok(Prepared { generation: 0, builder: plan.builder, blobs, metadata })
    }

    /// Parses metadata from its bytes, or from the blob it became when it is large.
    fn judge(&self, bytes: Option<Vec<u8>>, hash: Option<BlobHash>) -> Result<Found> {
        let bytes = match (bytes, hash) {
            (Some(bytes), _) => bytes,
            (None, Some(hash)) => {
                let file = self.inner.store.blob_file(&hash)?;
                super::ingest::read_some(&file, Metadata::MAX_BYTES)
                    .map_err(|e| CacheError::io("read", "metadata.json", e))?
            }
            (None, None) => return Ok(Found::Missing),
        };
        if bytes.len() as u64 > Metadata::MAX_BYTES {
            return Ok(Found::Broken("metadata.json is too long".into()));
        }
        Ok(match Metadata::parse(&bytes) {
            Ok(m) => Found::Read { task_id: m.task_id },
            Err(e) => Found::Broken(format!("metadata.json: {e}")),
        })
    }

    /// Seals a draft: durable when it returns. `Busy` with writers open, `Exists` when the key has
    /// other outputs, `SpecialFile` for what cannot be stored.
    pub fn seal(&self, draft: &Arc<Draft>, request: SealRequest) -> Result<Sealed> {
        let _turn = self.inner.sealing.enter(&request.key);
        let deadline = Instant::now() + PATIENCE;
        let mut insisting = None;
        loop {
            while draft.writers() > 0 {
                if Instant::now() >= deadline {
                    return Err(CacheError::Busy { path: self.find_writer(draft) });
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            match self.prepare_until(draft, deadline) {
                // A name that vanished while it was walked: the draft is being changed.
                Err(CacheError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound && Instant::now() < deadline =>
                {
                    continue;
                }
                other => other?,
            }
            let Some(prepared) = draft.prepared.lock().take() else { continue };
            // Preparing may have taken longer than our patience with writers.
            let mut stage = draft.alone(deadline.max(Instant::now() + Duration::from_millis(100)))?;
            let generation = draft.generation.load(std::sync::atomic::Ordering::Acquire);
            if generation != prepared.generation || draft.writers() > 0 {
                if Instant::now() >= deadline {
                    return Err(CacheError::Busy { path: format!("the draft {}", draft.name()) });
                }
                continue;
            }
            let outcome = self.commit(&draft.stash, prepared, &request)?;
            if let Outcome::New(entry, _) = &outcome {
                self.holders().iter().for_each(|h| h.sealed(draft, entry));
            }
            if !matches!(outcome, Outcome::Stale) {
                *stage = Stage::Gone;
                drop(stage);
                drop(insisting);
                return Ok(self.sealed(draft, outcome));
            }
            drop(stage);
            insisting.get_or_insert_with(|| draft.stash.insist(self));
        }
    }

    /// After the draft is gone: takes it out of the tables and tells the views.
    fn sealed(&self, draft: &Arc<Draft>, outcome: Outcome) -> Sealed {
        let place = draft.place();
        let (sealed, linked) = match outcome {
            Outcome::New(entry, linked) => (Sealed::New(entry), linked),
            Outcome::Same(entry) => (Sealed::Same(entry), Vec::new()),
            Outcome::Stale => unreachable!("a stale outcome is tried again"),
        };
        self.forget_draft(draft, linked);
        let entry = match &sealed {
            Sealed::New(e) | Sealed::Same(e) => e,
        };
        for holder in self.holders() {
            holder.changed(entry.key());
            if let DraftPlace::InPlace { key } | DraftPlace::Replace { key } = &place
                && key != entry.key()
            {
                holder.changed(key);
            }
        }
        sealed
    }

    /// The path of a file that somebody writes to, for a message.
    fn find_writer(&self, draft: &Draft) -> String {
        let unknown = || format!("a file of the draft {}", draft.name());
        let Ok(tree) = Tree::new(draft.tree(), "", true) else { return unknown() };
        let mut plan = Plan::new(Default::default());
        let top = plan.builder.top();
        if plan.add_tree(top, tree).is_err() {
            return unknown();
        }
        super::content::first_writer(&plan).unwrap_or_else(unknown)
    }

    /// Seals a plan that is no draft's: stores its contents and commits them.
    pub(super) fn seal_plan(
        &self,
        storer: &Storer<'_>,
        request: &SealRequest,
        mut plan: impl FnMut() -> Result<Plan>,
    ) -> Result<Sealed> {
        let _turn = self.inner.sealing.enter(&request.key);
        let mut insisting = None;
        loop {
            let prepared = self.store_plan(storer, plan()?)?;
            let sealed = match self.commit(storer.stash, prepared, request)? {
                Outcome::New(entry, _) => Sealed::New(entry),
                Outcome::Same(entry) => Sealed::Same(entry),
                Outcome::Stale => {
                    insisting.get_or_insert_with(|| storer.stash.insist(self));
                    continue;
                }
            };
            if let Sealed::New(entry) = &sealed {
                self.holders().iter().for_each(|h| h.changed(entry.key()));
            }
            return Ok(sealed);
        }
    }

    /// Makes an entry of what was prepared. Its blobs are held against others meanwhile.
    fn commit(&self, stash: &Stash, prepared: Prepared, request: &SealRequest) -> Result<Outcome> {
        let mut hashes: HashSet<_> = prepared.blobs.iter().map(|(h, _)| *h).collect();
        if !stash.hold(self, &hashes) {
            return Ok(Outcome::Stale);
        }
        let outcome = self.commit_held(stash, prepared, request, &mut hashes);
        if !matches!(outcome, Ok(Outcome::New(..))) {
            stash.let_go(self);
        }
        outcome
    }

    fn commit_held(
        &self,
        stash: &Stash,
        mut prepared: Prepared,
        request: &SealRequest,
        hashes: &mut HashSet<BlobHash>,
    ) -> Result<Outcome> {
        if let Found::Missing = prepared.metadata {
            self.add_metadata(stash, &mut prepared, request)?;
            hashes.extend(prepared.blobs.iter().map(|(h, _)| *h));
        }
        let old = match self.inner.index.entry(&request.key)? {
            Some(row) => match self.open_old(&row)? {
                Some(old) => Some((row, old)),
                // It is being freed right now.
                None => return Ok(Outcome::Stale),
            },
            None => None,
        };
        let seal = Seal {
            key: request.key.clone(),
            sealed_at_ns: now_ns(),
            inferred: request.inferred,
            replaces: old.as_ref().map(|(row, _)| row.manifest),
            origin: request.origin.clone(),
        };
        let bytes = prepared.builder.finish(&seal)?;
        let manifest = Manifest::parse(bytes).map_err(|e| CacheError::BadInput {
            what: format!("the tree for {}", request.key),
            why: e.to_string(),
        })?;
        if let Some((row, Some(old))) = &old
            && let Some(kept) = self.judge_old(row, old, &manifest, request)?
        {
            return Ok(kept);
        }
        let Some(blobs) = locate(stash, &prepared.blobs) else { return Ok(Outcome::Stale) };
        let (task_id, broken) = match prepared.metadata {
            Found::Missing => (String::new(), None),
            Found::Read { task_id } => (task_id, None),
            Found::Broken(why) => (String::new(), Some(why)),
        };
        self.write(stash, manifest, blobs, hashes, task_id, broken, old.map(|(row, _)| row))
    }

    /// The entry that has the key already; inner `None` when it is damaged beyond opening.
    fn open_old(&self, row: &EntryRow) -> Result<Option<Option<Entry>>> {
        match self.open_entry(row.clone(), LeaseKind::Hold) {
            Ok(Some(entry)) => Ok(Some(Some(entry))),
            Ok(None) => Ok(None),
            Err(CacheError::Store(e)) => {
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
        let compared: &[u8] = if request.replace { b"" } else { b"outputs" };
        match first_difference(&old.manifest, new, compared) {
            _ if counts_not => Ok(None),
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
    fn add_metadata(&self, stash: &Stash, prepared: &mut Prepared, request: &SealRequest) -> Result<()> {
        let bytes = super::put::metadata(&request.key, &Default::default()).to_bytes();
        let storer = Storer { cache: self, stash, memory: None, deadline: Instant::now() };
        let content = storer.pack_one(bytes)?;
        let top = prepared.builder.top();
        let node = prepared.builder.file(top, b"metadata.json", super::put::made_attrs(0o644), None)?;
        if !prepared.blobs.contains(&(content.hash, content.size)) {
            prepared.blobs.push((content.hash, content.size));
        }
        prepared.builder.set_content(node, content);
        Ok(())
    }

    /// Manifest, then index, then everybody who wants to know.
    #[allow(clippy::too_many_arguments, reason = "the parts of one entry, used once")]
    fn write(
        &self,
        stash: &Stash,
        manifest: Manifest,
        blobs: Vec<(BlobHash, u64, Location)>,
        hashes: &HashSet<BlobHash>,
        task_id: String,
        broken: Option<String>,
        old: Option<EntryRow>,
    ) -> Result<Outcome> {
        let packs = stash.packs_of(blobs.iter().map(|(_, _, at)| *at));
        let name = self.inner.store.write_manifest(manifest.as_bytes())?;
        let at: std::collections::HashMap<_, _> = blobs.iter().map(|(h, _, l)| (*h, *l)).collect();
        let table: Vec<_> = manifest.records().iter().map(|r| at.get(&r.hash()?).copied()).collect();
        self.inner.store.write_locations(&name, &table)?;
        let seal = manifest.seal();
        let row = EntryRow {
            id: 0,
            key: seal.key.clone(),
            manifest: name,
            task_id,
            sealed_at_ns: seal.sealed_at_ns,
            accessed_at_ns: seal.sealed_at_ns,
            logical_bytes: manifest.logical_bytes(),
            files: manifest.files(),
            inferred: seal.inferred,
            readable: broken.is_none(),
        };
        let healed: Vec<_> =
            blobs.iter().filter(|(h, _, _)| self.is_damaged(h)).map(|(h, _, at)| (*h, *at)).collect();
        // The replaced entry's blobs stay until its last reader has gone.
        let replaces =
            old.map(|row| Replaced { manifest: row.manifest, blobs: self.blobs_of_manifest(&row.manifest) });
        let old_held = self.reserve(replaces.as_ref().map_or(&[][..], |r| &r.blobs));
        let new = NewEntry { row: row.clone(), blobs, packs: packs.clone(), replaces };
        let (id, replaced) = match self.inner.index.commit(new)? {
            Commit::Done(id, replaced) => (id, replaced),
            Commit::Taken(_) => {
                self.inner.store.remove_manifest(&name)?;
                return Ok(Outcome::Stale);
            }
        };
        let linked = stash.committed(self, hashes, &packs);
        self.heal(&healed)?;
        let row = EntryRow { id, ..row };
        self.tell(&row, &manifest, broken, replaced)?;
        drop(old_held);
        match self.open_entry(row, LeaseKind::Hold)? {
            Some(entry) => Ok(Outcome::New(entry, linked)),
            None => Ok(Outcome::Stale),
        }
    }

    /// The distinct blobs of a manifest; none known when it cannot be read.
    fn blobs_of_manifest(&self, manifest: &ManifestHash) -> Vec<BlobHash> {
        let read = self.inner.store.read_manifest(manifest);
        read.map_or_else(|_| Vec::new(), |m| m.blobs().into_iter().map(|(h, _, _)| h).collect())
    }

    /// Blobs that had been found damaged and were stored anew: from now on the new ones count.
    fn heal(&self, healed: &[(BlobHash, Location)]) -> Result<()> {
        if healed.is_empty() {
            return Ok(());
        }
        let hashes: Vec<_> = healed.iter().map(|(h, _)| *h).collect();
        let rows = self.inner.index.blobs(&hashes)?;
        let from: Vec<_> = rows
            .into_iter()
            .flatten()
            .filter_map(|row| match row.location {
                Location::Pack { pack, .. } => Some(pack),
                Location::Loose => None,
            })
            .collect();
        for (pack, _) in self.inner.index.relocate(healed.to_vec(), None, from)? {
            self.inner.store.remove_pack(pack)?;
        }
        let mut damaged = self.inner.damaged.lock();
        healed.iter().for_each(|(h, _)| {
            damaged.remove(h);
        });
        Ok(())
    }

    /// Events, rejections and the replaced entry, after a commit.
    fn tell(
        &self,
        row: &EntryRow,
        manifest: &Manifest,
        broken: Option<String>,
        replaced: Option<Box<EntryRow>>,
    ) -> Result<()> {
        let store = &self.inner.store;
        let how = manifest.seal().origin.how.clone();
        let event =
            EventKind::Sealed { manifest: row.manifest, how, bytes: row.logical_bytes, files: row.files };
        store.append_event(event, Some(&row.key), false)?;
        if let Some(why) = broken {
            store.append_event(EventKind::BadMetadata { why }, Some(&row.key), false)?;
        }
        self.rejection_replaced(&row.key)?;
        if let Some(old) = replaced {
            self.free_replaced(&old);
        }
        Ok(())
    }
}

/// Where all blobs lie; `None` when one was lost meanwhile.
fn locate(stash: &Stash, blobs: &[(BlobHash, u64)]) -> Option<Vec<(BlobHash, u64, Location)>> {
    blobs.iter().map(|(h, n)| Some((*h, *n, stash.location(h)?))).collect()
}
