//! What outfs remembers of a project between runs: how each task's last run ended, and what stands where.
//!
//! Invariants: one small file for each task and for each set of outputs, written aside and renamed, so that
//! runs at the same time never undo each other's; a missing or damaged one is none, and what it would have
//! spared is done again; a task's last run is one checkout's, whatever else stood at its path (containers).
//! Must not know: the store.

use std::ffi::OsString;
use std::fs::{DirEntry, Metadata};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::remembered::write_aside;
use super::spec::Place;
use super::turn::Turns;
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
    /// Where it ran, below the project's top.
    pub below: OsString,
    /// Its outputs, relative to that.
    pub outputs: Vec<OsString>,
}

/// What was seen to stand at a set of outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stand {
    /// The outputs of this manifest, if of one.
    pub manifest: Option<ManifestHash>,
    /// What they hash to, if that was found out.
    pub outputs_hash: Option<String>,
    /// As links, and not as files.
    pub links: bool,
    /// With this mark.
    pub mark: String,
    /// With the times that the entry has.
    #[serde(default)]
    pub own_times: bool,
    /// A run has left them so; nobody has merely looked at them.
    #[serde(default)]
    pub made: bool,
}

/// What was not written for so long is forgotten: of checkouts and projects that are gone. Of one that is not, it is found out again.
const KEPT: Duration = Duration::from_secs(30 * 86_400);
/// Letters of the name of a project's directory.
const NAME: usize = 32;

/// Where runs take turns.
const TURNS: &str = "turns";

/// The memory of one project.
#[derive(Debug, Clone)]
pub struct Ledger {
    dir: Option<PathBuf>,
    /// Which directory the project's top is.
    checkout: String,
}

impl Ledger {
    /// Of the project at `root`, below `memory`; nothing is remembered without one.
    pub fn of(memory: Option<&Path>, root: &Path) -> Ledger {
        use std::os::unix::ffi::OsStrExt;
        let name = blake3::hash(root.as_os_str().as_bytes()).to_hex();
        Ledger { dir: memory.map(|m| m.join(&name[..NAME])), checkout: which(root) }
    }

    /// Where the hashes of its inputs are.
    pub fn inputs(&self) -> Option<PathBuf> {
        self.dir.as_ref().map(|d| d.join("inputs"))
    }

    /// Where runs that write these outputs take turns.
    pub(super) fn turns(&self, place: &Place, outputs: &[PathBuf]) -> Option<Turns> {
        Some(Turns::of(self.dir.as_ref()?.join(TURNS), &self.checkout, place, outputs))
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

    fn task_file(&self, task: &str) -> Option<PathBuf> {
        self.file("task", &[self.checkout.as_bytes(), task.as_bytes()])
    }

    /// A task's last run in this checkout.
    pub fn last_run(&self, task: &str) -> Option<LastRun> {
        read(self.task_file(task)?).filter(|run: &LastRun| run.task == task)
    }

    /// Remembers a task's last run.
    pub fn set_last_run(&self, run: &LastRun) {
        let file = self.task_file(&run.task);
        let is_new = file.as_ref().is_some_and(|file| !file.exists());
        write(file, run);
        if let Some(dir) = self.dir.as_ref().filter(|_| is_new) {
            forget_old(dir);
            forget_projects(dir.parent().unwrap_or(dir));
        }
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

/// Which directory it is: its number may be another's later, but not with the time it was made.
fn which(dir: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = dir.metadata() else { return String::new() };
    let made = meta.created().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    format!("{}.{}.{}", meta.dev(), meta.ino(), made.unwrap_or_default().as_nanos())
}

/// Is it a file, or else a directory, that no run has written to for long?
fn is_old(entry: &DirEntry, file: bool) -> bool {
    let old = |meta: Metadata| {
        meta.is_file() == file && meta.modified().is_ok_and(|t| t.elapsed().is_ok_and(|age| age > KEPT))
    };
    entry.metadata().is_ok_and(old)
}

/// Takes away what no run of a project has written to for long.
fn forget_old(dir: &Path) {
    for file in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if is_old(&file, true) {
            let _ = std::fs::remove_file(file.path());
        }
    }
    Turns::sweep(&dir.join(TURNS), KEPT);
}

/// The same of all projects that no run was in for long: each writes a file into its project's directory. What somebody has or
/// writes meanwhile stays, and so does the directory.
fn forget_projects(memory: &Path) {
    for project in std::fs::read_dir(memory).into_iter().flatten().flatten() {
        let name = project.file_name();
        let is_project = name.len() == NAME && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit);
        if is_project && is_old(&project, false) {
            let dir = project.path();
            forget_old(&dir);
            let _ = std::fs::remove_dir(dir.join(TURNS));
            let _ = std::fs::remove_dir(dir);
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
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn last_run(task: &str) -> LastRun {
        let odd = OsString::from(std::ffi::OsStr::from_bytes(b"o\xff"));
        LastRun {
            task: task.into(),
            key: None,
            outputs_hash: Some("7".into()),
            below: "sub".into(),
            outputs: vec![odd],
        }
    }

    #[test]
    fn a_last_run_is_of_one_checkout() {
        let (memory, project) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (root, aside) = (project.path().join("p"), project.path().join("q"));
        let of = |root: &Path| Ledger::of(Some(memory.path()), root);
        std::fs::create_dir(&root).unwrap();
        of(&root).set_last_run(&last_run("t"));
        // Another directory at this path, as in a container.
        std::fs::rename(&root, &aside).unwrap();
        std::fs::create_dir(&root).unwrap();
        assert_eq!(of(&root).last_run("t"), None);
        of(&root).set_last_run(&LastRun { outputs_hash: None, ..last_run("t") });
        std::fs::remove_dir(&root).unwrap();
        std::fs::rename(&aside, &root).unwrap();
        assert_eq!(of(&root).last_run("t"), Some(last_run("t")));
        // What is gone is forgotten one day.
        let files = || std::fs::read_dir(of(&root).dir.unwrap()).unwrap().flatten();
        let old = std::time::SystemTime::now() - KEPT - Duration::from_secs(60);
        files().for_each(|f| std::fs::File::open(f.path()).unwrap().set_modified(old).unwrap());
        of(&root).set_last_run(&last_run("new"));
        assert_eq!(files().count(), 1);
    }

    #[test]
    fn projects_of_long_ago_are_forgotten() {
        let memory = tempfile::tempdir().unwrap();
        let of = |root: &str| Ledger::of(Some(memory.path()), Path::new(root));
        let age = |dir: &Path| {
            let old = std::time::SystemTime::now() - KEPT - Duration::from_secs(60);
            let all = [dir.to_owned(), dir.join(TURNS)].into_iter().filter(|d| d.exists());
            let files: Vec<PathBuf> =
                all.clone().flat_map(|d| std::fs::read_dir(d).unwrap()).map(|e| e.unwrap().path()).collect();
            for path in files.into_iter().chain(all) {
                std::fs::File::open(path).unwrap().set_modified(old).unwrap();
            }
        };
        let turns = |ledger: &Ledger, root: &str| {
            let (root, cwd) = (PathBuf::from(root), PathBuf::from(root));
            ledger.turns(&Place { root, cwd }, &["o".into()]).unwrap()
        };
        let (gone, busy, young) = (of("/gone"), of("/busy"), of("/young"));
        for (ledger, root) in [(&gone, "/gone"), (&busy, "/busy"), (&young, "/young")] {
            ledger.set_last_run(&last_run("t"));
            ledger.set_stand(Path::new(root), &["o".into()], None);
            drop(turns(ledger, root).take(&[], None).unwrap());
        }
        let held = turns(&busy, "/busy").take(&[], None).unwrap();
        [&gone, &busy].iter().for_each(|l| age(l.dir.as_ref().unwrap()));
        std::fs::create_dir(memory.path().join("rooms")).unwrap();
        age(&memory.path().join("rooms"));
        young.set_last_run(&last_run("t"));
        assert!(gone.dir.as_ref().unwrap().exists(), "not by every run");
        of("/new").set_last_run(&last_run("t"));
        assert!(!gone.dir.as_ref().unwrap().exists());
        assert_eq!(young.last_run("t"), Some(last_run("t")));
        assert!(memory.path().join("rooms").exists(), "that is no project");
        let met = turns(&busy, "/busy").take(&[], None).unwrap();
        assert!(!met.was_alone() && !held.was_alone(), "what somebody has stays");
    }

    #[test]
    fn what_is_remembered_and_what_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::of(Some(dir.path()), Path::new("/p"));
        let run = last_run("a/b");
        let stand = Stand {
            manifest: Some(ManifestHash::of(b"")),
            outputs_hash: Some("7".into()),
            links: false,
            mark: "m".into(),
            own_times: true,
            made: true,
        };
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
