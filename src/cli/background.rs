//! The hidden command a background daemon runs as: its start comes as JSON on standard input; it
//! answers on standard output, once, and then has no terminal any more. It keeps no descriptor of its caller's.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::control::{Failure, Kind, ViewFacts};
use crate::daemon::{self, Start};

/// Run as a daemon in the background
#[derive(Args)]
#[command(hide = true)]
pub(crate) struct Background {}

/// The daemon's one answer.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ready(ViewFacts),
    Failed(Failure),
}

impl Background {
    pub(super) fn run(self) -> Result<(), Failure> {
        let_go_of_the_callers();
        let start: Start = serde_json::from_reader(io::stdin().lock()).map_err(|e| {
            Failure::new(Kind::Usage, format!("this command is for outfs itself; use 'outfs mount' ({e})"))
        })?;
        // Else `ps` and `pgrep` would know it as "exe".
        let _ = nix::sys::prctl::set_name(c"outfs");
        // Fails only for a leader of a process group, who has no terminal to lose then.
        let _ = nix::unistd::setsid();
        let ended = daemon::run(&start, |result| {
            let answer = match result {
                Ok(facts) => Answer::Ready(facts.clone()),
                Err(failure) => Answer::Failed(failure.clone()),
            };
            let mut out = io::stdout().lock();
            // Whoever started this may be gone; the log has it as well.
            let _ = serde_json::to_writer(&mut out, &answer);
            let _ = out.flush();
            drop(out);
            leave_terminal();
        });
        if let Err(failure) = ended {
            tracing::error!("{failure}");
            return Err(failure);
        }
        Ok(())
    }
}

/// Closes what was handed down besides the standard streams: a lock or a pipe of the caller's would last as long as
/// the daemon. (Linux has the call since 5.9; before that it keeps them.)
pub(super) fn let_go_of_the_callers() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: takes numbers only, and nothing in this process has opened a descriptor yet.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) };
}

/// Standard streams become /dev/null, so that no pipe or terminal is held open.
fn leave_terminal() {
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
    }
}

/// Starts a daemon in the background and waits until it is ready or has failed.
pub(super) fn spawn(start: &Start) -> Result<ViewFacts, Failure> {
    let io = |what: &str, e: io::Error| Failure::failed(format!("cannot {what} the daemon: {e}"));
    let mut child = Command::new("/proc/self/exe")
        .arg0("outfs")
        .arg("daemon")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| io("start", e))?;
    let text =
        serde_json::to_vec(start).map_err(|e| Failure::failed(format!("cannot start the daemon: {e}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&text).map_err(|e| io("talk to", e))?;
    }
    let answer = child.stdout.take().map(serde_json::from_reader::<_, Answer>);
    match answer {
        Some(Ok(Answer::Ready(facts))) => Ok(facts),
        Some(Ok(Answer::Failed(failure))) => {
            let _ = child.wait();
            Err(failure)
        }
        _ => {
            let how = child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
            Err(Failure::failed(format!(
                "the daemon died while it started ({how}); its log is {}",
                start.log
            )))
        }
    }
}
