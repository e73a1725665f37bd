//! `outfs push`: how far entries are on their way to the tiers.

use std::time::Duration;

use clap::Args;

use super::out;
use super::session::Session;
use super::{Context, Output, unexpected};
use crate::cache::{PushFacts, TierFacts};
use crate::control::{Failure, Reply, Request};

/// How often the daemon is asked.
const LOOK: Duration = Duration::from_millis(200);

/// Show how far entries are on their way to the tiers
///
/// The daemon brings them, of a mount with --push.
#[derive(Args)]
#[command(after_help = "Example: outfs push --wait")]
pub(crate) struct Push {
    /// Return when all that has been sealed is there
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    output: Output,
}

impl Push {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        let tiers = loop {
            let reply = session.call(Request::Stats)?;
            let Reply::Stats(stats) = reply else { return Err(unexpected(reply)) };
            let tiers: Vec<(TierFacts, PushFacts)> =
                stats.tiers.into_iter().filter_map(|t| Some((t.clone(), t.push?))).collect();
            if tiers.is_empty() {
                return Err(Failure::failed(
                    "no daemon of this store brings entries to a tier; 'outfs mount --tier URL --push' starts one",
                ));
            }
            if !self.wait || tiers.iter().all(|(_, push)| push.waiting == 0) {
                break tiers;
            }
            std::thread::sleep(LOOK);
        };
        for (tier, push) in tiers {
            match self.output.json {
                true => out::json(&tier)?,
                false => {
                    let (name, ill) =
                        (out::clean(&tier.name), if tier.ill { " (does not answer)" } else { "" });
                    out::line(&format!("{name}{ill}: {} brought, {} to go", push.brought, push.waiting))?;
                }
            }
        }
        session.close()
    }
}
