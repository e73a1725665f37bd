//! The daemon's life: start, views, who may end what, deaths, links. Mounts for real.
//!
//! Must not know: the crate's inside.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{eventually, is_mounted, need, need_fuse, outfs, read, write};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A store and directories to mount on; what runs there is ended when it is dropped.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        need_fuse();
        let p = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        fs::create_dir(p.at("m1")).expect("mkdir");
        fs::create_dir(p.at("m2")).expect("mkdir");
        p
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().expect("it exists").join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut c = outfs();
        c.args(args).env("OUTFS_STORE", self.at("store")).current_dir(self.dir.path());
        c
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("outfs starts")
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "outfs {args:?}: {}", said(&out));
        String::from_utf8(out.stdout).expect("text")
    }

    #[track_caller]
    fn fails(&self, part: &str, args: &[&str]) -> String {
        let out = self.run(args);
        assert_eq!(out.status.code(), Some(1), "outfs {args:?}: {}", said(&out));
        assert!(said(&out).contains(part), "outfs {args:?} says {part:?}: {}", said(&out));
        said(&out)
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).expect("JSON")
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.json(&["stats"])["pid"].as_i64().expect("a daemon runs") as i32)
    }

    fn running(&self) -> bool {
        self.json(&["status"])["running"] == true
    }

    /// An entry with one output, made through the mount.
    fn entry(&self, key: &str) {
        let work = self.at("m1/.outfs/work").join(key);
        fs::create_dir_all(work.join("outputs")).expect("a draft");
        write(work.join("outputs/f"), key);
        fs::rename(work, self.at("m1").join(key)).expect("published");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.run(&["stop", "--lazy"]).status.success() {
            eprintln!("{}", fs::read_to_string(self.at("store/daemon.log")).unwrap_or_default());
        }
        for at in ["m1", "m2"] {
            common::detach(&self.at(at));
        }
    }
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// A process that keeps a file open until it is dropped.
struct Reader(Child);

impl Reader {
    fn of(path: &Path) -> Self {
        let file = fs::File::open(path).expect("it opens");
        Self(Command::new("sleep").arg("600").stdin(Stdio::from(file)).spawn().expect("sleep starts"))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn mount_returns_when_ready_and_the_last_unmount_ends_the_daemon() {
    let p = Place::new();
    assert_eq!(p.ok(&["mount", "m1"]), format!("mounted {}\n", p.at("m1").display()));
    assert!(is_mounted(&p.at("m1")));
    let socket = fs::metadata(p.at("store/control.sock")).expect("the socket");
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let name = read(format!("/proc/{}/comm", p.pid()));
    assert_eq!(name, b"outfs\n", "what ps calls it");
    p.ok(&["mount", "m2", "--read-only"]);
    let status = p.json(&["status"]);
    assert_eq!(status["views"].as_array().map(Vec::len), Some(2));
    p.ok(&["unmount", "m1"]);
    assert!(p.running() && !is_mounted(&p.at("m1")));
    p.ok(&["umount", "m2"]);
    assert!(!p.running(), "unmount returns when the daemon has let go");
    p.ok(&["store", "destroy", "--yes"]);
}

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

/// Else a lock that one of them holds would last as long as the daemon.
#[test]
fn the_daemon_keeps_no_descriptor_of_its_caller() {
    let p = Place::new();
    let mut mount = Command::new("sh");
    mount.args(["-c", "exec 7>\"$1\" 9>\"$1\" && shift && exec \"$@\"", "sh"]).arg(p.at("lock"));
    mount.args([env!("CARGO_BIN_EXE_outfs"), "mount", "m1"]).env("OUTFS_STORE", p.at("store"));
    assert!(mount.current_dir(p.dir.path()).status().expect("sh starts").success());
    let open = fs::read_dir(format!("/proc/{}/fd", p.pid())).expect("it runs");
    let kept = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()).filter(|to| *to == p.at("lock"));
    assert_eq!(kept.count(), 0);
}

#[test]
fn a_second_mount_with_other_limits_says_so() {
    let p = Place::new();
    p.ok(&["mount", "m1", "--size", "6G"]);
    p.ok(&["mount", "m2", "--size", "6G"]);
    p.ok(&["unmount", "m2"]);
    let said = p.fails("--size 7.0 GiB", &["mount", "m2", "--size", "7G"]);
    assert!(said.contains(&p.pid().to_string()) && said.contains("6.0 GiB"), "{said}");
    p.fails("--foreground", &["mount", "m2", "--foreground"]);
    for (option, value) in [("--prefetch", "all"), ("--push-limit", "1M"), ("--log", "journal")] {
        p.fails(option, &["mount", "m2", option, value]);
    }
    p.ok(&["mount", "m2", "--prefetch", "manifest", "--push-limit", "0", "--log", "store/daemon.log"]);
    p.ok(&["unmount", "m2"]);
    assert!(!is_mounted(&p.at("m2")));
    p.ok(&["stop"]);
    assert_eq!(p.json(&["stats"])["limits"]["size"], (6u64 << 30).to_string(), "commands keep the limits");
}

#[test]
fn mounts_started_at_once_share_one_daemon() {
    let p = Place::new();
    std::thread::scope(|s| {
        for at in ["m1", "m2"] {
            let p = &p;
            s.spawn(move || p.ok(&["mount", at]));
        }
    });
    assert_eq!(p.json(&["status"])["views"].as_array().map(Vec::len), Some(2));
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

#[test]
fn signals_and_strangers_end_it_cleanly() {
    let p = Place::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        p.ok(&["mount", "m1"]);
        kill(p.pid(), signal).expect("our daemon");
        eventually("the daemon to end", || !p.running());
        assert!(!is_mounted(&p.at("m1")));
    }
    p.ok(&["mount", "m1"]);
    p.entry("key1");
    let _reader = Reader::of(&p.at("m1/key1/outputs/f"));
    kill(p.pid(), Signal::SIGTERM).expect("our daemon");
    eventually("a busy mount to be detached", || !p.running() && !is_mounted(&p.at("m1")));
    p.ok(&["mount", "m1"]);
    need("fusermount3");
    let mut unmount = Command::new("fusermount3");
    assert!(unmount.arg("-u").arg(p.at("m1")).status().expect("it starts").success());
    eventually("the daemon to notice", || !p.running());
}

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

/// A process that goes on when this is dropped.
struct Halted(Pid);

impl Halted {
    fn new(pid: Pid) -> Self {
        kill(pid, Signal::SIGSTOP).expect("our daemon");
        Self(pid)
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[test]
fn nobody_waits_for_a_stopped_daemon() {
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    let pid = p.pid();
    let halted = Halted::new(pid);
    std::thread::scope(|s| {
        for command in [&["ls"][..], &["status"], &["stop"], &["mount", "m2"]] {
            let p = &p;
            s.spawn(move || p.fails(&format!("kill -CONT {pid}"), command));
        }
    });
    drop(halted);
    eventually("it to do what it was asked for", || !p.running());
}

#[test]
fn who_ends_a_daemon_at_once_with_others_is_told_when_it_has_ended() {
    let p = Place::new();
    for _ in 0..8 {
        p.ok(&["mount", "m1"]);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    p.ok(&["stop"]);
                    // No other process has it: else this would say which one.
                    let lock = fs::File::open(p.at("store/lock")).expect("the lock");
                    lock.try_lock_shared().expect("nobody has the store");
                });
            }
            s.spawn(|| {
                let out = p.run(&["unmount", "m1"]);
                assert!(out.status.success() || said(&out).contains("nothing is mounted"), "{}", said(&out));
            });
        });
        assert!(!p.running() && !is_mounted(&p.at("m1")));
    }
}

/// A daemon that has the store and does not listen yet is one, too.
#[test]
fn a_stop_waits_for_whoever_has_the_store() {
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    p.ok(&["stop"]);
    let lock = fs::File::open(p.at("store/lock")).expect("the lock");
    lock.lock().expect("nobody has the store");
    let mut stop = p.command(&["stop"]);
    let mut stop = stop.stderr(Stdio::piped()).spawn().expect("outfs starts");
    let mut said = String::new();
    let told = stop.stderr.take().expect("a pipe");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(told), &mut said).expect("it says so");
    assert!(said.contains("waiting"), "{said}");
    lock.unlock().expect("our own lock");
    assert!(stop.wait().expect("our own child").success());
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
fn logs_go_where_they_are_sent() {
    let p = Place::new();
    let log = p.at("log");
    p.ok(&["mount", "m1", "--log", &format!("json:{}", log.display())]);
    p.ok(&["stop"]);
    let text = String::from_utf8(read(&log)).expect("text");
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert!(lines.iter().any(|l| l["fields"]["message"] == "the daemon runs"), "{text}");
    p.fails("cannot open the log file", &["mount", "m1", "--log", "/dev/null/log"]);
    assert_eq!(p.command(&["mount", "m1"]).env("OUTFS_LOG", "=x=").status().expect("outfs").code(), Some(2));
}

/// With a journal of our own, in a mount namespace of its own: not every machine runs systemd.
#[test]
fn the_journal_gets_the_log() {
    common::need_root();
    need("unshare");
    let p = Place::new();
    fs::create_dir(p.at("journal")).expect("mkdir");
    let journal = std::os::unix::net::UnixDatagram::bind(p.at("journal/socket")).expect("bind");
    journal.set_read_timeout(Some(common::SOON)).expect("a timeout");
    let script = "mount -t tmpfs run /run && mkdir -p /run/systemd/journal && \
                  mount --bind \"$1\" /run/systemd/journal && exec \"$2\" mount \"$3\" --foreground --log journal";
    let mut c = Command::new("unshare");
    c.args(["--mount", "sh", "-c", script, "journal"]).args([p.at("journal").as_os_str()]);
    c.arg(env!("CARGO_BIN_EXE_outfs")).arg(p.at("m1")).env("OUTFS_STORE", p.at("store"));
    let mut child = c.spawn().expect("unshare starts");
    let mut buffer = [0; 4096];
    let mut next = || {
        let n = journal.recv(&mut buffer).expect("a record in time");
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    let first = next();
    assert!(first.starts_with("PRIORITY=6\nSYSLOG_IDENTIFIER=outfs\nMESSAGE\n"), "{first}");
    assert!(first.contains("the daemon runs"), "{first}");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("our own child");
    while !next().contains("the daemon has ended") {}
    assert!(child.wait().expect("our own child").success());
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

#[test]
fn stop_returns_when_the_store_was_closed_in_order() {
    let p = Place::new();
    for _ in 0..5 {
        p.ok(&["mount", "m1"]);
        // A silent client must not keep the daemon from closing.
        let _client =
            std::os::unix::net::UnixStream::connect(p.at("store/control.sock")).expect("it listens");
        assert!(!read(p.at("store/lock")).trim_ascii().is_empty(), "the owner's pid");
        p.ok(&["stop"]);
        assert!(
            read(p.at("store/lock")).trim_ascii().is_empty(),
            "taken out by an owner that ended in order"
        );
    }
}

#[test]
fn a_daemon_of_another_version_can_be_stopped() {
    use std::io::{BufRead, BufReader, Write};
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    let socket = std::os::unix::net::UnixStream::connect(p.at("store/control.sock")).expect("it listens");
    let mut stream = BufReader::new(socket);
    let mut ask = |request: &str| {
        writeln!(stream.get_mut(), r#"{{"outfs":999,"request":{request}}}"#).expect("it reads");
        let mut answer = String::new();
        stream.read_line(&mut answer).expect("it answers");
        answer
    };
    let refused = ask(r#"{"op":"status"}"#);
    assert!(refused.contains("'outfs stop' ends it"), "{refused}");
    let done = ask(r#"{"op":"stop","lazy":false}"#);
    assert!(done.contains(r#""frame":"done""#), "{done}");
    eventually("it to end", || !p.running());
}

#[test]
fn stop_does_not_wait_for_the_hash_of_a_large_file() {
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    fs::create_dir(p.at("m1/key1")).expect("a draft");
    // All hole: it costs no space, and minutes to hash with a debug build.
    fs::File::create(p.at("m1/key1/large")).and_then(|f| f.set_len(64 << 30)).expect("a large file");
    let daemon = p.pid();
    let hashing = || {
        let fds = fs::read_dir(format!("/proc/{daemon}/fd")).expect("it runs");
        let names = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        names.filter(|name| name.ends_with("key1/large") || name.ends_with("tree/large")).count() > 0
    };
    eventually("the file is being hashed", hashing);
    p.ok(&["stop"]);
    assert!(read(p.at("store/lock")).trim_ascii().is_empty(), "closed in order");
}

#[test]
fn questions_are_answered_while_daemons_come_and_go() {
    let p = Place::new();
    p.ok(&["mount", "m1"]);
    p.entry("key1");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                let end = std::time::Instant::now() + common::SOON;
                while !done.load(std::sync::atomic::Ordering::Relaxed) && std::time::Instant::now() < end {
                    assert_eq!(p.ok(&["ls"]), "key1\n");
                }
            });
        }
        for _ in 0..15 {
            p.ok(&["stop"]);
            p.ok(&["mount", "m1"]);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
