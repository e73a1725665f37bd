//! A disk that is slow for a moment: a file beside the store is synced over and over, and while that takes long, everybody waits
//! for the disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How often the file is synced.
const EVERY: Duration = Duration::from_millis(200);
/// A sync that takes longer is told of.
const LONG: Duration = Duration::from_millis(500);

/// When the disk was slow.
#[derive(Default)]
pub struct Disk {
    /// Since when a sync is under way.
    syncing: Mutex<Option<Instant>>,
    slow: Mutex<Vec<(Instant, Instant)>>,
}

impl Disk {
    /// Syncs this file until it is over; returns how long that took at most.
    pub fn watch(&self, file: &Path, is_over: impl Fn() -> bool) -> Duration {
        let file = File::create(file).expect("a file beside the store");
        let mut longest = Duration::ZERO;
        while !is_over() {
            let begun = Instant::now();
            *self.syncing.lock().expect("nobody panics here") = Some(begun);
            let synced =
                file.write_all_at(&[longest.subsec_micros() as u8; 4096], 0).and_then(|()| file.sync_all());
            synced.expect("a sync");
            *self.syncing.lock().expect("nobody panics here") = None;
            if begun.elapsed() > LONG {
                println!("the disk took {:.1?} for a sync", begun.elapsed());
                self.slow.lock().expect("nobody panics here").push((begun, Instant::now()));
            }
            longest = longest.max(begun.elapsed());
            std::thread::sleep(EVERY);
        }
        longest
    }

    /// How long it was slow since then.
    pub fn slow_since(&self, since: Instant) -> Duration {
        let now = Instant::now();
        let still = self.syncing.lock().expect("nobody panics here").map(|begun| (begun, now));
        let slow = self.slow.lock().expect("nobody panics here");
        let all = slow.iter().copied().chain(still.filter(|(begun, _)| begun.elapsed() > LONG));
        all.map(|(begun, ended)| ended.saturating_duration_since(begun.max(since))).sum()
    }
}
