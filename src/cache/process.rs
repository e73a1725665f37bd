//! A process that something belongs to: known again later by whoever sees the same processes, and whether it lives.
//!
//! Invariants: another process with its number is not taken for it; it is dead only if that is certain: of one that
//! cannot be seen from here nothing is said. Must not know: what belongs to it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The flag of the kernel's own threads.
const KERNELS: u64 = 0x0020_0000;

/// A process, also when it is gone. Its text has no spaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in ticks since the machine did.
    pub started: u64,
    /// Where its number means something.
    pub space: Space,
}

/// The machine's start, and the namespace of processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    boot: String,
    namespace: u64,
}

impl Space {
    /// This process's; `None` where there is no /proc.
    fn here() -> Option<Space> {
        use std::os::unix::fs::MetadataExt;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let namespace = std::fs::metadata("/proc/self/ns/pid").ok()?.ino();
        Some(Space { boot: boot.trim().to_owned(), namespace })
    }
}

/// What the kernel says of a process, also of one that has ended and whose status nobody has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    /// It runs no more.
    pub ended: bool,
    /// The process that takes its status.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// Its session.
    pub session: u32,
    /// It is a thread of the kernel's own.
    pub is_kernels: bool,
    /// As in [`Process`].
    pub started: u64,
}

impl Stat {
    pub fn of(pid: u32) -> Option<Stat> {
        Stat::with_name(pid).map(|(stat, _)| stat)
    }

    /// It, and what the process is called.
    fn with_name(pid: u32) -> Option<(Stat, String)> {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The name may be anything, with spaces and parentheses in it; the state follows the last one.
        let stat = String::from_utf8_lossy(&stat);
        let (head, rest) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let mut rest = rest.split_whitespace();
        let ended = matches!(rest.next()?, "Z" | "X");
        let (parent, group) = (rest.next()?.parse().ok()?, rest.next()?.parse().ok()?);
        let session = rest.next()?.parse().ok()?;
        let flags: u64 = rest.nth(2)?.parse().ok()?;
        let started = rest.nth(12)?.parse().ok()?;
        Some((Stat { ended, parent, group, session, is_kernels: flags & KERNELS != 0, started }, name))
    }
}

/// The process of a thread, which may be its first one; `None` when it is gone, and where it cannot be seen from here.
pub(crate) fn process_of(thread: u32) -> Option<u32> {
    // 0: the thread is of a pid namespace that this one does not see.
    let status = std::fs::read(format!("/proc/{thread}/status")).ok().filter(|_| thread != 0)?;
    let mut lines = status.split(|b| *b == b'\n');
    let number = lines.find_map(|line| line.strip_prefix(b"Tgid:"))?;
    std::str::from_utf8(number).ok()?.trim().parse().ok()
}

/// A process as a user knows it.
pub(super) struct Program {
    pub pid: u32,
    /// As in [`Process`].
    pub started: u64,
    /// What it is called: whatever it likes.
    pub name: String,
}

impl Program {
    /// The one that a thread is of; `None` as for [`process_of`], and where it is the kernel's own.
    pub fn of_thread(thread: u32) -> Option<Program> {
        let pid = process_of(thread)?;
        let (stat, name) = Stat::with_name(pid)?;
        (!stat.is_kernels).then_some(Program { pid, started: stat.started, name })
    }
}

impl Process {
    /// A living process; `None` when there is none of that number, and where there is no /proc.
    pub fn of(pid: u32) -> Option<Process> {
        let Stat { ended, started, .. } = Stat::of(pid)?;
        let space = Space::here()?;
        (!ended).then_some(Process { pid, started, space })
    }

    /// This process.
    pub fn this() -> Option<Process> {
        Process::of(std::process::id())
    }

    /// Whether it lives; `None` when that cannot be seen from here.
    pub fn lives(&self) -> Option<bool> {
        let here = Space::here()?;
        if self.space == here {
            return Some(Process::of(self.pid).as_ref() == Some(self));
        }
        // Since then the machine was started again.
        (self.space.boot != here.boot).then_some(false)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.pid, self.started, self.space.namespace, self.space.boot)
    }
}

/// A text that is no [`Process`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoProcess;

impl FromStr for Process {
    type Err = NoProcess;

    fn from_str(text: &str) -> Result<Self, NoProcess> {
        let mut parts = text.splitn(4, '.');
        let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok()).ok_or(NoProcess);
        let (pid, started, namespace) = (number()?, number()?, number()?);
        let pid = u32::try_from(pid).map_err(|_| NoProcess)?;
        let boot = parts.next().ok_or(NoProcess)?.to_owned();
        Ok(Process { pid, started, space: Space { boot, namespace } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lives_and_who_is_dead() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let its = Process::of(child.id()).unwrap();
        let another = Process { started: 1, ..its.clone() };
        let elsewhere = Process { space: Space { namespace: 1, ..its.space.clone() }, ..its.clone() };
        let before = Process { space: Space { boot: "another".into(), namespace: 1 }, ..its.clone() };
        assert_eq!(Process::this().unwrap().lives(), Some(true));
        let lives = || [&its, &another, &elsewhere, &before].map(Process::lives);
        assert_eq!(lives(), [Some(true), Some(false), None, Some(false)]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(lives(), [Some(false), Some(false), None, Some(false)]);
    }

    #[test]
    fn a_thread_leads_to_its_process() {
        let here = std::thread::spawn(|| Program::of_thread(nix::unistd::gettid().as_raw() as u32));
        let (here, us) = (here.join().unwrap().unwrap(), Process::this().unwrap());
        assert_eq!((here.pid, here.started), (us.pid, us.started));
        assert!(Program::of_thread(0).is_none());
        assert!(Program::of_thread(2).is_none_or(|p| p.name != "kthreadd"), "the kernel's");
        // A name may be anything.
        let (dir, name) = (tempfile::tempdir().unwrap(), "a) (\n5 6 7 8 9");
        std::os::unix::fs::symlink("/bin/sleep", dir.path().join(name)).unwrap();
        let mut odd = std::process::Command::new(dir.path().join(name));
        let mut child =
            std::os::unix::process::CommandExt::arg0(&mut odd, "sleep").arg("60").spawn().unwrap();
        // Its name comes a moment after it has begun.
        super::super::tests::eventually("its name", || {
            Program::of_thread(child.id()).is_some_and(|its| (its.pid, &its.name[..]) == (child.id(), name))
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Program::of_thread(child.id()).is_none());
    }

    #[test]
    fn a_process_is_known_again_by_its_text() {
        let us = Process::this().unwrap();
        let text = us.to_string();
        assert!(!text.contains(' '), "{text}");
        assert_eq!(text.parse(), Ok(us));
        for text in ["", "nonsense", "1.2.3", "1.2.x.boot", "99999999999.1.1.boot"] {
            assert_eq!(text.parse::<Process>(), Err(NoProcess), "{text}");
        }
    }
}
