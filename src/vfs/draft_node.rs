//! One file, directory or other inode of a draft, as long as a kernel knows it.
//!
//! Invariants: a node whose last known name went keeps a descriptor, so that its backing inode's number is not used again
//! meanwhile; a node whose draft was sealed keeps its number and points into the sealed entry. A kernel may know very many:
//! what only few have (an open handle, a second name, a descriptor of their own) is kept beside the node.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::counted::Counted;
use super::names::Shown;
use super::slots::Slot;
use super::types::{Ino, Kind};
use crate::cache::{Draft, Entry};
use crate::model::manifest::{MAX_DIR_PATH, path_len};

/// Names of one inode that are remembered; more can exist.
const MAX_NAMES: usize = 16;

/// In place of a record: the draft lives.
const UNSETTLED: u32 = u32::MAX;
/// In place of a record: the draft was sealed, and the node is not in it.
const NO_RECORD: u32 = u32::MAX - 1;

/// An open descriptor of a draft's inode, and its place among those that may be open.
pub(super) struct Open {
    pub fd: Arc<OwnedFd>,
    /// None is counted for a draft's tree, which is open anyway.
    _counted: Option<Counted>,
}

impl Open {
    pub fn new(fd: OwnedFd, counted: Counted) -> Arc<Open> {
        Open::kept(Arc::new(fd), Some(counted))
    }

    pub fn kept(fd: Arc<OwnedFd>, counted: Option<Counted>) -> Arc<Open> {
        Arc::new(Open { fd, _counted: counted })
    }
}

/// In which directory, and under which name.
pub(super) type Place = (Arc<DraftNode>, Box<OsStr>);

/// A file, directory or other inode of a draft.
pub(super) struct DraftNode {
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
    pub shown: Shown,
    /// The record it became, `UNSETTLED` or `NO_RECORD`; written under the lock of `state`.
    record: AtomicU32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Where it is known to be: the newest place.
    place: Option<Place>,
    /// What it is a record of now.
    entry: Option<Entry>,
    rare: Option<Box<Rare>>,
}

/// What few nodes have.
#[derive(Default)]
struct Rare {
    /// Other known places, newest last.
    others: Vec<Place>,
    /// Keeps it reachable without a name.
    kept: Option<Arc<Open>>,
    /// Open handles, also a way to reach it.
    handles: Vec<Weak<Open>>,
    /// Handles for writing.
    writers: usize,
    /// The entry's slot, looked up once for this node, if it was listed since.
    slot: Option<Arc<Slot>>,
}

impl Rare {
    fn is_empty(&self) -> bool {
        let Rare { others, kept, handles, writers, slot } = self;
        others.is_empty() && kept.is_none() && handles.is_empty() && *writers == 0 && slot.is_none()
    }

    fn open(&self) -> Option<Arc<Open>> {
        self.kept.clone().or_else(|| self.handles.iter().find_map(Weak::upgrade))
    }
}

impl State {
    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Gives up what is empty.
    fn tidy(&mut self) {
        if self.rare.as_ref().is_some_and(|rare| rare.is_empty()) {
            self.rare = None;
        }
    }

    fn forget_place(&mut self, parent: Ino, name: &OsStr) {
        let is = |(p, n): &Place| p.ino == parent && **n == *name;
        if self.place.as_ref().is_some_and(is) {
            self.place = self.rare.as_mut().and_then(|rare| rare.others.pop());
        } else if let Some(rare) = &mut self.rare {
            rare.others.retain(|place| !is(place));
        }
    }
}

/// Notices that a way up along remembered names comes round: another view may have moved directories, each below the
/// other, and not both moves may have been seen.
pub(super) struct Climb {
    mark: Ino,
    steps: u64,
    lap: u64,
}

impl Climb {
    pub fn from(node: &DraftNode) -> Climb {
        Climb { mark: node.ino, steps: 0, lap: 1 }
    }

    /// One step up, to `node`: false when the way has come round.
    pub fn reaches(&mut self, node: &DraftNode) -> bool {
        if node.ino == self.mark {
            return false;
        }
        self.steps += 1;
        // The mark stays for longer each time, so that in the end it lies within the round and the round within a lap.
        if self.steps == self.lap {
            (self.mark, self.steps, self.lap) = (node.ino, 0, self.lap * 2);
        }
        true
    }
}

impl DraftNode {
    /// A node as it is first met: a draft's top, with a descriptor of it, or one without a name yet.
    pub fn new(
        ino: Ino,
        draft: Arc<Draft>,
        backing: (u64, u64),
        kind: Kind,
        top: Option<Arc<OwnedFd>>,
    ) -> Self {
        let (is_top, mut state) = (top.is_some(), State::default());
        if let Some(fd) = top {
            state.rare().kept = Some(Open::kept(fd, None));
        }
        DraftNode {
            ino,
            draft,
            backing,
            kind,
            top: is_top,
            shown: Shown::default(),
            record: AtomicU32::new(UNSETTLED),
            state: Mutex::new(state),
        }
    }

    /// The sealed record it became, if its draft was sealed.
    pub fn sealed(&self) -> Option<(Entry, u32)> {
        let entry = self.state.lock().entry.clone()?;
        Some((entry, self.record.load(Ordering::Acquire)))
    }

    /// The slot whose numbers its listings show, once it is sealed: looked up the first time.
    pub fn listed_with(&self, look_up: impl FnOnce() -> Option<Arc<Slot>>) -> Option<Arc<Slot>> {
        let mut s = self.state.lock();
        let slot = &mut s.rare().slot;
        if slot.is_none() {
            *slot = look_up();
        }
        slot.clone()
    }

    /// Gives up the slot that it was listed with.
    pub fn take_slot(&self) -> Option<Arc<Slot>> {
        let mut s = self.state.lock();
        let slot = s.rare.as_mut()?.slot.take();
        s.tidy();
        slot
    }

    /// The newest known place.
    pub fn place(&self) -> Option<Place> {
        self.state.lock().place.clone()
    }

    /// What reaches it without a name: a descriptor of its own or an open handle's.
    pub fn open(&self) -> Option<Arc<Open>> {
        self.state.lock().rare.as_ref()?.open()
    }

    /// A descriptor that reaches it without a name.
    pub fn descriptor(&self) -> Option<Arc<OwnedFd>> {
        self.open().map(|open| open.fd.clone())
    }

    /// Its draft was dropped: nothing is reached through it any more, however long a kernel remembers it.
    pub fn let_go(&self) {
        let mut s = self.state.lock();
        let kept = s.rare.as_mut().and_then(|rare| rare.kept.take());
        s.tidy();
        drop(s);
        drop(kept);
    }

    /// Its open handles.
    pub fn handles(&self) -> Vec<Arc<OwnedFd>> {
        let s = self.state.lock();
        let handles = s.rare.iter().flat_map(|rare| &rare.handles);
        handles.filter_map(Weak::upgrade).map(|open| open.fd.clone()).collect()
    }

    /// Is it open more than once?
    pub fn is_shared(&self) -> bool {
        self.state.lock().rare.as_ref().is_some_and(|rare| rare.handles.len() > 1)
    }

    /// Is it open for writing?
    pub fn has_writer(&self) -> bool {
        self.state.lock().rare.as_ref().is_some_and(|rare| rare.writers > 0)
    }

    /// Remembers an open handle.
    pub fn add_handle(&self, open: &Arc<Open>, writer: bool) {
        let mut s = self.state.lock();
        let rare = s.rare();
        rare.writers += usize::from(writer);
        rare.handles.push(Arc::downgrade(open));
    }

    /// A handle is gone.
    pub fn drop_handle(&self, open: &Arc<Open>, writer: bool) {
        let mut s = self.state.lock();
        if let Some(rare) = &mut s.rare {
            rare.writers -= usize::from(writer);
            rare.handles.retain(|h| h.as_ptr() != Arc::as_ptr(open));
        }
        s.tidy();
    }

    /// Remembers a name.
    pub fn add_name(&self, parent: &Arc<DraftNode>, name: &OsStr) {
        if self.top {
            return;
        }
        let mut s = self.state.lock();
        match &mut s.place {
            Some((known, n)) if known.ino == parent.ino && **n == *name => *known = parent.clone(),
            _ => {
                s.forget_place(parent.ino, name);
                let place = (parent.clone(), name.into());
                if let Some(older) = s.place.replace(place) {
                    let others = &mut s.rare().others;
                    if others.len() == MAX_NAMES - 1 {
                        others.remove(0);
                    }
                    others.push(older);
                }
            }
        }
        let kept = s.rare.as_mut().and_then(|rare| rare.kept.take());
        s.tidy();
        drop(s);
        drop(kept);
    }

    /// Forgets a name; `keep` reaches the inode if that was the last one known.
    pub fn drop_name(&self, parent: Ino, name: &OsStr, keep: Option<Arc<Open>>) {
        let mut s = self.state.lock();
        s.forget_place(parent, name);
        if let (None, Some(keep)) = (&s.place, keep) {
            s.rare().kept.get_or_insert(keep);
        }
        s.tidy();
    }

    /// The length of its path below the draft's top along known names, if it is not too long.
    pub fn path_len(&self) -> usize {
        let mut len = 0;
        let mut place = self.place();
        while let Some((above, name)) = place.filter(|_| len <= MAX_DIR_PATH) {
            len = path_len(len, name.as_bytes());
            place = above.place();
        }
        len
    }

    /// Its draft was sealed: it is this record now, or lives on through its descriptors.
    pub fn settle(&self, sealed: Option<(Entry, u32)>) {
        let mut s = self.state.lock();
        let Some((entry, record)) = sealed else {
            self.record.store(NO_RECORD, Ordering::Release);
            return;
        };
        self.record.store(record, Ordering::Release);
        s.entry = Some(entry);
        let kept = s.rare.as_mut().and_then(|rare| rare.kept.take());
        s.tidy();
        drop(s);
        drop(kept);
    }

    /// Its draft was sealed.
    pub fn is_settled(&self) -> bool {
        self.record.load(Ordering::Acquire) != UNSETTLED
    }
}

impl Drop for DraftNode {
    /// Directories can be as deep as somebody makes them, and the last node of a path holds all above it: they go one after
    /// another, not each within the one below, which the stack has no room for.
    fn drop(&mut self) {
        let mut place = self.state.get_mut().place.take();
        while let Some((above, _)) = place {
            place = Arc::into_inner(above).and_then(|mut node| node.state.get_mut().place.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, Limits};
    use crate::store::DraftPlace;

    /// `cd` and `mkdir` in turn make paths of any depth.
    #[test]
    fn the_last_node_of_a_very_deep_path_takes_no_stack() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("store"), Limits::default()).unwrap();
        let draft = cache.create_draft(DraftPlace::Work { name: b"w".to_vec() }).unwrap();
        let node = |n: u64| Arc::new(DraftNode::new(n, draft.clone(), (0, n), Kind::Dir, None));
        let mut deepest = node(0);
        for n in 1..100_000 {
            let below = node(n);
            below.add_name(&deepest, OsStr::new("d"));
            deepest = below;
        }
        let top = Arc::downgrade(&deepest.place().unwrap().0);
        drop(deepest);
        assert_eq!(top.strong_count(), 0);
    }

    #[test]
    fn a_node_is_small() {
        // Two counts of the `Arc` come on top; malloc has room for 104 bytes without the next step.
        assert!(size_of::<DraftNode>() + 16 <= 104, "{}", size_of::<DraftNode>());
    }
}
