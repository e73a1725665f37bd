//! Manifests and their location tables.
//!
//! Invariants: a manifest's name is the BLAKE3 of its bytes, checked whenever it is read; a
//! location table is a cache: what is wrong with one makes it absent.
//! Must not know: what a manifest says.

use std::ffi::OsStr;

use super::dir::{Dir, Temp};
use super::{Location, PackId, Result, Store, StoreError};
use crate::model::{Manifest, ManifestHash};

const LOC_MAGIC: &[u8; 8] = b"OUTFSLC1";
/// Magic, manifest, number of slots.
const LOC_HEADER: usize = 8 + 32 + 8;
const LOC_SLOT: usize = 16;

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
        if ManifestHash::of(&bytes) != *hash {
            return Err(corrupt("its content does not have the hash in its name".into()));
        }
        Manifest::parse(bytes).map_err(|e| corrupt(e.to_string()))
    }

    /// Unlinks a manifest and its location table, and syncs the directory; a missing one is fine.
    pub fn remove_manifest(&self, hash: &ManifestHash) -> Result<()> {
        self.writable()?;
        let (shard, name) = self.manifest_place(hash)?;
        shard.unlink(&name)?;
        shard.unlink(table_name(&name))?;
        shard.sync()
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
    /// file). Not synced: it can be rebuilt.
    pub fn write_locations(&self, manifest: &ManifestHash, table: &[Option<Location>]) -> Result<()> {
        self.writable()?;
        let (shard, name) = self.manifest_place(manifest)?;
        let mut temp = Temp::create(&self.tmp)?;
        temp.write(&encode_table(manifest, table))?;
        temp.publish(&shard, OsStr::new(&table_name(&name)), false)
    }

    /// Reads it; `None` when it is missing or damaged (it is a cache).
    pub fn read_locations(&self, manifest: &ManifestHash) -> Result<Option<Vec<Option<Location>>>> {
        let (shard, name) = self.manifest_place(manifest)?;
        Ok(shard.read_all(table_name(&name))?.and_then(|bytes| decode_table(manifest, &bytes)))
    }

    pub(super) fn manifest_place(&self, hash: &ManifestHash) -> Result<(Dir, String)> {
        Ok((self.manifests.sub(hash.shard())?, hash.to_hex()))
    }
}

/// The length of a location table of so many records.
pub(crate) fn table_bytes(records: usize) -> u64 {
    (LOC_HEADER + records * LOC_SLOT + 32) as u64
}

pub(super) fn table_name(manifest: &str) -> String {
    format!("{manifest}.loc")
}

/// Calls `each` for every name in one or all of the `ab/` directories of a room.
pub(super) fn each_in_shards(
    room: &Dir,
    only: Option<u8>,
    each: &mut dyn FnMut(&Dir, &OsStr) -> Result<()>,
) -> Result<()> {
    for shard in only.map_or(0..=255u8, |s| s..=s) {
        let shard = room.sub(format!("{shard:02x}"))?;
        for name in shard.names()? {
            each(&shard, &name)?;
        }
    }
    Ok(())
}

fn encode_table(manifest: &ManifestHash, table: &[Option<Location>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(LOC_HEADER + table.len() * LOC_SLOT + 32);
    out.extend_from_slice(LOC_MAGIC);
    out.extend_from_slice(manifest.as_bytes());
    out.extend_from_slice(&(table.len() as u64).to_le_bytes());
    for slot in table {
        let (pack, offset) = match slot {
            None => (0, 0),
            Some(Location::Loose) => (0, 1),
            Some(Location::Pack { pack, offset }) => (pack.0, *offset),
        };
        out.extend_from_slice(&pack.to_le_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
    }
    let check = blake3::hash(&out);
    out.extend_from_slice(check.as_bytes());
    out
}

fn decode_table(manifest: &ManifestHash, bytes: &[u8]) -> Option<Vec<Option<Location>>> {
    let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    let (header, slots) = body.split_at_checked(LOC_HEADER)?;
    let number = |b: &[u8]| b.try_into().ok().map(u64::from_le_bytes);
    let sound = blake3::hash(body).as_bytes() == check
        && &header[..8] == LOC_MAGIC
        && &header[8..40] == manifest.as_bytes()
        && number(&header[40..])?.checked_mul(LOC_SLOT as u64) == Some(slots.len() as u64);
    if !sound {
        return None;
    }
    let slot = |s: &[u8]| match (number(&s[..8])?, number(&s[8..])?) {
        (0, 0) => Some(None),
        (0, 1) => Some(Some(Location::Loose)),
        (0, _) => None,
        (pack, offset) => Some(Some(Location::Pack { pack: PackId(pack), offset })),
    };
    slots.chunks_exact(LOC_SLOT).map(slot).collect()
}
