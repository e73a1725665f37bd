//! kill -9 of the daemon at random moments of a busy ingest.
//!
//! usage: `kill ROUNDS [SEED]` with OUTFS_BIN set. After each death: every entry that was reported sealed is there
//! and whole, everything else is whole, a draft or absent, and the store passes fsck; at the end, fsck --verify-data.

mod daemon;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use daemon::{Daemon, Random};

const WRITERS: u64 = 4;

/// What one round's writers did: keys they began, and keys whose sealing was reported.
#[derive(Default)]
struct Journal {
    begun: Mutex<Vec<String>>,
    sealed: Mutex<Vec<String>>,
}

/// The files of an entry follow from its key; one is shared by many entries.
fn files(key: &str) -> Vec<(&'static str, Vec<u8>)> {
    let mut random = Random::new(key.bytes().fold(7, |sum, b| sum * 31 % 0xffff_fffb + u64::from(b)));
    let shared = Random::new(random.below(5)).bytes(3000);
    vec![
        ("small", random.bytes(100)),
        ("deep/er/medium", random.bytes(40_000)),
        ("large", random.bytes(300_000)),
        ("shared", shared),
    ]
}

fn write_files(outputs: &Path, key: &str) -> io::Result<()> {
    fs::create_dir_all(outputs.join("deep/er"))?;
    for (name, data) in files(key) {
        fs::write(outputs.join(name), data)?;
    }
    Ok(())
}

/// Writes one entry and seals it by one of the gestures; `Ok(true)` is reported sealed.
fn ingest(daemon: &Daemon, key: &str, gesture: u64) -> io::Result<bool> {
    let mnt = daemon.mnt();
    match gesture {
        0 | 1 => {
            let work = mnt.join(".outfs/work").join(key);
            fs::create_dir(&work)?;
            write_files(&work.join("outputs"), key)?;
            fs::rename(&work, mnt.join(key))?;
        }
        2 => {
            let entry = mnt.join(key);
            fs::create_dir(&entry)?;
            write_files(&entry.join("outputs"), key)?;
            fs::write(
                entry.join("metadata.json"),
                format!(
                    "{{\"task_id\":\"kill\",\"digest\":\"{key}\",\"command\":[],\"created_at\":\"2026-01-01T00:00:00Z\",\"duration_ms\":1,\"exit_code\":0}}"
                ),
            )?;
            fs::set_permissions(&entry, fs::Permissions::from_mode(0o555))?;
        }
        3 => {
            let source = daemon.scratch().join(key);
            write_files(&source, key)?;
            let put = daemon.try_run(&["put", key, source.to_str().expect("a temporary path is text")]);
            fs::remove_dir_all(&source)?;
            if !put.status.success() {
                return Err(io::Error::other(String::from_utf8_lossy(&put.stderr).into_owned()));
            }
        }
        _ => {
            fs::create_dir(mnt.join(key))?;
            write_files(&mnt.join(key).join("outputs"), key)?;
            return Ok(false);
        }
    }
    Ok(true)
}

fn writer(daemon: &Daemon, journal: &Journal, round: u64, writer: u64, killed: &AtomicBool) {
    let mut random = Random::new(round * WRITERS + writer + 1);
    for n in 0.. {
        let key = format!("round{round}.writer{writer}.{n}");
        journal.begun.lock().expect("no writer panics").push(key.clone());
        match ingest(daemon, &key, random.below(5)) {
            Ok(true) => journal.sealed.lock().expect("no writer panics").push(key),
            Ok(false) => {}
            Err(_) if killed.load(Ordering::SeqCst) => return,
            Err(e) => {
                // The kill may be a moment ahead of its flag.
                std::thread::sleep(Duration::from_millis(200));
                assert!(killed.load(Ordering::SeqCst), "{key}: {e}");
                return;
            }
        }
        if killed.load(Ordering::SeqCst) {
            return;
        }
    }
}

fn state(entry: &Path) -> Option<String> {
    if !entry.exists() {
        return None;
    }
    let value = xattr::get(entry, "user.outfs.state").expect("getxattr").expect("every entry has a state");
    Some(String::from_utf8(value).expect("states are text"))
}

fn assert_whole(mnt: &Path, key: &str) {
    for (name, data) in files(key) {
        let path = mnt.join(key).join("outputs").join(name);
        let read = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(read == data, "{}: its bytes are not those that were written", path.display());
    }
}

/// What is left after a death; counts (reported, sealed but not reported, drafts, absent).
fn check(daemon: &Daemon, journal: Journal) -> [usize; 4] {
    let mnt = daemon.mnt();
    let (begun, sealed) =
        (journal.begun.into_inner().expect("whole"), journal.sealed.into_inner().expect("whole"));
    let mut counts = [sealed.len(), 0, 0, 0];
    for key in &sealed {
        assert_eq!(state(&mnt.join(key)).as_deref(), Some("sealed"), "{key} was reported sealed");
        assert_whole(&mnt, key);
    }
    for key in begun.iter().filter(|key| !sealed.contains(key)) {
        match state(&mnt.join(key)).as_deref() {
            Some("sealed") => {
                assert_whole(&mnt, key);
                counts[1] += 1;
            }
            Some(_) => {
                fs::remove_dir_all(mnt.join(key)).unwrap_or_else(|e| panic!("draft {key}: {e}"));
                counts[2] += 1;
            }
            None => counts[3] += 1,
        }
        let _ = fs::remove_dir_all(mnt.join(".outfs/work").join(key));
    }
    daemon.run(&["fsck"]);
    counts
}

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>().expect("usage: kill ROUNDS [SEED]"));
    let rounds = args.next().unwrap_or(200);
    let mut random = Random::new(args.next().unwrap_or_else(|| u64::from(std::process::id())));
    let daemon = Daemon::new();
    let (mut totals, mut longest, started) = ([0; 4], Duration::ZERO, Instant::now());
    for round in 0..rounds {
        longest = longest.max(daemon.mount(&[]));
        let (journal, killed) = (Journal::default(), AtomicBool::new(false));
        let pid = daemon.pid();
        std::thread::scope(|scope| {
            for n in 0..WRITERS {
                let (daemon, journal, killed) = (&daemon, &journal, &killed);
                scope.spawn(move || writer(daemon, journal, round, n, killed));
            }
            std::thread::sleep(Duration::from_micros(10_000 + random.below(500_000)));
            // SAFETY: a signal to the daemon that this program started.
            assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0, "kill -9 {pid}");
            killed.store(true, Ordering::SeqCst);
        });
        longest = longest.max(daemon.mount(&[]));
        let counts = check(&daemon, journal);
        for (total, count) in totals.iter_mut().zip(counts) {
            *total += count;
        }
        if (round + 1) % 20 == 0 {
            println!("round {}: {totals:?}", round + 1);
        }
        daemon.run(&["stop"]);
    }
    daemon.run(&["fsck", "--verify-data"]);
    let [reported, unreported, drafts, absent] = totals;
    println!(
        "{rounds} deaths in {:.0?}: {reported} entries reported sealed, all there and whole; {unreported} sealed whole \
         without a report, {drafts} drafts, {absent} absent; longest start {longest:.0?}; fsck --verify-data passed",
        started.elapsed()
    );
    assert!(
        reported as u64 >= rounds,
        "the ingest was not busy: {reported} entries in {rounds} rounds prove little"
    );
}
