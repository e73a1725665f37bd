//! `outfs logs`: what a task printed.

use std::io;

use clap::Args;

use super::Context;
use super::out::Streams;
use super::session::Session;
use crate::control::{Failure, LogStream, Request};
use crate::model::EntryKey;

/// Write a task's logs: its output to standard output, its errors to standard error
#[derive(Args)]
#[command(after_help = "Example: outfs logs 9f86d081 --stderr")]
pub(crate) struct Logs {
    /// The entry
    key: EntryKey,
    /// Only its standard output
    #[arg(long, conflicts_with = "stderr")]
    stdout: bool,
    /// Only its standard error, to standard output
    #[arg(long)]
    stderr: bool,
}

impl Logs {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        if !self.stderr {
            let request = Request::Log { key: self.key.clone(), stream: LogStream::Stdout };
            session.call_with(request, &mut Streams::to_stdout())?;
        }
        if !self.stdout {
            let mut streams = Streams::to_stdout();
            if !self.stderr {
                streams.output = Box::new(io::stderr());
            }
            session.call_with(Request::Log { key: self.key, stream: LogStream::Stderr }, &mut streams)?;
        }
        session.close()
    }
}
