//! What `src/sync.rs` has, made of shuttle's parts: the same behaviour, in any order.

use std::cell::Cell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Instant;

use shuttle::rand::Rng;
pub use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// As parking_lot's.
#[derive(Default)]
pub struct Mutex<T>(shuttle::sync::Mutex<T>);

/// Empty only while a condition is waited for.
pub struct MutexGuard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>, &'a Mutex<T>);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Mutex(shuttle::sync::Mutex::new(value))
    }
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().expect("no panics")), self)
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mutex")
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0.as_ref().expect("held")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("held")
    }
}

/// As parking_lot's.
pub struct Condvar(shuttle::sync::Condvar);

impl Condvar {
    pub fn new() -> Self {
        Condvar(shuttle::sync::Condvar::new())
    }
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.0.take().expect("held");
        guard.0 = Some(self.0.wait(held).expect("no panics"));
    }
    /// Time stands still: what is over by now may be found to be at any moment, and what is not never will be.
    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, by: Instant) -> WaitTimeoutResult {
        if by > Instant::now() {
            self.wait(guard);
            return WaitTimeoutResult(false);
        }
        drop(guard.0.take());
        for _ in 0..shuttle::rand::thread_rng().gen_range(0..6) {
            shuttle::thread::yield_now();
        }
        *guard = guard.1.lock();
        WaitTimeoutResult(true)
    }
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// As parking_lot's.
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl Default for Condvar {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Condvar")
    }
}

/// As parking_lot's: a writer that waits for readers to leave keeps new ones out, but for recursive ones while there is
/// a reader.
#[derive(Default)]
pub struct RwLock<T> {
    state: Mutex<State>,
    moved: Condvar,
    /// Never waited for.
    value: std::sync::RwLock<T>,
}

#[derive(Default)]
struct State {
    readers: usize,
    /// Somebody writes, or waits for readers to leave.
    writer: bool,
}

/// Leaves the lock when it is dropped.
struct Leave<'a, T> {
    lock: &'a RwLock<T>,
    writes: bool,
}

impl<T> Drop for Leave<'_, T> {
    fn drop(&mut self) {
        let mut state = self.lock.state.lock();
        if self.writes {
            state.writer = false
        } else {
            state.readers -= 1
        }
        self.lock.moved.notify_all();
    }
}

pub struct RwLockReadGuard<'a, T> {
    value: std::sync::RwLockReadGuard<'a, T>,
    // After the value: fields are dropped in this order.
    _leave: Leave<'a, T>,
}

pub struct RwLockWriteGuard<'a, T> {
    value: std::sync::RwLockWriteGuard<'a, T>,
    _leave: Leave<'a, T>,
}

impl<T> RwLock<T> {
    pub fn new(value: T) -> Self {
        RwLock { state: Mutex::default(), moved: Condvar::new(), value: std::sync::RwLock::new(value) }
    }

    fn reading(&self) -> RwLockReadGuard<'_, T> {
        let value = self.value.try_read().expect("nobody writes");
        RwLockReadGuard { value, _leave: Leave { lock: self, writes: false } }
    }

    fn writing(&self) -> RwLockWriteGuard<'_, T> {
        let value = self.value.try_write().expect("nobody else is here");
        RwLockWriteGuard { value, _leave: Leave { lock: self, writes: true } }
    }

    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        let mut state = self.state.lock();
        while state.writer {
            self.moved.wait(&mut state);
        }
        state.readers += 1;
        drop(state);
        self.reading()
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        let mut state = self.state.lock();
        while state.writer {
            self.moved.wait(&mut state);
        }
        state.writer = true;
        while state.readers > 0 {
            self.moved.wait(&mut state);
        }
        drop(state);
        self.writing()
    }

    pub fn try_read_recursive(&self) -> Option<RwLockReadGuard<'_, T>> {
        let mut state = self.state.lock();
        if state.writer && state.readers == 0 {
            return None;
        }
        state.readers += 1;
        drop(state);
        Some(self.reading())
    }

    /// The deadline may be over at any moment.
    pub fn try_write_until(&self, _deadline: Instant) -> Option<RwLockWriteGuard<'_, T>> {
        let patience = Cell::new(shuttle::rand::thread_rng().gen_range(0..6));
        let over = || patience.replace(patience.get() - 1) <= 0;
        while std::mem::replace(&mut self.state.lock().writer, true) {
            if over() {
                return None;
            }
            shuttle::thread::yield_now();
        }
        while self.state.lock().readers > 0 {
            if over() {
                self.state.lock().writer = false;
                self.moved.notify_all();
                return None;
            }
            shuttle::thread::yield_now();
        }
        Some(self.writing())
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> fmt::Debug for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RwLockReadGuard")
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}
