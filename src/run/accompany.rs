//! Running a command as it is, with this process's own input and output, to its end.
//!
//! Invariant: what asks this process to end is told to the command and to what it has started beside it, which decide; what the
//! terminal tells all of them is told once. Must not know: why.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::guard::not_started;
use super::kin::of_own_group;
use super::signals::Signals;
use crate::cache::pidfd_open;

/// Runs a command with variables of its own; its exit code as a shell says it, and why it could not be started if so.
pub fn accompany(argv: &[OsString], env: &[(&str, String)]) -> io::Result<(u8, Option<io::Error>)> {
    let signals = Signals::catch(&[])?;
    let Some((program, arguments)) = argv.split_first() else {
        return Ok((127, Some(io::ErrorKind::NotFound.into())));
    };
    let mut command = Command::new(program);
    command.args(arguments).envs(env.iter().map(|(name, value)| (name, value)));
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => return Ok((not_started(&e), Some(e))),
    };
    let ended = pidfd_open(child.id())?;
    loop {
        if signals.or_readable(Some(ended.as_fd()), None)? {
            let status = child.wait()?;
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            return Ok((code as u8, None));
        }
        if let Some(signal @ (libc::SIGTERM | libc::SIGHUP)) = signals.take() {
            tell(child.id(), signal);
        }
    }
}

/// A shell that ends at once leaves what it waited for, which nobody would ask then. What has a group of its own is the affair of
/// who gave it one.
fn tell(command: u32, signal: i32) {
    let Ok(signal) = Signal::try_from(signal) else { return };
    let others = of_own_group();
    let _ = kill(Pid::from_raw(command as i32), signal);
    for kin in others.iter().filter(|kin| kin.pid() != command) {
        kin.tell(signal);
    }
}
