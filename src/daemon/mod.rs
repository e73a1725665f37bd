//! The daemon: opens the cache, mounts views, runs the workers, ends cleanly.
//!
//! Purpose: composition root of the long-running process. Invariants: it owns its store as long
//! as it lives; it ends by itself when its last view is gone, whoever unmounted it; it never
//! leaves a mount behind that it could take away. Must not know: argument parsing, terminals,
//! how requests are answered (`control`), what a view shows (`vfs`).

mod allocator;
mod config;
mod doctor;
mod faults;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod handler;
mod holders;
mod journal;
mod links;
mod log;
mod mountpoint;
mod mounts;
mod options;
mod record;
mod unmount;
mod views;
mod workers;

pub use crate::fuse::Identity;
pub use config::{Config, ConfigError, MountConfig};
pub use doctor::{Check, Health, examine, faults as faults_check, scans as scans_check, tier as tier_check};
pub use links::Links;
pub use log::{LogSpec, LogTarget};
pub use mountpoint::{DeadView, canonical, dead_views, take_over_ours};
pub use mounts::{MountInfo, mount_table, mounted_at};
pub use record::{owned_by_us, stored_limits};
pub use unmount::unmount;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cache::{Cache, Limits, Prefetch, TierOptions};
use crate::control::{Failure, LimitFlags, RawPath, Server, ViewFacts};
use crate::fuse::MountOptions;
use crate::model::units::Bytes;
use crate::store::{Access, Store};
use crate::tier::{self, Address};
use crate::vfs::ViewOptions;
use handler::Daemon;

/// How long running requests may take to end when the daemon does.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long threads may take to let go of the store.
const LETTING_GO: Duration = Duration::from_secs(2);

/// What a daemon starts with; passed to the background process as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The store.
    pub store: RawPath,
    /// Limits, complete or not; what is absent has its default.
    pub limits: LimitFlags,
    /// Where to log.
    pub log: LogSpec,
    /// Its tiers, in the order in which they are asked.
    pub tiers: Vec<Address>,
    /// Entries that are sealed here go to them.
    pub push: bool,
    /// What comes of an entry when it is looked up.
    #[serde(default)]
    pub prefetch: Prefetch,
    /// No more than so many bytes a second, to each.
    #[serde(default)]
    pub push_limit: Option<Bytes>,
    /// What a process may have come from them by reading; 0 is no limit, and absent the default.
    #[serde(default)]
    pub scan_budget: Option<Bytes>,
    /// Its first view's mount point.
    pub at: RawPath,
    /// What the first view shows.
    pub view: ViewOptions,
    /// How it is mounted.
    pub mount: MountOptions,
}

impl Start {
    /// How tiers are asked.
    fn tier_options(&self) -> TierOptions {
        let usual = TierOptions::default();
        let scan_budget = match self.scan_budget {
            Some(Bytes(0)) => None,
            Some(Bytes(bytes)) => Some(bytes),
            None => usual.scan_budget,
        };
        let push_limit = self.push_limit.map(|limit| limit.0);
        TierOptions { push_limit, scan_budget, prefetch: self.prefetch, ..usual }
    }
}

/// Why the main thread wakes.
enum Wake {
    /// A termination signal.
    Signal,
    /// The view with this number has ended.
    Ended(u64),
    /// Look whether there is any view left.
    Look,
}

/// Runs a daemon until its last view is gone or it is told to end. `ready` is called once, when the first
/// view answers or the start has failed.
pub fn run(start: &Start, ready: impl FnOnce(Result<&ViewFacts, &Failure>)) -> Result<(), Failure> {
    match begin(start) {
        Ok((running, facts)) => {
            ready(Ok(&facts));
            running.until_the_end()
        }
        Err(failure) => {
            ready(Err(&failure));
            Err(failure)
        }
    }
}

struct Running {
    daemon: Arc<Daemon>,
    server: Server,
    wake: Receiver<Wake>,
    ended: Arc<AtomicBool>,
    /// Upkeep and scrub.
    workers: Vec<JoinHandle<()>>,
    /// Those that bring entries to tiers, which may wait for one for long.
    pushers: Vec<JoinHandle<()>>,
}

fn begin(start: &Start) -> Result<(Running, ViewFacts), Failure> {
    let store = &start.store.0;
    let cache = open(start)?;
    let (sender, wake) = unbounded();
    let daemon = Arc::new(Daemon::new(cache, start, sender.clone()));
    let server = Server::bind(store)?;
    let io = |e: std::io::Error| Failure::failed(format!("cannot start the daemon: {e}"));
    watch_signals(sender).map_err(io)?;
    let ended = Arc::new(AtomicBool::new(false));
    let workers = vec![
        workers::start_upkeep(daemon.clone(), ended.clone()).map_err(io)?,
        workers::start_quiet(daemon.clone(), ended.clone()).map_err(io)?,
        workers::start_scrub(daemon.clone(), ended.clone()).map_err(io)?,
    ];
    workers::start_links(&daemon, ended.clone()).map_err(io)?;
    let pushing = daemon.cache().pushing_tiers();
    let pushers = pushing.into_iter().map(|tier| workers::start_push(&daemon, tier, ended.clone()));
    let pushers = pushers.collect::<Result<_, _>>().map_err(io)?;
    let first = mount_first(&daemon, &server, start);
    let running = Running { daemon, server, wake, ended, workers, pushers };
    match first {
        Ok(facts) => {
            // Now that it is mounted: it takes a while, and nobody waits for it.
            running.daemon.cache().load_keys();
            tracing::info!(store = %store.display(), at = %facts.at.0.display(), "the daemon runs");
            Ok((running, facts))
        }
        Err(failure) => {
            running.finish();
            Err(failure)
        }
    }
}

/// Answers from now on, and mounts the first view. Other mounts that are asked for meanwhile wait until it stands: without it
/// the daemon ends, and they are told so.
fn mount_first(daemon: &Arc<Daemon>, server: &Server, start: &Start) -> Result<ViewFacts, Failure> {
    let turn = daemon.views().mounting();
    let served = server.serve(daemon.clone());
    let served = served.map_err(|e| Failure::failed(format!("cannot start the daemon: {e}")));
    let first = served.and_then(|()| daemon.add_view(&turn, &start.at.0, &start.view, &start.mount));
    if first.is_err() {
        daemon.views().close(&turn);
    }
    first
}

/// Opens the cache as its owner, with log and limits.
fn open(start: &Start) -> Result<Cache, Failure> {
    let store = &start.store.0;
    if !store.join("format").exists() {
        // A mount that cannot be makes no store; the store is made first, because the log may be in it.
        mountpoint::prepare(&start.at.0, store, &[])?;
        drop(Store::open(store, Access::Own)?);
    }
    record::owned_by_us(store)?;
    let mut limits = Limits::default();
    start.limits.apply(&mut limits);
    if let Err(failure) = start.log.install("info,fuser=error") {
        // A store that cannot be used is the better reason.
        Cache::open(store, limits)?.close()?;
        return Err(failure);
    }
    faults::watch();
    prepare_process();
    let tiers =
        start.tiers.iter().map(|address| tier::open(address, start.push)).collect::<Result<Vec<_>, _>>();
    let tiers = tiers.map_err(|e| Failure::failed(e.to_string()))?;
    let cache = Cache::open(store, limits.clone())?;
    cache.attach_tiers(tiers, start.tier_options());
    record::take_over(store);
    record::remember_limits(store, &LimitFlags::of(&limits));
    Ok(cache)
}

/// Creation modes are the clients' own (the kernel has applied their umask), the working
/// directory of whoever started the daemon is not kept busy, and descriptors are not scarce.
fn prepare_process() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    allocator::prepare();
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    if let Err(e) = std::env::set_current_dir("/") {
        tracing::warn!("cannot leave the working directory: {e}");
    }
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!("cannot raise the limit of open files: {e}");
    }
}

fn watch_signals(wake: Sender<Wake>) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut seen = 0;
        for signal in signals.forever() {
            seen += 1;
            tracing::info!(signal, "asked to end");
            if seen > 2 || wake.send(Wake::Signal).is_err() {
                // Whoever insists gets the signal's own effect.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        }
    })?;
    Ok(())
}

impl Running {
    fn until_the_end(self) -> Result<(), Failure> {
        while !self.daemon.views().over() {
            match self.wake.recv_timeout(Duration::from_secs(3600)) {
                Ok(Wake::Signal) => {
                    let views = self.daemon.views();
                    if let Err(failure) = views.unmount_all(true) {
                        tracing::error!("{failure}; it ends with the daemon");
                        views.close(&views.mounting());
                    }
                }
                Ok(Wake::Ended(number)) => self.daemon.views().ended(number),
                Ok(Wake::Look) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.daemon.record_views();
        }
        self.finish();
        Ok(())
    }

    /// What is being brought to a tier that does not answer ends with the process: it is brought again by the next one.
    fn end_pushers(&self) {
        let deadline = Instant::now() + LETTING_GO;
        while !self.pushers.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
            self.pushers.iter().for_each(|pusher| pusher.thread().unpark());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn finish(mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.server.close(PATIENCE);
        for worker in std::mem::take(&mut self.workers) {
            worker.thread().unpark();
            let name = worker.thread().name().unwrap_or_default().to_owned();
            if worker.join().is_err() {
                tracing::error!("the {name} thread has failed");
            }
        }
        self.end_pushers();
        self.daemon.record_views();
        self.daemon.links().let_go();
        let cache = self.daemon.cache().clone();
        drop(self.daemon);
        close(cache);
        tracing::info!("the daemon has ended");
        // Whoever asked for the end sees it now.
        drop(self.server);
    }
}

/// Closes the cache, and waits until the threads of connections and views have let go of it: only then
/// has the store been closed in order. A view that was detached busily may keep it until the process ends.
fn close(cache: Cache) {
    if let Err(e) = cache.clone().close() {
        tracing::error!("the cache did not close cleanly: {e}");
    }
    let deadline = Instant::now() + LETTING_GO;
    // The last one is dropped here, where the process does not end in the middle of it.
    while Arc::strong_count(&cache.inner) > 1 {
        if Instant::now() > deadline {
            tracing::warn!("the store is still in use; the next start looks it over");
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The path of the log of a daemon in the background that was given no other.
pub fn default_log(store: &std::path::Path) -> PathBuf {
    store.join("daemon.log")
}
