//! What a daemon was started with besides its limits, and what of it a later mount wants otherwise.
//!
//! Must not know: what the options do.

use std::fmt::Display;

use super::Start;
use crate::cache::Prefetch;
use crate::control::Wanted;
use crate::model::units::{Bytes, human_bytes};
use crate::tier::Address;

/// The options that all views share.
pub(super) struct RunsWith {
    pub log: String,
    pub tiers: Vec<Address>,
    push: bool,
    prefetch: Prefetch,
    push_limit: Option<Bytes>,
    scan_budget: Option<u64>,
}

impl RunsWith {
    pub(super) fn of(start: &Start) -> RunsWith {
        RunsWith {
            log: start.log.to_string(),
            tiers: start.tiers.clone(),
            push: start.push,
            prefetch: start.prefetch,
            push_limit: start.push_limit,
            scan_budget: start.tier_options().scan_budget,
        }
    }

    /// What is wanted and differs, as `--log journal (it runs with /x)`.
    pub(super) fn conflicts(&self, wanted: &Wanted) -> Vec<String> {
        let differs = |flag: &str, wanted: &dyn Display, runs: &dyn Display| {
            format!("{flag} {wanted} (it runs with {runs})")
        };
        let mut found = Vec::new();
        if wanted.push && !self.push {
            found.push("--push (it runs without)".into());
        }
        if !wanted.tiers.is_empty() && wanted.tiers != self.tiers {
            found.push(differs("--tier", &list(&wanted.tiers), &list(&self.tiers)));
        }
        if let Some(prefetch) = wanted.prefetch.filter(|p| *p != self.prefetch) {
            found.push(differs("--prefetch", &name(prefetch), &name(self.prefetch)));
        }
        let limit = |limit: Option<u64>| limit.map_or("no limit".into(), human_bytes);
        for (flag, wanted, runs) in [
            ("--push-limit", wanted.push_limit, self.push_limit.map(|limit| limit.0)),
            ("--scan-budget", wanted.scan_budget, self.scan_budget),
        ] {
            let Some(wanted) = wanted.map(|wanted| Some(wanted.0).filter(|bytes| *bytes > 0)) else {
                continue;
            };
            if wanted != runs {
                found.push(differs(flag, &limit(wanted), &limit(runs)));
            }
        }
        if let Some(log) = wanted.log.as_ref().filter(|log| **log != self.log) {
            found.push(differs("--log", log, &self.log));
        }
        found
    }
}

fn list(tiers: &[Address]) -> String {
    match tiers {
        [] => "none".to_owned(),
        some => some.iter().map(Address::to_string).collect::<Vec<_>>().join(" "),
    }
}

/// As the command line has it.
fn name(prefetch: Prefetch) -> &'static str {
    match prefetch {
        Prefetch::Manifest => "manifest",
        Prefetch::All => "all",
        Prefetch::Learned => "learned",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_given_and_differs_conflicts() {
        let runs = RunsWith {
            log: "/x".into(),
            tiers: Vec::new(),
            push: false,
            prefetch: Prefetch::All,
            push_limit: None,
            scan_budget: Some(1 << 30),
        };
        let same = Wanted {
            log: Some("/x".into()),
            prefetch: Some(Prefetch::All),
            push_limit: Some(Bytes(0)),
            scan_budget: Some(Bytes(1 << 30)),
            ..Wanted::default()
        };
        assert!(runs.conflicts(&same).is_empty() && runs.conflicts(&Wanted::default()).is_empty());
        let other = Wanted {
            log: Some("journal".into()),
            prefetch: Some(Prefetch::Manifest),
            push_limit: Some(Bytes(1 << 20)),
            scan_budget: Some(Bytes(0)),
            push: true,
            tiers: vec!["s3://b/p".parse().unwrap()],
            ..Wanted::default()
        };
        let said = runs.conflicts(&other).join(", ");
        for part in [
            "--log journal",
            "--prefetch manifest",
            "--push-limit 1.0 MiB",
            "--scan-budget no limit",
            "--push ",
            "--tier s3://b/p",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
