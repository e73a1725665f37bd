//! Runs of one key at the same time: one executes, the others wait for it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Mount, eventually};
use crate::project::{Project, Ran};

/// Counts its runs, and ends when it is told.
const SLOW: &str = "echo run >> ../runs; while [ ! -e ../go ]; do sleep 0.01; done; echo 1 > o";

struct Waiting {
    child: Child,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Project {
    fn slow(&self, options: &[&str], script: &str) -> Child {
        let task = ["run", "--json", "--task", "t", "--input", "in", "--output", "o"];
        let mut c = self.command(&[&task, options, &["--", "sh", "-c", script]].concat());
        c.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("outfs starts")
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.dir.path().join("runs")).unwrap_or_default().lines().count()
    }

    fn go(&self) {
        fs::write(self.dir.path().join("go"), "").unwrap();
    }

    /// One that executes the command.
    fn winner(&self, script: &str) -> Child {
        self.write("in", "1");
        let child = self.slow(&[], script);
        eventually("the command to start", || self.runs() == 1);
        child
    }

    /// One that waits for the process.
    #[track_caller]
    fn waiting(&self, options: &[&str], script: &str, winner: &Child) -> Waiting {
        let mut child = self.slow(options, script);
        let mut stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut said = String::new();
        stderr.read_line(&mut said).expect("a line");
        assert_eq!(said, format!("outfs: waiting for process {}, which runs t already\n", winner.id()));
        Waiting { child, stderr, said }
    }

    fn nothing_flies(&self) -> bool {
        fs::read_dir(self.store.join("runs")).unwrap().next().is_none()
    }
}

impl Waiting {
    fn end(mut self) -> Ran {
        let mut out = self.child.wait_with_output().expect("it ends");
        self.stderr.read_to_string(&mut self.said).expect("text");
        out.stderr = self.said.into_bytes();
        Ran::ended(out)
    }
}

fn one_executes_the_other_hits(p: &Project) {
    let winner = p.winner(SLOW);
    let second = p.waiting(&[], SLOW, &winner);
    let third = p.waiting(&["--timeout", "200ms"], SLOW, &winner);
    // The time limit is the command's, not that of the waiting.
    let began = Instant::now();
    eventually("more than the time limit to pass", || began.elapsed() > Duration::from_millis(300));
    p.go();
    Ran::ended(winner.wait_with_output().unwrap()).is_miss(&["first_run"]).kept(true);
    for waited in [second.end(), third.end()] {
        waited.is_hit();
        assert!(waited.record["waited_ms"].as_u64().unwrap() > 0, "{waited:#?}");
    }
    assert_eq!(p.runs(), 1);
    assert!(p.nothing_flies());
}

/// S13.9 Of runs of one key at the same time one executes; the others wait for it and take its result.
#[test]
fn one_executes_the_others_hit() {
    one_executes_the_other_hits(&Project::new());
    let m = Mount::new();
    let mut p = Project::new();
    p.store = m.store().to_owned();
    one_executes_the_other_hits(&p);
}

#[test]
fn who_does_not_wait_runs_it() {
    let p = Project::new();
    let winner = p.winner(SLOW);
    let second = p.slow(&["--no-wait"], SLOW);
    eventually("both to run", || p.runs() == 2);
    p.go();
    for child in [winner, second] {
        Ran::ended(child.wait_with_output().unwrap()).is_miss(&["first_run"]);
    }
    // Another key waits for nobody, and a policy that keeps nothing is worth no waiting.
    assert!(p.nothing_flies());
}

/// S13.9 If it dies or gives no result, the next one executes.
#[test]
fn death_hands_over() {
    let p = Project::new();
    let mut winner = p.winner(SLOW);
    let second = p.waiting(&[], SLOW, &winner);
    winner.kill().unwrap();
    winner.wait().unwrap();
    eventually("the next one to run", || p.runs() == 2);
    p.go();
    second.end().is_miss(&["first_run"]).kept(true);
    assert!(p.nothing_flies());
    // What a death left without anybody waiting is swept by the next run, whatever it runs.
    fs::remove_file(p.dir.path().join("go")).unwrap();
    fs::remove_file(p.dir.path().join("runs")).unwrap();
    p.write("in", "2");
    let mut dies = p.slow(&[], SLOW);
    eventually("the command to start", || p.runs() == 1);
    dies.kill().unwrap();
    dies.wait().unwrap();
    assert!(!p.nothing_flies());
    eventually("its guard to be gone", || {
        p.sh(&["--task", "u", "--no-inputs", "--force"], "true").kept(true);
        p.nothing_flies()
    });
}

#[test]
fn a_winner_without_a_result_hands_over() {
    let p = Project::new();
    let script = format!("{SLOW}; exit 3");
    let winner = p.winner(&script);
    let second = p.waiting(&[], &script, &winner);
    p.go();
    assert_eq!(Ran::ended(winner.wait_with_output().unwrap()).kept(false).code, 3);
    let second = second.end();
    assert_eq!(second.is_miss(&["previous_run_incomplete"]).kept(false).code, 3);
    assert_eq!(p.runs(), 2);
}

#[test]
fn inputs_that_change_meanwhile_are_looked_at_again() {
    let p = Project::new();
    let winner = p.winner(SLOW);
    let second = p.waiting(&[], SLOW, &winner);
    p.write("in", "2");
    p.go();
    let first = Ran::ended(winner.wait_with_output().unwrap());
    first.kept(false).says("the input in changed while");
    let second = second.end();
    assert_ne!(second.kept(true).key(), first.key());
}

#[test]
fn waiting_can_be_interrupted() {
    let p = Project::new();
    let winner = p.winner(SLOW);
    let mut second = p.waiting(&[], SLOW, &winner);
    kill(Pid::from_raw(second.child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(second.child.wait().unwrap().signal(), Some(Signal::SIGINT as i32));
    p.go();
    Ran::ended(winner.wait_with_output().unwrap()).kept(true);
    assert_eq!(p.runs(), 1);
}

#[test]
fn what_a_run_prints_can_be_followed() {
    const TALKING: &str = "echo one; echo two >&2; echo run >> ../runs; \
                           while [ ! -e ../go ]; do sleep 0.01; done; echo three; echo 1 > o";
    let p = Project::new();
    let winner = p.winner(TALKING);
    let key = fs::read_dir(p.store.join("runs")).unwrap().next().unwrap().unwrap().file_name();
    let key = key.to_str().unwrap();
    let follower = |options: &[&str]| {
        let mut c = p.command(&[&["logs", key, "--follow"], options].concat());
        c.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("outfs starts")
    };
    let mut both = follower(&[]);
    let errors = follower(&["--stderr"]);
    let mut lines = BufReader::new(both.stdout.take().expect("it is piped")).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "one");
    p.go();
    assert_eq!(lines.next().unwrap().unwrap(), "three");
    assert!(lines.next().is_none());
    let ended = both.wait_with_output().unwrap();
    assert!(ended.status.success());
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "two\n");
    assert_eq!(String::from_utf8_lossy(&errors.wait_with_output().unwrap().stdout), "two\n");
    Ran::ended(winner.wait_with_output().unwrap()).is_miss(&["first_run"]).kept(true);
    // What is there already is written whole.
    let after = follower(&["--stdout"]).wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&after.stdout), "one\nthree\n");
    let unknown = p.command(&["logs", "abcd", "--follow"]).output().unwrap();
    assert!(!unknown.status.success());
}
