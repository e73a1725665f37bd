//! A tier as the cache asks it: what it gives and how it fails is counted, and one that is ill is left alone for a while.
//!
//! Invariants: an ill tier is asked by one caller at a time, and not before its time has come; the first that succeeds
//! ends the illness; that something is absent is an answer, and wrong bytes say nothing of whether others come.
//! Must not know: what is asked.

use std::io::Read;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{PushFacts, now_ns};
use crate::model::manifest::DigestKind;
use crate::model::{EntryKey, Manifest};
use crate::tier::{self, Capabilities, Object, Places, Tier, TierError, TierErrorKind, Tree};

/// Failures in a row that make a tier ill.
const FAILURES: u32 = 5;
/// One that has not answered for so long is ill at once.
const SILENT: Duration = Duration::from_secs(10);
/// Who gave it less time than this and got no answer has not shown anything.
const FAIR: Duration = Duration::from_secs(2);
/// How long an ill one is left alone at first, and at most.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How a tier does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierFacts {
    /// Its name: its address, without credentials.
    pub name: String,
    /// How far entries are on their way to it, where they go there.
    #[serde(default)]
    pub push: Option<PushFacts>,
    /// It has failed so often, or been silent for so long, that it is asked only now and then.
    pub ill: bool,
    /// How often it was asked.
    pub asked: u64,
    /// How often it failed: that it does not have something is no failure.
    pub failed: u64,
    /// How often what it gave was not what it should be.
    #[serde(default)]
    pub corrupt: u64,
    /// What it said last when it failed, and when (nanoseconds since 1970).
    pub last_failure: Option<(i64, String)>,
}

/// A tier and how it does.
pub(super) struct Asked {
    tier: Arc<dyn Tier>,
    health: Mutex<Health>,
    /// Entries that it was brought.
    brought: AtomicU64,
    /// Bytes that it was brought.
    sent: AtomicU64,
    /// By what it names contents, once it has said so.
    naming: OnceLock<DigestKind>,
}

#[derive(Default)]
struct Health {
    asked: u64,
    failed: u64,
    corrupt: u64,
    last: Option<(i64, String)>,
    /// Failures since it succeeded last.
    in_a_row: u32,
    /// When one was counted last.
    counted: Option<Instant>,
    ill: Option<Ill>,
}

struct Ill {
    /// When it may be asked again.
    until: Instant,
    rest: Duration,
    /// Somebody tries whether it is well again.
    tried: bool,
}

impl Asked {
    pub fn new(tier: Arc<dyn Tier>) -> Asked {
        Asked {
            tier,
            health: Mutex::default(),
            brought: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            naming: OnceLock::new(),
        }
    }

    /// Has `call` ask it for `what`, which is to end by `by`; an error at once while it is ill.
    pub fn ask<T>(
        &self,
        what: &dyn ToString,
        by: Instant,
        call: impl FnOnce(&dyn Tier) -> Result<T, TierError>,
    ) -> Result<T, TierError> {
        let begun = Instant::now();
        self.begin(begun, by, what)?;
        let result = call(&*self.tier);
        let given = by.saturating_duration_since(begun);
        self.note(result.as_ref().err(), begun, given);
        result
    }

    fn begin(&self, now: Instant, by: Instant, what: &dyn ToString) -> Result<(), TierError> {
        let mut health = self.health.lock();
        if let Some(ill) = &mut health.ill {
            if now < ill.until {
                let kind = TierErrorKind::Transient { after: Some(ill.until.saturating_duration_since(now)) };
                let why = "it has not answered, and is left alone for a while";
                return Err(TierError::new(kind, self.tier.name(), "ask for", what.to_string(), why));
            }
            // However long this call may take, the next one tries after the longest rest.
            (ill.tried, ill.until) = (true, by.min(now + REST.1));
        }
        health.asked += 1;
        Ok(())
    }

    fn note(&self, error: Option<&TierError>, begun: Instant, given: Duration) {
        let took = begun.elapsed();
        let mut health = self.health.lock();
        let Some(error) = error.filter(|e| !e.is_absent()) else { return self.is_well(&mut health) };
        health.failed += 1;
        health.corrupt += u64::from(error.kind == TierErrorKind::Corrupt);
        health.last = Some((now_ns(), error.to_string()));
        let silent = error.is_transient() && took >= given;
        let together = took < SILENT && health.counted.is_some_and(|last| begun < last);
        match &mut health.ill {
            // Whoever tried has found it as it was. (Others may have asked before it became ill.)
            Some(ill) if ill.tried => {
                ill.rest = (ill.rest * 2).min(REST.1);
                ill.until = Instant::now() + ill.rest;
                ill.tried = false;
            }
            Some(_) => {}
            None if error.kind == TierErrorKind::Corrupt || silent && given < FAIR => {}
            // Calls that were under way together find one trouble.
            None if together => {}
            None => {
                health.in_a_row += 1;
                health.counted = Some(Instant::now());
                if health.in_a_row >= FAILURES || silent && took >= SILENT {
                    tracing::warn!("a tier is left alone for a while: {error}");
                    let until = Instant::now() + REST.0;
                    health.ill = Some(Ill { until, rest: REST.0, tried: false });
                }
            }
        }
    }

    fn is_well(&self, health: &mut Health) {
        health.in_a_row = 0;
        if health.ill.take().is_some() {
            tracing::info!("the tier {} answers again", self.tier.name());
        }
    }

    /// What it gave turned out not to be what it should be.
    pub fn gave_wrong(&self, error: &TierError) {
        self.note(Some(error), Instant::now(), FAIR);
    }

    /// Whether entries go to it.
    pub fn pushes(&self) -> bool {
        self.tier.capabilities().push
    }

    /// What a read goes on without: to be told, unless it is an answer or was told when the tier fell ill.
    pub fn tell(&self, error: &TierError) {
        if error.is_absent() || self.health.lock().ill.is_some() {
            tracing::debug!("a read goes on without a tier: {error}");
        } else {
            tracing::warn!("a read goes on without a tier: {error}");
        }
    }

    /// Whether that is its name.
    pub fn is_called(&self, name: &str) -> bool {
        self.tier.name() == name
    }

    /// It was brought an entry.
    pub fn brought(&self) {
        self.brought.fetch_add(1, Ordering::Relaxed);
    }

    /// Entries that it was brought.
    pub fn brought_so_far(&self) -> u64 {
        self.brought.load(Ordering::Relaxed)
    }

    /// It was brought so many bytes more.
    pub fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that it was brought.
    pub fn sent_so_far(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub fn facts(&self) -> TierFacts {
        let health = self.health.lock();
        TierFacts {
            name: self.tier.name().to_owned(),
            push: None,
            ill: health.ill.is_some(),
            asked: health.asked,
            failed: health.failed,
            corrupt: health.corrupt,
            last_failure: health.last.clone(),
        }
    }
}

impl Tier for Asked {
    fn name(&self) -> &str {
        self.tier.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.tier.capabilities()
    }

    fn naming(&self, by: Instant) -> tier::Result<DigestKind> {
        if let Some(known) = self.naming.get() {
            // That it remembers this says nothing of how it does.
            return Ok(*known);
        }
        let naming = self.ask(&"what it can do", by, |tier| tier.naming(by))?;
        Ok(*self.naming.get_or_init(|| naming))
    }

    fn unsuitable(&self, manifest: &Manifest) -> Option<String> {
        self.tier.unsuitable(manifest)
    }

    fn find(&self, key: &EntryKey, by: Instant) -> tier::Result<Tree> {
        self.ask(key, by, |tier| tier.find(key, by))
    }

    fn get(&self, object: &Object, range: Range<u64>, by: Instant) -> tier::Result<Vec<u8>> {
        // One without packs says so by itself: that is no sign of life.
        if matches!(object, Object::Pack(..)) && !self.capabilities().packs {
            return self.tier.get(object, range, by);
        }
        self.ask(object, by, |tier| tier.get(object, range, by))
    }

    fn get_all(&self, objects: &[Object], by: Instant) -> tier::Result<Vec<tier::Result<Vec<u8>>>> {
        self.ask(&"contents", by, |tier| tier.get_all(objects, by))
    }

    fn put_all(&self, contents: &[(Object, Vec<u8>)], by: Instant) -> tier::Result<()> {
        self.ask(&"contents", by, |tier| tier.put_all(contents, by))
    }

    fn put(&self, object: &Object, size: u64, content: &mut dyn Read, by: Instant) -> tier::Result<()> {
        self.ask(object, by, |tier| tier.put(object, size, content, by))
    }

    fn missing(&self, objects: &[Object], by: Instant) -> tier::Result<Vec<Object>> {
        self.ask(&"what it has", by, |tier| tier.missing(objects, by))
    }

    fn publish(&self, manifest: &Manifest, places: &Places, by: Instant) -> tier::Result<()> {
        self.ask(&manifest.seal().key, by, |tier| tier.publish(manifest, places, by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::{Capabilities, MemoryTier};

    const LONG: Duration = Duration::from_secs(60);

    fn tier() -> Asked {
        Asked::new(Arc::new(MemoryTier::new("memory", Capabilities { push: false, packs: true })))
    }

    fn error(kind: TierErrorKind) -> TierError {
        TierError::new(kind, "memory", "get", "x", "so it is")
    }

    /// Asks; whether it was let through.
    fn ask(tier: &Asked, kind: Option<TierErrorKind>) -> bool {
        let mut through = false;
        let _ = tier.ask(&"x", Instant::now() + LONG, |_| {
            through = true;
            kind.map_or(Ok(()), |kind| Err(error(kind)))
        });
        through
    }

    const BUSY: Option<TierErrorKind> = Some(TierErrorKind::Transient { after: None });

    #[test]
    fn one_that_fails_again_and_again_is_left_alone_until_it_answers() {
        let tier = tier();
        for _ in 0..3 {
            (1..FAILURES).for_each(|_| assert!(ask(&tier, BUSY)));
            assert!(ask(&tier, Some(TierErrorKind::Absent)), "that is an answer");
        }
        (0..20).for_each(|_| assert!(ask(&tier, Some(TierErrorKind::Corrupt))));
        assert!(!tier.facts().ill);
        (0..FAILURES).for_each(|_| assert!(ask(&tier, Some(TierErrorKind::Permanent))));
        assert!(tier.facts().ill && !ask(&tier, None), "left alone");
        let over = |tier: &Asked| tier.health.lock().ill.as_mut().unwrap().until = Instant::now();
        over(&tier);
        let by = Instant::now() + LONG;
        let tried = tier.ask(&"x", by, |_| {
            assert!(!ask(&tier, None), "one at a time tries");
            let until = tier.health.lock().ill.as_ref().unwrap().until;
            assert!(until <= Instant::now() + REST.1, "not for as long as that call may take");
            Err::<(), _>(error(TierErrorKind::Permanent))
        });
        assert_eq!(tried.unwrap_err().kind, TierErrorKind::Permanent);
        assert_eq!(tier.health.lock().ill.as_ref().unwrap().rest, REST.0 * 2, "the next rest is longer");
        over(&tier);
        assert!(ask(&tier, None) && !tier.facts().ill && ask(&tier, None));
        let facts = tier.facts();
        assert_eq!((facts.asked, facts.failed), (12 + 3 + 20 + 5 + 1 + 2, 12 + 20 + 5 + 1));
        assert!(facts.last_failure.unwrap().1.contains("so it is"));
    }

    #[test]
    fn silence_makes_ill_if_the_time_was_fair() {
        let (tier, late) = (tier(), error(TierErrorKind::Transient { after: None }));
        let hasty = Duration::from_millis(20);
        (0..20).for_each(|_| tier.note(Some(&late), Instant::now() - hasty, hasty));
        assert!(!tier.facts().ill);
        tier.note(Some(&late), Instant::now() - SILENT, SILENT);
        assert!(tier.facts().ill);
    }
}
