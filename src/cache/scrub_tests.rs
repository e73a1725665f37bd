//! Rot that nobody has read is found by the scrub, which gives way to everything else.

use std::time::Duration;

use super::fixture_tests::{Fixture, key, noise};
use super::fsck_tests::flip;
use super::*;
use crate::model::EventKind;
use crate::store::shards;

const MIB: usize = 1 << 20;

fn scrubbing() -> Fixture {
    Fixture::with(Limits { scrub: Duration::from_millis(1), ..Limits::default() })
}

fn filled() -> Fixture {
    let f = scrubbing();
    f.put("key1", &[("big", noise(1, MIB)), ("small", noise(2, 5000)), ("other", noise(3, 5000))]);
    f.put("key2", &[("big", noise(4, MIB)), ("small", noise(5, 5000))]);
    f.put("key3", &[("big", noise(1, MIB)), ("own", noise(6, 5000))]);
    f
}

/// Scrubs to the end of a round.
fn round(cache: &Cache) -> ScrubFacts {
    let before = cache.stats().unwrap().scrub.finished_at_ns;
    cache.scrub(&mut |_| cache.stats().unwrap().scrub.finished_at_ns == before);
    let facts = cache.stats().unwrap().scrub;
    assert!(!facts.running);
    facts
}

/// The keys of which events tell damage, sorted.
fn told(f: &Fixture) -> Vec<String> {
    let damaged = f.events().into_iter().filter(|e| matches!(e.kind, EventKind::Damaged { .. }));
    let mut keys: Vec<_> = damaged.map(|e| e.key.map_or("none".into(), |k| k.to_string())).collect();
    keys.sort();
    keys
}

fn read(f: &Fixture, name: &str, path: &str) -> Result<Vec<u8>> {
    let entry = f.cache().entry(&key(name), LeaseKind::Hold)?.expect("an entry");
    entry.read_all(entry.file(format!("outputs/{path}").as_bytes())?, u64::MAX)
}

#[test]
fn a_sound_store_is_read_once_a_round() {
    let f = filled();
    let facts = round(f.cache());
    assert_eq!((facts.found, told(&f)), (0, Vec::new()));
    let stored = (2 * MIB + 4 * 5000) as u64;
    assert!((stored..stored + 10_000).contains(&facts.verified_bytes), "{facts:?}");
    assert!(facts.total_bytes >= facts.verified_bytes, "{facts:?}");
    assert_eq!(round(f.cache()).verified_bytes, facts.verified_bytes, "the next round begins anew");
}

#[test]
fn a_flipped_bit_in_a_loose_blob_is_found_and_set_aside() {
    let mut f = filled();
    f.reopen(|store| flip(&store.join("blobs"), &noise(1, MIB)[..64], 40));
    assert_eq!(round(f.cache()).found, 1);
    assert_eq!(told(&f), ["key1", "key3"], "both entries that need it");
    assert_eq!(f.files("quarantine").len(), 1);
    assert!(read(&f, "key1", "big").is_err() && read(&f, "key3", "big").is_err());
    assert_eq!(read(&f, "key2", "big").unwrap(), noise(4, MIB));
    assert_eq!(read(&f, "key1", "small").unwrap(), noise(2, 5000));
    assert_eq!((round(f.cache()).found, told(&f).len()), (0, 2), "nobody is told twice");
    f.put("key4", &[("again", noise(1, MIB))]);
    assert_eq!(read(&f, "key1", "big").unwrap(), noise(1, MIB), "stored anew, it is whole again");
    assert_eq!(round(f.cache()).found, 0);
}

#[test]
fn a_flipped_bit_in_a_pack_is_found_and_its_neighbours_stay() {
    let mut f = filled();
    f.reopen(|store| flip(&store.join("packs"), &noise(2, 5000)[..64], 40));
    assert_eq!(round(f.cache()).found, 1);
    assert_eq!(told(&f), ["key1"]);
    assert!(read(&f, "key1", "small").is_err());
    assert_eq!(read(&f, "key1", "other").unwrap(), noise(3, 5000));
    f.put("key5", &[("again", noise(2, 5000))]);
    assert_eq!(read(&f, "key1", "small").unwrap(), noise(2, 5000), "stored anew, it is whole again");
}

#[test]
fn lost_content_and_damaged_manifests_are_found() {
    let mut f = filled();
    let manifest = f.cache().entry(&key("key3"), LeaseKind::Hold).unwrap().unwrap().manifest_hash().unwrap();
    f.reopen(|store| {
        let mut packs = std::fs::read_dir(store.join("packs")).unwrap().map(|e| e.unwrap().path());
        let of_key2 = |path: &std::path::PathBuf| {
            std::fs::read(path).unwrap().windows(64).any(|w| w == &noise(5, 5000)[..64])
        };
        std::fs::remove_file(packs.find(of_key2).unwrap()).unwrap();
        flip(&store.join("manifests").join(shards::of(manifest.as_bytes())), b"key3", 1);
    });
    // In key2's pack are its file, and its metadata.
    assert_eq!(round(f.cache()).found, 3);
    assert_eq!(told(&f), ["key2", "key2", "key3"]);
    assert!(read(&f, "key2", "small").is_err() && read(&f, "key3", "own").is_err());
    assert_eq!(f.files("quarantine").len(), 1, "the manifest");
    assert_eq!(round(f.cache()).found, 0, "nobody is told twice");
}

#[test]
fn it_goes_on_where_the_last_owner_left_it() {
    let mut f = scrubbing();
    for n in 0..4 {
        f.put(&format!("key{n}"), &[("big", noise(n, 5 * MIB))]);
    }
    while !f.cache().stats().unwrap().scrub.running {
        f.cache().scrub(&mut |_| false);
    }
    let first = f.cache().stats().unwrap().scrub;
    assert!(first.running && first.verified_bytes < 6 * MIB as u64, "it ends at once: {first:?}");
    f.reopen(|_| {});
    assert_eq!(f.cache().stats().unwrap().scrub.verified_bytes, first.verified_bytes);
    let all = round(f.cache());
    // What was half read is read again.
    assert!((20 * MIB as u64..26 * MIB as u64).contains(&all.verified_bytes), "{all:?}");
    f.reopen(|store| std::fs::write(store.join("scrub.json"), "{").unwrap());
    assert_eq!(f.cache().stats().unwrap().scrub.finished_at_ns, 0, "a damaged note is as good as none");
}

#[test]
fn it_keeps_to_its_speed_and_gives_way_to_others() {
    let f = scrubbing();
    f.put("key1", &[("big", noise(1, 16 * MIB))]);
    let mut waited = Duration::ZERO;
    let begun = std::time::Instant::now();
    f.cache().scrub(&mut |time| {
        waited += time;
        f.cache().stats().unwrap().scrub.finished_at_ns == 0
    });
    // The last piece of less than 4 MiB, and the pause after the round.
    let least = Duration::from_millis(375).saturating_sub(begun.elapsed());
    assert!(waited >= least + Duration::from_secs(1), "{waited:?}");
    let mut looks = 0;
    f.cache().scrub(&mut |time| {
        // Somebody reads all the time.
        read(&f, "key1", "big").unwrap();
        looks += u32::from(time == Duration::from_secs(1));
        looks < 25
    });
    let facts = f.cache().stats().unwrap().scrub;
    assert!(
        facts.running && facts.verified_bytes >= 8 * MIB as u64,
        "it is put off, not for ever: {facts:?}"
    );
}

#[test]
fn what_is_evicted_under_its_hands_is_no_damage() {
    let f = scrubbing();
    f.put("key1", &[("big", noise(1, 9 * MIB)), ("small", noise(2, 5000))]);
    f.cache().scrub(&mut |_| {
        f.cache().evict(&key("key1"), "test").unwrap();
        f.cache().stats().unwrap().scrub.finished_at_ns == 0
    });
    assert_eq!((f.cache().stats().unwrap().scrub.found, told(&f)), (0, Vec::new()));
    assert!(f.files("blobs").is_empty());
}

#[test]
fn off_is_never_and_a_new_store_has_time() {
    let f = Fixture::with(Limits { scrub: Duration::ZERO, ..Limits::default() });
    f.put("key1", &[("small", noise(2, 5000))]);
    let mut asked = 0;
    f.cache().scrub(&mut |_| {
        asked += 1;
        asked < 5
    });
    assert_eq!(
        f.cache().stats().unwrap().scrub,
        ScrubFacts { total_bytes: f.cache().usage().unwrap().used, ..Default::default() }
    );
    let f = Fixture::with(Limits { scrub: Duration::from_secs(3600), ..Limits::default() });
    f.cache().scrub(&mut |_| false);
    assert!(!f.cache().stats().unwrap().scrub.running, "the first round is a period away");
}

/// A store without `replace`, as `outfs put` does it.
fn put_again(f: &Fixture, name: &str) -> Sealed {
    let origin = crate::model::manifest::Origin { how: "put".into(), ..Default::default() };
    let request = SealRequest { key: key(name), origin, inferred: false, replace: false };
    let tree = f.dir.path().join(format!("src-{name}"));
    f.cache().put_dir(&tree, &TaskFacts::default(), [None, None], request).unwrap()
}

#[test]
fn what_was_found_damaged_is_known_after_a_restart() {
    let mut f = filled();
    f.reopen(|store| flip(&store.join("packs"), &noise(2, 5000)[..64], 40));
    assert!(read(&f, "key1", "small").is_err());
    f.reopen(|_| {});
    f.put("key4", &[("again", noise(2, 5000))]);
    assert_eq!(read(&f, "key1", "small").unwrap(), noise(2, 5000), "stored anew, it is whole again");
    assert!(f.files("damaged").is_empty());
    assert_eq!(f.cache().fsck(FsckOptions::default(), &mut |_| {}).unwrap().damage, []);
    f.sound();
}

#[test]
fn the_same_outputs_under_the_same_key_heal_it() {
    for restart in [false, true] {
        let mut f = filled();
        f.reopen(|store| {
            flip(&store.join("packs"), &noise(2, 5000)[..64], 40);
            flip(&store.join("blobs"), &noise(1, MIB)[..64], 40);
        });
        assert!(matches!(put_again(&f, "key1"), Sealed::Same(_)), "nobody has noticed yet");
        assert!(read(&f, "key1", "small").is_err() && read(&f, "key3", "big").is_err());
        if restart {
            f.reopen(|_| {});
        }
        assert!(matches!(put_again(&f, "key1"), Sealed::New(_)));
        assert!(matches!(put_again(&f, "key1"), Sealed::Same(_)));
        for (name, path, content) in [
            ("key1", "big", noise(1, MIB)),
            ("key1", "small", noise(2, 5000)),
            ("key1", "other", noise(3, 5000)),
            ("key3", "big", noise(1, MIB)),
        ] {
            assert_eq!(read(&f, name, path).unwrap(), content, "{name} {path}");
        }
        assert!(f.files("damaged").is_empty());
        f.cache().compact().unwrap();
        let options = FsckOptions { verify_data: true, ..FsckOptions::default() };
        assert_eq!(f.cache().fsck(options, &mut |_| {}).unwrap().damage, []);
        f.sound();
    }
}

#[test]
fn a_check_tells_of_what_was_found_before_and_a_repair_ends_that() {
    let mut f = filled();
    f.reopen(|store| flip(&store.join("packs"), &noise(2, 5000)[..64], 40));
    assert!(read(&f, "key1", "small").is_err());
    f.reopen(|_| {});
    let options = FsckOptions::default();
    let report = f.cache().fsck(options, &mut |_| {}).unwrap();
    assert_eq!((report.damage.len(), &report.damage[0].entries[..]), (1, &[key("key1")][..]), "{report:?}");
    let report = f.cache().fsck(FsckOptions { repair: true, ..options }, &mut |_| {}).unwrap();
    assert!(report.is_sound() && report.lost == [key("key1")], "{report:?}");
    assert!(f.files("damaged").is_empty());
    f.reopen(|_| {});
    assert_eq!(f.cache().fsck(options, &mut |_| {}).unwrap().damage, []);
}

/// What was believed before somebody found it damaged is not believed any more when it is committed.
#[test]
fn what_is_found_damaged_while_it_is_stored_again_is_stored_anew() {
    let mut f = filled();
    f.reopen(|store| flip(&store.join("packs"), &noise(2, 5000)[..64], 40));
    let place = crate::store::DraftPlace::InPlace { key: key("key4") };
    let draft = f.cache().create_draft(place).unwrap();
    std::fs::write(f.cache().store().draft_path(draft.id()).join("small"), noise(2, 5000)).unwrap();
    f.cache().prepare(&draft, std::time::Instant::now() + Duration::from_secs(10)).unwrap();
    assert!(read(&f, "key1", "small").is_err());
    let request =
        SealRequest { key: key("key4"), origin: Default::default(), inferred: false, replace: false };
    let entry = f.cache().seal(&draft, request).unwrap().into_entry();
    assert_eq!(entry.read_all(entry.file(b"small").unwrap(), u64::MAX).unwrap(), noise(2, 5000));
    assert_eq!(read(&f, "key1", "small").unwrap(), noise(2, 5000));
}
