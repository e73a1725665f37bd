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

use super::fetch::Fetches;
use super::flights::Flights;
use super::{Cache, Entry, Inner, LeaseKind, Result};
use crate::model::EntryKey;
use crate::tier::Tier;

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
    /// A key that no tier has is not asked for again for so long.
    pub absent: Duration,
}

impl Default for TierOptions {
    fn default() -> Self {
        TierOptions {
            look_up: Duration::from_secs(2),
            answer: Duration::from_secs(20),
            read: Duration::from_secs(30),
            absent: Duration::from_secs(5),
        }
    }
}

/// In the order in which they are asked.
type Attached = Arc<[Arc<dyn Tier>]>;

/// The tiers, and what is remembered of them.
#[derive(Default)]
pub(super) struct Tiers {
    attached: RwLock<(Attached, TierOptions)>,
    /// Whether an entry came of it.
    asking: Arc<Flights<EntryKey, bool>>,
    absent: Absences,
    pub fetches: Fetches,
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
        *self.inner.tiers.attached.write() = (tiers.into(), options);
        self.inner.tiers.absent.0.lock().clear();
    }

    /// The sealed entry of `key`, leased, from a tier where it is not here. As [`entry`](Self::entry), it does not judge
    /// metadata; `None` too where no tier answered in time.
    pub fn find(&self, key: &EntryKey, kind: LeaseKind) -> Result<Option<Entry>> {
        match self.entry(key, kind)? {
            None if self.came_from_tier(key)? => self.entry(key, kind),
            here => Ok(here),
        }
    }

    /// Has tiers asked for an entry that is not here; true when it is now.
    fn came_from_tier(&self, key: &EntryKey) -> Result<bool> {
        let tiers = &self.inner.tiers;
        let (attached, options) = tiers.attached();
        if attached.is_empty() || tiers.absent.has(key) || self.rejection(key, None).is_some() {
            return Ok(false);
        }
        let begun = Instant::now();
        let (flight, pilot) = tiers.asking.board(key);
        if let Some(pilot) = pilot {
            // Whoever was at it before may have brought it since we looked.
            if self.inner.index.glance(key)?.is_some() {
                return Ok(true);
            }
            let (cache, key) = (Arc::downgrade(&self.inner), key.clone());
            let ask = move || {
                let came = ask(&cache, &attached, &key, begun + options.answer, options.absent);
                pilot.land(came);
            };
            // A thread of its own: the answer is worth having when nobody waits for it any more.
            if let Err(e) = std::thread::Builder::new().name("tier".into()).spawn(ask) {
                tracing::warn!("tiers cannot be asked: {e}");
            }
        }
        Ok(flight.wait(begun + options.look_up).unwrap_or(false))
    }
}

/// Asks one tier after another, and makes an entry of the first answer that is any good. Holds the cache, which may be
/// closed meanwhile, only while it does that.
fn ask(cache: &Weak<Inner>, tiers: &[Arc<dyn Tier>], key: &EntryKey, by: Instant, absent: Duration) -> bool {
    for tier in tiers {
        let tree = match tier.find(key, by) {
            Ok(tree) => tree,
            Err(e) if e.is_absent() => continue,
            Err(e) => {
                tracing::warn!("a look-up goes on without a tier: {e}");
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
