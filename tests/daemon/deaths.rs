//! A daemon that was killed, and what it leaves mounted.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};

use crate::common::{eventually, is_mounted, read, write};
use crate::place::Place;

#[test]
fn a_killed_daemon_is_succeeded() {
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    p.ok(&["mount", "m2", "--read-only"]);
    p.entry("key1");
    fs::create_dir_all(p.at("m1/key2/outputs")).expect("a draft in place");
    write(p.at("m1/key2/outputs/f"), "written before the death");
    kill(p.pid(), Signal::SIGKILL).expect("our daemon");
    eventually("the mount to die", || fs::metadata(p.at("m1")).is_err());
    assert!(is_mounted(&p.at("m2")));
    assert_eq!(p.ok(&["ls"]), "key1\n", "the store answers without it");
    p.ok(&["mount", "m1"]);
    assert!(!is_mounted(&p.at("m2")), "the other stale mount is gone too");
    assert_eq!(read(p.at("m1/key1/outputs/f")), b"key1");
    assert_eq!(read(p.at("m1/key2/outputs/f")), b"written before the death");
    p.ok(&["seal", "key2"]);
    kill(p.pid(), Signal::SIGKILL).expect("our daemon");
    eventually("the mount to die", || fs::metadata(p.at("m1")).is_err());
    p.ok(&["unmount", "m1"]);
    assert!(!is_mounted(&p.at("m1")), "a dead mount is unmounted without a daemon");
    p.ok(&["mount", "m1"]);
    kill(p.pid(), Signal::SIGKILL).expect("our daemon");
    eventually("the mount to die", || fs::metadata(p.at("m1")).is_err());
    assert!(p.ok(&["status"]).contains("takes it over"), "status tells of a dead mount");
    p.ok(&["stop"]);
    assert!(!is_mounted(&p.at("m1")), "stop leaves none");
    assert_eq!(p.ok(&["status"]).lines().count(), 1);
}

/// A copy of a process's descriptor of the FUSE device.
fn copy_of_device(pid: nix::unistd::Pid) -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    let device = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("our daemon")
        .flatten()
        .find(|e| fs::read_link(e.path()).is_ok_and(|to| to == Path::new("/dev/fuse")))
        .expect("it serves a mount");
    let number: i32 = device.file_name().to_str().and_then(|n| n.parse().ok()).expect("a number");
    // SAFETY: two calls that take numbers; what they give is checked, and is ours alone.
    unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0);
        assert!(process >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
        let process = std::os::fd::OwnedFd::from_raw_fd(process as i32);
        let copy = libc::syscall(libc::SYS_pidfd_getfd, std::os::fd::AsRawFd::as_raw_fd(&process), number, 0);
        assert!(copy >= 0, "pidfd_getfd: {}", std::io::Error::last_os_error());
        std::os::fd::OwnedFd::from_raw_fd(copy as i32)
    }
}

/// A dead daemon's mount that answers nobody, because its connection still stands, is taken over too.
#[test]
fn a_hanging_mount_of_a_killed_daemon_is_taken_over() {
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    p.entry("key1");
    let kept = copy_of_device(p.pid());
    kill(p.pid(), Signal::SIGKILL).expect("our daemon");
    eventually("the daemon to end", || !p.running());
    assert!(is_mounted(&p.at("m1")));
    p.ok(&["mount", "m1"]);
    assert_eq!(read(p.at("m1/key1/outputs/f")), b"key1");
    drop(kept);
    assert_eq!(read(p.at("m1/key1/outputs/f")), b"key1", "the new mount is another connection");
}

/// The same without a successor: it is shown, and removed.
#[test]
fn a_hanging_mount_of_a_killed_daemon_is_shown_and_removed() {
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    let kept = copy_of_device(p.pid());
    kill(p.pid(), Signal::SIGKILL).expect("our daemon");
    eventually("the daemon to end", || !p.running());
    assert!(p.ok(&["status"]).contains("which hangs"));
    assert_eq!(p.json(&["status"])["dead_views"].as_array().map(Vec::len), Some(1));
    p.ok(&["stop"]);
    assert!(!is_mounted(&p.at("m1")));
    drop(kept);
}
