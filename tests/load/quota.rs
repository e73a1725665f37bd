//! What the disk itself says of a quota: clients store large, small and shared files through the mount and beside it,
//! evict, collect and replace, and again and again all stop (every other time with a draft that stays open), and when upkeep is at
//! rest the file system is asked what is used. From that moment on it may be no more than 101 % of the quota and the open drafts.
//!
//! Everything counts that was not there before the store was: directories, inodes where they are made as they are
//! needed, and what the file system keeps to find free space.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::daemon::{Daemon, Random};
use crate::{MIB, Space};

/// A hundredth of it is more than the blocks that a file system moves about for itself.
pub const QUOTA: u64 = 256 * MIB;
const CLIENTS: u64 = 4;
/// Three times the quota.
const ENTRIES: u64 = 400;
/// The most that one client has beside the store: what it writes, and while a put copies it, that once more.
const BESIDE: u64 = 2 * 9 * MIB;
/// How often the disk is asked while they work.
const ASKED: Duration = Duration::from_millis(50);
/// How often all stop.
const EVERY: Duration = Duration::from_secs(4);
/// Rounds of upkeep that change nothing before it counts as being at rest: one is a second, drafts are measured every
/// other one.
const QUIET: u64 = 4;
/// By then it is.
const SETTLED: Duration = Duration::from_secs(120);
/// How often the disk is asked from then on.
const SAMPLES: u32 = 20;
/// MiB of a draft that is open.
const DRAFT: u64 = 16;
/// A machine that is slower than this has stored less.
const AT_MOST: Duration = Duration::from_secs(180);

struct Work<'a> {
    daemon: &'a Daemon,
    going: RwLock<()>,
    over: AtomicBool,
    stored: AtomicU64,
    refused: AtomicU64,
}

/// What the disk showed.
#[derive(Default)]
struct Seen {
    /// Most bytes at once, drafts and all.
    busy: u64,
    /// Most bytes at once but for what is no entry yet: drafts, and what is about to be put.
    entries: u64,
    /// How often the disk was asked for that.
    asked: u64,
    /// Most bytes at rest, when nobody had a draft.
    still: u64,
    /// Most bytes at rest, with one that was open.
    with_draft: u64,
    /// Most bytes at rest but for open drafts.
    beyond: i64,
    /// How long it took until upkeep was at rest.
    longest: Duration,
    stops: u64,
    /// Furthest above and below what outfs itself said at that moment.
    above: i64,
    below: i64,
}

/// One entry's files: either large ones, or hundreds of small ones, some of which others have, too.
fn write_files(outputs: &Path, random: &mut Random) -> io::Result<()> {
    fs::create_dir_all(outputs)?;
    match random.below(4) {
        0 => {
            let size = (1 + random.below(8)) * MIB + random.below(5000);
            fs::write(outputs.join("large"), random.bytes(size as usize))
        }
        1 => (0..4).try_for_each(|n| {
            let size = 260_000 + random.below(400_000);
            fs::write(outputs.join(format!("blob{n}")), random.bytes(size as usize))
        }),
        2 => {
            let files = random.below(300);
            (0..files).try_for_each(|n| {
                let below = outputs.join(format!("dir{}", n % 7));
                fs::create_dir_all(&below)?;
                let shared = Random::new(n).bytes(3000);
                fs::write(below.join(format!("shared{n}")), shared)?;
                let size = random.below(9000) as usize;
                fs::write(below.join(format!("small{n}")), random.bytes(size))
            })
        }
        _ => fs::write(outputs.join("tiny"), random.bytes(100)),
    }
}

fn store(daemon: &Daemon, key: &str, random: &mut Random) -> io::Result<()> {
    let mnt = daemon.mnt();
    if random.below(4) == 0 {
        let source = daemon.scratch().join(key);
        let written = write_files(&source, random);
        let put = daemon.ask(&["put", key, source.to_str().expect("text")]);
        fs::remove_dir_all(&source)?;
        return written.and(put.map(drop).map_err(io::Error::other));
    }
    let work = mnt.join(".outfs/work").join(key);
    fs::create_dir(&work)?;
    let written = write_files(&work.join("outputs"), random).and_then(|()| fs::rename(&work, mnt.join(key)));
    if written.is_err() {
        let _ = fs::rename(&work, mnt.join(".outfs/trash").join(key));
    }
    written
}

fn is_full(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::ENOSPC) || e.to_string().contains("no room")
}

fn client(work: &Work, number: u64) {
    let mut random = Random::new(number + 1);
    let _evening = Evening(&work.over);
    let mut stored = 0;
    while !work.over.load(Ordering::Relaxed) {
        let _going = work.going.read().expect("nobody panics in a stop");
        match random.below(10) {
            0 => drop(work.daemon.ask(&["evict", &format!("key{number}.{}", random.below(stored + 1))])),
            1 if number == 0 => drop(work.daemon.ask(&["gc"])),
            2 => {
                let key = format!("key{number}.{}", random.below(stored + 1));
                let outputs = work.daemon.mnt().join(key).join("outputs");
                for file in fs::read_dir(outputs).into_iter().flatten().flatten() {
                    let _ = fs::read(file.path());
                }
            }
            _ => {
                stored += 1;
                let key = format!("key{number}.{stored}");
                match store(work.daemon, &key, &mut random) {
                    Ok(()) => drop(work.stored.fetch_add(1, Ordering::Relaxed)),
                    // All there is may be held or just being written by the others.
                    Err(e) if is_full(&e) => drop(work.refused.fetch_add(1, Ordering::Relaxed)),
                    Err(e) => panic!("{key}: {e}"),
                }
            }
        }
    }
}

/// Bytes that the trees of drafts have on the disk, and the directories from which clients put.
fn beside(daemon: &Daemon) -> u64 {
    let (mut todo, mut sum) = (vec![daemon.store().join("drafts"), daemon.scratch()], 0);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            sum += meta.blocks() * 512;
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    sum
}

/// When it is dropped the work is over, also when something has gone wrong.
struct Evening<'a>(&'a AtomicBool);

impl Drop for Evening<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until upkeep is at rest: by its own account the quota holds and nothing is to be freed, it knows of the `open` draft,
/// and some rounds have changed nothing. Gives the last stats.
fn rest(daemon: &Daemon, open: bool) -> Value {
    let begun = Instant::now();
    let (mut last, mut since) = (None, 0);
    loop {
        let now = daemon.stats();
        let usage = &now["usage"];
        let rounds = now["rounds"].as_u64().expect("a number");
        let figures = [&usage["used"], &usage["held"], &usage["drafts"], &usage["dead"], &now["evicted"]];
        let figures = figures.map(|n| n.as_u64().expect("a number"));
        let [used, held, drafts, ..] = figures;
        let knows = if open { drafts >= DRAFT * MIB } else { drafts == 0 };
        let full = used > usage["limit"].as_u64().expect("a number");
        if Some(figures) != last || held > 0 || full || !knows {
            (last, since) = (Some(figures), rounds);
        } else if rounds >= since + QUIET {
            return now;
        }
        assert!(begun.elapsed() < SETTLED, "upkeep is never at rest: {now}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Writes [`DRAFT`] MiB, however long others need to be evicted.
fn write_draft(outputs: &Path) {
    let begun = Instant::now();
    let once_there_is_room = |attempt: &dyn Fn() -> io::Result<()>| {
        while let Err(e) = attempt() {
            assert!(
                is_full(&e) && begun.elapsed() < SETTLED,
                "an open draft: {e} after {:?}",
                begun.elapsed()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    once_there_is_room(&|| fs::create_dir_all(outputs));
    for n in 0..DRAFT {
        once_there_is_room(&|| fs::write(outputs.join(n.to_string()), [7; MIB as usize]));
    }
}

/// All stop, maybe with a draft; what the disk says from the moment on when upkeep is at rest.
fn stop(work: &Work, disk: &Space, empty: u64, seen: &mut Seen) {
    let used = || disk.used().saturating_sub(empty);
    seen.busy = seen.busy.max(used());
    let _nobody = work.going.write().expect("no client panics");
    seen.stops += 1;
    let draft = work.daemon.mnt().join(".outfs/work/open");
    let open = seen.stops.is_multiple_of(2);
    if open {
        write_draft(&draft.join("outputs"));
    }
    let begun = Instant::now();
    let told = rest(work.daemon, open);
    seen.longest = seen.longest.max(begun.elapsed());
    let number = |name: &str| told["usage"][name].as_u64().expect("a number");
    let (told, drafts) = (number("used"), number("drafts"));
    for _ in 0..SAMPLES {
        let now = used();
        let difference = now as i64 - told as i64;
        seen.above = seen.above.max(difference);
        seen.below = seen.below.min(difference);
        let most = if open { &mut seen.with_draft } else { &mut seen.still };
        *most = (*most).max(now);
        seen.beyond = seen.beyond.max(now as i64 - drafts as i64);
        std::thread::sleep(Duration::from_millis(50));
    }
    if open {
        fs::rename(&draft, work.daemon.mnt().join(".outfs/trash/open")).expect("it is dropped");
    }
}

/// Works for a while in a store with [`QUOTA`] on a disk where there was nothing but `empty` bytes.
pub fn by_the_disk(disk: &Space, daemon: &Daemon, empty: u64) {
    // Where it is to hold, and no earlier.
    fs::write(daemon.config(), "[limits]\nhigh_water = 100\nlow_water = 100\n").expect("a configuration");
    daemon.mount(&["--size", &QUOTA.to_string(), "--reserve", "0", "--min-age", "0s"]);
    fs::create_dir_all(daemon.scratch()).expect("a directory");
    let (stored, refused) = Default::default();
    let work = Work { daemon, going: RwLock::new(()), over: AtomicBool::new(false), stored, refused };
    let mut seen = Seen::default();
    std::thread::scope(|scope| {
        let _evening = Evening(&work.over);
        let work = &work;
        (0..CLIENTS).for_each(|number| drop(scope.spawn(move || client(work, number))));
        let end = Instant::now() + AT_MOST;
        while work.stored.load(Ordering::Relaxed) < ENTRIES
            && !work.over.load(Ordering::Relaxed)
            && Instant::now() < end
        {
            let begun = Instant::now();
            while begun.elapsed() < EVERY {
                // Whoever writes goes on meanwhile: drafts are looked at before and after.
                let before = beside(daemon);
                let used = disk.used().saturating_sub(empty);
                seen.entries = seen.entries.max(used.saturating_sub(before.max(beside(daemon))));
                seen.busy = seen.busy.max(used);
                seen.asked += 1;
                std::thread::sleep(ASKED);
            }
            stop(work, disk, empty, &mut seen);
        }
    });
    let share = |bytes: i64| bytes as f64 / QUOTA as f64 * 100.0;
    println!(
        "quota of {} MiB, {} entries by {CLIENTS} clients ({} refused): the disk shows at most {:.1} % of it while they \
         write, {:.1} % without their drafts; at rest, in {} stops and within {:.1?}, {:.2} % when nobody has a draft, {:.2} % with one of {DRAFT} MiB, \
         {:.2} % without what is in it; that is between {:.2} % less and {:.2} % more than outfs says",
        QUOTA / MIB,
        work.stored.into_inner(),
        work.refused.into_inner(),
        share(seen.busy as i64),
        share(seen.entries as i64),
        seen.stops,
        seen.longest,
        share(seen.still as i64),
        share(seen.with_draft as i64),
        share(seen.beyond),
        share(-seen.below),
        share(seen.above)
    );
    let within = QUOTA + QUOTA / 100;
    // Drafts count when they are measured, every other second, so that more cannot be said while they are written.
    assert!(
        seen.asked > 0 && seen.busy <= within + CLIENTS * BESIDE,
        "the quota does not hold while clients write"
    );
    assert!(seen.still <= within, "the quota does not hold");
    assert!(seen.beyond <= within as i64, "the quota does not hold beside open drafts");
    assert!(seen.still >= QUOTA / 10 * 8, "it is used, too");
    crate::sound(daemon);
}
