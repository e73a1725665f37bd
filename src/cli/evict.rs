//! `outfs evict`: entries go, now.

use clap::Args;

use super::session::Session;
use super::{Context, out};
use crate::control::{Failure, Request};
use crate::model::EntryKey;

/// Hide entries at once; their space is free when nobody uses them any more
#[derive(Args)]
#[command(after_help = "Example: outfs evict \"$KEY\"")]
pub(crate) struct Evict {
    /// The entries
    #[arg(required = true)]
    keys: Vec<EntryKey>,
}

impl Evict {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        // One that cannot go keeps none of the others.
        let mut result: Result<(), Failure> = Ok(());
        for key in self.keys {
            if let Err(failure) = session.call(Request::Evict { key })
                && let Err(earlier) = std::mem::replace(&mut result, Err(failure))
            {
                out::note(&out::clean(&earlier.message));
            }
        }
        session.close()?;
        result
    }
}
