//! Quarantine: what failed verification is set aside, never deleted.
//!
//! Invariants: a quarantined file has left its room durably, under a name that says what it was
//! and when; a name in quarantine is never replaced. Must not know: who refers to it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::dir::Dir;
use super::manifests::{places_name, table_name};
use super::read::FileKey;
use super::{PackId, Result, Store, StoreError, port};
use crate::model::{BlobHash, ManifestHash};

impl Store {
    /// Moves a damaged manifest, pack or blob file into `quarantine/`.
    pub fn quarantine_manifest(&self, hash: &ManifestHash) -> Result<()> {
        let (shard, name) = self.manifest_place(hash)?;
        self.set_aside("manifest", &shard, name.as_ref())?;
        shard.unlink(table_name(&name))?;
        shard.unlink(places_name(&name))?;
        Ok(())
    }

    /// See [`quarantine_manifest`](Self::quarantine_manifest).
    pub fn quarantine_blob(&self, hash: &BlobHash) -> Result<()> {
        let (shard, name) = self.blob_place(hash)?;
        self.set_aside("blob", &shard, name.as_ref())?;
        self.forget_file(&FileKey::Blob(*hash));
        Ok(())
    }

    /// See [`quarantine_manifest`](Self::quarantine_manifest).
    pub fn quarantine_pack(&self, id: PackId) -> Result<()> {
        let path = self.pack_path(id);
        self.set_aside("pack", &self.packs, path.file_name().unwrap_or_default())?;
        self.forget_file(&FileKey::Pack(id));
        Ok(())
    }

    /// Moves a damaged pin or rejection into `quarantine/`, by the path that its `Corrupt` error has.
    pub fn quarantine(&self, path: &Path) -> Result<()> {
        let rooms = [("pin", &self.pins), ("rejection", &self.rejections)];
        let room = rooms.into_iter().find(|(_, room)| path.parent() == Some(room.path()));
        let (Some((kind, room)), Some(name)) = (room, path.file_name()) else {
            let why = "it is no pin or rejection of this store".into();
            return Err(StoreError::Unsuitable { path: path.to_owned(), why });
        };
        self.set_aside(kind, room, name)
    }

    pub(super) fn set_aside(&self, kind: &str, room: &Dir, name: &OsStr) -> Result<()> {
        self.writable()?;
        let mut now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        loop {
            let mut new = OsString::from(format!("{kind}-"));
            new.push(name);
            // A file name has at most 255 bytes, and a rejection's may have all of them.
            let new = OsString::from(format!("{:.200}.{now}", new.to_string_lossy()));
            match port::rename_new(room.fd(), name, self.quarantined.fd(), &new) {
                Ok(()) => break,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => now += 1,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let what = format!("the {kind} {}", name.display());
                    return Err(StoreError::Missing { what, path: room.path().join(name) });
                }
                Err(e) => return Err(room.err("quarantine", name)(e)),
            }
        }
        self.quarantined.sync()?;
        room.sync()
    }
}
