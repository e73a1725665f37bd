//! A store of many small entries: how long until it is mounted, how long a look-up takes, how much memory it costs.
//!
//! usage: `million [ENTRIES [DIR]]` (1000000) with OUTFS_BIN set. A store of 1,000 entries is measured beside it, look-up by
//! look-up: a random key must be found as fast in the large one. The entries are made straight through the
//! library, with syncing switched off in this process: making them is not what is measured. With DIR the store
//! stays there for the next run.

mod daemon;
mod fill;

use std::fs;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use daemon::{Daemon, percentile};
use fill::key;

/// Look-ups before it is the other store's turn.
const TURN: u64 = 50;
const LOOKUPS: u64 = 900;
/// A prime, so that a walk of this step visits keys once; keys are hashes, so their order is random.
const STEP: u64 = 7919;
/// The store that "as fast as" compares with.
const FEW: u64 = 1000;
const MAX_START: Duration = Duration::from_millis(300);
const MAX_RESIDENT: u64 = 100 << 20;
/// Look-ups in the large store, over those in the small one. The daemon's own part is 6 µs over 2.5 µs; most of a
/// look-up is waking up its thread and the caller, which takes 10 to 50 µs as the machine pleases.
const MAX_RATIO: f64 = 2.5;

fn make(daemon: &Daemon, entries: u64) {
    let started = Instant::now();
    fill::entries(&daemon.store(), &daemon.scratch(), 0..entries);
    println!("{entries} entries made in {:.0?}", started.elapsed());
}

/// From start to mounted: the best of three, since the first one also reads the program itself from disk.
fn start(daemon: &Daemon) -> Duration {
    let once = || {
        let took = daemon.mount(&[]);
        daemon.run(&["stop"]);
        took
    };
    let best = (0..3).map(|_| once()).min().expect("three starts");
    daemon.mount(&[]);
    best
}

/// Finds the `n`th of some random keys; distinct ones, since the kernel answers a second look-up itself.
fn look_up(daemon: &Daemon, n: u64, entries: u64) -> Duration {
    let path = daemon.mnt().join(key(n * STEP % entries));
    let started = Instant::now();
    fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    started.elapsed()
}

fn list(daemon: &Daemon, entries: u64) -> Duration {
    let started = Instant::now();
    let listed =
        Command::new("sh").args(["-c", "ls -f \"$0\" | wc -l"]).arg(daemon.mnt()).output().expect("ls");
    let took = started.elapsed();
    // `.` and `..` are listed too.
    assert_eq!(
        String::from_utf8_lossy(&listed.stdout).trim(),
        (entries + 2).to_string(),
        "ls -f MNT | wc -l"
    );
    took
}

fn index(daemon: &Daemon) -> fs::File {
    fs::File::open(daemon.store().join("index.sqlite")).expect("the index")
}

/// Has the kernel read the index: as after it was made, and unlike after an earlier run.
fn warm(daemon: &Daemon) {
    std::io::copy(&mut index(daemon), &mut std::io::sink()).expect("the index is read");
}

/// Has the kernel forget what it read of the index: as after the machine was started.
fn chill(daemon: &Daemon) {
    let index = index(daemon);
    // SAFETY: fadvise(2) on an open descriptor changes nothing but what is cached.
    unsafe { libc::posix_fadvise(index.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

fn main() {
    let mut args = std::env::args().skip(1);
    let entries = args.next().map_or(1_000_000, |n| n.parse::<u64>().expect("million [ENTRIES [DIR]]"));
    let (few, many) = (Daemon::new(), args.next().map_or_else(Daemon::new, |dir| Daemon::kept(dir.as_ref())));
    make(&few, FEW);
    if !many.store().join("index.sqlite").exists() {
        make(&many, entries);
    }
    [&few, &many].into_iter().for_each(warm);
    let started = [start(&few), start(&many)];
    let mut times: [Vec<Duration>; 2] = Default::default();
    // In turns, but not one by one: two daemons would push each other out of the processor's caches.
    for first in (0..LOOKUPS.min(entries)).step_by(TURN as usize) {
        let turn = first..(first + TURN).min(entries);
        times[0].extend(turn.clone().map(|n| look_up(&few, n, FEW)));
        times[1].extend(turn.map(|n| look_up(&many, n, entries)));
    }
    times.iter_mut().for_each(|t| t.sort());
    let listed = [list(&few, FEW), list(&many, entries)];
    let resident = [few.resident(), many.resident()];
    for (i, count) in [(0, FEW), (1, entries)] {
        println!(
            "{count:>8} entries: mounted after {:.0?}, look-up of a random key {:.1?} (99 %: {:.1?}), ls -f {:.2?}, \
             resident {} MiB",
            started[i],
            percentile(&times[i], 50.0),
            percentile(&times[i], 99.0),
            listed[i],
            resident[i] >> 20
        );
    }
    many.run(&["stop"]);
    chill(&many);
    let cold = many.mount(&[]);
    let mut times_cold: Vec<_> = (0..LOOKUPS.min(entries)).map(|n| look_up(&many, n, entries)).collect();
    times_cold.sort();
    let ratio = percentile(&times[1], 50.0).as_secs_f64() / percentile(&times[0], 50.0).as_secs_f64();
    println!(
        "a look-up in the large store takes {ratio:.2} times as long; with an index that is not in memory \
         {:.1?} (99 %: {:.1?}), mounted after {cold:.0?}",
        percentile(&times_cold, 50.0),
        percentile(&times_cold, 99.0)
    );
    assert!(started[1] <= MAX_START, "started in {:.0?}, limit {MAX_START:.0?}", started[1]);
    assert!(resident[1] <= MAX_RESIDENT, "resident {} bytes, limit {MAX_RESIDENT}", resident[1]);
    assert!(ratio <= MAX_RATIO, "a look-up takes {ratio:.2} times as long, limit {MAX_RATIO}");
}
