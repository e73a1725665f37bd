//! Processes that come from this one, and signals that reach exactly those.
//!
//! Invariant: a number is used again when its process is gone and somebody has taken its status; so a process is known by its number and
//! its start, and what is sent to it goes through a descriptor that was compared with both. Must not know: who is told
//! what, or when.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::Signal;

use crate::cache::{Stat, pidfd_open, pidfd_signal};

/// A process as it was when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kin {
    pid: u32,
    stat: Stat,
}

impl Kin {
    fn of(pid: u32) -> Option<Kin> {
        Some(Kin { pid, stat: Stat::of(pid)? })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal to this process; false when it is gone.
    pub fn tell(&self, signal: Signal) -> bool {
        let Ok(process) = pidfd_open(self.pid) else { return false };
        // Whoever has the number still since then is whom the descriptor is of.
        let same = Stat::of(self.pid).is_some_and(|now| now.started == self.stat.started);
        same && pidfd_signal(process.as_fd(), signal as i32).is_ok()
    }

    /// It was told to ignore this signal, or its parent was.
    pub fn ignores(&self, signal: Signal) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask & (1 << (signal as i32 - 1)) != 0)
    }

    /// It runs this same program.
    fn is_outfs(&self) -> bool {
        let program = |pid: &str| {
            let meta = std::fs::metadata(format!("/proc/{pid}/exe")).ok()?;
            Some((meta.dev(), meta.ino()))
        };
        program("self").is_some_and(|own| program(&self.pid.to_string()) == Some(own))
    }
}

/// The processes whose parent is `of`.
pub(super) fn children_of(of: u32) -> Vec<Kin> {
    all().into_iter().filter(|kin| kin.stat.parent == of).collect()
}

/// The processes that come from this one.
pub(super) fn descendants() -> Vec<Kin> {
    let mut found = Vec::new();
    walk(&all(), |kin, _| {
        found.push(*kin);
        true
    });
    found
}

/// The processes that come from this one and are in its session: who wanted to outlive the command has one of its own.
pub(super) fn of_own_session() -> Vec<Kin> {
    let Some(own) = Stat::of(std::process::id()) else { return Vec::new() };
    let is_left = |kin: &Kin| !kin.stat.ended && kin.stat.session == own.session;
    descendants().into_iter().filter(is_left).collect()
}

/// The processes that come from this one and are in its group: what comes from a terminal reaches them all.
pub(super) fn of_own_group() -> Vec<Kin> {
    let own = nix::unistd::getpgrp().as_raw();
    descendants().into_iter().filter(|kin| kin.stat.group as i32 == own).collect()
}

/// Of each group of processes that come from this one beside the group `command` those whose parents are in another: they pass a signal
/// on to their group (`timeout`), and whoever gets one twice cleans nothing up. What another outfs runs is its affair.
pub(super) fn first_of_groups(command: u32) -> Vec<Kin> {
    let mut found = Vec::new();
    walk(&all(), |kin, parent| {
        let group = kin.stat.group;
        if group != command && parent.is_none_or(|parent| parent.stat.group != group) {
            found.push(*kin);
        }
        !kin.is_outfs()
    });
    found
}

/// Looks at all that comes from this process, each with its parent if that is not this one; what comes from those is looked at where `each`
/// says so.
fn walk(all: &[Kin], mut each: impl FnMut(&Kin, Option<&Kin>) -> bool) {
    let mut waiting = vec![(std::process::id(), None)];
    while let Some((of, parent)) = waiting.pop() {
        for kin in all.iter().filter(|kin| kin.stat.parent == of) {
            if each(kin, parent) {
                waiting.push((kin.pid, Some(kin)));
            }
        }
    }
}

/// All processes that are seen from here.
fn all() -> Vec<Kin> {
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    all.flatten().filter_map(|e| Kin::of(e.file_name().to_str()?.parse().ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn nobody_else_with_the_number_is_told() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let kin = Kin::of(child.id()).unwrap();
        assert!(children_of(std::process::id()).contains(&kin) && descendants().contains(&kin));
        // As if that number had been another process's before.
        let before = Kin { stat: Stat { started: kin.stat.started - 1, ..kin.stat }, ..kin };
        assert!(!before.tell(Signal::SIGKILL));
        assert_eq!(child.try_wait().unwrap(), None);
        assert!(kin.tell(Signal::SIGTERM));
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
        assert!(!kin.tell(Signal::SIGTERM), "its status was taken");
    }

    #[test]
    fn what_is_ignored() {
        let mut child = Command::new("sh");
        let mut child = child.args(["-c", "trap '' INT; exec sleep 60"]).spawn().unwrap();
        let kin = Kin::of(child.id()).unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !kin.ignores(Signal::SIGINT) {
            assert!(std::time::Instant::now() < end);
        }
        assert!(!kin.ignores(Signal::SIGTERM));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
