//! Eviction, pins, accounting and compaction on real stores.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::fixture_tests::{Fixture, MIB, key, limited, noise};
use super::*;
use crate::index::EntryRow;
use crate::model::EventKind;
use crate::model::manifest::Origin;
use crate::model::units::Size;

#[test]
fn evicting_frees_what_nothing_else_refers_to() {
    let f = Fixture::new();
    let (own, shared) = (noise(1, MIB), noise(2, MIB));
    f.put("key1", &[("own", own), ("shared", shared.clone()), ("small", noise(3, 100))]);
    f.put("key2", &[("shared", shared), ("small", noise(3, 100))]);
    assert_eq!((f.files("blobs").len(), f.files("manifests").len()), (2, 2));
    let du = f.cache().du(&key("key1")).unwrap();
    // Its own metadata names the key, so that is exclusive too.
    assert!((MIB as u64..MIB as u64 + 4096).contains(&du.exclusive) && du.logical == du.stored, "{du:?}");
    assert!(f.cache().evict(&key("key1"), "request").unwrap());
    assert!(!f.cache().evict(&key("key1"), "request").unwrap());
    assert_eq!((f.files("blobs").len(), f.files("manifests").len()), (1, 1));
    let entry = f.cache().entry(&key("key2"), LeaseKind::Hold).unwrap().unwrap();
    assert_eq!(entry.read_all(entry.file(b"outputs/small").unwrap(), 1000).unwrap(), noise(3, 100));
    drop(entry);
    assert!(f.cache().evict(&key("key2"), "request").unwrap());
    assert_eq!((f.files("blobs").len(), f.files("manifests").len(), f.files("packs").len()), (0, 0, 0));
    assert_eq!(f.cache().index().totals().unwrap(), crate::index::Totals::default());
    f.sound();
}

#[test]
fn a_held_entry_is_hidden_at_once_and_freed_when_it_is_let_go() {
    let f = Fixture::new();
    let content = noise(1, MIB);
    f.put("key1", &[("big", content.clone()), ("small", noise(3, 100))]);
    let entry = f.cache().entry(&key("key1"), LeaseKind::View).unwrap().unwrap();
    assert!(f.cache().evict(&key("key1"), "request").unwrap());
    assert!(f.cache().entry(&key("key1"), LeaseKind::View).unwrap().is_none());
    f.cache().tick();
    let big = entry.file(b"outputs/big").unwrap();
    assert_eq!(entry.read_all(big, u64::MAX).unwrap(), content);
    assert!(f.cache().usage().unwrap().held > MIB as u64);
    // The same content again, while the old entry is held: it is reused.
    f.put("key2", &[("big", content.clone())]);
    drop(entry);
    f.cache().tick();
    assert_eq!((f.files("blobs").len(), f.files("manifests").len()), (1, 1));
    assert_eq!(f.cache().usage().unwrap().held, 0);
    let entry = f.cache().entry(&key("key2"), LeaseKind::Hold).unwrap().unwrap();
    assert_eq!(entry.read_all(entry.file(b"outputs/big").unwrap(), u64::MAX).unwrap(), content);
    f.sound();
}

#[test]
fn a_replaced_entry_lives_until_its_reader_has_gone() {
    let f = Fixture::new();
    f.put("key1", &[("big", noise(1, MIB))]);
    let old = f.cache().entry(&key("key1"), LeaseKind::Hold).unwrap().unwrap();
    std::fs::write(f.dir.path().join("src-key1/big"), noise(2, MIB)).unwrap();
    f.put("key1", &[]);
    assert_eq!(old.read_all(old.file(b"outputs/big").unwrap(), u64::MAX).unwrap(), noise(1, MIB));
    assert_eq!(f.files("blobs").len(), 2);
    drop(old);
    f.cache().tick();
    assert_eq!((f.files("blobs").len(), f.files("manifests").len()), (1, 1));
    f.sound();
}

#[test]
fn room_is_made_least_recently_used_first_and_pins_and_holds_stay() {
    let f = Fixture::with(limited(10));
    for i in 0..4u64 {
        f.put(&format!("key{i}"), &[("f", noise(i, 2 * MIB))]);
    }
    f.cache().pin("p", &key("key0")).unwrap();
    let held = f.cache().entry(&key("key1"), LeaseKind::Hold).unwrap().unwrap();
    f.cache().touch(&f.cache().entry(&key("key2"), LeaseKind::Hold).unwrap().unwrap());
    f.put("key4", &[("f", noise(4, 2 * MIB))]);
    assert_eq!(f.keys(), ["key0", "key1", "key2", "key4"]);
    let usage = f.cache().usage().unwrap();
    assert!(usage.used <= usage.limit);
    assert!(matches!(f.cache().evict(&key("key0"), "request"), Err(CacheError::Pinned { .. })));
    assert!(matches!(f.cache().make_room(9 * MIB as u64), Err(CacheError::NoSpace(_))));
    assert_eq!(f.keys(), ["key0", "key1"]);
    drop(held);
    assert!(f.cache().unpin("p", &key("key0")).unwrap());
    f.cache().make_room(9 * MIB as u64).unwrap();
    assert_eq!(f.keys(), Vec::<String>::new());
    f.sound();
}

/// Of very many that are held, however long ago they were used, the way leads to what can go.
#[test]
fn room_is_made_behind_very_many_that_must_stay() {
    let f = Fixture::with(limited(6));
    let row = f.put("key1", &[("f", noise(1, MIB))]);
    let many: Vec<_> = (0..20_200u32)
        .map(|n| {
            let manifest = crate::model::ManifestHash::of(&n.to_le_bytes());
            let (key, task_id) = (key(&format!("held-{n}")), String::new());
            let row =
                EntryRow { key, task_id, manifest, accessed_at_ns: 1, metadata_bytes: 0, ..row.clone() };
            let (blobs, packs, healed) = (Vec::new(), Vec::new(), Vec::new());
            crate::index::NewEntry { row, blobs, packs, replaces: None, healed }
        })
        .collect();
    let ids = f.cache().index().commit_all(many).unwrap().into_iter().map(|done| match done {
        crate::index::Commit::Done(id, _) => id,
        taken => panic!("{taken:?}"),
    });
    let held: Vec<_> = ids.map(|id| f.cache().take_lease(id, LeaseKind::Hold).unwrap()).collect();
    let is_there = |name: &str| f.cache().index().entry(&key(name)).unwrap().is_some();
    // In the background it takes another round.
    let limit = f.cache().usage().unwrap().used;
    f.cache().inner.limits.write().size = Some(Size::Bytes(limit));
    f.cache().evict_above_high_water().unwrap();
    assert!(is_there("key1"));
    f.cache().evict_above_high_water().unwrap();
    assert!(!is_there("key1"));
    // Whoever needs it now does not wait for that.
    f.cache().inner.limits.write().size = Some(Size::Bytes(2 * limit));
    // More than the index may be found to have grown by meanwhile.
    f.put("key2", &[("f", noise(2, 4 * MIB))]);
    let usage = f.cache().usage().unwrap();
    f.cache().make_room(usage.limit - usage.used + 4096).unwrap();
    assert!(!is_there("key2"));
    f.put("key3", &[("f", noise(3, MIB))]);
    let options = GcOptions { dry_run: false, older_than: Some(Duration::ZERO) };
    assert_eq!(f.cache().gc(&options).unwrap().evicted, [key("key3")]);
    drop(held);
}

#[test]
fn nothing_younger_than_the_minimum_age_goes() {
    let f = Fixture::with(limited(4));
    f.put("key1", &[("f", noise(1, 3 * MIB))]);
    f.cache().inner.limits.write().min_age = Duration::from_secs(600);
    assert!(matches!(f.cache().make_room(2 * MIB as u64), Err(CacheError::NoSpace(_))));
    f.cache().inner.limits.write().min_age = Duration::ZERO;
    f.cache().make_room(2 * MIB as u64).unwrap();
    assert_eq!(f.keys(), Vec::<String>::new());
}

/// A stream says nothing of how much will come: room is asked for as it comes.
#[test]
fn a_stream_that_does_not_fit_ends_where_the_room_does() {
    let f = Fixture::with(limited(4));
    f.put("key1", &[("f", noise(1, 2 * MIB))]);
    let mut tar = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_size(64 << 20);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    tar.append_data(&mut header, "large", std::io::Read::take(std::io::repeat(7), 64 << 20)).unwrap();
    let stream = tar.into_inner().unwrap();
    let put = |name: &str, mut stream: &[u8]| {
        let origin = Origin { how: "put".into(), ..Origin::default() };
        let request = SealRequest { key: key(name), origin, inferred: false, replace: false };
        f.cache().put_tar(&mut stream, &TaskFacts::default(), [None, None], request)
    };
    let error = put("key2", &stream).unwrap_err();
    assert!(matches!(error, CacheError::NoSpace(_)), "{error}");
    f.cache().settle();
    assert!(f.files("drafts").is_empty() && f.cache().drafts().is_empty());
    let mut tar = ::tar::Builder::new(Vec::new());
    header.set_size(MIB as u64);
    tar.append_data(&mut header, "small", &noise(3, MIB)[..]).unwrap();
    put("key2", &tar.into_inner().unwrap()).unwrap();
}

#[test]
fn an_age_of_centuries_is_not_one_of_tomorrow() {
    let f = Fixture::with(limited(4));
    f.put("key1", &[("f", noise(1, 3 * MIB))]);
    let centuries = Duration::from_secs(400 * 365 * 86_400);
    let options = GcOptions { dry_run: false, older_than: Some(centuries) };
    assert_eq!(f.cache().gc(&options).unwrap().evicted, []);
    f.cache().inner.limits.write().min_age = centuries;
    assert!(matches!(f.cache().make_room(2 * MIB as u64), Err(CacheError::NoSpace(_))));
    assert_eq!(f.keys(), ["key1"]);
}

#[test]
fn a_clock_that_is_ahead_makes_nothing_young_for_ever() {
    let (now, young) = (1_000_000, 400_000);
    for (sealed, is) in
        [(300_000, false), (500_000, true), (1_000_000, true), (1_500_000, true), (1_700_000, false)]
    {
        assert_eq!(pressure::is_young(sealed, now, young), is, "{sealed}");
    }
}

#[test]
fn the_number_of_entries_is_limited() {
    let f = Fixture::with(Limits { entries: Some(3), ..Limits::default() });
    for i in 0..6u64 {
        f.put(&format!("key{i}"), &[("f", noise(i, 10))]);
        f.cache().make_room(0).unwrap();
    }
    assert_eq!(f.keys(), ["key4", "key5"]);
}

/// A view: asked to prune, it lets go of what is not in use.
struct Kernel {
    held: Mutex<Vec<(Entry, bool)>>,
    asked: Mutex<Vec<i64>>,
    changed: Mutex<Vec<EntryKey>>,
}

impl Holder for Kernel {
    fn prune_blobs(&self) {}
    fn prune(&self, entry: i64) {
        self.asked.lock().push(entry);
        self.held.lock().retain(|(e, in_use)| *in_use || e.id() != entry);
    }
    fn changed(&self, key: &EntryKey) {
        self.changed.lock().push(key.clone());
    }
    fn sealed(&self, _: &Draft, _: &Entry) {}
    fn draft_changed(&self, _: &Draft) {}
    fn names_changed(&self, _: &Draft, _: (u64, u64)) {}
    fn hides(&self, _: &EntryKey) -> bool {
        false
    }
}

/// A kernel that knows four entries of 2 MiB each, and uses those of them that `uses` says.
fn knows_four(f: &Fixture, uses: impl Fn(u64) -> bool) -> Arc<Kernel> {
    let kernel =
        Arc::new(Kernel { held: Mutex::default(), asked: Mutex::default(), changed: Mutex::default() });
    let weak: std::sync::Weak<Kernel> = Arc::downgrade(&kernel);
    f.cache().register_holder(weak);
    for i in 0..4 {
        let row = f.put(&format!("key{i}"), &[("f", noise(i, 2 * MIB))]);
        let entry = f.cache().entry(&row.key, LeaseKind::View).unwrap().unwrap();
        kernel.held.lock().push((entry, uses(i)));
    }
    kernel
}

#[test]
fn what_a_kernel_knows_gets_a_second_chance() {
    let f = Fixture::with(limited(20));
    let kernel = knows_four(&f, |i| i == 0);
    // Two of them have to go, whatever directories take on this file system.
    let used = f.cache().usage().unwrap().used;
    let percent = |less: u64| ((used - less) * 100 / used) as u8;
    {
        let mut limits = f.cache().inner.limits.write();
        limits.size = Some(crate::model::units::Size::Bytes(used));
        (limits.high_water, limits.low_water) = (percent(3 * MIB as u64), percent(7 * MIB as u64 / 2));
    }
    f.cache().tick();
    assert_eq!(f.keys().len(), 4, "the first round only asks");
    let asked = kernel.asked.lock().clone();
    assert!(!asked.is_empty());
    // The second one is looked up again, and used.
    let again = f.cache().entry(&key("key1"), LeaseKind::View).unwrap().unwrap();
    f.cache().touch(&again);
    drop(again);
    let deadline = Instant::now() + Duration::from_secs(20);
    while f.keys().len() > 2 && Instant::now() < deadline {
        f.cache().tick();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(f.keys(), ["key0", "key1"], "in use, and used again");
    assert!(kernel.changed.lock().contains(&key("key2")));
    drop(kernel);
}

#[test]
fn making_room_waits_a_moment_for_kernels() {
    let f = Fixture::with(limited(10));
    let kernel = knows_four(&f, |_| false);
    f.cache().make_room(4 * MIB as u64).unwrap();
    assert_eq!(f.keys(), ["key2", "key3"].map(String::from).to_vec().as_slice());
    drop(kernel);
}

/// Who is refused room is told so soon, also where a kernel has those who ask come one after the other.
#[test]
fn many_who_are_refused_room_do_not_wait_one_after_the_other() {
    let f = Fixture::with(limited(10));
    let kernel = knows_four(&f, |_| true);
    let begun = Instant::now();
    for _ in 0..16 {
        assert!(matches!(f.cache().make_room(4 * MIB as u64), Err(CacheError::NoSpace(_))));
    }
    // Each 0.7 s would be 11.2 s.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // A kernel that lets go is waited for all the same.
    kernel.held.lock().iter_mut().for_each(|(_, used)| *used = false);
    let deadline = Instant::now() + Duration::from_secs(20);
    while f.cache().make_room(4 * MIB as u64).is_err() {
        assert!(Instant::now() < deadline, "room can be made");
    }
    drop(kernel);
}

#[test]
fn pins_and_rejections_outlive_the_process() {
    let mut f = Fixture::new();
    f.put("key1", &[("f", noise(1, 10))]);
    f.put("key2", &[("f", noise(2, 10))]);
    assert!(f.cache().pin("release", &key("key1")).unwrap());
    assert!(!f.cache().pin("release", &key("key1")).unwrap());
    assert!(matches!(f.cache().pin("x", &key("nokey")), Err(CacheError::NoEntry { .. })));
    f.cache().reject(&key("key2"), "flaky").unwrap();
    f.reopen(|_| {});
    assert_eq!(f.cache().pins(), [(key("key1"), vec!["release".to_owned()])]);
    assert!(
        matches!(f.cache().lookup(&key("key2")).unwrap(), Lookup::Miss(Miss::Rejected(r)) if r == "flaky")
    );
    assert!(f.cache().lift(&key("key2")).unwrap());
    assert!(matches!(f.cache().lookup(&key("key2")).unwrap(), Lookup::Hit { .. }));
    assert!(f.cache().unpin("release", &key("key1")).unwrap());
    assert!(!f.cache().unpin("release", &key("key1")).unwrap());
    let kinds: Vec<_> = f.events().into_iter().map(|e| e.kind).collect();
    assert!(kinds.contains(&EventKind::Pinned { name: "release".into(), on: false }));
    assert!(kinds.contains(&EventKind::Rejected { reason: None }));
}

/// Whoever comes last, the store says what memory says.
#[test]
fn pins_and_rejections_agree_with_their_files_whatever_happens_at_once() {
    let mut f = Fixture::new();
    f.put("key1", &[("f", noise(1, 100))]);
    for round in 0..12 {
        let start = std::sync::Barrier::new(4);
        {
            let (f, start) = (&f, &start);
            let run = &|work: &dyn Fn()| {
                start.wait();
                (0..6).for_each(|_| work());
            };
            let pin = || assert!(f.cache().pin("p", &key("key1")).is_ok());
            let unpin = || assert!(f.cache().unpin("p", &key("key1")).is_ok());
            std::thread::scope(|s| {
                s.spawn(move || run(&pin));
                s.spawn(move || run(&unpin));
                s.spawn(move || run(&|| f.cache().reject(&key("key1"), "no").unwrap()));
                s.spawn(move || run(&|| drop(f.put("key1", &[("f", noise(1, 100))]))));
            });
        }
        let said = (f.cache().pins(), f.cache().rejections());
        f.reopen(|_| {});
        assert_eq!((f.cache().pins(), f.cache().rejections()), said, "round {round}");
        f.cache().unpin("p", &key("key1")).unwrap();
        f.cache().lift(&key("key1")).unwrap();
    }
}

/// A rejection of what another entry replaces goes with that, one of the new entry stays.
#[test]
fn a_rejection_of_the_new_entry_is_not_taken_for_one_of_the_old() {
    let f = Fixture::new();
    let old = f.put("key1", &[("f", noise(1, 100))]);
    f.cache().reject(&key("key1"), "no").unwrap();
    f.cache().rejection_replaced(&key("key1"), &old.manifest).unwrap();
    assert_eq!(f.cache().rejections().len(), 1);
    f.put("key1", &[("f", noise(2, 100))]);
    assert_eq!(f.cache().rejections(), []);
    assert!(f.files("rejections").is_empty());
}

#[test]
fn a_mostly_dead_pack_is_compacted_under_its_readers() {
    let f = Fixture::new();
    let small = |i: u64| noise(100 + i, 50_000);
    let names: Vec<String> = (0..20).map(|i| format!("f{i:02}")).collect();
    let files: Vec<(&str, Vec<u8>)> = (0..20).map(|i| (names[i as usize].as_str(), small(i))).collect();
    f.put("key1", &files);
    f.put("key2", &files[3..5]);
    let reader = f.cache().entry(&key("key2"), LeaseKind::Hold).unwrap().unwrap();
    f.cache().evict(&key("key1"), "request").unwrap();
    let before = f.cache().index().totals().unwrap();
    assert!(before.dead_bytes > 800_000);
    f.cache().compact().unwrap();
    let after = f.cache().index().totals().unwrap();
    assert!(after.pack_bytes < 120_000 + 10_000, "{after:?}");
    let record = reader.file(b"outputs/f03").unwrap();
    assert_eq!(reader.read_all(record, 100_000).unwrap(), small(3));
    let again = f.cache().entry(&key("key2"), LeaseKind::Hold).unwrap().unwrap();
    assert_eq!(again.read_all(again.file(b"outputs/f04").unwrap(), 100_000).unwrap(), small(4));
    f.cache().compact().unwrap();
    assert_eq!(f.cache().index().totals().unwrap(), after, "nothing is gained a second time");
    f.sound();
}

/// What nobody refers to and somebody reads moves with its pack: rewriting that again and again gains nothing.
#[test]
fn a_pack_that_is_only_held_stays_as_it_is() {
    let f = Fixture::new();
    let files: Vec<(String, Vec<u8>)> = (0..20).map(|i| (format!("f{i}"), noise(i, 50_000))).collect();
    f.put("key1", &files.iter().map(|(name, c)| (name.as_str(), c.clone())).collect::<Vec<_>>());
    let reader = f.cache().entry(&key("key1"), LeaseKind::Hold).unwrap().unwrap();
    f.cache().evict(&key("key1"), "request").unwrap();
    let packs = || f.cache().store().packs().unwrap().iter().map(|p| p.id).collect::<Vec<_>>();
    let before = packs();
    f.cache().compact().unwrap();
    assert_eq!(packs(), before);
    assert_eq!(reader.read_all(reader.file(b"outputs/f3").unwrap(), 100_000).unwrap(), noise(3, 50_000));
}

#[test]
fn gc_takes_what_is_older_than_asked_and_a_dry_run_takes_nothing() {
    let f = Fixture::new();
    f.put("key1", &[("f", noise(1, MIB)), ("shared", noise(9, MIB))]);
    f.put("key2", &[("shared", noise(9, MIB))]);
    let old = GcOptions { dry_run: true, older_than: Some(Duration::ZERO) };
    let report = f.cache().gc(&old).unwrap();
    assert_eq!(report.evicted, [key("key1"), key("key2")]);
    assert!(report.freed >= 2 * MIB as u64 && report.freed < 2 * MIB as u64 + 30_000, "{report:?}");
    assert_eq!(f.keys(), ["key1", "key2"]);
    let young = GcOptions { dry_run: false, older_than: Some(Duration::from_secs(3600)) };
    assert_eq!(f.cache().gc(&young).unwrap().evicted, []);
    f.cache().pin("p", &key("key2")).unwrap();
    let report = f.cache().gc(&GcOptions { dry_run: false, ..old }).unwrap();
    assert_eq!((report.evicted, report.held), (vec![key("key1")], 1));
    assert_eq!(f.files("blobs").len(), 1);
}

#[test]
fn drafts_count_once_and_what_is_sealed_counts_as_an_entry() {
    let f = Fixture::with(limited(100));
    let draft = f.cache().create_draft(crate::store::DraftPlace::Work { name: b"w".to_vec() }).unwrap();
    let tree = f.cache().store().draft_path(draft.id());
    std::fs::write(tree.join("f"), noise(1, 3 * MIB)).unwrap();
    std::fs::hard_link(tree.join("f"), tree.join("g")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut usage = f.cache().usage().unwrap();
    while usage.drafts == 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        usage = f.cache().usage().unwrap();
    }
    assert!((3 * MIB as u64..4 * MIB as u64).contains(&usage.drafts), "{usage:?}");
    let origin = Origin { how: "seal".into(), ..Origin::default() };
    let request = SealRequest { key: key("key1"), origin, inferred: false, replace: false };
    f.cache().seal(&draft, request).unwrap();
    let usage = f.cache().usage().unwrap();
    assert_eq!(usage.drafts, 0);
    assert!((3 * MIB as u64..4 * MIB as u64).contains(&(usage.used - usage.index)), "{usage:?}");
}

#[test]
fn what_a_full_disk_keeps_from_being_noted_is_looked_for_as_after_a_death() {
    let mut f = Fixture::new();
    let stray = crate::model::BlobHash::of(b"stray").to_hex();
    std::fs::write(f.store().join("blobs").join(&stray[..2]).join(&stray), b"x").unwrap();
    f.cache().inner.upkeep.sweep.lock().left_something();
    let cache = f.cache.take().unwrap();
    let full = crate::store::Fault::after(0, libc::ENOSPC, true);
    let _ = cache.clone().close();
    drop(full);
    drop(cache);
    assert!(!f.store().join("index.sweep").exists());
    f.open();
    f.cache().finish_sweep().unwrap();
    assert_eq!(f.files("blobs").len(), 0);
}

/// The account is what the disk reports, for very many tiny entries and for large ones.
#[test]
fn what_is_used_is_what_the_disk_reports() {
    use std::os::unix::fs::MetadataExt;
    let mut f = Fixture::new();
    for n in 0..40 {
        f.put(&format!("tiny-{n}"), &[("f", noise(n, 10))]);
    }
    f.put("large", &[("big", noise(100, 3 * MIB + 1)), ("small", noise(101, 5000))]);
    let agree = |f: &Fixture| {
        let manifests = f.files("manifests");
        let tables: Vec<_> = manifests.iter().map(|m| m.with_extension("loc")).collect();
        let all = [f.files("packs"), f.files("blobs"), manifests, tables].concat();
        let disk: u64 = all.iter().map(|p| std::fs::metadata(p).unwrap().blocks() * 512).sum();
        let usage = f.cache().usage().unwrap();
        assert!(usage.index > 4096, "the index is counted, as it was a moment ago: {usage:?}");
        let inode = f.cache().store().file_system_space().unwrap().inode;
        let inodes = super::usage::files(&f.cache().inner.index.totals().unwrap()) * inode;
        assert_eq!(usage.used - usage.drafts - usage.index - inodes, disk, "{usage:?}");
        disk
    };
    let all = agree(&f);
    let counted = || {
        let usage = f.cache().usage().unwrap();
        usage.used - usage.index
    };
    let before = counted();
    assert!(f.cache().evict(&key("tiny-7"), "test").unwrap());
    assert_eq!(agree(&f), all - 12288, "a pack, a manifest and a table of a block each");
    assert!(counted() < before);
    f.reopen(|store| {
        for name in ["index.sqlite", "index.sqlite-wal"] {
            let _ = std::fs::remove_file(store.join(name));
        }
    });
    assert_eq!(agree(&f), all - 12288, "as it is made anew");
}
