//! The locks and counters of what is model-checked.
//!
//! `tests/interleavings` takes the files that use them as they are, with others in their place that try the orders
//! in which threads may come. Must not know: who uses them.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(crate) use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
