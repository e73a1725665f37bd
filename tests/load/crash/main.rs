//! Power cuts: a store on a disk that remembers every write, and every state that the disk may be in afterwards.
//!
//! usage: `crash ext4|xfs IMAGES [SECONDS [SEED]]` or `crash refuse ext4|xfs ROUNDS [SEED]`, with OUTFS_BIN set, as root. A busy store works for some seconds; then
//! the disk is rebuilt as it may be after a power cut at random points of its log, with the writes that no flush
//! covered lost, kept, kept in part or torn. On each such disk outfs is started: everything that was reported
//! must be there, everything else whole or absent, and `fsck --verify-data` clean. After some 50 images another store works, with
//! another seed: what is rare in one life may be common in another. With `refuse` the disk refuses writes instead of
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
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use check::{Told, check};
use daemon::{Daemon, Random};
use disk::{Disk, run};
use image::{Fate, Image, Record};
use tempfile::TempDir;

/// XFS makes nothing smaller.
const SIZE: u64 = 512 << 20;
/// How many images are made of one life of a store, or some more.
const OF_ONE: usize = 50;

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

/// Has a new, busy store work on the disk and gives the log of the disk.
fn record(place: &Place, kind: &str, time: Duration, seed: u64) -> Vec<Record> {
    let Place { disk, base, at, .. } = place;
    disk.replace(base.clone());
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
fn sweep(place: &Place, kind: &str, log: &[Record], cuts: &[Cut], random: &mut Random) -> usize {
    let Place { disk, base, at, .. } = place;
    let (mut durable, mut flushed, mut seen, mut told) = (base.clone(), 0, 0, Told::default());
    let (mut broken, mut most) = (0, 0);
    for cut in cuts {
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
        disk.replace(durable.after_cut(log[flushed..seen].iter(), cut.fate, random));
        let result =
            disk.mount(kind, at).and_then(|_attached| check(&Daemon::kept(at), &told, ingest::whole));
        if let Err(why) = result {
            broken += 1;
            println!("cut after record {}, {:?}: {why}", cut.after, cut.fate);
        }
    }
    println!("at most {most} entries had been reported sealed; {} images, {broken} broken", cuts.len());
    broken
}

/// One life of a store, and `images` disks as they may be after it; how many were made, and on how many a promise was broken.
fn life(place: &Place, kind: &str, images: usize, time: Duration, seed: u64) -> (usize, usize) {
    println!("{kind}, seed {seed} (again: crash {kind} {images} {} {seed})", time.as_secs());
    let log = record(place, kind, time, seed);
    let mut random = Random::new(seed);
    let cuts = cuts(&log, images, &mut random);
    println!("{} records of the disk, {} cuts", log.len(), cuts.len());
    (cuts.len(), sweep(place, kind, &log, &cuts, &mut random))
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
    let (place, started) = (Place::new(&kind), Instant::now());
    let (mut made, mut broken, mut lives) = (0, 0, 0);
    while made < images {
        let (more, of_them) = life(&place, &kind, OF_ONE.min(images - made), time, seed + lives);
        (made, broken, lives) = (made + more, broken + of_them, lives + 1);
    }
    println!("{kind}: {made} images of {lives} lives in {:.0?}, {broken} broken", started.elapsed());
    if broken > 0 { ExitCode::from(3) } else { ExitCode::SUCCESS }
}
