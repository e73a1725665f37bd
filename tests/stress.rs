//! Everything at once: publishing, reading, evicting, collecting — and nobody ever reads wrong bytes.
//!
//! Invariants tested: a file of a sealed entry is either not there or exactly what its key says; no error
//! but those that are promised; the store is sound in the end.

#[macro_use]
mod common;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use outfs::cache::{Cache, Draft, Entry, Holder, Limits, SealRequest};
use outfs::fuse;
use outfs::model::EntryKey;
use outfs::model::manifest::Origin;
use outfs::vfs::{View, ViewOptions};

use common::*;

const KEYS: u64 = 12;

fn key(n: u64) -> String {
    format!("key-{n:03}")
}

/// What every result of this key holds.
fn content(n: u64, file: u64) -> Vec<u8> {
    noise(n * 100 + file, if file == 0 { 700_000 } else { 900 * file as usize })
}

fn allowed(what: &str, e: &io::Error, errnos: &[i32]) {
    assert!(e.raw_os_error().is_some_and(|n| errnos.contains(&n)), "{what}: {e}");
}

type Step = Result<(), (&'static str, io::Error)>;

fn step(what: &'static str, result: io::Result<()>) -> Step {
    result.map_err(|e| (what, e))
}

/// Makes a work draft and renames it onto the key.
fn publish(mnt: &Path, worker: u64, n: u64) -> Step {
    let top = mnt.join(format!(".outfs/work/w{worker}"));
    let file = |f: u64| fs::write(top.join(format!("outputs/{f}")), content(n, f));
    let done = step("mkdir", fs::create_dir(&top))
        .and_then(|()| step("mkdir outputs", fs::create_dir(top.join("outputs"))))
        .and_then(|()| (0..6).try_for_each(|f| step("write", file(f))))
        .and_then(|()| step("write metadata", fs::write(top.join("metadata.json"), METADATA)))
        .and_then(|()| step("rename", fs::rename(&top, mnt.join(key(n)))));
    if done.is_err() && top.exists() {
        step("rm -r", fs::remove_dir_all(&top))?;
    }
    done
}

/// Reads all of an entry; false when it is not there.
fn check(mnt: &Path, n: u64) -> bool {
    let dir = mnt.join(key(n)).join("outputs");
    let mut all = true;
    for f in 0..6 {
        match fs::read(dir.join(f.to_string())) {
            Ok(bytes) => assert!(bytes == content(n, f), "{} {f} has wrong bytes ({})", key(n), bytes.len()),
            Err(e) => {
                allowed("reading", &e, &[libc::ENOENT]);
                all = false;
            }
        }
    }
    all
}

fn run(passthrough: &str) {
    let m =
        Mount::with(&["--size", "12M", "--reserve", "0", "--min-age", "0s", "--passthrough", passthrough]);
    let (stop, published, read) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let going = || !stop.load(Ordering::Relaxed);
    let end = Instant::now() + Duration::from_secs(4);
    std::thread::scope(|s| {
        for worker in 0..2u64 {
            let (m, published, going) = (&m, &published, &going);
            s.spawn(move || {
                for i in (worker..).step_by(2) {
                    if !going() {
                        return;
                    }
                    match publish(m.mnt(), worker, i * 7 % KEYS) {
                        Ok(()) => drop(published.fetch_add(1, Ordering::Relaxed)),
                        Err((what, e)) => allowed(what, &e, &[libc::EEXIST, libc::ENOSPC]),
                    }
                }
            });
        }
        for reader in 0..2u64 {
            let (m, read, going) = (&m, &read, &going);
            s.spawn(move || {
                for i in (reader * 5..).step_by(1) {
                    if !going() {
                        return;
                    }
                    read.fetch_add(u64::from(check(m.mnt(), i % KEYS)), Ordering::Relaxed);
                }
            });
        }
        let (m, going) = (&m, &going);
        s.spawn(move || {
            for i in 0.. {
                if !going() {
                    return;
                }
                let n = key(i * 5 % KEYS);
                if let Err(e) = fs::rename(m.path(&n), m.path(format!(".outfs/trash/{n}"))) {
                    allowed("trashing", &e, &[libc::ENOENT]);
                }
                names(m.mnt());
                if i % 10 == 0 {
                    m.ok(&["gc"]);
                }
            }
        });
        std::thread::sleep(end - Instant::now());
        stop.store(true, Ordering::Relaxed);
    });
    let (published, read) = (published.into_inner(), read.into_inner());
    assert!(published > 3 && read > 3, "{published} published, {read} read: nothing was tested");
    for n in 0..KEYS {
        check(m.mnt(), n);
    }
    let out = m.run(&["fsck", "--verify-data"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    let damage: Vec<_> = m.events().into_iter().filter(|e| e["event"] == "damaged").collect();
    assert!(damage.is_empty(), "{damage:#?}");
}

/// Through the kernel where that is possible.
#[test]
fn everything_at_once() {
    run("auto");
}

/// Through the daemon.
#[test]
fn everything_at_once_without_passthrough() {
    run("off");
}

/// A file's content in version `v`: the version and what follows from it.
fn versioned(v: u64, len: usize) -> Vec<u8> {
    let mut bytes = v.to_le_bytes().to_vec();
    bytes.extend(noise(v, len));
    bytes
}

/// Fails unless these bytes are those of one version; gives the version.
fn version_of(bytes: &[u8], len: usize) -> u64 {
    let v = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
    assert!(bytes == versioned(v, len), "bytes of no version, or of several ({})", bytes.len());
    v
}

/// With `--overwrite replace` results are replaced all the time; a read-only view beside it shows whole
/// results only, and never an older one after a newer one.
#[test]
fn replacing_under_readers() {
    const SIZES: [(&str, usize); 3] = [("large", 400_000), ("small", 3000), ("tiny", 0)];
    let mut m = Mount::with(&["--size", "4G", "--overwrite", "replace"]);
    let ro = m.add_view("ro", &["--read-only"]);
    let fill =
        |top: &Path, v: u64| SIZES.iter().for_each(|(name, len)| write(top.join(name), versioned(v, *len)));
    m.entry("key1", |out| fill(out, 1));
    let stop = AtomicBool::new(false);
    let (m, ro) = (&m, ro.as_path());
    std::thread::scope(|s| {
        s.spawn(|| {
            let end = Instant::now() + Duration::from_secs(4);
            for v in 2.. {
                if Instant::now() > end {
                    break;
                }
                fill(&m.path("key1/outputs"), v);
                write(m.path("key1/metadata.json"), METADATA);
                chmod(m.path("key1"), 0o555).expect("seal");
                assert!(m.is_sealed("key1"), "version {v}");
                assert_eq!(version_of(&read(m.path("key1/outputs/small")), 3000), v, "read back at once");
            }
            stop.store(true, Ordering::Relaxed);
        });
        for _ in 0..2 {
            s.spawn(|| {
                let mut newest = 0;
                while !stop.load(Ordering::Relaxed) {
                    for (name, len) in SIZES {
                        let bytes =
                            fs::read(ro.join("key1/outputs").join(name)).expect("the entry is always there");
                        let v = version_of(&bytes, len);
                        assert!(v >= newest, "version {v} of {name} after version {newest}");
                        newest = v;
                    }
                }
                assert!(newest > 1, "the read-only view sees new versions");
            });
        }
    });
    let out = m.run(&["fsck", "--verify-data"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    eventually("replaced results to be freed", || m.manifests() == 1);
}

/// Holds the commit of `busy` in its middle, with the draft's gate closed, until it is let go.
struct Hold {
    held: mpsc::Sender<()>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl Holder for Hold {
    fn prune(&self, _: i64) {}
    fn prune_blobs(&self) {}
    fn changed(&self, _: &EntryKey) {}
    fn draft_changed(&self, _: &Draft) {}
    fn names_changed(&self, _: &Draft, _: (u64, u64)) {}
    fn hides(&self, _: &EntryKey) -> bool {
        false
    }
    fn sealed(&self, _: &Draft, entry: &Entry) {
        if entry.key().as_str() != "busy" {
            return;
        }
        self.held.send(()).expect("the test waits for it");
        // Not for ever: a test that fails must end.
        let _ = self.go.lock().expect("one commit at a time").recv_timeout(SOON);
    }
}

/// What changes a draft, each below a directory of its own: the kernel does not keep it from the others.
fn change_below(dir: &Path, how: usize) -> io::Result<()> {
    let f = dir.join("f");
    match how {
        0 => fs::write(dir.join("new"), "x"),
        1 => fs::create_dir(dir.join("new")),
        2 => fs::remove_file(f),
        3 => fs::rename(f, dir.join("new")),
        4 => chmod(f, 0o600),
        5 => xattr::set(f, "user.x", b"y"),
        6 => fs::hard_link(f, dir.join("new")),
        7 => fs::OpenOptions::new().write(true).open(f).map(drop),
        8 => std::os::unix::fs::symlink("x", dir.join("new")),
        _ => fs::remove_dir(dir.join("d")),
    }
}

/// While a draft is being committed, those who change it wait, and those who look it up; nobody else does,
/// however many they are.
#[test]
fn a_commit_keeps_nobody_else_waiting() {
    const CHANGES: usize = 10;
    need_fuse();
    let dir = tempfile::Builder::new().prefix("outfs-test-").tempdir().expect("a temporary directory");
    let mnt = dir.path().join("mnt");
    mkdir(&mnt);
    let cache = Cache::open(&dir.path().join("store"), Limits::default()).expect("a new store");
    // Before the view, which is told first otherwise.
    let (held, is_held) = mpsc::channel();
    let (go, let_go) = mpsc::channel();
    let hold: Arc<dyn Holder> = Arc::new(Hold { held, go: Mutex::new(let_go) });
    cache.register_holder(Arc::downgrade(&hold));
    let view = View::new(cache.clone(), ViewOptions::default()).expect("a view");
    let mounted = fuse::mount(view, &mnt, &fuse::MountOptions::default(), &[]).expect("a mount");
    let request = |key: &str| SealRequest {
        key: key.parse().expect("a key"),
        origin: Origin::default(),
        inferred: false,
        replace: false,
    };
    let draft = |key: &str| {
        mkdir(mnt.join(key));
        fill_entry(&mnt.join(key), |out| {
            for n in 0..CHANGES {
                mkdir(out.join(n.to_string()));
                write(out.join(format!("{n}/f")), "x");
                mkdir(out.join(format!("{n}/d")));
            }
        });
        cache.draft_for(&key.parse().expect("a key")).expect("a draft")
    };
    cache.seal(&draft("other"), request("other")).expect("nobody writes");
    let busy = draft("busy");
    std::thread::scope(|s| {
        let go = go;
        let sealing = s.spawn(|| cache.seal(&busy, request("busy")));
        is_held.recv_timeout(SOON).expect("the commit comes to its middle");
        let changing: Vec<_> = (0..CHANGES)
            .map(|n| (n, mnt.join(format!("busy/outputs/{n}"))))
            .map(|(n, at)| (n, s.spawn(move || change_below(&at, n))))
            .collect();
        let top = mnt.join("busy");
        let looking = s.spawn(move || while_held(1500, || drop(fs::metadata(&top))));
        let mut times = Vec::new();
        let mut n = 0;
        while_held(1500, || {
            n += 1;
            let start = Instant::now();
            assert!(fs::metadata(mnt.join(format!("absent{n}"))).is_err());
            assert_eq!(fs::read(mnt.join("other/outputs/0/f")).expect("it is sealed"), b"x");
            times.push(start.elapsed());
        });
        assert!(changing.iter().all(|(_, c)| !c.is_finished()), "changes wait for the commit");
        go.send(()).expect("the commit waits");
        sealing.join().expect("no panic").expect("nobody writes");
        for (n, change) in changing {
            let done = change.join().expect("no panic");
            assert_eq!(errno(done), libc::EROFS, "change {n} comes when the entry is sealed");
        }
        looking.join().expect("no panic");
        times.sort_unstable();
        let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
        println!("{} look-ups and reads: median {median:?}, slowest {slowest:?}", times.len());
        // One that waited for the commit would take all of the 1,500 ms that it is held.
        assert!(median < Duration::from_millis(20) && slowest < Duration::from_millis(1200));
    });
    mounted.unmount(true).expect("it is ours");
}

/// Does `work` again and again for so many milliseconds.
fn while_held(ms: u64, mut work: impl FnMut()) {
    let end = Instant::now() + Duration::from_millis(ms);
    while Instant::now() < end {
        work();
        std::thread::sleep(Duration::from_millis(1));
    }
}
