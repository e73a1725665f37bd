//! Is this directory fit to be mounted on? Stale mounts of a dead daemon are taken over.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::mounts::{MountInfo, mount_table, mounted_at};
use crate::control::{Failure, Kind};
use crate::fuse::detach;

/// Checks the mount point and returns its canonical path.
pub(super) fn prepare(at: &Path, store: &Path) -> Result<PathBuf, Failure> {
    let fail = |why: String| Failure::failed(format!("cannot mount on {}: {why}", at.display()));
    let at = canonical(at).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Failure::new(
            Kind::Failed,
            format!("the mount point {0} is missing; make it: mkdir -p {0}", at.display()),
        ),
        _ => fail(e.to_string()),
    })?;
    take_over(&at)?;
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

/// As `canonicalize`, but also for a mount point whose daemon is dead or does not let this user in.
pub fn canonical(at: &Path) -> io::Result<PathBuf> {
    match std::fs::canonicalize(at) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EACCES)) => {
            let parent = at.parent().unwrap_or(Path::new("/"));
            Ok(std::fs::canonicalize(parent)?.join(at.file_name().unwrap_or_default()))
        }
        other => other,
    }
}

/// The views of this store that a dead daemon has left.
pub fn dead_views(store: &Path) -> Vec<PathBuf> {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let ours = |m: &MountInfo| m.store().is_some_and(|of| real(&of) == real(store));
    let mut found: Vec<PathBuf> = mount_table().into_iter().filter(ours).map(|m| m.at).collect();
    found.retain(|at| answers(at) && is_dead(at));
    found.dedup();
    found
}

/// Attributes can come from the kernel's memory; this is always asked for.
fn is_dead(at: &Path) -> bool {
    match nix::sys::statfs::statfs(at) {
        Err(e) => matches!(e, nix::errno::Errno::ENOTCONN | nix::errno::Errno::ECONNABORTED),
        Ok(_) => false,
    }
}

/// A daemon that lives answers within this time.
const ANSWER: Duration = Duration::from_secs(5);

/// As `take_over`, for a mount point of this store's last daemon, which is dead. Its connection can stand all the same,
/// when a thread of it hangs in the kernel or somebody has a copy of its descriptor: then nobody answers, and
/// whoever looks at the mount waits for ever. What is another store's view by now is left alone: its daemon may live.
pub(super) fn take_over_ours(at: &Path, store: &Path) -> Result<(), Failure> {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let ours = |m: &MountInfo| m.is_outfs() && m.store().is_none_or(|of| real(&of) == real(store));
    let Some(there) = mounted_at(at).filter(ours) else { return Ok(()) };
    if !answers(at) {
        tracing::warn!(at = %at.display(), "the mount of a dead daemon hangs; it is cut off");
        // Where that cannot be said, it is detached: those inside go on waiting, all others do not.
        if abort(&there).is_err() {
            detach(at, true).map_err(|e| Failure::failed(format!("cannot detach {}: {e}", at.display())))?;
        }
    }
    take_over(at)
}

/// Whether the mount answers at all.
fn answers(at: &Path) -> bool {
    let (tell, told) = mpsc::channel();
    let asked = at.to_owned();
    // It may never come back; then it ends with the process, or when the connection is cut.
    let ask = move || {
        let _ = nix::sys::statfs::statfs(&asked);
        let _ = tell.send(());
    };
    match std::thread::Builder::new().name("ask".into()).spawn(ask) {
        Ok(_) => told.recv_timeout(ANSWER).is_ok(),
        Err(_) => true,
    }
}

/// Cuts a connection, if the kernel's control files are there (root mounts them at boot).
fn abort(there: &MountInfo) -> io::Result<()> {
    let number = there.dev.rsplit(':').next().unwrap_or_default();
    let file = Path::new("/sys/fs/fuse/connections").join(number).join("abort");
    let mut file = std::fs::OpenOptions::new().write(true).open(file)?;
    io::Write::write_all(&mut file, b"1")
}

/// Detaches dead outfs mounts from `at`, however many lie over each other.
pub(super) fn take_over(at: &Path) -> Result<(), Failure> {
    while let Some(there) = mounted_at(at) {
        if !there.is_outfs() || !is_dead(at) {
            return Ok(());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let refused = |at: &Path| prepare(at, &store).unwrap_err().message;
        assert!(refused(&dir.path().join("no")).contains("mkdir -p"));
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(refused(&dir.path().join("file")).contains("not a directory"));
        assert!(refused(dir.path()).contains("not empty"));
        assert!(refused(&store).contains("overlaps"));
        assert!(refused(Path::new("/proc")).contains("mount already"));
        let good = dir.path().join("good");
        std::fs::create_dir(&good).unwrap();
        assert_eq!(prepare(&good, &store).unwrap(), good.canonicalize().unwrap());
    }
}
