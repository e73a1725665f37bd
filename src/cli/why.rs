//! `outfs why`: where a result comes from, and why its task was run.

use clap::Args;
use serde_json::{Value, json};

use super::out;
use super::session::Session;
use super::{Context, Output, events, unexpected};
use crate::control::{Failure, Kind, Reply, Request, ShowFacts};
use crate::model::{EntryKey, EventKind};
use crate::run::{Found, Ledger, MEMBER, Parts, Place, Reason, memory, shell_words};

/// Say why a task was run, or what became of its result
#[derive(Args)]
#[command(after_help = "Example: outfs why build")]
pub(crate) struct Why {
    /// A task's name, or a key
    #[arg(value_name = "TASK|KEY")]
    what: String,
    #[command(flatten)]
    output: Output,
}

impl Why {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        let key = self.key(&mut session)?;
        match session.call(Request::Find { key: key.clone(), outputs: Vec::new(), fate: true })? {
            Reply::Found(Found::Nothing { evicted, failed }) => {
                let gone = evicted.map(|when| Reason::Evicted { when });
                let gone = gone.or(failed.map(|status| Reason::PreviousRunIncomplete { status }));
                self.print_gone(&key, gone)?;
            }
            Reply::Found(found) => match (session.call(Request::Show { key: key.clone() }), found) {
                (Ok(Reply::Show(facts)), _) => self.print(&facts)?,
                (Ok(reply), _) => return Err(unexpected(reply)),
                // It is not there any more, or never was.
                (Err(e), Found::Rejected { reason }) if e.kind == Kind::NotFound => {
                    self.print_gone(&key, Some(Reason::Rejected { reason }))?;
                }
                (Err(e), Found::Unreadable { why }) if e.kind == Kind::NotFound => {
                    self.print_gone(&key, Some(Reason::Unusable { detail: why }))?;
                }
                (Err(e), _) => return Err(e),
            },
            other => return Err(unexpected(other)),
        }
        session.close()
    }

    /// The key that is meant: of that name, else of the last run of a task of that name in this checkout, else of its newest
    /// result.
    fn key(&self, session: &mut Session) -> Result<EntryKey, Failure> {
        if let Ok(key) = EntryKey::from_digest(&self.what) {
            let found = session.call(Request::Find { key: key.clone(), outputs: Vec::new(), fate: true })?;
            if found != Reply::Found(Found::UNKNOWN) {
                return Ok(key);
            }
        }
        let place = std::env::current_dir().map(|cwd| Place::of(&cwd));
        let last = place.ok().and_then(|p| {
            Ledger::of(memory(super::run::caches().as_deref()).as_deref(), &p.root).last_run(&self.what)
        });
        if let Some(key) = last.and_then(|last| last.key) {
            let found = session.call(Request::Find { key: key.clone(), outputs: Vec::new(), fate: true })?;
            if found != Reply::Found(Found::UNKNOWN) {
                return Ok(key);
            }
        }
        match session.call(Request::Newest { task: self.what.clone() })? {
            Reply::Newest { key: Some(key), .. } => Ok(key),
            Reply::Newest { key: None, .. } => self.told_of(session)?.ok_or_else(|| {
                let what = &self.what;
                let message = format!("nothing is known of a task or key {what}; 'outfs ls' lists entries");
                Failure::new(Kind::NotFound, message)
            }),
            other => Err(unexpected(other)),
        }
    }

    /// The key that the event log has last of a task of that name: its result is gone, or there was none.
    fn told_of(&self, session: &mut Session) -> Result<Option<EntryKey>, Failure> {
        let (mut since, mut last) = (None, None);
        loop {
            let page = events::ask(session, since, events::PAGE)?;
            for event in page.events {
                if let EventKind::Hit { task, .. }
                | EventKind::Miss { task, .. }
                | EventKind::Failed { task, .. } = &event.kind
                    && *task == self.what
                {
                    last = event.key.or(last);
                }
            }
            if !page.more {
                return Ok(last);
            }
            since = Some(page.cursor);
        }
    }

    fn print_gone(&self, key: &EntryKey, gone: Option<Reason>) -> Result<(), Failure> {
        if self.output.json {
            return out::json(&json!({ "key": key, "entry": null, "gone": gone }));
        }
        let said = gone.map_or_else(|| "nothing is known of it".to_owned(), |r| r.to_string());
        out::line(&format!("{key}: {}", out::clean(&said)))
    }

    fn print(&self, facts: &ShowFacts) -> Result<(), Failure> {
        let member =
            facts.metadata.as_ref().and_then(|m| m.extra.get(MEMBER)).cloned().unwrap_or(Value::Null);
        let reasons: Vec<Reason> = serde_json::from_value(member["reasons"].clone()).unwrap_or_default();
        if self.output.json {
            return out::json(&json!({ "key": facts.entry.key, "entry": facts, "reasons": reasons }));
        }
        let line = |name: &str, value: String| out::line(&format!("{name:<10} {}", out::clean(&value)));
        line("key", facts.entry.key.to_string())?;
        if let Some(m) = &facts.metadata {
            line("task", m.task_id.clone())?;
            line("command", shell_words(&m.command))?;
            line(
                "made",
                format!("{}, in {} ms, exit code {}", out::time(m.created_at), m.duration_ms, m.exit_code),
            )?;
        }
        let origin = &facts.origin;
        line(
            "by",
            format!("{}, uid {}, on {}, from {}", origin.how, origin.uid, origin.host, origin.source),
        )?;
        if let Some(rejected) = &facts.rejected {
            line("rejected", rejected.clone())?;
        }
        for reason in &reasons {
            line("was run", reason.to_string())?;
        }
        if let Ok(parts) = serde_json::from_value::<Parts>(member["parts"].clone()) {
            line("of", format!("{} inputs, outputs: {}", parts.input_count, parts.outputs.join(", ")))?;
            for (task, _) in parts.after {
                line("after", task)?;
            }
            for (path, outputs) in parts.from {
                let name = parts.sources.get(&path).map(|name| format!(" of {name}")).unwrap_or_default();
                let outputs: String = outputs.chars().take(12).collect();
                line("from", format!("{path}: {outputs}{name}"))?;
            }
            for (name, _) in parts.base {
                line("base", name)?;
            }
        }
        Ok(())
    }
}
