//! Signals that ask a process to end, as something that can be polled.
//!
//! Invariants: a signal that was ignored when the process was started (nohup, a background job) stays ignored; while nobody
//! listens, the others end the process, as they would if nobody ever had.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::{SigId, flag, low_level};

/// While it lives, these signals are told here and do nothing else.
pub(super) struct Signals {
    last: Arc<AtomicUsize>,
    wake: UnixStream,
    registered: Vec<SigId>,
}

/// Beside the number of a signal: some process has sent it.
const BY_PROCESS: usize = 1 << 16;

/// Who listens, and the signals whose handlers are installed, which they are for good.
struct Listeners {
    count: usize,
    handled: Vec<i32>,
}

static LISTENERS: Mutex<Listeners> = Mutex::new(Listeners { count: 0, handled: Vec::new() });
/// Nobody listens: handlers do what happens without one.
static UNHEARD: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

impl Listeners {
    fn one_more(signals: &[i32]) -> io::Result<()> {
        let mut all = LISTENERS.lock();
        for signal in signals {
            if !all.handled.contains(signal) {
                flag::register_conditional_default(*signal, UNHEARD.clone())?;
                all.handled.push(*signal);
            }
        }
        all.count += 1;
        UNHEARD.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn one_less() {
        let mut all = LISTENERS.lock();
        all.count -= 1;
        UNHEARD.store(all.count == 0, Ordering::SeqCst);
    }
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: a zeroed sigaction is valid to be written to; without a new action only the old one is told.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut old) == 0 && old.sa_sigaction == libc::SIG_IGN
    }
}

/// For poll. Rounded up, or the last millisecond would be waited for in a circle.
pub(super) fn time_left(until: Option<Instant>) -> PollTimeout {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    left.map_or(PollTimeout::NONE, |left| {
        PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
    })
}

impl Signals {
    /// Catches what asks to end, and `more`.
    pub fn catch(more: &[i32]) -> io::Result<Signals> {
        let (wake, tell) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let all = [SIGHUP, SIGINT, SIGQUIT, SIGTERM].into_iter().filter(|s| !is_ignored(*s));
        let all: Vec<i32> = all.collect();
        Listeners::one_more(&all)?;
        let mut signals = Signals { last: Arc::default(), wake, registered: Vec::new() };
        for signal in all {
            let last = signals.last.clone();
            let remember = move |info: &libc::siginfo_t| {
                let by_process = if info.si_code <= 0 { BY_PROCESS } else { 0 };
                last.store(signal as usize | by_process, Ordering::SeqCst);
            };
            // SAFETY: a store into an atomic number, which a handler may do.
            signals.registered.push(unsafe { signal_hook_registry::register_sigaction(signal, remember) }?);
            signals.registered.push(low_level::pipe::register(signal, tell.try_clone()?)?);
        }
        for signal in more {
            signals.registered.push(low_level::pipe::register(*signal, tell.try_clone()?)?);
        }
        Ok(signals)
    }

    /// Readable when a signal came.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Waits until a signal came, `fd` can be read or it is so late; whether it was `fd`.
    pub fn or_readable(&self, fd: Option<BorrowedFd<'_>>, until: Option<Instant>) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(self.fd(), PollFlags::POLLIN)];
        fds.extend(fd.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        loop {
            match poll(&mut fds, time_left(until)) {
                Err(Errno::EINTR) => {}
                other => {
                    other?;
                    // What the kernel says and poll does not know is no silence.
                    return Ok(fds.get(1).is_some_and(|fd| fd.any() != Some(false)));
                }
            }
        }
    }

    /// The last one that asked to end, once.
    pub fn take(&self) -> Option<i32> {
        self.take_with_origin().map(|(signal, _)| signal)
    }

    /// The same, and whether a process has sent it, and not the kernel: for a terminal, that tells all of a group.
    pub fn take_with_origin(&self) -> Option<(i32, bool)> {
        let mut rest = [0; 64];
        while matches!(io::Read::read(&mut &self.wake, &mut rest), Ok(n) if n > 0) {}
        match self.last.swap(0, Ordering::AcqRel) {
            0 => None,
            last => Some(((last & !BY_PROCESS) as i32, last & BY_PROCESS != 0)),
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            low_level::unregister(id);
        }
        Listeners::one_less();
    }
}
