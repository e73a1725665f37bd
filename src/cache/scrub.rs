//! The scrub: goes through all that is stored, again and again, and finds rot that nobody has read yet.
//!
//! A round is made each [`Limits::scrub`](super::Limits), in a thread of its own that gives way to everything else: it
//! reads at a bounded speed, and pauses while others are at work. Loose blobs come first, in the order of their
//! hashes, then packs, then manifests; what is reached is written down now and then, so that a round goes on
//! where the last owner left it. What is bad is treated as if a reader had come upon it: an event names
//! the entries, a damaged file is set aside, and whoever reads it gets an error.
//! Invariant: nothing is held between two pieces. Must not know: threads, their priority.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::fsck::{Check, FsckOptions};
use super::here::now_ns;
use super::verify::PackFound;
use super::{Cache, CacheError, Result, at};
use crate::index::{BlobRow, EntryRow};
use crate::model::units::counted;
use crate::model::{BlobHash, Manifest};
use crate::store::{Location, PackId, StoreError};

/// Where it is written down how far it is.
const NOTE: &str = "scrub.json";
/// How often that is done.
const NOTE_EVERY: Duration = Duration::from_secs(30);
/// Bytes a second.
const SPEED: u64 = 32 << 20;
/// Bytes after which it looks at the clock, and whether others are at work.
const PIECE: u64 = 4 << 20;
/// While others are at work it looks so often whether they still are, and at least so long is between two rounds.
const LOOK: Duration = Duration::from_secs(1);
/// After so many looks it reads one more piece all the same.
const LOOKS: u32 = 10;
/// Without anything to do it looks so often whether a round is due.
const IDLE: Duration = Duration::from_secs(60);
/// Rows read from the index at a time, and what reading them costs.
const PAGE: usize = 500;
const PAGE_COST: u64 = 64 << 10;
/// Entries that are named in an event each, of those that need one bad blob.
const NAMED: usize = 100;

/// What it reads next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Place {
    /// Loose blobs after this one.
    Blobs(Option<BlobHash>),
    /// Packs after this one.
    Packs(u64),
    /// Manifests of entries after this row.
    Manifests(i64),
}

/// How far it is, as it is written down.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
struct Progress {
    /// When the last round began, or the store was first seen; nanoseconds since 1970.
    began_ns: i64,
    /// When a round last came to its end; 0 when none did.
    finished_ns: i64,
    /// Where it is in a round.
    place: Option<Place>,
    /// Bytes read in this round.
    read: u64,
    /// What was found damaged in this round, or in the last when none goes on.
    found: u64,
}

/// What is known of the scrub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ScrubFacts {
    /// A round is being made, now or as soon as a daemon runs.
    pub running: bool,
    /// Bytes that this round has verified.
    pub verified_bytes: u64,
    /// Bytes there are.
    pub total_bytes: u64,
    /// Damage found in this round, or in the last one when none is being made.
    pub found: u64,
    /// When the last whole round ended, nanoseconds since 1970; 0 when there was none.
    pub finished_at_ns: i64,
}

/// The scrub of a cache.
#[derive(Default)]
pub(super) struct Scrub {
    /// Read from the store when it is asked for first.
    progress: Mutex<Option<Progress>>,
}

/// Waits for so long, or shorter; false when the scrub is to end.
type Wait<'a> = dyn FnMut(Duration) -> bool + 'a;

/// Why a piece of a round ended early.
enum Pause {
    /// The scrub is to end.
    Over,
    /// Something could not be looked at.
    Failed(CacheError),
}

impl<E: Into<CacheError>> From<E> for Pause {
    fn from(e: E) -> Self {
        Pause::Failed(e.into())
    }
}

/// Gives way to others while content is read.
struct Pace<'a, 'b> {
    cache: &'a Cache,
    wait: &'a mut Wait<'b>,
    begun: Instant,
    /// Bytes since then.
    bytes: u64,
    seen: Activity,
}

/// What changes when others are at work.
type Activity = (u64, Option<u64>, i64);

impl Pace<'_, '_> {
    /// So much was read. False when the scrub is to end.
    fn read(&mut self, bytes: u64) -> bool {
        self.bytes += bytes;
        if self.bytes < PIECE {
            return true;
        }
        let due = Duration::from_secs_f64(self.bytes as f64 / SPEED as f64);
        let mut on = (self.wait)(due.saturating_sub(self.begun.elapsed()));
        let mut looks = 0;
        while on && self.others_work() && looks < LOOKS {
            on = (self.wait)(LOOK);
            looks += 1;
        }
        (self.begun, self.bytes) = (Instant::now(), 0);
        on
    }

    fn others_work(&mut self) -> bool {
        let now = self.cache.activity();
        std::mem::replace(&mut self.seen, now) != now
    }
}

impl Cache {
    /// Scrubs until `wait` says false. It is called with the time to wait for, whenever there is nothing to be done
    /// or others are to come first.
    pub fn scrub(&self, wait: &mut dyn FnMut(Duration) -> bool) {
        let mut last_note = Instant::now();
        loop {
            let due = self.scrub_due();
            if due > Duration::ZERO {
                if !wait(due.min(IDLE)) {
                    break;
                }
                continue;
            }
            let mut pace = Pace {
                cache: self,
                wait: &mut *wait,
                begun: Instant::now(),
                bytes: 0,
                seen: self.activity(),
            };
            let on = loop {
                match self.scrub_page(&mut pace) {
                    Ok(true) => {}
                    Ok(false) => break (pace.wait)(LOOK),
                    Err(Pause::Over) => break false,
                    Err(Pause::Failed(e)) => {
                        tracing::warn!("the scrub cannot go on for now: {e}");
                        break (pace.wait)(IDLE);
                    }
                }
                if last_note.elapsed() >= NOTE_EVERY {
                    last_note = Instant::now();
                    self.note_progress();
                }
            };
            self.note_progress();
            if !on {
                break;
            }
        }
    }

    /// What is known of it.
    pub(super) fn scrub_facts(&self, usage: &super::Usage) -> ScrubFacts {
        self.with_progress(|p| ScrubFacts {
            running: p.place.is_some(),
            verified_bytes: p.read,
            total_bytes: usage.used.saturating_sub(usage.drafts),
            found: p.found,
            finished_at_ns: p.finished_ns,
        })
    }

    fn with_progress<T>(&self, work: impl FnOnce(&mut Progress) -> T) -> T {
        let mut progress = self.inner.scrub.progress.lock();
        work(progress.get_or_insert_with(|| {
            // Lost or damaged, it begins anew: one period from now.
            let read = self.inner.store.read_note(NOTE).ok().flatten();
            let noted = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            noted.unwrap_or_else(|| Progress { began_ns: now_ns(), ..Progress::default() })
        }))
    }

    fn note_progress(&self) {
        let bytes = self.with_progress(|p| serde_json::to_vec(p));
        let noted = bytes.map_err(std::io::Error::other).map(|b| self.inner.store.write_note(NOTE, &b));
        if let Ok(Err(e)) = noted {
            tracing::debug!("how far the scrub is cannot be written down: {e}");
        }
    }

    /// How long until there is something to do.
    fn scrub_due(&self) -> Duration {
        let period = self.inner.limits.read().scrub;
        if period.is_zero() {
            return Duration::MAX;
        }
        self.with_progress(|p| {
            let now = now_ns();
            // A clock that was set back must not put it off for years.
            p.began_ns = p.began_ns.min(now);
            let due = period.saturating_sub(Duration::from_nanos((now - p.began_ns) as u64));
            if p.place.is_none() && due.is_zero() {
                *p = Progress { began_ns: now, finished_ns: p.finished_ns, ..Progress::default() };
                p.place = Some(Place::Blobs(None));
                tracing::debug!("a scrub begins");
            }
            if p.place.is_some() { Duration::ZERO } else { due }
        })
    }

    /// Something that differs when there was work in between. (What a kernel reads by itself is not seen.)
    fn activity(&self) -> Activity {
        let changed = self.drafts().iter().map(|d| d.last_change()).max().unwrap_or(0);
        let read = self.inner.blob_bytes_read.load(std::sync::atomic::Ordering::Relaxed);
        (read, self.inner.index.changes(), changed)
    }

    /// The next page of what is to be looked at; false after the last.
    fn scrub_page(&self, pace: &mut Pace<'_, '_>) -> std::result::Result<bool, Pause> {
        let Some(place) = self.with_progress(|p| p.place) else { return Ok(false) };
        let index = &self.inner.index;
        match place {
            Place::Blobs(after) => {
                let page = index.blobs_after(after.as_ref(), PAGE)?;
                for row in &page {
                    if row.location == Location::Loose {
                        self.scrub_blob(row, pace)?;
                    }
                    self.reached(Place::Blobs(Some(row.hash)));
                }
                self.turn_page(page.is_empty(), Some(Place::Packs(0)));
            }
            Place::Packs(after) => {
                let page = index.packs_after(PackId(after), PAGE)?;
                for pack in &page {
                    self.scrub_pack(pack.id, pace)?;
                    self.reached(Place::Packs(pack.id.0));
                }
                self.turn_page(page.is_empty(), Some(Place::Manifests(0)));
            }
            Place::Manifests(after) => {
                let page = index.entries_after(after, PAGE)?;
                for row in &page {
                    self.scrub_manifest(row, pace)?;
                    self.reached(Place::Manifests(row.id));
                }
                self.turn_page(page.is_empty(), None);
            }
        }
        if pace.read(PAGE_COST) { Ok(true) } else { Err(Pause::Over) }
    }

    fn reached(&self, place: Place) {
        self.with_progress(|p| p.place = Some(place));
    }

    /// After an empty page comes the next kind, or the end of the round.
    fn turn_page(&self, empty: bool, next: Option<Place>) {
        if !empty {
            return;
        }
        self.with_progress(|p| {
            p.place = next;
            if next.is_none() {
                p.finished_ns = now_ns();
                tracing::info!(bytes = p.read, found = p.found, "all that is stored was verified");
            }
        });
    }

    fn verified(&self, bytes: u64) {
        self.with_progress(|p| p.read += bytes);
    }

    fn found(&self) {
        self.with_progress(|p| p.found += 1);
    }

    fn scrub_blob(&self, row: &BlobRow, pace: &mut Pace<'_, '_>) -> std::result::Result<(), Pause> {
        let mut since = 0;
        let mut gone = false;
        let result = self.inner.store.verify_blob(
            &row.hash,
            row.size,
            Some(&mut |n| {
                self.verified(n);
                since += n;
                // The space of one that was evicted must not wait for us.
                if since >= PIECE {
                    since = 0;
                    gone = !self.is_still_there(row).unwrap_or(true);
                }
                !gone && pace.read(n)
            }),
        );
        match result {
            Ok(None) if !gone => Err(Pause::Over),
            Ok(_) => Ok(()),
            Err(e) => Ok(self.scrub_found(row, &e)?),
        }
    }

    fn scrub_pack(&self, id: PackId, pace: &mut Pace<'_, '_>) -> std::result::Result<(), Pause> {
        let mut since = 0;
        let mut gone = false;
        let result = self.verify_pack(id, true, &mut |n| {
            self.verified(n);
            since += n;
            if since >= PIECE {
                since = 0;
                gone = matches!(self.inner.index.pack(id), Ok(None));
            }
            !gone && pace.read(n)
        });
        let PackFound { lost, damage } = match result {
            Ok(Some(found)) => found,
            Ok(None) if gone => return Ok(()),
            Ok(None) => return Err(Pause::Over),
            Err(e) => return Ok(self.scrub_failed(&format!("the pack {:016x}", id.0), e)?),
        };
        if let Some(e) = damage.filter(|_| lost.is_empty()) {
            // Nothing that an entry needs: headers, or what nobody refers to.
            tracing::warn!("the scrub found damage that no entry suffers from: {e}");
        }
        for (row, e) in lost {
            self.scrub_found(&row, &e)?;
        }
        Ok(())
    }

    fn scrub_manifest(&self, row: &EntryRow, pace: &mut Pace<'_, '_>) -> std::result::Result<(), Pause> {
        let bytes = match self.inner.store.read_manifest(&row.manifest) {
            Ok(manifest) => manifest.as_bytes().len() as u64,
            Err(e) if e.is_damage() => {
                let now = self.inner.index.entry(&row.key)?;
                // Otherwise it was evicted meanwhile.
                if now.is_some_and(|now| now.manifest == row.manifest) && self.bad_manifest(row, &e)? {
                    self.found();
                }
                0
            }
            Err(e) => {
                self.scrub_failed(&format!("the manifest of {}", row.key), e.into())?;
                0
            }
        };
        self.verified(bytes);
        if pace.read(bytes) { Ok(()) } else { Err(Pause::Over) }
    }

    /// A blob could not be verified.
    fn scrub_found(&self, row: &BlobRow, error: &StoreError) -> Result<()> {
        if !error.is_damage() {
            tracing::warn!("the scrub passes over what it cannot read now: {error}");
            return Ok(());
        }
        let still = || match row.location {
            Location::Loose => {
                self.inner.store.verify_blob(&row.hash, row.size, Some(&mut |_| true)).is_err()
            }
            Location::Pack { .. } => self.verify_packed(row).is_err(),
            Location::Elsewhere => false,
        };
        if !self.is_still_there(row)? || !self.bad_blob(row, error, still)? {
            return Ok(());
        }
        self.found();
        self.tell_sufferers(&row.hash, error)
    }

    /// What cannot be read for a reason of the system's is looked at again in the next round.
    fn scrub_failed(&self, what: &str, error: CacheError) -> Result<()> {
        match &error {
            CacheError::Store(e) => {
                tracing::warn!("the scrub passes over {what}, which it cannot read now: {e}");
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// An event for each entry that needs this blob.
    fn tell_sufferers(&self, hash: &BlobHash, error: &StoreError) -> Result<()> {
        let mut nobody_asks = |_| {};
        let mut check = Check::new(self, FsckOptions::default(), &mut nobody_asks);
        check.bad_blobs.insert(*hash, Default::default());
        let suffering = check.suffering()?;
        for (row, manifest) in suffering.iter().take(NAMED) {
            self.report_damage(Some(&row.key), &format!("{}: {error}", path_in(manifest, hash)));
        }
        let more = suffering.len().saturating_sub(NAMED) as u64;
        if suffering.is_empty() || more > 0 {
            self.report_damage(None, &format!("{error} ({})", counted(more, "more entry", "more entries")));
        }
        Ok(())
    }
}

/// The first path in an entry that has this content.
fn path_in(manifest: &Manifest, hash: &BlobHash) -> String {
    let record = manifest.records().iter().position(|r| r.hash().as_ref() == Some(hash));
    record.map_or_else(|| hash.to_string(), |r| at::show(&manifest.path(r as u32)))
}
