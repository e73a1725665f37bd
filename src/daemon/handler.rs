//! Requests that only a daemon answers; all others go to `control::dispatch`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::Sender;
use jiff::Timestamp;
use parking_lot::Mutex;

use super::links::Links;
use super::options::RunsWith;
use super::views::{Turn, Views};
use super::{Start, Wake, allocator, faults, mountpoint, record};
use crate::cache::Cache;
use crate::control::{
    Caller, Channel, DaemonFacts, Failure, Handler, Reply, Request, ViewFacts, Wanted, dispatch, hit,
};
use crate::fuse::{self, MountOptions};
use crate::model::EntryKey;
use crate::vfs::{VfsError, View, ViewOptions};

/// The hidden command of this program that looks names up.
const LOOKER: [&str; 2] = ["/proc/self/exe", "look"];

/// The running daemon.
pub(super) struct Daemon {
    cache: Cache,
    views: Arc<Views>,
    links: Arc<Links>,
    started_at: Timestamp,
    runs: RunsWith,
    wake: Sender<Wake>,
}

impl Daemon {
    pub(super) fn new(cache: Cache, start: &Start, wake: Sender<Wake>) -> Self {
        let links = Arc::new(Links::hold(&cache));
        let runs = RunsWith::of(start);
        Self { cache, views: Arc::default(), links, started_at: Timestamp::now(), runs, wake }
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(super) fn views(&self) -> &Views {
        &self.views
    }

    pub(super) fn links(&self) -> &Arc<Links> {
        &self.links
    }

    /// Called every second by the upkeep thread.
    pub(super) fn tick(&self) {
        self.cache.tick();
        if self.cache.has_let_go(allocator::WORTH_IT) {
            allocator::give_back();
        }
    }

    pub(super) fn record_views(&self) {
        // What is written last is what was listed last.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock();
        record::remember_views(self.cache.store().root(), &self.views.mount_points());
    }

    fn facts(&self) -> DaemonFacts {
        DaemonFacts {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: self.started_at,
            log: self.runs.log.clone(),
            tiers: self.runs.tiers.clone(),
            faults: faults::seen(),
            views: self.views.facts(),
        }
    }

    /// Mounts a view.
    pub(super) fn add_view(
        &self,
        turn: &Turn<'_>,
        at: &Path,
        view: &ViewOptions,
        mount: &MountOptions,
    ) -> Result<ViewFacts, Failure> {
        self.views.may_add()?;
        let at = mountpoint::prepare(at, self.cache.store().root(), &self.views.mount_points())?;
        let made = View::new(self.cache.clone(), view.clone()).map_err(|e| match e {
            VfsError::Cache(e) => Failure::from(e),
            e => Failure::failed(format!("cannot make the view: {e}")),
        })?;
        let mounted = fuse::mount(made.clone(), &at, mount, &LOOKER.map(OsString::from)).map_err(|e| {
            let hint = if e.no_fuse { "; 'outfs doctor' says what is missing" } else { "" };
            Failure::failed(format!("{e}{hint}"))
        })?;
        let facts = ViewFacts {
            at: at.into(),
            passthrough: mounted.passthrough(),
            transport: mounted.transport(),
            readdirplus: mounted.readdirplus(),
            no_open: mounted.no_open(),
            prune: mounted.prunes(),
            view: view.clone(),
            mount: mount.clone(),
        };
        let facts = self.views.add(turn, made, mounted, facts, &self.wake)?;
        self.record_views();
        Ok(facts)
    }

    fn mount(
        &self,
        at: &Path,
        view: &ViewOptions,
        mount: &MountOptions,
        wanted: &Wanted,
    ) -> Result<Reply, Failure> {
        let mut conflicts = wanted.limits.conflicts(&self.cache.limits());
        conflicts.extend(self.runs.conflicts(wanted));
        if !conflicts.is_empty() {
            return Err(Failure::failed(format!(
                "the daemon (process {}) that owns the store {} runs with other options: {}; leave these options \
                 out to add a view, or 'outfs stop' it first",
                std::process::id(),
                self.cache.store().root().display(),
                conflicts.join(", "),
            )));
        }
        let facts = self.add_view(&self.views.mounting(), at, view, mount)?;
        tracing::info!(at = %facts.at.0.display(), "added a view");
        Ok(Reply::Mounted(facts))
    }

    fn unmount(&self, at: &Path, lazy: bool) -> Result<Reply, Failure> {
        let ends = self.views.unmount(at, lazy)?;
        tracing::info!(at = %at.display(), lazy, "unmounted a view");
        let _ = self.wake.send(Wake::Look);
        Ok(Reply::Unmounted { ends })
    }

    fn stop(&self, lazy: bool) -> Result<Reply, Failure> {
        self.views.unmount_all(lazy)?;
        let _ = self.wake.send(Wake::Look);
        Ok(Reply::Unmounted { ends: true })
    }

    /// A symlink into a view, and a lease that lasts as long as the symlink.
    fn link(&self, key: &EntryKey, dest: &Path, path: &Path, replace: bool) -> Result<Reply, Failure> {
        let entry = hit(&self.cache, key)?;
        let below = Path::new("outputs").join(path);
        if entry.manifest()?.find(below.as_os_str().as_bytes()).is_none() {
            let what = below.display();
            return Err(Failure::failed(format!("the entry {key} has no {what} to link to")));
        }
        let shows = |v: &ViewFacts| v.view.scope.as_ref().is_none_or(|keys| keys.contains(key));
        let view = self.views.facts().into_iter().find(shows).ok_or_else(|| {
            Failure::failed(format!("no view of this store shows {key}, so there is nothing to link to"))
        })?;
        let target = view.at.0.join(key.as_str()).join(below.components().as_path());
        self.links.make(entry, dest, target.clone(), replace)?;
        Ok(Reply::Linked { target: target.into() })
    }
}

impl Handler for Daemon {
    fn handle(&self, caller: &Caller, request: Request, channel: &mut dyn Channel) -> Result<Reply, Failure> {
        tracing::debug!(uid = caller.uid, ?request, "asked");
        match request {
            Request::Status => Ok(Reply::Daemon(self.facts())),
            Request::Mount { at, view, mount, wanted } => self.mount(&at.0, &view, &mount, &wanted),
            Request::Unmount { at, lazy } => self.unmount(&at.0, lazy),
            Request::Stop { lazy } => self.stop(lazy),
            Request::Link { key, dest, path, replace } => self.link(&key, &dest.0, &path.0, replace),
            request => {
                let mut reply = dispatch(&self.cache, caller, request, channel)?;
                if let Reply::Stats(stats) = &mut reply {
                    stats.pid = Some(std::process::id());
                    stats.daemon = Some(self.facts());
                }
                Ok(reply)
            }
        }
    }
}
