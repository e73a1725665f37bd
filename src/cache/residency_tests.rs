//! What is here of entries that a tier has: in part, wholly, and no more.

use std::sync::atomic::{AtomicBool, Ordering};

use super::tests::{Fixture, bytes, events, eventually, key};
use super::tier_tests::*;
use super::*;
use crate::model::groups::GROUP;
use crate::model::{BlobHash, EventKind};
use crate::store::shards;
use crate::tier::{Call, Fault, MemoryTier, Object, Tier};

const WINDOW: usize = 2 * GROUP;

/// Reads some of a file of an entry; an error where it is not here and no tier has it.
fn piece(entry: &Entry, name: &str, at: usize, len: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0; len];
    let n = entry.read(entry.file(format!("outputs/{name}").as_bytes())?, at as u64, &mut buf)?;
    buf.truncate(n);
    Ok(buf)
}

/// The file that has what is here of the only large content.
fn partial_files(f: &Fixture) -> Vec<std::path::PathBuf> {
    let dir = f.cache.store().root().join("partial");
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect()
}

fn near(w: &World, name: &str) -> Entry {
    w.near.cache.entry(&key(name), LeaseKind::Hold).unwrap().unwrap()
}

/// A world whose tier has an entry `abcd` with a file `large` of ten windows and some bytes.
fn with_large() -> (World, Vec<u8>) {
    let (w, large) = (World::new(), bytes(10 * WINDOW + 77, 1));
    w.send_files("abcd", &[("large", large.clone()), ("small", bytes(100, 2))]);
    (w, large)
}

#[test]
fn what_came_of_a_large_content_stays() {
    let (mut w, large) = with_large();
    let entry = w.find("abcd").unwrap();
    let all = large.len();
    let reads = |entry: &Entry, at: usize, len: usize| {
        assert!(piece(entry, "large", at, len).unwrap() == large[at..(at + len).min(all)], "{at}, {len}");
    };
    reads(&entry, 3 * WINDOW + 5, 10);
    reads(&entry, all - 3, 100);
    let used = w.near.cache.usage().unwrap();
    assert_eq!(used.partial, WINDOW as u64 + 77);
    assert_eq!(w.traffic(|| reads(&entry, 3 * WINDOW, WINDOW)).calls, 0);
    sound(&w.near);
    drop(entry);
    // Nothing but the file says what is there of it.
    w.near = w.near.reopen();
    assert!(w.near.cache.usage().unwrap().partial >= WINDOW as u64 + 77);
    let entry = near(&w, "abcd");
    reads(&entry, 3 * WINDOW + GROUP - 1, 2);
    reads(&entry, all - 77, 77);
    is_elsewhere(piece(&entry, "large", 4 * WINDOW, 1));
    is_elsewhere(piece(&entry, "large", 3 * WINDOW - 1, 2));
    // It is not believed either.
    let [file] = &partial_files(&w.near)[..] else { panic!("one content is here in part") };
    let mut wrong = std::fs::read(file).unwrap();
    assert_eq!(wrong.len(), all);
    wrong[3 * WINDOW + 1] ^= 1;
    std::fs::write(file, &wrong).unwrap();
    drop(entry);
    // Without what the store still has in memory of it.
    w.near = w.near.reopen();
    let entry = near(&w, "abcd");
    is_elsewhere(piece(&entry, "large", 3 * WINDOW, GROUP));
    w.attach(patient());
    reads(&entry, 3 * WINDOW, 10);
    sound(&w.near);
}

#[test]
fn what_is_whole_becomes_a_blob_like_any_other() {
    let (w, large) = with_large();
    let entry = w.find("abcd").unwrap();
    let record = entry.file(b"outputs/large").unwrap();
    assert!(entry.backing(record).unwrap().is_none());
    let moved = w.traffic(|| assert!(read(&entry, "large").unwrap() == large));
    assert!(moved.given * 100 <= large.len() as u64 * 102, "{moved:?}");
    eventually("the move", || entry.backing(record).unwrap().is_some());
    w.near.cache.settle();
    assert!(partial_files(&w.near).is_empty());
    assert_eq!(w.near.cache.usage().unwrap().partial, 0);
    w.detach();
    assert!(read(&entry, "large").unwrap() == large);
    sound(&w.near);
    drop(entry);
    assert!(w.near.cache.evict(&key("abcd"), "request").unwrap());
    assert_eq!(w.near.cache.index().totals().unwrap(), crate::index::Totals::default());
    sound(&w.near);
}

#[test]
fn what_became_whole_meanwhile_is_not_asked_for_again() {
    let (w, large) = with_large();
    let entry = w.find("abcd").unwrap();
    let record = entry.file(b"outputs/large").unwrap();
    assert!(read(&entry, "large").unwrap() == large);
    eventually("the move", || entry.backing(record).unwrap().is_some());
    w.near.cache.settle();
    // As who found just before that its end is elsewhere.
    let loaded = entry.loaded().unwrap();
    let content = entry.blob(&loaded.manifest, record).unwrap();
    let asked = w.traffic(|| {
        let at = 10 * WINDOW as u64;
        let came = w.near.cache.fetch(&loaded, record, content, at, &mut [0; 77], &Reader::ANY);
        assert_eq!(came.unwrap(), None, "it is here");
    });
    assert_eq!(asked.calls, 0);
    assert!(partial_files(&w.near).is_empty());
    sound(&w.near);
}

#[test]
fn what_was_whole_at_a_death_becomes_a_blob_after_it() {
    let (mut w, large) = with_large();
    let entry = w.find("abcd").unwrap();
    let hash = entry.manifest().unwrap().get(entry.file(b"outputs/large").unwrap()).unwrap().hash().unwrap();
    drop(entry);
    let path = w.near.cache.store().root().join("partial").join(hash.to_hex());
    for wrong in [true, false] {
        let mut content = large.clone();
        content[7] ^= wrong as u8;
        std::fs::write(&path, content).unwrap();
        w.near = w.near.reopen();
        let entry = near(&w, "abcd");
        // Its end is right in any case.
        assert!(piece(&entry, "large", large.len() - 5, 5).unwrap() == large[large.len() - 5..]);
        eventually("it is looked at as a whole", || !path.exists());
        w.near.cache.settle();
        match wrong {
            true => is_elsewhere(read(&entry, "large")),
            false => assert!(read(&entry, "large").unwrap() == large),
        }
        sound(&w.near);
    }
}

#[test]
fn what_is_here_in_part_goes_with_its_entry_or_when_it_comes_whole() {
    let (w, large) = with_large();
    drop(piece(&w.find("abcd").unwrap(), "large", 0, 1).unwrap());
    assert_eq!(partial_files(&w.near).len(), 1);
    assert!(w.near.cache.evict(&key("abcd"), "request").unwrap());
    assert!(partial_files(&w.near).is_empty());
    assert_eq!(w.near.cache.usage().unwrap().partial, 0);
    let entry = w.find("abcd").unwrap();
    drop(piece(&entry, "large", 0, 1).unwrap());
    let dir = w.near.beside("dir");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("same"), &large).unwrap();
    w.near.put("other", &dir).unwrap();
    w.near.cache.tick();
    assert!(partial_files(&w.near).is_empty());
    w.detach();
    assert!(read(&entry, "large").unwrap() == large);
    sound(&w.near);
}

#[test]
fn what_cannot_be_kept_is_read_all_the_same() {
    let (w, large) = with_large();
    let entry = w.find("abcd").unwrap();
    w.near.cache.inner.limits.write().size = Some(crate::model::units::Size::Bytes(1));
    // That there was room a moment ago counts no more.
    assert_eq!(w.near.cache.usage().unwrap().available, 0);
    let again = w.traffic(|| {
        for _ in 0..3 {
            assert!(piece(&entry, "large", WINDOW, 100).unwrap() == large[WINDOW..WINDOW + 100]);
        }
    });
    assert_eq!(again.calls, 1, "the last windows are in memory");
    assert!(read(&entry, "large").unwrap() == large);
    assert!(partial_files(&w.near).is_empty());
    sound(&w.near);
}

/// Brings all that is to be brought to the tiers.
fn push(f: &Fixture) {
    for tier in f.cache.pushing_tiers() {
        f.cache.push(tier, &|_| f.cache.tier_facts()[tier].push.is_some_and(|p| p.waiting > 0));
    }
}

/// Puts an entry with these files here.
fn put(f: &Fixture, name: &str, files: &[(&str, Vec<u8>)]) {
    let dir = f.beside(name);
    std::fs::create_dir(&dir).unwrap();
    files.iter().for_each(|(name, content)| std::fs::write(dir.join(name), content).unwrap());
    f.put(name, &dir).unwrap();
}

/// Wants so many bytes more than there can be without anything going.
fn press(f: &Fixture, bytes: u64) -> Result<()> {
    let used = f.cache.usage().unwrap().used;
    {
        let mut limits = f.cache.inner.limits.write();
        limits.size = Some(crate::model::units::Size::Bytes(used));
        limits.min_age = std::time::Duration::ZERO;
    }
    f.cache.usage().unwrap();
    f.cache.make_room(bytes)
}

fn let_go(f: &Fixture) -> usize {
    events(&f.cache).iter().filter(|e| matches!(e, EventKind::LetGo { .. })).count()
}

fn residency(f: &Fixture, name: &str) -> Residency {
    f.cache.residency(&f.cache.index().entry(&key(name)).unwrap().unwrap()).unwrap()
}

#[test]
fn what_a_tier_was_brought_gives_up_its_bytes_and_comes_back() {
    let mut w = World::new();
    let files = [("large", bytes(3 * GROUP, 1)), ("small", bytes(50_000, 2)), ("other", bytes(50_000, 3))];
    put(&w.near, "brought", &files);
    push(&w.near);
    // Sealed later, used later, and in no tier.
    put(&w.near, "only-here", &[("f", bytes(200_000, 4))]);
    assert_eq!(residency(&w.near, "brought"), Residency::Local);
    sound(&w.near);
    press(&w.near, 500_000).unwrap();
    assert_eq!((let_go(&w.near), residency(&w.near, "brought")), (1, Residency::Remote));
    assert_eq!(residency(&w.near, "only-here"), Residency::Local);
    let entry = near(&w, "brought");
    assert!(matches!(w.near.cache.lookup(&key("brought")).unwrap(), Lookup::Hit { .. }));
    assert!(w.near.cache.du(&key("brought")).unwrap().here < 1000);
    sound(&w.near);
    w.near.cache.inner.limits.write().size = None;
    w.near.cache.usage().unwrap();
    for (name, content) in &files {
        assert!(&read(&entry, name).unwrap() == content, "{name}");
    }
    let record = entry.file(b"outputs/large").unwrap();
    eventually("it is whole again", || entry.backing(record).unwrap().is_some());
    drop(entry);
    assert_eq!(residency(&w.near, "brought"), Residency::Local);
    sound(&w.near);
    // And again; then without the tier, and without the index.
    press(&w.near, 500_000).unwrap();
    assert_eq!(let_go(&w.near), 2);
    w.detach();
    is_elsewhere(read(&near(&w, "brought"), "large"));
    w.near = w.near.reopen();
    let options = FsckOptions { rebuild_index: true, ..FsckOptions::default() };
    assert!(w.near.cache.fsck(options, &mut |_| {}).unwrap().is_sound());
    sound(&w.near);
    assert_eq!(residency(&w.near, "brought"), Residency::Remote);
    w.attach(patient());
    assert!(read(&near(&w, "brought"), "large").unwrap() == files[0].1);
}

#[test]
fn what_was_brought_to_one_tier_is_brought_to_another_also_after_the_index_was_lost() {
    let mut w = World::new();
    w.send_files("came", &[("f", bytes(2 * GROUP, 7))]);
    w.find("came").unwrap();
    put(&w.near, "brought", &[("large", bytes(2 * GROUP, 1)), ("small", bytes(5000, 2))]);
    push(&w.near);
    w.near = w.near.reopen();
    let options = FsckOptions { rebuild_index: true, ..FsckOptions::default() };
    assert!(w.near.cache.fsck(options, &mut |_| {}).unwrap().is_sound());
    let other = memory("other");
    w.near.cache.attach_tiers(vec![other.clone()], patient());
    push(&w.near);
    let has = |name: &str| other.find(&key(name), soon()).is_ok();
    assert_eq!((has("brought"), has("came")), (true, false));
    sound(&w.near);
}

#[test]
fn what_cannot_be_read_just_now_is_brought_later() {
    let w = World::new();
    put(&w.near, "brought", &[("large", bytes(2 * GROUP, 1)), ("small", bytes(5000, 2))]);
    push(&w.near);
    press(&w.near, 500_000).unwrap();
    assert_eq!(residency(&w.near, "brought"), Residency::Remote);
    w.near.cache.inner.limits.write().size = None;
    w.near.cache.usage().unwrap();
    let other = memory("other");
    w.near.cache.attach_tiers(vec![w.tier.clone(), other.clone()], patient());
    put(&w.near, "behind-it", &[("other", bytes(5000, 3))]);
    // Until that tier is left alone, and while it is.
    w.tier.set_faults(|_| Some(Fault::Refuses));
    for _ in 0..8 {
        let looks = AtomicBool::new(true);
        w.near.cache.push(1, &|most| most.is_zero() || looks.swap(false, Ordering::Relaxed));
        assert_eq!(w.near.cache.tier_facts()[1].push.unwrap().waiting, 1);
    }
    assert!(w.near.cache.tier_facts()[0].ill);
    assert!(other.find(&key("behind-it"), soon()).is_ok(), "it is not held up");
    w.tier.set_faults(|_| None);
    push(&w.near);
    assert!(other.find(&key("brought"), soon()).is_ok());
    sound(&w.near);
}

#[test]
fn only_what_all_can_read_from_tiers_is_given_up() {
    let w = World::new();
    let shared = ("shared", bytes(2 * GROUP, 1));
    put(&w.near, "brought", &[shared.clone(), ("own", bytes(2 * GROUP, 2))]);
    push(&w.near);
    w.detach();
    put(&w.near, "only-here", std::slice::from_ref(&shared));
    // No tier that has it is asked.
    assert!(press(&w.near, 1).is_ok());
    assert_eq!(let_go(&w.near), 0);
    drop(w);
    let w = World::new();
    put(&w.near, "brought", &[shared.clone(), ("own", bytes(2 * GROUP, 2))]);
    push(&w.near);
    w.near.cache.pin("held", &key("brought")).unwrap();
    put(&w.near, "later", std::slice::from_ref(&shared));
    let held = near(&w, "later");
    assert!(press(&w.near, 1).is_err(), "one is pinned, the other in use");
    w.near.cache.unpin("held", &key("brought")).unwrap();
    press(&w.near, 1).unwrap();
    assert_eq!((let_go(&w.near), residency(&w.near, "brought")), (1, Residency::Partial));
    w.detach();
    assert!(read(&held, "shared").unwrap() == shared.1);
    assert!(read(&near(&w, "brought"), "shared").unwrap() == shared.1);
    is_elsewhere(read(&near(&w, "brought"), "own"));
    sound(&w.near);
    drop(held);
    assert!(w.near.cache.evict(&key("later"), "request").unwrap());
    assert!(w.near.cache.evict(&key("brought"), "request").unwrap());
    assert_eq!(w.near.cache.index().totals().unwrap(), crate::index::Totals::default());
    sound(&w.near);
}

#[test]
fn what_came_from_a_tier_gives_up_its_bytes_before_others_go() {
    let w = World::new();
    w.send_files("abcd", &[("large", bytes(3 * GROUP, 1)), ("small", bytes(100, 2))]);
    drop(read(&w.find("abcd").unwrap(), "small").unwrap());
    drop(piece(&w.find("abcd").unwrap(), "large", 0, 1).unwrap());
    assert_eq!(residency(&w.near, "abcd"), Residency::Partial);
    put(&w.near, "only-here", &[("f", bytes(3_000_000, 3))]);
    press(&w.near, 400_000).unwrap();
    assert_eq!((let_go(&w.near), residency(&w.near, "abcd")), (1, Residency::Remote));
    assert_eq!(residency(&w.near, "only-here"), Residency::Local);
    // What takes nothing but what shows it goes after the others.
    assert!(press(&w.near, 1).is_ok());
    assert!(w.near.cache.entry(&key("abcd"), LeaseKind::Hold).unwrap().is_some());
    sound(&w.near);
}

/// As `push`, for a few rounds at most.
fn push_for_a_while(f: &Fixture) {
    let rounds = std::sync::atomic::AtomicUsize::new(0);
    f.cache.push(0, &|_| rounds.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 50);
}

#[test]
fn what_cannot_be_read_holds_up_nothing_else() {
    let w = World::new();
    let large = bytes(3 * GROUP, 1);
    put(&w.near, "damaged", &[("large", large.clone())]);
    put(&w.near, "sound", &[("large", bytes(3 * GROUP, 2))]);
    let hash = BlobHash::of(&large);
    let path =
        w.near.cache.store().root().join("blobs").join(shards::of(hash.as_bytes())).join(hash.to_hex());
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&path, bytes(3 * GROUP, 3)).unwrap();
    push_for_a_while(&w.near);
    assert!(w.tier.find(&key("sound"), soon()).is_ok());
    assert!(w.tier.find(&key("damaged"), soon()).unwrap_err().is_absent());
}

/// What becomes smaller.
fn text(n: usize) -> Vec<u8> {
    let mut text = bytes(n, 1);
    text.chunks_mut(500).step_by(2).for_each(|piece| piece.fill(b'x'));
    text
}

/// Places are kept for one tier, and all are asked by them.
#[test]
fn all_tiers_have_a_content_in_the_same_form() {
    let mut w = World::new();
    let (large, old) = (text(5 * GROUP), text(7 * GROUP));
    // Of an outfs that did not compress.
    let as_it_is = Object::Blob(BlobHash::of(&old), old.len() as u64);
    w.tier.put(&as_it_is, old.len() as u64, &mut &old[..], soon()).unwrap();
    let files = [("large", large.clone()), ("old", old.clone()), ("noise", bytes(2 * GROUP, 1))];
    put(&w.near, "brought", &files);
    push(&w.near);
    let objects = |tier: &MemoryTier| {
        let objects =
            tier.paths().into_iter().filter(|path| path.contains("packs/") || path.contains("blobs/"));
        objects.collect::<Vec<_>>()
    };
    assert_eq!(objects(&w.tier).len(), 3);
    // Nothing is remembered of that, and most of it is not here.
    w.near = w.near.reopen();
    w.attach(patient());
    press(&w.near, 1_000_000).unwrap();
    assert_eq!(let_go(&w.near), 1);
    w.near.cache.inner.limits.write().size = None;
    w.near.cache.usage().unwrap();
    let other = memory("other");
    w.near.cache.attach_tiers(vec![other.clone(), w.tier.clone()], patient());
    push(&w.near);
    assert_eq!(objects(&other), objects(&w.tier));
    let only = |tier: &Arc<MemoryTier>| w.near.cache.attach_tiers(vec![tier.clone()], patient());
    only(&other);
    assert!(read(&near(&w, "brought"), "old").unwrap() == old);
    w.near.cache.attach_tiers(vec![other.clone(), w.tier.clone()], patient());
    // Another entry with that content has none of it read.
    put(&w.near, "second", &[("same", large.clone())]);
    let before = other.traffic().taken;
    push(&w.near);
    assert!(other.find(&key("second"), soon()).is_ok() && other.traffic().taken - before < 10_000);
    press(&w.near, 1_000_000).unwrap();
    w.near.cache.attach_tiers(vec![other], patient());
    w.near.cache.inner.limits.write().size = None;
    w.near.cache.usage().unwrap();
    assert!(read(&near(&w, "second"), "same").unwrap() == large);
    sound(&w.near);
}

#[test]
fn what_ends_while_a_content_is_compressed_is_brought_later() {
    let w = World::new();
    put(&w.near, "brought", &[("large", text(9 * GROUP))]);
    let rounds = std::sync::atomic::AtomicUsize::new(0);
    w.near.cache.push(0, &|_| rounds.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 5);
    assert_eq!((w.tier.traffic().taken, push_waiting(&w.near)), (0, 1));
    push(&w.near);
    assert!(w.tier.find(&key("brought"), soon()).is_ok());
    assert_eq!(push_waiting(&w.near), 0);
}

fn push_waiting(f: &Fixture) -> u64 {
    f.cache.tier_facts()[0].push.unwrap().waiting
}

#[test]
fn what_is_rejected_while_it_is_brought_is_not_shown() {
    let w = World::new();
    put(&w.near, "late", &[("large", bytes(3 * GROUP, 1))]);
    let cache = w.near.cache.clone();
    w.tier.set_faults(move |call| {
        if matches!(call, Call::Put(_)) {
            cache.reject(&key("late"), "it is wrong").unwrap();
        }
        None
    });
    push_for_a_while(&w.near);
    w.tier.set_faults(|_| None);
    assert!(w.tier.find(&key("late"), soon()).unwrap_err().is_absent());
    assert_eq!(w.near.cache.tier_facts()[0].push.unwrap().waiting, 0, "it is passed over");
}

#[test]
fn what_is_damaged_here_comes_from_a_tier_that_has_it() {
    let mut w = World::new();
    let files = [("large", bytes(3 * GROUP, 1)), ("small", bytes(50_000, 2)), ("other", bytes(50_000, 3))];
    put(&w.near, "brought", &files);
    push(&w.near);
    // Without what the store has in memory of what it read for that.
    w.near = w.near.reopen();
    w.attach(patient());
    let entry = near(&w, "brought");
    let hash = BlobHash::of(&files[0].1);
    let store = w.near.cache.store().root();
    let large = store.join("blobs").join(shards::of(hash.as_bytes())).join(hash.to_hex());
    let pack = std::fs::read_dir(store.join("packs")).unwrap().map(|e| e.unwrap().path());
    let pack = pack
        .filter(|p| p.extension().is_some_and(|e| e == "pack"))
        .max_by_key(|p| p.metadata().unwrap().len());
    for (path, at) in [(large.clone(), 2 * GROUP), (pack.unwrap(), 40_000)] {
        let mut content = std::fs::read(&path).unwrap();
        content[at] ^= 1;
        // In place: the descriptors that are open read it, too.
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&path, content).unwrap();
    }
    for (name, content) in &files {
        assert!(&read(&entry, name).unwrap() == content, "{name}");
    }
    let told = events(&w.near.cache);
    assert_eq!(told.iter().filter(|e| matches!(e, EventKind::Damaged { .. })).count(), 2);
    assert_eq!(told.iter().filter(|e| matches!(e, EventKind::Repaired { .. })).count(), 2);
    // Lost is as good as damaged.
    let record = entry.file(b"outputs/large").unwrap();
    eventually("it is whole again", || entry.backing(record).unwrap().is_some());
    w.near.cache.settle();
    std::fs::remove_file(&large).unwrap();
    drop(entry);
    let World { near: f, tier, .. } = w;
    let f = f.reopen();
    f.cache.attach_tiers(vec![tier], patient());
    let entry = f.cache.entry(&key("brought"), LeaseKind::Hold).unwrap().unwrap();
    assert!(read(&entry, "large").unwrap() == files[0].1);
}
