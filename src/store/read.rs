//! Verified reading: no byte is returned whose group was not hashed.
//!
//! Purpose: what the daemon itself reads. Blobs up to one group are hashed whole against their
//! name; larger ones group by group against the list in their manifest. Invariant: a buffer
//! holds unverified bytes only when an error is returned. Must not know: caches above it.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::kept::Reading;
use super::{Location, PackId, Result, Store, StoreError, port};
use crate::model::BlobHash;
use crate::model::groups::{GROUP, GroupHash, group_count, is_group};

/// Names a file whose descriptor is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum FileKey {
    Pack(PackId),
    Blob(BlobHash),
    Partial(BlobHash),
}

impl Store {
    /// Fills `buf` from `offset` of a blob of `size` bytes at `at`, verifying every group it
    /// touches (`groups` is the blob's list, empty up to one group). Returns the bytes read,
    /// short only at the end. `Missing` when pack or blob is gone, `Corrupt` when it differs, `Elsewhere` when
    /// that is its place.
    pub fn read_verified(
        &self,
        hash: &BlobHash,
        size: u64,
        groups: &[GroupHash],
        at: Location,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize> {
        self.read_blob((hash, size, groups), at, (offset, buf), false)
    }

    /// All of a blob, verified, as the disk has it now: what was read before, and is in memory here, does not count. The caller bounds
    /// `size`, which is the memory that it takes.
    pub fn read_again(
        &self,
        hash: &BlobHash,
        size: u64,
        groups: &[GroupHash],
        at: Location,
    ) -> Result<Vec<u8>> {
        let mut all = vec![0; size as usize];
        self.read_blob((hash, size, groups), at, (0, &mut all), true)?;
        Ok(all)
    }

    fn read_blob(
        &self,
        (hash, size, groups): (&BlobHash, u64, &[GroupHash]),
        at: Location,
        (offset, buf): (u64, &mut [u8]),
        again: bool,
    ) -> Result<usize> {
        if offset >= size || buf.is_empty() {
            return Ok(0);
        }
        if at == Location::Elsewhere {
            return Err(StoreError::Elsewhere { what: format!("blob {hash}") });
        }
        let (file, base, key) = match at {
            Location::Pack { pack, offset: base } => {
                let file = self.pack_file(pack)?;
                self.ahead.note(pack, &file, base + offset, (buf.len() as u64).min(size - offset));
                (file, base, FileKey::Pack(pack))
            }
            Location::Loose | Location::Elsewhere => {
                let key = FileKey::Blob(*hash);
                (self.cached(key, || self.blob_file(hash))?, 0, key)
            }
        };
        Blob { store: self, hash, size, groups, key, again }.read(&file, base, offset, buf)
    }

    /// The descriptor kept under `key`, or a new one. A file that was unlinked meanwhile is not
    /// kept, so that its space is given back.
    pub(super) fn cached(&self, key: FileKey, open: impl FnOnce() -> Result<File>) -> Result<Arc<File>> {
        if let Some(file) = self.files.lock().get(&key) {
            return Ok(file.clone());
        }
        let file = Arc::new(open()?);
        self.files.lock().put(key, file.clone());
        if !port::stat(file.as_fd()).is_ok_and(|s| s.st_nlink > 0) {
            self.forget_file(&key);
        }
        Ok(file)
    }

    /// Closes a kept descriptor.
    pub(super) fn forget_file(&self, key: &FileKey) {
        self.files.lock().pop(key);
    }
}

/// A blob that is being read.
pub(super) struct Blob<'a> {
    pub store: &'a Store,
    pub hash: &'a BlobHash,
    pub size: u64,
    pub groups: &'a [GroupHash],
    /// The file that it is in.
    pub key: FileKey,
    /// All of it is read, and what is in memory of it does not count.
    pub again: bool,
}

impl Blob<'_> {
    /// Fills `buf` from `offset` of the blob, which begins at `base` of its file, group by group.
    pub fn read(&self, file: &Arc<File>, base: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let size = self.size;
        if self.groups.len() != group_count(size) {
            return Err(self.corrupt("the manifest's list of groups does not fit its size"));
        }
        let wanted = buf.len().min(usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX));
        let buf = &mut buf[..wanted];
        let mut done = 0;
        while done < wanted {
            let position = offset + done as u64;
            let group = position / GROUP as u64;
            let start = group * GROUP as u64;
            let len = (size - start).min(GROUP as u64) as usize;
            let skip = (position - start) as usize;
            let n = (len - skip).min(wanted - done);
            let to = &mut buf[done..done + n];
            let kept = &self.store.kept;
            let value = usize::try_from(group).ok().and_then(|i| self.groups.get(i));
            let value = value.unwrap_or(self.hash.as_bytes());
            // Blobs of one group are not all to be kept in the same place.
            let first = self.hash.as_bytes()[0].into();
            let number = group.wrapping_add(first);
            // Of what is here in part it is not known what follows.
            if let (FileKey::Blob(_), false) = (self.key, self.again) {
                kept.read_ahead(&Reading { file, size, values: self.groups, number: first }, group);
            }
            if n == len && (self.again || !kept.has(value, number)) {
                self.read_group(file, base, group, to)?;
            } else {
                let read = |whole: &mut [u8]| self.read_group(file, base, group, whole);
                let take = |whole: &[u8]| to.copy_from_slice(&whole[skip..skip + n]);
                kept.group(value, number, len, read, take)?;
            }
            done += n;
        }
        Ok(wanted)
    }

    fn read_group(&self, file: &File, base: u64, group: u64, buf: &mut [u8]) -> Result<()> {
        let n = port::read_at(file, buf, base + group * GROUP as u64)
            .map_err(|e| StoreError::io("read", self.path(), e))?;
        if n < buf.len() {
            return Err(
                self.corrupt(&format!("it ends before the {} bytes of blob {}", self.size, self.hash))
            );
        }
        if is_group(self.hash, self.groups, group, buf) {
            return Ok(());
        }
        buf.fill(0);
        Err(self.corrupt(&format!("the content of blob {} differs in group {group}", self.hash)))
    }

    fn path(&self) -> PathBuf {
        match self.key {
            FileKey::Pack(pack) => self.store.pack_path(pack),
            FileKey::Blob(hash) => self.store.blob_path(&hash),
            FileKey::Partial(hash) => self.store.partial_path(&hash),
        }
    }

    fn corrupt(&self, why: &str) -> StoreError {
        StoreError::Corrupt { path: self.path(), line: None, why: why.into() }
    }
}
