//! Bringing one entry to a tier, in an order that leaves nothing half there.
//!
//! Invariants: contents go first, the entry last, so that death at any point leaves objects that nobody names and no
//! entry that lacks something. Putting is idempotent, and what the tier has is not sent. Must not know: where contents come
//! from, when and how often this is tried.

use std::io::{self, Read};
use std::time::Instant;

use super::{Object, Places, PlacesBuilder, Tier, TierError};
use crate::model::groups::GROUP;
use crate::model::{BlobHash, Manifest};

/// A pack is ended when it has so many bytes: many neighbours come with one request, and a put that fails is soon
/// tried again.
const PACK: u64 = 8 << 20;

/// Where an entry's contents are read from.
pub trait Source {
    /// The content of a record, from its beginning. It is read once.
    fn open(&self, record: u32) -> io::Result<Box<dyn Read + '_>>;
}

/// Why an entry did not get there.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// The tier's doing.
    #[error(transparent)]
    Tier(#[from] TierError),
    /// A content could not be read here.
    #[error("cannot read the content {hash}: {source}")]
    Content {
        /// Which.
        hash: BlobHash,
        /// Why.
        source: io::Error,
    },
}

/// Puts all contents of an entry that the tier does not have, and then the entry. Each call to the tier ends by
/// what `by` says when it begins.
pub fn ship(
    tier: &dyn Tier,
    manifest: &Manifest,
    source: &dyn Source,
    by: &dyn Fn() -> Instant,
) -> Result<Places, ShipError> {
    let packs = tier.capabilities().packs;
    let put = |object: &Object, bytes: &[u8]| {
        if tier.missing(&[*object], by())?.is_empty() {
            return Ok(());
        }
        tier.put(object, bytes.len() as u64, &mut &*bytes, by())
    };
    let mut places = PlacesBuilder::new(PACK);
    let metadata = manifest.find(b"metadata.json").and_then(|r| manifest.get(r)?.hash());
    for (hash, size, record) in manifest.blobs() {
        let small = size <= GROUP as u64;
        let failed = |source| ShipError::Content { hash, source };
        if size == 0 {
            continue;
        }
        if small && (packs || metadata == Some(hash)) {
            let mut bytes = Vec::with_capacity(size as usize);
            source.open(record).and_then(|s| s.take(size).read_to_end(&mut bytes)).map_err(failed)?;
            if metadata == Some(hash) {
                // Whether an entry is a hit is in there.
                places.carry(&bytes);
            } else if let Some((object, bytes)) = places.pack(&bytes) {
                put(&object, &bytes)?;
            }
        } else if !tier.missing(&[Object::Blob(hash)], by())?.is_empty() {
            let mut content = source.open(record).map_err(failed)?;
            tier.put(&Object::Blob(hash), size, &mut content, by())?;
        }
    }
    if let Some((object, bytes)) = places.end_pack() {
        put(&object, &bytes)?;
    }
    let places = places.finish(manifest);
    tier.publish(manifest, &places, by())?;
    Ok(places)
}
