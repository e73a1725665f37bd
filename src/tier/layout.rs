//! The objects that make an entry: one under its key, which names the tree object, and that one.
//!
//! Invariants: a tree object is named by the hash of its bytes; what parses is written with the same bytes. An
//! entry object says which tree is meant, and nothing else: it is three round trips from a key to the first byte.

use std::sync::Arc;

use super::{Object, Places, Result, TierError, TierErrorKind};
use crate::model::{EntryKey, Manifest, ManifestHash, TreeHash};

/// Why bytes are not the object they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// They contradict themselves.
    #[error("{0}")]
    Damaged(&'static str),
    /// A newer outfs wrote them.
    #[error("it has version {0}, this program reads up to version {VERSION}; use a newer outfs")]
    Version(u64),
    /// The manifest inside is none.
    #[error(transparent)]
    Manifest(#[from] crate::model::manifest::FormatError),
}

const VERSION: u64 = 1;
const TREE_MAGIC: &[u8; 8] = b"OUTFSTR1";
/// A larger tree object is not fetched: nobody seals so many files.
const MOST_TREE: u64 = 1 << 30;
/// More than an entry object can have.
const MOST_ENTRY: usize = 1024;

/// Takes bytes off the front.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, n: u64) -> std::result::Result<&'a [u8], LayoutError> {
        let taken = usize::try_from(n).ok().and_then(|n| self.0.split_at_checked(n));
        let (head, rest) = taken.ok_or(LayoutError::Damaged("it is cut short"))?;
        self.0 = rest;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> std::result::Result<[u8; N], LayoutError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(LayoutError::Damaged("it is cut short"))?;
        self.0 = rest;
        Ok(*head)
    }

    pub fn u32(&mut self) -> std::result::Result<u32, LayoutError> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> std::result::Result<u64, LayoutError> {
        self.array().map(u64::from_le_bytes)
    }
}

/// What is stored under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryObject {
    /// The key.
    pub key: EntryKey,
    /// The entry's manifest.
    pub manifest: ManifestHash,
    /// The tree object.
    pub tree: TreeHash,
    /// Its bytes.
    pub tree_bytes: u64,
}

impl EntryObject {
    /// The text.
    pub fn encode(&self) -> Vec<u8> {
        let EntryObject { key, manifest, tree, tree_bytes } = self;
        let mut text = format!(
            "outfs entry\nversion {VERSION}\nkey {key}\nmanifest {manifest}\ntree {tree}\nbytes {tree_bytes}\n"
        );
        let check = blake3::hash(text.as_bytes()).to_hex();
        text.push_str(&format!("check {}\n", &check[..16]));
        text.into_bytes()
    }

    /// From its text.
    pub fn parse(bytes: &[u8]) -> std::result::Result<EntryObject, LayoutError> {
        let damaged = LayoutError::Damaged("it is no entry object, or a damaged one");
        let text =
            std::str::from_utf8(bytes).ok().filter(|t| t.len() <= MOST_ENTRY).ok_or(damaged.clone())?;
        let mut lines = text.lines();
        let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let mut parse = || {
            value("outfs").filter(|v| *v == "entry")?;
            let version: u64 = value("version")?.parse().ok()?;
            if version != VERSION {
                return Some(Err(LayoutError::Version(version)));
            }
            let key = value("key")?.parse().ok()?;
            let (manifest, tree) = (value("manifest")?.parse().ok()?, value("tree")?.parse().ok()?);
            let tree_bytes = value("bytes")?.parse().ok()?;
            Some(Ok(EntryObject { key, manifest, tree, tree_bytes }))
        };
        let entry = parse().ok_or(damaged.clone())??;
        // The check, and that nothing follows.
        if entry.encode() == bytes { Ok(entry) } else { Err(damaged) }
    }
}

/// An entry as a tier has it: the whole table of its tree, and where its contents are.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The manifest, valid.
    pub manifest: Arc<Manifest>,
    /// A place for each of its contents.
    pub places: Places,
}

impl Tree {
    /// The bytes of the tree object of this manifest and these places.
    pub fn encode(manifest: &Manifest, places: &Places) -> Vec<u8> {
        let places = places.encode();
        let mut out = Vec::with_capacity(16 + places.len() + manifest.as_bytes().len());
        out.extend_from_slice(TREE_MAGIC);
        out.extend_from_slice(&(places.len() as u64).to_le_bytes());
        out.extend_from_slice(&places);
        out.extend_from_slice(manifest.as_bytes());
        out
    }

    /// From its bytes. Their name is the caller's to check.
    pub fn parse(bytes: &[u8]) -> std::result::Result<Tree, LayoutError> {
        let mut reader = Reader(bytes);
        if reader.take(8)? != TREE_MAGIC {
            return Err(LayoutError::Damaged("it is no tree object"));
        }
        let length = reader.u64()?;
        let places = reader.take(length)?;
        let manifest = Manifest::parse(reader.0)?;
        let places = Places::parse(places, &manifest)?;
        Ok(Tree { manifest: Arc::new(manifest), places })
    }
}

/// Finds an entry in a tier that keeps these objects, two round trips away: `get_entry` gives the whole of what is stored
/// under the key, `get` a range of an object. All that comes is checked.
pub fn find_with(
    tier: &str,
    key: &EntryKey,
    get_entry: impl FnOnce() -> Result<Vec<u8>>,
    get: impl FnOnce(&Object, u64) -> Result<Vec<u8>>,
) -> Result<Tree> {
    let corrupt = |what: String, why: &dyn ToString| {
        Err(TierError::new(TierErrorKind::Corrupt, tier, "use", what, why.to_string()))
    };
    let entry = match EntryObject::parse(&get_entry()?) {
        Ok(entry) if entry.key == *key => entry,
        Ok(entry) => return corrupt(Object::entry_path(key), &format!("it is the entry {}", entry.key)),
        Err(e @ LayoutError::Version(_)) => {
            return Err(TierError::new(TierErrorKind::Permanent, tier, "use", Object::entry_path(key), e));
        }
        Err(e) => return corrupt(Object::entry_path(key), &e),
    };
    if entry.tree_bytes > MOST_TREE {
        return corrupt(Object::entry_path(key), &"it names a tree that is too large");
    }
    let object = Object::Tree(entry.tree);
    // A tree that is missing while its entry is there is damage, not absence.
    let bytes = match get(&object, entry.tree_bytes) {
        Err(e) if e.is_absent() => {
            return corrupt(object.to_string(), &"an entry names it and it is not there");
        }
        other => other?,
    };
    if !object.names(&bytes) {
        return corrupt(object.to_string(), &"its content does not have the hash in its name");
    }
    match Tree::parse(&bytes) {
        Ok(tree) if tree.manifest.seal().key == *key && tree.manifest.hash() == entry.manifest => Ok(tree),
        Ok(_) => corrupt(object.to_string(), &"it is another entry's"),
        Err(e) => corrupt(object.to_string(), &e),
    }
}
