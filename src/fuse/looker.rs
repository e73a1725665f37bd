//! Having the kernel let go of what it remembers of an entry, where it takes no prunes (before Linux 6.18).
//!
//! A process of its own looks up a name that nobody else is shown, twice. At first the daemon says that the entry's top directory
//! is what it names: then the kernel moves all that it remembers of the entry there, from wherever that was, for a directory has one
//! name. Then it says that there is no such name: so the kernel drops what it remembers below it, but for what is
//! in use, which is dropped when it is asked for once more. The daemon does not ask for that itself, neither by `inval_entry` nor by a
//! look-up: both can wait, uninterruptibly, for a request that the daemon is to answer. Killed in that moment it would not
//! die, its descriptor would keep the connection, and everybody on the mount would hang. Invariants: that process has no descriptor of
//! the device or of the mount, and ends with the daemon; nobody else is told anything but the truth; nobody waits for it.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use parking_lot::Mutex;

use crate::vfs::{Ino, Top, ino};

/// What the names that it looks up begin with; the entry's row id follows. No key begins so.
const NAME: &str = ".outfs-gone-";
/// Entries that it may be far behind with; whoever evicts asks for the others again.
const MOST: usize = 4096;

/// Whether a request is that process's, and what it is told.
#[derive(Debug, Clone, Default)]
pub(super) struct Who(Arc<Looks>);

#[derive(Debug, Default)]
struct Looks {
    /// Its number, or 0 while there is none.
    pid: AtomicU32,
    /// What it is shown, once.
    shown: Mutex<HashSet<Top>>,
}

impl Who {
    /// What this process asks for by such a name in a directory, if it is that one.
    pub(super) fn asks_for(&self, pid: u32, dir: Ino, name: &OsStr) -> Option<Top> {
        let is_it = pid != 0 && self.0.pid.load(Ordering::Acquire) == pid;
        let entry = is_it.then_some(name)?.to_str()?.strip_prefix(NAME)?.parse().ok()?;
        Some(Top { entry, thrown_away: dir == ino::TRASH })
    }

    /// Whether it is to be shown this, which it is once.
    pub(super) fn take(&self, top: Top) -> bool {
        self.0.shown.lock().remove(&top)
    }

    fn show(&self, top: Top) -> bool {
        let mut shown = self.0.shown.lock();
        shown.len() < MOST && shown.insert(top)
    }
}

/// That process, begun when it is needed.
pub(super) struct Looker {
    /// What it runs: outfs, and the argument that makes it [`look`].
    command: Vec<OsString>,
    at: PathBuf,
    who: Who,
    child: Option<Child>,
}

impl Looker {
    /// For the mount at `at`. `command` without anything: nobody looks.
    pub(super) fn new(command: Vec<OsString>, at: &Path) -> Looker {
        Looker { command, at: at.to_owned(), who: Who::default(), child: None }
    }

    pub(super) fn who(&self) -> Who {
        self.who.clone()
    }

    /// Has the kernel let go of what is below a top directory and not in use.
    pub(super) fn look(&mut self, top: Top) {
        // It has not come to the last one yet: that will do.
        if !self.who.show(top) {
            return;
        }
        // Where the kernel has it: to move it to another directory takes locks that may be held, and then it is not moved.
        let dir = if top.thrown_away { ".outfs/trash/" } else { "" };
        let line = format!("{dir}{NAME}{}\0", top.entry);
        // One that has died is begun anew, once.
        for _ in 0..2 {
            match self.child().and_then(|mut names| names.write_all(line.as_bytes())) {
                Ok(()) => return,
                // It is far behind. What is not looked at now is asked for again by whoever evicts.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => tracing::debug!(error = %e, "the process that looks names up cannot be told"),
            }
            self.end();
        }
        self.who.take(top);
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
        self.who.0.shown.lock().clear();
    }
}

impl Drop for Looker {
    fn drop(&mut self) {
        self.end();
    }
}

/// What that process does: looks up each name that `names` has (they end with a zero byte) in `at`, twice. What comes of it does not
/// matter.
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
            let path = at.join(OsStr::from_bytes(name));
            let _ = path.symlink_metadata();
            let _ = path.symlink_metadata();
        }
        rest.drain(..end);
    }
}
