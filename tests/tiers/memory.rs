//! The tier in memory: it conforms, is strict, and is as ill as it is told to be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outfs::model::{BlobHash, PackHash};
use outfs::tier::{Call, Capabilities, Fault, MemoryTier, Object, Tier, TierErrorKind, ship};

use super::suite::{self, Made, conforms, key, odd_entry, soon};

fn tier(packs: bool) -> MemoryTier {
    MemoryTier::new("memory", Capabilities { push: true, packs })
}

#[test]
fn it_conforms() {
    conforms(&|| Arc::new(tier(true)));
    conforms(&|| Arc::new(tier(false)));
}

#[test]
fn content_that_is_not_what_its_name_says_is_refused() {
    let tier = tier(true);
    let blob = Object::Blob(BlobHash::of(b"right"), 5);
    for wrong in [&b"wrong"[..], b"", b"right and more", b"righ"] {
        for size in [wrong.len(), 5] {
            let refused = tier.put(&blob, size as u64, &mut &*wrong, soon()).unwrap_err();
            assert_eq!(refused.kind, TierErrorKind::Permanent);
        }
    }
    let pack = Object::Pack(PackHash::of(b"right"), 5);
    assert!(tier.put(&pack, 5, &mut &b"wrong"[..], soon()).is_err());
    assert!(tier.paths().is_empty());
}

#[test]
fn an_entry_that_lacks_a_part_is_refused() {
    let (whole, lacking) = (tier(true), tier(true));
    let made = odd_entry("entry-one");
    let places = ship(&whole, &made.manifest, &made, &suite::soon).unwrap();
    let objects = places.objects();
    assert!(objects.len() >= 3);
    for left_out in &objects {
        for object in objects.iter().filter(|o| *o != left_out) {
            lacking.set_raw(&object.path(), whole.raw(&object.path()));
        }
        lacking.set_raw(&left_out.path(), None);
        let refused = lacking.publish(&made.manifest, &places, soon()).unwrap_err();
        assert!(refused.to_string().contains(&left_out.path()), "{refused}");
        assert!(lacking.find(&key("entry-one"), soon()).unwrap_err().is_absent());
    }
    let other = Made::new("entry-one", &[("f", 1, 1)]);
    assert!(whole.publish(&other.manifest, &places, soon()).is_err(), "places of another manifest");
}

#[test]
fn one_that_is_for_reading_takes_nothing() {
    let tier = MemoryTier::new("memory", Capabilities { push: false, packs: true });
    let made = odd_entry("entry-one");
    assert!(ship(&tier, &made.manifest, &made, &suite::soon).is_err());
    assert!(tier.paths().is_empty());
}

#[test]
fn what_is_damaged_is_never_found() {
    let tier = tier(true);
    for name in ["entry-one", "entry-two"] {
        let made = odd_entry(name);
        ship(&tier, &made.manifest, &made, &suite::soon).unwrap();
    }
    let corrupt = |what: &str| {
        let error = tier.find(&key("entry-one"), soon()).unwrap_err();
        assert_eq!(error.kind, TierErrorKind::Corrupt, "{what}: {error}");
    };
    let entry = tier.raw("entries/entry-one").unwrap();
    tier.set_raw("entries/entry-one", tier.raw("entries/entry-two"));
    corrupt("another key's entry object");
    for at in 0..entry.len() {
        let mut flipped = entry.clone();
        flipped[at] ^= 1;
        tier.set_raw("entries/entry-one", Some(flipped));
        let error = tier.find(&key("entry-one"), soon()).unwrap_err();
        assert!([TierErrorKind::Corrupt, TierErrorKind::Permanent].contains(&error.kind), "{at}: {error}");
    }
    tier.set_raw("entries/entry-one", Some(entry.clone()));
    let text = String::from_utf8(entry).unwrap();
    let tree = text.lines().find_map(|l| l.strip_prefix("tree ")).map(|h| format!("trees/{h}")).unwrap();
    let bytes = tier.raw(&tree).unwrap();
    tier.set_raw(&tree, Some(bytes[..bytes.len() / 2].to_vec()));
    corrupt("half a tree");
    tier.set_raw(&tree, None);
    corrupt("no tree");
    tier.set_raw(&tree, Some(bytes));
    tier.set_faults(|_| Some(Fault::Flips));
    corrupt("a flipped bit");
    tier.set_faults(|_| None);
    tier.find(&key("entry-one"), soon()).unwrap();
}

#[test]
fn it_is_as_ill_as_it_is_told_to_be() {
    let tier = tier(true);
    let blob = Object::Blob(BlobHash::of(b"12345678"), 8);
    tier.put(&blob, 8, &mut &b"12345678"[..], soon()).unwrap();
    let get = || tier.get(&blob, 0..8, Instant::now() + Duration::from_millis(50));
    let before = tier.traffic();
    assert_eq!(get().unwrap(), b"12345678");
    let after = tier.traffic();
    assert_eq!((after.calls - before.calls, after.given - before.given), (1, 8));
    let kind = |fault| {
        tier.set_faults(move |call| matches!(call, Call::Get(..)).then_some(fault));
        get().unwrap_err().kind
    };
    assert_eq!(kind(Fault::Absent), TierErrorKind::Absent);
    assert_eq!(kind(Fault::Refuses), TierErrorKind::Permanent);
    let after = Some(Duration::from_secs(3));
    assert_eq!(kind(Fault::Busy(after)), TierErrorKind::Transient { after });
    assert_eq!(kind(Fault::Hangs), TierErrorKind::Transient { after: None });
    tier.set_faults(|_| Some(Fault::Flips));
    assert_ne!(tier.get(&blob, 0..8, soon()).unwrap(), b"12345678");
    tier.set_faults(|_| Some(Fault::Halves));
    assert_eq!(tier.get(&blob, 0..8, soon()).unwrap(), b"1234");
    let other = Object::Blob(BlobHash::of(b"half"), 4);
    tier.put(&other, 4, &mut &b"half"[..], soon()).unwrap();
    assert_eq!(tier.raw(&other.path()).unwrap(), b"ha");
}
