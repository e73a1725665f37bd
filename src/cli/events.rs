//! `outfs events`: what happened, in order, page by page or as it happens.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::out;
use super::session::Session;
use super::{Context, Output, unexpected};
use crate::control::{EventsFacts, Failure, Reply, Request};
use crate::model::{Cursor, Event};

pub(super) const PAGE: usize = 1000;

/// Print the event log, oldest first
#[derive(Args)]
#[command(
    after_help = "Examples: outfs events --limit 20\n          outfs events --json --follow --since CURSOR\n\n\
    The last line has the cursor to go on with and says whether there is more; with --json it is a record, and every \
    event has its cursor, too. Records are kept for 90 days, at most a million, and no more than a 32nd of the store's limit has room for (2 MiB at least)."
)]
pub(crate) struct Events {
    /// Only events after this cursor
    #[arg(long, value_name = "CURSOR")]
    since: Option<String>,
    /// At most so many, up to 10000 [default: 1000; with --follow no end]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Go on with new events as they happen
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    output: Output,
}

/// How a page ends.
#[derive(Serialize)]
struct Ends<'a> {
    /// Where to go on.
    cursor: &'a str,
    more: bool,
    /// Records before these were trimmed.
    trimmed: bool,
}

impl Events {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let json = self.output.json;
        out::or_record(json, self.all(cx))
    }

    fn all(self, cx: &Context) -> Result<(), Failure> {
        if self.follow {
            return self.follow(cx);
        }
        let mut session = Session::open(&cx.store)?;
        let page = ask(&mut session, self.since.clone(), self.limit.unwrap_or(PAGE))?;
        self.print(&page)?;
        self.end(&page)?;
        session.close()
    }

    fn follow(&self, cx: &Context) -> Result<(), Failure> {
        let mut since = self.since.clone();
        let mut left = self.limit.unwrap_or(usize::MAX);
        let mut session = Some(Session::open(&cx.store)?);
        loop {
            let mut open = match session.take() {
                Some(open) => open,
                None => Session::open(&cx.store)?,
            };
            let page = ask(&mut open, since.clone(), left.min(PAGE))?;
            if self.output.json && page.gap {
                // The end, which would say so, may never come.
                out::json(&serde_json::json!({ "cursor": since, "trimmed": true }))?;
            }
            self.print(&page)?;
            left -= page.events.len().min(left);
            if left == 0 {
                self.end(&page)?;
                return open.close();
            }
            since = Some(page.cursor);
            session = if page.more { Some(open) } else { pause(open)? };
        }
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

    fn end(&self, page: &EventsFacts) -> Result<(), Failure> {
        let more = if page.more { ", and there is more" } else { "" };
        match self.output.json {
            true => out::json(&Ends { cursor: &page.cursor, more: page.more, trimmed: page.gap }),
            false => out::line(&format!("# cursor {}{more}", page.cursor)),
        }
    }
}

/// One page.
pub(super) fn ask(
    session: &mut Session,
    since: Option<String>,
    limit: usize,
) -> Result<EventsFacts, Failure> {
    match session.call(Request::Events { since, limit })? {
        Reply::Events(page) => Ok(page),
        other => Err(unexpected(other)),
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
