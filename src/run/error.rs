//! Errors of cached execution: what is wrong with what was asked, and what the system refused.

use std::io;
use std::path::{Path, PathBuf};

/// Why a task cannot be run as asked. A cache that fails is none of these: it warns.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The request makes no sense as it stands.
    #[error("{0}")]
    Usage(String),
    /// An input went away or changed while it was read.
    #[error("the input {path} {what} while it was read; run again once nothing changes it", path = path.display())]
    Unstable {
        /// Which.
        path: PathBuf,
        /// `vanished` or `changed`.
        what: &'static str,
    },
    /// The command cannot be found or executed: as a shell says it, with the shell's exit code.
    #[error("{command}: {why}")]
    Command {
        /// As given.
        command: String,
        /// What is wrong.
        why: String,
        /// 127 not found, 126 not executable.
        code: u8,
    },
    /// A lock file that is not what it should be.
    #[error("{path}, line {line}: {why}; repair the file or delete it", path = path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong there.
        why: String,
    },
    /// The system refused.
    #[error("cannot {op} {path}: {source}", path = path.display())]
    Io {
        /// What was being done, as a verb.
        op: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl RunError {
    /// An [`Io`](Self::Io) error with its context.
    pub fn io(op: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        RunError::Io { op, path: path.as_ref().to_owned(), source }
    }

    /// A [`Usage`](Self::Usage) error.
    pub fn usage(message: impl Into<String>) -> Self {
        RunError::Usage(message.into())
    }
}
