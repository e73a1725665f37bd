//! Drafts: their places, and what outlives the owner.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use super::super::Closed;
use super::*;

#[test]
fn one_draft_for_a_place() {
    let f = Fixture::new();
    let (draft, _) = f.in_place("abcd");
    let again = f.cache.create_draft(DraftPlace::InPlace { key: key("abcd") });
    assert!(matches!(again, Err(CacheError::DraftExists(_))));
    let work = f.cache.create_draft(DraftPlace::Work { name: b"w\xff".to_vec() }).unwrap();
    assert_eq!(f.cache.work_draft(b"w\xff").unwrap().id(), work.id());
    assert!(matches!(
        f.cache.move_draft(&work, DraftPlace::InPlace { key: key("abcd") }),
        Err(CacheError::DraftExists(_))
    ));
    f.cache.move_draft(&work, DraftPlace::Work { name: b"v".to_vec() }).unwrap();
    assert!(f.cache.work_draft(b"w\xff").is_none());
    assert_eq!(f.cache.drafts().len(), 2);
    f.cache.drop_draft(&draft, "test").unwrap();
    assert!(f.cache.draft_for(&key("abcd")).is_none());
    f.in_place("abcd");
    assert!(events(&f.cache).iter().any(|e| matches!(e, EventKind::DraftDropped { .. })));
}

#[test]
fn drafts_survive_the_owner_and_unfinished_puts_do_not() {
    let f = Fixture::new();
    let (draft, path) = f.in_place("abcd");
    std::fs::write(path.join("x"), "y").unwrap();
    let put = f.cache.create_draft(DraftPlace::Native { label: "put dead".into() }).unwrap();
    let put_path = f.cache.store().draft_path(put.id());
    drop((draft, put));
    let f = f.reopen();
    let draft = f.cache.draft_for(&key("abcd")).unwrap();
    assert_eq!(f.cache.drafts().len(), 1);
    let entry = f.cache.seal(&draft, request("abcd")).unwrap().into_entry();
    assert_eq!(entry.read_all(entry.file(b"x").unwrap(), 10).unwrap(), b"y");
    f.cache.settle();
    assert!(!put_path.exists());
}

#[test]
fn a_replacement_begins_as_a_copy_and_replaces() {
    let f = Fixture::new();
    let old = f.put("abcd", &f.odd_tree("tree")).unwrap().into_entry();
    let draft = f.cache.create_replacement(&old).unwrap();
    let path = f.cache.store().draft_path(draft.id());
    assert_eq!(look(&path.join("outputs")), look(&f.beside("tree")));
    assert!(path.join("metadata.json").exists());
    let replace = SealRequest { replace: true, ..request("abcd") };
    std::fs::write(path.join("outputs/zz"), "new").unwrap();
    let Sealed::New(new) = f.cache.seal(&draft, replace).unwrap() else { panic!("not replaced") };
    assert_eq!(new.read_all(new.file(b"outputs/a/b/private").unwrap(), 10).unwrap(), b"new");
    assert_eq!(old.read_all(old.file(b"outputs/zz").unwrap(), 10).unwrap(), b"mine");
}

#[test]
fn nobody_waits_for_ever_because_somebody_else_came_too_late() {
    const ROUNDS: usize = 200_000;
    let f = Fixture::new();
    let (draft, _) = f.in_place("abcd");
    f.cache.drop_draft(&draft, "test").unwrap();
    let (told, over) = (Arc::new(AtomicUsize::new(0)), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert!(draft.alone(Instant::now()).is_err());
            }
        });
        for _ in 0..ROUNDS {
            let told = told.clone();
            draft.when_open(move || {
                told.fetch_add(1, Ordering::Relaxed);
            });
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(told.load(Ordering::Relaxed), ROUNDS);
}

#[test]
fn idle_drafts_go() {
    let f = Fixture::new();
    let (_draft, _) = f.in_place("abcd");
    assert_eq!(f.cache.drop_idle_drafts().unwrap(), 0);
    f.cache.inner.limits.write().draft_ttl = std::time::Duration::ZERO;
    eventually("dropping", || f.cache.drop_idle_drafts().unwrap() == 1);
    assert!(f.cache.drafts().is_empty());
}

/// How long nothing has changed is told by no clock that somebody sets.
#[test]
fn how_long_a_draft_is_quiet_is_told_by_a_clock_that_nobody_sets() {
    let f = Fixture::new();
    let (draft, _) = f.in_place("abcd");
    let changed = draft.last_change();
    let hour = 3_600_000_000_000;
    // Before this process began to count, maybe: a file's time is a tick behind.
    assert!(changed.abs() < super::super::here::now_ns() / 2, "nanoseconds of this process");
    assert!(draft.idle_ns() < hour && (super::super::here::now_ns() - draft.changed_at_ns()) < hour);
    draft.changed_long_ago();
    assert!(draft.idle_ns() > hour);
    drop(draft.change().unwrap());
    assert!(draft.idle_ns() < hour && draft.last_change() >= changed);
}

#[test]
fn a_recovered_draft_is_as_young_as_its_youngest_file() {
    let f = Fixture::new();
    let (draft, path) = f.in_place("abcd");
    std::fs::write(path.join("x"), "y").unwrap();
    drop(draft);
    let f = f.reopen();
    let draft = f.cache.draft_for(&key("abcd")).unwrap();
    // As if nothing had happened at its top for long.
    draft.changed_long_ago();
    assert_eq!(f.cache.drop_idle_drafts().unwrap(), 0);
    std::fs::remove_file(path.join("x")).unwrap();
    assert_eq!(f.cache.drop_idle_drafts().unwrap(), 1);
}

#[test]
fn a_cancelled_hash_does_not_keep_a_writer_waiting() {
    let f = Fixture::new();
    let (draft, path) = f.in_place("abcd");
    let big = path.join("big");
    std::fs::File::create(&big).unwrap().set_len(1 << 30).unwrap();
    let file = std::fs::File::open(&big).unwrap();
    let stat = super::super::at::stat_of(&file).unwrap();
    std::thread::scope(|scope| {
        let hash = scope.spawn(|| f.cache.ingest(&draft, &file).unwrap());
        // Somewhere in the middle: the lease is there, and a writer comes.
        eventually("hashing", || {
            use std::os::fd::AsRawFd;
            // SAFETY: this fcntl command touches no memory.
            let probe = std::fs::File::open(&big).unwrap();
            let _ = probe.as_raw_fd();
            let leases = std::fs::read_to_string("/proc/locks").unwrap();
            leases.lines().any(|l| l.contains("LEASE") && l.contains(&format!(":{} ", stat.st_ino)))
        });
        draft.cancel_ingest(stat.st_dev, stat.st_ino);
        let asked = std::time::Instant::now();
        std::fs::File::options().write(true).open(&big).unwrap();
        assert!(asked.elapsed() < std::time::Duration::from_millis(500), "{:?}", asked.elapsed());
        assert!(!hash.join().unwrap(), "the hash was cancelled");
    });
    assert_eq!(draft.known_hash(&stat), None);
}

#[test]
fn a_hash_that_the_disk_kept_from_being_made_is_an_error_and_no_cancelled_one() {
    let f = Fixture::new();
    let (draft, path) = f.in_place("abcd");
    std::fs::write(path.join("x"), bytes(300_000, 1)).unwrap();
    let file = std::fs::File::open(path.join("x")).unwrap();
    for n in 0.. {
        let fault = crate::store::Fault::after(n, libc::EIO, n % 2 == 1);
        let hashed = f.cache.ingest(&draft, &file);
        if !fault.fired() {
            return assert!(n > 5 && hashed.unwrap(), "only {n} calls were seen");
        }
        assert!(!matches!(hashed, Ok(false)), "it seems cancelled when call {n} fails");
    }
}

#[test]
fn closed_parts_of_a_draft_are_sealed_as_they_are() {
    let f = Fixture::new();
    let (draft, path) = f.in_place("abcd");
    std::fs::create_dir_all(path.join("outer/inner")).unwrap();
    std::fs::write(path.join("outer/inner/small"), "s").unwrap();
    std::fs::write(path.join("outer/inner/large"), bytes(300_000, 1)).unwrap();
    let mode = |name: &str, mode| {
        std::fs::set_permissions(path.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("outer/inner/small", 0o000);
    mode("outer/inner/large", 0o200);
    mode("outer/inner", 0o000);
    mode("outer", 0o111);
    f.prepare(&draft);
    assert_eq!(path.join("outer").metadata().unwrap().mode() & 0o7777, 0o111, "put back after looking");
    let entry = f.cache.seal(&draft, request("abcd")).unwrap().into_entry();
    let manifest = entry.manifest().unwrap();
    let perm = |name: &[u8]| manifest.get(manifest.find(name).unwrap()).unwrap().perm();
    assert_eq!((perm(b"outer"), perm(b"outer/inner")), (0o111, 0));
    assert_eq!((perm(b"outer/inner/small"), perm(b"outer/inner/large")), (0, 0o200));
    let large = entry.file(b"outer/inner/large").unwrap();
    assert_eq!(entry.read_all(large, 1 << 20).unwrap(), bytes(300_000, 1));
    f.cache.settle();
    assert!(!path.exists());
    assert_eq!(entry.read_all(large, 1 << 20).unwrap(), bytes(300_000, 1));
}

#[test]
fn nobody_waits_at_a_closed_gate_and_all_are_called_when_it_opens() {
    let f = Fixture::new();
    let (draft, _) = f.in_place("abcd");
    let called = Arc::new(AtomicUsize::new(0));
    let count = || {
        let called = called.clone();
        draft.when_open(move || {
            called.fetch_add(1, Ordering::Relaxed);
        });
    };
    count();
    assert_eq!(called.load(Ordering::Relaxed), 1, "it is open");
    let alone = draft.alone(Instant::now()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(draft.change().unwrap_err(), Closed::Now);
    assert_eq!(draft.stage(), None);
    count();
    count();
    assert_eq!(called.load(Ordering::Relaxed), 1);
    drop(alone);
    assert_eq!(called.load(Ordering::Relaxed), 3);
    let inside = draft.change().unwrap();
    assert!(draft.change().is_ok(), "who is inside may enter again");
    drop(inside);
    f.cache.drop_draft(&draft, "test").unwrap();
    assert_eq!(draft.change().unwrap_err(), Closed::ForGood);
    count();
    assert_eq!(called.load(Ordering::Relaxed), 4);
}

/// Copies a draft's directory, its files as hard links, when the draft was committed and is still there: what a power cut brings
/// back for as long as nothing after the commit is durable.
struct Copier {
    drafts: PathBuf,
    copy: PathBuf,
}

impl Holder for Copier {
    fn prune(&self, _entry: i64) {}
    fn prune_blobs(&self) {}
    fn changed(&self, _key: &EntryKey) {}
    fn sealed(&self, draft: &Draft, _entry: &Entry) {
        let copied = std::process::Command::new("cp")
            .arg("-al")
            .arg(self.drafts.join(draft.id()))
            .arg(&self.copy)
            .status();
        assert!(copied.unwrap().success());
    }
    fn draft_changed(&self, _draft: &Draft) {}
    fn hides(&self, _key: &EntryKey) -> bool {
        false
    }
    fn names_changed(&self, _draft: &Draft, _dir: (u64, u64)) {}
}

/// A store whose entry `abcd` was sealed from a draft that is back. `then` happens before that.
fn with_a_draft_that_came_back(then: impl FnOnce(&Fixture)) -> (Fixture, String) {
    let f = Fixture::new();
    let (drafts, copy) = (f.beside("store/drafts"), f.beside("copy"));
    let copier: Arc<dyn Holder> = Arc::new(Copier { drafts: drafts.clone(), copy: copy.clone() });
    f.cache.register_holder(Arc::downgrade(&copier));
    let draft = f.cache.create_draft(DraftPlace::Work { name: b"w".to_vec() }).unwrap();
    let outputs = f.cache.store().draft_path(draft.id()).join("outputs");
    std::fs::create_dir(&outputs).unwrap();
    std::fs::write(outputs.join("large"), bytes(3_000_000, 3)).unwrap();
    f.cache.seal(&draft, request("abcd")).unwrap();
    drop(copier);
    then(&f);
    let id = draft.id().to_owned();
    eventually("the draft to go", || std::fs::read_dir(&drafts).unwrap().next().is_none());
    std::fs::rename(copy, drafts.join(&id)).unwrap();
    (f.reopen(), id)
}

fn assert_whole(f: &Fixture, name: &str) {
    let entry = f.cache.entry(&key(name), LeaseKind::Hold).unwrap().unwrap();
    let read = entry.read_all(entry.file(b"outputs/large").unwrap(), 1 << 24).unwrap();
    assert!(read == bytes(3_000_000, 3), "{name}");
}

#[test]
fn a_draft_that_was_sealed_does_not_come_back_with_the_files_of_its_entry() {
    let (f, _) = with_a_draft_that_came_back(|_| {});
    assert!(f.cache.drafts().is_empty());
    assert_whole(&f, "abcd");
    eventually("the draft to go", || std::fs::read_dir(f.beside("store/drafts")).unwrap().next().is_none());
}

/// Its entry has gone, but another has the same contents.
#[test]
fn a_draft_that_comes_back_without_its_entry_shares_no_file() {
    let (f, id) = with_a_draft_that_came_back(|f| {
        let tree = f.beside("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("large"), bytes(3_000_000, 3)).unwrap();
        f.put("other", &tree).unwrap();
        assert!(f.cache.evict(&key("abcd"), "a test").unwrap());
    });
    assert!(f.cache.work_draft(b"w").is_some());
    let file = f.cache.store().draft_path(&id).join("outputs/large");
    assert!(std::fs::read(&file).unwrap() == bytes(3_000_000, 3), "nothing of it is lost");
    let _ = std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600));
    std::fs::write(&file, "others").unwrap();
    assert_whole(&f, "other");
}
