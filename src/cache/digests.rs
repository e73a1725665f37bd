//! Both names of a content: BLAKE3 and SHA-256, one of which it is stored by.
//!
//! Invariants: a name was found by hashing all of the content; what has to be asked of a tier is not asked for it. Nothing depends
//! on what is remembered of it. Must not know: why it is asked.

use super::{Cache, Entry, Result};
use crate::model::BlobHash;
use crate::model::groups::{GROUP, GroupHasher};

/// Bytes that are read at a time.
const PIECE: usize = 4 * GROUP;
/// So many are written down at once.
const AT_ONCE: usize = 4096;

impl Cache {
    /// Remembers contents' names here with their other names. What cannot be is found again.
    pub(super) fn note_digests(&self, pairs: Vec<(BlobHash, BlobHash)>) {
        // Others' changes go between.
        for some in pairs.chunks(AT_ONCE) {
            if let Err(e) = self.inner.index.note_digests(some.to_vec()) {
                return tracing::debug!("digests are not remembered: {e}");
            }
        }
    }
}

impl Entry {
    /// The other name of a content, if it is known.
    pub(super) fn known_digest(&self, hash: &BlobHash) -> Option<BlobHash> {
        self.cache().inner.index.other_digest(hash).ok().flatten()
    }

    /// BLAKE3 of a file's content. Where it is named by SHA-256 all of it is read for that, once; `None` where it is not here, or is no file.
    pub fn blake3(&self, record: u32) -> Result<Option<BlobHash>> {
        let manifest = self.manifest()?;
        let Some(rec) = manifest.get(record) else { return Ok(None) };
        let Some(hash) = rec.sha256() else { return Ok(rec.blake3()) };
        if let Some(known) = self.known_digest(&hash) {
            return Ok(Some(known));
        }
        let (mut hasher, mut at, mut piece) = (GroupHasher::default(), 0, vec![0; PIECE]);
        while at < rec.size() {
            if self.is_remote(record)? {
                return Ok(None);
            }
            match self.read(record, at, &mut piece)? {
                0 => break,
                n => {
                    hasher.update(&piece[..n]);
                    at += n as u64;
                }
            }
        }
        let blake3 = hasher.finish().0;
        self.cache().note_digests(vec![(hash, blake3)]);
        Ok(Some(blake3))
    }

    /// SHA-256 of a file's content, where that is its name, or was found when it went to a tier that names by it.
    pub fn sha256(&self, record: u32) -> Result<Option<BlobHash>> {
        let manifest = self.manifest()?;
        let Some(rec) = manifest.get(record) else { return Ok(None) };
        Ok(rec.sha256().or_else(|| self.known_digest(&rec.hash()?)))
    }

    /// Whether `blake3` has to read all of a content.
    pub fn has_to_hash(&self, record: u32) -> Result<bool> {
        let manifest = self.manifest()?;
        let named = manifest.get(record).and_then(|rec| rec.sha256());
        Ok(named.is_some_and(|hash| self.known_digest(&hash).is_none()))
    }
}
