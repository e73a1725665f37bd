//! Semantics 9: eviction.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::common::*;

const MIB: usize = 1 << 20;
/// Large beside the index, whose log can take 4 MiB when commits come faster than checkpoints.
const FILE: usize = 8 * MIB;

/// A store for four of them in which everything is old enough to go.
fn small() -> Mount {
    Mount::with(&["--size", "40M", "--reserve", "0", "--min-age", "0s"])
}

/// Stores a file under a key without looking at it through the mount.
fn put(m: &Mount, key: &str, seed: u64) {
    let dir = m.outside(&format!("dir-{key}"));
    mkdir(&dir);
    write(dir.join("f"), noise(seed, FILE));
    m.ok(&["put", key, dir.to_str().expect("plain")]);
}

/// The keys there are, asked for without the kernel: a look-up would count as a use.
fn listed(m: &Mount) -> Vec<String> {
    let mut keys: Vec<_> =
        m.json_lines(&["ls"]).iter().map(|e| e["key"].as_str().expect("a key").to_owned()).collect();
    keys.sort();
    keys
}

/// S9.1 Eviction removes whole entries, the least recently used first.
#[test]
fn s9_1_least_recently_used_first() {
    let m = small();
    for i in 1..=4 {
        put(&m, &format!("key{i}"), i);
    }
    assert_eq!(listed(&m), ["key1", "key2", "key3", "key4"], "32 of 40 MiB");
    // key1 is the oldest, but used.
    assert!(m.ok(&["cat", "key1", "metadata.json"]).contains("duration_ms"));
    put(&m, "key5", 5);
    eventually("eviction below the high water mark", || listed(&m).len() <= 4);
    let left = listed(&m);
    assert!(!left.contains(&"key2".to_owned()), "key2 is the least recently used: {left:?}");
    assert!(left.contains(&"key1".to_owned()), "key1 was used: {left:?}");
    assert!(left.contains(&"key5".to_owned()), "the newest is there: {left:?}");
    assert!(m.events().iter().any(|e| e["event"] == "evicted" && e["key"] == "key2" && e["why"] == "lru"));
    for key in left {
        assert_eq!(read(m.path(key).join("outputs/f")).len(), FILE, "what is listed is whole");
    }
}

/// S9.1 by number: `--max-entries`.
#[test]
fn s9_1_as_many_entries_as_are_allowed() {
    let m = Mount::with(&["--size", "4G", "--max-entries", "3", "--min-age", "0s"]);
    for i in 1..=6 {
        put(&m, &format!("key{i}"), i);
        assert!(listed(&m).len() <= 3);
    }
    let left = listed(&m);
    assert!(left.contains(&"key6".to_owned()) && !left.contains(&"key1".to_owned()), "{left:?}");
}

/// S9.1 for entries that came and were read through the mount: the kernel is asked to let go of them.
#[test]
fn s9_1_entries_the_kernel_has_seen_go_too() {
    let m = small();
    for i in 0..12u64 {
        m.entry_of(&format!("key{i}"), noise(i, FILE));
        assert_eq!(read(m.path(format!("key{i}/outputs/f"))).len(), FILE);
    }
    eventually("eviction below the high water mark", || listed(&m).len() <= 4);
    assert!(m.path("key11").exists());
    assert!(!m.path("key0").exists());
    assert_eq!(m.code(&["fsck", "--verify-data"]), 0);
}

/// S9.2 It never takes one that is leased or pinned,
#[test]
fn s9_2_leased_and_pinned_entries_stay() {
    let m = small();
    put(&m, "pinned", 1);
    put(&m, "opened", 2);
    m.ok(&["pin", "--name", "p", "pinned"]);
    let held = File::open(m.path("opened/outputs/f")).expect("open");
    for i in 3..=7 {
        put(&m, &format!("key{i}"), i);
    }
    eventually("eviction below the high water mark", || listed(&m).len() <= 4);
    let left = listed(&m);
    assert!(left.contains(&"pinned".to_owned()) && left.contains(&"opened".to_owned()), "{left:?}");
    assert!(left.contains(&"key7".to_owned()), "{left:?}");
    drop(held);
    let mut i = 7;
    eventually("the entry that is no longer held to go", || {
        i += 1;
        put(&m, &format!("key{i}"), i);
        !listed(&m).contains(&"opened".to_owned())
    });
    assert!(read(m.path("pinned/outputs/f")) == noise(1, FILE));
}

/// S9.3 nor one younger than `--min-age`.
/// S10.1 Creating gets ENOSPC when the quota is reached and nothing can be evicted.
#[test]
fn s9_3_s10_1_young_entries_stay_and_creating_is_enospc() {
    let m = Mount::with(&["--size", "20M", "--reserve", "0", "--min-age", "10m"]);
    let mut stored = 0;
    let refused = loop {
        assert!(stored < 12, "nothing is refused");
        let top = m.work(&format!("w{stored}"));
        let made = fs::create_dir(&top)
            .and_then(|()| fs::create_dir(top.join("outputs")))
            .and_then(|()| fs::write(top.join("outputs/f"), noise(stored, 4 * MIB)))
            .and_then(|()| fs::write(top.join("metadata.json"), METADATA))
            .and_then(|()| fs::rename(&top, m.path(format!("key{stored}"))));
        match made {
            Ok(()) => stored += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC), "{refused}");
    assert!((3..=5).contains(&stored), "{stored} entries of 4 MiB fit in 20 MiB");
    assert_eq!(listed(&m).len() as u64, stored, "none was evicted");
    // S10.3 The daemon is well again as soon as space returns, without a restart.
    for i in 0..stored {
        m.evict(&format!("key{i}"));
    }
    eventually("a new entry to fit", || {
        let _ = fs::remove_dir_all(m.work("again"));
        let top = m.work("again");
        fs::create_dir(&top).and_then(|()| fs::write(top.join("f"), "x")).is_ok()
    });
    fs::rename(m.work("again"), m.path("again")).expect("seal");
}

/// S9.4 It frees only blobs that no entry refers to, and counts a shared blob once.
#[test]
fn s9_4_shared_blobs() {
    let m = Mount::new();
    let used = || {
        let s = nix::sys::statvfs::statvfs(m.mnt()).expect("statvfs");
        (s.blocks() - s.blocks_free()) as usize * s.fragment_size() as usize
    };
    let (empty, shared) = (used(), noise(30, 4 * MIB));
    m.entry_of("key1", &shared);
    let one = used();
    m.entry("key2", |out| {
        write(out.join("other name"), &shared);
        write(out.join("own"), noise(31, MIB));
    });
    eventually("drafts to be gone from the count", || used() < one + 2 * MIB);
    m.evict("key1");
    assert!(read(m.path("key2/outputs/other name")) == shared);
    assert_eq!(m.code(&["fsck", "--verify-data"]), 0);
    m.evict("key2");
    eventually("every blob to be freed", || files_below(&m.store().join("blobs")).is_empty());
    eventually("the count to fall", || used() < empty + MIB);
}

/// S9.5 `df MNT` shows the quota and what of it is used.
#[test]
fn s9_5_df() {
    let m = Mount::with(&["--size", "64M", "--reserve", "0"]);
    let df = || {
        let text = sh("df", &[&"-B1", &"--output=size,used,avail", &m.mnt()]);
        let numbers: Vec<u64> = text
            .lines()
            .nth(1)
            .expect("two lines")
            .split_whitespace()
            .map(|n| n.parse().expect("a number"))
            .collect();
        (numbers[0], numbers[1], numbers[2])
    };
    let (size, before, free) = df();
    assert_eq!(size, 64 << 20);
    assert!(before + free <= size && before < 4 << 20, "{before} used, {free} free");
    m.entry_of("key1", noise(32, 10 * MIB));
    eventually("df to show 10 MiB more", || {
        let (size, used, free) = df();
        assert_eq!(size, 64 << 20);
        (10 << 20..12 << 20).contains(&(used - before)) && free <= size - used
    });
}

/// S9.6 `du` counts the bytes on this disk, `du --apparent-size` the logical ones.
#[test]
fn s9_6_du() {
    let m = Mount::new();
    m.entry("key1", |out| {
        write(out.join("big"), noise(33, 3 * MIB + 5));
        write(out.join("small"), noise(34, 1000));
        write(out.join("empty"), "");
    });
    let out = m.path("key1/outputs");
    let stat = |n: &str| fs::metadata(out.join(n)).expect("stat");
    assert_eq!(stat("big").blocks(), (3 * MIB as u64 + 5).div_ceil(512));
    assert_eq!(stat("small").blocks(), 2);
    assert_eq!(stat("empty").blocks(), 0);
    let du = |args: &[&dyn AsRef<std::ffi::OsStr>]| -> usize {
        let text = sh("du", args);
        text.split_whitespace().next().expect("a number").parse().expect("a number")
    };
    let apparent = du(&[&"-sb", &out.join("big")]);
    assert_eq!(apparent, 3 * MIB + 5);
    let disk = du(&[&"-s", &"-B1", &out]);
    assert!((3 * MIB..3 * MIB + 65536).contains(&disk), "{disk}");
    assert_eq!(xattr_text(out.join("big"), "user.outfs.residency").as_deref(), Some("local"));
}

/// S9.7 `outfs du` tells shared from exclusive bytes.
#[test]
fn s9_7_outfs_du() {
    let m = Mount::new();
    m.entry("key1", |out| {
        write(out.join("shared"), noise(35, 2 * MIB));
        write(out.join("own"), noise(36, MIB));
    });
    m.entry("key2", |out| write(out.join("shared"), noise(35, 2 * MIB)));
    let du = m.json(&["du"]);
    let rows = du.as_array().or_else(|| du["entries"].as_array()).expect("a list of entries");
    let row = |key: &str| rows.iter().find(|r| r["key"] == key).unwrap_or_else(|| panic!("no {key} in {du}"));
    let bytes =
        |key: &str, what: &str| row(key)[what].as_u64().unwrap_or_else(|| panic!("no {what} in {du}"));
    // Metadata and logs are alike in both, so they are shared.
    assert_eq!(bytes("key1", "exclusive"), MIB as u64);
    assert_eq!(bytes("key2", "exclusive"), 0);
    assert!(bytes("key1", "shared") >= 2 * MIB as u64 && bytes("key1", "shared") < 2 * MIB as u64 + 4096);
    assert_eq!(bytes("key1", "shared"), bytes("key2", "shared"));
}

/// S9.4 It frees only blobs that no entry refers to and nobody uses by their hash …
#[test]
fn s9_4_a_blob_in_use_by_its_hash_stays() {
    let mut m = Mount::new();
    let read_only = m.add_view("read-only", &["--read-only"]);
    for (key, len) in [("small", 3000), ("large", 3 * MIB)] {
        for mnt in [m.mnt().to_owned(), read_only.clone()] {
            let content = noise(len as u64, len);
            m.entry_of(key, &content);
            let path = mnt.join(".outfs/blobs").join(blake3::hash(&content).to_hex().as_str());
            let blob = File::open(&path).expect("open");
            m.evict(key);
            // What is compacted and swept meanwhile must not take it either.
            m.ok(&["gc"]);
            let mut bytes = vec![0; len];
            blob.read_exact_at(&mut bytes, 0).expect("it is held");
            assert!(bytes == content, "{key} through {}", mnt.display());
            eventually("the name to go", || fs::symlink_metadata(&path).is_err());
            assert!(m.stats()["usage"]["held"].as_u64().expect("a number") >= len as u64, "{}", m.stats());
            drop(blob);
            eventually("the blob to be freed", || {
                m.stats()["usage"]["held"] == 0 && files_below(&m.store().join("blobs")).is_empty()
            });
        }
    }
    assert_eq!(m.code(&["fsck", "--verify-data"]), 0);
}
