//! What must hold of tree objects and places, whatever bytes they are made of.

use std::sync::OnceLock;

use super::{Object, Places, Tree};
use crate::model::Manifest;
use crate::model::groups::{GROUP, GroupHasher};
use crate::model::manifest::{Attrs, Content, Origin, Seal, TreeBuilder};

/// Of the contents that the places are of.
const SIZES: [usize; 5] = [80, 5000, GROUP, 300_000, 2 * GROUP + 1];

/// A tree object that is accepted is written with the same bytes. No damage comes with the right check, but somebody who lies may
/// say anything of where contents are: then all of it lies inside of what it should, and what is there compressed comes out as
/// large as it should, or not at all.
pub fn tree(data: &[u8]) {
    if let Ok(tree) = Tree::parse(data) {
        assert_eq!(Tree::encode(&tree.manifest, &tree.places), data);
    }
    let Some((packs, rest)) = data.split_first() else { return };
    let (packs, manifest) = (u32::from(packs % 4), manifest());
    let tables = packs as usize * 40 + SIZES.len() * 16;
    let mut bytes = b"OUTFSPL1".to_vec();
    bytes.extend_from_slice(manifest.hash().as_bytes());
    bytes.extend_from_slice(&packs.to_le_bytes());
    bytes.extend_from_slice(&(SIZES.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(rest.len().saturating_sub(tables) as u64).to_le_bytes());
    bytes.extend_from_slice(rest);
    bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
    if let Ok(places) = Places::parse(&bytes, manifest) {
        assert_eq!(places.encode(), bytes);
        hold(&places, rest);
    }
}

fn hold(places: &Places, bytes: &[u8]) {
    let length = |object: &Object| match object {
        Object::Blob(_, size) | Object::Pack(_, size) => *size,
        Object::Tree(_) => 0,
    };
    for (hash, size, _) in places.contents() {
        assert!(places.carried(hash).is_none_or(|carried| carried.len() as u64 == *size));
        if let Some((object, range)) = places.object(hash) {
            assert!(range.start < range.end && range.end <= length(&object));
        }
        let Some(stored) = places.stored(hash) else { continue };
        let groups = size.div_ceil(GROUP as u64);
        let (object, all) = stored.at(0..groups);
        assert!(all.start == 0 && all.end == length(&object) && all.end <= *size);
        for group in 0..groups {
            let (_, at) = stored.at(group..group + 1);
            let mut there = bytes.to_vec();
            there.resize((at.end - at.start) as usize, 0);
            let came = stored.groups(group..group + 1, there);
            assert!(
                came.is_none_or(|came| came.len() as u64 == (size - group * GROUP as u64).min(GROUP as u64))
            );
        }
    }
    assert!(places.form(&places.contents()[0].0).is_none(), "it is no large one");
}

fn manifest() -> &'static Manifest {
    static MANIFEST: OnceLock<Manifest> = OnceLock::new();
    MANIFEST.get_or_init(|| {
        let mut tree = TreeBuilder::new(Attrs::default());
        for (n, size) in SIZES.into_iter().enumerate() {
            let mut hasher = GroupHasher::default();
            hasher.update(&vec![n as u8; size]);
            let (hash, groups, size) = hasher.finish();
            let name = format!("f{n}");
            let node = tree.file(tree.top(), name.as_bytes(), Attrs::default(), None).expect("a name");
            tree.set_content(node, Content { hash, size, groups });
        }
        let (key, origin) = ("some-key".parse().expect("a key"), Origin::default());
        let seal = Seal { key, sealed_at_ns: 1, inferred: false, replaces: None, origin };
        Manifest::parse(tree.finish(&seal).expect("a tree")).expect("what was written")
    })
}
