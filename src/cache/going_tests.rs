//! What goes while somebody relies on it: orders of things that no sleep would meet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fixture_tests::{Fixture, MIB, noise};
use super::stash::Stash;
use super::upkeep::FREE_EVERY;
use super::{LeaseKind, Lookup};
use crate::model::BlobHash;
use crate::model::groups::GroupHasher;
use crate::model::manifest::Content;

/// Who evicts an entry that is just being replaced takes nothing from those who read the old one.
#[test]
fn what_is_replaced_while_it_is_evicted_is_kept_for_its_readers() {
    let f = Fixture::new();
    let content = noise(1, MIB);
    let row = f.put("abcd", &[("f", content.clone())]);
    let cache = f.cache();
    let reader = cache.entry(&row.key, LeaseKind::View).unwrap().unwrap();
    let blobs = cache.blobs_of(&row).unwrap();
    let choice = cache.inner.leases.choose(row.id, true).unwrap();
    // As a commit that replaces it does.
    let before = cache.reserve(&blobs);
    cache.inner.index.remove_entry(&row.key, &row.manifest, &blobs, &|_| true).unwrap().unwrap();
    cache.free_replaced(&row, before);
    assert!(cache.remove_chosen(&row, choice, "request").unwrap().is_none(), "it was not there any more");

    let unreferenced = cache.inner.index.unreferenced(99).unwrap();
    assert!(!unreferenced.is_empty());
    cache.free_blobs(unreferenced.clone()).unwrap();
    let record = reader.file(b"outputs/f").unwrap();
    assert!(reader.read_all(record, content.len() as u64).unwrap() == content);
    drop(reader);
    cache.tick();
    assert!(cache.inner.index.unreferenced(99).unwrap().is_empty(), "it is freed when they let go");
    assert!(cache.inner.index.blobs(&unreferenced).unwrap().iter().all(Option::is_none));
    f.sound();
}

/// All who store for one entry wait until a content that is just being freed is gone, not only the first of them.
#[test]
fn nobody_counts_on_what_is_just_being_freed() {
    let f = Fixture::new();
    let content = noise(1, MIB);
    f.put("abcd", &[("f", content.clone())]);
    let mut hasher = GroupHasher::default();
    hasher.update(&content);
    let (hash, groups, size) = hasher.finish();
    assert_eq!(hash, BlobHash::of(&content));
    let content = Arc::new(Content { hash, size, groups });
    let claim = f.cache().inner.leases.claim([hash]);
    let stash = Stash::new(f.cache());
    std::thread::scope(|scope| {
        let have: Vec<_> =
            (0..2).map(|_| scope.spawn(|| stash.has_large(f.cache(), &content).unwrap())).collect();
        let end = Instant::now() + Duration::from_millis(50);
        while Instant::now() < end {
            assert!(have.iter().all(|one| !one.is_finished()), "it is not known yet whether it stays");
        }
        let key = "abcd".parse().unwrap();
        let Lookup::Hit { entry, .. } = f.cache().lookup(&key).unwrap() else { panic!("it is there") };
        drop(entry);
        drop(claim);
        assert!(have.into_iter().all(|one| one.join().unwrap()), "it stayed");
    });
}

/// What somebody else wanted just when its last entry went, and then did not take, is freed all the same.
#[test]
fn what_nobody_took_is_freed() {
    let f = Fixture::new();
    let content = noise(1, MIB);
    let row = f.put("abcd", &[("f", content.clone())]);
    let cache = f.cache();
    let wanted = cache.reserve(&[BlobHash::of(&content)]);
    assert!(cache.evict(&row.key, "request").unwrap());
    cache.free_unreferenced().unwrap();
    assert_eq!(cache.inner.index.unreferenced(99).unwrap(), [BlobHash::of(&content)], "somebody may need it");
    drop(wanted);
    for _ in 0..=FREE_EVERY {
        cache.tick();
    }
    assert!(cache.inner.index.unreferenced(99).unwrap().is_empty());
    assert_eq!(cache.usage().unwrap().held, 0);
    f.sound();
}

/// Who evicts an entry that is just being made waits until whoever makes it has it open.
#[test]
fn what_was_just_made_is_open_before_it_goes() {
    let f = Fixture::new();
    let row = f.put("abcd", &[("f", noise(1, MIB))]);
    let cache = f.cache();
    let birth = cache.inner.births.enter(&row.key);
    std::thread::scope(|scope| {
        let gone = scope.spawn(|| cache.evict(&row.key, "request").unwrap());
        let end = Instant::now() + Duration::from_millis(50);
        while Instant::now() < end {
            assert!(!gone.is_finished(), "its maker does not have it yet");
        }
        let entry = cache.open_entry(row.clone(), LeaseKind::Hold).unwrap().expect("it is there");
        drop(birth);
        assert!(gone.join().unwrap());
        assert!(entry.manifest().is_ok());
    });
    f.sound();
}
