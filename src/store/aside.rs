//! Work that nobody waits for, done by a thread of its own.
//!
//! Invariants: the thread begins with the first piece of work and ends with what owns it; pieces for which there is no room
//! are not done. Must not know: what the work is.

use std::sync::OnceLock;

use crossbeam_channel::{Sender, bounded};

/// Pieces that may wait.
const WAITING: usize = 16;

/// Such a thread. `None` in there: it could not be started.
pub(super) struct Aside<T>(OnceLock<Option<Sender<T>>>);

impl<T> Default for Aside<T> {
    fn default() -> Self {
        Aside(OnceLock::new())
    }
}

impl<T: Send + 'static> Aside<T> {
    /// Hands a piece to the thread of this name, which does `work` with each.
    pub fn give(&self, piece: T, name: &'static str, work: impl Fn(T) + Send + 'static) {
        if let Some(thread) = self.0.get_or_init(|| start(name, work)) {
            let _ = thread.try_send(piece);
        }
    }
}

fn start<T: Send + 'static>(name: &'static str, work: impl Fn(T) + Send + 'static) -> Option<Sender<T>> {
    let (tx, rx) = bounded::<T>(WAITING);
    let started = std::thread::Builder::new().name(name.into()).spawn(move || rx.iter().for_each(work));
    started.inspect_err(|e| tracing::warn!(error = %e, "nothing is read {name}")).ok().map(|_| tx)
}
