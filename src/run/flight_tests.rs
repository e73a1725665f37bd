//! Flights on a real file system.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::flight::{Flight, Other, Takeoff};
use crate::model::EntryKey;

fn key(text: &str) -> EntryKey {
    EntryKey::parse(text).unwrap()
}

fn mine(dir: &Path, name: &str) -> Flight {
    match Flight::take(dir, &key(name)).unwrap() {
        Takeoff::Mine(flight) => flight,
        other => panic!("{other:?}"),
    }
}

fn others(dir: &Path, name: &str) -> Other {
    match Flight::take(dir, &key(name)).unwrap() {
        Takeoff::Others(other) => other,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_at_a_time_and_nothing_is_left() {
    let top = tempfile::tempdir().unwrap();
    let dir = &top.path().join("runs");
    let first = mine(dir, "aaaa");
    let other = mine(dir, "bbbb");
    let second = others(dir, "aaaa");
    assert_eq!(second.pid(), Some(std::process::id()));
    let waits = std::thread::spawn(move || second.wait());
    drop((first, other));
    waits.join().unwrap().unwrap();
    drop(mine(dir, "aaaa"));
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
}

#[test]
fn what_a_death_left_is_taken_over_or_swept() {
    let top = tempfile::tempdir().unwrap();
    let dir = top.path();
    std::fs::write(dir.join("aaaa"), "1\n").unwrap();
    std::fs::write(dir.join("bbbb"), "1\n").unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(100);
    File::create(dir.join("cccc")).unwrap().set_modified(long_ago).unwrap();
    let flying = mine(dir, "aaaa");
    assert_eq!(others(dir, "aaaa").pid(), Some(std::process::id()));
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1);
    drop(mine(dir, "bbbb"));
    assert_eq!(others(dir, "aaaa").pid(), Some(std::process::id()), "what is in the air is not swept");
    drop(flying);
}

#[test]
fn a_marker_that_cannot_be_taken_away_is_an_error() {
    use std::os::unix::fs::PermissionsExt;
    let top = tempfile::tempdir().unwrap();
    let dir = top.path().join("runs");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("aaaa"), "1\n").unwrap();
    let allow = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    [(top.path(), 0o755), (&dir.join("aaaa"), 0o644), (&dir, 0o555)]
        .into_iter()
        .for_each(|(p, m)| allow(p, m));
    let take = || {
        // SAFETY: the call takes numbers, and changes the user of this thread alone, which ends with it. Root may do
        // everything, so it must be somebody else; whoever cannot become that is not root.
        unsafe { libc::syscall(libc::SYS_setresuid, -1, 65534, -1) };
        Flight::take(&dir, &key("aaaa"))
    };
    let taken = std::thread::scope(|scope| scope.spawn(take).join().unwrap());
    let why = taken.unwrap_err().to_string();
    assert!(why.contains("cannot remove") && why.contains("runs/aaaa"), "{why}");
    allow(&dir, 0o755);
    drop(mine(&dir, "aaaa"));
}

#[test]
fn of_many_at_once_one_flies_at_any_time() {
    use std::sync::atomic::{AtomicU32, Ordering};
    let top = tempfile::tempdir().unwrap();
    let dir = top.path();
    let (flying, flights) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let flight = loop {
                        match Flight::take(dir, &key("aaaa")).unwrap() {
                            Takeoff::Mine(flight) => break flight,
                            Takeoff::Others(other) => other.wait().unwrap(),
                            Takeoff::Nowhere => unreachable!(),
                        }
                    };
                    assert_eq!(flying.fetch_add(1, Ordering::SeqCst), 0);
                    flights.fetch_add(1, Ordering::SeqCst);
                    flying.fetch_sub(1, Ordering::SeqCst);
                    drop(flight);
                }
            });
        }
    });
    assert_eq!(flights.into_inner(), 400);
}
