//! `outfs pin` and `outfs unpin`: named holds.

use clap::Args;

use super::out::{self, Table};
use super::session::Session;
use super::{Context, Output, unexpected};
use crate::control::{Failure, Reply, Request};
use crate::model::EntryKey;

/// Hold entries so that they are never evicted; without entries, list the pins
#[derive(Args)]
#[command(after_help = "Example: outfs pin \"$KEY\" --name release-1.2")]
pub(crate) struct Pin {
    /// The entries
    keys: Vec<EntryKey>,
    /// The pin's name; one name may hold many entries
    #[arg(long, default_value = "manual")]
    name: String,
    #[command(flatten)]
    output: Output,
}

/// Lift pins
#[derive(Args)]
#[command(after_help = "Examples: outfs unpin \"$KEY\"               (all its pins)\n          \
    outfs unpin --name release-1.2   (all entries it holds)")]
pub(crate) struct Unpin {
    /// The entries [default: all that the named pin holds]
    #[arg(required_unless_present = "name")]
    keys: Vec<EntryKey>,
    /// Only the pin of this name
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    output: Output,
}

impl Pin {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        if self.keys.is_empty() {
            let pins = session.call(Request::Pins)?;
            print(pins, &self.output)?;
        }
        for key in self.keys {
            session.call(Request::Pin { name: self.name.clone(), key })?;
        }
        session.close()
    }
}

impl Unpin {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        let all = self.keys.is_empty().then_some(None);
        let keys: Vec<_> = all.into_iter().chain(self.keys.into_iter().map(Some)).collect();
        for key in keys {
            let lifted = session.call(Request::Unpin { name: self.name.clone(), key })?;
            print(lifted, &self.output)?;
        }
        session.close()
    }
}

fn print(reply: Reply, output: &Output) -> Result<(), Failure> {
    let Reply::Pins { pins } = reply else { return Err(unexpected(reply)) };
    if output.json {
        return pins.iter().try_for_each(out::json);
    }
    let mut table = Table::new(&["NAME", "SINCE", "KEY"], &[]);
    for p in &pins {
        table.row(vec![out::clean(&p.name), out::time(p.since), p.key.to_string()]);
    }
    table.print()
}
