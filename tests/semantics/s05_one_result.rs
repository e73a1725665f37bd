//! Semantics 5: the first sealed result of a key wins.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::common::*;

fn dir(m: &Mount, name: &str, content: &str) -> String {
    let d = m.outside(name);
    mkdir(&d);
    mkdir(d.join("sub"));
    write(d.join("sub/f"), content);
    write(d.join("tool"), "#!/bin/sh\n");
    chmod(d.join("tool"), 0o755).expect("chmod");
    symlink("sub/f", d.join("link")).expect("symlink");
    d.to_str().expect("plain").to_owned()
}

/// S5.1 The first sealed result of a key wins.
/// S5.2 A rename onto an existing key is always EEXIST, even with the same content.
#[test]
fn s5_1_s5_2_a_rename_onto_a_key_is_eexist() {
    let m = Mount::new();
    m.entry_of("key1", "first");
    let open = File::open(m.path("key1/outputs/f")).expect("open");
    for content in ["second", "first"] {
        let draft = m.draft(content, |out| write(out.join("f"), content));
        assert_errno!(fs::rename(&draft, m.path("key1")), EEXIST);
        assert_eq!(read(draft.join("outputs/f")), content.as_bytes(), "the draft stays");
        assert_eq!(read(m.path("key1/outputs/f")), b"first");
    }
    assert_eq!(open.metadata().expect("fstat").len(), 5, "the live directory was not killed");
    mkdir(m.path("key2"));
    let draft = m.draft("third", |_| {});
    assert_errno!(fs::rename(&draft, m.path("key2")), EEXIST);
    assert_errno!(fs::create_dir(m.path("key1")), EEXIST);
}

/// S5.2 A rename onto an existing key is always EEXIST, even with the same content: also when both come at once.
#[test]
fn s5_2_of_renames_at_once_one_wins() {
    let m = Mount::new();
    let together = std::sync::Barrier::new(2);
    for round in 0..20 {
        let key = m.path(format!("key{round}"));
        let publish = |name: &str| {
            let draft = m.draft(&format!("{name}{round}"), |out| write(out.join("f"), "same"));
            together.wait();
            let renamed = fs::rename(&draft, &key);
            match renamed {
                Ok(()) => {
                    assert_errno!(fs::symlink_metadata(&draft), ENOENT);
                    1
                }
                refused => {
                    assert_errno!(refused, EEXIST);
                    assert_eq!(read(draft.join("outputs/f")), b"same", "the draft stays");
                    fs::remove_dir_all(&draft).expect("rm -r");
                    0
                }
            }
        };
        let won = std::thread::scope(|s| {
            let other = s.spawn(|| publish("other"));
            publish("one") + other.join().expect("no panic")
        });
        assert_eq!((won, read(key.join("outputs/f"))), (1, b"same".to_vec()), "round {round}");
    }
}

/// S5.3 `put`, `seal` and the library succeed and change nothing when the key has the same outputs
/// already: path, type, executable bit, content and link target.
#[test]
fn s5_3_the_same_outputs_again_succeed() {
    let m = Mount::new();
    m.ok(&["put", "key1", &dir(&m, "a", "same"), "--task-id", "first"]);
    // When it was last used is not part of the entry.
    let show = || {
        let mut facts = m.json(&["show", "key1"]);
        facts.as_object_mut().expect("an object").remove("accessed_at");
        facts
    };
    let before = show();
    let again = dir(&m, "b", "same");
    chmod(Path::new(&again).join("sub/f"), 0o600).expect("chmod");
    m.ok(&["put", "key1", &again, "--task-id", "second", "--exit-code", "1"]);
    assert_eq!(show(), before);
    let draft = m.draft("w", |out| sh("cp", &[&"-r", &Path::new(&again).join("."), &out]).clear());
    m.seal(&["w", "key1"]);
    assert_eq!(show(), before);
    eventually("the draft to be used up", || fs::symlink_metadata(&draft).is_err());
    assert_eq!(m.events().iter().filter(|e| e["event"] == "sealed").count(), 1);
}

/// S5.4 Different outputs are EEXIST, and an event says that the task is not deterministic.
#[test]
fn s5_4_different_outputs_are_refused() {
    let m = Mount::new();
    m.ok(&["put", "key1", &dir(&m, "a", "one")]);
    type Change<'a> = (&'a str, &'a dyn Fn(&Path));
    let variants: [Change; 5] = [
        ("content", &|d| write(d.join("sub/f"), "two")),
        ("executable bit", &|d| chmod(d.join("tool"), 0o644).expect("chmod")),
        ("path", &|d| fs::rename(d.join("tool"), d.join("tools")).expect("rename")),
        ("link target", &|d| {
            fs::remove_file(d.join("link")).expect("unlink");
            symlink("tool", d.join("link")).expect("symlink");
        }),
        ("type", &|d| {
            fs::remove_file(d.join("tool")).expect("unlink");
            mkdir(d.join("tool"));
        }),
    ];
    for (i, (what, change)) in variants.iter().enumerate() {
        let other = dir(&m, &format!("other-{i}"), "one");
        change(Path::new(&other));
        let out = m.run(&["put", "key1", &other]);
        assert_eq!(out.status.code(), Some(1), "{what}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("key1"), "the message names the key");
        let found =
            m.events().iter().filter(|e| e["event"] == "not_deterministic" && e["key"] == "key1").count();
        assert_eq!(found, i + 1, "an event for a different {what}");
    }
    assert_eq!(read(m.path("key1/outputs/sub/f")), b"one");
    m.draft("w", |out| write(out.join("f"), "x"));
    assert_eq!(m.code(&["seal", "w", "key1"]), 1);
    assert!(m.work("w").exists(), "the draft stays for a look");
}

fn replacing() -> Mount {
    let m = Mount::with(&["--size", "4G", "--overwrite", "replace"]);
    m.entry("key1", |out| {
        write(out.join("f"), "old");
        write(out.join("g"), "stays");
        mkdir(out.join("sub"));
        write(out.join("sub/h"), noise(9, 600_000));
    });
    m
}

/// S5.5 With `--overwrite replace` a change inside a sealed entry is answered with ESTALE once (the
/// kernel looks up again, programs notice nothing) and goes on in a new draft, which begins as a copy of
/// the entry and replaces it when sealed.
#[test]
fn s5_5_a_change_goes_on_in_a_draft_that_replaces() {
    let m = replacing();
    let reader = File::open(m.path("key1/outputs/f")).expect("open");
    write(m.path("key1/outputs/f"), "new");
    assert!(!m.is_sealed("key1"), "a draft stands in its place");
    assert_eq!(read(m.path("key1/outputs/f")), b"new");
    assert_eq!(read(m.path("key1/outputs/g")), b"stays");
    assert!(read(m.path("key1/outputs/sub/h")) == noise(9, 600_000));
    assert_eq!(reader.metadata().expect("fstat").len(), 3);
    m.seal(&["key1"]);
    assert!(m.is_sealed("key1"));
    assert_eq!(read(m.path("key1/outputs/f")), b"new");
    assert_eq!(read(m.path("key1/outputs/g")), b"stays");
    assert_eq!(names(m.mnt()), ["key1"]);
    drop(reader);
    assert_eq!(m.code(&["fsck", "--verify-data"]), 0);
    eventually("the replaced manifest to go", || m.manifests() == 1);
}

/// S5.5 for every kind of first change, on a warm mount.
#[test]
fn s5_5_every_kind_of_first_change() {
    type Change = (&'static str, fn(&Path));
    let changes: [Change; 10] = [
        ("open for writing", |d| drop(OpenOptions::new().write(true).open(d.join("f")).expect("open"))),
        ("append", |d| {
            OpenOptions::new()
                .append(true)
                .open(d.join("f"))
                .expect("open")
                .write_all(b"more")
                .expect("append");
        }),
        ("create", |d| write(d.join("new"), "x")),
        ("mkdir", |d| mkdir(d.join("newdir"))),
        ("unlink", |d| fs::remove_file(d.join("g")).expect("unlink")),
        ("rename", |d| fs::rename(d.join("g"), d.join("f")).expect("rename")),
        ("link", |d| fs::hard_link(d.join("g"), d.join("g2")).expect("link")),
        ("symlink", |d| symlink("g", d.join("s")).expect("symlink")),
        ("chmod", |d| chmod(d.join("f"), 0o755).expect("chmod")),
        ("truncate", |d| nix::unistd::truncate(&d.join("f"), 0).expect("truncate")),
    ];
    let m = Mount::with(&["--size", "4G", "--overwrite", "replace"]);
    for (i, (what, change)) in changes.iter().enumerate() {
        let key = format!("key{i}");
        let top = m.entry(&key, |out| {
            write(out.join("f"), "f");
            write(out.join("g"), "g");
        });
        assert_eq!(names(top.join("outputs")), ["f", "g"]);
        assert_eq!(
            (read(top.join("outputs/f")), read(top.join("outputs/g"))),
            (b"f".to_vec(), b"g".to_vec())
        );
        change(&top.join("outputs"));
        assert!(!m.is_sealed(&key), "{what} begins a draft");
        m.seal(&[&key]);
        assert!(m.is_sealed(&key), "{what}");
    }
}

/// S5.5 as a client stores twice: it makes its directories, which exist, and writes every file anew.
#[test]
fn s5_5_a_client_that_stores_twice() {
    let m = replacing();
    for round in 0..3 {
        fs::create_dir_all(m.path("key1/outputs")).expect("create_dir_all");
        fs::create_dir_all(m.path("key1/logs")).expect("create_dir_all");
        write(m.path("key1/outputs/f"), format!("round {round}"));
        write(m.path("key1/logs/stdout.log"), "log");
        write(m.path("key1/metadata.json"), METADATA);
        assert_eq!(read(m.path("key1/outputs/f")), format!("round {round}").as_bytes(), "read back at once");
        if round == 1 {
            m.seal(&["key1"]);
        }
    }
    m.seal(&["key1"]);
    assert_eq!(read(m.path("key1/outputs/f")), b"round 2");
    assert!(m.events().iter().any(|e| e["event"] == "evicted" && e["why"] == "replaced"));
}

/// S5.5 A replacing draft is a draft: it survives the daemon, and when it is dropped the entry is back.
#[test]
fn s5_5_the_old_result_comes_back_when_the_draft_goes() {
    let mut m = replacing();
    write(m.path("key1/outputs/f"), "new");
    m.kill9();
    m.start();
    assert_eq!(read(m.path("key1/outputs/f")), b"new");
    fs::remove_dir_all(m.path("key1")).expect("rm -r of the draft");
    assert!(m.is_sealed("key1"), "the first result is still there");
    assert_eq!(read(m.path("key1/outputs/f")), b"old");
}
