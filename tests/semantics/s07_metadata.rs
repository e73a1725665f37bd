//! Semantics 7: what counts as found.

use std::fs;

use crate::common::*;

fn broken(m: &Mount, key: &str) {
    let top = m.draft(key, |out| write(out.join("f"), "x"));
    write(top.join("metadata.json"), "{ \"task_id\": ");
    fs::rename(top, m.path(key)).expect("an entry with broken metadata can be sealed");
}

/// S7.1 An entry is found when it is sealed and its `metadata.json` parses.
#[test]
fn s7_1_found_when_sealed_with_metadata() {
    let m = Mount::new();
    mkdir(m.path("key1"));
    fill_entry(&m.path("key1"), |out| write(out.join("f"), "x"));
    let dest = m.outside("dest");
    let dest = dest.to_str().expect("plain");
    assert_eq!(m.code(&["restore", "key1", dest]), 3, "a draft is not found");
    m.seal(&["key1"]);
    m.ok(&["restore", "key1", dest]);
    assert_eq!(read(m.outside("dest").join("f")), b"x");
}

/// S7.2 An entry whose metadata does not parse is a miss, with a warning.
#[test]
fn s7_2_broken_metadata_is_a_miss() {
    let m = Mount::new();
    broken(&m, "key1");
    let out = m.run(&["restore", "key1", m.outside("dest").to_str().expect("plain")]);
    assert_eq!(out.status.code(), Some(3));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("metadata"), "the message says why: {said}");
    assert!(!m.outside("dest").join("f").exists());
    assert!(m.has_event("bad_metadata", "key1"));
    assert_eq!(read(m.path("key1/outputs/f")), b"x", "the tree can be looked at");
    mkdir(m.path("key2"));
    write(m.path("key2/metadata.json"), "{");
    let out = m.run(&["seal", "key2"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("counts as a miss"), "who seals is told: {said}");
}

/// S7.3 A missing `metadata.json` is written at sealing, with what is known.
#[test]
fn s7_3_missing_metadata_is_written() {
    let m = Mount::new();
    let top = m.draft("w", |out| write(out.join("f"), "x"));
    fs::remove_file(top.join("metadata.json")).expect("unlink");
    fs::rename(top, m.path("key1")).expect("seal");
    let text = read(m.path("key1/metadata.json"));
    let meta = outfs::model::Metadata::parse(&text).expect("it parses");
    assert_eq!(meta.digest, "key1");
    m.ok(&["restore", "key1", m.outside("dest").to_str().expect("plain")]);
    mkdir(m.path("key2"));
    m.seal(&["key2"]);
    assert!(m.path("key2/metadata.json").exists(), "for an empty draft too");
}

/// S7.4 The exit code is reported, not judged: a failed task's entry is a hit.
#[test]
fn s7_4_a_failed_task_is_a_hit() {
    let m = Mount::new();
    let dir = m.outside("dir");
    mkdir(&dir);
    write(dir.join("f"), "x");
    m.ok(&["put", "key1", dir.to_str().expect("plain"), "--exit-code", "7", "--task-id", "t"]);
    m.ok(&["restore", "key1", m.outside("dest").to_str().expect("plain")]);
    let shown = m.json(&["show", "key1"]);
    assert!(shown.to_string().contains(r#""exit_code":7"#), "{shown}");
}

/// S7.5 An entry may hold any tree; `outputs/` is what `restore` restores.
#[test]
fn s7_5_any_tree() {
    let m = Mount::new();
    let top = m.work("w");
    mkdir(&top);
    write(top.join("README"), "no outputs at all");
    mkdir(top.join("elsewhere"));
    write(top.join("elsewhere/f"), "x");
    fs::rename(&top, m.path("key1")).expect("seal");
    assert_eq!(read(m.path("key1/elsewhere/f")), b"x");
    let dest = m.outside("dest");
    m.ok(&["restore", "key1", dest.to_str().expect("plain")]);
    assert!(!dest.exists() || names(&dest).is_empty(), "there are no outputs");
    m.entry_of("key2", "only this");
    m.ok(&["restore", "key2", dest.to_str().expect("plain")]);
    assert_eq!(names(&dest), ["f"]);
}
