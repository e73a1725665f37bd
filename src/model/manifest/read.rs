//! Reading manifests in place, after one complete validation.

use std::collections::VecDeque;

use zerocopy::FromBytes;

use super::layout::{
    DirBody, Extra, FLAG_INFERRED, GroupRow, Header, LinkBody, MAGIC, Record, VERSION, XattrHeader,
};
use super::{Child, DigestKind, Looks, MAX_DIR_PATH, Origin, Seal, Top, path_len};
use crate::model::groups::{GroupHash, group_count, root_of_groups};
use crate::model::hash::{BlobHash, ManifestHash};
use crate::model::key::EntryKey;

/// Why bytes are not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Shorter or longer than its header says.
    #[error("the manifest is {found} bytes long and should be {expected}")]
    Length {
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// Not a manifest at all.
    #[error("this is not an outfs manifest")]
    Magic,
    /// Written by a newer outfs.
    #[error("the manifest has version {0}, this program reads up to version {VERSION}; use a newer outfs")]
    Version(u32),
    /// Something inside contradicts itself.
    #[error("record {record}: {what}")]
    Record {
        /// Index of the record.
        record: u32,
        /// What is wrong.
        what: &'static str,
    },
    /// The header contradicts itself.
    #[error("the manifest's header is damaged: {0}")]
    Header(&'static str),
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// A directory.
    Dir,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
}

/// A valid manifest and its name.
pub struct Manifest {
    bytes: Box<[u8]>,
    hash: ManifestHash,
    seal: Seal,
    records: usize,
    rows: usize,
    groups: usize,
}

impl std::fmt::Debug for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manifest").field("key", &self.seal.key).field("hash", &self.hash).finish()
    }
}

const HEADER: usize = size_of::<Header>();

/// Whether `name` is a file name: 1 to 255 bytes, no `/`, no NUL, not `.` or `..`.
pub(super) fn valid_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != b"."
        && name != b".."
        && !name.iter().any(|&b| b == b'/' || b == 0)
}

impl Manifest {
    /// Validates `bytes` completely and names them.
    pub fn parse(bytes: impl Into<Box<[u8]>>) -> Result<Self, FormatError> {
        let bytes = bytes.into();
        let hash = ManifestHash::of(&bytes);
        Self::named(bytes, hash)
    }

    /// As `parse`, of bytes that should have this name; `None` when they have another.
    pub fn parse_as(bytes: Vec<u8>, hash: ManifestHash) -> Result<Option<Self>, FormatError> {
        if ManifestHash::of(&bytes) != hash { Ok(None) } else { Self::named(bytes.into(), hash).map(Some) }
    }

    fn named(bytes: Box<[u8]>, hash: ManifestHash) -> Result<Self, FormatError> {
        let (header, _) = Header::ref_from_prefix(&bytes)
            .map_err(|_| FormatError::Length { found: bytes.len() as u64, expected: HEADER as u64 })?;
        if header.magic != MAGIC {
            return Err(FormatError::Magic);
        }
        if header.version.get() != VERSION {
            return Err(FormatError::Version(header.version.get()));
        }
        let expected = [
            u64::from(header.records.get()).checked_mul(64),
            u64::from(header.group_rows.get()).checked_mul(16),
            header.groups.get().checked_mul(32),
            Some(header.heap_len.get()),
        ]
        .into_iter()
        .try_fold(HEADER as u64, |sum, part| sum.checked_add(part?))
        .ok_or(FormatError::Header("lengths overflow"))?;
        if bytes.len() as u64 != expected {
            return Err(FormatError::Length { found: bytes.len() as u64, expected });
        }
        let (records, rows, groups) =
            (header.records.get() as usize, header.group_rows.get() as usize, header.groups.get() as usize);
        if records == 0 {
            return Err(FormatError::Header("there is no top directory"));
        }
        let heap = &bytes[HEADER + records * 64 + rows * 16 + groups * 32..];
        let slice = |off: u32, len: u32| heap.get(off as usize..off as usize + len as usize);
        let key = slice(header.key_off.get(), header.key_len.get())
            .and_then(|k| EntryKey::parse(std::str::from_utf8(k).ok()?).ok())
            .ok_or(FormatError::Header("the key is not valid"))?;
        let origin: Origin = slice(header.origin_off.get(), header.origin_len.get())
            .and_then(|o| serde_json::from_slice(o).ok())
            .ok_or(FormatError::Header("the origin is not valid"))?;
        let seal = Seal {
            key,
            sealed_at_ns: header.sealed_at_ns.get(),
            inferred: header.flags.get() & FLAG_INFERRED != 0,
            replaces: (header.replaces != [0; 32]).then_some(ManifestHash(header.replaces)),
            origin,
        };
        let m = Manifest { bytes, hash, seal, records, rows, groups };
        m.validate_records()?;
        m.validate_groups()?;
        Ok(m)
    }

    fn validate_records(&self) -> Result<(), FormatError> {
        let records = self.records();
        let heap = self.heap();
        let bad = |record: u32, what| Err(FormatError::Record { record, what });
        // Names first: ordering compares them.
        for (i, r) in (0u32..).zip(records) {
            let start = r.name_off.get() as usize;
            match heap.get(start..start + r.name_len as usize) {
                Some(n) if i == 0 && n.is_empty() || i > 0 && valid_name(n) => {}
                _ => return bad(i, "the name is not valid"),
            }
            if !self.valid_extra(r.extra.get()) {
                return bad(i, "owner or attributes lie outside the heap");
            }
        }
        // Of the directories that were met as children, in the order in which their own turn comes.
        let mut path_lens = VecDeque::from([0]);
        let mut next_child = 1u64;
        let (mut files, mut logical) = (0u64, 0u64);
        for (i, r) in (0u32..).zip(records) {
            let canonical = r.canonical.get();
            // What is restored with them would run as whoever restores it.
            if u32::from(r.mode.get()) & (libc::S_ISUID | libc::S_ISGID) != 0 {
                return bad(i, "it has set-id bits");
            }
            if !is_file(r) && r.digest_kind != 0 {
                return bad(i, "only a file's content has a digest");
            }
            match u32::from(r.mode.get()) & libc::S_IFMT {
                libc::S_IFDIR => {
                    let d = dir_body(r);
                    let (first, count) = (u64::from(d.first_child.get()), u64::from(d.children.get()));
                    let expected = if count > 0 { next_child } else { 0 };
                    if first != expected || next_child + count > records.len() as u64 {
                        return bad(i, "the directory's children are out of place");
                    }
                    let children = &records[next_child as usize..(next_child + count) as usize];
                    let sub = children.iter().filter(|c| is_dir(c)).count();
                    if sub as u64 != u64::from(d.subdirs.get()) {
                        return bad(i, "the number of subdirectories is wrong");
                    }
                    if children.windows(2).any(|w| self.name_of(&w[0]) >= self.name_of(&w[1])) {
                        return bad(i, "the names are not in order");
                    }
                    if children.iter().any(|c| is_dir(c) && dir_body(c).parent.get() != i) {
                        return bad(i, "a subdirectory names another parent");
                    }
                    let Some(above) = path_lens.pop_front() else {
                        return bad(i, "the directory belongs to none that stands before it");
                    };
                    let below = children.iter().filter(|c| is_dir(c));
                    path_lens.extend(below.map(|c| path_len(above, self.name_of(c))));
                    if above > MAX_DIR_PATH {
                        return bad(i, "the directory nests too deep");
                    }
                    next_child += count;
                    if canonical != i {
                        return bad(i, "a directory cannot be a hard link");
                    }
                }
                libc::S_IFLNK => {
                    let l = link_body(r);
                    let end = l.target_off.get() as usize + l.target_len.get() as usize;
                    let target = heap.get(l.target_off.get() as usize..end);
                    if target.is_none_or(|t| t.is_empty() || t.contains(&0))
                        || u64::from(l.target_len.get()) != r.size.get()
                    {
                        return bad(i, "the link target is not valid");
                    }
                    if canonical != i && !self.is_link_of(r, i) {
                        return bad(i, "it is a hard link of something else");
                    }
                }
                libc::S_IFREG => {
                    files += 1;
                    if canonical == i {
                        logical = logical.wrapping_add(r.size.get());
                    } else if !self.is_link_of(r, i) {
                        return bad(i, "it is a hard link of something else");
                    }
                    match r.digest_kind() {
                        None => return bad(i, "the kind of digest is unknown"),
                        Some(DigestKind::Blake3Whole) if group_count(r.size.get()) == 0 => {
                            return bad(i, "the kind of digest does not fit the size");
                        }
                        Some(_) => {}
                    }
                }
                _ => return bad(i, "it is neither file, directory nor symlink"),
            }
        }
        if !is_dir(&records[0]) {
            return bad(0, "the top is not a directory");
        }
        if next_child != records.len() as u64 {
            return Err(FormatError::Header("there are records that belong to no directory"));
        }
        let h = self.header();
        if files != h.files.get() || logical != h.logical_bytes.get() {
            return Err(FormatError::Header("the totals are wrong"));
        }
        Ok(())
    }

    /// Whether the canonical record of `r`, which is the one at `i`, is an earlier one and like it.
    fn is_link_of(&self, r: &Record, i: u32) -> bool {
        let canonical = r.canonical.get();
        let alike = |c: &Record| {
            let same = c.body == r.body && c.digest_kind == r.digest_kind;
            c.canonical.get() == canonical && same && c.size == r.size && c.mode == r.mode
        };
        canonical < i && self.records().get(canonical as usize).is_some_and(alike)
    }

    /// Every file over one group has exactly its list, and the list hashes to its name.
    fn validate_groups(&self) -> Result<(), FormatError> {
        let mut rows = self.group_rows().iter();
        let mut used = 0u64;
        for (i, r) in self.records().iter().enumerate() {
            let i = i as u32;
            let wanted = if r.digest_kind == 0 && is_file(r) && r.canonical.get() == i {
                group_count(r.size.get())
            } else {
                0
            };
            if wanted == 0 {
                continue;
            }
            let bad = Err(FormatError::Record { record: i, what: "the group hashes do not fit" });
            let Some(row) = rows.next() else { return bad };
            if row.record.get() != i || row.count.get() as usize != wanted || row.first.get() != used {
                return bad;
            }
            used += wanted as u64;
            if used > self.groups as u64 {
                return bad;
            }
            let list = &self.all_groups()[row.first.get() as usize..used as usize];
            if root_of_groups(list, r.size.get()) != Some(BlobHash(r.body)) {
                return bad;
            }
        }
        if rows.next().is_some() || used != self.groups as u64 {
            return Err(FormatError::Header("there are group hashes that belong to no file"));
        }
        Ok(())
    }

    fn valid_extra(&self, at: u32) -> bool {
        let Some(rest) = self.heap().get(at as usize..) else { return false };
        let Ok((head, mut rest)) = Extra::ref_from_prefix(rest) else { return false };
        for _ in 0..head.xattrs.get() {
            let Ok((x, tail)) = XattrHeader::ref_from_prefix(rest) else { return false };
            let len = x.name_len.get() as usize + x.value_len.get() as usize;
            let Some(tail) = tail.get(len..) else { return false };
            rest = tail;
        }
        true
    }

    fn header(&self) -> &Header {
        Header::ref_from_prefix(&self.bytes).expect("the length was checked").0
    }

    fn section<T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned>(
        &self,
        at: usize,
        n: usize,
    ) -> &[T] {
        <[T]>::ref_from_bytes(&self.bytes[at..at + n * size_of::<T>()]).expect("the length was checked")
    }

    fn group_rows(&self) -> &[GroupRow] {
        self.section(HEADER + self.records * 64, self.rows)
    }

    fn all_groups(&self) -> &[GroupHash] {
        self.section(HEADER + self.records * 64 + self.rows * 16, self.groups)
    }

    fn heap(&self) -> &[u8] {
        &self.bytes[HEADER + self.records * 64 + self.rows * 16 + self.groups * 32..]
    }

    /// The manifest's name.
    pub fn hash(&self) -> ManifestHash {
        self.hash
    }

    /// What it says about the entry as a whole.
    pub fn seal(&self) -> &Seal {
        &self.seal
    }

    /// All bytes, as stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All records; index 0 is the top directory.
    pub fn records(&self) -> &[Record] {
        self.section(HEADER, self.records)
    }

    /// One record, if there is such an index.
    pub fn get(&self, index: u32) -> Option<&Record> {
        self.records().get(index as usize)
    }

    /// What the top directory looks like.
    pub fn top(&self) -> Top {
        let r = &self.records()[0];
        Top { perm: r.perm(), nlink: self.nlink(r), mtime_ns: r.mtime_ns() }
    }

    /// Sum of the sizes of all files, hard links once.
    pub fn logical_bytes(&self) -> u64 {
        self.header().logical_bytes.get()
    }

    /// Number of file names.
    pub fn files(&self) -> u64 {
        self.header().files.get()
    }

    fn name_of<'a>(&'a self, r: &Record) -> &'a [u8] {
        &self.heap()[r.name_off.get() as usize..r.name_off.get() as usize + r.name_len as usize]
    }

    /// A record's file name; empty for record 0.
    pub fn name(&self, index: u32) -> &[u8] {
        self.get(index).map_or(&[], |r| self.name_of(r))
    }

    /// The indices of a directory's children; empty for others.
    pub fn children(&self, dir: u32) -> std::ops::Range<u32> {
        match self.get(dir) {
            Some(r) if is_dir(r) => {
                let d = dir_body(r);
                let first = d.first_child.get();
                first..first + d.children.get()
            }
            _ => 0..0,
        }
    }

    /// A directory's parent; 0 for the top and for what is no directory.
    pub fn parent(&self, dir: u32) -> u32 {
        self.get(dir).filter(|r| is_dir(r)).map_or(0, |r| dir_body(r).parent.get())
    }

    /// The child of `dir` called `name`.
    pub fn lookup(&self, dir: u32, name: &[u8]) -> Option<u32> {
        let range = self.children(dir);
        let children = &self.records()[range.start as usize..range.end as usize];
        let at = children.binary_search_by(|r| self.name_of(r).cmp(name)).ok()?;
        Some(range.start + at as u32)
    }

    /// What a record looks like, if there is such an index.
    pub fn looks(&self, index: u32) -> Option<Looks> {
        self.get(index).map(|r| Looks::new(r, self.nlink(r)))
    }

    /// The child of `dir` called `name`, and what it looks like; `None` when there is no record `dir`.
    pub fn child(&self, dir: u32, name: &[u8]) -> Option<Child> {
        if !is_dir(self.get(dir)?) {
            return Some(Child::NotDir);
        }
        let Some(found) = self.lookup(dir, name) else { return Some(Child::Absent) };
        let canonical = self.get(found)?.canonical();
        Some(Child::Is(canonical, self.looks(canonical)?))
    }

    /// The record at a `/`-separated path below the top; empty components are skipped, `.`
    /// and `..` are not interpreted.
    pub fn find(&self, path: &[u8]) -> Option<u32> {
        path.split(|&b| b == b'/').filter(|c| !c.is_empty()).try_fold(0, |dir, name| self.lookup(dir, name))
    }

    /// A symlink's target, byte for byte; empty for others.
    pub fn target(&self, index: u32) -> &[u8] {
        match self.get(index) {
            Some(r) if r.kind() == RecordKind::Symlink => {
                let l = link_body(r);
                &self.heap()[l.target_off.get() as usize..(l.target_off.get() + l.target_len.get()) as usize]
            }
            _ => &[],
        }
    }

    /// The group list of a file over one group; empty for others, and where only the whole can be checked. Hard links share it.
    pub fn groups(&self, index: u32) -> &[GroupHash] {
        let Some(r) = self.get(index) else { return &[] };
        let rows = self.group_rows();
        match rows.binary_search_by_key(&r.canonical.get(), |row| row.record.get()) {
            Ok(at) if is_file(r) => {
                let (first, count) = (rows[at].first.get() as usize, rows[at].count.get() as usize);
                &self.all_groups()[first..first + count]
            }
            _ => &[],
        }
    }

    fn extra(&self, r: &Record) -> (&Extra, &[u8]) {
        Extra::ref_from_prefix(&self.heap()[r.extra.get() as usize..]).expect("extras were checked")
    }

    /// Original owner and group.
    pub fn owner(&self, r: &Record) -> (u32, u32) {
        let (e, _) = self.extra(r);
        (e.uid.get(), e.gid.get())
    }

    /// Number of hard links (files) or 2 + subdirectories (directories).
    pub fn nlink(&self, r: &Record) -> u32 {
        self.extra(r).0.nlink.get()
    }

    /// Extended attributes: full name and value.
    pub fn xattrs<'a>(&'a self, r: &Record) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + 'a {
        let (head, mut rest) = self.extra(r);
        (0..head.xattrs.get()).map(move |_| {
            let (x, tail) = XattrHeader::ref_from_prefix(rest).expect("extras were checked");
            let (name, tail) = tail.split_at(x.name_len.get() as usize);
            let (value, tail) = tail.split_at(x.value_len.get() as usize);
            rest = tail;
            (name, value)
        })
    }

    /// A record's path below the top.
    pub fn path(&self, index: u32) -> Vec<u8> {
        let (mut names, mut at) = (Vec::new(), index);
        while at != 0 {
            names.push(self.name(at));
            // Only directories name their parents.
            at = match self.get(at) {
                Some(r) if is_dir(r) => self.parent(at),
                _ => (0..self.records as u32).find(|dir| self.children(*dir).contains(&at)).unwrap_or(0),
            };
        }
        names.reverse();
        names.join(&b'/')
    }

    /// Every record's path below the top, in record order; the top's is empty.
    pub fn paths(&self) -> Vec<Vec<u8>> {
        let mut paths = vec![Vec::new(); self.records];
        for dir in 0..self.records as u32 {
            for child in self.children(dir) {
                let (above, name) = (&paths[dir as usize], self.name(child));
                let mut p = Vec::with_capacity(above.len() + 1 + name.len());
                p.extend_from_slice(above);
                if !p.is_empty() {
                    p.push(b'/');
                }
                p.extend_from_slice(name);
                paths[child as usize] = p;
            }
        }
        paths
    }

    /// Each distinct blob once, with its size and the first record that has it.
    pub fn blobs(&self) -> Vec<(BlobHash, u64, u32)> {
        let mut seen = std::collections::HashSet::new();
        let files = self.records().iter().enumerate();
        files
            .filter_map(|(i, r)| Some((r.hash()?, r.size(), i as u32)))
            .filter(|(h, _, _)| seen.insert(*h))
            .collect()
    }
}

impl Record {
    /// What it is.
    pub fn kind(&self) -> RecordKind {
        match u32::from(self.mode.get()) & libc::S_IFMT {
            libc::S_IFDIR => RecordKind::Dir,
            libc::S_IFLNK => RecordKind::Symlink,
            _ => RecordKind::File,
        }
    }

    /// The name of a file's content, of whichever digest.
    pub fn hash(&self) -> Option<BlobHash> {
        (self.kind() == RecordKind::File).then_some(BlobHash(self.body))
    }

    /// What a file's content is named by.
    pub fn digest_kind(&self) -> Option<DigestKind> {
        let kinds = [DigestKind::Blake3, DigestKind::Sha256, DigestKind::Blake3Whole];
        kinds.into_iter().find(|kind| *kind as u8 == self.digest_kind)
    }

    /// BLAKE3 of a file's content, where that is its name.
    pub fn blake3(&self) -> Option<BlobHash> {
        self.hash().filter(|_| self.digest_kind() != Some(DigestKind::Sha256))
    }

    /// SHA-256 of a file's content, where that is its name.
    pub fn sha256(&self) -> Option<BlobHash> {
        self.hash().filter(|_| self.digest_kind() == Some(DigestKind::Sha256))
    }

    /// Bytes: a file's content or a symlink's target; 0 for directories.
    pub fn size(&self) -> u64 {
        self.size.get()
    }

    /// Permission bits as they were, without set-id bits.
    pub fn perm(&self) -> u32 {
        u32::from(self.mode.get()) & 0o1777
    }

    /// Modification time, nanoseconds since 1970.
    pub fn mtime_ns(&self) -> i64 {
        self.mtime_ns.get()
    }

    /// The first record of the same hard-linked file; its own index otherwise.
    pub fn canonical(&self) -> u32 {
        self.canonical.get()
    }
}

fn is_dir(r: &Record) -> bool {
    r.kind() == RecordKind::Dir
}

fn is_file(r: &Record) -> bool {
    r.kind() == RecordKind::File
}

fn dir_body(r: &Record) -> &DirBody {
    DirBody::ref_from_bytes(&r.body).expect("a body is 32 bytes")
}

fn link_body(r: &Record) -> &LinkBody {
    LinkBody::ref_from_bytes(&r.body).expect("a body is 32 bytes")
}
