//! Tests of running commands, without a guard (which is a program: `tests/run` has it).

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use super::capture::Writers;
use super::exec::{End, Outcome, Plan, execute};

struct Run {
    outcome: Outcome,
    live: (Vec<u8>, Vec<u8>),
}

type Env = [(OsString, Option<OsString>)];

fn run_with(argv: &[&str], env: &Env, change: impl FnOnce(&mut Plan<'_>)) -> Run {
    let argv: Vec<OsString> = argv.iter().map(Into::into).collect();
    let mut plan = Plan {
        argv: &argv,
        cwd: Path::new("/"),
        env,
        bare: false,
        guard: &[],
        hold: &[],
        inner: false,
        timeout: None,
        grace: Duration::from_millis(200),
    };
    change(&mut plan);
    let mut live = Writers(Vec::new(), Vec::new());
    let outcome = execute(&plan, &mut live).unwrap();
    Run { outcome, live: (live.0, live.1) }
}

fn sh(script: &str) -> Run {
    run_with(&["sh", "-c", script], &[], |_| {})
}

#[test]
fn both_outputs_go_through_and_are_kept() {
    let run = sh("echo one; echo two >&2; pwd; cat; exit 3");
    assert_eq!(run.outcome.end, End::Exited(3));
    assert_eq!((&run.outcome.stdout[..], &run.outcome.stderr[..]), (&b"one\n/\n"[..], &b"two\n"[..]));
    assert_eq!((run.live.0, run.live.1), (run.outcome.stdout, run.outcome.stderr));
    let big = sh("head -c 3000000 /dev/zero; head -c 100000 /dev/zero >&2");
    assert_eq!((big.outcome.stdout.len(), big.outcome.stderr.len()), (3_000_000, 100_000));
}

#[test]
fn the_environment_is_what_was_said() {
    let set = [("A".into(), Some("1".into())), ("HOME".into(), None)];
    let run = run_with(&["sh", "-c", "echo $A${HOME-none}"], &set, |_| {});
    assert_eq!(run.outcome.stdout, b"1none\n");
}

#[test]
fn exit_codes_are_those_of_a_shell() {
    assert_eq!(sh("kill -9 $$").outcome.end, End::Exited(137));
    assert_eq!(run_with(&["/nonexistent/program"], &[], |_| {}).outcome.end, End::Exited(127));
    let not = run_with(&["/etc/passwd"], &[], |_| {});
    assert_eq!(not.outcome.end, End::Exited(126));
    assert!(String::from_utf8_lossy(&not.live.1).contains("/etc/passwd"));
    assert_eq!((End::TimedOut.code(), End::Interrupted(2).code()), (124, 130));
}

/// Is anybody left in the process group whose leader wrote its number first?
fn is_gone(stdout: &[u8]) -> bool {
    let pid: i32 = String::from_utf8_lossy(stdout).lines().next().unwrap().parse().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), None).is_ok() {
        if Instant::now() > end {
            return false;
        }
    }
    true
}

#[test]
fn a_timeout_ends_the_whole_group() {
    let limit = |p: &mut Plan<'_>| p.timeout = Some(Duration::from_millis(300));
    let polite =
        run_with(&["sh", "-c", "echo $$; trap 'echo bye; exit 1' TERM; sleep 60 & wait"], &[], limit);
    assert_eq!(polite.outcome.end, End::TimedOut);
    assert!(polite.outcome.stdout.ends_with(b"bye\n"), "it was asked first");
    assert!(is_gone(&polite.outcome.stdout));
    let deaf =
        run_with(&["sh", "-c", "echo $$; trap '' TERM; sleep 60 & while :; do sleep 1; done"], &[], limit);
    assert_eq!(deaf.outcome.end, End::TimedOut);
    assert!(is_gone(&deaf.outcome.stdout));
    assert!(deaf.outcome.duration < Duration::from_secs(15), "{:?}", deaf.outcome.duration);
}

#[test]
fn what_is_left_in_the_background_is_ended_and_not_waited_for() {
    let run = sh("echo $$; sleep 60 & exit 0");
    assert_eq!(run.outcome.end, End::Exited(0));
    assert!(run.outcome.duration < Duration::from_secs(15), "{:?}", run.outcome.duration);
    assert!(is_gone(&run.outcome.stdout));
}
