//! Running a command as it is, with this process's own input and output, to its end.
//!
//! Purpose: a command on which others depend as long as this process lives. Between the two stands one more process, which adopts what the
//! command leaves and ends all of it if this one is killed. Invariants: what asks this process to end is told to the command and to what
//! it has started beside it, which decide; what the terminal tells all of them is told once (what a process tells a whole group may
//! be told again). Must not know: why.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};

use super::guard::{die_with_parent, kill_descendants, not_started, reap_others};
use super::kin::of_own_group;
use super::signals::Signals;
use crate::cache::pidfd_open;

/// What the kernel tells the process between when the one above it has died.
const ABANDONED: Signal = Signal::SIGUSR1;

/// How long what the command has left may stay a zombie.
const REAPED: Duration = Duration::from_secs(1);

/// Runs a command with variables of its own; its exit code as a shell says it. `guard` is how the process between is started, which takes
/// `--session`, the number of this process, `--` and the command.
pub fn accompany(argv: &[OsString], env: &[(&str, String)], guard: &[OsString]) -> io::Result<u8> {
    let signals = Signals::catch(&[])?;
    // What the process between leaves when it is killed comes to us.
    nix::sys::prctl::set_child_subreaper(true)?;
    let own = std::process::id().to_string();
    let options = ["--session", &own, "--"].map(OsString::from);
    let mut words = guard.iter().chain(&options).chain(argv);
    let mut command = Command::new(words.next().ok_or(io::ErrorKind::NotFound)?);
    command.args(words).envs(env.iter().map(|(name, value)| (name, value)));
    let tell_of_death = || Ok(nix::sys::prctl::set_pdeathsig(ABANDONED)?);
    // SAFETY: one system call, which is allowed between fork and exec.
    unsafe { command.pre_exec(tell_of_death) };
    let mut child = command.spawn()?;
    let pid = child.id();
    let ended = pidfd_open(pid)?;
    loop {
        if signals.or_readable(Some(ended.as_fd()), None)? {
            let status = child.wait()?;
            if status.signal().is_some() {
                kill_descendants();
            }
            return Ok(code(status));
        }
        if let Some(signal) = asked(&signals) {
            let _ = kill(Pid::from_raw(pid as i32), signal);
        }
    }
}

/// The process between: runs a command for the process `of`; its exit code, and why it could not be started if so.
pub fn lead(argv: &[OsString], of: u32) -> io::Result<(u8, Option<io::Error>)> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let signals = Signals::catch(&[ABANDONED as i32])?;
    let abandoned = || getppid().as_raw() as u32 != of;
    let Some((program, arguments)) = argv.split_first() else {
        return Ok((127, Some(io::ErrorKind::NotFound.into())));
    };
    if abandoned() {
        return Ok((137, None));
    }
    let mut command = Command::new(program);
    command.args(arguments);
    die_with_parent(&mut command);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => return Ok((not_started(&e), Some(e))),
    };
    let ended = pidfd_open(child.id())?;
    loop {
        let ended = signals.or_readable(Some(ended.as_fd()), Some(Instant::now() + REAPED))?;
        reap_others(child.id());
        if abandoned() {
            kill_descendants();
            return Ok((137, None));
        }
        if ended {
            return Ok((code(child.wait()?), None));
        }
        if let Some(signal) = asked(&signals) {
            tell(child.id(), signal);
        }
    }
}

/// The signal that is to be passed on: what comes from a keyboard has reached the others, too.
fn asked(signals: &Signals) -> Option<Signal> {
    let (signal, by_process) = signals.take_with_origin()?;
    let keyboard = matches!(signal, libc::SIGINT | libc::SIGQUIT);
    if keyboard && !by_process { None } else { Signal::try_from(signal).ok() }
}

fn code(status: ExitStatus) -> u8 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)) as u8
}

/// A shell that ends at once leaves what it waited for, which nobody would ask then. What has a group of its own is the affair of
/// who gave it one.
fn tell(command: u32, signal: Signal) {
    let others = of_own_group();
    let _ = kill(Pid::from_raw(command as i32), signal);
    for kin in others.iter().filter(|kin| kin.pid() != command) {
        kin.tell(signal);
    }
}
