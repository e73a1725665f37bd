//! Checks and repairs on real stores that were damaged on purpose.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use super::fixture_tests::{Fixture, key, noise};
use super::*;
use crate::store::{BadSpot, shards};

const MIB: usize = 1 << 20;

fn filled() -> Fixture {
    let f = Fixture::new();
    f.put("key1", &[("big", noise(1, MIB)), ("small", noise(2, 5000)), ("other", noise(3, 5000))]);
    f.put("key2", &[("big", noise(4, MIB)), ("small", noise(5, 5000))]);
    f.put("key3", &[("big", noise(1, MIB)), ("own", noise(6, 5000))]);
    f
}

fn check(f: &Fixture, verify_data: bool, repair: bool) -> FsckReport {
    let options = FsckOptions { verify_data, repair, rebuild_index: false };
    f.cache().fsck(options, &mut |_| {}).unwrap()
}

/// Flips one bit where `content` lies in a file below `dir`.
pub(super) fn flip(dir: &Path, content: &[u8], at: usize) {
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for path in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            if let Some(i) = bytes.windows(content.len()).position(|w| w == content) {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                let file = fs::File::options().write(true).open(&path).unwrap();
                file.write_all_at(&[bytes[i + at] ^ 1], (i + at) as u64).unwrap();
                return;
            }
        }
    }
    panic!("no such content");
}

/// After a repair: sound, and these entries are whole.
fn whole(f: &Fixture, keys: &[&str]) {
    let report = check(f, true, false);
    assert_eq!(report.damage, [], "after the repair");
    assert_eq!(f.keys(), keys);
    for k in keys {
        let entry = f.cache().entry(&key(k), LeaseKind::Hold).unwrap().unwrap();
        for (i, r) in (0..).zip(entry.manifest().unwrap().records()) {
            if r.hash().is_some() {
                entry.read_all(i, u64::MAX).unwrap();
            }
        }
    }
    f.sound();
}

#[test]
fn a_sound_store_is_sound() {
    let f = filled();
    f.cache().pin("p", &key("key1")).unwrap();
    let mut stages = Vec::new();
    let options = FsckOptions { verify_data: true, ..FsckOptions::default() };
    let report = f.cache().fsck(options, &mut |p| stages.push(p.stage)).unwrap();
    assert_eq!((report.damage.as_slice(), report.entries, report.orphans), (&[][..], 3, 0));
    assert!(report.verified_bytes > 2 * MIB as u64 && stages.contains(&"packs"));
}

#[test]
fn a_flipped_bit_in_a_pack_costs_the_entries_that_need_it_and_no_other() {
    let mut f = filled();
    f.reopen(|store| flip(&store.join("packs"), &noise(2, 5000)[..64], 40));
    assert_eq!(check(&f, false, false).damage, [], "headers are sound");
    let report = check(&f, true, false);
    assert_eq!(report.damage.len(), 1, "{report:?}");
    assert_eq!((report.damage[0].kind.as_str(), &report.damage[0].entries[..]), ("blob", &[key("key1")][..]));
    assert_eq!(f.keys().len(), 3, "a check changes nothing");
    let report = check(&f, true, true);
    assert_eq!(report.lost, [key("key1")]);
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(f.files("quarantine").len(), 2, "the pack and the manifest");
    whole(&f, &["key2", "key3"]);
}

#[test]
fn a_damaged_or_missing_loose_blob() {
    let mut f = filled();
    f.reopen(|store| flip(&store.join("blobs"), &noise(1, MIB)[..64], 0));
    assert_eq!(check(&f, false, false).damage, []);
    let report = check(&f, true, true);
    assert_eq!(report.damage[0].entries, [key("key1"), key("key3")]);
    assert_eq!(report.lost.len(), 2);
    whole(&f, &["key2"]);

    let gone = f.files("blobs");
    f.reopen(|_| gone.iter().for_each(|p| fs::remove_file(p).unwrap()));
    let report = check(&f, false, true);
    assert_eq!(report.lost, [key("key2")], "{report:?}");
    whole(&f, &[]);
    assert_eq!(f.cache().index().totals().unwrap(), crate::index::Totals::default());
}

#[test]
fn damage_that_no_entry_suffers_from_is_repaired_too() {
    let f = filled();
    // As a death leaves it: the entry is gone from the index, its contents are not yet.
    let row = f.cache().index().entry(&key("key2")).unwrap().unwrap();
    let manifest = f.cache().store().read_manifest(&row.manifest).unwrap();
    let blobs: Vec<_> = manifest.blobs().into_iter().map(|(hash, _, _)| hash).collect();
    f.cache().index().remove_entry(&row.key, &row.manifest, &blobs, &|_| true).unwrap();
    flip(&f.store().join("blobs"), &noise(4, MIB)[..64], 0);
    let report = check(&f, true, true);
    assert_eq!((report.damage.len(), report.remaining.len()), (1, 0), "{report:?}");
    assert!(report.is_sound() && report.lost.is_empty(), "{report:?}");
    whole(&f, &["key1", "key3"]);
}

#[test]
fn a_damaged_manifest_and_one_that_is_gone() {
    let mut f = filled();
    let manifest = |f: &Fixture, k: &str| {
        let name = f.cache().index().entry(&key(k)).unwrap().unwrap().manifest;
        f.store().join("manifests").join(shards::of(name.as_bytes())).join(name.to_hex())
    };
    let (one, two) = (manifest(&f, "key1"), manifest(&f, "key2"));
    f.reopen(|_| {
        let mut bytes = fs::read(&one).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&one, bytes).unwrap();
        fs::remove_file(&two).unwrap();
    });
    let report = check(&f, false, false);
    assert_eq!(report.damage.iter().filter(|d| d.kind == "manifest").count(), 2, "{report:?}");
    let report = check(&f, false, true);
    assert_eq!(report.lost, [key("key1"), key("key2")]);
    assert!(report.damage.iter().all(|d| d.repaired.is_some()), "{report:?}");
    whole(&f, &["key3"]);
    assert_eq!(f.files("blobs").len(), 1);
}

#[test]
fn a_truncated_pack_and_a_damaged_header() {
    let mut f = filled();
    let pack = f.files("packs")[1].clone();
    f.reopen(|_| fs::File::options().write(true).open(&pack).unwrap().set_len(5100).unwrap());
    let report = check(&f, false, true);
    assert!(!report.damage.is_empty() && report.lost == [key("key2")], "{report:?}");
    whole(&f, &["key1", "key3"]);

    // A header alone: every content is still there.
    f.reopen(|store| flip(&store.join("packs"), b"BLB1", 1));
    let report = check(&f, false, true);
    assert_eq!((report.lost.as_slice(), report.damage.len()), (&[][..], 1), "{report:?}");
    whole(&f, &["key1", "key3"]);
}

#[test]
fn a_wrong_index_is_corrected_or_made_anew() {
    let mut f = filled();
    let sql = |f: &Fixture, text: &str| crate::index::tests::run_sql(&f.store().join("index.sqlite"), text);
    sql(&f, "UPDATE blobs SET refs = refs + 1; UPDATE totals SET blobs = 77");
    assert!(check(&f, false, false).damage.iter().all(|d| d.kind == "index"));
    let report = check(&f, false, true);
    assert!(report.lost.is_empty() && report.damage.iter().all(|d| d.repaired.is_some()), "{report:?}");
    whole(&f, &["key1", "key2", "key3"]);

    sql(&f, "DELETE FROM blobs WHERE pack = 0; UPDATE entries SET files = 99 WHERE key = 'key2'");
    let held = f.cache().entry(&key("key3"), LeaseKind::Hold).unwrap();
    let report = check(&f, false, true);
    assert!(!report.rebuilt && !report.is_sound() && !report.remaining.is_empty(), "in use: {report:?}");
    drop(held);
    let report = check(&f, false, true);
    assert!(report.rebuilt && report.lost.is_empty() && report.is_sound(), "{report:?}");
    whole(&f, &["key1", "key2", "key3"]);

    // Pages in the middle of the file.
    f.reopen(|store| {
        let file = fs::File::options().write(true).open(store.join("index.sqlite")).unwrap();
        let len = file.metadata().unwrap().len();
        file.write_all_at(&vec![0xaa; (len - 4096) as usize], 4096).unwrap();
    });
    // Noticed when it was opened, or by the check: either way it is made anew.
    assert!(check(&f, false, true).lost.is_empty());
    let rebuilt = |e: &crate::model::Event| matches!(e.kind, crate::model::EventKind::IndexRebuilt { .. });
    assert_eq!(f.events().iter().filter(|e| rebuilt(e)).count(), 2);
    whole(&f, &["key1", "key2", "key3"]);
}

#[test]
fn nothing_is_dropped_because_the_index_has_its_place_wrong() {
    let sql = |f: &Fixture, text: &str| crate::index::tests::run_sql(&f.store().join("index.sqlite"), text);
    for wrong in [
        "UPDATE blobs SET pack = 0, off = 0, refs = refs + 1 WHERE pack > 0",
        "UPDATE blobs SET off = off + 1, refs = refs + 1 WHERE pack > 0",
        "UPDATE entries SET manifest = randomblob(32) WHERE key = 'key2'",
    ] {
        let mut f = filled();
        sql(&f, wrong);
        let report = check(&f, false, true);
        assert!(report.lost.is_empty() && report.is_sound(), "{wrong}: {report:?}");
        f.reopen(|_| {});
        whole(&f, &["key1", "key2", "key3"]);
    }
}

#[test]
fn what_a_lost_pack_had_is_one_damage() {
    let mut f = filled();
    f.reopen(|store| {
        for pack in fs::read_dir(store.join("packs")).unwrap().flatten() {
            if pack.path().extension().is_some_and(|e| e == "pack") {
                fs::remove_file(pack.path()).unwrap();
            }
        }
    });
    let report = check(&f, false, false);
    let of_blobs: Vec<_> = report.damage.iter().filter(|d| d.kind == "blob").collect();
    assert!(of_blobs.len() as u64 <= 3 && report.blobs > 3, "{report:?}");
    assert!(
        of_blobs.iter().any(|d| d.what.contains("blobs are lost") && !d.entries.is_empty()),
        "{report:?}"
    );
}

#[test]
fn rebuilding_gives_back_every_entry_pin_and_event() {
    let f = filled();
    f.cache().pin("p", &key("key1")).unwrap();
    let (before, events) = (f.cache().index().totals().unwrap(), f.events());
    let epoch = f.cache().index().epoch();
    let options = FsckOptions { rebuild_index: true, ..FsckOptions::default() };
    let held = f.cache().entry(&key("key1"), LeaseKind::Hold).unwrap();
    assert!(f.cache().fsck(options, &mut |_| {}).is_err(), "in use");
    drop(held);
    let report = f.cache().fsck(options, &mut |_| {}).unwrap();
    assert!(report.rebuilt && report.damage.is_empty(), "{report:?}");
    assert_eq!(f.cache().index().totals().unwrap(), before);
    assert_eq!(f.events()[..events.len()], events);
    assert_eq!(f.cache().pins().len(), 1);
    assert!(f.cache().index().epoch() > epoch);
    whole(&f, &["key1", "key2", "key3"]);
}

#[test]
fn damaged_pins_and_events_are_set_aside() {
    let mut f = filled();
    f.cache().pin("p", &key("key1")).unwrap();
    let (pins, events) = (f.files("pins"), f.files("events"));
    // The log is cut at its end when it is opened, so the damage is in the middle.
    f.reopen(|_| {
        let text = fs::read_to_string(&events[0]).unwrap();
        fs::write(&events[0], text.replacen("\"seq\"", "\"sXq\"", 1)).unwrap();
    });
    fs::write(&pins[0], "{").unwrap();
    let report = check(&f, false, false);
    let mut kinds: Vec<_> = report.damage.iter().map(|d| d.kind.as_str()).collect();
    kinds.sort();
    assert_eq!(kinds, ["events", "note"], "{report:?}");
    let report = check(&f, false, true);
    assert!(report.damage.iter().all(|d| d.repaired.is_some()) && report.lost.is_empty(), "{report:?}");
    assert_eq!(f.cache().pins(), []);
    whole(&f, &["key1", "key2", "key3"]);
}

#[test]
fn a_damaged_pin_does_not_keep_a_store_from_being_opened() {
    let mut f = filled();
    f.cache().pin("p", &key("key1")).unwrap();
    f.cache().pin("q", &key("key2")).unwrap();
    let pin = f.files("pins")[0].clone();
    f.reopen(|_| fs::write(&pin, "{").unwrap());
    assert_eq!(f.cache().pins().len(), 1);
    assert_eq!(f.files("quarantine").len(), 1);
    let told = |e: &crate::model::Event| matches!(e.kind, crate::model::EventKind::Damaged { .. });
    assert!(f.events().iter().any(told));
}

#[test]
fn orphans_are_counted_and_a_repair_removes_them() {
    let mut f = filled();
    f.reopen(|store| {
        let stray = crate::model::BlobHash::of(b"stray").to_hex();
        fs::write(store.join("blobs").join(&stray[..2]).join(&stray), b"x").unwrap();
        fs::write(store.join("packs/00000000deadbeef.pack"), b"x").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(40));
    });
    let report = check(&f, true, false);
    assert_eq!((report.damage.as_slice(), report.orphans), (&[][..], 2));
    check(&f, false, true);
    assert_eq!(check(&f, true, false).orphans, 0);
    whole(&f, &["key1", "key2", "key3"]);
}

/// A bad spot of the disk under some content in a file below `room`.
fn bad_spot(f: &Fixture, room: &str, content: &[u8]) -> BadSpot {
    for path in f.files(room) {
        let bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(content.len()).position(|w| w == content) {
            return BadSpot::of(&path, at as u64..(at + content.len()) as u64).unwrap();
        }
    }
    panic!("no such content in {room}");
}

#[test]
fn a_sector_that_cannot_be_read_costs_what_lies_on_it() {
    let mut f = filled();
    f.reopen(|_| {});
    let _pack = bad_spot(&f, "packs", &noise(2, 5000)[..512]);
    let _blob = bad_spot(&f, "blobs", &noise(4, MIB)[8192..8704]);
    let report = check(&f, true, false);
    let entries: Vec<_> = report.damage.iter().flat_map(|d| d.entries.clone()).collect();
    assert_eq!((report.damage.len(), entries.len()), (2, 2), "{report:?}");
    let report = check(&f, true, true);
    assert_eq!(report.lost, [key("key1"), key("key2")], "{report:?}");
    assert!(report.is_sound(), "{report:?}");
    whole(&f, &["key3"]);
}

#[test]
fn a_bad_spot_under_a_manifest_or_a_note_is_set_aside() {
    let mut f = filled();
    f.cache().pin("p", &key("key1")).unwrap();
    f.reopen(|_| {});
    let _manifest = bad_spot(&f, "manifests", b"key2");
    let _pin = bad_spot(&f, "pins", b"key1");
    let _events = bad_spot(&f, "events", b"key3");
    let report = check(&f, false, false);
    let mut kinds: Vec<_> = report.damage.iter().map(|d| d.kind.as_str()).collect();
    kinds.sort();
    // What the manifest refers to is not known.
    assert_eq!(kinds, ["events", "index", "manifest", "note"], "{report:?}");
    let report = check(&f, false, true);
    assert!(report.is_sound() && report.lost == [key("key2")], "{report:?}");
    f.reopen(|_| {});
    whole(&f, &["key1", "key3"]);
}

#[test]
fn a_store_is_opened_whose_log_ends_on_a_bad_spot() {
    let mut f = filled();
    let last = f.events().last().unwrap().seq;
    f.cache.take().unwrap().close().unwrap();
    let _events = bad_spot(&f, "events", b"key3");
    f.open();
    f.put("key4", &[("own", noise(7, 5000))]);
    assert!(check(&f, false, true).is_sound());
    assert!(f.events().iter().all(|e| e.seq > last + 1000), "no number is used twice");
    whole(&f, &["key1", "key2", "key3", "key4"]);
}

#[test]
fn an_index_is_made_anew_on_a_disk_with_bad_spots() {
    for (room, content) in [
        ("packs", &noise(2, 5000)[..512]),
        ("packs", &b"key2"[..]), // its metadata
        ("packs", &b"OUTFSPK1"[..]),
        ("manifests", &b"key2"[..]),
    ] {
        let mut f = filled();
        f.cache.take().unwrap().close().unwrap();
        let _bad = bad_spot(&f, room, content);
        fs::remove_file(f.store().join("index.sqlite")).unwrap();
        f.open();
        let report = check(&f, true, true);
        assert!(report.is_sound(), "{report:?}");
        assert!(f.cache().index().is_finished());
        assert!(f.keys().len() >= 2 && f.keys().contains(&"key3".to_owned()), "{:?}", f.keys());
        let keys = f.keys();
        f.reopen(|_| {});
        whole(&f, &keys.iter().map(String::as_str).collect::<Vec<_>>());
    }
}
