//! What several want at once is done once, by the first of them; the others wait for what comes of it, as long as they can.
//! Model-checked by `tests/interleavings`.
//!
//! Invariants: at most one pilot for each key; a flight whose pilot is gone has ended; who boards meets none that has. Must
//! not know: what is done.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use crate::sync::{Condvar, Mutex};

/// All that is being done.
pub(super) struct Flights<K: Eq + Hash, T>(Mutex<HashMap<K, Arc<Flight<T>>>>);

/// One thing that is being done.
pub(super) struct Flight<T> {
    /// Inner `None` when it ended without a result.
    result: Mutex<Option<Option<T>>>,
    ended: Condvar,
}

/// Who does it; it has ended when this is dropped.
pub(super) struct Pilot<K: Eq + Hash, T> {
    flights: Arc<Flights<K, T>>,
    flight: Arc<Flight<T>>,
    key: K,
    result: Option<T>,
}

impl<K: Eq + Hash, T> Default for Flights<K, T> {
    fn default() -> Self {
        Flights(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone, T: Clone> Flights<K, T> {
    /// What is being done about a key; and, if nobody was at it, the duty to do it.
    pub fn board(self: &Arc<Self>, key: &K) -> (Arc<Flight<T>>, Option<Pilot<K, T>>) {
        let mut all = self.0.lock();
        if let Some(flight) = all.get(key) {
            return (flight.clone(), None);
        }
        let flight = Arc::new(Flight { result: Mutex::new(None), ended: Condvar::new() });
        all.insert(key.clone(), flight.clone());
        let pilot = Pilot { flights: self.clone(), flight: flight.clone(), key: key.clone(), result: None };
        (flight, Some(pilot))
    }

    /// How many there are.
    pub fn under_way(&self) -> usize {
        self.0.lock().len()
    }
}

impl<K: Eq + Hash + Clone, T: Clone, E: Clone> Flights<K, Result<T, E>> {
    /// Has it done by the first who wants it, and waits for what comes of it; `None` when nothing did by then. Whoever was
    /// at it may have had less time than we: after nothing, or an error that is no last word (`again`), we try too, once.
    pub fn share<F>(
        self: &Arc<Self>,
        key: &K,
        by: Instant,
        again: impl Fn(&E) -> bool,
        act: impl Fn() -> Result<Result<T, E>, F>,
    ) -> Result<Option<Result<T, E>>, F> {
        let mut waited = false;
        loop {
            let (flight, pilot) = self.board(key);
            let mine = pilot.is_some();
            if let Some(pilot) = pilot {
                pilot.land(act()?);
            }
            let came = flight.wait(by);
            let last_word = came.as_ref().is_some_and(|came| !came.as_ref().is_err_and(&again));
            if last_word || mine || waited || Instant::now() >= by {
                return Ok(came);
            }
            waited = true;
        }
    }
}

impl<T: Clone> Flight<T> {
    /// What came of it; `None` when nothing did by then.
    pub fn wait(&self, by: Instant) -> Option<T> {
        let mut result = self.result.lock();
        while result.is_none() {
            if self.ended.wait_until(&mut result, by).timed_out() {
                break;
            }
        }
        result.clone().flatten()
    }
}

impl<T> Flight<T> {
    /// Nobody does it any more.
    pub fn has_ended(&self) -> bool {
        self.result.lock().is_some()
    }
}

impl<K: Eq + Hash, T> Pilot<K, T> {
    /// It is done.
    pub fn land(mut self, result: T) {
        self.result = Some(result);
    }
}

impl<K: Eq + Hash, T> Drop for Pilot<K, T> {
    fn drop(&mut self) {
        // First: whoever learns that it failed, and boards again, must not meet it again.
        self.flights.0.lock().remove(&self.key);
        *self.flight.result.lock() = Some(self.result.take());
        self.flight.ended.notify_all();
    }
}
