//! An entry that a tier has becomes one of the store: its tree at once, its contents when they are read.
//!
//! Invariants: what a tier says is believed only as far as hashes say the same; contents that the store has are used where
//! they lie, and reserved meanwhile, all others are elsewhere; manifest and places are durable before the index knows
//! the entry; what is sealed here already stays. Must not know: when and why a tier is asked.

use std::collections::{HashMap, HashSet};

use super::here::now_ns;
use super::stash::{NewPack, Stash};
use super::usage::metadata_bytes;
use super::{Cache, Result};
use crate::index::{Backed, Commit, EntryRow, InTier, NewEntry};
use crate::model::manifest::Content;
use crate::model::{BlobHash, EventKind, Manifest};
use crate::store::{Hashed, Location, StoreError, parts_of};
use crate::tier::{Places, TierError, TierErrorKind, Tree};

/// Before places of an entry that was sealed here and brought to a tier.
const BROUGHT: &[u8] = b"OUTFSBR1";
/// Bytes that a content may have, and all contents of an entry together, of what a tier says.
const MOST_CONTENT: u64 = 1 << 40;
const MOST_ENTRY: u64 = 1 << 50;

impl Cache {
    /// Makes an entry of what a tier has, unless there is one under its key: durable when it returns. True when it was made.
    pub fn adopt(&self, tier: &str, tree: &Tree) -> Result<bool> {
        self.or_sweep(self.adopt_tree(tier, tree))
    }

    fn adopt_tree(&self, tier: &str, tree: &Tree) -> Result<bool> {
        let manifest = &tree.manifest;
        let key = &manifest.seal().key;
        let _turn = self.inner.sealing.enter(key);
        if self.inner.index.entry(key)?.is_some() {
            return Ok(false);
        }
        let metadata = metadata_bytes(manifest, tree.places.encoded_len());
        self.make_room(metadata)?;
        let stash = Stash::new(self);
        let blobs = self.contents_here(tier, tree, &stash)?;
        let at: HashMap<BlobHash, Location> = blobs.iter().map(|(hash, _, at)| (*hash, *at)).collect();
        let table: Vec<_> = manifest.records().iter().map(|r| at.get(&r.hash()?).copied()).collect();
        let facts = self.metadata_of(manifest, &blobs, &mut Vec::new())?;

        let _alone = self.inner.manifests.enter(&manifest.hash());
        let store = &self.inner.store;
        store.write_manifest(manifest.as_bytes())?;
        store.write_places(&manifest.hash(), &tree.places.encode())?;
        store.write_locations(&manifest.hash(), &table, &parts_of(manifest))?;
        let now = now_ns();
        let row = EntryRow {
            id: 0,
            key: key.clone(),
            manifest: manifest.hash(),
            task_id: facts.as_ref().map(|m| m.task_id.clone()).unwrap_or_default(),
            sealed_at_ns: manifest.seal().sealed_at_ns,
            accessed_at_ns: now,
            logical_bytes: manifest.logical_bytes(),
            files: manifest.files(),
            metadata_bytes: metadata,
            inferred: manifest.seal().inferred,
            readable: facts.is_some(),
            top: Some(manifest.top()),
            // None of its bytes came with it.
            in_tier: InTier { backed: Backed::Came, tier: tier.to_owned(), dropped_at_ns: now },
        };
        let hashes: HashSet<BlobHash> = at.into_keys().collect();
        let packs = stash.packs_of(blobs.iter().map(|(_, _, at)| *at));
        let healed = self.healed(&stash, &blobs);
        let new = NewEntry { row, blobs, packs: packs.clone(), replaces: None, healed: healed.clone() };
        // Nobody else seals this key now.
        if let Commit::Taken(_) = self.inner.index.commit(new)? {
            return Ok(false);
        }
        stash.committed(self, &hashes, &packs);
        self.unmark_damaged(&healed);
        self.keep_loaded(manifest.clone(), table);
        let (bytes, files) = (manifest.logical_bytes(), manifest.files());
        let found = EventKind::Found { manifest: manifest.hash(), tier: tier.to_owned(), bytes, files };
        self.note(found, Some(key), false);
        self.holders().iter().for_each(|h| h.changed(key));
        Ok(true)
    }

    /// Where each content lies: here, where the store has it or it came along with the tree; or elsewhere.
    fn contents_here(
        &self,
        tier: &str,
        tree: &Tree,
        stash: &Stash,
    ) -> Result<Vec<(BlobHash, u64, Location)>> {
        let lies = |what: BlobHash, why: &str| {
            let key = &tree.manifest.seal().key;
            TierError::new(TierErrorKind::Corrupt, tier, "use", format!("{key}, content {what}"), why)
        };
        let blobs = tree.manifest.blobs();
        let sizes: HashMap<BlobHash, u64> = blobs.iter().map(|(hash, size, _)| (*hash, *size)).collect();
        // No disk holds more, and sums of such sizes stay numbers.
        if let Some((hash, ..)) = blobs.iter().find(|(_, size, _)| *size > MOST_CONTENT) {
            return Err(lies(*hash, "it is larger than any can be").into());
        }
        // One content may have many names.
        let shown = tree.manifest.records().iter().filter(|r| r.hash().is_some());
        let shown = shown.map(|r| r.size()).try_fold(0u64, u64::checked_add);
        if let Some((hash, ..)) = blobs.first().filter(|_| shown.is_none_or(|all| all > MOST_ENTRY)) {
            return Err(lies(*hash, "all files together are larger than any entry can be").into());
        }
        for r in tree.manifest.records() {
            if let Some(hash) = r.hash().filter(|hash| sizes.get(hash) != Some(&r.size())) {
                return Err(lies(hash, "two files have it with different sizes").into());
            }
        }
        let contents: Vec<Content> = blobs
            .iter()
            .map(|(hash, size, _)| Content { hash: *hash, size: *size, groups: Vec::new() })
            .collect();
        // Reserved from here on.
        stash.have(self, &contents.iter().collect::<Vec<_>>())?;
        let hashes: Vec<BlobHash> = blobs.iter().map(|(hash, _, _)| *hash).collect();
        for ((hash, size, _), row) in blobs.iter().zip(self.inner.index.blobs(&hashes)?) {
            // Content that is here must not be read, and found wanting, by a size that is not its own.
            if row.is_some_and(|row| row.size != *size) {
                return Err(lies(*hash, "it is known here with another size").into());
            }
        }
        let mut carried = Vec::new();
        for (hash, ..) in blobs.iter().filter(|(hash, ..)| stash.location(hash).is_none()) {
            let Some(bytes) = tree.places.carried(hash) else { continue };
            let content = Hashed::of(bytes.to_vec());
            if content.hash() != *hash || sizes.get(hash) != Some(&(bytes.len() as u64)) {
                return Err(lies(*hash, "what is carried along is something else").into());
            }
            carried.push(content);
        }
        let mut pack = NewPack::default();
        stash.put_small(self, &mut pack, &carried)?;
        stash.finish_pack(pack)?;
        let here = |hash: &BlobHash| stash.location(hash).unwrap_or(Location::Elsewhere);
        Ok(blobs.iter().map(|(hash, size, _)| (*hash, *size, here(hash))).collect())
    }

    /// Where in a tier the contents of a manifest are; `None` when no tier is known to have it.
    pub(super) fn places_of(&self, manifest: &Manifest) -> std::result::Result<Option<Places>, StoreError> {
        Ok(self.places_and_how(manifest)?.map(|(places, _)| places))
    }

    /// The same, and how it is known: the entry came from there, or was brought there.
    pub(super) fn places_and_how(
        &self,
        manifest: &Manifest,
    ) -> std::result::Result<Option<(Places, Backed)>, StoreError> {
        let store = &self.inner.store;
        let Some(bytes) = store.read_places(&manifest.hash())? else { return Ok(None) };
        let (bytes, how) = match bytes.strip_prefix(BROUGHT) {
            Some(places) => (places, Backed::Brought),
            None => (&bytes[..], Backed::Came),
        };
        match Places::parse(bytes, manifest) {
            Ok(places) => Ok(Some((places, how))),
            Err(e) => {
                let path = store.places_path(&manifest.hash());
                Err(StoreError::Corrupt { path, line: None, why: e.to_string() })
            }
        }
    }

    /// Writes down where the contents of a manifest are in a tier that it was brought to; how many bytes that takes.
    pub(super) fn write_places_brought(&self, places: &Places) -> std::result::Result<usize, StoreError> {
        let bytes = [BROUGHT, &places.encode()].concat();
        self.inner.store.write_places(&places.manifest(), &bytes)?;
        Ok(bytes.len())
    }
}
