//! The event log as readers page through it: positions that survive restarts, bounded pages, honest gaps.
//!
//! Invariants: going on with the cursor of a page misses no record and repeats none, but for those that were trimmed, and
//! then the page says so; a cursor that means nothing here is an error, never another answer. Must not
//! know: who reads.

use std::time::Duration;

use super::here::now_ns;
use super::{Cache, Result};
use crate::model::{Cursor, CursorError, Event};
use crate::store::StoreError;

/// The most records in one page.
pub const MOST_EVENTS: usize = 10_000;
/// Records are kept for this long …
const KEEP: Duration = Duration::from_secs(90 * 86400);
/// … and at most so many, give or take a segment …
const KEEP_COUNT: u64 = 1_000_000;
/// … in this part of the limit of the store, which they count for, …
const KEEP_SHARE: u64 = 32;
/// … but in so many bytes in any case.
const KEEP_BYTES: u64 = 2 << 20;

/// Some records.
#[derive(Debug, Clone, PartialEq)]
pub struct Events {
    /// Oldest first.
    pub events: Vec<Event>,
    /// Where to go on.
    pub cursor: Cursor,
    /// There are more now.
    pub more: bool,
    /// Between the cursor that was given and these, records were trimmed.
    pub gap: bool,
}

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The cursor is none of this log's.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// More were asked for than a page has.
    #[error(
        "{asked} events are more than the {MOST_EVENTS} of a page; ask for fewer, and go on with the cursor"
    )]
    Limit {
        /// How many.
        asked: usize,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Cache {
    /// Up to `limit` records after a cursor, or from the oldest one kept.
    pub fn events(&self, since: Option<&Cursor>, limit: usize) -> std::result::Result<Events, EventsError> {
        if limit > MOST_EVENTS {
            return Err(EventsError::Limit { asked: limit });
        }
        let store = &self.inner.store;
        if let Some(cursor) = since.filter(|c| c.store != store.id()) {
            let (cursor, store) = (cursor.to_string(), store.id().to_owned());
            return Err(CursorError::OtherStore { cursor, store }.into());
        }
        let after = since.map_or(0, |c| c.seq);
        let page = store.read_events(after, limit)?;
        if let Some(cursor) = since.filter(|c| c.seq > page.newest) {
            return Err(CursorError::Ahead { cursor: cursor.to_string(), newest: page.newest }.into());
        }
        let gone = page.newest > after && (page.oldest == 0 || page.oldest > after + 1);
        let seq = match page.events.last() {
            Some(event) => event.seq,
            // All that came after the cursor was trimmed: that is told once.
            None if gone && page.oldest == 0 => page.newest,
            None => after,
        };
        let cursor = Cursor { store: store.id().to_owned(), epoch: self.index().epoch(), seq };
        Ok(Events { events: page.events, cursor, more: page.more, gap: since.is_some() && gone })
    }

    /// Drops what is too old or too much.
    pub(super) fn trim_events(&self) -> Result<()> {
        let keep = now_ns().saturating_sub(KEEP.as_nanos() as i64);
        let bytes = (self.usage()?.limit / KEEP_SHARE).max(KEEP_BYTES);
        Ok(self.inner.store.trim_events(keep, KEEP_COUNT, bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture_tests::{Fixture, key, limited};
    use super::*;
    use crate::model::EventKind;

    fn note(f: &Fixture, what: &str) {
        f.cache().note(EventKind::Repaired { what: what.into() }, Some(&key("abcd")), false);
    }

    /// All that is there after a cursor, page by page.
    fn all(f: &Fixture, mut since: Option<Cursor>, limit: usize) -> (Vec<u64>, Cursor) {
        let mut seqs = Vec::new();
        loop {
            let page = f.cache().events(since.as_ref(), limit).unwrap();
            assert!(page.events.len() <= limit && !page.gap);
            assert_eq!(page.more, page.events.len() == limit && page.cursor != all_of(f));
            seqs.extend(page.events.iter().map(|e| e.seq));
            if !page.more {
                return (seqs, page.cursor);
            }
            since = Some(page.cursor);
        }
    }

    fn all_of(f: &Fixture) -> Cursor {
        f.cache().events(None, MOST_EVENTS).unwrap().cursor
    }

    /// S9.8 The event log, which counts as used, takes a 32nd of the limit at most (2 MiB at least, and a segment of 1 MiB): its
    /// oldest records go first.
    #[test]
    fn a_small_store_is_not_full_of_events() {
        let f = Fixture::with(limited(16));
        let long = "x".repeat(100_000);
        let used = || f.files("events").iter().map(|path| path.metadata().unwrap().len()).sum::<u64>();
        for n in 0..100 {
            note(&f, &format!("{n} {long}"));
            f.cache().tick();
            assert!(used() <= 3 << 20, "{} bytes were used", used());
        }
        let left = f.cache().events(None, MOST_EVENTS).unwrap().events;
        assert!(left.len() > 9 && left.last().unwrap().seq >= 100, "{} are left", left.len());
    }

    /// S13.11 Events are read in bounded pages that resume exactly, over restarts and rebuilt indexes; a cursor that is no
    /// position in the log is an error, one whose followers were trimmed says so.
    #[test]
    fn pages_resume_exactly_over_restarts_and_a_rebuilt_index() {
        let mut f = Fixture::new();
        f.put("key1", &[("f", vec![1])]);
        for n in 0..9 {
            note(&f, &n.to_string());
        }
        for limit in [1, 3, 10, 11] {
            assert_eq!(all(&f, None, limit).0, (1..=10).collect::<Vec<_>>(), "pages of {limit}");
        }
        let (_, cursor) = all(&f, None, 4);
        assert_eq!(f.cache().events(Some(&cursor), 0).unwrap().cursor, cursor);
        note(&f, "eleven");
        f.reopen(|_| ());
        assert_eq!(all(&f, Some(cursor.clone()), 4).0, [11]);
        f.reopen(|store| {
            for name in ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"] {
                let _ = std::fs::remove_file(store.join(name));
            }
        });
        note(&f, "twelve");
        let page = f.cache().events(Some(&cursor), 99).unwrap();
        let kinds: Vec<_> = page.events.iter().map(|e| (e.seq, &e.kind)).collect();
        assert_eq!((kinds[0].0, kinds[1].0), (11, 12), "{kinds:?}");
        assert!(matches!(kinds[1].1, EventKind::IndexRebuilt { .. }), "{kinds:?}");
        assert!(page.cursor.epoch > cursor.epoch, "a reader may notice");
    }

    #[test]
    fn what_is_no_position_here_is_refused() {
        let (f, other) = (Fixture::new(), Fixture::new());
        note(&f, "x");
        note(&other, "x");
        let foreign = all_of(&other);
        let refused = |since: &Cursor, limit| f.cache().events(Some(since), limit).unwrap_err();
        assert!(matches!(
            refused(&foreign, 1),
            EventsError::Cursor(CursorError::OtherStore { store, .. }) if store == f.cache().store().id()
        ));
        let ahead = Cursor { seq: 2, ..all_of(&f) };
        assert!(matches!(refused(&ahead, 1), EventsError::Cursor(CursorError::Ahead { newest: 1, .. })));
        let asked = MOST_EVENTS + 1;
        assert!(matches!(refused(&all_of(&f), asked), EventsError::Limit { asked: a } if a == asked));
    }

    #[test]
    fn a_trimmed_cursor_says_so_once() {
        let f = Fixture::new();
        for n in 0..5 {
            note(&f, &n.to_string());
        }
        let cursor = f.cache().events(None, 2).unwrap().cursor;
        f.cache().store().trim_events(i64::MAX, 0, u64::MAX).unwrap();
        let page = f.cache().events(Some(&cursor), 9).unwrap();
        assert!(page.gap && page.events.is_empty(), "all after it are gone: {page:?}");
        assert!(!f.cache().events(Some(&page.cursor), 9).unwrap().gap);
        note(&f, "six");
        let page = f.cache().events(Some(&cursor), 9).unwrap();
        assert_eq!((page.gap, page.events.len()), (true, 1));
        assert!(!f.cache().events(Some(&page.cursor), 9).unwrap().gap);
        assert!(!f.cache().events(None, 9).unwrap().gap, "who begins at the start has missed nothing");
    }

    #[test]
    fn a_store_without_a_daemon_trims_its_log_too() {
        let mut f = Fixture::new();
        let long = "x".repeat(300_000);
        let old = f.cache().store().root().join("events/00000000000000000001.jsonl");
        note(&f, "first");
        f.reopen(|_| ());
        // Written long ago, as its records say.
        let text = std::fs::read_to_string(&old).unwrap();
        let at = text.find("\"at\":\"").unwrap() + 6;
        std::fs::write(&old, format!("{}1999{}", &text[..at], &text[at + 4..])).unwrap();
        for _ in 0..5 {
            note(&f, &long);
        }
        f.reopen(|_| ());
        assert!(old.exists(), "the last record in it is new");
        let text = std::fs::read_to_string(&old).unwrap();
        std::fs::write(&old, text.replace("\"at\":\"20", "\"at\":\"19")).unwrap();
        for _ in 0..5 {
            note(&f, &long);
        }
        f.reopen(|_| ());
        assert!(!old.exists());
    }
}
