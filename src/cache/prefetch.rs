//! Fetching before anybody reads: what only a tier has of an entry comes here, many windows at a time; of what was learned, groups.
//!
//! Invariants: nothing is asked for twice, and none of it counts as read; the first that fails ends it, and what came stays. In the background one entry comes
//! at a time, and a cache that closes is not held up by the next window. Must not know: what a tier is.

use std::collections::hash_map;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::fetch::{WINDOW, Waits, Window};
use super::{Cache, CacheError, Entry, LeaseKind, Reader, Result, Work, at};
use crate::model::groups::GROUP;
use crate::model::{BlobHash, EntryKey, Manifest, RecordKind};
use crate::store::{Location, StoreError};
use crate::tier::{Object, Places};

/// Windows, or groups, that are asked for at a time.
const AT_A_TIME: usize = 8;

/// What comes of an entry of a tier when it is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefetch {
    /// What says what is in it, which has to come for anything to be shown; the rest when it is read.
    #[default]
    #[serde(alias = "none")]
    Manifest,
    /// All of it, in the background.
    All,
    /// What was read first of earlier entries of its task, in the background.
    Learned,
}

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Prefetched {
    /// Contents that were not here.
    pub contents: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Keys of entries that are to come in the background.
#[derive(Default)]
pub(super) struct Coming {
    keys: Mutex<VecDeque<EntryKey>>,
    under_way: AtomicBool,
}

/// The file records at and below these paths; all where there are none.
fn files(key: &EntryKey, manifest: &Manifest, paths: &[Vec<u8>]) -> Result<Vec<u32>> {
    let is_file = |n: &u32| manifest.get(*n).is_some_and(|r| r.kind() == RecordKind::File);
    if paths.is_empty() {
        return Ok((0..manifest.records().len() as u32).filter(is_file).collect());
    }
    let no_file = |path: &[u8]| CacheError::NoFile { key: key.clone(), path: at::show(path) };
    let mut todo = Vec::new();
    for path in paths {
        todo.push(manifest.find(path).ok_or_else(|| no_file(path))?);
    }
    let mut found = Vec::new();
    while let Some(record) = todo.pop() {
        if is_file(&record) {
            found.push(record);
        } else if manifest.get(record).is_some_and(|r| r.kind() == RecordKind::Dir) {
            todo.extend(manifest.children(record));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// What is to come: of a record from an offset on, with what is around it or not, or small contents of a window of a pack.
#[derive(PartialEq, Debug)]
enum Part {
    Window(u32, u64),
    Group(u32, u64),
    Small(Window, Which),
}

/// Which small contents of a window.
#[derive(PartialEq, Debug)]
enum Which {
    All,
    These(Vec<BlobHash>),
}

/// These groups, in this order, but with those of a window that are all among them together.
fn together(groups: &[(u32, u64)]) -> Vec<Part> {
    let all: HashSet<_> = groups.iter().copied().collect();
    let (mut done, mut parts) = (HashSet::new(), Vec::new());
    for &(record, at) in groups {
        let (window, begin) = ((record, at / WINDOW), at / WINDOW * WINDOW);
        if (begin..begin + WINDOW).step_by(GROUP).all(|at| all.contains(&(record, at))) {
            parts.extend(done.insert(window).then_some(Part::Window(record, begin)));
        } else {
            parts.push(Part::Group(record, at));
        }
    }
    parts
}

impl Entry {
    /// Has what these paths below the entry hold (all of it, where there are none) come here, saying in `work` how far it is.
    pub fn prefetch(&self, paths: &[Vec<u8>], work: &Work) -> Result<Prefetched> {
        let (manifest, mut came) = (self.manifest()?, Prefetched::default());
        let files = files(self.key(), &manifest, paths)?;
        let lacking = self.lacking(&manifest, &files)?;
        for (_, size) in &lacking {
            came.contents += 1;
            came.bytes += size;
        }
        let all = |(record, size): &(u32, u64)| {
            let record = *record;
            (0..size.div_ceil(WINDOW)).map(move |n| Part::Window(record, n * WINDOW))
        };
        work.expect(came.contents, came.bytes);
        self.fetch_each(&manifest, lacking.iter().flat_map(all).collect())?;
        work.did(came.contents, came.bytes);
        Ok(came)
    }

    /// Has what was read first of earlier entries of its task come here, in that order.
    fn prefetch_learned(&self) -> Result<()> {
        let (manifest, learned) = (self.manifest()?, self.learned()?);
        let records: Vec<u32> = learned.iter().map(|(record, _)| *record).collect();
        let lacking = self.lacking(&manifest, &records)?.into_iter();
        // Of several records with one content one stands for all.
        let stand_for: HashMap<_, u32> =
            lacking.filter_map(|(n, _)| Some((manifest.get(n)?.hash()?, n))).collect();
        let mut seen = HashSet::new();
        let content = |(record, at): &(u32, u64)| {
            let record = *stand_for.get(&manifest.get(*record)?.hash()?)?;
            seen.insert((record, *at)).then_some((record, *at))
        };
        let groups: Vec<_> = learned.iter().filter_map(content).collect();
        self.fetch_each(&manifest, together(&groups))
    }

    /// Those of these file records whose contents only a tier has, each content once, with their sizes.
    fn lacking(&self, manifest: &Manifest, files: &[u32]) -> Result<Vec<(u32, u64)>> {
        let mut seen = HashSet::new();
        let contents: Vec<_> = files
            .iter()
            .filter_map(|&n| manifest.get(n).and_then(|r| Some((n, r.hash()?, r.size()))))
            .filter(|(_, hash, _)| seen.insert(*hash))
            .collect();
        let hashes: Vec<_> = contents.iter().map(|(_, hash, _)| *hash).collect();
        let rows = self.cache().inner.index.blobs(&hashes)?.into_iter();
        let elsewhere = rows.map(|row| row.is_some_and(|row| row.location == Location::Elsewhere));
        Ok(contents
            .into_iter()
            .zip(elsewhere)
            .filter(|(_, e)| *e)
            .map(|((n, _, size), _)| (n, size))
            .collect())
    }

    /// Fetches these in this order, of a pack's windows each once: with all that is in them, or what was chosen.
    fn fetch_each(&self, manifest: &Manifest, parts: Vec<Part>) -> Result<()> {
        if parts.is_empty() {
            return Ok(());
        }
        let unknown = || StoreError::Elsewhere { what: format!("the contents of {}", self.key()) };
        let places = self.cache().places_of(manifest)?.ok_or_else(unknown)?;
        let small = |part: &Part| {
            let (Part::Window(record, _) | Part::Group(record, _)) = part else { return None };
            let record = manifest.get(*record).filter(|r| r.size() <= GROUP as u64)?;
            let (object, range) = places.object(&record.hash()?)?;
            Some((record.hash()?, (object, range.start / WINDOW)))
        };
        let (mut windows, mut all) = (HashMap::new(), Vec::<Part>::new());
        for part in parts {
            let Some((hash, window)) = small(&part) else {
                all.push(part);
                continue;
            };
            match windows.entry(window) {
                hash_map::Entry::Occupied(at) => {
                    if let Part::Small(_, Which::These(chosen)) = &mut all[*at.get()] {
                        chosen.push(hash);
                    }
                }
                hash_map::Entry::Vacant(at) => {
                    at.insert(all.len());
                    all.push(match part {
                        // It brings what is around it.
                        part if !matches!(window.0, Object::Pack(..)) => part,
                        Part::Group(..) => Part::Small(window, Which::These(vec![hash])),
                        _ => Part::Small(window, Which::All),
                    });
                }
            }
        }
        self.fetch_parts(&places, &all)
    }

    fn fetch_of_pack(&self, places: &Places, window: Window, which: &Which) -> Result<()> {
        let cache = self.cache();
        let by = (Reader::ANY.by)(&cache.inner.tiers.attached().1);
        let waits = Waits { by, payer: None, exact: true, patient: true };
        // From now on some of it is here.
        cache.touch(self);
        match which {
            Which::All => cache.fetch_small(places, window, waits).map(drop),
            Which::These(chosen) => cache.fetch_chosen(places, window, chosen, waits),
        }
    }

    fn fetch_parts(&self, places: &Places, parts: &[Part]) -> Result<()> {
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let closing = || self.cache().inner.closing.load(Ordering::Relaxed);
        let fetch = || {
            while failed.lock().is_none() && !closing() {
                let came = match parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    Some(Part::Window(record, at)) => self.bring(*record, *at, WINDOW, &Reader::PATIENT),
                    Some(Part::Group(record, at)) => self.bring(*record, *at, GROUP as u64, &Reader::EXACT),
                    Some(Part::Small(window, which)) => self.fetch_of_pack(places, *window, which),
                    None => return,
                };
                if let Err(e) = came {
                    *failed.lock() = Some(e);
                }
            }
        };
        std::thread::scope(|scope| {
            // This thread is one of them, and does all of it where no other can be had.
            for _ in 1..AT_A_TIME.min(parts.len()) {
                drop(std::thread::Builder::new().spawn_scoped(scope, fetch));
            }
            fetch();
        });
        failed.into_inner().map_or(Ok(()), Err)
    }
}

impl Cache {
    /// Has an entry come in the background, as far as the mount asks for it, after those that are to come already.
    pub(super) fn prefetch_later(&self, key: &EntryKey) {
        let coming = &self.inner.tiers.coming;
        coming.keys.lock().push_back(key.clone());
        if coming.under_way.swap(true, Ordering::SeqCst) {
            return;
        }
        let cache = std::sync::Arc::downgrade(&self.inner);
        let work = move || {
            while let Some(inner) = cache.upgrade() {
                let cache = Cache { inner };
                if !cache.prefetch_next() {
                    return;
                }
            }
        };
        if let Err(e) = std::thread::Builder::new().name("prefetch".into()).spawn(work) {
            tracing::warn!("nothing is fetched ahead: {e}");
            coming.under_way.store(false, Ordering::SeqCst);
        }
    }

    /// Has the next one come; false when there is none.
    fn prefetch_next(&self) -> bool {
        let coming = &self.inner.tiers.coming;
        let next = {
            let mut keys = coming.keys.lock();
            let next = keys.pop_front().filter(|_| !self.inner.closing.load(Ordering::Relaxed));
            if next.is_none() {
                coming.under_way.store(false, Ordering::SeqCst);
            }
            next
        };
        let Some(key) = next else { return false };
        let wanted = self.inner.tiers.attached().1.prefetch;
        let came = self.entry(&key, LeaseKind::Hold).and_then(|entry| match (entry, wanted) {
            (Some(entry), Prefetch::All) => entry.prefetch(&[], &Work::default()).map(drop),
            (Some(entry), Prefetch::Learned) => entry.prefetch_learned(),
            _ => Ok(()),
        });
        if let Err(e) = came {
            tracing::info!(%key, "not all of an entry was fetched ahead: {e}");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_a_window_come_together() {
        let at = |n: u64| n * GROUP as u64;
        let groups = [(1, at(1)), (2, at(5)), (1, at(0)), (1, at(2)), (2, at(3)), (2, at(4))];
        let parts =
            [Part::Window(1, at(0)), Part::Window(2, at(4)), Part::Group(1, at(2)), Part::Group(2, at(3))];
        assert_eq!(together(&groups), parts);
    }
}
