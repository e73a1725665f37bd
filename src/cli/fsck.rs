//! `outfs fsck`: everything against everything; exit 4 when something is damaged
//! and was not repaired.

use clap::Args;

use super::out::{self, Streams};
use super::session::Session;
use super::{Context, Output, unexpected};
use crate::cache::{Damage, FsckOptions, FsckReport};
use crate::control::{Failure, Kind, Reply, Request};
use crate::model::units::{counted, human_bytes};

/// Check the store; exit 4 when something is damaged, 0 when all of it was repaired
#[derive(Args)]
#[command(after_help = "Example: outfs fsck --verify-data --repair")]
pub(crate) struct Fsck {
    /// Re-hash all content
    #[arg(long)]
    verify_data: bool,
    /// Set aside what is damaged and drop the entries that depend on it
    #[arg(long)]
    repair: bool,
    /// Make the index anew from the store
    #[arg(long)]
    rebuild_index: bool,
    #[command(flatten)]
    output: Output,
}

impl Fsck {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        let request = Request::Fsck(FsckOptions {
            verify_data: self.verify_data,
            repair: self.repair,
            rebuild_index: self.rebuild_index,
        });
        let mut streams = Streams::metered("checking");
        let reply = session.call_with(request, &mut streams)?;
        drop(streams);
        let Reply::Fsck(facts) = reply else { return Err(unexpected(reply)) };
        session.close()?;
        if self.output.json {
            out::json(&facts)?;
        } else {
            self.print(&facts)?;
        }
        if facts.is_sound() {
            return Ok(());
        }
        let repaired = facts.damage.iter().filter(|d| d.repaired.is_some()).count();
        let said = format!("damage: {} found, {repaired} repaired", facts.damage.len());
        Err(Failure::new(
            Kind::Damaged,
            match (self.repair, facts.remaining.len()) {
                (false, _) => format!("{said}; 'outfs fsck --repair' sets aside what is bad"),
                (true, 0) => format!("{said}; what was not stays where it is, and no entry needs it"),
                (true, left) => format!("{said}, {left} left; unmount all views and repair again"),
            },
        ))
    }

    fn print(&self, report: &FsckReport) -> Result<(), Failure> {
        report.damage.iter().try_for_each(print)?;
        for left in &report.remaining {
            out::line("still damaged after the repair:")?;
            print(left)?;
        }
        for key in &report.lost {
            out::line(&format!("dropped the entry {key}"))?;
        }
        if report.rebuilt {
            out::line("made the index anew")?;
        }
        let verified = match self.verify_data {
            true => format!(", {} re-hashed", human_bytes(report.verified_bytes)),
            false => String::new(),
        };
        let entries = counted(report.entries, "entry", "entries");
        let blobs = counted(report.blobs, "blob", "blobs");
        out::line(&format!("checked {entries} and {blobs}{verified}"))?;
        if !report.damage.is_empty() && report.is_sound() {
            out::line(&format!("repaired all that was found ({})", report.damage.len()))?;
        }
        match report.orphans {
            0 => Ok(()),
            n => out::line(&format!(
                "{} to no entry (harmless; upkeep or --repair cleans up)",
                counted(n, "file belongs", "files belong")
            )),
        }
    }
}

fn print(damage: &Damage) -> Result<(), Failure> {
    let path = out::clean(&damage.path.to_string_lossy());
    let mut text = format!("{} {path}: {}", damage.kind, out::clean(&damage.what));
    if !damage.entries.is_empty() {
        let keys: Vec<&str> = damage.entries.iter().map(|k| k.as_str()).collect();
        text.push_str(&format!("; entries: {}", keys.join(" ")));
    }
    if let Some(repaired) = &damage.repaired {
        text.push_str(&format!("; {}", out::clean(repaired)));
    }
    out::line(&text)
}
