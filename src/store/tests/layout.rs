//! `docs/format.md` word by word: what it says is what is written.

use super::{key, store};
use crate::model::BlobHash;
use crate::store::*;

const PAGE: &str = include_str!("../../../docs/format.md");

#[test]
fn the_example_of_the_format_file_is_a_good_one() {
    let start = PAGE.find("outfs store\n").unwrap();
    let example = &PAGE[start..start + PAGE[start..].find("```").unwrap()];
    assert_eq!(example, crate::store::format::write("00c0ffee00c0ffee"));
}

#[test]
fn a_pack_is_laid_out_as_the_page_says() {
    let (_dir, s) = store();
    let mut w = s.new_pack().unwrap();
    let at = w.append(&BlobHash::of(b"hello"), b"hello").unwrap();
    w.append(&BlobHash::of(b""), b"").unwrap();
    let info = w.finish().unwrap();
    let mut expected = b"OUTFSPK1".to_vec();
    expected.extend(info.id.0.to_le_bytes());
    for content in [b"hello".as_slice(), b""] {
        let start = expected.len();
        expected.extend(b"BLB1");
        expected.extend((content.len() as u32).to_le_bytes());
        expected.extend(blake3::hash(content).as_bytes());
        let check = blake3::hash(&expected[start..start + 40]);
        expected.extend(&check.as_bytes()[..8]);
        expected.extend(content);
    }
    let path = s.root().join(format!("packs/{:016x}.pack", info.id.0));
    assert_eq!(std::fs::read(path).unwrap(), expected);
    assert_eq!(at, Location::Pack { pack: info.id, offset: 16 + 48 });
    let reserved: u64 = std::fs::read_to_string(s.root().join("packs/next")).unwrap().trim().parse().unwrap();
    assert!(reserved > info.id.0);
}

#[test]
fn a_location_table_is_laid_out_as_the_page_says() {
    let (_dir, s) = store();
    let manifest = ManifestHash::of(b"any");
    let place = Location::Pack { pack: PackId(3), offset: 64 };
    s.write_locations(&manifest, &[None, Some(Location::Loose), Some(place)], &[]).unwrap();
    let mut expected = b"OUTFSLC1".to_vec();
    expected.extend(manifest.as_bytes());
    for number in [3u64, 0, 0, 0, 1, 3, 64] {
        expected.extend(number.to_le_bytes());
    }
    let check = blake3::hash(&expected);
    expected.extend(check.as_bytes());
    let path =
        s.root().join("manifests").join(shards::of(manifest.as_bytes())).join(format!("{manifest}.loc"));
    assert_eq!(std::fs::read(path).unwrap(), expected);
}

#[test]
fn pins_rejections_and_drafts_are_where_the_page_says() {
    let (_dir, s) = store();
    s.write_pin(&Pin { name: "release".into(), key: key("abcd"), at_ns: 7 }).unwrap();
    let name = &blake3::hash(b"abcd\0release").to_hex()[..32];
    let pin = std::fs::read(s.root().join(format!("pins/{name}.json"))).unwrap();
    let expected = serde_json::json!({ "name": "release", "key": "abcd", "at_ns": 7 });
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&pin).unwrap(), expected);

    let rejection = Rejection { key: key("abcd"), reason: "bad".into(), at_ns: 8, manifest: None };
    s.write_rejection(&rejection).unwrap();
    let text = std::fs::read(s.root().join("rejections/abcd")).unwrap();
    let expected = serde_json::json!({ "key": "abcd", "reason": "bad", "at_ns": 8, "manifest": null });
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&text).unwrap(), expected);

    let id = s.create_draft(&DraftPlace::Work { name: b"w".to_vec() }).unwrap();
    let text = std::fs::read(s.root().join("drafts").join(&id).join("draft.json")).unwrap();
    let expected = serde_json::json!({ "place": "work", "name": [119] });
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&text).unwrap(), expected);
}
