//! What stands at a task's declared outputs: cleared before a run, looked at after it.
//!
//! Invariants: nothing outside the declared paths is changed; a symlink on the way to an output is never
//! followed, and one that stands there is taken away, not written through. Must not know: the store.

use std::collections::HashMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::clock::{LONGEST_WAIT, granule, settled_at, since_1970};
use super::pieces::Pieces;
use super::remembered::State;
use super::shelf::{Node, Nodes};
use super::walk::{self, Found, Seen};
use super::{Result, RunError, text};
use crate::cache::remove_tree;

/// Refuses outputs that lie behind a symlink: what is written there is somebody else's.
pub fn check_way(cwd: &Path, outputs: &[PathBuf]) -> Result<()> {
    for output in outputs {
        for above in output.ancestors().skip(1).filter(|a| !a.as_os_str().is_empty()) {
            if cwd.join(above).symlink_metadata().is_ok_and(|m| m.is_symlink()) {
                return Err(RunError::usage(format!(
                    "the output {} lies behind the symlink {}; declare that, or run where it leads",
                    output.display(),
                    above.display()
                )));
            }
        }
    }
    Ok(())
}

/// Takes away what stands at the outputs.
pub fn clear(cwd: &Path, outputs: &[PathBuf]) -> Result<()> {
    for output in outputs {
        let path = cwd.join(output);
        let gone = match path.symlink_metadata() {
            Ok(meta) if meta.is_dir() => remove_dir(&path),
            Ok(_) => std::fs::remove_file(&path),
            Err(e) => Err(e),
        };
        match gone {
            Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(RunError::io("clear the output", path, e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A mount point stays, empty.
fn remove_dir(path: &Path) -> io::Result<()> {
    match remove_tree(path) {
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy && std::fs::read_dir(path)?.next().is_none() => {
            Ok(())
        }
        other => other,
    }
}

/// The first output that is not there.
pub fn missing<'a>(cwd: &Path, outputs: &'a [PathBuf]) -> Option<&'a Path> {
    outputs.iter().find(|o| cwd.join(o).symlink_metadata().is_err()).map(PathBuf::as_path)
}

/// Those at which something stands.
pub fn there(cwd: &Path, outputs: &[PathBuf]) -> Vec<PathBuf> {
    outputs.iter().filter(|o| cwd.join(o).symlink_metadata().is_ok()).cloned().collect()
}

/// It is a symlink into one of these directories.
pub fn leads_into(path: &Path, dirs: &[PathBuf]) -> bool {
    std::fs::read_link(path).is_ok_and(|target| dirs.iter().any(|dir| target.starts_with(dir)))
}

/// Everything at the outputs, in the order of their paths, each with what it is.
fn walk(cwd: &Path, outputs: &[PathBuf], each: &mut dyn FnMut(&Path, &Seen) -> io::Result<()>) -> Result<()> {
    let look = |path: PathBuf| match Seen::at(&path) {
        Ok(seen) => Ok((path, seen)),
        Err(e) => Err(RunError::io("look at the output", path, e)),
    };
    let mut all = outputs.iter().map(|o| look(cwd.join(o))).collect::<Result<Found>>()?;
    let tops = all.iter().filter(|(_, seen)| seen.is_dir()).map(|(path, _)| path.clone()).collect();
    all.extend(walk::walk(tops, &|_, _| true)?);
    // Stable, which is quick where most of it is in order.
    all.sort_by(|a, b| a.0.as_os_str().cmp(b.0.as_os_str()));
    for (path, seen) in &all {
        let below = walk::below(path, cwd).unwrap_or(path);
        each(below, seen).map_err(|e| RunError::io("look at the output", path, e))?;
    }
    Ok(())
}

/// A mark of what stands at the outputs: as long as it is the same, they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Hash of names, inodes, sizes, modes and times.
    pub mark: String,
    /// What changes later than this looks different, nanoseconds since 1970.
    settled_ns: i128,
    /// Nothing there, and no directory, was changed at or after this moment of the file clock.
    unchanged_since: i128,
    /// The oldest file's modification time.
    pub oldest_ns: i128,
}

impl Stamp {
    /// Takes it; an error when an output is missing.
    pub fn take(cwd: &Path, outputs: &[PathBuf]) -> Result<Stamp> {
        let mut pieces = Pieces::of(blake3::Hasher::new());
        let (mut settled_ns, mut unchanged_since, mut oldest_ns) = (0, 0, i128::MAX);
        walk(cwd, outputs, &mut |below, seen| {
            let path = below.as_os_str().as_bytes();
            pieces.add_with_length(path);
            let State { dev, ino, size, mtime, ctime } = seen.state;
            let all = [dev, ino, u64::from(seen.mode), size];
            // What is in a directory is looked at itself.
            let all = if seen.is_dir() { &all[..3] } else { &all[..] };
            for n in all {
                pieces.add(&n.to_le_bytes());
            }
            unchanged_since = unchanged_since.max(ctime + granule(ctime).max(1));
            if !seen.is_dir() {
                pieces.add(&mtime.to_le_bytes()).add(&ctime.to_le_bytes());
                settled_ns = settled_ns.max(settled_at(ctime));
            }
            if seen.is_file() {
                oldest_ns = oldest_ns.min(mtime);
            }
            Ok(())
        })?;
        Ok(Stamp { mark: pieces.end().to_hex().to_string(), settled_ns, unchanged_since, oldest_ns })
    }

    /// Has nothing changed since a moment that [`file_clock_after`](super::clock::file_clock_after) told? Then what was read since that moment is
    /// what the stamp is of.
    #[must_use]
    pub fn is_of(&self, moment: i128) -> bool {
        self.unchanged_since <= moment
    }

    /// Waits until whatever changes from now on has a later time than this stamp has seen; false when that would take too
    /// long: where times are coarse, the mark says nothing yet.
    #[must_use]
    pub fn settle(&self) -> bool {
        let left = self.settled_ns - since_1970(SystemTime::now());
        if left > LONGEST_WAIT.as_nanos() as i128 {
            return false;
        }
        if left >= 0 {
            std::thread::sleep(Duration::from_nanos(left as u64 + 1));
        }
        true
    }
}

/// What the files at the outputs are, so that it can be told later which have changed; of those that are not in it that
/// could not be told.
#[derive(Debug)]
pub struct States(HashMap<PathBuf, State>);

impl States {
    /// Takes them, of outputs that are there, and waits until whatever changes from now on looks different.
    pub fn take(cwd: &Path, outputs: &[PathBuf]) -> Result<States> {
        let there = there(cwd, outputs);
        let mut states = States::look(cwd, &there)?;
        if !there.is_empty() && !Stamp::take(cwd, &there)?.settle() {
            let now = SystemTime::now();
            states.0.retain(|_, state| !state.is_racy(now));
        }
        Ok(states)
    }

    fn look(cwd: &Path, outputs: &[PathBuf]) -> Result<States> {
        let mut states = HashMap::new();
        walk(cwd, outputs, &mut |below, seen| {
            if seen.is_file() {
                states.insert(below.to_owned(), seen.state);
            }
            Ok(())
        })?;
        Ok(States(states))
    }

    /// The files that are new or not what they were.
    pub fn changed(&self, cwd: &Path, outputs: &[PathBuf]) -> Result<Vec<PathBuf>> {
        let now = States::look(cwd, &there(cwd, outputs))?.0;
        Ok(now.into_iter().filter(|(path, state)| self.0.get(path) != Some(state)).map(|(p, _)| p).collect())
    }
}

/// All that stands at the outputs, with the directories on the way, as an entry would have it.
pub fn nodes(cwd: &Path, outputs: &[PathBuf]) -> Result<Nodes> {
    let mut all = Nodes::new();
    for above in outputs.iter().flat_map(|o| o.ancestors().skip(1)).filter(|a| !a.as_os_str().is_empty()) {
        all.insert(text(above), Node { kind: "dir".into(), content: String::new() });
    }
    walk(cwd, outputs, &mut |below, seen| {
        let path = cwd.join(below);
        let (kind, content) = if seen.is_dir() {
            ("dir", String::new())
        } else if seen.is_symlink() {
            ("symlink", text(std::fs::read_link(&path)?))
        } else if seen.is_file() {
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(std::fs::File::open(&path)?)?;
            (if seen.is_program() { "program" } else { "file" }, hasher.finalize().to_hex().to_string())
        } else {
            return Err(io::Error::other("it is no file, directory or symlink"));
        };
        all.insert(text(below), Node { kind: kind.into(), content });
        Ok(())
    })?;
    Ok(all)
}

/// The same, of outputs that may stand as links into one of these directories: of what they lead to.
pub fn nodes_behind(cwd: &Path, outputs: &[PathBuf], dirs: &[PathBuf]) -> Result<Nodes> {
    let mut all = Nodes::new();
    for output in outputs {
        let target = std::fs::read_link(cwd.join(output)).ok().filter(|target| target.ends_with(output));
        let base = target.filter(|_| leads_into(&cwd.join(output), dirs));
        let base = base.as_deref().and_then(|target| target.ancestors().nth(output.components().count()));
        all.extend(nodes(base.unwrap_or(cwd), std::slice::from_ref(output))?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn paths(list: &[&str]) -> Vec<PathBuf> {
        list.iter().map(PathBuf::from).collect()
    }

    fn project() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let cwd = dir.path().join("p");
        std::fs::create_dir_all(cwd.join("out/sub")).unwrap();
        std::fs::create_dir(dir.path().join("cache")).unwrap();
        std::fs::write(dir.path().join("cache/kept"), "kept").unwrap();
        std::fs::write(cwd.join("out/sub/f"), "f").unwrap();
        std::fs::write(cwd.join("app"), "app").unwrap();
        symlink("../cache", cwd.join("link")).unwrap();
        symlink("../../cache", cwd.join("out/link")).unwrap();
        (dir, cwd)
    }

    #[test]
    fn links_are_taken_away_and_not_followed() {
        let (dir, cwd) = project();
        check_way(&cwd, &paths(&["link", "out/link"])).unwrap();
        let behind = check_way(&cwd, &paths(&["link/kept"])).unwrap_err();
        assert!(behind.to_string().contains("behind the symlink link"), "{behind}");
        clear(&cwd, &paths(&["app", "link", "out", "nothing", "app/below"])).unwrap();
        assert_eq!(std::fs::read_dir(&cwd).unwrap().count(), 0);
        assert_eq!(std::fs::read(dir.path().join("cache/kept")).unwrap(), b"kept");
        assert_eq!(missing(&cwd, &paths(&["app"])), Some(Path::new("app")));
    }

    #[test]
    fn a_stamp_sees_every_change() {
        let (_dir, cwd) = project();
        let outputs = paths(&["app", "out"]);
        let take = || Stamp::take(&cwd, &outputs).unwrap().mark;
        let base = take();
        assert_eq!(base, take());
        let mut seen = BTreeSet::from([base]);
        let mut differs = |what: &str| assert!(seen.insert(take()), "{what}");
        for n in 0..20 {
            assert!(Stamp::take(&cwd, &outputs).unwrap().settle());
            std::fs::write(cwd.join("app"), format!("{n:03}")).unwrap();
            differs("content of the same size, at once");
        }
        std::fs::write(cwd.join("out/new"), "").unwrap();
        differs("a file more");
        std::fs::rename(cwd.join("out/new"), cwd.join("out/other")).unwrap();
        differs("another name");
        std::fs::set_permissions(cwd.join("app"), std::fs::Permissions::from_mode(0o700)).unwrap();
        differs("another mode");
        std::fs::remove_file(cwd.join("out/link")).unwrap();
        symlink("elsewhere!", cwd.join("out/link")).unwrap();
        differs("another target");
        std::fs::remove_file(cwd.join("app")).unwrap();
        assert!(Stamp::take(&cwd, &outputs).is_err());
    }

    #[test]
    fn links_of_ours_are_what_they_lead_to() {
        let (dir, cwd) = project();
        let view = dir.path().join("view");
        std::fs::create_dir_all(view.join("key/outputs/a")).unwrap();
        std::fs::rename(cwd.join("out"), view.join("key/outputs/a/out")).unwrap();
        let (outputs, views) = (paths(&["a/out", "app", "link"]), [view.clone()]);
        std::fs::create_dir(cwd.join("a")).unwrap();
        symlink(view.join("key/outputs/a/out"), cwd.join("a/out")).unwrap();
        let kinds = |views: &[PathBuf]| {
            let all = nodes_behind(&cwd, &outputs, views).unwrap();
            all.into_iter().map(|(path, node)| format!("{path} {}", node.kind)).collect::<Vec<_>>()
        };
        let files = ["a dir", "a/out dir", "a/out/link symlink", "a/out/sub dir", "a/out/sub/f file"];
        assert_eq!(kinds(&views), [&files[..], &["app file", "link symlink"]].concat());
        assert_eq!(kinds(&[]), ["a dir", "a/out symlink", "app file", "link symlink"]);
    }

    #[test]
    fn nodes_are_what_counts() {
        let (_dir, cwd) = project();
        let all = nodes(&cwd, &paths(&["out/sub", "link"])).unwrap();
        let seen: Vec<_> = all.iter().map(|(p, n)| format!("{p} {} {}", n.kind, n.content.len())).collect();
        assert_eq!(seen, ["link symlink 8", "out dir 0", "out/sub dir 0", "out/sub/f file 64"]);
    }
}
