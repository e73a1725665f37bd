//! What a daemon does for links and for commands that bring and take entries.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{eventually, read, write};
use crate::place::{Halted, Place};

#[test]
fn a_link_holds_its_entry_while_it_stands() {
    let p = Place::new();
    p.ok(&["mount", "m1", "--min-age", "0s"]);
    for key in ["key1", "key2"] {
        p.entry(key);
    }
    let link = p.at("link");
    p.ok(&["restore", "key1", "link", "--as", "link"]);
    assert_eq!(read(link.join("f")), b"key1");
    p.fails("exists", &["restore", "key2", "link", "--as", "link"]);
    let sealed = |key: &str| p.run(&["show", key]).status.success();
    eventually("gc to take what is free", || {
        p.ok(&["gc", "--older-than", "0s"]);
        !sealed("key2")
    });
    assert!(sealed("key1"), "the link holds it");
    p.ok(&["stop"]);
    p.ok(&["gc", "--older-than", "0s"]);
    assert!(sealed("key1"), "also while no daemon runs");
    p.ok(&["fsck", "--rebuild-index"]);
    p.ok(&["gc", "--older-than", "0s"]);
    assert!(sealed("key1"), "and does not keep the index from being made anew");
    p.ok(&["mount", "m1", "--min-age", "0s"]);
    p.ok(&["gc", "--older-than", "0s"]);
    assert_eq!(read(link.join("f")), b"key1", "and with the next one");
    fs::remove_file(&link).expect("unlink");
    symlink("elsewhere", &link).expect("another one");
    eventually("gc to take it when the link is gone", || {
        p.ok(&["gc", "--older-than", "0s"]);
        !sealed("key1")
    });
}

/// A link on a file system that hangs holds up nothing, and one that cannot be looked at holds its entry.
#[test]
fn a_link_that_does_not_answer_holds_its_entry_and_nobody_up() {
    let p = Place::new();
    p.ok(&["mount", "m1", "--min-age", "0s"]);
    p.entry("key1");
    p.ok(&["mount", "m2", "--store", "other"]);
    let other = p.json(&["stats", "--store", "other"])["pid"].as_i64().expect("a daemon runs");
    fs::create_dir(p.at("m2/.outfs/work/w")).expect("a draft");
    p.ok(&["restore", "key1", "m2/.outfs/work/w/link", "--as", "link"]);
    let rounds = || p.json(&["stats"])["rounds"].as_u64().expect("a number");
    let go_on = || {
        let before = rounds();
        eventually("upkeep to go on", || rounds() > before + 4);
    };
    let halted = Halted::new(Pid::from_raw(other as i32));
    go_on();
    let mut stop = p.command(&["stop"]).spawn().expect("outfs starts");
    eventually("the daemon to end", || stop.try_wait().expect("our own child").is_some());
    assert!(read(p.at("store/lock")).trim_ascii().is_empty(), "closed in order");
    p.ok(&["mount", "m1", "--min-age", "0s"]);
    kill(Pid::from_raw(other as i32), Signal::SIGKILL).expect("our daemon");
    drop(halted);
    go_on();
    p.ok(&["gc", "--older-than", "0s"]);
    p.ok(&["show", "key1"]);
}

#[test]
fn streams_go_through_the_daemon() {
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    p.entry("key1");
    assert_eq!(p.ok(&["cat", "key1", "outputs/f"]), "key1");
    let tar = p.run(&["restore", "key1", "--tar", "-"]).stdout;
    write(p.at("tar"), &tar);
    p.ok(&["put", "key2", "--tar", "tar"]);
    assert_eq!(read(p.at("m1/key2/outputs/f")), b"key1", "what was put is in the mount at once");
    p.ok(&["restore", "key2", "dest"]);
    assert_eq!(read(p.at("dest/f")), b"key1");
    write(p.at("cut"), &tar[..100]);
    p.fails("tar", &["put", "key3", "--tar", "cut"]);
    let mut follow = p.command(&["events", "--follow", "--limit", "3", "--json"]);
    let follow = follow.stdout(Stdio::piped()).spawn().expect("outfs starts");
    p.entry("key4");
    let out = follow.wait_with_output().expect("our own child").stdout;
    assert!(String::from_utf8_lossy(&out).lines().any(|line| line.contains("key4")));
}

#[test]
fn what_the_daemon_makes_for_a_command_is_as_the_command_would_make_it() {
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    p.entry("key1");
    let mut restore = Command::new("sh");
    restore.args(["-c", "umask 027 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_outfs")]);
    restore.args(["restore", "key1", "a/b"]).env("OUTFS_STORE", p.at("store")).current_dir(p.dir.path());
    assert!(restore.status().expect("sh starts").success());
    for dir in ["a", "a/b"] {
        let mode = fs::metadata(p.at(dir)).expect("it was made").permissions().mode();
        assert_eq!(mode & 0o777, 0o750, "{dir}");
    }
}
