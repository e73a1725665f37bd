//! Faults and bad spots that tests put under the calls of the port, and waiting for the disk that they leave out.
//!
//! Invariants: while there are none, a call costs one relaxed load. Must not know: what is called.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

static ARMED: AtomicUsize = AtomicUsize::new(0);
pub(super) static NO_SYNC: AtomicBool = AtomicBool::new(false);

thread_local! {
    static PLAN: Cell<Option<Plan>> = const { Cell::new(None) };
}

/// The same for threads that have no plan of their own.
static EVERYWHERE: Mutex<Option<Plan>> = Mutex::new(None);

/// The number of the file whose sync was made to fail last.
static REFUSED: Mutex<Option<u64>> = Mutex::new(None);

/// What kind of call is about to be made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Any,
    /// Waits for the disk.
    Sync,
    /// Reads or writes more than a byte, and may do less than it is asked for.
    Transfer,
    /// Does all or nothing, and may be interrupted by a signal.
    Long,
}

/// What becomes of a call that is struck.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strike {
    Fails(i32),
    /// It reads or writes half of what it is asked for.
    DoesLess,
}

#[derive(Clone, Copy)]
struct Plan {
    before: u64,
    strike: Strike,
    lasting: bool,
    fired: bool,
    /// No calls but those that wait for the disk.
    syncs: bool,
}

impl Plan {
    /// Whether it strikes calls of this kind.
    fn is_for(&self, call: Call) -> bool {
        match self.strike {
            Strike::DoesLess => call == Call::Transfer,
            Strike::Fails(libc::EINTR) => matches!(call, Call::Transfer | Call::Long),
            Strike::Fails(_) => !self.syncs || call == Call::Sync,
        }
    }

    /// Counts a call; what is to become of it.
    fn strike(&mut self, call: Call) -> Option<Strike> {
        if !self.is_for(call) {
            return None;
        }
        let strike = if self.fired {
            self.lasting
        } else if self.before == 0 {
            self.fired = true;
            true
        } else {
            self.before -= 1;
            false
        };
        strike.then_some(self.strike)
    }
}

/// While it lives, makes one of this thread's calls into the file system fail (or one of all threads'): for tests.
pub struct Fault {
    everywhere: bool,
    _of_this_thread: PhantomData<*const ()>,
}

impl Fault {
    /// The call after the next `before` ones fails with `errno`; the later ones too if `lasting`. `EINTR` strikes only what a
    /// signal can interrupt.
    pub fn after(before: u64, errno: i32, lasting: bool) -> Fault {
        PLAN.set(Some(Plan::failing(before, errno, lasting)));
        Fault::armed(false)
    }

    /// The same for the calls of all threads together. There must be one such fault at a time.
    pub fn everywhere(before: u64, errno: i32, lasting: bool) -> Fault {
        *EVERYWHERE.lock() = Some(Plan::failing(before, errno, lasting));
        Fault::armed(true)
    }

    /// The read or write (of any thread) after the next `before` ones does half of what it is asked for; the later ones too
    /// if `lasting`.
    pub fn of_less(before: u64, lasting: bool) -> Fault {
        *EVERYWHERE.lock() = Some(Plan { strike: Strike::DoesLess, ..Plan::failing(before, 0, lasting) });
        Fault::armed(true)
    }

    /// The same for those calls of all threads that wait for the disk: it fails once, and then says that all is well.
    pub fn of_sync(before: u64, errno: i32) -> Fault {
        *EVERYWHERE.lock() = Some(Plan { syncs: true, ..Plan::failing(before, errno, false) });
        Fault::armed(true)
    }

    /// The number of the file or directory whose sync it made fail last, if it did.
    pub fn refused(&self) -> Option<u64> {
        *REFUSED.lock()
    }

    fn armed(everywhere: bool) -> Fault {
        if everywhere {
            *REFUSED.lock() = None;
        }
        ARMED.fetch_add(1, Ordering::Relaxed);
        Fault { everywhere, _of_this_thread: PhantomData }
    }

    /// Whether it has struck.
    pub fn fired(&self) -> bool {
        let plan = if self.everywhere { *EVERYWHERE.lock() } else { PLAN.get() };
        plan.is_some_and(|p| p.fired)
    }
}

impl Plan {
    fn failing(before: u64, errno: i32, lasting: bool) -> Plan {
        Plan { before, strike: Strike::Fails(errno), lasting, fired: false, syncs: false }
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        ARMED.fetch_sub(1, Ordering::Relaxed);
        if self.everywhere {
            *EVERYWHERE.lock() = None;
        } else {
            PLAN.set(None);
        }
    }
}

/// Parts of files, by device and inode, that cannot be read.
static BAD_SPOTS: Mutex<Vec<(u64, u64, Range<u64>)>> = Mutex::new(Vec::new());

/// While it lives, nobody in this process can read some bytes of a file through the store (EIO): a bad spot of the disk, for tests.
pub struct BadSpot {
    dev: u64,
    ino: u64,
}

impl BadSpot {
    /// These bytes of the file that has this path now.
    pub fn of(path: &std::path::Path, bytes: Range<u64>) -> io::Result<BadSpot> {
        let meta = std::fs::metadata(path)?;
        BAD_SPOTS.lock().push((meta.dev(), meta.ino(), bytes));
        ARMED.fetch_add(1, Ordering::Relaxed);
        Ok(BadSpot { dev: meta.dev(), ino: meta.ino() })
    }
}

impl Drop for BadSpot {
    fn drop(&mut self) {
        ARMED.fetch_sub(1, Ordering::Relaxed);
        BAD_SPOTS.lock().retain(|(dev, ino, _)| (*dev, *ino) != (self.dev, self.ino));
    }
}

/// Fails where a bad spot is among these bytes of a file.
pub(super) fn look_for_spots(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    if ARMED.load(Ordering::Relaxed) == 0 || BAD_SPOTS.lock().is_empty() {
        return Ok(());
    }
    let stat = nix::sys::stat::fstat(file)?;
    let hit = |(dev, ino, at): &(u64, u64, Range<u64>)| {
        (*dev, *ino) == (stat.st_dev, stat.st_ino) && at.start < offset + len && offset < at.end
    };
    if BAD_SPOTS.lock().iter().any(hit) { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
}

/// Leaves out (or no longer leaves out) waiting for the disk, in the whole process: for tests.
pub fn skip_syncs(on: bool) {
    NO_SYNC.store(on, Ordering::Relaxed);
}

/// A call is about to be made that can fail.
pub(crate) fn step() -> io::Result<()> {
    if ARMED.load(Ordering::Relaxed) == 0 { Ok(()) } else { failed(struck(Call::Any)) }
}

/// One that waits for the disk.
pub(super) fn step_of_sync(file: BorrowedFd<'_>) -> io::Result<()> {
    if ARMED.load(Ordering::Relaxed) == 0 {
        return Ok(());
    }
    failed(struck(Call::Sync))
        .inspect_err(|_| *REFUSED.lock() = nix::sys::stat::fstat(file).ok().map(|s| s.st_ino))
}

/// One that reads or writes so many bytes; of how many it is to be asked.
pub(super) fn step_of_transfer(len: usize) -> io::Result<usize> {
    if ARMED.load(Ordering::Relaxed) == 0 {
        return Ok(len);
    }
    match struck(if len > 1 { Call::Transfer } else { Call::Long }) {
        Some(Strike::DoesLess) => Ok(len / 2),
        other => failed(other).map(|()| len),
    }
}

/// Makes a call, again for as long as signals interrupt it.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let step = || if ARMED.load(Ordering::Relaxed) == 0 { Ok(()) } else { failed(struck(Call::Long)) };
    loop {
        match step().and_then(|()| call()) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn failed(strike: Option<Strike>) -> io::Result<()> {
    match strike {
        Some(Strike::Fails(errno)) => Err(io::Error::from_raw_os_error(errno)),
        _ => Ok(()),
    }
}

#[cold]
fn struck(call: Call) -> Option<Strike> {
    match PLAN.get() {
        Some(mut plan) => {
            let strike = plan.strike(call);
            PLAN.set(Some(plan));
            strike
        }
        None => EVERYWHERE.lock().as_mut().and_then(|plan| plan.strike(call)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::stat;
    use super::*;

    #[test]
    fn a_fault_strikes_once_or_for_good_and_only_here() {
        let tmp = tempfile::tempfile().unwrap();
        let once = Fault::after(1, libc::EIO, false);
        assert!(stat(tmp.as_fd()).is_ok());
        assert!(!once.fired());
        assert_eq!(stat(tmp.as_fd()).unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(once.fired());
        assert!(stat(tmp.as_fd()).is_ok());
        drop(once);
        let lasting = Fault::after(0, libc::ENOSPC, true);
        std::thread::scope(|s| assert!(s.spawn(|| stat(tmp.as_fd())).join().unwrap().is_ok()));
        assert!(stat(tmp.as_fd()).is_err());
        assert!(stat(tmp.as_fd()).is_err());
        drop(lasting);
        assert!(stat(tmp.as_fd()).is_ok());
    }
}
