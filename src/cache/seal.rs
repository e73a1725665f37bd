//! Sealing: from a tree on disk to a durable, immutable, indexed entry.
//!
//! The order: contents (packs and loose blobs, synced), then the manifest (synced), then one index
//! transaction; only then is the draft's tree deleted. All but the last two is done by
//! [`Cache::prepare`], without keeping anybody from changing the draft: what was prepared
//! is used only if the draft's generation is still the same under the exclusive gate.
//! Invariants: one sealer per key at a time; the first sealed result wins (Semantics 5).

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::commit::{self, Found, Outcome};
use super::content::{PATIENCE, Storer};
use super::gate::Closed;
use super::sealing::{self, Committed, Sealing};
use super::stash::Insisting;
use super::walk::{Metafile, Plan, Tree, top_attrs};
use super::{Cache, CacheError, Draft, Result, SealRequest, Sealed};
use crate::model::{BlobHash, Metadata};

/// Everything of an entry but its commit, as of a generation of its draft.
pub(super) struct Prepared {
    generation: u64,
    tree: commit::Tree,
}

/// One seal of a draft, in the order of `sealing`.
struct OneSeal<'a> {
    cache: &'a Cache,
    draft: &'a Arc<Draft>,
    request: SealRequest,
    same_ends_it: bool,
    deadline: Instant,
    insisting: Option<Insisting<'a>>,
}

impl Sealing for OneSeal<'_> {
    type Prepared = commit::Tree;
    type Done = Outcome;
    type Error = CacheError;

    fn written_to(&mut self) -> Result<()> {
        if Instant::now() >= self.deadline {
            return Err(CacheError::Busy { path: self.cache.find_writer(self.draft) });
        }
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    }

    fn prepare(&mut self) -> Result<Option<(u64, commit::Tree)>> {
        match self.cache.prepare(self.draft, self.deadline) {
            // A name that vanished while it was walked: the draft is being changed.
            Err(CacheError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && Instant::now() < self.deadline =>
            {
                return Ok(None);
            }
            other => other?,
        }
        Ok(self.draft.prepared.lock().take().map(|p| (p.generation, p.tree)))
    }

    fn patience(&self) -> Instant {
        // Preparing may have taken longer than our patience with writers.
        self.deadline.max(Instant::now() + Duration::from_millis(100))
    }

    fn closed(&self, why: Closed) -> CacheError {
        self.draft.closed(why)
    }

    fn changed(&mut self) -> Result<()> {
        if Instant::now() >= self.deadline { Err(self.draft.busy()) } else { Ok(()) }
    }

    fn commit(&mut self, tree: commit::Tree) -> Result<Committed<Outcome>> {
        let outcome = self.cache.commit(&self.draft.stash, tree, &self.request, Some(self.draft))?;
        Ok(match outcome {
            Outcome::Stale => Committed::Stale,
            Outcome::Same(_) if !self.same_ends_it => Committed::Stays(outcome),
            _ => Committed::Ends(outcome),
        })
    }

    fn tell(&mut self, outcome: &Outcome) {
        if let Outcome::New(entry, _) = outcome {
            self.cache.holders().iter().for_each(|h| h.sealed(self.draft, entry));
        }
    }

    fn stale(&mut self) {
        let (cache, draft) = (self.cache, self.draft);
        self.insisting.get_or_insert_with(|| draft.stash.insist(cache));
    }
}

impl Cache {
    /// Does all that can be done before sealing: hashes, packs and syncs what the draft holds.
    /// The result is kept in the draft and used by `seal` if nothing has changed since.
    pub(super) fn prepare(&self, draft: &Draft, deadline: Instant) -> Result<()> {
        let mut kept = draft.prepared.lock();
        let read = |generation| self.prepare_as_of(draft, &mut kept, generation, deadline);
        draft.gates.as_of(deadline, read).map_err(|closed| draft.closed(closed))?
    }

    fn prepare_as_of(
        &self,
        draft: &Draft,
        kept: &mut Option<Prepared>,
        generation: u64,
        deadline: Instant,
    ) -> Result<()> {
        if kept.as_ref().is_some_and(|p| p.generation == generation) {
            return Ok(());
        }
        *kept = None;
        draft.stash.doubt_linked();
        let storer = Storer {
            cache: self,
            stash: &draft.stash,
            memory: Some(&draft.memory),
            deadline,
            work: None,
            known: None,
        };
        let top = top_attrs(draft.tree().as_fd()).map_err(|e| CacheError::io("read", draft.name(), e))?;
        let mut plan = Plan::new(top);
        let root = plan.builder.top();
        plan.add_tree(root, Tree::new(draft.tree().as_fd(), "", true)?)?;
        let tree = self.store_plan(&storer, plan).inspect_err(|e| {
            if let CacheError::Unwritten { .. } = e {
                self.note_unwritten(draft);
            }
        })?;
        *kept = Some(Prepared { generation, tree });
        Ok(())
    }

    /// Stores the contents of a plan.
    pub(super) fn store_plan(&self, storer: &Storer<'_>, mut plan: Plan) -> Result<commit::Tree> {
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
        Ok(commit::Tree { builder: plan.builder, blobs, metadata })
    }

    /// Parses metadata from its bytes, or from the blob it became when it is large.
    fn judge(&self, bytes: Option<Vec<u8>>, hash: Option<BlobHash>) -> Result<Found> {
        let bytes = match (bytes, hash) {
            (Some(bytes), _) => bytes,
            (None, Some(hash)) => {
                let file = self.inner.store.blob_file(&hash)?;
                let fail = |e| CacheError::io("read", "metadata.json", e);
                let size = super::at::stat_of(&file).map_err(fail)?.st_size as u64;
                super::ingest::read_some(&file, Metadata::MAX_BYTES, size).map_err(fail)?
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
        self.shown(self.or_sweep(self.seal_draft(draft, request, true)))
    }

    /// The same for gestures that never succeed on an existing key: with `Sealed::Same` the draft stays.
    pub fn seal_first(&self, draft: &Arc<Draft>, request: SealRequest) -> Result<Sealed> {
        self.or_sweep(self.seal_draft(draft, request, false))
    }

    fn seal_draft(&self, draft: &Arc<Draft>, request: SealRequest, same_ends_it: bool) -> Result<Sealed> {
        let _turn = self.inner.sealing.enter(&request.key);
        let deadline = Instant::now() + PATIENCE;
        let mut one = OneSeal { cache: self, draft, request, same_ends_it, deadline, insisting: None };
        match sealing::seal(&draft.gates, &mut one)? {
            Outcome::Same(entry) if !same_ends_it => Ok(Sealed::Same(entry)),
            outcome => {
                drop(one);
                Ok(self.sealed(draft, outcome))
            }
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
            if let Some(key) = place.key().filter(|k| *k != entry.key()) {
                holder.changed(key);
            }
        }
        sealed
    }

    /// The path of a file that somebody writes to, for a message.
    fn find_writer(&self, draft: &Draft) -> String {
        let unknown = || format!("a file of the draft {}", draft.name());
        let Ok(tree) = Tree::new(draft.tree().as_fd(), "", true) else { return unknown() };
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
        plan: impl FnMut() -> Result<Plan>,
    ) -> Result<Sealed> {
        self.shown(self.or_sweep(self.store_and_commit(storer, request, plan)))
    }

    /// What was sealed is shown when that is said: somebody's rename may have been faster, and not have returned yet.
    fn shown(&self, sealed: Result<Sealed>) -> Result<Sealed> {
        sealed.inspect(|sealed| match sealed {
            Sealed::New(entry) | Sealed::Same(entry) => self.wait_shown(entry.key()),
        })
    }

    fn store_and_commit(
        &self,
        storer: &Storer<'_>,
        request: &SealRequest,
        mut plan: impl FnMut() -> Result<Plan>,
    ) -> Result<Sealed> {
        let _turn = self.inner.sealing.enter(&request.key);
        let mut insisting = None;
        loop {
            let tree = self.store_plan(storer, plan()?)?;
            let sealed = match self.commit(storer.stash, tree, request, None)? {
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
}
