//! What fails beside the command: stores, outputs that cannot be kept, what dead runs have left. The task runs all the same.

use std::fs;

use crate::project::{Project, Ran};

/// A cache that fails never fails the task: it says so, and the command runs.
#[test]
fn a_result_that_cannot_be_kept_is_a_warning() {
    let p = Project::new();
    let fifo = |options: &[&str]| {
        p.sh(&[&["--task", "t", "--no-inputs", "--output", "d"], options].concat(), "mkdir d; mkfifo d/f")
    };
    assert_eq!(fifo(&[]).kept(false).says("warning: the result is not kept").code, 0);
    assert_eq!(fifo(&["--policy", "disabled"]).says("warning: ").code, 0);
    let after = p.sh(&["--task", "u", "--no-inputs", "--output", "d"], "mkdir d; echo fine > d/f");
    assert_eq!(after.kept(true).code, 0);
}

#[test]
fn without_a_home_or_with_a_bad_log_level_a_task_runs() {
    let p = Project::new();
    let args = ["run", "--json", "--no-inputs", "--", "echo", "x"];
    let mut homeless = p.command(&args);
    homeless.env_remove("HOME").env_remove("XDG_CACHE_HOME").env_remove("OUTFS_STORE");
    let ran = Ran::of(homeless);
    assert_eq!((ran.code, &ran.stdout[..]), (0, "x\n"), "{ran:#?}");
    ran.kept(false).says("warning: the cache fails").says("no home directory");
    let mut garbled = p.command(&args);
    garbled.env("OUTFS_LOG", "@@@");
    let ran = Ran::of(garbled);
    assert_eq!((ran.code, &ran.stdout[..]), (0, "x\n"), "{ran:#?}");
    ran.kept(true).says("warning: OUTFS_LOG=@@@ cannot be used");
}

#[test]
fn what_a_killed_run_had_put_in_is_swept_by_the_next() {
    let p = Project::new();
    p.sh(&["--task", "lib", "--no-inputs", "--output", "lib"], "mkdir lib; echo 1 > lib/f");
    let use_it = |script: &str| {
        let from = ["run", "--json", "--task", "use", "--no-inputs", "--from", "dep=lib", "--output", "o"];
        p.command(&[&from[..], &["--", "sh", "-c", script]].concat())
    };
    let mut child = use_it("touch started; sleep 100").stdout(std::process::Stdio::null()).spawn().unwrap();
    crate::common::eventually("the command to start", || p.path("started").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(p.path("dep").exists(), "nobody could take it away");
    let ran = Ran::of(use_it("cp dep/lib/f o"));
    assert_eq!(ran.kept(true).code, 0, "{ran:#?}");
    assert!(!p.path("dep").exists());
    assert_eq!(fs::read(p.path("o")).unwrap(), b"1\n");
}

/// With `--mtime keep` outputs have the times that they were made with.
#[test]
fn own_times_are_given_to_what_stands_there_with_others() {
    let p = Project::new();
    let run = |options: &[&str]| {
        let named = ["--task", "t", "--no-inputs", "--output", "o"];
        p.sh(&[&named, options].concat(), "echo 1 > o; touch -d 2001-01-01 o")
    };
    let made = || fs::metadata(p.path("o")).unwrap().modified().unwrap();
    run(&[]);
    let old = made();
    fs::remove_file(p.path("o")).unwrap();
    run(&[]).is_hit();
    assert!(made() > old);
    run(&["--mtime", "keep"]).is_hit();
    assert_eq!(made(), old);
    run(&["--mtime", "keep"]).is_hit();
    assert_eq!(made(), old);
}
