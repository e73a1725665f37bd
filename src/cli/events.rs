//! `outfs events`: what happened, in order.

use std::time::Duration;

use clap::Args;

use super::out;
use super::session::Session;
use super::{Context, Output, unexpected};
use crate::control::{EventsFacts, Failure, Reply, Request};
use crate::model::{Cursor, Event};

const PAGE: usize = 1000;

/// Print the event log, oldest first
#[derive(Args)]
#[command(
    after_help = "Examples: outfs events --limit 20\n          outfs events --json --follow --since CURSOR\n\n\
    With --json every event has its cursor; otherwise the last line has it."
)]
pub(crate) struct Events {
    /// Only events after this cursor
    #[arg(long, value_name = "CURSOR")]
    since: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Go on with new events as they happen
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    output: Output,
}

impl Events {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut since = self.since.clone();
        let mut left = self.limit.unwrap_or(usize::MAX);
        let mut session = Some(Session::open(&cx.store)?);
        while left > 0 {
            let mut open = match session.take() {
                Some(open) => open,
                None => Session::open(&cx.store)?,
            };
            let reply = open.call(Request::Events { since: since.clone(), limit: left.min(PAGE) })?;
            let Reply::Events(page) = reply else { return Err(unexpected(reply)) };
            self.print(&page)?;
            left -= page.events.len().min(left);
            since = Some(page.cursor.clone());
            match (page.more, self.follow) {
                (true, _) => session = Some(open),
                (false, true) => {
                    session = pause(open)?;
                }
                (false, false) => left = 0,
            }
            if left == 0 && !self.output.json {
                out::line(&format!("# cursor {}", page.cursor))?;
            }
        }
        session.map_or(Ok(()), Session::close)
    }

    fn print(&self, page: &EventsFacts) -> Result<(), Failure> {
        if page.gap {
            out::note("events between the cursor and the oldest one kept were trimmed");
        }
        for event in &page.events {
            if self.output.json {
                let mut value = serde_json::to_value(event).map_err(|e| Failure::failed(e.to_string()))?;
                value["cursor"] = cursor_of(&page.cursor, event).into();
                out::json(&value)?;
            } else {
                out::line(&text(event))?;
            }
        }
        Ok(())
    }
}

/// Between two looks: a connection is kept, a store of one's own is left to others meanwhile.
fn pause(session: Session) -> Result<Option<Session>, Failure> {
    if !session.is_owner() {
        std::thread::sleep(Duration::from_millis(200));
        return Ok(Some(session));
    }
    session.close()?;
    std::thread::sleep(Duration::from_secs(1));
    Ok(None)
}

fn cursor_of(page: &str, event: &Event) -> String {
    match page.parse::<Cursor>() {
        Ok(cursor) => Cursor { seq: event.seq, ..cursor }.to_string(),
        Err(_) => page.to_owned(),
    }
}

/// `TIME EVENT KEY field=value …`
fn text(event: &Event) -> String {
    let mut text = out::time(event.at);
    let value = serde_json::to_value(&event.kind).unwrap_or_default();
    let name = value["event"].as_str().unwrap_or("?").to_owned();
    text.push_str(&format!(" {name}"));
    if let Some(key) = &event.key {
        text.push_str(&format!(" {key}"));
    }
    for (field, value) in value.as_object().into_iter().flatten().filter(|(f, _)| *f != "event") {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.push_str(&format!(" {field}={}", out::clean(&value)));
    }
    text
}
