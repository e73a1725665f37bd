//! Having the kernel let go of an entry by its name, where it takes no prunes (before Linux 6.18).
//!
//! A process of its own looks the name up, is told that there is none, and so the kernel drops what it remembers of the
//! name and all below it. The daemon does not ask for that itself, neither by `inval_entry` nor by a look-up: both can wait,
//! uninterruptibly, for a request that the daemon is to answer. Killed in that moment it would not die, its
//! descriptor would keep the connection, and everybody on the mount would hang. Invariants: that process has no descriptor of the device
//! or of the mount, and ends with the daemon; only that process is told something else than everybody, and only of names at which nothing new
//! stands: of others it is told what stands there, and so the kernel drops what stood there before; nobody waits for it.

use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use parking_lot::Mutex;

use crate::cache::NAMES_LAST;
use crate::vfs::Named;

/// The kernel asks again for a name after so long, at the latest.
const ASKS_AGAIN: Duration = NAMES_LAST.saturating_add(Duration::from_millis(50));
/// Names that wait for a second look; what is evicted later is asked for again anyway.
const MOST: usize = 65_536;
/// Names of which it is remembered that it is told of none.
const REMEMBERED: usize = 4096;

/// Whether a request is that process's, and what it is told.
#[derive(Debug, Clone, Default)]
pub(super) struct Who(Arc<Looks>);

#[derive(Debug, Default)]
struct Looks {
    /// Its number, or 0 while there is none.
    pid: AtomicU32,
    /// Names of which it is told that there are none; of all others what everybody is.
    none: Mutex<HashSet<OsString>>,
}

impl Who {
    /// Whether this is that process, which is to be told that there is no such name.
    pub(super) fn is_told_of_none(&self, pid: u32, name: &OsStr) -> bool {
        pid != 0 && self.0.pid.load(Ordering::Acquire) == pid && self.0.none.lock().contains(name)
    }

    fn note(&self, name: &OsStr, none: bool) {
        let mut all = self.0.none.lock();
        if !none {
            all.remove(name);
            return;
        }
        // Those that were looked up long ago. Of one that was not yet it is told the truth, and is sent there again.
        if all.len() >= REMEMBERED {
            all.clear();
        }
        all.insert(name.to_owned());
    }
}

/// That process, begun when it is needed, and what it is to do.
pub(super) struct Looker {
    /// What it runs: outfs, and the argument that makes it [`look`].
    command: Vec<OsString>,
    at: PathBuf,
    who: Who,
    child: Option<Child>,
    /// To be looked at again, when the kernel surely asks.
    again: VecDeque<(Instant, Named)>,
    /// The names in there.
    waiting: HashSet<OsString>,
}

impl Looker {
    /// For the mount at `at`. `command` without anything: nobody looks.
    pub(super) fn new(command: Vec<OsString>, at: &Path) -> Looker {
        let (again, waiting) = (VecDeque::new(), HashSet::new());
        Looker { command, at: at.to_owned(), who: Who::default(), child: None, again, waiting }
    }

    pub(super) fn who(&self) -> Who {
        self.who.clone()
    }

    /// When [`Self::again`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.again.front().map(|(at, _)| *at)
    }

    /// Has a name looked up, now and when the kernel will ask for it even if it was in use just now.
    pub(super) fn look(&mut self, name: Named) {
        self.tell(&name);
        if self.again.len() < MOST && self.waiting.insert(name.name.clone()) {
            self.again.push_back((Instant::now() + ASKS_AGAIN, name));
        }
    }

    /// Has those looked up that are due.
    pub(super) fn again(&mut self) {
        let now = Instant::now();
        while self.due().is_some_and(|at| at <= now) {
            if let Some((_, name)) = self.again.pop_front() {
                self.waiting.remove(&name.name);
                self.tell(&name);
            }
        }
    }

    fn tell(&mut self, name: &Named) {
        self.who.note(&name.name, (name.still)());
        // One that has died is begun anew, once.
        for _ in 0..2 {
            let line = [name.name.as_bytes(), b"\0"].concat();
            match self.child().and_then(|mut names| names.write_all(&line)) {
                Ok(()) => return,
                // It is far behind. What is not looked at now is asked for again by whoever evicts.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => tracing::debug!(error = %e, "the process that looks names up cannot be told"),
            }
            self.end();
        }
    }

    fn child(&mut self) -> io::Result<&std::process::ChildStdin> {
        if self.child.is_none() {
            let (program, args) =
                self.command.split_first().ok_or_else(|| io::Error::other("there is none"))?;
            let mut command = Command::new(program);
            command.arg0("outfs").args(args).arg(&self.at);
            command.env_clear().current_dir("/").process_group(0);
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            let child = command.spawn()?;
            if let Some(names) = &child.stdin {
                // A name is less than what a pipe takes as a whole.
                fcntl(names, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            }
            self.who.0.pid.store(child.id(), Ordering::Release);
            self.child = Some(child);
        }
        let child = self.child.as_ref().and_then(|child| child.stdin.as_ref());
        child.ok_or_else(|| io::Error::other("it has no standard input"))
    }

    /// Ends it: it reads its input to the end.
    fn end(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        drop(child.stdin.take());
        // Its number is nobody's else before it was waited for.
        self.who.0.pid.store(0, Ordering::Release);
        let _ = child.wait();
    }
}

impl Drop for Looker {
    fn drop(&mut self) {
        self.end();
    }
}

/// What that process does: looks up each name that `names` has (they end with a zero byte) in `at`. What comes of it does not matter.
pub fn look(at: &Path, mut names: impl Read) -> io::Result<()> {
    let mut rest = Vec::new();
    let mut buf = [0; 4096];
    loop {
        let n = names.read(&mut buf)?;
        if n == 0 {
            return Ok(());
        }
        rest.extend_from_slice(&buf[..n]);
        let end = rest.iter().rposition(|b| *b == 0).map_or(0, |last| last + 1);
        for name in rest[..end].split(|b| *b == 0).filter(|name| !name.is_empty()) {
            // Nothing of the mount stays open: it would be busy.
            let _ = at.join(OsStr::from_bytes(name)).symlink_metadata();
        }
        rest.drain(..end);
    }
}
