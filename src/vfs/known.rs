//! What the kernel knows takes memory here: a bound on that, and what it is asked to forget when there is more.
//!
//! A file of a draft has a node for as long as the kernel knows it, and a sealed entry a slot (its files have nothing). The
//! kernel forgets by itself only what it needs memory for. Above the view's share it is asked to let go of what was looked up
//! longest ago; it does so with what nobody uses, and what it forgets is found again under the same number.
//!
//! Invariants: what to forget is chosen by the thread that notifies, never by one that answers requests; the kernel is asked
//! now and then only, and the less often the less it can let go of.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;

use super::slots::Slot;
use super::types::Ino;
use super::{View, ino};
use crate::cache::Known;

/// Bytes that a node takes: itself, a name and its place in the tables. (Measured; see `tests/memory.rs`.)
pub(super) const NODE: usize = 256;
/// Bytes that the slot of an entry takes, with the entry's row and lease.
const SLOT: usize = 768;

/// Sixteenths of a second between two rounds, at least and at most.
const PAUSE: u32 = 2;
const LONGEST: u32 = 160;

/// Inodes that the kernel is asked to forget in one round.
const ROUND: usize = 1 << 16;

/// The present, in sixteenths of a second since the first call; it wraps after eight years.
pub(super) fn now() -> u32 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    (BEGAN.get_or_init(Instant::now).elapsed().as_millis() / 62) as u32
}

/// A view's share of memory for what its kernel knows, and when that was last asked to forget.
pub(super) struct Bound {
    share: AtomicUsize,
    /// No round before this.
    due: AtomicU32,
    /// Inodes that the kernel has forgotten so far.
    forgotten: AtomicU64,
    last: Mutex<Round>,
}

struct Round {
    asked: u64,
    /// `forgotten` before it.
    forgotten: u64,
    pause: u32,
}

impl Bound {
    pub fn new(share: usize) -> Bound {
        Bound {
            share: AtomicUsize::new(share),
            due: AtomicU32::new(now()),
            forgotten: AtomicU64::new(0),
            last: Mutex::new(Round { asked: 0, forgotten: 0, pause: PAUSE }),
        }
    }

    pub fn forgot(&self, inodes: u64) {
        self.forgotten.fetch_add(inodes, Ordering::Relaxed);
    }

    /// Whether a round may begin, which is then the caller's.
    fn begin(&self) -> bool {
        let (now, due) = (now(), self.due.load(Ordering::Relaxed));
        // Until it has begun no other one does: it sets when the next one may.
        let is_due = now.wrapping_sub(due) as i32 >= 0;
        is_due && self.due.compare_exchange(due, now + LONGEST, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// A round that asks for so many has begun. If the last one was of little use, for most is in use, the next one is later.
    fn note(&self, asked: u64) {
        let mut last = self.last.lock();
        let forgotten = self.forgotten.load(Ordering::Relaxed);
        let useful = (forgotten - last.forgotten) * 4 >= last.asked;
        let pause = if useful { PAUSE } else { (last.pause * 2).min(LONGEST) };
        *last = Round { asked, forgotten, pause };
        self.due.store(now().wrapping_add(pause), Ordering::Relaxed);
    }
}

/// What may be forgotten.
enum What {
    Node { ino: Ino, dir: bool },
    Slot(Arc<Slot>),
}

fn bytes(known: &Known) -> usize {
    known.inodes as usize * NODE + known.entries as usize * SLOT
}

impl View {
    /// What the kernel knows that takes memory.
    pub fn known(&self) -> Known {
        Known { inodes: self.nodes.count() as u64, entries: self.slots.count() as u64 }
    }

    /// How much of it there may be when there are as many views as now.
    pub(super) fn share_again(&self) {
        let views = self.cache.holders().len().max(1);
        self.bound.share.store(self.cache.share_of_kernels() / views, Ordering::Relaxed);
    }

    /// Has the kernel soon be asked to forget something, if it knows too much. Never waits.
    pub(super) fn bound_known(&self) {
        if bytes(&self.known()) > self.bound.share.load(Ordering::Relaxed)
            && let Some(kernel) = self.kernel.get()
            && self.bound.begin()
        {
            let view = self.myself.clone();
            kernel.forget(Box::new(move || view.upgrade().map_or_else(Vec::new, |view| view.forgettable())));
        }
    }

    /// What was looked up longest ago, children before parents: so much that an eighth of the share is free without it.
    fn forgettable(&self) -> Vec<Ino> {
        let share = self.bound.share.load(Ordering::Relaxed);
        let mut over = bytes(&self.known()).saturating_sub(share - share / 8);
        let (now, mut all) = (now(), Vec::new());
        self.nodes.used(|used, ino, dir| all.push((now.wrapping_sub(used), What::Node { ino, dir })));
        self.slots.used(|used, slot| all.push((now.wrapping_sub(used), What::Slot(slot.clone()))));
        all.sort_unstable_by_key(|(age, _)| std::cmp::Reverse(*age));
        let (mut files, mut dirs, mut asked) = (Vec::new(), Vec::new(), 0);
        for (_, what) in all {
            if over == 0 || files.len() + dirs.len() >= ROUND {
                break;
            }
            asked += 1;
            match what {
                What::Node { ino, dir } => {
                    over = over.saturating_sub(NODE);
                    if dir { dirs.push(ino) } else { files.push(ino) }
                }
                What::Slot(slot) => {
                    over = over.saturating_sub(SLOT);
                    self.slots.asked(&slot, now);
                    files.extend(self.records_of(&slot));
                }
            }
        }
        self.nodes.asked(&files);
        self.nodes.asked(&dirs);
        self.bound.note(asked);
        // A directory is looked up before what is in it.
        files.extend(dirs.into_iter().rev());
        files
    }

    /// The numbers that the kernel may know of an entry, children before parents.
    pub(super) fn records_of(&self, slot: &Slot) -> Vec<Ino> {
        // Breadth-first order backwards.
        (0..=slot.highest()).rev().map(|record| ino::sealed(slot.number, record)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::ffi::{OsStr, OsString};
    use std::time::Duration;

    use super::super::{Caller, Kernel, Top, ViewOptions, When};
    use super::*;
    use crate::cache::{Cache, LeaseKind, Limits, SealRequest, TaskFacts};

    const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 1 };

    type Choose = Box<dyn FnOnce() -> Vec<Ino> + Send>;

    /// Has what it was told last, and forgets what is not in use when it is asked to.
    #[derive(Default)]
    struct Memory {
        told: Mutex<Vec<Choose>>,
        known: Mutex<HashMap<Ino, u64>>,
        in_use: Mutex<HashSet<Ino>>,
    }

    impl Kernel for Arc<Memory> {
        fn prune(&self, _: Option<Top>, _: Vec<Ino>) {}
        fn attributes_changed(&self, _: &[Ino]) {}
        fn names_changed(&self, _: Vec<Ino>, _: When) {}
        fn content_changed(&self, _: Ino) {}
        fn forget(&self, choose: Choose) {
            self.told.lock().push(choose);
        }
    }

    impl Memory {
        fn look_up(&self, view: &View, dir: Ino, name: &str) -> Ino {
            let found = view.lookup(CALLER, dir, OsStr::new(name)).unwrap();
            *self.known.lock().entry(found.attr.ino).or_default() += 1;
            found.attr.ino
        }

        /// Does what it was asked for; how many inodes it forgot.
        fn obey(&self, view: &View) -> usize {
            let told = std::mem::take(&mut *self.told.lock());
            let inos: Vec<_> = told.into_iter().flat_map(|choose| choose()).collect();
            let unused = |ino: &Ino| !self.in_use.lock().contains(ino);
            let gone =
                inos.iter().filter(|ino| unused(ino)).filter_map(|ino| self.known.lock().remove_entry(ino));
            gone.map(|(ino, n)| view.forget(ino, n)).count()
        }

        /// Looks after the view until no more is known than it may be.
        fn settle(&self, view: &View) {
            let end = Instant::now() + Duration::from_secs(60);
            while bytes(&view.known()) > view.bound.share.load(Ordering::Relaxed) {
                assert!(Instant::now() < end, "{:?}", view.known());
                view.bound_known();
                self.obey(view);
                std::thread::yield_now();
            }
        }
    }

    /// What is looked up after this is younger than what was before.
    fn next_moment() {
        let before = now();
        while now() == before {
            std::thread::yield_now();
        }
    }

    fn fixture() -> (tempfile::TempDir, Arc<View>, Arc<Memory>) {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { memory: "34M".parse().unwrap(), ..Limits::default() };
        let cache = Cache::open(&dir.path().join("store"), limits).unwrap();
        let view = View::new(cache, ViewOptions::default()).unwrap();
        let memory = Arc::new(Memory::default());
        view.attach(Box::new(memory.clone()));
        (dir, view, memory)
    }

    #[test]
    fn of_a_large_draft_the_oldest_is_forgotten_and_found_again_under_its_number() {
        let (_dir, view, kernel) = fixture();
        let top = view.mkdir(CALLER, ino::WORK, OsStr::new("w"), 0o755).unwrap().attr.ino;
        kernel.known.lock().insert(top, 1);
        let make = |n: u32| {
            let name = OsString::from(format!("f{n}"));
            let made = view.mknod(CALLER, top, &name, libc::S_IFREG | 0o644, 0).unwrap().attr.ino;
            kernel.known.lock().insert(made, 1);
            made
        };
        let share = view.bound.share.load(Ordering::Relaxed);
        let many = (3 * share / NODE) as u32;
        let used = make(0);
        kernel.in_use.lock().extend([top, used]);
        let first = make(1);
        next_moment();
        for n in 2..many - 1 {
            make(n);
        }
        next_moment();
        make(many - 1);
        assert!(bytes(&view.known()) > share);
        kernel.settle(&view);
        assert!(bytes(&view.known()) > share / 2, "no more than necessary");
        assert!(view.nodes.draft_node(first).is_none(), "the oldest go");
        let newest = kernel.look_up(&view, top, &format!("f{}", many - 1));
        assert_eq!(kernel.known.lock()[&newest], 2, "the newest stay");
        assert_eq!(view.getattr(used).unwrap().attr.ino, used, "what is in use stays");
        assert_eq!(kernel.look_up(&view, top, "f1"), first);
        assert_eq!(view.getattr(first).unwrap().attr.ino, first);
        // All is forgotten.
        kernel.in_use.lock().clear();
        let known: Vec<_> = kernel.known.lock().drain().collect();
        known.into_iter().for_each(|(ino, n)| view.forget(ino, n));
        assert_eq!(view.known(), Known::default());
    }

    #[test]
    fn of_many_entries_the_oldest_are_forgotten_and_found_again_under_their_numbers() {
        let (dir, view, kernel) = fixture();
        let share = view.bound.share.load(Ordering::Relaxed);
        let many = 2 * share / SLOT;
        std::fs::create_dir(dir.path().join("tree")).unwrap();
        std::fs::write(dir.path().join("tree/f"), "content").unwrap();
        for n in 0..many {
            let key = format!("key-{n}").parse().unwrap();
            let request = SealRequest { key, origin: Default::default(), inferred: false, replace: false };
            view.cache
                .put_dir(&dir.path().join("tree"), &TaskFacts::default(), [None, None], request)
                .unwrap();
        }
        let look_up = |n: usize| {
            let entry = kernel.look_up(&view, ino::ROOT, &format!("key-{n}"));
            let outputs = kernel.look_up(&view, entry, "outputs");
            (entry, outputs, kernel.look_up(&view, outputs, "f"))
        };
        let first = look_up(0);
        next_moment();
        for n in 1..many - 1 {
            look_up(n);
        }
        next_moment();
        look_up(many - 1);
        kernel.settle(&view);
        assert!(matches!(view.getattr(first.2), Err(super::super::VfsError::Stale)), "the oldest go, whole");
        let held = view.cache.index().entry(&"key-0".parse().unwrap()).unwrap().unwrap();
        assert!(view.cache.take_lease(held.id, LeaseKind::Hold).is_some(), "still there");
        assert_eq!(look_up(0), first);
        let again = view.known();
        look_up(many - 1);
        assert_eq!(view.known(), again, "the newest stay");
    }

    #[test]
    fn a_kernel_that_uses_all_of_it_is_asked_less_and_less() {
        let bound = Bound::new(0);
        assert!(bound.begin() && !bound.begin(), "one at a time");
        bound.note(100);
        let pause = || bound.last.lock().pause;
        assert_eq!(pause(), PAUSE);
        (0..20).for_each(|_| bound.note(100));
        assert_eq!(pause(), LONGEST);
        bound.forgot(50);
        bound.note(100);
        assert_eq!(pause(), PAUSE);
    }
}
