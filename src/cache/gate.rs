//! Who is inside a draft: those who change it, and those who are alone in it.
//!
//! Invariants: nobody changes a draft while somebody is alone in it, nor after it ended; nobody waits to change one:
//! who finds the gate closed is told, and can leave word for when it opens; what was read under one generation is what
//! is there as long as the generation is the same, and a file open for writing counts as a change both when it is opened
//! and when it is closed. Model-checked by `tests/interleavings`. Must not know: what a draft is.

use std::time::Instant;

use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// How far a draft is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Being written.
    Open,
    /// Sealed or dropped: changes nothing any more.
    Gone,
}

/// Held by whoever changes a draft's tree.
#[derive(Debug)]
pub struct Gate<'a> {
    _shared: RwLockReadGuard<'a, Stage>,
}

/// Why a draft cannot be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// It is being committed, or moved: this ends soon.
    Now,
    /// It was sealed or dropped.
    ForGood,
}

/// What is to be done when a gate opens; must be short.
type Then = Box<dyn FnOnce() + Send>;

/// The gate of one draft.
pub(crate) struct Gates {
    stage: RwLock<Stage>,
    /// To be called when the gate opens.
    waiting: Mutex<Vec<Then>>,
    /// Will be `Gone` as soon as the views know.
    going: AtomicBool,
    generation: AtomicU64,
    writers: AtomicU64,
}

/// Held by whoever is alone in a draft.
pub(crate) struct Alone<'a> {
    gates: &'a Gates,
    stage: RwLockWriteGuard<'a, Stage>,
    // After the guard: fields are dropped in this order.
    _wake: Wake<'a>,
}

/// Calls those who wait for the gate.
struct Wake<'a>(&'a Gates);

impl Drop for Wake<'_> {
    fn drop(&mut self) {
        let waiting = std::mem::take(&mut *self.0.waiting.lock());
        waiting.into_iter().for_each(|then| then());
    }
}

impl Default for Gates {
    fn default() -> Self {
        Gates {
            stage: RwLock::new(Stage::Open),
            waiting: Mutex::new(Vec::new()),
            going: AtomicBool::new(false),
            generation: AtomicU64::new(1),
            writers: AtomicU64::new(0),
        }
    }
}

impl Gates {
    /// How far the draft is; `None` while somebody is alone in it, who may change that.
    pub(crate) fn stage(&self) -> Option<Stage> {
        self.stage.try_read_recursive().map(|stage| *stage)
    }

    /// Enters to change something (counts as a change); never waits. Whoever is inside may enter again, and enter
    /// other drafts.
    pub(crate) fn enter(&self) -> Result<Gate<'_>, Closed> {
        let shared = self.stage.try_read_recursive().ok_or(Closed::Now)?;
        if *shared == Stage::Gone {
            return Err(Closed::ForGood);
        }
        self.changed();
        Ok(Gate { _shared: shared })
    }

    /// Calls `then` as soon as nobody is alone in it, which can be at once.
    pub(crate) fn when_open(&self, then: impl FnOnce() + Send + 'static) {
        let mut waiting = self.waiting.lock();
        // Asked under the lock: whoever leaves calls those who are here after that.
        if self.stage().is_none() {
            waiting.push(Box::new(then));
            return;
        }
        drop(waiting);
        then();
    }

    /// Has it ended? `None` while the views are just being told.
    pub(crate) fn has_ended(&self) -> Option<bool> {
        if !self.going.load(Ordering::Acquire) {
            return Some(false);
        }
        self.stage().map(|stage| stage == Stage::Gone)
    }

    /// Enters alone, when nobody else is inside; `Now` when that is not before `deadline`.
    pub(crate) fn alone(&self, deadline: Instant) -> Result<Alone<'_>, Closed> {
        // Before the guard, so that it is dropped after it, also when nothing comes of this: whoever asked in
        // the moment between was told to wait.
        let wake = Wake(self);
        let entered = self.stage.try_write_until(deadline);
        match entered {
            Some(stage) if *stage == Stage::Open => Ok(Alone { gates: self, stage, _wake: wake }),
            Some(_) => Err(Closed::ForGood),
            None => Err(Closed::Now),
        }
    }

    /// Reads what is there without keeping others out. `read` gets the generation from before: no change was half done then.
    pub(crate) fn as_of<T>(&self, deadline: Instant, read: impl FnOnce(u64) -> T) -> Result<T, Closed> {
        let generation = self.alone(deadline)?.generation();
        Ok(read(generation))
    }

    /// A handle for writing was opened (call inside).
    pub(crate) fn writer_opened(&self) {
        self.writers.fetch_add(1, Ordering::AcqRel);
    }

    /// A handle for writing was closed.
    pub(crate) fn writer_closed(&self) {
        self.changed();
        let before = self.writers.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "a writer was closed that was never opened");
    }

    /// Open handles for writing.
    pub(crate) fn writers(&self) -> u64 {
        self.writers.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

impl Alone<'_> {
    /// What the draft holds now: the same number, the same content, unless somebody is writing.
    pub(crate) fn generation(&self) -> u64 {
        self.gates.generation.load(Ordering::Acquire)
    }

    /// Nothing has changed since that generation, and nobody is changing anything.
    pub(crate) fn is_still(&self, generation: u64) -> bool {
        // In this order: who closes a file counts the change first.
        self.gates.writers() == 0 && self.generation() == generation
    }

    /// The draft is about to end: views are told next.
    pub(crate) fn going(&self) {
        self.gates.going.store(true, Ordering::Release);
    }

    /// The draft has ended.
    pub(crate) fn end(mut self) {
        self.going();
        *self.stage = Stage::Gone;
    }
}
