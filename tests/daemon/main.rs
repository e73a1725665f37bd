//! The daemon's life: start, views, who may end what, deaths, links. Mounts for real.
//!
//! Must not know: the crate's inside.

#[path = "../common/mod.rs"]
mod common;
mod deaths;
mod entries;
mod place;
mod views;
mod without_prune;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use common::{eventually, is_mounted, need, read};
use place::{Halted, Place, Reader, said};

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
    for (option, value) in
        [("--prefetch", "all"), ("--push-limit", "1M"), ("--scan-budget", "1G"), ("--log", "journal")]
    {
        p.fails(option, &["mount", "m2", option, value]);
    }
    p.ok(&["mount", "m2", "--prefetch", "none", "--push-limit", "0", "--log", "store/daemon.log"]);
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
    // What is refused ends its connection.
    let ask = |request: &str| {
        let socket = std::os::unix::net::UnixStream::connect(p.at("store/control.sock")).expect("it listens");
        let mut stream = BufReader::new(socket);
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
