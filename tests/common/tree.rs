//! What a directory tree looks like, for comparing two of them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What counts when trees are compared.
#[derive(Clone, Copy)]
pub struct Look {
    /// Permission bits to compare.
    pub mode: u32,
    /// Modification times of files and symlinks, to the nanosecond.
    pub times: bool,
    /// Which names are hard links of one file.
    pub links: bool,
    /// User xattrs other than outfs's own.
    pub xattrs: bool,
}

/// All that a faithful copy keeps.
pub const ALL: Look = Look { mode: 0o7777, times: true, links: true, xattrs: true };

/// What two task results are compared by.
pub const OUTPUTS: Look = Look { mode: 0o100, times: false, links: false, xattrs: false };

/// One name below the top.
#[derive(Debug, PartialEq, Eq)]
pub struct Node {
    kind: &'static str,
    mode: u32,
    mtime: Option<(i64, i64)>,
    content: Option<blake3::Hash>,
    target: Option<PathBuf>,
    first_link: Option<PathBuf>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

/// Reads a whole tree; the paths are relative to `top`, which itself is not part of it.
#[track_caller]
pub fn look(top: &Path, look: Look) -> BTreeMap<PathBuf, Node> {
    let mut all = BTreeMap::new();
    let mut links: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        let list = fs::read_dir(top.join(&dir)).unwrap_or_else(|e| panic!("listing {}: {e}", dir.display()));
        let mut names: Vec<_> = list.map(|e| e.expect("an entry").file_name()).collect();
        names.sort();
        for name in names {
            let path = dir.join(name);
            let full = top.join(&path);
            let m = fs::symlink_metadata(&full).unwrap_or_else(|e| panic!("stat {}: {e}", full.display()));
            if m.is_dir() {
                todo.push(path.clone());
            }
            let first = links.entry(m.ino()).or_insert_with(|| path.clone()).clone();
            all.insert(path, node(&full, &m, first, look));
        }
    }
    all
}

fn node(full: &Path, m: &fs::Metadata, first: PathBuf, look: Look) -> Node {
    let kind = match m.mode() & libc::S_IFMT {
        libc::S_IFDIR => "directory",
        libc::S_IFREG => "file",
        libc::S_IFLNK => "symlink",
        _ => "special",
    };
    let mode = if kind == "symlink" { 0 } else { m.mode() & look.mode };
    let mut xattrs = BTreeMap::new();
    if look.xattrs && kind != "symlink" {
        for name in xattr::list(full).unwrap_or_else(|e| panic!("xattrs of {}: {e}", full.display())) {
            let text = name.to_string_lossy().into_owned();
            if text.starts_with("user.") && !text.starts_with("user.outfs.") {
                let value = xattr::get(full, &name).expect("it was listed").expect("it was listed");
                xattrs.insert(name, value);
            }
        }
    }
    Node {
        kind,
        mode,
        mtime: (look.times && kind != "directory").then(|| (m.mtime(), m.mtime_nsec())),
        content: (kind == "file").then(|| {
            blake3::hash(&fs::read(full).unwrap_or_else(|e| panic!("reading {}: {e}", full.display())))
        }),
        target: (kind == "symlink").then(|| fs::read_link(full).expect("a symlink")),
        first_link: (look.links && kind == "file" && m.nlink() > 1).then_some(first),
        xattrs,
    }
}

/// Fails, naming the first difference, unless both trees look the same.
#[track_caller]
pub fn assert_same(a: &Path, b: &Path, by: Look) {
    let (left, right) = (look(a, by), look(b, by));
    for (path, node) in &left {
        match right.get(path) {
            None => panic!("{} is in {} only", path.display(), a.display()),
            Some(other) => assert!(node == other, "{} differs:\n{node:?}\n{other:?}", path.display()),
        }
    }
    if let Some(path) = right.keys().find(|p| !left.contains_key(*p)) {
        panic!("{} is in {} only", path.display(), b.display());
    }
}
