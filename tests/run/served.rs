//! Commands that read what a daemon shows, and that daemon dead or stopped meanwhile.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Mount, eventually, need};
use crate::project::{Project, Ran};

/// A project with a result to be read, in the store of a daemon.
fn dependent(m: &Mount) -> Project {
    need("bwrap");
    let mut p = Project::new();
    p.store = m.store().to_owned();
    let made = p.sh(&["--task", "dep", "--no-inputs", "--output", "lib"], "mkdir lib; echo 1 > lib/a");
    made.kept(true);
    (0..20).for_each(|n| p.write(&format!("src/{n}"), ""));
    p
}

/// Waits for the command's first byte.
fn started(mut run: Command) -> Child {
    let mut child = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("outfs starts");
    let mut byte = [0];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut byte).expect("the command starts");
    child
}

/// What is mounted for runs of a project.
fn mounted(p: &Project) -> usize {
    let rooms = p.dir.path().canonicalize().unwrap().join("memory/outfs-run/rooms");
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the table of mounts");
    table.lines().filter(|line| line.contains(rooms.to_str().unwrap())).count()
}

fn rooms(p: &Project) -> usize {
    fs::read_dir(p.dir.path().join("memory/outfs-run/rooms")).map_or(0, Iterator::count)
}

const INSIDE: [&str; 10] =
    ["run", "--json", "--task", "use", "--sandbox", "bwrap", "--from", "in=dep", "--output", "o"];

/// S14.6 … Whatever becomes of the daemon that shows it, nothing stays mounted …
#[test]
fn what_was_read_of_a_dead_daemon_is_not_kept() {
    let mut m = Mount::new();
    let p = dependent(&m);
    // What the kernel remembers can be read all the same; this it always asks for.
    let script =
        "echo; while stat -f in > /dev/null 2>&1; do sleep 0.01; done; cat in/lib/a > o || echo none > o";
    let inside =
        |script: &str| p.command(&[&INSIDE[..], &["--no-inputs", "--", "sh", "-c", script]].concat());
    let child = started(inside(script));
    assert_eq!(mounted(&p), 1);
    m.kill9();
    let ran = Ran::ended(child.wait_with_output().unwrap());
    assert_eq!((ran.code, p.read("o")), (0, "none\n".into()), "{ran:#?}");
    ran.kept(false).says("the daemon that showed it what other tasks made has died");
    assert_eq!((mounted(&p), rooms(&p)), (0, 0));
    m.start();
    Ran::of(inside("cat in/lib/a > o")).kept(true);
    assert_eq!(p.read("o"), "1\n");
}

/// What was not compared to the end is not verified, though the command itself is content.
#[test]
fn verifying_past_a_dead_daemon_is_a_failure() {
    let mut m = Mount::new();
    let p = dependent(&m);
    // A variable that everybody has and that does not count.
    let script = "if [ \"$USER\" = waits ]; then echo; while stat -f in > /dev/null 2>&1; do sleep 0.01; done; fi; \
        cat in/lib/a > o || echo none > o";
    let run = |more: &[&str], user: &str| {
        let mut c = p.command(&[&INSIDE[..], more, &["--no-inputs", "--", "sh", "-c", script]].concat());
        c.env("USER", user);
        c
    };
    Ran::of(run(&[], "nobody")).kept(true);
    let child = started(run(&["--verify"], "waits"));
    m.kill9();
    let ran = Ran::ended(child.wait_with_output().unwrap());
    assert_eq!(ran.says("nothing is verified: the daemon that showed it").code, 125, "{ran:#?}");
    assert!(ran.record["error"].as_str().is_some_and(|why| why.contains("nothing is verified")), "{ran:#?}");
}

/// A run that is killed beside its daemon leaves a dead mount in its room, which the next one takes away.
#[test]
fn what_a_dead_run_and_a_dead_daemon_left_is_unmounted() {
    let mut m = Mount::new();
    let p = dependent(&m);
    let mut c =
        p.command(&[&INSIDE[..], &["--no-inputs", "--", "sh", "-c", "echo; exec sleep 600"]].concat());
    let mut child = started({
        c.stdin(Stdio::null());
        c
    });
    m.kill9();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(mounted(&p), 1);
    eventually("the room to be swept", || {
        p.ok(&["run", "--no-inputs", "--", "true"]);
        (mounted(&p), rooms(&p)) == (0, 0)
    });
}

/// A process that goes on when this is dropped.
struct Halted(Pid);

impl Drop for Halted {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// S14.6 … and none of its answers is waited for without a limit.
#[test]
fn a_stopped_daemon_does_not_keep_a_run_from_ending() {
    let m = Mount::new();
    let p = dependent(&m);
    let script = "echo; while [ ! -e src/go ]; do sleep 0.01; done; cat in/lib/a > o";
    let limit = ["--timeout", "4s", "--input", "src", "--", "sh", "-c", script];
    let child = started(p.command(&[&INSIDE[..], &limit].concat()));
    let pid = Pid::from_raw(m.pid());
    kill(pid, Signal::SIGSTOP).unwrap();
    let halted = Halted(pid);
    eventually("the daemon to stop", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it is there");
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    });
    p.write("src/go", "");
    let end = move || Ran::ended(child.wait_with_output().expect("it ends"));
    let ran = crate::common::within(Duration::from_secs(150), "a run with a limit", end);
    ran.kept(false).says("timed out after 4s");
    assert_eq!(mounted(&p), 0);
    drop(halted);
}
