//! The daemon's own threads: upkeep, the ones for quiet drafts and for links, the scrub, those that bring entries to tiers.
//!
//! Invariant: a panic in one of them costs a round of its work and not the thread; it is logged and counted
//! (`faults`). Must not know: what the work is.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::handler::Daemon;

/// How often upkeep looks.
const TICK: Duration = Duration::from_secs(1);
/// How often views look for drafts that have become quiet.
const LOOK: Duration = Duration::from_millis(100);
/// How long a thread whose work has panicked rests before it begins again.
const REST: Duration = Duration::from_secs(60);

/// Does `work`; `None` when it panicked, which the panic's hook has logged.
pub(super) fn guarded<T>(what: &str, work: impl FnOnce() -> T) -> Option<T> {
    let done = catch_unwind(AssertUnwindSafe(work));
    done.inspect_err(|_| tracing::error!("{what} panicked; it goes on with its next round")).ok()
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(work)
}

/// Rests so long, or less when the thread is woken; false when it is over.
fn rest(until: &AtomicBool, time: Duration) -> bool {
    if !until.load(Ordering::Relaxed) && !time.is_zero() {
        std::thread::park_timeout(time);
    }
    !until.load(Ordering::Relaxed)
}

/// Does `work` until it returns. It begins again `pause` after a panic, unless it is over by then.
fn persist(what: &str, until: &AtomicBool, pause: Duration, mut work: impl FnMut()) {
    while guarded(what, &mut work).is_none() {
        let end = Instant::now() + pause;
        while Instant::now() < end {
            if !rest(until, end.saturating_duration_since(Instant::now())) {
                return;
            }
        }
    }
}

/// The thread that ticks.
pub(super) fn start_upkeep(daemon: Arc<Daemon>, until: Arc<AtomicBool>) -> io::Result<JoinHandle<()>> {
    spawn("upkeep", move || {
        while rest(&until, TICK) {
            guarded("upkeep", || daemon.tick());
        }
    })
}

/// The thread that seals drafts which have become quiet. That takes as long as they are large.
pub(super) fn start_quiet(daemon: Arc<Daemon>, until: Arc<AtomicBool>) -> io::Result<JoinHandle<()>> {
    spawn("quiet", move || {
        let look = || guarded("looking for quiet drafts", || daemon.views().tick());
        while rest(&until, if look() == Some(true) { LOOK } else { TICK }) {}
    })
}

/// The thread that looks after links. It may hang where one of them is, so that nobody waits for it, and it holds
/// nothing of the store.
pub(super) fn start_links(daemon: &Daemon, until: Arc<AtomicBool>) -> io::Result<()> {
    let links = daemon.links().clone();
    let round = move || {
        while rest(&until, TICK) {
            guarded("looking after links", || links.tick());
        }
    };
    spawn("links", round).map(drop)
}

/// The thread that verifies what is stored, when nothing else wants the disk or a processor.
pub(super) fn start_scrub(daemon: Arc<Daemon>, until: Arc<AtomicBool>) -> io::Result<JoinHandle<()>> {
    spawn("scrub", move || {
        if let Err(e) = last_in_line() {
            tracing::debug!("the scrub has no lower priority: {e}");
        }
        persist("the scrub", &until, REST, || daemon.cache().scrub(&mut |time| rest(&until, time)));
    })
}

/// The thread that brings entries to a tier. It holds the cache alone: the daemon may end before it does.
pub(super) fn start_push(daemon: &Daemon, tier: usize, until: Arc<AtomicBool>) -> io::Result<JoinHandle<()>> {
    let cache = daemon.cache().clone();
    spawn("push", move || {
        persist("bringing entries to a tier", &until, REST, || cache.push(tier, &|time| rest(&until, time)));
    })
}

/// From now on this thread gets the disk and a processor when nobody else wants them.
fn last_in_line() -> io::Result<()> {
    /// `IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0)`.
    const IDLE: libc::c_int = 3 << 13;
    /// `IOPRIO_WHO_PROCESS`: one thread.
    const THREAD: libc::c_int = 1;
    // SAFETY: neither call takes a pointer; 0 is the calling thread.
    let failed = unsafe {
        libc::syscall(libc::SYS_ioprio_set, THREAD, 0, IDLE) != 0
            || libc::setpriority(libc::PRIO_PROCESS, 0, 19) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_panics_begins_again_until_it_is_over() {
        let (mut begun, until) = (0, AtomicBool::new(false));
        persist("a test", &until, Duration::ZERO, || {
            begun += 1;
            assert!(begun >= 3, "as a fault inside would");
        });
        assert_eq!(begun, 3);
        until.store(true, Ordering::Relaxed);
        persist("a test", &until, Duration::from_secs(3600), || panic!("as a fault inside would"));
        assert_eq!(guarded("a test", || 7), Some(7));
    }
}
