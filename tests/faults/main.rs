//! Faults inside: every file-system call of the store and every system call of SQLite fails in turn, at every
//! point of a life of a cache.
//!
//! After each: no wrong hit, no lost sealed entry, nothing but typed errors, and the cache works again once the
//! fault is gone: the one that is open, one opened after that, and one opened on a copy of the store as the
//! process would have left it if it had been killed. The stores have four directories where others have 256 (`four_shards`): what
//! goes round all of them makes the same calls, less often. `OUTFS_FAULTS=all` tries every point, `OUTFS_FAULTS=2/4` the second of
//! four parts of them; without it a sample is tried.

mod causes;
mod client;
mod doors;
mod index;
mod life;
mod regions;
mod rot;
mod syncs;

use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use doors::{Door, Kind};
use life::Template;

/// Faults are the whole process's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

/// The first point that is tried, and every how many one is: all are, a part of them, or every so many for a sample.
fn points(sample: u64) -> (u64, u64) {
    let Ok(asked) = std::env::var("OUTFS_FAULTS") else { return (0, sample) };
    let (part, parts) = match asked.split_once('/') {
        Some((part, parts)) => (part.parse().unwrap(), parts.parse().unwrap()),
        None if asked == "all" => (1, 1),
        None => panic!("OUTFS_FAULTS is all, or a part such as 2/4"),
    };
    assert!((1..=parts).contains(&part), "OUTFS_FAULTS has no part {asked}");
    (part - 1, parts)
}

/// Lives once for every point at which a fault can strike.
fn try_all(
    what: &str,
    door: Door,
    kinds: &[Kind],
    sample: u64,
    live: fn(&Template, Door, Kind, u64) -> bool,
) {
    let _alone = alone();
    let template = Template::make();
    let (begun, mut tried, mut failed) = (Instant::now(), 0, Vec::new());
    for (i, kind) in (0..).zip(kinds) {
        let (first, stride) = points(sample);
        let mut n = (first + i) % stride;
        // The message of one that failed is on the screen; the others are tried all the same.
        loop {
            match std::panic::catch_unwind(|| live(&template, door, *kind, n)) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => failed.push((*kind, n)),
            }
            n += stride;
            tried += 1;
        }
        assert!(n > 5, "{what}: only {n} calls were seen");
    }
    println!("{what}: {tried} faults in {:.1} s", begun.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "{what} fails at {failed:?}");
}

#[test]
fn work_survives_the_fault_of_any_file_system_call() {
    try_all("work, store", Door::Store, &Kind::ALL, 31, life::work);
}

#[test]
fn restarts_survive_the_fault_of_any_file_system_call() {
    try_all("restart, store", Door::Store, &Kind::ALL, 29, life::restart);
}

#[test]
fn rebuilding_survives_the_fault_of_any_file_system_call() {
    try_all("rebuild, store", Door::Store, &Kind::ALL, 37, life::rebuild);
}

#[test]
fn whoever_is_given_less_each_time_asks_again() {
    let _alone = alone();
    let template = Template::make();
    for door in [Door::Store, Door::Index] {
        assert!(life::work(&template, door, Kind::Trickle, 0));
        assert!(life::views(&template, door, Kind::Trickle, 0));
        assert!(life::rebuild(&template, door, Kind::Trickle, 0));
    }
}

#[test]
fn views_survive_the_fault_of_any_file_system_call() {
    try_all("views, store", Door::Store, &Kind::ALL, 61, life::views);
}

#[test]
fn views_survive_the_fault_of_any_call_of_the_index() {
    try_all("views, index", Door::Index, &Kind::ALL, 37, life::views);
}

#[test]
fn sessions_survive_the_fault_of_any_file_system_call() {
    try_all("sessions, store", Door::Store, &Kind::ALL, 23, life::sessions);
}

#[test]
fn sessions_survive_the_fault_of_any_call_of_the_index() {
    try_all("sessions, index", Door::Index, &Kind::ALL, 19, life::sessions);
}

#[test]
fn work_survives_the_fault_of_any_call_of_the_index() {
    try_all("work, index", Door::Index, &Kind::ALL, 19, life::work);
}

#[test]
fn restarts_survive_the_fault_of_any_call_of_the_index() {
    try_all("restart, index", Door::Index, &Kind::ALL, 13, life::restart);
}

#[test]
fn rebuilding_survives_the_fault_of_any_call_of_the_index() {
    try_all("rebuild, index", Door::Index, &Kind::ALL, 53, life::rebuild);
}
