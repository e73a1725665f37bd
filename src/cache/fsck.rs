//! Checking everything against everything: manifests, packs, blobs, index, pins, events, drafts.
//!
//! Invariants: a check changes nothing; it may run while the cache is used (what changed while
//! it was looked at is looked at again, never reported). What the index does not know is an orphan:
//! it costs space and loses nothing, so it is counted and is no damage. What the disk cannot give is damage of that one
//! thing, too, once it was asked twice. Repairs are in `repair`.
//! Must not know: how a report is shown.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::verify::{self, PackFound};
use super::{Cache, Result};
use crate::index::{Backed, BlobRow, EntryRow, IndexError, PackRow};
use crate::model::units::counted;
use crate::model::{BlobHash, EntryKey, Manifest, ManifestHash};
use crate::store::{Location, PackId, StoreError, shards, twice};

/// Rows read from the index at a time.
const PAGE: usize = 1000;
/// How often the counts are taken again while entries come and go.
const TRIES: usize = 3;

/// What a check is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FsckOptions {
    /// Hash all content.
    pub verify_data: bool,
    /// Quarantine what is bad and drop what depends on it; remove orphans.
    pub repair: bool,
    /// Make the index anew from the store first.
    pub rebuild_index: bool,
}

/// How far a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckProgress {
    /// What is being checked.
    pub stage: &'static str,
    /// Of how many, this many are done.
    pub done: u64,
    /// 0 when unknown.
    pub total: u64,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// `index`, `manifest`, `pack`, `blob`, `note` (a pin or rejection), `events`, `draft`.
    pub kind: String,
    /// Where.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
    /// The entries that suffer.
    pub entries: Vec<EntryKey>,
    /// What was done about it; absent when nothing was.
    pub repaired: Option<String>,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FsckReport {
    /// Checked entries.
    pub entries: u64,
    /// Checked blobs.
    pub blobs: u64,
    /// Bytes that were hashed.
    pub verified_bytes: u64,
    /// What is wrong.
    pub damage: Vec<Damage>,
    /// Manifests, packs and blobs that the index does not know; removed by a repair.
    pub orphans: u64,
    /// Entries that a repair has dropped.
    pub lost: Vec<EntryKey>,
    /// The index was made anew.
    pub rebuilt: bool,
    /// What a second check found after a repair.
    pub remaining: Vec<Damage>,
}

impl FsckReport {
    /// Nothing is damaged (any more).
    pub fn is_sound(&self) -> bool {
        self.damage.iter().all(|d| d.repaired.is_some()) && self.remaining.is_empty()
    }
}

/// How many entries have a blob, and how many of these a tier has.
type References = HashMap<BlobHash, (u64, u64)>;

/// Gathers what one check finds.
pub(super) struct Check<'a> {
    pub cache: &'a Cache,
    pub options: FsckOptions,
    pub report: FsckReport,
    pub progress: &'a mut dyn FnMut(FsckProgress),
    /// Blobs that are lost or damaged: why, and the file.
    pub bad_blobs: BTreeMap<BlobHash, (PathBuf, String)>,
    /// Packs that hold a bad blob or are damaged themselves.
    pub bad_packs: BTreeSet<PackId>,
    /// Entries without a readable manifest.
    pub bad_entries: Vec<EntryRow>,
    /// Numbers of references that are wrong, and the right ones: of all entries, and of those that a tier has.
    pub wrong_refs: Vec<(BlobHash, u64, u64)>,
    /// The index contradicts itself or the store.
    pub bad_index: bool,
}

impl Cache {
    /// Checks the store and the index, and repairs them if asked to. Only damage of the system itself
    /// (a disk that cannot be read at all) is an error.
    pub fn fsck(&self, options: FsckOptions, progress: &mut dyn FnMut(FsckProgress)) -> Result<FsckReport> {
        let mut check = Check::new(self, options, progress);
        if options.rebuild_index {
            check.rebuild()?;
        }
        match check.everything() {
            Err(super::CacheError::Index(e)) if e.is_damage() => check.index_damage(&e),
            other => other?,
        }
        if options.repair {
            check.repair()?;
        }
        let mut report = check.report;
        if options.repair && !report.damage.is_empty() {
            // Only what a check of its own does not find any more is repaired.
            let again = FsckOptions { repair: false, rebuild_index: false, ..options };
            report.remaining = self.fsck(again, progress)?.damage;
            // What only making the index anew comes upon, this check would not find again.
            if !report.rebuilt && report.remaining.is_empty() {
                let gone = report.damage.iter_mut().filter(|d| d.repaired.is_none());
                gone.for_each(|d| {
                    d.repaired = Some("gone: the check after the repair did not find it".into())
                });
            }
        }
        Ok(report)
    }
}

impl<'a> Check<'a> {
    pub fn new(cache: &'a Cache, options: FsckOptions, progress: &'a mut dyn FnMut(FsckProgress)) -> Self {
        Check {
            cache,
            options,
            report: FsckReport::default(),
            progress,
            bad_blobs: BTreeMap::new(),
            bad_packs: BTreeSet::new(),
            bad_entries: Vec::new(),
            wrong_refs: Vec::new(),
            bad_index: false,
        }
    }

    fn everything(&mut self) -> Result<()> {
        let _stands = self.cache.index_stands();
        for complaint in self.cache.inner.index.integrity()? {
            self.index_complaint(&complaint);
        }
        if !self.cache.inner.index.is_finished() {
            self.index_complaint("it lacks what could not be read when it was made anew");
        }
        self.entries_and_references()?;
        self.loose_blobs()?;
        self.packs()?;
        self.known_damage()?;
        self.name_sufferers()?;
        self.notes_events_drafts()?;
        self.report.orphans = self.orphans()?.len();
        Ok(())
    }

    pub fn damage(&mut self, kind: &str, path: PathBuf, what: String, entries: Vec<EntryKey>) {
        tracing::warn!(path = %path.display(), "damage found: {what}");
        self.report.damage.push(Damage { kind: kind.into(), path, what, entries, repaired: None });
    }

    fn index_complaint(&mut self, what: &str) {
        self.bad_index = true;
        let path = self.cache.inner.store.path("index.sqlite");
        self.damage("index", path, what.to_owned(), Vec::new());
    }

    fn index_damage(&mut self, e: &IndexError) {
        self.index_complaint(&e.to_string());
    }

    /// Entries, and how often each blob is referred to. Taken again while entries come and go.
    fn entries_and_references(&mut self) -> Result<()> {
        for attempt in 1..=TRIES {
            let before = self.cache.inner.index.changes_at_rest();
            let begin = self.report.damage.len();
            self.bad_entries.clear();
            let wrong = self.references()?;
            if before.is_some() && self.cache.inner.index.changes() == before {
                if !wrong.is_empty() {
                    self.index_complaint(&format!(
                        "{} with a wrong number of references",
                        counted(wrong.len() as u64, "blob", "blobs")
                    ));
                }
                self.wrong_refs = wrong;
                return Ok(());
            }
            if attempt < TRIES {
                self.report.damage.truncate(begin);
                self.bad_index = !self.report.damage.is_empty();
            }
        }
        Ok(())
    }

    /// Only the references: those that are wrong, with the right numbers.
    pub fn references(&mut self) -> Result<Vec<(BlobHash, u64, u64)>> {
        let refs = self.entries()?;
        self.count_references(&refs)
    }

    fn entries(&mut self) -> Result<References> {
        let total = self.cache.inner.index.totals()?.entries;
        let mut refs = HashMap::new();
        let (mut after, mut done) = (0, 0);
        loop {
            let page = self.cache.inner.index.entries_after(after, PAGE)?;
            let Some(last) = page.last() else { break };
            after = last.id;
            for row in page {
                (self.progress)(FsckProgress { stage: "entries", done, total });
                done += 1;
                self.entry(row, &mut refs)?;
            }
        }
        self.report.entries = done;
        Ok(refs)
    }

    fn entry(&mut self, row: EntryRow, refs: &mut References) -> Result<()> {
        let manifest = match twice(|| self.cache.inner.store.read_manifest(&row.manifest)) {
            Ok(m) => m,
            Err(e) if e.is_damage() => {
                // Evicted meanwhile: no damage.
                if self.is_current(&row)? {
                    self.bad_entry(row, path_of(&e), e.to_string());
                }
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        };
        let seal = manifest.seal();
        if seal.key != row.key
            || seal.sealed_at_ns != row.sealed_at_ns
            || manifest.logical_bytes() != row.logical_bytes
            || manifest.files() != row.files
            || row.top.is_some_and(|top| top != manifest.top())
        {
            self.index_complaint(&format!("the entry {} differs from its manifest", row.key));
        }
        self.blobs_of_entry(&row, &manifest, refs)
    }

    fn blobs_of_entry(&mut self, row: &EntryRow, manifest: &Manifest, refs: &mut References) -> Result<()> {
        let blobs = manifest.blobs();
        let hashes: Vec<BlobHash> = blobs.iter().map(|(h, _, _)| *h).collect();
        let rows = self.cache.inner.index.blobs(&hashes)?;
        self.places_of_entry(row, manifest, rows.iter().flatten())?;
        let mut lies = None;
        for ((hash, size, _), known) in blobs.iter().zip(rows) {
            let (all, backed) = refs.entry(*hash).or_default();
            *all += 1;
            *backed += u64::from(row.in_tier.is_backed());
            if known.is_some_and(|k| k.size == *size) || !self.is_current(row)? {
                continue;
            }
            // It was told so by its tier; then the content came otherwise.
            if known.is_some() && row.in_tier.backed == Backed::Came {
                lies = Some(format!("the content {hash} has another size than it says"));
                continue;
            }
            self.index_complaint(&format!("the blob {hash} of the entry {} is not known", row.key));
        }
        if let Some(what) = lies {
            self.bad_entry(row.clone(), self.cache.inner.store.places_path(&row.manifest), what);
        }
        Ok(())
    }

    /// Content that only a tier has is no damage, as long as it is known where it is.
    fn places_of_entry<'r>(
        &mut self,
        row: &EntryRow,
        manifest: &Manifest,
        blobs: impl Iterator<Item = &'r BlobRow>,
    ) -> Result<()> {
        let elsewhere: Vec<BlobHash> =
            blobs.filter(|b| b.location == Location::Elsewhere).map(|b| b.hash).collect();
        if elsewhere.is_empty() {
            return Ok(());
        }
        let what = match twice(|| self.cache.places_of(manifest)) {
            Ok(Some(places)) if elsewhere.iter().all(|hash| places.get(hash).is_some()) => return Ok(()),
            Ok(_) => "where its contents are in a tier is lost".to_owned(),
            Err(e) if e.is_damage() => e.to_string(),
            Err(e) => return Err(e.into()),
        };
        if self.is_current(row)? {
            self.bad_entry(row.clone(), self.cache.inner.store.places_path(&row.manifest), what);
        }
        Ok(())
    }

    /// Nothing of the entry can be had, or is what it says.
    fn bad_entry(&mut self, row: EntryRow, path: PathBuf, what: String) {
        self.damage("manifest", path, what, vec![row.key.clone()]);
        self.bad_entries.push(row);
    }

    fn is_current(&self, row: &EntryRow) -> Result<bool> {
        Ok(self.cache.inner.index.entry(&row.key)?.is_some_and(|now| now.manifest == row.manifest))
    }

    fn count_references(&mut self, refs: &References) -> Result<Vec<(BlobHash, u64, u64)>> {
        let mut wrong = Vec::new();
        let mut done = 0;
        self.each_blob(&mut |_, row| {
            done += 1;
            let (all, backed) = refs.get(&row.hash).copied().unwrap_or_default();
            if (all, backed) != (row.refs, row.backed) {
                wrong.push((row.hash, all, backed));
            }
            Ok(())
        })?;
        self.report.blobs = done;
        Ok(wrong)
    }

    fn each_blob(&mut self, each: &mut dyn FnMut(&mut Self, &BlobRow) -> Result<()>) -> Result<()> {
        let mut after = None;
        loop {
            let page = self.cache.inner.index.blobs_after(after.as_ref(), PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.hash);
            for row in &page {
                each(self, row)?;
            }
        }
    }

    fn loose_blobs(&mut self) -> Result<()> {
        let total = self.cache.inner.index.totals()?.blobs;
        let mut done = 0;
        self.each_blob(&mut |check, row| {
            (check.progress)(FsckProgress { stage: "blobs", done, total });
            done += 1;
            if row.location != Location::Loose {
                return Ok(());
            }
            if let Err(e) = check.loose_blob(row) {
                check.suspect(row, e)?;
            }
            Ok(())
        })
    }

    fn loose_blob(&mut self, row: &BlobRow) -> std::result::Result<(), StoreError> {
        let verified = &mut self.report.verified_bytes;
        let mut reading = |n| {
            *verified += n;
            true
        };
        let contents = self.options.verify_data;
        let store = &self.cache.inner.store;
        twice(|| {
            let reading: Option<&mut verify::Reading<'_>> = if contents { Some(&mut reading) } else { None };
            store.verify_blob(&row.hash, row.size, reading)
        })
        .map(drop)
    }

    /// A blob that cannot be read is bad, unless it went or moved meanwhile.
    fn suspect(&mut self, row: &BlobRow, e: StoreError) -> Result<()> {
        if !e.is_damage() {
            return Err(e.into());
        }
        if self.cache.is_still_there(row)? {
            self.bad_blobs.insert(row.hash, (path_of(&e), e.to_string()));
            if let Location::Pack { pack, .. } = row.location {
                self.bad_packs.insert(pack);
            }
        }
        Ok(())
    }

    fn packs(&mut self) -> Result<()> {
        let (mut after, mut done) = (PackId(0), 0);
        loop {
            let page = self.cache.inner.index.packs_after(after, PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id;
            for pack in page {
                (self.progress)(FsckProgress { stage: "packs", done, total: 0 });
                done += 1;
                self.pack(&pack)?;
            }
        }
    }

    fn pack(&mut self, pack: &PackRow) -> Result<()> {
        let verified = &mut self.report.verified_bytes;
        let found = self.cache.verify_pack(pack.id, self.options.verify_data, &mut |n| {
            *verified += n;
            true
        })?;
        let Some(PackFound { lost, damage }) = found else { return Ok(()) };
        // What is lost is reported blob by blob.
        if let Some(e) = damage.filter(|_| lost.is_empty()) {
            self.bad_packs.insert(pack.id);
            self.damage("pack", path_of(&e), e.to_string(), Vec::new());
        }
        lost.into_iter().try_for_each(|(row, e)| self.suspect(&row, e))
    }

    /// What was found damaged before, and not stored anew since, is looked at whatever else is verified.
    fn known_damage(&mut self) -> Result<()> {
        for (hash, row) in self.cache.damaged_rows()? {
            let Some(row) = row else { continue };
            if row.location == Location::Elsewhere {
                continue;
            }
            match self.cache.verify_here(&row) {
                Err(e) => self.suspect(&row, e)?,
                // A disk that could not read it then can now.
                Ok(()) if self.options.repair => self.cache.unmark_damaged([&hash]),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Finds the entries that have bad blobs, and reports them.
    fn name_sufferers(&mut self) -> Result<()> {
        if self.bad_blobs.is_empty() {
            return Ok(());
        }
        let mut sufferers: HashMap<BlobHash, Vec<EntryKey>> = HashMap::new();
        for (row, manifest) in self.suffering()? {
            for (hash, _, _) in manifest.blobs() {
                if self.bad_blobs.contains_key(&hash) {
                    sufferers.entry(hash).or_default().push(row.key.clone());
                }
            }
        }
        // What a lost pack had is one damage, not thousands.
        let mut causes: BTreeMap<(PathBuf, String), (u64, BTreeSet<EntryKey>)> = BTreeMap::new();
        for (hash, cause) in self.bad_blobs.clone() {
            let (blobs, entries) = causes.entry(cause).or_default();
            *blobs += 1;
            entries.extend(sufferers.remove(&hash).unwrap_or_default());
        }
        for ((path, mut what), (blobs, entries)) in causes {
            if blobs > 1 {
                what.push_str(&format!("; {blobs} blobs are lost"));
            }
            self.damage("blob", path, what, entries.into_iter().collect());
        }
        Ok(())
    }

    /// The entries that refer to bad blobs.
    pub fn suffering(&mut self) -> Result<Vec<(EntryRow, Manifest)>> {
        let mut found = Vec::new();
        let mut after = 0;
        loop {
            let page = self.cache.inner.index.entries_after(after, PAGE)?;
            let Some(last) = page.last() else { return Ok(found) };
            after = last.id;
            for row in page {
                // An unreadable one is a case of its own.
                let Ok(manifest) = self.cache.inner.store.read_manifest(&row.manifest) else { continue };
                if manifest.blobs().iter().any(|(h, _, _)| self.bad_blobs.contains_key(h)) {
                    found.push((row, manifest));
                }
            }
        }
    }

    fn notes_events_drafts(&mut self) -> Result<()> {
        let store = self.cache.inner.store.clone();
        for (kind, result) in [
            ("note", twice(|| store.pins()).map(drop)),
            ("note", twice(|| store.rejections()).map(drop)),
            ("draft", twice(|| store.drafts()).map(drop)),
        ] {
            self.one_file(kind, result)?;
        }
        let mut since = 0;
        loop {
            let page = match twice(|| store.read_events(since, PAGE)) {
                Ok(page) => page,
                Err(e) => return self.one_file("events", Err(e)),
            };
            match page.events.last() {
                Some(last) if page.more => since = last.seq,
                _ => return Ok(()),
            }
        }
    }

    fn one_file(&mut self, kind: &str, result: std::result::Result<(), StoreError>) -> Result<()> {
        match result {
            Err(e) if e.is_damage() => {
                self.damage(kind, path_of(&e), e.to_string(), Vec::new());
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// What the store has and the index does not know, and nobody is about to commit.
    pub fn orphans(&mut self) -> Result<Orphans> {
        let cache = self.cache;
        let (store, index) = (&cache.inner.store, &cache.inner.index);
        let since = cache.inner.upkeep.sweep.lock().since_ns();
        let mut orphans = Orphans::default();
        let Some(_all) = cache.index_knows_all() else { return Ok(orphans) };
        for shard in shards::all() {
            (self.progress)(FsckProgress { stage: "orphans", done: u64::from(shard), total: 256 });
            for name in index.unknown_manifests(&store.manifests_in(Some(shard))?)? {
                let old = store.manifest_changed_at_ns(&name)?.is_some_and(|at| at < since);
                if old && !cache.is_used(&name) {
                    orphans.manifests.push(name);
                }
            }
            let blobs = store.loose_blobs_in(Some(shard))?.into_iter().map(|blob| blob.hash);
            let blobs: Vec<_> = blobs.filter(|h| !cache.inner.leases.is_reserved(h)).collect();
            for (hash, row) in blobs.iter().zip(index.blobs(&blobs)?) {
                if row.is_none_or(|r| r.location != Location::Loose) {
                    orphans.blobs.push(*hash);
                }
            }
        }
        let known = self.known_packs()?;
        for pack in store.pack_ids()?.into_iter().filter(|id| !known.contains(id)) {
            // What this process made may be about to be committed, or what it could not delete, which the next start does.
            if !store.is_own_pack(pack) {
                orphans.packs.push(pack);
            }
        }
        Ok(orphans)
    }

    fn known_packs(&self) -> Result<HashSet<PackId>> {
        let mut known = HashSet::new();
        let mut after = PackId(0);
        loop {
            let page = self.cache.inner.index.packs_after(after, PAGE)?;
            let Some(last) = page.last() else { return Ok(known) };
            after = last.id;
            known.extend(page.iter().map(|p| p.id));
        }
    }
}

/// What the index does not know.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    pub manifests: Vec<ManifestHash>,
    pub blobs: Vec<BlobHash>,
    pub packs: Vec<PackId>,
}

impl Orphans {
    pub fn len(&self) -> u64 {
        (self.manifests.len() + self.blobs.len() + self.packs.len()) as u64
    }
}

/// The path that an error names.
pub(super) fn path_of(e: &StoreError) -> PathBuf {
    match e {
        StoreError::Missing { path, .. }
        | StoreError::Unwritten { path, .. }
        | StoreError::Io { path, .. }
        | StoreError::Corrupt { path, .. }
        | StoreError::Locked { path, .. }
        | StoreError::TooNew { path, .. }
        | StoreError::Unsuitable { path, .. } => path.clone(),
        StoreError::Elsewhere { .. } => PathBuf::new(),
    }
}
