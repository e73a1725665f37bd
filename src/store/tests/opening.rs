//! Opening, creating, owning and destroying a store.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::{is_root, mount_tmpfs, quick_dir, store, with_own_mounts};
use crate::store::*;

fn assert_send_sync<T: Send + Sync>() {}

#[test]
fn a_store_is_created_once_and_found_again() {
    assert_send_sync::<Store>();
    let (_dir, s) = store();
    let (root, id) = (s.root().to_owned(), s.id().to_owned());
    assert_eq!(id.len(), 16);
    assert_eq!(fs::metadata(&root).unwrap().mode() & 0o7777, 0o700);
    for room in ["manifests", "blobs"] {
        assert_eq!(fs::read_dir(root.join(room)).unwrap().count(), 256);
    }
    assert_eq!(s.path("index.sqlite"), root.join("index.sqlite"));
    drop(s);
    assert_eq!(Store::open(&root, Access::Own).unwrap().id(), id);
    assert_eq!(Store::open(&root, Access::Read).unwrap().id(), id);
}

#[test]
fn a_second_owner_is_told_the_pid_of_the_first() {
    let (_dir, s) = store();
    let root = s.root().to_owned();
    for second in [Store::open(&root, Access::Own).err(), Store::destroy(&root, &mut |_| {}).err()] {
        match second {
            Some(e @ StoreError::Locked { pid, .. }) => {
                assert_eq!(pid, std::process::id());
                assert!(e.to_string().contains(&pid.to_string()), "{e}");
            }
            other => panic!("{other:?}"),
        }
    }
    drop(s);
    Store::open(&root, Access::Own).unwrap();
}

#[test]
fn what_is_not_a_store_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("thesis"), "x").unwrap();
    let lookalike = dir.path().join("lookalike");
    fs::create_dir_all(lookalike.join("pins")).unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    for bad in [&home, &lookalike, &file, &file.join("below")] {
        let e = Store::open(bad, Access::Own).err();
        assert!(matches!(e, Some(StoreError::Unsuitable { .. })), "{}: {e:?}", bad.display());
        assert!(Store::destroy(bad, &mut |_| {}).is_err());
        assert!(Store::open(bad, Access::Read).is_err());
    }
    assert_eq!(fs::read_dir(&home).unwrap().count(), 1);
    assert_eq!(fs::read_dir(&lookalike).unwrap().count(), 1);
    assert_eq!(fs::read(&file).unwrap(), b"x");
    let logged = dir.path().join("logged");
    fs::create_dir(&logged).unwrap();
    fs::write(logged.join("daemon.log"), "starting").unwrap();
    drop(Store::open(&logged, Access::Own).unwrap());
    let missing = dir.path().join("missing");
    assert!(matches!(Store::open(&missing, Access::Read), Err(StoreError::Unsuitable { .. })));
    assert!(!missing.exists());
    Store::open(&missing.join("deep/er"), Access::Own).unwrap();
}

#[test]
fn a_newer_store_is_refused_and_not_changed() {
    let (_dir, s) = store();
    let root = s.root().to_owned();
    drop(s);
    fs::remove_file(root.join("format")).unwrap();
    fs::write(root.join("format"), "outfs store\nversion 2\nsomething new\n").unwrap();
    fs::remove_dir(root.join("tmp")).unwrap();
    for access in [Access::Own, Access::Read] {
        assert!(matches!(Store::open(&root, access), Err(StoreError::TooNew { found: 2, .. })));
    }
    assert!(!root.join("tmp").exists());
}

#[test]
fn whatever_call_fails_while_creating_the_next_opening_completes_it() {
    // Calls before, in and after the long row of directories.
    for n in (0..24).chain((500..560).step_by(3)) {
        let dir = quick_dir();
        let root = dir.path().join("s");
        let fault = Fault::after(n, libc::EIO, true);
        let failed = Store::open(&root, Access::Own).is_err();
        assert!(!fault.fired() || failed || n > 500, "call {n}");
        drop(fault);
        let s = Store::open(&root, Access::Own).unwrap_or_else(|e| panic!("after call {n}: {e}"));
        assert_eq!(fs::read_dir(root.join("blobs")).unwrap().count(), 256);
        drop(s);
        Store::destroy(&root, &mut |_| {}).unwrap();
        assert!(!root.exists());
    }
}

#[test]
fn leftovers_are_swept_by_the_next_owner_only() {
    let (_dir, s) = store();
    let root = s.root().to_owned();
    let id = s.create_draft(&DraftPlace::Native { label: "x".into() }).unwrap();
    let kept = s.create_draft(&DraftPlace::Native { label: "y".into() }).unwrap();
    fs::write(s.draft_path(&id).join("file"), "x").unwrap();
    s.hide_draft(&id).unwrap();
    fs::write(root.join("tmp/1-2"), "half").unwrap();
    fs::create_dir_all(root.join("tmp/1-3/tree")).unwrap();
    drop(s);
    drop(Store::open(&root, Access::Read).unwrap());
    assert!(root.join("tmp/1-2").exists());
    let s = Store::open(&root, Access::Own).unwrap();
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    let names: Vec<_> = fs::read_dir(root.join("drafts")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, [kept.as_str()]);
    drop(s);
}

#[test]
fn destroying_deletes_the_store_and_nothing_else() {
    let (_dir, s) = store();
    let root = s.root().to_owned();
    fs::write(s.path("index.sqlite"), "x").unwrap();
    fs::write(s.path("index.sqlite-wal"), "x").unwrap();
    s.create_draft(&DraftPlace::Native { label: "x".into() }).unwrap();
    drop(s);
    fs::write(root.join("my notes"), "precious").unwrap();
    let e = Store::destroy(&root, &mut |_| {}).unwrap_err();
    assert!(e.to_string().contains("my notes"), "{e}");
    let left: Vec<_> = fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["my notes"]);
    fs::remove_file(root.join("my notes")).unwrap();
    drop(Store::open(&root, Access::Own).unwrap());
    Store::destroy(&root, &mut |_| {}).unwrap();
    assert!(!root.exists());
}

#[test]
fn a_read_only_file_system_can_be_read_but_not_owned() {
    if !is_root() {
        return;
    }
    with_own_mounts(|| {
        use nix::mount::MsFlags;
        let dir = tempfile::tempdir().unwrap();
        mount_tmpfs(dir.path(), MsFlags::empty());
        let root = dir.path().join("s");
        drop(Store::open(&root, Access::Own).unwrap());
        mount_tmpfs(dir.path(), MsFlags::MS_RDONLY);
        let e = Store::open(&root, Access::Own).err();
        assert!(matches!(&e, Some(StoreError::Unsuitable { why, .. }) if why.contains("read-only")), "{e:?}");
        nix::mount::umount(dir.path()).unwrap();
        let again = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        nix::mount::mount(None::<&str>, dir.path(), None::<&str>, again, None::<&str>).unwrap();
        let e = Store::open(&root, Access::Own).err();
        assert!(matches!(&e, Some(StoreError::Unsuitable { why, .. }) if why.contains("read-only")), "{e:?}");
        Store::open(&root, Access::Read).unwrap();
        nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
}

#[test]
fn a_file_system_that_takes_no_changes_confirms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let confirm = || port::confirm(port::paths::open_dir(dir.path()).unwrap().as_fd());
    confirm().unwrap();
    if !is_root() {
        return;
    }
    with_own_mounts(|| {
        mount_tmpfs(dir.path(), nix::mount::MsFlags::MS_RDONLY);
        let confirmed = confirm();
        nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
        assert_eq!(confirmed.unwrap_err().raw_os_error(), Some(libc::EROFS));
    });
}

#[test]
fn a_store_that_cannot_be_written_says_so() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let root = dir.path().join("s");
    let e = super::as_ordinary_user(|| Store::open(&root, Access::Own).err());
    // std's calls and ours alike name the directory.
    assert!(e.is_some_and(|e| e.to_string().contains("s: Permission denied")));
}

/// Who reads a store that has no owner keeps owners out, and nobody who reads, too.
#[test]
fn who_reads_without_an_owner_keeps_owners_out() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let owned = Store::open(&root, Access::Own).unwrap();
    assert!(matches!(Unowned::hold(&root), Err(StoreError::Locked { pid, .. }) if pid == std::process::id()));
    drop(owned);
    let readers = [Unowned::hold(&root).unwrap(), Unowned::hold(&root).unwrap()];
    assert!(matches!(Store::open(&root, Access::Own), Err(StoreError::Locked { .. })));
    assert!(Store::open(&root, Access::Read).is_ok());
    drop(readers);
    Store::open(&root, Access::Own).unwrap();
}
