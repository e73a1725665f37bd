//! `outfs cat`: a file of an entry, byte for byte.

use std::path::PathBuf;

use clap::Args;

use super::Context;
use super::out::Streams;
use super::session::Session;
use crate::control::{Failure, Request};
use crate::model::EntryKey;

/// Write a file of an entry to standard output
#[derive(Args)]
#[command(after_help = "Example: outfs cat \"$KEY\" outputs/report.txt")]
pub(crate) struct Cat {
    /// The entry
    key: EntryKey,
    /// The file, below the entry
    path: PathBuf,
}

impl Cat {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        let mut streams = Streams::to_stdout();
        session.call_with(Request::Cat { key: self.key, path: self.path.into() }, &mut streams)?;
        streams.finish()?;
        session.close()
    }
}
