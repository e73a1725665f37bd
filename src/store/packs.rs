//! Packs: files of many small blobs, written once.
//!
//! Invariants: a pack is written aside, synced, closed once and renamed; nothing is ever appended to
//! one that has its name. Each blob follows a header with its hash, its length and the header's own
//! checksum; the file begins with a header that names the pack. Pack numbers grow and are
//! never used twice: they are reserved durably, in blocks, before the first of a block is used.
//! Must not know: which blobs are referred to.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::dir::{Dir, Temp};
use super::read::FileKey;
use super::{Location, PACK_LIMIT, PackId, PackInfo, Result, Store, StoreError, port};
use crate::model::BlobHash;

const PACK_MAGIC: &[u8; 8] = b"OUTFSPK1";
/// Magic and the pack's number.
pub(super) const PACK_HEADER: u64 = 16;
const BLOB_MAGIC: &[u8; 4] = b"BLB1";
/// Magic, length, hash, checksum.
pub(super) const BLOB_HEADER: usize = 4 + 4 + 32 + 8;
/// Bytes collected before a write.
const BUFFER: usize = 1 << 20;
/// Bytes after which the disk begins to write.
const WRITE_BACK: u64 = 8 << 20;

/// Holds the first number that was never reserved, in decimal.
const NEXT: &str = "next";
/// Numbers reserved at a time.
const BLOCK: u64 = 1024;

/// The numbers this process may give to packs.
#[derive(Default)]
pub(super) struct PackIds {
    /// The first that it gave; 0 before.
    first: u64,
    next: u64,
    end: u64,
}

impl PackIds {
    fn take(&mut self, packs: &Dir, tmp: &Arc<Dir>) -> Result<PackId> {
        if self.next == self.end {
            let noted = match packs.read_all(NEXT) {
                Err(e) if e.is_bad_spot() => None,
                bytes => bytes?.and_then(|b| String::from_utf8(b).ok()?.trim().parse().ok()),
            };
            let start = match noted {
                Some(next) => self.end.max(next),
                // Lost: at least beyond all packs there are.
                None => list(packs)?.into_iter().map(|id| id.0).max().unwrap_or(0) + 1,
            };
            packs.write_durably(tmp, NEXT, format!("{}\n", start + BLOCK).as_bytes())?;
            (self.next, self.end) = (start, start + BLOCK);
            if self.first == 0 {
                self.first = start;
            }
        }
        self.next += 1;
        Ok(PackId(self.next - 1))
    }
}

fn file_name(id: PackId) -> OsString {
    format!("{:016x}.pack", id.0).into()
}

fn parse_name(name: &OsStr) -> Option<PackId> {
    let id = PackId(u64::from_str_radix(name.to_str()?.strip_suffix(".pack")?, 16).ok()?);
    (file_name(id) == name).then_some(id)
}

fn list(packs: &Dir) -> Result<Vec<PackId>> {
    // There may be a million: only the numbers are kept.
    let mut all = Vec::new();
    packs.each_name(&mut |name| all.extend(parse_name(name)))?;
    Ok(all)
}

/// Content with the hash of it, which nobody else can have made.
pub struct Hashed {
    hash: BlobHash,
    bytes: Vec<u8>,
}

impl Hashed {
    /// Hashes it.
    pub fn of(bytes: Vec<u8>) -> Hashed {
        Hashed { hash: BlobHash::of(&bytes), bytes }
    }

    /// Its hash.
    pub fn hash(&self) -> BlobHash {
        self.hash
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A pack being written aside; dropped unfinished, it leaves nothing behind.
pub struct PackWriter {
    temp: Temp,
    packs: Arc<Dir>,
    id: PackId,
    buffer: Vec<u8>,
    len: u64,
}

impl PackWriter {
    /// Appends one blob (at most [`PACK_LIMIT`] bytes) and says where it will lie. Content that
    /// does not have the hash (it changed since it was hashed) is `Corrupt` and not appended.
    pub fn append(&mut self, hash: &BlobHash, content: &[u8]) -> Result<Location> {
        if !hash.names(content) {
            return Err(self.corrupt("the content changed while it was being stored"));
        }
        self.place(hash, content)
    }

    /// The same, of content that was hashed as it lies in memory.
    pub fn append_hashed(&mut self, content: &Hashed) -> Result<Location> {
        self.place(&content.hash, &content.bytes)
    }

    fn corrupt(&self, why: &str) -> StoreError {
        StoreError::Corrupt { path: self.temp.path(), line: None, why: why.into() }
    }

    fn place(&mut self, hash: &BlobHash, content: &[u8]) -> Result<Location> {
        if content.len() as u64 > PACK_LIMIT {
            return Err(self.corrupt("the blob is too large for a pack"));
        }
        if self.buffer.len() + BLOB_HEADER + content.len() > BUFFER {
            self.flush()?;
        }
        self.buffer.extend_from_slice(&blob_header(hash, content.len() as u32));
        self.buffer.extend_from_slice(content);
        let offset = self.len + BLOB_HEADER as u64;
        self.len = offset + content.len() as u64;
        Ok(Location::Pack { pack: self.id, offset })
    }

    fn flush(&mut self) -> Result<()> {
        self.temp.write(&self.buffer)?;
        self.buffer.clear();
        // The disk need not wait for the last blob.
        self.temp.write_back(WRITE_BACK);
        Ok(())
    }

    /// The pack's name to be.
    pub fn id(&self) -> PackId {
        self.id
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// No blob was appended.
    pub fn is_empty(&self) -> bool {
        self.len == PACK_HEADER
    }

    /// Syncs, renames, syncs the directory: durable when it returns.
    pub fn finish(mut self) -> Result<PackInfo> {
        self.flush()?;
        self.temp.publish(&self.packs, &file_name(self.id), true)?;
        Ok(PackInfo { id: self.id, bytes: self.len })
    }
}

pub(super) fn pack_header(id: PackId) -> [u8; PACK_HEADER as usize] {
    let mut h = [0; PACK_HEADER as usize];
    h[..8].copy_from_slice(PACK_MAGIC);
    h[8..].copy_from_slice(&id.0.to_le_bytes());
    h
}

pub(super) fn blob_header(hash: &BlobHash, len: u32) -> [u8; BLOB_HEADER] {
    let mut h = [0; BLOB_HEADER];
    h[..4].copy_from_slice(BLOB_MAGIC);
    h[4..8].copy_from_slice(&len.to_le_bytes());
    h[8..40].copy_from_slice(hash.as_bytes());
    let check = blake3::hash(&h[..40]);
    h[40..].copy_from_slice(&check.as_bytes()[..8]);
    h
}

fn parse_blob_header(h: &[u8; BLOB_HEADER]) -> Option<(BlobHash, u32)> {
    let len = u32::from_le_bytes(h[4..8].try_into().ok()?);
    let hash = BlobHash(h[8..40].try_into().ok()?);
    (blob_header(&hash, len) == *h && u64::from(len) <= PACK_LIMIT).then_some((hash, len))
}

impl Store {
    /// Starts a pack.
    pub fn new_pack(&self) -> Result<PackWriter> {
        self.writable()?;
        let id = self.pack_ids.lock().take(&self.packs, &self.tmp)?;
        let temp = Temp::create(&self.tmp)?;
        let mut buffer = Vec::with_capacity(BUFFER);
        buffer.extend_from_slice(&pack_header(id));
        Ok(PackWriter { temp, packs: self.packs.clone(), id, buffer, len: PACK_HEADER })
    }

    /// The pack's file, open for reading (a bounded cache of descriptors).
    pub fn pack_file(&self, id: PackId) -> Result<Arc<File>> {
        self.cached(FileKey::Pack(id), || self.open_pack(id))
    }

    fn open_pack(&self, id: PackId) -> Result<File> {
        let name = file_name(id);
        self.packs.read(&name)?.ok_or_else(|| StoreError::Missing {
            what: format!("the pack {:016x}", id.0),
            path: self.packs.path().join(&name),
        })
    }

    /// All packs with their file sizes.
    pub fn packs(&self) -> Result<Vec<PackInfo>> {
        let mut all = Vec::new();
        for id in list(&self.packs)? {
            if let Some(bytes) = self.packs.size_of(file_name(id))? {
                all.push(PackInfo { id, bytes });
            }
        }
        all.sort_unstable_by_key(|p| p.id);
        Ok(all)
    }

    /// The names of all packs, in no order.
    pub fn pack_ids(&self) -> Result<Vec<PackId>> {
        list(&self.packs)
    }

    /// Whether this process made the pack, since it opened the store.
    pub fn is_own_pack(&self, id: PackId) -> bool {
        let ids = self.pack_ids.lock();
        ids.first <= id.0 && id.0 < ids.next
    }

    /// Calls `each(hash, content length, location)` for every blob of a pack, in order, until it says false; stops
    /// with `Corrupt` at the first damaged header. With `verify` it also reads the contents:
    /// damaged ones are left out, and the first of them is the `Corrupt` at the end.
    pub fn scan_pack(
        &self,
        id: PackId,
        verify: bool,
        each: &mut dyn FnMut(BlobHash, u64, Location) -> bool,
    ) -> Result<()> {
        // Not kept: who goes through all packs must not close those that are read from.
        let file = self.open_pack(id)?;
        let path = self.pack_path(id);
        let corrupt = |at: u64, why: &str| StoreError::Corrupt {
            path: path.clone(),
            line: None,
            why: format!("{why} at byte {at}"),
        };
        let read = |buf: &mut [u8], at| {
            port::read_at(&file, buf, at).map_err(|e| StoreError::io("read", path.clone(), e))
        };
        let mut start = [0; PACK_HEADER as usize];
        if read(&mut start, 0)? < start.len() || start != pack_header(id) {
            return Err(corrupt(0, "the header is not that of this pack"));
        }
        let (mut at, mut bad, mut content) = (PACK_HEADER, None, Vec::new());
        let end =
            port::stat(file.as_fd()).map_err(|e| StoreError::io("stat", path.clone(), e))?.st_size as u64;
        while at < end {
            let mut header = [0; BLOB_HEADER];
            let n = read(&mut header, at)?;
            let offset = at + BLOB_HEADER as u64;
            let (hash, len) = parse_blob_header(&header)
                .filter(|(_, len)| n == BLOB_HEADER && offset + u64::from(*len) <= end)
                .ok_or_else(|| corrupt(at, "a blob's header is damaged"))?;
            at = offset + u64::from(len);
            if verify {
                content.resize(len as usize, 0);
                if read(&mut content, offset)? < content.len() || !hash.names(&content) {
                    bad.get_or_insert_with(|| {
                        corrupt(offset, &format!("the content of blob {hash} differs"))
                    });
                    continue;
                }
            }
            if !each(hash, u64::from(len), Location::Pack { pack: id, offset }) {
                return Ok(());
            }
        }
        bad.map_or(Ok(()), Err)
    }

    /// Unlinks a pack; readers that have it open go on. A missing one is fine.
    pub fn remove_pack(&self, id: PackId) -> Result<()> {
        self.writable()?;
        self.packs.unlink(file_name(id))?;
        self.forget_file(&FileKey::Pack(id));
        Ok(())
    }

    /// The pack's path, for messages.
    pub(super) fn pack_path(&self, id: PackId) -> std::path::PathBuf {
        self.packs.path().join(file_name(id))
    }
}
