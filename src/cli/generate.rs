//! `outfs completions` and `outfs man`: made from the command line's own definition.

use std::io;
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, out};
use crate::control::Failure;

/// Print completions for a shell
#[derive(Args)]
#[command(after_help = "Example: outfs completions bash > /etc/bash_completion.d/outfs")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

/// Write manual pages into a directory, or print the main one
#[derive(Args)]
#[command(after_help = "Example: outfs man /usr/local/share/man/man1")]
pub(crate) struct Man {
    /// The directory; made if it is missing
    dir: Option<PathBuf>,
}

impl Completions {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "outfs", &mut text);
        io::Write::write_all(&mut io::stdout(), &text).map_err(out::unwritable)
    }
}

impl Man {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.dir {
            Some(dir) => std::fs::create_dir_all(&dir)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), &dir))
                .map_err(|e| {
                    Failure::failed(format!("cannot write manual pages into {}: {e}", dir.display()))
                }),
            None => {
                let mut text = Vec::new();
                clap_mangen::Man::new(Cli::command()).render(&mut text).map_err(out::unwritable)?;
                io::Write::write_all(&mut io::stdout(), &text).map_err(out::unwritable)
            }
        }
    }
}
