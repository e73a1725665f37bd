//! Placing outputs for a run: exactly an entry's, and nothing beside them, at some paths of a directory.
//!
//! Invariants: what is at the paths afterwards is what the entry has, whatever stood there; each file
//! appears whole; nothing beside the paths is touched. Content that is lost is an answer, not an
//! error: the caller makes it again. Must not know: tasks, keys.

use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::{UnlinkatFlags, unlinkat};

use super::only::Only;
use super::restore::{Restorer, open_top};
use super::uproot::remove_tree;
use super::{CacheError, Entry, RestoreAs, Restored, Result, Work, at};
use crate::model::{Manifest, RecordKind};
use crate::store::StoreError;

/// Between two modification times that differed.
const STEP_NS: i64 = 1000;

/// How placing ended.
#[derive(Debug)]
pub enum Placement {
    /// All is there.
    Done(Restored),
    /// The entry has lost content of this path; what stands at the paths now is of no use.
    Lost {
        /// Below `outputs/`.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Only reflinks were wanted, and there can be none here.
    NoReflinks {
        /// What the system says.
        why: String,
    },
    /// Something that is no output and no directory stands where one of its directories belongs.
    InTheWay {
        /// What.
        path: PathBuf,
    },
}

/// New modification times: the newest is given, the others are just before it in the order they had.
pub(super) struct Shift {
    sorted: Vec<i64>,
    newest: i64,
}

impl Shift {
    pub fn to(newest: i64, manifest: &Manifest) -> Shift {
        let mut sorted: Vec<i64> = manifest.records().iter().map(|r| r.mtime_ns()).collect();
        sorted.sort_unstable();
        sorted.dedup();
        Shift { sorted, newest }
    }

    pub fn time(&self, old: i64) -> i64 {
        let later = self.sorted.len() - self.sorted.partition_point(|t| *t <= old);
        self.newest - later as i64 * STEP_NS
    }
}

impl Entry {
    /// Has exactly this entry's `outputs` (relative paths) stand below `dest`. With `newest_ns` modification
    /// times are shifted so that the newest is that; without, they are the entry's.
    pub fn place(
        &self,
        dest: &Path,
        outputs: &[PathBuf],
        how: RestoreAs,
        newest_ns: Option<i64>,
        work: &Work,
    ) -> Result<Placement> {
        let top = open_top(dest)?;
        self.cache().touch(self);
        let manifest = match self.manifest() {
            Err(CacheError::Store(e)) if is_loss(&e) => {
                return Ok(Placement::Lost { path: PathBuf::new(), why: e.to_string() });
            }
            other => other?,
        };
        let Some(record) = manifest.find(b"outputs") else { return Ok(Placement::Done(Restored::default())) };
        work.expect(manifest.files(), manifest.logical_bytes());
        let mut restorer = Restorer::new(self, &manifest, top, dest.to_owned(), how, true, work);
        restorer.exact = true;
        restorer.shift = newest_ns.map(|newest| Shift::to(newest, &manifest));
        restorer.only = Only::Paths(outputs.iter().map(|o| o.as_os_str().as_bytes().to_vec()).collect());
        match restorer.run(record) {
            Ok(done) => Ok(Placement::Done(done)),
            Err((CacheError::Store(e), Some(path))) if is_loss(&e) => {
                let path = path.strip_prefix(dest).map(Path::to_owned).unwrap_or(path);
                Ok(Placement::Lost { path, why: e.to_string() })
            }
            Err((e @ CacheError::Io { op: "reflink", .. }, _)) => {
                Ok(Placement::NoReflinks { why: e.to_string() })
            }
            Err((CacheError::InTheWay(path), _)) => Ok(Placement::InTheWay { path }),
            Err((e, _)) => Err(e),
        }
    }
}

fn is_loss(e: &StoreError) -> bool {
    matches!(e, StoreError::Missing { .. } | StoreError::Corrupt { .. })
}

impl Restorer<'_> {
    /// Takes away what the directory `record` does not have.
    pub(super) fn prune(&self, dir: BorrowedFd<'_>, record: u32, shown: &Path) -> Result<()> {
        let fail = |e| CacheError::io("clear", shown, e);
        for name in at::names(dir).map_err(fail)? {
            if self.manifest.lookup(record, &name).is_some() {
                continue;
            }
            let stat = at::stat(dir, &name).map_err(fail)?;
            match at::kind(&stat) {
                libc::S_IFDIR => remove_tree(&at::proc_path(dir, &name)).map_err(fail)?,
                _ => unlinkat(dir, &name[..], UnlinkatFlags::NoRemoveDir).map_err(|e| fail(e.into()))?,
            }
        }
        Ok(())
    }

    /// What stands there is alike: its mode and time become the entry's.
    pub(super) fn refresh(
        &self,
        dir: BorrowedFd<'_>,
        record: u32,
        stat: &libc::stat,
        shown: &Path,
    ) -> Result<()> {
        let (name, wanted) = (self.manifest.name(record), self.record(record));
        let fail = |e| CacheError::io("change", shown, e);
        let mode = wanted.perm() | 0o200;
        if wanted.kind() != RecordKind::Symlink && stat.st_mode & 0o7777 != mode {
            at::chmod(dir, name, mode).map_err(fail)?;
        }
        let time = self.time(record);
        if at::mtime_ns(stat) != time {
            at::set_mtime(dir, name, time).map_err(fail)?;
        }
        Ok(())
    }
}
