//! The process between outfs and a command: it sees to it that nothing of the command is left behind.
//!
//! Purpose: outfs may be killed at any time, and a command may start what it likes. The guard is the
//! command's parent and adopts what the command leaves (a subreaper); it ends all of it when its
//! standard input ends, which happens when outfs says so or is no more. Invariants: the command has
//! a process group of its own; what is left of that when the command has ended by itself is killed; when the command was asked to
//! end, so is all that it has started, and the guard ends after all of it; the guard's exit
//! code is the command's, as a shell says it. Must not know: what is run, or why, or how long a grace is.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::signals::Signals;

/// The variable that names descriptors which only the guard is to have.
const HOLDS: &str = "OUTFS_GUARD_HOLDS";
/// How long what was killed may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// A command that cannot be started, as shells say it: 127 not found, 126 anything else.
pub fn not_started(e: &io::Error) -> u8 {
    if e.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}

/// Runs a command and looks after it; its exit code, and why it could not be run if so.
/// Signals go to its process group; with `inner` to those of the processes it started, which are a sandbox's first.
pub fn guard(argv: &[OsString], inner: bool) -> (u8, Option<io::Error>) {
    watch(argv, inner).unwrap_or_else(|e| (126, Some(e)))
}

fn watch(argv: &[OsString], inner: bool) -> io::Result<(u8, Option<io::Error>)> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let signals = Signals::catch(&[libc::SIGCHLD])?;
    let Some((program, arguments)) = argv.split_first() else {
        return Ok((127, Some(io::ErrorKind::NotFound.into())));
    };
    keep_for_us();
    let mut command = Command::new(program);
    command.env_remove(HOLDS).args(arguments).stdin(Stdio::null()).process_group(0);
    die_with_parent(&mut command);
    let child = match command.spawn() {
        Ok(child) => Pid::from_raw(child.id() as i32),
        Err(e) => return Ok((not_started(&e), Some(e))),
    };
    let stdin = io::stdin();
    let (mut asked, mut ended) = (None, None);
    loop {
        let told_to_end = signals.or_readable(stdin.as_fd())? != Some(false);
        if told_to_end {
            kill_descendants();
            return Ok((ended.unwrap_or(137), None));
        }
        if let Some(signal) = signals.take().and_then(|s| Signal::try_from(s).ok()) {
            tell(child, inner, signal);
            asked = Some(signal);
        }
        let (code, alone) = reap(child);
        if let (Some(_), Some(signal)) = (code, asked) {
            tell_those_that_ignore(signal);
        }
        ended = ended.or(code);
        match (ended, asked) {
            (Some(code), None) => {
                let _ = killpg(child, Signal::SIGKILL);
                return Ok((code, None));
            }
            (Some(code), Some(_)) if alone => return Ok((code, None)),
            // What is left has the same grace, until outfs says that it is over.
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

/// Passes a signal on, to all that was started; of a sandbox to what is inside, which goes with its first process.
fn tell(child: Pid, inner: bool, signal: Signal) {
    let groups = if inner { children_of(child) } else { Vec::new() };
    let told: Vec<_> = groups.into_iter().filter(|group| killpg(*group, signal).is_ok()).collect();
    // A sandbox that is not made yet has nobody inside.
    if !told.is_empty() {
        return;
    }
    // Looked for before anybody is told: what they start to clean up is not asked to end.
    let others = if inner { Vec::new() } else { first_of_groups(child) };
    let _ = killpg(child, signal);
    for pid in others {
        let _ = kill(pid, signal);
    }
}

/// Of each group of processes that the command started beside its own, those whose parents are in another: they pass a signal on to their
/// group (`timeout`), and whoever gets one twice cleans nothing up. What another outfs runs is its affair.
fn first_of_groups(command: Pid) -> Vec<Pid> {
    let (all, own) = (parents(), std::env::current_exe().ok());
    let group = |pid: Pid| nix::unistd::getpgid(Some(pid)).ok();
    let looks_after_its_own =
        |pid: Pid| own.is_some() && std::fs::read_link(format!("/proc/{pid}/exe")).ok() == own;
    let (mut waiting, mut found) = (vec![Pid::this()], Vec::new());
    while let Some(of) = waiting.pop() {
        for (pid, _) in all.iter().filter(|(_, parent)| *parent == of) {
            let its = group(*pid);
            if its.is_some() && its != Some(command) && (of == Pid::this() || its != group(of)) {
                found.push(*pid);
            }
            if !looks_after_its_own(*pid) {
                waiting.push(*pid);
            }
        }
    }
    found
}

/// When the command has ended nobody is left who would end those that were started in the background of a shell: they ignore what
/// comes from a keyboard.
fn tell_those_that_ignore(signal: Signal) {
    let ignores = |pid: &Pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask & (1 << (signal as i32 - 1)) != 0)
    };
    if signal != Signal::SIGTERM {
        for pid in descendants().into_iter().filter(ignores) {
            let _ = kill(pid, Signal::SIGTERM);
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

/// Takes the status of all children that have ended; the exit code of `child` if it is among them, and whether there are no
/// others: what they have started became ours.
fn reap(child: Pid) -> (Option<u8>, bool) {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => code = Some(status as u8),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => code = Some(128 + signal as u8),
            Ok(WaitStatus::StillAlive) => return (code, false),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return (code, true),
        }
    }
}

/// Kills all children until there are none: children of what is killed become ours.
pub(super) fn kill_descendants() {
    let end = Instant::now() + GONE_WITHIN;
    while Instant::now() < end {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return,
            Ok(WaitStatus::StillAlive) => {
                for child in children_of(Pid::this()) {
                    let _ = kill(child, Signal::SIGKILL);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            _ => {}
        }
    }
}

/// The processes whose parent is this one.
fn children_of(of: Pid) -> Vec<Pid> {
    parents().into_iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| pid).collect()
}

/// The processes that come from this one.
fn descendants() -> Vec<Pid> {
    let mut waiting = vec![Pid::this()];
    let (all, mut found) = (parents(), Vec::new());
    while let Some(of) = waiting.pop() {
        let children = all.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid);
        found.extend(children.clone());
        waiting.extend(children);
    }
    found
}

/// All processes, with their parents.
fn parents() -> Vec<(Pid, Pid)> {
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((Pid::from_raw(pid), Pid::from_raw(parent(pid)? as i32)))).collect()
}

fn parent(pid: i32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may have spaces and parentheses in it; state and parent follow the last one.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}
