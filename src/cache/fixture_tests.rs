//! A cache on a store of its own, for the tests of this room.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::index::EntryRow;
use crate::model::manifest::Origin;
use crate::model::units::Size;

pub(super) struct Fixture {
    pub cache: Option<Cache>,
    pub dir: tempfile::TempDir,
    limits: Limits,
}

/// Ends what the cache does in the background before its files are deleted.
impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(cache) = &self.cache {
            cache.inner.background.stop();
        }
    }
}

impl Fixture {
    pub fn new() -> Fixture {
        Fixture::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Fixture {
        let limits = Limits { min_age: Duration::ZERO, reserve: Some(Size::Bytes(0)), ..limits };
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("store"), limits.clone()).unwrap();
        if let Some(Size::Bytes(bytes)) = limits.size {
            // For what is stored: what an empty store occupies depends on the file system.
            let empty = cache.usage().unwrap().used;
            cache.inner.limits.write().size = Some(Size::Bytes(bytes + empty));
        }
        Fixture { dir, cache: Some(cache), limits }
    }

    pub fn cache(&self) -> &Cache {
        self.cache.as_ref().unwrap()
    }

    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Closes the cache, lets `change` do something to the store, and opens it again.
    pub fn reopen(&mut self, change: impl FnOnce(&Path)) {
        self.cache.take().unwrap().close().unwrap();
        change(&self.store());
        self.open();
    }

    pub fn open(&mut self) {
        self.cache = Some(Cache::open(&self.store(), self.limits.clone()).unwrap());
    }

    pub fn put(&self, name: &str, files: &[(&str, Vec<u8>)]) -> EntryRow {
        let src = self.dir.path().join(format!("src-{name}"));
        for (path, content) in files {
            let path = src.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let facts = TaskFacts { task_id: "t".into(), ..TaskFacts::default() };
        let origin = Origin { how: "put".into(), ..Origin::default() };
        let request = SealRequest { key: key(name), origin, inferred: false, replace: true };
        let sealed = self.cache().put_dir(&src, &facts, [None, None], request).unwrap();
        sealed.into_entry().row().unwrap().clone()
    }

    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = self
            .cache()
            .index()
            .keys_after(0, 999)
            .unwrap()
            .into_iter()
            .map(|(_, k)| k.to_string())
            .collect();
        keys.sort();
        keys
    }

    pub fn files(&self, room: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut todo = vec![self.store().join(room)];
        while let Some(dir) = todo.pop() {
            for e in std::fs::read_dir(dir).unwrap().flatten() {
                if e.file_type().unwrap().is_dir() {
                    todo.push(e.path());
                } else if e.file_name() != "next" && e.path().extension().is_none_or(|x| x != "loc") {
                    found.push(e.path());
                }
            }
        }
        found.sort();
        found
    }

    pub fn events(&self) -> Vec<crate::model::Event> {
        self.cache().store().read_events(0, 9999).unwrap().events
    }

    pub fn sound(&self) {
        assert_eq!(self.cache().index().integrity().unwrap(), Vec::<String>::new());
    }
}

pub(super) fn key(name: &str) -> EntryKey {
    EntryKey::parse(name).unwrap()
}

/// Bytes that no other seed gives.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

pub(super) const MIB: usize = 1 << 20;

/// With so many MiB.
pub(super) fn limited(mib: u64) -> Limits {
    Limits { size: Some(Size::Bytes(mib << 20)), ..Limits::default() }
}
