//! Loose blobs: one file each for contents over the pack limit.
//!
//! Invariants: a file under its final name is complete and synced. A blob that was linked is
//! still the draft's own inode until the draft is gone: its owner, mode and attributes are
//! the draft's, and only [`Store::settle`] makes them the store's. A name that is taken is trusted
//! only when it is this very inode, or when no other name of it exists and its content verifies:
//! otherwise some other draft could still change it, and a private copy replaces it.
//! Must not know: drafts, leases (the caller has taken one before it asks for a link).

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use super::dir::{Dir, Temp};
use super::manifests::each_in_shards;
use super::read::FileKey;
use super::{Adopt, Result, Store, StoreError, port, shards};
use crate::model::BlobHash;
use crate::model::groups::{GroupHash, GroupHasher};
use crate::model::hash::Sha256;

/// Bytes copied or hashed at a time.
const PIECE: usize = 1 << 20;

/// A loose blob, as it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LooseBlob {
    /// Its name.
    pub hash: BlobHash,
    /// Bytes.
    pub size: u64,
    /// The file has other names: it is a draft's, too.
    pub shared: bool,
}

impl Store {
    /// Brings `file` (content already hashed as `hash`) into `blobs/` and makes it durable:
    /// link or clone, fdatasync, directory sync. Idempotent.
    ///
    /// `Link` changes nothing of the file but its link count (see [`settle`](Self::settle)); the
    /// caller vouches that nobody can write to it before the commit and that all its names
    /// lie in the draft. When it cannot be synced it is `Unwritten`, and must not be offered again. It falls back to a clone where no
    /// link can be made. A clone is verified: it
    /// is `Corrupt` when the file changed since it was hashed.
    pub fn adopt(&self, file: &File, hash: &BlobHash, how: Adopt) -> Result<()> {
        self.writable()?;
        let (shard, name) = self.blob_place(hash)?;
        let name = OsStr::new(&name);
        let (there, taken) = match port::open_read(shard.fd(), name) {
            Ok(f) => (Some(f), true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (None, false),
            // Linked from a draft with a mode that keeps us out: another's, so it is replaced.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => (None, true),
            Err(e) => return Err(shard.err("open", name)(e)),
        };
        if let Some(there) = there
            && self.trusted(&there, file, hash, &shard, name)?
        {
            if let Err(e) = port::sync_data(&there) {
                shard.unlink(name)?;
                return Err(unwritten(&shard, name, e));
            }
            return shard.sync();
        }
        if how == Adopt::Link && !taken {
            port::sync_data(file).map_err(|e| unwritten(&shard, name, e))?;
            match port::link_file(file.as_fd(), shard.fd(), name) {
                Ok(()) => return shard.sync(),
                Err(e) if no_link_possible(&e) => {}
                Err(e) => return Err(shard.err("link", name)(e)),
            }
        }
        self.adopt_clone(file, hash, &shard, name)
    }

    /// Whether the file that has the blob's name already can be relied on.
    fn trusted(&self, there: &File, ours: &File, hash: &BlobHash, shard: &Dir, name: &OsStr) -> Result<bool> {
        let stat = |f: &File| port::stat(f.as_fd()).map_err(shard.err("stat", name));
        let (a, b) = (stat(there)?, stat(ours)?);
        if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) {
            return Ok(true);
        }
        Ok(a.st_nlink == 1
            && a.st_size == b.st_size
            && is_content(there, hash).map_err(shard.err("read", name))?)
    }

    fn adopt_clone(&self, file: &File, hash: &BlobHash, shard: &Dir, name: &OsStr) -> Result<()> {
        let mut temp = Temp::create(&self.tmp)?;
        if port::reflink(file, temp.file()).is_err() {
            copy(file, &mut temp, shard, name)?;
        }
        let path = temp.path();
        if !is_content(temp.file(), hash).map_err(|e| StoreError::io("read", path.clone(), e))? {
            let why = format!("the content of blob {hash} changed while it was being stored");
            return Err(StoreError::Corrupt { path, line: None, why });
        }
        temp.publish(shard, name, true)?;
        self.forget_file(&FileKey::Blob(*hash));
        Ok(())
    }

    /// Makes an adopted blob the store's own: owned by this process's user, mode 0400, without
    /// extended attributes. Called when the draft it was linked from is gone or sealed; repeating it,
    /// and never doing it, are both harmless.
    pub fn settle(&self, hash: &BlobHash) -> Result<()> {
        self.writable()?;
        let (shard, name) = self.blob_place(hash)?;
        let file = self.open_blob(hash, &shard, OsStr::new(&name))?;
        let stat = port::stat(file.as_fd()).map_err(shard.err("stat", OsStr::new(&name)))?;
        if stat.st_uid != nix::unistd::geteuid().as_raw() {
            // Only root can take a file over, and only root can have drafts of other users' files.
            let _ = port::chown_to_us(&file);
        }
        if stat.st_mode & 0o7777 != 0o400 {
            port::chmod(file.as_fd(), 0o400).map_err(shard.err("chmod", OsStr::new(&name)))?;
        }
        // What cannot be listed or removed (security labels, a file system without any) does no harm.
        let _ = port::drop_xattrs(&file);
        Ok(())
    }

    /// Where this file is the blob itself, the blob becomes a verified copy of it: the file may be changed from then on.
    pub fn separate(&self, file: &File, hash: &BlobHash) -> Result<()> {
        self.writable()?;
        let (shard, name) = self.blob_place(hash)?;
        let name = OsStr::new(&name);
        let inode = |f: &File| port::stat(f.as_fd()).map(|s| (s.st_dev, s.st_ino));
        let blob = self.open_blob(hash, &shard, name)?;
        let same = inode(&blob).and_then(|a| Ok(a == inode(file)?)).map_err(shard.err("stat", name))?;
        if same { self.adopt_clone(file, hash, &shard, name) } else { Ok(()) }
    }

    /// A loose blob, open for reading (not cached).
    pub fn blob_file(&self, hash: &BlobHash) -> Result<File> {
        let (shard, name) = self.blob_place(hash)?;
        self.open_blob(hash, &shard, OsStr::new(&name))
    }

    /// Whether a loose blob of this size has its length and, where `reading` is given, its content. That hears how many bytes
    /// were read since it was called last; when it says false, this ends with `None`.
    pub fn verify_blob(
        &self,
        hash: &BlobHash,
        size: u64,
        reading: Option<&mut dyn FnMut(u64) -> bool>,
    ) -> Result<Option<()>> {
        let path = self.blob_path(hash);
        let corrupt = |why| StoreError::Corrupt { path: path.clone(), line: None, why };
        let file = self.blob_file(hash)?;
        let len = port::stat(file.as_fd()).map_err(|e| StoreError::io("stat", &path, e))?.st_size as u64;
        if len != size {
            return Err(corrupt(format!("it has {len} bytes and should have {size}")));
        }
        let Some(reading) = reading else { return Ok(Some(())) };
        match is_content_while(&file, hash, reading).map_err(|e| StoreError::io("read", &path, e))? {
            None => Ok(None),
            Some(true) => Ok(Some(())),
            Some(false) => Err(corrupt(format!("the content of blob {hash} differs"))),
        }
    }

    /// A linked blob may still have a mode that keeps its owner out; ours is to change it.
    fn open_blob(&self, hash: &BlobHash, shard: &Dir, name: &OsStr) -> Result<File> {
        let found = match port::open_read(shard.fd(), name) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied && self.lock.is_some() => {
                let handle = port::open_path(shard.fd(), name).map_err(shard.err("open", name))?;
                port::chmod_path(handle.as_fd(), 0o400).map_err(shard.err("chmod", name))?;
                port::open_read(shard.fd(), name)
            }
            other => other,
        };
        found.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                StoreError::Missing { what: format!("the blob {hash}"), path: self.blob_path(hash) }
            }
            _ => shard.err("open", name)(e),
        })
    }

    /// The values of the groups of a loose blob, made of its bytes after they were checked against its name.
    pub fn blob_groups(&self, hash: &BlobHash) -> Result<Vec<GroupHash>> {
        let file = self.blob_file(hash)?;
        let path = self.blob_path(hash);
        let io = |e| StoreError::io("read", &path, e);
        let mut hasher = GroupHasher::default();
        each_piece(&file, &mut |_| true, &mut |piece| hasher.update(piece)).map_err(io)?;
        let (blake3, values, _) = hasher.finish();
        if blake3 != *hash && !is_content(&file, hash).map_err(io)? {
            let why = format!("the content of blob {hash} differs");
            return Err(StoreError::Corrupt { path, line: None, why });
        }
        Ok(values)
    }

    /// The blob becomes a verified copy of itself, where its file has other names.
    pub fn part_blob(&self, hash: &BlobHash) -> Result<()> {
        self.writable()?;
        let (shard, name) = self.blob_place(hash)?;
        let name = OsStr::new(&name);
        let blob = self.open_blob(hash, &shard, name)?;
        match port::stat(blob.as_fd()).map_err(shard.err("stat", name))?.st_nlink {
            0 | 1 => Ok(()),
            _ => self.adopt_clone(&blob, hash, &shard, name),
        }
    }

    /// All loose blobs.
    pub fn loose_blobs(&self) -> Result<Vec<LooseBlob>> {
        self.loose_blobs_in(None)
    }

    /// The loose blobs in one of the 256 directories, or in all.
    pub fn loose_blobs_in(&self, shard: Option<u8>) -> Result<Vec<LooseBlob>> {
        let mut all = Vec::new();
        each_in_shards(&self.blobs, shard, &mut |shard, name| {
            if let Some(hash) = name.to_str().and_then(|n| n.parse().ok())
                && let Some(stat) = port::stat_at(shard.fd(), name).map_err(shard.err("stat", name))?
            {
                all.push(LooseBlob { hash, size: stat.st_size as u64, shared: stat.st_nlink > 1 });
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Unlinks one; a missing one is fine.
    pub fn remove_blob(&self, hash: &BlobHash) -> Result<()> {
        self.writable()?;
        let (shard, name) = self.blob_place(hash)?;
        shard.unlink(&name)?;
        self.forget_file(&FileKey::Blob(*hash));
        Ok(())
    }

    pub(super) fn blob_place(&self, hash: &BlobHash) -> Result<(Dir, String)> {
        Ok((self.blobs.sub(shards::of(hash.as_bytes()))?, hash.to_hex()))
    }

    /// The blob's path, for messages.
    pub(super) fn blob_path(&self, hash: &BlobHash) -> PathBuf {
        self.blobs.path().join(shards::of(hash.as_bytes())).join(hash.to_hex())
    }
}

fn unwritten(shard: &Dir, name: &OsStr, source: io::Error) -> StoreError {
    StoreError::Unwritten { path: shard.path().join(name), source }
}

/// Other file system, too many links, forbidden or not supported, no name left, or the blob's name
/// was taken this moment.
fn no_link_possible(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::EXDEV | libc::EMLINK | libc::EPERM | libc::EOPNOTSUPP | libc::ENOENT | libc::EEXIST)
    )
}

fn copy(from: &File, to: &mut Temp, shard: &Dir, name: &OsStr) -> Result<()> {
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    loop {
        let n = port::read_at(from, &mut piece, at).map_err(shard.err("read the file for", name))?;
        to.write(&piece[..n])?;
        at += n as u64;
        if n < PIECE {
            return Ok(());
        }
    }
}

/// Whether all of a file is the content of this name.
pub(super) fn is_content(file: &File, hash: &BlobHash) -> io::Result<bool> {
    Ok(is_content_while(file, hash, &mut |_| true)? == Some(true))
}

/// The same; `None` when `reading`, which hears how many bytes were read since it was called last, says false. What is named
/// by SHA-256 is read twice.
fn is_content_while(
    file: &File,
    hash: &BlobHash,
    reading: &mut dyn FnMut(u64) -> bool,
) -> io::Result<Option<bool>> {
    let mut blake3 = blake3::Hasher::new();
    let mut sha256 = Sha256::default();
    let all = each_piece(file, reading, &mut |piece| {
        blake3.update(piece);
    })?;
    if !all || blake3.finalize() == *hash.as_bytes() {
        return Ok(all.then_some(true));
    }
    let all = each_piece(file, reading, &mut |piece| sha256.update(piece))?;
    Ok(all.then(|| sha256.finish() == *hash))
}

/// False when `reading` ended it.
fn each_piece(
    file: &File,
    reading: &mut dyn FnMut(u64) -> bool,
    each: &mut dyn FnMut(&[u8]),
) -> io::Result<bool> {
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    loop {
        let n = port::read_at(file, &mut piece, at)?;
        each(&piece[..n]);
        at += n as u64;
        if n > 0 && !reading(n as u64) {
            return Ok(false);
        }
        if n < PIECE {
            return Ok(true);
        }
    }
}
