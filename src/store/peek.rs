//! Large manifests of which little is needed: read and verified in parts.
//!
//! Invariants: no byte is given whose part was not hashed against the list beside the location table, and
//! the list against the manifest's name; the memory one takes is bounded. It is a short cut and no judge:
//! whatever is missing or wrong, and whatever goes on too long, is answered with `None`, and the whole
//! manifest is read instead. Slots of the location table are given unverified: content says itself
//! whether it is the right one. Must not know: what a manifest says.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::manifests::{LOC_CHECK, LOC_HEADER, LOC_SLOT, names_table, slot_location, table_name};
use super::{Location, Store, port};
use crate::model::groups::{GroupHash, PART, part_hash, part_hashes, root_of_parts};
use crate::model::manifest::{Peek, Verified};
use crate::model::{Manifest, ManifestHash};

/// Manifests of at least so many bytes have a list of parts; smaller ones are read as fast as a few parts.
const LARGE: usize = 16 * PART;
/// What may be spent on one manifest before it is better read whole (some 60 parts, or 100 look-ups in
/// parts that are there), and what a part costs if taking a few bytes costs 1.
const EFFORT: usize = 2048;
const PART_EFFORT: usize = 32;

/// Part of a manifest and of its location table.
pub(crate) struct Parts {
    manifest: File,
    table: File,
    size: u64,
    values: Vec<GroupHash>,
    read: Vec<OnceLock<Box<[u8]>>>,
    left: AtomicUsize,
}

/// The values of a manifest's parts; none for a small one.
pub(crate) fn parts_of(manifest: &Manifest) -> Vec<GroupHash> {
    let bytes = manifest.as_bytes();
    if bytes.len() < LARGE { Vec::new() } else { part_hashes(bytes) }
}

/// How many of them a manifest of so many bytes has.
pub(super) fn part_count(size: usize) -> usize {
    if size < LARGE { 0 } else { size.div_ceil(PART) }
}

impl Store {
    /// Opens a manifest for looking at single records; `None` when it has to be read whole.
    pub(crate) fn peek_manifest(&self, hash: &ManifestHash) -> Option<Peek<Parts>> {
        let (shard, name) = self.manifest_place(hash).ok()?;
        let manifest = shard.read(&name).ok()??;
        let size = port::stat(manifest.as_fd()).ok()?.st_size as u64;
        let count = part_count(usize::try_from(size).ok()?);
        let table = shard.read(table_name(&name)).ok()??;
        let length = port::stat(table.as_fd()).ok()?.st_size as u64;
        let mut header = [0; LOC_HEADER];
        full(&table, 0, &mut header)?;
        let slots = names_table(&header, hash)?;
        let at = slots.checked_mul(LOC_SLOT as u64)?.checked_add((LOC_HEADER + LOC_CHECK) as u64)?;
        let bytes = count.checked_mul(size_of::<GroupHash>())?;
        if count == 0 || at.checked_add(bytes as u64)? != length {
            return None;
        }
        let mut values = vec![[0; 32]; count];
        full(&table, at, values.as_flattened_mut())?;
        if root_of_parts(&values, size) != Some(hash.0) {
            return None;
        }
        let read = std::iter::repeat_with(OnceLock::new).take(count).collect();
        let left = AtomicUsize::new(EFFORT);
        let peek = Peek::new(Parts { manifest, table, size, values, read, left })?;
        (u64::from(peek.records()) == slots).then_some(peek)
    }
}

impl Parts {
    /// Where the blob of a record lay when the table was written; it may be wrong.
    pub fn location(&self, record: u32) -> Option<Location> {
        let mut slot = [0; LOC_SLOT];
        full(&self.table, LOC_HEADER as u64 + u64::from(record) * LOC_SLOT as u64, &mut slot)?;
        slot_location(&slot)?
    }

    fn spend(&self, effort: usize) -> Option<()> {
        let take = |left: usize| left.checked_sub(effort);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok().then_some(())
    }

    fn part(&self, index: usize) -> Option<&[u8]> {
        let place = self.read.get(index)?;
        if let Some(there) = place.get() {
            return Some(there);
        }
        self.spend(PART_EFFORT)?;
        let at = (index * PART) as u64;
        let mut bytes = vec![0; self.size.checked_sub(at)?.min(PART as u64) as usize];
        full(&self.manifest, at, &mut bytes)?;
        if part_hash(index as u64, &bytes) != *self.values.get(index)? {
            return None;
        }
        Some(place.get_or_init(|| bytes.into()))
    }
}

impl Verified for Parts {
    fn size(&self) -> u64 {
        self.size
    }

    fn fill(&self, mut at: u64, mut to: &mut [u8]) -> Option<()> {
        self.spend(1)?;
        while !to.is_empty() {
            let part = self.part(usize::try_from(at / PART as u64).ok()?)?;
            let from = part.get((at % PART as u64) as usize..)?;
            let n = from.len().min(to.len());
            if n == 0 {
                return None;
            }
            let (now, rest) = to.split_at_mut(n);
            now.copy_from_slice(&from[..n]);
            at += n as u64;
            to = rest;
        }
        Some(())
    }
}

fn full(file: &File, at: u64, to: &mut [u8]) -> Option<()> {
    (port::read_at(file, to, at).ok()? == to.len()).then_some(())
}
