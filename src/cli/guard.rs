//! `outfs guard`: what stands between a run and its command.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::out;
use crate::control::{Failure, Kind};
use crate::model::units::parse_duration;
use crate::run::{NOT_HERE, Post, guard, lead};

/// Look after a command (for outfs itself)
#[derive(Args)]
#[command(hide = true)]
pub(crate) struct Guard {
    /// The command is a sandbox with a guard inside
    #[arg(long, conflicts_with = "inside")]
    sandbox: bool,
    /// This is the first process inside a sandbox
    #[arg(long)]
    inside: bool,
    /// This process leads the command of a session
    #[arg(long, value_name = "PID", conflicts_with_all = ["sandbox", "inside", "grace"])]
    session: Option<u32>,
    /// Between being asked to end and being killed
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "0")]
    grace: Duration,
    /// Do not start the command where this program is not
    #[arg(long, value_name = "PATH")]
    needs: Vec<PathBuf>,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Guard {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        // Else `ps` and `pgrep` would know it as "exe".
        let _ = nix::sys::prctl::set_name(c"outfs");
        let post = match (self.sandbox, self.inside) {
            (true, _) => Post::Sandbox,
            (_, true) => Post::Inside,
            _ => Post::Command,
        };
        if let Some(absent) = self.needs.iter().find(|path| !path.exists()) {
            let program = self.command.first().map(|c| c.to_string_lossy()).unwrap_or_default();
            out::note(&out::clean(&format!("{program}: {}{NOT_HERE}", absent.display())));
            return Ok(ExitCode::from(127));
        }
        let (code, error) = match self.session {
            Some(of) => lead(&self.command, of)
                .map_err(|e| Failure::failed(format!("the command of the session cannot be led: {e}")))?,
            None => guard(&self.command, post, self.grace),
        };
        if let Some(e) = error {
            let program = self.command.first().map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
            return match code {
                126 | 127 => {
                    out::note(&out::clean(&format!("{program}: {e}")));
                    Ok(ExitCode::from(code))
                }
                _ => Err(Failure::new(Kind::Failed, e.to_string())),
            };
        }
        Ok(ExitCode::from(code))
    }
}
