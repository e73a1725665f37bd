//! A task that leaves a million files: sealed or refused, dropped, evicted, and nobody else waits for it.
//!
//! usage: `hostile [FILES]` (1000000) with OUTFS_BIN set. Half of the files are in one directory, the others in directories of a
//! thousand; every tenth has content of its own. All the while somebody else stores and reads entries. Panics with a reason;
//! prints what it measured.

mod daemon;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use daemon::Daemon;

/// How long somebody else may wait for an entry of his own.
const OTHERS: Duration = Duration::from_secs(60);
/// How long what was dropped or evicted may still be there.
const GONE: Duration = Duration::from_secs(600);
/// What the daemon may take of memory for each of the files, beside `--memory`: sealing needs that for a moment.
const EACH: u64 = 512;
/// What it may have when nothing of them is left, in bytes.
const AFTER: u64 = 128 << 20;
const BOUND: u64 = 256 << 20;

fn path_of(n: u64, files: u64) -> String {
    if n < files / 2 { format!("all/{n}") } else { format!("some{}/{n}", n / 1000) }
}

fn content(n: u64) -> String {
    if n.is_multiple_of(10) { format!("content of {n}") } else { String::new() }
}

fn write_all(outputs: &Path, files: u64) -> io::Result<()> {
    fs::create_dir_all(outputs.join("all"))?;
    for n in 0..files {
        let path = outputs.join(path_of(n, files));
        if n >= files / 2 && (n == files / 2 || n.is_multiple_of(1000)) {
            fs::create_dir_all(path.parent().expect("it has one"))?;
        }
        fs::write(path, content(n))?;
    }
    Ok(())
}

/// The most memory the daemon has had, in bytes.
fn most_memory(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("the daemon's status");
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") * 1024
}

/// Stores and reads small entries until it is over; the longest that one took, and how many there were.
fn others(daemon: &Daemon, over: &AtomicBool) -> (Duration, u64) {
    let (mut longest, mut stored) = (Duration::ZERO, 0);
    while !over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let (work, key) =
            (daemon.mnt().join(".outfs/work/other"), daemon.mnt().join(format!("other{stored}")));
        fs::create_dir_all(work.join("outputs")).expect("a draft");
        fs::write(work.join("outputs/f"), stored.to_string()).expect("a file");
        fs::rename(&work, &key).expect("it is sealed");
        assert_eq!(fs::read(key.join("outputs/f")).expect("it is read"), stored.to_string().as_bytes());
        longest = longest.max(begun.elapsed());
        stored += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
    (longest, stored)
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    println!("{what}: {:.1?}", begun.elapsed());
    result
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + GONE;
    while !done() {
        assert!(Instant::now() < end, "{what}: not after {GONE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What is in the store's directory of drafts.
fn drafts(daemon: &Daemon) -> usize {
    fs::read_dir(daemon.store().join("drafts")).expect("the drafts").count()
}

fn work(daemon: &Daemon, files: u64) {
    let mnt = daemon.mnt();
    let (draft, key) = (mnt.join(".outfs/work/million"), mnt.join("million"));
    timed("written", || write_all(&draft.join("outputs"), files)).expect("they are written");
    match timed("sealed", || fs::rename(&draft, &key)) {
        Ok(()) => {
            let listed =
                timed("listed", || fs::read_dir(key.join("outputs/all")).expect("a directory").count());
            assert_eq!(listed as u64, files / 2);
            for n in (0..files).step_by(files as usize / 1000) {
                let read = fs::read(key.join("outputs").join(path_of(n, files))).expect("it is there");
                assert!(read == content(n).as_bytes(), "{n} has wrong bytes");
            }
            timed("evicted", || daemon.run(&["evict", "million"]));
        }
        Err(e) if [libc::ENOSPC, libc::EOPNOTSUPP].contains(&e.raw_os_error().unwrap_or(0)) => {
            println!("refused: {e}");
            fs::rename(&draft, mnt.join(".outfs/trash/million")).expect("it is dropped");
        }
        Err(e) => panic!("sealing: {e}"),
    }
    timed("its draft deleted", || wait("the draft", || drafts(daemon) <= 1));

    let dropped = files / 10;
    timed(&format!("{dropped} more written"), || write_all(&draft.join("outputs"), dropped))
        .expect("written");
    timed("dropped", || {
        fs::rename(&draft, mnt.join(".outfs/trash/million")).expect("it is dropped");
        wait("the draft", || drafts(daemon) <= 1);
    });
}

/// When it is dropped the work is over, also when something has gone wrong.
struct Evening<'a>(&'a AtomicBool);

impl Drop for Evening<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn main() {
    let files = std::env::args().nth(1).map_or(1_000_000, |n| n.parse::<u64>().expect("hostile [FILES]"));
    assert!(files >= 10_000, "at least 10000 files");
    let daemon = Daemon::new();
    daemon.mount(&["--memory", &BOUND.to_string(), "--size", "20G"]);
    let over = AtomicBool::new(false);
    let (longest, stored) = std::thread::scope(|scope| {
        let other = scope.spawn(|| others(&daemon, &over));
        let evening = Evening(&over);
        work(&daemon, files);
        drop(evening);
        other.join().expect("others go on")
    });
    let (most, now) = (most_memory(&daemon), daemon.resident());
    println!(
        "{files} files: others stored {stored} entries meanwhile, each within {longest:.1?}; the daemon had at most {} MiB, \
         {} now",
        most >> 20,
        now >> 20
    );
    assert!(longest < OTHERS, "others had to wait");
    assert!(most < BOUND + files * EACH, "too much memory");
    wait("memory given back", || daemon.resident() < AFTER);
    daemon.run(&["stop"]);
    daemon.run(&["fsck", "--verify-data"]);
}
