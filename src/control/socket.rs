//! The socket file: binding and connecting below a store of any path length, and who is at the
//! other end. Must not know: the protocol.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::stat::{Mode, umask};

use super::SOCKET;

/// `sun_path` has 108 bytes with its NUL.
const MAX_PATH: usize = 107;

/// The socket's path if it fits, else one through a descriptor of the store's directory,
/// which must live as long as the path is used.
fn address(store: &Path) -> io::Result<(PathBuf, Option<File>)> {
    let path = store.join(SOCKET);
    if path.as_os_str().as_bytes().len() <= MAX_PATH {
        return Ok((path, None));
    }
    let dir = File::open(store)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())), Some(dir)))
}

/// Connects to the daemon of the store.
pub(super) fn connect(store: &Path) -> io::Result<UnixStream> {
    let (path, _dir) = address(store)?;
    UnixStream::connect(path)
}

/// Binds the store's socket with mode 0600; a socket file left by a dead owner is replaced. The caller
/// owns the store's lock, so nobody listens there.
pub(super) fn bind(store: &Path) -> io::Result<UnixListener> {
    let (path, _dir) = address(store)?;
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(&path);
    umask(before);
    bound
}

/// What paths mean to this process: its mount namespace and its root directory. Processes with
/// different ones must not exchange paths.
pub(super) fn place() -> String {
    let space = std::fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
    let root = std::fs::metadata("/").map(|m| format!("{}:{}", m.dev(), m.ino())).unwrap_or_default();
    format!("{} {root}", space.display())
}

/// The process that listens at the other end; `None` when it cannot be seen from here.
pub(super) fn peer_pid(stream: &UnixStream) -> Option<u32> {
    let pid = getsockopt(&stream.as_fd(), PeerCredentials).ok()?.pid();
    u32::try_from(pid).ok().filter(|pid| *pid != 0)
}

/// The user at the other end.
pub(super) fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    Ok(getsockopt(&stream.as_fd(), PeerCredentials)?.uid())
}
