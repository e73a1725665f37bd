//! Is this directory fit to be mounted on? Stale mounts of a dead daemon are taken over.
//!
//! Invariants: a mount that stands there is asked with a deadline, for it may hang; none is cut off whose daemon may live.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::mounts::{MountInfo, mount_table, mounted_at};
use crate::control::{Failure, Kind};
use crate::fuse::detach;
use crate::store::owner_of;

/// Checks the mount point and returns its canonical path. `own` are the mount points of this process.
pub(super) fn prepare(at: &Path, store: &Path, own: &[PathBuf]) -> Result<PathBuf, Failure> {
    let fail = |why: String| Failure::failed(format!("cannot mount on {}: {why}", at.display()));
    let at = canonical(at).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Failure::new(
            Kind::Failed,
            format!("the mount point {0} is missing; make it: mkdir -p {0}", at.display()),
        ),
        _ => fail(e.to_string()),
    })?;
    let served = mount_table().into_iter().filter(|m| m.is_outfs() && own.contains(&m.at));
    let served: Vec<String> = served.map(|m| m.dev).collect();
    // This process has the store: what else shows it was mounted by one that died.
    let ours = |m: &MountInfo| m.store().is_some_and(|of| is_same(&of, store)) && !served.contains(&m.dev);
    take_over(&at, &ours)?;
    if let Some(there) = mounted_at(&at) {
        return Err(fail(format!(
            "there is a mount already ({} of {}); unmount it first or take another directory",
            there.fs_type,
            there.source.display()
        )));
    }
    let meta = std::fs::metadata(&at).map_err(|e| fail(e.to_string()))?;
    if !meta.is_dir() {
        return Err(fail("it is not a directory".into()));
    }
    let mut inside = std::fs::read_dir(&at).map_err(|e| fail(e.to_string()))?;
    if inside.next().is_some() {
        return Err(fail(
            "the directory is not empty; what is in it would be hidden, take an empty one".into(),
        ));
    }
    let store = std::fs::canonicalize(store).unwrap_or_else(|_| store.to_owned());
    if at.starts_with(&store) || store.starts_with(&at) {
        return Err(fail(format!("it overlaps the store {}; take a directory beside it", store.display())));
    }
    Ok(at)
}

/// As `canonicalize`, but also for a mount point whose daemon is dead, does not answer or does not let this user in.
pub fn canonical(at: &Path) -> io::Result<PathBuf> {
    let by_parent = || -> io::Result<PathBuf> {
        // Without a last name (`..`) it is another directory.
        let name = at.file_name().ok_or(io::ErrorKind::NotFound)?;
        let parent = at.parent().unwrap_or(Path::new("/"));
        Ok(std::fs::canonicalize(parent)?.join(name))
    };
    if let Ok(path) = by_parent()
        && mounted_at(&path).is_some()
    {
        return Ok(path);
    }
    match std::fs::canonicalize(at) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EACCES)) => {
            by_parent()
        }
        other => other,
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    real(one) == real(other)
}

/// A view that a dead daemon has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadView {
    /// Where.
    pub at: PathBuf,
    /// Who looks at it waits for an answer, instead of being told at once that there is none.
    pub hangs: bool,
}

/// The views of this store that a dead daemon has left.
pub fn dead_views(store: &Path) -> Vec<DeadView> {
    let ours = |m: &MountInfo| m.store().is_some_and(|of| is_same(&of, store));
    let mut places: Vec<PathBuf> = mount_table().into_iter().filter(ours).map(|m| m.at).collect();
    places.dedup();
    let deadline = Instant::now() + ANSWER;
    let asked: Vec<(PathBuf, Asked)> = places.into_iter().map(|at| (at.clone(), Asked::of(&at))).collect();
    let states = asked.into_iter().map(|(at, asked)| (at, asked.answer(deadline)));
    let found: Vec<(PathBuf, State)> = states.collect();
    // One that hangs is dead only if nobody has the store, whose daemon could be slow.
    let died = owner_of(store).is_none();
    let dead = found.into_iter().filter(|(_, state)| match state {
        State::Lives => false,
        State::Dead => true,
        State::Hangs => died,
    });
    dead.map(|(at, state)| DeadView { at, hangs: state == State::Hangs }).collect()
}

/// A daemon that lives answers within this time.
const ANSWER: Duration = Duration::from_secs(5);

/// How a mount does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Lives,
    /// The kernel answers that nobody does.
    Dead,
    /// Nobody answers at all.
    Hangs,
}

/// A question to a mount. Who asks may never come back; then it ends with the process, or when the connection is cut.
struct Asked(mpsc::Receiver<State>);

impl Asked {
    /// Attributes can come from the kernel's memory; this is always asked for.
    fn of(at: &Path) -> Asked {
        let (tell, told) = mpsc::channel();
        let (at, tell_too) = (at.to_owned(), tell.clone());
        let ask = move || {
            use nix::errno::Errno;
            let state = match nix::sys::statfs::statfs(&at) {
                Err(Errno::ENOTCONN | Errno::ECONNABORTED) => State::Dead,
                _ => State::Lives,
            };
            let _ = tell.send(state);
        };
        if std::thread::Builder::new().name("ask".into()).spawn(ask).is_err() {
            let _ = tell_too.send(State::Lives);
        }
        Asked(told)
    }

    fn answer(self, deadline: Instant) -> State {
        self.0.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap_or(State::Hangs)
    }
}

/// As `take_over`, for a mount point of this store's last daemon, which is dead. What is another store's view by now is
/// left alone: its daemon may live.
pub fn take_over_ours(at: &Path, store: &Path) -> Result<(), Failure> {
    let ours = |m: &MountInfo| m.is_outfs() && m.store().is_none_or(|of| is_same(&of, store));
    match mounted_at(at).is_some_and(|m| ours(&m)) {
        true => take_over(at, &ours),
        false => Ok(()),
    }
}

/// Detaches dead outfs mounts from `at`, however many lie over each other. The connection of a dead daemon can stand all the
/// same, when a thread of it hangs in the kernel or somebody has a copy of its descriptor: then nobody answers, and whoever
/// looks at the mount waits for ever. That is certain only of mounts whose daemon cannot live: `ours`.
fn take_over(at: &Path, ours: &dyn Fn(&MountInfo) -> bool) -> Result<(), Failure> {
    let mut cut = false;
    while let Some(there) = mounted_at(at).filter(MountInfo::is_outfs) {
        match Asked::of(at).answer(Instant::now() + ANSWER) {
            State::Lives => return Ok(()),
            State::Dead => {}
            State::Hangs if ours(&there) => {
                tracing::warn!(at = %at.display(), "the mount of a dead daemon hangs; it is cut off");
                // Where that cannot be said, it is detached: those inside go on waiting, all others do not.
                if !cut && abort(&there).is_ok() {
                    cut = true;
                    continue;
                }
            }
            State::Hangs => {
                return Err(Failure::failed(format!(
                    "there is a mount on {0} that does not answer ({1}); see what its daemon does, or detach it: \
                     umount -l {0}",
                    at.display(),
                    there.source.display()
                )));
            }
        }
        detach(at, true).map_err(|e| {
            Failure::failed(format!(
                "{} is the mount of a dead daemon and cannot be detached ({e}); try: fusermount3 -u -z {0}",
                at.display()
            ))
        })?;
        tracing::warn!(at = %at.display(), "took over the mount of a dead daemon");
    }
    Ok(())
}

/// Cuts a connection, if the kernel's control files are there (root mounts them at boot).
fn abort(there: &MountInfo) -> io::Result<()> {
    let number = there.dev.rsplit(':').next().unwrap_or_default();
    let file = Path::new("/sys/fs/fuse/connections").join(number).join("abort");
    let mut file = std::fs::OpenOptions::new().write(true).open(file)?;
    io::Write::write_all(&mut file, b"1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_a_mount_point_is_not_the_mount_point() {
        assert_eq!(canonical(Path::new("/proc")).unwrap(), Path::new("/proc"));
        assert_eq!(canonical(Path::new("/proc/..")).unwrap(), Path::new("/"));
        assert_eq!(canonical(Path::new("/")).unwrap(), Path::new("/"));
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let refused = |at: &Path| prepare(at, &store, &[]).unwrap_err().message;
        assert!(refused(&dir.path().join("no")).contains("mkdir -p"));
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(refused(&dir.path().join("file")).contains("not a directory"));
        assert!(refused(dir.path()).contains("not empty"));
        assert!(refused(&store).contains("overlaps"));
        assert!(refused(Path::new("/proc")).contains("mount already"));
        let good = dir.path().join("good");
        std::fs::create_dir(&good).unwrap();
        assert_eq!(prepare(&good, &store, &[]).unwrap(), good.canonicalize().unwrap());
    }
}
