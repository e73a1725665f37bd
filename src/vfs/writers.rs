//! Who changes a draft, and how they ended: what speaks against sealing it by quiet.
//!
//! A client that is killed between two writes leaves a draft that looks finished: its metadata parses, nobody
//! writes, nothing changes. So every process that changes a draft is remembered by a pidfd, which tells how it
//! ended (Linux 6.15). Invariant: a draft is trusted only while each of them runs or has ended by itself with exit
//! code 0; what cannot be known (an older kernel, a process of a foreign pid namespace) speaks against it.
//! Must not know: what a draft is for, or when it is quiet.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cache::{pidfd_open, process_of};

/// From so many on, processes that ended well are forgotten: a build has thousands, each a descriptor here.
const SWEEP: usize = 64;
/// What could not be sealed, and is as it was, is tried again after this time: the reason may lie elsewhere.
const AGAIN: Duration = Duration::from_secs(5);

/// The processes that changed one draft.
#[derive(Default)]
pub(super) struct Writers {
    processes: HashMap<u32, Process>,
    /// One of them left the draft in an unknown state; that is final.
    condemned: bool,
    /// The state of the draft, by its last change, that could not be sealed, and when that was tried.
    refused: Option<(i64, Instant)>,
}

struct Process {
    pidfd: OwnedFd,
    threads: HashSet<u32>,
}

/// How a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Runs,
    /// Exit code 0.
    Well,
    /// Ended, and nobody has asked how yet.
    Open,
    /// Killed, failed, or not known.
    Badly,
}

impl Writers {
    /// Remembers the process of a thread that changes the draft now (it waits for us, so it is alive).
    pub(super) fn note(&mut self, thread: u32) {
        let known = self.processes.values().find(|p| p.threads.contains(&thread));
        if self.condemned || known.is_some_and(|p| p.end() == End::Runs) {
            return;
        }
        match open(thread) {
            Some((process, pidfd)) => {
                // The number may be an ended process's: its end is judged before it is replaced.
                self.condemned |= self.processes.get(&process).is_some_and(|p| p.end() == End::Badly);
                let same = self.processes.get(&process).is_some_and(|p| p.end() == End::Runs);
                if !same {
                    self.processes.insert(process, Process { pidfd, threads: HashSet::new() });
                }
                if let Some(p) = self.processes.get_mut(&process) {
                    p.threads.insert(thread);
                }
            }
            None => self.condemned = true,
        }
        if self.processes.len() >= SWEEP {
            self.sweep();
        }
    }

    /// Whether none of them speaks against the draft.
    pub(super) fn trusted(&mut self) -> bool {
        self.sweep();
        !self.condemned && self.processes.values().all(|p| p.end() == End::Runs)
    }

    /// Whether it is worth trying to seal the draft as it is since `changed_at`.
    pub(super) fn may_seal(&self, changed_at: i64) -> bool {
        self.refused.is_none_or(|(state, tried)| state != changed_at || tried.elapsed() >= AGAIN)
    }

    /// The draft could not be sealed as it is since `changed_at`; true when that was not known yet.
    pub(super) fn refuse(&mut self, changed_at: i64) -> bool {
        let before = self.refused.replace((changed_at, Instant::now()));
        before.is_none_or(|(state, _)| state != changed_at)
    }

    fn sweep(&mut self) {
        let condemned = &mut self.condemned;
        self.processes.retain(|_, p| match p.end() {
            End::Runs | End::Open => true,
            End::Well => false,
            End::Badly => {
                *condemned = true;
                false
            }
        });
    }
}

/// The process of a thread, and a pidfd of it.
fn open(thread: u32) -> Option<(u32, OwnedFd)> {
    let process = process_of(thread)?;
    Some((process, pidfd_open(process).ok()?))
}

impl Process {
    fn end(&self) -> End {
        let mut ready = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::ZERO) == Ok(0) {
            return End::Runs;
        }
        // SAFETY: all-zero is a value of this struct of numbers.
        let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
        info.mask = libc::PIDFD_INFO_EXIT.into();
        // SAFETY: the request fills the struct of its own type, which outlives the call.
        let asked = unsafe { libc::ioctl(self.pidfd.as_raw_fd(), libc::PIDFD_GET_INFO, &mut info) };
        let known = info.mask & u64::from(libc::PIDFD_INFO_EXIT) != 0;
        match (asked, known) {
            (0, true) if info.exit_code == 0 => End::Well,
            // The exit code is told once the parent has asked.
            (0, false) => End::Open,
            _ => End::Badly,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use nix::sys::wait::WaitPidFlag;

    use super::*;

    fn sleeper() -> Child {
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn living_processes_and_those_that_ended_well_are_trusted() {
        let mut writers = Writers::default();
        assert!(writers.trusted());
        writers.note(std::process::id());
        let mut child = sleeper();
        writers.note(child.id());
        assert!(writers.trusted());
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        assert!(writers.trusted(), "needs Linux 6.15");
        assert_eq!(writers.processes.len(), 1, "who ended well is forgotten");
    }

    #[test]
    fn killed_failed_and_unknown_processes_are_not() {
        let mut killed = Writers::default();
        let mut child = sleeper();
        killed.note(child.id());
        child.kill().unwrap();
        let id = nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(child.id() as i32));
        nix::sys::wait::waitid(id, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        assert!(!killed.trusted(), "dead, but not yet reaped");
        child.wait().unwrap();
        assert!(!killed.trusted());
        killed.note(std::process::id());
        assert!(!killed.trusted(), "that is final");

        let mut failed = Writers::default();
        let mut child =
            Command::new("sh").args(["-c", "read x; exit 3"]).stdin(Stdio::piped()).spawn().unwrap();
        failed.note(child.id());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!failed.trusted());

        let mut unknown = Writers::default();
        unknown.note(0);
        assert!(!unknown.trusted());
    }

    #[test]
    fn what_was_refused_waits_until_it_changes() {
        let mut writers = Writers::default();
        assert!(writers.may_seal(1));
        assert!(writers.refuse(1), "it is told of");
        assert!(!writers.may_seal(1));
        assert!(!writers.refuse(1), "once");
        assert!(writers.may_seal(2), "it has changed");
        assert!(writers.refuse(2));
        writers.refused = Some((2, Instant::now().checked_sub(AGAIN).unwrap()));
        assert!(writers.may_seal(2), "what was in its way may be gone");
    }

    #[test]
    fn a_thread_stands_for_its_process() {
        let mut writers = Writers::default();
        std::thread::spawn(|| nix::unistd::gettid().as_raw() as u32).join().map(|_| ()).unwrap();
        let writers = std::thread::scope(|s| {
            s.spawn(|| {
                writers.note(nix::unistd::gettid().as_raw() as u32);
                writers
            })
            .join()
            .unwrap()
        });
        let mut writers = writers;
        assert_eq!(writers.processes.keys().copied().collect::<Vec<_>>(), [std::process::id()]);
        assert!(writers.trusted(), "the thread has ended, its process has not");
    }
}
