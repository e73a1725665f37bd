//! One thread for what nobody should wait for: deleting drafts, writing down accesses, loading keys, syncing what came whole.
//!
//! Invariants: it holds the cache only weakly, so it never keeps it open; nothing that was reported
//! done depends on it (what it has not done is done again by recovery, or lost at no harm).

use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, unbounded};

use super::lease::Reservation;
use super::{Inner, partial};
use crate::model::BlobHash;
use crate::store::StoreError;

/// How often accesses are written down.
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// Keys taken into memory at a time: other jobs come between.
const KEYS: usize = 10_000;

/// What the thread does.
pub(super) enum Job {
    /// Delete a draft's directory; what was linked from it into the store becomes the store's own.
    RemoveDraft(String, Vec<BlobHash>),
    /// Make a blob of a content all of which has come; it is reserved meanwhile.
    FinishPartial(BlobHash, Reservation),
    /// Take keys into memory, from where it was left.
    LoadKeys(i64),
    /// Write down accesses now.
    Flush,
    /// Answer when all before is done.
    Wait(Sender<()>),
    /// Answer and end.
    Stop(Sender<()>),
}

/// The thread and its queue.
pub(super) struct Background {
    queue: Sender<Job>,
}

impl Background {
    /// Starts the thread for the cache that is being made.
    pub fn start(cache: Weak<Inner>) -> (Background, std::io::Result<()>) {
        let (queue, jobs) = unbounded();
        let work = move || {
            loop {
                let job = match jobs.recv_timeout(FLUSH_EVERY) {
                    Ok(job) => job,
                    Err(RecvTimeoutError::Timeout) => Job::Flush,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                let Some(cache) = cache.upgrade() else { return };
                match job {
                    Job::RemoveDraft(id, linked) => remove_draft(&cache, &id, &linked),
                    Job::FinishPartial(hash, reserved) => partial::finish(&cache, &hash, reserved),
                    Job::LoadKeys(after) => load_keys(&cache, after),
                    Job::Flush => flush(&cache),
                    Job::Wait(done) => drop(done.send(())),
                    Job::Stop(done) => {
                        drop(cache);
                        let _ = done.send(());
                        return;
                    }
                }
            }
        };
        let started = std::thread::Builder::new().name("cache-jobs".into()).spawn(work).map(drop);
        (Background { queue }, started)
    }

    /// Queues a job; after `close` it is left to recovery.
    pub fn send(&self, job: Job) {
        let _ = self.queue.send(job);
    }

    /// Waits until everything queued so far is done.
    pub fn wait(&self) {
        self.ask(Job::Wait);
    }

    /// Waits like [`wait`](Self::wait) and ends the thread.
    pub fn stop(&self) {
        self.ask(Job::Stop);
    }

    fn ask(&self, job: fn(Sender<()>) -> Job) {
        let (done, wait) = crossbeam_channel::bounded(1);
        self.send(job(done));
        // An error means that the thread has ended already.
        let _ = wait.recv();
    }
}

fn load_keys(cache: &Inner, after: i64) {
    match cache.index.load_keys(after, KEYS) {
        Ok(Some(next)) => cache.background.send(Job::LoadKeys(next)),
        Ok(None) => {}
        // Keys are found without it, slower.
        Err(e) => tracing::warn!("keys are not kept in memory: {e}"),
    }
}

fn flush(cache: &Arc<Inner>) {
    cache.note_reads();
    if let Err(e) = cache.flush_accesses() {
        tracing::warn!("cannot write down accesses: {e}");
    }
}

fn remove_draft(cache: &Inner, id: &str, linked: &[BlobHash]) {
    if let Err(e) = cache.store.remove_draft(id) {
        tracing::warn!("cannot delete the draft {id}: {e}");
    }
    for hash in linked {
        match cache.store.settle(hash) {
            // Evicted meanwhile.
            Ok(()) | Err(StoreError::Missing { .. }) => {}
            Err(e) => tracing::warn!("cannot change the owner of the blob {hash}: {e}"),
        }
    }
}
