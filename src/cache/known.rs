//! Files of a tree that are as an entry has them: their content is known without being read.
//!
//! Invariant: what is not certain (another size, a blob that is not stored) is read as ever. Must not know: how the
//! caller knows that a file did not change.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::content::Storer;
use super::walk::{From, Plan};
use super::{Entry, Result};
use crate::model::manifest::{Content, DigestKind};
use crate::model::{Manifest, RecordKind};

/// So many are looked up at a time.
const BATCH: usize = 512;

/// An entry that a tree was made from.
pub(super) struct Known {
    /// Held, so that its blobs stay.
    _entry: Entry,
    manifest: Arc<Manifest>,
    changed: HashSet<Vec<u8>>,
}

impl Known {
    /// Of an entry's `outputs/`; `changed` are the files that are not as it has them.
    pub fn new(entry: Entry, changed: &[PathBuf]) -> Result<Known> {
        use std::os::unix::ffi::OsStrExt;
        let manifest = entry.manifest()?;
        let changed = changed.iter().map(|p| p.as_os_str().as_bytes().to_vec()).collect();
        Ok(Known { _entry: entry, manifest, changed })
    }

    fn content(&self, below: &[u8], size: u64) -> Option<Content> {
        if self.changed.contains(below) {
            return None;
        }
        let index = self.manifest.find(&[b"outputs/", below].concat())?;
        let record = self.manifest.get(index).filter(|r| r.kind() == RecordKind::File && r.size() == size)?;
        // Of what came under another name only that name is known.
        let named = record.digest_kind() == Some(DigestKind::Blake3);
        let content = Content { hash: record.hash()?, size, groups: self.manifest.groups(index).to_vec() };
        named.then_some(content)
    }
}

impl Storer<'_> {
    /// Fills in what is known and stored, by position in the plan's sources.
    pub(super) fn store_known(&self, plan: &Plan, of: &mut [Option<Content>]) -> Result<()> {
        let (Some(known), Some(tree)) = (self.known, &plan.tree) else { return Ok(()) };
        let mut batch = Vec::new();
        for (i, source) in plan.sources.iter().enumerate() {
            if let From::Tree { dir, name, id } = &source.from
                && let Some(content) = known.content(&tree.below(*dir, name), id.size)
            {
                batch.push((i, content));
            }
            if batch.len() >= BATCH || i + 1 == plan.sources.len() {
                let contents: Vec<&Content> = batch.iter().map(|(_, c)| c).collect();
                let stored = self.stash.have(self.cache, &contents)?;
                for ((i, content), stored) in batch.drain(..).zip(stored) {
                    of[i] = stored.then_some(content);
                }
            }
        }
        Ok(())
    }
}
