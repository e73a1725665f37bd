//! `outfs guard`: what stands between a run and its command.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;

use super::out;
use crate::control::{Failure, Kind};
use crate::run::guard;

/// Look after a command (for outfs itself)
#[derive(Args)]
#[command(hide = true)]
pub(crate) struct Guard {
    /// Signals are for what the command starts
    #[arg(long)]
    inner: bool,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Guard {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        // Else `ps` and `pgrep` would know it as "exe".
        let _ = nix::sys::prctl::set_name(c"outfs");
        let (code, error) = guard(&self.command, self.inner);
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
