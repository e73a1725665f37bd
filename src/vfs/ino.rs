//! The number space of inodes.
//!
//! Fixed numbers for the tree's own directories; computed ones for sealed records (entry
//! slot << 32 | record) and for cuenv's shard directories; counted ones, in a table, for the
//! rest. Bit 63 is never set, so that programs with signed numbers are not surprised.

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
        assert!(table(u64::MAX >> 2) >> 63 == 0);
    }
}
