//! Promises of the store that need more than one of its files.

mod doors;
mod drafts;
mod events;
mod layout;
mod objects;
mod opening;

use super::{Access, Store};
use crate::model::EntryKey;

fn store() -> (tempfile::TempDir, Store) {
    // What these tests prove does not depend on the disk; its calls are counted all the same.
    super::skip_syncs(true);
    let dir = quick_dir();
    let store = Store::open(&dir.path().join("s"), Access::Own).unwrap();
    (dir, store)
}

/// A directory in memory where there is one: for tests that make and delete thousands of files.
fn quick_dir() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn key(text: &str) -> EntryKey {
    EntryKey::parse(text).unwrap()
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Runs `work` on a thread without root's power over files, as the user `nobody`; as the
/// ordinary user we are, when we are one.
fn as_ordinary_user<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let other = || {
        if is_root() {
            // These concern the calling thread only.
            nix::unistd::setfsgid(65534.into());
            nix::unistd::setfsuid(65534.into());
        }
        work()
    };
    std::thread::scope(|s| s.spawn(other).join().unwrap())
}

/// Runs `work` on a thread with mounts of its own (needs root).
pub(crate) fn with_own_mounts(work: impl FnOnce() + Send) {
    use nix::mount::{MsFlags, mount};
    let isolated = || {
        // SAFETY: unshare takes no pointer and concerns the calling thread only.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) }, 0);
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        work();
    };
    std::thread::scope(|s| s.spawn(isolated).join().unwrap());
}

pub(crate) fn mount_tmpfs(at: &std::path::Path, flags: nix::mount::MsFlags) {
    nix::mount::mount(Some("none"), at, Some("tmpfs"), flags, None::<&str>).unwrap();
}
