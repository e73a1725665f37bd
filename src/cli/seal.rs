//! `outfs seal`: a draft becomes an entry.

use std::path::PathBuf;

use clap::Args;

use super::out::Streams;
use super::put::print_stored;
use super::session::Session;
use super::{Context, Output};
use crate::control::{Failure, Request};
use crate::model::EntryKey;

/// Turn a draft into a sealed entry
#[derive(Args)]
#[command(after_help = "Examples: outfs seal \"$KEY\"          (a draft in place)\n          \
    outfs seal build-1 \"$KEY\"  (a draft in .outfs/work)")]
pub(crate) struct Seal {
    /// The draft: its name in .outfs/work, its key, or its id
    name: PathBuf,
    /// The key; needed when the draft has none
    key: Option<EntryKey>,
    #[command(flatten)]
    output: Output,
}

impl Seal {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        let mut streams = Streams::metered("sealing");
        let request = Request::Seal { name: self.name.into(), key: self.key };
        let reply = session.call_with(request, &mut streams)?;
        drop(streams);
        print_stored(reply, &self.output)?;
        session.close()
    }
}
