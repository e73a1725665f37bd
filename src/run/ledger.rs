//! What outfs remembers of a project between runs: how each task's last run ended, and what stands where.
//!
//! Invariants: one small file for each task and for each set of outputs, written aside and renamed, so that
//! runs at the same time never undo each other's; a missing or damaged one is none, and what it would have
//! spared is done again. Must not know: the store.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::remembered::write_aside;
use crate::model::{EntryKey, ManifestHash};

/// A task's last run here, whether it was executed or a hit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// Its name.
    pub task: String,
    /// Its key; absent when it ran past the cache.
    pub key: Option<EntryKey>,
    /// What its outputs hash to; absent when it has none.
    pub outputs_hash: Option<String>,
}

/// What was seen to stand at a set of outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stand {
    /// The outputs of this manifest.
    pub manifest: ManifestHash,
    /// As links, and not as files.
    pub links: bool,
    /// With this mark.
    pub mark: String,
    /// With the times that the entry has.
    #[serde(default)]
    pub own_times: bool,
}

/// The memory of one project.
#[derive(Debug, Clone)]
pub struct Ledger {
    dir: Option<PathBuf>,
}

impl Ledger {
    /// Of the project at `root`, below `memory`; nothing is remembered without one.
    pub fn of(memory: Option<&Path>, root: &Path) -> Ledger {
        use std::os::unix::ffi::OsStrExt;
        let name = blake3::hash(root.as_os_str().as_bytes()).to_hex();
        Ledger { dir: memory.map(|m| m.join(&name[..32])) }
    }

    /// Where the hashes of its inputs are.
    pub fn inputs(&self) -> Option<PathBuf> {
        self.dir.as_ref().map(|d| d.join("inputs"))
    }

    fn file(&self, kind: &str, parts: &[&[u8]]) -> Option<PathBuf> {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let name = &hasher.finalize().to_hex()[..32];
        self.dir.as_ref().map(|d| d.join(format!("{kind}-{name}.json")))
    }

    fn outputs_file(&self, cwd: &Path, outputs: &[PathBuf]) -> Option<PathBuf> {
        use std::os::unix::ffi::OsStrExt;
        let paths: Vec<&[u8]> = [cwd]
            .into_iter()
            .chain(outputs.iter().map(PathBuf::as_path))
            .map(|p| p.as_os_str().as_bytes())
            .collect();
        self.file("outputs", &paths)
    }

    /// A task's last run.
    pub fn last_run(&self, task: &str) -> Option<LastRun> {
        read(self.file("task", &[task.as_bytes()])?).filter(|run: &LastRun| run.task == task)
    }

    /// Remembers a task's last run.
    pub fn set_last_run(&self, run: &LastRun) {
        write(self.file("task", &[run.task.as_bytes()]), run);
    }

    /// What stands at these outputs.
    pub fn stand(&self, cwd: &Path, outputs: &[PathBuf]) -> Option<Stand> {
        read(self.outputs_file(cwd, outputs)?)
    }

    /// Remembers what stands there; nothing is known of it any more with `None`.
    pub fn set_stand(&self, cwd: &Path, outputs: &[PathBuf], stand: Option<&Stand>) {
        let file = self.outputs_file(cwd, outputs);
        match (stand, file) {
            (Some(stand), file) => write(file, stand),
            (None, Some(file)) => drop(std::fs::remove_file(file)),
            (None, None) => {}
        }
    }
}

fn read<T: DeserializeOwned>(file: PathBuf) -> Option<T> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

/// What cannot be written down is done again another time.
fn write(file: Option<PathBuf>, what: &impl Serialize) {
    if let Some(file) = file
        && let Ok(bytes) = serde_json::to_vec(what)
        && let Err(e) = write_aside(&file, &bytes)
    {
        tracing::debug!("cannot remember in {}: {e}", file.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_and_what_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::of(Some(dir.path()), Path::new("/p"));
        let run = LastRun { task: "a/b".into(), key: None, outputs_hash: Some("7".into()) };
        let stand =
            Stand { manifest: ManifestHash::of(b""), links: false, mark: "m".into(), own_times: true };
        let outputs = [PathBuf::from("x")];
        assert_eq!((ledger.last_run("a/b"), ledger.stand(Path::new("/p"), &outputs)), (None, None));
        ledger.set_last_run(&run);
        ledger.set_stand(Path::new("/p"), &outputs, Some(&stand));
        assert_eq!(ledger.last_run("a/b"), Some(run.clone()));
        assert_eq!(ledger.stand(Path::new("/p"), &outputs), Some(stand.clone()));
        assert_eq!(ledger.stand(Path::new("/p/q"), &outputs), None);
        assert_eq!(Ledger::of(Some(dir.path()), Path::new("/q")).last_run("a/b"), None);
        ledger.set_stand(Path::new("/p"), &outputs, None);
        assert_eq!(ledger.stand(Path::new("/p"), &outputs), None);
        for file in std::fs::read_dir(ledger.dir.as_ref().unwrap()).unwrap() {
            std::fs::write(file.unwrap().path(), "{").unwrap();
        }
        assert_eq!(ledger.last_run("a/b"), None);
        let nowhere = Ledger::of(None, Path::new("/p"));
        nowhere.set_last_run(&run);
        assert_eq!(nowhere.last_run("a/b"), None);
    }
}
