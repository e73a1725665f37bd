//! Entries of actions by their hash alone: `<hash>` for the entry `<hash>-<size>`, whose name is the digest of an action.
//!
//! Invariants: what is known of sizes is the index's, taken in by row as far as there are rows whenever somebody asks, so that
//! nobody else need know of it; an alias leads to an entry that is here. Must not know: who asks, what an action is.

use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;

use super::{Cache, Result};
use crate::model::{BlobHash, EntryKey};

/// Sizes that are remembered: of the entries that were made last, or asked for.
const SIZES: NonZeroUsize = NonZeroUsize::new(100_000).unwrap();
/// Keys that are taken in together.
const PAGE: usize = 1000;

/// The sizes, and how far the index was taken in.
pub(super) struct Aliases(Mutex<Sizes>);

struct Sizes {
    epoch: u32,
    after: i64,
    of: LruCache<BlobHash, u64>,
}

impl Default for Aliases {
    fn default() -> Self {
        Aliases(Mutex::new(Sizes { epoch: 0, after: 0, of: LruCache::new(SIZES) }))
    }
}

fn key_of(hash: &BlobHash, size: u64) -> Option<EntryKey> {
    EntryKey::parse(&format!("{hash}-{size}")).ok()
}

/// Hash and size, where that is what a key is.
fn parts(key: &EntryKey) -> Option<(BlobHash, u64)> {
    let (hash, size) = key.as_str().split_once('-')?;
    let (hash, size) = (hash.parse().ok()?, size.parse().ok()?);
    (key_of(&hash, size).as_ref() == Some(key)).then_some((hash, size))
}

impl Cache {
    /// The key of the entry here that `key` is the hash of: of several the one that was made last.
    pub fn alias(&self, key: &EntryKey) -> Result<Option<EntryKey>> {
        let Ok(hash) = key.as_str().parse() else { return Ok(None) };
        let index = &self.inner.index;
        let mut sizes = self.inner.aliases.0.lock();
        if sizes.epoch != index.epoch() {
            *sizes = Sizes { epoch: index.epoch(), after: 0, of: LruCache::new(SIZES) };
        }
        loop {
            let page = index.keys_after(sizes.after, PAGE)?;
            for (id, key) in &page {
                sizes.after = *id;
                parts(key).map(|(hash, size)| sizes.of.put(hash, size));
            }
            if page.len() < PAGE {
                break;
            }
        }
        let alias = sizes.of.get(&hash).and_then(|size| key_of(&hash, *size));
        drop(sizes);
        match alias {
            Some(key) if index.glance(&key)?.is_some() => Ok(Some(key)),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_actions_have_parts() {
        let hash = BlobHash::of(b"x");
        let of = |text: String| parts(&text.parse().unwrap());
        assert_eq!(of(format!("{hash}-142")), Some((hash, 142)));
        for other in [format!("{hash}"), format!("{hash}-"), format!("{hash}-0142"), format!("{hash}-+1")] {
            assert_eq!(of(other.clone()), None, "{other}");
        }
    }
}
