//! A store of many small entries: how long until it is mounted, how long a look-up takes, how much memory it costs.
//!
//! usage: `million [ENTRIES] [MAX_START_MS] [MAX_RSS_MIB]` (1000000, 300, 100) with OUTFS_BIN set. A store of 1,000
//! entries is measured beside it: a random key must be found as fast in the large one. The entries are made straight
//! through the library, with syncing switched off in this process: making them is not what is measured.

mod daemon;

use std::ffi::c_int;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use daemon::{Daemon, percentile};
use outfs::cache::{Cache, Limits, SealRequest, TaskFacts};
use outfs::model::EntryKey;
use outfs::model::manifest::Origin;

const THREADS: u64 = 16;
const LOOKUPS: u64 = 800;
/// A prime, so that a walk of this step visits keys once; keys are hashes, so their order is random.
const STEP: u64 = 7919;
/// The store that "as fast as" compares with.
const FEW: u64 = 1000;

/// Does nothing: the standard library and SQLite call these instead of libc's.
#[unsafe(no_mangle)]
extern "C" fn fsync(_fd: c_int) -> c_int {
    0
}

/// See `fsync`.
#[unsafe(no_mangle)]
extern "C" fn fdatasync(_fd: c_int) -> c_int {
    0
}

/// See `fsync`.
#[unsafe(no_mangle)]
extern "C" fn syncfs(_fd: c_int) -> c_int {
    0
}

fn key(n: u64) -> String {
    blake3::hash(&n.to_le_bytes()).to_hex().to_string()
}

fn put(cache: &Cache, n: u64, source: &Path) {
    fs::write(source.join("result.txt"), format!("the result of task {n}\n")).expect("the output");
    let facts = TaskFacts { task_id: format!("task-{}", n % 1000), duration_ms: n, ..TaskFacts::default() };
    let request = SealRequest {
        key: EntryKey::parse(&key(n)).expect("a hash is a key"),
        origin: Origin { how: "library".into(), ..Origin::default() },
        inferred: false,
        replace: false,
    };
    cache.put_dir(source, &facts, [None, None], request).unwrap_or_else(|e| panic!("entry {n}: {e}"));
}

fn make(daemon: &Daemon, entries: u64) {
    let started = Instant::now();
    let cache = Cache::open(&daemon.store(), Limits::default()).expect("a new store");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (cache, source) = (&cache, daemon.scratch().join(thread.to_string()));
            scope.spawn(move || {
                fs::create_dir_all(&source).expect("a source directory");
                for n in (thread..entries).step_by(THREADS as usize) {
                    put(cache, n, &source);
                    if (n + 1) % 50_000 == 0 {
                        eprintln!("{} entries after {:.0?}", n + 1, started.elapsed());
                    }
                }
            });
        }
    });
    cache.close().expect("close the store");
    // What was left to the page cache must not be written while it is measured.
    // SAFETY: sync(2) takes and returns nothing.
    unsafe { libc::sync() };
    println!("{entries} entries made in {:.0?}", started.elapsed());
}

/// What is measured of one store.
struct Figures {
    start: Duration,
    lookup: Duration,
    slowest: Duration,
    resident: u64,
    list: Duration,
}

fn measure(entries: u64) -> Figures {
    let daemon = Daemon::new();
    make(&daemon, entries);
    // The best of three: the first one also reads the program itself from disk.
    let start = (0..3)
        .map(|_| {
            let took = daemon.mount(&[]);
            daemon.run(&["stop"]);
            took
        })
        .min()
        .expect("three starts");
    daemon.mount(&[]);
    let mnt = daemon.mnt();
    let mut times: Vec<Duration> = (0..LOOKUPS.min(entries))
        .map(|n| {
            // Distinct ones: the kernel answers a second look-up itself.
            let path = mnt.join(key(n * STEP % entries));
            let started = Instant::now();
            fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            started.elapsed()
        })
        .collect();
    times.sort();
    let started = Instant::now();
    let listed = Command::new("sh").args(["-c", "ls -f \"$0\" | wc -l"]).arg(&mnt).output().expect("ls");
    let list = started.elapsed();
    // `.` and `..` are listed too.
    assert_eq!(
        String::from_utf8_lossy(&listed.stdout).trim(),
        (entries + 2).to_string(),
        "ls -f MNT | wc -l"
    );
    let resident = daemon.resident();
    Figures { start, lookup: percentile(&times, 50.0), slowest: percentile(&times, 99.0), resident, list }
}

fn main() {
    let mut args =
        std::env::args().skip(1).map(|a| a.parse::<u64>().expect("million [ENTRIES] [MAX_MS] [MAX_MIB]"));
    let entries = args.next().unwrap_or(1_000_000);
    let max_start = Duration::from_millis(args.next().unwrap_or(300));
    let max_resident = args.next().unwrap_or(100) << 20;
    let (few, many) = (measure(FEW), measure(entries));
    for (count, f) in [(FEW, &few), (entries, &many)] {
        println!(
            "{count:>8} entries: mounted after {:.0?}, look-up of a random key {:.1?} (99 %: {:.1?}), ls -f {:.2?}, \
             resident {} MiB",
            f.start,
            f.lookup,
            f.slowest,
            f.list,
            f.resident >> 20
        );
    }
    assert!(many.start <= max_start, "started in {:.0?}, limit {max_start:.0?}", many.start);
    assert!(many.resident <= max_resident, "resident {} bytes, limit {max_resident}", many.resident);
    // A deeper tree of the index costs a little; a scan would cost a thousand times as much.
    let limit = few.lookup * 3 / 2 + Duration::from_micros(50);
    assert!(many.lookup <= limit, "a look-up takes {:.1?}, limit {limit:.1?}", many.lookup);
}
