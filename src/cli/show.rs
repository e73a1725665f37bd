//! `outfs show`: all about an entry.

use clap::Args;

use super::out;
use super::session::Session;
use super::{Context, Output, unexpected};
use crate::control::{Failure, Reply, Request, ShowFacts};
use crate::model::EntryKey;
use crate::model::units::{counted, human_bytes};

/// Show how, by whom, when and from where an entry was sealed, and its metadata
#[derive(Args)]
#[command(after_help = "Example: outfs show \"$KEY\" --json")]
pub(crate) struct Show {
    /// The entry
    key: EntryKey,
    #[command(flatten)]
    output: Output,
}

impl Show {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        let reply = session.call(Request::Show { key: self.key })?;
        let Reply::Show(facts) = reply else { return Err(unexpected(reply)) };
        if self.output.json {
            out::json(&facts)?
        } else {
            print(&facts)?
        }
        session.close()
    }
}

fn print(s: &ShowFacts) -> Result<(), Failure> {
    let field = |name: &str, value: String| match value.is_empty() {
        true => Ok(()),
        false => out::line(&format!("{name:<10} {}", out::clean(&value))),
    };
    let e = &s.entry;
    field("key", e.key.to_string())?;
    field("manifest", e.manifest.to_hex())?;
    field("sealed", format!("{} by {}", out::time(e.sealed_at), s.origin.how))?;
    field("by", format!("uid {}", s.origin.uid))?;
    field("on", s.origin.host.clone())?;
    field("from", s.origin.source.clone())?;
    field("used", out::time(e.accessed_at))?;
    field("holds", format!("{} in {}", human_bytes(e.bytes), counted(e.files, "file", "files")))?;
    field("inferred", if e.inferred { "yes: sealed by quiet".into() } else { String::new() })?;
    field("replaces", s.replaces.map(|m| m.to_hex()).unwrap_or_default())?;
    field("pins", s.pins.join(", "))?;
    field("rejected", s.rejected.clone().unwrap_or_default())?;
    field("metadata", s.metadata_error.as_ref().map(|e| format!("broken: {e}")).unwrap_or_default())?;
    if let Some(m) = &s.metadata {
        field("task", m.task_id.clone())?;
        field("command", m.command.join(" "))?;
        field("exit code", m.exit_code.to_string())?;
        field("took", format!("{} ms", m.duration_ms))?;
        field("made", out::time(m.created_at))?;
        for (name, value) in &m.extra {
            field(&out::clean(name), value.to_string())?;
        }
    }
    Ok(())
}
