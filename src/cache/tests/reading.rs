//! Opening and reading entries, whole and damaged.

use super::*;
use crate::model::ManifestHash;
use crate::model::manifest::Child;
use crate::store::shards;

#[test]
fn opening_an_entry_reads_no_content() {
    let f = Fixture::new();
    f.put("abcd", &f.odd_tree("tree")).unwrap();
    let f = f.reopen();
    let read = || f.cache.inner.blob_bytes_read.load(std::sync::atomic::Ordering::Relaxed);
    let entry = f.cache.entry(&key("abcd"), LeaseKind::View).unwrap().unwrap();
    assert_eq!((entry.manifest().unwrap().files(), read()), (10, 0));
    let record = entry.file(b"outputs/a/b/private").unwrap();
    assert_eq!(entry.read_all(record, 100).unwrap(), b"mine");
    assert_eq!(read(), 4);
}

#[test]
fn reads_at_every_offset_and_length() {
    let f = Fixture::new();
    let entry = f.put("abcd", &f.odd_tree("tree")).unwrap().into_entry();
    let large = bytes(3_000_000, 3);
    let record = entry.file(b"outputs/large").unwrap();
    for (offset, len) in
        [(0, 1), (262_143, 2), (262_144, 262_144), (2_999_999, 5), (3_000_000, 5), (9_000_000, 1)]
    {
        let mut buf = vec![0; len];
        let n = entry.read(record, offset as u64, &mut buf).unwrap();
        let end = (offset + len).min(large.len());
        assert_eq!(&buf[..n], large.get(offset..end).unwrap_or_default(), "{offset}+{len}");
    }
    assert!(entry.backing(record).unwrap().is_some());
    assert!(entry.backing(entry.file(b"outputs/zero").unwrap()).unwrap().is_none());
    assert!(matches!(entry.read_all(record, 10), Err(CacheError::BadInput { .. })));
    assert!(matches!(entry.file(b"outputs/a"), Err(CacheError::NoFile { .. })));
    assert!(matches!(entry.file(b"outputs/none"), Err(CacheError::NoFile { .. })));
}

#[test]
fn lost_location_tables_are_made_anew() {
    let f = Fixture::new();
    let name = f.put("abcd", &f.odd_tree("tree")).unwrap().into_entry().manifest_hash().unwrap();
    let store = f.cache.store();
    let table = store.read_locations(&name).unwrap().unwrap();
    store.write_locations(&name, &[], &[]).unwrap();
    let f = f.reopen();
    let entry = f.cache.entry(&key("abcd"), LeaseKind::Hold).unwrap().unwrap();
    assert_eq!(entry.read_all(entry.file(b"outputs/zz").unwrap(), 10).unwrap(), b"mine");
    assert_eq!(f.cache.store().read_locations(&name).unwrap().unwrap(), table);
}

#[test]
fn a_blob_that_moved_is_found_again() {
    let f = Fixture::new();
    let entry = f.put("abcd", &f.odd_tree("tree")).unwrap().into_entry();
    // As compaction does: a new pack, the new locations, the old pack gone.
    let (store, index) = (f.cache.store(), f.cache.index());
    let old = store.packs().unwrap();
    let mut pack = store.new_pack().unwrap();
    let mut moved = Vec::new();
    for (hash, size, record) in entry.manifest().unwrap().blobs() {
        if size <= PACK_LIMIT {
            let content = entry.read_all(record, PACK_LIMIT).unwrap();
            moved.push((hash, pack.append(&hash, &content).unwrap()));
        }
    }
    let info = pack.finish().unwrap();
    let from = old.iter().map(|p| p.id).collect();
    for (id, _) in index.relocate(moved, Some((info.id, info.bytes)), from).unwrap() {
        store.remove_pack(id).unwrap();
    }
    assert_eq!(store.packs().unwrap().len(), 1);
    assert_eq!(entry.read_all(entry.file(b"outputs/zz").unwrap(), 10).unwrap(), b"mine");
}

/// Overwrites one byte of a file.
fn damage(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn damage_is_an_error_an_event_and_goes_to_quarantine() {
    let f = Fixture::new();
    let tree = f.odd_tree("tree");
    let entry = f.put("abcd", &tree).unwrap().into_entry();
    let record = entry.file(b"outputs/large").unwrap();
    let hash = entry.manifest().unwrap().get(record).unwrap().hash().unwrap();
    let file = f.cache.store().root().join(format!("blobs/{}/{hash}", shards::of(hash.as_bytes())));
    damage(&file, 1_000_000);
    let mut buf = [0; 100];
    assert_eq!(entry.read(record, 0, &mut buf).unwrap(), 100, "other groups are sound");
    assert!(entry.read(record, 1_000_000, &mut buf).is_err());
    assert!(entry.read(record, 1_000_000, &mut buf).is_err());
    let damaged: Vec<_> = events(&f.cache)
        .into_iter()
        .filter_map(|e| match e {
            EventKind::Damaged { what } => Some(what),
            _ => None,
        })
        .collect();
    // The name that comes first in tree order is the hard-linked file's.
    assert!(damaged.len() == 1 && damaged[0].contains("large"), "{damaged:?}");
    assert!(!file.exists(), "it is in quarantine");
    // The same content stored again heals it.
    f.put("again", &tree).unwrap();
    assert_eq!(entry.read_all(record, 1 << 24).unwrap(), bytes(3_000_000, 3));
}

#[test]
fn a_damaged_packed_blob_is_healed_by_storing_it_again() {
    let f = Fixture::new();
    let tree = f.odd_tree("tree");
    let entry = f.put("abcd", &tree).unwrap().into_entry();
    let record = entry.file(b"outputs/a/b/private").unwrap();
    let packs = std::fs::read_dir(f.cache.store().root().join("packs")).unwrap();
    let mut packs = packs.map(|p| p.unwrap().path());
    let pack = packs.find(|p| p.extension() == Some(OsStr::new("pack"))).unwrap();
    let content = std::fs::read(&pack).unwrap();
    let at = content.windows(4).position(|w| w == b"mine").unwrap();
    damage(&pack, at as u64);
    assert!(entry.read_all(record, 100).is_err());
    assert!(entry.read_all(entry.file(b"outputs/a/b/c/program").unwrap(), 100).is_ok());
    f.put("again", &tree).unwrap();
    let healed = f.cache.entry(&key("again"), LeaseKind::Hold).unwrap().unwrap();
    assert_eq!(healed.read_all(healed.file(b"outputs/a/b/private").unwrap(), 100).unwrap(), b"mine");
    let f = {
        drop((entry, healed));
        f.reopen()
    };
    for name in ["abcd", "again"] {
        let entry = f.cache.entry(&key(name), LeaseKind::Hold).unwrap().unwrap();
        let read = entry.read_all(entry.file(b"outputs/a/b/private").unwrap(), 100);
        assert_eq!(read.ok().as_deref(), Some(&b"mine"[..]), "{name}");
    }
}

#[test]
fn a_damaged_manifest_is_an_error_and_the_key_can_be_stored_again() {
    let f = Fixture::new();
    let tree = f.odd_tree("tree");
    let name = f.put("abcd", &tree).unwrap().into_entry().manifest_hash().unwrap();
    damage(&f.cache.store().root().join(format!("manifests/{}/{name}", shards::of(name.as_bytes()))), 200);
    let f = f.reopen();
    let entry = f.cache.entry(&key("abcd"), LeaseKind::Hold).unwrap().unwrap();
    assert!(entry.manifest().is_err() && entry.read(1, 0, &mut [0]).is_err() && entry.metadata().is_err());
    assert!(entry.top().is_ok(), "finding the entry needs no manifest");
    assert!(!f.cache.check(&Task::default(), "abcd", CachePolicy::Normal).unwrap().hit);
    assert!(events(&f.cache).iter().any(|e| matches!(e, EventKind::Damaged { .. })));
    assert!(matches!(f.put("abcd", &tree).unwrap(), Sealed::New(_)));
    assert!(matches!(f.cache.lookup(&key("abcd")).unwrap(), Lookup::Hit { .. }));
}

/// An entry of many files, and the record of the last; what is in the file called `n` is `n`.
fn many_files(f: &Fixture) -> (ManifestHash, u64) {
    let tree = f.beside("many");
    std::fs::create_dir(&tree).unwrap();
    (0..4000).for_each(|n| std::fs::write(tree.join(format!("{n:04}")), format!("{n}")).unwrap());
    std::fs::write(tree.join("00 large"), bytes(600_000, 1)).unwrap();
    let entry = f.put("many", &tree).unwrap().into_entry();
    (entry.manifest_hash().unwrap(), entry.file(b"outputs/3999").unwrap().into())
}

fn read_one(entry: &Entry, name: &str) -> Result<Vec<u8>> {
    let Some(Child::Is(outputs, _)) = entry.child(0, b"outputs")? else { panic!("outputs") };
    let Some(Child::Is(record, looks)) = entry.child(outputs, name.as_bytes())? else { panic!("{name}") };
    assert_eq!(entry.looks(record)?, Some(looks));
    let mut content = vec![0; 10];
    let n = entry.read(record, 0, &mut content)?;
    content.truncate(n);
    Ok(content)
}

#[test]
fn one_file_of_a_large_entry_is_read_without_the_whole_manifest() {
    let f = Fixture::new();
    let (name, _) = many_files(&f);
    let f = f.reopen();
    let entry = f.cache.entry(&key("many"), LeaseKind::Hold).unwrap().unwrap();
    let in_memory = || f.cache.inner.loaded.get(&name).is_some();
    assert_eq!(read_one(&entry, "3999").unwrap(), b"3999");
    assert_eq!(entry.child(0, b"none").unwrap(), Some(Child::Absent));
    let Some(Child::Is(outputs, _)) = entry.child(0, b"outputs").unwrap() else { panic!("outputs") };
    let Some(Child::Is(large, _)) = entry.child(outputs, b"00 large").unwrap() else { panic!("00 large") };
    let mut piece = [0; 100];
    assert_eq!(entry.read(large, 300_000, &mut piece).unwrap(), 100);
    assert_eq!(piece[..], bytes(600_000, 1)[300_000..300_100]);
    assert!(entry.backing(large).unwrap().is_some());
    assert!(!in_memory());
    for n in 0..4000 {
        assert_eq!(read_one(&entry, &format!("{n:04}")).unwrap(), format!("{n}").as_bytes());
    }
    assert!(in_memory(), "whoever reads many files reads the manifest once");
}

#[test]
fn a_damaged_part_of_a_manifest_is_an_error_and_an_event() {
    let f = Fixture::new();
    let (name, last) = many_files(&f);
    // The modification time of `3000`: the name would be found.
    let path = f.cache.store().root().join(format!("manifests/{}/{name}", shards::of(name.as_bytes())));
    damage(&path, 176 + (last - 999) * 64 + 40);
    let f = f.reopen();
    let entry = f.cache.entry(&key("many"), LeaseKind::Hold).unwrap().unwrap();
    assert_eq!(read_one(&entry, "0000").unwrap(), b"0", "other parts are sound");
    assert!(read_one(&entry, "3000").is_err());
    assert!(events(&f.cache).iter().any(|e| matches!(e, EventKind::Damaged { .. })));
    assert!(!path.exists(), "it is in quarantine");
    assert!(entry.looks(1).is_err(), "from now on nothing is read from it");
}

#[test]
fn a_wrong_slot_of_a_large_table_is_put_right() {
    let f = Fixture::new();
    let (name, last) = many_files(&f);
    let table = f.cache.store().root().join(format!("manifests/{}/{name}.loc", shards::of(name.as_bytes())));
    damage(&table, 48 + last * 16 + 8);
    let f = f.reopen();
    let entry = f.cache.entry(&key("many"), LeaseKind::Hold).unwrap().unwrap();
    for n in ["3998", "3999", "3997"] {
        assert_eq!(read_one(&entry, n).unwrap(), n.as_bytes());
    }
}
