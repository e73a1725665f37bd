//! The names of what a tier keeps.

use std::fmt;

use crate::model::{BlobHash, EntryKey, PackHash, TreeHash};

/// A content-addressed object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Object {
    /// One content, and its size in bytes: some tiers have names only together with sizes.
    Blob(BlobHash, u64),
    /// Small contents one after another, or a large one compressed, and its size in bytes.
    Pack(PackHash, u64),
    /// A manifest and the places of its contents.
    Tree(TreeHash),
}

impl Object {
    /// Its path below the tier's prefix.
    pub fn path(&self) -> String {
        self.to_string()
    }

    /// Whether these bytes are what its name says.
    pub fn names(&self, bytes: &[u8]) -> bool {
        match self {
            Object::Blob(hash, size) => *size == bytes.len() as u64 && hash.names(bytes),
            _ => self.may_have(bytes.len() as u64) && self.is_hash(&blake3::hash(bytes)),
        }
    }

    /// Whether an object of so many bytes may be it.
    pub fn may_have(&self, bytes: u64) -> bool {
        !matches!(self, Object::Blob(_, size) | Object::Pack(_, size) if *size != bytes)
    }

    /// Whether this is the BLAKE3 hash in its name.
    pub fn is_hash(&self, hash: &blake3::Hash) -> bool {
        let named = match self {
            Object::Blob(hash, _) => &hash.0,
            Object::Pack(hash, _) => &hash.0,
            Object::Tree(hash) => &hash.0,
        };
        hash.as_bytes() == named
    }

    /// The path of the object that names the tree of a key.
    pub fn entry_path(key: &EntryKey) -> String {
        format!("entries/{key}")
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Blob(hash, _) => write!(f, "blobs/{hash}"),
            Object::Pack(hash, _) => write!(f, "packs/{hash}"),
            Object::Tree(hash) => write!(f, "trees/{hash}"),
        }
    }
}
