//! The second name of a content: by SHA-256 where it is named by BLAKE3 here, by BLAKE3 where it is named by SHA-256.
//!
//! Invariants: a row is of a blob that the index has and goes with it; it was found by hashing all of the content, and is nobody's word.
//! Lost with the index at no harm. Must not know: which of the two names is which.

use rusqlite::{OptionalExtension, params};

use super::{Index, Result, sqlite};
use crate::model::BlobHash;

impl Index {
    /// Contents by their names here, and their other names.
    pub fn note_digests(&self, pairs: Vec<(BlobHash, BlobHash)>) -> Result<()> {
        self.writer.run(move |db| {
            let mut note = db
                .prepare_cached(
                    "INSERT OR IGNORE INTO digests(hash, other)
                        SELECT ?1, ?2 WHERE EXISTS (SELECT 1 FROM blobs WHERE hash = ?1)",
                )
                .map_err(sqlite("note a digest"))?;
            for (hash, other) in &pairs {
                note.execute(params![hash.0, other.0]).map_err(sqlite("note a digest"))?;
            }
            Ok(())
        })
    }

    /// The other name of a content, if it is known.
    pub fn other_digest(&self, hash: &BlobHash) -> Result<Option<BlobHash>> {
        self.readers.with("look up a digest", |db| {
            let mut q = db.prepare_cached("SELECT other FROM digests WHERE hash = ?1")?;
            q.query_row([&hash.0], |r| r.get(0).map(BlobHash)).optional()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{done, entry, key, manifest, open};
    use crate::model::BlobHash;
    use crate::store::Location;

    #[test]
    fn a_digest_is_known_as_long_as_its_blob() {
        let (_dir, index) = open();
        let blob = |n: u8| BlobHash::of(&[n]);
        let commit = || done(index.commit(entry(1, 1, vec![(blob(1), 9, Location::Loose)], vec![])).unwrap());
        commit();
        index.note_digests(vec![(blob(1), blob(101)), (blob(2), blob(102))]).unwrap();
        assert_eq!(index.other_digest(&blob(1)).unwrap(), Some(blob(101)));
        assert_eq!(index.other_digest(&blob(2)).unwrap(), None, "there is no such blob");
        assert_eq!(index.other_digest(&blob(101)).unwrap(), None);
        index.remove_entry(&key(1), &manifest(1), &[blob(1)], &|_| false).unwrap().unwrap();
        index.drop_unreferenced(vec![blob(1)]).unwrap();
        commit();
        assert_eq!(index.other_digest(&blob(1)).unwrap(), None, "it went with the blob");
    }
}
