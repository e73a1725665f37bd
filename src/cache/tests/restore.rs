//! Restoring: each way gives the same tree, and none leaves its destination.

use super::*;

#[test]
fn every_way_gives_the_same_tree() {
    let f = Fixture::new();
    let tree = f.odd_tree("tree");
    let entry = f.put("abcd", &tree).unwrap().into_entry();
    let wanted = look(&tree);
    for (name, how) in [("auto", RestoreAs::Auto), ("copy", RestoreAs::Copy)] {
        let dest = f.beside(name);
        let done = entry.restore(&dest, how, false).unwrap();
        assert_eq!((done.files, done.kept), (9, 0));
        assert_eq!(look(&dest), wanted, "{name}");
        let large = dest.join("large").metadata().unwrap();
        assert_eq!((large.nlink(), large.mode() & 0o200), (2, 0o200), "linked among themselves only");
        // Again: everything is there already.
        let again = entry.restore(&dest, how, false).unwrap();
        assert_eq!((again.files, again.kept), (0, 13));
        assert_eq!(look(&dest), wanted);
    }
    // Reflink or an error, as the file system can.
    match entry.restore(&f.beside("reflink"), RestoreAs::Reflink, false) {
        Ok(done) => {
            assert_eq!(done.reflinked, 2);
            assert_eq!(look(&f.beside("reflink")), wanted);
        }
        Err(e) => assert!(e.to_string().contains("reflink"), "{e}"),
    }
}

#[test]
fn what_stands_there_stays_without_force() {
    let f = Fixture::new();
    let tree = f.odd_tree("tree");
    let entry = f.put("abcd", &tree).unwrap().into_entry();
    let dest = f.beside("dest");
    std::fs::create_dir_all(dest.join("empty/other")).unwrap();
    std::fs::write(dest.join("mine too"), "stays").unwrap();
    std::fs::write(dest.join("zz"), "differs").unwrap();
    match entry.restore(&dest, RestoreAs::Auto, false).unwrap_err() {
        CacheError::InTheWay(path) => assert_eq!(path, dest.join("zz")),
        e => panic!("{e}"),
    }
    assert_eq!(std::fs::read(dest.join("zz")).unwrap(), b"differs");
    // Force replaces files by files, directories by files and files by directories.
    std::fs::remove_dir_all(dest.join("a")).unwrap();
    std::fs::write(dest.join("a"), "a file").unwrap();
    std::fs::remove_file(dest.join("zero")).unwrap();
    std::fs::create_dir_all(dest.join("zero/full/of")).unwrap();
    entry.restore(&dest, RestoreAs::Auto, true).unwrap();
    assert_eq!(std::fs::read(dest.join("zz")).unwrap(), b"mine");
    assert_eq!(std::fs::read(dest.join("mine too")).unwrap(), b"stays");
    assert!(dest.join("empty/other").is_dir());
    assert_eq!(std::fs::read(dest.join("zero")).unwrap(), b"");
    assert_eq!(std::fs::read(dest.join("a/b/c/program")).unwrap(), b"#!/bin/sh\n");
}

#[test]
fn hostile_symlinks_lead_nowhere() {
    let f = Fixture::new();
    let tree = f.odd_tree("tree");
    let entry = f.put("abcd", &tree).unwrap().into_entry();
    let outside = f.beside("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("victim"), "untouched").unwrap();
    let dest = f.beside("dest");
    std::fs::create_dir(&dest).unwrap();
    std::os::unix::fs::symlink(&outside, dest.join("a")).unwrap();
    std::os::unix::fs::symlink(outside.join("victim"), dest.join("zz")).unwrap();
    std::os::unix::fs::symlink(&outside, dest.join("empty")).unwrap();
    let before = look(&outside);
    assert!(matches!(entry.restore(&dest, RestoreAs::Auto, false), Err(CacheError::InTheWay(_))));
    assert_eq!(look(&outside), before);
    entry.restore(&dest, RestoreAs::Auto, true).unwrap();
    assert_eq!(look(&outside), before);
    assert_eq!(look(&dest), look(&tree));
}

#[test]
fn closed_directories_and_files() {
    let f = Fixture::new();
    let tree = f.beside("tree");
    std::fs::create_dir_all(tree.join("closed/in")).unwrap();
    std::fs::write(tree.join("closed/in/f"), "x").unwrap();
    let mode =
        |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(&tree.join("closed/in/f"), 0o000);
    mode(&tree.join("closed/in"), 0o000);
    mode(&tree.join("closed"), 0o555);
    let put = f.put("abcd", &tree);
    if !nix::unistd::geteuid().is_root() {
        // Not ours to open up.
        assert!(matches!(put, Err(CacheError::Io { .. })));
        mode(&tree.join("closed"), 0o755);
        mode(&tree.join("closed/in"), 0o755);
        return;
    }
    let entry = put.unwrap().into_entry();
    let perm = |path: &[u8]| {
        entry.manifest().unwrap().get(entry.manifest().unwrap().find(path).unwrap()).unwrap().perm()
    };
    assert_eq!((perm(b"outputs/closed"), perm(b"outputs/closed/in")), (0o555, 0));
    let dest = f.beside("dest");
    entry.restore(&dest, RestoreAs::Auto, false).unwrap();
    let restored = |path: &str| dest.join(path).metadata().unwrap().mode() & 0o7777;
    assert_eq!((restored("closed"), restored("closed/in"), restored("closed/in/f")), (0o755, 0o200, 0o200));
}

#[test]
fn no_outputs_give_nothing() {
    let f = Fixture::new();
    let (draft, path) = f.in_place("abcd");
    std::fs::write(path.join("x"), "y").unwrap();
    let entry = f.cache.seal(&draft, request("abcd")).unwrap().into_entry();
    let dest = f.beside("dest");
    assert_eq!(entry.restore(&dest, RestoreAs::Auto, false).unwrap(), Restored::default());
    assert!(look(&dest).is_empty());
}
