//! What a task is, after the command line was understood and before anything was read.
//!
//! Invariant: outputs are relative to the working directory, clean, sorted, and none lies below another.
//! Must not know: how options are written.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use super::inputs::clean;
use super::walk::below;
use super::{Result, RunError, SandboxKind, text};

/// Where a task runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The top of the project: the nearest directory above with a `.git`, else the working directory.
    pub root: PathBuf,
    /// The working directory, absolute.
    pub cwd: PathBuf,
}

impl Place {
    /// The project that a working directory belongs to.
    pub fn of(cwd: &Path) -> Place {
        let root = cwd.ancestors().find(|dir| dir.join(".git").exists()).unwrap_or(cwd);
        Place { root: root.to_owned(), cwd: cwd.to_owned() }
    }

    /// The working directory below the project's top; empty when it is the top.
    pub fn below(&self) -> &Path {
        self.cwd.strip_prefix(&self.root).unwrap_or(Path::new(""))
    }

    /// Where a file is, or would be, that is named from the working directory: as the inputs are, without `..` and links on
    /// the way.
    pub fn file(&self, given: &Path) -> PathBuf {
        let path = self.cwd.join(given);
        let dir = path.parent().and_then(|dir| dir.canonicalize().ok());
        match (dir, path.file_name()) {
            (Some(dir), Some(name)) => dir.join(name),
            _ => path,
        }
    }

    /// A path that is named from the working directory, clean. What leads into the project through a symlink, as `$PWD` may, is below
    /// its top.
    pub fn inside(&self, given: &Path) -> PathBuf {
        let path = clean(&self.cwd.join(given));
        if path.starts_with(&self.root) {
            return path;
        }
        let mut above: Vec<&Path> = path.ancestors().collect();
        above.reverse();
        let led = above.into_iter().find_map(|dir| {
            let real = dir.canonicalize().ok()?;
            // A symlink that is named is one, but for the directory where we are.
            let leads = real == self.cwd || dir != path && real.starts_with(&self.root);
            let below = path.strip_prefix(dir).ok().filter(|_| leads)?;
            Some(real.join(below).components().collect())
        });
        led.unwrap_or(path)
    }

    /// A path as it stands in a key: below the project's top, or absolute when it is outside.
    pub fn name(&self, path: &Path) -> String {
        text(below(path, &self.root).unwrap_or(path))
    }
}

/// Which files a task reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inputs {
    /// Files below the working directory that git tracks or does not ignore, less the outputs.
    Git,
    /// Files, directories and globs, relative to the working directory.
    Named(Vec<OsString>),
}

/// A task as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its name, for people and for the history.
    pub id: String,
    /// The command and its arguments; never empty.
    pub argv: Vec<OsString>,
    /// Where.
    pub place: Place,
    /// What it reads.
    pub inputs: Inputs,
    /// What it makes, relative to the working directory.
    pub outputs: Vec<PathBuf>,
    /// Declared outputs that lie below those: they have to be there, too.
    pub within: Vec<PathBuf>,
    /// Environment variables that count.
    pub env: Vec<String>,
    /// Environment variables that count and whose values are nobody's business.
    pub secrets: Vec<String>,
    /// Programs whose content counts, beside the command itself.
    pub tools: Vec<OsString>,
    /// Free parameters that count.
    pub params: BTreeMap<String, String>,
    /// Tasks whose outputs count.
    pub after: Vec<String>,
    /// Paths below the working directory, and the earlier results that are read there: keys or tasks.
    pub from: Vec<(PathBuf, String)>,
    /// The earlier result that the command starts from: a key or a task.
    pub base: Option<String>,
    /// What the command runs in.
    pub sandbox: SandboxKind,
    /// It may use the network; without a sandbox it always may.
    pub net: bool,
}

impl Task {
    /// What has to be known of it even if it runs past the cache: the inputs of a sandbox, earlier results.
    pub fn needs_preparing(&self) -> bool {
        self.sandbox != SandboxKind::None || self.base.is_some() || !self.from.is_empty()
    }

    /// Checks where earlier results are to be read: below the working directory, and apart from each other and the outputs.
    pub fn from_of(
        given: Vec<(PathBuf, String)>,
        outputs: &[PathBuf],
        place: &Place,
    ) -> Result<Vec<(PathBuf, String)>> {
        let mut from: Vec<(PathBuf, String)> = Vec::new();
        for (path, name) in given {
            let path = output_path(&path, place)
                .map_err(|e| RunError::usage(e.to_string().replace("the output", "--from")))?;
            let others = outputs.iter().chain(from.iter().map(|(p, _)| p));
            if let Some(other) = { others }.find(|o| path.starts_with(o) || o.starts_with(&path)) {
                return Err(RunError::usage(format!(
                    "--from {} and {} are in each other's way",
                    path.display(),
                    other.display()
                )));
            }
            from.push((path, name));
        }
        Ok(from)
    }

    /// What a task is called that was given no name: its program, and where it runs.
    pub fn default_id(argv: &[OsString], place: &Place) -> String {
        let program = argv.first().map(Path::new).and_then(Path::file_name).map(text).unwrap_or_default();
        match text(place.below()) {
            below if below.is_empty() => program,
            below => format!("{below}:{program}"),
        }
    }

    /// Outputs as they are kept: sorted, none twice and none below another; and those that are below others.
    pub fn outputs_of(given: &[PathBuf], place: &Place) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
        let mut all = given.iter().map(|p| output_path(p, place)).collect::<Result<Vec<_>>>()?;
        all.sort();
        all.dedup();
        // Sorted by components, what lies below a path comes right behind it.
        let (mut outputs, mut within): (Vec<PathBuf>, Vec<PathBuf>) = Default::default();
        for path in all {
            match outputs.last().is_some_and(|last| path.starts_with(last)) {
                true => within.push(path),
                false => outputs.push(path),
            }
        }
        Ok((outputs, within))
    }

    /// All declared outputs, in order.
    pub fn declared(&self) -> Vec<PathBuf> {
        let mut all = [&self.outputs[..], &self.within].concat();
        all.sort();
        all
    }
}

/// An output's path relative to the working directory; one that leads out of it, or to what is git's, is refused.
pub fn output_path(given: &Path, place: &Place) -> Result<PathBuf> {
    let refuse = |why: &str| {
        Err(RunError::usage(format!(
            "the output {} {why}; name files or directories below the working directory",
            given.display()
        )))
    };
    let real = place.inside(given);
    let leads_up = given.components().any(|part| part == Component::ParentDir);
    let relative = if given.is_absolute() && !leads_up { &real } else { given };
    let relative = relative.strip_prefix(&place.cwd).unwrap_or(relative);
    if relative.is_absolute() {
        return refuse("is outside the working directory");
    }
    let mut clean = PathBuf::new();
    for part in relative.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            _ => return refuse("leads upwards"),
        }
    }
    if clean.as_os_str().is_empty() {
        return refuse("is the working directory itself");
    }
    if place.below().join(&clean).iter().any(|name| name == ".git") {
        return refuse("is git's own, and outputs are deleted before a run");
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_stay_below_the_working_directory() {
        let place = Place { root: "/p".into(), cwd: "/p/sub".into() };
        let of =
            |given: &[&str]| Task::outputs_of(&given.iter().map(PathBuf::from).collect::<Vec<_>>(), &place);
        let good = of(&["./b/", "a/x", "/p/sub/c", "a", "b", "a-b"]).unwrap();
        assert_eq!(good.0, ["a", "a-b", "b", "c"].map(PathBuf::from));
        assert_eq!(good.1, ["a/x"].map(PathBuf::from));
        for bad in [".", "", "..", "a/../../b", "/etc/passwd", "/p"] {
            assert!(of(&[bad]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_gits_is_no_output() {
        let of = |cwd: &str, output: &str| {
            let place = Place { root: "/p".into(), cwd: cwd.into() };
            output_path(Path::new(output), &place)
        };
        for (cwd, output) in [("/p", ".git"), ("/p", "sub/.git/objects"), ("/p/.git", "objects")] {
            assert!(of(cwd, output).unwrap_err().to_string().contains("git's own"), "{cwd} {output}");
        }
        assert_eq!(of("/p", ".github").unwrap(), Path::new(".github"));
    }

    #[test]
    fn a_project_is_where_its_git_directory_is() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("a/b");
        std::fs::create_dir_all(&sub).unwrap();
        assert_eq!(Place::of(&sub).below(), Path::new(""));
        std::fs::create_dir(dir.path().join(".git")).unwrap();
        let place = Place::of(&sub);
        assert_eq!((place.root.as_path(), place.below()), (dir.path(), Path::new("a/b")));
        assert_eq!(place.name(&sub.join("f")), "a/b/f");
        assert_eq!(place.name(Path::new("/etc/passwd")), "/etc/passwd");
        assert_eq!(Task::default_id(&["/usr/bin/make".into(), "x".into()], &place), "a/b:make");
    }
}
