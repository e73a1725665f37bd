//! What fails beside the command: stores, outputs that cannot be kept, what dead runs have left. The task runs all the same.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use crate::common::{Mount, eventually, files_below, need};
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
    eventually("the command to start", || p.path("started").exists());
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

/// What a killed run has left of an output is nobody's input, and goes when outputs are placed there again.
#[test]
fn unfinished_outputs_of_the_dead_are_no_inputs_and_go() {
    let p = Project::new();
    let run = || p.sh(&["--task", "t", "--output", "o"], "echo 1 > o");
    run().kept(true);
    // No process has such a number.
    let left = ".outfs-4194999-7.tmp";
    p.write(left, "half");
    run().is_hit();
    assert!(p.path(left).exists(), "nothing was placed");
    fs::remove_file(p.path("o")).unwrap();
    let alive = format!(".outfs-{}-7.tmp", std::process::id());
    p.write(&alive, "half");
    let hit = run();
    assert_eq!(hit.is_hit().record["inputs"], run().record["inputs"]);
    assert!(!p.path(left).exists() && p.path(&alive).exists());
}

/// What a run has found damaged is stored anew, without a daemon, too.
#[test]
fn damaged_content_heals_without_a_daemon() {
    let p = Project::new();
    let run = || p.sh(&["--task", "t", "--no-inputs", "--output", "o"], "echo said; seq 1000 | tee o");
    let needles = [&b"\n500\n501\n"[..], b"said\n1\n"];
    for (needle, looks) in needles.iter().flat_map(|needle| [(*needle, false), (*needle, true)]) {
        run();
        run().is_hit();
        let mut flipped = false;
        for path in files_below(&p.store) {
            let mut bytes = fs::read(&path).unwrap();
            for at in 0..bytes.len().saturating_sub(needle.len()) {
                if &bytes[at..at + needle.len()] == needle {
                    bytes[at + 2] ^= 1;
                    flipped = true;
                }
            }
            fs::write(&path, bytes).unwrap();
        }
        assert!(flipped, "the content lies in the store as it is");
        fs::remove_file(p.path("o")).unwrap();
        // What a command logs looks like what it says.
        if looks {
            let key = p.ok(&["ls"]).trim().to_owned();
            let restored = p.dir.path().join("restored");
            let look = [&["restore", &key, restored.to_str().unwrap()][..], &["logs", &key]];
            let told = look.map(|args| p.outfs(args).stderr).concat();
            let told = String::from_utf8_lossy(&told);
            assert!(told.lines().any(|line| line.starts_with("outfs: error: damaged: ")), "{told}");
            assert!(told.lines().all(|line| line.starts_with("outfs: ")), "{told}");
        }
        let ran = run();
        ran.is_miss(&["output_missing"]).kept(true).says("has lost content");
        assert!(ran.stderr.lines().all(|line| line.starts_with("outfs: ")), "{ran:#?}");
        assert!(!ran.stderr.contains("error: damaged"), "it is said once: {ran:#?}");
        fs::remove_file(p.path("o")).unwrap();
        run().is_hit();
    }
}

#[test]
fn a_daemon_may_be_replaced_during_a_run() {
    let mut m = Mount::new();
    let mut p = Project::new();
    p.store = m.store().to_owned();
    let script = "touch started; while [ ! -e go ]; do sleep 0.01; done; echo 1 > o";
    let args = ["run", "--json", "--task", "t", "--no-inputs", "--output", "o", "--", "sh", "-c", script];
    for again in [true, false] {
        let args = if again { args.to_vec() } else { [&["run", "--force"], &args[1..]].concat() };
        let mut c = p.command(&args);
        let child = c.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("the command to start", || p.path("started").exists());
        m.terminate();
        if again {
            m.start();
        }
        p.write("go", "");
        let ran = Ran::ended(child.wait_with_output().unwrap());
        assert_eq!(ran.kept(true).code, 0);
        fs::remove_file(p.path("started")).unwrap();
        fs::remove_file(p.path("go")).unwrap();
    }
    m.start();
}

#[test]
fn what_went_wrong_is_said() {
    let p = Project::new();
    let task = ["--task", "t", "--no-inputs"];
    let limited = p.sh(&[&task[..], &["--timeout", "100ms"]].concat(), "sleep 60");
    assert_eq!(limited.says("timed out after 100ms; nothing is kept").code, 124);
    p.sh(&task, "exit 3").says("exit code 3; nothing is kept");
    let killed = p.sh(&task, "kill -9 $$");
    assert_eq!(killed.says("exit code 137, as after SIGKILL; nothing is kept").code, 137);
    let tool = p.sh(&[&task[..], &["--tool", "no-such-tool"]].concat(), "true");
    assert_eq!(tool.says("--tool no-such-tool: not found").code, 125);
    // A task that fails now has no result to be compared.
    p.write("good", "");
    let flaky = |options: &[&str]| p.sh(&[&task, options].concat(), "[ -e good ]");
    flaky(&[]).kept(true);
    fs::remove_file(p.path("good")).unwrap();
    let verified = flaky(&["--verify"]);
    assert_eq!(verified.says("exit code 1").code, 1);
    assert_eq!(verified.record["differs"], serde_json::json!(["no result: exit code 1"]));
    // Readonly writes nothing.
    p.sh(&[&task[..], &["--policy", "readonly", "--lock", "l"]].concat(), "true");
    assert!(!p.path("l").exists());
}

/// S13.6 … as they are where nothing had to be given back yet: the task goes on, and it is said once.
#[test]
fn reflinks_that_cannot_be_are_copies() {
    need("cp");
    let p = Project::large();
    let run = |options: &[&str]| {
        let named = ["--task", "t", "--no-inputs", "--output", "o"];
        p.sh(&[&named, options].concat(), "head -c 3000000 /dev/zero > o")
    };
    run(&["--as", "reflink"]).kept(true);
    let reflink = |to: &str| {
        let mut cp = std::process::Command::new("cp");
        cp.args(["--reflink=always", "o", to]).current_dir(&p.cwd).output().unwrap().status.success()
    };
    let can = reflink("p");
    fs::remove_file(p.path("o")).unwrap();
    let ran = run(&["--as", "reflink"]);
    let said = ran.is_hit().stderr.matches("warning: the outputs are copied: cannot reflink").count();
    assert_eq!(
        (said, ran.record["warnings"].as_array().unwrap().len()),
        (usize::from(!can), said),
        "{ran:#?}"
    );
    assert!(fs::read(p.path("o")).unwrap() == vec![0; 3_000_000]);
    assert!(!ran.stderr.contains("the cache fails"), "{ran:#?}");
}

#[test]
fn a_comparison_says_in_which_place_a_task_was_run() {
    let p = Project::new();
    fs::create_dir(p.path("sub")).unwrap();
    let run = |dir: &str| {
        let mut c = p.command(&["run", "--json", "--task", "t", "--no-inputs", "--", "true"]);
        c.current_dir(p.path(dir));
        Ran::of(c).key().to_owned()
    };
    let (top, sub) = (run("."), run("sub"));
    let said = p.ok(&["diff", &top, &sub]);
    assert!(said.contains("directory . -> directory sub"), "{said}");
}

#[test]
fn why_knows_of_tasks_whose_results_are_gone_or_never_were() {
    let p = Project::new();
    let task = ["--task", "gone", "--no-inputs"];
    let key = p.sh(&task, "true").key().to_owned();
    p.sh(&["--task", "never", "--no-inputs"], "exit 3");
    p.ok(&["evict", &key]);
    assert!(p.ok(&["why", "gone"]).contains("evicted at"));
    assert!(p.ok(&["why", "never"]).contains("exit code 3"));
    assert_eq!(p.outfs(&["why", "nobody"]).status.code(), Some(3));
}

#[test]
fn verifying_tells_of_other_logs() {
    let p = Project::new();
    let run = |options: &[&str]| p.sh(&[&["--task", "t", "--no-inputs"], options].concat(), "echo $PPID");
    run(&[]).kept(true);
    let verified = run(&["--verify"]);
    assert_eq!(verified.says("printed on standard output is not what was kept").code, 0);
    assert_eq!(verified.record["differs"], serde_json::json!([]));
}

/// A daemon dies that shows a command what another run made. What one that does not mind makes of the rest is no result.
#[test]
fn what_was_lost_to_a_command_while_it_ran_is_no_result() {
    need("bwrap");
    let mut m = Mount::new();
    let mut p = Project::new();
    p.store = m.store().to_owned();
    let one = |options: &[&str]| {
        let task = ["--task", "one", "--no-inputs", "--output", "o"];
        p.sh(&[&task, options].concat(), "mkdir o; echo 1 > o/f")
    };
    one(&[]).kept(true);
    one(&["--as", "link"]).is_hit();
    let ways: [(&str, &[&str]); 3] = [
        ("g/o/f", &["--no-inputs", "--from", "g=one", "--sandbox", "bwrap"]),
        ("o/f", &["--no-inputs", "--after", "one"]),
        ("o/f", &["--input", "o"]),
    ];
    for (n, (path, options)) in ways.into_iter().enumerate() {
        let script = format!(
            "if [ \"$USER\" = waits ]; then echo go >&2; while stat -f {path} > /dev/null 2>&1; do sleep 0.01; done; fi; \
             cat {path} > r; true"
        );
        let task = format!("t{n}");
        let args = ["run", "--json", "--task", &task, "--output", "r"];
        let args = [&args[..], options, &["--", "sh", "-c", &script]].concat();
        let mut c = p.command(&args);
        // A variable that everybody has and that does not count.
        let mut child = c.env("USER", "waits").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("go\n") {
            assert!(stderr.read_line(&mut said).unwrap() > 0, "{said}");
        }
        m.kill9();
        stderr.read_to_string(&mut said).unwrap();
        let ran = Ran::ended(child.wait_with_output().unwrap());
        assert_eq!(ran.kept(false).code, 0, "{said}");
        let why = "the command has no result: the daemon that showed it what other tasks made has died";
        assert!(said.contains(why), "{options:?}: {said}");
        m.start();
        let again = Ran::of(p.command(&args));
        assert_eq!((again.key(), &again.record["result"]), (ran.key(), &"miss".into()), "{again:#?}");
        again.kept(true);
        assert_eq!(p.read("r"), "1\n");
    }
}

/// Who only reads is told what a store has to be for that.
#[test]
fn a_store_that_only_reading_cannot_open_says_why() {
    let p = Project::new();
    fs::create_dir(&p.store).unwrap();
    fs::write(p.store.join("format"), "none").unwrap();
    let go = |policy: &str| p.run(&["--no-inputs", "--policy", policy], &["true"]);
    let also = "(with --policy readonly, too, a store has to be this user's, and writable";
    assert_eq!(go("readonly").says("the cache fails").says(also).code, 0);
    assert!(!go("normal").says("the cache fails").stderr.contains(also));
}
