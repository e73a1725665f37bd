//! The number space of inodes.
//!
//! Fixed numbers for the tree's own directories; computed ones for sealed records (entry
//! slot << 32 | record), for cuenv's shard directories and for drafts (which draft << 38 | inode number
//! below), so that a listing can tell them; counted ones for the rest. Those of drafts and the counted ones
//! are in a table. Bit 63 is never set, so that programs with signed numbers are not surprised.

use super::types::Ino;

/// The top directory.
pub const ROOT: Ino = 1;
/// `.outfs`
pub const CONTROL: Ino = 2;
/// `.outfs/work`
pub const WORK: Ino = 3;
/// `.outfs/by-task`
pub const BY_TASK: Ino = 4;
/// `.outfs/blobs`
pub const BLOBS: Ino = 5;
/// `.outfs/trash`
pub const TRASH: Ino = 6;

const TABLE_BIT: u64 = 1 << 62;
const SHARD_BIT: u64 = 1 << 61;
/// Together with `TABLE_BIT`.
const DRAFT_BIT: u64 = 1 << 61;
/// Bits of an inode number below, in a draft's.
const BELOW_BITS: u32 = 38;

/// The largest slot number.
pub const MAX_SLOT: u32 = (1 << 29) - 1;

/// What a number means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// One of the fixed directories.
    Fixed(Ino),
    /// A record of the entry in a slot.
    Sealed {
        /// Never 0.
        slot: u32,
        /// Index into the manifest.
        record: u32,
    },
    /// A shard directory: `[a, b]` is `ab`, `[a, b, c, d]` is `ab/cd`.
    Shard([u8; 4]),
    /// A node of the table.
    Table(Ino),
}

/// What `ino` means.
pub fn meaning(ino: Ino) -> Meaning {
    if ino & TABLE_BIT != 0 {
        Meaning::Table(ino)
    } else if ino & SHARD_BIT != 0 {
        Meaning::Shard((ino as u32).to_be_bytes())
    } else if ino >> 32 == 0 {
        Meaning::Fixed(ino)
    } else {
        Meaning::Sealed { slot: (ino >> 32) as u32, record: ino as u32 }
    }
}

/// The number of a sealed record.
pub fn sealed(slot: u32, record: u32) -> Ino {
    debug_assert!(slot != 0 && slot <= MAX_SLOT);
    u64::from(slot) << 32 | u64::from(record)
}

/// The number of the `n`th node of the table.
pub fn table(n: u64) -> Ino {
    TABLE_BIT | n
}

/// The number that the inode `below` of the `draft`th draft has, if no other node has it; `None` when
/// one of them is too large.
pub fn draft(draft: u64, below: u64) -> Option<Ino> {
    let fits = draft < DRAFT_BIT >> BELOW_BITS && below < 1 << BELOW_BITS;
    fits.then_some(TABLE_BIT | DRAFT_BIT | draft << BELOW_BITS | below)
}

/// The number of a shard directory; the second level's last two bytes are 0 for `ab`.
pub fn shard(name: [u8; 4]) -> Ino {
    SHARD_BIT | u64::from(u32::from_be_bytes(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_one_meaning() {
        assert_eq!(meaning(ROOT), Meaning::Fixed(1));
        for (slot, record) in [(1, 0), (1, u32::MAX), (MAX_SLOT, 7)] {
            assert_eq!(meaning(sealed(slot, record)), Meaning::Sealed { slot, record });
            assert!(sealed(slot, record) >> 61 == 0);
        }
        assert_eq!(meaning(table(5)), Meaning::Table(table(5)));
        assert_eq!(meaning(shard(*b"ab\0\0")), Meaning::Shard(*b"ab\0\0"));
        assert!(table(u64::MAX >> 3) >> 63 == 0);
        for (d, below) in [(0, 1), (7, 2), ((1 << 23) - 1, (1 << 38) - 1)] {
            let n = draft(d, below).expect("they fit");
            assert_eq!((meaning(n), n >> 63), (Meaning::Table(n), 0));
            assert_ne!(n & !table(u64::MAX >> 3), TABLE_BIT, "no counted number");
        }
        assert_eq!((draft(1 << 23, 1), draft(1, 1 << 38)), (None, None));
    }
}
