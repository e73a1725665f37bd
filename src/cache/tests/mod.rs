//! Tests of the use cases on real stores in temporary directories.

mod clients;
mod drafts;
mod place;
mod reading;
mod restore;
mod seal;
mod tar;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::model::EventKind;
use crate::model::manifest::Origin;
use crate::store::{DraftPlace, PACK_LIMIT};

/// A cache on a store of its own, and room for files beside it.
pub(super) struct Fixture {
    quiet: Quiet,
    pub cache: Cache,
    pub dir: tempfile::TempDir,
}

/// Ends what a cache does in the background before its files are deleted.
struct Quiet(Cache);

impl Drop for Quiet {
    fn drop(&mut self) {
        self.0.inner.background.stop();
    }
}

pub(super) fn key(text: &str) -> EntryKey {
    EntryKey::parse(text).unwrap()
}

pub(super) fn request(text: &str) -> SealRequest {
    let origin = Origin { how: "seal".into(), ..Origin::default() };
    SealRequest { key: key(text), origin, inferred: false, replace: false }
}

pub(super) fn bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..n).map(|_| next()).collect()
}

impl Fixture {
    pub fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        Fixture::in_dir(dir)
    }

    fn in_dir(dir: tempfile::TempDir) -> Fixture {
        let cache = Cache::open(&dir.path().join("store"), Limits::default()).unwrap();
        Fixture { quiet: Quiet(cache.clone()), cache, dir }
    }

    /// Closes the cache and opens it again.
    pub fn reopen(self) -> Fixture {
        let Fixture { quiet, cache, dir } = self;
        drop(quiet);
        cache.close().unwrap();
        Fixture::in_dir(dir)
    }

    /// A path beside the store.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn in_place(&self, text: &str) -> (Arc<Draft>, PathBuf) {
        let draft = self.cache.create_draft(DraftPlace::InPlace { key: key(text) }).unwrap();
        let path = self.cache.store().draft_path(draft.id());
        (draft, path)
    }

    /// As sealing does, before it keeps others from changing the draft.
    pub fn prepare(&self, draft: &Draft) {
        self.cache.prepare(draft, std::time::Instant::now() + std::time::Duration::from_secs(10)).unwrap();
    }

    pub fn put(&self, text: &str, dir: &Path) -> Result<Sealed> {
        self.cache.put_dir(dir, &TaskFacts::default(), [None, None], request(text))
    }

    /// A tree with everything that is odd but allowed.
    pub fn odd_tree(&self, name: &str) -> PathBuf {
        let top = self.beside(name);
        let write = |path: &str, content: &[u8]| std::fs::write(top.join(path), content).unwrap();
        std::fs::create_dir_all(top.join("a/b/c")).unwrap();
        std::fs::create_dir(top.join("empty")).unwrap();
        write("zero", b"");
        write("one group", &bytes(PACK_LIMIT as usize, 1));
        write("one more", &bytes(PACK_LIMIT as usize + 1, 2));
        write("large", &bytes(3_000_000, 3));
        write("a/b/c/program", b"#!/bin/sh\n");
        write("a/b/private", b"mine");
        std::fs::write(top.join(OsStr::from_bytes(b"a/odd\xff\nname")), b"odd").unwrap();
        std::fs::hard_link(top.join("large"), top.join("a/large too")).unwrap();
        std::fs::hard_link(top.join("a/b/private"), top.join("zz")).unwrap();
        std::os::unix::fs::symlink("../../nowhere", top.join("a/dangling")).unwrap();
        std::os::unix::fs::symlink(OsStr::from_bytes(b"\xfe/x"), top.join("a/weird")).unwrap();
        std::os::unix::fs::symlink("/etc", top.join("absolute")).unwrap();
        std::fs::hard_link(top.join("absolute"), top.join("a/b/absolute too")).unwrap();
        // Where the file system has no user attributes, there are none to keep.
        let _ = xattr::set(top.join("zero"), "user.note", b"kept");
        let mode = |path: &str, mode| {
            std::fs::set_permissions(top.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode("a/b/c/program", 0o755);
        mode("a/b/private", 0o600);
        mode("zero", 0o444);
        mode("empty", 0o1777);
        let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_234_567_890, 123_456_789);
        let file = std::fs::File::options().append(true).open(top.join("a/b/c/program")).unwrap();
        file.set_times(std::fs::FileTimes::new().set_modified(old)).unwrap();
        mode("a/b", 0o555);
        top
    }
}

/// Everything that counts about a tree, in order.
#[derive(Debug, PartialEq)]
pub(super) struct Seen {
    pub path: PathBuf,
    pub mode: u32,
    pub mtime: (i64, i64),
    pub content: Vec<u8>,
    pub note: Option<Vec<u8>>,
    /// The first path with the same inode.
    pub same_as: Option<PathBuf>,
}

/// Looks at a tree, with owner-write added to all modes as a restore does.
pub(super) fn look(top: &Path) -> Vec<Seen> {
    let mut seen: Vec<Seen> = Vec::new();
    let mut inodes: std::collections::HashMap<u64, PathBuf> = Default::default();
    let mut dirs = vec![top.to_owned()];
    let mut paths = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                dirs.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let meta = path.symlink_metadata().unwrap();
        let content = if meta.is_symlink() {
            std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
        } else if meta.is_file() {
            std::fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        let relative = path.strip_prefix(top).unwrap().to_owned();
        let first = inodes.entry(meta.ino()).or_insert_with(|| relative.clone()).clone();
        seen.push(Seen {
            mode: meta.mode() | if meta.is_symlink() { 0 } else { 0o200 },
            mtime: (meta.mtime(), meta.mtime_nsec()),
            content,
            note: xattr::get(&path, "user.note").ok().flatten(),
            same_as: (first != relative).then_some(first),
            path: relative,
        });
    }
    seen
}

/// All events so far.
pub(super) fn events(cache: &Cache) -> Vec<EventKind> {
    let page = cache.store().read_events(0, 10_000).unwrap();
    page.events.into_iter().map(|e| e.kind).collect()
}

/// Waits for something that happens in the background.
pub(super) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
