//! Comparing the trees of two entries: path, type, executable bit, content and link target.
//!
//! Times, owners, other mode bits and attributes do not make results differ.

use super::at;
use crate::model::manifest::Record;
use crate::model::{Manifest, RecordKind};

/// The first path (in a fixed order) at which the trees at `below` differ, if they do. A
/// missing directory is as good as an empty one.
pub(super) fn first_difference(a: &Manifest, b: &Manifest, below: &[u8]) -> Option<String> {
    let mut waiting = vec![(a.find(below), b.find(below), below.to_vec())];
    while let Some((in_a, in_b, path)) = waiting.pop() {
        for top in [in_a.and_then(|r| a.get(r)), in_b.and_then(|r| b.get(r))].into_iter().flatten() {
            if top.kind() != RecordKind::Dir {
                let other = in_a.zip(in_b).and_then(|(x, y)| Some((a.get(x)?, b.get(y)?)));
                let target = |m: &Manifest, record: Option<u32>| record.map(|r| m.target(r).to_vec());
                let same = other.is_some_and(|(x, y)| alike(x, y) && x.hash() == y.hash())
                    && target(a, in_a) == target(b, in_b);
                return (!same).then(|| at::show(&path));
            }
        }
        let children = |m: &Manifest, dir: Option<u32>| dir.map_or(0..0, |d| m.children(d));
        let (mut of_a, mut of_b) = (children(a, in_a), children(b, in_b));
        let mut dirs = Vec::new();
        loop {
            let (x, y) = match (of_a.next(), of_b.next()) {
                (None, None) => break,
                (Some(x), Some(y)) if a.name(x) == b.name(y) => (x, y),
                (x, y) => {
                    let name = match (x.map(|x| a.name(x)), y.map(|y| b.name(y))) {
                        (Some(x), Some(y)) => x.min(y),
                        (x, y) => x.or(y).unwrap_or_default(),
                    };
                    return Some(at::show(&at::join(&path, name)));
                }
            };
            let child = || at::join(&path, a.name(x));
            let (Some(rx), Some(ry)) = (a.get(x), b.get(y)) else { break };
            if !alike(rx, ry) || rx.hash() != ry.hash() || a.target(x) != b.target(y) {
                return Some(at::show(&child()));
            }
            if rx.kind() == RecordKind::Dir {
                dirs.push((Some(x), Some(y), child()));
            }
        }
        waiting.extend(dirs.into_iter().rev());
    }
    None
}

/// Same type and, for files, same executable bit.
fn alike(a: &Record, b: &Record) -> bool {
    let executable = |r: &Record| r.perm() & 0o111 != 0;
    a.kind() == b.kind() && (a.kind() != RecordKind::File || executable(a) == executable(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::ingest::hash_bytes;
    use crate::model::manifest::{Attrs, Origin, Seal, TreeBuilder};

    /// A tree of `outputs/` with one file, one link and an empty directory, varied by the arguments.
    fn tree(content: &str, mode: u32, target: &str, extra: &[&str]) -> Manifest {
        let mut b = TreeBuilder::new(Attrs::default());
        let out = b.dir(b.top(), b"outputs", Attrs::default()).unwrap();
        let sub = b.dir(out, b"sub", Attrs::default()).unwrap();
        let f =
            b.file(sub, b"f", Attrs { mode, mtime_ns: i64::from(mode), ..Attrs::default() }, None).unwrap();
        b.set_content(f, hash_bytes(content.as_bytes()));
        b.symlink(out, b"l", Attrs::default(), target.as_bytes(), None).unwrap();
        for name in extra {
            b.dir(out, name.as_bytes(), Attrs::default()).unwrap();
        }
        let seal = Seal {
            key: "abcd".parse().unwrap(),
            sealed_at_ns: 1,
            inferred: false,
            replaces: None,
            origin: Origin::default(),
        };
        Manifest::parse(b.finish(&seal).unwrap()).unwrap()
    }

    #[test]
    fn a_link_in_place_of_the_directory_leads_somewhere() {
        let link = |target: &str| {
            let mut b = TreeBuilder::new(Attrs::default());
            b.symlink(b.top(), b"outputs", Attrs::default(), target.as_bytes(), None).unwrap();
            let (key, origin) = ("abcd".parse().unwrap(), Origin::default());
            let seal = Seal { key, sealed_at_ns: 1, inferred: false, replaces: None, origin };
            Manifest::parse(b.finish(&seal).unwrap()).unwrap()
        };
        assert_eq!(first_difference(&link("x"), &link("x"), b"outputs"), None);
        assert_eq!(first_difference(&link("x"), &link("y"), b"outputs").as_deref(), Some("outputs"));
    }

    #[test]
    fn what_counts_and_what_does_not() {
        let base = tree("x", 0o644, "t", &[]);
        let differs = |other: Manifest| {
            let forth = first_difference(&base, &other, b"outputs");
            assert_eq!(forth, first_difference(&other, &base, b"outputs"), "the order does not matter");
            forth
        };
        assert_eq!(differs(tree("x", 0o644, "t", &[])), None);
        assert_eq!(differs(tree("x", 0o600, "t", &[])), None, "other mode bits do not count");
        assert_eq!(differs(tree("y", 0o644, "t", &[])).as_deref(), Some("outputs/sub/f"));
        assert_eq!(differs(tree("x", 0o755, "t", &[])).as_deref(), Some("outputs/sub/f"));
        assert_eq!(differs(tree("x", 0o644, "u", &[])).as_deref(), Some("outputs/l"));
        assert_eq!(differs(tree("x", 0o644, "t", &["a"])).as_deref(), Some("outputs/a"));
        assert_eq!(differs(tree("x", 0o644, "t", &["z"])).as_deref(), Some("outputs/z"));
        assert_eq!(first_difference(&base, &tree("y", 0, "u", &["q"]), b"logs"), None);
    }
}
