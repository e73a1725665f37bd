//! Views that a command reads through: whether somebody served them all the while.
//!
//! Purpose: where the daemon of a view has died, whoever reads is told that nothing is connected, and a command may take that for an
//! answer. Invariants: a held view is one connection, which is never mended once it is cut, so one that answers in the end has answered
//! all the time, and whoever comes after shows another one; an answer is not waited for longer than [`ANSWER`]. Must not know: what is read there.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::fstatfs;

/// A daemon that lives answers within this time, however busy its machine is.
const ANSWER: Duration = Duration::from_secs(20);

/// The root of a view, held: it is in use, and no other mount can be taken for it.
#[derive(Debug, Clone)]
pub(super) struct Served(Arc<OwnedFd>);

impl Served {
    /// Of what is mounted at a path. Nobody is asked for it.
    pub fn hold(root: &Path) -> Option<Served> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open(root, flags, Mode::empty()).ok().map(|fd| Served(Arc::new(fd)))
    }

    /// Whoever served it is gone, or answers nobody. Who asks may never come back; then it ends with the process.
    pub fn is_lost(&self) -> bool {
        let (tell, told) = mpsc::channel();
        let root = Arc::clone(&self.0);
        // Attributes can come from the kernel's memory; this is always asked for.
        let ask = move || tell.send(fstatfs(&*root).is_err());
        let asked = std::thread::Builder::new().name("ask".into()).spawn(ask);
        asked.is_err() || told.recv_timeout(ANSWER).unwrap_or(true)
    }
}
