//! `outfs du`: what entries take, alone and together.

use clap::Args;

use super::out::{self, Table};
use super::session::Session;
use super::{Context, Output, unexpected};
use crate::control::{Failure, Reply, Request};
use crate::model::EntryKey;
use crate::model::units::human_bytes;

/// Show what entries take on disk: alone (freed when evicted) and shared with others
#[derive(Args)]
#[command(after_help = "Example: outfs du \"$KEY\"")]
pub(crate) struct Du {
    /// These entries [default: all]
    keys: Vec<EntryKey>,
    #[command(flatten)]
    output: Output,
}

impl Du {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        let (mut all, mut after) = (Vec::new(), Some(0));
        while after.is_some() {
            let reply = session.call(Request::Du { keys: self.keys.clone(), after })?;
            let Reply::Du { entries, next } = reply else { return Err(unexpected(reply)) };
            all.extend(entries);
            after = next;
        }
        if self.output.json {
            out::json(&serde_json::json!({ "entries": all }))?;
            return session.close();
        }
        let mut table = Table::new(&["EXCLUSIVE", "SHARED", "LOGICAL", "HERE", "KEY"], &[0, 1, 2, 3]);
        for e in &all {
            let sizes = [e.exclusive, e.shared, e.logical, e.here].map(human_bytes);
            table.row(sizes.into_iter().chain([e.key.to_string()]).collect());
        }
        table.print()?;
        session.close()
    }
}
