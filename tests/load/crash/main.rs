//! Power cuts: a store on a disk that remembers every write, and every state that the disk may be in afterwards.
//!
//! usage: `crash ext4|xfs IMAGES [SECONDS [SEED]]` or `crash refuse ext4|xfs ROUNDS [SEED]`, with OUTFS_BIN set, as root. A busy store works for some seconds; then
//! the disk is rebuilt as it may be after a power cut at random points of its log, with the writes that no flush
//! covered lost, kept, kept in part or torn. On each such disk outfs is started: everything that was reported
//! must be there, everything else whole or absent, and `fsck --verify-data` clean. With `refuse` the disk refuses writes instead of
//! losing its power (`refuse.rs`). Ends with 3 when a promise was broken.

#[path = "../calls.rs"]
mod calls;
mod check;
#[path = "../daemon.rs"]
mod daemon;
mod disk;
mod image;
#[path = "../ingest.rs"]
mod ingest;
mod refuse;
mod work;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use check::{Told, check};
use daemon::{Daemon, Random};
use disk::{Disk, run};
use image::{Fate, Image, Record};
use tempfile::TempDir;

/// XFS makes nothing smaller.
const SIZE: u64 = 512 << 20;

/// One cut: after how many records, and what becomes of the rest.
struct Cut {
    after: usize,
    fate: Fate,
}

/// Cuts at random points, every other one when somebody had just been told something, in order; each with the fates that make a
/// difference there.
fn cuts(log: &[Record], images: usize, random: &mut Random) -> Vec<Cut> {
    let is_mark = |n: &usize| matches!(log[*n], Record::Mark(_));
    let told: Vec<usize> = (0..log.len()).filter(is_mark).map(|n| n + 1).collect();
    let (mut cuts, mut anywhere) = (Vec::new(), true);
    while cuts.len() < images {
        let after = match anywhere || told.is_empty() {
            true => random.below(log.len() as u64 + 1) as usize,
            false => told[random.below(told.len() as u64) as usize],
        };
        anywhere = !anywhere;
        let last = log[..after].iter().rposition(|r| matches!(r, Record::Flush)).map_or(0, |n| n + 1);
        let pending = log[last..after].iter().any(|r| !matches!(r, Record::Mark(_)));
        let fates = if pending { &Fate::ALL[..] } else { &Fate::ALL[..1] };
        cuts.extend(fates.iter().map(|fate| Cut { after, fate: *fate }));
    }
    cuts.sort_by_key(|cut| cut.after);
    cuts
}

/// Has a busy store work on the disk and gives the log of the disk.
fn record(disk: &Disk, kind: &str, at: &Path, time: Duration, seed: u64) -> Vec<Record> {
    disk.record();
    let attached = disk.mount(kind, at).expect("the new file system can be mounted");
    let daemon = Daemon::kept(at);
    daemon.mount(&["--size", "1G"]);
    work::work(&daemon, &disk.marker(), time, seed);
    let log = disk.recorded();
    drop(daemon);
    drop(attached);
    log
}

/// Looks at the disk after each cut; the number of disks on which a promise was broken.
fn sweep(disk: &Disk, kind: &str, at: &Path, base: &Image, log: &[Record], cuts: &[Cut], seed: u64) -> usize {
    let (mut durable, mut flushed, mut seen, mut told) = (base.clone(), 0, 0, Told::default());
    let (mut random, mut broken, mut most) = (Random::new(seed), 0, 0);
    for (n, cut) in cuts.iter().enumerate() {
        for record in &log[seen..cut.after] {
            seen += 1;
            match record {
                Record::Flush => {
                    log[flushed..seen].iter().for_each(|r| durable.apply(r));
                    flushed = seen;
                }
                Record::Mark(text) => told.learn(text),
                Record::Write { .. } | Record::Zero { .. } => {}
            }
        }
        most = most.max(told.entries());
        disk.replace(durable.after_cut(log[flushed..seen].iter(), cut.fate, &mut random));
        let result =
            disk.mount(kind, at).and_then(|_attached| check(&Daemon::kept(at), &told, ingest::whole));
        if let Err(why) = result {
            broken += 1;
            println!("cut after record {}, {:?}: {why}", cut.after, cut.fate);
        }
        if (n + 1) % 200 == 0 {
            println!("{} of {} images, {broken} broken", n + 1, cuts.len());
        }
    }
    println!("at most {most} entries had been reported sealed");
    broken
}

/// Another seed each time; a process in a namespace of its own always has the same number.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_millis() as u64 % 1_000_000)
}

/// A disk with a new file system, which is not mounted yet.
struct Place {
    disk: Disk,
    base: Image,
    at: PathBuf,
    _dir: TempDir,
}

impl Place {
    fn new(kind: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("outfs-crash-").tempdir().expect("a temporary directory");
        let (base, below, at) = (dir.path().join("base"), dir.path().join("disk"), dir.path().join("fs"));
        for dir in [&below, &at] {
            fs::create_dir(dir).expect("a directory");
        }
        File::create(&base).and_then(|f| f.set_len(SIZE)).expect("the disk's base");
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&base)).expect("a new file system");
        let base = Image::new(File::open(&base).expect("the disk's base"));
        Self { disk: Disk::serve(&below, base.clone(), SIZE), base, at, _dir: dir }
    }
}

fn main() -> ExitCode {
    let usage = "usage: crash ext4|xfs IMAGES [SECONDS [SEED]] | crash refuse ext4|xfs ROUNDS [SEED]";
    let mut args = std::env::args().skip(1);
    let mut kind = args.next().expect(usage);
    let refuse = kind == "refuse";
    if refuse {
        kind = args.next().expect(usage);
    }
    let mut numbers = args.map(|a| a.parse::<u64>().expect(usage));
    let images = numbers.next().expect(usage) as usize;
    if refuse {
        let broken = refuse::rounds(&Place::new(&kind), &kind, images, numbers.next().unwrap_or_else(now));
        return if broken > 0 { ExitCode::from(3) } else { ExitCode::SUCCESS };
    }
    let time = Duration::from_secs(numbers.next().unwrap_or(5));
    let seed = numbers.next().unwrap_or_else(now);
    let Place { disk, base, at, _dir } = Place::new(&kind);
    let log = record(&disk, &kind, &at, time, seed);
    let mut random = Random::new(seed);
    let cuts = cuts(&log, images, &mut random);
    println!("{kind}, seed {seed}: {} records of the disk, {} cuts", log.len(), cuts.len());
    let started = Instant::now();
    let broken = sweep(&disk, &kind, &at, &base, &log, &cuts, seed);
    println!("{kind}: {} images in {:.0?}, {broken} broken", cuts.len(), started.elapsed());
    if broken > 0 { ExitCode::from(3) } else { ExitCode::SUCCESS }
}
