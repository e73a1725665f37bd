//! Work at a task's outputs that would be lost with them: repositories there, and what git tracks there, or beside that, and does not
//! have.
//!
//! Purpose: outputs are cleared or replaced, and who declares a directory of sources as one must not lose what was never
//! committed, nor commits. Invariants: nothing that only stands there is taken for an earlier run's, which goes as ever; a
//! repository goes only if a run made it and it has nothing new; where git tracks nothing at the outputs nothing else is refused;
//! where git fails neither, and that is said. Must not know: why the outputs are to be replaced.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::flow::Run;
use super::ledger::Stand;
use super::outputs::{Stamp, leads_into, nodes, there};
use super::shelf::{Node, Nodes};
use super::spec::Place;
use super::{Result, RunError, text};
use crate::model::EntryKey;

/// What every repository has, be it bare.
const BARE: [&str; 3] = ["HEAD", "objects", "refs"];

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
        let mut repositories = repositories(&cwd, &files);
        let (mut work, failed) = not_in_git(&cwd, &files);
        let nothing = repositories.is_empty() && work.is_empty() && failed.is_none();
        if nothing || self.is_as_a_run_left_it() {
            return None;
        }
        // Twice where what was to be given back has to be made.
        if let Some(warning) = failed.filter(|warning| !self.report.warnings.contains(warning)) {
            self.warn(warning);
        }
        let shown = |path: &PathBuf| text(path.strip_prefix(&cwd).unwrap_or(path));
        // Git writes its index when it is asked for the status; commits are elsewhere.
        self.leave_out_what_is_kept(key, &mut repositories, &|path| !path.ends_with("/index"));
        if let Some(first) = repositories.first() {
            return Some(format!(
                "{} is a git repository and not as a run left it, and a run replaces what stands at its outputs: move it \
                 elsewhere, or delete it",
                shown(first)
            ));
        }
        self.leave_out_what_is_kept(key, &mut work, &|_| true);
        let first = shown(work.first()?);
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

    /// What an entry has, that of the key or one of the task's, can be had again: of what `counts` at a path and below it, all.
    fn leave_out_what_is_kept(
        &mut self,
        key: Option<&EntryKey>,
        work: &mut Vec<PathBuf>,
        counts: &dyn Fn(&str) -> bool,
    ) {
        if work.is_empty() {
            return;
        }
        let cwd = self.cwd().to_owned();
        let last = self.ledger.last_run(&self.task.id).and_then(|last| last.key);
        // A store that cannot tell keeps nothing, and is no other reason to fail.
        let earlier = self.shelf.as_mut().map(|shelf| shelf.history(&self.task.id, &|_| false));
        let earlier = earlier.and_then(std::result::Result::ok).unwrap_or_default();
        let mut now: BTreeMap<PathBuf, Option<Nodes>> = BTreeMap::new();
        for key in key.cloned().into_iter().chain(last).chain(earlier.into_iter().map(|earlier| earlier.key))
        {
            let Some(shelf) = self.shelf.as_mut().filter(|_| !work.is_empty()) else { return };
            let kept = match shelf.exists(&key) {
                Ok(true) => shelf.nodes(&key).unwrap_or_default(),
                _ => continue,
            };
            work.retain(|path| {
                let below = path.strip_prefix(&cwd).unwrap_or(path);
                let look = || nodes(&cwd, &[below.to_owned()]).ok();
                let all = now.entry(path.clone()).or_insert_with(look);
                let has = |(path, node): (&String, &Node)| !counts(path) || kept.get(path) == Some(node);
                !all.as_ref().is_some_and(|all| all.iter().all(has))
            });
        }
    }

    /// Remembers what a run has left that is not kept: where git tracks something there, or cannot tell, or a repository stands there, the next run may take it away.
    pub(super) fn remember_left(&self) {
        let (cwd, outputs) = (self.cwd(), &self.task.outputs);
        let there = there(cwd, outputs);
        let tracks = |(top, paths): (&PathBuf, &Vec<PathBuf>)| {
            !tracked(top, paths).is_ok_and(|known| known.is_empty())
        };
        let matters =
            || by_repository(cwd, &there).iter().any(tracks) || !repositories(cwd, &there).is_empty();
        if there.is_empty() || !matters() {
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

/// What git repositories have of their own at outputs and below: a `.git`, or a directory that is a bare one; absolute and in order.
fn repositories(cwd: &Path, outputs: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let is_dir = |path: &PathBuf| path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    let mut dirs: Vec<PathBuf> = outputs.iter().map(|output| cwd.join(output)).filter(is_dir).collect();
    while let Some(dir) = dirs.pop() {
        // What cannot be read cannot be cleared either.
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        let (mut below, mut marks) = (Vec::new(), 0);
        for entry in entries {
            let name = entry.file_name();
            marks += usize::from(BARE.iter().any(|mark| name == *mark));
            match name == ".git" {
                true => found.push(entry.path()),
                // Names and kinds only: a large tree is not to be looked at twice.
                false if entry.file_type().is_ok_and(|kind| kind.is_dir()) => below.push(entry.path()),
                false => {}
            }
        }
        match marks == BARE.len() {
            true => found.push(dir),
            false => dirs.append(&mut below),
        }
    }
    found.sort();
    found
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
