//! Who watches while others work, and is never paused: one that looks at what the kernel calls unanswered, on every
//! view there is, and one that does the simplest things all the time.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::calls::{self, ANSWERED, call};
use crate::{Day, Random};

/// Where the kernel says what is not answered.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";
/// How often the watcher looks.
const LOOKS: Duration = Duration::from_millis(100);
/// How long the canary rests.
const RESTS: Duration = Duration::from_millis(20);

/// It may not be there; then the first look says so.
pub fn need_connections() {
    if fs::read_dir(CONNECTIONS).map_or(true, |mut d| d.next().is_none()) {
        let _ = Command::new("mount").args(["-t", "fusectl", "fusectl", CONNECTIONS]).output();
    }
    assert!(Path::new(CONNECTIONS).join("..").exists(), "{CONNECTIONS} is missing");
}

/// The views of this day: the number of each one's connection, and where it is mounted. Asks no view anything.
pub fn views(day: &Day) -> Vec<(u64, PathBuf)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo is readable");
    let view = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        let (_, minor) = fields.next()?.split_once(':')?;
        let at = PathBuf::from(fields.nth(1)?);
        let kind = line.split(" - ").nth(1)?;
        let ours = kind.starts_with("fuse") && day.has(&at);
        ours.then(|| Some((minor.parse().ok()?, at)))?
    };
    mounts.lines().filter_map(view).collect()
}

/// Requests of a view that are not answered; nothing when it is gone.
pub fn waiting(connection: u64) -> Option<u64> {
    let text = fs::read_to_string(format!("{CONNECTIONS}/{connection}/waiting")).ok()?;
    // Nothing is read of a connection that ends meanwhile.
    let told = text.trim();
    (!told.is_empty()).then(|| told.parse().expect("a number"))
}

/// What the watcher saw.
#[derive(Debug, Default)]
pub struct Looked {
    pub times: u64,
    /// Most views at once, and most requests of one that were waiting.
    pub views: usize,
    pub waiting: u64,
    /// Longest that a view had requests waiting, and none of its calls came back.
    pub longest: Duration,
}

/// Looks until the evening. A request that is not answered ends everything here: whoever waits for it would wait on.
pub fn watch(day: &Day) -> Looked {
    let mut looked = Looked::default();
    let mut stuck: HashMap<u64, (Instant, u64)> = HashMap::new();
    while !day.is_over() {
        if let Some(late) = day.calls.overdue() {
            give_up(
                day,
                &format!(
                    "{} {}: has not come back after {:.1?}",
                    late.what,
                    late.at.display(),
                    late.since.elapsed()
                ),
            );
        }
        let views = views(day);
        stuck.retain(|connection, _| views.iter().any(|(of, _)| of == connection));
        looked.views = looked.views.max(views.len());
        for (connection, at) in views {
            let waiting = waiting(connection).unwrap_or(0);
            looked.waiting = looked.waiting.max(waiting);
            let done = day.calls.done(&at);
            let since = stuck.entry(connection).or_insert((Instant::now(), done));
            if waiting == 0 || since.1 != done {
                *since = (Instant::now(), done);
            }
            looked.longest = looked.longest.max(since.0.elapsed());
            if since.0.elapsed().saturating_sub(day.calls.disk.slow_since(since.0)) > ANSWERED {
                give_up(
                    day,
                    &format!(
                        "{}: {waiting} requests wait, and none was answered for {ANSWERED:?}",
                        at.display()
                    ),
                );
            }
        }
        looked.times += 1;
        std::thread::sleep(LOOKS);
    }
    looked
}

fn give_up(day: &Day, why: &str) -> ! {
    day.tell();
    eprintln!("{why}");
    // Not a panic: others would be waited for.
    std::process::exit(101);
}

/// Looks, reads, makes and removes a draft, over and over; how often all of it succeeded.
pub fn canary(day: &Day) -> u64 {
    calls::watched_by(&day.calls);
    let (mut random, mut sung) = (Random::new(1), 0);
    while !day.is_over() {
        let life = day.lives.load(Ordering::SeqCst);
        match sing(day, life, &mut random) {
            Ok(()) => sung += 1,
            Err(why) if day.died_since(life) => drop(why),
            Err(why) => panic!("the canary: {why}"),
        }
        std::thread::sleep(RESTS);
    }
    sung
}

fn sing(day: &Day, life: u64, random: &mut Random) -> Result<(), String> {
    let absent = |e: &io::Error| e.raw_os_error() == Some(libc::ENOENT);
    let fail = |what: &str, at: &Path, e: io::Error| format!("{what} {}: {e}", at.display());
    let file = day.mnt().join(day.some_key(random)).join("outputs/large");
    match call("stat", &file, || fs::symlink_metadata(&file)) {
        Err(e) if !absent(&e) => return Err(fail("stat", &file, e)),
        _ => {}
    }
    let mut bytes = [0; 100];
    let read = || fs::File::open(&file)?.read_exact(&mut bytes);
    match call("open and read", &file, read) {
        Err(e) if !absent(&e) => return Err(fail("open and read", &file, e)),
        _ => {}
    }
    let draft = day.mnt().join(format!(".outfs/work/canary{life}"));
    match call("mkdir of a draft", &draft, || fs::create_dir(&draft)) {
        // All of the store may be held by others for a moment.
        Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => Ok(()),
        Err(e) => Err(fail("mkdir", &draft, e)),
        Ok(()) => {
            call("rmdir of a draft", &draft, || fs::remove_dir(&draft)).map_err(|e| fail("rmdir", &draft, e))
        }
    }
}
