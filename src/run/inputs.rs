//! The files a task reads: which, and what is in them.
//!
//! Invariants: outputs are no inputs, nor is what outfs itself keeps in the project; symlinks are inputs themselves and are not followed below a named
//! directory; a file that goes away or changes while it is read is an error that names it;
//! a file whose state is remembered is not opened. Must not know: keys, the store.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use globset::{GlobBuilder, GlobMatcher};

use super::clock::since_1970;
use super::remembered::{Remembered, State};
use super::spec::{Inputs, Place};
use super::walk::{FILES, Found, Looker, Seen, in_threads};
use super::{Input, Kind, Result, RunError};
use crate::cache::temp_owner;
use crate::model::BlobHash;

/// The inputs of a task.
#[derive(Debug, Default)]
pub struct Gathered {
    /// In the order of their paths.
    pub inputs: Vec<Input>,
    /// How many files were opened and read for it.
    pub read: u64,
    /// Each as it was found; without a state when it could change and look the same.
    pub(super) found: Vec<(PathBuf, Option<State>)>,
    /// When the youngest of them was last modified, nanoseconds since 1970; times that are to come do not count.
    pub newest_ns: i128,
}

impl Gathered {
    /// Where they are, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.found.iter().map(|(path, _)| path.as_path())
    }

    /// Those of some paths that are none of them, in order and each once.
    pub fn others(&self, mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
        // Paths themselves are compared by components, which is another order.
        paths.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
        paths.dedup();
        let mut found = self.found.iter().map(|(path, _)| path.as_os_str()).peekable();
        paths.retain(|path| {
            while found.next_if(|input| *input < path.as_os_str()).is_some() {}
            found.peek() != Some(&path.as_os_str())
        });
        paths
    }
}

/// What is no input, absolute.
#[derive(Debug, Clone)]
pub struct Apart {
    /// What the command makes, and what else is not looked at.
    pub outputs: Vec<PathBuf>,
    /// That is not taken away before it runs.
    pub stay: bool,
    /// outfs's own directories: stores, what shows them, its memory. What is named in one is an input all the same.
    pub own: Vec<PathBuf>,
}

/// Finds and hashes all inputs.
pub fn gather(
    inputs: &Inputs,
    place: &Place,
    apart: &Apart,
    remembered: &mut Remembered,
) -> Result<Gathered> {
    hash_all(place, list(inputs, place, apart)?, remembered)
}

/// Finds all inputs, in order.
pub(super) fn list(inputs: &Inputs, place: &Place, apart: &Apart) -> Result<Found> {
    let (mut found, own) = (Found::new(), &apart.own);
    let (stay, outputs) = (apart.stay, &apart.outputs);
    let apart = |path: &Path| outputs.iter().any(|o| is_at_or_below(path, o));
    match inputs {
        Inputs::Git => {
            let has_untracked = of_git(&place.cwd, &beside(&place.cwd, own), &mut found)?;
            // An ignored directory has no files that git does not know.
            if !has_untracked && place.cwd != place.root && is_ignored(&place.cwd) {
                return Err(no_git(&place.cwd, "git ignores that directory"));
            }
        }
        Inputs::Named(names) => {
            for name in names {
                let before = found.len();
                named(place, name, own, &mut found)?;
                let taken = found[before..].iter().all(|(path, _)| apart(path)) && found.len() > before;
                // What else a directory has may come.
                if taken && !stay && !place.cwd.join(name).is_dir() {
                    return Err(RunError::usage(format!(
                        "all that the input {} names is an output, or stands where --from puts something: the command \
                         would not find it",
                        name.to_string_lossy()
                    )));
                }
            }
        }
    }
    found.retain(|(path, _)| !is_unfinished(path) && !apart(path));
    found.sort_by(|a, b| a.0.as_os_str().cmp(b.0.as_os_str()));
    found.dedup_by(|a, b| a.0.as_os_str() == b.0.as_os_str());
    Ok(found)
}

/// What a run has not finished of an output, or has left of it when it was killed: nobody's input.
pub(super) fn is_unfinished(path: &Path) -> bool {
    path.as_os_str().as_bytes().rsplit(|b| *b == b'/').next().is_some_and(|name| temp_owner(name).is_some())
}

/// Or what lies in such a directory, on the way from where the path begins.
pub(super) fn is_in_unfinished(path: &Path) -> bool {
    path.as_os_str().as_bytes().split(|b| *b == b'/').any(|name| temp_owner(name).is_some())
}

/// Those directories that a path does not lie in.
fn beside(path: &Path, own: &[PathBuf]) -> Vec<PathBuf> {
    own.iter().filter(|dir| !is_at_or_below(path, dir)).cloned().collect()
}

/// By bytes: both are clean, and comparing components takes longer than all else here.
pub(super) fn is_at_or_below(path: &Path, top: &Path) -> bool {
    let rest = path.as_os_str().as_bytes().strip_prefix(top.as_os_str().as_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Why inputs have to be named.
fn no_git(dir: &Path, why: &str) -> RunError {
    RunError::usage(format!(
        "without --input the inputs are what git tracks below {}, and {why}; name inputs with --input, or say \
         --no-inputs",
        dir.display()
    ))
}

/// Does git ignore a directory of its own, with all that is in it?
fn is_ignored(dir: &Path) -> bool {
    let mut git = Command::new("git");
    git.args(["check-ignore", "-q", "--no-index", "--"]).arg(dir).current_dir(dir).stdin(Stdio::null());
    git.stdout(Stdio::null()).stderr(Stdio::null());
    git.status().is_ok_and(|status| status.success())
}

/// What git tracks or does not ignore, but for our `own`; true if there is something that it does not track. What it tracks and is
/// not there is no input.
fn of_git(dir: &Path, own: &[PathBuf], found: &mut Found) -> Result<bool> {
    let no_git = |why: &str| no_git(dir, why);
    let listed = Command::new("git")
        .args(["ls-files", "-z", "-t", "--cached", "--others", "--exclude-standard"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| no_git(&format!("git cannot be run: {e}")))?;
    if !listed.status.success() {
        let said = String::from_utf8_lossy(&listed.stderr);
        return Err(no_git(&format!("git says: {}", said.lines().next().unwrap_or("nothing").trim())));
    }
    let finished = |(_, name): &(&[u8], &[u8])| !is_in_unfinished(Path::new(OsStr::from_bytes(name)));
    // Each with a letter for its state before it.
    let names: Vec<(&[u8], &[u8])> = listed
        .stdout
        .split(|&b| b == 0)
        .filter_map(|line| line.split_at_checked(2))
        .filter(finished)
        .collect();
    let has_untracked = names.iter().any(|(state, _)| *state == b"? ");
    let looked = in_threads(&names, FILES, |names| {
        let path =
            |(_, name): &(&[u8], &[u8])| dir.join(OsStr::from_bytes(name.strip_suffix(b"/").unwrap_or(name)));
        let paths: Vec<PathBuf> = names.iter().map(path).collect();
        let mut looker = Looker::default();
        let seen: Vec<_> = paths.iter().map(|path| looker.look(path)).collect();
        Ok(paths.into_iter().zip(seen).collect())
    })?;
    let is_own = |path: &Path| own.iter().any(|dir| is_at_or_below(path, dir));
    for (path, seen) in looked.into_iter().filter(|(path, _)| !is_own(path)) {
        match seen {
            // A submodule, or a repository inside.
            Ok(seen) if seen.is_dir() => match path.join(".git").exists() {
                true => drop(of_git(&path, own, found)?),
                false => walk(&path, own, found)?,
            },
            Ok(seen) => found.push((path, seen)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err(RunError::io("look at", path, e)),
        }
    }
    Ok(has_untracked)
}

/// A file, all below a directory, or what a glob matches.
fn named(place: &Place, name: &OsStr, own: &[PathBuf], found: &mut Found) -> Result<()> {
    let path = place.inside(Path::new(name));
    let own = &beside(&path, own);
    match Seen::at(&path) {
        Ok(seen) if seen.is_dir() => return walk(&path, own, found),
        Ok(seen) => {
            found.push((path, seen));
            return Ok(());
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(e) => return Err(RunError::io("look at", path, e)),
    }
    let shown = name.to_string_lossy();
    let Some((top, glob)) = split_glob(&path, place) else {
        return Err(RunError::usage(format!("the input {shown} does not exist")));
    };
    let matcher = matcher(&glob).map_err(|e| RunError::usage(format!("the input {shown}: {e}")))?;
    let mut all = Found::new();
    match walk_to(&top, depth(&glob), own, &mut all) {
        Err(RunError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        other => other?,
    }
    let before = found.len();
    found.extend(all.into_iter().filter(|(p, _)| p.strip_prefix(&top).is_ok_and(|p| matcher.is_match(p))));
    match found.len() == before {
        true => Err(RunError::usage(format!("the input {shown} matches no file"))),
        false => Ok(()),
    }
}

/// `.` and `..` taken out, as far as names alone allow.
pub(super) fn clean(path: &Path) -> PathBuf {
    use std::path::Component;
    path.components().fold(PathBuf::new(), |mut out, part| {
        match part {
            Component::CurDir => {}
            Component::ParentDir if out.file_name().is_some() => drop(out.pop()),
            part => out.push(part),
        }
        out
    })
}

/// The directory above the first component with a magic character, and the rest. What the working directory, or the project's, is
/// called is no magic.
fn split_glob(path: &Path, place: &Place) -> Option<(PathBuf, PathBuf)> {
    let above = [&place.cwd, &place.root].into_iter().find(|above| path.starts_with(above));
    let above = above.map_or(0, |above| above.components().count());
    let magic = |c: &std::path::Component<'_>| {
        c.as_os_str().as_bytes().iter().any(|b| matches!(b, b'*' | b'?' | b'[' | b'{'))
    };
    let at = above + path.components().skip(above).position(|c| magic(&c))?;
    Some((path.components().take(at).collect(), path.components().skip(at).collect()))
}

/// How many directories deep a glob reaches at most.
fn depth(glob: &Path) -> usize {
    // `{a,b/c}` has a slash that is no component's end for the matcher.
    let far = glob.as_os_str().as_bytes().windows(2).any(|pair| pair == b"**")
        || glob.as_os_str().as_bytes().contains(&b'{');
    if far { usize::MAX } else { glob.components().count() }
}

fn matcher(glob: &Path) -> std::result::Result<GlobMatcher, String> {
    let text = glob.to_str().ok_or("a glob must be UTF-8")?;
    // `*` stays within a directory, `**` does not.
    let glob = GlobBuilder::new(text).literal_separator(true).build().map_err(|e| e.kind().to_string())?;
    Ok(glob.compile_matcher())
}

/// All files and symlinks below a directory, but not git's own, nor ours, nor what is not finished.
fn walk(top: &Path, own: &[PathBuf], found: &mut Found) -> Result<()> {
    walk_to(top, usize::MAX, own, found)
}

/// The same, not in directories that are deeper than so many levels.
fn walk_to(top: &Path, levels: usize, own: &[PathBuf], found: &mut Found) -> Result<()> {
    let is_apart = |dir: &Path| {
        dir.file_name() == Some(OsStr::new(".git")) || is_unfinished(dir) || own.iter().any(|o| o == dir)
    };
    let enter = |dir: &Path, depth: usize| depth < levels && !is_apart(dir);
    let all = super::walk::walk(vec![top.to_owned()], &enter)?;
    let is_own = |path: &Path| own.iter().any(|own| own.as_os_str() == path.as_os_str());
    found.extend(all.into_iter().filter(|(path, seen)| !seen.is_dir() && !is_own(path)));
    Ok(())
}

/// One file that must be read.
struct Unknown {
    at: usize,
    state: State,
}

/// Hashes what was found.
pub(super) fn hash_all(place: &Place, found: Found, remembered: &mut Remembered) -> Result<Gathered> {
    let now = SystemTime::now();
    let known = in_threads(&found, FILES, |part| {
        part.iter().map(|(path, seen)| known(path, seen, place, remembered)).collect()
    })?;
    let mut unknown = Vec::new();
    let mut inputs = Vec::with_capacity(found.len());
    for (at, (input, is_known)) in known.into_iter().enumerate() {
        if !is_known {
            unknown.push(Unknown { at, state: found[at].1.state });
        }
        inputs.push(input);
    }
    for (at, state, looked, hash) in read_all(&found, &unknown)? {
        inputs[at].hash = hash;
        remembered.put(state, looked, hash);
    }
    // No output can be newer than what is dated in the future.
    let times = found.iter().map(|(_, seen)| seen.state.mtime_ns());
    let newest_ns = times.filter(|mtime| *mtime <= since_1970(now)).fold(0, i128::max);
    let settled = |(path, seen): (PathBuf, Seen)| (path, Some(seen.state).filter(|s| !s.is_racy(now)));
    let found = found.into_iter().map(settled).collect();
    Ok(Gathered { inputs, read: unknown.len() as u64, found, newest_ns })
}

/// An input as far as it is known without reading it, and whether its hash is.
fn known(path: &Path, seen: &Seen, place: &Place, remembered: &Remembered) -> Result<(Input, bool)> {
    let (kind, hash) = if seen.is_symlink() {
        let target = std::fs::read_link(path).map_err(|e| unreadable(path, e))?;
        (Kind::Link, Some(BlobHash::of(target.as_os_str().as_bytes())))
    } else if seen.is_file() {
        (if seen.is_program() { Kind::Program } else { Kind::File }, remembered.get(&seen.state))
    } else {
        return Err(RunError::usage(format!(
            "the input {} is no file, directory or symlink",
            path.display()
        )));
    };
    let input = Input { path: place.name(path), kind, hash: hash.unwrap_or(BlobHash([0; 32])) };
    Ok((input, hash.is_some()))
}

type Hashed = (usize, State, SystemTime, BlobHash);

/// Reads files.
fn read_all(found: &Found, unknown: &[Unknown]) -> Result<Vec<Hashed>> {
    in_threads(unknown, FILES, |part| {
        let mut buffer = vec![0; 1 << 17];
        let hash = |u: &Unknown| {
            let (looked, hash) = read(&found[u.at].0, &u.state, &mut buffer)?;
            Ok((u.at, u.state, looked, hash))
        };
        part.iter().map(hash).collect()
    })
}

fn unreadable(path: &Path, e: io::Error) -> RunError {
    match e.kind() {
        io::ErrorKind::NotFound => RunError::Unstable { path: path.to_owned(), what: "vanished" },
        _ => RunError::io("read", path, e),
    }
}

/// Hashes a file that must be in this state before and after; says when it was looked at before.
pub(super) fn read(path: &Path, state: &State, buffer: &mut [u8]) -> Result<(SystemTime, BlobHash)> {
    let fail = |e| unreadable(path, e);
    let same = |file: &File| match file.metadata() {
        Ok(meta) if State::of(&meta) == *state => Ok(()),
        Ok(_) => Err(RunError::Unstable { path: path.to_owned(), what: "changed" }),
        Err(e) => Err(fail(e)),
    };
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(fail)?;
    let looked = SystemTime::now();
    same(&file)?;
    let mut hasher = blake3::Hasher::new();
    loop {
        match file.read(buffer) {
            Ok(0) => break,
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(fail(e)),
        };
    }
    same(&file)?;
    Ok((looked, BlobHash(*hasher.finalize().as_bytes())))
}

/// The hash of a program's file.
pub fn hash_program(path: &Path, remembered: &mut Remembered) -> Result<BlobHash> {
    let meta = path.metadata().map_err(|e| RunError::io("look at", path, e))?;
    let state = State::of(&meta);
    if let Some(hash) = remembered.get(&state) {
        return Ok(hash);
    }
    // What a name like `cc` leads to is followed here.
    let path = path.canonicalize().map_err(|e| RunError::io("look at", path, e))?;
    let (looked, hash) = read(&path, &state, &mut vec![0; 1 << 17])?;
    remembered.put(state, looked, hash);
    Ok(hash)
}
