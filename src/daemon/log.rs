//! Where the daemon logs: standard error, a file or the journal; readable or as JSON. What is
//! logged is chosen by `OUTFS_LOG` (as in `info` or `outfs=debug`). Must not know: who logs.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use super::journal::Journal;
use crate::control::{Failure, Kind};

/// A log file over this many bytes is set aside when a daemon starts.
const LARGE: u64 = 16 << 20;

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard error.
    Stderr,
    /// The systemd journal.
    Journal,
    /// Appended to a file.
    File(PathBuf),
}

/// Where to and in which form: `stderr`, `journal` or a path, with `json:` before it for JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogSpec {
    /// Where to.
    pub target: LogTarget,
    /// One JSON object per line.
    pub json: bool,
}

impl FromStr for LogSpec {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (json, rest) = s.strip_prefix("json:").map_or((false, s), |rest| (true, rest));
        let target = match rest {
            "stderr" => LogTarget::Stderr,
            "journal" => LogTarget::Journal,
            "" => return Err("say where: stderr, journal or a file".into()),
            path => LogTarget::File(
                std::path::absolute(path).map_err(|e| format!("{path} is no usable path: {e}"))?,
            ),
        };
        Ok(Self { target, json })
    }
}

impl TryFrom<String> for LogSpec {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl fmt::Display for LogSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.json { "json:" } else { "" })?;
        match &self.target {
            LogTarget::Stderr => f.write_str("stderr"),
            LogTarget::Journal => f.write_str("journal"),
            LogTarget::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl From<LogSpec> for String {
    fn from(s: LogSpec) -> String {
        s.to_string()
    }
}

impl LogSpec {
    /// Sends this process's log there from now on, `level` of it unless `OUTFS_LOG` says otherwise;
    /// what was installed first stays.
    pub fn install(&self, level: &str) -> Result<(), Failure> {
        static INSTALLED: Mutex<bool> = Mutex::new(false);
        let mut installed = INSTALLED.lock().unwrap_or_else(|e| e.into_inner());
        if *installed {
            return Ok(());
        }
        let filter = match std::env::var("OUTFS_LOG") {
            Ok(text) => EnvFilter::try_new(&text)
                .map_err(|e| Failure::new(Kind::Usage, format!("OUTFS_LOG={text} cannot be used: {e}")))?,
            // What fuser complains about is no fault: clients that were killed while they waited for a reply.
            Err(_) => EnvFilter::new(format!("{level},fuser=off")),
        };
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_target(false)
            .with_ansi(false)
            // Said on standard error, where a write that fails is a panic.
            .log_internal_errors(false);
        let done = match (&self.target, self.json) {
            (LogTarget::Stderr, false) => builder.with_writer(std::io::stderr).try_init(),
            (LogTarget::Stderr, true) => builder.json().with_writer(std::io::stderr).try_init(),
            (LogTarget::Journal, false) => builder.without_time().with_writer(Journal::connect()?).try_init(),
            (LogTarget::Journal, true) => builder.json().with_writer(Journal::connect()?).try_init(),
            (LogTarget::File(path), false) => builder.with_writer(Mutex::new(open(path)?)).try_init(),
            (LogTarget::File(path), true) => builder.json().with_writer(Mutex::new(open(path)?)).try_init(),
        };
        done.map_err(|e| Failure::failed(format!("cannot log to {self}: {e}")))?;
        *installed = true;
        Ok(())
    }
}

/// Appends; a file that has become large is set aside, and the one before it goes.
fn open(path: &std::path::Path) -> Result<std::fs::File, Failure> {
    use std::os::unix::fs::OpenOptionsExt;
    if std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() > LARGE) {
        let mut old = path.as_os_str().to_owned();
        old.push(".old");
        let _ = std::fs::rename(path, old);
    }
    let mut options = std::fs::OpenOptions::new();
    options
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| Failure::failed(format!("cannot open the log file {}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs() {
        for text in ["stderr", "journal", "/var/log/x", "json:stderr", "json:/a b"] {
            assert_eq!(text.parse::<LogSpec>().unwrap().to_string(), text);
        }
        assert!("".parse::<LogSpec>().is_err() && "json:".parse::<LogSpec>().is_err());
        assert!(matches!("x.log".parse::<LogSpec>().unwrap().target, LogTarget::File(p) if p.is_absolute()));
    }
}
