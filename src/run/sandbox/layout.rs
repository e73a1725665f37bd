//! How a project's declared inputs, and nothing else of it, get into a place of their own.
//!
//! Purpose: a directory that holds nothing but inputs is bound as it is, and so is a large file; the others
//! are copied (reflinks where the file system can). Invariants: what is no input is never in it; an
//! input is there under its path, with its mode and time; no input can be changed through it. Must
//! not know: how things are bound.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::FileTimes;
use std::io;
use std::path::{Path, PathBuf};

use super::Scene;
use crate::run::{Result, RunError};

/// At most so many things are bound: each takes longer than the one before.
const MOST_BOUND: usize = 100;
/// A file from this size on is rather bound than copied.
const LARGE: u64 = 1 << 20;
/// A directory with fewer inputs is copied.
const FEW: usize = 8;

/// What becomes of the inputs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// Directories and files to be bound, absolute.
    pub bound: Vec<PathBuf>,
    /// Files and symlinks to be copied, absolute.
    pub copied: Vec<PathBuf>,
}

/// What a directory of the project has of inputs.
#[derive(Default)]
struct Dir<'a> {
    files: Vec<&'a Path>,
    dirs: BTreeSet<&'a Path>,
}

/// Finds out what to bind and what to copy of the inputs below the project's top.
pub(super) fn plan(scene: &Scene<'_>) -> Result<Layout> {
    let root = scene.place.root.as_path();
    let mut dirs: HashMap<&Path, Dir<'_>> = HashMap::new();
    for input in scene.inputs.iter().filter(|i| i.starts_with(root)) {
        let Some(mut dir) = input.parent() else { continue };
        dirs.entry(dir).or_default().files.push(input);
        while dir != root {
            let Some(above) = dir.parent() else { break };
            if !dirs.entry(above).or_default().dirs.insert(dir) {
                break;
            }
            dir = above;
        }
    }
    let open: HashSet<PathBuf> = open_dirs(scene);
    let mut whole = HashMap::new();
    is_whole(root, &dirs, &open, &mut whole)?;
    let mut layout = Layout::default();
    let mut candidates: Vec<(u64, &Path)> = Vec::new();
    collect(root, &dirs, &whole, &mut candidates, &mut layout.copied)?;
    // What would take longest to copy is bound first.
    candidates.sort_by(|a, b| b.cmp(a));
    let rest = candidates.split_off(candidates.len().min(MOST_BOUND));
    layout.bound = candidates.into_iter().map(|(_, path)| path.to_owned()).collect();
    layout.bound.sort();
    for (_, path) in rest {
        all_below(path, &dirs, &mut layout.copied);
    }
    layout.copied.sort();
    Ok(layout)
}

/// Directories that the command must be able to write into, or that something is put into.
fn open_dirs(scene: &Scene<'_>) -> HashSet<PathBuf> {
    let cwd = &scene.place.cwd;
    let paths = scene.outputs.iter().chain(scene.given).map(|p| cwd.join(p));
    let above = |path: PathBuf| path.ancestors().map(Path::to_owned).collect::<Vec<_>>();
    paths.chain([cwd.clone()]).flat_map(above).collect()
}

/// Has the directory nothing but inputs below it? How many, if so.
fn is_whole<'a>(
    dir: &'a Path,
    dirs: &HashMap<&'a Path, Dir<'a>>,
    open: &HashSet<PathBuf>,
    whole: &mut HashMap<&'a Path, u64>,
) -> Result<Option<u64>> {
    let Some(known) = dirs.get(dir) else { return Ok(None) };
    let mut all = known.files.len() as u64;
    let mut complete = !open.contains(dir);
    for below in &known.dirs {
        match is_whole(below, dirs, open, whole)? {
            Some(n) => all += n,
            None => complete = false,
        }
    }
    if complete {
        let fail = |e| RunError::io("read", dir, e);
        let names = std::fs::read_dir(dir).map_err(fail)?.collect::<io::Result<Vec<_>>>().map_err(fail)?;
        complete = names.len() == known.files.len() + known.dirs.len();
    }
    if complete {
        whole.insert(dir, all);
    }
    Ok(complete.then_some(all))
}

/// From the top down: directories that are whole and large files are candidates, the rest is copied.
fn collect<'a>(
    dir: &'a Path,
    dirs: &HashMap<&'a Path, Dir<'a>>,
    whole: &HashMap<&'a Path, u64>,
    candidates: &mut Vec<(u64, &'a Path)>,
    copied: &mut Vec<PathBuf>,
) -> Result<()> {
    let Some(known) = dirs.get(dir) else { return Ok(()) };
    for file in &known.files {
        let meta = file.symlink_metadata().map_err(|e| RunError::io("look at", file, e))?;
        match meta.is_file() && meta.len() >= LARGE {
            true => candidates.push((meta.len() >> 14, file)),
            false => copied.push(file.to_path_buf()),
        }
    }
    for below in &known.dirs {
        match whole.get(below) {
            Some(n) if *n >= FEW as u64 => candidates.push((*n, below)),
            _ => collect(below, dirs, whole, candidates, copied)?,
        }
    }
    Ok(())
}

fn all_below(path: &Path, dirs: &HashMap<&Path, Dir<'_>>, copied: &mut Vec<PathBuf>) {
    let Some(known) = dirs.get(path) else {
        copied.push(path.to_owned());
        return;
    };
    copied.extend(known.files.iter().map(|f| f.to_path_buf()));
    known.dirs.iter().for_each(|d| all_below(d, dirs, copied));
}

/// Copies files and symlinks from below `root` to below `dest`.
pub(super) fn copy(root: &Path, dest: &Path, paths: &[PathBuf]) -> Result<()> {
    let mut made = HashSet::new();
    for path in paths {
        let to = dest.join(path.strip_prefix(root).unwrap_or(path));
        if let Some(parent) = to.parent()
            && !made.contains(parent)
        {
            std::fs::create_dir_all(parent).map_err(|e| RunError::io("create", parent, e))?;
            made.insert(parent.to_owned());
        }
    }
    crate::run::walk::in_threads(paths, crate::run::walk::FILES, |paths| {
        for path in paths {
            copy_one(path, &dest.join(path.strip_prefix(root).unwrap_or(path)))?;
        }
        Ok(Vec::<()>::new())
    })?;
    Ok(())
}

/// One file or symlink, with its mode and time.
fn copy_one(from: &Path, to: &Path) -> Result<()> {
    let fail = |e| RunError::io("copy", from, e);
    let meta = from.symlink_metadata().map_err(fail)?;
    if meta.is_symlink() {
        let target = std::fs::read_link(from).map_err(fail)?;
        return std::os::unix::fs::symlink(target, to).map_err(fail);
    }
    // Shares the data where the file system can: the kernel does that by itself.
    std::fs::copy(from, to).map_err(fail)?;
    let times = FileTimes::new().set_modified(meta.modified().map_err(fail)?);
    let opened = std::fs::File::open(to).map_err(fail)?;
    opened.set_times(times).map_err(fail)
}

/// A file, a symlink or a whole directory.
pub(super) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let fail = |e| RunError::io("copy", from, e);
    let meta = from.symlink_metadata().map_err(fail)?;
    if !meta.is_dir() {
        return copy_one(from, to);
    }
    std::fs::create_dir(to).map_err(|e| RunError::io("create", to, e))?;
    for entry in std::fs::read_dir(from).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        copy_tree(&from.join(&name), &to.join(&name))?;
    }
    std::fs::set_permissions(to, meta.permissions()).map_err(fail)?;
    let times = FileTimes::new().set_modified(meta.modified().map_err(fail)?);
    std::fs::File::open(to).and_then(|dir| dir.set_times(times)).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::spec::Place;

    fn touch(path: &Path, size: u64) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::File::create(path).unwrap().set_len(size).unwrap();
    }

    #[test]
    fn whole_directories_and_large_files_are_bound_and_the_rest_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let mut inputs = Vec::new();
        for n in 0..10 {
            inputs.push(root.join(format!("src/deep/f{n}")));
            inputs.push(root.join(format!("mixed/f{n}")));
            inputs.push(root.join(format!("gen/in/f{n}")));
        }
        inputs.extend(["Makefile", "large"].map(|n| root.join(n)));
        inputs.sort();
        inputs.iter().for_each(|i| touch(i, 3));
        touch(&root.join("large"), LARGE);
        touch(&root.join("mixed/secret"), 3);
        touch(&root.join("target/app"), 3);
        let place = Place { root: root.to_owned(), cwd: root.to_owned() };
        let outputs = [PathBuf::from("gen/in/out")];
        let paths: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
        let scene = Scene {
            place: &place,
            outputs: &outputs,
            inputs: &paths,
            given: &[],
            variables: &[],
            net: false,
            hidden: &[],
            programs: &[],
        };
        let layout = plan(&scene).unwrap();
        assert_eq!(layout.bound, [root.join("large"), root.join("src")]);
        assert_eq!(layout.copied.len(), 21);
        let dest = root.join("dest");
        copy(root, &dest, &layout.copied).unwrap();
        assert!(dest.join("mixed/f3").exists() && !dest.join("mixed/secret").exists());
        // A file more, and it is no longer whole.
        touch(&root.join("src/deep/secret"), 3);
        assert_eq!(plan(&scene).unwrap().bound, [root.join("large")]);
    }

    #[test]
    fn what_is_too_much_to_be_bound_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let mut inputs = Vec::new();
        for d in 0..MOST_BOUND + 5 {
            inputs.extend((0..FEW + d).map(|n| root.join(format!("d{d}/f{n}"))));
        }
        inputs.iter().for_each(|i| touch(i, 1));
        let place = Place { root: root.to_owned(), cwd: root.to_owned() };
        let paths: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
        let scene = Scene {
            place: &place,
            outputs: &[],
            inputs: &paths,
            given: &[],
            variables: &[],
            net: false,
            hidden: &[],
            programs: &[],
        };
        let layout = plan(&scene).unwrap();
        assert_eq!(layout.bound.len(), MOST_BOUND);
        assert_eq!(layout.copied.len(), (0..5).map(|d| FEW + d).sum::<usize>());
    }
}
