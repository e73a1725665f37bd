//! The tiers of a cache: looking up in them what is not here.
//!
//! Invariants: a key is asked for once at a time, however many look it up; nobody waits longer than the options say,
//! and what comes later is there for the next look-up; a rejection outranks what a tier says; a tier that fails makes a
//! miss, never an error. Must not know: what a tier is, who looks up.

use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use super::ahead::Ahead;
use super::breaker::{Asked, TierFacts};
use super::budget::Budgets;
use super::fetch::Fetches;
use super::flights::Flights;
use super::learned::Learning;
use super::prefetch::{Coming, Prefetch};
use super::whole::Wholes;
use super::{Cache, Entry, Inner, LeaseKind, Result};
use crate::model::EntryKey;
use crate::tier::Tier;

/// Keys that are asked for at a time; what is more is a miss.
const ASKED: usize = 64;
/// Keys that are remembered as absent.
const ABSENCES: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();

/// How long tiers are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierOptions {
    /// A look-up waits for so long, and then is a miss.
    pub look_up: Duration,
    /// A tier is given so long to answer one: what comes after `look_up` is for the next.
    pub answer: Duration,
    /// A read waits for so long, and then is an error.
    pub read: Duration,
    /// What comes of an entry when it is looked up.
    pub prefetch: Prefetch,
    /// Bytes a second that each tier is brought at most.
    pub push_limit: Option<u64>,
    /// What a process may have come by reading, in bytes, where each entry counts for some more.
    pub scan_budget: Option<u64>,
    /// A key that no tier has is not asked for again for so long.
    pub absent: Duration,
}

impl Default for TierOptions {
    fn default() -> Self {
        TierOptions {
            look_up: Duration::from_secs(2),
            answer: Duration::from_secs(20),
            read: Duration::from_secs(30),
            prefetch: Prefetch::Manifest,
            push_limit: None,
            scan_budget: Some(64 << 30),
            absent: Duration::from_secs(5),
        }
    }
}

/// In the order in which they are asked.
type Attached = Arc<[Asked]>;

/// The tiers, and what is remembered of them.
#[derive(Default)]
pub(super) struct Tiers {
    attached: RwLock<(Attached, TierOptions)>,
    /// Whether an entry came of it.
    asking: Arc<Flights<EntryKey, bool>>,
    absent: Absences,
    pub fetches: Fetches,
    pub ahead: Ahead,
    pub wholes: Wholes,
    pub coming: Coming,
    pub learning: Learning,
    pub budgets: Budgets,
}

/// Keys that no tier had, and until when that is believed.
struct Absences(Mutex<LruCache<EntryKey, Instant>>);

impl Default for Absences {
    fn default() -> Self {
        Absences(Mutex::new(LruCache::new(ABSENCES)))
    }
}

impl Absences {
    fn has(&self, key: &EntryKey) -> bool {
        let mut all = self.0.lock();
        let until = all.get(key).copied();
        let believed = until.is_some_and(|until| Instant::now() < until);
        if until.is_some() && !believed {
            all.pop(key);
        }
        believed
    }
}

impl Tiers {
    /// Is there one?
    pub fn any(&self) -> bool {
        !self.attached.read().0.is_empty()
    }

    /// Those that are asked, in order, and how long.
    pub fn attached(&self) -> (Attached, TierOptions) {
        self.attached.read().clone()
    }
}

impl Cache {
    /// From now on these tiers are asked, in this order, for what is not here.
    pub fn attach_tiers(&self, tiers: Vec<Arc<dyn Tier>>, options: TierOptions) {
        let tiers = tiers.into_iter().map(Asked::new).collect();
        self.inner.tiers.learning.turn(options.prefetch == Prefetch::Learned);
        *self.inner.tiers.attached.write() = (tiers, options);
        self.inner.tiers.absent.0.lock().clear();
    }

    /// How the tiers do, in their order.
    pub fn tier_facts(&self) -> Vec<TierFacts> {
        let facts = |tier: &Asked| {
            let push = if tier.pushes() { self.push_facts(tier).ok() } else { None };
            TierFacts { push, ..tier.facts() }
        };
        self.inner.tiers.attached().0.iter().map(facts).collect()
    }

    /// Is there a tier?
    pub fn has_tiers(&self) -> bool {
        self.inner.tiers.any()
    }

    /// Whether tiers would be asked for the entry of `key`, which takes time: it is not here, and they have not just
    /// been asked. Never waits.
    pub fn asks_tiers(&self, key: &EntryKey) -> Result<bool> {
        let tiers = &self.inner.tiers;
        if !tiers.any() || tiers.absent.has(key) || self.rejection(key, None).is_some() {
            return Ok(false);
        }
        Ok(self.inner.index.glance(key)?.is_none())
    }

    /// The sealed entry of `key`, leased, from a tier where it is not here. As [`entry`](Self::entry), it does not judge
    /// metadata; `None` too where no tier answered in time.
    pub fn find(&self, key: &EntryKey, kind: LeaseKind) -> Result<Option<Entry>> {
        self.find_since(key, kind, Instant::now())
    }

    /// As `find`, for who began to wait then.
    pub fn find_since(&self, key: &EntryKey, kind: LeaseKind, since: Instant) -> Result<Option<Entry>> {
        match self.entry(key, kind)? {
            None if self.asks_tiers(key)? && self.came_from_tier(key, since)? => self.entry(key, kind),
            here => Ok(here),
        }
    }

    /// Has tiers asked for an entry that is not here; true when it is now.
    fn came_from_tier(&self, key: &EntryKey, since: Instant) -> Result<bool> {
        let tiers = &self.inner.tiers;
        let (attached, options) = tiers.attached();
        let by = since + options.look_up;
        if Instant::now() >= by {
            return Ok(false);
        }
        let (flight, pilot) = tiers.asking.board(key);
        if let Some(pilot) = pilot {
            // Whoever was at it before may have brought it since we looked.
            if self.inner.index.glance(key)?.is_some() {
                return Ok(true);
            }
            if tiers.asking.under_way() > ASKED {
                tracing::debug!(%key, "tiers are asked for too much already");
                return Ok(false);
            }
            let (cache, key) = (Arc::downgrade(&self.inner), key.clone());
            let ask = move || {
                let came = ask(&cache, &attached, &key, since + options.answer, options.absent);
                pilot.land(came);
                let ahead = came && options.prefetch != Prefetch::Manifest;
                if let (true, Some(inner)) = (ahead, cache.upgrade()) {
                    Cache { inner }.prefetch_later(&key);
                }
            };
            // A thread of its own: the answer is worth having when nobody waits for it any more.
            if let Err(e) = std::thread::Builder::new().name("tier".into()).spawn(ask) {
                tracing::warn!("tiers cannot be asked: {e}");
            }
        }
        Ok(flight.wait(by).unwrap_or(false))
    }
}

/// Asks one tier after another, and makes an entry of the first answer that is any good. Holds the cache, which may be
/// closed meanwhile, only while it does that.
fn ask(cache: &Weak<Inner>, tiers: &[Asked], key: &EntryKey, by: Instant, absent: Duration) -> bool {
    for tier in tiers {
        let tree = match tier.ask(key, by, |tier| tier.find(key, by)) {
            Ok(tree) => tree,
            Err(e) if e.is_absent() => continue,
            Err(e) => {
                tracing::debug!("a look-up goes on without a tier: {e}");
                continue;
            }
        };
        let Some(inner) = cache.upgrade() else { return false };
        match (Cache { inner }).adopt(tier.name(), &tree) {
            Ok(_) => return true,
            Err(e) => tracing::warn!(%key, "what a tier has cannot be used: {e}"),
        }
    }
    if let Some(inner) = cache.upgrade() {
        inner.tiers.absent.0.lock().put(key.clone(), Instant::now() + absent);
    }
    false
}
