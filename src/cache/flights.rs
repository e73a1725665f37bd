//! What several want at once is done once, by the first of them; the others wait for what comes of it, as long as they can.
//!
//! Invariants: at most one pilot for each key; a flight whose pilot is gone has ended. Must not know: what is done.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

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
        let pilot = Pilot { flights: self.clone(), flight: flight.clone(), key: key.clone() };
        (flight, Some(pilot))
    }

    /// How many there are.
    pub fn under_way(&self) -> usize {
        self.0.lock().len()
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

impl<K: Eq + Hash, T> Pilot<K, T> {
    /// It is done.
    pub fn land(self, result: T) {
        *self.flight.result.lock() = Some(Some(result));
    }
}

impl<K: Eq + Hash, T> Drop for Pilot<K, T> {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.key);
        self.flight.result.lock().get_or_insert(None);
        self.flight.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn many_want_it_and_one_does_it() {
        let (flights, done) = (Arc::new(Flights::<u8, u32>::default()), AtomicU32::new(0));
        let by = Instant::now() + Duration::from_secs(60);
        let (first, pilot) = flights.board(&7);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let (flight, other) = flights.board(&7);
                assert!(other.is_none());
                let done = &done;
                scope.spawn(move || done.fetch_add(flight.wait(by).unwrap(), Ordering::Relaxed));
            }
            pilot.unwrap().land(5);
        });
        assert_eq!((done.into_inner(), first.wait(by)), (40, Some(5)));
        assert!(flights.board(&7).1.is_some(), "the next one does it again");
    }

    #[test]
    fn nobody_waits_for_what_never_comes() {
        let flights = Arc::new(Flights::<u8, u32>::default());
        let (flight, pilot) = flights.board(&7);
        assert_eq!(flight.wait(Instant::now()), None, "too late");
        drop(pilot);
        assert_eq!(flight.wait(Instant::now() + Duration::from_secs(60)), None, "given up");
    }
}
