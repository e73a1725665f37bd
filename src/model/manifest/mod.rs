//! Manifests: the immutable, sorted table of an entry's tree.
//!
//! `layout` is the byte format, [`TreeBuilder`] makes manifests, [`Manifest`] reads them in
//! place, [`Peek`] reads single records of one that is not in memory. Invariant: a [`Manifest`] that exists was validated completely, so its accessors
//! cannot fail or panic, whatever bytes it was made of. Records stand in breadth-first order,
//! the children of a directory side by side and sorted by name (byte order), so that a
//! look-up is a binary search and a file's content hash one array index away.
//! Record 0 is the entry's top directory. `docs/format.md` describes the bytes.

mod builder;
mod layout;
mod peek;
mod read;
#[cfg(test)]
mod tests;

pub use builder::{Attrs, Content, NodeId, TreeBuilder, TreeError};
pub use layout::Record;
pub use peek::{Child, Looks, Peek, Verified};
pub use read::{FormatError, Manifest, RecordKind};

use serde::{Deserialize, Serialize};

use super::hash::ManifestHash;
use super::key::EntryKey;

/// Most bytes of a directory's path below its entry's top: twice what a system call takes. Deeper trees can be made (`cd` and
/// `mkdir` in turn) and then be named by nobody, and all that goes through them would take time and memory by their depth.
pub const MAX_DIR_PATH: usize = 8192;

/// The length of the path of `name` in a directory, whose own path has `above` bytes: 0 at the top.
pub fn path_len(above: usize, name: &[u8]) -> usize {
    above + usize::from(above > 0) + name.len()
}

/// What a file's content is named by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigestKind {
    /// BLAKE3; what is larger than a group can be checked group by group.
    Blake3 = 0,
    /// SHA-256: it can only be checked as a whole.
    Sha256 = 1,
    /// BLAKE3 of more than a group, whose groups are not known: it can only be checked as a whole.
    Blake3Whole = 2,
}

/// What a manifest says about the entry as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Seal {
    /// The entry's key.
    pub key: EntryKey,
    /// When it was sealed, nanoseconds since 1970.
    pub sealed_at_ns: i64,
    /// Sealed by `--seal-quiet`: not a hit for cached runs, not pushed, replaceable.
    pub inferred: bool,
    /// The manifest this one replaced, if it did.
    pub replaces: Option<ManifestHash>,
    /// How, by whom and from where.
    pub origin: Origin,
}

/// What an entry's top directory looks like: all that a look-up of the entry needs of its manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Top {
    /// Permission bits as they were.
    pub perm: u32,
    /// 2 + subdirectories.
    pub nlink: u32,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// How an entry came to be; JSON in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Origin {
    /// `rename`, `seal`, `chmod`, `quiet`, `put`, `import`, `library`.
    pub how: String,
    /// User id that asked for it.
    pub uid: u32,
    /// Host name of the machine.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// Where the tree came from: a draft's name, a source directory, `-` for a stream.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
}
