//! Walking a directory tree into a [`TreeBuilder`]: what will be an entry, and where its bytes are.
//!
//! Invariants: symlinks are recorded and never followed; nothing but directories, files and
//! symlinks gets in; the number of open descriptors does not grow with the tree's size or depth.
//! Must not know: blobs, the index, how contents are stored.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use super::at;
use super::error::CacheError;
use super::ingest::FileId;
use super::only::Only;
use super::way::Way;
use crate::model::manifest::{Attrs, NodeId, TreeBuilder};

type Result<T> = std::result::Result<T, CacheError>;

/// Directories nested deeper than this are not held open while what is in them waits.
const HELD_DEPTH: usize = 64;

/// Where the bytes of a file come from.
pub(super) enum From {
    /// A file of the tree.
    Tree {
        /// Its directory: an index into [`Tree::dirs`].
        dir: u32,
        /// Its name there.
        name: Box<[u8]>,
        /// What it was when it was found.
        id: FileId,
    },
    /// A file that is open, and what to call it.
    Open(File, String),
    /// Bytes in memory.
    Memory(Vec<u8>),
}

/// One file of the entry to be.
pub(super) struct Source {
    /// Its node; sources are sorted by it.
    pub node: NodeId,
    /// Hard links of one file have the same number.
    pub link: Option<u64>,
    /// Its bytes.
    pub from: From,
}

/// A directory tree on disk, remembered so that its files can be opened again.
pub(super) struct Tree {
    top: OwnedFd,
    /// What the top is called in messages; empty for drafts.
    label: String,
    dirs: Vec<Dir>,
    /// The tree is ours: unreadable parts may be made readable for the time of the walk.
    owned: bool,
    relaxed: Vec<(u32, u32)>,
}

struct Dir {
    parent: u32,
    name: Box<[u8]>,
}

/// A tree to be sealed: its shape, and its files in the order they were found.
pub(super) struct Plan {
    /// The shape.
    pub builder: TreeBuilder,
    /// The directories on disk, if there are any.
    pub tree: Option<Tree>,
    /// All files.
    pub sources: Vec<Source>,
    /// Where the entry's metadata is.
    pub metadata: Metafile,
}

/// What `metadata.json` at the top is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Metafile {
    /// There is none.
    Missing,
    /// A file: its position in the sources.
    Source(usize),
    /// A directory or a symlink.
    NoFile,
}

/// A directory that waits to be listed.
struct Pending {
    node: NodeId,
    dir: u32,
    depth: usize,
    fd: Rc<OwnedFd>,
    only: Only,
}

impl Tree {
    /// A tree with its top open (O_PATH suffices).
    pub fn new(top: BorrowedFd<'_>, label: &str, owned: bool) -> Result<Tree> {
        let top = top.try_clone_to_owned().map_err(|e| CacheError::io("open", label, e))?;
        let dirs = vec![Dir { parent: 0, name: Box::default() }];
        Ok(Tree { top, label: label.to_owned(), dirs, owned, relaxed: Vec::new() })
    }

    fn names_of(&self, mut dir: u32) -> Vec<&[u8]> {
        let mut names = Vec::new();
        while dir != 0 {
            names.push(&*self.dirs[dir as usize].name);
            dir = self.dirs[dir as usize].parent;
        }
        names.reverse();
        names
    }

    /// A path below the top.
    pub fn below(&self, dir: u32, name: &[u8]) -> Vec<u8> {
        self.names_of(dir).into_iter().chain([name]).collect::<Vec<_>>().join(&b'/')
    }

    /// A path for messages.
    pub fn path(&self, dir: u32, name: &[u8]) -> String {
        let mut path = self.label.clone().into_bytes();
        for part in self.names_of(dir).into_iter().chain([name]) {
            path = at::join(&path, part);
        }
        at::show(&path)
    }

    /// Opens one of its directories to pass through.
    pub fn open_dir(&self, dir: u32, way: &mut Way) -> io::Result<Rc<OwnedFd>> {
        way.open(self.top.as_fd(), &self.names_of(dir))
    }

    /// Opens one of its files for reading.
    pub fn open_file(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
        match at::open_read(dir, name) {
            Err(e) if self.owned && e.kind() == io::ErrorKind::PermissionDenied => {
                let mode = at::stat(dir, name)?.st_mode & 0o7777;
                at::chmod(dir, name, mode | 0o400)?;
                let opened = at::open_read(dir, name);
                at::chmod(dir, name, mode)?;
                opened
            }
            other => other,
        }
    }

    /// Lists a directory; one of ours that nobody may read becomes readable until we are dropped.
    fn list(&mut self, dir: u32, fd: BorrowedFd<'_>, way: &mut Way) -> io::Result<Vec<Vec<u8>>> {
        let mode = at::stat_of(fd)?.st_mode & 0o7777;
        if self.owned && mode & 0o500 != 0o500 && !nix::unistd::geteuid().is_root() && dir != 0 {
            let parent = self.open_dir(self.dirs[dir as usize].parent, way)?;
            at::chmod(parent.as_fd(), &self.dirs[dir as usize].name, mode | 0o500)?;
            self.relaxed.push((dir, mode));
        }
        at::names(fd)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // Innermost first: an outer one may be needed to reach an inner one.
        let mut way = Way::default();
        for (dir, mode) in std::mem::take(&mut self.relaxed).into_iter().rev() {
            if let Ok(parent) = self.open_dir(self.dirs[dir as usize].parent, &mut way) {
                let _ = at::chmod(parent.as_fd(), &self.dirs[dir as usize].name, mode);
            }
        }
    }
}

/// Attributes of a name in `dir`.
fn attrs(dir: BorrowedFd<'_>, name: &[u8], stat: &libc::stat) -> io::Result<Attrs> {
    let xattrs = if at::kind(stat) == libc::S_IFLNK { Vec::new() } else { at::user_xattrs(dir, name)? };
    Ok(Attrs {
        mode: stat.st_mode & 0o7777,
        mtime_ns: at::mtime_ns(stat),
        uid: stat.st_uid,
        gid: stat.st_gid,
        xattrs,
    })
}

/// Attributes of a tree's top directory.
pub(super) fn top_attrs(top: BorrowedFd<'_>) -> io::Result<Attrs> {
    attrs(top, b".", &at::stat_of(top)?)
}

impl Plan {
    /// A plan that has only a top directory.
    pub fn new(top: Attrs) -> Plan {
        Plan { builder: TreeBuilder::new(top), tree: None, sources: Vec::new(), metadata: Metafile::Missing }
    }

    /// Adds a file that is not in the tree.
    pub fn add(&mut self, parent: NodeId, name: &[u8], attrs: Attrs, from: From) -> Result<()> {
        let node = self.builder.file(parent, name, attrs, None)?;
        self.note_metadata(parent, name, Metafile::Source(self.sources.len()));
        self.sources.push(Source { node, link: None, from });
        Ok(())
    }

    /// When one of the files was last changed, nanoseconds since 1970; 0 when there is none.
    pub fn newest_change_ns(&self) -> i64 {
        let changed = self.sources.iter().filter_map(|s| match &s.from {
            From::Tree { id, .. } => Some(id.changed_ns()),
            _ => None,
        });
        changed.max().unwrap_or(0)
    }

    fn note_metadata(&mut self, parent: NodeId, name: &[u8], is: Metafile) {
        if parent == self.builder.top() && name == b"metadata.json" {
            self.metadata = is;
        }
    }

    /// Adds all that is below the top of `tree` to the directory `parent`.
    pub fn add_tree(&mut self, parent: NodeId, tree: Tree) -> Result<()> {
        self.add_part(parent, tree, Only::All)
    }

    /// Adds some of what is below the top of `tree` to the directory `parent`.
    pub fn add_part(&mut self, parent: NodeId, mut tree: Tree, only: Only) -> Result<()> {
        let mut way = Way::default();
        let top = tree.open_dir(0, &mut way).map_err(|e| CacheError::io("open", tree.path(0, b""), e))?;
        let mut waiting = vec![Pending { node: parent, dir: 0, depth: 0, fd: top, only }];
        let mut links = HashMap::new();
        while let Some(dir) = waiting.pop() {
            let fd = open_pending(&tree, &dir, &mut way)?;
            let listed = tree.list(dir.dir, fd.as_fd(), &mut way);
            let names = listed.map_err(|e| CacheError::io("read", tree.path(dir.dir, b""), e))?;
            for name in names {
                let Some(only) = dir.only.child(&name) else { continue };
                if let Some(child) = self.add_name(&mut tree, &dir, fd.as_fd(), &name, &mut links)? {
                    let held = if dir.depth < HELD_DEPTH { fd.clone() } else { dir.fd.clone() };
                    waiting.push(Pending {
                        node: child.0,
                        dir: child.1,
                        depth: dir.depth + 1,
                        fd: held,
                        only,
                    });
                }
            }
        }
        self.tree = Some(tree);
        Ok(())
    }

    /// Adds one name; says which directory it became if it is one.
    fn add_name(
        &mut self,
        tree: &mut Tree,
        dir: &Pending,
        fd: BorrowedFd<'_>,
        name: &[u8],
        links: &mut HashMap<(u64, u64), u64>,
    ) -> Result<Option<(NodeId, u32)>> {
        let fail = |e| CacheError::io("read", tree.path(dir.dir, name), e);
        let stat = at::stat(fd, name).map_err(fail)?;
        let next = links.len() as u64;
        let mut link =
            || (stat.st_nlink > 1).then(|| *links.entry((stat.st_dev, stat.st_ino)).or_insert(next));
        let special = |what| CacheError::SpecialFile { path: tree.path(dir.dir, name), what };
        match at::kind(&stat) {
            libc::S_IFDIR => {
                let node = self.builder.dir(dir.node, name, attrs(fd, name, &stat).map_err(fail)?)?;
                self.note_metadata(dir.node, name, Metafile::NoFile);
                let index = tree.dirs.len() as u32;
                tree.dirs.push(Dir { parent: dir.dir, name: name.into() });
                return Ok(Some((node, index)));
            }
            libc::S_IFREG => {
                let (id, link) = (FileId::of(&stat), link());
                let node = self.builder.file(dir.node, name, attrs(fd, name, &stat).map_err(fail)?, link)?;
                self.note_metadata(dir.node, name, Metafile::Source(self.sources.len()));
                let from = From::Tree { dir: dir.dir, name: name.into(), id };
                self.sources.push(Source { node, link, from });
            }
            libc::S_IFLNK => {
                self.note_metadata(dir.node, name, Metafile::NoFile);
                let target = at::read_link(fd, name).map_err(fail)?;
                self.builder.symlink(
                    dir.node,
                    name,
                    attrs(fd, name, &stat).map_err(fail)?,
                    &target,
                    link(),
                )?;
            }
            libc::S_IFIFO => return Err(special("fifo")),
            libc::S_IFSOCK => return Err(special("socket")),
            _ => return Err(special("device")),
        }
        Ok(None)
    }
}

/// Opens a waiting directory: from its parent where that is held.
fn open_pending(tree: &Tree, dir: &Pending, way: &mut Way) -> Result<Rc<OwnedFd>> {
    if dir.dir == 0 {
        return Ok(dir.fd.clone());
    }
    let opened = if dir.depth <= HELD_DEPTH {
        at::pass(dir.fd.as_fd(), &tree.dirs[dir.dir as usize].name).map(Rc::new)
    } else {
        tree.open_dir(dir.dir, way)
    };
    opened.map_err(|e| CacheError::io("open", tree.path(dir.dir, b""), e))
}
