//! The hidden command that looks names up for a daemon whose kernel takes no prunes.

use std::io;
use std::path::PathBuf;

use clap::Args;

use super::background::let_go_of_the_callers;
use crate::control::Failure;
use crate::fuse;

/// Look up the names that are read (for outfs itself)
#[derive(Args)]
#[command(hide = true)]
pub(crate) struct Look {
    /// Where
    at: PathBuf,
}

impl Look {
    pub(super) fn run(self) -> Result<(), Failure> {
        let_go_of_the_callers();
        // Else `ps` and `pgrep` would know it as "exe".
        let _ = nix::sys::prctl::set_name(c"outfs");
        fuse::look(&self.at, io::stdin().lock())
            .map_err(|e| Failure::failed(format!("cannot read what to look up: {e}")))
    }
}
