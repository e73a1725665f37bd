//! Marks of contents that were found damaged: an empty file each, named by the hash.
//!
//! Invariants: a mark is on the disk when it was made; taking one away waits for no disk, for one too many costs no more
//! than a content that is stored once more. Must not know: what is damaged of a content, or what follows from that.

use std::ffi::OsStr;

use super::dir::Dir;
use super::{Result, Store, port};
use crate::model::BlobHash;

impl Store {
    fn damaged_room(&self) -> Result<Dir> {
        self.root.sub("damaged")
    }

    /// All contents that are marked.
    pub fn damaged(&self) -> Result<Vec<BlobHash>> {
        let hash = |name: &OsStr| name.to_str()?.parse().ok();
        Ok(self.damaged_room()?.names()?.iter().filter_map(|name| hash(name)).collect())
    }

    /// Marks a content.
    pub fn mark_damaged(&self, hash: &BlobHash) -> Result<()> {
        self.writable()?;
        let (room, name) = (self.damaged_room()?, hash.to_hex());
        port::open_write(room.fd(), name.as_ref()).map_err(room.err("create", name.as_ref()))?;
        room.sync()
    }

    /// Takes the mark away, if there is one.
    pub fn unmark_damaged(&self, hash: &BlobHash) -> Result<()> {
        self.writable()?;
        self.damaged_room()?.unlink(hash.to_hex()).map(drop)
    }
}
