//! `outfs gc`: collect what the limits ask for.

use clap::Args;

use super::out::{self, Streams};
use super::session::Session;
use super::{Context, Output, unexpected};
use crate::control::{Failure, Reply, Request, Span};
use crate::model::units::{counted, human_bytes};

/// Evict what the limits ask for, drop abandoned drafts, compact packs
#[derive(Args)]
#[command(after_help = "Example: outfs gc --dry-run --older-than 30d")]
pub(crate) struct Gc {
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    /// Also evict entries that were not used for so long
    #[arg(long, value_name = "DURATION")]
    older_than: Option<Span>,
    #[command(flatten)]
    output: Output,
}

impl Gc {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        let request = Request::Gc { dry_run: self.dry_run, older_than: self.older_than.map(|s| s.0) };
        let mut streams = Streams::metered("collecting");
        let reply = session.call_with(request, &mut streams)?;
        drop(streams);
        let Reply::Gc(facts) = reply else { return Err(unexpected(reply)) };
        if self.output.json {
            out::json(&facts)?;
            return session.close();
        }
        let (evicted, dropped) = match facts.dry_run {
            true => ("would evict", "would drop"),
            false => ("evicted", "dropped"),
        };
        for key in &facts.report.let_go {
            out::line(&format!("gave up the bytes of {key}, which a tier has"))?;
        }
        for key in &facts.report.evicted {
            out::line(&format!("{evicted} {key}"))?;
        }
        for draft in &facts.report.drafts {
            out::line(&format!("{dropped} the draft {}", out::clean(draft)))?;
        }
        if facts.report.held > 0 {
            out::line(&format!("{} pinned or in use", counted(facts.report.held, "more is", "more are")))?;
        }
        if facts.report.young > 0 {
            let more = counted(facts.report.young, "more is", "more are");
            out::line(&format!("{more} younger than --min-age, which nothing but 'outfs evict' takes"))?;
        }
        let free = if facts.dry_run { "would be free" } else { "freed" };
        out::line(&format!(
            "{} {free}, {} used",
            human_bytes(facts.report.freed),
            human_bytes(facts.report.used)
        ))?;
        session.close()
    }
}
