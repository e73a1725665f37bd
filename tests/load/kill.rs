//! kill -9 of the daemon at random moments of a busy ingest.
//!
//! usage: `kill ROUNDS [SEED]` with OUTFS_BIN set. After each death: every entry that was reported sealed is there
//! and whole, everything else is whole, a draft or absent, and the store passes fsck; at the end, fsck --verify-data.

mod calls;
mod daemon;
mod ingest;

use std::fs;
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

fn writer(daemon: &Daemon, journal: &Journal, round: u64, writer: u64, killed: &AtomicBool) {
    let mut random = Random::new(round * WRITERS + writer + 1);
    for n in 0.. {
        let key = format!("round{round}.writer{writer}.{n}");
        journal.begun.lock().expect("no writer panics").push(key.clone());
        match ingest::ingest(daemon, &key, random.below(5)) {
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

/// What is left after a death; counts (reported, sealed but not reported, drafts, absent).
fn check(daemon: &Daemon, journal: Journal) -> [usize; 4] {
    let mnt = daemon.mnt();
    let (begun, sealed) =
        (journal.begun.into_inner().expect("whole"), journal.sealed.into_inner().expect("whole"));
    let mut counts = [sealed.len(), 0, 0, 0];
    for key in &sealed {
        assert_eq!(state(&mnt.join(key)).as_deref(), Some("sealed"), "{key} was reported sealed");
        ingest::whole(&mnt, key).unwrap_or_else(|e| panic!("{e}"));
    }
    for key in begun.iter().filter(|key| !sealed.contains(key)) {
        match state(&mnt.join(key)).as_deref() {
            Some("sealed") => {
                ingest::whole(&mnt, key).unwrap_or_else(|e| panic!("{e}"));
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
