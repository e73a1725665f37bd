//! Where the contents of one manifest are in a tier.
//!
//! Invariants: there is a place for each distinct content of the manifest, and what it says lies inside the pack or
//! among the bytes that are carried along; a content of more than one group is an object of its own, as it is or compressed; an
//! empty one is nowhere, since nothing of it needs to be fetched. Bytes that parse are written with the same bytes. Must not know: which tier.

use std::collections::HashMap;
use std::ops::Range;

use super::Object;
use super::compressed::{Compressed, Form, LENGTH, Lengths};
use super::layout::{LayoutError, Reader};
use crate::model::groups::{GROUP, bytes_of};
use crate::model::{BlobHash, Manifest, ManifestHash, PackHash};

const MAGIC: &[u8; 8] = b"OUTFSPL1";
/// Magic, manifest and three numbers.
const HEADER: usize = 8 + 32 + 4 + 4 + 8;
/// The hash of all bytes before it.
const CHECK: usize = 32;
/// Contents in packs, and those carried along, have at most so many bytes.
const SMALL: u64 = GROUP as u64;

/// What a place's first number means; packs follow.
const OWN: u64 = 0;
const CARRIED: u64 = 1;
const PACKS: u64 = 2;

/// Where a content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// An object of its own; an empty content has none.
    Own,
    /// Among the bytes that are carried along, from this offset on.
    Carried(u64),
    /// In the pack with this index, from this offset on.
    Pack(u32, u64),
    /// All that is in the pack with this index, compressed by groups, whose lengths are carried along from this offset on.
    Compressed(u32, u64),
}

/// A large content, as a tier has it.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    hash: BlobHash,
    size: u64,
    compressed: Option<(Object, Lengths<'a>)>,
}

impl Stored<'_> {
    /// In which object these groups are, and which range of it.
    pub fn at(&self, groups: Range<u64>) -> (Object, Range<u64>) {
        match &self.compressed {
            Some((pack, lengths)) => (*pack, lengths.range(groups)),
            None => (Object::Blob(self.hash, self.size), bytes_of(self.size, groups)),
        }
    }

    /// These groups, unverified, of the bytes that are there; `None` when they cannot be.
    pub fn groups(&self, groups: Range<u64>, bytes: Vec<u8>) -> Option<Vec<u8>> {
        match &self.compressed {
            Some((_, lengths)) => lengths.expand(self.size, groups, &bytes),
            None => Some(bytes),
        }
    }
}

/// The places of all contents of one manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    manifest: ManifestHash,
    packs: Vec<(PackHash, u64)>,
    /// In the order of the contents' first records.
    places: Vec<(BlobHash, u64, Place)>,
    by_hash: HashMap<BlobHash, usize>,
    /// Those in packs, by pack and offset.
    packed: Vec<(u32, u64, usize)>,
    /// The small ones that are objects of their own, in that order, and how many bytes come before each.
    alone: Vec<(u64, usize)>,
    carried: Vec<u8>,
    /// What the tier calls contents that it does not call by their names here; not kept.
    names: HashMap<BlobHash, BlobHash>,
}

impl Places {
    /// The manifest whose contents they are.
    pub fn manifest(&self) -> ManifestHash {
        self.manifest
    }

    /// The packs, and their lengths in bytes.
    pub fn packs(&self) -> &[(PackHash, u64)] {
        &self.packs
    }

    /// Each distinct content with its size and its place, in the order of their first records.
    pub fn contents(&self) -> &[(BlobHash, u64, Place)] {
        &self.places
    }

    /// The size and the place of a content.
    pub fn get(&self, hash: &BlobHash) -> Option<(u64, Place)> {
        let (_, size, place) = self.places[*self.by_hash.get(hash)?];
        Some((size, place))
    }

    /// What the tier calls a content.
    pub fn named(&self, hash: &BlobHash) -> BlobHash {
        self.names.get(hash).copied().unwrap_or(*hash)
    }

    /// Whether the tier calls all contents by their names here, so that these places are enough to read them from there.
    pub fn are_enough(&self) -> bool {
        self.names.is_empty()
    }

    /// A content that is carried along: its bytes, unverified.
    pub fn carried(&self, hash: &BlobHash) -> Option<&[u8]> {
        match self.get(hash)? {
            (size, Place::Carried(offset)) => self.carried.get(offset as usize..(offset + size) as usize),
            _ => None,
        }
    }

    /// In which object a content is, and which range of it; `None` for one that is unknown, empty or carried along.
    pub fn object(&self, hash: &BlobHash) -> Option<(Object, Range<u64>)> {
        match self.get(hash)? {
            (0, _) | (_, Place::Carried(_)) => None,
            (size, Place::Own) => Some((Object::Blob(*hash, size), 0..size)),
            (size, Place::Pack(pack, offset)) => {
                let (pack, length) = self.packs[pack as usize];
                Some((Object::Pack(pack, length), offset..offset + size))
            }
            (_, Place::Compressed(pack, _)) => {
                let (pack, length) = self.packs[pack as usize];
                Some((Object::Pack(pack, length), 0..length))
            }
        }
    }

    /// How the tier has a content of more than one group; `None` for one that is unknown or smaller.
    pub fn stored(&self, hash: &BlobHash) -> Option<Stored<'_>> {
        let (size, place) = self.get(hash).filter(|(size, _)| *size > SMALL)?;
        let compressed = match place {
            Place::Compressed(pack, table) => {
                let (pack, length) = self.packs[pack as usize];
                Some((Object::Pack(pack, length), lengths(&self.carried, table, size)?))
            }
            _ => None,
        };
        Some(Stored { hash: *hash, size, compressed })
    }

    /// The same, to have another tier have it so.
    pub fn form(&self, hash: &BlobHash) -> Option<Form> {
        Some(match self.stored(hash)?.compressed {
            Some((Object::Pack(hash, bytes), lengths)) => {
                Form::Compressed(Compressed { hash, bytes, lengths: lengths.0.into() })
            }
            _ => Form::AsItIs,
        })
    }

    /// The contents that begin in this range of an object that is a pack, and where they lie in it.
    pub fn in_pack(&self, object: &Object, range: Range<u64>) -> Vec<(BlobHash, Range<u64>)> {
        let mut found = Vec::new();
        let named = |(n, (hash, size)): (usize, &(PackHash, u64))| {
            (Object::Pack(*hash, *size) == *object).then_some(n as u32)
        };
        for pack in self.packs.iter().enumerate().filter_map(named) {
            let from = self.packed.partition_point(|(p, at, _)| (*p, *at) < (pack, range.start));
            let inside = self.packed[from..].iter().take_while(|(p, at, _)| *p == pack && *at < range.end);
            found.extend(inside.map(|(_, at, i)| (self.places[*i].0, *at..at + self.places[*i].1)));
        }
        found
    }

    /// The small contents around this one, in the order of their first records, that are objects of their own as it is, with their sizes:
    /// about `most` bytes, where each counts as 1 KiB at least, and the same ones whichever of them is asked for. None where it is not
    /// such a one.
    pub fn around(&self, hash: &BlobHash, most: u64) -> Vec<(BlobHash, u64)> {
        let of = |hash| self.alone.binary_search_by_key(self.by_hash.get(hash)?, |(_, i)| *i).ok();
        let Some(window) = of(hash).map(|n| self.alone[n].0 / most) else { return Vec::new() };
        let from = self.alone.partition_point(|(before, _)| before / most < window);
        let around = self.alone[from..].iter().take_while(|(before, _)| before / most == window);
        around.map(|(_, i)| (self.places[*i].0, self.places[*i].1)).collect()
    }

    /// All objects that the contents are in, each once.
    pub fn objects(&self) -> Vec<Object> {
        let packs = self.packs.iter().map(|(hash, size)| Object::Pack(*hash, *size));
        let own = |(hash, size, place): &(BlobHash, u64, Place)| {
            (*place == Place::Own && *size > 0).then_some(Object::Blob(*hash, *size))
        };
        packs.chain(self.places.iter().filter_map(own)).collect()
    }

    /// How many bytes they take.
    pub fn encoded_len(&self) -> usize {
        HEADER + self.packs.len() * 40 + self.places.len() * 16 + self.carried.len() + CHECK
    }

    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(self.manifest.as_bytes());
        out.extend_from_slice(&(self.packs.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.places.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.carried.len() as u64).to_le_bytes());
        for (hash, length) in &self.packs {
            out.extend_from_slice(hash.as_bytes());
            out.extend_from_slice(&length.to_le_bytes());
        }
        for (_, _, place) in &self.places {
            let (kind, offset) = match *place {
                Place::Own => (OWN, 0),
                Place::Carried(offset) => (CARRIED, offset),
                Place::Pack(pack, offset) | Place::Compressed(pack, offset) => {
                    (PACKS + u64::from(pack), offset)
                }
            };
            out.extend_from_slice(&kind.to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
        }
        out.extend_from_slice(&self.carried);
        let check = blake3::hash(&out);
        out.extend_from_slice(check.as_bytes());
        out
    }

    /// Those of this manifest, from their bytes.
    pub fn parse(bytes: &[u8], manifest: &Manifest) -> Result<Places, LayoutError> {
        let end = bytes.len().checked_sub(CHECK).ok_or(LayoutError::Damaged("the places are cut short"))?;
        let (body, check) = bytes.split_at(end);
        if blake3::hash(body).as_bytes() != check {
            return Err(LayoutError::Damaged("the places do not have their checksum"));
        }
        let mut reader = Reader(body);
        if reader.take(8)? != MAGIC {
            return Err(LayoutError::Damaged("these are no places"));
        }
        if reader.array()? != manifest.hash().0 {
            return Err(LayoutError::Damaged("the places are another manifest's"));
        }
        let (packs, places, carried) = (reader.u32()?, reader.u32()?, reader.u64()?);
        let contents = manifest.blobs();
        if contents.len() != places as usize {
            return Err(LayoutError::Damaged("there is not a place for each content"));
        }
        // A length that lies ends the reading before it costs memory.
        let packs: Vec<_> = (0..packs)
            .map(|_| Ok((PackHash(reader.array()?), reader.u64()?)))
            .collect::<Result<_, LayoutError>>()?;
        let places: Vec<_> = contents
            .into_iter()
            .map(|(hash, size, record)| {
                let place = place_of(reader.u64()?, reader.u64()?, size, &packs, carried)?;
                // Without the values of its groups it could not be checked in parts.
                if matches!(place, Place::Compressed(..)) && manifest.groups(record).is_empty() {
                    return Err(LayoutError::Damaged("a content that comes only as a whole is compressed"));
                }
                Ok((hash, size, place))
            })
            .collect::<Result<_, LayoutError>>()?;
        if overlap(&places) {
            return Err(LayoutError::Damaged("contents lie over each other"));
        }
        let carried_bytes = reader.take(carried)?.to_vec();
        if !reader.0.is_empty() {
            return Err(LayoutError::Damaged("something follows the places"));
        }
        for (_, size, place) in &places {
            let Place::Compressed(pack, table) = *place else { continue };
            let right = |lengths: Lengths<'_>| lengths.are_right(*size, packs[pack as usize].1);
            if !lengths(&carried_bytes, table, *size).is_some_and(right) {
                return Err(LayoutError::Damaged("a compressed content is not as long as its groups"));
            }
        }
        Ok(Places::new(manifest.hash(), packs, places, carried_bytes))
    }

    fn new(
        manifest: ManifestHash,
        packs: Vec<(PackHash, u64)>,
        places: Vec<(BlobHash, u64, Place)>,
        carried: Vec<u8>,
    ) -> Places {
        let by_hash = places.iter().enumerate().map(|(i, (hash, _, _))| (*hash, i)).collect();
        let (mut packed, mut alone, mut before) = (Vec::new(), Vec::new(), 0);
        for (i, (_, size, place)) in places.iter().enumerate() {
            match *place {
                Place::Pack(pack, offset) => packed.push((pack, offset, i)),
                Place::Own if (1..=SMALL).contains(size) => {
                    alone.push((before, i));
                    before += (*size).max(1024);
                }
                _ => {}
            }
        }
        packed.sort_unstable();
        Places { manifest, packs, places, by_hash, packed, alone, carried, names: HashMap::new() }
    }
}

/// The lengths that are carried along from this offset on, of a content of this size.
fn lengths(carried: &[u8], table: u64, size: u64) -> Option<Lengths<'_>> {
    let end = table.checked_add(table_bytes(size))?;
    let (lengths, _) = carried.get(usize::try_from(table).ok()?..usize::try_from(end).ok()?)?.as_chunks();
    Some(Lengths(lengths))
}

/// Bytes of the lengths of a content of this size.
fn table_bytes(size: u64) -> u64 {
    size.div_ceil(GROUP as u64) * LENGTH
}

/// Whether two contents share bytes: a few could stand for any number of contents, which would all be stored here.
fn overlap(places: &[(BlobHash, u64, Place)]) -> bool {
    let mut spans: Vec<_> = places
        .iter()
        .flat_map(|(_, size, place)| match *place {
            Place::Own => [None, None],
            Place::Carried(offset) => [Some((None, offset, offset + size)), None],
            Place::Pack(pack, offset) => [Some((Some(pack), offset, offset + size)), None],
            Place::Compressed(pack, table) => {
                [Some((Some(pack), 0, u64::MAX)), Some((None, table, table + table_bytes(*size)))]
            }
        })
        .flatten()
        .collect();
    spans.sort_unstable();
    spans.windows(2).any(|two| two[0].0 == two[1].0 && two[0].2 > two[1].1)
}

/// What the two numbers of a place say of a content of this size.
fn place_of(
    kind: u64,
    offset: u64,
    size: u64,
    packs: &[(PackHash, u64)],
    carried: u64,
) -> Result<Place, LayoutError> {
    let outside = Err(LayoutError::Damaged("a content lies outside of where it should be"));
    if kind == OWN {
        return if offset == 0 { Ok(Place::Own) } else { outside };
    }
    let (room, size, place) = match kind {
        CARRIED if size <= SMALL => (carried, size, Place::Carried(offset)),
        CARRIED => return outside,
        pack => {
            let pack = u32::try_from(pack - PACKS).ok();
            match pack.and_then(|index| Some((index, packs.get(index as usize)?.1))) {
                Some((index, length)) if size <= SMALL => (length, size, Place::Pack(index, offset)),
                Some((index, _)) => (carried, table_bytes(size), Place::Compressed(index, offset)),
                None => return outside,
            }
        }
    };
    let inside = offset.checked_add(size).is_some_and(|end| end <= room);
    if inside && size > 0 { Ok(place) } else { outside }
}

/// Makes places, and the packs they name, of the contents of one manifest.
///
/// Contents come in the order in which they shall lie side by side, each once.
pub struct PlacesBuilder {
    target: u64,
    packs: Vec<(PackHash, u64)>,
    /// Those of compressed contents, which come after the others.
    large: Vec<(PackHash, u64)>,
    placed: HashMap<BlobHash, Place>,
    filling: Vec<u8>,
    carried: Vec<u8>,
    names: HashMap<BlobHash, BlobHash>,
}

impl PlacesBuilder {
    /// Packs are ended when they have `target` bytes.
    pub fn new(target: u64) -> PlacesBuilder {
        let (packs, large, placed) = (Vec::new(), Vec::new(), HashMap::new());
        let (filling, carried, names) = (Vec::new(), Vec::new(), HashMap::new());
        PlacesBuilder { target, packs, large, placed, filling, carried, names }
    }

    /// A content that is to be found with the entry itself. It has at most 256 KiB.
    pub fn carry(&mut self, content: &[u8]) {
        debug_assert!(content.len() as u64 <= SMALL);
        let place = Place::Carried(self.carried.len() as u64);
        if !content.is_empty() && self.placed.insert(BlobHash::of(content), place).is_none() {
            self.carried.extend_from_slice(content);
        }
    }

    /// The tier calls a content by another name.
    pub fn name(&mut self, hash: BlobHash, there: BlobHash) {
        if hash != there {
            self.names.insert(hash, there);
        }
    }

    /// A content that goes into a pack. It has at most 256 KiB. Returns a pack that is full now, to be put.
    pub fn pack(&mut self, content: &[u8]) -> Option<(Object, Vec<u8>)> {
        debug_assert!(content.len() as u64 <= SMALL);
        if content.is_empty() {
            return None;
        }
        let place = Place::Pack(self.packs.len() as u32, self.filling.len() as u64);
        if self.placed.contains_key(&BlobHash::of(content)) {
            return None;
        }
        self.placed.insert(BlobHash::of(content), place);
        self.filling.extend_from_slice(content);
        if self.filling.len() as u64 >= self.target { self.end_pack() } else { None }
    }

    /// A content of more than a group is there compressed, in a pack of its own.
    pub(super) fn compressed(&mut self, hash: BlobHash, to: &Compressed) {
        let (pack, table) = (self.large.len() as u32, self.carried.len() as u64);
        self.carried.extend_from_slice(to.lengths.as_flattened());
        self.placed.insert(hash, Place::Compressed(pack, table));
        self.large.push((to.hash, to.bytes));
    }

    /// The last pack, if anything is in it.
    pub fn end_pack(&mut self) -> Option<(Object, Vec<u8>)> {
        if self.filling.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.filling);
        let hash = PackHash::of(&bytes);
        self.packs.push((hash, bytes.len() as u64));
        Some((Object::Pack(hash, bytes.len() as u64), bytes))
    }

    /// The places of this manifest's contents, after the last pack was taken. What was neither carried nor packed is an
    /// object of its own.
    pub fn finish(self, manifest: &Manifest) -> Places {
        debug_assert!(self.filling.is_empty(), "the last pack is taken before this");
        let small = self.packs.len() as u32;
        let place = |hash| match self.placed.get(&hash).copied().unwrap_or(Place::Own) {
            Place::Compressed(pack, table) => Place::Compressed(small + pack, table),
            other => other,
        };
        let places = manifest.blobs().into_iter().map(|(hash, size, _)| (hash, size, place(hash))).collect();
        let packs = [self.packs, self.large].concat();
        Places { names: self.names, ..Places::new(manifest.hash(), packs, places, self.carried) }
    }
}
