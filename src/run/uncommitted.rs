//! Work at a task's outputs that would be lost with them: what git tracks there, or beside that, and does not have.
//!
//! Purpose: outputs are cleared or replaced, and who declares a directory of sources as one must not lose what was never
//! committed. Invariants: nothing that only stands there is taken for an earlier run's, which goes as ever; where git
//! tracks nothing at the outputs, or there is no repository, nothing is refused; where git fails neither, and that is said. Must not
//! know: why the outputs are to be replaced.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::flow::Run;
use super::ledger::Stand;
use super::outputs::{Stamp, leads_into, nodes, there};
use super::spec::Place;
use super::{Result, RunError, text};
use crate::model::EntryKey;

impl Run<'_> {
    /// Refuses to replace what stands at the outputs if work would be lost.
    pub(super) fn spare_work(&mut self, key: Option<&EntryKey>) -> Result<()> {
        self.lost_work(key).map_or(Ok(()), |why| Err(RunError::usage(why)))
    }

    /// Why what stands at the outputs is not to be replaced, if so; what the entry of a key has would not be lost.
    pub(super) fn lost_work(&mut self, key: Option<&EntryKey>) -> Option<String> {
        let cwd = self.cwd().to_owned();
        let mut files = there(&cwd, &self.task.outputs);
        files.retain(|output| !leads_into(&cwd.join(output), &self.ways.hidden));
        let (mut work, failed) = not_in_git(&cwd, &files);
        if (work.is_empty() && failed.is_none()) || self.is_as_a_run_left_it() {
            return None;
        }
        // Twice where what was to be given back has to be made.
        if let Some(warning) = failed.filter(|warning| !self.report.warnings.contains(warning)) {
            self.warn(warning);
        }
        self.leave_out_what_is_kept(key, &mut work);
        let first = work.first()?;
        let first = text(first.strip_prefix(&cwd).unwrap_or(first));
        let (which, it) = match work.len() - 1 {
            0 => (format!("{first} is not in git as it stands there"), "it"),
            more => (format!("{first} and {more} more are not in git as they stand there"), "them"),
        };
        Some(format!(
            "{which}, and a run replaces what stands at its outputs: commit {it} ('git add' is enough), or move {it} \
             elsewhere, or delete {it}"
        ))
    }

    /// Nothing at the outputs changed since a run with these outputs ended.
    fn is_as_a_run_left_it(&self) -> bool {
        let (cwd, outputs) = (self.cwd(), &self.task.outputs);
        let left = self.ledger.stand(cwd, outputs).filter(|stand| stand.made);
        left.is_some_and(|left| {
            Stamp::take(cwd, &there(cwd, outputs)).is_ok_and(|stamp| stamp.mark == left.mark)
        })
    }

    /// What an entry has, that of the key or one of the task's, can be had again.
    fn leave_out_what_is_kept(&mut self, key: Option<&EntryKey>, work: &mut Vec<PathBuf>) {
        let cwd = self.cwd().to_owned();
        let last = self.ledger.last_run(&self.task.id).and_then(|last| last.key);
        // A store that cannot tell keeps nothing, and is no other reason to fail.
        let earlier = self.shelf.as_mut().map(|shelf| shelf.history(&self.task.id, &|_| false));
        let earlier = earlier.and_then(std::result::Result::ok).unwrap_or_default();
        for key in key.cloned().into_iter().chain(last).chain(earlier.into_iter().map(|earlier| earlier.key))
        {
            let Some(shelf) = self.shelf.as_mut().filter(|_| !work.is_empty()) else { return };
            let kept = match shelf.exists(&key) {
                Ok(true) => shelf.nodes(&key).unwrap_or_default(),
                _ => continue,
            };
            work.retain(|path| {
                let below = path.strip_prefix(&cwd).unwrap_or(path).to_owned();
                let now = nodes(&cwd, std::slice::from_ref(&below)).unwrap_or_default();
                kept.get(&text(&below)).is_none_or(|node| now.get(&text(&below)) != Some(node))
            });
        }
    }

    /// Remembers what a run has left that is not kept: where git tracks something there, or cannot tell, the next run may take it away.
    pub(super) fn remember_left(&self) {
        let (cwd, outputs) = (self.cwd(), &self.task.outputs);
        let there = there(cwd, outputs);
        let tracks = |(top, paths): (&PathBuf, &Vec<PathBuf>)| {
            !tracked(top, paths).is_ok_and(|known| known.is_empty())
        };
        if there.is_empty() || !by_repository(cwd, &there).iter().any(tracks) {
            return;
        }
        if let Ok(stamp) = Stamp::take(cwd, &there)
            && stamp.settle()
        {
            let stand = Stand {
                manifest: None,
                outputs_hash: None,
                links: false,
                mark: stamp.mark,
                own_times: false,
                made: true,
            };
            self.ledger.set_stand(cwd, outputs, Some(&stand));
        }
    }
}

/// Files at outputs that git tracks and has otherwise, or not at all beside such ones, absolute and in order; and what is to be said
/// where git fails.
fn not_in_git(cwd: &Path, outputs: &[PathBuf]) -> (Vec<PathBuf>, Option<String>) {
    let (mut work, mut failed) = (Vec::new(), None);
    for (top, paths) in by_repository(cwd, outputs) {
        match not_in_repository(&top, &paths) {
            Ok(files) => work.extend(files),
            Err(e) => {
                let top = top.display();
                failed.get_or_insert(format!(
                    "git fails in {top}, so work there that is not committed is not spared: {e}"
                ));
            }
        }
    }
    // What was deleted cannot be lost.
    work.retain(|path| path.symlink_metadata().is_ok());
    work.sort();
    work.dedup();
    (work, failed)
}

fn not_in_repository(top: &Path, paths: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let paths = tracked(top, paths)?;
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    // Not what was touched and is the same; a submodule if anything in it is of that kind.
    let changed = ["diff", "--name-only", "--no-ext-diff", "--no-relative", "--ignore-submodules=none"];
    let mut names = git(top, &changed, &paths)?;
    names.extend(git(top, &["ls-files", "--others", "--exclude-standard"], &paths)?);
    Ok(names.iter().map(|name| top.join(name)).collect())
}

/// The repositories that paths below a directory lie in, each with its own, from its top; none for those that lie in none.
fn by_repository(cwd: &Path, paths: &[PathBuf]) -> BTreeMap<PathBuf, Vec<PathBuf>> {
    let mut all: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    for path in paths.iter().map(|path| cwd.join(path)) {
        let top = Place::of(path.parent().unwrap_or(cwd)).root;
        if let Ok(below) = path.strip_prefix(&top)
            && top.join(".git").exists()
        {
            all.entry(top.clone()).or_default().push(below.to_owned());
        }
    }
    all
}

/// Those of some paths at or below which git tracks something.
fn tracked(top: &Path, paths: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let known = git(top, &["ls-files"], paths)?;
    let is_known = |path: &&PathBuf| known.iter().any(|name| Path::new(name).starts_with(path));
    Ok(paths.iter().filter(is_known).cloned().collect())
}

/// The names that git lists at some paths, or the first line of what it says instead.
fn git(top: &Path, list: &[&str], paths: &[PathBuf]) -> io::Result<Vec<OsString>> {
    let mut git = Command::new("git");
    git.args(["--literal-pathspecs", "--no-optional-locks"]).args(list).args(["-z", "--"]).args(paths);
    let listed = git.current_dir(top).stdin(Stdio::null()).output()?;
    if !listed.status.success() {
        let said = String::from_utf8_lossy(&listed.stderr);
        let said = said.lines().find(|line| !line.is_empty());
        return Err(io::Error::other(said.map_or_else(|| listed.status.to_string(), str::to_owned)));
    }
    let names = listed.stdout.split(|&b| b == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| OsStr::from_bytes(name).to_owned()).collect())
}
