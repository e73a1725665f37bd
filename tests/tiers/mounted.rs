//! Entries of a tier in a mount: shown, read, and in nobody's way when the tier is ill.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use outfs::cache::{Cache, CacheError, Entry, LeaseKind, Limits, SealRequest, TaskFacts, TierOptions, Work};
use outfs::fuse::{self, MountOptions, Mounted, Transport};
use outfs::model::manifest::Origin;
use outfs::tier::{Call, Capabilities, Fault, MemoryTier, Source, ship};
use outfs::vfs::{Caller, VfsError, View, ViewOptions, ino};

use super::common::eventually;
use super::suite::{key, soon};

/// Contents of an entry that is here.
struct Contents(Entry);

impl Source for Contents {
    fn open(&self, record: u32) -> io::Result<Box<dyn Read + '_>> {
        let all = self.0.read_all(record, u64::MAX).map_err(io::Error::other)?;
        Ok(Box::new(io::Cursor::new(all)))
    }
}

/// Waits for a busy machine.
pub fn patient() -> TierOptions {
    let long = Duration::from_secs(120);
    TierOptions { look_up: long, answer: long, read: long, absent: Duration::ZERO, ..TierOptions::default() }
}

/// A mount of a store with a tier attached.
pub struct World {
    pub tier: Arc<MemoryTier>,
    pub cache: Cache,
    mounted: Mounted,
    pub mnt: PathBuf,
    dir: tempfile::TempDir,
}

fn put(cache: &Cache, dir: &Path, name: &str) -> Entry {
    let request = SealRequest { key: key(name), origin: Origin::default(), inferred: false, replace: false };
    cache.put_dir(dir, &TaskFacts::default(), [None, None], request).expect("it can be stored").into_entry()
}

/// A directory of files of this size, each with content of its own.
fn files(at: &Path, seed: u8, count: usize, size: usize) {
    fs::create_dir_all(at).expect("mkdir");
    for n in 0..count {
        fs::write(at.join(n.to_string()), content(seed, n, size)).expect("write");
    }
}

pub fn content(seed: u8, n: usize, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 32);
    let mut at = 0u64;
    while bytes.len() < size {
        bytes.extend_from_slice(blake3::hash(format!("{seed} {n} {at}").as_bytes()).as_bytes());
        at += 1;
    }
    bytes.truncate(size);
    bytes
}

impl World {
    /// With an entry `far` that only the tier has and an entry `near` that is here, of so many files and bytes each.
    pub fn new(transport: Transport, options: TierOptions, count: usize, size: usize) -> World {
        assert!(Path::new("/dev/fuse").exists(), "this test mounts for real and needs /dev/fuse");
        let dir = tempfile::Builder::new().prefix("outfs-test-").tempdir().expect("a temporary directory");
        let at = dir.path().canonicalize().expect("it exists");
        let tier = Arc::new(MemoryTier::new("memory", Capabilities { push: true, packs: true }));
        let far = Cache::open(&at.join("far"), Limits::default()).expect("a new store");
        files(&at.join("one"), 1, count, size);
        let entry = put(&far, &at.join("one"), "far-away");
        let manifest = entry.manifest().expect("it is there");
        ship(&*tier, &manifest, &Contents(entry), &soon).expect("it can be sent");
        let cache = Cache::open(&at.join("store"), Limits::default()).expect("a new store");
        files(&at.join("two"), 2, count, size);
        put(&cache, &at.join("two"), "near-by");
        cache.attach_tiers(vec![tier.clone()], options);
        let mnt = at.join("mnt");
        fs::create_dir(&mnt).expect("mkdir");
        let view = View::new(cache.clone(), ViewOptions::default()).expect("a view");
        let mounted = fuse::mount(view, &mnt, &MountOptions { transport, ..MountOptions::default() }, &[])
            .expect("a mount");
        World { tier, cache, mounted, mnt, dir }
    }

    fn far(&self, n: usize) -> PathBuf {
        self.mnt.join(format!("far-away/outputs/{n}"))
    }

    fn near(&self, n: usize) -> PathBuf {
        self.mnt.join(format!("near-by/outputs/{n}"))
    }

    /// From now on the tier answers nothing until the result is dropped.
    fn hold(&self) -> Sender<()> {
        let (hold, held) = channel::<()>();
        let held = std::sync::Mutex::new(Some(held));
        self.tier.set_faults(move |call| {
            if matches!(call, Call::Get(..) | Call::Find(_)) {
                // All that come meanwhile wait for the first.
                let mut held = held.lock().unwrap();
                if let Some(held) = held.take() {
                    held.recv().ok();
                }
            }
            None
        });
        hold
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.tier.set_faults(|_| None);
        if let Err(e) = self.mounted.unmount(true) {
            eprintln!("{}: {e}", self.dir.path().display());
        }
    }
}

/// Reads, again when it is told to.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    loop {
        match fs::read(path) {
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
            read => return read,
        }
    }
}

fn transports() -> Vec<Transport> {
    let offered =
        fs::read_to_string("/sys/module/fuse/parameters/enable_uring").is_ok_and(|t| t.starts_with('Y'));
    if offered { vec![Transport::Dev, Transport::Uring] } else { vec![Transport::Dev] }
}

/// S15.1 What is not here is looked up in the tiers, in their order; what one has is shown as if it had always been here,
/// and listed from its first look-up on.
#[test]
fn an_entry_of_a_tier_is_shown_and_read() {
    for transport in transports() {
        let w = World::new(transport, patient(), 3, 700_000);
        let listed = || fs::read_dir(&w.mnt).expect("ls").count();
        assert_eq!(listed(), 1, "it is found, and listed from then on");
        assert!(fs::metadata(w.mnt.join("absent-key")).is_err());
        let alias = w.mnt.join("fa/r-/far-away/outputs/0");
        assert_eq!(fs::metadata(alias).expect("under the other name").len(), 700_000);
        eventually("it is listed", || listed() == 2);
        let before = w.tier.traffic();
        let names = fs::read_dir(w.mnt.join("far-away/outputs")).expect("ls").count();
        assert_eq!((names, w.tier.traffic()), (3, before), "a listing asks for nothing");
        let residency =
            |at: PathBuf| xattr::get(at, "user.outfs.residency").expect("getfattr").expect("it has one");
        assert_eq!((residency(w.far(0)), residency(w.near(0))), (b"remote".to_vec(), b"local".to_vec()));
        for n in 0..3 {
            assert!(read(&w.far(n)).expect("it comes") == content(1, n, 700_000), "file {n}");
        }
        let metadata = fs::read(w.mnt.join("far-away/metadata.json")).expect("it came along");
        assert!(metadata.starts_with(b"{"));
        assert_eq!(residency(w.mnt.join("far-away/metadata.json")), b"local");
    }
}

/// S15.1 "as if it had always been here": also to who has it open while the last of it comes, and others open it again.
#[test]
fn what_has_come_is_opened_beside_what_was_opened_before() {
    for transport in transports() {
        let w = World::new(transport, patient(), 1, 3 << 20);
        let wanted = content(1, 0, 3 << 20);
        let before = fs::File::open(w.far(0)).expect("open");
        assert!(read(&w.far(0)).expect("it comes") == wanted);
        eventually("it is here", || {
            xattr::get(w.far(0), "user.outfs.residency").expect("getfattr").expect("it has one") == b"local"
        });
        assert!(fs::read(w.far(0)).expect("a second open") == wanted);
        let mut again = Vec::new();
        (&before).read_to_end(&mut again).expect("the first open");
        assert!(again == wanted);
        drop(before);
        assert!(fs::read(w.far(0)).expect("alone") == wanted);
    }
}

/// S15.3 Who looks up and reads what is here waits for no tier, however many others do.
#[test]
fn who_reads_what_is_here_waits_for_no_tier() {
    const READERS: usize = 24;
    for transport in transports() {
        let w = World::new(transport, patient(), READERS, 300_000);
        assert!(fs::metadata(w.far(0)).is_ok());
        let hold = w.hold();
        std::thread::scope(|s| {
            let hold = hold;
            let readers: Vec<_> =
                (0..READERS).map(|n| (n, w.far(n))).map(|(n, at)| (n, s.spawn(move || read(&at)))).collect();
            let absent: Vec<_> = (0..8).map(|n| w.mnt.join(format!("absent{n}"))).collect();
            let lookers: Vec<_> =
                absent.into_iter().map(|at| s.spawn(move || fs::metadata(at).is_ok())).collect();
            // In this order, so that a failure lets the others go.
            let near: Vec<_> = (0..READERS).map(|n| w.near(n)).collect();
            let here =
                s.spawn(move || near.iter().map(|at| fs::read(at).map(|b| b.len())).collect::<Vec<_>>());
            let end = Instant::now() + Duration::from_secs(60);
            while !here.is_finished() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            let came = here.is_finished();
            let waiting = readers.iter().filter(|(_, r)| !r.is_finished()).count();
            drop(hold);
            assert!(came, "what is here was not read within a minute");
            assert!(here.join().unwrap().into_iter().all(|n| n.is_ok_and(|n| n == 300_000)));
            assert_eq!(waiting, READERS, "what is not here waits");
            for (n, reader) in readers {
                assert!(reader.join().unwrap().expect("it comes") == content(1, n, 300_000), "file {n}");
            }
            assert!(lookers.into_iter().all(|l| !l.join().unwrap()));
        });
    }
}

/// S15.4 A look-up waits two seconds for tiers and then finds nothing; a read ends after 30 seconds with EIO. (Here it is less.)
#[test]
fn an_ill_tier_is_an_error_in_time() {
    for transport in transports() {
        let short = Duration::from_millis(100);
        let w = World::new(transport, patient(), 2, 300_000);
        assert!(fs::metadata(w.far(0)).is_ok());
        w.cache.attach_tiers(vec![w.tier.clone()], TierOptions { look_up: short, read: short, ..patient() });
        w.tier.set_faults(|_| Some(Fault::Hangs));
        assert_eq!(fs::read(w.far(0)).unwrap_err().raw_os_error(), Some(libc::EIO));
        let absent = fs::metadata(w.mnt.join("absent-key")).unwrap_err();
        assert_eq!(absent.raw_os_error(), Some(libc::ENOENT), "a look-up that gets no answer is a miss");
        for fault in [Fault::Refuses, Fault::Absent, Fault::Busy(None), Fault::Flips, Fault::Halves] {
            w.tier.set_faults(move |_| Some(fault));
            let read = fs::read(w.far(0));
            assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO), "{fault:?}");
        }
        w.cache.attach_tiers(vec![w.tier.clone()], patient());
        w.tier.set_faults(|_| None);
        assert!(read(&w.far(0)).expect("the tier is well again") == content(1, 0, 300_000));
    }
}

/// S15.4 Of very many reads that wait at once, some are told after a second to try again (EAGAIN).
#[test]
fn too_many_reads_are_told_to_try_again() {
    const READERS: usize = 200;
    for transport in transports() {
        let w = World::new(transport, patient(), READERS, 3000);
        assert!(fs::metadata(w.far(0)).is_ok());
        let hold = w.hold();
        std::thread::scope(|s| {
            let hold = hold;
            let readers: Vec<_> = (0..READERS)
                .map(|n| (n, w.far(n)))
                .map(|(n, at)| (n, s.spawn(move || fs::read(at))))
                .collect();
            let end = Instant::now() + Duration::from_secs(60);
            while !readers.iter().any(|(_, r)| r.is_finished()) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            drop(hold);
            let mut again = 0;
            for (n, reader) in readers {
                match reader.join().unwrap() {
                    Ok(bytes) => assert!(bytes == content(1, n, 3000), "file {n}"),
                    Err(e) => {
                        assert_eq!(e.raw_os_error(), Some(libc::EAGAIN), "{e}");
                        again += 1;
                    }
                }
            }
            assert!(again > 0 && again < READERS, "{again}");
        });
        assert!(read(&w.far(7)).expect("it comes now") == content(1, 7, 3000));
    }
}

/// S15.20 What is here is read all the same.
#[test]
fn what_came_while_a_read_waited_is_no_matter_of_budgets() {
    const SIZE: usize = 300_000;
    // What comes first is more than that.
    let options = TierOptions { scan_budget: Some(1), ..patient() };
    let w = World::new(Transport::Dev, options, 3, SIZE);
    let view = View::new(w.cache.clone(), ViewOptions::default()).expect("a view");
    let caller = Caller { uid: 0, gid: 0, pid: std::process::id() };
    let far = OsStr::new("far-away");
    let entry = view.look_up_in_tiers(caller, ino::ROOT, far, Instant::now()).expect("it is found");
    let below =
        |parent, name: &str| view.lookup(caller, parent, OsStr::new(name)).expect("it has it").attr.ino;
    let outputs = below(entry.attr.ino, "outputs");
    let read = |n: usize| {
        let (file, mut buf) = (below(outputs, &n.to_string()), vec![0; SIZE]);
        let read = view.read_from_tiers(caller.pid, (file, 0), &mut buf, Instant::now(), None);
        read.inspect(|read| assert!(*read == SIZE && buf == content(1, n, SIZE), "{n}"))
    };
    read(0).expect("something is left");
    let refused = || matches!(read(1), Err(VfsError::Cache(CacheError::OverBudget { .. })));
    assert!(refused());
    // Somebody else has it come.
    let held = w.cache.entry(&key("far-away"), LeaseKind::Hold).expect("an index").expect("it is here");
    held.prefetch(&[b"outputs/1".to_vec()], &Work::default()).expect("it comes");
    read(1).expect("it is here");
    assert_eq!(w.cache.stats().expect("figures").scans.refused, 1);
}

#[test]
fn a_scoped_view_has_its_entries_from_a_tier() {
    let w = World::new(Transport::Dev, patient(), 2, 3000);
    let options =
        ViewOptions { scope: Some(vec![key("far-away"), key("absent-key")]), ..ViewOptions::default() };
    let view = View::new(w.cache.clone(), options).expect("a view");
    let mnt = w.dir.path().join("scoped");
    fs::create_dir(&mnt).expect("mkdir");
    let mounted = fuse::mount(view, &mnt, &MountOptions::default(), &[]).expect("a mount");
    assert!(w.cache.entry(&key("far-away"), LeaseKind::Hold).expect("the index works").is_some());
    assert!(read(&mnt.join("far-away/outputs/1")).expect("it comes") == content(1, 1, 3000));
    assert!(fs::metadata(mnt.join("absent-key")).is_err());
    mounted.unmount(true).expect("it is ours");
}
