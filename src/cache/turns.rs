//! One at a time for each key. Model-checked by `tests/interleavings`. Must not know: what is done.

use std::collections::HashSet;
use std::hash::Hash;

use crate::sync::{Condvar, Mutex};

/// The keys at which somebody is.
pub(crate) struct Turns<K> {
    keys: Mutex<HashSet<K>>,
    left: Condvar,
}

/// The right to be at a key, until it is dropped.
pub(crate) struct Turn<'a, K: Eq + Hash>(&'a Turns<K>, K);

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Turns { keys: Mutex::new(HashSet::new()), left: Condvar::new() }
    }
}

impl<K: Eq + Hash + Clone> Turns<K> {
    /// Waits until nobody else is at it.
    pub(crate) fn enter(&self, key: &K) -> Turn<'_, K> {
        let mut keys = self.keys.lock();
        while !keys.insert(key.clone()) {
            self.left.wait(&mut keys);
        }
        Turn(self, key.clone())
    }
}

impl<K: Eq + Hash> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        self.0.keys.lock().remove(&self.1);
        self.0.left.notify_all();
    }
}
