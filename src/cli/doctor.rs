//! `outfs doctor`: can this machine mount, and what would make it better?

use clap::Args;

use super::{Context, Output, out};
use crate::control::Failure;
use crate::daemon::{Health, examine};

/// Say why there is no mount here, or what would make it faster
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
        let checks = examine(&cx.store);
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
