//! `outfs session`: results of `outfs run --ephemeral`, for as long as a command or a process lasts.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;

use super::session::Session;
use super::{Context, out, unexpected};
use crate::cache::Process;
use crate::control::{Failure, Kind, Reply, Request};
use crate::model::session::SessionId;
use crate::run::accompany;

/// The variable that tells runs which session they belong to.
pub(super) const VARIABLE: &str = "OUTFS_SESSION";

/// Run a command whose runs may have ephemeral results: they go when it ends
#[derive(Args)]
#[command(
    override_usage = "outfs session -- <COMMAND>...\n       outfs session --pid <PID>\n       outfs session --end <ID>",
    after_help = "Examples: outfs session -- ./ci.sh\n          export OUTFS_SESSION=$(outfs session --pid $$)\n\n\
    The variable OUTFS_SESSION has the session's name. In it, what 'outfs run --ephemeral' makes is there for --after, \
    --from and --base of later runs, and for nobody else."
)]
pub(crate) struct Sessions {
    /// Begin a session that lasts as long as this process, and print its name
    #[arg(long, value_name = "PID", conflicts_with_all = ["end", "command"])]
    pid: Option<u32>,
    /// End a session now
    #[arg(long, value_name = "ID", conflicts_with = "command")]
    end: Option<SessionId>,
    /// The command
    #[arg(last = true, required_unless_present_any = ["pid", "end"], value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Sessions {
    /// With the store, or why there is none.
    pub(super) fn run(self, cx: Result<Context, Failure>) -> Result<ExitCode, Failure> {
        match (self.pid, self.end) {
            (Some(pid), _) => out::line(&begin(&cx?, pid)?.to_string())?,
            (None, Some(id)) => end(&cx?, id)?,
            (None, None) => return lead(cx, &self.command),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Whatever is wrong with the cache, the command runs, and its exit code is the one.
fn lead(cx: Result<Context, Failure>, command: &[OsString]) -> Result<ExitCode, Failure> {
    let begun = cx.and_then(|cx| begin(&cx, std::process::id()).map(|id| (cx, id)));
    if let Err(failure) = &begun {
        warn(&format!("there is no session, and nothing ephemeral is kept: {failure}"));
    }
    // Its runs are in one that they can name and nobody has begun, and not in one around it.
    let id = begun.as_ref().map_or_else(|_| SessionId::random(), |(_, id)| id.clone());
    let guard = ["/proc/self/exe", "guard"].map(OsString::from);
    let ran = accompany(command, &[(VARIABLE, id.to_string())], &guard);
    if let Ok((cx, id)) = begun
        && let Err(failure) = end(&cx, id)
    {
        warn(&format!(
            "the end of the session cannot be told; it ends when the store is opened next: {failure}"
        ));
    }
    let program = || out::clean(&command.first().map(|c| c.to_string_lossy()).unwrap_or_default());
    let code = ran.map_err(|e| Failure::failed(format!("cannot run {}: {e}", program())))?;
    Ok(ExitCode::from(code))
}

fn warn(what: &str) {
    out::note(&out::clean(&format!("warning: {what}")));
}

fn begin(cx: &Context, pid: u32) -> Result<SessionId, Failure> {
    let process = Process::of(pid).ok_or_else(|| {
        Failure::new(Kind::Usage, format!("there is no process {pid} whose session this could be"))
    })?;
    let mut session = Session::open_or_create(&cx.store)?;
    let reply = session.call(Request::BeginSession { process })?;
    session.close()?;
    match reply {
        Reply::Session { id } => Ok(id),
        other => Err(unexpected(other)),
    }
}

fn end(cx: &Context, id: SessionId) -> Result<(), Failure> {
    let mut session = Session::open(&cx.store)?;
    session.call(Request::EndSession { id })?;
    session.close()
}
