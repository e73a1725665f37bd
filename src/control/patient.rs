//! A client's end of a connection: it waits as long as the daemon works, and not for one that was stopped.
//!
//! Invariant: an answer may take hours, so silence alone is no reason to give up. Must not know: the protocol.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::socket;

/// How often a silent daemon is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long one may be stopped (as by SIGSTOP) before nobody waits for it any more.
const STOPPED: Duration = Duration::from_secs(10);

/// A connection whose other end is looked at while it is silent. It fails with `TimedOut` when that is stopped.
pub(super) struct Patient {
    stream: UnixStream,
    daemon: Option<u32>,
}

impl Patient {
    pub(super) fn new(stream: UnixStream) -> io::Result<Patient> {
        stream.set_read_timeout(Some(LOOK))?;
        stream.set_write_timeout(Some(LOOK))?;
        let daemon = socket::peer_pid(&stream);
        Ok(Patient { stream, daemon })
    }

    /// The daemon's process, if it can be seen from here.
    pub(super) fn daemon(&self) -> Option<u32> {
        self.daemon
    }

    fn persist<T>(&mut self, mut call: impl FnMut(&mut UnixStream) -> io::Result<T>) -> io::Result<T> {
        let mut since = None;
        loop {
            match call(&mut self.stream) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => match self.daemon.filter(is_stopped) {
                    Some(pid) if since.get_or_insert_with(Instant::now).elapsed() >= STOPPED => {
                        return Err(io::Error::new(io::ErrorKind::TimedOut, stopped(pid)));
                    }
                    Some(_) => {}
                    None => since = None,
                },
                other => return other,
            }
        }
    }
}

fn stopped(pid: u32) -> String {
    format!(
        "the daemon (process {pid}) is stopped and answers nobody: 'kill -CONT {pid}' has it go on (and do what it was \
         asked for), 'kill -KILL {pid}' ends it"
    )
}

/// Whether a signal has stopped the process.
fn is_stopped(pid: &u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may have parentheses in it; the state follows the last one.
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.persist(|stream| stream.read(buffer))
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.persist(|stream| stream.write(bytes))
    }
    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_process_is_told_from_one_that_lives_and_one_that_does_not() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        assert!(!is_stopped(&child.id()));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while !is_stopped(&child.id()) {
            assert!(Instant::now() < end, "it is never seen to be stopped");
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_stopped(&child.id()));
    }
}
