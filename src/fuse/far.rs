//! Requests that wait for a tier, and the threads that do the waiting.
//!
//! Invariants: no thread that answers other requests waits for a tier; what waits takes at most half of a processor's queue
//! for longer than [`CROWDED`]; whatever the tier does, every request is answered by the deadline that began when it came:
//! all of a kind have the same one, so that who is behind others in the row is taken from it by then. Threads begin when they
//! are needed and end when they are not. Must not know: what a tier is.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};

use super::adapter::{Adapter, run};
use super::reply::Reply;
use super::serve::{Pool, Pools, serve};
use crate::vfs::{Caller, VfsError, View};

/// Reads under way at a time: as many as entries of rings, so that there none is behind another.
const READS: usize = 256;
/// Look-ups under way at a time.
const LOOK_UPS: usize = 32;
/// Reads that may wait at a time, of one mount. More wait [`CROWDED`] at most. Half of what the kernel has under way
/// unasked (it reads ahead), or it would read nothing else ahead.
const MOST_READS: usize = UNASKED as usize / 2;
/// What the kernel may have under way unasked in a mount with tiers.
pub(super) const UNASKED: u16 = 256;
/// How long a read waits when too many do.
const CROWDED: Duration = Duration::from_secs(1);
/// How long a thread waits for something to do.
const IDLE: Duration = Duration::from_secs(10);

/// Threads for what waits for a tier.
pub(super) struct Far {
    reads: Row,
    look_ups: Row,
}

impl Far {
    pub(super) fn new() -> Far {
        Far { reads: Row::new("far-read", READS), look_ups: Row::new("far-look", LOOK_UPS) }
    }
}

impl Adapter {
    /// Looks up what is not here.
    pub(super) fn look_up_far(&self, who: Caller, parent: u64, name: OsString, mut reply: Reply) {
        let since = Instant::now();
        if !reply.park() {
            // As a tier that does not answer in time.
            return reply.error(Errno::ENOENT);
        }
        let op = move |view: &View| view.look_up_in_tiers(who, parent, &name, since);
        let (view, later) = (self.view.clone(), (self.pools.clone(), Pools::again as Pool));
        self.far.look_ups.run(move || serve(view, later, reply, op, Reply::entry));
    }

    /// Reads.
    pub(super) fn read(&self, who: Caller, (ino, fh): (u64, u64), offset: u64, size: usize, reply: Reply) {
        let mut remote = false;
        let unanswered = reply.content(size, |buf| {
            let read = run(|| {
                let read = self.view.read(ino, fh, offset, buf);
                read.inspect_err(|e| remote = matches!(e, VfsError::Remote))
            });
            (!remote).then_some(read)
        });
        if let Some(reply) = unanswered {
            self.read_far(who.pid, (ino, offset), size, reply);
        }
    }

    fn read_far(&self, thread: u32, from: (u64, u64), size: usize, mut reply: Reply) {
        let since = Instant::now();
        let crowded = !reply.park() || self.far.reads.len() >= MOST_READS;
        let most = crowded.then_some(CROWDED);
        let view = self.view.clone();
        self.far.reads.run(move || {
            let answered = reply.content(size, |buf| {
                let read = run(|| view.read_from_tiers(thread, from, buf, since, most));
                Some(match read {
                    Err(Errno::EIO) if crowded && since.elapsed() >= CROWDED => {
                        say_crowded();
                        Err(Errno::EAGAIN)
                    }
                    read => read,
                })
            });
            debug_assert!(answered.is_none(), "it was filled, or failed");
        });
    }

    /// As `serve_long`, of what may read all of an entry, which may be in a tier.
    pub(super) fn serve_reading<T>(
        &self,
        reply: Reply,
        op: impl Fn(&View) -> crate::vfs::Result<T> + Send + 'static,
        answer: impl FnOnce(Reply, Result<T, Errno>) + Send + 'static,
    ) {
        if !self.view.has_tiers() {
            return self.serve_long(reply, op, answer);
        }
        let (view, later) = (self.view.clone(), (self.pools.clone(), Pools::jobs as Pool));
        self.far.reads.run(move || serve(view, later, reply, op, answer));
    }
}

/// Once a minute.
fn say_crowded() {
    static LAST: AtomicI64 = AtomicI64::new(0);
    let now = crate::cache::now_ns() / 60_000_000_000;
    if LAST.swap(now, Ordering::Relaxed) != now {
        tracing::warn!("so many reads wait for tiers that others are told to try again (EAGAIN)");
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Jobs in the order they came, and the threads at them.
struct Row(Arc<Shared>);

struct Shared {
    name: &'static str,
    most: usize,
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Jobs that a thread is at.
    begun: usize,
    threads: usize,
    idle: usize,
}

impl Row {
    fn new(name: &'static str, most: usize) -> Row {
        Row(Arc::new(Shared { name, most, state: Mutex::default(), more: Condvar::new() }))
    }

    /// Jobs that are not done.
    fn len(&self) -> usize {
        let state = self.0.state.lock();
        state.jobs.len() + state.begun
    }

    /// Runs `job` as soon as a thread is free. A job that is dropped answers EIO.
    fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.state.lock();
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() {
            self.0.more.notify_one();
            return;
        }
        if state.threads >= self.0.most {
            return;
        }
        state.threads += 1;
        let shared = self.0.clone();
        let started = std::thread::Builder::new().name(self.0.name.into()).spawn(move || shared.work());
        if let Err(e) = started {
            tracing::error!(error = %e, "cannot start a thread to wait for a tier");
            state.threads -= 1;
            let nobody = if state.threads == 0 { state.jobs.pop_back() } else { None };
            drop(state);
            drop(nobody);
        }
    }
}

impl Shared {
    fn work(&self) {
        while let Some(job) = self.next() {
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a job panicked; its request is answered with EIO");
            }
            self.state.lock().begun -= 1;
        }
    }

    /// `None`: there was none for so long that the thread ends.
    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                state.begun += 1;
                return Some(job);
            }
            state.idle += 1;
            let late = self.more.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if late && state.jobs.is_empty() {
                state.threads -= 1;
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn no_more_threads_than_there_may_be_and_all_is_done_in_order() {
        let row = Row::new("test", 2);
        let (go, gone) = channel::<()>();
        let gone = Arc::new(Mutex::new(gone));
        let (tell, told) = channel();
        for n in 0..2 {
            let (gone, tell) = (gone.clone(), tell.clone());
            row.run(move || {
                gone.lock().recv().ok();
                tell.send(n).unwrap();
            });
        }
        for n in 2..6 {
            let tell = tell.clone();
            row.run(move || tell.send(n).unwrap());
        }
        assert_eq!(row.len(), 6);
        assert_eq!(row.0.state.lock().threads, 2);
        assert!(told.try_recv().is_err(), "all threads wait");
        drop(go);
        let mut all: Vec<i32> = told.iter().take(6).collect();
        all.sort();
        assert_eq!(all, [0, 1, 2, 3, 4, 5]);
        row.run(|| panic!("as a job may"));
        let again = tell.clone();
        row.run(move || again.send(7).unwrap());
        assert_eq!(told.recv().unwrap(), 7);
    }
}
