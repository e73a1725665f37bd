//! `outfs status`: does a daemon run, and what has it mounted?

use clap::Args;

use super::out::{self, Streams};
use super::session::connect;
use super::{Context, Output, unexpected};
use crate::control::{Failure, Kind, Reply, Request};
use crate::daemon;
use crate::fuse::Transport;

/// Show whether a daemon runs, and its views
#[derive(Args)]
#[command(after_help = "Example: outfs status --json")]
pub(crate) struct Status {
    #[command(flatten)]
    output: Output,
}

impl Status {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let reply = match connect(&cx.store)? {
            Some(mut client) => match client.call(Request::Status, &mut Streams::to_stdout()) {
                // It was on its way out: that is an answer too.
                Err(failure) if matches!(failure.kind, Kind::Stopping | Kind::Lost) => None,
                answer => Some(answer?),
            },
            None => None,
        };
        let Some(reply) = reply else { return self.nobody(cx) };
        let Reply::Daemon(d) = reply else { return Err(unexpected(reply)) };
        if self.output.json {
            let mut value = serde_json::to_value(&d).map_err(|e| Failure::failed(e.to_string()))?;
            value["running"] = true.into();
            value["store"] = cx.store.to_string_lossy().into();
            return out::json(&value);
        }
        out::line(&format!(
            "process {} (outfs {}) serves {} since {}, log: {}",
            d.pid,
            d.version,
            shown(&cx.store),
            out::time(d.started_at),
            out::clean(&d.log)
        ))?;
        for tier in &d.tiers {
            out::line(&format!("tier {}", out::clean(&tier.to_string())))?;
        }
        for v in &d.views {
            let kind = match (&v.view.scope, v.view.read_only) {
                (Some(keys), _) => format!("read-only, {} keys", keys.len()),
                (None, true) => "read-only".into(),
                (None, false) => "read-write".into(),
            };
            let passthrough = if v.passthrough { ", passthrough" } else { "" };
            let transport = if v.transport == Transport::Uring { ", io_uring" } else { "" };
            out::line(&format!("{} ({kind}{passthrough}{transport})", out::clean_path(&v.at)))?;
        }
        Ok(())
    }

    fn nobody(&self, cx: &Context) -> Result<(), Failure> {
        let dead = daemon::dead_views(&cx.store);
        if self.output.json {
            let dead: Vec<_> = dead.iter().map(|view| view.at.to_string_lossy()).collect();
            let store = cx.store.to_string_lossy();
            return out::json(&serde_json::json!({ "running": false, "store": store, "dead_views": dead }));
        }
        out::line(&format!("no daemon runs for the store {}", shown(&cx.store)))?;
        for daemon::DeadView { at, hangs } in dead {
            let hangs = if hangs { ", which hangs" } else { "" };
            out::line(&format!(
                "a daemon that died has left its mount on {0}{hangs}: 'outfs mount {0}' takes it over, 'outfs stop' \
                 removes it",
                shown(&at)
            ))?;
        }
        Ok(())
    }
}

fn shown(path: &std::path::Path) -> String {
    out::clean(&path.to_string_lossy())
}
