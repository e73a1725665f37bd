//! A kernel that takes no prunes (before Linux 6.18), and what lets go of evicted entries there.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Stdio};

use crate::common::{Mount, eventually, eventually_some, read, write};

fn parent_is(pid: &str, parent: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line == format!("PPid:\t{parent}"))
}

/// The process that looks names up for the daemon.
fn looker(daemon: i32) -> Option<String> {
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    all.filter_map(|e| e.file_name().into_string().ok()).find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"outfs\0look\0") && parent_is(pid, daemon)
    })
}

fn has_thread(daemon: i32, name: &str) -> bool {
    let tasks = fs::read_dir(format!("/proc/{daemon}/task")).expect("our daemon").flatten();
    tasks.into_iter().any(|t| fs::read_to_string(t.path().join("comm")).is_ok_and(|comm| comm.trim() == name))
}

fn entry(m: &Mount, key: &str) {
    m.entry(key, |outputs| {
        fs::create_dir_all(outputs.join("a/b")).expect("mkdir");
        write(outputs.join("a/b/f"), key);
    });
}

#[test]
fn what_is_evicted_goes_and_what_stands_is_seen_by_everybody() {
    let mut m =
        Mount::unmounted(&["--size", "4G", "--min-age", "0s"]).with_env("OUTFS_TEST_WITHOUT", "prune");
    m.start();
    for key in ["aaaa01", "aaaa02"] {
        entry(&m, key);
        assert_eq!(read(m.path(key).join("outputs/a/b/f")), key.as_bytes());
    }
    assert_eq!(m.manifests(), 2);
    m.evict("aaaa01");
    eventually("what the kernel knew of it to go", || m.manifests() == 1);
    assert_eq!(read(m.path("aaaa02/outputs/a/b/f")), b"aaaa02");
    // And what the kernel has moved to the trash itself.
    entry(&m, "aaaa03");
    assert_eq!(read(m.path("aaaa03/outputs/a/b/f")), b"aaaa03");
    assert_eq!(m.manifests(), 2);
    fs::rename(m.path("aaaa03"), m.path(".outfs/trash/aaaa03")).expect("throw it away");
    eventually("what was thrown away to go", || m.manifests() == 1);
    // What is open, or somebody's directory, goes when it is that no more.
    for key in ["aaaa04", "aaaa05", "aaaa06"] {
        entry(&m, key);
    }
    let open = fs::File::open(m.path("aaaa04/outputs/a/b/f")).expect("an open file");
    let mut inside = std::process::Command::new("cat");
    let mut inside =
        inside.current_dir(m.path("aaaa05/outputs/a")).stdin(Stdio::piped()).spawn().expect("cat");
    let thrown = fs::File::open(m.path("aaaa06/outputs/a/b/f")).expect("an open file");
    m.evict("aaaa04");
    m.evict("aaaa05");
    fs::rename(m.path("aaaa06"), m.path(".outfs/trash/aaaa06")).expect("throw it away");
    for (file, key) in [(&open, "aaaa04"), (&thrown, "aaaa06")] {
        assert_eq!(std::io::read_to_string(file).expect("what is open can be read"), key);
        assert!(fs::symlink_metadata(m.path(key)).is_err(), "{key} is gone");
    }
    assert_eq!(m.manifests(), 4);
    drop((open, thrown, inside.stdin.take()));
    inside.wait().expect("cat ends");
    eventually("what was in use to go", || m.manifests() == 1);
    // Now one that stands: the kernel is asked to let go of it first.
    m.ok(&["gc", "--older-than", "0s"]);
    eventually("the other one to go", || {
        m.ok(&["gc", "--older-than", "0s"]);
        m.manifests() == 0
    });

    let looker = looker(m.pid()).expect("somebody looked");
    let fds = fs::read_dir(format!("/proc/{looker}/fd")).expect("it lives").flatten();
    let fds: Vec<_> = fds.map(|e| fs::read_link(e.path()).unwrap_or_default()).collect();
    assert_eq!(fds.len(), 3, "{fds:?}");
    assert!(!fds.iter().any(|to| to.starts_with("/dev/fuse") || to.starts_with(m.mnt())), "{fds:?}");
    // It is not in the way of an unmount, and ends with its daemon.
    m.terminate();
    eventually("who looked to end", || !fs::exists(format!("/proc/{looker}")).unwrap_or(true));
}

/// Somebody who waits in the top directory for a tier that says nothing, for one name after the other as long as the mount lives.
struct Waiting(Child);

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Who looks up what only a tier may have holds the top directory's lock in the kernel. A notification would wait
/// for that, and a daemon that is killed meanwhile would never end.
#[cfg(feature = "reapi")]
#[test]
fn a_daemon_killed_while_an_entry_is_let_go_of_keeps_nobody_waiting() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let tier = format!("grpc://{}/x", silent.local_addr().expect("an address"));
    let mut m = Mount::unmounted(&[]).with_env("OUTFS_TEST_WITHOUT", "prune");
    m.start();
    entry(&m, "aaaa01");
    m.restart_with(&["--tier", &tier]);
    assert_eq!(read(m.path("aaaa01/outputs/a/b/f")), b"aaaa01");
    let mut sh = std::process::Command::new("sh");
    sh.arg("-c").arg("n=0; while stat -f \"$0\"; do stat \"$0/bbbb$n\"; n=$((n+1)); done").arg(m.mnt());
    let mut waiting = Waiting(sh.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sh"));
    eventually("the look-up to wait for the tier", || has_thread(m.pid(), "far-look"));
    // It waits until the kernel has seen the name go, and is not waited for.
    let mut evict = m.command(&["evict", "aaaa01"]).spawn().expect("outfs starts");
    let looker = eventually_some("somebody to look", || looker(m.pid()));
    assert!(waiting.0.try_wait().expect("our own child").is_none(), "the tier says nothing, and it waits");
    m.kill9();
    let _ = evict.wait();
    eventually("who waited to be told", || waiting.0.try_wait().expect("our own child").is_some());
    eventually("who looked to end", || !fs::exists(format!("/proc/{looker}")).unwrap_or(true));
    m.start_with(&[]);
    assert!(fs::symlink_metadata(m.path("aaaa01")).is_err(), "it was evicted");
}
