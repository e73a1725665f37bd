//! Taking over the entries of an existing cache directory.
//!
//! Invariants: the source is only read; what is there already with the same outputs is left
//! alone, so an import that was cut short is simply run again; one bad entry stops nothing.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Cache, CacheError, Result, SealRequest, Sealed, TaskFacts};
use crate::model::manifest::Origin;
use crate::model::{EntryKey, Metadata};

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImportReport {
    /// Entries that are new.
    pub imported: u64,
    /// Entries that were there already, with the same outputs.
    pub same: u64,
    /// What was left out, and why.
    pub skipped: Vec<Skipped>,
}

/// Something that was not imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Where it is.
    pub path: PathBuf,
    /// Why it was left out.
    pub why: String,
}

impl Cache {
    /// Imports cuenv's local cache: `ab/cd/<digest>/` with metadata, logs and outputs. As for cuenv, a
    /// directory without readable metadata is no entry. `each` hears of every entry done.
    pub fn import_cuenv(&self, src: &Path, each: &mut dyn FnMut(&EntryKey)) -> Result<ImportReport> {
        let mut report = ImportReport::default();
        for first in subdirs(src)? {
            for second in subdirs(&first)? {
                for dir in subdirs(&second)? {
                    self.import_one(&dir, src, &mut report, each, |dir| {
                        let file = dir.join("metadata.json");
                        let bytes = std::fs::read(&file).map_err(|e| format!("its metadata.json: {e}"))?;
                        Metadata::parse(&bytes).map_err(|e| format!("its metadata.json: {e}"))?;
                        Ok(true)
                    })?;
                }
            }
        }
        Ok(report)
    }

    /// Imports a directory of entries by key: those with a `metadata.json` or an `outputs/` as they
    /// stand, any other as outputs. `each` hears of every entry done.
    pub fn import_dir(&self, src: &Path, each: &mut dyn FnMut(&EntryKey)) -> Result<ImportReport> {
        let mut report = ImportReport::default();
        for dir in subdirs(src)? {
            self.import_one(&dir, src, &mut report, each, |dir| {
                Ok(dir.join("metadata.json").is_file() || dir.join("outputs").is_dir())
            })?;
        }
        Ok(report)
    }

    /// Imports one directory: `whole` says whether it is a whole entry or only its outputs, or
    /// why it is neither.
    fn import_one(
        &self,
        dir: &Path,
        src: &Path,
        report: &mut ImportReport,
        each: &mut dyn FnMut(&EntryKey),
        whole: impl Fn(&Path) -> std::result::Result<bool, String>,
    ) -> Result<()> {
        let mut skip = |why: String| report.skipped.push(Skipped { path: dir.to_owned(), why });
        let key = match EntryKey::parse_os(dir.file_name().unwrap_or_default()) {
            Ok(key) => key,
            Err(e) => {
                skip(format!("its name is no key: {e}"));
                return Ok(());
            }
        };
        let whole = match whole(dir) {
            Ok(whole) => whole,
            Err(why) => {
                skip(why);
                return Ok(());
            }
        };
        let origin = Origin {
            how: "import".into(),
            uid: nix::unistd::getuid().as_raw(),
            host: super::here::host_name(),
            source: src.display().to_string(),
        };
        let request = SealRequest { key: key.clone(), origin, inferred: false, replace: false };
        let sealed = if whole {
            self.put_entry(dir, &request)
        } else {
            self.put_dir(dir, &TaskFacts::default(), [None, None], request)
        };
        match sealed {
            Ok(Sealed::New(_)) => report.imported += 1,
            Ok(Sealed::Same(_)) => report.same += 1,
            // The store itself: the next entry would fail likewise.
            Err(e @ (CacheError::NoSpace(_) | CacheError::Store(_) | CacheError::Index(_))) => return Err(e),
            Err(e) => skip(e.to_string()),
        }
        each(&key);
        Ok(())
    }
}

/// The directories in `dir`, sorted; symlinks are not followed.
fn subdirs(dir: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e| CacheError::io("read", dir, e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_type().map_err(fail)?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
