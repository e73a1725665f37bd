//! What a run says is so, and what it gives back is what it was asked for.

use std::fs;

use crate::common::{Mount, eventually};
use crate::project::{Project, Ran};

/// Other bytes each time.
const NEW: &str = "date +%N > g";

fn generate(p: &Project, options: &[&str]) -> Ran {
    p.sh(&[&["--task", "gen", "--no-inputs", "--output", "g"], options].concat(), NEW)
}

fn read_back(p: &Project, of: &str) -> Ran {
    let from = format!("d={of}");
    p.sh(&["--task", "use", "--no-inputs", "--from", &from, "--output", "res"], "cp d/g res")
}

/// What a task makes that reads a result depends on what the entry has, whatever the last run here came to.
#[test]
fn what_is_read_is_what_counts() {
    let p = Project::new();
    generate(&p, &[]).is_miss(&["first_run"]);
    let kept = p.read("g");
    assert_eq!(generate(&p, &["--verify"]).code, 1);
    let other = p.read("g");
    assert_ne!(kept, other);
    read_back(&p, "gen").is_miss(&["first_run"]);
    assert_eq!(p.read("res"), kept);
    // Another task makes what the last run made and did not keep.
    let made = p.sh(
        &["--task", "gen2", "--no-inputs", "--param", "x=1", "--output", "g"],
        &format!("printf %s '{other}' > g"),
    );
    made.kept(true);
    assert_eq!(p.read("g"), other);
    read_back(&p, "gen2").is_miss(&["dep_changed"]);
    assert_eq!(p.read("res"), other);
    read_back(&p, "gen").is_hit();
    assert_eq!(p.read("res"), kept);
}

#[test]
fn an_output_below_another_must_be_there() {
    let p = Project::new();
    let run = |script: &str| {
        p.sh(&["--task", "t", "--no-inputs", "--output", "out", "--output", "out/app"], script)
    };
    assert_eq!(run("mkdir out").kept(false).says("the declared output out/app is missing").code, 125);
    run("mkdir out; echo 1 > out/app").kept(true);
    run("mkdir out; echo 1 > out/app").is_hit();
}

#[test]
fn what_is_no_output_is_not_taken_away() {
    let p = Project::new();
    let run = || p.sh(&["--task", "t", "--no-inputs", "--output", "b/c"], "mkdir -p b && echo 1 > b/c");
    run().kept(true);
    fs::remove_dir_all(p.path("b")).unwrap();
    p.write("b", "precious");
    let blocked = run();
    blocked.is_miss(&["in_the_way"]).says("is in the way of the outputs");
    assert_ne!(blocked.code, 0, "mkdir fails");
    assert_eq!(p.read("b"), "precious");
    // Nor is a glob's file an output by the way.
    p.write("gen/a.c", "1");
    let glob = p.sh(&["--task", "g", "--input", "gen/*.c", "--output", "gen"], "true");
    assert_eq!(glob.says("all that the input gen/*.c names is an output").code, 125);
    assert_eq!(p.read("gen/a.c"), "1");
}

#[test]
fn what_is_new_or_gone_is_not_called_changed() {
    let p = Project::new();
    for task in ["a", "b"] {
        p.sh(&["--task", task, "--no-inputs", "--output", task], &format!("echo {task} > {task}"));
    }
    let run = |options: &[&str]| {
        p.sh(&[&["--task", "t", "--no-inputs", "--output", "o"], options].concat(), "echo 1 > o")
    };
    run(&[]);
    run(&["--after", "a"]).is_miss(&["upstream_rerun"]).says("it comes after the task a now");
    run(&["--after", "a", "--param", "x=1"]).is_miss(&["params_changed"]).says("the parameter x is new");
    run(&["--base", "a"]);
    let bases = run(&["--base", "b"]);
    bases.is_miss(&["cache_key_mismatch"]).says("base a -> base b");
    p.ok(&["evict", bases.key()]);
    run(&["--base", "b"]).is_miss(&["evicted"]);
}

#[test]
fn a_lock_file_of_another_machine() {
    let p = Project::new();
    let run = || p.sh(&["--task", "t", "--no-inputs", "--lock", "l", "--output", "o"], "echo 1 > o");
    run().is_miss(&["no_lock_file"]);
    fs::remove_dir_all(&p.store).unwrap();
    run().is_miss(&["not_in_store"]).says("the store no entry of it");
}

#[test]
fn why_is_of_the_last_run() {
    let p = Project::new();
    let run = |n: &str, script: &str| {
        let param = format!("n={n}");
        p.sh(&["--task", "t", "--no-inputs", "--output", "o", "--param", &param], script)
    };
    let first = run("1", "echo 1 > o");
    let second = run("2", "echo 1 > o");
    assert!(p.ok(&["why", "t"]).contains(second.key()));
    run("1", "echo 1 > o").is_hit();
    assert!(p.ok(&["why", "t"]).contains(first.key()));
    let failed = run("3", "exit 7");
    let why = p.ok(&["why", "t"]);
    assert!(why.contains(failed.key()) && why.contains("exit code 7"), "{why}");
    // Of what there never was, too.
    p.ok(&["reject", "cafe0123", "--reason", "built by a broken compiler"]);
    assert!(p.ok(&["why", "cafe0123"]).contains("built by a broken compiler"));
}

/// At the top of a project as anywhere else: links to a result are that result.
#[test]
fn links_are_what_they_lead_to() {
    let m = Mount::new();
    let mut p = Project::new();
    p.store = m.store().to_owned();
    for below in ["", "sub"] {
        fs::create_dir_all(p.path(below)).unwrap();
        p.cwd.push(below);
        let make = |options: &[&str]| {
            p.sh(
                &[&["--task", "a", "--no-inputs", "--output", "a"], options].concat(),
                "mkdir a; echo 1 > a/f",
            )
        };
        let sum = || p.sh(&["--task", "b", "--no-inputs", "--after", "a", "--output", "b"], "cat a/f > b");
        make(&[]).kept(true);
        sum().kept(true);
        fs::remove_dir_all(p.path("a")).unwrap();
        make(&["--as", "link"]).is_hit();
        assert!(p.path("a").is_symlink());
        sum().is_hit();
        // Also for whoever does not remember who put them there.
        fs::remove_dir_all(p.dir.path().join("memory")).unwrap();
        sum().is_hit();
        // Nothing stands there where the entry is gone, however the link looks.
        for key in [make(&["--as", "link"]).key(), sum().key()] {
            p.ok(&["evict", key]);
        }
        eventually("the kernel to forget the name", || !p.path("a").exists());
        sum().kept(false).says("which this one comes after, are not there");
        fs::remove_file(p.path("a")).unwrap();
    }
}
