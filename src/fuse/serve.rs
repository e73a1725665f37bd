//! Which thread does an operation: the one that got the request, or a job.
//!
//! Invariant: no thread that requests depend on waits for a draft. An operation that finds one being committed
//! has done nothing; it is done again when the draft is open, and nobody waits for that. In views
//! that replace, the first change of a sealed entry makes a draft that begins as a copy of the entry, which
//! takes as long as the entry is large: that is a job too.

use std::sync::Arc;

use nix::errno::Errno;

use super::adapter::{Adapter, run};
use super::jobs::Jobs;
use super::reply::Reply;
use crate::vfs::{Result, VfsError, View};

/// Does `op` and answers; when a draft is being committed, one of `later` does once that is over.
pub(super) fn serve<T>(
    view: Arc<View>,
    later: Jobs,
    reply: Reply,
    op: impl Fn(&View) -> Result<T> + Send + 'static,
    answer: impl FnOnce(Reply, std::result::Result<T, Errno>) + Send + 'static,
) {
    let mut closed = None;
    let done = run(|| {
        op(&view).inspect_err(|e| {
            if let VfsError::Committing(draft) = e {
                closed = Some(draft.clone());
            }
        })
    });
    let Some(draft) = closed else { return answer(reply, done) };
    draft.when_open(move || {
        let again = later.clone();
        later.run(move || serve(view, again, reply, op, answer));
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
        serve(self.view.clone(), self.again.clone(), reply, op, answer);
    }

    /// As `serve`, in a job: for what takes long.
    pub(super) fn serve_long<T>(
        &self,
        reply: Reply,
        op: impl Fn(&View) -> Result<T> + Send + 'static,
        answer: impl FnOnce(Reply, std::result::Result<T, Errno>) + Send + 'static,
    ) {
        let (view, jobs) = (self.view.clone(), self.jobs.clone());
        self.jobs.run(move || serve(view, jobs, reply, op, answer));
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
