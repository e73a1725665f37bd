//! Views: where they may be, who keeps them busy, and whose they are.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::trace::Trace;
use crate::common::{self, eventually, is_mounted, need, read, write};
use crate::place::{Halted, Place, Reader, said};

#[test]
fn an_unmount_given_another_store_waits_for_the_view_s_own_daemon() {
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    let out = p.command(&["unmount", "m1"]).env("OUTFS_STORE", p.at("other")).output().expect("outfs starts");
    assert!(
        out.status.success() && said(&out).contains(p.at("store").to_str().expect("plain")),
        "{}",
        said(&out)
    );
    assert!(!p.running() && !is_mounted(&p.at("m1")), "unmount returns when the daemon has let go");
    // A path that mount options cannot say: the store must be named.
    let mut odd = p.command(&["mount", "m1"]);
    odd.env("OUTFS_STORE", p.at("odd,store"));
    assert!(odd.status().expect("outfs starts").success() && is_mounted(&p.at("m1")));
    let mut end = p.command(&["unmount", "m1"]);
    assert!(end.env("OUTFS_STORE", p.at("odd,store")).status().expect("outfs starts").success());
}

#[test]
fn bad_mount_points() {
    let p = Place::new();
    fs::create_dir(p.at("full")).expect("mkdir");
    write(p.at("full/file"), "x");
    p.fails("mkdir -p", &["mount", "missing"]);
    p.fails("not empty", &["mount", "full"]);
    p.fails("not a directory", &["mount", "full/file"]);
    assert!(!p.at("store").exists(), "a mount that cannot be makes no store");
    p.ok(&["mount", "m1"]);
    p.fails("mount already", &["mount", "m1"]);
    fs::create_dir(p.at("store/drafts/m")).expect("mkdir");
    p.fails("overlaps", &["mount", "store/drafts/m"]);
    p.fails("nothing is mounted", &["unmount", "m2"]);
    p.fails("not of outfs", &["unmount", "/proc"]);
}

#[test]
fn a_busy_view_names_its_users_and_may_be_detached() {
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    p.entry("key1");
    let reader = Reader::of(&p.at("m1/key1/outputs/f"));
    let name = format!("process {} (sleep, open file)", reader.0.id());
    p.fails(&name, &["unmount", "m1"]);
    // What to do about it, ready to be copied.
    let offer = format!("'outfs unmount --lazy {}'", p.at("m1").display());
    p.fails(&offer, &["unmount", "m1"]);
    p.fails(&offer, &["stop"]);
    p.fails(&name, &["stop"]);
    assert!(p.running() && is_mounted(&p.at("m1")));
    p.ok(&["mount", "m2"]);
    drop(reader);
    let _reader = Reader::of(&p.at("m2/key1/outputs/f"));
    for _ in 0..3 {
        p.fails("(sleep, open file)", &["stop"]);
        assert!(is_mounted(&p.at("m1")), "refused before anything is unmounted");
    }
    p.ok(&["unmount", "m1"]);
    assert!(p.running());
    p.ok(&["unmount", "--lazy", "m2"]);
    assert!(!is_mounted(&p.at("m2")) && !p.running());
}

/// The kernel unmounts here what processes in another mount namespace go on using, and the daemon would end below them.
#[test]
fn a_view_that_another_mount_namespace_uses_is_busy() {
    common::need_root();
    ["unshare", "bash"].into_iter().for_each(need);
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    p.ok(&["mount", "m2"]);
    p.entry("key1");
    fs::create_dir_all(p.at("m1/key2/outputs")).expect("a draft in place");
    common::sh("cp", &[&"/bin/sleep", &p.at("m1/key2/outputs/sleep")]);
    write(p.at("m1/key2/metadata.json"), "{}");
    p.ok(&["seal", "key2"]);
    for (uses, how) in [
        ("exec 3<m1/key1/outputs/f; exec sleep 600", "open file"),
        ("cd m1/key1/outputs; exec sleep 600", "working directory"),
        ("mount --bind m1 elsewhere; exec 3<elsewhere/key1/outputs/f; exec sleep 600", "open file"),
        ("exec m1/key2/outputs/sleep 600", "running program"),
    ] {
        fs::create_dir_all(p.at("elsewhere")).expect("mkdir");
        let mut other = Command::new("unshare");
        other.args(["--mount", "bash", "-ec", uses]).current_dir(p.dir.path()).stdin(Stdio::null());
        let other = Reader(other.spawn().expect("unshare starts"));
        let pid = other.0.id();
        let name = || fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        eventually("it to use the view", || name() == b"sleep\n");
        let who = format!("process {pid} (sleep, {how})");
        for command in [&["unmount", "m1"][..], &["stop"]] {
            p.fails(&who, command);
            p.fails("outfs unmount --lazy", command);
            assert!(is_mounted(&p.at("m1")) && is_mounted(&p.at("m2")) && p.running(), "{uses}");
        }
        drop(other);
    }
    p.ok(&["unmount", "m1"]);
    p.ok(&["stop"]);
}

/// Nor does a process have open what a loop device has.
#[test]
fn a_loop_device_that_keeps_a_view_busy_is_named() {
    common::need_root();
    ["losetup", "truncate"].into_iter().for_each(need);
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    fs::create_dir_all(p.at("m1/key1/outputs")).expect("a draft in place");
    common::sh("truncate", &[&"-s", &"1M", &p.at("m1/key1/outputs/disk")]);
    write(p.at("m1/key1/metadata.json"), "{}");
    p.ok(&["seal", "key1"]);
    let device = common::sh("losetup", &[&"-r", &"--find", &"--show", &p.at("m1/key1/outputs/disk")]);
    let device = device.trim();
    let said = p.fails("is busy", &["unmount", "m1"]);
    common::sh("losetup", &[&"-d", &device]);
    assert!(said.contains(&format!("the loop device {device} (")), "{said}");
    eventually("the loop device to be gone", || p.run(&["unmount", "m1"]).status.success());
}

#[test]
fn what_is_mounted_over_a_view_or_after_it_is_left_alone() {
    common::need_root();
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    p.entry("key1");
    let cover = common::Mounted::tmpfs(&p.at("m1"), "1M");
    for command in [&["stop"][..], &["stop", "--lazy"], &["unmount", "m1"]] {
        p.fails("another mount", command);
        assert!(is_mounted(&p.at("m1")) && p.running());
    }
    // Not dropped: that takes all mounts away that lie there.
    std::mem::forget(cover);
    nix::mount::umount(&p.at("m1")).expect("the cover goes");
    let _reader = Reader::of(&p.at("m1/key1/outputs/f"));
    nix::mount::umount2(&p.at("m1"), nix::mount::MntFlags::MNT_DETACH).expect("a hand that unmounts");
    let _other = common::Mounted::tmpfs(&p.at("m1"), "1M");
    write(p.at("m1/kept"), "of another");
    p.ok(&["stop"]);
    assert!(!p.running());
    assert_eq!(read(p.at("m1/kept")), b"of another");
}

/// Where a killed daemon's view stood there may be another store's by now: that one is left alone.
#[test]
fn another_stores_view_is_not_taken_over() {
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    kill(p.pid(), Signal::SIGKILL).expect("our daemon");
    eventually("the daemon to end", || !p.running());
    p.ok(&["mount", "m1", "--store", "other"]);
    let other = p.json(&["stats", "--store", "other"])["pid"].as_i64().expect("a daemon runs");
    let halted = Halted::new(Pid::from_raw(other as i32));
    p.ok(&["mount", "m2"]);
    p.fails("does not answer", &["mount", "m1"]);
    drop(halted);
    p.entry("key1");
    p.ok(&["show", "key1", "--store", "other"]);
    p.ok(&["stop", "--store", "other"]);
}

/// Connections to a store's daemon.
fn connections(socket: &Path) -> usize {
    let name = socket.to_str().expect("plain");
    // The sixth field is the state, 03 is "connected".
    let connected = |line: &&str| line.ends_with(name) && line.split_whitespace().nth(5) == Some("03");
    fs::read_to_string("/proc/net/unix").expect("unix sockets").lines().filter(connected).count()
}

/// A mount that was asked for while the first one is tried is not made by a daemon that ends with the first one's failure.
#[test]
fn a_mount_outlives_the_failure_of_the_first_one() {
    let p = Place::new();
    p.ok(&["mount", "m1", "--store", "other"]);
    let other = p.json(&["stats", "--store", "other"])["pid"].as_i64().expect("a daemon runs");
    p.ok(&["put", "key1", p.at("m2").to_str().expect("plain")]);
    let halted = Halted::new(Pid::from_raw(other as i32));
    // It looks whether the mount that stands there is alive, and gets no answer.
    let mut first = p.command(&["mount", "m1"]).stderr(Stdio::piped()).spawn().expect("outfs starts");
    eventually("the daemon to listen", || p.at("store/control.sock").exists());
    let second = p.command(&["mount", "m2"]).spawn().expect("outfs starts");
    eventually("the second mount to be asked for", || {
        connections(&p.at("store/control.sock")) > 0 || first.try_wait().expect("our own child").is_some()
    });
    drop(halted);
    assert_eq!(first.wait().expect("our own child").code(), Some(1));
    assert!(second.wait_with_output().expect("our own child").status.success());
    assert!(is_mounted(&p.at("m2")) && p.running(), "what was said to be mounted is");
    p.ok(&["stop", "--store", "other"]);
}

#[test]
fn paths_from_another_mount_namespace_are_refused() {
    let p = Place::new();
    common::need_root();
    need("unshare");
    p.ok(&["mount", "m1"]);
    p.entry("key1");
    let inside = |args: &[&str]| {
        let mut c = Command::new("unshare");
        c.args(["--mount", env!("CARGO_BIN_EXE_outfs")]).args(args);
        c.env("OUTFS_STORE", p.at("store")).current_dir(p.dir.path()).output().expect("unshare starts")
    };
    let out = inside(&["restore", "key1", "dest"]);
    assert!(out.status.code() == Some(1) && said(&out).contains("--tar"), "{}", said(&out));
    assert!(!p.at("dest").exists());
    assert_eq!(inside(&["cat", "key1", "outputs/f"]).stdout, b"key1", "what needs no path goes on");
}

/// Who unmounts a view that is just being mounted, and has not shaken hands with the kernel yet, ends it when it is ready.
#[test]
fn a_view_is_not_taken_away_half_made() {
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    let _slow = Trace::meddling(p.pid().as_raw(), p.at("calls"), &["-e", "inject=mount:delay_exit=3000000"]);
    std::thread::scope(|both| {
        let mounts = both.spawn(|| p.ok(&["mount", "m2"]));
        eventually("the mount", || is_mounted(&p.at("m2")));
        p.ok(&["unmount", "m2"]);
        mounts.join().expect("it was mounted before");
    });
    assert!(!is_mounted(&p.at("m2")));
}
