//! Entries that were sealed here go to the tiers that take them: in the background, one after another, in the order in which
//! they were sealed.
//!
//! Invariants: how far each tier is stands in a file of the store, written after an entry is whole there. So what was not
//! brought is brought by the next process, and what is brought again changes nothing. What is inferred, rejected, of a
//! session, without readable metadata or from a tier is never brought. A tier that fails holds up its own row, and
//! nothing else. Must not know: what a tier is.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::breaker::Asked;
use super::{Cache, Entry, LeaseKind, Result};
use crate::index::{Backed, EntryRow};
use crate::model::session::SessionId;
use crate::tier::{ShipError, Source, Tier, ship};

/// Where it is written down how far each tier is.
const NOTE: &str = "push.json";
/// How often it is looked whether there is something to bring, or whether a tier that failed takes it now.
const LOOK: Duration = Duration::from_secs(1);
/// How long a call may take that brings one object, however large.
const CALL: Duration = Duration::from_secs(3600);

/// How far entries are on their way to a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PushFacts {
    /// Entries that are still to be looked at.
    pub waiting: u64,
    /// Entries that this process has brought.
    pub brought: u64,
}

/// The row id up to which all entries went, by tier.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    /// The index's: a new one counts anew.
    epoch: u32,
    tiers: BTreeMap<String, i64>,
}

/// How far it is.
#[derive(Default)]
pub(super) struct Push(Mutex<Option<Progress>>);

/// What became of an entry.
enum Brought {
    Yes,
    /// It is not to be brought, or cannot be read.
    No,
}

/// The contents of an entry that are here, one after another.
struct Contents<'a>(&'a Entry);

struct Content<'a> {
    entry: &'a Entry,
    record: u32,
    at: u64,
}

impl Source for Contents<'_> {
    fn open(&self, record: u32) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(Content { entry: self.0, record, at: 0 }))
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.entry.read_here(self.record, self.at, buf).map_err(io::Error::other)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Cache {
    /// Whether a tier takes entries.
    pub fn pushes(&self) -> bool {
        self.inner.tiers.attached().0.iter().any(Asked::pushes)
    }

    /// Brings entries to the tiers that take them until `wait`, which waits for so long, says that it is over.
    pub fn push(&self, wait: &mut dyn FnMut(Duration) -> bool) {
        loop {
            let (tiers, _) = self.inner.tiers.attached();
            let mut more = false;
            for tier in tiers.iter().filter(|t| t.pushes()) {
                match self.push_next(tier) {
                    Ok(brought) => more |= brought,
                    Err(e) => tracing::debug!("an entry waits for a tier: {e}"),
                }
            }
            if !wait(if more { Duration::ZERO } else { LOOK }) {
                return;
            }
        }
    }

    /// Brings the next entry that a tier lacks; false when there is none.
    fn push_next(&self, tier: &Asked) -> std::result::Result<bool, Box<dyn std::error::Error>> {
        let after = self.pushed_up_to(tier.name());
        let Some(row) = self.inner.index.entries_after(after, 1)?.pop() else { return Ok(false) };
        if let Brought::Yes = self.bring(tier, &row)? {
            tier.brought();
            tracing::debug!(key = %row.key, "brought to {}", tier.name());
        }
        self.note_pushed(tier.name(), row.id);
        Ok(true)
    }

    fn bring(
        &self,
        tier: &Asked,
        row: &EntryRow,
    ) -> std::result::Result<Brought, Box<dyn std::error::Error>> {
        if !self.goes_up(row)? {
            return Ok(Brought::No);
        }
        // It may have been evicted meanwhile.
        let Some(entry) = self.open_entry(row.clone(), LeaseKind::Hold)? else { return Ok(Brought::No) };
        let manifest = match entry.manifest() {
            Ok(manifest) => manifest,
            Err(e) => {
                tracing::warn!(key = %row.key, "an entry is not brought to a tier: {e}");
                return Ok(Brought::No);
            }
        };
        match ship(tier, &manifest, &Contents(&entry), &|| Instant::now() + CALL) {
            Ok(places) => {
                self.note_backed(row, &manifest, &places, tier.name())?;
                Ok(Brought::Yes)
            }
            Err(e @ ShipError::Content { .. }) => {
                tracing::warn!(key = %row.key, "an entry is not brought to a tier: {e}");
                Ok(Brought::No)
            }
            Err(ShipError::Tier(e)) => Err(e.into()),
        }
    }

    fn goes_up(&self, row: &EntryRow) -> Result<bool> {
        let came = match row.in_tier.backed {
            Backed::Came => true,
            Backed::Brought => false,
            // A row of an older index says nothing.
            Backed::No => self.inner.store.read_places(&row.manifest)?.is_some(),
        };
        let own = !came && row.readable && !row.inferred && SessionId::of_key(&row.key).is_none();
        Ok(own && self.rejection(&row.key, Some(&row.manifest)).is_none())
    }

    fn with_pushed<T>(&self, work: impl FnOnce(&mut Progress) -> T) -> T {
        let mut progress = self.inner.push.0.lock();
        let epoch = self.inner.index.epoch();
        let progress = progress.get_or_insert_with(|| {
            let read = self.inner.store.read_note(NOTE).ok().flatten();
            read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
        });
        // Lost, or of an index that is no more, it begins anew.
        if progress.epoch != epoch {
            *progress = Progress { epoch, tiers: BTreeMap::new() };
        }
        work(progress)
    }

    fn pushed_up_to(&self, tier: &str) -> i64 {
        self.with_pushed(|p| p.tiers.get(tier).copied().unwrap_or(0))
    }

    fn note_pushed(&self, tier: &str, id: i64) {
        let bytes = self.with_pushed(|p| {
            p.tiers.insert(tier.to_owned(), id);
            serde_json::to_vec(p)
        });
        let noted = bytes.map_err(io::Error::other).map(|b| self.inner.store.write_note(NOTE, &b));
        if let Ok(Err(e)) = noted {
            tracing::warn!("how far entries went to tiers cannot be written down: {e}");
        }
    }

    /// Entries that a tier has not been brought yet.
    pub(super) fn push_facts(&self, tier: &Asked) -> Result<PushFacts> {
        let waiting = self.inner.index.count_after(self.pushed_up_to(tier.name()))?;
        Ok(PushFacts { waiting, brought: tier.brought_so_far() })
    }
}
