//! How runs end: exit codes, time limits, signals, deaths; and that nothing is left behind.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{SOON, eventually, eventually_some};
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
/// no input changed meanwhile.
#[test]
fn a_missing_output_is_an_error() {
    let p = Project::new();
    let run =
        |script: &str| p.sh(&["--task", "t", "--no-inputs", "--output", "a", "--output", "b/c"], script);
    let missing = run("touch a");
    assert_eq!(missing.kept(false).says("the declared output b/c is missing").code, 125);
    run("touch a").is_miss(&["previous_run_incomplete"]);
    let undeclared = run("touch a; mkdir b; touch b/c b/d");
    assert_eq!(undeclared.kept(true).record["undeclared"], serde_json::json!(["b/d"]));
    undeclared.says("not declared as outputs");
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

#[test]
fn a_killed_guard_leaves_no_process() {
    let p = Project::new();
    let mark = &format!("outfs-test-guard-{}", std::process::id());
    let mut child = p.spawn(&stubborn(mark));
    started(&p, &mut child);
    eventually("all to start", || processes(mark).len() >= 3);
    let parent_of = |pid: i32| -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let us = child.id() as i32;
    let guard = eventually_some("the guard", || {
        processes("guard").into_iter().find(|pid| parent_of(*pid) == Some(us))
    });
    kill(Pid::from_raw(guard), Signal::SIGKILL).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(137));
    nothing_left(mark);
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
        "sh -c 'sleep 60' {mark} & mkdir o; cat in in > o/twice; head -c 400000 /dev/zero > o/large; cat in >> o/large"
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
