//! Runs that write the same outputs of a project take turns, whatever their keys.
//!
//! Purpose: of two commands at the same outputs neither's result would be its own. Invariants: a turn is one lock (flock) for
//! each output, for its holder alone, and one for each directory above, which others may have, too; they are taken in the order of
//! paths, and after a flight, so that nobody waits in a circle; they end with their holders, however these die. Who does not
//! wait leaves a mark that the holders see at their end, and is waited for by those who come later. What has changed in a project
//! is another run's if it stands at that one's outputs, or nearer to where that one is at work. Must not know: keys, the store.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::clock::is_since;
use super::marker;
use super::remembered::State;
use super::spec::Place;

/// The variable that tells a command which turns, and flights, are those of the runs that it is in.
pub(super) const WITHIN: &str = "OUTFS_WITHIN";
/// The process that has a place for itself alone, in bytes; behind it stand the runs that it is within, then marks.
const SIGNATURE: usize = 11;

/// The places that a run writes to; dropping it lets others in.
#[derive(Debug, Default)]
pub(super) struct Turn {
    held: Vec<Held>,
    /// Those of others that were not waited for.
    passed: Vec<File>,
    /// Others were waited for.
    pub waited: bool,
}

/// One place, locked.
#[derive(Debug)]
struct Held {
    name: String,
    file: File,
    alone: bool,
    /// Its length, when it was locked.
    marks: u64,
}

/// Where turns are taken.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    dir: PathBuf,
    checkout: String,
    place: Place,
    /// Names of places, and whether they are for one alone.
    places: Vec<(String, bool)>,
}

/// While it lasts, and for whoever looks later, a command is executed in a directory.
#[derive(Debug)]
pub(super) struct AtWork(File);

impl Turns {
    /// For outputs of a project, below `dir`; `checkout` says which directory is at its top.
    pub fn of(dir: PathBuf, checkout: &str, place: &Place, outputs: &[PathBuf]) -> Turns {
        let (mut places, root) = (BTreeMap::new(), &place.root);
        for output in outputs.iter().map(|output| place.cwd.join(output)) {
            let above = output.ancestors().skip(1).take_while(|a| a.starts_with(root) && *a != root);
            for dir in above {
                places.entry(dir.to_owned()).or_insert(false);
            }
            places.insert(output, true);
        }
        let mut turns =
            Turns { dir, checkout: checkout.to_owned(), place: place.clone(), places: Vec::new() };
        turns.places = places.iter().map(|(path, alone)| (turns.name(path), *alone)).collect();
        turns
    }

    fn name(&self, path: &Path) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.checkout.as_bytes()).update(b"\0").update(path.as_os_str().as_bytes());
        hasher.finalize().to_hex()[..32].to_owned()
    }

    fn name_at_work(&self, dir: &Path) -> String {
        format!("{}.at", self.name(dir))
    }

    /// Says that a command is executed in the working directory.
    pub fn at_work(&self) -> io::Result<AtWork> {
        loop {
            let file = self.open(&self.name_at_work(&self.place.cwd))?;
            file.lock_shared()?;
            if !is_swept(&file)? {
                sign(&file, "\n")?;
                return Ok(AtWork(file));
            }
        }
    }

    /// Leaves out, of paths in order, what is another run's that was under way since a moment of the file clock. Outputs of those within
    /// one of `ours` stay.
    pub fn leave_out_others(&self, paths: &mut Vec<PathBuf>, since: i128, ours: &[String]) {
        let mut last: Option<(PathBuf, bool)> = None;
        paths.retain(|path| {
            let dir = path.parent().unwrap_or(path);
            let theirs = match &last {
                Some((same, theirs)) if same == dir => *theirs,
                _ => last.insert((dir.to_owned(), self.is_anothers(dir, since))).1,
            };
            !theirs && !self.was_taken(path, since) || self.was_taken_within(path, since, ours)
        });
    }

    /// A path is, or was since then, at an output of a run that is within one of these.
    fn was_taken_within(&self, path: &Path, since: i128, ours: &[String]) -> bool {
        let is_ours = |path: &Path| {
            let text = std::fs::read_to_string(self.dir.join(self.name(path))).unwrap_or_default();
            let mut within =
                text.get(SIGNATURE..).unwrap_or_default().lines().take(1).flat_map(|names| names.split(','));
            within.any(|name| ours.iter().any(|own| own == name))
        };
        let places = path.ancestors().take_while(|above| above.starts_with(&self.place.root));
        places.into_iter().any(|place| self.was_taken(place, since) && is_ours(place))
    }

    fn is_anothers(&self, dir: &Path, since: i128) -> bool {
        let mut nearer = true;
        dir.ancestors().take_while(|above| above.starts_with(&self.place.root)).any(|above| {
            nearer &= above != self.place.cwd;
            self.was_taken(above, since) || nearer && self.was_worked_in(above, since)
        })
    }

    /// A path is, or was since then, an output of a run. It is not asked by a lock: whoever takes his turn now would meet that.
    fn was_taken(&self, path: &Path, since: i128) -> bool {
        let Ok(file) = File::open(self.dir.join(self.name(path))) else { return false };
        let mut who = [0; SIGNATURE];
        // Nobody has signed what is shared.
        let signs = |who: &[u8]| who.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_whitespace());
        file.read_exact_at(&mut who, 0).is_ok()
            && signs(&who)
            && (signed(&file).is_some() || changed_since(&file, since))
    }

    fn was_worked_in(&self, dir: &Path, since: i128) -> bool {
        let Ok(file) = File::open(self.dir.join(self.name_at_work(dir))) else { return false };
        let is_worked_in = || {
            // Whoever asks the same is gone in a moment.
            (0..3).all(|_| {
                let held = !try_lock(&file, true).unwrap_or(true);
                if held {
                    marker::moment();
                }
                held
            })
        };
        // In this order: it is signed before it is let go.
        is_worked_in() || changed_since(&file, since)
    }

    /// Takes a turn, but for the places that the runs have that this one is `within`. `wait` is told who is waited for, if it is known;
    /// without it nobody is.
    pub fn take(&self, within: &[String], mut wait: Option<&mut dyn FnMut(Option<u32>)>) -> io::Result<Turn> {
        let mut turn = Turn::default();
        for (name, alone) in self.places.iter().filter(|(name, _)| !within.contains(name)) {
            // What was swept in between is made again.
            while !self.take_one((name, *alone), within, &mut turn, &mut wait)? {}
        }
        Ok(turn)
    }

    /// One of the places; false if the file was swept before it was locked.
    fn take_one(
        &self,
        (name, alone): (&str, bool),
        within: &[String],
        turn: &mut Turn,
        wait: &mut Option<&mut dyn FnMut(Option<u32>)>,
    ) -> io::Result<bool> {
        let file = self.open(name)?;
        let passing = self.open(&format!("{name}.passing"))?;
        if !try_lock(&file, alone)? {
            let Some(wait) = wait.as_deref_mut() else { return pass(&file, passing, turn) };
            wait(signed(&file));
            turn.waited = true;
            if alone { file.lock() } else { file.lock_shared() }?;
        }
        if is_swept(&file)? || is_swept(&passing)? {
            return Ok(false);
        }
        // Who passed by before may be at work still; who does so from now on leaves a mark.
        if !nobody_passes(&passing, alone)? {
            let Some(wait) = wait.as_deref_mut() else { return pass(&file, passing, turn) };
            wait(None);
            turn.waited = true;
            passing.lock()?;
        }
        if alone {
            let who = format!("{:>10}\n{}\n", std::process::id(), within.join(","));
            sign(&file, &who)?;
            file.set_len(who.len() as u64)?;
        }
        let marks = file.metadata()?.len();
        turn.held.push(Held { name: name.to_owned(), file, alone, marks });
        Ok(true)
    }

    /// Takes away files of places that nobody has had for so long. One that is locked is in use, whatever its age.
    pub fn sweep(dir: &Path, kept: Duration) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
            if age().is_some_and(|age| age > kept)
                && let Ok(file) = File::open(entry.path())
                && file.try_lock().is_ok()
            {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn open(&self, name: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = self.dir.join(name);
        loop {
            match options.custom_flags(libc::O_NOFOLLOW).open(&file) {
                // Not made yet, or just swept.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
                }
                opened => return opened,
            }
        }
    }
}

/// Locks out who would pass by, if nobody does. Others that share a place ask the same for a moment, which is waited out.
fn nobody_passes(passing: &File, alone: bool) -> io::Result<bool> {
    for _ in 0..if alone { 1 } else { 400 } {
        if try_lock(passing, true)? {
            return Ok(true);
        }
        marker::moment();
    }
    Ok(false)
}

fn changed_since(file: &File, moment: i128) -> bool {
    file.metadata().is_ok_and(|meta| is_since(State::of(&meta).mtime_ns(), moment))
}

/// It has no name any more, so nobody who comes later will find it.
fn is_swept(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.nlink() == 0)
}

/// Goes past whoever has a place; false if that was swept meanwhile.
fn pass(file: &File, passing: File, turn: &mut Turn) -> io::Result<bool> {
    passing.lock_shared()?;
    if is_swept(file)? || is_swept(&passing)? {
        return Ok(false);
    }
    // Two marks at once are one.
    file.write_all_at(b"!", file.metadata()?.len().max(SIGNATURE as u64))?;
    turn.passed.push(passing);
    Ok(true)
}

fn try_lock(file: &File, alone: bool) -> io::Result<bool> {
    match if alone { file.try_lock() } else { file.try_lock_shared() } {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

fn sign(file: &File, who: &str) -> io::Result<()> {
    file.write_all_at(who.as_bytes(), 0)
}

fn signed(file: &File) -> Option<u32> {
    let mut text = [0; SIGNATURE];
    file.read_exact_at(&mut text, 0).ok()?;
    std::str::from_utf8(&text).ok()?.trim().parse().ok()
}

impl Turn {
    /// Nobody else has written there, as far as is known: the result is this run's own.
    pub fn was_alone(&self) -> bool {
        let unmarked = |held: &Held| held.file.metadata().is_ok_and(|meta| meta.len() == held.marks);
        self.passed.is_empty() && self.held.iter().all(unmarked)
    }

    /// It was taken, and is not over.
    pub fn is_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// What it is called, for those within.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.held.iter().map(|held| held.name.as_str())
    }

    /// Those of them that nobody else has meanwhile.
    pub fn own_names(&self) -> impl Iterator<Item = &str> {
        self.held.iter().filter(|held| held.alone).map(|held| held.name.as_str())
    }

    /// What has to be open for as long as the turn is to last.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.held.iter().map(|held| held.file.as_fd()).chain(self.passed.iter().map(AsFd::as_fd))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let _ = sign(&self.0, "\n");
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        for held in self.held.iter().filter(|held| held.alone) {
            let _ = sign(&held.file, &" ".repeat(SIGNATURE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock::{file_clock_after, now};
    use super::*;

    fn turns(dir: &Path, outputs: &[&str]) -> Turns {
        at(dir, "/p/sub", outputs)
    }

    fn at(dir: &Path, cwd: &str, outputs: &[&str]) -> Turns {
        let place = Place { root: "/p".into(), cwd: cwd.into() };
        let outputs: Vec<PathBuf> = outputs.iter().map(PathBuf::from).collect();
        Turns::of(dir.join("turns"), "1.2", &place, &outputs)
    }

    /// By where they stand, and by where others are at work.
    #[test]
    fn what_is_anothers() {
        let dir = tempfile::tempdir().unwrap();
        let ours = at(dir.path(), "/p/a", &["out"]);
        let left = |moment: i128| {
            let paths = ["/p/a/x", "/p/b/out/f", "/p/b/stray", "/p/b/sub/g", "/p/c", "/p/top"];
            let mut paths = paths.map(PathBuf::from).to_vec();
            ours.leave_out_others(&mut paths, moment, &[]);
            paths.iter().map(|path| path.to_str().unwrap()[3..].to_owned()).collect::<Vec<_>>().join(" ")
        };
        let all = "a/x b/out/f b/stray b/sub/g c top";
        let moment = file_clock_after(now());
        let _ours = (ours.take(&[], None).unwrap(), ours.at_work().unwrap());
        assert_eq!(left(moment), all);
        // One that only gives a result back, and one that executes.
        let theirs = at(dir.path(), "/p/b", &["out"]);
        let turn = theirs.take(&[], None).unwrap();
        assert_eq!(left(moment), "a/x b/stray b/sub/g c top");
        let at_work = theirs.at_work().unwrap();
        assert_eq!(left(moment), "a/x c top");
        let later = file_clock_after(now() + 20_000_000);
        assert_eq!(left(later), "a/x c top", "they are under way");
        drop((turn, at_work));
        assert_eq!(left(later), "a/x c top", "they were");
        let after = file_clock_after(now() + 20_000_000);
        assert_eq!(left(after), all);
        // Who works above is not nearer to what lies below us.
        let _above = at(dir.path(), "/p", &["top"]).at_work().unwrap();
        assert_eq!(left(after), "a/x");
    }

    #[test]
    fn who_writes_to_the_same_place_meets() {
        let dir = tempfile::tempdir().unwrap();
        let of = |outputs: &[&str]| turns(dir.path(), outputs);
        let holder = of(&["a", "b/c"]).take(&[], None).unwrap();
        assert!(holder.was_alone() && !holder.waited);
        // Other places, and none.
        for free in [&["b/d", "e"][..], &["ab"], &[]] {
            assert!(of(free).take(&[], None).unwrap().was_alone(), "{free:?}");
        }
        assert!(holder.was_alone());
        for taken in [&["a"][..], &["x", "b"], &["b/c/d"], &["a/z"]] {
            let passing = of(taken).take(&[], None).unwrap();
            assert!(!passing.was_alone(), "{taken:?}");
        }
        assert!(!holder.was_alone());
        // Those within have what it has.
        let within: Vec<String> = holder.names().map(Into::into).collect();
        assert!(of(&["b", "a"]).take(&within, None).is_ok_and(|inner| inner.was_alone()));
        drop(holder);
        let next = of(&["a", "b/c"]).take(&[], Some(&mut |who| panic!("waits for {who:?}"))).unwrap();
        assert!(next.was_alone());
    }

    #[test]
    fn places_of_long_ago_are_swept_unless_somebody_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let of = |outputs: &[&str]| turns(dir.path(), outputs);
        let files = || std::fs::read_dir(dir.path().join("turns")).unwrap().flatten();
        drop(of(&["a/b", "c"]).take(&[], None).unwrap());
        let held = of(&["a/b"]).take(&[], None).unwrap();
        let all = files().count();
        Turns::sweep(&dir.path().join("turns"), Duration::from_secs(3600));
        assert_eq!(files().count(), all, "they are young");
        let old = std::time::SystemTime::now() - Duration::from_secs(7200);
        files().for_each(|f| File::open(f.path()).unwrap().set_modified(old).unwrap());
        Turns::sweep(&dir.path().join("turns"), Duration::from_secs(3600));
        // Of `a/b` and the directories above; nobody passes by, and nobody has `c`.
        assert_eq!(files().count(), held.held.len());
        assert!(!of(&["a"]).take(&[], None).unwrap().was_alone(), "it is held still");
        drop(held);
    }

    #[test]
    fn whoever_waits_for_what_is_swept_takes_it_anew() {
        let dir = tempfile::tempdir().unwrap();
        let of = || turns(dir.path(), &["a"]);
        let holder = of().take(&[], None).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let waiting = {
            let turns = of();
            std::thread::spawn(move || turns.take(&[], Some(&mut |who| tell.send(who).unwrap())).unwrap())
        };
        told.recv().unwrap();
        for file in std::fs::read_dir(dir.path().join("turns")).unwrap().flatten() {
            std::fs::remove_file(file.path()).unwrap();
        }
        drop(holder);
        let turn = waiting.join().unwrap();
        assert!(turn.was_alone() && !of().take(&[], None).unwrap().was_alone(), "they meet again");
    }

    #[test]
    fn sharing_a_directory_is_no_meeting() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for n in 0..4 {
                let turns = turns(dir.path(), &[&format!("out/{n}")]);
                scope.spawn(move || {
                    for _ in 0..5 {
                        let turn = turns.take(&[], None).unwrap();
                        assert!(turn.was_alone());
                    }
                });
            }
        });
    }

    #[test]
    fn who_comes_later_waits_and_is_told_for_whom() {
        let dir = tempfile::tempdir().unwrap();
        let of = || turns(dir.path(), &["a"]);
        let holder = of().take(&[], None).unwrap();
        let passing = of().take(&[], None).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let waiting = {
            let turns = of();
            std::thread::spawn(move || turns.take(&[], Some(&mut |who| tell.send(who).unwrap())).unwrap())
        };
        assert_eq!(told.recv().unwrap(), Some(std::process::id()));
        drop(holder);
        assert_eq!(told.recv().unwrap(), None, "who passed by is still there");
        drop(passing);
        let turn = waiting.join().unwrap();
        assert!(turn.waited && turn.was_alone());
    }
}
