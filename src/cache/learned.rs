//! What was read first of an entry, so that it comes first of the next entry of its task.
//!
//! Invariants: only where the mount asks for it; what is noted is bounded, in the order in which it was first read, by paths
//! and groups, so that it means something in an entry with other contents; what cannot be noted harms nobody. Only what is read
//! in a view counts: what is fetched ahead, brought to a tier or restored does not. Must not know: what a tier is, who reads.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

use super::{Cache, Entry, Inner, LeaseKind, Result};
use crate::model::groups::GROUP;
use crate::model::{EntryKey, Manifest};

/// Groups that are noted of one entry.
const MOST: usize = 8192;
/// Bytes that they take with their paths.
const MOST_BYTES: usize = 512 << 10;
/// Entries of which something is to be noted.
const ENTRIES: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// The kernel does not say what it reads of a file that it has opened itself: all, of one of so many bytes at most.
const ORDINARY: u64 = 64 << 20;

/// A group of a file: its record, and its number.
type Read = (u32, u32);

/// What was read and is not noted yet.
pub(super) struct Learning {
    on: AtomicBool,
    /// By row ids.
    entries: Mutex<LruCache<i64, Reads>>,
}

impl Default for Learning {
    fn default() -> Self {
        Learning { on: AtomicBool::new(false), entries: Mutex::new(LruCache::new(ENTRIES)) }
    }
}

struct Reads {
    key: EntryKey,
    seen: HashSet<Read>,
    order: Vec<Read>,
    /// How many of them are noted.
    noted: usize,
}

impl Learning {
    /// Whether anything is noted from now on.
    pub fn turn(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }
}

impl Entry {
    /// These bytes of a record were read.
    pub(super) fn was_read(&self, record: u32, offset: u64, n: u64) {
        let learning = &self.cache().inner.tiers.learning;
        if n == 0 || !learning.on.load(Ordering::Relaxed) {
            return;
        }
        let mut entries = learning.entries.lock();
        let new = || {
            let (key, seen, order) = (self.key().clone(), HashSet::new(), Vec::new());
            Reads { key, seen, order, noted: 0 }
        };
        let reads = entries.get_or_insert_mut(self.id(), new);
        for group in offset / GROUP as u64..=(offset + n - 1) / GROUP as u64 {
            let read = (record, group as u32);
            if reads.order.len() < MOST && reads.seen.insert(read) {
                reads.order.push(read);
            }
        }
    }

    /// The kernel reads the file of a record from now on.
    pub(crate) fn was_opened(&self, record: u32, size: u64) {
        self.was_read(record, 0, if size <= ORDINARY { size } else { 1 });
    }

    /// What was read first of earlier entries of its task, as records and offsets here, in the order in which it shall come.
    pub(super) fn learned(&self) -> Result<Vec<(u32, u64)>> {
        let task_id = &self.row()?.task_id;
        if task_id.is_empty() {
            return Ok(Vec::new());
        }
        let (manifest, mut seen, mut reads) = (self.manifest()?, HashSet::new(), Vec::new());
        for list in self.cache().inner.index.learned(task_id)? {
            for (group, path) in decode(&list) {
                let at = u64::from(group) * GROUP as u64;
                let record = manifest.find(path).filter(|n| manifest.get(*n).is_some_and(|r| at < r.size()));
                reads.extend(record.map(|record| (record, at)).filter(|read| seen.insert(*read)));
            }
        }
        Ok(reads)
    }
}

impl Inner {
    /// Notes what was read since the last time.
    pub(super) fn note_reads(self: &Arc<Self>) {
        if !self.tiers.learning.on.load(Ordering::Relaxed) {
            return;
        }
        let mut new = Vec::new();
        for (id, reads) in self.tiers.learning.entries.lock().iter_mut() {
            if reads.noted < reads.order.len() {
                new.push((*id, reads.key.clone(), reads.order[reads.noted..].to_vec()));
                reads.noted = reads.order.len();
            }
        }
        let cache = Cache { inner: self.clone() };
        for (id, key, reads) in new {
            if let Err(e) = cache.note_read(id, &key, &reads) {
                tracing::debug!(%key, "what was read first is not noted: {e}");
            }
        }
    }
}

impl Cache {
    fn note_read(&self, id: i64, key: &EntryKey, reads: &[Read]) -> Result<()> {
        // Evicted or replaced meanwhile.
        let Some(entry) = self.entry(key, LeaseKind::Hold)?.filter(|entry| entry.id() == id) else {
            return Ok(());
        };
        let task_id = &entry.row()?.task_id;
        if task_id.is_empty() {
            return Ok(());
        }
        let more = encode(&*entry.manifest()?, reads);
        let list = move |old: Option<Vec<u8>>| joined(old.unwrap_or_default(), &more);
        Ok(self.inner.index.note_learned(task_id, key, list)?)
    }
}

/// Each is the number of the group, the length of the path below the entry, and the path.
fn encode(manifest: &Manifest, reads: &[Read]) -> Vec<u8> {
    let mut list = Vec::new();
    for (record, group) in reads {
        let path = manifest.path(*record);
        list.extend(group.to_le_bytes());
        list.extend((path.len() as u32).to_le_bytes());
        list.extend(path);
    }
    list
}

/// What is cut short ends it.
fn decode(mut list: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    std::iter::from_fn(move || {
        let (group, rest) = list.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (path, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        list = rest;
        Some((u32::from_le_bytes(*group), path))
    })
}

/// What was read now comes after what was read before, as far as there is room.
fn joined(old: Vec<u8>, more: &[u8]) -> Vec<u8> {
    let mut seen: HashSet<(u32, &[u8])> = decode(&old).collect();
    let mut list = old.clone();
    for read in decode(more) {
        let room = seen.len() < MOST && list.len() + 8 + read.1.len() <= MOST_BYTES;
        if room && seen.insert(read) {
            list.extend(read.0.to_le_bytes());
            list.extend((read.1.len() as u32).to_le_bytes());
            list.extend(read.1);
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::super::tests::{bytes, eventually};
    use super::super::tier_tests::{World, patient, read};
    use super::super::{FsckOptions, Prefetch, Reader, RestoreAs, TaskFacts, TierOptions};
    use super::*;

    fn list(reads: &[(u32, &[u8])]) -> Vec<u8> {
        let one = |(group, path): &(u32, &[u8])| {
            [&group.to_le_bytes(), &(path.len() as u32).to_le_bytes(), *path].concat()
        };
        reads.iter().flat_map(one).collect()
    }

    #[test]
    fn lists_are_joined_in_order_and_bounded() {
        let (old, more) = (list(&[(3, b"b"), (0, b"a\n")]), list(&[(0, b"c"), (3, b"b"), (1, b"a\n")]));
        let both = joined(old, &more);
        assert_eq!(both, list(&[(3, b"b"), (0, b"a\n"), (0, b"c"), (1, b"a\n")]));
        for end in 0..both.len() {
            assert!(decode(&both[..end]).count() < 4);
        }
        let many: Vec<u8> = (0..9000).flat_map(|n| list(&[(n, b"large")])).collect();
        assert_eq!(decode(&joined(joined(Vec::new(), &many), &both)).count(), MOST);
        let long: Vec<u8> = (0..MOST as u32).flat_map(|n| list(&[(n, &[b'a'; 4000])])).collect();
        assert!(joined(Vec::new(), &long).len() <= MOST_BYTES);
    }

    /// A group that is not the first of its window.
    const AT: u64 = 7 * GROUP as u64;

    fn read_in_view(entry: &Entry, name: &str, at: u64) {
        let record = entry.file(format!("outputs/{name}").as_bytes()).unwrap();
        entry.read_by(record, at, &mut [0; 10], &Reader::ANY).unwrap();
    }

    /// A world whose near cache learns, with an entry of the task `build` for each of these numbers, all different.
    fn world(numbers: std::ops::Range<u64>) -> World {
        let w = World::new();
        for n in numbers {
            let task = TaskFacts { task_id: "build".into(), ..TaskFacts::default() };
            let files = [
                ("large", bytes(5_000_000, n)),
                ("other", bytes(3_000_000, n + 50)),
                ("small", bytes(1000, n + 100)),
                ("unused", bytes(2_000_000, n + 150)),
            ];
            let name = format!("entry-{n}");
            w.send_task(&name, &w.files(&name, &files), &task);
        }
        w.attach(TierOptions { prefetch: Prefetch::Learned, ..patient() });
        w
    }

    /// S15.13 With `--prefetch learned` what was read first of a task's earlier entries comes once another one was looked up.
    #[test]
    fn what_was_read_of_earlier_entries_comes_first() {
        let w = world(1..4);
        let first = w.find("entry-1").unwrap();
        let record = |entry: &Entry, name: &str| entry.file(format!("outputs/{name}").as_bytes()).unwrap();
        assert_eq!(first.learned().unwrap(), [], "nothing was read yet");
        read_in_view(&first, "small", 0);
        read_in_view(&first, "large", AT + 5);
        read_in_view(&first, "other", 0);
        read_in_view(&first, "large", AT);
        w.near.cache.inner.note_reads();
        let order = |entry: &Entry| {
            [(record(entry, "small"), 0), (record(entry, "large"), AT), (record(entry, "other"), 0)]
        };
        assert_eq!(first.learned().unwrap(), order(&first));

        let before = w.tier.traffic();
        let second = w.find("entry-2").unwrap();
        assert_eq!(second.learned().unwrap(), order(&second));
        let here =
            |entry: &Entry, name: &str, at| entry.read_here(record(entry, name), at, &mut [0; 10]).is_ok();
        w.near.cache.inner.tiers.learning.turn(false);
        eventually("it comes", || {
            here(&second, "small", 0) && here(&second, "large", AT) && here(&second, "other", 0)
        });
        assert!(!here(&second, "large", 0) && !here(&second, "unused", 0));
        // The other group of that window was not read either.
        assert!(!here(&second, "large", AT - 1));
        let given = w.tier.traffic().given - before.given;
        assert!(given < 3 * GROUP as u64, "{given}");
        assert!(read(&second, "large").unwrap() == bytes(5_000_000, 2));

        // Nobody read the second: what is known of the first lasts, also where the index is opened anew.
        w.near.cache.inner.note_reads();
        let third = w.find("entry-3").unwrap();
        assert_eq!(third.learned().unwrap(), order(&third));
        let report =
            w.near.cache.fsck(FsckOptions { verify_data: true, ..FsckOptions::default() }, &mut |_| {});
        assert_eq!(report.unwrap().damage, []);
    }

    /// Of small contents only those that were read come, not what lies around them in their pack.
    #[test]
    fn small_contents_that_were_read_come_without_the_others() {
        let w = World::new();
        let name = |n: u64| format!("small{n:02}");
        for (key, seed) in [("entry-1", 1000), ("entry-2", 2000)] {
            let files: Vec<_> = (0..100).map(|n| (name(n), bytes(4000, seed + n))).collect();
            let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
            let task = TaskFacts { task_id: "build".into(), ..TaskFacts::default() };
            w.send_task(key, &w.files(key, &files), &task);
        }
        w.attach(TierOptions { prefetch: Prefetch::Learned, ..patient() });
        let first = w.find("entry-1").unwrap();
        [3, 50, 52].iter().for_each(|n| read_in_view(&first, &name(*n), 0));
        w.near.cache.inner.note_reads();
        let before = w.tier.traffic();
        let second = w.find("entry-2").unwrap();
        let here = |n: u64| {
            let record = second.file(format!("outputs/{}", name(n)).as_bytes()).unwrap();
            second.read_here(record, 0, &mut [0; 10]).is_ok()
        };
        eventually("they come", || here(3) && here(50) && here(52));
        assert!(!here(4) && !here(49) && !here(51));
        let given = w.tier.traffic().given - before.given;
        assert!(given < 100_000, "{given}");
        second.prefetch(&[], &Default::default()).unwrap();
        assert!((0..100).all(here), "the others come when they are asked for");
    }

    #[test]
    fn only_reading_in_a_view_is_noted_and_only_where_it_is_asked_for() {
        let w = world(1..3);
        let entry = w.find("entry-1").unwrap();
        entry.prefetch(&[], &Default::default()).unwrap();
        // As who brings it to a tier, looks for a task's history, restores it.
        read(&entry, "large").unwrap();
        entry.metadata().unwrap().unwrap();
        entry.restore(&w.near.beside("restored"), RestoreAs::Auto, false).unwrap();
        w.near.cache.inner.note_reads();
        assert_eq!(entry.learned().unwrap(), []);
        w.attach(patient());
        read_in_view(&entry, "large", 0);
        w.near.cache.inner.note_reads();
        assert_eq!(entry.learned().unwrap(), []);
        w.attach(TierOptions { prefetch: Prefetch::Learned, ..patient() });
        w.near.cache.inner.note_reads();
        assert_eq!(entry.learned().unwrap(), []);
    }
}
