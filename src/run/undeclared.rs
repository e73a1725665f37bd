//! What a command made in the project itself and did not declare.
//!
//! Purpose: to name it as a warning, at little cost: nothing is looked at before the command runs, and the rest while
//! its result is stored. What it made or wrote is told by the time of a file's last change (ctime), which nobody can
//! choose; who else wrote meanwhile, an editor for one, cannot be told apart, but other runs can. Invariants: outputs, inputs
//! (whose changes are another matter), what git ignores, what other runs make (unless the command called them) and what is outfs's own
//! are never named; what cannot be looked at is not named either. Must not know: how other runs are known.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::clock::is_since;
use super::flow::Run;
use super::inputs::{Gathered, is_at_or_below, is_in_unfinished};
use super::spec::Inputs;
use super::walk::{Seen, below};
use super::{SandboxKind, text};

/// Outside git no more files are looked at.
const MOST: usize = 100_000;
/// So many directories are git's not to look into.
const MOST_PATTERNS: usize = 200;

/// Files that were made, absolute; in a thread of its own.
type Looking = JoinHandle<Vec<PathBuf>>;

impl Run<'_> {
    /// Begins to look, after a command that was started at this moment of the file clock and had these inputs; `told` are files that
    /// have been named already, which are all that came among the inputs if those have been `listed` again.
    pub(super) fn look_for_undeclared(
        &self,
        began: i128,
        gathered: Arc<Gathered>,
        (told, listed): (Vec<PathBuf>, bool),
    ) -> Option<Looking> {
        if self.task.sandbox != SandboxKind::None {
            return None;
        }
        let place = &self.task.place;
        let outputs = self.task.outputs.iter().map(|o| place.cwd.join(o));
        let lock = self.ways.lock.as_deref().map(|lock| place.file(lock));
        let apart: Vec<PathBuf> = outputs.chain(self.ways.own().cloned()).chain(lock).collect();
        let (root, cwd) = (place.root.clone(), place.cwd.clone());
        let inputs = if listed { self.of_inputs() } else { Vec::new() };
        let beside = [&apart[..], &inputs].concat();
        let turns = self.ledger.turns(place, &self.task.outputs);
        let key = self.report.key.iter().map(ToString::to_string);
        let ours: Vec<String> = self.turn.own_names().map(str::to_owned).chain(key).collect();
        let look = move || {
            let mut found = match root.join(".git").exists() {
                _ if beside.contains(&root) => Vec::new(),
                true => not_as_in_git(&root, &beside).unwrap_or_default(),
                false => changed_below(&cwd, &beside, began),
            };
            let is_finished = |path: &Path| !below(path, &root).is_some_and(is_in_unfinished);
            found.retain(|path| is_finished(path) && !apart.iter().any(|a| is_at_or_below(path, a)));
            let mut made = gathered.others(found);
            let told: BTreeSet<PathBuf> = told.into_iter().collect();
            made.retain(|path| !told.contains(path));
            made.retain(|path| changed_since(path, began));
            let mut made = not_ignored(&root, made);
            if let Some(turns) = turns {
                turns.leave_out_others(&mut made, began, &ours);
            }
            made
        };
        // Where there can be no thread nothing is named.
        std::thread::Builder::new().spawn(look).ok()
    }

    /// Directories of which all is an input that git does not ignore.
    fn of_inputs(&self) -> Vec<PathBuf> {
        let place = &self.task.place;
        let is_dir = |path: &PathBuf| Seen::at(path).is_ok_and(|seen| seen.is_dir());
        let mut dirs: Vec<PathBuf> = match &self.task.inputs {
            Inputs::Git => vec![place.cwd.clone()],
            Inputs::Named(names) => names.iter().map(|n| place.inside(Path::new(n))).filter(is_dir).collect(),
        };
        // But for where an earlier result is read.
        let from = || self.task.from.iter().map(|(path, _)| place.cwd.join(path));
        dirs.retain(|dir| !from().any(|path| is_at_or_below(&path, dir)));
        dirs
    }

    /// Says what the command made and did not declare; `beside` is what that was in a sandbox, `told` has been said.
    pub(super) fn tell_undeclared(
        &mut self,
        looking: Option<Looking>,
        beside: Option<&[PathBuf]>,
        told: &[PathBuf],
    ) {
        let place = &self.task.place;
        let new: Vec<PathBuf> = match (beside, looking) {
            (Some(beside), _) => {
                not_ignored(&place.root, beside.to_vec()).into_iter().map(|p| place.root.join(p)).collect()
            }
            (None, Some(thread)) => thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)),
            (None, None) => Vec::new(),
        };
        let below = new.iter().any(|path| path.starts_with(&place.cwd));
        let mut new: Vec<String> = new.iter().map(|path| from_directory(&place.cwd, path)).collect();
        new.sort();
        if !new.is_empty() {
            let some = new.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let more = new.len().checked_sub(6).map(|n| format!(" and {} more", n + 1)).unwrap_or_default();
            let taken = below && beside.is_none() && self.task.inputs == Inputs::Git;
            let how = if taken { "; the next run takes them for inputs" } else { "" };
            let when = if beside.is_some() { "" } else { "changed while the command ran, " };
            self.warn(format!("{when}not declared as outputs, and so not kept: {some}{more}{how}"));
        }
        // Nothing of a sandbox comes among the inputs.
        if beside.is_none() {
            new.extend(told.iter().map(|path| from_directory(&place.cwd, path)));
            new.sort();
        }
        self.report.undeclared = new;
    }
}

fn changed_since(path: &Path, moment: i128) -> bool {
    Seen::at(path).is_ok_and(|seen| is_since(seen.state.ctime, moment))
}

/// A path as it is written in a directory: with `..` for what lies above it.
fn from_directory(dir: &Path, path: &Path) -> String {
    let common = dir.ancestors().find(|above| path.starts_with(above)).unwrap_or(Path::new("/"));
    let up = dir.strip_prefix(common).map_or(0, |rest| rest.components().count());
    let names = std::iter::repeat_n(Path::new(".."), up).chain(path.strip_prefix(common));
    text(names.collect::<PathBuf>())
}

/// Files of a project that git does not ignore and that are not as it knows them, absolute; of those that it does not
/// track it leaves out what is `apart`.
fn not_as_in_git(root: &Path, apart: &[PathBuf]) -> Option<Vec<PathBuf>> {
    let mut git = Command::new("git");
    // Patterns are for one path, also where the project's own are for names in capitals too.
    git.args(["-c", "core.ignorecase=false"]);
    git.args(["ls-files", "-z", "--others", "--modified", "--exclude-standard"]).current_dir(root);
    let below = apart.iter().filter_map(|path| path.strip_prefix(root).ok());
    for path in below.filter(|path| !path.as_os_str().is_empty()).take(MOST_PATTERNS) {
        git.arg("--exclude").arg(pattern(path));
    }
    let listed = git.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let names = || listed.stdout.split(|&b| b == 0).filter(|n| !n.is_empty());
    listed.status.success().then(|| names().map(|n| root.join(OsStr::from_bytes(n))).collect())
}

/// What git ignores for one path below the project's top.
fn pattern(path: &Path) -> OsString {
    let mut pattern = b"/".to_vec();
    for &byte in path.as_os_str().as_bytes() {
        if b"\\*?[ ".contains(&byte) {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
    OsString::from_vec(pattern)
}

/// Files below a directory, on its file system, that have changed since then; those that were found when too many were
/// looked at.
fn changed_below(top: &Path, apart: &[PathBuf], moment: i128) -> Vec<PathBuf> {
    let device = Seen::at(top).map(|seen| seen.state.dev).ok();
    let (mut found, mut waiting, mut looked) = (Vec::new(), vec![top.to_owned()], 0);
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
            let seen = Seen::of(&meta);
            looked += 1;
            if looked > MOST {
                return found;
            }
            if !seen.is_dir() {
                found.extend(is_since(seen.state.ctime, moment).then_some(path));
            } else if Some(seen.state.dev) == device && !apart.contains(&path) && !path.ends_with(".git") {
                waiting.push(path);
            }
        }
    }
    found
}

/// Those of some paths below `root` that git does not ignore; all of them outside git.
pub(super) fn not_ignored(root: &Path, paths: Vec<PathBuf>) -> Vec<PathBuf> {
    if paths.is_empty() {
        return paths;
    }
    let ask = || -> io::Result<Vec<u8>> {
        let mut git = Command::new("git")
            .args(["check-ignore", "-z", "--stdin"])
            .current_dir(root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let names =
            paths.iter().map(|p| [p.as_os_str().as_bytes(), b"\0"].concat()).collect::<Vec<_>>().concat();
        let stdin = git.stdin.take();
        // It answers while it is asked.
        let asked = std::thread::Builder::new().spawn(move || stdin.map(|mut stdin| stdin.write_all(&names)));
        // Without a thread it is asked nothing, and ends.
        let asked = asked.inspect_err(|_| drop(git.wait()))?;
        let answer = git.wait_with_output()?.stdout;
        let _ = asked.join();
        Ok(answer)
    };
    let ignored = ask().unwrap_or_default();
    let ignored: BTreeSet<&[u8]> = ignored.split(|&b| b == 0).collect();
    paths.into_iter().filter(|p| !ignored.contains(p.as_os_str().as_bytes())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::clock::{file_clock_after, now};

    #[test]
    fn paths_are_written_from_a_directory() {
        let from = |dir: &str, path: &str| from_directory(Path::new(dir), Path::new(path));
        assert_eq!(from("/p/a/b", "/p/a/b/c/d"), "c/d");
        assert_eq!(from("/p/a/b", "/p/a/c"), "../c");
        assert_eq!(from("/p/a/b", "/p/x"), "../../x");
    }

    #[test]
    fn patterns_are_for_one_path() {
        assert_eq!(pattern(Path::new("a b/[c]*?\\d")), r"/a\ b/\[c]\*\?\\d");
    }

    #[test]
    fn outside_git_files_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("sub/out")).unwrap();
        for name in ["old", "rewritten"] {
            std::fs::write(path(name), "").unwrap();
        }
        let moment = file_clock_after(now());
        for name in ["rewritten", "sub/new", "sub/out/o"] {
            std::fs::write(path(name), "1").unwrap();
        }
        let found = changed_below(dir.path(), &[path("sub/out")], moment);
        let fine = found.len() == 2 || found.contains(&path("old"));
        assert!(fine && found.contains(&path("rewritten")) && found.contains(&path("sub/new")), "{found:?}");
        assert!(!found.contains(&path("sub/out/o")));
    }
}
