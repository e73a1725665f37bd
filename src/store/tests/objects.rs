//! Manifests, packs, blobs, pins: what is written is there whole or not at all, and damage is noticed.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::{as_ordinary_user, is_root, key, store};
use crate::model::groups::{GROUP, GroupHasher};
use crate::model::manifest::{Attrs, Child, Content, Origin, Seal, TreeBuilder};
use crate::model::{BlobHash, EventKind, Manifest};
use crate::store::*;

fn data(n: usize, seed: u8) -> Vec<u8> {
    (0..n).map(|i| (i * 31 + i / 251) as u8 ^ seed).collect()
}

fn file_with(dir: &Path, bytes: &[u8]) -> std::fs::File {
    let path = dir.join("content");
    std::fs::write(&path, bytes).unwrap();
    std::fs::File::open(path).unwrap()
}

fn manifest_bytes(name: &[u8]) -> Vec<u8> {
    let mut tree = TreeBuilder::new(Attrs { mode: 0o755, ..Attrs::default() });
    let file = tree.file(tree.top(), name, Attrs { mode: 0o644, ..Attrs::default() }, None).unwrap();
    tree.set_content(file, Content { hash: BlobHash::of(name), size: name.len() as u64, groups: Vec::new() });
    let seal = Seal {
        key: key("abcd1234"),
        sealed_at_ns: 1,
        inferred: false,
        replaces: None,
        origin: Origin { how: "put".into(), ..Origin::default() },
    };
    tree.finish(&seal).unwrap()
}

/// Every file below a directory, relative to it.
fn files_below(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(d) = waiting.pop() {
        for e in std::fs::read_dir(&d).unwrap().map(|e| e.unwrap()) {
            if e.file_type().unwrap().is_dir() {
                waiting.push(e.path());
            } else {
                found.insert(e.path().strip_prefix(dir).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found
}

#[test]
fn manifests_round_trip_and_damage_is_noticed() {
    let (_dir, s) = store();
    let bytes = manifest_bytes(b"a");
    let hash = s.write_manifest(&bytes).unwrap();
    assert_eq!(s.write_manifest(&bytes).unwrap(), hash);
    assert_eq!(s.read_manifest(&hash).unwrap().as_bytes(), bytes);
    assert_eq!(s.manifests().unwrap(), [hash]);

    let path = s.root().join("manifests").join(shards::of(hash.as_bytes())).join(hash.to_hex());
    let mut bad = bytes.clone();
    bad[200] ^= 1;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&path, &bad).unwrap();
    assert!(matches!(s.read_manifest(&hash), Err(StoreError::Corrupt { .. })));
    assert_eq!(s.write_manifest(&bytes).unwrap(), hash);
    assert_eq!(s.read_manifest(&hash).unwrap().hash(), hash);

    s.quarantine_manifest(&hash).unwrap();
    assert!(matches!(s.read_manifest(&hash), Err(StoreError::Missing { .. })));
    assert!(matches!(s.quarantine_manifest(&hash), Err(StoreError::Missing { .. })));
    assert_eq!(files_below(&s.root().join("quarantine")).len(), 1);
    s.write_manifest(&bytes).unwrap();
    s.remove_manifest(&hash).unwrap();
    s.remove_manifest(&hash).unwrap();
    assert!(s.manifests().unwrap().is_empty());
}

/// A manifest of many files and its location table.
fn large_manifest() -> (Manifest, Vec<Option<Location>>) {
    let mut tree = TreeBuilder::new(Attrs { mode: 0o755, ..Attrs::default() });
    for i in 0..5000 {
        let name = format!("{i:05}");
        let file = tree.file(tree.top(), name.as_bytes(), Attrs::default(), None).unwrap();
        let content = Content { hash: BlobHash::of(name.as_bytes()), size: 5, groups: Vec::new() };
        tree.set_content(file, content);
    }
    let (replaces, origin) = (None, Origin::default());
    let seal = Seal { key: key("abcd1234"), sealed_at_ns: 1, inferred: false, replaces, origin };
    let manifest = Manifest::parse(tree.finish(&seal).unwrap()).unwrap();
    let place = |i: u64| Location::Pack { pack: PackId(7), offset: 99 + i };
    let table = std::iter::once(None).chain((1..=5000).map(|i| Some(place(i)))).collect();
    (manifest, table)
}

#[test]
fn a_large_manifest_is_read_in_verified_parts() {
    let (_dir, s) = store();
    let (manifest, table) = large_manifest();
    let hash = s.write_manifest(manifest.as_bytes()).unwrap();
    s.write_locations(&hash, &table, &[]).unwrap();
    assert!(s.peek_manifest(&hash).is_none(), "without the values of its parts");
    s.write_locations(&hash, &table, &parts_of(&manifest)).unwrap();
    assert_eq!(s.read_locations(&hash).unwrap().unwrap(), table);
    let peek = s.peek_manifest(&hash).unwrap();
    for record in [1, 2, 2500, 5000] {
        let name = manifest.name(record);
        assert_eq!(peek.child(0, name), manifest.child(0, name));
        assert_eq!(peek.bytes().location(record), table[record as usize]);
    }
    assert_eq!((peek.child(0, b"x"), peek.record(5001).is_none()), (Some(Child::Absent), true));
    // One that is asked for too much is better read whole.
    let asked = (1..=5000).filter(|r| peek.child(0, manifest.name(*r)).is_some()).count();
    assert!((10..1000).contains(&asked), "{asked}");

    let path = s.root().join("manifests").join(shards::of(hash.as_bytes())).join(hash.to_hex());
    let damage = |path: &Path, at: usize| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 1;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    // A part that differs says nothing, not even where it is sound; the others do.
    damage(&path, 176 + 3500 * 64);
    let peek = s.peek_manifest(&hash).unwrap();
    assert_eq!(peek.looks(1), manifest.looks(1));
    assert!(peek.looks(3500).is_none() && peek.looks(3499).is_none());
    assert!(matches!(s.read_manifest(&hash), Err(StoreError::Corrupt { .. })));
    // The list of parts is checked against the name.
    let table = path.with_extension("loc");
    let end = std::fs::metadata(&table).unwrap().len() as usize;
    for at in [0, 8, 40, end - 1] {
        damage(&table, at);
        assert!(s.peek_manifest(&hash).is_none(), "byte {at} of the table");
        damage(&table, at);
        assert!(s.peek_manifest(&hash).is_some());
    }
    std::fs::File::options().write(true).open(&path).unwrap().set_len(300_000).unwrap();
    assert!(s.peek_manifest(&hash).is_none());
}

#[test]
fn a_location_table_is_given_back_or_is_absent() {
    let (_dir, s) = store();
    let hash = s.write_manifest(&manifest_bytes(b"a")).unwrap();
    assert_eq!(s.read_locations(&hash).unwrap(), None);
    let pack = Location::Pack { pack: PackId(7), offset: 99 };
    let table = [None, Some(Location::Loose), Some(Location::Elsewhere), Some(pack)];
    s.write_locations(&hash, &table, &[]).unwrap();
    assert_eq!(s.read_locations(&hash).unwrap().unwrap(), table);
    assert_eq!(s.manifests().unwrap(), [hash]);
    let path = s.root().join("manifests").join(shards::of(hash.as_bytes())).join(format!("{hash}.loc"));
    let good = std::fs::read(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&path, &bad).unwrap();
        assert_eq!(s.read_locations(&hash).unwrap(), None, "byte {at}");
        std::fs::write(&path, &good[..at]).unwrap();
        assert_eq!(s.read_locations(&hash).unwrap(), None, "cut at {at}");
    }
    s.write_locations(&hash, &table, &[]).unwrap();
    s.remove_manifest(&hash).unwrap();
    assert!(files_below(&s.root().join("manifests")).is_empty());
}

#[test]
fn packs_give_back_what_was_appended() {
    let (dir, s) = store();
    let mut w = s.new_pack().unwrap();
    assert!(w.is_empty());
    let blobs: Vec<Vec<u8>> = [0, 1, 5000, GROUP, 77].iter().map(|&n| data(n, n as u8)).collect();
    let places: Vec<Location> = blobs.iter().map(|b| w.append(&BlobHash::of(b), b).unwrap()).collect();
    assert!(matches!(w.append(&BlobHash::of(b"x"), b"y"), Err(StoreError::Corrupt { .. })));
    let too_large = vec![0; GROUP + 1];
    assert!(w.append(&BlobHash::of(&too_large), &too_large).is_err());
    let len = w.len();
    assert!(s.packs().unwrap().is_empty(), "a pack has no name before it is finished");
    let info = w.finish().unwrap();
    assert_eq!(info.bytes, len);
    assert_eq!(std::fs::metadata(s.root().join("packs/0000000000000001.pack")).unwrap().len(), len);
    for (b, at) in blobs.iter().zip(&places) {
        let mut buf = vec![0; b.len() + 9];
        let n = s.read_verified(&BlobHash::of(b), b.len() as u64, &[], *at, 0, &mut buf).unwrap();
        assert_eq!(&buf[..n], b);
    }
    let mut seen = Vec::new();
    s.scan_pack(info.id, true, &mut |h, n, at| {
        seen.push((h, n, at));
        true
    })
    .unwrap();
    let expected: Vec<_> =
        blobs.iter().zip(&places).map(|(b, at)| (BlobHash::of(b), b.len() as u64, *at)).collect();
    assert_eq!(seen, expected);

    drop(s);
    let s = Store::open(&dir.path().join("s"), Access::Own).unwrap();
    s.remove_pack(info.id).unwrap();
    assert!(matches!(s.pack_file(info.id), Err(StoreError::Missing { .. })));
    let next = s.new_pack().unwrap().finish().unwrap();
    assert!(next.id > info.id, "a number is not used again after its pack is gone");
}

#[test]
fn an_unfinished_pack_leaves_nothing() {
    let (_dir, s) = store();
    let mut w = s.new_pack().unwrap();
    w.append(&BlobHash::of(b"abc"), b"abc").unwrap();
    drop(w);
    assert!(files_below(&s.root().join("tmp")).is_empty());
    assert!(s.packs().unwrap().is_empty());
}

#[test]
fn every_damaged_byte_of_a_pack_is_noticed() {
    let (_dir, s) = store();
    let mut w = s.new_pack().unwrap();
    for b in [b"first blob".as_slice(), b"the second", b""] {
        w.append(&BlobHash::of(b), b).unwrap();
    }
    let info = w.finish().unwrap();
    let path = s.root().join("packs/0000000000000001.pack");
    let good = std::fs::read(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let mut seen = 0;
        let each = &mut |_, _, _| {
            seen += 1;
            true
        };
        let e = s.scan_pack(info.id, true, each).unwrap_err();
        assert!(matches!(e, StoreError::Corrupt { .. }), "byte {at}: {e}");
        assert!(seen < 3);
    }
    // A damaged content does not hide the blobs behind it.
    let mut bad = good.clone();
    bad[16 + 48] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    let mut seen = Vec::new();
    let each = &mut |h, _, _| {
        seen.push(h);
        true
    };
    assert!(s.scan_pack(info.id, true, each).is_err());
    assert_eq!(seen, [BlobHash::of(b"the second"), BlobHash::of(b"")]);
    let mut buf = [0; 10];
    let at = Location::Pack { pack: info.id, offset: 16 + 48 };
    let e = s.read_verified(&BlobHash::of(b"first blob"), 10, &[], at, 0, &mut buf).unwrap_err();
    assert!(matches!(e, StoreError::Corrupt { .. }), "{e}");
    s.quarantine_pack(info.id).unwrap();
    assert!(matches!(s.pack_file(info.id), Err(StoreError::Missing { .. })));
}

#[test]
fn large_blobs_are_read_and_verified_in_groups() {
    let (dir, mut s) = store();
    let bytes = data(3 * GROUP + 1234, 9);
    let mut h = GroupHasher::default();
    h.update(&bytes);
    let (hash, groups, size) = h.finish();
    s.adopt(&file_with(dir.path(), &bytes), &hash, Adopt::Clone).unwrap();
    let read = |s: &Store, offset: usize, n: usize| {
        let mut buf = vec![0xee; n];
        let got = s.read_verified(&hash, size, &groups, Location::Loose, offset as u64, &mut buf)?;
        buf.truncate(got);
        Ok::<_, StoreError>(buf)
    };
    for (offset, n) in
        [(0, 1), (0, 4 * GROUP), (GROUP - 1, 2), (5, 2 * GROUP), (3 * GROUP, 9999), (GROUP, GROUP)]
    {
        let end = (offset + n).min(bytes.len());
        assert_eq!(read(&s, offset, n).unwrap(), bytes[offset..end], "{n} at {offset}");
    }
    assert!(read(&s, bytes.len(), 5).unwrap().is_empty());
    assert_eq!(s.loose_blobs().unwrap(), [LooseBlob { hash, size, shared: false }]);

    let path = s.root().join("blobs").join(shards::of(hash.as_bytes())).join(hash.to_hex());
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o400);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    use std::os::unix::fs::FileExt;
    let f = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    f.write_all_at(&[bytes[GROUP + 7] ^ 1], GROUP as u64 + 7).unwrap();
    // What was found good before is still that, and is not where nothing is in memory yet.
    assert!(read(&s, GROUP + 100, 1).is_ok_and(|got| got == [bytes[GROUP + 100]]));
    assert!(read(&s, 2 * GROUP - 1, 2).is_ok(), "both groups were read in part before");
    let again = s.read_again(&hash, size, &groups, Location::Loose);
    assert!(matches!(again, Err(StoreError::Corrupt { .. })), "what the disk has is not");
    let root = s.root().to_owned();
    drop(s);
    s = Store::open(&root, Access::Own).unwrap();
    assert!(matches!(read(&s, GROUP, GROUP), Err(StoreError::Corrupt { .. })));
    assert!(matches!(read(&s, GROUP + 100, 1), Err(StoreError::Corrupt { .. })));
    f.set_len(size - 1).unwrap();
    assert!(matches!(read(&s, 3 * GROUP, 1), Err(StoreError::Corrupt { .. })));
    assert_eq!(read(&s, 0, GROUP).unwrap(), bytes[..GROUP], "other groups are good");
    assert!(matches!(
        s.read_verified(&hash, size, &groups[1..], Location::Loose, 0, &mut [0]),
        Err(StoreError::Corrupt { .. })
    ));
    s.quarantine_blob(&hash).unwrap();
    assert!(matches!(read(&s, 0, 1), Err(StoreError::Missing { .. })));
}

#[test]
fn a_link_is_the_drafts_own_inode_until_it_is_settled() {
    let (dir, s) = store();
    let bytes = data(GROUP + 1, 3);
    let hash = BlobHash::of(&bytes);
    let file = file_with(s.root().join("drafts").as_path(), &bytes);
    let _ = xattr::set(s.root().join("drafts/content"), "user.mine", b"x");
    std::fs::set_permissions(s.root().join("drafts/content"), std::fs::Permissions::from_mode(0o000))
        .unwrap();
    s.adopt(&file, &hash, Adopt::Link).unwrap();
    s.adopt(&file, &hash, Adopt::Link).unwrap();
    let path = s.root().join("blobs").join(shards::of(hash.as_bytes())).join(hash.to_hex());
    let (a, b) = (file.metadata().unwrap(), std::fs::metadata(&path).unwrap());
    assert_eq!((a.ino(), a.nlink(), a.mode() & 0o7777), (b.ino(), 2, 0));
    s.settle(&hash).unwrap();
    s.settle(&hash).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o400);
    assert_eq!(xattr::list(&path).unwrap().filter(|n| n.as_encoded_bytes().starts_with(b"user.")).count(), 0);
    assert_eq!(s.blob_file(&hash).unwrap().metadata().unwrap().ino(), a.ino());
    drop(dir);
}

#[test]
fn a_linked_blob_is_readable_whatever_mode_and_owner_its_draft_had() {
    let dir = tempfile::tempdir().unwrap();
    if is_root() {
        nix::unistd::chown(dir.path(), Some(65534.into()), Some(65534.into())).unwrap();
    }
    as_ordinary_user(|| {
        let s = Store::open(&dir.path().join("s"), Access::Own).unwrap();
        let bytes = data(GROUP + 1, 8);
        let hash = BlobHash::of(&bytes);
        let file = file_with(&s.root().join("drafts"), &bytes);
        file.set_permissions(std::fs::Permissions::from_mode(0o000)).unwrap();
        s.adopt(&file, &hash, Adopt::Link).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0, "the draft may go on");
        let reader = Store::open(s.root(), Access::Read).unwrap();
        assert!(reader.blob_file(&hash).is_err(), "a mere reader changes nothing");
        assert_eq!(s.blob_file(&hash).unwrap().metadata().unwrap().len(), bytes.len() as u64);
        s.settle(&hash).unwrap();
        s.remove_blob(&hash).unwrap();
    });
    if is_root() {
        let (_dir, s) = store();
        let bytes = data(GROUP + 1, 9);
        let hash = BlobHash::of(&bytes);
        let file = file_with(&s.root().join("drafts"), &bytes);
        nix::unistd::fchown(&file, Some(65534.into()), Some(65534.into())).unwrap();
        s.adopt(&file, &hash, Adopt::Link).unwrap();
        s.settle(&hash).unwrap();
        assert_eq!((file.metadata().unwrap().uid(), file.metadata().unwrap().mode() & 0o7777), (0, 0o400));
    }
}

#[test]
fn threads_do_not_get_into_each_others_way() {
    let (dir, s) = store();
    let large = data(GROUP + 5, 1);
    let hash = BlobHash::of(&large);
    std::fs::write(dir.path().join("large"), &large).unwrap();
    let one = |thread: u8| {
        let mut ids = Vec::new();
        for i in 0..20u8 {
            let mut w = s.new_pack().unwrap();
            let small = [thread, i];
            let at = w.append(&BlobHash::of(&small), &small).unwrap();
            ids.push(w.finish().unwrap().id);
            let mut buf = [0; 2];
            s.read_verified(&BlobHash::of(&small), 2, &[], at, 0, &mut buf).unwrap();
            assert_eq!(buf, small);
            let how = if i % 2 == 0 { Adopt::Link } else { Adopt::Clone };
            s.adopt(&std::fs::File::open(dir.path().join("large")).unwrap(), &hash, how).unwrap();
            s.append_event(EventKind::IndexRebuilt { entries: u64::from(i) }, None, false).unwrap();
        }
        ids
    };
    let ids: BTreeSet<PackId> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|t| scope.spawn(move || one(t))).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(ids.len(), 160);
    assert_eq!(s.packs().unwrap().len(), 160);
    let seqs: Vec<u64> = s.read_events(0, 999).unwrap().events.iter().map(|e| e.seq).collect();
    assert_eq!(seqs, (1..=160).collect::<Vec<_>>());
    let found: Vec<_> = s.loose_blobs().unwrap().iter().map(|blob| (blob.hash, blob.size)).collect();
    assert_eq!(found, [(hash, large.len() as u64)]);
    assert!(files_below(&s.root().join("tmp")).is_empty());
}

#[test]
fn a_blob_that_another_draft_could_still_change_is_replaced() {
    let (dir, s) = store();
    let bytes = data(GROUP + 1, 3);
    let hash = BlobHash::of(&bytes);
    let path = s.root().join("blobs").join(shards::of(hash.as_bytes())).join(hash.to_hex());
    let other = s.root().join("drafts/other");
    std::fs::write(&other, &bytes).unwrap();
    s.adopt(&std::fs::File::open(&other).unwrap(), &hash, Adopt::Link).unwrap();
    // The other draft was not sealed, and its owner writes on.
    let ours = file_with(dir.path(), &bytes);
    s.adopt(&ours, &hash, Adopt::Link).unwrap();
    std::fs::write(&other, b"changed").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(std::fs::metadata(&path).unwrap().nlink(), 1);

    // One that was damaged under its name is replaced too; a good one is kept.
    let before = std::fs::metadata(&path).unwrap().ino();
    s.adopt(&ours, &hash, Adopt::Clone).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), before);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&path, data(GROUP + 1, 4)).unwrap();
    s.adopt(&ours, &hash, Adopt::Clone).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert!(matches!(s.adopt(&ours, &BlobHash::of(b"else"), Adopt::Clone), Err(StoreError::Corrupt { .. })));
}

/// Runs `work` once for each of its file-system calls, that call failing, and once whole.
/// After each run, `check` gets whether it succeeded.
fn fail_everywhere<T>(work: impl Fn() -> Result<T>, check: impl Fn(u64, bool)) {
    for n in 0.. {
        let fault = Fault::after(n, libc::EIO, false);
        let result = work();
        let fired = fault.fired();
        drop(fault);
        check(n, result.is_ok());
        if !fired {
            assert!(result.is_ok(), "nothing failed, and yet");
            assert!(n > 3, "only {n} calls were counted");
            return;
        }
    }
}

#[test]
fn whatever_call_fails_a_manifest_is_there_whole_or_not_at_all() {
    let (_dir, s) = store();
    let bytes = manifest_bytes(b"f");
    let hash = BlobHash::of(&bytes);
    let path = s.root().join("manifests").join(shards::of(hash.as_bytes())).join(hash.to_hex());
    fail_everywhere(
        || s.write_manifest(&bytes),
        |n, ok| {
            let there = std::fs::read(&path).ok();
            assert!(there.as_ref().is_none_or(|b| *b == bytes), "call {n}");
            assert!(!ok || there.is_some(), "call {n}");
            let _ = std::fs::remove_file(&path);
        },
    );
}

#[test]
fn whatever_call_fails_a_pack_is_there_whole_or_not_at_all() {
    let (_dir, s) = store();
    let blobs: Vec<Vec<u8>> = (0..12).map(|i| data(200_000, i)).collect();
    fail_everywhere(
        || {
            let mut w = s.new_pack()?;
            for b in &blobs {
                w.append(&BlobHash::of(b), b)?;
            }
            w.finish()
        },
        |n, ok| {
            let packs = s.packs().unwrap();
            assert!(packs.len() <= 1 && (!ok || packs.len() == 1), "call {n}");
            for p in packs {
                let mut seen = 0;
                let each = &mut |_, _, _| {
                    seen += 1;
                    true
                };
                s.scan_pack(p.id, true, each).unwrap();
                assert_eq!(seen, blobs.len(), "call {n}");
                s.remove_pack(p.id).unwrap();
            }
        },
    );
}

#[test]
fn whatever_call_fails_a_blob_is_there_whole_or_not_at_all() {
    let (_dir, s) = store();
    let bytes = data(3 << 20, 1);
    let hash = BlobHash::of(&bytes);
    let file = file_with(&s.root().join("drafts"), &bytes);
    let path = s.root().join("blobs").join(shards::of(hash.as_bytes())).join(hash.to_hex());
    for how in [Adopt::Link, Adopt::Clone] {
        fail_everywhere(
            || s.adopt(&file, &hash, how),
            |n, ok| {
                let there = std::fs::read(&path).ok();
                assert!(there.as_ref().is_none_or(|b| *b == bytes), "{how:?}, call {n}");
                assert!(!ok || there.is_some(), "{how:?}, call {n}");
                s.remove_blob(&hash).unwrap();
            },
        );
    }
    assert_eq!(file.metadata().unwrap().nlink(), 1);
}

#[test]
fn whatever_call_fails_a_pin_and_a_draft_are_there_whole_or_not_at_all() {
    let (_dir, s) = store();
    let pin = Pin { name: "p".into(), key: key("abcd"), at_ns: 1 };
    fail_everywhere(
        || s.write_pin(&pin),
        |n, ok| {
            let pins = s.pins().unwrap();
            assert!(pins.iter().all(|p| *p == pin) && (!ok || pins.len() == 1), "call {n}");
            s.remove_pin("p", &pin.key).unwrap();
        },
    );
    let place = DraftPlace::InPlace { key: key("abcd") };
    fail_everywhere(
        || s.create_draft(&place),
        |n, ok| {
            let drafts = s.drafts().unwrap();
            assert!(drafts.len() <= 1 && (!ok || drafts.len() == 1), "call {n}");
            for (id, got, _) in drafts {
                assert_eq!(got, place, "call {n}");
                s.draft_tree(&id).unwrap();
                s.remove_draft(&id).unwrap();
            }
        },
    );
    assert!(files_below(&s.root().join("drafts")).is_empty());
}

#[test]
fn pins_and_rejections() {
    let (_dir, s) = store();
    let pin = |name: &str, k: &str| Pin { name: name.into(), key: key(k), at_ns: 5 };
    let all = [pin("release", "abcd"), pin("release", "efgh"), pin("../../etc \0 ∞", "abcd")];
    for p in &all {
        s.write_pin(p).unwrap();
        s.write_pin(p).unwrap();
    }
    let mut got = s.pins().unwrap();
    got.sort_by_key(|p| (p.name.clone(), p.key.clone()));
    assert_eq!(got, [all[2].clone(), all[0].clone(), all[1].clone()]);
    assert!(s.remove_pin("release", &key("abcd")).unwrap());
    assert!(!s.remove_pin("release", &key("abcd")).unwrap());
    assert_eq!(s.pins().unwrap().len(), 2);

    let r = Rejection { key: key(&"k".repeat(255)), reason: "wrong".into(), at_ns: 1, manifest: None };
    s.write_rejection(&r).unwrap();
    assert_eq!(s.rejections().unwrap(), std::slice::from_ref(&r));
    let path = s.root().join("rejections").join(r.key.as_str());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "{\n!").unwrap();
    let Err(StoreError::Corrupt { path: named, line: Some(2), .. }) = s.rejections() else {
        panic!("the damage went unnoticed")
    };
    s.quarantine(&named).unwrap();
    assert!(s.rejections().unwrap().is_empty());
    assert!(s.quarantine(&s.root().join("format")).is_err());
    s.write_rejection(&r).unwrap();
    assert!(s.remove_rejection(&r.key).unwrap());
    assert!(!s.remove_rejection(&r.key).unwrap());
}

#[test]
fn a_reader_beside_the_owner_sees_all_and_changes_nothing() {
    let (_dir, s) = store();
    let hash = s.write_manifest(&manifest_bytes(b"a")).unwrap();
    s.append_event(EventKind::IndexRebuilt { entries: 0 }, None, false).unwrap();
    let reader = Store::open(s.root(), Access::Read).unwrap();
    assert_eq!(reader.id(), s.id());
    assert_eq!(reader.read_manifest(&hash).unwrap().hash(), hash);
    assert_eq!(reader.read_events(0, 9).unwrap(), s.read_events(0, 9).unwrap());
    assert!(reader.write_manifest(&manifest_bytes(b"b")).is_err());
    assert!(reader.remove_manifest(&hash).is_err());
    assert!(reader.new_pack().is_err());
    assert!(reader.create_draft(&DraftPlace::Native { label: String::new() }).is_err());
    assert!(reader.append_event(EventKind::IndexRebuilt { entries: 0 }, None, false).is_err());
    assert!(s.root().join("tmp").read_dir().unwrap().next().is_none());
    let space = reader.file_system_space().unwrap();
    let (total, free) = (space.bytes, space.available);
    assert!(total >= free && total > 0);
}
