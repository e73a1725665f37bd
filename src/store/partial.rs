//! Contents that are here in part: sparse files that what comes from tiers is written into.
//!
//! Invariants: nothing in `partial/` is believed: what is read of it is checked group by group, and a file becomes a loose
//! blob only after all of it was hashed and synced. So nothing is synced before, and no map of what is there is kept: after a
//! death it is found by what the file has of data. Must not know: tiers, who asks.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::blobs::is_content;
use super::dir::Dir;
use super::read::{Blob, FileKey};
use super::{Result, Store, StoreError, port};
use crate::model::BlobHash;
use crate::model::groups::{GROUP, GroupHash};

const ROOM: &str = "partial";

impl Store {
    /// All contents that are here in part, with the bytes that they occupy.
    pub fn partials(&self) -> Result<Vec<(BlobHash, u64)>> {
        let mut all = Vec::new();
        let dir = self.partial_dir()?;
        for name in dir.names()? {
            let Some(hash) = name.to_str().and_then(|n| n.parse().ok()) else { continue };
            let stat = port::stat_at(dir.fd(), &name).map_err(dir.err("stat", &name))?;
            all.extend(stat.map(|s| (hash, s.st_blocks as u64 * 512)));
        }
        Ok(all)
    }

    /// Makes an empty file for a content of `size` bytes, or takes the one that is there.
    pub fn create_partial(&self, hash: &BlobHash, size: u64) -> Result<()> {
        self.writable()?;
        let (dir, name) = (self.partial_dir()?, hash.to_hex());
        let name = OsStr::new(&name);
        let file = port::open_write(dir.fd(), name).map_err(dir.err("create", name))?;
        let stat = port::stat(file.as_fd()).map_err(dir.err("stat", name))?;
        if stat.st_size as u64 != size {
            port::truncate(&file, size).map_err(dir.err("set the length of", name))?;
        }
        Ok(())
    }

    /// Writes some of it at its place; `Missing` when there is no such file.
    pub fn write_partial(&self, hash: &BlobHash, offset: u64, bytes: &[u8]) -> Result<()> {
        self.writable()?;
        let file = self.partial_file(hash)?;
        port::write_at(&file, bytes, offset).map_err(|e| StoreError::io("write", self.partial_path(hash), e))
    }

    /// As [`read_verified`](Self::read_verified), of what is there of it: what is not there, or not whole, is `Corrupt`.
    pub fn read_partial(
        &self,
        hash: &BlobHash,
        size: u64,
        groups: &[GroupHash],
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize> {
        let file = self.partial_file(hash)?;
        let blob = Blob { store: self, hash, size, groups, key: FileKey::Partial(*hash), again: false };
        blob.read(&file, 0, offset, buf)
    }

    /// For each group of a content of `size` bytes whether any of it may be there.
    pub fn partial_groups(&self, hash: &BlobHash, size: u64) -> Result<Vec<bool>> {
        let file = self.partial_file(hash)?;
        let mut there = vec![false; size.div_ceil(GROUP as u64) as usize];
        let mut at = 0;
        while let Some((start, end)) =
            port::next_data(&file, at).map_err(|e| StoreError::io("look into", self.partial_path(hash), e))?
        {
            let last = (end - 1).min(size.saturating_sub(1)) / GROUP as u64;
            for group in start / GROUP as u64..=last {
                if let Some(there) = there.get_mut(group as usize) {
                    *there = true;
                }
            }
            at = end;
        }
        Ok(there)
    }

    /// All of it is there: it becomes a loose blob, durable. `Corrupt` when its content is another; `Unwritten`, and gone, when it
    /// cannot be synced.
    pub fn finish_partial(&self, hash: &BlobHash) -> Result<()> {
        self.writable()?;
        let file = self.partial_file(hash)?;
        let path = || self.partial_path(hash);
        if !is_content(&file, hash).map_err(|e| StoreError::io("read", path(), e))? {
            let why = format!("the content of blob {hash} differs");
            return Err(StoreError::Corrupt { path: path(), line: None, why });
        }
        if let Err(source) = port::sync_data(&file) {
            // Synced again it would pass for whole.
            self.remove_partial(hash)?;
            return Err(StoreError::Unwritten { path: path(), source });
        }
        let (shard, name) = self.blob_place(hash)?;
        let name = OsStr::new(&name);
        port::rename(self.partial_dir()?.fd(), name, shard.fd(), name)
            .map_err(shard.err("rename to", name))?;
        self.forget_file(&FileKey::Blob(*hash));
        // Only now: who is not root could not open it again for what is still to come.
        port::chmod(file.as_fd(), 0o400).map_err(shard.err("chmod", name))?;
        shard.sync()
    }

    /// Unlinks one; a missing one is fine.
    pub fn remove_partial(&self, hash: &BlobHash) -> Result<()> {
        self.writable()?;
        self.partial_dir()?.unlink(hash.to_hex())?;
        self.close_partial(hash);
        Ok(())
    }

    /// Lets go of its descriptor.
    pub fn close_partial(&self, hash: &BlobHash) {
        self.forget_file(&FileKey::Partial(*hash));
    }

    fn partial_file(&self, hash: &BlobHash) -> Result<Arc<File>> {
        self.cached(FileKey::Partial(*hash), || {
            let (dir, name) = (self.partial_dir()?, hash.to_hex());
            let name = OsStr::new(&name);
            port::open_update(dir.fd(), name).map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => StoreError::Missing {
                    what: format!("what was here of the blob {hash}"),
                    path: self.partial_path(hash),
                },
                _ => dir.err("open", name)(e),
            })
        })
    }

    pub(super) fn partial_path(&self, hash: &BlobHash) -> PathBuf {
        self.root().join(ROOM).join(hash.to_hex())
    }

    /// Opened when it is needed: a store that an older program made, and that is only read, has none.
    fn partial_dir(&self) -> Result<Dir> {
        self.root.sub(ROOM)
    }
}
