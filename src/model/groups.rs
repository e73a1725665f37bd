//! Content hashing in groups: BLAKE3 of a whole blob and of each 256 KiB of it.
//!
//! A group's value is the chaining value of that aligned subtree of the blob's own BLAKE3
//! tree, so a group can be checked alone against the list, and the list against the blob's
//! name. Blobs of at most one group have no list: their name is the check.

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
    if groups.len() != group_count(size) || groups.is_empty() {
        return None;
    }
    let split = hazmat::left_subtree_len(size);
    let left_groups = (split / GROUP as u64) as usize;
    let (l, r) = groups.split_at(left_groups);
    let left = subtree(l, split);
    let right = subtree(r, size - split);
    Some(BlobHash(*hazmat::merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()))
}

/// Depth is log2 of the group count, so the recursion is at most 46 deep.
fn subtree(groups: &[GroupHash], len: u64) -> GroupHash {
    if let [one] = groups {
        return *one;
    }
    let split = hazmat::left_subtree_len(len);
    let (l, r) = groups.split_at((split / GROUP as u64) as usize);
    hazmat::merge_subtrees_non_root(&subtree(l, split), &subtree(r, len - split), Mode::Hash)
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
}
