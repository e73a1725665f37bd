//! `outfs unmount` and `outfs stop`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::out::{self, Streams};
use super::session::connect;
use super::{Context, absolute, unexpected};
use crate::control::{Failure, Kind, Reply, Request};
use crate::daemon;

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
        // This command itself must not keep it busy.
        let _ = std::env::set_current_dir("/");
        // The view's own store, when the mount table names it, before the one that was meant.
        let named = daemon::mounted_at(&at).and_then(|m| m.store());
        for store in named.iter().chain([&cx.store]) {
            let request = Request::Unmount { at: at.clone().into(), lazy: self.lazy };
            match ask_to_end(store, request) {
                Ok(true) => {
                    if !is_same(store, &cx.store) {
                        let store = out::clean(&store.to_string_lossy());
                        out::note(&format!(
                            "{} was a view of the store {store}",
                            out::clean(&at.to_string_lossy())
                        ));
                    }
                    return Ok(());
                }
                Ok(false) => {}
                Err(failure) if failure.kind == Kind::NotFound => {}
                Err(failure) => return Err(failure),
            }
        }
        daemon::unmount(&at, self.lazy)
    }
}

impl Stop {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let _ = std::env::set_current_dir("/");
        // That it is somebody else's is no sign that there is none.
        connect(&cx.store)?;
        if ask_to_end(&cx.store, Request::Stop { lazy: self.lazy })? {
            return Ok(());
        }
        out::note(&format!("no daemon runs for the store {}", cx.store.display()));
        for at in daemon::dead_views(&cx.store) {
            daemon::unmount(&at, true)?;
            out::note(&format!("unmounted {}, which a daemon that died had left", at.display()));
        }
        Ok(())
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let real = |p: &Path| std::fs::canonicalize(p).unwrap_or_else(|_| p.to_owned());
    real(one) == real(other)
}

/// False when there is no daemon. When the daemon ends, returns after it has let go of the store.
fn ask_to_end(store: &Path, request: Request) -> Result<bool, Failure> {
    let Ok(Some(mut client)) = connect(store) else { return Ok(false) };
    match client.call(request, &mut Streams::to_stdout())? {
        Reply::Unmounted { ends } => {
            if ends {
                client.wait_for_end();
            }
            Ok(true)
        }
        other => Err(unexpected(other)),
    }
}
