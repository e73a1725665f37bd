//! Semantics 12: drafts that are written natively.

use std::io::Write;
use std::process::Stdio;

use crate::common::*;

/// S12.1 A draft that a task writes natively (through its real directory) is not visible in a view until
/// it is sealed.
#[test]
fn s12_1_native_drafts_are_invisible_until_sealed() {
    let m = Mount::new();
    let src = m.outside("src");
    mkdir(&src);
    write(src.join("f"), noise(60, 8 << 20));
    let tar = m.outside("t.tar");
    sh("tar", &[&"-cf", &tar, &"-C", &src, &"f"]);
    let bytes = read(&tar);
    let mut put = m.command(&["put", "key1", "--tar", "-"]);
    let mut put = put.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts");
    let mut input = put.stdin.take().expect("a pipe");
    input.write_all(&bytes[..6 << 20]).expect("half of it");
    eventually("the native draft's directory", || {
        files_below(&m.store().join("drafts")).iter().any(|p| p.ends_with("f"))
    });
    assert_eq!(names(m.mnt()), [""; 0]);
    assert_eq!(names(m.path(".outfs/work")), [""; 0]);
    assert!(!m.path("key1").exists());
    input.write_all(&bytes[6 << 20..]).expect("the other half");
    drop(input);
    assert!(put.wait().expect("our own child").success());
    assert!(read(m.path("key1/outputs/f")) == noise(60, 8 << 20));
    assert!(m.is_sealed("key1"));
}
