//! Sealing: what gets in, who wins, who is refused.

use std::os::fd::AsRawFd;

use super::*;

const META: &str = r#"{"task_id":"build","digest":"d","command":["make"],
    "created_at":"2026-01-02T03:04:05Z","duration_ms":12,"exit_code":3}"#;

fn fill(path: &Path, content: &[u8]) {
    std::fs::create_dir_all(path.join("outputs")).unwrap();
    std::fs::write(path.join("metadata.json"), META).unwrap();
    std::fs::write(path.join("outputs/f"), content).unwrap();
}

#[test]
fn a_draft_becomes_an_entry() {
    let f = Fixture::new();
    let (draft, path) = f.in_place("abcd");
    fill(&path, &bytes(1_000_000, 1));
    let entry = f.cache.seal(&draft, request("abcd")).unwrap().into_entry();
    assert_eq!((entry.row().unwrap().task_id.as_str(), entry.row().unwrap().readable), ("build", true));
    let record = entry.file(b"outputs/f").unwrap();
    assert_eq!(entry.read_all(record, 1 << 20).unwrap(), bytes(1_000_000, 1));
    assert!(f.cache.draft_for(&key("abcd")).is_none());
    assert!(draft.change().is_err(), "a sealed draft changes no more");
    f.cache.settle();
    assert!(!path.exists(), "the draft's tree is deleted");
    assert!(matches!(events(&f.cache)[..], [EventKind::Sealed { .. }]));
    let f = {
        drop(entry);
        f.reopen()
    };
    let Lookup::Hit { entry, metadata } = f.cache.lookup(&key("abcd")).unwrap() else { panic!("a miss") };
    assert_eq!(metadata.exit_code, 3, "a hit whatever the exit code");
    let record = entry.file(b"outputs/f").unwrap();
    assert_eq!(entry.read_all(record, 1 << 20).unwrap(), bytes(1_000_000, 1));
    assert!(f.cache.drafts().is_empty());
}

#[test]
fn missing_metadata_is_written_broken_metadata_is_a_miss() {
    let f = Fixture::new();
    let (draft, path) = f.in_place("none");
    std::fs::write(path.join("x"), "y").unwrap();
    f.cache.seal(&draft, request("none")).unwrap();
    let Lookup::Hit { metadata, .. } = f.cache.lookup(&key("none")).unwrap() else { panic!("a miss") };
    assert_eq!((metadata.digest.as_str(), metadata.task_id.as_str(), metadata.exit_code), ("none", "", 0));

    let (draft, path) = f.in_place("broken");
    fill(&path, b"1");
    std::fs::write(path.join("metadata.json"), "{").unwrap();
    let entry = f.cache.seal(&draft, request("broken")).unwrap().into_entry();
    assert!(!entry.row().unwrap().readable);
    assert!(matches!(f.cache.lookup(&key("broken")).unwrap(), Lookup::Miss(Miss::BadMetadata(_))));
    assert!(events(&f.cache).iter().any(|e| matches!(e, EventKind::BadMetadata { .. })));
    // A miss can be stored again.
    let (draft, path) = f.in_place("broken");
    fill(&path, b"1");
    assert!(matches!(f.cache.seal(&draft, request("broken")).unwrap(), Sealed::New(_)));
    assert!(matches!(f.cache.lookup(&key("broken")).unwrap(), Lookup::Hit { .. }));
    assert!(matches!(f.cache.lookup(&key("nothing")).unwrap(), Lookup::Miss(Miss::NoEntry)));
}

/// S7.2 Who looks at all of it and who passes over what is not asked for see the same; but for values without a meaning.
#[test]
fn metadata_that_is_passed_over_is_text_too() {
    use crate::model::Summary;
    let f = Fixture::new();
    let more =
        |value: &[u8]| [META.strip_suffix('}').unwrap().as_bytes(), b",\"more\":", value, b"}"].concat();
    let deep = [[b'['; 200], [b']'; 200]].concat();
    let cases: [(&[u8], bool, bool); 6] = [
        (b"[\"text\", 1.5]", true, true),
        (b"\"\xff\"", false, false),
        (b"[1", false, false),
        (b"\"\\ud800\"", false, true),
        (b"1e999", false, true),
        (&deep, false, true),
    ];
    for (n, (value, whole, summary)) in cases.into_iter().enumerate() {
        let name = format!("key-{n}");
        let (draft, path) = f.in_place(&name);
        fill(&path, b"1");
        std::fs::write(path.join("metadata.json"), more(value)).unwrap();
        f.cache.seal(&draft, request(&name)).unwrap();
        let is_hit = matches!(f.cache.lookup(&key(&name)).unwrap(), Lookup::Hit { .. });
        assert_eq!(is_hit, whole, "{}", value.escape_ascii());
        match f.cache.lookup_as::<Summary>(&key(&name)).unwrap() {
            Lookup::Hit { .. } => assert!(summary, "{}", value.escape_ascii()),
            Lookup::Miss(miss) => {
                assert!(!summary && matches!(miss, Miss::BadMetadata(_)), "{}: {miss}", value.escape_ascii());
            }
        }
    }
}

#[test]
fn the_first_sealed_result_wins() {
    let f = Fixture::new();
    let tree = f.odd_tree("tree");
    let Sealed::New(first) = f.put("abcd", &tree).unwrap() else { panic!("not new") };
    let Sealed::Same(again) = f.put("abcd", &tree).unwrap() else { panic!("not the same") };
    assert_eq!(first.manifest_hash().unwrap(), again.manifest_hash().unwrap());
    std::fs::write(tree.join("zz"), "other").unwrap();
    match f.put("abcd", &tree).unwrap_err() {
        CacheError::Exists { differs, .. } => assert_eq!(differs, "outputs/zz"),
        e => panic!("{e}"),
    }
    assert!(events(&f.cache).iter().any(|e| matches!(e, EventKind::NotDeterministic { .. })));

    let (draft, path) = f.in_place("work");
    std::fs::create_dir_all(path.join("outputs")).unwrap();
    assert!(matches!(f.cache.seal(&draft, request("abcd")), Err(CacheError::Exists { .. })));
    let gate = draft.change().expect("a refused draft lives on");
    drop(gate);
    assert!(matches!(f.cache.seal(&draft, request("other")).unwrap(), Sealed::New(_)));
}

/// A draft's large file is linked into the store when it is looked through; if that leads to no entry, it may be written again.
#[test]
fn what_a_refused_seal_has_linked_is_not_believed_later() {
    let f = Fixture::new();
    f.put("taken", &f.odd_tree("tree")).unwrap();
    let (draft, path) = f.in_place("work");
    let out = path.join("outputs");
    std::fs::create_dir_all(&out).unwrap();
    let (one, other) = (bytes(3_000_000, 5), bytes(3_000_000, 6));
    std::fs::write(out.join("a"), &one).unwrap();
    assert!(matches!(f.cache.seal(&draft, request("taken")), Err(CacheError::Exists { .. })));
    // The same inode has other bytes now, and another file the old ones.
    std::fs::write(out.join("b"), &one).unwrap();
    std::fs::write(out.join("a"), &other).unwrap();
    let Sealed::New(entry) = f.cache.seal(&draft, request("free")).unwrap() else { panic!("not new") };
    for (name, wanted) in [("a", &other), ("b", &one)] {
        let record = entry.file(format!("outputs/{name}").as_bytes()).unwrap();
        assert!(&entry.read_all(record, 1 << 24).unwrap() == wanted, "{name}");
    }
    assert_eq!(f.cache.store().loose_blobs().unwrap().len(), 2 + 2, "the other entry's, and these");
}

/// Nobody holds it: what only it had goes at once.
#[test]
fn a_replaced_entry_that_nobody_holds_is_freed() {
    let f = Fixture::new();
    let tree = f.odd_tree("tree");
    let replace = || SealRequest { replace: true, ..request("abcd") };
    let put =
        |request: SealRequest| f.cache.put_dir(&tree, &TaskFacts::default(), [None, None], request).unwrap();
    drop(put(replace()));
    let before = f.cache.index().totals().unwrap();
    std::fs::write(tree.join("large"), bytes(2_000_000, 9)).unwrap();
    std::fs::write(tree.join("zz"), "other").unwrap();
    drop(put(replace()));
    let after = f.cache.index().totals().unwrap();
    assert_eq!(after.unreferenced_bytes, 0);
    assert_eq!(after.loose_bytes, before.loose_bytes - 1_000_000);
}

#[test]
fn an_inferred_entry_is_replaced_and_so_is_what_replace_asks_for() {
    let f = Fixture::new();
    let tree = f.odd_tree("tree");
    let put =
        |request: SealRequest| f.cache.put_dir(&tree, &TaskFacts::default(), [None, None], request).unwrap();
    let quiet = put(SealRequest { inferred: true, ..request("abcd") }).into_entry();
    assert!(quiet.row().unwrap().inferred);
    let Sealed::New(kept) = put(request("abcd")) else { panic!("an inferred entry stayed") };
    assert!(!kept.row().unwrap().inferred);
    assert_eq!(kept.manifest().unwrap().seal().replaces, Some(quiet.manifest_hash().unwrap()));
    // The replaced one is read by those who hold it.
    let record = quiet.file(b"outputs/large").unwrap();
    assert_eq!(quiet.read_all(record, 1 << 24).unwrap(), bytes(3_000_000, 3));

    std::fs::write(tree.join("large"), bytes(2_000_000, 9)).unwrap();
    let Sealed::New(new) = put(SealRequest { replace: true, ..request("abcd") }) else { panic!() };
    let record = new.file(b"outputs/large").unwrap();
    assert_eq!(new.read_all(record, 1 << 24).unwrap(), bytes(2_000_000, 9));
    let record = kept.file(b"outputs/large").unwrap();
    assert_eq!(kept.read_all(record, 1 << 24).unwrap(), bytes(3_000_000, 3));
    assert_eq!(
        f.cache.entry(&key("abcd"), LeaseKind::Hold).unwrap().unwrap().manifest_hash().unwrap(),
        new.manifest_hash().unwrap()
    );
}

#[test]
fn content_is_stored_once() {
    let f = Fixture::new();
    let tree = f.odd_tree("tree");
    f.put("first", &tree).unwrap();
    let before = f.cache.index().totals().unwrap();
    f.put("second", &tree).unwrap();
    let after = f.cache.index().totals().unwrap();
    assert_eq!(after.loose_bytes, before.loose_bytes);
    // Only the second one's own metadata is new.
    assert_eq!(after.blobs, before.blobs + 1);
    assert_eq!(f.cache.store().loose_blobs().unwrap().len(), 2);
}

#[test]
fn a_writer_makes_it_busy() {
    let f = Fixture::new();
    let (draft, path) = f.in_place("abcd");
    fill(&path, b"content");
    std::fs::write(path.join("outputs/big"), bytes(1_000_000, 5)).unwrap();
    let started = std::time::Instant::now();
    for name in ["outputs/f", "outputs/big"] {
        let writer = std::fs::File::options().write(true).open(path.join(name)).unwrap();
        match f.cache.seal(&draft, request("abcd")).unwrap_err() {
            CacheError::Busy { path } => assert_eq!(path, name),
            e => panic!("{e}"),
        }
        // As the file system counts it.
        drop(writer);
        let gate = draft.change().unwrap();
        let writer = std::fs::File::options().write(true).open(path.join(name)).unwrap();
        draft.writer_opened();
        drop(gate);
        match f.cache.seal(&draft, request("abcd")).unwrap_err() {
            CacheError::Busy { path } => assert_eq!(path, name),
            e => panic!("{e}"),
        }
        drop(writer);
        draft.writer_closed();
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(8));
    f.cache.seal(&draft, request("abcd")).unwrap();
}

#[test]
fn a_shared_mapping_makes_it_busy() {
    let f = Fixture::new();
    let (draft, path) = f.in_place("abcd");
    fill(&path, &bytes(8192, 1));
    let file = std::fs::File::options().read(true).write(true).open(path.join("outputs/f")).unwrap();
    // SAFETY: a fresh mapping of a file that stays that long.
    let map = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(map, libc::MAP_FAILED);
    drop(file);
    assert!(matches!(f.cache.seal(&draft, request("abcd")), Err(CacheError::Busy { .. })));
    // SAFETY: the mapping made above.
    assert_eq!(unsafe { libc::munmap(map, 4096) }, 0);
    f.cache.seal(&draft, request("abcd")).unwrap();
}

#[test]
fn special_files_are_refused_by_name() {
    let f = Fixture::new();
    let (draft, path) = f.in_place("abcd");
    fill(&path, b"x");
    nix::unistd::mkfifo(&path.join("outputs/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    match f.cache.seal(&draft, request("abcd")).unwrap_err() {
        CacheError::SpecialFile { path, what } => assert_eq!((path.as_str(), what), ("outputs/pipe", "fifo")),
        e => panic!("{e}"),
    }
    std::fs::remove_file(path.join("outputs/pipe")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path.join("s")).unwrap();
    assert!(matches!(
        f.cache.seal(&draft, request("abcd")),
        Err(CacheError::SpecialFile { what: "socket", .. })
    ));
}

#[test]
fn hashes_are_used_again_and_forgotten_before_writing() {
    let f = Fixture::new();
    let (draft, path) = f.in_place("abcd");
    fill(&path, b"x");
    let big = path.join("outputs/big");
    std::fs::write(&big, bytes(1_000_000, 1)).unwrap();
    let file = std::fs::File::open(&big).unwrap();
    let stat = || super::super::at::stat_of(&file).unwrap();
    assert_eq!(draft.known_hash(&stat()), None);
    assert!(f.cache.ingest(&draft, &file).unwrap());
    let hash = crate::model::BlobHash::of(&bytes(1_000_000, 1));
    assert_eq!(draft.known_hash(&stat()), Some(hash));

    let writer = std::fs::File::options().write(true).open(&big).unwrap();
    assert!(!f.cache.ingest(&draft, &file).unwrap(), "a writer has it");
    drop(writer);
    let gate = draft.change().unwrap();
    draft.cancel_ingest(stat().st_dev, stat().st_ino);
    drop(gate);
    assert_eq!(draft.known_hash(&stat()), None);
    std::fs::write(&big, bytes(1_000_000, 2)).unwrap();
    let entry = f.cache.seal(&draft, request("abcd")).unwrap().into_entry();
    let record = entry.file(b"outputs/big").unwrap();
    assert_eq!(entry.read_all(record, 1 << 20).unwrap(), bytes(1_000_000, 2));
}

#[test]
fn what_changes_after_preparing_is_sealed_as_it_is_then() {
    let f = Fixture::new();
    let (draft, path) = f.in_place("abcd");
    fill(&path, b"before");
    std::fs::write(path.join("outputs/big"), bytes(1_000_000, 1)).unwrap();
    f.prepare(&draft);
    assert_eq!(f.cache.store().loose_blobs().unwrap().len(), 1);
    let gate = draft.change().unwrap();
    std::fs::write(path.join("outputs/f"), b"after").unwrap();
    // In place: the prepared blob is the same file and changes with it.
    std::fs::write(path.join("outputs/big"), bytes(1_000_000, 2)).unwrap();
    drop(gate);
    let entry = f.cache.seal(&draft, request("abcd")).unwrap().into_entry();
    assert_eq!(entry.read_all(entry.file(b"outputs/f").unwrap(), 100).unwrap(), b"after");
    assert_eq!(entry.read_all(entry.file(b"outputs/big").unwrap(), 1 << 20).unwrap(), bytes(1_000_000, 2));
    assert_eq!(f.cache.store().loose_blobs().unwrap().len(), 1, "what was prepared in vain is gone");
    assert_eq!(f.cache.store().packs().unwrap().len(), 2, "the metadata's and the changed file's");
}

#[test]
fn prepared_blobs_of_another_draft_are_not_trusted() {
    let f = Fixture::new();
    let content = bytes(1_000_000, 1);
    let (one, one_path) = f.in_place("one1");
    fill(&one_path, b"one");
    std::fs::write(one_path.join("outputs/big"), &content).unwrap();
    f.prepare(&one);
    let (two, two_path) = f.in_place("two2");
    fill(&two_path, b"two");
    std::fs::write(two_path.join("outputs/big"), &content).unwrap();
    let entry = f.cache.seal(&two, request("two2")).unwrap().into_entry();
    // The first draft's file, once linked under the same name, is written again in place.
    let gate = one.change().unwrap();
    std::fs::write(one_path.join("outputs/big"), bytes(1_000_000, 2)).unwrap();
    drop(gate);
    assert_eq!(entry.read_all(entry.file(b"outputs/big").unwrap(), 1 << 20).unwrap(), content);
    let first = f.cache.seal(&one, request("one1")).unwrap().into_entry();
    assert_eq!(first.read_all(first.file(b"outputs/big").unwrap(), 1 << 20).unwrap(), bytes(1_000_000, 2));
    assert_eq!(entry.read_all(entry.file(b"outputs/big").unwrap(), 1 << 20).unwrap(), content);
}

#[test]
fn a_dropped_draft_leaves_nothing() {
    let f = Fixture::new();
    let (draft, path) = f.in_place("abcd");
    fill(&path, b"x");
    std::fs::write(path.join("outputs/big"), bytes(1_000_000, 1)).unwrap();
    f.prepare(&draft);
    f.cache.drop_draft(&draft, "test").unwrap();
    f.cache.settle();
    assert!(!path.exists());
    assert!(f.cache.store().loose_blobs().unwrap().is_empty());
    assert!(f.cache.store().packs().unwrap().is_empty());
    assert!(matches!(f.cache.seal(&draft, request("abcd")), Err(CacheError::Gone(_))));
}

#[test]
fn eight_stores_of_one_key_at_once() {
    let f = Fixture::new();
    let tree = f.odd_tree("tree");
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| f.put("abcd", &tree).unwrap())).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|r| matches!(r, Sealed::New(_))).count(), 1);
}

#[test]
fn eight_keys_with_the_same_content_at_once() {
    let f = Fixture::new();
    let tree = f.odd_tree("tree");
    std::thread::scope(|scope| {
        for i in 0..8 {
            let (f, tree) = (&f, &tree);
            scope.spawn(move || f.put(&format!("key{i}"), tree).unwrap());
        }
    });
    for i in 0..8 {
        let entry = f.cache.entry(&key(&format!("key{i}")), LeaseKind::Hold).unwrap().unwrap();
        let record = entry.file(b"outputs/large").unwrap();
        assert_eq!(entry.read_all(record, 1 << 24).unwrap(), bytes(3_000_000, 3));
        let record = entry.file(b"outputs/a/b/c/program").unwrap();
        assert_eq!(entry.read_all(record, 1 << 24).unwrap(), b"#!/bin/sh\n");
    }
}

#[test]
fn many_small_files_and_a_deep_tree() {
    let f = Fixture::new();
    let (draft, path) = f.in_place("abcd");
    for d in 0..10 {
        let dir = path.join(format!("outputs/{d}"));
        std::fs::create_dir_all(&dir).unwrap();
        for n in 0..150 {
            std::fs::write(dir.join(n.to_string()), format!("{d} {n}")).unwrap();
        }
    }
    let mut deep = path.join("outputs/deep");
    for _ in 0..150 {
        deep.push("d");
    }
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("bottom"), "here").unwrap();
    let entry = f.cache.seal(&draft, request("abcd")).unwrap().into_entry();
    assert_eq!(entry.row().unwrap().files, 1502);
    assert_eq!(f.cache.store().packs().unwrap().len(), 2, "the files, and the metadata that was missing");
    let bottom = format!("outputs/deep/{}bottom", "d/".repeat(150));
    assert_eq!(entry.read_all(entry.file(bottom.as_bytes()).unwrap(), 10).unwrap(), b"here");
    assert_eq!(entry.read_all(entry.file(b"outputs/7/149").unwrap(), 10).unwrap(), b"7 149");
}

#[test]
fn what_fails_after_the_commit_does_not_leave_the_draft_open() {
    let f = Fixture::new();
    let (draft, path) = f.in_place("abcd");
    fill(&path, &bytes(1_000_000, 7));
    // No event can be written: the log has no directory to begin its first segment in.
    std::fs::remove_dir_all(f.beside("store/events")).unwrap();
    let sealed = f.cache.seal(&draft, request("abcd"));
    assert!(f.cache.store().append_event(EventKind::BadMetadata { why: "x".into() }, None, false).is_err());
    assert!(matches!(sealed, Ok(Sealed::New(_))), "{sealed:?}");
    assert!(draft.change().is_err(), "its large files are the entry's blobs now");
}
