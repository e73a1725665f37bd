//! The objects of tiers: written and read again, and damaged.

use proptest::prelude::*;

use super::compressed::Compressed;
use super::*;
use crate::model::groups::{GROUP, GroupHasher};
use crate::model::manifest::{Attrs, Content, Origin, Seal, TreeBuilder};
use crate::model::{BlobHash, TreeHash};

/// A manifest of files with these contents, and the contents.
fn manifest(key: &str, files: &[Vec<u8>]) -> Manifest {
    let mut tree = TreeBuilder::new(Attrs::default());
    for (i, content) in files.iter().enumerate() {
        let node = tree.file(tree.top(), format!("f{i}").as_bytes(), Attrs::default(), None).unwrap();
        let mut hasher = GroupHasher::default();
        hasher.update(content);
        let (hash, groups, size) = hasher.finish();
        tree.set_content(node, Content { hash, size, groups });
    }
    let (key, origin) = (key.parse().unwrap(), Origin::default());
    let seal = Seal { key, sealed_at_ns: 1, inferred: false, replaces: None, origin };
    Manifest::parse(tree.finish(&seal).unwrap()).unwrap()
}

/// Places of those contents, the first carried along and the other small ones in packs, large ones compressed, and the packs.
fn places(manifest: &Manifest, files: &[Vec<u8>], target: u64) -> (Places, Vec<(Object, Vec<u8>)>) {
    let mut builder = PlacesBuilder::new(target);
    let mut packs = Vec::new();
    for (i, content) in files.iter().enumerate() {
        match i {
            _ if content.len() > GROUP => {
                let hash = BlobHash::of(content);
                let all = Compressed::of(Box::new(&content[..]), content.len() as u64).unwrap();
                let Some((all, kept)) = all.filter(|_| !files[..i].contains(content)) else { continue };
                builder.compressed(hash, &all);
                packs.push((all.object(), kept.unwrap()));
            }
            0 => builder.carry(content),
            _ => packs.extend(builder.pack(content)),
        }
    }
    packs.extend(builder.end_pack());
    (builder.finish(manifest), packs)
}

fn files() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let small = || proptest::collection::vec(any::<u8>(), 0..200);
    let size = prop_oneof![
        8 => small(),
        1 => Just(vec![7; GROUP]),
        1 => (1..3 * GROUP).prop_map(|n| vec![3; GROUP + n]),
    ];
    proptest::collection::vec(size, 0..12)
}

/// Where a content is found, is it.
fn all_found(places: &Places, packs: &[(Object, Vec<u8>)], files: &[Vec<u8>]) {
    for content in files {
        let hash = BlobHash::of(content);
        match places.object(&hash) {
            Some((object @ Object::Pack(..), range)) if content.len() > GROUP => {
                let (_, bytes) = packs.iter().find(|(o, _)| *o == object).expect("a pack that was made");
                assert!(object.names(bytes) && range == (0..bytes.len() as u64));
                let (stored, last) = (places.stored(&hash).unwrap(), content.len().div_ceil(GROUP));
                for groups in [0..last, last - 1..last, 1..1] {
                    let wanted = &content[groups.start * GROUP..(groups.end * GROUP).min(content.len())];
                    let groups = groups.start as u64..groups.end as u64;
                    let (at_object, at) = stored.at(groups.clone());
                    let there = bytes[at.start as usize..at.end as usize].to_vec();
                    assert!(at_object == object && stored.groups(groups, there).unwrap() == wanted);
                }
            }
            Some((object @ Object::Pack(..), range)) => {
                let (_, bytes) = packs.iter().find(|(o, _)| *o == object).expect("a pack that was made");
                assert!(object.names(bytes));
                assert_eq!(bytes[range.start as usize..range.end as usize], content[..]);
            }
            Some((object, range)) => {
                assert_eq!(
                    (object, range),
                    (Object::Blob(hash, content.len() as u64), 0..content.len() as u64)
                );
            }
            None if content.is_empty() => assert_eq!(places.get(&hash), Some((0, Place::Own))),
            None => assert_eq!(places.carried(&hash), Some(&content[..])),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read_again(files in files(), target in 1..1000u64) {
        let manifest = manifest("some-key", &files);
        let (places, packs) = places(&manifest, &files, target);
        all_found(&places, &packs, &files);
        let bytes = Tree::encode(&manifest, &places);
        let tree = Tree::parse(&bytes).unwrap();
        prop_assert_eq!(tree.manifest.as_bytes(), manifest.as_bytes());
        prop_assert_eq!(&tree.places, &places);
        prop_assert_eq!(Tree::encode(&tree.manifest, &tree.places), bytes);
        for (object, bytes) in &packs {
            let end = bytes.len() as u64;
            for range in [0..end, end / 4..end / 2] {
                let small = places.contents().iter().filter(|(_, size, _)| *size <= GROUP as u64);
                let contents = small.filter_map(|(hash, ..)| Some((*hash, places.object(hash)?)));
                let inside = contents.filter(|(_, (o, at))| o == object && range.contains(&at.start));
                let mut all: Vec<_> = inside.map(|(hash, (_, at))| (hash, at)).collect();
                all.sort_by_key(|(_, at)| at.start);
                prop_assert_eq!(places.in_pack(object, range), all);
            }
        }
        let objects = places.objects();
        prop_assert!(objects.iter().collect::<std::collections::HashSet<_>>().len() == objects.len());
    }

    #[test]
    fn what_is_alone_comes_in_windows(files in files(), most in 500..5000u64) {
        let places = PlacesBuilder::new(1).finish(&manifest("some-key", &files));
        let small = |(_, size, _): &&(BlobHash, u64, Place)| (1..=GROUP as u64).contains(size);
        let small: Vec<_> = places.contents().iter().filter(small).map(|(hash, size, _)| (*hash, *size)).collect();
        let mut all = Vec::new();
        while all.len() < small.len() {
            let window = places.around(&small[all.len()].0, most);
            prop_assert!(!window.is_empty());
            for (hash, _) in &window {
                prop_assert_eq!(&places.around(hash, most), &window);
            }
            let (_, before) = window.split_last().expect("it is not empty");
            prop_assert!(before.iter().map(|(_, size)| size.max(&1024)).sum::<u64>() < most);
            all.extend(window);
        }
        prop_assert_eq!(all, small);
    }

    #[test]
    fn damaged_places_are_refused(files in files(), at in any::<usize>(), bit in 0..8u8, cut in any::<usize>()) {
        let manifest = manifest("some-key", &files);
        let (places, _) = places(&manifest, &files, 300);
        let sound = places.encode();
        let mut flipped = sound.clone();
        flipped[at % sound.len()] ^= 1 << bit;
        prop_assert!(Places::parse(&flipped, &manifest).is_err());
        prop_assert!(Places::parse(&sound[..cut % sound.len()], &manifest).is_err());
        prop_assert!(Places::parse(&[&sound[..], b"x"].concat(), &manifest).is_err());
        // Damage does not come with the right check, but somebody who lies may.
        let end = sound.len() - 32;
        let mut lying = flipped[..end].to_vec();
        lying.extend_from_slice(blake3::hash(&flipped[..end]).as_bytes());
        if let Ok(other) = Places::parse(&lying, &manifest) {
            prop_assert_eq!(other.encode(), lying);
            for (hash, size, _) in other.contents() {
                if let Some(stored) = other.stored(hash) {
                    let (object, all) = stored.at(0..size.div_ceil(GROUP as u64));
                    let length = other.packs().iter().find(|(p, n)| Object::Pack(*p, *n) == object).map(|(_, n)| *n);
                    prop_assert_eq!(all, 0..length.unwrap_or(*size));
                } else if let Some((object, range)) = other.object(hash) {
                    let length = other.packs().iter().find(|(p, n)| Object::Pack(*p, *n) == object).map(|(_, n)| *n);
                    prop_assert!(range.end <= length.unwrap_or(*size) && range.end - range.start == *size);
                }
                prop_assert!(other.carried(hash).is_none_or(|c| c.len() as u64 == *size));
            }
        }
    }

    #[test]
    fn damaged_trees_are_not_those_that_are_named(files in files(), at in any::<usize>(), bit in 0..8u8) {
        let manifest = manifest("some-key", &files);
        let (places, _) = places(&manifest, &files, 300);
        let mut bytes = Tree::encode(&manifest, &places);
        let object = Object::Tree(TreeHash::of(&bytes));
        prop_assert!(object.names(&bytes));
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        prop_assert!(!object.names(&bytes));
        if let Ok(other) = Tree::parse(&bytes) {
            prop_assert_eq!(Tree::encode(&other.manifest, &other.places), bytes);
        }
    }

    #[test]
    fn damaged_entry_objects_are_refused(at in any::<usize>(), bit in 0..8u8, bytes in any::<u64>()) {
        let manifest = manifest("some-key", &[]);
        let (key, tree) = (manifest.seal().key.clone(), TreeHash([7; 32]));
        let entry = EntryObject { key, manifest: manifest.hash(), tree, tree_bytes: bytes };
        let sound = entry.encode();
        prop_assert_eq!(EntryObject::parse(&sound), Ok(entry));
        let mut flipped = sound.clone();
        flipped[at % sound.len()] ^= 1 << bit;
        prop_assert!(EntryObject::parse(&flipped).is_err());
        prop_assert!(EntryObject::parse(&sound[..at % sound.len()]).is_err());
        prop_assert!(EntryObject::parse(&[&sound[..], b"x"].concat()).is_err());
    }
}

#[test]
fn a_newer_entry_object_says_so() {
    let text = b"outfs entry\nversion 2\nwhatever\n";
    assert_eq!(EntryObject::parse(text), Err(LayoutError::Version(2)));
}

/// So that no window has more of them than a server takes in one call.
#[test]
fn a_window_of_tiny_contents_has_few_of_them() {
    const WINDOW: u64 = 512 << 10;
    let files: Vec<Vec<u8>> = (0..1500u32).map(|n| n.to_le_bytes().to_vec()).collect();
    let places = PlacesBuilder::new(300).finish(&manifest("some-key", &files));
    let all: Vec<(BlobHash, u64)> = places.contents().iter().map(|(hash, size, _)| (*hash, *size)).collect();
    for window in [&all[..512], &all[512..1024], &all[1024..]] {
        for (hash, _) in [window[0], window[window.len() / 2], window[window.len() - 1]] {
            assert!(places.around(&hash, WINDOW) == window, "{} of them", places.around(&hash, WINDOW).len());
        }
    }
}

/// A tier without batches has each asked for by a call: what nobody waits for must not cost more of them when the first cannot be had.
#[test]
fn without_batches_nothing_is_asked_for_after_a_first_that_fails() {
    let tier = MemoryTier::new("memory", Capabilities { push: true, packs: false });
    let soon = Instant::now() + std::time::Duration::from_secs(60);
    let contents = [b"one", b"two", b"six"];
    let [one, two, six] = contents.map(|bytes| Object::Blob(BlobHash::of(bytes), 3));
    for (object, bytes) in [(one, b"one"), (six, b"six")] {
        tier.put(&object, 3, &mut &bytes[..], soon).unwrap();
    }
    let came = |wanted: &[Object]| {
        let before = tier.traffic().calls;
        let came = tier.get_all(wanted, soon).unwrap().into_iter().map(|one| one.map_err(|e| e.kind));
        (came.collect::<Vec<_>>(), tier.traffic().calls - before)
    };
    let absent = || Err(TierErrorKind::Absent);
    assert_eq!(came(&[two, one, six]), (vec![absent()], 1));
    assert_eq!(came(&[one, two, six]), (vec![Ok(b"one".to_vec()), absent(), Ok(b"six".to_vec())], 3));
    assert_eq!(came(&[]), (vec![], 0));
}

/// A few bytes could stand for any number of contents, all of which would be kept here.
#[test]
fn contents_that_share_bytes_are_refused() {
    let files = [vec![1; 10], vec![2; 10], vec![3; 10]];
    let manifest = manifest("some-key", &files);
    let (places, _) = places(&manifest, &files, 300);
    let sound = places.encode();
    let offset = 56 + 40 + 16 + 8;
    for (at, right) in [(0u64, true), (1, false), (9, false)] {
        let mut lying = sound[..sound.len() - 32].to_vec();
        lying[offset..offset + 8].copy_from_slice(&at.to_le_bytes());
        lying.extend_from_slice(blake3::hash(&lying).as_bytes());
        let parsed = Places::parse(&lying, &manifest);
        assert_eq!(parsed.is_ok(), right, "{at}");
        assert!(right || parsed == Err(LayoutError::Damaged("contents lie over each other")), "{at}");
    }
}

/// One pack could stand for any number of large contents, and lengths that are not its own would have reads go wrong.
#[test]
fn compressed_contents_that_cannot_be_are_refused() {
    let files = [vec![1; 2 * GROUP], vec![2; 2 * GROUP]];
    let manifest = manifest("some-key", &files);
    let (places, _) = places(&manifest, &files, 300);
    let sound = places.encode();
    // Two packs, two places, two tables of two lengths.
    let (place, table) = (56 + 2 * 40, 56 + 2 * 40 + 2 * 16);
    let refused = |at: usize, value: u64, n: usize, why: &'static str| {
        let mut lying = sound[..sound.len() - 32].to_vec();
        lying[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
        lying.extend_from_slice(blake3::hash(&lying).as_bytes());
        assert_eq!(Places::parse(&lying, &manifest), Err(LayoutError::Damaged(why)), "{at} {value}");
    };
    refused(place, 3, 8, "contents lie over each other");
    refused(place + 8, 8, 8, "contents lie over each other");
    refused(place + 8, 9, 8, "a content lies outside of where it should be");
    refused(place, 4, 8, "a content lies outside of where it should be");
    refused(place, 1, 8, "a content lies outside of where it should be");
    for length in [0, 1, GROUP as u64 + 1] {
        refused(table, length, 4, "a compressed content is not as long as its groups");
    }
    // What it is said to be in is longer than all its groups.
    refused(56 + 32, GROUP as u64, 8, "a compressed content is not as long as its groups");
}

#[test]
fn places_are_those_of_one_manifest() {
    let files = [b"a".to_vec(), b"b".to_vec()];
    let (ours, other) = (manifest("some-key", &files), manifest("other-key", &files));
    let (places, _) = places(&ours, &files, 300);
    assert!(Places::parse(&places.encode(), &ours).is_ok());
    assert!(Places::parse(&places.encode(), &other).is_err());
}
