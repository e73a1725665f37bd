//! Bringing one entry to a tier, in an order that leaves nothing half there.
//!
//! Invariants: contents go first, the entry last, so that death at any point leaves objects that nobody names and no
//! entry that lacks something. Putting is idempotent, and what the tier has is not sent. Must not know: where contents come
//! from, when and how often this is tried.

use std::collections::HashSet;
use std::io::{self, Read};
use std::time::Instant;

use super::compressed::{Compressed, Compressing, Form};
use super::{Object, Places, PlacesBuilder, Tier, TierError};
use crate::model::groups::{GROUP, GroupHasher};
use crate::model::hash::Sha256;
use crate::model::manifest::DigestKind;
use crate::model::{BlobHash, Manifest};

/// A pack is ended when it has so many bytes: many neighbours come with one request, and a put that fails is soon
/// tried again.
const PACK: u64 = 8 << 20;
/// Contents that are looked for together.
const TOGETHER: usize = 1000;
/// Bytes of small contents that are sent together.
const SENT_TOGETHER: usize = 4 << 20;
/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// Where an entry's contents are read from.
pub trait Source {
    /// The content of a record, from its beginning.
    fn open(&self, record: u32) -> io::Result<Box<dyn Read + '_>>;

    /// The form that a content of more than a group was found to be brought in, by this program.
    fn made(&self, _hash: &BlobHash) -> Option<Form> {
        None
    }

    /// The form that another tier has it in.
    fn elsewhere(&self, _hash: &BlobHash) -> Option<Form> {
        None
    }

    /// Remembers the form that it is brought in.
    fn note_made(&self, _hash: &BlobHash, _form: &Form) {}

    /// What a record's content, which is named by another digest here, is named by this one.
    fn other_name(&self, _hash: &BlobHash, record: u32, naming: DigestKind) -> io::Result<BlobHash> {
        name_of(&mut *self.open(record)?, naming)
    }
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
    /// The tier has no words for it.
    #[error("it cannot be said there: {0}")]
    Unsuitable(String),
}

/// Puts all contents of an entry that the tier does not have, and then the entry. Each call to the tier ends by
/// what `by` says when it begins.
pub fn ship(
    tier: &dyn Tier,
    manifest: &Manifest,
    source: &dyn Source,
    by: &dyn Fn() -> Instant,
) -> Result<Places, ShipError> {
    if let Some(why) = tier.unsuitable(manifest) {
        return Err(ShipError::Unsuitable(why));
    }
    if !tier.capabilities().packs {
        return ship_each(tier, manifest, source, by);
    }
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
        if small {
            let mut bytes = Vec::with_capacity(size as usize);
            source.open(record).and_then(|s| s.take(size).read_to_end(&mut bytes)).map_err(failed)?;
            if metadata == Some(hash) {
                // Whether an entry is a hit is in there.
                places.carry(&bytes);
            } else if let Some((object, bytes)) = places.pack(&bytes) {
                put(&object, &bytes)?;
            }
            continue;
        }
        if let Form::Compressed(to) = ship_large(tier, manifest, source, (hash, size, record), by)? {
            places.compressed(hash, &to);
        }
    }
    if let Some((object, bytes)) = places.end_pack() {
        put(&object, &bytes)?;
    }
    let places = places.finish(manifest);
    tier.publish(manifest, &places, by())?;
    Ok(places)
}

/// Puts a content of more than a group, unless the tier has it in a form that is known.
fn ship_large(
    tier: &dyn Tier,
    manifest: &Manifest,
    source: &dyn Source,
    (hash, size, record): (BlobHash, u64, u32),
    by: &dyn Fn() -> Instant,
) -> Result<Form, ShipError> {
    let failed = |source| ShipError::Content { hash, source };
    let object = |form: &Form| match form {
        Form::AsItIs => Object::Blob(hash, size),
        Form::Compressed(to) => to.object(),
    };
    let (elsewhere, made) = (source.elsewhere(&hash), source.made(&hash));
    // As it is everywhere else, so that one table of places is true of all tiers.
    let wanted = elsewhere.as_ref().or(made.as_ref()).unwrap_or(&Form::AsItIs);
    if tier.missing(&[object(wanted)], by())?.is_empty() {
        return Ok(wanted.clone());
    }
    let asked = object(wanted);
    // What another program compressed may not come out the same here.
    let known = elsewhere.filter(|form| *form == Form::AsItIs).or(made);
    let (form, kept) = match (known, manifest.groups(record)) {
        (Some(form), _) => (form, None),
        // It comes only as a whole.
        (None, []) => (Form::AsItIs, None),
        (None, _) => {
            let content = source.open(record).map_err(failed)?;
            match Compressed::of(content, size).map_err(failed)? {
                Some((to, kept)) => (Form::Compressed(to), kept),
                None => (Form::AsItIs, None),
            }
        }
    };
    source.note_made(&hash, &form);
    let object = object(&form);
    if object != asked && tier.missing(&[object], by())?.is_empty() {
        return Ok(form);
    }
    let mut content = source.open(record).map_err(failed)?;
    match (&form, kept) {
        (Form::Compressed(to), Some(all)) => tier.put(&object, to.bytes, &mut &all[..], by())?,
        (Form::Compressed(to), None) => {
            let mut content = Compressing::new(content, size).map_err(failed)?;
            tier.put(&object, to.bytes, &mut content, by())?;
        }
        (Form::AsItIs, _) => tier.put(&object, size, &mut content, by())?,
    }
    Ok(form)
}

/// The same, to a tier where each content is an object of its own, by whatever name.
fn ship_each(
    tier: &dyn Tier,
    manifest: &Manifest,
    source: &dyn Source,
    by: &dyn Fn() -> Instant,
) -> Result<Places, ShipError> {
    let naming = tier.naming(by())?;
    let mut places = PlacesBuilder::new(PACK);
    let mut objects = Vec::new();
    for (hash, size, record) in manifest.blobs().into_iter().filter(|(_, size, _)| *size > 0) {
        let failed = |source| ShipError::Content { hash, source };
        let named_by = manifest.get(record).and_then(|r| r.digest_kind());
        let is_sha256 = |kind| kind == DigestKind::Sha256;
        let name = match named_by.map(is_sha256) == Some(is_sha256(naming)) {
            true => hash,
            false => source.other_name(&hash, record, naming).map_err(failed)?,
        };
        places.name(hash, name);
        objects.push((Object::Blob(name, size), hash, record));
    }
    if let Some(record) = manifest.find(b"metadata.json") {
        let (hash, size) = manifest.get(record).map_or((None, 0), |r| (r.hash(), r.size()));
        if let Some(hash) = hash.filter(|_| size <= GROUP as u64) {
            let mut bytes = Vec::with_capacity(size as usize);
            let read = source.open(record).and_then(|s| s.take(size).read_to_end(&mut bytes));
            read.map_err(|source| ShipError::Content { hash, source })?;
            places.carry(&bytes);
        }
    }
    for some in objects.chunks(TOGETHER) {
        let wanted: Vec<Object> = some.iter().map(|(object, ..)| *object).collect();
        let missing: HashSet<Object> = tier.missing(&wanted, by())?.into_iter().collect();
        let (mut small, mut bytes) = (Vec::new(), 0);
        for (object, hash, record) in some.iter().filter(|(object, ..)| missing.contains(object)) {
            let Object::Blob(_, size) = object else { continue };
            let failed = |source| ShipError::Content { hash: *hash, source };
            let mut content = source.open(*record).map_err(failed)?;
            if *size > GROUP as u64 {
                tier.put(object, *size, &mut content, by())?;
                continue;
            }
            let mut all = Vec::with_capacity(*size as usize);
            content.take(*size + 1).read_to_end(&mut all).map_err(failed)?;
            bytes += all.len();
            small.push((*object, all));
            if bytes >= SENT_TOGETHER {
                tier.put_all(&std::mem::take(&mut small), by())?;
                bytes = 0;
            }
        }
        if !small.is_empty() {
            tier.put_all(&small, by())?;
        }
    }
    let places = places.finish(manifest);
    tier.publish(manifest, &places, by())?;
    Ok(places)
}

/// The name of a content by this digest.
pub fn name_of(content: &mut dyn Read, naming: DigestKind) -> io::Result<BlobHash> {
    let (mut sha256, mut blake3) = (Sha256::default(), GroupHasher::default());
    let mut piece = vec![0; PIECE];
    loop {
        let n = content.read(&mut piece)?;
        match naming {
            _ if n == 0 => break,
            DigestKind::Sha256 => sha256.update(&piece[..n]),
            _ => blake3.update(&piece[..n]),
        }
    }
    Ok(if naming == DigestKind::Sha256 { sha256.finish() } else { blake3.finish().0 })
}
