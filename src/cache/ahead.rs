//! Reading ahead: who reads a large content of a tier in order finds here what comes next.
//!
//! Invariants: more than what is read comes only where something before it has come, at most twice as much as that and [`MOST`]
//! windows, and more when a reader has got there; nobody waits for it but who reads it; the first that fails, or cannot be kept, ends it until
//! somebody reads on. Who has it come pays for it, and nothing comes for who has no budget left. What waits to come holds no entry and keeps no cache open, and comes only while somebody else
//! holds its entry. Threads begin when they are needed, and end when
//! they are not. Must not know: what a tier is, who reads.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::{Condvar, Mutex};

use super::fetch::WINDOW;
use super::partial::Large;
use super::{Cache, Entry, HeldEntry, LeaseKind, Payer, Reader};
use crate::model::BlobHash;
use crate::model::groups::GROUP;
use crate::store::Location;

/// Windows that come because of one read.
const MOST: u64 = 8;
/// Windows that are fetched at a time, so that others are under way while one comes.
const AT_A_TIME: usize = 4;
/// Windows that are still to be fetched; what is more is left to who reads it.
const WAITING: usize = 64;
/// Contents of which it is remembered what came of them last.
const CONTENTS: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// What is to come, and what came last.
#[derive(Default)]
pub(super) struct Ahead(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

struct State {
    last: LruCache<BlobHash, Last>,
    waiting: VecDeque<Next>,
    threads: usize,
}

impl Default for State {
    fn default() -> Self {
        State { last: LruCache::new(CONTENTS), waiting: VecDeque::new(), threads: 0 }
    }
}

/// What was fetched ahead of a content last.
#[derive(Clone)]
struct Last {
    /// Who reads the first of these windows has more come.
    windows: Range<u64>,
    payer: Option<Payer>,
}

/// A window of a record, not wanted any more when nobody holds its entry.
struct Next {
    entry: Weak<HeldEntry>,
    record: u32,
    window: u64,
    payer: Option<Payer>,
}

impl Entry {
    /// Who reads these bytes of a record has what else of them is not here come at once, and what is read next as it seems. Who finds
    /// them here (`None`) need not be known: who had them come pays for what follows.
    pub(super) fn read_ahead(&self, record: u32, offset: u64, len: usize, who: Option<&Reader<'_>>) {
        let elsewhere = Some(Location::Elsewhere);
        let Some(loaded) = self.0.loaded.get().filter(|l| l.location(record) == elsewhere) else { return };
        let Ok((hash, size)) = self.blob(&loaded.manifest, record) else { return };
        let of = Large { hash, size, values: loaded.manifest.groups(record) };
        // What has no groups comes as a whole, or with its neighbours.
        if of.values.is_empty() || offset >= size || len == 0 {
            return;
        }
        let end = offset.saturating_add(len as u64).min(size);
        // Of what is read, what is read of it: groups may be here alone.
        let here = |window: u64| {
            let (from, to) = (offset.max(window * WINDOW), end.min((window + 1) * WINDOW));
            match from < to {
                true => self.cache().has_groups(of, from / GROUP as u64..to.div_ceil(GROUP as u64)),
                false => self.cache().has_window(of, window),
            }
        };
        let tiers = &self.cache().inner.tiers;
        let read = offset / WINDOW..end.div_ceil(WINDOW);
        let little = (len as u64) < WINDOW;
        let Last { windows, payer } = tiers.ahead.0.follow(&hash, (read, little), who, &here);
        if let (Some(payer), Some(budget)) = (&payer, tiers.attached().1.scan_budget)
            && payer.has_spent(budget)
        {
            return;
        }
        let next: Vec<u64> = windows.take_while(|n| n * WINDOW < size).filter(|n| !here(*n)).collect();
        tiers.ahead.0.fetch(self, record, &next, payer);
    }
}

impl Cache {
    /// Has no more come ahead of this content until something of it is kept again.
    pub(super) fn end_ahead(&self, hash: &BlobHash) {
        let mut state = self.inner.tiers.ahead.0.state.lock();
        state.last.pop(hash);
        state.waiting.clear();
    }

    /// Waits until nothing is fetched ahead, for so long at most.
    pub(super) fn wait_for_ahead(&self, most: Duration) {
        let (shared, by) = (&self.inner.tiers.ahead.0, Instant::now() + most);
        let mut state = shared.state.lock();
        while state.threads > 0 && !shared.ended.wait_until(&mut state, by).timed_out() {}
    }
}

impl Shared {
    /// What shall come, some of which may be here, when these windows of a content are read, or a little of them, and who pays for it.
    fn follow(
        &self,
        hash: &BlobHash,
        (read, little): (Range<u64>, bool),
        who: Option<&Reader<'_>>,
        here: &dyn Fn(u64) -> bool,
    ) -> Last {
        let last = self.state.lock().last.get(hash).cloned();
        let payer =
            who.map_or_else(|| last.as_ref().and_then(|last| last.payer.clone()), |who| who.payer.clone());
        let (next, length) = match last.map(|last| last.windows).filter(|last| read.contains(&last.start)) {
            Some(last) => (last.end.max(read.end), 2 * (last.end - last.start)),
            None => {
                let Some(lacks) = read.clone().find(|n| !here(*n)) else {
                    return Last { windows: 0..0, payer };
                };
                // Two windows for a little are enough.
                let enough = little && read.end - lacks > 1;
                if enough || !lacks.checked_sub(1).is_some_and(here) {
                    return Last { windows: lacks + 1..read.end, payer };
                }
                // Who reads here and there meets what is here, too.
                (read.end, 1)
            }
        };
        let windows = next..next + length.min(MOST);
        let new = Last { windows: windows.clone(), payer: payer.clone() };
        self.state.lock().last.put(*hash, new);
        Last { windows: read.start + 1..windows.end, payer }
    }

    fn fetch(self: &Arc<Self>, entry: &Entry, record: u32, windows: &[u64], payer: Option<Payer>) {
        let mut state = self.state.lock();
        let same = |next: &Next| next.record == record && next.entry.as_ptr() == Arc::as_ptr(&entry.0);
        for &window in windows {
            let waits = state.waiting.iter().any(|next| next.window == window && same(next));
            if !waits && state.waiting.len() < WAITING {
                let (entry, payer) = (Arc::downgrade(&entry.0), payer.clone());
                state.waiting.push_back(Next { entry, record, window, payer });
            }
        }
        while state.threads < AT_A_TIME.min(state.waiting.len()) {
            let shared = self.clone();
            let work = move || while shared.fetch_next() {};
            if let Err(e) = std::thread::Builder::new().name("ahead".into()).spawn(work) {
                tracing::warn!("nothing is read ahead: {e}");
                state.waiting.clear();
                return;
            }
            state.threads += 1;
        }
    }

    /// Fetches what is next; false when there is nothing more.
    fn fetch_next(&self) -> bool {
        let mut state = self.state.lock();
        let Some(Next { entry, record, window, payer }) = state.waiting.pop_front() else {
            state.threads -= 1;
            self.ended.notify_all();
            return false;
        };
        // Under a lease of its own, or those who fetch would be who wants more for each other.
        let entry = entry.upgrade().map(|theirs| Entry(theirs).held_as(LeaseKind::Hold));
        drop(state);
        let Some(entry) = entry else { return true };
        let closing = entry.cache().inner.closing.load(Ordering::Relaxed);
        let bring = || entry.bring(record, window * WINDOW, WINDOW, &Reader::of(payer));
        let came = !closing
            && match catch_unwind(AssertUnwindSafe(bring)) {
                Ok(Ok(())) => true,
                Ok(Err(e)) => {
                    tracing::debug!(key = %entry.key(), "nothing more is read ahead: {e}");
                    false
                }
                Err(_) => {
                    tracing::error!("reading ahead panicked");
                    false
                }
            };
        if !came {
            self.state.lock().waiting.clear();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::super::TierOptions;
    use super::super::tests::{bytes, eventually};
    use super::super::tier_tests::{World, patient};
    use super::*;
    use crate::tier::{Call, Fault, Object};

    /// A cache whose tier has one file of forty windows and some bytes.
    struct Far {
        w: World,
        content: Vec<u8>,
        entry: Entry,
        record: u32,
        asked: Arc<Mutex<Vec<u64>>>,
    }

    impl Far {
        fn new() -> Far {
            let (w, content) = (World::new(), bytes(40 * WINDOW as usize + 77, 1));
            w.send_files("abcd", &[("large", content.clone())]);
            let entry = w.find("abcd").unwrap();
            let record = entry.file(b"outputs/large").unwrap();
            let r = Far { w, content, entry, record, asked: Arc::default() };
            r.set_faults(|_| None);
            r
        }

        /// What goes wrong with asking for a window.
        fn set_faults(&self, choose: impl Fn(u64) -> Option<Fault> + Send + Sync + 'static) {
            let asked = self.asked.clone();
            self.w.tier.set_faults(move |call| match call {
                Call::Get(Object::Blob(..), range) => {
                    asked.lock().push(range.start / WINDOW);
                    choose(range.start / WINDOW)
                }
                _ => None,
            });
        }

        fn read(&self, window: u64, len: u64) -> super::super::Result<()> {
            let (at, mut buf) = ((window * WINDOW) as usize, vec![0; len as usize]);
            let n = self.entry.read(self.record, at as u64, &mut buf)?;
            assert!(buf[..n] == self.content[at..at + n] && n > 0, "window {window}");
            Ok(())
        }

        /// The windows that were asked for meanwhile.
        fn asked(&self) -> Vec<u64> {
            self.w.near.cache.wait_for_ahead(Duration::from_secs(60));
            let mut asked = std::mem::take(&mut *self.asked.lock());
            asked.sort();
            asked
        }

        /// The windows that are asked for because some of this one is read.
        fn step(&self, window: u64) -> Vec<u64> {
            self.read(window, 10).unwrap();
            self.asked()
        }
    }

    /// S15.21 Who reads a large file in order that only a tier has finds more and more of it here already.
    #[test]
    fn who_reads_in_order_finds_more_and_more_here() {
        let r = Far::new();
        let given = r.w.traffic(|| {
            assert_eq!(r.step(0), [0]);
            assert_eq!(r.step(1), [1, 2]);
            assert_eq!(r.step(2), [3, 4]);
            assert_eq!(r.step(3), [5, 6, 7, 8]);
            assert_eq!(r.step(4), [0; 0]);
            assert_eq!(r.step(5), (9..17).collect::<Vec<_>>());
            let of_all = |n| r.step(n).len();
            assert_eq!((6..9).map(of_all).sum::<usize>(), 0);
            assert_eq!(r.step(9), (17..25).collect::<Vec<_>>(), "no more at a time than that");
            assert_eq!((10..=40).map(of_all).sum::<usize>(), 41 - 25, "each once, to the end");
        });
        assert_eq!(given.given, r.content.len() as u64);
    }

    #[test]
    fn who_reads_in_view_of_a_kernel_does_too() {
        let r = Far::new();
        let far = |window| {
            let payer = r.w.near.cache.payer(std::process::id(), &r.entry).unwrap();
            r.entry.read_by(r.record, window * WINDOW, &mut [0; 10], &Reader::of(payer)).unwrap();
            r.asked()
        };
        let near = |window| {
            r.entry.read_here(r.record, window * WINDOW, &mut [0; 10]).unwrap();
            r.asked()
        };
        // An entry counts as much as 8 windows.
        let budget = 8 * WINDOW + 16 * WINDOW;
        r.w.attach(TierOptions { scan_budget: Some(budget), ..patient() });
        assert_eq!((far(7), far(8)), (vec![7], vec![8, 9]));
        assert_eq!(near(9), [10, 11], "what is here leads on");
        assert_eq!(near(10), [12, 13, 14, 15]);
        assert_eq!(near(12).len(), 8, "and is paid for, as far as there was something left");
        assert_eq!(near(16), [0; 0]);
        assert!(r.w.near.cache.payer(std::process::id(), &r.entry).is_err());
    }

    #[test]
    fn who_reads_here_and_there_has_nothing_come_but_that() {
        let r = Far::new();
        for window in [30, 10, 20, 35, 5, 15, 25, 9, 29, 19] {
            assert_eq!(r.step(window), [window]);
        }
        // All of what is read comes at once.
        r.read(0, 3 * WINDOW).unwrap();
        assert_eq!(r.asked(), [0, 1, 2]);
        // A little that lies in two windows has no third one come, though the one before them is here.
        let across = |window: u64| {
            let mut buf = [0; 4096];
            assert_eq!(r.entry.read(r.record, window * WINDOW - 100, &mut buf).unwrap(), 4096);
            r.asked()
        };
        assert_eq!(across(12), [11, 12]);
        // Who reads in order in pieces of any size comes to the next window so.
        assert_eq!(across(13), [13, 14]);
    }

    #[test]
    fn nothing_more_comes_when_nobody_holds_the_entry() {
        let r = Far::new();
        (0..5).for_each(|n| drop(r.step(n)));
        let (open, closed) = channel::<()>();
        let closed = Mutex::new(closed);
        // All wait until the other end is dropped.
        r.set_faults(move |_| closed.lock().recv().err().and(None));
        r.read(5, 10).unwrap();
        eventually("as many as may be are under way", || r.asked.lock().len() == AT_A_TIME);
        let Far { w, entry, asked, .. } = r;
        drop(entry);
        drop(open);
        w.near.cache.wait_for_ahead(Duration::from_secs(60));
        assert_eq!(asked.lock().len(), AT_A_TIME);
    }

    #[test]
    fn what_cannot_be_kept_does_not_come_again_and_again() {
        let r = Far::new();
        (0..6).for_each(|n| drop(r.step(n)));
        r.w.near.cache.inner.limits.write().size = Some(crate::model::units::Size::Bytes(1));
        assert_eq!(r.w.near.cache.usage().unwrap().available, 0);
        let mut asked: Vec<u64> = (6..=40).flat_map(|n| r.step(n)).collect();
        asked.sort();
        let all = asked.len();
        asked.dedup();
        assert_eq!(asked.len(), all, "each once: {asked:?}");
        assert!(asked.len() >= 41 - 17, "what was here may have gone: {asked:?}");
    }

    #[test]
    fn what_fails_ends_it() {
        let r = Far::new();
        r.set_faults(|window| (window >= 12).then_some(Fault::Flips));
        (0..8).for_each(|n| drop(r.step(n)));
        // Whatever was under way beside the first that failed.
        assert!(r.step(8).len() <= AT_A_TIME);
        assert!(r.read(12, 10).is_err());
        r.set_faults(|_| None);
        r.asked();
        (9..=40).for_each(|n| r.read(n, 10).unwrap());
    }
}
