//! `outfs put`: a directory or a tar stream becomes an entry.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;

use super::out::{self, Streams};
use super::session::Session;
use super::{Context, Output, absolute, unexpected};
use crate::cache::TaskFacts;
use crate::control::{Failure, PutRequest, RawPath, Reply, Request};
use crate::model::EntryKey;
use crate::model::units::{counted, human_bytes};

/// Store a directory (or a tar stream) as an entry's outputs
#[derive(Args)]
#[command(after_help = "Examples: outfs put \"$KEY\" target/out --task-id build --exit-code 0\n          \
    tar -c out | outfs put \"$KEY\" --tar -")]
pub(crate) struct Put {
    /// The key
    key: EntryKey,
    /// The directory that becomes outputs/
    #[arg(required_unless_present = "tar", conflicts_with = "tar")]
    dir: Option<PathBuf>,
    /// Read the outputs from a tar stream ("-" is standard input)
    #[arg(long, value_name = "FILE")]
    tar: Option<PathBuf>,
    /// The task's name
    #[arg(long, value_name = "NAME", default_value = "")]
    task_id: String,
    /// An argument of the task's command; give it once for each
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    command: Vec<String>,
    /// The task's exit code
    #[arg(long, value_name = "N", default_value_t = 0, allow_hyphen_values = true)]
    exit_code: i32,
    /// How long the task ran, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    duration_ms: u64,
    /// A file with the task's standard output
    #[arg(long, value_name = "FILE")]
    stdout: Option<PathBuf>,
    /// A file with the task's standard error
    #[arg(long, value_name = "FILE")]
    stderr: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl Put {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let path = |p: &Option<PathBuf>| -> Result<Option<RawPath>, Failure> {
            p.as_deref().map(|p| absolute(p).map(RawPath)).transpose()
        };
        let what = format!("storing {}", self.key);
        let mut streams = match &self.tar {
            Some(tar) => Streams::reading(open_input(tar)?, &what),
            None => Streams::metered(&what),
        };
        let request = Request::Put(PutRequest {
            dir: path(&self.dir)?,
            stdout: path(&self.stdout)?,
            stderr: path(&self.stderr)?,
            run: None,
            key: self.key,
            facts: TaskFacts {
                task_id: self.task_id,
                command: self.command,
                exit_code: self.exit_code,
                duration_ms: self.duration_ms,
            },
        });
        let mut session = Session::open_or_create(&cx.store)?;
        let reply = session.call_with(request, &mut streams)?;
        drop(streams);
        print_stored(reply, &self.output)?;
        session.close()
    }
}

fn open_input(path: &Path) -> Result<Box<dyn Read>, Failure> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    let file = std::fs::File::open(path)
        .map_err(|e| Failure::failed(format!("cannot open {}: {e}", path.display())))?;
    Ok(Box::new(file))
}

/// Says what was stored, or that it was there already.
pub(super) fn print_stored(reply: Reply, output: &Output) -> Result<(), Failure> {
    let Reply::Stored { entry, new } = &reply else { return Err(unexpected(reply)) };
    if !entry.readable {
        let key = &entry.key;
        out::note(&format!(
            "its metadata.json cannot be read, so {key} counts as a miss: 'outfs show {key}' says why"
        ));
    }
    if output.json {
        let mut value = serde_json::to_value(entry).map_err(|e| Failure::failed(e.to_string()))?;
        value["new"] = (*new).into();
        return out::json(&value);
    }
    let said = if *new { "stored" } else { "unchanged" };
    out::line(&format!(
        "{said} {}: {} in {}",
        entry.key,
        human_bytes(entry.bytes),
        counted(entry.files, "file", "files")
    ))
}
