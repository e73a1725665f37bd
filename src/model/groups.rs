//! Content hashing in groups: BLAKE3 of a whole blob and of each 256 KiB of it.
//!
//! A group's value is the chaining value of that aligned subtree of the blob's own BLAKE3
//! tree, so a group can be checked alone against the list, and the list against the blob's
//! name. Blobs of at most one group have no list: their name is the check. Manifests are checked in
//! smaller pieces, parts, in the same way.

use std::ops::Range;

use blake3::hazmat::{self, HasherExt, Mode};

use super::hash::BlobHash;

/// Bytes per group; a power of two times BLAKE3's 1 KiB chunk.
pub const GROUP: usize = 256 * 1024;

/// The chaining value of one group.
pub type GroupHash = [u8; 32];

/// The value of the group that starts at `index * GROUP` of a blob with more than one group.
pub fn group_hash(index: u64, bytes: &[u8]) -> GroupHash {
    debug_assert!(!bytes.is_empty() && bytes.len() <= GROUP);
    blake3::Hasher::new().set_input_offset(index * GROUP as u64).update(bytes).finalize_non_root()
}

/// Number of entries in the group list of a blob of `size` bytes: 0 up to one group.
pub fn group_count(size: u64) -> usize {
    if size <= GROUP as u64 { 0 } else { size.div_ceil(GROUP as u64) as usize }
}

/// The bytes of these groups of a blob of `size` bytes, as far as it has them.
pub fn bytes_of(size: u64, groups: Range<u64>) -> Range<u64> {
    let at = |group: u64| group.saturating_mul(GROUP as u64).min(size);
    at(groups.start)..at(groups.end)
}

/// How many bytes the group with this index of a blob of `size` bytes has.
pub fn group_bytes(size: u64, group: u64) -> u64 {
    let Range { start, end } = bytes_of(size, group..group + 1);
    end - start
}

/// The blob hash that a group list (of a blob of `size` bytes) stands for; `None` when the
/// list's length does not fit the size.
pub fn root_of_groups(groups: &[GroupHash], size: u64) -> Option<BlobHash> {
    root_of(groups, size, GROUP).map(BlobHash)
}

/// Whether these bytes are the group with this index of the blob of this name. `values` is its list (empty up to one group), which
/// was checked against the name: that of a valid manifest was.
pub fn is_group(hash: &BlobHash, values: &[GroupHash], index: u64, bytes: &[u8]) -> bool {
    match usize::try_from(index).ok().and_then(|i| values.get(i)) {
        Some(value) => !bytes.is_empty() && bytes.len() <= GROUP && group_hash(index, bytes) == *value,
        None => index == 0 && values.is_empty() && bytes.len() <= GROUP && hash.names(bytes),
    }
}

/// A blob that comes in parts: what each of its groups must be.
#[derive(Debug, Clone, Copy)]
pub struct Groups<'a> {
    hash: BlobHash,
    size: u64,
    values: &'a [GroupHash],
}

impl<'a> Groups<'a> {
    /// Of the blob of this name and size with these values, empty up to one group; `None` when they do not
    /// stand for that name. A name that is wrong for the size shows with the last group.
    pub fn of(hash: BlobHash, size: u64, values: &'a [GroupHash]) -> Option<Groups<'a>> {
        let sound = match values {
            [] => group_count(size) == 0,
            list => root_of_groups(list, size) == Some(hash),
        };
        sound.then_some(Groups { hash, size, values })
    }

    /// The same, of values that were checked against the name before: those of a valid manifest were.
    pub fn checked(hash: BlobHash, size: u64, values: &'a [GroupHash]) -> Groups<'a> {
        debug_assert!(Groups::of(hash, size, values).is_some());
        Groups { hash, size, values }
    }

    /// How many groups it comes in; an empty blob in none.
    pub fn count(&self) -> u64 {
        self.size.div_ceil(GROUP as u64)
    }

    /// The groups that a range of bytes touches, as far as there are any.
    pub fn touched(&self, offset: u64, len: u64) -> Range<u64> {
        let end = offset.saturating_add(len).min(self.size);
        if offset >= end { 0..0 } else { offset / GROUP as u64..end.div_ceil(GROUP as u64) }
    }

    /// The bytes of these groups.
    pub fn bytes(&self, groups: Range<u64>) -> Range<u64> {
        bytes_of(self.size, groups)
    }

    /// `bytes`, if they are wholly these groups, each checked against the blob's own name.
    pub fn verified<'b>(&self, groups: Range<u64>, bytes: &'b [u8]) -> Option<&'b [u8]> {
        let range = self.bytes(groups.clone());
        let right = bytes.len() as u64 == range.end - range.start
            && groups.zip(bytes.chunks(GROUP)).all(|(i, group)| is_group(&self.hash, self.values, i, group));
        right.then_some(bytes)
    }
}

/// Bytes per part of a manifest: what is read and verified at once where only little of one is needed.
pub const PART: usize = 16 * 1024;

/// The value of the part that starts at `index * PART` of something with more than one part.
pub fn part_hash(index: u64, bytes: &[u8]) -> GroupHash {
    debug_assert!(!bytes.is_empty() && bytes.len() <= PART);
    blake3::Hasher::new().set_input_offset(index * PART as u64).update(bytes).finalize_non_root()
}

/// The values of all parts; empty up to one part.
pub fn part_hashes(bytes: &[u8]) -> Vec<GroupHash> {
    if bytes.len() <= PART {
        return Vec::new();
    }
    (0..).zip(bytes.chunks(PART)).map(|(i, part)| part_hash(i, part)).collect()
}

/// The hash that a list of part values (of `size` bytes) stands for; `None` when there are not as many as
/// the size demands, or at most one.
pub fn root_of_parts(parts: &[GroupHash], size: u64) -> Option<[u8; 32]> {
    root_of(parts, size, PART)
}

/// The root above the values of pieces of `piece` bytes each, a power of two times 1 KiB.
fn root_of(values: &[GroupHash], size: u64, piece: usize) -> Option<[u8; 32]> {
    if size <= piece as u64 || values.len() as u64 != size.div_ceil(piece as u64) {
        return None;
    }
    let split = hazmat::left_subtree_len(size);
    let (l, r) = values.split_at((split / piece as u64) as usize);
    let left = subtree(l, split, piece);
    let right = subtree(r, size - split, piece);
    Some(*hazmat::merge_subtrees_root(&left, &right, Mode::Hash).as_bytes())
}

/// Depth is log2 of the number of values, so the recursion is at most 50 deep.
fn subtree(values: &[GroupHash], len: u64, piece: usize) -> GroupHash {
    if let [one] = values {
        return *one;
    }
    let split = hazmat::left_subtree_len(len);
    let (l, r) = values.split_at((split / piece as u64) as usize);
    hazmat::merge_subtrees_non_root(&subtree(l, split, piece), &subtree(r, len - split, piece), Mode::Hash)
}

/// Hashes a blob that arrives in pieces; keeps one group in memory.
#[derive(Default)]
pub struct GroupHasher {
    pending: Vec<u8>,
    groups: Vec<GroupHash>,
    size: u64,
}

impl GroupHasher {
    /// Takes the next piece.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            // A full group is hashed only when more follows: a blob of exactly one group has no list.
            if self.pending.len() == GROUP {
                self.flush();
            }
            if self.pending.is_empty() && bytes.len() > GROUP {
                let (group, rest) = bytes.split_at(GROUP);
                self.groups.push(group_hash(self.groups.len() as u64, group));
                bytes = rest;
                continue;
            }
            let n = bytes.len().min(GROUP - self.pending.len());
            self.pending.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
        }
    }

    fn flush(&mut self) {
        self.groups.push(group_hash(self.groups.len() as u64, &self.pending));
        self.pending.clear();
    }

    /// The blob's hash, its group list (empty up to one group) and its size.
    pub fn finish(mut self) -> (BlobHash, Vec<GroupHash>, u64) {
        if self.groups.is_empty() {
            return (BlobHash::of(&self.pending), Vec::new(), self.size);
        }
        self.flush();
        let root = root_of_groups(&self.groups, self.size).expect("one list entry was pushed per group");
        (root, self.groups, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 31 + i / 251) as u8).collect()
    }

    #[test]
    fn agrees_with_blake3_at_every_kind_of_length() {
        for n in [0, 1, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP, 2 * GROUP + 1, 3 * GROUP, 5 * GROUP + 77] {
            let d = data(n);
            for piece in [n.max(1), 1000, GROUP, GROUP + 5] {
                let mut h = GroupHasher::default();
                d.chunks(piece).for_each(|c| h.update(c));
                let (hash, groups, size) = h.finish();
                assert_eq!(hash, BlobHash::of(&d), "{n} in pieces of {piece}");
                assert_eq!(groups.len(), group_count(n as u64));
                assert_eq!(size, n as u64);
                for (i, g) in groups.iter().enumerate() {
                    let end = ((i + 1) * GROUP).min(n);
                    assert_eq!(*g, group_hash(i as u64, &d[i * GROUP..end]));
                }
                if !groups.is_empty() {
                    assert_eq!(root_of_groups(&groups, size), Some(hash));
                    assert_eq!(root_of_groups(&groups[1..], size), None);
                }
            }
        }
    }

    /// The name and the values of a blob.
    fn named(bytes: &[u8]) -> (BlobHash, Vec<GroupHash>) {
        let mut hasher = GroupHasher::default();
        hasher.update(bytes);
        let (hash, values, _) = hasher.finish();
        (hash, values)
    }

    const SIZES: [usize; 9] =
        [0, 1, 1024, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP, 3 * GROUP + 1025, 7 * GROUP - 1];

    #[test]
    fn each_run_of_groups_is_verified_alone() {
        for n in SIZES {
            let d = data(n);
            let (hash, values) = named(&d);
            let groups = Groups::of(hash, n as u64, &values).unwrap();
            for first in 0..groups.count() {
                for end in first + 1..=groups.count() {
                    let range = groups.bytes(first..end);
                    let bytes = &d[range.start as usize..range.end as usize];
                    assert_eq!(groups.verified(first..end, bytes), Some(bytes), "{n}: {first}..{end}");
                    assert_eq!(groups.verified(first..end, &bytes[1..]), None);
                    assert_eq!(groups.verified(first..end, &[bytes, b"x"].concat()), None);
                    if end < groups.count() {
                        assert_eq!(groups.verified(first + 1..end + 1, bytes), None, "at another place");
                    }
                }
            }
            assert_eq!(groups.verified(groups.count()..groups.count() + 1, b"more"), None);
        }
    }

    #[test]
    fn no_flipped_bit_passes() {
        for n in SIZES {
            let d = data(n);
            let (hash, values) = named(&d);
            let groups = Groups::of(hash, n as u64, &values).unwrap();
            // Around the edges of chunks and groups, and somewhere in between.
            let edges =
                [0, 1023, 1024, GROUP - 1, GROUP, 2 * GROUP - 1, 2 * GROUP + 1024, n.saturating_sub(1)];
            for at in edges.into_iter().chain((0..n).step_by(40_009)).filter(|at| *at < n) {
                let mut wrong = d.clone();
                wrong[at] ^= 1 << (at % 8);
                let touched = groups.touched(at as u64, 1);
                let range = groups.bytes(touched.clone());
                let part = &wrong[range.start as usize..range.end as usize];
                assert_eq!(groups.verified(touched, part), None, "{n}: bit of byte {at}");
                assert_ne!(BlobHash::of(&wrong), hash);
            }
            for at in 0..values.len() {
                let mut wrong = values.clone();
                wrong[at][at % 32] ^= 1;
                assert!(
                    Groups::of(hash, n as u64, &wrong).is_none(),
                    "a wrong value is found before any byte"
                );
            }
        }
    }

    #[test]
    fn a_list_is_that_of_one_name_and_one_number_of_groups() {
        let d = data(3 * GROUP + 5);
        let (hash, values) = named(&d);
        let size = d.len() as u64;
        assert!(Groups::of(hash, size, &values[1..]).is_none());
        assert!(Groups::of(hash, size, &[]).is_none());
        assert!(Groups::of(BlobHash([1; 32]), size, &values).is_none());
        // A size that is wrong within the last group shows there.
        let longer = Groups::of(hash, size + 1, &values).unwrap();
        assert!(longer.verified(0..3, &d[..3 * GROUP]).is_some());
        assert!(longer.verified(3..4, &d[3 * GROUP..]).is_none());
        assert!(longer.verified(3..4, &[&d[3 * GROUP..], &[0]].concat()).is_none());
    }

    #[test]
    fn touched_groups_cover_what_is_asked_for() {
        let groups = |size| Groups { hash: BlobHash([0; 32]), size, values: &[] };
        let large = groups(3 * GROUP as u64 + 5);
        assert_eq!(large.touched(0, 1), 0..1);
        assert_eq!(large.touched(GROUP as u64 - 1, 2), 0..2);
        assert_eq!(large.touched(3 * GROUP as u64, u64::MAX), 3..4);
        assert_eq!(large.touched(3 * GROUP as u64 + 5, 1), 0..0);
        assert_eq!(large.touched(7, 0), 0..0);
        assert_eq!(groups(0).touched(0, 10), 0..0);
        assert_eq!(large.bytes(3..4), 3 * GROUP as u64..3 * GROUP as u64 + 5);
    }

    #[test]
    fn parts_stand_for_the_whole() {
        for n in [PART + 1, 2 * PART, 2 * PART + 1, 3 * PART + 5, 17 * PART - 1] {
            let d = data(n);
            let parts = part_hashes(&d);
            assert_eq!(root_of_parts(&parts, n as u64), Some(BlobHash::of(&d).0), "{n}");
            assert_eq!(root_of_parts(&parts[1..], n as u64), None);
        }
        assert!(part_hashes(&data(PART)).is_empty());
        assert_eq!(root_of_parts(&[], PART as u64), None);
    }
}
