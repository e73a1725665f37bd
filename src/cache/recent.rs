//! Accesses that are not written down yet, in memory.
//!
//! Invariants: bounded; what falls out is written down with the rest, never lost while the
//! process lives; after a flush the index knows the order of all accesses noted before, also of those that somebody
//! else is just writing down.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;

use super::here::now_ns;
use super::{CacheError, Inner, Result};

/// Entries whose last access is kept in memory.
const KEPT: NonZeroUsize = NonZeroUsize::new(65_536).expect("it is not zero");

/// The most recently used entries: row id and nanoseconds since 1970.
pub(crate) struct Recent {
    /// One at a time writes them down; taken before `noted`.
    flushing: Mutex<()>,
    noted: Mutex<Noted>,
}

struct Noted {
    kept: LruCache<i64, i64>,
    /// What fell out of `kept`, or could not be written down.
    waiting: HashMap<i64, i64>,
}

impl Default for Recent {
    fn default() -> Self {
        let noted = Noted { kept: LruCache::new(KEPT), waiting: HashMap::new() };
        Recent { flushing: Mutex::default(), noted: Mutex::new(noted) }
    }
}

impl Recent {
    /// Notes that an entry was used now.
    pub(crate) fn note(&self, row: i64) {
        let mut noted = self.noted.lock();
        if let Some((old, at)) = noted.kept.push(row, now_ns())
            && old != row
        {
            noted.waiting.insert(old, at);
        }
    }

    fn take(&self) -> Vec<(i64, i64)> {
        let mut noted = self.noted.lock();
        let mut all: Vec<_> = std::mem::take(&mut noted.waiting).into_iter().collect();
        while let Some(oldest) = noted.kept.pop_lru() {
            all.push(oldest);
        }
        all
    }

    fn put_back(&self, all: Vec<(i64, i64)>) {
        let mut noted = self.noted.lock();
        for (row, at) in all {
            let known = noted.waiting.entry(row).or_insert(at);
            *known = at.max(*known);
        }
    }
}

impl Inner {
    /// Writes down all accesses that were noted. On a full disk they wait: nothing must fail for them.
    pub(crate) fn flush_accesses(&self) -> Result<()> {
        // Held until they are committed: whoever finds nothing to write down must not look before that.
        let _one = self.upkeep.recent.flushing.lock();
        let noted = self.upkeep.recent.take();
        if noted.is_empty() {
            return Ok(());
        }
        let result = self.index.touch(&noted).map_err(CacheError::from);
        if result.is_err() {
            self.upkeep.recent.put_back(noted);
        }
        match result {
            Err(CacheError::NoSpace(why)) => {
                tracing::debug!("accesses are not written down: {why}");
                Ok(())
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::cache::fixture_tests::Fixture;

    #[test]
    fn an_access_that_somebody_is_writing_down_counts() {
        let f = Fixture::new();
        let rows = ["key1", "key2"].map(|key| f.put(key, &[("f", vec![1])]).id);
        let (inner, over) = (&f.cache().inner, AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    inner.flush_accesses().unwrap();
                }
            });
            let oldest_after_use = |row| {
                inner.upkeep.recent.note(row);
                while !inner.upkeep.recent.noted.lock().kept.is_empty() {
                    std::thread::yield_now();
                }
                inner.flush_accesses().unwrap();
                inner.index.oldest(None, 1).unwrap()[0].id
            };
            let wrong =
                rows.into_iter().cycle().take(50).filter(|row| oldest_after_use(*row) == *row).count();
            over.store(true, Ordering::Relaxed);
            assert_eq!(wrong, 0, "what was used last was the oldest");
        });
    }
}
