//! Semantics 11: policies and read-only views.

use std::fs::{self, File, OpenOptions};

use outfs::cache::{Cache, CacheBackend, CacheEntry, CacheOutput, CachePolicy, Limits, Task};

use crate::common::*;

fn result(content: &str) -> CacheEntry {
    CacheEntry {
        stdout: Some("said\n".into()),
        stderr: None,
        exit_code: 3,
        duration_ms: 1234,
        outputs: vec![CacheOutput { path: "dir/f".into(), data: content.into(), is_executable: true }],
    }
}

/// S11.1 A policy is chosen for each call: normal, readonly (never writes), writeonly (never hits),
/// disabled.
#[test]
fn s11_1_policies() {
    use CachePolicy::{Disabled, Normal, Readonly, Writeonly};
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache = Cache::open(&dir.path().join("store"), Limits::default()).expect("a store");
    let task = Task { id: "t".into(), command: vec!["make".into()] };
    let backend: &dyn CacheBackend = &cache;
    let hit = |digest: &str, policy| backend.check(&task, digest, policy).expect("check").hit;
    let store = |digest: &str, content: &str, policy| backend.store(&task, digest, &result(content), policy);
    for forbids_writing in [Readonly, Disabled] {
        store("sha256:abcd0001", "x", forbids_writing).expect("it is no error");
        assert!(!hit("sha256:abcd0001", Normal), "{forbids_writing:?} never writes");
    }
    for (digest, allows_writing) in [("sha256:abcd0002", Normal), ("sha256:abcd0003", Writeonly)] {
        store(digest, "x", allows_writing).expect("store");
        assert!(hit(digest, Normal) && hit(digest, Readonly));
        assert!(!hit(digest, Writeonly) && !hit(digest, Disabled), "policies that forbid reading never hit");
    }
    let found = backend.check(&task, "sha256:abcd0002", Normal).expect("check");
    assert_eq!((found.cached_duration_ms, found.cached_exit_code), (Some(1234), Some(3)));
    store("sha256:abcd0003", "another", Writeonly).expect("writeonly stores over an earlier result");
    let restored =
        backend.restore_outputs(&task, "sha256:abcd0003", &dir.path().join("out")).expect("restore");
    assert_eq!(restored[0].data, b"another");
    assert_eq!(read(dir.path().join("out/dir/f")), b"another");
    assert!(store("sha256:abcd0002", "another", Normal).is_err(), "the first result wins");
    cache.close().expect("close");
}

/// S10.4 A cache that fails never fails the task: what goes wrong comes back as an error in time …, and a
/// task whose result could not be stored is a miss.
#[test]
fn s10_4_a_failing_cache_answers() {
    need_root();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = Mounted::tmpfs(&dir.path().join("disk"), "16M");
    let cache = Cache::open(&disk.0.join("store"), Limits::default()).expect("a store");
    let task = Task { id: "t".into(), command: Vec::new() };
    let backend: &dyn CacheBackend = &cache;
    let mut large = result("");
    large.outputs[0].data = noise(70, 32 << 20);
    assert!(backend.store(&task, "sha256:abcd0001", &large, CachePolicy::Normal).is_err());
    assert!(!backend.check(&task, "sha256:abcd0001", CachePolicy::Normal).expect("check").hit);
    backend
        .store(&task, "sha256:abcd0002", &result("small"), CachePolicy::Normal)
        .expect("the small one fits");
    assert!(backend.check(&task, "sha256:abcd0002", CachePolicy::Normal).expect("check").hit);
    assert!(backend.store(&task, "../../etc", &result("x"), CachePolicy::Normal).is_err(), "a hostile key");
    cache.close().expect("close");
}

/// S11.2 In a read-only view every change is EROFS.
#[test]
fn s11_2_a_read_only_view() {
    let mut m = Mount::new();
    m.entry_of("key1", "x");
    mkdir(m.path("a-draft"));
    let ro = m.add_view("ro", &["--read-only"]);
    assert_eq!(read(ro.join("key1/outputs/f")), b"x");
    assert_errno!(fs::create_dir(ro.join("key2")), EROFS);
    assert_errno!(fs::write(ro.join("key1/outputs/f"), "y"), EROFS);
    assert_errno!(fs::write(ro.join("key1/outputs/new"), "y"), EROFS);
    assert_errno!(OpenOptions::new().append(true).open(ro.join("key1/outputs/f")), EROFS);
    assert_errno!(fs::remove_file(ro.join("key1/outputs/f")), EROFS);
    assert_errno!(fs::remove_dir(ro.join("key1")), EROFS);
    assert_errno!(fs::rename(ro.join("key1"), ro.join("key2")), EROFS);
    assert_errno!(chmod(ro.join("key1"), 0o777), EROFS);
    assert_errno!(xattr::set(ro.join("key1/outputs/f"), "user.x", b"y"), EROFS);
    assert_errno!(
        File::open(ro.join("key1/outputs/f")).expect("open").set_modified(std::time::UNIX_EPOCH),
        EROFS
    );
    assert_errno!(fs::symlink_metadata(ro.join(".outfs/work")), ENOENT);
    assert_errno!(fs::symlink_metadata(ro.join(".outfs/trash")), ENOENT);
    assert_eq!(read(m.path("key1/outputs/f")), b"x");
    m.entry_of("key3", "z");
    eventually("a later entry in the read-only view", || {
        fs::read(ro.join("key3/outputs/f")).is_ok_and(|b| b == b"z")
    });
}

/// S11.2 A view that was mounted read-only from the start, on a store that has entries.
#[test]
fn s11_2_read_only_from_the_start() {
    let mut m = Mount::new();
    m.entry("key1", |out| {
        write(out.join("f"), noise(50, 3000));
        write(out.join("big"), noise(51, 1 << 20));
    });
    m.restart_with(&["--read-only", "--size", "4G"]);
    for _ in 0..2 {
        assert!(read(m.path("key1/outputs/f")) == noise(50, 3000));
        assert!(read(m.path("key1/outputs/big")) == noise(51, 1 << 20));
        let map = Mapping::shared(&File::open(m.path("key1/outputs/big")).expect("open"), 1 << 20, false);
        assert!(map.bytes() == noise(51, 1 << 20));
    }
    assert_eq!(names(m.mnt()), ["key1"]);
    assert_errno!(fs::create_dir(m.path("key2")), EROFS);
}
