//! Calls on a mount, timed: each must come back in time, and while it has not, everybody can see who waits for what.
//!
//! A thread that is watched ([`watched_by`]) has all its [`call`]s counted; others just make them.
#![allow(dead_code)]

#[path = "disk.rs"]
mod disk;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use disk::Disk;

/// Every request is answered within this time.
pub const ANSWERED: Duration = Duration::from_secs(5);
/// On a busy machine a client itself waits for a processor, before and after its call is answered; and while the disk does nothing
/// for anybody, who needs it waits.
pub const BACK: Duration = Duration::from_secs(10);
/// A command is a process, and may wait for much that is done for others.
pub const COMMAND: Duration = Duration::from_secs(60);

/// A call that has not come back.
#[derive(Debug, Clone)]
pub struct Going {
    pub since: Instant,
    pub limit: Duration,
    pub what: &'static str,
    pub at: PathBuf,
}

/// The calls of all threads that are watched.
#[derive(Default)]
pub struct Calls {
    going: Mutex<HashMap<ThreadId, Going>>,
    longest: Mutex<BTreeMap<&'static str, Duration>>,
    /// How many have come back, by the mount on which they were made.
    done: Vec<(PathBuf, AtomicU64)>,
    /// What was slow besides.
    pub disk: Disk,
}

thread_local! {
    static MINE: RefCell<Option<Arc<Calls>>> = const { RefCell::new(None) };
}

/// From now on this thread's calls are counted.
pub fn watched_by(calls: &Arc<Calls>) {
    MINE.with(|mine| *mine.borrow_mut() = Some(calls.clone()));
}

/// Makes a call on a mount; it must come back in time, whatever it says: a call is one request or more, and no request may take
/// longer than all of it.
pub fn call<T>(what: &'static str, at: &Path, work: impl FnOnce() -> T) -> T {
    within(BACK, what, at, work)
}

/// The same with another limit.
pub fn within<T>(limit: Duration, what: &'static str, at: &Path, work: impl FnOnce() -> T) -> T {
    let Some(calls) = MINE.with(|mine| mine.borrow().clone()) else { return work() };
    let (me, waited, since) = (std::thread::current().id(), waited(), Instant::now());
    calls.all().insert(me, Going { since, limit, what, at: at.to_owned() });
    let result = work();
    let took = since.elapsed();
    calls.all().remove(&me);
    calls.note(what, at, took);
    assert!(took < limit, "{what} {}: came back after {took:.1?}", at.display());
    let besides = self::waited() - waited + calls.disk.slow_since(since);
    let answered = took.saturating_sub(besides);
    assert!(
        limit != BACK || answered < ANSWERED,
        "{what} {}: was answered after {answered:.1?}",
        at.display()
    );
    result
}

/// How long this thread was ready to run and did not, as far as the kernel counts that.
fn waited() -> Duration {
    let counts = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(counts.split(' ').nth(1).map_or(0, |n| n.parse().expect("a number")))
}

impl Calls {
    /// For calls on these mounts.
    pub fn on(mounts: impl IntoIterator<Item = PathBuf>) -> Self {
        let done = mounts.into_iter().map(|at| (at, AtomicU64::new(0))).collect();
        Self { done, ..Self::default() }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<ThreadId, Going>> {
        self.going.lock().expect("nobody panics here")
    }

    fn note(&self, what: &'static str, at: &Path, took: Duration) {
        let mut longest = self.longest.lock().expect("nobody panics here");
        let most = longest.entry(what).or_default();
        *most = took.max(*most);
        if let Some((_, done)) = self.done.iter().find(|(mount, _)| at.starts_with(mount)) {
            done.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// One that should have come back.
    pub fn overdue(&self) -> Option<Going> {
        self.all().values().find(|going| going.since.elapsed() > going.limit).cloned()
    }

    /// The one that takes longest of those on a mount, if it takes longer than this.
    pub fn late(&self, than: Duration) -> Option<Going> {
        let all = self.all();
        let oldest = all.values().filter(|going| going.limit == BACK).min_by_key(|going| going.since);
        oldest.filter(|going| going.since.elapsed() > than).cloned()
    }

    /// How many calls on this mount have come back.
    pub fn done(&self, mount: &Path) -> u64 {
        self.done.iter().find(|(at, _)| at == mount).map_or(0, |(_, done)| done.load(Ordering::SeqCst))
    }

    /// How long each took at most, the longest first.
    pub fn longest(&self) -> Vec<(&'static str, Duration)> {
        let longest = self.longest.lock().expect("nobody panics here");
        let mut all: Vec<_> = longest.iter().map(|(what, took)| (*what, *took)).collect();
        all.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
        all
    }
}
