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
use std::time::{Duration, Instant};

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
