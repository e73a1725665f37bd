//! Manifests, their location tables, and the places of contents that a tier has.
//!
//! Invariants: a manifest's name is the BLAKE3 of its bytes, checked whenever it is read; a
//! location table is a cache: what is wrong with one makes it absent. Places are kept as they are given, as long as
//! the manifest. Must not know: what a manifest or its places say.

use std::ffi::OsStr;
use std::path::PathBuf;

use super::dir::{Dir, Temp};
use super::peek::part_count;
use super::{Location, PackId, Result, Store, StoreError, shards};
use crate::model::groups::GroupHash;
use crate::model::{Manifest, ManifestHash};

const LOC_MAGIC: &[u8; 8] = b"OUTFSLC1";
/// Magic, manifest, number of slots.
pub(super) const LOC_HEADER: usize = 8 + 32 + 8;
pub(super) const LOC_SLOT: usize = 16;
/// The hash of header and slots.
pub(super) const LOC_CHECK: usize = 32;

impl Store {
    /// Writes a manifest durably (temp, fdatasync, rename, directory sync); idempotent.
    pub fn write_manifest(&self, bytes: &[u8]) -> Result<ManifestHash> {
        self.writable()?;
        let hash = ManifestHash::of(bytes);
        let (shard, name) = self.manifest_place(&hash)?;
        // A damaged one of the same name is replaced.
        if shard.read_all(&name)?.is_some_and(|there| there == bytes) {
            shard.sync()?;
        } else {
            shard.write_durably(&self.tmp, &name, bytes)?;
        }
        Ok(hash)
    }

    /// Reads and verifies one.
    pub fn read_manifest(&self, hash: &ManifestHash) -> Result<Manifest> {
        let (shard, name) = self.manifest_place(hash)?;
        let path = shard.path().join(&name);
        let bytes = shard.read_all(&name)?.ok_or_else(|| StoreError::Missing {
            what: format!("the manifest {hash}"),
            path: path.clone(),
        })?;
        let corrupt = |why| StoreError::Corrupt { path: path.clone(), line: None, why };
        let other = || corrupt("its content does not have the hash in its name".into());
        match Manifest::parse_as(bytes, *hash) {
            Ok(manifest) => manifest.ok_or_else(other),
            Err(e) => Err(corrupt(e.to_string())),
        }
    }

    /// Unlinks a manifest and what is beside it, and syncs the directory; a missing one is fine. It goes last: by its
    /// name, what is left after a death is found.
    pub fn remove_manifest(&self, hash: &ManifestHash) -> Result<()> {
        self.writable()?;
        let (shard, name) = self.manifest_place(hash)?;
        shard.unlink(table_name(&name))?;
        shard.unlink(places_name(&name))?;
        shard.unlink(&name)?;
        shard.sync()
    }

    /// Writes, durably, where in a tier the contents of a manifest are.
    pub fn write_places(&self, manifest: &ManifestHash, bytes: &[u8]) -> Result<()> {
        self.writable()?;
        let (shard, name) = self.manifest_place(manifest)?;
        shard.write_durably(&self.tmp, places_name(&name), bytes)
    }

    /// Reads that, unverified; `None` when there is nothing.
    pub fn read_places(&self, manifest: &ManifestHash) -> Result<Option<Vec<u8>>> {
        let (shard, name) = self.manifest_place(manifest)?;
        shard.read_all(places_name(&name))
    }

    /// Where that is, for messages.
    pub fn places_path(&self, manifest: &ManifestHash) -> PathBuf {
        self.manifests.path().join(shards::of(manifest.as_bytes())).join(places_name(&manifest.to_hex()))
    }

    /// All manifest names, in no order.
    pub fn manifests(&self) -> Result<Vec<ManifestHash>> {
        self.manifests_in(None)
    }

    /// The manifest names in one of the 256 directories, or in all.
    pub fn manifests_in(&self, shard: Option<u8>) -> Result<Vec<ManifestHash>> {
        let mut all = Vec::new();
        each_in_shards(&self.manifests, shard, &mut |_, name| {
            all.extend(name.to_str().and_then(|n| n.parse::<ManifestHash>().ok()));
            Ok(())
        })?;
        Ok(all)
    }

    /// When a manifest got its name (its ctime), nanoseconds since 1970; `None` when it is not there.
    pub fn manifest_changed_at_ns(&self, hash: &ManifestHash) -> Result<Option<i64>> {
        let (shard, name) = self.manifest_place(hash)?;
        shard.changed_at_ns(name)
    }

    /// Writes the location table beside a manifest: one slot per record (`None` for what is no
    /// file), and the values of the manifest's parts. Not synced: it can be rebuilt.
    pub fn write_locations(
        &self,
        manifest: &ManifestHash,
        table: &[Option<Location>],
        parts: &[GroupHash],
    ) -> Result<()> {
        self.writable()?;
        let (shard, name) = self.manifest_place(manifest)?;
        let mut temp = Temp::create(&self.tmp)?;
        let mut bytes = encode_table(manifest, table);
        bytes.extend_from_slice(parts.as_flattened());
        temp.write(&bytes)?;
        temp.publish(&shard, OsStr::new(&table_name(&name)), false)
    }

    /// Reads it; `None` when it is missing, damaged or unreadable (it is a cache).
    pub fn read_locations(&self, manifest: &ManifestHash) -> Result<Option<Vec<Option<Location>>>> {
        let (shard, name) = self.manifest_place(manifest)?;
        match shard.read_all(table_name(&name)) {
            Err(e) if e.is_bad_spot() => Ok(None),
            bytes => Ok(bytes?.and_then(|bytes| decode_table(manifest, &bytes))),
        }
    }

    pub(super) fn manifest_place(&self, hash: &ManifestHash) -> Result<(Dir, String)> {
        Ok((self.manifests.sub(shards::of(hash.as_bytes()))?, hash.to_hex()))
    }
}

/// The length of the location table of a manifest.
pub(crate) fn table_bytes(manifest: &Manifest) -> u64 {
    let parts = part_count(manifest.as_bytes().len()) * size_of::<GroupHash>();
    (LOC_HEADER + manifest.records().len() * LOC_SLOT + LOC_CHECK + parts) as u64
}

pub(super) fn table_name(manifest: &str) -> String {
    format!("{manifest}.loc")
}

pub(super) fn places_name(manifest: &str) -> String {
    format!("{manifest}.places")
}

/// Calls `each` for every name in one or all of the `ab/` directories of a room.
pub(super) fn each_in_shards(
    room: &Dir,
    only: Option<u8>,
    each: &mut dyn FnMut(&Dir, &OsStr) -> Result<()>,
) -> Result<()> {
    for shard in only.map_or(shards::all(), |s| s..=s) {
        let shard = room.sub(shards::name(shard))?;
        for name in shard.names()? {
            each(&shard, &name)?;
        }
    }
    Ok(())
}

pub(super) fn encode_table(manifest: &ManifestHash, table: &[Option<Location>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(LOC_HEADER + table.len() * LOC_SLOT + 32);
    out.extend_from_slice(LOC_MAGIC);
    out.extend_from_slice(manifest.as_bytes());
    out.extend_from_slice(&(table.len() as u64).to_le_bytes());
    for slot in table {
        let (pack, offset) = match slot {
            None => (0, 0),
            Some(Location::Loose) => (0, 1),
            Some(Location::Elsewhere) => (0, 2),
            Some(Location::Pack { pack, offset }) => (pack.0, *offset),
        };
        out.extend_from_slice(&pack.to_le_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
    }
    let check = blake3::hash(&out);
    out.extend_from_slice(check.as_bytes());
    out
}

/// The number of slots, when this is the start of that manifest's table.
pub(super) fn names_table(header: &[u8; LOC_HEADER], manifest: &ManifestHash) -> Option<u64> {
    let sound = &header[..8] == LOC_MAGIC && &header[8..40] == manifest.as_bytes();
    sound.then(|| number(&header[40..])).flatten()
}

/// What a slot says; outer `None` when that is nothing.
pub(super) fn slot_location(slot: &[u8]) -> Option<Option<Location>> {
    let (pack, offset) = slot.split_at_checked(8)?;
    match (number(pack)?, number(offset)?) {
        (0, 0) => Some(None),
        (0, 1) => Some(Some(Location::Loose)),
        (0, 2) => Some(Some(Location::Elsewhere)),
        (0, _) => None,
        (pack, offset) => Some(Some(Location::Pack { pack: PackId(pack), offset })),
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_le_bytes)
}

/// The values of parts after the check are left to those who need them.
pub(super) fn decode_table(manifest: &ManifestHash, bytes: &[u8]) -> Option<Vec<Option<Location>>> {
    let slots = names_table(bytes.first_chunk()?, manifest)?;
    let end = slots.checked_mul(LOC_SLOT as u64)?.checked_add(LOC_HEADER as u64)?;
    let (body, rest) = bytes.split_at_checked(usize::try_from(end).ok()?)?;
    let check = rest.first_chunk::<LOC_CHECK>()?;
    if blake3::hash(body).as_bytes() != check {
        return None;
    }
    body[LOC_HEADER..].chunks_exact(LOC_SLOT).map(slot_location).collect()
}
