//! Semantics 1: keys and drafts.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use crate::common::trace::Trace;
use crate::common::*;

/// S1.1 `mkdir MNT/KEY` starts a draft in place; everybody who uses the view sees it, and all
/// that is written into it, at once.
#[test]
fn s1_1_a_draft_in_place_is_visible_at_once() {
    let m = Mount::new();
    mkdir(m.path("key1"));
    assert_eq!(names(m.mnt()), ["key1"]);
    assert_eq!(xattr_text(m.path("key1"), "user.outfs.state").as_deref(), Some("draft"));
    write(m.path("key1/a"), "one");
    assert_eq!(sh("cat", &[&m.path("key1/a")]), "one", "another process reads back right after the store");
    write(m.path("key1/a"), "another");
    assert_eq!(read(m.path("key1/a")), b"another");
    assert_errno!(fs::create_dir(m.path("key1")), EEXIST);
}

/// S1.1, in a second view of the same store.
#[test]
fn s1_1_in_another_view_too() {
    let mut m = Mount::new();
    mkdir(m.path("key1"));
    let other = m.add_view("other", &[]);
    assert_eq!(names(&other), ["key1"]);
    write(m.path("key1/a"), "one");
    assert_eq!(read(other.join("key1/a")), b"one");
    assert!(!other.join("key2").exists(), "a negative answer the kernel may keep");
    mkdir(m.path("key2"));
    eventually("the new draft in the other view", || other.join("key2").exists());
}

/// S1.2 `mkdir MNT/.outfs/work/NAME` starts a private draft, which no listing of `MNT` shows.
#[test]
fn s1_2_a_work_draft_is_private() {
    let m = Mount::new();
    mkdir(m.work("any name at all"));
    write(m.work("any name at all").join("a"), "one");
    assert_eq!(names(m.mnt()), [""; 0]);
    assert_eq!(names(m.path(".outfs/work")), ["any name at all"]);
    assert_eq!(sh("find", &[&m.mnt(), &"-mindepth", &"1"]), "", "find does not enter .outfs");
    fs::remove_dir_all(m.work("any name at all")).expect("a draft may be removed");
    assert_eq!(names(m.path(".outfs/work")), [""; 0]);
}

/// S1.3 A name that breaks the grammar of keys is EINVAL when created and ENOENT when looked up.
#[test]
fn s1_3_the_grammar_of_keys() {
    let m = Mount::new();
    mkdir(m.path("good.key_1+2=3-4"));
    mkdir(m.path("x".repeat(255)));
    let bad: [&[u8]; 9] = [
        b"abc",
        b".hidden",
        b"-dash",
        b"with space",
        b"tab\tin",
        b"sha256:abcd",
        b"caf\xc3\xa9",
        b"\xff\xfe\xfd\xfc",
        b"a\\b\\c",
    ];
    for name in bad {
        let path = m.path(OsStr::from_bytes(name));
        assert_errno!(fs::symlink_metadata(&path), ENOENT);
        assert_errno!(fs::create_dir(&path), EINVAL);
        assert_errno!(fs::symlink_metadata(&path), ENOENT);
    }
    assert_errno!(fs::create_dir(m.path("x".repeat(256))), EINVAL);
    assert_errno!(fs::symlink_metadata(m.path("x".repeat(256))), ENOENT);
    assert_errno!(fs::create_dir(m.path("..")), EEXIST);
}

/// S1.3 for the other ways to create something below the top.
#[test]
fn s1_3_only_directories_stand_at_the_top() {
    let m = Mount::new();
    mkdir(m.work("w"));
    write(m.work("w").join("a"), "one");
    assert_errno!(fs::rename(m.work("w"), m.path("a:b")), EINVAL);
    assert!(fs::write(m.path("some-key"), "x").is_err(), "a file is no entry");
    assert!(std::os::unix::fs::symlink("x", m.path("some-key")).is_err(), "a symlink is no entry");
    assert!(fs::rename(m.work("w").join("a"), m.path("some-key")).is_err(), "a file is no entry");
    assert_errno!(fs::symlink_metadata(m.path("some-key")), ENOENT);
}

/// S1.3 … neither causes any I/O.
#[test]
fn s1_3_no_io_for_what_cannot_be_a_key() {
    let m = Mount::new();
    let trace = Trace::attach(m.pid(), m.outside("trace"));
    for name in ["abc", ".hidden", "with space", "sha256:abcd"] {
        assert_errno!(fs::symlink_metadata(m.path(name)), ENOENT);
        assert_errno!(fs::create_dir(m.path(name)), EINVAL);
    }
    let calls = trace.finish();
    assert!(calls.iter().any(|c| c.contains("/dev/fuse")), "the daemon was traced");
    let store = m.store().to_str().expect("a plain path");
    // The workers wake up now and then; what they do is not caused by these names.
    let caused: Vec<_> = calls
        .iter()
        .filter(|c| {
            c.contains(store)
                && ["abc", ".hidden", "with space", "sha256"].iter().any(|n| c.contains(&format!("{n}\"")))
        })
        .collect();
    assert!(caused.is_empty(), "{caused:#?}");
}
