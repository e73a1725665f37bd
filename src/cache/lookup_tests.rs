//! Entries that were found without their rows: whatever becomes of the row, who holds the entry gets it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::fixture_tests::{Fixture, key, noise};
use super::*;

/// With entries of these names, and all keys in memory.
fn with(names: &[&str]) -> Fixture {
    let mut f = Fixture::new();
    for (n, name) in (0..).zip(names) {
        f.put(name, &[("out", noise(n, 100))]);
    }
    f.reopen(|_| {});
    f.cache().load_keys();
    f.cache().settle();
    assert!(f.cache().index().has_keys());
    f
}

fn held(f: &Fixture, name: &str) -> Entry {
    f.cache().entry(&key(name), LeaseKind::View).unwrap().unwrap()
}

fn content(entry: &Entry) -> Vec<u8> {
    let manifest = entry.manifest().unwrap();
    let mut bytes = vec![0; 100];
    let n = entry.read(manifest.find(b"outputs/out").unwrap(), 0, &mut bytes).unwrap();
    assert_eq!(n, 100);
    bytes
}

#[test]
fn an_entry_is_found_without_its_row_and_reads_it_when_it_is_wanted() {
    let f = with(&["key1", "key2"]);
    let entry = held(&f, "key1");
    let row = f.cache().index().entry(&key("key1")).unwrap().unwrap();
    assert_eq!((entry.id(), entry.sealed_at_ns()), (row.id, row.sealed_at_ns));
    assert_eq!((entry.top().unwrap(), entry.key()), (row.top.unwrap(), &row.key));
    assert!(entry.0.row.get().is_none());
    assert_eq!(entry.row().unwrap(), &row);
    assert_eq!(entry.manifest().unwrap().top(), entry.top().unwrap());
}

#[test]
fn a_row_that_has_left_the_index_is_found_by_who_holds_the_entry() {
    let f = with(&["key1", "key2", "key3"]);
    let [evicted, replaced] = ["key1", "key2"].map(|name| held(&f, name));
    let another = evicted.held_as(LeaseKind::Hold);
    f.cache().evict(&key("key1"), "test").unwrap();
    f.put("key2", &[("out", noise(9, 100))]);
    assert!(f.cache().index().entry_by_id(replaced.id()).unwrap().is_none());
    assert!(evicted.0.row.get().is_none() && replaced.0.row.get().is_none());
    assert_eq!([&evicted, &another, &replaced].map(content), [noise(0, 100), noise(0, 100), noise(1, 100)]);
    assert_eq!(content(&held(&f, "key2")), noise(9, 100));
    let ids = [evicted.id(), replaced.id()];
    drop((evicted, another, replaced));
    f.cache().tick();
    let gone = ids.map(|id| f.cache().row_of(id, &key("key1")));
    assert!(gone.iter().all(|r| matches!(r, Err(CacheError::NoEntry { .. }))), "nothing is kept for nobody");
    f.sound();
}

#[test]
fn a_row_of_another_key_is_not_taken_for_this_one() {
    let f = with(&["key1"]);
    let id = held(&f, "key1").id();
    assert!(f.cache().row_of(id, &key("key1")).is_ok());
    assert!(matches!(f.cache().row_of(id, &key("key2")), Err(CacheError::NoEntry { .. })));
}

#[test]
fn who_holds_an_entry_gets_its_row_at_every_moment_of_its_going() {
    let f = with(&["key1", "key2"]);
    let (over, read) = (AtomicBool::new(false), AtomicUsize::new(0));
    let reader = |name: &'static str| {
        let (f, over, read) = (&f, &over, &read);
        move || {
            while !over.load(Ordering::Relaxed) {
                let Some(entry) = f.cache().entry(&key(name), LeaseKind::Hold).unwrap() else { continue };
                assert_eq!(entry.row().unwrap().id, entry.id());
                assert_eq!(content(&entry).len(), 100);
                read.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        let readers = ["key1", "key1", "key2", "key2"].map(|name| scope.spawn(reader(name)));
        for n in 10..60 {
            f.put("key1", &[("out", noise(n, 100))]);
            f.cache().evict(&key("key2"), "test").unwrap();
            f.put("key2", &[("out", noise(n, 100))]);
            f.cache().tick();
        }
        over.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|r| r.join().unwrap());
    });
    assert!(read.load(Ordering::Relaxed) > 0);
    f.cache().tick();
    assert!(f.cache().inner.upkeep.condemned.lock().is_empty());
    assert_eq!(f.files("manifests").len(), 2, "what was replaced or evicted is gone");
    f.sound();
}
