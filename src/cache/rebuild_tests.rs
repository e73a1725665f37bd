//! What comes back after a death, and an index that is made anew, on real stores.

use std::time::{Duration, Instant};

use super::fixture_tests::{Fixture, MIB, key, limited, noise};
use super::*;
use crate::index::EntryRow;
use crate::model::manifest::Origin;
use crate::store::shards;

/// An index that is being made anew knows nothing yet, and what it does not know is not nobody's.
#[test]
fn nothing_is_freed_while_the_index_is_made_anew() {
    let f = Fixture::with(limited(4));
    f.put("key1", &[("large", noise(1, 2 * MIB)), ("small", noise(2, 100))]);
    f.cache().index().reset().unwrap();
    f.cache().inner.upkeep.sweep.lock().begin_again();
    f.cache().finish_sweep().unwrap();
    f.cache().gc(&GcOptions { dry_run: false, older_than: Some(Duration::ZERO) }).unwrap();
    let _ = f.cache().make_room(3 * MIB as u64);
    f.cache().compact().unwrap();
    assert_eq!((f.files("blobs").len(), f.files("manifests").len()), (1, 1));
    f.cache().rebuild_index(&mut |_, _| {}).unwrap();
    assert_eq!(f.keys(), ["key1"]);
    f.sound();
}

/// Not for a moment only: whoever stores or evicts waits until the index is made anew, and nobody finds half of it.
#[test]
fn who_stores_or_evicts_waits_while_the_index_is_made_anew() {
    let f = Fixture::new();
    f.put("key1", &[("large", noise(1, MIB)), ("small", noise(2, 100))]);
    let held = f.cache().entry(&key("key1"), LeaseKind::Hold).unwrap();
    assert!(f.cache().alone_with_index().is_err(), "somebody holds an entry");
    drop(held);
    let alone = f.cache().alone_with_index().unwrap();
    assert!(f.cache().entry(&key("key1"), LeaseKind::Hold).unwrap().is_none());
    std::thread::scope(|s| {
        let stores = s.spawn(|| f.put("key2", &[("large", noise(1, MIB)), ("small", noise(2, 100))]));
        let evicts = s.spawn(|| f.cache().evict(&key("key1"), "request").unwrap());
        let ticks = s.spawn(|| f.cache().tick());
        let end = Instant::now() + Duration::from_millis(50);
        while Instant::now() < end {
            assert!(!stores.is_finished() && !evicts.is_finished(), "it is alone");
        }
        ticks.join().unwrap();
        drop(alone);
        stores.join().unwrap();
        assert!(evicts.join().unwrap());
    });
    assert_eq!(f.keys(), ["key2"]);
    let entry = f.cache().entry(&key("key2"), LeaseKind::Hold).unwrap().unwrap();
    assert_eq!(entry.read_all(entry.file(b"outputs/large").unwrap(), u64::MAX).unwrap(), noise(1, MIB));
    f.sound();
}

/// What a draft of before was about to bring is its own file still.
#[test]
fn an_index_that_is_made_anew_takes_up_no_file_that_a_draft_can_write_to() {
    let mut f = Fixture::new();
    let place = crate::store::DraftPlace::InPlace { key: key("key1") };
    let draft = f.cache().create_draft(place).unwrap();
    let tree = f.cache().store().draft_path(draft.id());
    for n in 1..3 {
        std::fs::write(tree.join(format!("large{n}")), noise(n, MIB)).unwrap();
    }
    f.cache().prepare(&draft, Instant::now() + Duration::from_secs(10)).unwrap();
    let blob = |n| {
        let hash = crate::model::BlobHash::of(&noise(n, MIB));
        f.store().join("blobs").join(shards::of(hash.as_bytes())).join(hash.to_hex())
    };
    let (first, second) = (blob(1), blob(2));
    f.put("key2", &[("large", noise(2, MIB))]);
    // As if a death had left both as they were before anything was committed.
    f.reopen(|store| {
        for (n, path) in [(1, &first), (2, &second)] {
            let _ = std::fs::remove_file(path);
            std::fs::hard_link(tree.join(format!("large{n}")), path).unwrap();
        }
        std::fs::remove_file(store.join("index.sqlite")).unwrap();
    });
    drop(draft);
    assert!(!first.exists(), "no entry has it");
    f.put("key3", &[("large", noise(1, MIB))]);
    let draft = f.cache().draft_for(&key("key1")).unwrap();
    assert_eq!(f.cache().store().draft_path(draft.id()), tree);
    for n in 1..3 {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().write(true).open(tree.join(format!("large{n}"))).unwrap();
        file.write_all_at(b"something else", 0).unwrap();
    }
    for (name, n) in [("key3", 1), ("key2", 2)] {
        let entry = f.cache().entry(&key(name), LeaseKind::Hold).unwrap().unwrap();
        let read = entry.read_all(entry.file(b"outputs/large").unwrap(), u64::MAX).unwrap();
        assert!(read == noise(n, MIB), "{name}");
    }
}

#[test]
fn the_order_of_access_outlives_the_process() {
    let mut f = Fixture::new();
    for name in ["key1", "key2", "key3"] {
        f.put(name, &[("f", name.into())]);
    }
    f.cache().touch(&f.cache().entry(&key("key1"), LeaseKind::Hold).unwrap().unwrap());
    f.reopen(|_| {});
    let order: Vec<_> = f.cache().index().oldest(None, 9).unwrap().into_iter().map(|r| r.key).collect();
    assert_eq!(order, [key("key2"), key("key3"), key("key1")]);
}

#[test]
fn a_lost_index_is_made_anew() {
    let mut f = Fixture::new();
    f.put("key1", &[("big", noise(1, MIB)), ("small", noise(2, 100))]);
    f.put("key2", &[("big", noise(1, MIB)), ("small", noise(3, 100))]);
    f.put("key3", &[("other", noise(4, MIB))]);
    std::fs::write(f.dir.path().join("src-key3/other"), noise(5, MIB)).unwrap();
    f.put("key3", &[]);
    f.cache().pin("p", &key("key1")).unwrap();
    let rows: Vec<EntryRow> = f.cache().index().entries_after(0, 9).unwrap();
    let totals = f.cache().index().totals().unwrap();
    let epoch = f.cache().index().epoch();
    let events = f.events().len();
    f.reopen(|store| {
        for name in ["index.sqlite", "index.sqlite-wal"] {
            let _ = std::fs::remove_file(store.join(name));
        }
    });
    assert_eq!(f.cache().index().totals().unwrap(), totals);
    for old in rows {
        let new = f.cache().index().entry(&old.key).unwrap().unwrap();
        assert_eq!((new.manifest, &new.task_id, new.readable), (old.manifest, &old.task_id, true));
        let entry = f.cache().entry(&old.key, LeaseKind::Hold).unwrap().unwrap();
        assert!(entry.metadata().unwrap().is_ok());
    }
    assert!(f.cache().index().epoch() > epoch && f.events().len() > events);
    assert_eq!(f.cache().pins().len(), 1);
    f.sound();
}

#[test]
fn orphans_of_a_death_are_swept_and_the_rest_stays() {
    let mut f = Fixture::new();
    f.put("key1", &[("big", noise(1, MIB)), ("small", noise(2, 100))]);
    f.put("key2", &[("big", noise(6, MIB)), ("small", noise(7, 100))]);
    // As if the process had died between the index and the files: an entry the index forgot, one
    // that was hidden while held, and a death noted in the lock.
    let row = f.cache().index().entry(&key("key2")).unwrap().unwrap();
    let blobs = f.cache().blobs_of(&row).unwrap();
    f.cache().index().remove_entry(&row.key, &row.manifest, &blobs, &|_| true).unwrap().unwrap();
    let stray = crate::model::BlobHash::of(b"stray").to_hex();
    f.reopen(|store| {
        std::fs::write(store.join("blobs").join(&stray[..2]).join(&stray), b"x").unwrap();
        std::fs::write(store.join("packs/00000000deadbeef.pack"), b"x").unwrap();
        std::fs::write(store.join("lock"), "1\n").unwrap();
        // What is older than the process is told by the clock of the file system.
        std::thread::sleep(Duration::from_millis(40));
    });
    assert_eq!(f.files("blobs").len(), 3);
    f.cache().finish_sweep().unwrap();
    assert_eq!((f.files("blobs").len(), f.files("manifests").len(), f.files("packs").len()), (1, 1, 1));
    assert!(!f.store().join("index.sweep").exists());
    let entry = f.cache().entry(&key("key1"), LeaseKind::Hold).unwrap().unwrap();
    assert_eq!(entry.read_all(entry.file(b"outputs/big").unwrap(), u64::MAX).unwrap(), noise(1, MIB));
    f.sound();
}

/// By the clock a pack that is not committed yet may be older than this process, if that was set back: it is not told by the clock.
#[test]
fn a_pack_that_this_process_made_is_no_orphan_whatever_the_clock_says() {
    let f = Fixture::new();
    let place = crate::store::DraftPlace::InPlace { key: key("key1") };
    let draft = f.cache().create_draft(place).unwrap();
    let tree = f.cache().store().draft_path(draft.id());
    std::fs::write(tree.join("small"), noise(1, 5000)).unwrap();
    f.cache().prepare(&draft, Instant::now() + Duration::from_secs(10)).unwrap();
    assert_eq!(f.files("packs").len(), 1);
    f.cache().inner.upkeep.sweep.lock().begin_again();
    f.cache().finish_sweep().unwrap();
    let repair = FsckOptions { repair: true, ..FsckOptions::default() };
    assert_eq!(f.cache().fsck(repair, &mut |_| {}).unwrap().orphans, 0);
    let origin = Origin { how: "seal".into(), ..Origin::default() };
    let request = SealRequest { key: key("key1"), origin, inferred: false, replace: false };
    let entry = f.cache().seal(&draft, request).unwrap().into_entry();
    assert_eq!(entry.read_all(entry.file(b"small").unwrap(), u64::MAX).unwrap(), noise(1, 5000));
}
