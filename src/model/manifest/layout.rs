//! The bytes of a manifest: header, records, group index, group hashes, heap.
//!
//! All numbers are little-endian; all types here have alignment 1, so a manifest is read
//! where it lies. Every field is plain data: meaning and checks are in `read`.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First eight bytes of every manifest.
pub const MAGIC: [u8; 8] = *b"OUTFSMF1";
/// The version this program writes and the newest it reads.
pub const VERSION: u32 = 1;
/// Header flag: sealed by quiet.
pub const FLAG_INFERRED: u32 = 1;

/// The fixed start of a manifest (176 bytes).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub struct Header {
    pub magic: [u8; 8],
    pub version: U32,
    pub flags: U32,
    pub records: U32,
    pub group_rows: U32,
    pub groups: U64,
    pub heap_len: U64,
    pub sealed_at_ns: I64,
    /// Sum of the sizes of all files, a hard-linked one counted once.
    pub logical_bytes: U64,
    /// Number of file records (names), hard links counted each.
    pub files: U64,
    /// Zero when nothing was replaced.
    pub replaces: [u8; 32],
    pub key_off: U32,
    pub key_len: U32,
    pub origin_off: U32,
    pub origin_len: U32,
    pub reserved: [u8; 64],
}

/// One file, directory or symlink (64 bytes).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub struct Record {
    /// File: content hash. Directory: see [`DirBody`]. Symlink: see [`LinkBody`].
    pub(super) body: [u8; 32],
    pub(super) size: U64,
    pub(super) mtime_ns: I64,
    pub(super) name_off: U32,
    pub(super) name_len: u8,
    /// File: a [`DigestKind`](super::DigestKind). Otherwise 0.
    pub(super) digest_kind: u8,
    /// As `st_mode`: type and permission bits, without the set-id bits.
    pub(super) mode: U16,
    /// Heap offset of an [`Extra`].
    pub(super) extra: U32,
    /// The first record of the same hard-linked file; its own index otherwise.
    pub(super) canonical: U32,
}

/// A directory's 32 body bytes.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub struct DirBody {
    pub first_child: U32,
    pub children: U32,
    pub subdirs: U32,
    pub parent: U32,
    pub reserved: [u8; 16],
}

/// A symlink's 32 body bytes; the target lies in the heap.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub struct LinkBody {
    pub target_off: U32,
    pub target_len: U32,
    pub reserved: [u8; 24],
}

/// A row of the group index, sorted by record: which group hashes belong to a file.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub struct GroupRow {
    pub record: U32,
    pub count: U32,
    pub first: U64,
}

/// Owner, link count and xattrs, shared by all records with equal ones; `xattrs` times an
/// [`XattrHeader`], its name and its value follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub struct Extra {
    pub uid: U32,
    pub gid: U32,
    pub nlink: U32,
    pub xattrs: U32,
}

/// Stands before each extended attribute's name and value.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub struct XattrHeader {
    pub name_len: U16,
    pub value_len: U32,
}

const _: () = {
    assert!(size_of::<Header>() == 176);
    assert!(size_of::<Record>() == 64);
    assert!(size_of::<DirBody>() == 32);
    assert!(size_of::<LinkBody>() == 32);
    assert!(size_of::<GroupRow>() == 16);
};
