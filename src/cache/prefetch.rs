//! Fetching before anybody reads: what only a tier has of an entry comes here, many windows at a time.
//!
//! Invariants: each window is asked for once; the first that fails ends it, and what came stays. In the background one entry comes
//! at a time, and a cache that closes is not held up by the next window. Must not know: what a tier is.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::fetch::WINDOW;
use super::{Cache, CacheError, Entry, LeaseKind, Result, Work, at};
use crate::model::groups::GROUP;
use crate::model::{EntryKey, Manifest, RecordKind};
use crate::store::{Location, StoreError};

/// Windows that are asked for at a time.
const AT_A_TIME: usize = 8;

/// What comes of an entry of a tier when it is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefetch {
    /// What says what is in it; the rest when it is read.
    #[default]
    Manifest,
    /// All of it, in the background.
    All,
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

impl Entry {
    /// Has what these paths below the entry hold (all of it, where there are none) come here, saying in `work` how far it is.
    pub fn prefetch(&self, paths: &[Vec<u8>], work: &Work) -> Result<Prefetched> {
        let (manifest, mut came) = (self.manifest()?, Prefetched::default());
        let mut seen = HashSet::new();
        let contents: Vec<_> = files(self.key(), &manifest, paths)?
            .into_iter()
            .filter_map(|n| manifest.get(n).and_then(|r| Some((n, r.hash()?, r.size()))))
            .filter(|(_, hash, _)| seen.insert(*hash))
            .collect();
        let hashes: Vec<_> = contents.iter().map(|(_, hash, _)| *hash).collect();
        let rows = self.cache().inner.index.blobs(&hashes)?;
        let mut places = None;
        // Where a window begins: a record, an offset in it, and how much of it comes.
        let (mut windows, mut packs) = (Vec::new(), HashSet::new());
        for ((record, hash, size), row) in contents.into_iter().zip(rows) {
            if row.is_none_or(|row| row.location != Location::Elsewhere) {
                continue;
            }
            came.contents += 1;
            came.bytes += size;
            let places = match &places {
                Some(places) => places,
                None => {
                    let unknown = || StoreError::Elsewhere { what: format!("blob {hash}") };
                    places.insert(self.cache().places_of(&manifest)?.ok_or_else(unknown)?)
                }
            };
            match places.object(&hash) {
                Some((object, range)) if size <= GROUP as u64 => {
                    if packs.insert((object, range.start / WINDOW)) {
                        windows.push((record, 0));
                    }
                }
                _ => windows.extend((0..size.div_ceil(WINDOW)).map(|n| (record, n * WINDOW))),
            }
        }
        work.expect(came.contents, came.bytes);
        self.fetch_windows(&windows)?;
        work.did(came.contents, came.bytes);
        Ok(came)
    }

    fn fetch_windows(&self, windows: &[(u32, u64)]) -> Result<()> {
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let closing = || self.cache().inner.closing.load(Ordering::Relaxed);
        let fetch = || {
            while failed.lock().is_none() && !closing() {
                let Some((record, at)) = windows.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                // A byte brings all of its window.
                if let Err(e) = self.read(*record, *at, &mut [0]) {
                    *failed.lock() = Some(e);
                }
            }
        };
        std::thread::scope(|scope| (0..AT_A_TIME.min(windows.len())).for_each(|_| drop(scope.spawn(fetch))));
        failed.into_inner().map_or(Ok(()), Err)
    }
}

impl Cache {
    /// Has all of an entry come in the background, after those that are to come already.
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
        let came = self.entry(&key, LeaseKind::Hold).and_then(|entry| match entry {
            Some(entry) => entry.prefetch(&[], &Work::default()).map(drop),
            None => Ok(()),
        });
        if let Err(e) = came {
            tracing::info!(%key, "not all of an entry was fetched ahead: {e}");
        }
        true
    }
}
