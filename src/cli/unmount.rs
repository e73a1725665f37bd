//! `outfs unmount` and `outfs stop`.
//!
//! Invariant: when the daemon ends with it, success means that it has let go of the store.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use super::out::{self, Streams};
use super::session::connect;
use super::{Context, absolute, unexpected};
use crate::control::{Failure, Kind, Reply, Request};
use crate::daemon;
use crate::store::owner_of;

/// Unmount a view; the daemon ends with its last one
#[derive(Args)]
#[command(visible_alias = "umount", after_help = "Example: outfs unmount /mnt/cache")]
pub(crate) struct Unmount {
    /// The mount point
    mount_point: PathBuf,
    /// Detach even when it is in use
    #[arg(long)]
    lazy: bool,
}

/// Unmount all views of the store and end its daemon
#[derive(Args)]
#[command(after_help = "Example: outfs stop")]
pub(crate) struct Stop {
    /// Detach even what is in use
    #[arg(long)]
    lazy: bool,
}

impl Unmount {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let at = absolute(&self.mount_point)?;
        let at = daemon::canonical(&at)
            .map_err(|e| Failure::failed(format!("cannot unmount {}: {e}", at.display())))?;
        let seen = daemon::Identity::of(&at).ok();
        // This command itself must not keep it busy.
        let _ = std::env::set_current_dir("/");
        // The view's own store, when the mount table names it, before the one that was meant.
        let named = daemon::mounted_at(&at).and_then(|m| m.store());
        for store in named.iter().chain([&cx.store]) {
            let request = Request::Unmount { at: at.clone().into(), lazy: self.lazy };
            match ask_to_end(store, &request) {
                Ok(Asked::Done) => {
                    if !is_same(store, &cx.store) {
                        let store = out::clean(&store.to_string_lossy());
                        out::note(&format!(
                            "{} was a view of the store {store}",
                            out::clean(&at.to_string_lossy())
                        ));
                    }
                    return Ok(());
                }
                Ok(Asked::Ended) if !daemon::mounted_at(&at).is_some_and(|m| m.is_outfs()) => return Ok(()),
                Ok(Asked::Ended | Asked::Nobody) => {}
                Err(failure) if failure.kind == Kind::NotFound => {}
                Err(failure) => return Err(failure),
            }
        }
        daemon::unmount(&at, self.lazy, seen.as_ref())
    }
}

impl Stop {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let _ = std::env::set_current_dir("/");
        // That it is somebody else's is no sign that there is none.
        connect(&cx.store)?;
        if !matches!(ask_to_end(&cx.store, &Request::Stop { lazy: self.lazy })?, Asked::Nobody) {
            return Ok(());
        }
        out::note(&format!("no daemon runs for the store {}", cx.store.display()));
        for daemon::DeadView { at, .. } in daemon::dead_views(&cx.store) {
            daemon::take_over_ours(&at, &cx.store)?;
            let at = out::clean(&at.to_string_lossy());
            out::note(&format!("unmounted {at}, which a daemon that died had left"));
        }
        Ok(())
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let real = |p: &Path| std::fs::canonicalize(p).unwrap_or_else(|_| p.to_owned());
    real(one) == real(other)
}

/// What came of it.
enum Asked {
    /// It was done, and when the daemon ended with it, it has let go of the store.
    Done,
    /// There was a daemon, which was about to end and has.
    Ended,
    /// There is none.
    Nobody,
}

/// Asks the store's daemon, if there is one. A stop also waits for whoever has the store and cannot be asked: a daemon
/// that starts or ends, or a command.
fn ask_to_end(store: &Path, request: &Request) -> Result<Asked, Failure> {
    let stop = matches!(request, Request::Stop { .. });
    let mut waiting = Waiting::new();
    let mut none = Asked::Nobody;
    loop {
        let Ok(Some(mut client)) = connect(store) else {
            match owner_of(store).filter(|_| stop) {
                Some(owner) => waiting.on(store, owner)?,
                None => return Ok(none),
            }
            continue;
        };
        let daemon = client.daemon();
        match client.call(request.clone(), &mut Streams::to_stdout()) {
            Ok(Reply::Unmounted { ends }) => {
                if ends {
                    client.wait_for_end()?;
                    wait_until_free(store, daemon)?;
                }
                return Ok(Asked::Done);
            }
            Ok(other) => return Err(unexpected(other)),
            // Somebody else has ended it.
            Err(failure) if matches!(failure.kind, Kind::Stopping | Kind::Lost) => {
                none = Asked::Ended;
                client.wait_for_end()?;
                wait_until_free(store, daemon)?;
                waiting.on(store, daemon.unwrap_or_default())?;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// The daemon has closed the store; its process lets go of it in a moment.
fn wait_until_free(store: &Path, daemon: Option<u32>) -> Result<(), Failure> {
    let mut waiting = Waiting::new();
    // Another owner has it from that one, and one that has not said who it is may be that one still.
    while let Some(owner) = owner_of(store).filter(|owner| *owner == 0 || Some(*owner) == daemon) {
        waiting.on(store, owner)?;
    }
    Ok(())
}

/// How long to wait for whoever has the store.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waiting for another process, with a word about it if it takes long.
struct Waiting {
    since: Instant,
    said: bool,
}

impl Waiting {
    fn new() -> Waiting {
        Waiting { since: Instant::now(), said: false }
    }

    /// For a moment, on this process (0: it is not known).
    fn on(&mut self, store: &Path, owner: u32) -> Result<(), Failure> {
        let who = if owner == 0 { "another process".to_owned() } else { format!("process {owner}") };
        let has = format!("{who} has the store {}", out::clean(&store.to_string_lossy()));
        if self.since.elapsed() > PATIENCE {
            let what = "and does not answer; end it, or wait until it has ended";
            return Err(Failure::new(Kind::Locked, format!("{has} {what}")));
        }
        if !self.said && self.since.elapsed() > Duration::from_secs(1) {
            out::note(&format!("waiting: {has}"));
            self.said = true;
        }
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    }
}
