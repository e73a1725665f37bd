//! Semantics 8: what is returned has been verified.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::*;

/// Flips one bit of what follows the first occurrence of `content` in a file below `dir`.
fn flip(dir: &Path, content: &[u8], at: usize) -> PathBuf {
    for path in files_below(dir) {
        let mut bytes = read(&path);
        if let Some(i) = bytes.windows(content.len()).position(|w| w == content) {
            bytes[i + at] ^= 1;
            let _ = chmod(&path, 0o600);
            // In place: the file keeps its inode, as on a disk that rots.
            let f = File::options().write(true).open(&path).expect("open");
            f.write_all_at(&bytes[i + at..=i + at], (i + at) as u64).expect("write");
            f.sync_all().expect("fsync");
            return path;
        }
    }
    panic!("no file below {} has that content", dir.display());
}

/// S8.1 Content is verified … when the daemon itself reads it (each group of 256 KiB, before one byte
/// of it is returned).
/// S8.3 Content that fails is EIO, and an event names the entry.
#[test]
fn s8_1_s8_3_a_flipped_bit_in_a_pack() {
    let mut m = Mount::new();
    m.entry("key1", |out| {
        write(out.join("bad"), noise(20, 5000));
        write(out.join("good"), noise(21, 5000));
    });
    m.entry_of("key2", "untouched");
    m.terminate();
    flip(&m.store().join("packs"), &noise(20, 5000)[..64], 3000);
    m.start();
    assert_errno!(fs::read(m.path("key1/outputs/bad")), EIO);
    assert_errno!(fs::read(m.path("key1/outputs/bad")), EIO);
    assert!(read(m.path("key1/outputs/good")) == noise(21, 5000));
    assert_eq!(read(m.path("key2/outputs/f")), b"untouched");
    eventually("the event", || m.has_event("damaged", "key1"));
    assert!(!m.has_event("damaged", "key2"));
    let out = m.run(&["cat", "key1", "outputs/bad"]);
    assert!(out.stdout.is_empty() && !out.status.success(), "not a byte of it is shown");
    assert_eq!(m.code(&["fsck", "--verify-data"]), 4, "the scrub finds it");
}

/// S8.1 "each group": what is sound of a large file can be read, what is not is EIO.
#[test]
fn s8_1_each_group_of_a_large_blob() {
    let content = noise(22, 2 << 20);
    for args in [
        &["--size", "4G", "--passthrough", "off"][..],
        &["--size", "4G", "--read-only", "--passthrough", "off"],
    ] {
        let mut m = Mount::with(&["--size", "4G"]);
        m.entry_of("key1", &content);
        m.terminate();
        flip(&m.store().join("blobs"), &content[1 << 20..(1 << 20) + 64], 0);
        m.start_with(args);
        let f = File::open(m.path("key1/outputs/f")).expect("open");
        let mut page = vec![0; 4096];
        f.read_exact_at(&mut page, 0).expect("the first group is sound");
        assert!(page == content[..4096]);
        assert_errno!(f.read_exact_at(&mut page, 1 << 20), EIO);
        eventually("the event", || m.has_event("damaged", "key1"));
    }
}

/// S8.2 "passes through": also in a read-only view, where files are large as a rule, which says so.
#[test]
fn s8_2_a_read_only_view_of_large_files_passes_them_through() {
    let mut m = Mount::new();
    m.entry_of("large", noise(26, 4 << 20));
    m.entry("mixed", |out| {
        write(out.join("large"), noise(27, 4 << 20));
        (0..9).for_each(|n| write(out.join(n.to_string()), noise(n, 100)));
    });
    let possible = m.json(&["status"])["views"][0]["passthrough"] == true;
    let mut passes = |name: &str, args: &[&str]| {
        let at = m.add_view(name, &[&["--read-only"], args].concat());
        let (file, map) = (at.join("large/outputs/f"), at.join("mixed/outputs/large"));
        for (key, file, seed) in [("large", file, 26), ("mixed", map, 27)] {
            let shown = !args.contains(&"--key") || args.contains(&key);
            assert!(!shown || read(file) == noise(seed, 4 << 20), "{name}");
        }
        let views = m.json(&["status"])["views"].clone();
        let view =
            views.as_array().expect("views").iter().find(|v| v["at"] == at.to_str().expect("UTF-8")).cloned();
        view.expect("the view")["passthrough"] == true
    };
    assert_eq!(passes("v1", &["--key", "large"]), possible, "one large file");
    assert!(!passes("v2", &["--key", "mixed"]), "small ones as a rule");
    assert_eq!(passes("v3", &[]), possible, "the whole store: 8 MiB in 11 files and their metadata");
    assert!(!passes("v4", &["--passthrough", "off"]));
}

/// S8.2 What the kernel passes through or holds mapped is verified at ingest and by the scrub.
#[test]
fn s8_2_the_scrub_finds_what_is_passed_through() {
    let mut m = Mount::new();
    let content = noise(23, 1 << 20);
    m.entry_of("key1", &content);
    assert_eq!(m.code(&["fsck", "--verify-data"]), 0);
    m.terminate();
    flip(&m.store().join("blobs"), &content[..64], 5);
    m.start();
    let out = m.run(&["fsck", "--verify-data"]);
    assert_eq!(out.status.code(), Some(4));
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("key1"), "the report names the entry: {said}");
}

/// S8.4 ENOENT means "no such output" and nothing else: lost content is EIO within a deadline, never a
/// hang.
#[test]
fn s8_4_lost_content_is_eio() {
    let mut m = Mount::new();
    m.entry("key1", |out| {
        write(out.join("small"), noise(24, 100));
        write(out.join("big"), noise(25, 1 << 20));
    });
    m.terminate();
    for dir in ["packs", "blobs"] {
        files_below(&m.store().join(dir)).iter().for_each(|p| fs::remove_file(p).expect("unlink"));
    }
    m.start();
    for name in ["small", "big"] {
        let path = m.path("key1/outputs").join(name);
        assert!(fs::metadata(&path).is_ok(), "the name is there: the manifest knows it");
        let result = within(Duration::from_secs(10), "reading lost content", move || fs::read(path));
        assert_errno!(result, EIO);
    }
    assert_errno!(fs::metadata(m.path("key1/outputs/other")), ENOENT);
    eventually("the event", || m.has_event("damaged", "key1"));
}

/// S8.4 for a manifest that is lost or damaged.
#[test]
fn s8_4_a_damaged_manifest_is_eio() {
    let mut m = Mount::new();
    m.entry_of("key1", "x");
    m.entry_of("key2", "y");
    m.terminate();
    let mut manifests = files_below(&m.store().join("manifests"));
    manifests.retain(|p| p.extension().is_none() && read(p).windows(4).any(|w| w == b"key1"));
    let [path] = &manifests[..] else { panic!("one manifest names key1: {manifests:?}") };
    let mut bytes = read(path);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::remove_file(path).expect("unlink");
    write(path, bytes);
    m.start();
    for _ in 0..2 {
        assert!(names(m.mnt()).contains(&"key2".to_owned()), "it hides no other entry");
    }
    let path = m.path("key1/outputs/f");
    let result = within(Duration::from_secs(10), "reading below a damaged manifest", move || fs::read(path));
    assert_errno!(result, EIO);
    assert_eq!(read(m.path("key2/outputs/f")), b"y");
    assert_eq!(m.code(&["fsck"]), 4);
}

/// S8.1 for what is read by its hash, without an entry.
#[test]
fn s8_1_a_blob_by_its_name() {
    for passthrough in ["auto", "off"] {
        let mut m = Mount::with(&["--size", "4G"]);
        let content = noise(26, 1 << 20);
        m.entry_of("key1", &content);
        let blob = m.path(".outfs/blobs").join(blake3::hash(&content).to_hex().as_str());
        assert!(read(&blob) == content);
        m.terminate();
        flip(&m.store().join("blobs"), &content[..64], 7);
        m.start_with(&["--size", "4G", "--passthrough", passthrough]);
        assert_errno!(fs::read(&blob), EIO);
    }
}

/// S8.5 Every `--scrub` (7 days) the daemon by itself reads and verifies all that is stored; what it finds damaged
/// is set aside, and treated as if a reader had come upon it.
#[test]
fn s8_5_rot_is_found_without_a_reader() {
    let mut m = Mount::new();
    let large = noise(27, 1 << 20);
    m.entry_of("key1", &large);
    m.entry("key2", |out| {
        write(out.join("bad"), noise(28, 5000));
        write(out.join("good"), noise(29, 5000));
    });
    m.entry_of("key3", "lost");
    m.entry_of("key4", "sound");
    m.terminate();
    flip(&m.store().join("blobs"), &large[..64], 9);
    flip(&m.store().join("packs"), &noise(28, 5000)[..64], 3000);
    let packs = files_below(&m.store().join("packs"));
    let lost = packs.iter().find(|p| read(p).windows(4).any(|w| w == b"lost")).expect("its pack");
    fs::remove_file(lost).expect("unlink");
    m.start_with(&["--size", "4G", "--scrub", "1s"]);
    for key in ["key1", "key2", "key3"] {
        eventually("the event", || m.has_event("damaged", key));
    }
    assert!(!m.has_event("damaged", "key4"));
    assert_errno!(fs::read(m.path("key1/outputs/f")), EIO);
    assert_errno!(fs::read(m.path("key2/outputs/bad")), EIO);
    assert_errno!(fs::read(m.path("key3/outputs/f")), EIO);
    assert!(read(m.path("key2/outputs/good")) == noise(29, 5000));
    assert_eq!(read(m.path("key4/outputs/f")), b"sound");
    let set_aside = files_below(&m.store().join("quarantine"));
    assert_eq!(set_aside.len(), 1, "what would be passed through: {set_aside:?}");
    let said = |m: &Mount| String::from_utf8_lossy(&m.run(&["stats"]).stdout).into_owned();
    eventually("what it found, in the stats", || said(&m).contains("damage"));
    // Where it is survives the daemon.
    m.terminate();
    m.start_with(&["--size", "4G", "--scrub", "off"]);
    assert!(said(&m).contains("verified until"), "{}", said(&m));
    let stats: serde_json::Value =
        serde_json::from_slice(&m.run(&["stats", "--json"]).stdout).expect("stats are JSON");
    assert!(stats["scrub"]["verified_bytes"].as_u64().is_some_and(|n| n > 0), "{stats}");
    assert_eq!(stats["limits"]["scrub"], "off");
}

/// S8.6 What was found damaged is known from then on, over restarts. Storing the same content again, under any key, makes it
/// whole; of the same outputs under the same key, the new ones count then.
#[test]
fn s8_6_storing_again_heals() {
    let mut m = Mount::new();
    m.entry("key1", |out| write(out.join("f"), noise(30, 5000)));
    m.entry("key2", |out| write(out.join("f"), noise(31, 5000)));
    m.terminate();
    flip(&m.store().join("packs"), &noise(30, 5000)[..64], 3000);
    flip(&m.store().join("packs"), &noise(31, 5000)[..64], 3000);
    m.start();
    for key in ["key1", "key2"] {
        assert_errno!(fs::read(m.path(format!("{key}/outputs/f"))), EIO);
        eventually("the event", || m.has_event("damaged", key));
    }
    m.terminate();
    m.start();
    m.entry("key3", |out| write(out.join("f"), noise(30, 5000)));
    assert!(read(m.path("key1/outputs/f")) == noise(30, 5000));
    let tree = tempfile::tempdir().expect("a directory");
    write(tree.path().join("f"), noise(31, 5000));
    m.ok(&["put", "key2", tree.path().to_str().expect("plain")]);
    assert!(read(m.path("key2/outputs/f")) == noise(31, 5000));
    assert_eq!(m.code(&["fsck"]), 0);
}
