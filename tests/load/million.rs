//! A store of many small entries: how long until it is mounted, how long a look-up takes, how much memory it costs.
//!
//! usage: `million [ENTRIES [DIR]]` (1000000) with OUTFS_BIN set. A store of 1,000 entries is measured beside it, in
//! turns: a random key must be found as fast in the large one, and one that is absent be missed as fast. Measuring begins
//! when the daemon has the keys in memory, a second or two after it has mounted. The entries are made straight through the
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
const ROUNDS: u64 = 5;
/// When the machine was too busy for a judgement after the first rounds.
const MOST_ROUNDS: u64 = 15;
/// A prime, so that a walk of this step visits keys once; keys are hashes, so their order is random.
const STEP: u64 = 7919;
/// The store that "as fast as" compares with.
const FEW: u64 = 1000;
const MAX_START: Duration = Duration::from_millis(300);
const MAX_RESIDENT: u64 = 100 << 20;
/// Look-ups in the large store, over those in the small one, each the median of the rounds; for keys that are there
/// and for absent ones. The daemon's own part is the same in both but for colder memory; most of a look-up is waking up
/// its thread and the caller, which takes 20 to 50 µs as the machine pleases: single rounds reach 1.5.
const MAX_RATIO: f64 = 1.2;

fn make(daemon: &Daemon, entries: u64) {
    let started = Instant::now();
    fill::entries(&daemon.store(), &daemon.scratch(), 0..entries, |n| {
        if (n + 1) % 50_000 == 0 {
            eprintln!("{} entries after {:.0?}", n + 1, started.elapsed());
        }
    });
    println!("{entries} entries made in {:.0?}", started.elapsed());
}

/// Mounts and gives the time from start to mounted.
fn start(daemon: &Daemon) -> Duration {
    let took = daemon.mount(&[]);
    let deadline = Instant::now() + Duration::from_secs(60);
    while daemon.stats()["keys_in_memory"] != true {
        assert!(Instant::now() < deadline, "the keys are not in memory");
    }
    took
}

/// Finds the `n`th of some random keys; distinct ones, since the kernel answers a second look-up itself.
fn look_up(daemon: &Daemon, n: u64, entries: u64) -> Duration {
    let path = daemon.mnt().join(key(n * STEP % entries));
    let started = Instant::now();
    fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    started.elapsed()
}

/// Asks for a key that is not there, as a cache is asked most often.
fn miss(daemon: &Daemon, n: u64) -> Duration {
    let path = daemon.mnt().join(key(u64::MAX - n));
    let started = Instant::now();
    let answer = fs::symlink_metadata(&path);
    let took = started.elapsed();
    assert!(answer.is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound), "{}", path.display());
    took
}

/// What look-ups in one store took: of keys that are there, and of others; each round by itself.
#[derive(Default)]
struct Times {
    started: Vec<Duration>,
    hits: Vec<Vec<Duration>>,
    misses: Vec<Vec<Duration>>,
}

impl Times {
    fn all(rounds: &[Vec<Duration>]) -> Vec<Duration> {
        let mut all = rounds.concat();
        all.sort();
        all
    }
}

/// One round: both stores mounted anew, so that no kernel knows a key.
fn round(number: u64, stores: [(&Daemon, u64); 2], times: &mut [Times; 2]) {
    for ((daemon, _), times) in stores.iter().zip(&mut *times) {
        times.started.push(start(daemon));
        times.hits.push(Vec::new());
        times.misses.push(Vec::new());
    }
    let lookups = LOOKUPS.min(stores[1].1);
    // In turns, but not one by one: two daemons would push each other out of the processor's caches.
    for first in (0..lookups).step_by(TURN as usize) {
        for ((daemon, entries), times) in stores.iter().zip(&mut *times) {
            for n in (first..(first + TURN).min(lookups)).map(|n| number * lookups + n) {
                times.hits.last_mut().expect("this round").push(look_up(daemon, n, *entries));
            }
            for n in first..(first + TURN).min(lookups) {
                times.misses.last_mut().expect("this round").push(miss(daemon, n));
            }
        }
    }
}

/// The median of the rounds' ratios of medians: of the second store's times over the first one's.
fn ratio(few: &[Vec<Duration>], many: &[Vec<Duration>]) -> f64 {
    let median = |times: &[Duration]| percentile(&Times::all(&[times.to_vec()]), 50.0).as_secs_f64();
    let mut ratios: Vec<f64> = few.iter().zip(many).map(|(f, m)| median(m) / median(f)).collect();
    ratios.sort_by(f64::total_cmp);
    eprintln!("ratios of the rounds: {ratios:.2?}");
    ratios[ratios.len() / 2]
}

/// Of look-ups and of misses.
fn ratios([few, many]: &[Times; 2]) -> [f64; 2] {
    [ratio(&few.hits, &many.hits), ratio(&few.misses, &many.misses)]
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
    let (stores, mut times) = ([(&few, FEW), (&many, entries)], <[Times; 2]>::default());
    for number in 0..MOST_ROUNDS {
        if number >= ROUNDS && ratios(&times).iter().all(|ratio| *ratio <= MAX_RATIO) {
            break;
        }
        if number > 0 {
            stores.iter().for_each(|(daemon, _)| drop(daemon.run(&["stop"])));
        }
        round(number, stores, &mut times);
    }
    for ((daemon, count), times) in stores.iter().zip(&times) {
        let (hits, misses) = (Times::all(&times.hits), Times::all(&times.misses));
        println!(
            "{count:>8} entries: mounted after {:.0?}, look-up of a random key {:.1?} (99 %: {:.1?}), of an absent one \
             {:.1?} (99 %: {:.1?}), ls -f {:.2?}, resident {} MiB",
            times.started.iter().min().expect("a start"),
            percentile(&hits, 50.0),
            percentile(&hits, 99.0),
            percentile(&misses, 50.0),
            percentile(&misses, 99.0),
            list(daemon, *count),
            daemon.resident() >> 20
        );
    }
    let resident = many.resident();
    let started = *times[1].started.iter().min().expect("a start");
    many.run(&["stop"]);
    chill(&many);
    let cold = start(&many);
    let mut times_cold: Vec<_> = (0..LOOKUPS.min(entries)).map(|n| look_up(&many, n, entries)).collect();
    times_cold.sort();
    let ratios = ratios(&times);
    println!(
        "a look-up in the large store takes {:.2} times as long, a miss {:.2} times; with an index that is not in \
         memory a look-up takes {:.1?} (99 %: {:.1?}), mounted after {cold:.0?}",
        ratios[0],
        ratios[1],
        percentile(&times_cold, 50.0),
        percentile(&times_cold, 99.0)
    );
    assert!(started <= MAX_START, "started in {started:.0?}, limit {MAX_START:.0?}");
    assert!(resident <= MAX_RESIDENT, "resident {resident} bytes, limit {MAX_RESIDENT}");
    for ratio in ratios {
        assert!(ratio <= MAX_RATIO, "a look-up takes {ratio:.2} times as long, limit {MAX_RATIO}");
    }
}
