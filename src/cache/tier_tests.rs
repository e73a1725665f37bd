//! Entries of tiers: found, shown and read as if they were here, whatever ails the tier.

use std::io::{self, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::tests::{Fixture, bytes, events, eventually, key, look, request};
use super::*;
use crate::model::groups::GROUP;
use crate::model::manifest::{Attrs, DigestKind, Origin, Seal, TreeBuilder};
use crate::model::{BlobHash, EventKind, Manifest};
use crate::store::{Location, StoreError};
use crate::tier::{
    Call, Capabilities, Fault, MemoryTier, Object, PlacesBuilder, Source, Tier, TierErrorKind, Traffic, Tree,
    ship,
};

/// Contents of an entry that is here.
struct Contents(Entry);

impl Source for Contents {
    fn open(&self, record: u32) -> io::Result<Box<dyn Read + '_>> {
        let all = self.0.read_all(record, u64::MAX).map_err(io::Error::other)?;
        Ok(Box::new(Cursor::new(all)))
    }
}

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(120)
}

/// Waits for a busy machine.
pub(super) fn patient() -> TierOptions {
    let long = Duration::from_secs(120);
    TierOptions { look_up: long, answer: long, read: long, absent: long, ..TierOptions::default() }
}

pub(super) fn memory(name: &str) -> Arc<MemoryTier> {
    Arc::new(MemoryTier::new(name, Capabilities { push: true, packs: true }))
}

/// A tier with what was put in one place, and a cache in another that has it attached.
pub(super) struct World {
    pub far: Fixture,
    pub near: Fixture,
    pub tier: Arc<MemoryTier>,
}

impl World {
    pub fn new() -> World {
        let world = World { far: Fixture::new(), near: Fixture::new(), tier: memory("memory") };
        world.attach(patient());
        world
    }

    pub fn attach(&self, options: TierOptions) {
        self.near.cache.attach_tiers(vec![self.tier.clone()], options);
    }

    pub fn detach(&self) {
        self.near.cache.attach_tiers(Vec::new(), patient());
    }

    /// Puts a directory there and sends it to the tier.
    pub fn send(&self, name: &str, dir: &std::path::Path) {
        self.send_task(name, dir, &TaskFacts::default());
    }

    /// The same as what this task put out.
    pub fn send_task(&self, name: &str, dir: &std::path::Path, task: &TaskFacts) {
        let entry = self.far.cache.put_dir(dir, task, [None, None], request(name)).unwrap().into_entry();
        let manifest = entry.manifest().unwrap();
        ship(&*self.tier, &manifest, &Contents(entry), &soon).unwrap();
    }

    /// The same of files by name and content.
    pub fn send_files(&self, name: &str, files: &[(&str, Vec<u8>)]) {
        self.send(name, &self.files(name, files));
    }

    /// A directory of these files.
    pub fn files(&self, name: &str, files: &[(&str, Vec<u8>)]) -> std::path::PathBuf {
        let dir = self.far.beside(name);
        std::fs::create_dir_all(&dir).unwrap();
        for (name, content) in files {
            std::fs::write(dir.join(name), content).unwrap();
        }
        dir
    }

    pub fn find(&self, name: &str) -> Option<Entry> {
        self.near.cache.find(&key(name), LeaseKind::Hold).unwrap()
    }

    /// What was asked of the tier meanwhile.
    pub fn traffic(&self, work: impl FnOnce()) -> Traffic {
        let before = self.tier.traffic();
        work();
        let after = self.tier.traffic();
        let (calls, given) = (after.calls - before.calls, after.given - before.given);
        Traffic { calls, given, taken: after.taken - before.taken }
    }
}

pub(super) fn read(entry: &Entry, name: &str) -> Result<Vec<u8>> {
    entry.read_all(entry.file(format!("outputs/{name}").as_bytes()).unwrap(), u64::MAX)
}

/// Nothing is wrong here.
pub(super) fn sound(f: &Fixture) {
    let options = FsckOptions { verify_data: true, ..FsckOptions::default() };
    let report = f.cache.fsck(options, &mut |_| {}).unwrap();
    assert_eq!((report.damage, report.orphans), (Vec::new(), 0));
    let damaged = |e: &EventKind| matches!(e, EventKind::Damaged { .. });
    assert!(!events(&f.cache).iter().any(damaged), "{:?}", events(&f.cache));
}

pub(super) fn is_elsewhere<T: std::fmt::Debug>(result: Result<T>) {
    assert!(matches!(result, Err(CacheError::Store(StoreError::Elsewhere { .. }))), "{result:?}");
}

#[test]
fn an_entry_of_a_tier_is_found_shown_and_read() {
    let w = World::new();
    let tree = w.far.odd_tree("tree");
    w.send("abcd", &tree);
    let mut held = None;
    let looked = w.traffic(|| held = w.find("abcd"));
    let entry = held.unwrap();
    assert_eq!(looked.calls, 2, "the entry and its tree");
    let there = w.far.cache.entry(&key("abcd"), LeaseKind::Hold).unwrap().unwrap();
    assert_eq!(entry.manifest_hash().unwrap(), there.manifest_hash().unwrap());
    let shown = w.traffic(|| {
        assert!(entry.metadata().unwrap().is_ok());
        assert!(matches!(w.near.cache.lookup(&key("abcd")).unwrap(), Lookup::Hit { .. }));
    });
    assert_eq!(shown.calls, 0, "whether it is a hit came with the tree");
    assert!(w.near.cache.index().totals().unwrap().elsewhere_bytes > 3_000_000);
    sound(&w.near);
    let dest = w.near.beside("restored");
    entry.restore(&dest, RestoreAs::Auto, false).unwrap();
    assert_eq!(look(&dest), look(&tree));
    sound(&w.near);
    let found = |e: &EventKind| matches!(e, EventKind::Found { tier, .. } if tier == "memory");
    assert_eq!(events(&w.near.cache).iter().filter(|e| found(e)).count(), 1);
    // All of it is here now, and outlives the tier.
    w.detach();
    assert_eq!(read(&entry, "a/b/c/program").unwrap(), b"#!/bin/sh\n");
    assert_eq!(read(&entry, "large").unwrap(), bytes(3_000_000, 3));
}

#[test]
fn what_is_elsewhere_is_no_damage() {
    let mut w = World::new();
    w.send("abcd", &w.far.odd_tree("tree"));
    drop(w.find("abcd").unwrap());
    let before = w.near.cache.index().totals().unwrap();
    let World { near, .. } = w;
    near.cache.compact().unwrap();
    near.cache.inner.limits.write().scrub = Duration::from_millis(1);
    let begun = near.cache.stats().unwrap().scrub.finished_at_ns;
    near.cache.scrub(&mut |_| near.cache.stats().unwrap().scrub.finished_at_ns == begun);
    sound(&near);
    // Without the tier, and without the index.
    let near = near.reopen();
    sound(&near);
    let options = FsckOptions { rebuild_index: true, ..FsckOptions::default() };
    assert!(near.cache.fsck(options, &mut |_| {}).unwrap().is_sound());
    assert_eq!(near.cache.index().totals().unwrap(), before);
    sound(&near);
    let entry = near.cache.entry(&key("abcd"), LeaseKind::Hold).unwrap().unwrap();
    is_elsewhere(read(&entry, "zz"));
    is_elsewhere(read(&entry, "large"));
    assert_eq!(read(&entry, "zero").unwrap(), b"");
    assert!(entry.backing(entry.file(b"outputs/large").unwrap()).unwrap().is_none());
    assert!(entry.restore(&near.beside("restored"), RestoreAs::Auto, false).is_err());
    near.cache.attach_tiers(vec![w.tier.clone()], patient());
    assert_eq!(read(&entry, "zz").unwrap(), b"mine");
    assert_eq!(read(&entry, "large").unwrap(), bytes(3_000_000, 3));
    // What the background finishes while its entry goes stays until a collection.
    let large = entry.file(b"outputs/large").unwrap();
    eventually("it is in its place", || entry.backing(large).unwrap().is_some());
    near.cache.settle();
    drop(entry);
    assert!(near.cache.evict(&key("abcd"), "request").unwrap());
    assert_eq!(near.cache.index().totals().unwrap(), crate::index::Totals::default());
    sound(&near);
    w.near = near;
    assert!(w.find("abcd").is_some(), "a tier has it still");
}

#[test]
fn an_entry_whose_places_are_lost_is_damaged() {
    let w = World::new();
    w.send("abcd", &w.far.odd_tree("tree"));
    let manifest = w.find("abcd").unwrap().manifest_hash().unwrap();
    let path = w.near.cache.store().places_path(&manifest);
    let mut text = std::fs::read(&path).unwrap();
    text[100] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, text).unwrap();
    let options = FsckOptions { repair: true, ..FsckOptions::default() };
    let report = w.near.cache.fsck(options, &mut |_| {}).unwrap();
    assert_eq!(report.damage.iter().map(|d| &d.path).collect::<Vec<_>>(), [&path]);
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.lost, [key("abcd")]);
    assert!(w.find("abcd").is_some(), "and comes back");
    assert_eq!(read(&w.find("abcd").unwrap(), "zz").unwrap(), b"mine");
}

#[test]
fn a_look_up_asks_once_and_absence_is_remembered() {
    let w = World::new();
    w.send_files("abcd", &[("f", b"content".to_vec())]);
    let (enter, entered) = mpsc::channel();
    let (let_go, held) = mpsc::channel::<()>();
    let (enter, held) = (Mutex::new(enter), Mutex::new(held));
    w.tier.set_faults(move |call| {
        if let Call::Find(_) = call {
            enter.lock().send(()).unwrap();
            held.lock().recv().ok();
        }
        None
    });
    let finds = AtomicU32::new(0);
    let traffic = w.traffic(|| {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| finds.fetch_add(w.find("abcd").is_some() as u32, Ordering::Relaxed));
            }
            entered.recv().unwrap();
            drop(let_go);
        });
    });
    assert_eq!((finds.into_inner(), traffic.calls), (8, 2));
    w.tier.set_faults(|_| None);
    let asked = |n| {
        let calls = w.traffic(|| (0..3).for_each(|_| assert!(w.find("nothing").is_none()))).calls;
        assert_eq!(calls, n);
    };
    asked(1);
    asked(0);
    w.attach(TierOptions { absent: Duration::ZERO, ..patient() });
    asked(3);
}

#[test]
fn a_look_up_ends_by_its_deadline_and_a_late_answer_is_for_the_next() {
    let w = World::new();
    w.send_files("abcd", &[("f", b"content".to_vec())]);
    w.attach(TierOptions { look_up: Duration::from_millis(20), ..patient() });
    let (let_go, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    w.tier.set_faults(move |_| {
        held.lock().recv().ok();
        None
    });
    assert!(w.find("abcd").is_none());
    assert!(matches!(w.near.cache.lookup(&key("abcd")).unwrap(), Lookup::Miss(Miss::NoEntry)));
    drop(let_go);
    eventually("the answer", || w.near.cache.entry(&key("abcd"), LeaseKind::Hold).unwrap().is_some());
}

#[test]
fn a_tier_that_ails_makes_a_miss_and_the_next_one_is_asked() {
    let w = World::new();
    w.send_files("abcd", &[("f", b"content".to_vec())]);
    w.attach(TierOptions { absent: Duration::ZERO, ..patient() });
    let second = memory("second");
    for fault in [Fault::Absent, Fault::Busy(None), Fault::Refuses, Fault::Flips, Fault::Halves] {
        w.tier.set_faults(move |_| Some(fault));
        assert!(w.find("abcd").is_none(), "{fault:?}");
    }
    for path in w.tier.paths() {
        second.set_raw(&path, w.tier.raw(&path));
    }
    w.near.cache.attach_tiers(vec![w.tier.clone(), second.clone()], patient());
    let entry = w.find("abcd").expect("from the second");
    for fault in [Fault::Flips, Fault::Halves, Fault::Absent, Fault::Refuses] {
        w.tier.set_faults(move |_| Some(fault));
        second.set_faults(|_| Some(Fault::Busy(None)));
        assert!(matches!(read(&entry, "f"), Err(CacheError::Tier(_))), "{fault:?}");
    }
    second.set_faults(|_| None);
    assert_eq!(read(&entry, "f").unwrap(), b"content");
    sound(&w.near);
}

#[test]
fn wrong_bytes_are_neither_returned_nor_stored() {
    let w = World::new();
    let large = bytes(5 * GROUP + 7, 1);
    w.send_files("abcd", &[("large", large.clone()), ("small", bytes(5000, 2)), ("other", bytes(5000, 3))]);
    let entry = w.find("abcd").unwrap();
    for fault in [Fault::Flips, Fault::Halves] {
        w.tier.set_faults(move |_| Some(fault));
        for name in ["small", "other", "large"] {
            match read(&entry, name) {
                Err(CacheError::Tier(e)) if e.kind == TierErrorKind::Corrupt => {}
                other => panic!("{name}: {other:?}"),
            }
        }
    }
    // What is read ahead may still be under way with them.
    w.near.cache.settle();
    w.tier.set_faults(|_| None);
    assert_eq!(read(&entry, "large").unwrap(), large);
    assert_eq!(read(&entry, "small").unwrap(), bytes(5000, 2));
    sound(&w.near);
}

#[test]
fn a_read_ends_by_its_deadline_and_shares_it_among_tiers() {
    let w = World::new();
    w.send_files("abcd", &[("f", b"content".to_vec())]);
    let entry = w.find("abcd").unwrap();
    w.tier.set_faults(|_| Some(Fault::Hangs));
    w.attach(TierOptions { read: Duration::from_millis(20), ..patient() });
    match read(&entry, "f") {
        Err(CacheError::Tier(e)) => assert!(e.is_transient(), "{e}"),
        other => panic!("{other:?}"),
    }
    let second = memory("second");
    for path in w.tier.paths() {
        second.set_raw(&path, w.tier.raw(&path));
    }
    // The first one takes its half.
    let options = TierOptions { read: Duration::from_secs(20), ..patient() };
    w.tier.set_faults(|_| Some(Fault::Hangs));
    w.near.cache.attach_tiers(vec![w.tier.clone(), second], options);
    assert_eq!(read(&entry, "f").unwrap(), b"content");
}

#[test]
fn only_what_is_read_is_fetched() {
    let w = World::new();
    let large = bytes(80 * GROUP + 77, 1);
    let names: Vec<String> = (0..400).map(|i| format!("small{i:03}")).collect();
    let mut files: Vec<(&str, Vec<u8>)> =
        names.iter().zip(1000..).map(|(name, seed)| (&name[..], bytes(10_000, seed))).collect();
    files.push(("large", large.clone()));
    w.send_files("abcd", &files);
    let mut held = None;
    let looked = w.traffic(|| held = w.find("abcd"));
    assert!(looked.given < 300_000, "{looked:?}");
    let entry = held.unwrap();
    let record = entry.file(b"outputs/large").unwrap();
    let piece = |at: usize| {
        let mut buf = [0; 4096];
        assert_eq!(entry.read(record, at as u64, &mut buf).unwrap(), 4096);
        assert_eq!(buf[..], large[at..at + 4096]);
    };
    for at in [50 * GROUP + 12_345, 2 * GROUP - 100, 7] {
        let one = w.traffic(|| piece(at));
        assert!(one.given <= 1 << 20 && one.calls <= 2, "{one:?}");
        assert_eq!(w.traffic(|| piece(at)).calls, 0, "it is remembered");
    }
    let end = w.traffic(|| {
        let mut buf = vec![0; 1 << 20];
        let at = large.len() - 5;
        assert_eq!(entry.read(record, at as u64, &mut buf).unwrap(), 5);
        assert_eq!(buf[..5], large[at..]);
    });
    assert!(end.given <= 1 << 20, "{end:?}");
    // All small ones, in any order: each window once.
    let unique = 400 * 10_000;
    let all = w.traffic(|| {
        for i in 0..400 {
            let name = &names[i * 7 % 400];
            assert!(read(&entry, name).unwrap() == bytes(10_000, 1000 + (i * 7 % 400) as u64), "{name}");
        }
    });
    assert!(all.given * 100 <= unique * 102 && all.calls < 20, "{all:?} of {unique} bytes");
    let again = w.traffic(|| names.iter().for_each(|name| drop(read(&entry, name).unwrap())));
    assert_eq!(again.calls, 0, "they are here");
    sound(&w.near);
}

#[test]
fn who_reads_the_same_waits_for_one_request() {
    let w = World::new();
    w.send_files("abcd", &[("large", bytes(2 * GROUP, 1)), ("small", bytes(100, 2))]);
    let entry = w.find("abcd").unwrap();
    for (name, content) in [("large", bytes(2 * GROUP, 1)), ("small", bytes(100, 2))] {
        let traffic = w.traffic(|| {
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| assert_eq!(read(&entry, name).unwrap(), content));
                }
            });
        });
        assert_eq!(traffic.calls, 1, "{name}");
    }
    sound(&w.near);
}

#[test]
fn a_tier_that_has_packs_is_asked_for_no_neighbours() {
    let w = World::new();
    let files = [("a", bytes(1000, 1)), ("b", bytes(1000, 2)), ("c", bytes(1000, 3))];
    let manifest = w.far.put("abcd", &w.files("dir", &files)).unwrap().into_entry().manifest().unwrap();
    // As one has said that has none.
    let places = PlacesBuilder::new(1).finish(&manifest);
    assert!(w.near.cache.adopt("another", &Tree { manifest, places }).unwrap());
    for (_, content) in &files {
        let object = Object::Blob(BlobHash::of(content), 1000);
        w.tier.put(&object, 1000, &mut &content[..], soon()).unwrap();
    }
    let entry = w.find("abcd").unwrap();
    for (name, content) in &files {
        assert_eq!(w.traffic(|| assert_eq!(&read(&entry, name).unwrap(), content)).calls, 1);
    }
}

#[test]
fn what_is_here_is_not_fetched() {
    let w = World::new();
    let files = [("large", bytes(3 * GROUP, 1)), ("small", bytes(100, 2)), ("own", bytes(100, 3))];
    w.send_files("abcd", &files);
    // Two of the contents are here already, in another entry.
    let dir = w.near.beside("dir");
    std::fs::create_dir(&dir).unwrap();
    files[..2].iter().for_each(|(name, content)| std::fs::write(dir.join(name), content).unwrap());
    w.near.put("other", &dir).unwrap();
    let entry = w.find("abcd").unwrap();
    let local = w.traffic(|| {
        assert_eq!(read(&entry, "large").unwrap(), files[0].1);
        assert_eq!(read(&entry, "small").unwrap(), files[1].1);
    });
    assert_eq!(local.calls, 0);
    assert_eq!(w.traffic(|| drop(read(&entry, "own").unwrap())).given, 100);
    sound(&w.near);
}

#[test]
fn what_is_stored_here_is_elsewhere_no_more() {
    let w = World::new();
    let files = [("large", bytes(3 * GROUP, 1)), ("small", bytes(100, 2))];
    w.send_files("abcd", &files);
    let entry = w.find("abcd").unwrap();
    let dir = w.near.beside("dir");
    std::fs::create_dir(&dir).unwrap();
    files.iter().for_each(|(name, content)| std::fs::write(dir.join(name), content).unwrap());
    w.near.put("other", &dir).unwrap();
    assert_eq!(w.near.cache.index().totals().unwrap().elsewhere_bytes, 0);
    w.detach();
    files.iter().for_each(|(name, content)| assert_eq!(&read(&entry, name).unwrap(), content));
    sound(&w.near);
    drop(entry);
    // What it has is the other's, too.
    assert!(w.near.cache.evict(&key("other"), "request").unwrap());
    let entry = w.near.cache.entry(&key("abcd"), LeaseKind::Hold).unwrap().unwrap();
    files.iter().for_each(|(name, content)| assert_eq!(&read(&entry, name).unwrap(), content));
    sound(&w.near);
}

#[test]
fn an_entry_that_was_evicted_in_use_comes_back_beside_it() {
    let w = World::new();
    w.send_files("abcd", &[("f", b"content".to_vec()), ("large", bytes(2 * GROUP, 1))]);
    let old = w.find("abcd").unwrap();
    assert!(w.near.cache.evict(&key("abcd"), "request").unwrap());
    let new = w.find("abcd").unwrap();
    assert_ne!(old.id(), new.id());
    assert_eq!(read(&old, "f").unwrap(), b"content");
    drop(old);
    w.near.cache.tick();
    w.near.cache.settle();
    assert_eq!(read(&new, "f").unwrap(), b"content");
    assert_eq!(read(&new, "large").unwrap(), bytes(2 * GROUP, 1));
    sound(&w.near);
    drop(new);
    let near = w.near.reopen();
    assert!(near.cache.entry(&key("abcd"), LeaseKind::Hold).unwrap().unwrap().manifest().is_ok());
    sound(&near);
}

#[test]
fn what_is_sealed_here_or_rejected_outranks_a_tier() {
    let w = World::new();
    w.send_files("abcd", &[("f", b"theirs".to_vec())]);
    w.send_files("efgh", &[("f", b"theirs".to_vec())]);
    let dir = w.near.beside("dir");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("f"), "ours").unwrap();
    w.near.put("abcd", &dir).unwrap();
    w.near.cache.reject(&key("efgh"), "wrong").unwrap();
    let traffic = w.traffic(|| {
        assert_eq!(read(&w.find("abcd").unwrap(), "f").unwrap(), b"ours");
        assert!(w.find("efgh").is_none());
    });
    assert_eq!(traffic.calls, 0);
    let tree = w.tier.find(&key("abcd"), soon()).unwrap();
    assert!(!w.near.cache.adopt("memory", &tree).unwrap());
    assert_eq!(read(&w.find("abcd").unwrap(), "f").unwrap(), b"ours");
    sound(&w.near);
}

#[test]
fn a_tree_that_lies_about_content_is_refused() {
    let f = Fixture::new();
    let dir = f.beside("dir");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("f"), "ours").unwrap();
    let entry = f.put("other", &dir).unwrap().into_entry();
    let lie = |hash: BlobHash, sizes: &[u64]| {
        let mut tree = TreeBuilder::new(Attrs::default());
        for size in sizes {
            let name = format!("f{size}");
            let node = tree.file(tree.top(), name.as_bytes(), Attrs::default(), None).unwrap();
            tree.set_name(node, hash, *size, DigestKind::Blake3);
        }
        let origin = Origin::default();
        let seal = Seal { key: key("abcd"), sealed_at_ns: 1, inferred: false, replaces: None, origin };
        let manifest = Manifest::parse(tree.finish(&seal).unwrap()).unwrap();
        let places = PlacesBuilder::new(100).finish(&manifest);
        f.cache.adopt("memory", &Tree { manifest: Arc::new(manifest), places })
    };
    let corrupt = |result: Result<bool>| {
        let kind = |e: &CacheError| matches!(e, CacheError::Tier(e) if e.kind == TierErrorKind::Corrupt);
        assert!(result.as_ref().is_err_and(kind), "{result:?}");
    };
    corrupt(lie(BlobHash::of(b"ours"), &[5]));
    corrupt(lie(BlobHash::of(b"ours"), &[3]));
    corrupt(lie(BlobHash::of(b"ours"), &[4, 5]));
    corrupt(lie(BlobHash::of(b"not here"), &[8, 9]));
    corrupt(lie(BlobHash::of(b"huge"), &[(1 << 40) + 1]));
    assert!(f.cache.entry(&key("abcd"), LeaseKind::Hold).unwrap().is_none());
    assert_eq!(read(&entry, "f").unwrap(), b"ours");
    assert!(lie(BlobHash::of(b"ours"), &[4]).unwrap());
    sound(&f);
    // What it said of content that is not here is forgotten when that comes.
    assert!(f.cache.evict(&key("abcd"), "request").unwrap());
    for (content, lies) in [(b"later".to_vec(), 1 << 39), (bytes(2 * GROUP, 1), 3)] {
        let hash = BlobHash::of(&content);
        assert!(lie(hash, &[lies]).unwrap());
        std::fs::write(dir.join("f"), &content).unwrap();
        let later = f.put("later", &dir).unwrap().into_entry();
        let row = f.cache.index().blob(&hash).unwrap().unwrap();
        assert_eq!((row.size, row.location == Location::Elsewhere), (content.len() as u64, false));
        assert_eq!(f.cache.index().totals().unwrap().elsewhere_bytes, 0);
        // Who reads what was told a wrong size of is told so, and harms nobody.
        let wrong = f.cache.entry(&key("abcd"), LeaseKind::Hold).unwrap().unwrap();
        let record = wrong.file(format!("f{lies}").as_bytes()).unwrap();
        assert!(wrong.read(record, 0, &mut [0; 10]).is_err());
        drop(wrong);
        assert!(read(&later, "f").unwrap() == content);
        drop(later);
        let damaged = || {
            let all = FsckOptions { verify_data: true, ..FsckOptions::default() };
            f.cache.fsck(all, &mut |_| {}).unwrap().damage.into_iter().flat_map(|d| d.entries)
        };
        assert_eq!(damaged().collect::<Vec<_>>(), [key("abcd")]);
        assert!(f.cache.evict(&key("abcd"), "request").unwrap());
        assert_eq!(damaged().count(), 0);
        assert!(f.cache.evict(&key("later"), "request").unwrap());
    }
    drop(entry);
    assert!(f.cache.evict(&key("other"), "request").unwrap());
    assert_eq!(f.cache.index().totals().unwrap(), crate::index::Totals::default());
}
