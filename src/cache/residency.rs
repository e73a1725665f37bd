//! Residency: what a tier has need not be here.
//!
//! Invariants: only an entry with places, which say where its contents are in a tier, gives up bytes, and only those of
//! contents that all their entries can read from tiers; it stays visible, and who reads it fetches them again. Nothing that
//! somebody reserves goes. Must not know: which entries are to give up bytes, and when.

use serde::{Deserialize, Serialize};

use super::evict::Outcome;
use super::here::now_ns;
use super::{Cache, Result};
use crate::index::{EntryRow, occupied};
use crate::model::{BlobHash, EventKind, Manifest};
use crate::store::Location;
use crate::tier::{Place, Places};

/// How much of an entry is on this disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    /// All of it.
    #[default]
    Local,
    /// Some of it.
    Partial,
    /// Nothing but what it takes to show it.
    Remote,
}

impl std::fmt::Display for Residency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Residency::Local => "local",
            Residency::Partial => "partial",
            Residency::Remote => "remote",
        })
    }
}

impl Residency {
    /// With so many bytes here, and so many elsewhere.
    pub fn of(here: u64, elsewhere: u64) -> Residency {
        match (here, elsewhere) {
            (_, 0) => Residency::Local,
            (0, _) => Residency::Remote,
            _ => Residency::Partial,
        }
    }
}

impl Cache {
    /// How much of an entry is on this disk.
    pub fn residency(&self, row: &EntryRow) -> Result<Residency> {
        if !row.in_tier.is_backed() {
            return Ok(Residency::Local);
        }
        let manifest = self.inner.store.read_manifest(&row.manifest)?;
        let carried = manifest.find(b"metadata.json").and_then(|r| manifest.get(r)?.hash());
        let blobs: Vec<BlobHash> = manifest
            .blobs()
            .into_iter()
            .map(|(hash, ..)| hash)
            .filter(|hash| Some(*hash) != carried)
            .collect();
        let (mut here, mut elsewhere) = (0, 0);
        for row in self.inner.index.blobs(&blobs)?.into_iter().flatten() {
            let part =
                if row.location == Location::Elsewhere { self.partial_bytes(&row.hash) } else { row.size };
            here += part;
            elsewhere += row.size.saturating_sub(part);
        }
        Ok(Residency::of(here, elsewhere))
    }

    /// A tier was brought an entry, whose contents are at these places there.
    pub(super) fn note_backed(
        &self,
        row: &EntryRow,
        manifest: &Manifest,
        places: &Places,
        tier: &str,
    ) -> Result<()> {
        let blobs: Vec<BlobHash> = manifest.blobs().into_iter().map(|(hash, ..)| hash).collect();
        let _alone = self.inner.manifests.enter(&row.manifest);
        // Places beside a manifest that is gone would stay for ever.
        let current = self.inner.index.entry_by_id(row.id)?;
        if current.is_none_or(|now| now.manifest != row.manifest || now.in_tier.is_backed()) {
            return Ok(());
        }
        let bytes = occupied(self.write_places_brought(places)? as u64);
        self.inner.index.back_entry(row.id, &row.manifest, tier, blobs, bytes)?;
        Ok(())
    }

    /// Whether this entry may give up its bytes: a tier that is asked has it, and some may be here.
    pub(super) fn may_let_go(&self, row: &EntryRow) -> bool {
        let asked = |name: &str| self.inner.tiers.attached().0.iter().any(|tier| tier.is_called(name));
        row.in_tier.is_backed() && row.accessed_at_ns > row.in_tier.dropped_at_ns && asked(&row.in_tier.tier)
    }

    /// Has an entry that nobody holds give up its bytes; `None` when it cannot. Who comes to hold it meanwhile reads
    /// from the tier.
    pub(super) fn let_go_of_bytes(&self, row: &EntryRow, why: &str) -> Result<Option<Outcome>> {
        let manifest = self.inner.store.read_manifest(&row.manifest)?;
        let Some(places) = self.places_of(&manifest)? else { return Ok(None) };
        let kept = |place: &Place| matches!(place, Place::Carried(_));
        let blobs = places.contents().iter().filter(|(_, size, place)| *size > 0 && !kept(place));
        let claim = self.inner.leases.claim(blobs.map(|(hash, ..)| *hash));
        let freed = self.inner.index.let_go(Some((row.id, now_ns())), claim.hashes().copied().collect())?;
        self.inner.peeks.forget(&row.manifest);
        self.inner.loaded.forget(&row.manifest);
        let outcome = self.delete_freed(&freed);
        drop(claim);
        if outcome.freed + outcome.dead > 0 {
            let tier = row.in_tier.tier.clone();
            self.note(
                EventKind::LetGo { why: why.into(), tier, freed: outcome.freed },
                Some(&row.key),
                false,
            );
        }
        Ok(Some(outcome))
    }

    /// Content that was found damaged or lost here, and that tiers have, is elsewhere from now on. False when none has it.
    pub(super) fn is_elsewhere_instead(&self, hash: &BlobHash) -> Result<bool> {
        let freed = self.inner.index.let_go(None, vec![*hash])?;
        // What a loose blob was is in quarantine by now, if it was there at all.
        for (pack, _) in &freed.packs {
            self.inner.store.remove_pack(*pack)?;
        }
        Ok(self.inner.index.blob(hash)?.is_some_and(|row| row.location == Location::Elsewhere))
    }
}
