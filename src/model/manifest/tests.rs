//! Manifests built, read back, and damaged in every way.

use super::*;
use crate::model::groups::GroupHasher;
use crate::model::manifest::{Attrs, Content, TreeBuilder, TreeError};
use proptest::prelude::*;

fn content(bytes: &[u8]) -> Content {
    let mut h = GroupHasher::default();
    h.update(bytes);
    let (hash, groups, size) = h.finish();
    Content { hash, size, groups }
}

fn seal() -> Seal {
    Seal {
        key: EntryKey::parse("abcd1234").unwrap(),
        sealed_at_ns: 42,
        inferred: false,
        replaces: Some(ManifestHash([7; 32])),
        origin: Origin { how: "put".into(), uid: 1000, host: "h".into(), source: "dir".into() },
    }
}

fn attrs(mode: u32) -> Attrs {
    Attrs {
        mode,
        mtime_ns: -1_500_000_001,
        uid: 5,
        gid: 6,
        xattrs: vec![(b"user.a".to_vec(), b"1".to_vec())],
    }
}

fn sample() -> Vec<u8> {
    let mut b = TreeBuilder::new(attrs(0o755));
    let out = b.dir(b.top(), b"outputs", attrs(0o6755)).unwrap();
    let big = vec![3u8; 700_000];
    let f = b.file(out, b"z", attrs(0o4755), Some(9)).unwrap();
    b.set_content(f, content(&big));
    let g = b.file(b.top(), b"a", attrs(0o600), None).unwrap();
    b.set_content(g, content(b"hello"));
    let h = b.file(out, b"y\xff\n", attrs(0o755), Some(9)).unwrap();
    b.set_content(h, content(&big));
    b.symlink(out, b"l", attrs(0o777), b"../\xfe", Some(7)).unwrap();
    b.symlink(b.top(), b"same l", attrs(0o777), b"../\xfe", Some(7)).unwrap();
    b.symlink(b.top(), b"other l", attrs(0o777), b"../\xfe", None).unwrap();
    b.dir(out, b"empty", attrs(0o500)).unwrap();
    b.finish(&seal()).unwrap()
}

#[test]
fn what_goes_in_comes_out() {
    let m = Manifest::parse(sample()).unwrap();
    assert_eq!(m.seal(), &seal());
    assert_eq!((m.files(), m.logical_bytes()), (3, 700_005));
    let a = m.find(b"a").unwrap();
    assert_eq!(m.get(a).unwrap().perm(), 0o600);
    assert_eq!(m.get(a).unwrap().mtime_ns(), -1_500_000_001);
    assert_eq!(m.owner(m.get(a).unwrap()), (5, 6));
    assert_eq!(m.xattrs(m.get(a).unwrap()).collect::<Vec<_>>(), vec![(&b"user.a"[..], &b"1"[..])]);
    assert!(m.groups(a).is_empty());
    let (y, z) = (m.find(b"outputs/y\xff\n").unwrap(), m.find(b"outputs/z").unwrap());
    assert_eq!((m.get(y).unwrap().canonical(), m.get(z).unwrap().canonical()), (y, y));
    assert_eq!(m.nlink(m.get(z).unwrap()), 2);
    assert_eq!(m.get(z).unwrap().perm(), 0o755, "set-id bits are dropped");
    assert_eq!(m.groups(z).len(), 3);
    assert_eq!(m.groups(z), m.groups(y));
    let links = ["outputs/l", "same l", "other l"].map(|l| m.find(l.as_bytes()).unwrap());
    assert!(links.iter().all(|l| m.target(*l) == b"../\xfe"));
    let [l, same, other] = links.map(|l| m.get(l).unwrap());
    assert_eq!([l.canonical(), same.canonical(), other.canonical()], [links[1], links[1], links[2]]);
    assert_eq!([l, same, other].map(|l| m.nlink(l)), [2, 2, 1]);
    let out = m.find(b"outputs").unwrap();
    assert_eq!(m.nlink(m.get(out).unwrap()), 3);
    assert_eq!(m.children(out).len(), 4);
    assert_eq!(m.parent(m.find(b"outputs/empty").unwrap()), out);
    assert_eq!(m.find(b"outputs/none"), None);
    assert_eq!(m.find(b"a/x"), None);
    assert_eq!(m.blobs().len(), 2);
    assert_eq!(m.paths()[y as usize], b"outputs/y\xff\n");
}

#[test]
fn files_are_packed_in_the_order_of_a_walk() {
    let mut b = TreeBuilder::new(attrs(0o755));
    let mut names = Vec::new();
    let mut file = |b: &mut TreeBuilder, parent, name: &'static str| {
        names.push((b.file(parent, name.as_bytes(), attrs(0o644), None).unwrap(), name));
    };
    let top = b.top();
    file(&mut b, top, "z");
    let m = b.dir(top, b"m", attrs(0o755)).unwrap();
    file(&mut b, m, "last");
    let deep = b.dir(m, b"deep", attrs(0o755)).unwrap();
    file(&mut b, top, "a");
    file(&mut b, deep, "first");
    let order: Vec<_> =
        b.files_in_order().iter().map(|f| names.iter().find(|n| n.0 == *f).unwrap().1).collect();
    assert_eq!(order, ["a", "first", "last", "z"]);
}

#[test]
fn bad_trees_are_refused() {
    let mut b = TreeBuilder::new(attrs(0o755));
    for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
        assert!(matches!(b.dir(b.top(), bad, attrs(0)), Err(TreeError::Name(_))));
    }
    b.dir(b.top(), b"twice", attrs(0)).unwrap();
    b.dir(b.top(), b"twice", attrs(0)).unwrap();
    assert!(matches!(b.finish(&seal()), Err(TreeError::Duplicate(_))));
}

/// A chain of directories whose deepest path has `bytes` bytes (an odd number), with a file in it.
fn chain(bytes: usize) -> Result<Vec<u8>, TreeError> {
    let mut b = TreeBuilder::new(attrs(0o755));
    let mut at = b.top();
    for _ in 0..bytes.div_ceil(2) {
        at = b.dir(at, b"d", attrs(0o755))?;
    }
    let file = b.file(at, &[b'f'; 255], attrs(0o644), None)?;
    b.set_content(file, content(b"bottom"));
    b.finish(&seal())
}

#[test]
fn trees_that_nest_too_deep_are_refused() {
    let deepest = MAX_DIR_PATH - 1;
    let m = Manifest::parse(chain(deepest).unwrap()).unwrap();
    assert_eq!(m.records().len(), deepest.div_ceil(2) + 2);
    let error = chain(deepest + 2).unwrap_err();
    assert_eq!(error, TreeError::TooDeep { start: "d/d/d/d".into() });
    assert!(error.to_string().contains("move them up"), "{error}");
}

/// Whoever writes a manifest by other means is not bound by what the builder allows.
#[test]
fn manifests_that_nest_too_deep_are_not_valid() {
    let mut longer = chain(MAX_DIR_PATH - 1).unwrap();
    // The names stand side by side in the heap, so that the first is `ddd` when its record says that it has three bytes.
    longer[176 + 64 + 52] = 3;
    let error = Manifest::parse(longer).unwrap_err();
    assert!(matches!(error, FormatError::Record { what: "the directory nests too deep", .. }), "{error:?}");
}

/// A manifest from elsewhere could have them, and what is restored from it would run as whoever restores it.
#[test]
fn set_id_bits_are_not_valid() {
    let sound = sample();
    let records = Manifest::parse(sound.clone()).unwrap().records().len();
    for i in 0..records {
        for bit in [libc::S_ISUID, libc::S_ISGID] {
            let mut bytes = sound.clone();
            bytes[176 + 64 * i + 55] |= (bit >> 8) as u8;
            let error = Manifest::parse(bytes).unwrap_err();
            assert!(matches!(error, FormatError::Record { what: "it has set-id bits", .. }), "{error:?}");
        }
    }
}

/// The same tree would have several manifests.
#[test]
fn what_is_no_file_has_no_kind_of_digest() {
    let sound = sample();
    let m = Manifest::parse(sound.clone()).unwrap();
    let kinds = m.records().iter().map(|r| r.kind());
    for (i, kind) in kinds.enumerate().filter(|(_, kind)| *kind != RecordKind::File) {
        let mut bytes = sound.clone();
        bytes[176 + 64 * i + 53] = 1;
        let error = Manifest::parse(bytes).unwrap_err();
        let what = "only a file's content has a digest";
        assert!(matches!(error, FormatError::Record { what: w, .. } if w == what), "{kind:?}: {error:?}");
    }
}

/// Whoever climbs from it would never arrive at the top.
#[test]
fn a_directory_that_holds_itself_is_not_valid() {
    let mut b = TreeBuilder::new(attrs(0o755));
    b.dir(b.top(), b"d", attrs(0o755)).unwrap();
    let mut bytes = b.finish(&seal()).unwrap();
    // First child, children, subdirectories, parent.
    for field in [0, 4, 8, 12] {
        bytes[176 + field] = 0;
        bytes[176 + 64 + field] = 1;
    }
    let error = Manifest::parse(bytes).unwrap_err();
    assert!(matches!(error, FormatError::Record { record: 1, .. }), "{error:?}");
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = sample();
    for n in 0..bytes.len() {
        assert!(Manifest::parse(&bytes[..n]).is_err(), "{n}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(Manifest::parse(longer).is_err());
}

/// Touches everything: must not panic on any manifest that parsed.
fn walk(m: &Manifest) {
    for (i, r) in m.records().iter().enumerate() {
        let i = i as u32;
        let _ =
            (m.name(i), m.children(i), m.parent(i), m.target(i), m.groups(i).len(), m.owner(r), m.nlink(r));
        m.xattrs(r).for_each(drop);
    }
    m.paths();
    m.blobs();
}

#[test]
fn every_flipped_bit_is_an_error_or_another_name() {
    let bytes = sample();
    let name = ManifestHash::of(&bytes);
    for i in 0..bytes.len() {
        let mut b = bytes.clone();
        b[i] ^= 1 << (i % 8);
        if let Ok(m) = Manifest::parse(b) {
            assert_ne!(m.hash(), name);
            walk(&m);
        }
    }
}

proptest! {
    #[test]
    fn damage_never_panics(edits in prop::collection::vec((0usize..2000, any::<u8>()), 1..8)) {
        let mut bytes = sample();
        for (at, v) in edits {
            let n = bytes.len();
            bytes[at % n] = v;
        }
        if let Ok(m) = Manifest::parse(bytes) {
            walk(&m);
        }
    }

    #[test]
    fn lookup_finds_exactly_the_names(names in prop::collection::btree_set("[a-z]{1,3}", 0..40)) {
        let mut b = TreeBuilder::new(Attrs::default());
        for n in names.iter().rev() {
            b.dir(b.top(), n.as_bytes(), Attrs::default()).unwrap();
        }
        let m = Manifest::parse(b.finish(&seal()).unwrap()).unwrap();
        let listed: Vec<_> = m.children(0).map(|c| m.name(c).to_vec()).collect();
        prop_assert_eq!(listed, names.iter().map(|n| n.clone().into_bytes()).collect::<Vec<_>>());
        for n in &names {
            prop_assert!(m.lookup(0, n.as_bytes()).is_some());
        }
        prop_assert_eq!(m.lookup(0, b"zzzz"), None);
    }
}

/// Bytes of a manifest that have been verified.
struct Sound(Vec<u8>);

impl Verified for Sound {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn fill(&self, at: u64, to: &mut [u8]) -> Option<()> {
        to.copy_from_slice(self.0.get(at as usize..)?.get(..to.len())?);
        Some(())
    }
}

#[test]
fn a_peek_says_what_the_manifest_says() {
    let m = Manifest::parse(sample()).unwrap();
    let peek = Peek::new(Sound(sample())).unwrap();
    assert_eq!(peek.records() as usize, m.records().len());
    for dir in 0..peek.records() + 1 {
        assert_eq!(peek.looks(dir), m.looks(dir));
        let groups = m.get(dir).filter(|r| r.hash().is_some()).map(|_| m.groups(dir).to_vec());
        assert_eq!(peek.groups(dir), groups);
        let names = (1..peek.records()).map(|r| m.name(r));
        for name in names.chain([&b"none"[..], b"", b"\xff"]) {
            assert_eq!(peek.child(dir, name), m.child(dir, name), "{dir} {name:?}");
        }
    }
    let (out, y) = (m.find(b"outputs").unwrap(), m.find(b"outputs/y\xff\n").unwrap());
    assert!(matches!(peek.child(out, b"z"), Some(Child::Is(r, looks)) if r == y && looks.nlink == 2));
    assert_eq!((peek.child(y, b"z"), peek.child(out, b"q")), (Some(Child::NotDir), Some(Child::Absent)));
}

#[test]
fn a_peek_into_anything_ends_without_panic() {
    let (bytes, m) = (sample(), Manifest::parse(sample()).unwrap());
    for i in 0..bytes.len() {
        for flip in [1 << (i % 8), 0xff] {
            let mut b = bytes.clone();
            b[i] ^= flip;
            let Some(peek) = Peek::new(Sound(b)) else { continue };
            for record in 0..m.records().len() as u32 {
                let _ = (peek.looks(record), peek.child(record, b"z"), peek.child(0, m.name(record)));
                peek.groups(record);
            }
        }
    }
    for n in 0..bytes.len() {
        assert!(Peek::new(Sound(bytes[..n].to_vec())).is_none(), "{n}");
    }
}
