//! Drafts: their files, and getting rid of any tree a user can make.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::{as_ordinary_user, is_root, key, mount_tmpfs, quick_dir, store, with_own_mounts};
use crate::store::*;

fn native(s: &Store) -> String {
    s.create_draft(&DraftPlace::Native { label: "test".into() }).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn drafts_are_found_again_with_their_places() {
    let (_dir, s) = store();
    let a = s.create_draft(&DraftPlace::InPlace { key: key("abcd") }).unwrap();
    let b = s.create_draft(&DraftPlace::Work { name: b"w\xff".to_vec() }).unwrap();
    assert_ne!(a, b);
    s.set_draft_place(&b, &DraftPlace::Work { name: b"other".to_vec() }).unwrap();
    let c = native(&s);
    fs::remove_file(s.root().join("drafts").join(&c).join("draft.json")).unwrap();
    let root = s.root().to_owned();
    drop(s);
    let s = Store::open(&root, Access::Own).unwrap();
    let mut got = s.drafts().unwrap();
    got.sort_by_key(|d| [&a, &b, &c].iter().position(|id| **id == d.0));
    assert_eq!(got[0].1, DraftPlace::InPlace { key: key("abcd") });
    assert_eq!(got[1].1, DraftPlace::Work { name: b"other".to_vec() });
    assert!(matches!(got[2].1, DraftPlace::Native { .. }), "a tree without its file is not lost");
    assert!(got.iter().all(|d| d.2 > 1_500_000_000_000_000_000));
    let stat = nix::sys::stat::fstat(s.draft_tree(&a).unwrap()).unwrap();
    assert_eq!(stat.st_mode & 0o7777, 0o755);
    assert!(s.draft_path(&a).is_dir());
    assert!(matches!(s.draft_tree("nope"), Err(StoreError::Missing { .. })));
    s.hide_draft(&a).unwrap();
    assert_eq!(s.drafts().unwrap().len(), 2);
    s.remove_draft(&a).unwrap();
    s.remove_draft(&a).unwrap();
    assert_eq!(names(&root.join("drafts")).len(), 2);
}

/// Directories in directories, deeper than a path or a table of descriptors reaches.
fn dig(at: &Path, depth: usize) {
    let mut dir: OwnedFd = nix::fcntl::open(at, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..depth {
        nix::sys::stat::mkdirat(dir.as_fd(), "deeper", Mode::S_IRWXU).unwrap();
        dir = nix::fcntl::openat(dir.as_fd(), "deeper", OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())
            .unwrap();
    }
}

fn make_awkward(tree: &Path, outside: &Path, depth: usize) {
    dig(tree, depth);
    for i in 0..300 {
        fs::write(tree.join(format!("file {i}")), "x").unwrap();
    }
    fs::write(tree.join(std::ffi::OsStr::from_bytes(b"\xff\n*")), "x").unwrap();
    fs::write(tree.join("n".repeat(255)), "x").unwrap();
    std::os::unix::fs::symlink(outside, tree.join("link")).unwrap();
    std::os::unix::fs::symlink(outside, tree.join("deeper/link")).unwrap();
    nix::unistd::mkfifo(&tree.join("fifo"), Mode::S_IRWXU).unwrap();
    let mut locked = Vec::new();
    for mode in [0o000, 0o100, 0o200, 0o400, 0o500, 0o555] {
        let dir = tree.join(format!("mode {mode:o}"));
        fs::create_dir_all(dir.join("sub/.d-0-0")).unwrap();
        fs::write(dir.join("sub/file"), "x").unwrap();
        locked.push((dir.join("sub"), mode));
        locked.push((dir, mode));
    }
    for (dir, mode) in locked {
        fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(tree, fs::Permissions::from_mode(0o000)).unwrap();
}

fn awkward_trees_are_deleted(dir: &Path) {
    let outside = dir.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    let s = Store::open(&dir.join("s"), Access::Own).unwrap();
    let id = native(&s);
    make_awkward(&s.draft_path(&id), &outside, 3000);
    s.remove_draft(&id).unwrap();
    assert!(names(&s.root().join("drafts")).is_empty());
    assert_eq!(names(&outside), ["precious"]);

    // A deletion that was interrupted anywhere is finished by the next owner.
    for n in [1, 5, 30, 100, 400, 800] {
        let drafts = native_interrupted(&s, &outside, n);
        assert!(names(&drafts).iter().all(|n| n.starts_with(".gone-")));
    }
    let root = s.root().to_owned();
    drop(s);
    drop(Store::open(&root, Access::Own).unwrap());
    assert!(names(&root.join("drafts")).is_empty());
    assert_eq!(names(&outside), ["precious"]);
}

fn native_interrupted(s: &Store, outside: &Path, after: u64) -> std::path::PathBuf {
    let id = native(s);
    make_awkward(&s.draft_path(&id), outside, 200);
    let fault = Fault::after(after, libc::EIO, true);
    assert!(s.remove_draft(&id).is_err());
    drop(fault);
    s.root().join("drafts")
}

#[test]
fn a_disk_that_fails_once_takes_no_draft_from_its_place() {
    let (_dir, s) = store();
    let place = DraftPlace::InPlace { key: key("abcd") };
    s.create_draft(&place).unwrap();
    for n in 0.. {
        let fault = Fault::after(n, libc::EIO, false);
        let found = s.drafts();
        if !fault.fired() {
            return assert!(n > 6, "only {n} calls were seen");
        }
        drop(fault);
        assert!(found.is_err() || found.unwrap()[0].1 == place, "it is elsewhere after call {n} failed");
    }
}

#[test]
fn any_tree_can_be_deleted_as_root() {
    let dir = quick_dir();
    awkward_trees_are_deleted(dir.path());
}

#[test]
fn any_tree_can_be_deleted_as_an_ordinary_user() {
    let dir = quick_dir();
    if is_root() {
        nix::unistd::chown(dir.path(), Some(65534.into()), Some(65534.into())).unwrap();
    }
    as_ordinary_user(|| awkward_trees_are_deleted(dir.path()));
}

#[test]
fn what_is_mounted_inside_a_draft_is_not_deleted() {
    if !is_root() {
        return;
    }
    with_own_mounts(|| {
        let (_dir, s) = store();
        for below in ["", "sub/mnt"] {
            let id = native(&s);
            let at = s.draft_path(&id).join(below);
            fs::create_dir_all(&at).unwrap();
            mount_tmpfs(&at, nix::mount::MsFlags::empty());
            fs::write(at.join("precious"), "x").unwrap();
            let e = s.remove_draft(&id).unwrap_err();
            assert!(e.to_string().contains("busy"), "{e}");
            assert!(s.drafts().unwrap().is_empty(), "it is out of sight all the same");
            let left = find(&s.root().join("drafts"), "precious");
            assert_eq!(left, 1);
            let mounted = mounts_below(s.root());
            nix::mount::umount(mounted.as_str()).unwrap();
            s.remove_draft(&id).unwrap();
        }
        assert!(names(&s.root().join("drafts")).is_empty());
    });
}

fn find(dir: &Path, name: &str) -> usize {
    fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| {
            usize::from(e.file_name() == name)
                + if e.file_type().unwrap().is_dir() { find(&e.path(), name) } else { 0 }
        })
        .sum()
}

/// The one mount point below `root`.
fn mounts_below(root: &Path) -> String {
    let table = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let prefix = format!("{}/", root.display());
    let mut found = table.lines().filter_map(|l| l.split(' ').nth(1)).filter(|m| m.starts_with(&prefix));
    found.next().unwrap().replace("\\040", " ")
}
