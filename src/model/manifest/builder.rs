//! Making manifests: a flat arena of nodes, ordered and written at the end.
//!
//! The builder is fed in any order (parents first), then says the final order of the files
//! (`files_in_order`) so that packs are written in it, takes each file's content, and
//! produces the bytes. It never recurses, so depth costs nothing.

use std::collections::HashMap;

use zerocopy::IntoBytes;

use super::layout::{
    DirBody, Extra, FLAG_INFERRED, GroupRow, Header, LinkBody, MAGIC, Record, VERSION, XattrHeader,
};
use super::{DigestKind, MAX_DIR_PATH, Seal, path_len};
use crate::model::groups::{GroupHash, group_count};
use crate::model::hash::BlobHash;

/// Permission bits a manifest keeps: all but set-user-id and set-group-id.
const PERM_MASK: u32 = 0o1777;

/// A node of the builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

/// What every node has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attrs {
    /// Permission bits; others are ignored, set-id bits are dropped.
    pub mode: u32,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Original owner.
    pub uid: u32,
    /// Original group.
    pub gid: u32,
    /// `user.*` extended attributes: full name and value, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// BLAKE3 of all of it.
    pub hash: BlobHash,
    /// Bytes.
    pub size: u64,
    /// The group list; empty up to one group.
    pub groups: Vec<GroupHash>,
}

/// Why a tree cannot become a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A name that is no single path component, or too long.
    #[error("{0:?} is not a valid file name")]
    Name(String),
    /// Two children of one directory have the same name.
    #[error("{0:?} occurs twice in one directory")]
    Duplicate(String),
    /// A directory that nests too deep.
    #[error(
        "the directories below {start:?} nest so deep that a path has more than {MAX_DIR_PATH} bytes; move them up, or store an archive of them"
    )]
    TooDeep {
        /// How its path begins.
        start: String,
    },
    /// More than 2^32 records, or more than 4 GiB of names.
    #[error("the tree is too large for one entry")]
    TooLarge,
}

enum Kind {
    Dir { path_len: usize },
    File { content: Option<(Content, DigestKind)>, link: Option<u64> },
    Symlink { target: Vec<u8>, link: Option<u64> },
}

struct Node {
    parent: u32,
    name: Vec<u8>,
    attrs: Attrs,
    kind: Kind,
}

/// Collects a tree and writes its manifest.
pub struct TreeBuilder {
    nodes: Vec<Node>,
}

impl TreeBuilder {
    /// A tree that has only its top directory.
    pub fn new(top: Attrs) -> Self {
        Self {
            nodes: vec![Node { parent: 0, name: Vec::new(), attrs: top, kind: Kind::Dir { path_len: 0 } }],
        }
    }

    /// The top directory.
    pub fn top(&self) -> NodeId {
        NodeId(0)
    }

    /// Number of nodes so far.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never true: there is always the top directory.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Adds a directory.
    pub fn dir(&mut self, parent: NodeId, name: &[u8], attrs: Attrs) -> Result<NodeId, TreeError> {
        let Kind::Dir { path_len: above } = self.nodes[parent.0 as usize].kind else {
            unreachable!("only directories are parents")
        };
        let path_len = path_len(above, name);
        if path_len > MAX_DIR_PATH {
            return Err(TreeError::TooDeep { start: self.start_of(parent) });
        }
        self.push(parent, name, attrs, Kind::Dir { path_len })
    }

    /// How the path of a very deep directory begins.
    fn start_of(&self, dir: NodeId) -> String {
        const ENOUGH: usize = 4;
        let above = |node: &u32| Some(self.nodes[*node as usize].parent).filter(|_| *node != 0);
        let names: Vec<_> = std::iter::successors(Some(dir.0), above)
            .filter(|node| *node != 0)
            .map(|node| String::from_utf8_lossy(&self.nodes[node as usize].name))
            .collect();
        names.into_iter().rev().take(ENOUGH).collect::<Vec<_>>().join("/")
    }

    /// Adds a symlink with its target, byte for byte. Those with the same `link` are hard links of each other.
    pub fn symlink(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attrs: Attrs,
        target: &[u8],
        link: Option<u64>,
    ) -> Result<NodeId, TreeError> {
        self.push(parent, name, attrs, Kind::Symlink { target: target.to_vec(), link })
    }

    /// Adds a file whose content follows by [`set_content`](Self::set_content). Files with
    /// the same `link` are hard links of each other.
    pub fn file(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attrs: Attrs,
        link: Option<u64>,
    ) -> Result<NodeId, TreeError> {
        self.push(parent, name, attrs, Kind::File { content: None, link })
    }

    /// Sets a file's content. Of hard links, each must be set (alike).
    pub fn set_content(&mut self, file: NodeId, new: Content) {
        debug_assert_eq!(new.groups.len(), group_count(new.size));
        match &mut self.nodes[file.0 as usize].kind {
            Kind::File { content, .. } => *content = Some((new, DigestKind::Blake3)),
            _ => unreachable!("set_content is called for files only"),
        }
    }

    /// Sets a file's content by a name and a size alone. Of hard links, each must be set (alike).
    pub fn set_name(&mut self, file: NodeId, hash: BlobHash, size: u64, mut kind: DigestKind) {
        if kind != DigestKind::Sha256 {
            let groups = group_count(size) > 0;
            kind = if groups { DigestKind::Blake3Whole } else { DigestKind::Blake3 };
        }
        match &mut self.nodes[file.0 as usize].kind {
            Kind::File { content, .. } => *content = Some((Content { hash, size, groups: Vec::new() }, kind)),
            _ => unreachable!("set_name is called for files only"),
        }
    }

    fn push(&mut self, parent: NodeId, name: &[u8], attrs: Attrs, kind: Kind) -> Result<NodeId, TreeError> {
        if !super::read::valid_name(name) {
            return Err(TreeError::Name(String::from_utf8_lossy(name).into_owned()));
        }
        debug_assert!(matches!(self.nodes[parent.0 as usize].kind, Kind::Dir { .. }));
        let id = u32::try_from(self.nodes.len()).ok().filter(|&n| n < u32::MAX).ok_or(TreeError::TooLarge)?;
        self.nodes.push(Node { parent: parent.0, name: name.to_vec(), attrs, kind });
        Ok(NodeId(id))
    }

    /// What each directory holds, by name.
    fn children(&self) -> HashMap<u32, Vec<u32>> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for (i, n) in self.nodes.iter().enumerate().skip(1) {
            children.entry(n.parent).or_default().push(i as u32);
        }
        for list in children.values_mut() {
            list.sort_unstable_by(|&a, &b| self.nodes[a as usize].name.cmp(&self.nodes[b as usize].name));
        }
        children
    }

    /// Node indices in record order, and for each directory its first child's position.
    fn order(&self) -> (Vec<u32>, HashMap<u32, u32>) {
        let children = self.children();
        let mut order = vec![0u32];
        let mut first = HashMap::new();
        let mut at = 0;
        while at < order.len() {
            if let Some(list) = children.get(&order[at]) {
                first.insert(order[at], order.len() as u32);
                order.extend_from_slice(list);
            }
            at += 1;
        }
        (order, first)
    }

    /// The files in the order in which programs walk a tree (depth first, by name): the order to hash and pack
    /// them in, so that whoever reads them all reads a pack from its start to its end. Records stand in
    /// another: a directory's children side by side.
    pub fn files_in_order(&self) -> Vec<NodeId> {
        let children = self.children();
        let (mut files, mut next) = (Vec::new(), vec![0u32]);
        while let Some(at) = next.pop() {
            if matches!(self.nodes[at as usize].kind, Kind::File { .. }) {
                files.push(NodeId(at));
            }
            next.extend(children.get(&at).into_iter().flatten().rev());
        }
        files
    }

    /// Writes the manifest.
    ///
    /// # Panics
    /// When a file's content was never set.
    pub fn finish(self, seal: &Seal) -> Result<Vec<u8>, TreeError> {
        let (order, first) = self.order();
        let mut position = vec![0u32; self.nodes.len()];
        for (pos, &node) in order.iter().enumerate() {
            position[node as usize] = pos as u32;
        }
        let mut subdirs: HashMap<u32, u32> = HashMap::new();
        let mut child_count: HashMap<u32, u32> = HashMap::new();
        for n in self.nodes.iter().skip(1) {
            *child_count.entry(n.parent).or_default() += 1;
            if matches!(n.kind, Kind::Dir { .. }) {
                *subdirs.entry(n.parent).or_default() += 1;
            }
        }
        for pair in order.windows(2) {
            let (a, b) = (&self.nodes[pair[0] as usize], &self.nodes[pair[1] as usize]);
            if pair[0] != 0 && a.parent == b.parent && a.name == b.name {
                return Err(TreeError::Duplicate(String::from_utf8_lossy(&a.name).into_owned()));
            }
        }
        // Hard links: the first record in order is canonical and knows how many there are.
        let mut links: HashMap<u64, (u32, u32)> = HashMap::new();
        for &i in &order {
            if let Kind::File { link: Some(l), .. } | Kind::Symlink { link: Some(l), .. } =
                self.nodes[i as usize].kind
            {
                links.entry(l).or_insert((position[i as usize], 0)).1 += 1;
            }
        }

        let mut heap = Heap::default();
        let mut records: Vec<Record> = Vec::with_capacity(order.len());
        let (mut rows, mut groups): (Vec<GroupRow>, Vec<GroupHash>) = (Vec::new(), Vec::new());
        let (mut logical, mut files) = (0u64, 0u64);
        for (pos, &i) in order.iter().enumerate() {
            let (pos, node) = (pos as u32, &self.nodes[i as usize]);
            let mut canonical = pos;
            let mut nlink = 1;
            let mut digest_kind = DigestKind::Blake3;
            let (kind, size, body) = match &node.kind {
                Kind::Dir { .. } => {
                    let sub = subdirs.get(&i).copied().unwrap_or(0);
                    nlink = 2 + sub;
                    let body = DirBody {
                        first_child: first.get(&i).copied().unwrap_or(0).into(),
                        children: child_count.get(&i).copied().unwrap_or(0).into(),
                        subdirs: sub.into(),
                        parent: position[node.parent as usize].into(),
                        reserved: [0; 16],
                    };
                    (libc::S_IFDIR, 0, body.as_bytes().try_into().expect("body is 32 bytes"))
                }
                Kind::Symlink { target, link } => {
                    if let Some(l) = link {
                        (canonical, nlink) = links[l];
                    }
                    // Equal bodies: hard links share the target in the heap, too.
                    let body = match records.get(canonical as usize) {
                        Some(first) => first.body,
                        None => LinkBody {
                            target_off: heap.bytes(target)?.into(),
                            target_len: (target.len() as u32).into(),
                            reserved: [0; 24],
                        }
                        .as_bytes()
                        .try_into()
                        .expect("body is 32 bytes"),
                    };
                    (libc::S_IFLNK, target.len() as u64, body)
                }
                Kind::File { content, link } => {
                    let (c, named_by) = content.as_ref().expect("every file's content is set before finish");
                    digest_kind = *named_by;
                    if let Some(l) = link {
                        (canonical, nlink) = links[l];
                    }
                    files += 1;
                    if canonical == pos {
                        logical += c.size;
                        if !c.groups.is_empty() {
                            rows.push(GroupRow {
                                record: pos.into(),
                                count: (c.groups.len() as u32).into(),
                                first: (groups.len() as u64).into(),
                            });
                            groups.extend_from_slice(&c.groups);
                        }
                    }
                    (libc::S_IFREG, c.size, c.hash.0)
                }
            };
            records.push(Record {
                body,
                size: size.into(),
                mtime_ns: node.attrs.mtime_ns.into(),
                name_off: heap.bytes(&node.name)?.into(),
                name_len: node.name.len() as u8,
                digest_kind: digest_kind as u8,
                mode: ((kind | (node.attrs.mode & PERM_MASK)) as u16).into(),
                extra: heap.extra(&node.attrs, nlink)?.into(),
                canonical: canonical.into(),
            });
        }
        let origin = serde_json::to_vec(&seal.origin).expect("an origin has string keys only");
        let key = seal.key.as_str().as_bytes();
        let header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            flags: if seal.inferred { FLAG_INFERRED } else { 0 }.into(),
            records: (records.len() as u32).into(),
            group_rows: (rows.len() as u32).into(),
            groups: (groups.len() as u64).into(),
            sealed_at_ns: seal.sealed_at_ns.into(),
            logical_bytes: logical.into(),
            files: files.into(),
            replaces: seal.replaces.map_or([0; 32], |h| h.0),
            key_off: heap.bytes(key)?.into(),
            key_len: (key.len() as u32).into(),
            origin_off: heap.bytes(&origin)?.into(),
            origin_len: (origin.len() as u32).into(),
            heap_len: (heap.0.len() as u64).into(),
            reserved: [0; 64],
        };
        let mut out =
            Vec::with_capacity(size_of::<Header>() + records.len() * 64 + groups.len() * 32 + heap.0.len());
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(records.as_slice().as_bytes());
        out.extend_from_slice(rows.as_slice().as_bytes());
        out.extend_from_slice(groups.as_slice().as_bytes());
        out.extend_from_slice(&heap.0);
        Ok(out)
    }
}

/// The string heap; equal `Extra` blocks are stored once.
#[derive(Default)]
struct Heap(Vec<u8>, HashMap<Vec<u8>, u32>);

impl Heap {
    fn bytes(&mut self, b: &[u8]) -> Result<u32, TreeError> {
        let at = u32::try_from(self.0.len()).map_err(|_| TreeError::TooLarge)?;
        self.0.extend_from_slice(b);
        Ok(at)
    }

    fn extra(&mut self, a: &Attrs, nlink: u32) -> Result<u32, TreeError> {
        let mut block = Vec::with_capacity(16);
        let head = Extra {
            uid: a.uid.into(),
            gid: a.gid.into(),
            nlink: nlink.into(),
            xattrs: (a.xattrs.len() as u32).into(),
        };
        block.extend_from_slice(head.as_bytes());
        for (name, value) in &a.xattrs {
            let name_len = u16::try_from(name.len()).map_err(|_| TreeError::TooLarge)?;
            let value_len = u32::try_from(value.len()).map_err(|_| TreeError::TooLarge)?;
            block.extend_from_slice(
                XattrHeader { name_len: name_len.into(), value_len: value_len.into() }.as_bytes(),
            );
            block.extend_from_slice(name);
            block.extend_from_slice(value);
        }
        if let Some(&at) = self.1.get(&block) {
            return Ok(at);
        }
        let at = self.bytes(&block)?;
        self.1.insert(block, at);
        Ok(at)
    }
}
