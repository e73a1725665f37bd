//! `outfs evict`: entries go, now.

use clap::Args;

use super::Context;
use super::session::Session;
use crate::control::{Failure, Request};
use crate::model::EntryKey;

/// Hide entries at once; their space is free when nobody uses them any more
#[derive(Args)]
#[command(after_help = "Example: outfs evict 9f86d081")]
pub(crate) struct Evict {
    /// The entries
    #[arg(required = true)]
    keys: Vec<EntryKey>,
}

impl Evict {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        for key in self.keys {
            session.call(Request::Evict { key })?;
        }
        session.close()
    }
}
