//! The node table: everything with a counted inode number, until the kernel forgets it.
//!
//! Invariants: one draft node per backing inode, so that hard links share a number; a node stays
//! while its look-up count is positive; a draft node whose last known name went keeps a
//! descriptor, so that its backing inode's number is not used again meanwhile; a node whose draft
//! was sealed keeps its number and points into the sealed entry.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use super::ino;
use super::names::Shown;
use super::slots::Slot;
use super::types::{Ino, Kind};
use crate::cache::{Draft, Entry, HeldBlob};
use crate::model::groups::GroupHash;
use crate::model::{BlobHash, Manifest};

/// Names of one inode that are remembered; more can exist.
const MAX_NAMES: usize = 16;

/// A file, directory or other inode of a draft.
pub struct DraftNode {
    /// Its number in this view.
    pub ino: Ino,
    /// The draft it belongs to.
    pub draft: Arc<Draft>,
    /// Device and inode number below.
    pub backing: (u64, u64),
    /// What it is.
    pub kind: Kind,
    /// The draft's top directory.
    pub top: bool,
    /// Of a directory: what the kernel may remember of its names.
    pub(super) shown: Shown,
    /// Handles for writing.
    writers: AtomicUsize,
    state: Mutex<DraftState>,
}

#[derive(Default)]
struct DraftState {
    /// Where it is known to be, newest last.
    names: Vec<(Arc<DraftNode>, OsString)>,
    /// Keeps it reachable without a name.
    fd: Option<Arc<OwnedFd>>,
    /// Open handles, also a way to reach it.
    handles: Vec<std::sync::Weak<OwnedFd>>,
    /// Set when the draft was sealed, for those that have a place in the entry.
    sealed: Option<(Entry, u32)>,
    /// The entry's slot, looked up once for this node, if it was listed since.
    slot: Option<Arc<Slot>>,
    /// The draft was sealed.
    settled: bool,
}

impl DraftNode {
    /// The sealed record it became, if its draft was sealed.
    pub fn sealed(&self) -> Option<(Entry, u32)> {
        self.state.lock().sealed.clone()
    }

    /// The slot whose numbers its listings show, once it is sealed: looked up the first time.
    pub(super) fn listed_with(&self, look_up: impl FnOnce() -> Option<Arc<Slot>>) -> Option<Arc<Slot>> {
        let mut s = self.state.lock();
        if s.slot.is_none() {
            s.slot = look_up();
        }
        s.slot.clone()
    }

    /// The newest known place.
    pub fn place(&self) -> Option<(Arc<DraftNode>, OsString)> {
        self.state.lock().names.last().cloned()
    }

    /// A descriptor that reaches it without a name: its own or an open handle's.
    pub fn descriptor(&self) -> Option<Arc<OwnedFd>> {
        let s = self.state.lock();
        s.fd.clone().or_else(|| s.handles.iter().find_map(std::sync::Weak::upgrade))
    }

    /// Its draft was dropped: nothing is reached through it any more, however long a kernel remembers it.
    pub fn let_go(&self) {
        let fd = self.state.lock().fd.take();
        drop(fd);
    }

    /// Its open handles.
    pub fn handles(&self) -> Vec<Arc<OwnedFd>> {
        self.state.lock().handles.iter().filter_map(std::sync::Weak::upgrade).collect()
    }

    /// Is it open more than once?
    pub fn is_shared(&self) -> bool {
        self.state.lock().handles.iter().filter(|h| h.strong_count() > 0).count() > 1
    }

    /// Is it open for writing?
    pub fn has_writer(&self) -> bool {
        self.writers.load(Ordering::Relaxed) > 0
    }

    /// A handle for writing is gone.
    pub fn drop_writer(&self) {
        self.writers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Remembers an open handle.
    pub fn add_handle(&self, fd: &Arc<OwnedFd>, writer: bool) {
        self.writers.fetch_add(usize::from(writer), Ordering::Relaxed);
        let mut s = self.state.lock();
        s.handles.retain(|h| h.strong_count() > 0);
        s.handles.push(Arc::downgrade(fd));
    }

    /// Remembers a name.
    pub fn add_name(&self, parent: &Arc<DraftNode>, name: &OsStr) {
        if self.top {
            return;
        }
        let mut s = self.state.lock();
        s.names.retain(|(p, n)| !(p.ino == parent.ino && n == name));
        if s.names.len() == MAX_NAMES {
            s.names.remove(0);
        }
        s.names.push((parent.clone(), name.to_owned()));
        s.fd = None;
    }

    /// Forgets a name; `keep` reaches the inode if that was the last one known.
    pub fn drop_name(&self, parent: Ino, name: &OsStr, keep: Option<Arc<OwnedFd>>) {
        let mut s = self.state.lock();
        s.names.retain(|(p, n)| !(p.ino == parent && n == name));
        if s.names.is_empty() && s.fd.is_none() {
            s.fd = keep;
        }
    }

    /// The path below the draft's top along known names; `None` without one.
    pub fn path(&self) -> Option<Vec<u8>> {
        if self.top {
            return Some(Vec::new());
        }
        let mut parts = Vec::new();
        let mut at = self.place()?;
        loop {
            parts.push(at.1);
            if at.0.top {
                break;
            }
            let up = at.0.place()?;
            at = up;
        }
        parts.reverse();
        Some(parts.iter().map(|p| p.as_encoded_bytes()).collect::<Vec<_>>().join(&b'/'))
    }

    /// The record it is in the entry its draft became; `None` without a name in it.
    fn record_in(&self, manifest: &Manifest) -> Option<u32> {
        let found = manifest.find(&self.path()?)?;
        Some(manifest.get(found).map_or(found, |r| r.canonical()))
    }

    /// Its draft was sealed: it is this record now, or lives on through its descriptors.
    fn settle(&self, sealed: Option<(Entry, u32)>) {
        let mut s = self.state.lock();
        s.settled = true;
        if sealed.is_some() {
            s.sealed = sealed;
            s.fd = None;
        }
    }

    fn is_settled(&self) -> bool {
        self.state.lock().settled
    }
}

/// A blob under `.outfs/blobs`.
pub struct BlobNode {
    /// Its name.
    pub hash: BlobHash,
    /// Keeps it while the kernel knows it.
    pub held: HeldBlob,
    /// Its group list, made when first read.
    pub groups: OnceLock<Vec<GroupHash>>,
}

/// What a table node is.
#[derive(Clone)]
pub enum Node {
    /// Part of a draft.
    Draft(Arc<DraftNode>),
    /// A control file's content, fixed at look-up.
    Snapshot(Arc<[u8]>),
    /// A directory below `by-task`.
    Task(Arc<str>),
    /// What making an entry through a shard directory answers with: the next look-up finds the link.
    Made,
    /// A symlink below `by-task` or a shard directory.
    Link(Arc<[u8]>),
    /// A file below `blobs`.
    Blob(Arc<BlobNode>),
}

/// What finds a node again, for those that must keep their number.
#[derive(PartialEq, Eq, Hash, Clone)]
enum Key {
    Backing(u64, u64),
    Task(Arc<str>),
    Link(Arc<[u8]>),
    Blob(BlobHash),
}

struct Held {
    node: Node,
    lookups: u64,
}

impl Table {
    /// The node is not found by its backing inode any more; another that is stays.
    fn drop_backing(&mut self, node: &DraftNode) {
        let key = Key::Backing(node.backing.0, node.backing.1);
        if self.keys.get(&key) == Some(&node.ino) {
            self.keys.remove(&key);
        }
    }
}

#[derive(Default)]
struct Table {
    held: HashMap<Ino, Held>,
    keys: HashMap<Key, Ino>,
    /// Sealed records whose number is that of a former draft node.
    converted: HashMap<(i64, u32), Ino>,
}

/// All counted nodes of a view.
#[derive(Default)]
pub struct Nodes {
    table: RwLock<Table>,
    next: AtomicU64,
    converted: AtomicUsize,
}

impl Nodes {
    /// The node with this number.
    pub fn get(&self, ino: Ino) -> Option<Node> {
        self.table.read().held.get(&ino).map(|h| h.node.clone())
    }

    /// The draft node of a backing inode, if the kernel knows it.
    pub fn draft(&self, backing: (u64, u64)) -> Option<Arc<DraftNode>> {
        let t = self.table.read();
        match &t.held.get(t.keys.get(&Key::Backing(backing.0, backing.1))?)?.node {
            Node::Draft(d) => Some(d.clone()),
            _ => None,
        }
    }

    /// The draft node with this number.
    pub fn draft_node(&self, ino: Ino) -> Option<Arc<DraftNode>> {
        match self.get(ino)? {
            Node::Draft(d) => Some(d),
            _ => None,
        }
    }

    fn number(&self) -> Ino {
        ino::table(self.next.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The number that a draft's inode has, or will have when it is looked up.
    pub fn number_of(&self, draft: &Draft, backing: (u64, u64)) -> Option<Ino> {
        let known = self.draft(backing).filter(|n| std::ptr::eq(&*n.draft, draft));
        known.map(|n| n.ino).or_else(|| ino::draft(draft.number(), backing.1))
    }

    /// `wanted`: the number, unless another node has it.
    fn intern(&self, key: Option<Key>, wanted: Option<Ino>, make: impl FnOnce(Ino) -> Node) -> (Ino, Node) {
        let mut t = self.table.write();
        if let Some(ino) = key.as_ref().and_then(|k| t.keys.get(k)).copied() {
            let held = t.held.get_mut(&ino).expect("keys name held nodes only");
            held.lookups += 1;
            return (ino, held.node.clone());
        }
        let ino = wanted.filter(|n| !t.held.contains_key(n)).unwrap_or_else(|| self.number());
        let node = make(ino);
        t.held.insert(ino, Held { node: node.clone(), lookups: 1 });
        if let Some(k) = key {
            t.keys.insert(k, ino);
        }
        (ino, node)
    }

    /// Finds or makes the node of a draft's inode and counts a look-up.
    pub fn look_up_draft(
        &self,
        draft: &Arc<Draft>,
        backing: (u64, u64),
        kind: Kind,
        at: DraftAt,
    ) -> Arc<DraftNode> {
        let key = Key::Backing(backing.0, backing.1);
        self.drop_stale(&key, draft, kind);
        let (_, node) = self.intern(Some(key), ino::draft(draft.number(), backing.1), |ino| {
            let (top, fd) = match &at {
                DraftAt::Top(fd) => (true, Some(fd.clone())),
                DraftAt::Child(..) => (false, None),
            };
            let state = Mutex::new(DraftState { fd, ..DraftState::default() });
            let (draft, writers) = (draft.clone(), AtomicUsize::new(0));
            let shown = Shown::default();
            Node::Draft(Arc::new(DraftNode { ino, draft, backing, kind, top, shown, writers, state }))
        });
        let Node::Draft(node) = node else { unreachable!("backing keys name draft nodes only") };
        if let DraftAt::Child(parent, name) = at {
            node.add_name(parent, name);
        }
        node
    }

    /// An inode belongs to one draft and is one kind of thing for life: a key that names another
    /// draft's node, or another kind, is left from an inode that was freed without our seeing it, and
    /// its number is in use again.
    fn drop_stale(&self, key: &Key, draft: &Arc<Draft>, kind: Kind) {
        let stale = |t: &Table| {
            let node = t.keys.get(key).and_then(|ino| t.held.get(ino)).map(|h| &h.node);
            matches!(node, Some(Node::Draft(d)) if d.kind != kind || !Arc::ptr_eq(&d.draft, draft))
        };
        if stale(&self.table.read()) {
            let mut t = self.table.write();
            if stale(&t) {
                t.keys.remove(key);
            }
        }
    }

    /// Makes a node that nothing finds again.
    pub fn look_up_new(&self, node: Node) -> Ino {
        self.intern(None, None, |_| node).0
    }

    /// Finds or makes a task's directory.
    pub fn look_up_task(&self, task: &str) -> Ino {
        let task: Arc<str> = task.into();
        self.intern(Some(Key::Task(task.clone())), None, |_| Node::Task(task)).0
    }

    /// Finds or makes the symlink with this target.
    pub fn look_up_link(&self, target: &[u8]) -> Ino {
        let target: Arc<[u8]> = target.into();
        self.intern(Some(Key::Link(target.clone())), None, |_| Node::Link(target)).0
    }

    /// Finds or makes a blob's node.
    pub fn look_up_blob(&self, hash: BlobHash, held: HeldBlob) -> Ino {
        let make = |_| Node::Blob(Arc::new(BlobNode { hash, held, groups: OnceLock::new() }));
        self.intern(Some(Key::Blob(hash)), None, make).0
    }

    /// The blobs that the kernel knows, by number.
    pub fn blobs(&self) -> Vec<(Ino, BlobHash)> {
        let t = self.table.read();
        let blob = |(key, ino): (&Key, &Ino)| match key {
            Key::Blob(hash) => Some((*ino, *hash)),
            _ => None,
        };
        t.keys.iter().filter_map(blob).collect()
    }

    /// Counts one more look-up of a draft's node; one that was forgotten gets its number back.
    pub fn look_up_again(&self, node: &Arc<DraftNode>) {
        let mut t = self.table.write();
        let held = t.held.entry(node.ino);
        held.or_insert_with(|| Held { node: Node::Draft(node.clone()), lookups: 0 }).lookups += 1;
    }

    /// Takes back `n` look-ups; the node goes with the last, which gives the slot that it was listed with.
    pub fn forget(&self, ino: Ino, n: u64) -> Option<Arc<Slot>> {
        let mut t = self.table.write();
        let h = t.held.get_mut(&ino)?;
        h.lookups = h.lookups.saturating_sub(n);
        if h.lookups > 0 {
            return None;
        }
        let held = t.held.remove(&ino).expect("it was there under the same lock");
        match &held.node {
            Node::Draft(d) => {
                t.drop_backing(d);
                if let Some((entry, record)) = d.sealed()
                    && t.converted.get(&(entry.id(), record)) == Some(&ino)
                {
                    t.converted.remove(&(entry.id(), record));
                    self.converted.fetch_sub(1, Ordering::Relaxed);
                }
            }
            Node::Task(task) => drop(t.keys.remove(&Key::Task(task.clone()))),
            Node::Blob(b) => drop(t.keys.remove(&Key::Blob(b.hash))),
            Node::Link(link) => drop(t.keys.remove(&Key::Link(link.clone()))),
            Node::Snapshot(_) | Node::Made => {}
        }
        // Dropped outside the lock: a node can hold the last lease of an entry.
        drop(t);
        match &held.node {
            Node::Draft(d) => d.state.lock().slot.take(),
            _ => None,
        }
    }

    /// The former draft node that is this sealed record; counts a look-up.
    pub fn look_up_converted(&self, entry: i64, record: u32) -> Option<Arc<DraftNode>> {
        self.converted_number(entry, record)?;
        let mut t = self.table.write();
        let ino = *t.converted.get(&(entry, record))?;
        let held = t.held.get_mut(&ino)?;
        held.lookups += 1;
        match &held.node {
            Node::Draft(d) => Some(d.clone()),
            _ => None,
        }
    }

    /// Turns all nodes of a draft into records of the entry it became. Nodes without a name in
    /// it stay as they are: they live on through their descriptors.
    /// Without a manifest no node has one. `stands` says whether a node is still what its known names lead
    /// to: another view may have moved it, and have put something else there. Gives the nodes it found.
    pub fn convert(
        &self,
        draft: &Draft,
        entry: &Entry,
        manifest: Option<&Manifest>,
        stands: &dyn Fn(&Arc<DraftNode>) -> bool,
    ) -> Vec<Ino> {
        let mut all = Vec::new();
        // Look-ups of other entries need the table meanwhile, so its lock is taken for moments only. Nodes
        // that are looked up between are found by another round.
        loop {
            let nodes: Vec<_> = self
                .table
                .read()
                .held
                .values()
                .filter_map(|h| match &h.node {
                    Node::Draft(d) if std::ptr::eq(&*d.draft, draft) && !d.is_settled() => Some(d.clone()),
                    _ => None,
                })
                .collect();
            if nodes.is_empty() {
                return all;
            }
            all.extend(nodes.iter().map(|n| n.ino));
            for batch in nodes.chunks(256) {
                let records: Vec<_> =
                    batch.iter().map(|n| n.record_in(manifest?).filter(|_| stands(n))).collect();
                let mut t = self.table.write();
                for (node, record) in batch.iter().zip(records) {
                    t.drop_backing(node);
                    node.settle(record.map(|r| (entry.clone(), r)));
                    if let Some(record) = record.filter(|_| t.held.contains_key(&node.ino)) {
                        let known = t.converted.insert((entry.id(), record), node.ino);
                        self.converted.fetch_add(usize::from(known.is_none()), Ordering::Relaxed);
                    }
                }
            }
        }
    }

    /// The number that a sealed record has from a former draft node.
    pub fn converted_number(&self, entry: i64, record: u32) -> Option<Ino> {
        if self.converted.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.table.read().converted.get(&(entry, record)).copied()
    }

    /// The numbers of an entry's former draft nodes, children before parents.
    pub fn converted_of(&self, entry: i64) -> Vec<Ino> {
        let t = self.table.read();
        let mut of: Vec<_> =
            t.converted.iter().filter(|((e, _), _)| *e == entry).map(|((_, r), i)| (*r, *i)).collect();
        of.sort_unstable_by_key(|&(record, _)| std::cmp::Reverse(record));
        of.into_iter().map(|(_, ino)| ino).collect()
    }

    /// The key of an entry that has former draft nodes.
    pub fn converted_key(&self, entry: i64) -> Option<crate::model::EntryKey> {
        let t = self.table.read();
        let ino = t.converted.iter().find(|((e, _), _)| *e == entry).map(|(_, ino)| *ino)?;
        match &t.held.get(&ino)?.node {
            Node::Draft(d) => d.sealed().map(|(e, _)| e.key().clone()),
            _ => None,
        }
    }
}

/// Where a draft node is first met.
pub enum DraftAt<'a> {
    /// The draft's top directory, with a descriptor of it.
    Top(Arc<OwnedFd>),
    /// In a directory of the draft.
    Child(&'a Arc<DraftNode>, &'a OsStr),
}
