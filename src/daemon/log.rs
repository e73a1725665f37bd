//! Where the daemon logs: standard error, a file or the journal; readable or as JSON. What is
//! logged is chosen by `OUTFS_LOG` (as in `info` or `outfs=debug`); where a command does not have that, what it logs looks like what it
//! says. Must not know: who logs.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::journal::Journal;
use crate::control::{Failure, Kind};

/// A log file over this many bytes is set aside, and the one before it goes.
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
        self.set_up(level, false)
    }

    /// The same for a command, which says things on standard error itself.
    pub fn install_in_command(level: &str) -> Result<(), Failure> {
        LogSpec { target: LogTarget::Stderr, json: false }.set_up(level, true)
    }

    fn set_up(&self, level: &str, in_command: bool) -> Result<(), Failure> {
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
            (LogTarget::Stderr, false) if in_command && std::env::var_os("OUTFS_LOG").is_none() => {
                builder.event_format(Said).with_writer(std::io::stderr).try_init()
            }
            (LogTarget::Stderr, false) => builder.with_writer(std::io::stderr).try_init(),
            (LogTarget::Stderr, true) => builder.json().with_writer(std::io::stderr).try_init(),
            (LogTarget::Journal, false) => builder.without_time().with_writer(Journal::connect()?).try_init(),
            (LogTarget::Journal, true) => builder.json().with_writer(Journal::connect()?).try_init(),
            (LogTarget::File(path), false) => {
                builder.with_writer(Mutex::new(LogFile::open(path)?)).try_init()
            }
            (LogTarget::File(path), true) => {
                builder.json().with_writer(Mutex::new(LogFile::open(path)?)).try_init()
            }
        };
        done.map_err(|e| Failure::failed(format!("cannot log to {self}: {e}")))?;
        *installed = true;
        Ok(())
    }
}

/// In the form of what commands say: there is no time, and nobody else who could have said it.
struct Said;

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static> FormatEvent<S, N>
    for Said
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut to: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = if *event.metadata().level() == Level::ERROR { "error" } else { "warning" };
        write!(to, "outfs: {level}: ")?;
        context.field_format().format_fields(to.by_ref(), event)?;
        writeln!(to)
    }
}

/// A file that is appended to, and begun anew when it has become large: a daemon may live for months.
struct LogFile {
    path: PathBuf,
    file: File,
    /// Bytes in it, as far as this process knows.
    bytes: u64,
    large: u64,
}

impl LogFile {
    fn open(path: &Path) -> Result<LogFile, Failure> {
        let failed = |e| Failure::failed(format!("cannot open the log file {}: {e}", path.display()));
        let file = append_to(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        // A pipe or a terminal cannot be set aside.
        let large = if meta.is_file() { LARGE } else { u64::MAX };
        Ok(LogFile { path: path.to_owned(), file, bytes: meta.len(), large })
    }

    /// Where that cannot be done the file goes on, and it is tried again when as much was written once more.
    fn set_aside(&mut self) {
        let mut old = self.path.as_os_str().to_owned();
        old.push(".old");
        let renamed = std::fs::rename(&self.path, old);
        if let Ok(file) = renamed.and_then(|()| append_to(&self.path)) {
            self.file = file;
        }
        self.bytes = 0;
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes > self.large {
            self.set_aside();
        }
        let n = self.file.write(bytes)?;
        self.bytes += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)
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

    #[test]
    fn a_file_that_has_become_large_is_set_aside_while_it_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "before\n").unwrap();
        let mut log = LogFile::open(&path).unwrap();
        log.large = 20;
        for n in 0..9 {
            log.write_all(format!("line {n}\n").as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "line 8\n");
        let old = std::fs::read_to_string(dir.path().join("log.old")).unwrap();
        assert_eq!(old, "line 5\nline 6\nline 7\n", "what was set aside before is gone");
    }
}
