//! Content hashing in groups: BLAKE3 of a whole blob and of each 256 KiB of it.
//!
//! A group's value is the chaining value of that aligned subtree of the blob's own BLAKE3
//! tree, so a group can be checked alone against the list, and the list against the blob's
//! name. Blobs of at most one group have no list: their name is the check. Manifests are checked in
//! smaller pieces, parts, in the same way.

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

/// The blob hash that a group list (of a blob of `size` bytes) stands for; `None` when the
/// list's length does not fit the size.
pub fn root_of_groups(groups: &[GroupHash], size: u64) -> Option<BlobHash> {
    root_of(groups, size, GROUP).map(BlobHash)
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
