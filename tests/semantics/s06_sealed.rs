//! Semantics 6: a sealed entry never changes.

use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use crate::common::*;

fn sealed() -> Mount {
    let m = Mount::new();
    m.entry("key1", |out| {
        write(out.join("f"), "content");
        mkdir(out.join("dir"));
        write(out.join("dir/g"), "g");
        symlink("f", out.join("s")).expect("symlink");
    });
    m
}

/// S6.1 A sealed entry never changes: every change is EROFS, for root too.
#[test]
fn s6_1_every_change_is_erofs() {
    let m = sealed();
    let out = m.path("key1/outputs");
    let f = out.join("f");
    let before = tree::look(&m.path("key1"), tree::ALL);
    assert_errno!(fs::write(out.join("new"), "x"), EROFS);
    assert_errno!(OpenOptions::new().write(true).open(&f), EROFS);
    assert_errno!(OpenOptions::new().append(true).open(&f), EROFS);
    assert_errno!(OpenOptions::new().read(true).write(true).open(&f), EROFS);
    assert_errno!(File::create(&f), EROFS);
    assert_errno!(nix::unistd::truncate(&f, 0).map_err(Into::into), EROFS);
    assert_errno!(fs::create_dir(out.join("d2")), EROFS);
    assert_errno!(fs::remove_file(&f), EROFS);
    assert_errno!(fs::remove_dir(out.join("dir")), EROFS);
    assert_errno!(fs::rename(&f, out.join("f2")), EROFS);
    assert_errno!(fs::rename(&f, out.join("dir/g")), EROFS);
    assert_errno!(fs::hard_link(&f, out.join("f2")), EROFS);
    assert_errno!(symlink("x", out.join("s2")), EROFS);
    assert_errno!(
        nix::unistd::mkfifo(&out.join("p"), nix::sys::stat::Mode::S_IRWXU).map_err(Into::into),
        EROFS
    );
    assert_errno!(chmod(&f, 0o777), EROFS);
    assert_errno!(chmod(m.path("key1"), 0o700), EROFS);
    assert_errno!(chown(&f, Some(12345), None), EROFS);
    assert_errno!(File::open(&f).expect("open").set_modified(UNIX_EPOCH), EROFS);
    assert_errno!(xattr::set(&f, "user.x", b"y"), EROFS);
    assert_errno!(fs::remove_dir(m.path("key1")), EROFS);
    assert_errno!(fs::rename(m.path("key1"), m.path("key2")), EROFS);
    assert_errno!(fs::rename(&f, m.path("key2")), EROFS);
    m.draft("w", |o| write(o.join("h"), "h"));
    assert_errno!(fs::rename(m.work("w").join("outputs/h"), out.join("h")), EROFS);
    assert_errno!(fs::hard_link(m.work("w").join("outputs/h"), out.join("h")), EROFS);
    assert!(fs::rename(&f, m.work("w").join("outputs/f")).is_err(), "nothing is moved out of an entry");
    assert!(tree::look(&m.path("key1"), tree::ALL) == before);
}

/// S6.1 … `rm -r` included.
#[test]
fn s6_1_rm_r_removes_nothing() {
    let m = sealed();
    let before = tree::look(&m.path("key1"), tree::ALL);
    let out = sh_out("rm", &[&"-rf", &m.path("key1")]);
    assert!(!out.status.success());
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.lines().all(|l| l.ends_with("Read-only file system")) && !said.is_empty(), "{said}");
    assert!(tree::look(&m.path("key1"), tree::ALL) == before);
    assert_eq!(names(m.mnt()), ["key1"]);
}

/// S6.2 An attribute change that changes nothing succeeds.
#[test]
fn s6_2_a_change_that_changes_nothing() {
    let m = sealed();
    for path in [m.path("key1/outputs/f"), m.path("key1/outputs/dir"), m.path("key1")] {
        let s = fs::metadata(&path).expect("stat");
        chmod(&path, s.mode() & 0o7777).expect("chmod to the same mode");
        chown(&path, Some(s.uid()), Some(s.gid())).expect("chown to the same owner");
        let times = fs::FileTimes::new().set_modified(s.modified().expect("mtime"));
        File::open(&path).expect("open").set_times(times).expect("utimens to the same time");
    }
    sh("chmod", &[&"-R", &"a-w", &m.path("key1")]);
    let f = m.path("key1/outputs/f");
    nix::unistd::truncate(&f, 7).expect("truncate to the same size");
}

/// S6.3 `mv MNT/KEY MNT/.outfs/trash/` and `outfs evict` hide the entry at once; it is freed when the
/// last holder lets go.
#[test]
fn s6_3_trash_and_evict() {
    let m = Mount::new();
    for (key, how) in [("key1", "trash"), ("key2", "request")] {
        m.entry_of(key, noise(10, 1 << 20));
        let holder = File::open(m.path(key).join("outputs/f")).expect("open");
        match how {
            "trash" => drop(sh("mv", &[&m.path(key), &m.path(".outfs/trash/")])),
            _ => m.evict(key),
        }
        assert_errno!(fs::symlink_metadata(m.path(key)), ENOENT);
        assert_eq!(names(m.mnt()), [""; 0]);
        assert_eq!(names(m.path(".outfs/trash")), [""; 0]);
        assert_eq!(m.code(&["show", key]), 3, "no such entry");
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut &holder, &mut content).expect("the holder reads on");
        assert!(content == noise(10, 1 << 20));
        assert!(!files_below(&m.store().join("blobs")).is_empty(), "held content is not freed");
        drop(holder);
        eventually("the entry to be freed", || {
            files_below(&m.store().join("blobs")).is_empty() && m.manifests() == 0
        });
        assert!(m.events().iter().any(|e| e["event"] == "evicted" && e["key"] == key));
        m.entry_of(key, "the key is free again");
        m.evict(key);
    }
}

/// S6.3: many entries at once, and keys that do not exist.
#[test]
fn s6_3_trash_takes_entries_only() {
    let m = Mount::new();
    m.entry_of("key1", "x");
    assert_errno!(fs::rename(m.path("key2"), m.path(".outfs/trash/key2")), ENOENT);
    assert!(fs::rename(m.path("key1/outputs/f"), m.path(".outfs/trash/f")).is_err());
    assert!(fs::write(m.path(".outfs/trash/f"), "x").is_err());
    assert_eq!(m.code(&["evict", "key2"]), 3);
    assert_eq!(read(m.path("key1/outputs/f")), b"x");
}

/// S6.4 Both are refused (EBUSY) while the entry is pinned.
#[test]
fn s6_4_pinned_entries_stay() {
    let mut m = sealed();
    m.ok(&["pin", "--name", "release", "key1"]);
    assert_errno!(fs::rename(m.path("key1"), m.path(".outfs/trash/key1")), EBUSY);
    let out = m.run(&["evict", "key1"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("release"), "the message names the pin");
    m.restart();
    assert_errno!(fs::rename(m.path("key1"), m.path(".outfs/trash/key1")), EBUSY);
    m.ok(&["unpin", "--name", "release", "key1"]);
    fs::rename(m.path("key1"), m.path(".outfs/trash/key1")).expect("after unpin");
    assert_errno!(fs::symlink_metadata(m.path("key1")), ENOENT);
}

fn rich(out: &Path) {
    for (name, mode) in
        [("m0600", 0o600), ("m0755", 0o755), ("m0444", 0o444), ("m4755", 0o4755), ("m0000", 0o000)]
    {
        write(out.join(name), name);
        chmod(out.join(name), mode).expect("chmod");
    }
    let odd = std::ffi::OsStr::from_bytes(b"odd \xff name\n");
    write(out.join(odd), "odd");
    fs::hard_link(out.join("m0755"), out.join("linked")).expect("link");
    symlink(std::ffi::OsStr::from_bytes(b"../\xfe/no where"), out.join("sym")).expect("symlink");
    fs::hard_link(out.join("sym"), out.join("sym too")).expect("link");
    xattr::set(out.join("m0755"), "user.colour", b"blue\0").expect("setxattr");
    mkdir(out.join("dir"));
    xattr::set(out.join("dir"), "user.kind", b"d").expect("setxattr");
    chmod(out.join("dir"), 0o2750).expect("chmod");
    mkdir(out.join("empty"));
    chmod(out.join("empty"), 0o555).expect("chmod");
    let times = fs::FileTimes::new().set_modified(UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789));
    File::open(out.join("m0755")).expect("open").set_times(times).expect("utimens");
    let old = fs::FileTimes::new().set_modified(UNIX_EPOCH - Duration::new(5, 500_000_000));
    File::open(out.join("m0444")).expect("open").set_times(old).expect("utimens");
    chown(out.join("m0600"), Some(1234), Some(2345)).expect("chown (the test runs as root)");
}

/// S6.5 A manifest keeps … user xattrs, the mtime to the nanosecond, hard links (of symlinks too), and symlinks byte
/// for byte.
/// S6.6 A view shows modes with the write bits masked …, owned by the user who mounted: from the moment of sealing
/// on, whatever the kernel remembers of the draft. (D11 excepts the owner's write bit of the top directory.)
#[test]
fn s6_6_what_was_just_sealed_shows_no_draft() {
    need_root();
    let m = Mount::new();
    // GNU stat asks for what it prints alone: a change time would have the kernel ask again.
    let shown = |at: &Path| sh("stat", &[&"-c", &"%a %u", &at.join(""), &at.join("outputs"), &at.join("f")]);
    for how in ["rename", "chmod", "seal"] {
        let (draft, entry) = (m.work(how), m.path(format!("key-{how}")));
        let draft = if how == "rename" { draft } else { entry.clone() };
        mkdir(&draft);
        mkdir(draft.join("outputs"));
        write(draft.join("f"), "x");
        write(draft.join("metadata.json"), METADATA);
        for name in ["", "outputs", "f"] {
            chmod(draft.join(name), 0o777).expect("chmod");
            chown(draft.join(name), Some(1000), Some(1000)).expect("chown");
        }
        assert_eq!(shown(&draft), "777 1000\n".repeat(3));
        match how {
            "rename" => drop(sh("mv", &[&"-T", &draft, &entry])),
            "chmod" => chmod(&draft, 0o555).expect("chmod"),
            _ => m.seal(&["key-seal"]),
        }
        assert_eq!(shown(&entry), "755 0\n555 0\n555 0\n", "{how}");
    }
}

/// S6.6 A view shows modes with the write bits masked (0600 becomes 0400, never more), owned by the user
/// who mounted.
#[test]
fn s6_5_s6_6_what_a_view_shows() {
    need_root();
    let mut m = Mount::new();
    m.entry("key1", rich);
    for again in [false, true] {
        if again {
            m.restart();
        }
        let out = m.path("key1/outputs");
        let stat = |n: &str| fs::symlink_metadata(out.join(n)).expect("lstat");
        let mode = |n: &str| stat(n).permissions().mode() & 0o7777;
        assert_eq!(
            ["m0600", "m0755", "m0444", "m4755", "m0000", "dir", "empty"].map(mode),
            [0o400, 0o555, 0o444, 0o555, 0o000, 0o550, 0o555]
        );
        let me = nix::unistd::geteuid().as_raw();
        assert!(tree_of(&out).iter().all(|s| s.uid() == me), "everything belongs to who mounted");
        assert_eq!((stat("m0755").mtime(), stat("m0755").mtime_nsec()), (1_234_567_890, 123_456_789));
        assert_eq!((stat("m0444").mtime(), stat("m0444").mtime_nsec()), (-6, 500_000_000));
        assert_eq!((stat("m0755").nlink(), stat("m0755").ino()), (2, stat("linked").ino()));
        assert_eq!(
            (stat("sym").nlink(), stat("sym").ino()),
            (2, stat("sym too").ino()),
            "one symlink, two names"
        );
        assert_eq!(stat("m0600").nlink(), 1);
        assert_eq!(
            fs::read_link(out.join("sym")).expect("readlink").as_os_str().as_bytes(),
            b"../\xfe/no where"
        );
        assert_eq!(read(out.join(std::ffi::OsStr::from_bytes(b"odd \xff name\n"))), b"odd");
        assert_eq!(
            xattr::get(out.join("m0755"), "user.colour").expect("getxattr").as_deref(),
            Some(&b"blue\0"[..])
        );
        assert_eq!(
            xattr::get(out.join("linked"), "user.colour").expect("getxattr").as_deref(),
            Some(&b"blue\0"[..])
        );
        assert_eq!(xattr::get(out.join("dir"), "user.kind").expect("getxattr").as_deref(), Some(&b"d"[..]));
        assert_eq!(fs::metadata(out.join("dir")).expect("stat").nlink(), 2);
    }
}

fn tree_of(dir: &Path) -> Vec<fs::Metadata> {
    fs::read_dir(dir).expect("list").map(|e| e.expect("an entry").metadata().expect("lstat")).collect()
}

/// S6.5 A manifest keeps the original mode (set-id bits dropped), owner …
#[test]
fn s6_5_original_modes_and_owners() {
    need_root();
    let m = Mount::new();
    m.entry("key1", rich);
    let nodes = m.json_lines(&["ls", "key1", "outputs"]);
    let of = |name: &str| {
        let found = nodes.iter().find(|n| n["path"].as_str().is_some_and(|p| p.ends_with(name)));
        let n = found.unwrap_or_else(|| panic!("no {name} in {nodes:?}"));
        let mode = u32::from_str_radix(n["mode"].as_str().expect("octal"), 8).expect("octal");
        (mode, n["uid"].as_u64(), n["gid"].as_u64())
    };
    assert_eq!(of("m0600"), (0o600, Some(1234), Some(2345)));
    assert_eq!(of("m4755"), (0o755, Some(0), Some(0)), "set-id bits are dropped");
    assert_eq!(of("m0444").0, 0o444);
    assert_eq!(of("dir").0, 0o750);
    assert_eq!(of("empty").0, 0o555);
}

/// S6.7 `outfs restore` gives the originals back, writable by their owner.
#[test]
fn s6_7_restore_gives_the_originals_back() {
    let m = Mount::new();
    let origin = m.outside("origin");
    let fill = |out: &Path| {
        rich_without_modes(out);
    };
    mkdir(&origin);
    fill(&origin);
    m.entry("key1", fill);
    for how in ["auto", "copy"] {
        let dest = m.outside(how);
        m.ok(&["restore", "key1", dest.to_str().expect("plain"), "--as", how]);
        tree::assert_same(&origin, &dest, tree::ALL);
        write(dest.join("f"), "the owner may write");
    }
}

fn rich_without_modes(out: &Path) {
    write(out.join("f"), "f");
    chmod(out.join("f"), 0o640).expect("chmod");
    write(out.join("tool"), noise(11, 500_000));
    chmod(out.join("tool"), 0o755).expect("chmod");
    fs::hard_link(out.join("tool"), out.join("linked")).expect("link");
    symlink("tool", out.join("sym")).expect("symlink");
    fs::hard_link(out.join("sym"), out.join("sym too")).expect("link");
    nix::sys::stat::utimensat(
        nix::fcntl::AT_FDCWD,
        &out.join("sym"),
        &nix::sys::time::TimeSpec::new(5, 0),
        &nix::sys::time::TimeSpec::new(77, 7),
        nix::sys::stat::UtimensatFlags::NoFollowSymlink,
    )
    .expect("the symlink's own time");
    xattr::set(out.join("tool"), "user.colour", b"blue").expect("setxattr");
    mkdir(out.join("dir"));
    write(out.join("dir/in"), "in");
    for name in ["f", "tool", "dir/in"] {
        let times = fs::FileTimes::new().set_modified(UNIX_EPOCH + Duration::new(1_234_567_890, 987_654_321));
        File::open(out.join(name)).expect("open").set_times(times).expect("utimens");
    }
}
