//! The busy store whose power is cut: writers seal by each gesture, evict, pin, unpin and compact at once, and a mark
//! says what each was told.

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, Random};
use crate::disk::{Marker, run};
use crate::ingest::ingest;

const WRITERS: u64 = 4;
/// Entries that one writer begins, at most: the store must not need to evict by itself.
const ENTRIES: u64 = 60;

/// How often the disk is told to write what it has.
const SYNCED: Duration = Duration::from_millis(300);

/// How much longer it works at most until something was compacted.
const LONGER: Duration = Duration::from_secs(30);

/// What was told, in the words of a mark.
pub const SEALED: &str = "sealed";
pub const EVICTING: &str = "evicting";
pub const PINNED: &str = "pinned";
pub const UNPINNING: &str = "unpinning";

/// Works for so long; panics when anything fails.
pub fn work(daemon: &Daemon, marker: &Marker, time: Duration, seed: u64) {
    let (over, sealed) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (over, sealed) = (&over, &sealed);
            scope.spawn(move || {
                let mut random = Random::new(seed * WRITERS + writer + 1);
                for n in 0..ENTRIES {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    seal(daemon, marker, &mut random, sealed, format!("writer{writer}.{n}"));
                    change(daemon, marker, &mut random, sealed);
                }
            });
        }
        let end = Instant::now() + time;
        // Packs are compacted meanwhile, or it is gone on with for a while until they are.
        let goes_on = || Instant::now() < end || (compacted(daemon) == 0 && Instant::now() < end + LONGER);
        while goes_on() {
            std::thread::sleep(SYNCED);
            // As time does: drafts that are older than half a minute are on the disk.
            let synced = run(Command::new("sync").arg("--file-system").arg(daemon.store()));
            synced.expect("the store's file system can be synced");
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(compacted(daemon) > 0, "nothing was compacted");
}

fn compacted(daemon: &Daemon) -> u64 {
    daemon.stats()["compacted"].as_u64().expect("stats have it")
}

fn seal(daemon: &Daemon, marker: &Marker, random: &mut Random, sealed: &Mutex<Vec<String>>, key: String) {
    if ingest(daemon, &key, random.below(5)).unwrap_or_else(|e| panic!("{key}: {e}")) {
        marker.mark(format!("{SEALED} {key}"));
        sealed.lock().expect("no writer panics").push(key);
    }
}

/// Evicts or pins an entry that nobody else works with, now and then.
fn change(daemon: &Daemon, marker: &Marker, random: &mut Random, sealed: &Mutex<Vec<String>>) {
    let Some(key) = ({
        let mut sealed = sealed.lock().expect("no writer panics");
        let which = random.below(sealed.len().max(1) as u64) as usize;
        (!sealed.is_empty()).then(|| sealed.swap_remove(which))
    }) else {
        return;
    };
    match random.below(8) {
        0..=2 => {
            marker.mark(format!("{EVICTING} {key}"));
            daemon.run(&["evict", &key]);
            return;
        }
        3 => {
            // It stays pinned, and out of everybody's hands.
            daemon.run(&["pin", &key]);
            marker.mark(format!("{PINNED} {key}"));
            return;
        }
        4 => {
            daemon.run(&["pin", &key]);
            marker.mark(format!("{PINNED} {key}"));
            marker.mark(format!("{UNPINNING} {key}"));
            daemon.run(&["unpin", &key]);
        }
        5 => drop(daemon.run(&["gc"])),
        _ => {}
    }
    sealed.lock().expect("no writer panics").push(key);
}
