//! Large contents that a tier has, fetched by groups.
//!
//! Invariants: no byte is returned or kept that was not checked against the value of its group; who reads has the groups of a
//! window come together, as far as they are not here, and who knows what will be read has that group alone come; one window is asked
//! for by one at a time. What cannot be kept on the disk is kept in memory, a few groups of it. Must not know: what a tier is.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::fetch::{Came, WINDOW, Waits, Window, share_until};
use super::flights::Flights;
use super::partial::Large;
use super::{Cache, Result};
use crate::model::BlobHash;
use crate::model::groups::{GROUP, Groups};
use crate::tier::{Object, Stored, TierError};

/// Groups in a window.
const IN_WINDOW: u64 = WINDOW / GROUP as u64;
/// Groups that are kept in memory, where there is no room on the disk.
const IN_MEMORY: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// By their numbers in a content.
type InMemory = LruCache<(BlobHash, u64), Arc<Vec<u8>>>;

/// What is being fetched, and what could only be kept in memory.
pub(super) struct Larges {
    /// By windows of contents as they are, wherever and however a tier has them.
    flights: Arc<Flights<Window, Came<Piece>>>,
    in_memory: Mutex<InMemory>,
}

impl Default for Larges {
    fn default() -> Self {
        Larges { flights: Arc::default(), in_memory: Mutex::new(LruCache::new(IN_MEMORY)) }
    }
}

/// Whole groups of a content; none when all of it has come another way.
#[derive(Default)]
struct Piece {
    start: u64,
    bytes: Vec<u8>,
}

impl Piece {
    /// Fills the beginning of `buf` from what there is of these bytes; how many that were.
    fn fill(&self, at: u64, buf: &mut [u8]) -> usize {
        let from = at.checked_sub(self.start).and_then(|from| usize::try_from(from).ok());
        let there = from.and_then(|from| self.bytes.get(from..)).unwrap_or(&[]);
        let n = there.len().min(buf.len());
        buf[..n].copy_from_slice(&there[..n]);
        n
    }
}

impl Cache {
    /// Fills `buf` from `offset` of a large content that only a tier had a moment ago; false when all of it is here now.
    pub(super) fn fetch_large(
        &self,
        stored: Stored<'_>,
        of: Large<'_>,
        offset: u64,
        buf: &mut [u8],
        waits: Waits<'_>,
    ) -> Result<bool> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let n = (GROUP - (at % GROUP as u64) as usize).min(buf.len() - done);
            if self.read_partial(of, at, &mut buf[done..done + n]).is_some() {
                done += n;
                continue;
            }
            let came = self.fetch_around(stored, of, at / GROUP as u64, waits)?;
            if came.bytes.is_empty() {
                return Ok(false);
            }
            // Nothing, where another had other groups of the window come.
            done += came.fill(at, &mut buf[done..]);
        }
        Ok(true)
    }

    /// A group, and those of its window that are not here either, unless no more is to come; kept. Whoever is at its window
    /// already may have others come.
    fn fetch_around(
        &self,
        stored: Stored<'_>,
        of: Large<'_>,
        group: u64,
        waits: Waits<'_>,
    ) -> Result<Arc<Piece>> {
        let larges = &self.inner.tiers.fetches.larges;
        let groups = Groups::checked(of.hash, of.size, of.values);
        // Another's error may be of a group that nobody wants here.
        let again = |_: &TierError| true;
        let window = (Object::Blob(of.hash, of.size), group / IN_WINDOW);
        share_until(&larges.flights, &window, waits.by, again, || {
            // It may have come since we looked.
            if let Some(there) = self.group_here(of, &groups, group) {
                return Ok(Ok(Arc::new(there)));
            }
            // Whoever had its last window come may have made a blob of it since.
            if !self.is_elsewhere(&of.hash)? {
                return Ok(Ok(Arc::default()));
            }
            let wanted = if waits.exact { group..group + 1 } else { self.lacking_around(of, &groups, group) };
            let start = groups.bytes(wanted.clone()).start;
            let check = |bytes: Vec<u8>, _| {
                let bytes = stored.groups(wanted.clone(), bytes).ok_or("a group cannot be decompressed")?;
                let right = groups.verified(wanted.clone(), &bytes).is_some();
                right.then_some(Piece { start, bytes }).ok_or("a group is not what its value says")
            };
            let (object, range) = stored.at(wanted.clone());
            let came = self.ask_for(&object, range, waits.by, &check);
            if let Ok(piece) = &came {
                waits.pay(piece.bytes.len());
                if let Err(e) = self.keep_partial(of, start, &piece.bytes) {
                    tracing::debug!("what came from a tier is kept in memory only: {e}");
                    let mut in_memory = larges.in_memory.lock();
                    for (number, bytes) in wanted.clone().zip(piece.bytes.chunks(GROUP)) {
                        in_memory.put((of.hash, number), Arc::new(bytes.to_vec()));
                    }
                    drop(in_memory);
                    self.end_ahead(&of.hash);
                }
            }
            Ok(came)
        })
    }

    /// A group that has come.
    fn group_here(&self, of: Large<'_>, groups: &Groups<'_>, group: u64) -> Option<Piece> {
        let Range { start, end } = groups.bytes(group..group + 1);
        let in_memory = self.inner.tiers.fetches.larges.in_memory.lock().get(&(of.hash, group)).cloned();
        if let Some(bytes) = in_memory {
            return Some(Piece { start, bytes: bytes.to_vec() });
        }
        let mut bytes = vec![0; (end - start) as usize];
        self.read_partial(of, start, &mut bytes)?;
        Some(Piece { start, bytes })
    }

    /// The groups around one that is not here, in its window, up to those that are.
    fn lacking_around(&self, of: Large<'_>, groups: &Groups<'_>, group: u64) -> Range<u64> {
        let window = group / IN_WINDOW * IN_WINDOW;
        let end = (window + IN_WINDOW).min(groups.count());
        let lacks = |n: &u64| {
            let in_memory = &self.inner.tiers.fetches.larges.in_memory;
            !self.has_groups(of, *n..*n + 1) && !in_memory.lock().contains(&(of.hash, *n))
        };
        let before = (window..group).rev().take_while(lacks).count() as u64;
        let after = (group + 1..end).take_while(lacks).count() as u64;
        group - before..group + 1 + after
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::super::tests::{bytes, eventually};
    use super::super::tier_tests::World;
    use super::super::{Entry, Reader};
    use super::*;
    use crate::tier::{Call, Fault};

    const BYTES: u64 = GROUP as u64;

    /// A file of a tier, and which of its groups were asked for.
    struct Far {
        w: World,
        content: Vec<u8>,
        entry: Entry,
        record: u32,
        asked: Arc<Mutex<Vec<(u64, u64)>>>,
    }

    impl Far {
        fn new() -> Far {
            let (w, content) = (World::new(), bytes(5 * WINDOW as usize + 77, 1));
            w.send_files("abcd", &[("large", content.clone())]);
            let entry = w.find("abcd").unwrap();
            let record = entry.file(b"outputs/large").unwrap();
            let far = Far { w, content, entry, record, asked: Arc::default() };
            let (_, open) = channel();
            far.answer_when(open);
            far
        }

        /// Answers wait until the other end is dropped.
        fn answer_when(&self, open: Receiver<()>) {
            let (asked, open) = (self.asked.clone(), Mutex::new(open));
            self.w.tier.set_faults(move |call| {
                if let Call::Get(Object::Blob(..), range) = call {
                    asked.lock().push((range.start / BYTES, range.end.div_ceil(BYTES)));
                    let _ = open.lock().recv();
                }
                None
            });
        }

        fn read(&self, group: u64) {
            let (mut buf, at) = ([0; 10], (group * BYTES) as usize);
            assert_eq!(self.entry.read(self.record, at as u64, &mut buf).unwrap(), 10);
            assert!(buf == self.content[at..at + 10]);
        }

        fn bring(&self, group: u64, groups: u64, who: &Reader<'_>) {
            self.entry.bring(self.record, group * BYTES, groups * BYTES, who).unwrap();
        }

        /// How many wait for the second window beside the one who has it come.
        fn waiting(&self) -> usize {
            let flights = &self.w.near.cache.inner.tiers.fetches.larges.flights;
            let object = Object::Blob(BlobHash::of(&self.content), self.content.len() as u64);
            let (flight, none) = flights.board(&(object, 1));
            assert!(none.is_none(), "somebody is at it");
            // All of them, the pilot, him who has it, and here.
            Arc::strong_count(&flight) - 4
        }

        fn asked(&self) -> Vec<(u64, u64)> {
            self.w.near.cache.wait_for_ahead(std::time::Duration::from_secs(60));
            std::mem::take(&mut self.asked.lock())
        }
    }

    #[test]
    fn what_is_here_of_a_window_does_not_come_again() {
        let r = Far::new();
        r.bring(3, 1, &Reader::EXACT);
        assert_eq!(r.asked(), [(3, 4)]);
        r.read(2);
        assert_eq!(r.asked(), [(2, 3)]);
        r.read(9);
        assert_eq!(r.asked(), [(8, 10)], "who reads has the whole window come");
        r.bring(0, 1, &Reader::EXACT);
        r.bring(0, 2, &Reader::ANY);
        assert_eq!(r.asked(), [(0, 1), (1, 2)], "all of a window comes, also where its beginning is here");
        r.entry.prefetch(&[], &Default::default()).unwrap();
        let mut rest = r.asked();
        rest.sort();
        assert_eq!(rest, [(4, 6), (6, 8), (10, 11)]);
        (0..11).for_each(|group| r.read(group));
        assert_eq!(r.asked(), []);
    }

    /// What was learned is here by groups: nobody who reads it has what is around it come.
    #[test]
    fn who_reads_a_group_that_is_here_alone_has_nothing_come() {
        let r = Far::new();
        r.bring(0, 2, &Reader::ANY);
        r.bring(2, 1, &Reader::EXACT);
        r.asked();
        assert_eq!(r.entry.read_here(r.record, 2 * BYTES, &mut [0; 10]).unwrap(), 10);
        r.read(2);
        assert_eq!(r.asked(), []);
    }

    #[test]
    fn what_cannot_be_kept_is_read_from_memory() {
        let r = Far::new();
        r.w.near.cache.inner.limits.write().size = Some(crate::model::units::Size::Bytes(1));
        assert_eq!(r.w.near.cache.usage().unwrap().available, 0);
        r.read(2);
        assert_eq!(r.asked(), [(2, 4)]);
        (2..4).for_each(|group| r.read(group));
        r.bring(5, 1, &Reader::EXACT);
        assert_eq!(r.asked(), [(5, 6)]);
        r.read(4);
        assert_eq!(r.asked(), [(4, 5)], "the other one is here");
        let (mut buf, at) = (vec![0; 3 * GROUP], 2 * GROUP + 7);
        assert_eq!(r.entry.read(r.record, at as u64, &mut buf).unwrap(), buf.len());
        assert!(buf == r.content[at..at + buf.len()]);
        assert_eq!(r.asked(), []);
    }

    #[test]
    fn who_meets_another_group_of_its_window_on_its_way_has_its_own_come() {
        let r = Far::new();
        let (closed, open) = channel();
        r.answer_when(open);
        std::thread::scope(|scope| {
            scope.spawn(|| r.bring(2, 1, &Reader::EXACT));
            eventually("it is asked for", || *r.asked.lock() == [(2, 3)]);
            let reader = scope.spawn(|| r.read(3));
            eventually("the reader waits for it", || r.waiting() == 1 || reader.is_finished());
            drop(closed);
        });
        assert_eq!(r.asked(), [(2, 3), (3, 4)]);
    }

    /// What a tier has compressed comes by groups as well, and all that is kept of it is as it was.
    #[test]
    fn compressed_contents_come_by_groups() {
        let (w, mut content) = (World::new(), bytes(5 * WINDOW as usize + 77, 1));
        // Half of each group but the fourth, of which nothing becomes smaller.
        content.chunks_mut(GROUP).enumerate().filter(|(n, _)| *n != 4).for_each(|(_, group)| {
            let half = group.len() / 2;
            group[half..].fill(7);
        });
        w.send_files("abcd", &[("large", content.clone())]);
        assert!(w.tier.paths().iter().all(|path| !path.starts_with("blobs/")), "{:?}", w.tier.paths());
        assert!(w.tier.traffic().taken < content.len() as u64 / 3 * 2);
        let entry = w.find("abcd").unwrap();
        let record = entry.file(b"outputs/large").unwrap();
        let read = |group: u64| {
            let (mut buf, at) = ([0; 10], (group * BYTES) as usize + 1000);
            entry.read(record, at as u64, &mut buf).map(|_| assert!(buf == content[at..at + 10]))
        };
        let given = || w.tier.traffic().given;
        // Whatever is wrong with what comes, nothing of it is read or kept.
        for fault in [Fault::Flips, Fault::Halves] {
            w.tier.set_faults(move |call| matches!(call, Call::Get(..)).then_some(fault));
            assert!(read(2).is_err());
        }
        w.tier.set_faults(|_| None);
        let before = given();
        read(4).unwrap();
        let window = given() - before;
        assert!(window > BYTES + BYTES / 2 && window < 2 * BYTES - BYTES / 3, "{window}");
        entry.bring(record, 7 * BYTES, BYTES, &Reader::EXACT).unwrap();
        w.near.cache.wait_for_ahead(std::time::Duration::from_secs(60));
        let before = given();
        (4..6).chain(7..8).for_each(|group| read(group).unwrap());
        assert_eq!(given(), before, "they are here");
        entry.prefetch(&[], &Default::default()).unwrap();
        (0..10).for_each(|group| read(group).unwrap());
    }
}
