//! `outfs import`: entries of an existing cache directory.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::out::{self, Streams};
use super::session::Session;
use super::{Context, Output, absolute, unexpected};
use crate::control::{Failure, ImportKind, Reply, Request};
use crate::model::units::counted;

/// Store the entries of an existing cache directory; may be run again
#[derive(Args)]
#[command(after_help = "Example: outfs import cuenv ~/.cache/cuenv/tasks")]
pub(crate) struct Import {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Args)]
struct Source {
    /// The directory
    source: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(Subcommand)]
enum Kind {
    /// A cuenv cache: SRC/ab/cd/KEY/…
    Cuenv(Source),
    /// A directory with one directory for each key
    Dir(Source),
}

impl Import {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let (kind, Source { source, output }) = match self.kind {
            Kind::Cuenv(source) => (ImportKind::Cuenv, source),
            Kind::Dir(source) => (ImportKind::Dir, source),
        };
        let mut session = Session::open_or_create(&cx.store)?;
        let mut streams = Streams::metered("importing");
        let reply =
            session.call_with(Request::Import { kind, source: absolute(&source)?.into() }, &mut streams)?;
        drop(streams);
        session.close()?;
        let Reply::Imported(facts) = reply else { return Err(unexpected(reply)) };
        if output.json {
            return out::json(&facts);
        }
        for one in &facts.skipped {
            out::note(&format!(
                "left out {}: {}",
                out::clean(&one.path.to_string_lossy()),
                out::clean(&one.why)
            ));
        }
        out::line(&format!(
            "imported {}, {} here already, {} left out",
            counted(facts.imported, "entry", "entries"),
            facts.same,
            facts.skipped.len()
        ))
    }
}
