//! Runs that write the same outputs, and runs inside of runs.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use crate::common::eventually;
use crate::project::{Project, Ran};

const SLOW: &str = "echo $V > o; echo run >> ../runs; while [ ! -e ../go ]; do sleep 0.01; done; cat o > ../o.$V; mv ../o.$V o";

impl Project {
    fn with(&self, value: &str, options: &[&str]) -> Child {
        let task = ["run", "--json", "--task", "t", "--no-inputs", "--env", "V", "--output", "o"];
        let mut c = self.command(&[&task, options, &["--", "sh", "-c", SLOW]].concat());
        c.env("V", value).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("outfs starts")
    }

    fn started(&self, n: usize) {
        let runs = || fs::read_to_string(self.dir.path().join("runs")).unwrap_or_default();
        eventually("the command to start", || runs().lines().count() == n);
    }

    fn go_on(&self) {
        fs::write(self.dir.path().join("go"), "").unwrap();
    }
}

fn ended(child: Child) -> Ran {
    Ran::ended(child.wait_with_output().expect("it ends"))
}

/// S13.13 Runs that write the same outputs take turns, whatever their keys.
#[test]
fn the_same_outputs_are_written_by_one_at_a_time() {
    let p = Project::new();
    let first = p.with("A", &[]);
    p.started(1);
    let mut second = p.with("B", &[]);
    let mut stderr = BufReader::new(second.stderr.take().unwrap());
    let mut said = String::new();
    stderr.read_line(&mut said).unwrap();
    assert_eq!(said, format!("outfs: waiting for process {}, which writes the same outputs\n", first.id()));
    // Neither does a run past the cache write there, nor a hit.
    p.go_on();
    ended(first).kept(true);
    stderr.read_to_string(&mut said).unwrap();
    ended(second).kept(true);
    for value in ["A", "B", "A"] {
        ended(p.with(value, &[])).is_hit();
        assert_eq!(p.read("o"), format!("{value}\n"));
    }
}

/// S13.13 What was made beside a run that did not wait is not kept, nor what that made.
#[test]
fn who_does_not_wait_spoils_both() {
    let p = Project::new();
    let first = p.with("A", &[]);
    p.started(1);
    let second = p.with("B", &["--no-wait"]);
    p.started(2);
    p.go_on();
    let said = "another run wrote to the same outputs at the same time";
    for ran in [ended(first), ended(second)] {
        assert_eq!(ran.kept(false).says(said).code, 0);
    }
    ended(p.with("A", &[])).kept(true);
    assert_eq!(p.read("o"), "A\n");
}

/// A run inside of a run waits for nobody that waits for it.
#[test]
fn runs_inside_of_runs() {
    let p = Project::new();
    let outfs = env!("CARGO_BIN_EXE_outfs");
    // Other outputs, the same outputs, and the same key.
    let script = format!(
        "if [ -n \"$INNER\" ]; then echo $INNER > o; exit; fi\n\
         {outfs} run --task other --no-inputs --output i -- sh -c 'echo 1 > i' || exit 1\n\
         {outfs} run --task same --no-inputs --output o -- sh -c 'echo 2 > o' || exit 1\n\
         INNER=3 {outfs} run --task t --input s --output o -- sh s || exit 1\n\
         cat i o > all; mv all o\n"
    );
    p.write("s", &script);
    let run = || p.run(&["--task", "t", "--input", "s", "--output", "o"], &["sh", "s"]);
    let ran = run();
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.stderr.contains("inside of a run of the same"), "{ran:#?}");
    assert_eq!(p.read("i"), "1\n");
    assert_eq!(ran.record["undeclared"], serde_json::json!(["i"]));
}

/// S13.14 What a command has another run make is made by the command; what that one did not declare it has named itself.
#[test]
fn outputs_of_a_run_inside_are_named() {
    let p = Project::new();
    let outfs = env!("CARGO_BIN_EXE_outfs");
    p.write("sub/source", "");
    let inner = format!(
        "cd sub && {outfs} run --force --task inner --no-inputs --output deep/i -- sh -c 'mkdir -p deep/i; touch deep/i/f stray'"
    );
    let task = ["--task", "t", "--no-inputs"];
    for outputs in [&["--output", "o"][..], &[]] {
        let ran = p.sh(&[&task, outputs].concat(), &format!("({inner}) && touch o"));
        let named: &[&str] = if outputs.is_empty() { &["o", "sub/deep/i/f"] } else { &["sub/deep/i/f"] };
        assert_eq!(ran.kept(true).record["undeclared"], serde_json::json!(named), "{ran:#?}");
        ran.says("changed while the command ran, not declared as outputs, and so not kept: stray");
    }
}

/// S13.14 … what other runs make meanwhile is not.
#[test]
fn nobody_is_blamed_for_what_another_run_makes() {
    let p = Project::new();
    let in_package = |name: &str, script: &str| {
        fs::create_dir_all(p.path(name)).unwrap();
        let task =
            ["run", "--json", "--task", name, "--no-inputs", "--output", "o", "--", "sh", "-c", script];
        let mut c = p.command(&task);
        c.current_dir(p.path(name)).stdout(Stdio::piped()).stderr(Stdio::piped());
        c.spawn().expect("outfs starts")
    };
    let wait =
        |n: u32| format!("touch ../../{n}; while [ ! -e ../../go ]; do sleep 0.01; done; touch o stray");
    let one = in_package("one", &wait(1));
    eventually("the command to start", || p.dir.path().join("1").exists());
    // One that ends before the other one does, one that begins before it, and somebody who edits.
    ended(in_package("two", "touch o stray")).kept(true);
    let three = in_package("three", &wait(3));
    eventually("the command to start", || p.dir.path().join("3").exists());
    p.write("edited", "");
    p.go_on();
    let named = |ran: Ran| ran.kept(true).says("changed while the command ran").record["undeclared"].clone();
    assert_eq!(named(ended(one)), serde_json::json!(["../edited", "stray"]));
    assert_eq!(named(ended(three)), serde_json::json!(["../edited", "stray"]));
}

/// S13.13 A hit that had to wait for another run at its outputs gives back what is kept then, and says that it stands there.
#[test]
fn a_hit_that_waited_is_of_what_was_made_meanwhile() {
    let p = Project::new();
    let script = "echo run >> ../runs; while [ ! -e ../go ]; do sleep 0.01; done; head -c 8 /dev/urandom | od -An -tx1 > o; cat o";
    let run = |options: &[&str]| {
        let task = ["run", "--json", "--task", "t", "--no-inputs", "--output", "o"];
        let mut c = p.command(&[&task, options, &["--", "sh", "-c", script]].concat());
        c.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("outfs starts")
    };
    p.go_on();
    ended(run(&[])).kept(true);
    let before = p.read("o");
    fs::remove_file(p.dir.path().join("go")).unwrap();
    let forced = run(&["--force"]);
    p.started(2);
    let mut waits = run(&[]);
    let mut stderr = BufReader::new(waits.stderr.take().unwrap());
    let mut said = String::new();
    stderr.read_line(&mut said).unwrap();
    assert!(said.contains("writes the same outputs"), "{said}");
    p.go_on();
    ended(forced).kept(true);
    let hit = ended(waits);
    let now = p.read("o");
    assert_ne!(now, before);
    assert_eq!(
        (&hit.record["result"], &hit.stdout),
        (&"hit".into(), &now),
        "its log is of what stands there"
    );
    // What stands there is known by its right name: who remembers nothing says the same.
    let next = ["run", "--json", "--task", "next", "--after", "t", "--no-inputs", "--", "cat", "o"];
    assert_eq!(Ran::of(p.command(&next)).kept(true).stdout, now);
    let mut remembers_nothing = p.command(&next);
    remembers_nothing.env("XDG_CACHE_HOME", p.dir.path().join("another memory"));
    assert_eq!(Ran::of(remembers_nothing).is_hit().stdout, now);
}
