//! `outfs prefetch`: what only a tier has of an entry comes here before it is read.

use std::path::PathBuf;

use clap::Args;

use super::out::{self, Streams};
use super::session::Session;
use super::{Context, Output, unexpected};
use crate::control::{Failure, Reply, Request};
use crate::model::EntryKey;
use crate::model::units::{counted, human_bytes};

/// Fetch what only a tier has of an entry, before it is read
///
/// The daemon does it, of a mount with --tier.
#[derive(Args)]
#[command(after_help = "Example: outfs prefetch \"$KEY\" outputs/bin")]
pub(crate) struct Prefetch {
    /// The entry
    key: EntryKey,
    /// What is at and below these paths of the entry [default: all of it]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl Prefetch {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        let paths = self.paths.into_iter().map(Into::into).collect();
        let reply =
            session.call_with(Request::Prefetch { key: self.key, paths }, &mut Streams::to_stdout())?;
        let Reply::Prefetched(came) = reply else { return Err(unexpected(reply)) };
        match self.output.json {
            true => out::json(&came)?,
            false => {
                let contents = counted(came.contents, "content", "contents");
                out::line(&format!("{contents} fetched, {}", human_bytes(came.bytes)))?;
            }
        }
        session.close()
    }
}
