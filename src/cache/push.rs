//! Entries that were sealed here go to the tiers that take them: in the background, to each tier one after another, in the order
//! in which they were sealed, and no faster than it is told.
//!
//! Invariants: how far each tier is stands in a file of the store, written after an entry is whole there. So what was not
//! brought is brought by the next process, and what is brought again changes nothing. What is inferred, rejected, of a
//! session, without readable metadata or from a tier is never brought. A tier that fails holds up what goes to it, and
//! nothing else; an entry that fails by itself holds up no other. Must not know: what a tier is.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::breaker::Asked;
use super::queue::Queue;
use super::{Cache, CacheError, Entry, LeaseKind, Result};
use crate::index::{Backed, EntryRow};
use crate::model::manifest::DigestKind;
use crate::model::session::SessionId;
use crate::model::{BlobHash, EntryKey, Manifest};
use crate::store::StoreError;
use crate::tier::{
    self, Capabilities, Form, Object, Places, ShipError, Source, Tier, TierError, TierErrorKind, Tree, ship,
};

/// Where it is written down how far each tier is.
const NOTE: &str = "push.json";
/// How often it is looked whether there is something to bring, or whether a tier that failed takes it now.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// The same, at most, of one that fails again and again.
pub(super) const LOOK_LATER: Duration = Duration::from_secs(30);
/// Bytes of memory for the forms in which large contents were brought: some 30,000 of a megabyte each, or 1 TiB of few.
const FORMS: usize = 4 << 20;
/// How long a call may take that brings one object, however large; with a limit, as much longer as that makes it.
const CALL: Duration = Duration::from_secs(3600);
/// How long a call may take that only asks what is there.
const ANSWER: Duration = Duration::from_secs(60);
/// How long the object may take that shows an entry, with its tree.
const SHOW: Duration = Duration::from_secs(600);

/// How far entries are on their way to a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PushFacts {
    /// Entries that are still to be looked at.
    pub waiting: u64,
    /// Entries that this process has brought.
    pub brought: u64,
    /// Bytes of content that it has sent.
    #[serde(default)]
    pub sent: u64,
}

/// The row id up to which all entries went, by tier.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    /// The index's: a new one counts anew.
    epoch: u32,
    tiers: BTreeMap<String, i64>,
}

/// Whether what an entry has may be read another time, as far as anybody knows. What is damaged, or what no tier has or
/// has right, does not come back.
fn passes(e: &CacheError) -> bool {
    match e {
        CacheError::Tier(e) => !e.is_absent() && e.kind != TierErrorKind::Corrupt,
        CacheError::Store(e) => !e.is_damage() && !matches!(e, StoreError::Elsewhere { .. }),
        CacheError::Index(_) | CacheError::Io { .. } => true,
        _ => false,
    }
}

/// How far it is.
#[derive(Default)]
pub(super) struct Push {
    progress: Mutex<Option<Progress>>,
    /// By tier: up to where entries went or were set aside, and how many were.
    ahead: Mutex<BTreeMap<String, (i64, u64)>>,
    forms: Forms,
}

/// In what form large contents were brought last, so that what others share with them is not compressed to find that out.
struct Forms(Mutex<(LruCache<BlobHash, Form>, usize)>);

impl Default for Forms {
    fn default() -> Self {
        Forms(Mutex::new((LruCache::unbounded(), 0)))
    }
}

impl Forms {
    fn get(&self, hash: &BlobHash) -> Option<Form> {
        self.0.lock().0.get(hash).cloned()
    }

    fn put(&self, hash: BlobHash, form: &Form) {
        let (forms, bytes) = &mut *self.0.lock();
        *bytes += form.memory();
        *bytes -= forms.put(hash, form.clone()).map_or(0, |old| old.memory());
        while *bytes > FORMS
            && let Some((_, old)) = forms.pop_lru()
        {
            *bytes -= old.memory();
        }
    }
}

/// What became of an entry.
enum Brought {
    Yes,
    /// It is not to be brought, or cannot be read.
    No,
    /// It failed, and others need not.
    Later(String),
}

/// The contents of an entry, one after another, from another tier where they are not here.
struct Contents<'a> {
    entry: &'a Entry,
    /// Where another tier has them.
    places: Option<Places>,
    /// Waits; false when it is over.
    wait: &'a (dyn Fn(Duration) -> bool + Sync),
    /// What went wrong with reading: not the doing of the tier that was given it, whatever that says.
    failed: Mutex<Option<CacheError>>,
    /// Other names that were found.
    found: Mutex<Vec<(BlobHash, BlobHash)>>,
}

struct Content<'a> {
    of: &'a Contents<'a>,
    record: u32,
    at: u64,
}

impl Contents<'_> {
    fn forms(&self) -> &Forms {
        &self.entry.cache().inner.push.forms
    }
}

impl Source for Contents<'_> {
    fn open(&self, record: u32) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(Content { of: self, record, at: 0 }))
    }

    fn made(&self, hash: &BlobHash) -> Option<Form> {
        self.forms().get(hash)
    }

    fn elsewhere(&self, hash: &BlobHash) -> Option<Form> {
        self.places.as_ref()?.form(hash)
    }

    fn note_made(&self, hash: &BlobHash, form: &Form) {
        self.forms().put(*hash, form);
    }

    fn other_name(&self, hash: &BlobHash, record: u32, naming: DigestKind) -> io::Result<BlobHash> {
        if let Some(known) = self.entry.known_digest(hash) {
            return Ok(known);
        }
        let other = tier::name_of(&mut *self.open(record)?, naming)?;
        self.found.lock().push((*hash, other));
        Ok(other)
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // To hash or compress one takes time as well.
        if !(self.of.wait)(Duration::ZERO) {
            return Err(over());
        }
        let n = self.of.entry.read(self.record, self.at, buf).map_err(|e| {
            let told = io::Error::other(e.to_string());
            *self.of.failed.lock() = Some(e);
            told
        })?;
        self.at += n as u64;
        Ok(n)
    }
}

/// A tier that is brought no more than so many bytes a second, and nothing more once it is over.
struct Paced<'a> {
    tier: &'a Asked,
    limit: Option<u64>,
    /// Waits; false when it is over.
    wait: &'a (dyn Fn(Duration) -> bool + Sync),
    /// Whether the entry is still to be brought: that may take hours.
    wanted: &'a (dyn Fn() -> bool + Sync),
}

/// What an object is made of, read as fast as it may be sent.
struct PacedContent<'a, 'b> {
    paced: &'a Paced<'b>,
    content: &'a mut dyn Read,
}

impl Read for PacedContent<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(limit) = self.paced.limit else {
            let n = self.content.read(buf)?;
            self.paced.tier.sent(n as u64);
            return if (self.paced.wait)(Duration::ZERO) { Ok(n) } else { Err(over()) };
        };
        // A tenth of a second's worth at a time.
        let most = (limit / 10).clamp(1, 1 << 20).min(buf.len() as u64) as usize;
        let n = self.content.read(&mut buf[..most])?;
        self.paced.tier.sent(n as u64);
        let until = Instant::now() + Duration::from_secs_f64(n as f64 / limit as f64);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if !(self.paced.wait)(left) {
                return Err(over());
            }
            if left.is_zero() {
                return Ok(n);
            }
        }
    }
}

fn over() -> io::Error {
    io::Error::other("no more is brought now")
}

impl Paced<'_> {
    /// How many of these contents go in one call: as may be sent in a quarter of a second, and one.
    fn at_once(&self, contents: &[(Object, Vec<u8>)]) -> usize {
        let Some(limit) = self.limit else { return contents.len() };
        let mut bytes = 0;
        let fit = contents.iter().take_while(|(_, content)| {
            bytes += content.len() as u64;
            bytes <= limit / 4
        });
        fit.count().max(1)
    }
}

impl Tier for Paced<'_> {
    fn name(&self) -> &str {
        self.tier.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.tier.capabilities()
    }

    fn naming(&self, by: Instant) -> tier::Result<DigestKind> {
        self.tier.naming(by)
    }

    fn unsuitable(&self, manifest: &Manifest) -> Option<String> {
        self.tier.unsuitable(manifest)
    }

    fn find(&self, key: &EntryKey, by: Instant) -> tier::Result<Tree> {
        self.tier.find(key, by)
    }

    fn get(&self, object: &Object, range: Range<u64>, by: Instant) -> tier::Result<Vec<u8>> {
        self.tier.get(object, range, by)
    }

    fn put(&self, object: &Object, size: u64, content: &mut dyn Read, by: Instant) -> tier::Result<()> {
        let by = by + Duration::from_secs(self.limit.map_or(0, |limit| size / limit.max(1)));
        self.tier.put(object, size, &mut PacedContent { paced: self, content }, by)
    }

    fn get_all(&self, objects: &[Object], by: Instant) -> tier::Result<Vec<tier::Result<Vec<u8>>>> {
        self.tier.get_all(objects, by)
    }

    fn put_all(&self, contents: &[(Object, Vec<u8>)], by: Instant) -> tier::Result<()> {
        let size: u64 = contents.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let by = by + Duration::from_secs(self.limit.map_or(0, |limit| size / limit.max(1)));
        let mut rest = contents;
        while !rest.is_empty() {
            let some;
            (some, rest) = rest.split_at(self.at_once(rest));
            for (object, bytes) in some {
                let mut content = PacedContent { paced: self, content: &mut &bytes[..] };
                // No faster than it may be sent.
                if let Err(e) = io::copy(&mut content, &mut io::sink()) {
                    let kind = TierErrorKind::Transient { after: None };
                    return Err(TierError::new(kind, self.name(), "put", object, e));
                }
            }
            self.tier.put_all(some, by)?;
        }
        Ok(())
    }

    fn missing(&self, objects: &[Object], by: Instant) -> tier::Result<Vec<Object>> {
        self.tier.missing(objects, by.min(Instant::now() + ANSWER))
    }

    fn publish(&self, manifest: &Manifest, places: &Places, by: Instant) -> tier::Result<()> {
        if !(self.wanted)() {
            let (kind, what) = (TierErrorKind::Transient { after: None }, manifest.seal().key.to_string());
            return Err(TierError::new(
                kind,
                self.name(),
                "show",
                what,
                "it was rejected or evicted meanwhile",
            ));
        }
        self.tier.publish(manifest, places, by.min(Instant::now() + SHOW))
    }
}

impl Cache {
    /// The tiers that take entries, by their numbers in order.
    pub fn pushing_tiers(&self) -> Vec<usize> {
        let (tiers, _) = self.inner.tiers.attached();
        (0..tiers.len()).filter(|n| tiers[*n].pushes()).collect()
    }

    /// Brings entries to the tier with this number until `wait`, which waits for so long, says that it is over (false).
    pub fn push(&self, tier: usize, wait: &(dyn Fn(Duration) -> bool + Sync)) {
        let mut later = LOOK;
        let mut queue = None;
        loop {
            let (tiers, options) = self.inner.tiers.attached();
            let Some(tier) = tiers.get(tier) else { return };
            let noted = self.pushed_up_to(tier.name());
            let queue = queue.get_or_insert_with(|| Queue::new(noted));
            queue.follow(noted);
            let rest = match self.push_next(tier, options.push_limit, wait, queue) {
                Ok(more) => {
                    later = LOOK;
                    if more { Duration::ZERO } else { LOOK }
                }
                Err(e) => {
                    tracing::debug!("an entry waits for a tier: {e}");
                    let twice = (later * 2).min(LOOK_LATER);
                    std::mem::replace(&mut later, twice)
                }
            };
            if !wait(rest) {
                return;
            }
        }
    }

    /// Brings the next entry that a tier lacks; false when there is none.
    fn push_next(
        &self,
        tier: &Asked,
        limit: Option<u64>,
        wait: &(dyn Fn(Duration) -> bool + Sync),
        queue: &mut Queue,
    ) -> std::result::Result<bool, Box<dyn std::error::Error>> {
        let next = self.inner.index.entries_after(queue.at(), 1)?.pop();
        let Some(id) = next.as_ref().map(|row| row.id).or_else(|| queue.again(Instant::now())) else {
            return Ok(false);
        };
        let row = match next {
            None => self.inner.index.entry_by_id(id)?,
            row => row,
        };
        match row {
            Some(row) => self.bring_in_turn(tier, &row, (limit, wait), queue)?,
            // It was set aside, and evicted since.
            None => queue.went(id),
        }
        self.inner.push.ahead.lock().insert(tier.name().to_owned(), (queue.at(), queue.aside()));
        if let Some(up_to) = queue.news() {
            self.note_pushed(tier.name(), up_to);
        }
        Ok(true)
    }

    fn bring_in_turn(
        &self,
        tier: &Asked,
        row: &EntryRow,
        (limit, wait): (Option<u64>, &(dyn Fn(Duration) -> bool + Sync)),
        queue: &mut Queue,
    ) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let wanted = || self.goes_up(row).unwrap_or(false) && self.is_there(row);
        match self.bring(&Paced { tier, limit, wait, wanted: &wanted }, row)? {
            Brought::Yes => {
                queue.went(row.id);
                tier.brought();
                tracing::debug!(key = %row.key, "brought to {}", tier.name());
            }
            Brought::No => queue.went(row.id),
            Brought::Later(why) => {
                if queue.set_aside(row.id, Instant::now()) {
                    tracing::warn!(key = %row.key, "an entry is brought to {} later: {why}", tier.name());
                }
            }
        }
        Ok(())
    }

    fn bring(
        &self,
        paced: &Paced<'_>,
        row: &EntryRow,
    ) -> std::result::Result<Brought, Box<dyn std::error::Error>> {
        if !self.goes_up(row)? {
            return Ok(Brought::No);
        }
        // It may have been evicted meanwhile.
        let Some(entry) = self.open_entry(row.clone(), LeaseKind::Hold)? else { return Ok(Brought::No) };
        let manifest = match entry.manifest() {
            Ok(manifest) => manifest,
            Err(e) if passes(&e) => return Ok(Brought::Later(e.to_string())),
            Err(e) => {
                tracing::warn!(key = %row.key, "an entry is not brought to a tier: {e}");
                return Ok(Brought::No);
            }
        };
        let places = self.places_of(&manifest).unwrap_or_else(|e| {
            tracing::warn!(key = %row.key, "where an entry is in another tier is not known: {e}");
            None
        });
        let contents = Contents {
            entry: &entry,
            places,
            wait: paced.wait,
            failed: Mutex::default(),
            found: Mutex::default(),
        };
        let shipped = ship(paced, &manifest, &contents, &|| Instant::now() + CALL);
        self.note_digests(contents.found.into_inner());
        // What ended with everything else says nothing of the entry.
        if let Err(e) = &shipped
            && !(paced.wait)(Duration::ZERO)
        {
            return Err(e.to_string().into());
        }
        let unread = match shipped {
            // By another name it could not be read from there.
            Ok(places) if !places.are_enough() => return Ok(Brought::Yes),
            Ok(places) => {
                self.note_backed(row, &manifest, &places, paced.tier.name())?;
                return Ok(Brought::Yes);
            }
            Err(e) => match (contents.failed.into_inner(), e) {
                (Some(unread), _) if passes(&unread) => return Ok(Brought::Later(unread.to_string())),
                (Some(unread), _) => unread.to_string(),
                // It may be this entry that it does not take.
                (None, ShipError::Tier(e)) if e.kind == TierErrorKind::Permanent => {
                    return Ok(Brought::Later(e.to_string()));
                }
                (None, ShipError::Tier(e)) => return Err(e.into()),
                (None, e) => e.to_string(),
            },
        };
        tracing::warn!(key = %row.key, "an entry is not brought to a tier: {unread}");
        Ok(Brought::No)
    }

    /// The row still stands: it was neither evicted nor replaced.
    fn is_there(&self, row: &EntryRow) -> bool {
        self.inner.index.entry_by_id(row.id).is_ok_and(|now| now.is_some())
    }

    fn goes_up(&self, row: &EntryRow) -> Result<bool> {
        let came = match row.in_tier.backed {
            Backed::Came => true,
            Backed::Brought => false,
            // A row of an older index says nothing, nor do places that were written then.
            Backed::No => self.inner.store.read_places(&row.manifest)?.is_some(),
        };
        let own = !came && row.readable && !row.inferred && SessionId::of_key(&row.key).is_none();
        Ok(own && self.rejection(&row.key, Some(&row.manifest)).is_none())
    }

    fn with_pushed<T>(&self, work: impl FnOnce(&mut Progress) -> T) -> T {
        let mut progress = self.inner.push.progress.lock();
        let epoch = self.inner.index.epoch();
        let progress = progress.get_or_insert_with(|| {
            let read = self.inner.store.read_note(NOTE).ok().flatten();
            read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
        });
        // Lost, or of an index that is no more, it begins anew.
        if progress.epoch != epoch {
            *progress = Progress { epoch, tiers: BTreeMap::new() };
            self.inner.push.ahead.lock().clear();
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
        let noted = self.pushed_up_to(tier.name());
        let ahead = self.inner.push.ahead.lock().get(tier.name()).copied().filter(|(at, _)| *at >= noted);
        let (at, aside) = ahead.unwrap_or((noted, 0));
        let waiting = self.inner.index.count_after(at)? + aside;
        Ok(PushFacts { waiting, brought: tier.brought_so_far(), sent: tier.sent_so_far() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::{Fixture, bytes};
    use super::*;
    use crate::tier::MemoryTier;

    #[test]
    fn small_contents_go_no_faster_together() {
        const LIMIT: u64 = 10_000_000;
        let memory = Arc::new(MemoryTier::new("memory", Capabilities { push: true, packs: false }));
        let tier = Asked::new(memory.clone());
        let contents: Vec<(Object, Vec<u8>)> = (0..40u8)
            .map(|n| vec![n; 100_000])
            .map(|bytes| (Object::Blob(BlobHash::of(&bytes), bytes.len() as u64), bytes))
            .collect();
        let wait = |most: Duration| {
            let waited_for = tier.sent_so_far() - memory.traffic().taken;
            assert!(waited_for <= LIMIT / 4, "{waited_for} bytes go at once");
            std::thread::sleep(most);
            true
        };
        let begun = Instant::now();
        let soon = || Instant::now() + Duration::from_secs(60);
        let paced = Paced { tier: &tier, limit: Some(LIMIT), wait: &wait, wanted: &|| true };
        paced.put_all(&contents, soon()).unwrap();
        assert_eq!(memory.traffic().taken, 4_000_000);
        assert!(begun.elapsed() >= Duration::from_millis(400));
        // One that is larger than that goes alone, and without a limit all go at once.
        let slow = Paced { limit: Some(1000), ..paced };
        assert_eq!(slow.at_once(&contents), 1);
        assert_eq!(Paced { limit: None, ..slow }.at_once(&contents), 40);
    }

    /// What was hashed for one tier, or for one entry that has it, is not read again for another.
    #[test]
    fn a_name_that_was_found_is_not_looked_for_again() {
        let f = Fixture::new();
        let dir = f.beside("dir");
        std::fs::create_dir(&dir).unwrap();
        let content = bytes(300_000, 1);
        std::fs::write(dir.join("f"), &content).unwrap();
        let entry = f.put("abcd", &dir).unwrap().into_entry();
        let record = entry.file(b"outputs/f").unwrap();
        let hash = BlobHash::of(&content);
        let (failed, found) = Default::default();
        let contents = Contents { entry: &entry, places: None, wait: &|_| true, failed, found };
        let name = || contents.other_name(&hash, record, DigestKind::Sha256).unwrap();
        assert_eq!((name(), entry.sha256(record).unwrap()), (BlobHash::sha256_of(&content), None));
        // One that it does not have says that it is believed.
        f.cache.note_digests(vec![(hash, BlobHash([7; 32]))]);
        assert_eq!((name(), entry.sha256(record).unwrap()), (BlobHash([7; 32]), Some(BlobHash([7; 32]))));
        assert_eq!(contents.found.lock().len(), 1);
    }
}
