//! `outfs reject`: an entry that must not be used.

use clap::Args;

use super::Context;
use super::session::Session;
use crate::control::{Failure, Request};
use crate::model::EntryKey;

/// Make lookups of a key miss until a new result replaces it or the rejection is lifted
#[derive(Args)]
#[command(after_help = "Examples: outfs reject \"$KEY\" --reason 'built with a broken compiler'\n          \
    outfs reject \"$KEY\" --lift")]
pub(crate) struct Reject {
    /// The key
    key: EntryKey,
    /// Why
    #[arg(long, required_unless_present = "lift", conflicts_with = "lift")]
    reason: Option<String>,
    /// Lift the rejection
    #[arg(long)]
    lift: bool,
}

impl Reject {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        session.call(Request::Reject { key: self.key, reason: self.reason })?;
        session.close()
    }
}
