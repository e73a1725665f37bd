//! Large contents as tiers that keep packs have them: each group compressed alone (zstd, RFC 8878), one after another.
//!
//! Invariants: a group that is no smaller then lies there as it is, so its length says which it is; any groups that follow each other
//! are one range of the object. What comes out has exactly the bytes it should, and is not verified: whoever asked for it does that. Lengths
//! were checked when they were read. Must not know: which tier.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use zstd::bulk::Compressor;

use super::Object;
use crate::model::PackHash;
use crate::model::groups::{GROUP, group_bytes};

/// zstd's own default: two to three times smaller for programs and text, at some 200 MB a second.
const LEVEL: i32 = 3;
/// Contents of which this much did not become smaller are not read on.
const TRIED: u64 = 32 * GROUP as u64;
/// What is compressed is kept, and not made again to be sent, up to this.
const KEPT: usize = 32 << 20;
/// A group's length in a table, and its bytes there.
pub(super) type Length = [u8; LENGTH as usize];
pub(super) const LENGTH: u64 = 4;

/// Whether so many bytes of a content are worth being decompressed by each who reads them.
fn is_smaller(bytes: u64, content: u64) -> bool {
    bytes < content - content / 8
}

/// A content, compressed as it is read.
pub(super) struct Compressing<'a> {
    content: Box<dyn Read + 'a>,
    left: u64,
    by: Compressor<'static>,
    group: Vec<u8>,
    out: Vec<u8>,
    given: usize,
}

impl<'a> Compressing<'a> {
    /// Of so many bytes, more than a group.
    pub fn new(content: Box<dyn Read + 'a>, size: u64) -> io::Result<Self> {
        let by = Compressor::new(LEVEL)?;
        Ok(Compressing { content, left: size, by, group: Vec::new(), out: Vec::new(), given: 0 })
    }

    /// The next group as it will lie there; `None` after the last.
    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.group.resize(self.left.min(GROUP as u64) as usize, 0);
        self.content.read_exact(&mut self.group)?;
        self.left -= self.group.len() as u64;
        self.out.resize(self.group.len(), 0);
        // What has no room in there is not smaller.
        match self.by.compress_to_buffer(&self.group, &mut self.out[..]) {
            Ok(n) if n < self.group.len() => self.out.truncate(n),
            _ => std::mem::swap(&mut self.group, &mut self.out),
        }
        Ok(Some(&self.out))
    }
}

impl Read for Compressing<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.given == self.out.len() {
            self.given = 0;
            if self.next()?.is_none() {
                self.out.clear();
            }
        }
        let n = (&self.out[self.given..]).read(buf)?;
        self.given += n;
        Ok(n)
    }
}

/// How a tier has a content of more than a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// As an object of its own, named by it.
    AsItIs,
    /// Compressed.
    Compressed(Compressed),
}

impl Form {
    /// About how many bytes it takes in memory, with its content's name.
    pub fn memory(&self) -> usize {
        let table = if let Form::Compressed(to) = self { to.lengths.as_flattened().len() } else { 0 };
        128 + table
    }
}

/// What a content was compressed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compressed {
    /// The name of all of it.
    pub(super) hash: PackHash,
    /// Its bytes.
    pub(super) bytes: u64,
    /// Those of each group.
    pub(super) lengths: Arc<[Length]>,
}

impl Compressed {
    /// What it is stored as.
    pub(super) fn object(&self) -> Object {
        Object::Pack(self.hash, self.bytes)
    }

    /// Of a content of so many bytes, more than a group, and all of it, unless that is much; `None` where it does not become smaller.
    pub(super) fn of(
        content: Box<dyn Read + '_>,
        size: u64,
    ) -> io::Result<Option<(Compressed, Option<Vec<u8>>)>> {
        let (mut hasher, mut lengths) = (blake3::Hasher::new(), Vec::new());
        let (mut bytes, mut kept) = (0, Some(Vec::new()));
        let mut all = Compressing::new(content, size)?;
        while let Some(group) = all.next()? {
            hasher.update(group);
            lengths.push((group.len() as u32).to_le_bytes());
            bytes += group.len() as u64;
            kept = kept.filter(|kept| kept.len() + group.len() <= KEPT);
            if let Some(kept) = &mut kept {
                kept.extend_from_slice(group);
            }
            let read = size - all.left;
            if read == TRIED && !is_smaller(bytes, read) {
                return Ok(None);
            }
        }
        let hash = PackHash(*hasher.finalize().as_bytes());
        let all = Compressed { hash, bytes, lengths: lengths.into() };
        Ok(is_smaller(bytes, size).then_some((all, kept)))
    }
}

/// The lengths of a content's compressed groups.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lengths<'a>(pub &'a [Length]);

impl Lengths<'_> {
    /// Whether they may be those of a content of this size that lies in so many bytes.
    pub fn are_right(&self, size: u64, bytes: u64) -> bool {
        let all = self.0.iter().map(|length| u64::from(u32::from_le_bytes(*length)));
        let fits = |(group, length): (u64, u64)| (1..=group_bytes(size, group)).contains(&length);
        self.0.len() as u64 == size.div_ceil(GROUP as u64)
            && all.clone().sum::<u64>() == bytes
            && (0..).zip(all).all(fits)
    }

    fn sum(&self, groups: Range<u64>) -> u64 {
        let some = self.0.get(groups.start as usize..groups.end as usize).unwrap_or(&[]);
        some.iter().map(|length| u64::from(u32::from_le_bytes(*length))).sum()
    }

    /// Where these groups lie.
    pub fn range(&self, groups: Range<u64>) -> Range<u64> {
        let start = self.sum(0..groups.start);
        start..start + self.sum(groups)
    }

    /// These groups of a content of this size, of what lies there.
    pub fn expand(&self, size: u64, groups: Range<u64>, mut bytes: &[u8]) -> Option<Vec<u8>> {
        let mut by = zstd::bulk::Decompressor::new().ok()?;
        let mut all = Vec::new();
        for group in groups {
            let (length, size) = (self.sum(group..group + 1) as usize, group_bytes(size, group) as usize);
            let one;
            (one, bytes) = bytes.split_at_checked(length)?;
            if length == size {
                all.extend_from_slice(one);
                continue;
            }
            let from = all.len();
            all.resize(from + size, 0);
            by.decompress_to_buffer(one, &mut all[from..]).ok().filter(|n| *n == size)?;
        }
        bytes.is_empty().then_some(all)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What becomes smaller here and there.
    fn content(size: usize, seed: u64) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        let mut bytes = vec![0; size];
        for (n, group) in bytes.chunks_mut(GROUP).enumerate() {
            if !(n as u64 + seed).is_multiple_of(3) {
                let half = group.len() / 2;
                hasher.finalize_xof().fill(if n % 2 == 0 { &mut group[..half] } else { group });
            }
        }
        bytes
    }

    fn table(lengths: &[u32]) -> Vec<[u8; 4]> {
        lengths.iter().map(|n| n.to_le_bytes()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn what_is_compressed_is_read_again(size in GROUP + 1..7 * GROUP, seed in 0..100u64, from in 0..7u64, n in 0..7u64) {
            let content = content(size, seed);
            let (all, kept) = Compressed::of(Box::new(&content[..]), size as u64).unwrap().unwrap();
            let kept = kept.unwrap();
            prop_assert!(kept.len() as u64 == all.bytes && PackHash::of(&kept) == all.hash);
            let mut again = Vec::new();
            Compressing::new(Box::new(&content[..]), size as u64).unwrap().read_to_end(&mut again).unwrap();
            prop_assert!(again == kept, "it is not the same the second time");

            let table = &all.lengths;
            let lengths = Lengths(table);
            prop_assert!(lengths.are_right(size as u64, all.bytes));
            let count = table.len() as u64;
            let groups = from.min(count)..(from + n).min(count);
            let at = lengths.range(groups.clone());
            let there = &kept[at.start as usize..at.end as usize];
            let end = (groups.end as usize * GROUP).min(size);
            let came = lengths.expand(size as u64, groups.clone(), there);
            prop_assert!(came.is_some_and(|came| came == content[(groups.start as usize * GROUP).min(end)..end]));
            // More or less than there should be.
            prop_assert!(lengths.expand(size as u64, groups.clone(), &[there, b"x"].concat()).is_none());
            if let Some((_, less)) = there.split_last() {
                prop_assert!(lengths.expand(size as u64, groups, less).is_none());
            }
        }

        #[test]
        fn bytes_that_are_wrong_are_no_panic(seed in 0..100u64, at in any::<usize>(), bit in 0..8u8) {
            let content = content(2 * GROUP, seed);
            let (all, kept) = Compressed::of(Box::new(&content[..]), content.len() as u64).unwrap().unwrap();
            let mut wrong = kept.unwrap();
            let at = at % wrong.len();
            wrong[at] ^= 1 << bit;
            if let Some(came) = Lengths(&all.lengths).expand(content.len() as u64, 0..2, &wrong) {
                prop_assert_eq!(came.len(), content.len());
            }
        }
    }

    #[test]
    fn lengths_are_those_of_the_content() {
        let size = 2 * GROUP as u64 + 5;
        let right = |lengths: &[u32], bytes| Lengths(&table(lengths)).are_right(size, bytes);
        let group = GROUP as u32;
        assert!(right(&[7, group, 5], u64::from(group) + 12));
        for wrong in [&[7, group][..], &[7, group, 5, 1], &[0, group, 5], &[7, group + 1, 5], &[7, group, 6]]
        {
            assert!(!right(wrong, wrong.iter().map(|n| u64::from(*n)).sum()), "{wrong:?}");
        }
        assert!(!right(&[7, group, 5], u64::from(group) + 13));
    }

    /// What says that it is more than a group is not that group.
    #[test]
    fn what_would_be_larger_is_refused() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], LEVEL).unwrap();
        let table = table(&[bomb.len() as u32, 1]);
        assert!(Lengths(&table).expand(GROUP as u64 + 1, 0..1, &bomb).is_none());
    }

    #[test]
    fn what_does_not_become_smaller_is_left_as_it_is() {
        struct Counts<'a>(&'a std::cell::Cell<u64>, blake3::OutputReader);
        impl Read for Counts<'_> {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                self.1.fill(buf);
                self.0.set(self.0.get() + buf.len() as u64);
                Ok(buf.len())
            }
        }
        let read = std::cell::Cell::new(0);
        for (size, most) in [(3 * GROUP as u64, 3 * GROUP as u64), (2 * TRIED, TRIED)] {
            read.set(0);
            let content = Counts(&read, blake3::Hasher::new().finalize_xof());
            assert!(Compressed::of(Box::new(content), size).unwrap().is_none());
            assert_eq!(read.get(), most);
        }
    }

    #[test]
    fn much_is_made_twice_and_not_kept() {
        let mut content = vec![0; 3 * KEPT];
        content.chunks_mut(GROUP).for_each(|group| {
            blake3::Hasher::new().finalize_xof().fill(&mut group[..GROUP / 2]);
        });
        let (all, kept) = Compressed::of(Box::new(&content[..]), content.len() as u64).unwrap().unwrap();
        assert!(kept.is_none() && all.bytes > KEPT as u64);
        let mut hasher = blake3::Hasher::new();
        let mut again = Compressing::new(Box::new(&content[..]), content.len() as u64).unwrap();
        assert_eq!(io::copy(&mut again, &mut hasher).unwrap(), all.bytes);
        assert_eq!(hasher.finalize().as_bytes(), &all.hash.0);
    }
}
