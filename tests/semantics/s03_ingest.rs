//! Semantics 3: a file is ingested when its last writer has gone.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::*;

fn hash_of(path: &Path) -> Option<String> {
    xattr_text(path, "user.outfs.blake3")
}

fn wanted(content: &[u8]) -> Option<String> {
    Some(blake3::hash(content).to_hex().to_string())
}

/// S3.1 A file is ingested when its last writer has gone: it is hashed …
/// S3.4 After ingest `user.outfs.blake3` of the file shows its hash.
#[test]
fn s3_1_s3_4_the_hash_appears_after_the_last_close() {
    for passthrough in ["auto", "off"] {
        let m = Mount::with(&["--size", "4G", "--passthrough", passthrough]);
        mkdir(m.path("key1"));
        let path = m.path("key1/f");
        let content = noise(3, 700_000);
        let one = OpenOptions::new().create_new(true).write(true).open(&path).expect("create");
        let two = OpenOptions::new().write(true).open(&path).expect("open");
        one.write_all_at(&content[..1000], 0).expect("write");
        drop(one);
        assert_eq!(hash_of(&path), None, "the second writer is still there");
        two.write_all_at(&content[1000..], 1000).expect("write");
        drop(two);
        eventually("the hash after the last writer", || hash_of(&path) == wanted(&content));
    }
}

/// S3.2 A closed descriptor is no proof that writers are gone (a shared mapping goes on writing), so a
/// hash counts only if a read lease on the backing file was held throughout.
#[test]
fn s3_2_a_shared_mapping_is_a_writer() {
    for passthrough in ["auto", "off"] {
        let m = Mount::with(&["--size", "4G", "--passthrough", passthrough]);
        let top = m.draft("w", |out| write(out.join("f"), noise(4, 8192)));
        let path = top.join("outputs/f");
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
        let map = Mapping::shared(&file, 8192, true);
        drop(file);
        map.set(100, b'!');
        assert_errno!(fs::rename(&top, m.path("key1")), EBUSY);
        map.set(101, b'!');
        assert_ne!(hash_of(&path), wanted(&noise(4, 8192)), "a hash from before the mapping's writes");
        let last = map.bytes();
        drop(map);
        eventually("the seal after the mapping has gone", || fs::rename(&top, m.path("key1")).is_ok());
        assert_eq!(read(m.path("key1/outputs/f")), last, "passthrough {passthrough}");
        assert_eq!(hash_of(&m.path("key1/outputs/f")), wanted(&last));
    }
}

/// S3.2 … an open for writing cancels the hash and drops the lease first, and does not wait for it.
#[test]
fn s3_2_an_open_for_writing_does_not_wait() {
    let m = Mount::new();
    mkdir(m.path("key1"));
    let path = m.path("key1/f");
    write(&path, noise(5, 32 << 20));
    let mut slowest = Duration::ZERO;
    for i in 0..40u64 {
        let start = Instant::now();
        let f = OpenOptions::new().write(true).open(&path).expect("open");
        slowest = slowest.max(start.elapsed());
        f.write_all_at(&i.to_le_bytes(), i * 4096).expect("write");
    }
    // A broken lease would be waited for as long as /proc/sys/fs/lease-break-time says: 45 s.
    assert!(slowest < Duration::from_secs(2), "an open for writing took {slowest:?}");
    let last = read(&path);
    eventually("the hash of the last content", || hash_of(&path) == wanted(&last));
}

/// S3.5 The file may be written again; then it is ingested again.
#[test]
fn s3_5_written_again_ingested_again() {
    let m = Mount::new();
    mkdir(m.path("key1"));
    let path = m.path("key1/f");
    for content in [&b"first"[..], b"second", b""] {
        write(&path, content);
        eventually("the hash of what was written last", || hash_of(&path) == wanted(content));
    }
    let f = OpenOptions::new().append(true).open(&path).expect("open");
    f.write_all_at(b"more", 0).expect("append");
    assert_eq!(hash_of(&path), None, "no hash while a writer is there, least of all an old one");
    drop(f);
    eventually("the hash after the append", || hash_of(&path) == wanted(b"more"));
}

/// S3.1 … the hash is remembered by inode, size, mtime and ctime …: a file with the old size and mtime
/// but other content is not taken for the old one.
#[test]
fn s3_1_a_forged_mtime_does_not_fool_it() {
    let m = Mount::new();
    let top = m.draft("w", |out| write(out.join("f"), "old content"));
    let path = top.join("outputs/f");
    eventually("the first hash", || hash_of(&path) == wanted(b"old content"));
    let before = fs::metadata(&path).expect("stat").modified().expect("mtime");
    let f = OpenOptions::new().write(true).open(&path).expect("open");
    f.write_all_at(b"new", 0).expect("write");
    f.set_times(fs::FileTimes::new().set_modified(before)).expect("utimens");
    drop(f);
    eventually("the second hash", || hash_of(&path) == wanted(b"new content"));
    fs::rename(&top, m.path("key1")).expect("seal");
    assert_eq!(hash_of(&m.path("key1/outputs/f")), wanted(b"new content"));
    assert_eq!(read(m.path("key1/outputs/f")), b"new content");
}

/// S3.1 The blob is not the draft's file as others may still change it: what a reader holds open
/// before sealing reads the same after it, and what is sealed is what was there.
#[test]
fn s3_1_a_large_file_is_adopted_whole() {
    let m = Mount::new();
    let content = noise(6, 3 << 20);
    let top = m.draft("w", |out| write(out.join("big"), &content));
    let reader = File::open(top.join("outputs/big")).expect("open");
    let ino = reader.metadata().expect("fstat").ino();
    fs::rename(&top, m.path("key1")).expect("seal with a reader");
    let mut first = vec![0; 1 << 20];
    reader.read_exact_at(&mut first, 1 << 20).expect("read");
    assert!(first == content[1 << 20..2 << 20]);
    assert_eq!(reader.metadata().expect("fstat").ino(), ino);
    assert!(read(m.path("key1/outputs/big")) == content);
}

/// S3.3 Where the file system under the store has no leases, a blob is a reflink or a copy, never the
/// draft's own inode; and nothing is passed through, so that a mapped file counts as open.
#[test]
fn s3_3_without_leases_blobs_are_copies() {
    let mut m = Mount::unmounted(&["--size", "4G"]).without_leases();
    m.start();
    let content = noise(7, 3 << 20);
    let top = m.draft("w", |out| {
        write(out.join("large"), &content);
        write(out.join("small"), "small");
    });
    let path = top.join("outputs/large");
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
    let map = Mapping::shared(&file, 8192, true);
    drop(file);
    map.set(100, b'!');
    assert_errno!(fs::rename(&top, m.path("key1")), EBUSY);
    map.set(101, b'!');
    drop(map);
    let mut content = content;
    content[100..102].copy_from_slice(b"!!");

    // Somebody who writes past the mount is not noticed; what is sealed is out of reach all the same.
    let own = |f: &&std::path::PathBuf| f.ends_with("outputs/large");
    let below = files_below(&m.store().join("drafts"));
    let native =
        OpenOptions::new().write(true).open(below.iter().find(own).expect("the draft's own")).expect("open");
    eventually("the seal after the mapping has gone", || fs::rename(&top, m.path("key1")).is_ok());
    native.write_all_at(b"later", 0).expect("write");
    let sealed = m.path("key1/outputs/large");
    assert!(read(&sealed) == content);
    assert_eq!(hash_of(&sealed), wanted(&content));
    assert_eq!(read(m.path("key1/outputs/small")), b"small");
    let blobs = files_below(&m.store().join("blobs"));
    assert_eq!(blobs.len(), 1);
    let number = |f: &File| f.metadata().expect("fstat").ino();
    assert_ne!(number(&File::open(&blobs[0]).expect("open")), number(&native));
    assert_eq!(m.code(&["fsck", "--verify-data"]), 0);
}
