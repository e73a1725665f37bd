//! Keys in memory never hide an entry: while they are loaded, while entries come, go and are replaced, and when
//! there are too many.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::tests::{done, entry, manifest};
use super::*;

fn key(n: u32) -> EntryKey {
    EntryKey::parse(&format!("task-{n}")).unwrap()
}

/// An entry under the key `n`, of the manifest `m`.
fn new(n: u32, m: u32) -> NewEntry {
    let mut new = entry(0, m, vec![], vec![]);
    new.row.key = key(n);
    new
}

fn replacing(n: u32, m: u32, old: u32) -> NewEntry {
    NewEntry { replaces: Some(Replaced { manifest: manifest(old), blobs: vec![] }), ..new(n, m) }
}

/// What is found under a key: with its row, and at a glance. Nobody may be changing it.
fn found(index: &Index, n: u32) -> Option<ManifestHash> {
    let row = index.entry(&key(n)).unwrap();
    let seen = index.glance(&key(n)).unwrap();
    let of_row = row.as_ref().map(|row| (row.id, row.sealed_at_ns, row.top));
    assert_eq!(seen.map(|seen| (seen.id, seen.sealed_at_ns, seen.top)), of_row, "key {n}");
    row.map(|row| row.manifest)
}

fn remove(index: &Index, n: u32, m: u32) {
    index.remove_entry(&key(n), &manifest(m), &[], &|_| false).unwrap().unwrap();
}

/// With entries 0 to 299 (of the manifests of the same numbers), none of whose keys is in memory yet.
fn of_300(file: &Path, bytes: usize) -> Index {
    let index = Index::open(file, bytes).unwrap().0;
    index.commit_all((0..300).map(|n| new(n, n)).collect()).unwrap();
    index.close().unwrap();
    drop(index);
    Index::open(file, bytes).unwrap().0
}

fn load(index: &Index, page: usize) {
    let mut next = Some(0);
    while let Some(after) = next {
        next = index.load_keys(after, page).unwrap();
    }
}

#[test]
fn what_is_loaded_and_what_came_meanwhile_is_found_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let index = of_300(&dir.path().join("index.sqlite"), 1 << 20);
    let after = index.load_keys(0, 100).unwrap().unwrap();
    done(index.commit(new(300, 300)).unwrap());
    remove(&index, 1, 1);
    done(index.commit(replacing(2, 1002, 2)).unwrap());
    assert!(!index.has_keys());
    let after = index.load_keys(after, 100).unwrap().unwrap();
    let after = index.load_keys(after, 100).unwrap();
    // Exactly as many as fit: the next page is empty.
    assert_eq!(after.map(|a| index.load_keys(a, 100).unwrap()), Some(None));
    assert!(index.has_keys());
    let expected = |n| match n {
        1 => None,
        2 => Some(manifest(1002)),
        0..=300 => Some(manifest(n)),
        _ => None,
    };
    (0..400).for_each(|n| assert_eq!(found(&index, n), expected(n), "key {n}"));
}

#[test]
fn one_that_is_there_is_found_whatever_others_do() {
    let dir = tempfile::tempdir().unwrap();
    let index = of_300(&dir.path().join("index.sqlite"), 1 << 20);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..2u32 {
            let (index, over) = (&index, &over);
            scope.spawn(move || {
                for n in (0..).map(|n| 100 + (n * 7 + reader) % 200) {
                    assert!(index.entry(&key(n)).unwrap().is_some(), "key {n}");
                    assert!(index.glance(&key(n)).unwrap().is_some(), "key {n}");
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        let write = |writer: u32| {
            for n in (0..100).filter(|n| n % 2 == writer) {
                remove(&index, n, n);
                assert_eq!(found(&index, n), None);
                done(index.commit(new(n, 1000 + n)).unwrap());
                assert_eq!(found(&index, n), Some(manifest(1000 + n)));
                // Always one of the two.
                done(index.commit(replacing(100 + n, 2000 + n, 100 + n)).unwrap());
                assert_eq!(found(&index, 100 + n), Some(manifest(2000 + n)));
            }
        };
        let others =
            [scope.spawn(move || write(0)), scope.spawn(move || write(1)), scope.spawn(|| load(&index, 3))];
        let ended = others.map(|other| other.join());
        over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(|e| e.is_ok()));
    });
    assert!(index.has_keys());
    assert_eq!(index.integrity().unwrap(), Vec::<String>::new());
}

#[test]
fn with_too_many_entries_the_index_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let index = of_300(&dir.path().join("index.sqlite"), 200 * keys::ENTRY_BYTES);
    load(&index, 50);
    assert!(!index.has_keys());
    assert!((0..300).all(|n| found(&index, n) == Some(manifest(n))));
    assert_eq!(found(&index, 300), None);
}

#[test]
fn an_index_made_anew_has_its_new_keys_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let index = of_300(&dir.path().join("index.sqlite"), 1 << 20);
    let after = index.load_keys(0, 100).unwrap().unwrap();
    index.reset().unwrap();
    index.commit_all((200..400).map(|n| new(n, n)).collect()).unwrap();
    assert_eq!(index.load_keys(after, 1000).unwrap(), None);
    assert!(index.has_keys());
    (0..500).for_each(|n| assert_eq!(found(&index, n).is_some(), (200..400).contains(&n), "key {n}"));
    index.reset().unwrap();
    assert!((0..500).all(|n| found(&index, n).is_none()));
    done(index.commit(new(7, 7)).unwrap());
    assert_eq!(found(&index, 7), Some(manifest(7)));
}
