//! `outfs store`: the store as a whole.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::{Args, Subcommand};

use super::Context;
use super::out::{self, Meter};
use crate::control::{Failure, Kind};
use crate::model::units::counted;
use crate::store::Store;

/// Do something with the store as a whole
#[derive(Args)]
pub(crate) struct StoreCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Delete the store with everything in it
    #[command(after_help = "Example: outfs store destroy --store /var/cache/outfs --yes")]
    Destroy {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

impl StoreCommand {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let Action::Destroy { yes } = self.action;
        if !yes && !confirmed(cx)? {
            return Err(Failure::failed("nothing was deleted"));
        }
        let shown = out::clean(&cx.store.to_string_lossy());
        let meter = Meter::start(&format!("destroying {shown}"));
        let destroyed =
            Store::destroy(&cx.store, &mut |files| meter.figure(|| counted(files, "file", "files")));
        meter.clear();
        destroyed?;
        out::line(&format!("destroyed {shown}"))
    }
}

fn confirmed(cx: &Context) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(Kind::Usage, "say --yes to delete the store without being asked"));
    }
    let mut err = io::stderr();
    let _ = write!(err, "Delete {} with all its entries? [y/N] ", out::clean(&cx.store.to_string_lossy()));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|e| Failure::failed(format!("no answer: {e}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
