//! Which thread does an operation: the one that got the request, or a job.
//!
//! Invariant: no thread that requests depend on waits for a draft. An operation that finds one being committed
//! has done nothing; it is done again when the draft is open, and nobody waits for that. In views
//! that replace, the first change of a sealed entry makes a draft that begins as a copy of the entry, which
//! takes as long as the entry is large: that is a job too. One that finds no room has done nothing either; it is done
//! again when a job has made some, which may take FORGETs that somebody must answer meanwhile. So does one that finds no descriptor.

use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;

use super::adapter::{Adapter, run};
use super::jobs::Jobs;
use super::reply::Reply;
use crate::vfs::{Result, VfsError, View};

/// A session's threads for what does not answer at once.
pub(super) struct Pools {
    /// For what takes long.
    jobs: Jobs,
    /// For moving and removing names of the tree's own directories: the kernel holds the lock of the top directory meanwhile.
    names: Jobs,
    /// For what waits for the disk and nothing else.
    disk: Jobs,
    /// For making room.
    room: Jobs,
    /// For what could not be done at once and does not take long.
    again: Jobs,
    /// For waiting for a descriptor.
    scarce: Jobs,
}

/// Which of them.
pub(super) type Pool = fn(&Pools) -> &Jobs;

impl Pools {
    pub(super) fn start() -> std::io::Result<Pools> {
        /// Threads of each that may have much to do.
        const THREADS: usize = 4;
        Ok(Pools {
            jobs: Jobs::start("job", THREADS)?,
            names: Jobs::start("names", THREADS)?,
            disk: Jobs::start("disk", THREADS)?,
            room: Jobs::start("room", THREADS)?,
            again: Jobs::start("again", 1)?,
            scarce: Jobs::start("scarce", 1)?,
        })
    }

    pub(super) fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    pub(super) fn again(&self) -> &Jobs {
        &self.again
    }

    fn names(&self) -> &Jobs {
        &self.names
    }

    fn disk(&self) -> &Jobs {
        &self.disk
    }
}

/// Does `op` and answers. When a draft is being committed, one of `later` does once that is over; when there is no room, or no
/// descriptor, whoever has made or waited for some.
pub(super) fn serve<T>(
    view: Arc<View>,
    with: (Arc<Pools>, Pool),
    reply: Reply,
    op: impl Fn(&View) -> Result<T> + Send + 'static,
    answer: impl FnOnce(Reply, std::result::Result<T, Errno>) + Send + 'static,
) {
    serve_since(view, with, reply, op, answer, None);
}

/// `since` is when it found no descriptor first.
fn serve_since<T>(
    view: Arc<View>,
    (pools, later): (Arc<Pools>, Pool),
    mut reply: Reply,
    op: impl Fn(&View) -> Result<T> + Send + 'static,
    answer: impl FnOnce(Reply, std::result::Result<T, Errno>) + Send + 'static,
    since: Option<Instant>,
) {
    let (mut closed, mut crowded, mut scarce) = (None, false, None);
    let done = run(|| {
        op(&view).inspect_err(|e| match e {
            VfsError::Committing(draft) => closed = Some(draft.clone()),
            VfsError::Crowded => crowded = true,
            VfsError::Scarce(what) => scarce = Some(*what),
            _ => {}
        })
    });
    let own = pools.clone();
    if crowded {
        return pools.room.run(move || match run(|| view.make_room()) {
            Ok(()) => serve_since(view, (own, later), reply, op, answer, since),
            Err(e) => answer(reply, Err(e)),
        });
    }
    if let Some(what) = scarce {
        // What files that were closed come back by must find a way.
        if since.is_none() && !reply.park() {
            return answer(reply, Err(Errno::ENFILE));
        }
        let since = since.unwrap_or_else(Instant::now);
        return pools.scarce.run(move || match run(|| what.wait(since)) {
            Ok(()) => serve_since(view, (own, later), reply, op, answer, Some(since)),
            Err(e) => answer(reply, Err(e)),
        });
    }
    let Some(draft) = closed else { return answer(reply, done) };
    draft.when_open(move || {
        later(&pools).run(move || serve_since(view, (own, later), reply, op, answer, since));
    });
}

impl Adapter {
    /// Does `op` and answers with its result, in this thread unless a draft is being committed.
    pub(super) fn serve<T>(
        &self,
        reply: Reply,
        op: impl Fn(&View) -> Result<T> + Send + 'static,
        answer: impl FnOnce(Reply, std::result::Result<T, Errno>) + Send + 'static,
    ) {
        serve(self.view.clone(), (self.pools.clone(), Pools::again), reply, op, answer);
    }

    /// As `serve`, in a job: for what takes long.
    pub(super) fn serve_long<T>(
        &self,
        reply: Reply,
        op: impl Fn(&View) -> Result<T> + Send + 'static,
        answer: impl FnOnce(Reply, std::result::Result<T, Errno>) + Send + 'static,
    ) {
        self.serve_in(Pools::jobs, reply, op, answer);
    }

    /// As `serve`, in a thread for names of the tree's own directories: seals, which are done elsewhere before, do not hold it up.
    pub(super) fn serve_name<T>(
        &self,
        reply: Reply,
        op: impl Fn(&View) -> Result<T> + Send + 'static,
        answer: impl FnOnce(Reply, std::result::Result<T, Errno>) + Send + 'static,
    ) {
        self.serve_in(Pools::names, reply, op, answer);
    }

    /// As `serve`, in a thread for what waits for the disk alone: seals do not hold it up.
    pub(super) fn serve_by_disk<T>(
        &self,
        reply: Reply,
        op: impl Fn(&View) -> Result<T> + Send + 'static,
        answer: impl FnOnce(Reply, std::result::Result<T, Errno>) + Send + 'static,
    ) {
        self.serve_in(Pools::disk, reply, op, answer);
    }

    /// As `serve`, in a thread of that pool.
    fn serve_in<T>(
        &self,
        pool: Pool,
        reply: Reply,
        op: impl Fn(&View) -> Result<T> + Send + 'static,
        answer: impl FnOnce(Reply, std::result::Result<T, Errno>) + Send + 'static,
    ) {
        let (view, later) = (self.view.clone(), (self.pools.clone(), pool));
        pool(&self.pools).run(move || serve(view, later, reply, op, answer));
    }

    /// As `serve`, for a change of what these numbers stand for. If it begins a replacement, a job makes that and
    /// tells the kernel to look again.
    pub(super) fn change<T>(
        &self,
        inos: &[u64],
        reply: Reply,
        op: impl Fn(&View) -> Result<T> + Send + 'static,
        answer: impl FnOnce(Reply, std::result::Result<T, Errno>) + Send + 'static,
    ) {
        let Some(sealed) = inos.iter().copied().find(|i| self.view.replaces(*i)) else {
            return self.serve(reply, op, answer);
        };
        self.serve_reading(
            reply,
            move |view| view.replace(sealed),
            |reply, made| reply.error(made.err().unwrap_or(Errno::ESTALE)),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;
    use crate::cache::{Cache, Limits};
    use crate::vfs::{Caller, ViewOptions, ino};

    fn view(limits: Limits) -> (tempfile::TempDir, Arc<View>) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("store"), limits).unwrap();
        (dir, View::new(cache, ViewOptions::default()).unwrap())
    }

    fn reply() -> Reply {
        Reply::to_device(Arc::new(tempfile::tempfile().unwrap().into()), 1)
    }

    #[test]
    fn whoever_answers_makes_no_room() {
        let (_dir, view) = view(Limits::default());
        let (tell, told) = channel();
        let tries = AtomicUsize::new(0);
        let op = move |_: &View| {
            tell.send(std::thread::current().name().unwrap_or_default().to_owned()).unwrap();
            if tries.fetch_add(1, Ordering::SeqCst) < 2 { Err(VfsError::Crowded) } else { Ok(7) }
        };
        let (end, ended) = channel();
        let answer = move |reply: Reply, done| {
            end.send(done).unwrap();
            reply.done();
        };
        let pools = Arc::new(Pools::start().unwrap());
        serve(view, (pools, Pools::again), reply(), op, answer);
        assert_eq!(ended.recv().unwrap(), Ok(7));
        let threads: Vec<String> = told.try_iter().collect();
        let own = std::thread::current().name().unwrap_or_default().to_owned();
        assert_eq!(threads.len(), 3);
        assert!(threads[0] == own && threads[1..].iter().all(|name| name.starts_with("room")), "{threads:?}");
    }

    #[test]
    fn a_create_that_finds_no_room_has_done_nothing() {
        let (_dir, view) = view(Limits { entries: Some(0), ..Limits::default() });
        let caller = Caller { uid: 0, gid: 0, pid: 1 };
        let op = move |view: &View| view.mkdir(caller, ino::ROOT, "key1".as_ref(), 0o755).map(drop);
        assert!(matches!(op(&view), Err(VfsError::Crowded)));
        let (end, ended) = channel();
        let answer = move |reply: Reply, done| {
            end.send(done).unwrap();
            reply.done();
        };
        let pools = Arc::new(Pools::start().unwrap());
        serve(view, (pools, Pools::again), reply(), op, answer);
        assert_eq!(ended.recv().unwrap(), Err(Errno::ENOSPC));
    }
}
