//! `outfs logs`: what a task printed.

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;

use super::out::{self, Streams};
use super::session::Session;
use super::{Context, Output, unexpected};
use crate::control::{Failure, LogLine, LogStream, Reply, Request};
use crate::model::EntryKey;

const PAGE: usize = 1000;

/// Write a task's logs: its output to standard output, its errors to standard error
#[derive(Args)]
#[command(
    after_help = "Examples: outfs logs \"$KEY\" --stderr\n          outfs logs \"$KEY\" --start 100 --limit 50\n\n\
    Lines are counted from 0, those of standard output first. A page ends with a line on standard error, or a record, \
    that says where to go on and whether there is more. Without --start, --limit and --json all is written as it is.\n\n\
    --follow ends with the run; an entry that is there already is written whole. (outfs run --dry-run tells a key.)"
)]
pub(crate) struct Logs {
    /// The entry
    key: EntryKey,
    /// Only its standard output
    #[arg(long, conflicts_with = "stderr")]
    stdout: bool,
    /// Only its standard error, to standard output
    #[arg(long)]
    stderr: bool,
    /// While a run makes the entry: what its command prints, from its start to its end
    #[arg(long, conflicts_with_all = ["start", "limit", "json"])]
    follow: bool,
    /// A page: begin with this line
    #[arg(long, value_name = "N")]
    start: Option<u64>,
    /// A page of at most so many lines, up to 10000 [default: 1000]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    output: Output,
}

/// How a page ends.
#[derive(Serialize)]
struct Ends {
    /// Where to go on.
    next: u64,
    more: bool,
}

impl Logs {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let json = self.output.json;
        out::or_record(json, self.all(cx))
    }

    fn all(self, cx: &Context) -> Result<(), Failure> {
        if self.follow && self.follow(cx)? {
            return Ok(());
        }
        let mut session = Session::open(&cx.store)?;
        match self.start.is_some() || self.limit.is_some() || self.output.json {
            true => self.page(&mut session)?,
            false => self.whole(&mut session)?,
        }
        session.close()
    }

    /// False when nobody makes it now.
    fn follow(&self, cx: &Context) -> Result<bool, Failure> {
        let mut each = |stderr: bool, bytes: &[u8]| match (stderr, self.stdout, self.stderr) {
            (true, true, _) | (false, _, true) => Ok(()),
            (true, _, false) => io::stderr().write_all(bytes),
            _ => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
        };
        crate::run::follow(&cx.store.join("runs"), &self.key, &mut each).map_err(out::unwritable)
    }

    fn whole(&self, session: &mut Session) -> Result<(), Failure> {
        let mut write = |stream, streams: &mut Streams| {
            session.call_with(Request::Log { key: self.key.clone(), stream }, streams)?;
            streams.finish()
        };
        if !self.stderr {
            write(LogStream::Stdout, &mut Streams::to_stdout())?;
        }
        if !self.stdout {
            let mut streams = Streams::to_stdout();
            if !self.stderr {
                streams.output = Box::new(io::stderr());
            }
            write(LogStream::Stderr, &mut streams)?;
        }
        Ok(())
    }

    fn page(&self, session: &mut Session) -> Result<(), Failure> {
        let stream = match (self.stdout, self.stderr) {
            (true, _) => Some(LogStream::Stdout),
            (_, true) => Some(LogStream::Stderr),
            _ => None,
        };
        let (start, limit) = (self.start.unwrap_or(0), self.limit.unwrap_or(PAGE));
        let reply = session.call(Request::LogLines { key: self.key.clone(), stream, start, limit })?;
        let Reply::LogLines { lines, next, more } = reply else { return Err(unexpected(reply)) };
        for line in &lines {
            self.print(line)?;
        }
        if self.output.json {
            return out::json(&Ends { next, more });
        }
        out::note(&match more {
            true => format!("there is more: --start {next}"),
            false => format!("that is all; the log has {next} lines"),
        });
        Ok(())
    }

    fn print(&self, line: &LogLine) -> Result<(), Failure> {
        if self.output.json {
            return out::json(line);
        }
        let bytes = line.text.as_bytes();
        match line.stream == LogStream::Stderr && !self.stderr {
            true => io::stderr().write_all(bytes),
            false => io::stdout().write_all(bytes),
        }
        .map_err(out::unwritable)
    }
}
