//! Looking at single records of a manifest that is not in memory.
//!
//! Invariants: what is read was verified by whoever provides the bytes ([`Verified`]); nothing else is taken
//! for granted: every place is checked against the length, and `None` always means "not to be known
//! this way, read the manifest". So there is nothing here that can be wrong about damage.
//! Must not know: where the bytes lie.

use std::cmp::Ordering;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::layout::{DirBody, Extra, GroupRow, Header, MAGIC, Record, VERSION};
use super::read::RecordKind;
use crate::model::groups::{GroupHash, group_count};

/// Bytes of a manifest, verified.
pub trait Verified {
    /// How many there are.
    fn size(&self) -> u64;
    /// Fills `to` with those from `at` on; `None` when they cannot be had or do not verify.
    fn fill(&self, at: u64, to: &mut [u8]) -> Option<()>;
}

/// What a record looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Looks {
    /// Its type.
    pub kind: RecordKind,
    /// Permission bits as they were.
    pub perm: u32,
    /// Bytes; 0 for a directory.
    pub size: u64,
    /// Names, or 2 + subdirectories.
    pub nlink: u32,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// What is known about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Child {
    /// Its record (of hard links the first).
    Is(u32, Looks),
    /// There is no such name.
    Absent,
    /// What should have it is no directory.
    NotDir,
}

/// A manifest of which only what is asked for is read.
pub struct Peek<V> {
    bytes: V,
    records: u32,
    rows: u32,
    /// Where group values and heap begin.
    groups: u64,
    heap: u64,
}

impl<V: Verified> Peek<V> {
    /// Reads the header.
    pub fn new(bytes: V) -> Option<Peek<V>> {
        let header: Header = read(&bytes, 0)?;
        let (records, rows) = (header.records.get(), header.group_rows.get());
        let groups = size_of::<Header>() as u64
            + u64::from(records) * size_of::<Record>() as u64
            + u64::from(rows) * size_of::<GroupRow>() as u64;
        let heap = header.groups.get().checked_mul(size_of::<GroupHash>() as u64)?.checked_add(groups)?;
        let sound = header.magic == MAGIC
            && header.version.get() == VERSION
            && heap.checked_add(header.heap_len.get()) == Some(bytes.size());
        sound.then_some(Peek { bytes, records, rows, groups, heap })
    }

    /// The bytes it reads.
    pub fn bytes(&self) -> &V {
        &self.bytes
    }

    /// Number of records.
    pub fn records(&self) -> u32 {
        self.records
    }

    /// One record.
    pub fn record(&self, index: u32) -> Option<Record> {
        if index >= self.records {
            return None;
        }
        read(&self.bytes, (size_of::<Header>() + index as usize * size_of::<Record>()) as u64)
    }

    /// What a record looks like.
    pub fn looks(&self, index: u32) -> Option<Looks> {
        let r = self.record(index)?;
        let extra: Extra = read(&self.bytes, self.heap + u64::from(r.extra.get()))?;
        Some(Looks::new(&r, extra.nlink.get()))
    }

    /// The group list of a file; empty up to one group.
    pub fn groups(&self, index: u32) -> Option<Vec<GroupHash>> {
        let r = self.record(index).filter(|r| r.hash().is_some())?;
        let count = group_count(r.size());
        if count == 0 {
            return Some(Vec::new());
        }
        let (mut low, mut high) = (0, self.rows);
        while low < high {
            let at = low + (high - low) / 2;
            let back = u64::from(self.rows - at) * size_of::<GroupRow>() as u64;
            let row: GroupRow = read(&self.bytes, self.groups - back)?;
            match row.record.get().cmp(&r.canonical()) {
                Ordering::Equal => return self.list(&row, count),
                Ordering::Less => low = at + 1,
                Ordering::Greater => high = at,
            }
        }
        None
    }

    fn list(&self, row: &GroupRow, count: usize) -> Option<Vec<GroupHash>> {
        let each = size_of::<GroupHash>() as u64;
        let at = row.first.get().checked_mul(each)?.checked_add(self.groups)?;
        let end = (count as u64).checked_mul(each)?.checked_add(at)?;
        if row.count.get() as usize != count || end > self.heap {
            return None;
        }
        let mut list = vec![[0; 32]; count];
        self.bytes.fill(at, list.as_flattened_mut())?;
        Some(list)
    }

    /// The child of `dir` called `name`.
    pub fn child(&self, dir: u32, name: &[u8]) -> Option<Child> {
        let dir = self.record(dir)?;
        if dir.kind() != RecordKind::Dir {
            return Some(Child::NotDir);
        }
        let body = DirBody::ref_from_bytes(&dir.body).ok()?;
        let (mut low, mut count) = (body.first_child.get(), body.children.get());
        let mut buf = [0; 255];
        while count > 0 {
            let half = count / 2;
            let at = low.checked_add(half)?;
            let r = self.record(at)?;
            let found = &mut buf[..r.name_len as usize];
            self.bytes.fill(self.heap + u64::from(r.name_off.get()), found)?;
            match (*found).cmp(name) {
                Ordering::Equal => {
                    return Some(Child::Is(r.canonical(), self.looks(r.canonical())?));
                }
                Ordering::Less => (low, count) = (at.checked_add(1)?, count - half - 1),
                Ordering::Greater => count = half,
            }
        }
        Some(Child::Absent)
    }
}

impl Looks {
    pub(super) fn new(r: &Record, nlink: u32) -> Looks {
        let size = if r.kind() == RecordKind::Dir { 0 } else { r.size() };
        Looks { kind: r.kind(), perm: r.perm(), size, nlink, mtime_ns: r.mtime_ns() }
    }
}

fn read<T: FromZeros + FromBytes + IntoBytes>(bytes: &impl Verified, at: u64) -> Option<T> {
    let mut one = T::new_zeroed();
    bytes.fill(at, one.as_mut_bytes())?;
    Some(one)
}
