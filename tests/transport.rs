//! FUSE over io_uring: how it is chosen, and that mounts end as they do without.
//!
//! What mounts mean is tested by all the other tests, which `OUTFS_TEST_TRANSPORT=uring` has use it. These here run where the
//! kernel offers it (`scripts/test` has it do so) and say so where it does not.

#[macro_use]
mod common;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::time::Duration;

use common::*;

const URING: &[&str] = &["--size", "4G", "--transport", "uring"];

fn offered() -> bool {
    let offered =
        fs::read_to_string("/sys/module/fuse/parameters/enable_uring").is_ok_and(|t| t.starts_with('Y'));
    if !offered {
        eprintln!("not tested: the kernel does not offer FUSE over io_uring");
    }
    offered
}

/// The threads of a process whose names begin so.
fn threads(pid: i32, name: &str) -> usize {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let names = tasks.flatten().filter_map(|t| fs::read_to_string(t.path().join("comm")).ok());
    names.filter(|n| n.starts_with(name)).count()
}

/// `--transport uring` without the kernel's offer says what to do; `dev` and `auto` do without.
#[test]
fn a_transport_can_be_required() {
    let m = Mount::with(&["--size", "4G", "--transport", "dev"]);
    assert_eq!(m.json(&["status"])["views"][0]["transport"], "dev");
    assert_eq!(threads(m.pid(), "ring-"), 0);
    if offered() {
        return;
    }
    let at = m.outside("second");
    mkdir(&at);
    let out = m.run(&["mount", at.to_str().expect("text"), "--transport", "uring"]);
    assert_eq!(out.status.code(), Some(1));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("enable_uring") || said.contains("io_uring_disabled"), "{said}");
    assert!(!is_mounted(&at), "nothing stays behind");
}

/// A view through rings that is unmounted takes its threads with it, and another of the same daemon lives on.
#[test]
fn rings_end_with_their_view() {
    if !offered() {
        return;
    }
    let mut m = Mount::with(URING);
    m.entry_of("key1", "content");
    assert_eq!(m.json(&["status"])["views"][0]["transport"], "uring");
    let before = threads(m.pid(), "ring-");
    assert!(before > 0);
    for round in 0..3 {
        let second = m.add_view(&format!("second{round}"), &["--read-only", "--transport", "uring"]);
        assert_eq!(read(second.join("key1/outputs/f")), b"content");
        assert_eq!(threads(m.pid(), "ring-"), 2 * before);
        let second = second.to_str().expect("text").to_owned();
        within(SOON, "unmounting", {
            let mut command = m.command(&["unmount", &second]);
            move || assert!(command.status().expect("the program starts").success())
        });
        eventually("the threads of the view to end", || threads(m.pid(), "ring-") == before);
    }
    assert_eq!(read(m.path("key1/outputs/f")), b"content");
    m.terminate();
    assert!(!is_mounted(m.mnt()));
}

/// A connection that is cut off (`umount -f`) ends the rings too, also with a request in progress.
#[test]
fn rings_end_when_they_are_cut_off() {
    if !offered() {
        return;
    }
    need_root();
    let mut m = Mount::with(URING);
    let second = m.add_view("second", &["--transport", "uring"]);
    let before = threads(m.pid(), "ring-");
    let draft = second.join(".outfs/work/w");
    mkdir(&draft);
    let file = File::create(draft.join("f")).expect("create");
    let writer = std::thread::spawn(move || while file.sync_all().is_ok() {});
    sh("umount", &[&"-f", &"-l", &second]);
    within(SOON, "the writer", move || writer.join().expect("it ends with an error"));
    eventually("the threads of the view to end", || threads(m.pid(), "ring-") == before / 2);
    m.entry_of("key1", "still well");
}

/// A daemon that is killed leaves no caller waiting.
#[test]
fn a_killed_daemon_answers_nobody_but_keeps_nobody() {
    if !offered() {
        return;
    }
    let mut m = Mount::with(URING);
    m.entry_of("key1", "content");
    let open = File::open(m.path("key1/outputs/f")).expect("open");
    m.kill9();
    let path = m.path("key2");
    let code = within(SOON, "a look-up", move || errno(fs::metadata(path)));
    assert!([libc::ENOTCONN, libc::ECONNABORTED, libc::ECANCELED].contains(&code), "{code}");
    drop(open);
    detach(m.mnt());
    m.start();
    assert_eq!(read(m.path("key1/outputs/f")), b"content");
}

/// More requests that take long than a queue has entries: others are answered meanwhile or soon after.
#[test]
fn long_requests_hold_nobody_up_for_good() {
    if !offered() {
        return;
    }
    let m = Mount::with(URING);
    m.entry_of("key1", "content");
    let draft = m.work("w");
    mkdir(&draft);
    let syncing: Vec<_> = (0..40)
        .map(|n| {
            let file = File::create(draft.join(format!("f{n}"))).expect("create");
            std::thread::spawn(move || {
                for _ in 0..20 {
                    // SAFETY: the descriptor is open.
                    assert_eq!(unsafe { libc::fsync(file.as_raw_fd()) }, 0);
                }
            })
        })
        .collect();
    for n in 0..50 {
        let path = m.path(format!("absent{n}"));
        within(Duration::from_secs(10), "a look-up", move || assert_errno!(fs::metadata(path), ENOENT));
    }
    syncing.into_iter().for_each(|t| t.join().expect("all are answered"));
}
