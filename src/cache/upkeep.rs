//! What a cache does beside its work: the state of eviction, accounting and sweeping, and the
//! tick that a worker calls about once a second.
//!
//! Invariants: nothing that was reported done depends on a tick; each part fails for itself
//! and is tried again next time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::evict::{Condemned, Leaving};
use super::patience::Patience;
use super::pin::Verdicts;
use super::pressure::{Stopped, Suspect};
use super::recent::Recent;
use super::recover::Sweep;
use super::usage::Accounts;
use super::{Cache, Result};
use crate::model::{BlobHash, EntryKey, EventKind};
use crate::store::PackId;

/// How often the event log is trimmed, and whenever another segment was begun.
const TRIM_EVERY: Duration = Duration::from_secs(600);

/// Every so many ticks blobs are looked for that nobody took.
pub(super) const FREE_EVERY: u64 = 30;

/// State of the use cases that keep a cache in order.
#[derive(Default)]
pub(crate) struct Upkeep {
    pub(super) verdicts: Verdicts,
    pub(super) accounts: Accounts,
    /// Hidden entries whose bytes are still there, by row id.
    pub(super) condemned: Mutex<HashMap<i64, Condemned>>,
    pub(super) leaving: Leaving,
    /// Blobs that somebody held and let go: nobody may want them any more.
    pub(super) let_go: Mutex<Vec<BlobHash>>,
    /// How many are held.
    pub(super) held_blobs: AtomicUsize,
    /// Entries that a kernel was asked to forget, by row id: their second chance.
    pub(super) suspects: Mutex<HashMap<i64, Suspect>>,
    /// One round of eviction at a time; where those in the background stopped.
    pub(super) round: Mutex<Stopped>,
    /// How long those who need room wait.
    pub(super) patience: Patience,
    /// One compaction at a time; where the search for sparse packs goes on.
    pub(super) compacting: Mutex<Option<PackId>>,
    /// Packs that went because what lived in them was moved.
    pub(super) compacted: AtomicU64,
    /// What an unclean stop left to look for.
    pub(super) sweep: Mutex<Sweep>,
    pub(super) recent: Recent,
    /// When the event log was trimmed last.
    trimmed: Mutex<Option<Instant>>,
    /// Entries evicted by this process.
    pub(super) evicted: AtomicU64,
    /// Ticks that are over.
    pub(super) rounds: AtomicU64,
}

impl Cache {
    /// One round of everything that is done in the background: frees what was let go, evicts
    /// above the high-water mark, compacts packs, drops abandoned drafts, trims the event log,
    /// sweeps what a death left. A worker calls it about once a second.
    pub fn tick(&self) {
        let part = |what: &str, result: Result<()>| {
            if let Err(e) = result {
                tracing::warn!(error = %e, "upkeep could not {what}");
            }
        };
        part("keep the index in its place", self.inner.index.put_back().map_err(Into::into));
        part("write down accesses", self.inner.flush_accesses());
        self.ask_for_hidden();
        self.holders().iter().for_each(|holder| holder.bound_known());
        part("free evicted entries", self.reap());
        part("free blobs that were let go", self.free_let_go());
        part("free blobs that nobody took", self.free_unreferenced_now_and_then());
        part("measure the store", self.refresh_usage());
        part("evict", self.evict_above_high_water());
        part("compact packs", self.compact_if_worth_it());
        part("drop abandoned drafts", self.drop_idle_drafts().map(drop));
        part("drop what came in part", self.sweep_partials());
        part("end sessions", self.end_dead_sessions());
        part("sweep", self.sweep_step());
        part("trim the event log", self.trim_events_now_and_then());
        self.inner.upkeep.rounds.fetch_add(1, Ordering::Relaxed);
    }

    fn free_unreferenced_now_and_then(&self) -> Result<()> {
        let rounds = self.inner.upkeep.rounds.load(Ordering::Relaxed);
        if !rounds.is_multiple_of(FREE_EVERY) || self.inner.index.totals()?.unreferenced_bytes == 0 {
            return Ok(());
        }
        self.free_unreferenced()
    }

    fn trim_events_now_and_then(&self) -> Result<()> {
        {
            let mut last = self.inner.upkeep.trimmed.lock();
            let begun = self.inner.store.has_new_segment();
            if !begun && last.is_some_and(|at| at.elapsed() < TRIM_EVERY) {
                return Ok(());
            }
            *last = Some(Instant::now());
        }
        self.trim_events()
    }

    /// Writes an event; one that cannot be written never fails what it tells of.
    pub(crate) fn note(&self, event: EventKind, key: Option<&EntryKey>, durable: bool) {
        if let Err(e) = self.inner.store.append_event(event, key, durable) {
            tracing::warn!(error = %e, "an event could not be written");
        }
    }
}
