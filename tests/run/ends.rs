//! How runs end: exit codes, time limits, signals, deaths; and that nothing is left behind.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{SOON, eventually, eventually_some, need};
use crate::project::Project;

#[test]
fn exit_codes_are_the_commands_own() {
    let p = Project::new();
    let task = ["--task", "t", "--no-inputs"];
    let failed = p.sh(&task, "echo no; exit 3");
    assert_eq!(failed.kept(false).is_miss(&["first_run"]).code, 3);
    let again = p.sh(&task, "echo no; exit 3");
    again.is_miss(&["previous_run_incomplete"]).says("exit code 3");
    let kept = p.sh(&[&task[..], &["--cache-failures"]].concat(), "echo no; exit 3");
    assert_eq!(kept.kept(true).code, 3);
    let hit = p.sh(&[&task[..], &["--cache-failures"]].concat(), "echo no; exit 3");
    assert_eq!(hit.record["warnings"], serde_json::json!([]));
    assert_eq!((hit.code, &hit.record["result"], &hit.stdout[..]), (3, &"hit".into(), "no\n"));
    p.sh(&task, "echo no; exit 3").is_miss(&["previous_run_incomplete"]);
    // A failure that was kept gives way to a success.
    let flaky = |options: &[&str]| p.sh(&[&task, options].concat(), "echo $$; [ -e good ]");
    flaky(&["--cache-failures"]).kept(true);
    p.write("good", "");
    flaky(&[]).is_miss(&["previous_run_incomplete"]).kept(true);
    flaky(&[]).is_hit();
    assert_eq!(p.sh(&task, "kill -9 $$").code, 137);
    // By a signal without a name: 34 is the first for everybody's use.
    assert_eq!(p.sh(&task, "kill -34 $$").code, 128 + 34);
    assert_eq!(p.run(&task, &["no-such-program"]).code, 127);
    p.write("plain", "");
    assert_eq!(p.run(&task, &["./plain"]).code, 126);
    // Found, but no program: what the kernel refuses is the guard's word.
    p.write("broken", "#!/nonexistent/interpreter\n");
    crate::common::chmod(p.path("broken"), 0o755).unwrap();
    assert_eq!(p.run(&task, &["./broken"]).code, 127);
    let outside = p.dir.path().join("elsewhere");
    std::fs::create_dir(&outside).unwrap();
    let mut c = p.command(&["run", "--", "true"]);
    let out = c.current_dir(&outside).output().unwrap();
    assert_eq!(out.status.code(), Some(125), "outside git inputs must be named");
}

/// S13.4 A result is kept only if the command succeeded (or failures are wanted), all declared outputs are there, and
/// no input changed meanwhile, went, was away for a while or came.
#[test]
fn a_missing_output_is_an_error() {
    let p = Project::new();
    let run =
        |script: &str| p.sh(&["--task", "t", "--no-inputs", "--output", "a", "--output", "b/c"], script);
    let missing = run("touch a");
    let why = "the declared output b/c is missing; nothing is kept";
    assert_eq!(missing.kept(false).says(&format!("\noutfs: {why}\n")).code, 125);
    assert_eq!(
        (&missing.record["error"], &missing.record["warnings"]),
        (&why.into(), &serde_json::json!([]))
    );
    let failing = p.sh(&["--no-inputs", "--output", "a", "--cache-failures"], "exit 3");
    assert_eq!(
        (failing.says("warning: the declared output a").code, &failing.record["error"]),
        (3, &serde_json::Value::Null)
    );
    run("touch a").is_miss(&["previous_run_incomplete"]);
    let undeclared = run("touch a; mkdir b; touch b/c b/d");
    assert_eq!(undeclared.kept(true).record["undeclared"], serde_json::json!(["b/d"]));
    undeclared.says("not declared as outputs");
}

/// What is wrong with the command line of a run is outfs's own failure: 2 could be the command's code.
#[test]
fn a_wrong_option_is_a_failure_of_outfs_itself() {
    let p = Project::new();
    let wrong = [
        &["run", "--no-such-option", "--", "true"][..],
        &["run"],
        &["run", "--policy", "odd", "--", "true"],
        &["--store", "x", "run", "--no-inputs", "--timeout", "soon", "--", "ls", "--no-such-option"],
        &["run", "--env", "CC=gcc", "--", "true"],
    ];
    for args in wrong {
        assert_eq!(p.outfs(args).status.code(), Some(125), "{args:?}");
    }
    assert_eq!(p.outfs(&["run", "--help"]).status.code(), Some(0));
    assert_eq!(p.outfs(&["ls", "--no-such-option"]).status.code(), Some(2));
    assert_eq!(p.outfs(&["--no-such-option"]).status.code(), Some(2));
}

/// S13.14 What a command makes or writes and does not declare is named: not what was there before, nor what git ignores.
#[test]
fn what_is_made_beside_the_outputs_is_named() {
    let p = Project::new();
    p.write("in", "1");
    p.write("there", "");
    p.write("sub/log", "");
    p.write(".gitignore", "ignored\n");
    let script =
        "cp in o; touch in; echo more >> sub/log; touch new ignored; mv new sub/moved; cp -p there kept";
    let undeclared = |options: &[&str]| {
        let task = ["--task", "t", "--lock", "my.lock", "--input", "in", "--output", "o"];
        let ran = p.sh(&[&task, options].concat(), script);
        ran.kept(true).record["undeclared"].clone()
    };
    assert_eq!(undeclared(&[]), serde_json::json!(["kept", "sub/log", "sub/moved"]));
    // What is outfs's own is nobody's output, wherever it lies.
    let mut c = p.command(&["run", "--json", "--no-inputs", "--output", "o", "--", "cp", "in", "o"]);
    c.env("OUTFS_STORE", p.path("a store")).env("XDG_CACHE_HOME", p.path("memory"));
    assert_eq!(crate::project::Ran::of(c).kept(true).record["undeclared"], serde_json::json!([]));
    // Without git files are looked at.
    std::fs::remove_dir_all(p.path(".git")).unwrap();
    let elsewhere = undeclared(&["--param", "git=no"]);
    assert_eq!(elsewhere, serde_json::json!(["ignored", "kept", "sub/log", "sub/moved"]));
}

/// … whether inputs are named by their directories or found by git, and whether the command had a result or not.
#[test]
fn what_is_made_beside_directories_of_inputs_is_named() {
    let p = Project::new();
    p.write("src/a", "1");
    p.write("sub/in", "1");
    let undeclared = |dir: &str, inputs: &[&str], script: &str| {
        let task = ["run", "--json", "--task", "t", "--output", "o"];
        let mut c = p.command(&[&task, inputs, &["--", "sh", "-c", script]].concat());
        c.current_dir(p.path(dir));
        crate::project::Ran::of(c)
    };
    for git in [true, false] {
        let script = "cp src/a o; touch src/a new src.new; mkdir -p sub/src; touch sub/src/new";
        let named = undeclared("", &["--input", "src"], &format!("{script}; : {git}"));
        let beside = serde_json::json!(["new", "src.new", "sub/src/new"]);
        assert_eq!(named.kept(true).record["undeclared"], beside, "{named:#?}");
        // Nobody has looked what came among the inputs of one that failed.
        let failed = undeclared("", &["--input", "src"], "touch src/b beside; exit 3");
        let all = serde_json::json!(["beside", "src/b"]);
        assert_eq!(failed.kept(false).record["undeclared"], all, "{failed:#?}");
        std::fs::remove_file(p.path("src/b")).unwrap();
        if git {
            let found = undeclared("sub", &[], "cp in o; touch in ../above");
            assert_eq!(found.kept(true).record["undeclared"], serde_json::json!(["../above"]), "{found:#?}");
            std::fs::remove_dir_all(p.path(".git")).unwrap();
            std::fs::remove_dir_all(p.path("sub/src")).unwrap();
        }
    }
}

/// … nor only below the working directory, nor only what is new.
#[test]
fn what_is_rewritten_and_what_is_made_above_is_named() {
    let p = Project::new();
    for name in ["tracked", "same", "sub/in", "sub/tracked", "sub/changed before"] {
        p.write(name, "1\n");
    }
    p.git(&["add", "."]);
    p.write("sub/changed before", "2\n");
    p.write("before", "");
    let script = "cp in o; echo 2 > tracked; echo 2 > ../tracked; cp ../same x; mv x ../same; touch ../new";
    let options = ["run", "--json", "--input", "in", "--output", "o", "--", "sh", "-c", script];
    let mut c = p.command(&options);
    c.current_dir(p.path("sub"));
    let ran = crate::project::Ran::of(c);
    assert_eq!(ran.kept(true).record["undeclared"], serde_json::json!(["../new", "../tracked", "tracked"]));
    assert!(!ran.says("../new, ../tracked, tracked").stderr.contains("takes them for inputs"), "{ran:#?}");
}

#[test]
fn a_result_of_inputs_that_changed_meanwhile_is_not_kept() {
    let p = Project::new();
    p.write("in", "1");
    let run = || p.sh(&["--task", "t", "--input", "in", "--output", "o"], "cat in > o; echo 2 > in");
    assert_eq!(run().kept(false).says("the input in changed while").code, 0);
    p.write("in", "1");
    run().is_miss(&["previous_run_incomplete"]);
    let same = p.sh(&["--task", "t", "--input", "in", "--output", "o"], "cat in > o; cp in x; mv x in");
    same.kept(true);
}

/// Everything that runs with this word in its command line.
fn processes(word: &str) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let us = std::process::id() as i32;
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != us && line.windows(word.len()).any(|w| w == word.as_bytes())
    })
    .collect()
}

/// A command that starts others, which do not want to end; one has a session of its own.
pub fn stubborn(mark: &str) -> String {
    format!(
        "trap '' TERM INT HUP; echo started > started; setsid sh -c 'trap \"\" TERM; while :; do sleep 7; done' {mark} & \
         sh -c 'trap \"\" TERM; while :; do sleep 7; done' {mark} & while :; do sleep 7; done"
    )
}

fn started(p: &Project, child: &mut Child) {
    eventually("the command to start", || p.path("started").exists());
    assert!(child.try_wait().unwrap().is_none(), "it runs");
}

pub fn nothing_left(mark: &str) {
    eventually("nothing to be left", || processes(mark).is_empty());
}

#[test]
fn a_time_limit_ends_everything_that_was_started() {
    let p = Project::new();
    let mark = &format!("outfs-test-limit-{}", std::process::id());
    let begun = Instant::now();
    let ran = p.sh(&["--task", "t", "--no-inputs", "--timeout", "300ms"], &stubborn(mark));
    assert_eq!(ran.kept(false).code, 124);
    assert!(begun.elapsed() < SOON + Duration::from_secs(20));
    assert_eq!(processes(mark), Vec::<i32>::new());
    p.sh(&["--task", "t", "--no-inputs", "--timeout", "300ms"], "sleep 60").is_miss(&["first_run"]);
}

/// A command that ends when it is asked, and has started others: in its own process group and in a session of their own, and
/// one of each cleans up.
fn polite(mark: &str) -> String {
    let cleans = |name: &str| {
        // By itself, as nobody asks what it starts then.
        format!(
            "sh -c 'trap \"sleep 1; touch {name}; exit\" TERM; touch {name}-is-there; while :; do sleep 0.05; done' {mark}"
        )
    };
    format!(
        "setsid sh -c 'sleep 4721; :' {mark} & sh -c 'sleep 4723; :' {mark} & {} & setsid {} & \
         while [ ! -e near-is-there -o ! -e far-is-there ]; do sleep 0.01; done; touch started; exec sleep 4722",
        cleans("near"),
        cleans("far")
    )
}

/// S13.7 However a run ends, nothing of its command is left behind: nor what has left the command's process group, and all of it
/// has the grace.
#[test]
fn all_that_was_started_is_asked_and_waited_for() {
    let p = Project::new();
    let mark = &format!("outfs-test-polite-{}", std::process::id());
    let cleaned = || {
        assert_eq!(processes(mark), Vec::<i32>::new());
        for name in ["near", "far", "near-is-there", "far-is-there"] {
            assert!(std::fs::remove_file(p.path(name)).is_ok(), "{name}");
        }
    };
    let ran = p.sh(&["--task", "t", "--no-inputs", "--timeout", "3s"], &polite(mark));
    assert_eq!(ran.kept(false).code, 124);
    cleaned();
    std::fs::remove_file(p.path("started")).unwrap();
    let mut child = p.spawn(&polite(mark));
    started(&p, &mut child);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    cleaned();
    // What is in the background of a shell ignores what comes from the keyboard.
    std::fs::remove_file(p.path("started")).unwrap();
    let mut child = p.spawn(&polite(mark));
    started(&p, &mut child);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    cleaned();
}

impl Project {
    fn spawn(&self, script: &str) -> Child {
        let args = ["run", "--task", "t", "--no-inputs", "--", "sh", "-c", script];
        let mut c = self.command(&args);
        c.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("outfs starts")
    }
}

/// S13.7 However a run ends, nothing of its command is left behind.
#[test]
fn a_killed_outfs_leaves_no_process() {
    let p = Project::new();
    let mark = &format!("outfs-test-killed-{}", std::process::id());
    let mut child = p.spawn(&stubborn(mark));
    started(&p, &mut child);
    eventually("all to start", || processes(mark).len() >= 3);
    child.kill().unwrap();
    child.wait().unwrap();
    nothing_left(mark);
    // And no draft; the store is as good as before.
    assert_eq!(p.sh(&["--task", "u", "--no-inputs"], "echo fine").stdout, "fine\n");
    assert_eq!(p.ok(&["drafts", "--json"]), "");
}

/// The guard of a run.
fn guard_of(child: &Child) -> Pid {
    let parent_of = |pid: i32| -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let us = child.id() as i32;
    let guard = eventually_some("the guard", || {
        processes("guard").into_iter().find(|pid| parent_of(*pid) == Some(us))
    });
    Pid::from_raw(guard)
}

#[test]
fn a_killed_guard_leaves_no_process() {
    let p = Project::new();
    let mark = &format!("outfs-test-guard-{}", std::process::id());
    let mut child = p.spawn(&stubborn(mark));
    started(&p, &mut child);
    eventually("all to start", || processes(mark).len() >= 3);
    kill(guard_of(&child), Signal::SIGKILL).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(137));
    nothing_left(mark);
}

/// … also if only the guard is told to end, and nobody tells it when the grace is over.
#[test]
fn a_guard_that_is_told_to_end_does() {
    let p = Project::new();
    let mark = &format!("outfs-test-told-{}", std::process::id());
    let mut child = p.spawn(&stubborn(mark));
    started(&p, &mut child);
    eventually("all to start", || processes(mark).len() >= 3);
    let (guard, begun) = (guard_of(&child), Instant::now());
    kill(guard, Signal::SIGTERM).unwrap();
    // Told again it passes nothing on, and waits no longer.
    kill(guard, Signal::SIGTERM).unwrap();
    eventually("the run to end", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(137));
    assert!(begun.elapsed() >= Duration::from_secs(9), "there is a grace");
    nothing_left(mark);
}

/// What is asked to end is asked once, however often the guard is: who cleans up is not interrupted.
#[test]
fn nobody_is_asked_twice() {
    let p = Project::new();
    let script =
        "trap 'echo asked >> asked' TERM; trap 'exit 7' INT; touch started; while :; do sleep 0.05; done";
    let mut child = p.spawn(script);
    started(&p, &mut child);
    let guard = guard_of(&child);
    kill(guard, Signal::SIGTERM).unwrap();
    eventually("the command to be asked", || p.path("asked").exists());
    kill(guard, Signal::SIGINT).unwrap();
    kill(guard, Signal::SIGTERM).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "the grace is not over");
    assert_eq!(p.read("asked"), "asked\n");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_interrupt_is_passed_on() {
    let p = Project::new();
    let mark = &format!("outfs-test-interrupt-{}", std::process::id());
    let script =
        format!("trap 'echo told > told; exit 1' INT; touch started; sh -c 'sleep 60' {mark} & wait");
    let mut child = p.spawn(&script);
    started(&p, &mut child);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(p.read("told"), "told\n");
    nothing_left(mark);
    p.sh(&["--task", "t", "--no-inputs"], &script.replace("wait", "kill $!")).is_miss(&["first_run"]);
    // Asked twice, it does not wait for who will not end.
    std::fs::remove_file(p.path("started")).unwrap();
    let mut child = p.spawn(&stubborn(mark));
    started(&p, &mut child);
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(9), "the grace was not waited for");
        std::thread::sleep(Duration::from_millis(20));
    }
    nothing_left(mark);
}

#[test]
fn a_run_killed_at_any_moment_is_no_wrong_hit() {
    let p = Project::new();
    let mark = &format!("outfs-test-moments-{}", std::process::id());
    let script = format!(
        "setsid sh -c 'while :; do sleep 0.1; done' {mark} & S=$!; sh -c 'sleep 60' {mark} & mkdir o; cat in in > o/twice; \
         head -c 400000 /dev/zero > o/large; cat in >> o/large; kill $S"
    );
    let command = ["run", "--task", "t", "--input", "in", "--output", "o", "--", "sh", "-c", &script, mark];
    for round in 0..40u64 {
        let content = format!("{}\n", round % 7);
        p.write("in", &content);
        let mut child =
            p.command(&command).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("outfs starts");
        // From before the command starts until after the result is kept.
        std::thread::sleep(Duration::from_millis(round * 7 % 280));
        let _ = child.kill();
        child.wait().unwrap();
        nothing_left(mark);
        assert!(p.outfs(&command).status.success());
        assert_eq!(p.read("o/twice"), [&content[..], &content[..]].concat(), "round {round}");
        assert!(p.read("o/large").ends_with(&content), "round {round}");
        if round % 2 == 0 {
            std::fs::remove_dir_all(p.path("o")).unwrap();
        }
    }
    assert_eq!(p.ok(&["drafts", "--json"]), "");
}

/// S13.7 However a run ends, nothing of its command is left behind.
#[test]
fn a_time_limit_holds_while_nobody_reads_the_output() {
    let p = Project::new();
    let mark = &format!("outfs-test-unread-{}", std::process::id());
    let script = format!("touch started; exec sh -c 'while :; do echo {mark} {mark} {mark}; done'");
    let args = ["run", "--no-inputs", "--timeout", "300ms", "--", "sh", "-c", &script];
    let mut child = p.command(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the command to start", || p.path("started").exists());
    eventually("the command to be ended", || {
        processes(mark).is_empty() || processes(mark) == [child.id() as i32]
    });
    assert!(child.try_wait().unwrap().is_none(), "its output is not read yet");
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(124));
}

/// Signals end a run at once while its result is stored, and nothing of that is kept.
#[test]
fn a_signal_while_the_result_is_stored_ends_the_run() {
    let p = Project::new();
    let args =
        ["run", "--task", "t", "--no-inputs", "--output", "o", "--", "sh", "-c", "touch started; echo 1 > o"];
    let mut first = p.command(&args);
    assert!(first.output().unwrap().status.success());
    std::fs::remove_file(p.path("started")).unwrap();
    // Whoever keeps the store's lock has the run wait when it wants to store.
    let lock = std::fs::File::open(p.store.join("lock")).unwrap();
    let args = [
        "run",
        "--policy",
        "writeonly",
        "--task",
        "t",
        "--no-inputs",
        "--output",
        "o",
        "--",
        "sh",
        "-c",
        "touch started; while [ ! -e go ]; do sleep 0.01; done; echo 2 > o",
    ];
    let mut child = p.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    started(&p, &mut child);
    eventually("the store to be free", || lock.try_lock().is_ok());
    p.write("go", "");
    eventually("the output to be made", || p.path("o").exists() && p.read("o") == "2\n");
    eventually("the run to end", || {
        // Until the command has ended a signal is for that, and asks it in vain to end.
        let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGHUP);
        child.try_wait().unwrap().is_some()
    });
    assert!(!child.wait().unwrap().success(), "it did not wait for the store");
    drop(lock);
    assert_eq!(p.ok(&["fsck"]).lines().filter(|l| l.contains("damage")).count(), 0);
}

#[test]
fn a_record_has_a_line_of_its_own() {
    let p = Project::new();
    let json = |options: &[&str], command: &[&str]| {
        let out = p.outfs(&[&["run", "--json"], options, &["--"], command].concat());
        let text = String::from_utf8(out.stdout).unwrap();
        let record: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        (out.status.code().unwrap(), record, text.lines().count())
    };
    assert_eq!(json(&["--no-inputs"], &["printf", "foo"]).2, 2);
    assert_eq!(json(&["--no-inputs"], &["printf", "foo"]).2, 2, "a hit, too");
    assert_eq!(json(&["--no-inputs"], &["echo", "foo"]).2, 2);
    let (code, record, _) = json(&["--no-inputs"], &["no-such-program"]);
    assert_eq!((code, &record["exit_code"]), (127, &127.into()));
    let (code, record, _) = json(&["--input", "nothing"], &["true"]);
    assert_eq!((code, &record["exit_code"]), (125, &125.into()));
    assert!(record["error"].as_str().unwrap().contains("nothing does not exist"), "{record}");
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let p = Project::new();
    for _ in 0..2 {
        let mut c = p.command(&["run", "--no-inputs", "--", "echo", "foo"]);
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let out = c.stdout(full).output().unwrap();
        assert_eq!(out.status.code(), Some(125));
        assert!(String::from_utf8_lossy(&out.stderr).contains("the output is lost"), "{out:?}");
    }
    // Also of what does not end with a line.
    let ran = p.run(&["--no-inputs"], &["printf", "foo"]);
    for args in [&["cat", ran.key(), "logs/stdout.log"][..], &["logs", ran.key()]] {
        assert_eq!(p.ok(args), "foo");
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let out = p.command(args).stdout(full).output().unwrap();
        assert_eq!(out.status.code(), Some(1), "{args:?}: {out:?}");
    }
}

/// The exit code is the command's whoever reads the record, and whether it can be written.
#[test]
fn a_record_that_nobody_reads_changes_no_exit_code() {
    let p = Project::new();
    let ended = |options: &[&str], script: &str, to: Stdio| {
        let command = ["--no-inputs", "--", "sh", "-c", script];
        let mut c = p.command(&[&["run", "--json"], options, &command].concat());
        let mut child = c.stdout(to).stderr(Stdio::null()).spawn().unwrap();
        drop(child.stdout.take());
        child.wait().unwrap().code()
    };
    let full = || Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    assert_eq!(ended(&[], "exit 3", Stdio::piped()), Some(3));
    assert_eq!(ended(&[], "exit 0", Stdio::piped()), Some(0));
    assert_eq!(ended(&[], "exit 3", full()), Some(3));
    assert_eq!(ended(&[], "exit 0", full()), Some(125));
    assert_eq!(ended(&["--dry-run"], "exit 0", full()), Some(125));
}

/// S13.7 When a command has ended by itself, what it left in groups of their own ends, too; what has a session of its own lives on.
#[test]
fn what_left_the_group_and_not_the_session_ends_with_the_command() {
    need("bash");
    let p = Project::new();
    let mark = &format!("outfs-test-groups-{}", std::process::id());
    let script = format!(
        "set -m; sh -c 'sleep 4741; :' {mark}-group & timeout 600 sh -c 'sleep 4742; :' {mark}-group & \
         setsid sh -c 'touch led; sleep 4743; :' {mark}-session & while [ ! -e led ]; do sleep 0.01; done; exit 0"
    );
    assert_eq!(p.run(&["--task", "t", "--no-inputs"], &["bash", "-c", &script]).code, 0);
    assert_eq!(processes(&format!("{mark}-group")), Vec::<i32>::new());
    let led = processes(&format!("{mark}-session"));
    assert!(!led.is_empty());
    for pid in led {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
}
