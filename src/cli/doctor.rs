//! `outfs doctor`: can this machine mount, and what would make it better?

use clap::Args;

use super::out::{self, Streams};
use super::session::connect;
use super::{Context, Output};
use crate::control::{Failure, Reply, Request};
use crate::daemon::{Health, examine, faults_check, scans_check, tier_check};

/// Say why there is no mount here, what would make it faster, and which tiers are ill
///
/// Exits with 1 when no mount is possible.
#[derive(Args)]
#[command(after_help = "Example: outfs doctor --store /var/cache/outfs")]
pub(crate) struct Doctor {
    #[command(flatten)]
    output: Output,
}

impl Doctor {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut checks = examine(&cx.store);
        // A daemon that does not answer is not this command's business.
        if let Ok(Some(mut client)) = connect(&cx.store)
            && let Ok(Reply::Stats(stats)) = client.call(Request::Stats, &mut Streams::to_stdout())
        {
            checks.extend(stats.tiers.iter().map(tier_check));
            checks.extend(scans_check(&stats.scans));
            checks.extend(stats.daemon.as_ref().and_then(faults_check));
        }
        for check in &checks {
            if self.output.json {
                out::json(check)?;
                continue;
            }
            let mark = match check.health {
                Health::Good => "ok     ",
                Health::Limited => "limited",
                Health::Missing => "MISSING",
            };
            out::line(&format!("{mark}  {:<14} {}", check.what, out::clean(&check.found)))?;
            if !check.advice.is_empty() {
                out::line(&format!("{:9}{:<14} {}", "", "", out::clean(&check.advice)))?;
            }
        }
        if checks.iter().any(|c| c.health == Health::Missing) {
            return Err(Failure::failed(
                "no mount is possible as it is; put, restore, ls, cat and the rest work on a writable store without one",
            ));
        }
        Ok(())
    }
}
