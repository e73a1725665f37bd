//! What must hold of keys, metadata and manifests, whatever bytes they are made of.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::groups::GROUP;
use super::manifest::{Attrs, Child, Content, DigestKind, Peek, TreeBuilder, Verified};
use super::units::{Bytes, Size, parse_duration};
use super::{Cursor, EntryKey, Manifest, Metadata, RecordKind};

/// Of a key it is one safe name, and its text is what it was made of; so for other short texts.
pub fn key(data: &[u8]) {
    if let Ok(key) = EntryKey::parse_os(OsStr::from_bytes(data)) {
        assert_eq!(key.as_str().as_bytes(), data);
        safe(&key);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(key) = text.parse::<EntryKey>() {
        safe(&key);
    }
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
    }
    if let Ok(size) = text.parse::<Size>() {
        assert_eq!(size.to_string().parse(), Ok(size));
        assert!(i64::try_from(size.of(1 << 50)).is_ok(), "{size}");
    }
    if let Ok(bytes) = text.parse::<Bytes>() {
        assert_eq!(String::from(bytes).parse(), Ok(bytes));
    }
    let _ = parse_duration(text);
}

fn safe(key: &EntryKey) {
    let text = key.as_str();
    assert!((4..=255).contains(&text.len()) && !text.starts_with('.') && !text.contains(['/', '\0', ':']));
    assert_eq!(EntryKey::parse(text).as_ref(), Ok(key));
    assert_eq!(text.parse().as_ref(), Ok(key));
    let (first, second) = key.shards();
    assert!(text.starts_with(&format!("{first}{second}")) && text.starts_with(key.short()));
    let json = serde_json::to_string(key).expect("a key is text");
    assert_eq!(&serde_json::from_str::<EntryKey>(&json).expect("a key"), key);
}

/// Metadata that parses survives being written, unknown members included.
pub fn metadata(data: &[u8]) {
    if let Ok(metadata) = Metadata::parse(data) {
        let written = metadata.to_bytes();
        assert_eq!(Metadata::parse(&written).expect("what was written"), metadata);
    }
}

/// A manifest's accessors agree with each other and with those that read single records, and the tree made of
/// them again is the same.
pub fn manifest(data: &[u8]) {
    let peek = Peek::new(Slice(data));
    match Manifest::parse(data) {
        Ok(m) => {
            assert_eq!(m.as_bytes(), data);
            let reached = tree(&m);
            assert_eq!(reached, m.records().len(), "records that nothing leads to");
            peeked(&m, &peek.expect("a valid manifest has a valid header"));
            rebuilt(&m);
        }
        Err(_) => {
            if let Some(peek) = peek {
                for i in 0..peek.records().min(64) {
                    let _ = (peek.looks(i), peek.groups(i), peek.child(i, b"name"));
                }
            }
        }
    }
}

/// Bytes as they are.
struct Slice<'a>(&'a [u8]);

impl Verified for Slice<'_> {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn fill(&self, at: u64, to: &mut [u8]) -> Option<()> {
        let from = self.0.get(usize::try_from(at).ok()?..)?.get(..to.len())?;
        to.copy_from_slice(from);
        Some(())
    }
}

fn indices(m: &Manifest) -> std::ops::Range<u32> {
    0..m.records().len() as u32
}

/// How many records the top leads to.
fn tree(m: &Manifest) -> usize {
    let paths = m.paths();
    let mut reached = 1;
    for i in indices(m) {
        assert_eq!(m.find(&paths[i as usize]), Some(i));
        assert_eq!(m.path(i), paths[i as usize]);
        assert!(m.lookup(i, b"").is_none() && m.lookup(i, b"a/b").is_none());
        for child in m.children(i) {
            reached += 1;
            assert_eq!(m.lookup(i, m.name(child)), Some(child));
        }
        if m.get(i).is_some_and(|r| r.kind() == RecordKind::Dir) && i > 0 {
            assert!(m.children(m.parent(i)).contains(&i));
        }
    }
    let files = m.records().iter().filter(|r| r.kind() == RecordKind::File).count();
    assert!(m.files() == files as u64 && m.blobs().len() <= files);
    reached
}

fn peeked(m: &Manifest, peek: &Peek<Slice<'_>>) {
    assert_eq!(peek.records() as usize, m.records().len());
    for i in indices(m) {
        assert_eq!(peek.looks(i), m.looks(i));
        let r = &m.records()[i as usize];
        let whole = r.digest_kind() != Some(DigestKind::Blake3) && r.size() > GROUP as u64;
        if r.hash().is_some() && !whole {
            assert_eq!(peek.groups(i).as_deref(), Some(m.groups(i)));
        }
        for name in m.children(i).map(|c| m.name(c)).chain([&b"absent"[..]]) {
            let child = m.child(i, name);
            assert!(child.is_some() && peek.child(i, name) == child);
        }
        let file = m.records()[i as usize].kind() != RecordKind::Dir;
        assert!(!file || m.child(i, b"below") == Some(Child::NotDir));
    }
}

fn attrs(m: &Manifest, i: u32) -> Attrs {
    let r = &m.records()[i as usize];
    let (uid, gid) = m.owner(r);
    let xattrs = m.xattrs(r).map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
    Attrs { mode: r.perm(), mtime_ns: r.mtime_ns(), uid, gid, xattrs }
}

fn rebuilt(m: &Manifest) {
    let mut builder = TreeBuilder::new(attrs(m, 0));
    let mut nodes = vec![builder.top()];
    for dir in indices(m) {
        for i in m.children(dir) {
            let (r, parent, name) = (&m.records()[i as usize], nodes[dir as usize], m.name(i));
            let link = Some(u64::from(r.canonical()));
            let node = match r.kind() {
                RecordKind::Dir => builder.dir(parent, name, attrs(m, i)),
                RecordKind::Symlink => builder.symlink(parent, name, attrs(m, i), m.target(i), link),
                RecordKind::File => builder.file(parent, name, attrs(m, i), link),
            };
            let node = node.expect("a valid name");
            match (r.hash(), r.digest_kind().expect("a valid kind")) {
                (Some(hash), DigestKind::Blake3) => {
                    let groups = m.groups(i).to_vec();
                    builder.set_content(node, Content { hash, size: r.size(), groups });
                }
                (Some(hash), kind) => builder.set_name(node, hash, r.size(), kind),
                (None, _) => {}
            }
            nodes.push(node);
        }
    }
    let again =
        Manifest::parse(builder.finish(m.seal()).expect("no larger than before")).expect("a manifest");
    assert_eq!((again.seal(), again.records().len()), (m.seal(), m.records().len()));
    assert_eq!((again.files(), again.logical_bytes()), (m.files(), m.logical_bytes()));
    for i in indices(m) {
        let (a, b) = (&again.records()[i as usize], &m.records()[i as usize]);
        assert_eq!((a.kind(), a.hash(), a.canonical()), (b.kind(), b.hash(), b.canonical()));
        assert_eq!(a.digest_kind(), b.digest_kind());
        assert_eq!((attrs(&again, i), again.name(i)), (attrs(m, i), m.name(i)));
        assert_eq!((again.target(i), again.groups(i)), (m.target(i), m.groups(i)));
        assert!(a.kind() == RecordKind::Dir || a.size() == b.size());
    }
}
