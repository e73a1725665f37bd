//! Verified reading in parts, judged by another implementation of BLAKE3's tree.

use bao_tree::BlockSize;
use bao_tree::io::outboard::PreOrderMemOutboard;
use outfs::model::groups::{GROUP, GroupHash, GroupHasher, Groups};

/// 256 chunks of 1 KiB each.
const BLOCKS: BlockSize = BlockSize::from_chunk_log(8);

/// The values of the groups below a node of a pre-order outboard, which begins with the node's own pair.
fn leaves(pairs: &mut std::slice::ChunksExact<'_, u8>, len: u64, into: &mut Vec<GroupHash>) {
    let (left, right) = pairs.next().expect("a pair for each node").split_at(32);
    let left_len = blake3::hazmat::left_subtree_len(len);
    for (value, len) in [(left, left_len), (right, len - left_len)] {
        match len <= GROUP as u64 {
            true => into.push(value.try_into().unwrap()),
            false => leaves(pairs, len, into),
        }
    }
}

#[test]
fn values_are_those_of_the_blob_s_own_tree() {
    for n in [GROUP + 1, 2 * GROUP, 3 * GROUP, 4 * GROUP + 1, 7 * GROUP + 1025, 16 * GROUP, 21 * GROUP - 1] {
        let data: Vec<u8> = (0..n).map(|i| (i * 31 + i / 251) as u8).collect();
        let mut hasher = GroupHasher::default();
        hasher.update(&data);
        let (hash, values, size) = hasher.finish();
        let outboard = PreOrderMemOutboard::create(&data, BLOCKS);
        assert_eq!(outboard.root.as_bytes(), &hash.0);
        let mut theirs = Vec::new();
        leaves(&mut outboard.data.chunks_exact(64), size, &mut theirs);
        assert_eq!(theirs, values, "{n} bytes");
        let groups = Groups::of(hash, size, &theirs).expect("their values stand for our name");
        assert!(groups.verified(0..groups.count(), &data).is_some());
    }
}
