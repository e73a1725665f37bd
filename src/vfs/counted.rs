//! How many descriptors open files, and what is reached without a name, may take.
//!
//! Invariants: some stay for everything else, so that who opens very many files keeps nobody from reading; who finds none is refused only
//! when none come back either: a kernel says of files that were closed or removed that it let go of them later than it asks for
//! the next ones. Must not know: what is open.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

use super::error::{Result, VfsError};

/// Descriptors that are left, but no more than a quarter of all.
const LEFT: u64 = 1024;

/// What all views have open: what they take is the process's.
static OPEN: AtomicU64 = AtomicU64::new(0);
/// How many have come back, ever.
static BACK: AtomicU64 = AtomicU64::new(0);
/// How many had, when somebody had waited in vain: for a handle, and for an inode without a name.
static IN_VAIN: [AtomicU64; 2] = [const { AtomicU64::new(u64::MAX) }; 2];
/// How long one may take to come back.
const PATIENCE: Duration = Duration::from_millis(500);

/// A descriptor, until it is dropped.
pub(super) struct Counted(());

impl Counted {
    /// Counts a handle's; [`VfsError::Scarce`] when there is none to spare.
    pub fn handle() -> Result<Counted> {
        Counted::one(1)
    }

    /// Counts that of an inode without a name. Half of what handles leave is for these: who opens as much as there is
    /// keeps nobody from removing files, which most kernels forget at once.
    pub fn nameless() -> Result<Counted> {
        Counted::one(2)
    }

    /// `of_left`: what part of the rest is left.
    fn one(of_left: u64) -> Result<Counted> {
        if OPEN.fetch_add(1, Ordering::Relaxed) < most(of_left) {
            return Ok(Counted(()));
        }
        OPEN.fetch_sub(1, Ordering::Relaxed);
        Err(VfsError::Scarce(Scarce { of_left }))
    }
}

fn most(of_left: u64) -> u64 {
    static LIMIT: OnceLock<u64> = OnceLock::new();
    let limit = *LIMIT.get_or_init(|| getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft));
    limit - LEFT.min(limit / 4) / of_left
}

/// What a descriptor was wanted for when there was none to spare.
#[derive(Debug, Clone, Copy)]
pub struct Scarce {
    of_left: u64,
}

impl Scarce {
    /// Waits until one is to spare, for no more than half a second `since` it was wanted, and not at all when none has come back since
    /// somebody waited in vain; then ENFILE. Not for threads that answer requests: these bring them back.
    pub fn wait(self, since: Instant) -> Result<()> {
        let in_vain = &IN_VAIN[usize::from(self.of_left > 1)];
        loop {
            let back = BACK.load(Ordering::Acquire);
            if OPEN.load(Ordering::Relaxed) < most(self.of_left) {
                return Ok(());
            }
            if in_vain.load(Ordering::Relaxed) == back {
                break;
            }
            if since.elapsed() > PATIENCE {
                in_vain.store(back, Ordering::Relaxed);
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(VfsError::Draft(Errno::ENFILE))
    }
}

/// Descriptors that something else takes for long, until it is dropped: so many fewer are to spare.
pub struct Taken(u64);

impl Taken {
    /// Counts `n` of them.
    pub fn new(n: u64) -> Taken {
        OPEN.fetch_add(n, Ordering::Relaxed);
        Taken(n)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        OPEN.fetch_sub(self.0, Ordering::Relaxed);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
        BACK.fetch_add(1, Ordering::Release);
    }
}
