//! Accesses that are not written down yet, in memory.
//!
//! Invariants: bounded; what falls out is written down with the rest, never lost while the
//! process lives; after a flush the index knows the order of all accesses noted before.

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
    noted: Mutex<Noted>,
}

struct Noted {
    kept: LruCache<i64, i64>,
    /// What fell out of `kept`, or could not be written down.
    waiting: HashMap<i64, i64>,
}

impl Default for Recent {
    fn default() -> Self {
        Recent { noted: Mutex::new(Noted { kept: LruCache::new(KEPT), waiting: HashMap::new() }) }
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
