//! Large contents that can only be checked as a whole: those that a tier names by SHA-256, or whose groups nobody has said.
//!
//! Invariants: no byte of one is read before all of it is here and has the digest in its name; it is asked for once,
//! however many want it, and goes on coming when nobody can wait any longer; what came of it stays in part for the next who asks.
//! The values of its groups are made of its bytes, once they were checked, and kept in memory alone. Must not know: what a tier is.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use super::breaker::Asked;
use super::budget::Payer;
use super::fetch::{Waits, late};
use super::flights::Flights;
use super::partial::Large;
use super::{Cache, CacheError, Inner, Result};
use crate::model::BlobHash;
use crate::model::groups::{GROUP, GroupHash};
use crate::store::{Location, StoreError};
use crate::tier::{Object, Tier, TierError, TierErrorKind};

/// Bytes that are asked for at a time.
const PIECE: u64 = 16 * GROUP as u64;
/// How often who waits as long as it goes on looks whether the cache is being closed.
const LOOKS: Duration = Duration::from_millis(200);
/// Lists of values that are kept.
const LISTS: NonZeroUsize = NonZeroUsize::new(64).unwrap();

type Came = std::result::Result<(), TierError>;
/// What a tier gave.
type Given = std::result::Result<Vec<u8>, TierError>;
type Lists = LruCache<BlobHash, Arc<Vec<GroupHash>>>;

/// What is coming, and the values of what came.
pub(super) struct Wholes {
    coming: Arc<Flights<BlobHash, Came>>,
    values: Mutex<Lists>,
}

impl Default for Wholes {
    fn default() -> Self {
        Wholes { coming: Arc::default(), values: Mutex::new(LruCache::new(LISTS)) }
    }
}

impl Cache {
    /// The values of the groups of a large blob that no manifest has them of, which lies there.
    pub(super) fn values_of(
        &self,
        hash: &BlobHash,
        at: Location,
    ) -> std::result::Result<Arc<Vec<GroupHash>>, StoreError> {
        if at == Location::Elsewhere {
            return Err(StoreError::Elsewhere { what: format!("blob {hash}") });
        }
        let known = &self.inner.tiers.wholes.values;
        if let Some(values) = known.lock().get(hash) {
            return Ok(values.clone());
        }
        let values = Arc::new(self.inner.store.blob_groups(hash)?);
        known.lock().put(*hash, values.clone());
        Ok(values)
    }

    /// Has all of a content come here; it is, when this returns.
    pub(super) fn fetch_whole(
        &self,
        object: &Object,
        hash: BlobHash,
        size: u64,
        waits: Waits<'_>,
    ) -> Result<()> {
        let coming = &self.inner.tiers.wholes.coming;
        let (flight, pilot) = coming.board(&hash);
        if let Some(pilot) = pilot {
            let (cache, object, payer) = (Arc::downgrade(&self.inner), *object, waits.payer.cloned());
            let of = Large { hash, size, values: &[] };
            // A thread of its own: what was begun is worth having when nobody waits for it any more.
            let bring = move || pilot.land(bring(&cache, &object, of, payer.as_ref()));
            let started = std::thread::Builder::new().name("tier".into()).spawn(bring);
            started.map_err(|e| CacheError::io("start a thread for", object.path(), e))?;
        }
        let mut by = waits.by;
        loop {
            if let Some(came) = flight.wait(by) {
                return Ok(came?);
            }
            let closing = self.inner.closing.load(Ordering::Relaxed);
            if !waits.patient || flight.has_ended() || closing {
                return Err(late(object).into());
            }
            // It does not go on for ever: each of its pieces has its time.
            by = Instant::now() + LOOKS;
        }
    }

    /// Whether a content is in a tier only.
    pub(super) fn is_elsewhere(&self, hash: &BlobHash) -> Result<bool> {
        Ok(self.inner.index.blob(hash)?.is_some_and(|row| row.location == Location::Elsewhere))
    }
}

/// Asks one tier after another for what lacks, until the whole is right.
fn bring(cache: &Weak<Inner>, object: &Object, of: Large<'_>, payer: Option<&Payer>) -> Came {
    let Some(inner) = cache.upgrade() else { return Err(over(object)) };
    let (tiers, options) = inner.tiers.attached();
    // Who makes room meanwhile leaves what came of it.
    let _held = inner.leases.reserve([of.hash]);
    drop(inner);
    let mut failed = None;
    for tier in tiers.iter() {
        let ask = |range: &Range<u64>| {
            let bytes = get(tier, object, range.clone(), Instant::now() + options.read)?;
            payer.inspect(|payer| payer.pay(bytes.len() as u64));
            Ok(bytes)
        };
        // What was there before may be what is wrong.
        let came = match bring_from(cache, object, of, &ask) {
            Ok(Brought { right: false, resumed: true }) => bring_from(cache, object, of, &ask),
            other => other,
        };
        let error = match came {
            Ok(Brought { right: true, .. }) => return Ok(()),
            Ok(_) => {
                let wrong =
                    TierError::corrupt(tier.name(), object, "all of it does not have the hash in its name");
                tier.gave_wrong(&wrong);
                wrong
            }
            Err(e) => e,
        };
        tier.tell(&error);
        failed = Some(failed.filter(|old: &TierError| !old.is_absent()).unwrap_or(error));
    }
    Err(failed.unwrap_or_else(|| {
        TierError::new(TierErrorKind::Permanent, "tiers", "get", object, "there is no tier attached")
    }))
}

struct Brought {
    /// All of it is here, and is what its name says.
    right: bool,
    /// Some of it was here before.
    resumed: bool,
}

fn bring_from(
    cache: &Weak<Inner>,
    object: &Object,
    of: Large<'_>,
    ask: &dyn Fn(&Range<u64>) -> Given,
) -> std::result::Result<Brought, TierError> {
    let here = || cache.upgrade().map(|inner| Cache { inner }).ok_or_else(|| over(object));
    let kept = |e: CacheError| {
        TierError::new(TierErrorKind::Transient { after: None }, "the store", "keep", object, e)
    };
    let lacking = here()?.pieces_lacking(of, PIECE).map_err(kept)?;
    let resumed = lacking.iter().map(|piece| piece.end - piece.start).sum::<u64>() < of.size;
    for range in lacking {
        let bytes = ask(&range)?;
        let cache = here()?;
        if cache.inner.closing.load(Ordering::Relaxed) {
            return Err(over(object));
        }
        cache.or_sweep(cache.write_partial(of, range.start, &bytes)).map_err(kept)?;
    }
    let cache = here()?;
    cache.finish_partial(&of.hash).map_err(kept)?;
    let right = !cache.is_elsewhere(&of.hash).map_err(kept)?;
    Ok(Brought { right, resumed })
}

fn get(tier: &Asked, object: &Object, range: Range<u64>, by: Instant) -> Given {
    tier.ask(object, by, |tier| {
        let bytes = tier.get(object, range.clone(), by)?;
        match bytes.len() as u64 == range.end - range.start {
            true => Ok(bytes),
            false => Err(TierError::corrupt(tier.name(), object, "it gave another number of bytes")),
        }
    })
}

fn over(object: &Object) -> TierError {
    let kind = TierErrorKind::Transient { after: None };
    TierError::new(kind, "tiers", "get", object, "the cache is being closed")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{bytes, key};
    use super::super::tier_tests::*;
    use super::super::*;
    use super::*;
    use crate::model::Manifest;
    use crate::model::manifest::{Attrs, DigestKind, Origin, Seal, TreeBuilder};
    use crate::tier::{PlacesBuilder, Tree};

    /// How long the tier takes for each piece.
    const SLOW: Duration = Duration::from_millis(400);

    /// An entry of a tier with one content of three pieces, which has a name only as a whole; and that content.
    fn with_whole(w: &World) -> (Entry, BlobHash, Vec<u8>) {
        let content = bytes(3 * PIECE as usize - 5, 1);
        let (hash, size) = (BlobHash::of(&content), content.len() as u64);
        w.tier.put(&Object::Blob(hash, size), size, &mut &content[..], soon()).unwrap();
        let mut tree = TreeBuilder::new(Attrs::default());
        let outputs = tree.dir(tree.top(), b"outputs", Attrs::default()).unwrap();
        let file = tree.file(outputs, b"f", Attrs::default(), None).unwrap();
        tree.set_name(file, hash, size, DigestKind::Blake3);
        let origin = Origin::default();
        let seal = Seal { key: key("abcd"), sealed_at_ns: 1, inferred: false, replaces: None, origin };
        let manifest = Manifest::parse(tree.finish(&seal).unwrap()).unwrap();
        let places = PlacesBuilder::new(100).finish(&manifest);
        assert!(w.near.cache.adopt("memory", &Tree { manifest: Arc::new(manifest), places }).unwrap());
        w.tier.set_faults(|_| {
            std::thread::sleep(SLOW);
            None
        });
        w.attach(TierOptions { read: 2 * SLOW, ..patient() });
        (w.find("abcd").unwrap(), hash, content)
    }

    #[test]
    fn who_has_it_come_waits_as_long_as_it_does_and_who_reads_it_no_longer_than_a_read() {
        let w = World::new();
        let (entry, _, content) = with_whole(&w);
        assert!(matches!(read(&entry, "f"), Err(CacheError::Tier(e)) if e.is_transient()));
        assert_eq!(entry.prefetch(&[], &Work::default()).unwrap().bytes, content.len() as u64);
        assert!(read(&entry, "f").unwrap() == content);
        sound(&w.near);
    }

    #[test]
    fn what_comes_is_left_by_who_makes_room() {
        let w = World::new();
        let (entry, hash, content) = with_whole(&w);
        let coming = std::thread::spawn(move || entry.prefetch(&[], &Work::default()).map(drop));
        let here = || w.near.cache.usage().unwrap().partial > 0;
        super::super::tests::eventually("a piece of it", here);
        // As when its last entry goes.
        assert!(!w.near.cache.inner.leases.claim([hash]).has(&hash));
        coming.join().unwrap().unwrap();
        let entry = w.find("abcd").unwrap();
        assert!(read(&entry, "f").unwrap() == content);
        drop(entry);
        assert!(w.near.cache.inner.leases.claim([hash]).has(&hash));
    }
}
