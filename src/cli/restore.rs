//! `outfs restore`: an entry's outputs come back.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::how::As;
use super::out::{self, Streams};
use super::session::Session;
use super::{Context, Output, absolute, unexpected};
use crate::control::{Failure, RawPath, Reply, Request};
use crate::model::EntryKey;
use crate::model::units::{counted, human_bytes};
use crate::run::Way;

/// Write an entry's outputs into a directory, replacing nothing
#[derive(Args)]
#[command(
    visible_alias = "get",
    after_help = "Examples: outfs restore \"$KEY\" target/out\n          outfs restore \"$KEY\" --tar - | tar -tv"
)]
pub(crate) struct Restore {
    /// The entry
    key: EntryKey,
    /// The directory; what is in it already stays
    #[arg(required_unless_present = "tar", conflicts_with = "tar")]
    dest: Option<PathBuf>,
    /// How files are made
    #[arg(long = "as", value_enum, value_name = "HOW", default_value = "auto")]
    how: As,
    /// Replace files that differ
    #[arg(long)]
    force: bool,
    /// Write a tar stream instead ("-" is standard output)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["force", "how", "json"])]
    tar: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl Restore {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        match (&self.tar, &self.dest) {
            (Some(tar), _) => restore_tar(&mut session, self.key, tar)?,
            (None, Some(dest)) => {
                let dest = absolute(dest)?.into();
                let mut streams = Streams::metered(&format!("restoring {}", self.key));
                let key = self.key.clone();
                let Way::Files(how) = self.how.way() else {
                    let request = Request::Link { key, dest, path: RawPath::default(), replace: false };
                    return self.print(session.call(request)?);
                };
                let (force, dir_mode) = (self.force, dir_mode());
                let request = Request::Restore { key, dest, how, force, dir_mode };
                let reply = session.call_with(request, &mut streams)?;
                drop(streams);
                self.print(reply)?;
            }
            (None, None) => {
                return Err(Failure::new(crate::control::Kind::Usage, "name a directory or --tar -"));
            }
        }
        session.close()
    }

    fn print(&self, reply: Reply) -> Result<(), Failure> {
        match reply {
            Reply::Restored(r) if self.output.json => out::json(&r),
            Reply::Restored(r) => out::line(&format!(
                "restored {}: {} in {} ({} by reflink), {} kept",
                self.key,
                human_bytes(r.bytes),
                counted(r.files, "file", "files"),
                r.reflinked,
                r.kept
            )),
            Reply::Linked { target } if self.output.json => {
                out::json(&serde_json::json!({ "target": target }))
            }
            Reply::Linked { target } => out::line(&format!("linked to {}", out::clean_path(&target))),
            other => Err(unexpected(other)),
        }
    }
}

/// What this process's umask leaves of a directory's mode.
fn dir_mode() -> u32 {
    use nix::sys::stat::{Mode, umask};
    // It can only be read by setting it; nothing else makes files here yet.
    let mask = umask(Mode::empty());
    umask(mask);
    0o777 & !mask.bits()
}

fn restore_tar(session: &mut Session, key: EntryKey, to: &Path) -> Result<(), Failure> {
    let mut streams = Streams::metered(&format!("restoring {key}"));
    if to != Path::new("-") {
        streams.output = Box::new(io::BufWriter::with_capacity(1 << 16, Late::At(to.to_owned())));
    }
    session.call_with(Request::RestoreTar { key }, &mut streams)?;
    streams.output.flush().map_err(out::unwritable)
}

/// A file that is made when there is something to write: what stands there stays when there is no such entry.
enum Late {
    At(PathBuf),
    Open(File),
}

impl Write for Late {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Late::At(path) = self {
            let file = File::create(&*path)
                .map_err(|e| io::Error::new(e.kind(), format!("cannot create {}: {e}", path.display())))?;
            *self = Late::Open(file);
        }
        match self {
            Late::Open(file) => file.write(bytes),
            Late::At(_) => unreachable!("it was opened above"),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
