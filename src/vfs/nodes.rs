//! The node table: everything with a counted inode number, until the kernel forgets it.
//!
//! Invariants: one draft node per backing inode, so that hard links share a number; a node stays
//! while its look-up count is positive; what is forgotten gives its memory back, the tables' too.
//! Nearly every number of a draft's node is computed from its backing inode's, which finds it: only those whose number
//! another one has are in a table by that.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::hash::Hash;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;

use super::draft_node::DraftNode;
use super::ino;
use super::known::now;
use super::settling::Settling;
use super::slots::Slot;
use super::types::{Ino, Kind};
use crate::cache::{Draft, Entry, HeldBlob};
use crate::model::BlobHash;
use crate::model::groups::GroupHash;

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
pub(super) enum Node {
    /// Part of a draft.
    Draft(Arc<DraftNode>),
    /// Anything else.
    Own(Own),
}

/// What is neither in a draft nor in an entry.
#[derive(Clone)]
pub(super) enum Own {
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

/// What finds one of these again, for those that must keep their number.
#[derive(PartialEq, Eq, Hash, Clone)]
enum Key {
    Task(Arc<str>),
    Link(Arc<[u8]>),
    Blob(BlobHash),
}

impl Own {
    fn key(&self) -> Option<Key> {
        match self {
            Own::Snapshot(_) | Own::Made => None,
            Own::Task(task) => Some(Key::Task(task.clone())),
            Own::Link(target) => Some(Key::Link(target.clone())),
            Own::Blob(blob) => Some(Key::Blob(blob.hash)),
        }
    }
}

/// Something that the kernel knows.
struct Known<T> {
    node: T,
    lookups: u64,
    /// When it was looked up last (`known::now`).
    used: AtomicU32,
}

impl<T> Known<T> {
    fn new(node: T) -> Self {
        Known { node, lookups: 1, used: AtomicU32::new(now()) }
    }

    fn look_up(&mut self) {
        self.lookups += 1;
        *self.used.get_mut() = now();
    }

    /// Takes back `n` look-ups; whether these were the last.
    fn forget(&mut self, n: u64) -> bool {
        self.lookups = self.lookups.saturating_sub(n);
        self.lookups == 0
    }
}

/// A table that held very many gives their room back.
fn shrink<K: Eq + Hash, V>(table: &mut HashMap<K, V>) {
    const SMALL: usize = 1024;
    if table.capacity() > SMALL && table.len() < table.capacity() / 4 {
        table.shrink_to(table.len() * 2);
    }
}

#[derive(Default)]
struct Table {
    drafts: HashMap<Ino, Known<Arc<DraftNode>>>,
    own: HashMap<Ino, Known<Own>>,
    keys: HashMap<Key, Ino>,
    /// Draft nodes that have not the number that is computed from their backing inode's, by that.
    renumbered: HashMap<(u64, u64), Ino>,
    /// Sealed records whose number is that of a former draft node, by entry.
    converted: HashMap<i64, HashMap<u32, Ino>>,
}

impl Table {
    /// The node of a draft's backing inode.
    fn draft(&self, draft: &Draft, backing: (u64, u64)) -> Option<&Arc<DraftNode>> {
        let is =
            |d: &&Arc<DraftNode>| d.backing == backing && std::ptr::eq(&*d.draft, draft) && !d.is_settled();
        let at = |ino: &Ino| self.drafts.get(ino).map(|known| &known.node).filter(is);
        let renumbered = self.renumbered.get(&backing).and_then(at);
        renumbered.or_else(|| at(&ino::draft(draft.number(), backing.1)?))
    }

    /// The node is not found by its backing inode any more; another that is stays.
    fn drop_backing(&mut self, node: &DraftNode) {
        if self.renumbered.get(&node.backing) == Some(&node.ino) {
            self.renumbered.remove(&node.backing);
            shrink(&mut self.renumbered);
        }
    }

    /// The record has no number of a former draft node any more, if it was this one.
    fn drop_converted(&mut self, entry: i64, record: u32, ino: Ino) -> bool {
        let Some(records) = self.converted.get_mut(&entry) else { return false };
        let its = records.get(&record) == Some(&ino);
        if its {
            records.remove(&record);
            shrink(records);
            if records.is_empty() {
                self.converted.remove(&entry);
            }
        }
        its
    }
}

/// All counted nodes of a view.
#[derive(Default)]
pub(super) struct Nodes {
    table: RwLock<Table>,
    next: AtomicU64,
    converted: AtomicUsize,
    known: AtomicUsize,
}

impl Nodes {
    /// The node with this number.
    pub fn get(&self, ino: Ino) -> Option<Node> {
        let t = self.table.read();
        let draft = t.drafts.get(&ino).map(|known| Node::Draft(known.node.clone()));
        draft.or_else(|| Some(Node::Own(t.own.get(&ino)?.node.clone())))
    }

    /// The node of a draft's backing inode, if the kernel knows it.
    pub fn draft(&self, draft: &Draft, backing: (u64, u64)) -> Option<Arc<DraftNode>> {
        self.table.read().draft(draft, backing).cloned()
    }

    /// The draft node with this number.
    pub fn draft_node(&self, ino: Ino) -> Option<Arc<DraftNode>> {
        self.table.read().drafts.get(&ino).map(|known| known.node.clone())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.known.load(Ordering::Relaxed)
    }

    fn number(&self) -> Ino {
        ino::table(self.next.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The number that a draft's inode has, or will have when it is looked up.
    pub fn number_of(&self, draft: &Draft, backing: (u64, u64)) -> Option<Ino> {
        let known = self.draft(draft, backing);
        known.map(|n| n.ino).or_else(|| ino::draft(draft.number(), backing.1))
    }

    /// Finds or makes the node of a draft's inode and counts a look-up.
    pub fn look_up_draft(
        &self,
        draft: &Arc<Draft>,
        backing: (u64, u64),
        kind: Kind,
        at: DraftAt,
    ) -> Arc<DraftNode> {
        let mut t = self.table.write();
        // An inode is one kind of thing for life: another kind is left from an inode that was freed without our seeing it,
        // and its number is in use again.
        let ino = t.draft(draft, backing).filter(|d| d.kind == kind).map(|d| d.ino);
        let node = if let Some(known) = ino.and_then(|ino| t.drafts.get_mut(&ino)) {
            known.look_up();
            known.node.clone()
        } else {
            let computed = ino::draft(draft.number(), backing.1).filter(|n| !t.drafts.contains_key(n));
            let ino = computed.unwrap_or_else(|| self.number());
            let top = match &at {
                DraftAt::Top(fd) => Some(fd.clone()),
                DraftAt::Child(..) => None,
            };
            let node = Arc::new(DraftNode::new(ino, draft.clone(), backing, kind, top));
            t.drafts.insert(ino, Known::new(node.clone()));
            if computed.is_some() {
                t.renumbered.remove(&backing);
            } else {
                t.renumbered.insert(backing, ino);
            }
            self.known.fetch_add(1, Ordering::Relaxed);
            node
        };
        drop(t);
        if let DraftAt::Child(parent, name) = at {
            node.add_name(parent, name);
        }
        node
    }

    fn intern(&self, key: Option<Key>, make: impl FnOnce() -> Own) -> Ino {
        let mut t = self.table.write();
        if let Some(ino) = key.as_ref().and_then(|k| t.keys.get(k)).copied() {
            t.own.get_mut(&ino).expect("keys name known nodes only").look_up();
            return ino;
        }
        let ino = self.number();
        t.own.insert(ino, Known::new(make()));
        if let Some(k) = key {
            t.keys.insert(k, ino);
        }
        self.known.fetch_add(1, Ordering::Relaxed);
        ino
    }

    /// Makes a node that nothing finds again, or finds or makes one that is found by what it is.
    pub fn look_up_own(&self, node: Own) -> Ino {
        self.intern(node.key(), || node)
    }

    /// Finds or makes a blob's node.
    pub fn look_up_blob(&self, hash: BlobHash, held: HeldBlob) -> Ino {
        let make = || Own::Blob(Arc::new(BlobNode { hash, held, groups: OnceLock::new() }));
        self.intern(Some(Key::Blob(hash)), make)
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
        match t.drafts.get_mut(&node.ino) {
            Some(known) => known.look_up(),
            None => {
                t.drafts.insert(node.ino, Known::new(node.clone()));
                self.known.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Takes back `n` look-ups; the node goes with the last, which gives the slot that it was listed with.
    pub fn forget(&self, ino: Ino, n: u64) -> Option<Arc<Slot>> {
        let mut t = self.table.write();
        // What goes is dropped outside the lock: a node can hold the last lease of an entry.
        let Some(known) = t.drafts.get_mut(&ino) else {
            let gone = self.forget_own(&mut t, ino, n);
            drop(t);
            drop(gone);
            return None;
        };
        if !known.forget(n) {
            return None;
        }
        let node = t.drafts.remove(&ino)?.node;
        shrink(&mut t.drafts);
        self.known.fetch_sub(1, Ordering::Relaxed);
        t.drop_backing(&node);
        if let Some((entry, record)) = node.sealed()
            && t.drop_converted(entry.id(), record, ino)
        {
            self.converted.fetch_sub(1, Ordering::Relaxed);
        }
        drop(t);
        node.take_slot()
    }

    fn forget_own(&self, t: &mut Table, ino: Ino, n: u64) -> Option<Own> {
        if !t.own.get_mut(&ino)?.forget(n) {
            return None;
        }
        let node = t.own.remove(&ino)?.node;
        shrink(&mut t.own);
        self.known.fetch_sub(1, Ordering::Relaxed);
        if let Some(key) = node.key() {
            t.keys.remove(&key);
            shrink(&mut t.keys);
        }
        Some(node)
    }

    /// When each was looked up last, and what it is; directories of drafts by themselves.
    pub fn used(&self, mut tell: impl FnMut(u32, Ino, bool)) {
        let t = self.table.read();
        for (ino, known) in &t.drafts {
            tell(known.used.load(Ordering::Relaxed), *ino, known.node.kind == Kind::Dir);
        }
        for (ino, known) in &t.own {
            tell(known.used.load(Ordering::Relaxed), *ino, matches!(known.node, Own::Task(_)));
        }
    }

    /// Counts as used now what the kernel may be using: it was asked to forget these.
    pub fn asked(&self, inos: &[Ino]) {
        let now = now();
        let t = self.table.read();
        for ino in inos {
            let used = t.drafts.get(ino).map(|known| &known.used);
            if let Some(used) = used.or_else(|| Some(&t.own.get(ino)?.used)) {
                used.store(now, Ordering::Relaxed);
            }
        }
    }

    /// The former draft node that is this sealed record; counts a look-up.
    pub fn look_up_converted(&self, entry: i64, record: u32) -> Option<Arc<DraftNode>> {
        self.converted_number(entry, record)?;
        let mut t = self.table.write();
        let ino = *t.converted.get(&entry)?.get(&record)?;
        let known = t.drafts.get_mut(&ino)?;
        known.look_up();
        Some(known.node.clone())
    }

    /// Turns all nodes of a draft into records of the entry it became. Nodes without a name in
    /// it stay as they are: they live on through their descriptors.
    /// Gives the nodes it found.
    pub fn convert(&self, draft: &Draft, entry: &Entry, mut settling: Settling<'_>) -> Vec<Ino> {
        let mut all = Vec::new();
        // Look-ups of other entries need the table meanwhile, so its lock is taken for moments only. Nodes
        // that are looked up between are found by another round.
        loop {
            let its = |d: &&Arc<DraftNode>| std::ptr::eq(&*d.draft, draft) && !d.is_settled();
            let nodes: Vec<_> =
                self.table.read().drafts.values().map(|known| &known.node).filter(its).cloned().collect();
            if nodes.is_empty() {
                return all;
            }
            all.extend(nodes.iter().map(|n| n.ino));
            for batch in nodes.chunks(256) {
                let records: Vec<_> = batch.iter().map(|node| settling.record(node)).collect();
                let mut t = self.table.write();
                for (node, record) in batch.iter().zip(records) {
                    t.drop_backing(node);
                    node.settle(record.map(|r| (entry.clone(), r)));
                    if let Some(record) = record.filter(|_| t.drafts.contains_key(&node.ino)) {
                        let known = t.converted.entry(entry.id()).or_default().insert(record, node.ino);
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
        self.table.read().converted.get(&entry)?.get(&record).copied()
    }

    /// The numbers of an entry's former draft nodes, children before parents.
    pub fn converted_of(&self, entry: i64) -> Vec<Ino> {
        let t = self.table.read();
        let mut of: Vec<_> = t.converted.get(&entry).into_iter().flatten().map(|(r, i)| (*r, *i)).collect();
        of.sort_unstable_by_key(|&(record, _)| std::cmp::Reverse(record));
        of.into_iter().map(|(_, ino)| ino).collect()
    }

    /// An entry that has former draft nodes.
    pub fn converted_entry(&self, entry: i64) -> Option<Entry> {
        let t = self.table.read();
        let ino = t.converted.get(&entry)?.values().next()?;
        t.drafts.get(ino)?.node.sealed().map(|(e, _)| e.clone())
    }
}

/// Where a draft node is first met.
pub(super) enum DraftAt<'a> {
    /// The draft's top directory, with a descriptor of it.
    Top(Arc<OwnedFd>),
    /// In a directory of the draft.
    Child(&'a Arc<DraftNode>, &'a OsStr),
}
