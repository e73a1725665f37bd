//! Drafts: entries that are still being written, as real directory trees.
//!
//! A draft's tree is changed only under a shared [`Gate`] (`gate.rs`); sealing takes it exclusively for the
//! commit.
//! Must not know: how a draft becomes an entry.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::background::Job;
use super::gate::{Alone, Closed, Gate, Gates, Stage};
use super::here::{awake_ns, now_ns};
use super::ingest::{FileId, Memory};
use super::put::lives;
use super::seal::Prepared;
use super::stash::Stash;
use super::walk::{Plan, Tree};
use super::{Cache, CacheError, Entry, RestoreAs, Result};
use crate::model::{BlobHash, EntryKey, EventKind};
use crate::store::{DraftPlace, Location};

/// How long those inside a draft are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// An entry that is still being written.
pub struct Draft {
    pub(crate) id: String,
    number: u64,
    tree: Mutex<Arc<OwnedFd>>,
    pub(crate) place: Mutex<DraftPlace>,
    pub(super) gates: Gates,
    /// When something last changed, by the clock of [`awake_ns`]: neither a clock that is set nor a machine that slept makes
    /// it quiet.
    changed: AtomicI64,
    recovered: bool,
    /// Names in it were changed in one view while another one was there.
    in_several_views: AtomicBool,
    pub(super) memory: Memory,
    pub(super) stash: Stash,
    /// Held by whoever prepares; has what was prepared last.
    pub(super) prepared: Mutex<Option<Prepared>>,
}

impl std::fmt::Debug for Draft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Draft").field("id", &self.id).field("place", &*self.place.lock()).finish()
    }
}

impl Draft {
    /// Its id: the directory below `drafts/`.
    pub fn id(&self) -> &str {
        &self.id
    }
    /// Names in it were changed in one view while there was another one, whose nodes may have other names than it knows.
    pub fn is_in_several_views(&self) -> bool {
        self.in_several_views.load(Ordering::Acquire)
    }
    /// See [`is_in_several_views`](Draft::is_in_several_views).
    pub fn note_other_views(&self) {
        self.in_several_views.store(true, Ordering::Release);
    }
    /// No other draft of this process has or had it.
    pub fn number(&self) -> u64 {
        self.number
    }
    /// What it is for.
    pub fn place(&self) -> DraftPlace {
        self.place.lock().clone()
    }
    /// Its tree's top directory (O_PATH); what is no directory once the draft is gone.
    pub fn tree(&self) -> Arc<OwnedFd> {
        self.tree.lock().clone()
    }
    /// The draft is gone, but those who know its inodes keep it for as long as a kernel remembers them: that must
    /// not take a descriptor for each draft that ever was.
    fn let_go_of_tree(&self) {
        static NOTHING: OnceLock<Arc<OwnedFd>> = OnceLock::new();
        let nothing = NOTHING.get().cloned().or_else(|| {
            // Of no name, so that nothing is done to anybody's file by who comes late.
            let socket = std::os::unix::net::UnixDatagram::unbound().ok()?;
            Some(NOTHING.get_or_init(|| Arc::new(socket.into())).clone())
        });
        if let Some(nothing) = nothing {
            let tree = std::mem::replace(&mut *self.tree.lock(), nothing);
            drop(tree);
        }
    }
    /// How far it is; `None` while somebody is alone in it, who may change that.
    pub fn stage(&self) -> Option<Stage> {
        self.gates.stage()
    }
    /// Enters the draft to change something (counts as a change); never waits. Whoever is inside may
    /// enter again, and enter other drafts.
    pub fn change(&self) -> std::result::Result<Gate<'_>, Closed> {
        let gate = self.gates.enter()?;
        self.changed();
        Ok(gate)
    }
    /// Calls `then`, which must be short, as soon as nobody is alone in it, which can be at once.
    pub fn when_open(&self, then: impl FnOnce() + Send + 'static) {
        self.gates.when_open(then);
    }
    /// Has it ended? `None` while the views are just being told: a node made before this says
    /// `Some(false)` is among those that they turn into records.
    pub fn has_ended(&self) -> Option<bool> {
        self.gates.has_ended()
    }
    /// Enters exclusively, when nobody else is inside; `Busy` when that is not before `deadline`.
    pub(super) fn alone(&self, deadline: Instant) -> Result<Alone<'_>> {
        self.gates.alone(deadline).map_err(|closed| self.closed(closed))
    }
    /// Why it cannot be entered.
    pub(super) fn closed(&self, why: Closed) -> CacheError {
        match why {
            Closed::ForGood => CacheError::Gone(self.name()),
            Closed::Now => self.busy(),
        }
    }
    /// It is being changed.
    pub(super) fn busy(&self) -> CacheError {
        CacheError::Busy { path: format!("the draft {}", self.name()) }
    }
    /// A handle for writing was opened (call inside `change`).
    pub fn writer_opened(&self) {
        self.gates.writer_opened();
    }
    /// A handle for writing was closed; the file may be ingested.
    pub fn writer_closed(&self) {
        self.changed();
        self.gates.writer_closed();
    }
    /// Open handles for writing.
    pub fn writers(&self) -> u64 {
        self.gates.writers()
    }
    /// When something last changed, nanoseconds since 1970, as far as the clock has not been set since.
    pub fn changed_at_ns(&self) -> i64 {
        now_ns().saturating_sub(self.idle_ns())
    }
    /// For how many nanoseconds nothing has changed while the machine was awake.
    pub fn idle_ns(&self) -> i64 {
        awake_ns().saturating_sub(self.last_change()).max(0)
    }
    /// Differs when something has changed in between.
    pub fn last_change(&self) -> i64 {
        self.changed.load(Ordering::Acquire)
    }
    fn changed(&self) {
        self.changed.store(awake_ns(), Ordering::Release);
    }
    #[cfg(test)]
    pub(super) fn changed_long_ago(&self) {
        self.changed.store(i64::MIN, Ordering::Release);
    }
    /// It ends, and nobody is told.
    #[cfg(test)]
    pub(crate) fn end_for_tests(&self) {
        self.alone(Instant::now() + PATIENCE).expect("nobody is in it").end();
    }
    /// Before a file is opened for writing or its size is changed by name (inside `change`):
    /// forgets its hash, cancels a running one and has its lease dropped, so that the open
    /// does not wait for it.
    pub fn cancel_ingest(&self, dev: u64, ino: u64) {
        self.memory.cancel(dev, ino);
    }
    /// The remembered hash of a file with these stat values.
    pub fn known_hash(&self, stat: &libc::stat) -> Option<crate::model::BlobHash> {
        self.memory.get(&FileId::of(stat)).map(|c| c.hash)
    }
    /// It is for a run's command to write in.
    pub fn is_of_a_run(&self) -> bool {
        lives(&self.place()).is_some()
    }
    /// What people call it: its key or work name.
    pub fn name(&self) -> String {
        match &*self.place.lock() {
            DraftPlace::InPlace { key } | DraftPlace::Replace { key } => key.to_string(),
            DraftPlace::Work { name } => super::at::show(name),
            DraftPlace::Native { label } => label.clone(),
        }
    }
}

/// All drafts, by id and by what they are for.
#[derive(Default)]
pub(super) struct DraftTable {
    state: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    by_id: HashMap<String, Arc<Draft>>,
    by_key: HashMap<EntryKey, String>,
    by_name: HashMap<Vec<u8>, String>,
}

impl Tables {
    /// Takes the place for `id`; false when another draft has it.
    fn take(&mut self, place: &DraftPlace, id: &str) -> bool {
        let taken = match place {
            DraftPlace::InPlace { key } | DraftPlace::Replace { key } => {
                self.by_key.entry(key.clone()).or_insert_with(|| id.to_owned())
            }
            DraftPlace::Work { name } => self.by_name.entry(name.clone()).or_insert_with(|| id.to_owned()),
            DraftPlace::Native { .. } => return true,
        };
        taken == id
    }

    /// Gives up the place, if `id` has it.
    fn leave(&mut self, place: &DraftPlace, id: &str) {
        match place {
            DraftPlace::InPlace { key } | DraftPlace::Replace { key } => {
                if self.by_key.get(key).is_some_and(|i| i == id) {
                    self.by_key.remove(key);
                }
            }
            DraftPlace::Work { name } => {
                if self.by_name.get(name).is_some_and(|i| i == id) {
                    self.by_name.remove(name);
                }
            }
            DraftPlace::Native { .. } => {}
        }
    }
}

fn taken(place: &DraftPlace) -> CacheError {
    CacheError::DraftExists(match place {
        DraftPlace::InPlace { key } | DraftPlace::Replace { key } => key.to_string(),
        DraftPlace::Work { name } => super::at::show(name),
        DraftPlace::Native { label } => label.clone(),
    })
}

impl Cache {
    /// Creates a draft. [`CacheError::DraftExists`] when the key or the work name is taken by one.
    pub fn create_draft(&self, place: DraftPlace) -> Result<Arc<Draft>> {
        // The place is taken under a name that no draft has before anything is created on disk.
        let claim = format!("creating-{:?}-{}", std::thread::current().id(), now_ns());
        if !self.inner.drafts.state.lock().take(&place, &claim) {
            return Err(taken(&place));
        }
        let made = self.make_draft(&place);
        let mut tables = self.inner.drafts.state.lock();
        tables.leave(&place, &claim);
        let draft = made?;
        tables.take(&place, &draft.id);
        tables.by_id.insert(draft.id.clone(), draft.clone());
        drop(tables);
        self.tell_of_draft(&draft);
        // What was sealed meanwhile did not find it there.
        if let DraftPlace::InPlace { key } = &place
            && self.inner.index.entry(key)?.is_some()
        {
            self.make_way(key, None);
        }
        Ok(draft)
    }

    fn make_draft(&self, place: &DraftPlace) -> Result<Arc<Draft>> {
        self.make_room(0)?;
        let id = self.inner.store.create_draft(place)?;
        self.load_draft(id, place.clone(), now_ns(), false)
    }

    fn load_draft(&self, id: String, place: DraftPlace, at_ns: i64, recovered: bool) -> Result<Arc<Draft>> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let tree = self.inner.store.draft_tree(&id)?;
        let unwritten = if recovered { self.inner.store.unwritten(&id)? } else { Vec::new() };
        Ok(Arc::new(Draft {
            id,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            tree: Mutex::new(Arc::new(tree)),
            place: Mutex::new(place),
            gates: Gates::default(),
            changed: AtomicI64::new(awake_ns().saturating_sub(now_ns().saturating_sub(at_ns).max(0))),
            in_several_views: AtomicBool::new(false),
            recovered,
            memory: Memory::of(unwritten),
            stash: Stash::new(self),
            prepared: Mutex::new(None),
        }))
    }

    /// Takes up the drafts that an earlier owner left. Unfinished puts, and what dead runs wrote, cannot be
    /// continued by anybody and go; of two drafts for one place the younger stays in place, the other becomes
    /// a work draft under its id.
    pub(super) fn load_drafts(&self) -> Result<()> {
        let mut found = self.inner.store.drafts()?;
        found.sort_by_key(|(_, _, at)| std::cmp::Reverse(*at));
        for (id, mut place, at_ns) in found {
            let put = matches!(&place, DraftPlace::Native { label } if label.starts_with(super::put::LABEL));
            if put || lives(&place) == Some(false) {
                self.inner.background.send(Job::RemoveDraft(id, Vec::new()));
                continue;
            }
            let sealings = self.inner.store.sealings(&id)?;
            if self.inner.index.unknown_manifests(&sealings)?.len() < sealings.len() {
                // Died, or lost its power, between a commit and the end of its draft. Whoever wrote to it would write to the entry.
                self.inner.background.send(Job::RemoveDraft(id, Vec::new()));
                continue;
            }
            if !sealings.is_empty()
                && let Err(e) = self.separate(&id)
            {
                tracing::error!(
                    "the draft {id} stays out of sight, because it may share files with entries: {e}"
                );
                continue;
            }
            // Sealed otherwise meanwhile: what is sealed must be seen, and nothing is lost.
            let sealed = match &place {
                DraftPlace::InPlace { key } => self.inner.index.entry(key)?.is_some(),
                _ => false,
            };
            if sealed || !self.inner.drafts.state.lock().take(&place, &id) {
                place = DraftPlace::Work { name: id.clone().into_bytes() };
                self.inner.store.set_draft_place(&id, &place)?;
            }
            let draft = self.load_draft(id, place.clone(), at_ns, true)?;
            let mut tables = self.inner.drafts.state.lock();
            tables.take(&place, &draft.id);
            tables.by_id.insert(draft.id.clone(), draft);
        }
        Ok(())
    }

    /// Has no blob be a file of this draft, which was about to be sealed: it may have been, and its entry have gone since,
    /// while another has the same contents.
    fn separate(&self, id: &str) -> Result<()> {
        let mut plan = Plan::new(Default::default());
        let top = plan.builder.top();
        plan.add_tree(top, Tree::new(self.inner.store.draft_tree(id)?.as_fd(), "", true)?)?;
        super::content::each_shared_file(&plan, &mut |file, hash| match self
            .inner
            .index
            .blob(&hash)?
            .is_some_and(|row| row.location == Location::Loose)
        {
            true => Ok(self.inner.store.separate(file, &hash)?),
            false => Ok(()),
        })
    }

    /// Creates the draft that replaces a sealed entry; it begins as a copy (reflinks) of it.
    pub fn create_replacement(&self, entry: &Entry) -> Result<Arc<Draft>> {
        // Half a copy must not be found under the key, nor after a death: until it is whole it is
        // nobody's, like an unfinished put.
        let label = format!("{}{}", super::put::LABEL, entry.key());
        let draft = self.create_draft(DraftPlace::Native { label })?;
        let copied = entry.restore_into(draft.tree().as_fd(), 0, RestoreAs::Auto);
        let place = DraftPlace::Replace { key: entry.key().clone() };
        if let Err(e) = copied.and_then(|_| self.move_draft(&draft, place)) {
            self.drop_draft(&draft, "the entry could not be copied")?;
            return Err(e);
        }
        Ok(draft)
    }

    /// The in-place (or replacing) draft for `key`.
    pub fn draft_for(&self, key: &EntryKey) -> Option<Arc<Draft>> {
        let tables = self.inner.drafts.state.lock();
        tables.by_key.get(key).and_then(|id| tables.by_id.get(id)).cloned()
    }

    /// The work draft called `name`.
    pub fn work_draft(&self, name: &[u8]) -> Option<Arc<Draft>> {
        let tables = self.inner.drafts.state.lock();
        tables.by_name.get(name).and_then(|id| tables.by_id.get(id)).cloned()
    }

    /// All drafts.
    pub fn drafts(&self) -> Vec<Arc<Draft>> {
        let mut all: Vec<_> = self.inner.drafts.state.lock().by_id.values().cloned().collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Gives a draft another place (rename among drafts).
    pub fn move_draft(&self, draft: &Arc<Draft>, to: DraftPlace) -> Result<()> {
        let _alone = draft.alone(Instant::now() + PATIENCE)?;
        let from = draft.place();
        if from == to {
            return Ok(());
        }
        if !self.inner.drafts.state.lock().take(&to, &draft.id) {
            return Err(taken(&to));
        }
        let written = self.inner.store.set_draft_place(&draft.id, &to);
        let mut tables = self.inner.drafts.state.lock();
        match written {
            Ok(()) => {
                tables.leave(&from, &draft.id);
                *draft.place.lock() = to;
                drop(tables);
                self.tell_of_draft(draft);
                Ok(())
            }
            Err(e) => {
                tables.leave(&to, &draft.id);
                Err(e.into())
            }
        }
    }

    /// What is sealed must be seen: another draft in the place of a key that was just sealed goes on among the work.
    pub(super) fn make_way(&self, key: &EntryKey, sealed: Option<&Draft>) {
        let Some(draft) = self.draft_for(key).filter(|d| sealed.is_none_or(|own| own.id != d.id)) else {
            return;
        };
        if !matches!(draft.place(), DraftPlace::InPlace { .. }) {
            return;
        }
        let to = DraftPlace::Work { name: draft.id.clone().into_bytes() };
        match self.move_draft(&draft, to) {
            Ok(()) => {
                tracing::info!(%key, draft = draft.name(), "sealed otherwise: the draft goes on among the work")
            }
            Err(e) => tracing::warn!(%key, "a draft hides what was sealed in its place: {e}"),
        }
    }

    /// Drops a draft and deletes its tree in the background.
    pub fn drop_draft(&self, draft: &Arc<Draft>, why: &str) -> Result<()> {
        {
            draft.alone(Instant::now() + PATIENCE)?.end();
        }
        let place = draft.place();
        self.forget_draft(draft, Vec::new());
        if !matches!(place, DraftPlace::Native { .. }) {
            let event = EventKind::DraftDropped { draft: draft.name(), why: why.to_owned() };
            self.inner.store.append_event(event, place.key(), false)?;
        }
        Ok(())
    }

    fn tell_of_draft(&self, draft: &Draft) {
        self.holders().iter().for_each(|h| h.draft_changed(draft));
    }

    /// Takes a draft that is `Gone` out of the tables, throws away what was prepared for it
    /// and has its tree deleted in the background; `linked` are the blobs that share files with it.
    pub(crate) fn forget_draft(&self, draft: &Arc<Draft>, linked: Vec<BlobHash>) {
        let place = draft.place();
        {
            let mut tables = self.inner.drafts.state.lock();
            tables.leave(&place, &draft.id);
            tables.by_id.remove(&draft.id);
        }
        self.tell_of_draft(draft);
        draft.let_go_of_tree();
        draft.stash.discard();
        draft.memory.clear();
        if let Some(mut prepared) = draft.prepared.try_lock() {
            *prepared = None;
        }
        self.inner.upkeep.accounts.draft_gone(&draft.id);
        // At once: a draft of what was reported sealed must not come back after a death.
        if let Err(e) = self.inner.store.hide_draft(&draft.id) {
            tracing::warn!("the draft {} cannot be taken out of sight yet: {e}", draft.id);
        }
        self.inner.background.send(Job::RemoveDraft(draft.id.clone(), linked));
    }

    /// Drops the drafts that were idle for longer than the limit, and those of dead runs; how many.
    pub fn drop_idle_drafts(&self) -> Result<usize> {
        let ttl = self.inner.limits.read().draft_ttl.as_nanos().min(i64::MAX as u128) as i64;
        let old = |file: i64| now_ns().saturating_sub(file) > ttl;
        let mut dropped = 0;
        for draft in self.drafts() {
            let abandoned = || draft.writers() == 0 && draft.idle_ns() > ttl && old(newest_file(&draft));
            if !lives(&draft.place()).map_or_else(abandoned, |lives| !lives) {
                continue;
            }
            match self.drop_draft(&draft, "abandoned") {
                Ok(()) => dropped += 1,
                // Sealed or taken up meanwhile.
                Err(CacheError::Gone(_) | CacheError::Busy { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(dropped)
    }
}

/// When a file of a draft that an earlier owner left was last changed: that owner's memory of it is
/// gone, and the top directory does not tell. 0 for other drafts, and where it cannot be told.
fn newest_file(draft: &Draft) -> i64 {
    if !draft.recovered {
        return 0;
    }
    let mut plan = Plan::new(Default::default());
    let top = plan.builder.top();
    let walked = Tree::new(draft.tree().as_fd(), "", true).and_then(|tree| plan.add_tree(top, tree));
    walked.map_or(0, |()| plan.newest_change_ns())
}
