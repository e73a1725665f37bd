//! `outfs stats`: the store's numbers.

use clap::Args;

use super::out;
use super::session::Session;
use super::{Context, Output, unexpected};
use crate::cache::{ScanFacts, ScrubFacts, TierFacts};
use crate::control::{Failure, Reply, Request};
use crate::model::units::{counted, human_bytes};

/// Show the store's numbers; with --json also the daemon's pid
#[derive(Args)]
#[command(after_help = "Example: outfs stats --json")]
pub(crate) struct Stats {
    #[command(flatten)]
    output: Output,
}

impl Stats {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        let reply = session.call(Request::Stats)?;
        let Reply::Stats(s) = reply else { return Err(unexpected(reply)) };
        if self.output.json {
            out::json(&s)?;
            return session.close();
        }
        let field = |name: &str, value: String| out::line(&format!("{name:<10} {value}"));
        field("store", format!("{} ({})", out::clean_path(&s.store), s.id))?;
        field("daemon", s.pid.map_or("none".into(), |pid| format!("process {pid}")))?;
        if let Some(faults) = s.daemon.as_ref().map(|d| d.faults).filter(|n| *n > 0) {
            field("faults", format!("{faults} in the daemon itself: see its log, and 'outfs doctor'"))?;
        }
        field("entries", s.totals.entries.to_string())?;
        field("blobs", s.totals.blobs.to_string())?;
        field("drafts", s.drafts.to_string())?;
        field("pins", s.pins.to_string())?;
        field("logical", human_bytes(s.totals.logical_bytes))?;
        field("used", format!("{} of {}", human_bytes(s.usage.used), human_bytes(s.usage.limit)))?;
        field("available", human_bytes(s.usage.available))?;
        field("dead", human_bytes(s.usage.dead))?;
        field("held", human_bytes(s.usage.held))?;
        if !s.tiers.is_empty() || s.totals.elsewhere_bytes > 0 {
            field("elsewhere", human_bytes(s.totals.elsewhere_bytes))?;
            field("in part", human_bytes(s.usage.partial))?;
        }
        field("disk free", human_bytes(s.usage.disk_available))?;
        field("scrub", scrubbed(&s.scrub))?;
        for tier in &s.tiers {
            field("tier", tier_does(tier))?;
        }
        if let Some(scans) = stopped(&s.scans) {
            field("scans", scans)?;
        }
        session.close()
    }
}

/// How a tier does.
fn tier_does(tier: &TierFacts) -> String {
    let how = if tier.ill { "does not answer" } else { "answers" };
    let mut said = format!("{} {how}, asked {}, failed {}", out::clean(&tier.name), tier.asked, tier.failed);
    if tier.corrupt > 0 {
        said.push_str(&format!(", gave wrong bytes {}", counted(tier.corrupt, "time", "times")));
    }
    if let Some(push) = &tier.push {
        let sent = human_bytes(push.sent);
        said.push_str(&format!(", brought {} ({sent}), {} to go", push.brought, push.waiting));
    }
    if let Some((at, why)) = &tier.last_failure {
        let at = jiff::Timestamp::from_nanosecond((*at).into()).unwrap_or_default();
        said.push_str(&format!(", last {}: {}", out::time(at), out::clean(why)));
    }
    said
}

/// What budgets kept from coming.
fn stopped(scans: &ScanFacts) -> Option<String> {
    let (at, pid, program) = scans.last.as_ref()?;
    let at = jiff::Timestamp::from_nanosecond((*at).into()).unwrap_or_default();
    Some(format!(
        "{} had used up what they may have come from tiers, {} refused, last {}: process {pid} ({})",
        counted(scans.stopped, "process", "processes"),
        counted(scans.refused, "read", "reads"),
        out::time(at),
        out::clean(program)
    ))
}

/// How far the scrub is, and what it found.
fn scrubbed(scrub: &ScrubFacts) -> String {
    let found = match scrub.found {
        0 => "nothing damaged".to_owned(),
        n => format!("{}: see 'outfs events'", counted(n, "damage", "damages")),
    };
    let (verified, all) = (human_bytes(scrub.verified_bytes), human_bytes(scrub.total_bytes));
    match jiff::Timestamp::from_nanosecond(scrub.finished_at_ns.into()) {
        _ if scrub.running => format!("{verified} of {all} verified, {found}"),
        Ok(at) if scrub.finished_at_ns > 0 => {
            format!("{verified} verified until {}, {found}", out::time(at))
        }
        _ => "not yet".into(),
    }
}
