//! The event log: order, paging, trimming, and what a crash or a full disk leaves.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use super::{key, store};
use crate::model::EventKind;
use crate::store::*;

fn note(s: &Store, text: &str) -> u64 {
    let kind = EventKind::Repaired { what: text.into() };
    s.append_event(kind, Some(&key("abcd")), false).unwrap().seq
}

fn seqs(s: &Store, since: u64, limit: usize) -> (Vec<u64>, bool) {
    let page = s.read_events(since, limit).unwrap();
    (page.events.iter().map(|e| e.seq).collect(), page.more)
}

fn segments(s: &Store) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(s.root().join("events")).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

fn append_raw(path: &std::path::Path, bytes: &[u8]) {
    fs::OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn pages_over_several_segments() {
    let (_dir, s) = store();
    assert_eq!(s.read_events(0, 9).unwrap(), EventPage { events: vec![], more: false, oldest: 0, newest: 0 });
    let long = "x".repeat(100_000);
    for i in 1..=35 {
        assert_eq!(note(&s, &long), i);
    }
    assert!(segments(&s).len() >= 3);
    assert_eq!(seqs(&s, 0, 4), (vec![1, 2, 3, 4], true));
    assert_eq!(seqs(&s, 8, 5), ((9..=13).collect(), true));
    assert_eq!(seqs(&s, 30, 5), ((31..=35).collect(), false));
    assert_eq!(seqs(&s, 35, 5), (vec![], false));
    assert_eq!(seqs(&s, u64::MAX, 5), (vec![], false));
    assert_eq!(seqs(&s, 0, usize::MAX), ((1..=35).collect(), false));
    for since in 0..35 {
        assert_eq!(seqs(&s, since, 1).0, [since + 1]);
    }
    let page = s.read_events(0, 1).unwrap();
    assert_eq!((page.oldest, page.newest), (1, 35));
    let first = fs::read_to_string(&segments(&s)[0]).unwrap();
    assert!(first.starts_with("{\"seq\":1,"), "the quick way to a record's number");
}

#[test]
fn numbers_are_never_used_again_even_after_everything_was_trimmed() {
    let (_dir, s) = store();
    for _ in 0..3 {
        note(&s, "x");
    }
    s.trim_events(0, 2, u64::MAX).unwrap();
    assert_eq!(seqs(&s, 0, 9).0, [1, 2, 3], "a segment of which something is wanted stays whole");
    s.trim_events(i64::MAX, 100, u64::MAX).unwrap();
    assert!(seqs(&s, 0, 9).0.is_empty());
    let page = s.read_events(0, 9).unwrap();
    assert_eq!((page.oldest, page.newest), (0, 3));
    let root = s.root().to_owned();
    drop(s);
    let s = Store::open(&root, Access::Own).unwrap();
    s.trim_events(i64::MAX, 0, u64::MAX).unwrap();
    assert_eq!(note(&s, "x"), 4);
    assert_eq!(s.read_events(0, 9).unwrap().oldest, 4);
}

#[test]
fn trimming_by_count_keeps_what_is_wanted() {
    let (_dir, s) = store();
    let long = "x".repeat(300_000);
    for _ in 0..20 {
        note(&s, &long);
    }
    s.trim_events(0, 6, u64::MAX).unwrap();
    let (left, _) = seqs(&s, 0, 99);
    assert!(left.len() >= 6 && left.len() < 12 && left.last() == Some(&20), "{left:?}");
    assert_eq!(s.read_events(0, 1).unwrap().oldest, left[0]);
}

#[test]
fn trimming_by_bytes_keeps_the_last_segment() {
    let (_dir, s) = store();
    let long = "x".repeat(300_000);
    for _ in 0..20 {
        note(&s, &long);
    }
    assert!(s.has_new_segment());
    let bytes = || segments(&s).iter().map(|p| fs::metadata(p).unwrap().len()).sum::<u64>();
    for keep in [u64::MAX, 4 << 20, 3 << 20, 0] {
        s.trim_events(0, u64::MAX, keep).unwrap();
        let (left, _) = seqs(&s, 0, 99);
        assert!(bytes() <= keep || segments(&s).len() == 1, "{} of {keep}", bytes());
        assert!(keep < 3 << 20 || bytes() + (2 << 20) > keep.min(6_000_000), "{} of {keep}", bytes());
        assert_eq!(left.last(), Some(&20));
    }
    assert!(!s.has_new_segment());
}

#[test]
fn a_torn_line_is_cut_and_the_log_goes_on_further() {
    let (_dir, s) = store();
    note(&s, "one");
    note(&s, "two");
    let (root, segment) = (s.root().to_owned(), segments(&s)[0].clone());
    drop(s);
    let whole = fs::read(&segment).unwrap();
    append_raw(&segment, b"{\"seq\":3,\"at\":\"20");
    let reader = Store::open(&root, Access::Read).unwrap();
    assert_eq!(seqs(&reader, 0, 9), (vec![1, 2], false));
    drop(reader);
    // What a dead owner leaves in the lock file.
    fs::write(root.join("lock"), "4711\n").unwrap();
    let s = Store::open(&root, Access::Own).unwrap();
    assert_eq!(fs::read(&segment).unwrap(), whole);
    let next = note(&s, "three");
    assert!(next > 3, "3 may have been read before a power cut took it: {next}");
    assert_eq!(seqs(&s, 0, 9).0, [1, 2, next]);
    drop(s);
    let s = Store::open(&root, Access::Own).unwrap();
    assert_eq!(note(&s, "four"), next + 1, "closed in order, nothing is skipped");
}

#[test]
fn what_was_skipped_stays_skipped() {
    let (_dir, s) = store();
    note(&s, "one");
    let root = s.root().to_owned();
    drop(s);
    let mut newest = 1;
    for _ in 0..3 {
        fs::write(root.join("lock"), "4711\n").unwrap();
        let s = Store::open(&root, Access::Own).unwrap();
        let page = s.read_events(0, 9).unwrap();
        assert!(page.newest > newest, "a cursor may have been handed out");
        newest = page.newest;
        assert_eq!((page.events.len(), page.oldest), (1, 1));
        assert!(segments(&s).len() <= 2);
    }
    let s = Store::open(&root, Access::Own).unwrap();
    assert_eq!(s.read_events(0, 9).unwrap().newest, newest);
    assert_eq!(note(&s, "two"), newest + 1);
    assert_eq!(seqs(&s, 1, 9), (vec![newest + 1], false));
    assert_eq!(seqs(&s, newest, 9), (vec![newest + 1], false));
}

#[test]
fn a_full_disk_leaves_a_log_that_reads_and_goes_on() {
    let (_dir, s) = store();
    note(&s, "one");
    for n in 0..4 {
        let fault = Fault::after(n, libc::ENOSPC, n % 2 == 1);
        let result = s.append_event(EventKind::IndexRebuilt { entries: n }, None, true);
        assert!(result.is_ok() || result.is_err_and(|e| e.is_no_space()));
        drop(fault);
        // A lasting fault keeps even the torn line from being cut.
        let lasting = Fault::after(0, libc::ENOSPC, true);
        assert!(s.append_event(EventKind::IndexRebuilt { entries: n }, None, true).is_err());
        drop(lasting);
        let next = note(&s, "after");
        let (all, _) = seqs(&s, 0, 99);
        assert_eq!(all.last(), Some(&next));
        assert!(all.windows(2).all(|w| w[0] < w[1]), "{all:?}");
    }
}

#[test]
fn a_damaged_line_is_named_and_repair_keeps_the_others() {
    let (_dir, s) = store();
    note(&s, "one");
    let segment = segments(&s)[0].clone();
    append_raw(&segment, b"{\"seq\":2,\"at\":nonsense}\n");
    match s.read_events(0, 9) {
        Err(StoreError::Corrupt { path, line: Some(2), .. }) => assert_eq!(path, segment),
        other => panic!("{other:?}"),
    }
    assert_eq!(s.repair_events().unwrap(), 1);
    assert_eq!(s.repair_events().unwrap(), 0);
    assert_eq!(seqs(&s, 0, 9).0, [1]);
    let next = note(&s, "on");
    assert_eq!(seqs(&s, 0, 9).0, [1, next]);
    assert_eq!(fs::read_dir(s.root().join("quarantine")).unwrap().count(), 1);
}

#[test]
fn the_last_word_about_a_key() {
    let (_dir, s) = store();
    let long = "x".repeat(100_000);
    let evicted = |why: &str| EventKind::Evicted { why: why.into(), freed: 0 };
    s.append_event(evicted("first"), Some(&key("abcd")), false).unwrap();
    s.append_event(evicted("last"), Some(&key("abcd")), false).unwrap();
    for _ in 0..25 {
        note(&s, &long);
    }
    s.append_event(evicted("other"), Some(&key("abcde")), false).unwrap();
    s.append_event(EventKind::Repaired { what: "\"key\":\"efgh\"".into() }, Some(&key("abcde")), false)
        .unwrap();
    assert!(segments(&s).len() >= 3);
    let last = |name: &str| {
        let wanted = |kind: &EventKind| matches!(kind, EventKind::Evicted { .. });
        s.last_event(&key(name), &wanted).unwrap().map(|e| e.kind)
    };
    assert_eq!(last("abcd"), Some(evicted("last")));
    assert_eq!(last("abcde"), Some(evicted("other")));
    assert_eq!(last("efgh"), None);
    assert!(matches!(
        s.last_event(&key("abcd"), &|_| true).unwrap().unwrap().kind,
        EventKind::Repaired { .. }
    ));
}
