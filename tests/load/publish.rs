//! Publishes one large entry while other keys are looked up.
//!
//! usage: `publish [FILES] [MIB] [MAX_MS]` with OUTFS_BIN set: an entry of FILES files and MIB MiB (20000, 1024) is
//! published by rename while two threads look up keys, none of which may take longer than MAX_MS (20), or than three
//! times the longest look-up just before, when nothing is published. A look-up that waits for the publishing does so
//! every time; one that a busy machine held up does not, so up to three entries are tried.

mod daemon;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use daemon::{Daemon, Random, percentile};

const OTHERS: u64 = 300;
const TRIES: usize = 3;

fn write_big(work: &Path, files: u64, mib: u64) {
    let mut random = Random::new(1);
    // One file in 20 is large and holds two thirds of the bytes, as in build trees.
    let small = mib * 1024 * 1024 / 3 / (files - files / 20);
    let large = mib * 1024 * 1024 * 2 / 3 / (files / 20);
    for n in 0..files {
        let dir = work.join(format!("outputs/d{:02}/d{:02}", n % 20, n / 20 % 20));
        if n < 400 {
            fs::create_dir_all(&dir).expect("a directory of the draft");
        }
        let length = if n % 20 == 19 { large } else { small };
        fs::write(dir.join(format!("f{n}")), random.bytes(length as usize)).expect("a file of the draft");
    }
}

/// Looks up keys until `done`: known ones (with a read) and, each a look-up the daemon must answer, absent ones.
/// Pauses between: a reader that never sleeps measures how the processor is shared.
fn look_up(mnt: &Path, seed: u64, done: &AtomicBool) -> Vec<Duration> {
    let mut random = Random::new(seed);
    let mut times = vec![];
    while !done.load(Ordering::Relaxed) {
        let known = mnt.join(format!("other.{}", random.below(OTHERS))).join("outputs/a");
        let absent = mnt.join(format!("absent.{:016x}", random.below(u64::MAX)));
        let started = Instant::now();
        assert!(fs::symlink_metadata(&absent).is_err(), "{} must not exist", absent.display());
        times.push(started.elapsed());
        let started = Instant::now();
        fs::read(&known).unwrap_or_else(|e| panic!("{}: {e}", known.display()));
        times.push(started.elapsed());
        std::thread::sleep(Duration::from_micros(500));
    }
    times
}

/// Does something while two threads look up keys; how long it took, and their times, sorted.
fn while_looking_up(mnt: &Path, work: impl FnOnce()) -> (Duration, Vec<Duration>) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let done = &done;
        let readers = [1, 2].map(|seed| scope.spawn(move || look_up(mnt, seed, done)));
        let started = Instant::now();
        work();
        let took = started.elapsed();
        done.store(true, Ordering::Relaxed);
        let mut times: Vec<_> = readers.into_iter().flat_map(|r| r.join().expect("a reader")).collect();
        times.sort();
        (took, times)
    })
}

/// Publishes one entry of so many files while keys are looked up; whether each look-up was fast enough.
fn publish(mnt: &Path, number: usize, (files, mib): (u64, u64), limit: Duration) -> bool {
    let work = mnt.join(format!(".outfs/work/big{number}"));
    fs::create_dir(&work).expect("the big draft");
    let started = Instant::now();
    write_big(&work, files, mib);
    let wrote = started.elapsed();
    let quiet = while_looking_up(mnt, || std::thread::sleep(Duration::from_secs(2))).1;
    let top = mnt.join(format!("big.entry{number}"));
    let rename = || fs::rename(&work, &top).expect("publish the big entry");
    let (published, times) = while_looking_up(mnt, rename);
    let longest = times.last().copied().unwrap_or_default();
    let quiet = quiet.last().copied().unwrap_or_default();
    println!(
        "{files} files, {mib} MiB: written in {wrote:.1?}, published in {published:.2?}; {} look-ups meanwhile: median \
         {:.0?}, 99 % {:.1?}, longest {longest:.1?} (limit {limit:.0?}; just before, with nothing to publish, {quiet:.1?})",
        times.len(),
        percentile(&times, 50.0),
        percentile(&times, 99.0),
    );
    let read = fs::read(top.join("outputs/d00/d00/f0")).expect("a file of the published entry");
    assert!(!read.is_empty());
    // A machine that is busy with something else is slow without any publishing, too.
    longest <= limit.max(quiet * 3)
}

fn main() {
    let mut args =
        std::env::args().skip(1).map(|a| a.parse::<u64>().expect("publish [FILES] [MIB] [MAX_MS]"));
    let size = (args.next().unwrap_or(20_000), args.next().unwrap_or(1024));
    let limit = Duration::from_millis(args.next().unwrap_or(20));
    let daemon = Daemon::new();
    daemon.mount(&["--size", "20GiB"]);
    let mnt = daemon.mnt();
    for n in 0..OTHERS {
        let work = mnt.join(format!(".outfs/work/o{n}"));
        fs::create_dir_all(work.join("outputs")).expect("a small draft");
        fs::write(work.join("outputs/a"), format!("{n}")).expect("its file");
        fs::rename(&work, mnt.join(format!("other.{n}"))).expect("publish a small entry");
    }
    let fast = (0..TRIES).any(|number| publish(&mnt, number, size, limit));
    assert!(fast, "each of {TRIES} times a look-up of another key took more than {limit:.0?}");
}
