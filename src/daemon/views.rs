//! The daemon's mounted views. Once `stopping` is set no view is added any more.
//!
//! Locks: `mounting` (held while one view is mounted or unmounted, or all are unmounted) → `state` (never held across a mount or
//! unmount). Who has waited for `mounting` looks whether any view may be added still.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use parking_lot::{Mutex, MutexGuard};

use super::{Wake, holders};
use crate::control::{Failure, Kind, ViewFacts};
use crate::fuse::Mounted;
use crate::vfs::View;

/// How long an unmount waits for a view that may be its own to be mounted.
const READY: Duration = Duration::from_secs(5);

/// The right to mount: nobody else mounts, and no stop goes on.
pub(super) struct Turn<'a>(#[expect(dead_code, reason = "held")] MutexGuard<'a, ()>);

/// All views.
#[derive(Default)]
pub(super) struct Views {
    mounting: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    list: Vec<Arc<Active>>,
    next: u64,
    stopping: bool,
}

struct Active {
    number: u64,
    view: Arc<View>,
    mounted: Mounted,
    facts: ViewFacts,
}

impl Views {
    /// Held by whoever checks a mount point and mounts there.
    pub(super) fn mounting(&self) -> Turn<'_> {
        Turn(self.mounting.lock())
    }

    /// A refusal once no view is added any more.
    pub(super) fn may_add(&self) -> Result<(), Failure> {
        match self.over() {
            true => Err(Failure::new(Kind::Stopping, "the daemon is about to end")),
            false => Ok(()),
        }
    }

    /// No view is added any more: the daemon ends.
    pub(super) fn close(&self, _turn: &Turn<'_>) {
        self.state.lock().stopping = true;
    }

    /// Adds a mounted view; when it ends, by whosever hand, the main thread wakes.
    pub(super) fn add(
        &self,
        _turn: &Turn<'_>,
        view: Arc<View>,
        mounted: Mounted,
        facts: ViewFacts,
        wake: &Sender<Wake>,
    ) -> Result<ViewFacts, Failure> {
        let mut state = self.state.lock();
        if state.stopping {
            drop(state);
            return Err(Failure::new(Kind::Stopping, "the daemon is about to end"));
        }
        let number = state.next;
        state.next += 1;
        let active = Arc::new(Active { number, view, mounted, facts: facts.clone() });
        state.list.push(active.clone());
        drop(state);
        let wake = wake.clone();
        active.mounted.on_end(Box::new(move || {
            let _ = wake.send(Wake::Ended(number));
        }));
        Ok(facts)
    }

    /// The view with this number is gone.
    pub(super) fn ended(&self, number: u64) {
        let gone = self.remove(number);
        if let Some(active) = gone {
            tracing::info!(at = %active.facts.at.0.display(), "a view has ended");
        }
    }

    fn remove(&self, number: u64) -> Option<Arc<Active>> {
        let mut state = self.state.lock();
        let at = state.list.iter().position(|a| a.number == number)?;
        let active = state.list.remove(at);
        state.stopping |= state.list.is_empty();
        Some(active)
    }

    /// The last view is gone: the daemon ends.
    pub(super) fn over(&self) -> bool {
        self.state.lock().stopping
    }

    fn all(&self) -> Vec<Arc<Active>> {
        self.state.lock().list.clone()
    }

    /// Lets the views look for drafts that have become quiet; false when none ever will.
    pub(super) fn tick(&self) -> bool {
        let quiet: Vec<_> = self.all().into_iter().filter(|a| a.facts.view.seal_quiet.is_some()).collect();
        quiet.iter().for_each(|a| a.view.tick());
        !quiet.is_empty()
    }

    pub(super) fn facts(&self) -> Vec<ViewFacts> {
        self.all().iter().map(|a| a.facts.clone()).collect()
    }

    pub(super) fn mount_points(&self) -> Vec<PathBuf> {
        self.all().iter().map(|a| a.facts.at.0.clone()).collect()
    }

    /// Unmounts the view at `at`; true when it was the last one.
    pub(super) fn unmount(&self, at: &Path, lazy: bool) -> Result<bool, Failure> {
        let listed = || self.all().into_iter().find(|a| a.facts.at.0 == at);
        // One that is just being mounted is listed when that is done.
        let ready = || {
            let _turn = self.mounting.try_lock_for(READY);
            listed()
        };
        let Some(active) = listed().or_else(ready) else {
            return Err(Failure::new(
                Kind::NotFound,
                format!("the daemon has no view at {}; 'outfs status' lists them", at.display()),
            ));
        };
        if !lazy {
            holders::refuse(at)?;
        }
        // Nobody mounts meanwhile: an ordinary user's unmount goes by the path alone, and takes what is there when it gets to it.
        Self::unmount_one(&active, || {
            let _turn = self.mounting.try_lock_for(READY);
            active.mounted.unmount(lazy)
        })?;
        self.remove(active.number);
        Ok(self.over())
    }

    fn unmount_one(active: &Active, unmount: impl Fn() -> std::io::Result<()>) -> Result<(), Failure> {
        let at = &active.facts.at.0;
        holders::patiently(at, unmount).map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => holders::busy(at),
            _ => refused(at, &e),
        })
    }

    /// Who is told no is told before anything has happened. Ordinary users cannot ask the kernel: they look who uses it.
    fn refuse_busy(active: &Active) -> Result<(), Failure> {
        let at = &active.facts.at.0;
        let look = || match active.mounted.in_use()? {
            Some(true) => Err(std::io::Error::from_raw_os_error(libc::EBUSY)),
            _ => Ok(()),
        };
        match holders::patiently(at, look) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Err(holders::busy(at)),
            looked => looked.map_err(|e| refused(at, &e)).and_then(|()| holders::refuse(at)),
        }
    }

    /// Unmounts all views, or none if one is busy (and none more after one that has become so meanwhile). `force`: a busy
    /// one is detached.
    pub(super) fn unmount_all(&self, force: bool) -> Result<(), Failure> {
        let turn = self.mounting();
        if !force {
            self.all().iter().try_for_each(|active| Self::refuse_busy(active))?;
        }
        for active in self.all() {
            let clean = Self::unmount_one(&active, || active.mounted.unmount(false));
            if let Err(failure) = clean {
                if !force {
                    return Err(failure);
                }
                Self::unmount_one(&active, || active.mounted.unmount(true))?;
                tracing::warn!("{failure}; it is detached");
            }
            self.remove(active.number);
        }
        self.close(&turn);
        Ok(())
    }
}

fn refused(at: &Path, e: &std::io::Error) -> Failure {
    Failure::failed(format!("cannot unmount {}: {e}", at.display()))
}
