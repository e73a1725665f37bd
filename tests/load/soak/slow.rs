//! Where the daemon's threads are while a call is late: told before it is too late.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::Day;

/// How often it is looked whether one is.
const EVERY: Duration = Duration::from_millis(200);
/// A call that takes longer has it told.
const LATE: Duration = Duration::from_secs(3);
/// Where threads are that have nothing to do, or wait for another one.
const WAITING: [&str; 3] = ["fuse_dev_do_read", "futex_wait", "futex_do_wait"];

/// Tells it until the evening, once for each call that is late.
pub fn tell_of_late(day: &Day) {
    let mut told = None;
    while !day.is_over() {
        if let Some(late) = day.calls.late(LATE).filter(|late| told != Some(late.since)) {
            told = Some(late.since);
            eprintln!(
                "{} {}: {:.1?} so far; the daemon:",
                late.what,
                late.at.display(),
                late.since.elapsed()
            );
            let tasks = day.listed("task");
            tasks.filter_map(|task| frames(&task)).for_each(|thread| eprintln!("  {thread}"));
        }
        std::thread::sleep(EVERY);
    }
}

/// What a thread is called, and where in the kernel it is.
fn frames(task: &Path) -> Option<String> {
    let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
    let stack = read("stack");
    let frames: Vec<_> = stack.lines().filter_map(|line| line.split(' ').nth(1)).take(6).collect();
    let frames = frames.join(" ");
    let waits = WAITING.iter().any(|at| frames.contains(at));
    (!waits).then(|| format!("{}: {frames}", read("comm").trim()))
}
