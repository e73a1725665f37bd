//! Listings without handles: of directories that are, or were, in a draft.
//!
//! Nothing tells when the kernel begins a listing of such a directory or ends it, and what it says of where it goes
//! on must mean the same whatever happens meanwhile. So a name's position is computed from the name alone: it
//! stays while others come and go, when the draft is sealed, and whatever file system is below.
//! The names of the directories that are just being listed are kept, so that a page is a search in them; those that
//! are not kept any more are read again. Many listings never come to their end (`ls | head`), so what is kept is
//! bounded in names, too.

use std::hash::{DefaultHasher, Hasher};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

use super::types::{DirItem, Ino};

/// Directories whose names are kept; more can be listed at once.
const KEPT: NonZeroUsize = NonZeroUsize::new(16).expect("16 is not zero");

/// Names kept of all of them, but for the directory whose listing began last; each is some 80 bytes of memory.
const KEPT_NAMES: usize = 1 << 18;

/// Items given at a time.
pub(super) const PAGE: usize = 512;

/// Names of directories that are being listed, in the order of their positions.
pub(super) struct Listings(Mutex<Kept>);

struct Kept {
    of: LruCache<Ino, Arc<[DirItem]>>,
    names: usize,
}

impl Default for Listings {
    fn default() -> Self {
        Self(Mutex::new(Kept { of: LruCache::new(KEPT), names: 0 }))
    }
}

impl Listings {
    /// The names as they were when the listing that was begun last began.
    pub fn get(&self, dir: Ino) -> Option<Arc<[DirItem]>> {
        self.0.lock().of.get(&dir).cloned()
    }

    /// Keeps the names of a listing that begins.
    pub fn keep(&self, dir: Ino, names: Arc<[DirItem]>) {
        // Dropped after the lock.
        let mut gone = Vec::new();
        let mut kept = self.0.lock();
        kept.names += names.len();
        gone.extend(kept.of.push(dir, names));
        kept.names -= gone.iter().map(|(_, old)| old.len()).sum::<usize>();
        while kept.names > KEPT_NAMES
            && kept.of.len() > 1
            && let Some(oldest) = kept.of.pop_lru()
        {
            kept.names -= oldest.1.len();
            gone.push(oldest);
        }
        drop(kept);
    }

    /// The listing is at its end, or its names are not true any more.
    pub fn forget(&self, dir: Ino) {
        let mut kept = self.0.lock();
        let old = kept.of.pop(&dir);
        kept.names -= old.as_ref().map_or(0, |old| old.len());
        drop(kept);
        drop(old);
    }
}

/// The same for the same name, between 1 and 2⁶².
fn position(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    (hasher.finish() >> 2) + 1
}

/// Puts names in the order of their positions and sets these. Of two names with the same position, of which a
/// directory of a million names has one in ten million cases, one moves on.
pub(super) fn in_order(mut names: Vec<DirItem>) -> Arc<[DirItem]> {
    names.iter_mut().for_each(|i| i.next = position(&i.name));
    names.sort_unstable_by(|a, b| (a.next, &a.name).cmp(&(b.next, &b.name)));
    let mut last = 0;
    for item in &mut names {
        item.next = item.next.max(last + 1);
        last = item.next;
    }
    names.into()
}

/// What comes after a position.
pub(super) fn page_after(names: &[DirItem], offset: u64) -> Vec<DirItem> {
    let from = names.partition_point(|i| i.next <= offset);
    names[from..].iter().take(PAGE).cloned().collect()
}

/// What a kernel may remember of a directory's names.
///
/// It remembers a listing from the first page that it is given to the next change of the directory that it makes itself,
/// or whose time it sees. Of others it must be told; and what was told while a page was on its way to it is
/// told again when the listing is at its end, because only then it counts.
#[derive(Default)]
pub(super) struct Shown(AtomicU8);

const NOTHING: u8 = 0;
const SHOWN: u8 = 1;
/// Shown, and not true any more.
const CHANGED: u8 = 2;

impl Shown {
    /// Names are about to be given to the kernel.
    pub fn showing(&self) {
        let _ = self.0.compare_exchange(NOTHING, SHOWN, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The names are others now: whether the kernel may remember the old ones.
    pub fn changed(&self) -> bool {
        let known = |state| (state != NOTHING).then_some(CHANGED);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, known).is_ok()
    }

    /// A listing is at its end: whether the kernel may have taken names for true that are not any more.
    pub fn at_end(&self) -> bool {
        // Another listing may be on its way.
        self.0.compare_exchange(CHANGED, SHOWN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::Kind;

    fn named(names: impl Iterator<Item = usize>) -> Vec<DirItem> {
        let item =
            |n: usize| DirItem { name: format!("f{n}").into_bytes(), kind: Kind::File, ino: 1, next: 0 };
        names.map(item).collect()
    }

    #[test]
    fn positions_stay_while_names_come_and_go() {
        let before = in_order(named(0..3000));
        assert!(before.windows(2).all(|w| w[0].next < w[1].next));
        assert!(before.iter().all(|i| (1..=(1 << 62) + 1).contains(&i.next)));
        let after = in_order(named((0..6000).step_by(2)));
        let (mut seen, mut at) = (Vec::new(), 0);
        for round in 0.. {
            let page = page_after(if round < 2 { &before } else { &after }, at);
            let Some(last) = page.last() else { break };
            at = last.next;
            seen.extend(page);
        }
        let stays =
            |i: &&DirItem| before.iter().any(|b| b.name == i.name) && after.iter().any(|a| a.name == i.name);
        let mut stayed: Vec<_> = seen.iter().filter(stays).map(|i| &i.name).collect();
        assert_eq!(stayed.len(), 1500);
        stayed.sort_unstable();
        stayed.dedup();
        assert_eq!(stayed.len(), 1500, "each once");
    }

    #[test]
    fn listings_that_never_end_take_up_a_bounded_amount_of_memory() {
        let listings = Listings::default();
        let names = |n| in_order(named(0..n));
        let count = |listings: &Listings| {
            let kept = listings.0.lock();
            assert_eq!(kept.names, kept.of.iter().map(|(_, names)| names.len()).sum::<usize>());
            kept.names
        };
        (1..100).for_each(|dir| listings.keep(dir, names(5)));
        assert_eq!(count(&listings), KEPT.get() * 5);
        (0..3).for_each(|_| listings.keep(99, names(7)));
        assert_eq!(count(&listings), (KEPT.get() - 1) * 5 + 7);
        listings.forget(98);
        listings.forget(98);
        assert_eq!(count(&listings), (KEPT.get() - 2) * 5 + 7);
        listings.keep(200, names(KEPT_NAMES - 3));
        assert_eq!(count(&listings), KEPT_NAMES - 3, "nothing else fits beside it");
        listings.keep(201, names(KEPT_NAMES + 1));
        assert!(listings.get(201).is_some() && listings.get(200).is_none(), "the newest is kept in any case");
        listings.keep(202, names(1));
        assert!(listings.get(202).is_some() && listings.get(201).is_none());
        listings.forget(202);
        assert_eq!(count(&listings), 0);
    }

    #[test]
    fn names_with_one_position_are_both_listed() {
        // The same name twice is the nearest thing to such a pair.
        let names = in_order(named([7, 7, 8].into_iter()));
        assert!(names.windows(2).all(|w| w[0].next < w[1].next));
        let (mut at, mut count) = (0, 0);
        while let Some(first) = page_after(&names, at).first() {
            (at, count) = (first.next, count + 1);
        }
        assert_eq!(count, 3);
    }

    #[test]
    fn a_change_is_told_when_it_happens_and_at_the_end() {
        let shown = Shown::default();
        assert!(!shown.changed(), "nothing is remembered");
        shown.showing();
        assert!(!shown.at_end());
        assert!(shown.changed());
        assert!(shown.changed(), "by now a part of it may be true");
        shown.showing();
        assert!(shown.at_end());
        assert!(!shown.at_end());
    }
}
