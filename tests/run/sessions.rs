//! Runs that leave nothing, and results that go with a session.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::common::{Mount, eventually, eventually_some, need};
use crate::project::{Project, Ran, said, tree};

/// `outfs run --ephemeral` of a task `a` that makes `o`.
const MAKE_A: &[&str] = &[
    "run",
    "--json",
    "--ephemeral",
    "--task",
    "a",
    "--no-inputs",
    "--output",
    "o",
    "--",
    "sh",
    "-c",
    "echo 1 > o",
];
/// A task that starts from it.
const FROM_A: &[&str] = &[
    "run",
    "--json",
    "--task",
    "b",
    "--no-inputs",
    "--base",
    "a",
    "--output",
    "o",
    "--",
    "sh",
    "-c",
    "echo 2 >> o",
];

impl Project {
    fn entries(&self) -> Vec<String> {
        self.ok(&["ls"]).lines().map(str::to_owned).collect()
    }

    fn in_session(&self, id: &str, args: &[&str]) -> Ran {
        let mut c = self.command(args);
        c.env("OUTFS_SESSION", id);
        Ran::of(c)
    }

    /// A process that lives until it is killed.
    fn process() -> std::process::Child {
        Command::new("sleep").arg("600").spawn().expect("sleep starts")
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn an_uncached_run_leaves_nothing_behind() {
    let p = Project::new();
    let run = || p.sh(&["--task", "t", "--no-inputs", "--output", "o", "--policy", "disabled"], "echo 1 > o");
    assert_eq!(run().code, 0);
    assert!(!p.store.exists());
    p.sh(&["--task", "t", "--no-inputs", "--output", "o"], "echo 1 > o").kept(true);
    let before = tree(&p.store);
    assert_eq!(run().record["result"], "uncached");
    assert!(tree(&p.store) == before, "the store is as it was");
}

/// S13.12 An ephemeral result is there for the runs of its session, for nobody else, and no longer than the session.
#[test]
fn a_session_has_its_results_until_it_ends() {
    let p = Project::new();
    let quoted = |args: &[&str]| args.iter().map(|a| format!("'{a}' ")).collect::<String>();
    let script = format!(
        "set -e; outfs() {{ {} \"$@\"; }}; outfs {}; cat o > ../first; outfs {}; outfs ls > ../during",
        env!("CARGO_BIN_EXE_outfs"),
        quoted(MAKE_A),
        quoted(FROM_A)
    );
    let out = p.outfs(&["session", "--", "sh", "-c", &script]);
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(fs::read_to_string(p.dir.path().join("first")).unwrap(), "1\n");
    assert_eq!(p.read("o"), "1\n2\n", "it started from what was made before");
    let during = fs::read_to_string(p.dir.path().join("during")).unwrap();
    assert_eq!(during.lines().filter(|l| l.contains("session-")).count(), 1, "{during}");
    let left = p.entries();
    assert_eq!(left.len(), 1, "what was not ephemeral stays: {left:?}");
    assert!(!left[0].contains("session-"), "{left:?}");
    assert!(is_empty(&p.store.join("sessions")));
    // Its exit code is the command's.
    assert_eq!(p.outfs(&["session", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(p.outfs(&["session", "--", "no-such-program"]).status.code(), Some(127));
    // Also where its end cannot be told to anybody.
    let out = p.outfs(&["session", "--", "sh", "-c", "rm -r \"$OUTFS_STORE\"; exit 7"]);
    assert_eq!(out.status.code(), Some(7));
    assert!(said(&out).contains("the end of the session"), "{}", said(&out));
}

#[test]
fn nobody_else_is_offered_it() {
    let p = Project::new();
    let mut process = Project::process();
    let pid = process.id().to_string();
    let id = p.ok(&["session", "--pid", &pid]).trim().to_owned();
    let other = p.ok(&["session", "--pid", &pid]).trim().to_owned();
    let made = p.in_session(&id, MAKE_A);
    assert_eq!(
        (&made.record["result"], &made.record["kept"]),
        (&"uncached".into(), &true.into()),
        "{made:#?}"
    );
    assert_eq!(p.in_session(&id, MAKE_A).record["result"], "uncached", "it is run each time");
    assert_eq!(p.entries(), [made.key()]);
    for refused in [p.in_session(&other, FROM_A), Ran::of(p.command(FROM_A))] {
        assert_eq!(refused.code, 125, "{refused:#?}");
        refused.says("of another session");
    }
    p.sh(&["--task", "a", "--no-inputs", "--output", "o"], "echo 1 > o").is_miss(&["first_run"]);
    p.in_session(&id, MAKE_A);
    p.in_session(&id, FROM_A).kept(true);
    p.ok(&["session", "--end", &id]);
    assert_eq!(p.entries().iter().filter(|key| key.contains("session-")).count(), 0);
    let late = p.in_session(&id, MAKE_A);
    assert_eq!((late.code, late.record["kept"].as_bool()), (0, Some(false)), "the task itself is run");
    late.says("has ended");
    assert_eq!(Ran::of(p.command(MAKE_A)).code, 125, "without a session");
    process.kill().unwrap();
    process.wait().unwrap();
}

/// S13.12 … however that ends.
#[test]
fn a_killed_session_is_swept() {
    let p = Project::new();
    let script = format!(
        "{} {} 'echo 1 > o' > /dev/null; touch ../made; exec sleep 600",
        env!("CARGO_BIN_EXE_outfs"),
        MAKE_A[..MAKE_A.len() - 1].join(" ")
    );
    let mut c = p.command(&["session", "--", "sh", "-c", &script]);
    let mut session = c.stdout(Stdio::null()).spawn().unwrap();
    eventually("the result", || p.dir.path().join("made").exists());
    assert_eq!(p.entries().len(), 1);
    session.kill().unwrap();
    session.wait().unwrap();
    assert_eq!(p.entries(), Vec::<String>::new(), "the next start sweeps");
    assert!(is_empty(&p.store.join("sessions")));
}

/// A session whose command is this script, and the number of a process that it has started once there is one in `../pid`.
fn with_a_process(p: &Project, script: &str) -> (std::process::Child, String) {
    let mut c = p.command(&["session", "--", "sh", "-c", script]);
    let session = c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = eventually_some("the process", || fs::read_to_string(p.dir.path().join("pid")).ok());
    (session, pid.trim().to_owned())
}

/// Whoever adopts it may never ask how.
fn has_ended(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

const NAMED: &str = "echo $$ > ../pid.new; mv ../pid.new ../pid; exec sleep 600";

/// A session that is killed leaves nothing of its command: neither its runs nor what has a session of its own. Nor does one whose
/// process between is killed.
#[test]
fn a_killed_session_leaves_no_process() {
    let p = Project::new();
    let run = format!("{} run --task a --no-inputs -- sh -c '{NAMED}'; :", env!("CARGO_BIN_EXE_outfs"));
    for (script, kills_the_other) in
        [(run, false), (format!("setsid sh -c '{NAMED}'; :"), false), (format!("sh -c '{NAMED}'; :"), true)]
    {
        let (mut session, pid) = with_a_process(&p, &script);
        let between = fs::read_to_string(format!("/proc/{0}/task/{0}/children", session.id())).unwrap();
        let between = nix::unistd::Pid::from_raw(between.trim().parse().unwrap());
        match kills_the_other {
            true => nix::sys::signal::kill(between, nix::sys::signal::Signal::SIGKILL).unwrap(),
            false => session.kill().unwrap(),
        }
        let status = session.wait().unwrap();
        assert!(!status.success());
        eventually("the process to end", || has_ended(&pid));
        eventually("the one between to end", || has_ended(&between.to_string()));
        fs::remove_file(p.dir.path().join("pid")).unwrap();
    }
}

/// What asks a session alone to end is told to its command, also what could come from a keyboard.
#[test]
fn a_session_that_is_interrupted_tells_its_command() {
    let p = Project::new();
    for (signal, code) in [(Signal::SIGINT, 3), (Signal::SIGQUIT, 4), (Signal::SIGTERM, 5)] {
        let script = "trap 'exit 3' INT; trap 'exit 4' QUIT; trap 'exit 5' TERM; \
            echo $$ > ../pid.new; mv ../pid.new ../pid; while :; do sleep 0.05; done";
        let (mut session, _) = with_a_process(&p, script);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(session.id() as i32), signal).unwrap();
        let status = eventually_some("the session to end", || session.try_wait().unwrap());
        assert_eq!(status.code(), Some(code), "{signal}");
        fs::remove_file(p.dir.path().join("pid")).unwrap();
    }
}

/// What comes from a keyboard comes from the terminal, and no second time from the session.
#[test]
fn a_keyboard_interrupts_once() {
    need("script");
    let p = Project::new();
    let trap = "trap 'echo >> ../told' INT; trap 'echo done >> ../told; exit' TERM; \
        echo $PPID > ../pid.new; mv ../pid.new ../pid; while :; do sleep 0.05; done";
    fs::write(p.path("trap"), trap).unwrap();
    let mut c = Command::new("script");
    c.args(["-qefc", &format!("{} session -- sh trap", env!("CARGO_BIN_EXE_outfs")), "/dev/null"]);
    c.current_dir(&p.cwd).env("OUTFS_STORE", &p.store).env("XDG_CACHE_HOME", p.dir.path().join("memory"));
    let mut terminal = c.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let told = || fs::read_to_string(p.dir.path().join("told")).unwrap_or_default();
    let pid = eventually_some("the command", || fs::read_to_string(p.dir.path().join("pid")).ok());
    std::io::Write::write_all(terminal.stdin.as_mut().unwrap(), b"\x03").unwrap();
    eventually("the interrupt", || !told().is_empty());
    // Whoever was to pass it on has done so before this.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGTERM).unwrap();
    eventually("the terminal to end", || terminal.try_wait().unwrap().is_some());
    assert_eq!(told(), "\ndone\n");
}

/// A session that is asked to end leaves no run behind: the shell that waited for it is gone.
#[test]
fn a_session_that_is_asked_to_end_ends_its_runs() {
    let p = Project::new();
    let script = format!(
        "{} run --task a --no-inputs --output o -- sh -c 'echo $$ > ../pid.new; mv ../pid.new ../pid; exec sleep 600'; :",
        env!("CARGO_BIN_EXE_outfs")
    );
    let mut session =
        p.command(&["session", "--", "sh", "-c", &script]).stdout(Stdio::null()).spawn().unwrap();
    let pid = eventually_some("the command", || fs::read_to_string(p.dir.path().join("pid")).ok());
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(session.id() as i32),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert!(!session.wait().unwrap().success());
    eventually("the command to end", || !Path::new("/proc").join(pid.trim()).exists());
    assert_eq!(p.ok(&["drafts", "--json"]), "");
}

/// A result whose session nobody knows any more goes when the store is opened; what merely has such a name does not.
#[test]
fn a_forgotten_session_is_swept() {
    let p = Project::new();
    let mut process = Project::process();
    let id = p.ok(&["session", "--pid", &process.id().to_string()]).trim().to_owned();
    p.in_session(&id, MAKE_A).kept(true);
    let named = format!("session/{id}/b");
    let other = p.sh(&["--task", &named, "--no-inputs"], "true").key().to_owned();
    assert_eq!(p.entries().len(), 2);
    fs::remove_file(p.store.join("sessions").join(&id)).unwrap();
    assert_eq!(p.entries(), [other]);
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn a_daemon_notices_that_a_process_is_gone() {
    let m = Mount::new();
    let mut p = Project::new();
    p.store = m.store().to_owned();
    let mut process = Project::process();
    let id = p.ok(&["session", "--pid", &process.id().to_string()]).trim().to_owned();
    p.in_session(&id, MAKE_A).kept(true);
    assert_eq!(p.entries().len(), 1);
    process.kill().unwrap();
    process.wait().unwrap();
    eventually("its result to go", || p.entries().is_empty() && is_empty(&p.store.join("sessions")));
    assert_eq!(p.outfs(&["session", "--pid", &process.id().to_string()]).status.code(), Some(2));
}
