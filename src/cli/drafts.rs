//! `outfs drafts`: entries that are still being written.

use clap::Args;

use super::out::{self, Table};
use super::session::Session;
use super::{Context, Output, unexpected};
use crate::control::{Failure, Reply, Request};

/// List drafts: entries that are still being written
#[derive(Args)]
#[command(after_help = "Example: outfs drafts")]
pub(crate) struct Drafts {
    #[command(flatten)]
    output: Output,
}

impl Drafts {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        let reply = session.call(Request::Drafts)?;
        let Reply::Drafts { drafts } = reply else { return Err(unexpected(reply)) };
        if self.output.json {
            drafts.iter().try_for_each(out::json)?;
            return session.close();
        }
        let mut table = Table::new(&["KIND", "WRITERS", "CHANGED", "ID", "NAME"], &[1]);
        for d in &drafts {
            table.row(vec![
                d.kind.clone(),
                d.writers.to_string(),
                out::time(d.changed_at),
                d.id.clone(),
                out::clean_path(&d.name),
            ]);
        }
        table.print()?;
        session.close()
    }
}
