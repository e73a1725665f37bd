//! Reading what only a tier has: fetched in windows, verified, and kept.
//!
//! Invariants: no byte is returned or stored that was not hashed; who wants the same window waits for one
//! request; a read ends by its deadline, and one tier that does not answer leaves time for the next; small contents that came
//! are in a pack before the index says so, and of large ones what came is kept in part. What cannot be kept is read all the same. Must not know: what a tier is.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use lru::LruCache;
use parking_lot::Mutex;

use super::breaker::Asked;
use super::budget::Payer;
use super::flights::Flights;
use super::larges::Larges;
use super::lookup::Loaded;
use super::partial::Large;
use super::read::Reader;
use super::{Cache, Result};
use crate::index::BlobRow;
use crate::model::groups::GROUP;
use crate::model::{BlobHash, ManifestHash};
use crate::store::{Location, StoreError};
use crate::tier::{Object, Places, TierError, TierErrorKind};

/// Objects are fetched in windows that begin at multiples of this: one costs little more than a round trip, and brings
/// what is read next.
pub(super) const WINDOW: u64 = 2 * GROUP as u64;
/// What lies between two contents comes along when it is less: another request costs more.
const GAP: u64 = 32 << 10;
/// Bytes that the contents which begin in a window have at most: twice what fits, since two packs may be the same.
const MOST_OF_A_WINDOW: u64 = 2 * (WINDOW + GROUP as u64);
/// Tables of places that are kept in memory.
const TABLES: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// A window of an object.
pub(super) type Window = (Object, u64);
/// The contents that lie in a window of a pack, or groups of a large content.
pub(super) type Came<T> = std::result::Result<Arc<T>, TierError>;
type Contents = Vec<(BlobHash, Vec<u8>)>;

/// What is being fetched, and what came last.
pub(super) struct Fetches {
    packs: Arc<Flights<Window, Came<Contents>>>,
    /// Of those of which not all that is lacking comes.
    chosen: Arc<Flights<Window, Came<Contents>>>,
    pub larges: Larges,
    places: Mutex<LruCache<ManifestHash, Arc<Places>>>,
}

impl Default for Fetches {
    fn default() -> Self {
        Fetches {
            packs: Arc::default(),
            chosen: Arc::default(),
            larges: Larges::default(),
            places: Mutex::new(LruCache::new(TABLES)),
        }
    }
}

/// Until when somebody waits, whose budget what comes is taken from, and whether of a large content no more comes than is read.
#[derive(Clone, Copy)]
pub(super) struct Waits<'a> {
    pub by: Instant,
    pub payer: Option<&'a Payer>,
    pub exact: bool,
    pub patient: bool,
}

impl Waits<'_> {
    pub fn pay(&self, bytes: usize) {
        if let Some(payer) = self.payer {
            payer.pay(bytes as u64);
        }
    }
}

impl Cache {
    /// Fills `buf` from `offset` of the content of this name and size, which a record has and only a tier had a moment
    /// ago; `None` when it is here now.
    pub(super) fn fetch(
        &self,
        loaded: &Loaded,
        record: u32,
        (hash, size): (BlobHash, u64),
        offset: u64,
        buf: &mut [u8],
        who: &Reader<'_>,
    ) -> Result<Option<usize>> {
        let wanted = buf.len().min(usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX));
        let unknown = || StoreError::Elsewhere { what: format!("blob {hash}") };
        let places = self.places_in_memory(loaded)?.ok_or_else(unknown)?;
        if let Some(bytes) = places.carried(&hash).filter(|bytes| hash.names(bytes)) {
            buf[..wanted].copy_from_slice(
                bytes.get(offset as usize..).unwrap_or(&[]).get(..wanted).ok_or_else(unknown)?,
            );
            return Ok(Some(wanted));
        }
        let (object, range) = places.object(&hash).ok_or_else(unknown)?;
        let by = (who.by)(&self.inner.tiers.attached().1);
        let waits = Waits { by, payer: who.payer.as_ref(), exact: who.exact, patient: who.patient };
        if size <= GROUP as u64 {
            let came = match object {
                Object::Blob(..) => self.fetch_together(&places, hash, waits)?,
                _ => self.fetch_small(&places, (object, range.start / WINDOW), waits)?,
            };
            let Some((_, content)) = came.iter().find(|(h, _)| *h == hash) else { return Ok(None) };
            let from = content.get(offset as usize..offset as usize + wanted).ok_or_else(unknown)?;
            buf[..wanted].copy_from_slice(from);
            return Ok(Some(wanted));
        }
        let of = Large { hash, size, values: loaded.manifest.groups(record) };
        if of.values.is_empty() {
            self.fetch_whole(&object, hash, size, waits)?;
            return Ok(None);
        }
        let stored = places.stored(&hash).ok_or_else(unknown)?;
        let came = self.fetch_large(stored, of, offset, &mut buf[..wanted], waits)?;
        Ok(came.then_some(wanted))
    }

    fn places_in_memory(&self, loaded: &Loaded) -> Result<Option<Arc<Places>>> {
        let (all, name) = (&self.inner.tiers.fetches.places, loaded.manifest.hash());
        if let Some(places) = all.lock().get(&name) {
            return Ok(Some(places.clone()));
        }
        let Some(places) = self.places_of(&loaded.manifest)?.map(Arc::new) else { return Ok(None) };
        all.lock().put(name, places.clone());
        Ok(Some(places))
    }

    /// The small contents of a window of a pack, but for those that are here already.
    pub(super) fn fetch_small(
        &self,
        places: &Places,
        window: Window,
        waits: Waits<'_>,
    ) -> Result<Arc<Contents>> {
        share(&self.inner.tiers.fetches.packs, &window, waits.by, || {
            let wanted = self.in_window(places, window)?;
            if wanted.is_empty() {
                return Ok(Ok(Arc::default()));
            }
            let check = |bytes: Vec<u8>, at| verified(&wanted, &bytes, at);
            let came = self.ask_for(&window.0, span(&wanted), waits.by, &check);
            self.keep_what_came(&came, waits);
            Ok(came)
        })
    }

    /// These small contents of a window of a pack, and little of what lies between them; but for those that are here already.
    pub(super) fn fetch_chosen(
        &self,
        places: &Places,
        window: Window,
        chosen: &[BlobHash],
        waits: Waits<'_>,
    ) -> Result<()> {
        let came = share(&self.inner.tiers.fetches.chosen, &window, waits.by, || {
            let mut wanted = self.in_window(places, window)?;
            wanted.retain(|(hash, _)| chosen.contains(hash));
            let (mut contents, mut failed) = (Contents::new(), None);
            for run in wanted.chunk_by(|(_, a), (_, b)| b.start < a.end + GAP) {
                let check = |bytes: Vec<u8>, at| verified(run, &bytes, at);
                match self.ask_for(&window.0, span(run), waits.by, &check) {
                    Ok(came) => contents.extend(Arc::unwrap_or_clone(came)),
                    Err(e) => {
                        failed = Some(e);
                        break;
                    }
                }
            }
            let came = Ok(Arc::new(contents));
            self.keep_what_came(&came, waits);
            Ok(failed.map_or(came, Err))
        });
        came.map(drop)
    }

    fn keep_what_came(&self, came: &Came<Contents>, waits: Waits<'_>) {
        let Ok(contents) = came else { return };
        waits.pay(contents.iter().map(|(_, bytes)| bytes.len()).sum());
        if let Err(e) = self.or_sweep(self.keep(contents)) {
            tracing::warn!("what came from a tier is not kept: {e}");
        }
    }

    /// A small content that is an object of its own and those around it, but for those that are here already.
    fn fetch_together(&self, places: &Places, hash: BlobHash, waits: Waits<'_>) -> Result<Arc<Contents>> {
        let around = places.around(&hash, WINDOW);
        let object = |(hash, size): &(BlobHash, u64)| Object::Blob(*hash, *size);
        let Some(first) = around.first().map(object) else { return Ok(Arc::default()) };
        // Another's error is of the content that it waits for.
        share_until(
            &self.inner.tiers.fetches.packs,
            &(first, 0),
            waits.by,
            |_| true,
            || {
                let mut wanted = self.elsewhere(around.iter().map(|one| (one.0, *one)).collect())?;
                // What somebody waits for comes first.
                let Some(at) = wanted.iter().position(|(one, _)| *one == hash) else {
                    return Ok(Ok(Arc::default()));
                };
                wanted.swap(0, at);
                let objects: Vec<(BlobHash, Object)> =
                    wanted.iter().map(|(hash, one)| (*hash, object(one))).collect();
                let came = self.ask_for_all(&objects, waits.by);
                self.keep_what_came(&came, waits);
                Ok(came)
            },
        )
    }

    /// Asks one tier after another for contents, until one gives the first of them. Of the others comes what is right.
    fn ask_for_all(&self, objects: &[(BlobHash, Object)], by: Instant) -> Came<Contents> {
        let wanted: Vec<Object> = objects.iter().map(|(_, object)| *object).collect();
        self.ask_each(&wanted[0], by, &|asked, by| {
            let (mut right, mut wrong) = (Vec::new(), None);
            let first = asked.ask(&wanted[0], by, |tier| {
                // Where small contents lie in packs, one that is alone has no others beside it.
                let wanted = if tier.capabilities().packs { &wanted[..1] } else { &wanted[..] };
                let mut came = match tier.get_all(wanted, by) {
                    // It may know no batches, whatever it says.
                    Err(e) if !e.is_transient() && wanted.len() > 1 => tier.get_all(&wanted[..1], by)?,
                    came => came?,
                };
                for ((hash, object), bytes) in objects.iter().zip(came.drain(..)) {
                    let first = right.is_empty();
                    match bytes {
                        Ok(bytes) if object.names(&bytes) => right.push((*hash, bytes)),
                        Ok(_) => {
                            let e = TierError::corrupt(
                                tier.name(),
                                object,
                                "it does not have the hash in its name",
                            );
                            if first {
                                return Err(e);
                            }
                            wrong = Some(e);
                        }
                        Err(e) if first => return Err(e),
                        Err(e) => tracing::debug!("a content does not come with another: {e}"),
                    }
                }
                Ok(())
            });
            first.map(|()| {
                wrong.iter().for_each(|e| asked.gave_wrong(e));
                right
            })
        })
    }

    /// The contents in a window that are not here.
    fn in_window(&self, places: &Places, (object, window): Window) -> Result<Vec<(BlobHash, Range<u64>)>> {
        let contents = places.in_pack(&object, window * WINDOW..(window + 1) * WINDOW);
        // Where one pack is named again and again, a few bytes could stand for any number of contents.
        if contents.iter().map(|(_, at)| at.end - at.start).sum::<u64>() > MOST_OF_A_WINDOW {
            return Err(
                TierError::corrupt("tiers", &object, "too many contents lie in the same place").into()
            );
        }
        self.elsewhere(contents)
    }

    /// Those of these contents that are not here.
    fn elsewhere<T>(&self, contents: Vec<(BlobHash, T)>) -> Result<Vec<(BlobHash, T)>> {
        let hashes: Vec<BlobHash> = contents.iter().map(|(hash, _)| *hash).collect();
        let rows = self.inner.index.blobs(&hashes)?;
        let elsewhere = |row: &Option<BlobRow>| row.is_some_and(|r| r.location == Location::Elsewhere);
        Ok(contents
            .into_iter()
            .zip(rows)
            .filter(|(_, row)| elsewhere(row))
            .map(|(content, _)| content)
            .collect())
    }

    /// Asks one tier after another for a range of an object, until what one gives passes `check`, which is given the
    /// bytes and where they begin.
    pub(super) fn ask_for<T>(
        &self,
        object: &Object,
        range: Range<u64>,
        by: Instant,
        check: &dyn Fn(Vec<u8>, u64) -> std::result::Result<T, &'static str>,
    ) -> Came<T> {
        self.ask_each(object, by, &|asked, by| {
            asked.ask(object, by, |tier| {
                let bytes = tier.get(object, range.clone(), by)?;
                if bytes.len() as u64 != range.end - range.start {
                    return Err(TierError::corrupt(tier.name(), object, "it gave another number of bytes"));
                }
                check(bytes, range.start).map_err(|why| TierError::corrupt(tier.name(), object, why))
            })
        })
    }

    /// Asks one tier after another, until one answers.
    fn ask_each<T>(
        &self,
        object: &Object,
        by: Instant,
        ask: &dyn Fn(&Asked, Instant) -> std::result::Result<T, TierError>,
    ) -> Came<T> {
        let (tiers, _) = self.inner.tiers.attached();
        let mut failed = None;
        for (i, tier) in tiers.iter().enumerate() {
            // Each has its share of the time that is left.
            let now = Instant::now();
            let by = now + by.saturating_duration_since(now) / (tiers.len() - i) as u32;
            match ask(tier, by) {
                Ok(good) => return Ok(Arc::new(good)),
                Err(e) => {
                    tier.tell(&e);
                    // That one does not have it says less than why another could not give it.
                    failed = Some(failed.filter(|old: &TierError| !old.is_absent()).unwrap_or(e));
                }
            }
        }
        Err(failed.unwrap_or_else(|| {
            TierError::new(TierErrorKind::Permanent, "tiers", "get", object, "there is no tier attached")
        }))
    }

    /// Small contents that came are here from now on.
    fn keep(&self, contents: &Contents) -> Result<()> {
        if contents.is_empty() {
            return Ok(());
        }
        self.make_room(contents.iter().map(|(_, bytes)| bytes.len() as u64).sum())?;
        let mut pack = self.inner.store.new_pack()?;
        let mut moved = Vec::new();
        for (hash, bytes) in contents {
            moved.push((*hash, pack.append(hash, bytes)?));
        }
        let pack = pack.finish()?;
        // All of it may have come another way meanwhile.
        for (unused, _) in self.inner.index.relocate(moved, Some((pack.id, pack.bytes)), vec![])? {
            self.inner.store.remove_pack(unused)?;
        }
        Ok(())
    }
}

/// Has a window fetched by the first who wants it.
fn share<T>(
    flights: &Arc<Flights<Window, Came<T>>>,
    window: &Window,
    by: Instant,
    fetch: impl Fn() -> Result<Came<T>>,
) -> Result<Arc<T>> {
    share_until(flights, window, by, TierError::is_transient, fetch)
}

/// The same, for those that find out for themselves after an error of another's.
pub(super) fn share_until<T>(
    flights: &Arc<Flights<Window, Came<T>>>,
    window: &Window,
    by: Instant,
    again: impl Fn(&TierError) -> bool,
    fetch: impl Fn() -> Result<Came<T>>,
) -> Result<Arc<T>> {
    let came = flights.share(window, by, again, fetch)?;
    Ok(came.unwrap_or_else(|| Err(late(&window.0)))?)
}

/// From the first of these to the end of the last.
fn span(wanted: &[(BlobHash, Range<u64>)]) -> Range<u64> {
    let start = wanted.iter().map(|(_, at)| at.start).min().unwrap_or(0);
    start..wanted.iter().map(|(_, at)| at.end).max().unwrap_or(0)
}

/// The contents among these bytes, which begin at `start`. All must be right: those that are not must not hide that
/// a tier gives wrong bytes.
fn verified(
    wanted: &[(BlobHash, Range<u64>)],
    bytes: &[u8],
    start: u64,
) -> std::result::Result<Contents, &'static str> {
    let mut contents = Vec::with_capacity(wanted.len());
    for (hash, at) in wanted {
        let content = &bytes[(at.start - start) as usize..(at.end - start) as usize];
        if !hash.names(content) {
            return Err("a content does not have the hash in its name");
        }
        contents.push((*hash, content.to_vec()));
    }
    Ok(contents)
}

pub(super) fn late(object: &Object) -> TierError {
    let kind = TierErrorKind::Transient { after: None };
    TierError::new(kind, "tiers", "get", object, "there was no answer in time")
}
