//! The first look below a large entry: single records are read without the manifest as a whole.
//!
//! Invariants: an entry whose manifest is in memory is never looked at this way; what is not found out
//! this way (`None`) the manifest must say, which also is who reports damage. What is kept for
//! this is bounded. Must not know: what is asked for an entry's sake.

use std::fs::File;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::{Entry, Result};
use crate::model::manifest::{Child, Looks, Peek};
use crate::model::{Manifest, ManifestHash};
use crate::store::{Location, Parts};

/// Entries with fewer files are not worth it.
const FROM_FILES: u64 = 2000;
/// Lists of groups of larger contents are better kept than read for every piece.
const MOST_CONTENT: u64 = 16 << 20;
/// Most bytes that are kept of one manifest.
const EACH: usize = 1 << 20;
/// Manifests looked at this way at a time, if there is memory for them.
const MOST: usize = 16;

/// The manifests that are being looked at.
pub(super) struct Peeks {
    all: Mutex<LruCache<ManifestHash, Arc<Peek<Parts>>>>,
    most: usize,
}

impl Peeks {
    /// Room for `bytes`, but for one at least.
    pub fn new(bytes: usize) -> Peeks {
        Peeks { all: Mutex::new(LruCache::unbounded()), most: (bytes / EACH).clamp(1, MOST) }
    }

    fn keep(&self, hash: ManifestHash, peek: Arc<Peek<Parts>>) {
        let mut all = self.all.lock();
        all.put(hash, peek);
        let old = if all.len() > self.most { all.pop_lru() } else { None };
        drop(all);
        drop(old);
    }

    /// Its manifest is in memory, or gone.
    pub fn forget(&self, hash: &ManifestHash) {
        let old = self.all.lock().pop(hash);
        drop(old);
    }
}

impl Entry {
    fn peek(&self) -> Option<Arc<Peek<Parts>>> {
        let (row, inner) = (self.row().ok()?, &self.cache().inner);
        if row.files < FROM_FILES || inner.loaded.get(&row.manifest).is_some() {
            return None;
        }
        if let Some(there) = inner.peeks.all.lock().get(&row.manifest) {
            return Some(there.clone());
        }
        let new = Arc::new(inner.store.peek_manifest(&row.manifest)?);
        inner.peeks.keep(row.manifest, new.clone());
        Some(new)
    }

    /// What a record looks like; `None` when there is no such record.
    pub fn looks(&self, record: u32) -> Result<Option<Looks>> {
        self.peek_or_load(|p| p.looks(record), |m| m.looks(record))
    }

    /// The child of the directory `dir` called `name`; `None` when there is no record `dir`.
    pub fn child(&self, dir: u32, name: &[u8]) -> Result<Option<Child>> {
        self.peek_or_load(|p| p.child(dir, name), |m| m.child(dir, name))
    }

    fn peek_or_load<T>(
        &self,
        at_first: impl FnOnce(&Peek<Parts>) -> Option<T>,
        then: impl FnOnce(&Manifest) -> Option<T>,
    ) -> Result<Option<T>> {
        if let Some(loaded) = self.0.loaded.get() {
            return Ok(then(&loaded.manifest));
        }
        match self.peek().and_then(|peek| at_first(&peek)) {
            Some(known) => Ok(Some(known)),
            None => Ok(then(&self.loaded()?.manifest)),
        }
    }

    /// As `read`, of an entry that is not in memory: a file that lies where it lay.
    pub(super) fn read_peeking(&self, record: u32, offset: u64, buf: &mut [u8]) -> Option<usize> {
        let peek = self.peek()?;
        let r = peek.record(record).filter(|r| r.size() <= MOST_CONTENT)?;
        let (groups, at) = (peek.groups(record)?, peek.bytes().location(record)?);
        let inner = &self.cache().inner;
        inner.store.read_verified(&r.hash()?, r.size(), &groups, at, offset, buf).ok()
    }

    /// As `backing`, of an entry that is not in memory: the file of a large blob that lies where it lay.
    pub(super) fn backing_peeking(&self, record: u32) -> Option<File> {
        let peek = self.peek()?;
        let r = peek.record(record)?;
        let hash = r.hash()?;
        let loose = peek.bytes().location(record)? == Location::Loose;
        loose.then(|| self.cache().inner.store.blob_file(&hash).ok()).flatten()
    }
}
