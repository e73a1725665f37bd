//! Directories of this user's own: whether one can be believed and written to.
//!
//! Invariants: nothing is believed that somebody else can have written; root writes nothing where an ordinary user could lead it
//! elsewhere, nor where what it leaves locks that user out. Must not know: what is kept in them.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User, geteuid};

/// Writable by the group, or by all.
const OTHERS_WRITE: u32 = 0o022;
/// The name of the directory where projects are remembered.
const MEMORY: &str = "outfs-run";

/// Where projects are remembered, below a directory for caches: made if it is missing, and ours alone. Root, with the directory of
/// another user (`sudo` that keeps HOME), has one below its own home. `None`: nowhere.
pub fn memory(caches: Option<&Path>) -> Option<PathBuf> {
    let home = || User::from_uid(geteuid()).ok().flatten().map(|user| user.dir.join(".cache"));
    let first = usable(&caches?.join(MEMORY));
    match first {
        Ok(dir) => Some(dir),
        Err(e) if geteuid().is_root() => {
            tracing::debug!("root remembers projects elsewhere: {e}");
            let own = usable(&home()?.join(MEMORY));
            own.inspect_err(|e| tracing::debug!("projects are not remembered: {e}")).ok()
        }
        Err(e) => {
            tracing::debug!("projects are not remembered: {e}");
            None
        }
    }
}

fn usable(dir: &Path) -> io::Result<PathBuf> {
    let dir = &std::path::absolute(dir)?;
    let said = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", dir.display()));
    // Of what is not there yet those above it tell whose it would be.
    let above = dir.ancestors().find(|d| d.symlink_metadata().is_ok()).unwrap_or(dir);
    is_led_by_us(above).map_err(said)?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(said)?;
    let real = dir.canonicalize().map_err(said)?;
    is_led_by_us(&real).map_err(said)?;
    open(&real).map_err(said)?;
    match nix::unistd::access(&real, nix::unistd::AccessFlags::W_OK) {
        Ok(()) => Ok(dir.to_owned()),
        Err(e) => Err(said(e.into())),
    }
}

/// Makes a directory that nobody else can look into, in one that exists; one that stands there has to be such a one.
pub(super) fn make_private(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    match open(dir)?.mode() & 0o077 {
        0 => Ok(()),
        _ => Err(io::Error::other("it is open to others")),
    }
}

/// Opens a directory itself, not one that a symlink leads to; it is ours, and nobody else can write to it.
pub(super) fn open(dir: &Path) -> io::Result<Metadata> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    only_ours(OpenOptions::new().read(true).custom_flags(flags).open(dir)?.metadata()?)
}

/// The content of a file of ours to which nobody else can write.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file: File =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if !only_ours(file.metadata()?)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut &file, &mut bytes)?;
    Ok(bytes)
}

fn only_ours(meta: Metadata) -> io::Result<Metadata> {
    match (Uid::from_raw(meta.uid()) == geteuid(), meta.mode() & OTHERS_WRITE) {
        (true, 0) => Ok(meta),
        (true, _) => Err(io::Error::other("others can write to it")),
        (false, _) => Err(io::Error::other(format!("it belongs to user {}", meta.uid()))),
    }
}

/// For root: no other user owns a directory on the way, in which they could put something else.
fn is_led_by_us(path: &Path) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    for dir in path.ancestors() {
        let owner = dir.symlink_metadata()?.uid();
        if owner != 0 {
            return Err(io::Error::other(format!("{} belongs to user {owner}", dir.display())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn only_what_is_ours_is_believed() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        let mode = |name: &str, mode| std::fs::set_permissions(at(name), PermissionsExt::from_mode(mode));
        make_private(&at("dir")).unwrap();
        make_private(&at("dir")).unwrap();
        std::fs::write(at("dir/file"), "1").unwrap();
        mode("dir/file", 0o644).unwrap();
        assert_eq!(read(&at("dir/file")).unwrap(), b"1");
        symlink("dir", at("link")).unwrap();
        symlink("file", at("dir/link")).unwrap();
        for dir in ["link", "dir/file"] {
            assert!(make_private(&at(dir)).is_err() && open(&at(dir)).is_err(), "{dir}");
        }
        assert!(read(&at("dir/link")).is_err() && read(&at("dir")).is_err());
        mode("dir/file", 0o664).unwrap();
        assert!(read(&at("dir/file")).is_err(), "the group can write to it");
        mode("dir", 0o755).unwrap();
        assert!(make_private(&at("dir")).is_err() && open(&at("dir")).is_ok());
        mode("dir", 0o770).unwrap();
        assert!(open(&at("dir")).is_err());
    }

    #[test]
    fn a_memory_is_made_where_it_can_be() {
        let top = tempfile::tempdir().unwrap();
        assert_eq!(memory(None), None);
        assert_eq!(memory(Some(&top.path().join("a/b"))), Some(top.path().join("a/b/outfs-run")));
        if !geteuid().is_root() {
            assert_eq!(memory(Some(Path::new("/proc/nothing"))), None);
        }
    }
}
