//! The process between outfs and a command: it sees to it that nothing of the command is left behind.
//!
//! Purpose: outfs may be killed at any time, and a command may start what it likes. The guard is the
//! command's parent and adopts what the command leaves (a subreaper); it ends all of it when its
//! standard input ends, which happens when outfs says so or is no more. Invariants: the command has
//! a process group of its own; what is left of that, and of the session, when the command has ended by itself is killed; when the command was asked to
//! end, so is all that it has started, once, and the guard ends after all of it or when the grace is over, whoever asked;
//! no signal is sent to a number that may be somebody else's by now; the guard's exit
//! code is the command's, as a shell says it. Must not know: what is run, or why.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::kin::{children_of, descendants, first_of_groups, of_own_session};
use super::signals::Signals;

/// The variable that names descriptors which only the guard is to have.
const HOLDS: &str = "OUTFS_GUARD_HOLDS";
/// What the guard inside a sandbox says of a program that is not there, behind its path.
pub const NOT_HERE: &str = " is not here";
/// How long what was killed may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Where a guard stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Post {
    /// Around a command.
    Command,
    /// Around a sandbox that has another guard inside: signals are for that one.
    Sandbox,
    /// The first process inside a sandbox, which the one around it ends: standard input says nothing.
    Inside,
}

/// The words that have a guard look after the command behind them: `guard` is how one is started; without one of what it `needs` it
/// does not start the command.
pub(super) fn words(guard: &[OsString], post: Post, grace: Duration, needs: &[PathBuf]) -> Vec<OsString> {
    let post = match post {
        Post::Command => None,
        Post::Sandbox => Some("--sandbox"),
        Post::Inside => Some("--inside"),
    };
    let grace = format!("{}ms", grace.as_millis());
    let options = post.into_iter().chain(["--grace", &grace]).map(OsString::from);
    let needs = needs.iter().flat_map(|path| ["--needs".into(), path.clone().into()]);
    guard.iter().cloned().chain(options).chain(needs).chain(["--".into()]).collect()
}

/// A command that cannot be started, as shells say it: 127 not found, 126 anything else.
pub fn not_started(e: &io::Error) -> u8 {
    if e.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}

/// Runs a command and looks after it; its exit code, and why it could not be run if so. What was asked to end has the grace.
pub fn guard(argv: &[OsString], post: Post, grace: Duration) -> (u8, Option<io::Error>) {
    watch(argv, post, grace).unwrap_or_else(|e| (126, Some(e)))
}

fn watch(argv: &[OsString], post: Post, grace: Duration) -> io::Result<(u8, Option<io::Error>)> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let signals = Signals::catch(&[libc::SIGCHLD])?;
    // What was sent before anybody listened has waited.
    SigSet::empty().thread_set_mask()?;
    let Some((program, arguments)) = argv.split_first() else {
        return Ok((127, Some(io::ErrorKind::NotFound.into())));
    };
    keep_for_us();
    let mut command = Command::new(program);
    command.env_remove(HOLDS).args(arguments).stdin(Stdio::null()).process_group(0);
    die_with_parent(&mut command);
    if post == Post::Sandbox {
        keep_signals_waiting(&mut command);
    }
    let child = match command.spawn() {
        Ok(child) => child.id(),
        Err(e) => return Ok((not_started(&e), Some(e))),
    };
    let stdin = io::stdin();
    let leash = (post != Post::Inside).then(|| stdin.as_fd());
    let (mut asked, mut ended) = (None, None);
    loop {
        let until = asked.map(|(_, until)| until);
        let told_to_end = signals.or_readable(leash, until)?;
        if told_to_end || until.is_some_and(|until| Instant::now() >= until) {
            kill_descendants();
            return Ok((ended.unwrap_or(137), None));
        }
        let signal = signals.take().and_then(|s| Signal::try_from(s).ok());
        // Once: whoever gets a signal twice cleans nothing up.
        if let (Some(signal), None) = (signal, asked) {
            tell(child, post, signal);
            asked = Some((signal, Instant::now() + grace));
        }
        let (code, alone) = reap(child, asked.is_some());
        if let (Some(_), Some((signal, _))) = (code, asked) {
            tell_those_that_ignore(signal);
        }
        ended = ended.or(code);
        match (ended, asked) {
            (Some(code), None) => {
                if !alone {
                    kill_those_of_the_session();
                }
                return Ok((code, None));
            }
            (Some(code), Some(_)) if alone => return Ok((code, None)),
            // What is left has the same grace.
            _ => {}
        }
    }
}

/// Has a guard that is started keep descriptors open as long as it lives.
pub(super) fn hand_down(command: &mut Command, fds: &[BorrowedFd<'_>]) {
    let fds: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let names: Vec<String> = fds.iter().map(ToString::to_string).collect();
    command.env(HOLDS, names.join(","));
    let keep = move || {
        for fd in &fds {
            // SAFETY: the descriptors outlive the fork; only the child's flags are changed.
            if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: system calls, which are allowed between fork and exec, and memory that is there already.
    unsafe { command.pre_exec(keep) };
}

/// What was handed down is this process's and not the command's.
fn keep_for_us() {
    let names = std::env::var(HOLDS).unwrap_or_default();
    for fd in names.split(',').filter_map(|text| text.parse::<i32>().ok()).filter(|fd| *fd > 2) {
        // SAFETY: a flag of a descriptor; that it may be none of ours is an error nobody is hurt by.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// Passes a signal on to all that was started. The command's status has not been taken, so its number is its own.
fn tell(command: u32, post: Post, signal: Signal) {
    let group = Pid::from_raw(command as i32);
    if post == Post::Sandbox {
        // The guard inside gets what comes before it listens, too. Nobody inside: the sandbox is not made yet.
        let told = children_of(command).iter().filter(|kin| kin.tell(signal)).count();
        if told == 0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
        return;
    }
    // Looked for before anybody is told: what they start to clean up is not asked to end.
    let others = first_of_groups(command);
    let _ = killpg(group, signal);
    for kin in others {
        kin.tell(signal);
    }
}

/// When the command has ended nobody is left who would end those that were started in the background of a shell: they ignore what
/// comes from a keyboard.
fn tell_those_that_ignore(signal: Signal) {
    if signal != Signal::SIGTERM {
        for kin in descendants().iter().filter(|kin| kin.ignores(signal)) {
            kin.tell(Signal::SIGTERM);
        }
    }
}

/// The kernel kills a child whose parent was killed.
pub(super) fn die_with_parent(command: &mut Command) {
    let ask = || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        Ok(())
    };
    // SAFETY: one system call, which is allowed between fork and exec.
    unsafe { command.pre_exec(ask) };
}

/// Signals that ask to end wait for the guard that is started inside a sandbox, which is the first to let them through. The first
/// process of a namespace would lose them otherwise.
fn keep_signals_waiting(command: &mut Command) {
    let asking: SigSet =
        [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM].into_iter().collect();
    let block = move || Ok(asking.thread_block()?);
    // SAFETY: one system call, which is allowed between fork and exec.
    unsafe { command.pre_exec(block) };
}

/// Takes the status of all children that have ended; the exit code of the command if it is among them, and whether there are
/// no others: what they have started became ours. What is left of the command's group is killed if it was not asked to end, while
/// the number is still its own.
fn reap(command: u32, asked: bool) -> (Option<u8>, bool) {
    let mut code = None;
    loop {
        match ended_child() {
            Ok(Some((pid, its))) => {
                let pid = Pid::from_raw(pid);
                if pid.as_raw() as u32 == command && code.is_none() {
                    if !asked {
                        let _ = killpg(pid, Signal::SIGKILL);
                    }
                    code = Some(its);
                }
                let _ = waitpid(pid, None);
            }
            Ok(None) => return (code, false),
            Err(Errno::EINTR) => {}
            Err(_) => return (code, true),
        }
    }
}

/// Takes the status of all children that have ended but the command: what it has left became ours.
pub(super) fn reap_others(command: u32) {
    while let Ok(Some((pid, _))) = ended_child()
        && pid as u32 != command
    {
        let _ = waitpid(Pid::from_raw(pid), None);
    }
}

/// A child that has ended and whose status was not taken yet: its number and exit code.
fn ended_child() -> Result<Option<(i32, u8)>, Errno> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: a zeroed siginfo is valid to be written to, and of a child that has ended the kernel sets what is read of it.
    let (pid, how, status) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        Errno::result(libc::waitid(libc::P_ALL, 0, &mut info, flags))?;
        (info.si_pid(), info.si_code, info.si_status())
    };
    let code = if how == libc::CLD_EXITED { status } else { 128 + status };
    Ok((pid != 0).then_some((pid, code as u8)))
}

/// Kills what has left the command's group and not the session, until there is none: it could still write to the outputs.
fn kill_those_of_the_session() {
    let end = Instant::now() + GONE_WITHIN;
    while Instant::now() < end {
        let left = of_own_session();
        if left.is_empty() {
            return;
        }
        for kin in left {
            kin.tell(Signal::SIGKILL);
        }
        while let Ok(Some((pid, _))) = ended_child() {
            let _ = waitpid(Pid::from_raw(pid), None);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills all children until there are none: children of what is killed become ours.
pub(super) fn kill_descendants() {
    let end = Instant::now() + GONE_WITHIN;
    while Instant::now() < end {
        match ended_child() {
            Err(Errno::ECHILD) => return,
            Ok(Some((pid, _))) => drop(waitpid(Pid::from_raw(pid), None)),
            Ok(None) => {
                for child in children_of(std::process::id()) {
                    child.tell(Signal::SIGKILL);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(_) => {}
        }
    }
}
