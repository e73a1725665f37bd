//! Placing: exactly an entry's outputs at some paths, whatever stood there.

use super::*;
use crate::store::shards;

fn place(entry: &Entry, dest: &Path, outputs: &[&str], newest_ns: Option<i64>) -> Restored {
    let outputs: Vec<PathBuf> = outputs.iter().map(PathBuf::from).collect();
    match entry.place(dest, &outputs, RestoreAs::Auto, newest_ns, &Work::default()).unwrap() {
        Placement::Done(restored) => restored,
        lost => panic!("{lost:?}"),
    }
}

#[test]
fn what_stands_there_afterwards_is_the_entrys_and_nothing_else() {
    let f = Fixture::new();
    let tree = f.odd_tree("tree");
    let entry = f.put("abcd", &tree).unwrap().into_entry();
    let dest = f.beside("dest");
    std::fs::create_dir(&dest).unwrap();
    let all = ["a", "empty", "zero", "one group", "one more", "large", "zz", "absolute"];
    place(&entry, &dest, &all, None);
    assert_eq!(look(&dest), look(&tree));
    // Stale files, other kinds, other content, other modes and times.
    std::fs::write(dest.join("a/stale"), "").unwrap();
    std::fs::create_dir_all(dest.join("a/b/more/of")).unwrap();
    std::fs::remove_dir(dest.join("empty")).unwrap();
    std::fs::write(dest.join("empty"), "a file").unwrap();
    std::fs::remove_file(dest.join("zero")).unwrap();
    std::fs::create_dir_all(dest.join("zero/full/of")).unwrap();
    std::fs::write(dest.join("one group"), "differs").unwrap();
    std::fs::set_permissions(dest.join("a/b/c/program"), std::fs::Permissions::from_mode(0o711)).unwrap();
    std::fs::write(dest.join("mine"), "stays").unwrap();
    let done = place(&entry, &dest, &all, None);
    assert_eq!(std::fs::read(dest.join("mine")).unwrap(), b"stays");
    std::fs::remove_file(dest.join("mine")).unwrap();
    assert_eq!(look(&dest), look(&tree));
    assert_eq!(done.files, 2, "what was alike was left");
}

#[test]
fn only_what_is_named_is_touched() {
    let f = Fixture::new();
    let entry = f.put("abcd", &f.odd_tree("tree")).unwrap().into_entry();
    let dest = f.beside("dest");
    std::fs::create_dir_all(dest.join("a/keep")).unwrap();
    std::fs::write(dest.join("zz"), "keep").unwrap();
    place(&entry, &dest, &["a/b/private", "zero"], None);
    let mut names: Vec<_> = look(&dest).into_iter().map(|s| s.path.to_str().unwrap().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["a", "a/b", "a/b/private", "a/keep", "zero", "zz"]);
    assert_eq!(std::fs::read(dest.join("zz")).unwrap(), b"keep");
}

#[test]
fn shifted_times_keep_their_order() {
    let f = Fixture::new();
    let tree = f.beside("tree");
    std::fs::create_dir(&tree).unwrap();
    for (name, ns) in [("old", 1_000_000_007i64), ("same", 1_000_000_007), ("new", 5_000_000_000_000_000_000)]
    {
        std::fs::write(tree.join(name), name).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(ns as u64);
        std::fs::File::options().write(true).open(tree.join(name)).unwrap().set_modified(time).unwrap();
    }
    let entry = f.put("abcd", &tree).unwrap().into_entry();
    let dest = f.beside("dest");
    std::fs::create_dir(&dest).unwrap();
    let now = 1_800_000_000_000_000_000;
    for _ in 0..2 {
        // The second time they are there, and get their times all the same.
        place(&entry, &dest, &["old", "same", "new"], Some(now));
        let time = |name: &str| {
            let meta = dest.join(name).symlink_metadata().unwrap();
            meta.mtime() * 1_000_000_000 + meta.mtime_nsec()
        };
        assert_eq!(time("new"), now);
        assert!(time("old") == time("same") && time("old") < now && time("old") > now - 1_000_000);
        std::fs::File::options()
            .write(true)
            .open(dest.join("new"))
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH)
            .unwrap();
    }
}

#[test]
fn lost_content_is_an_answer_that_names_the_output() {
    let f = Fixture::new();
    let entry = f.put("abcd", &f.odd_tree("tree")).unwrap().into_entry();
    let record = entry.file(b"outputs/one more").unwrap();
    let hash = entry.manifest().unwrap().get(record).unwrap().hash().unwrap();
    std::fs::remove_file(
        f.cache.store().root().join(format!("blobs/{}/{hash}", shards::of(hash.as_bytes()))),
    )
    .unwrap();
    let dest = f.beside("dest");
    std::fs::create_dir(&dest).unwrap();
    let outputs = ["zero".into(), "one more".into()];
    match entry.place(&dest, &outputs, RestoreAs::Auto, None, &Work::default()).unwrap() {
        Placement::Lost { path, .. } => assert_eq!(path, Path::new("one more")),
        done => panic!("{done:?}"),
    }
}

#[test]
fn some_paths_of_a_directory_are_stored() {
    let f = Fixture::new();
    let tree = f.odd_tree("tree");
    let outputs = ["a/b".into(), "zero".into(), "absolute".into()];
    let member = ("outfs", r#"{ "order": "o1" }"#);
    let facts = TaskFacts { task_id: "t".into(), ..TaskFacts::default() };
    let stored = f.cache.put_outputs(
        (&tree, &outputs),
        (&facts, member),
        [None, None],
        None,
        request("abcd"),
        &Work::default(),
    );
    let entry = stored.unwrap().into_entry();
    let paths: Vec<String> = entry
        .manifest()
        .unwrap()
        .paths()
        .into_iter()
        .map(|p| String::from_utf8_lossy(&p).into_owned())
        .collect();
    let mut below: Vec<&str> = paths.iter().filter_map(|p| p.strip_prefix("outputs/")).collect();
    below.sort();
    let wanted =
        ["a", "a/b", "a/b/absolute too", "a/b/c", "a/b/c/program", "a/b/private", "absolute", "zero"];
    assert_eq!(below, wanted);
    assert_eq!(entry.metadata().unwrap().unwrap().extra["outfs"]["order"], "o1");
}

#[test]
fn directories_are_made_aside_and_leave_nothing() {
    let f = Fixture::new();
    let tree = f.beside("tree");
    std::fs::create_dir_all(tree.join("out/sub/deep")).unwrap();
    std::fs::write(tree.join("out/first"), "first").unwrap();
    std::fs::write(tree.join("out/sub/small"), "small").unwrap();
    std::fs::write(tree.join("out/sub/deep/large"), vec![7; 400_000]).unwrap();
    std::fs::hard_link(tree.join("out/sub/deep/large"), tree.join("out/sub/large")).unwrap();
    std::os::unix::fs::symlink("deep", tree.join("out/sub/link")).unwrap();
    let entry = f.put("abcd", &tree).unwrap().into_entry();
    let dest = f.beside("dest");
    std::fs::create_dir(&dest).unwrap();
    place(&entry, &dest, &["out"], None);
    assert!(look(&dest) == look(&tree));
    std::fs::remove_dir_all(dest.join("out/sub")).unwrap();
    std::fs::write(dest.join("out/sub"), "a file").unwrap();
    place(&entry, &dest, &["out"], None);
    assert!(look(&dest) == look(&tree));
    // What is lost half way through leaves the directory out, and no other name.
    let record = entry.file(b"outputs/out/sub/deep/large").unwrap();
    let hash = entry.manifest().unwrap().get(record).unwrap().hash().unwrap();
    std::fs::remove_file(
        f.cache.store().root().join(format!("blobs/{}/{hash}", shards::of(hash.as_bytes()))),
    )
    .unwrap();
    std::fs::remove_dir_all(dest.join("out/sub")).unwrap();
    let lost = entry.place(&dest, &["out".into()], RestoreAs::Auto, None, &Work::default()).unwrap();
    assert!(matches!(lost, Placement::Lost { .. }), "{lost:?}");
    let names: Vec<_> = look(&dest).into_iter().map(|s| s.path.to_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["out", "out/first"]);
}
