//! Semantics 11: policies and read-only views.

use std::fs::{self, File, OpenOptions};

use crate::common::*;

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
