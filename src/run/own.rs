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
    let first = usable(&caches?.join(MEMORY));
    match first {
        Ok(dir) => Some(dir),
        Err(e) if geteuid().is_root() => {
            tracing::debug!("root remembers projects elsewhere: {e}");
            let own = usable(&own_caches()?.join(MEMORY));
            own.inspect_err(|e| tracing::debug!("projects are not remembered: {e}")).ok()
        }
        Err(e) => {
            tracing::debug!("projects are not remembered: {e}");
            None
        }
    }
}

/// Where this user's caches are by the list of users, whatever the environment says.
pub fn own_caches() -> Option<PathBuf> {
    User::from_uid(geteuid()).ok().flatten().map(|user| user.dir.join(".cache"))
}

/// Whether what this user makes at `dir` is in nobody else's directory; of what is not there yet those above it tell whose it would
/// be. Only root is asked that.
pub fn is_ours_to_make(dir: &Path) -> io::Result<()> {
    let dir = &std::path::absolute(dir)?;
    let above = dir.ancestors().find(|d| d.symlink_metadata().is_ok()).unwrap_or(dir);
    is_led_by_us(above)?;
    is_led_by_us(&above.canonicalize()?)
}

fn usable(dir: &Path) -> io::Result<PathBuf> {
    let dir = &std::path::absolute(dir)?;
    let said = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", dir.display()));
    is_ours_to_make(dir).map_err(said)?;
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

/// For root: no other user owns a directory on the way, in which they could put something else. In a namespace of users (`unshare -r`) those
/// who have no number here are not among them: as far as they go root is what it is outside, an ordinary user.
fn is_led_by_us(path: &Path) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let outsider = outsider();
    for dir in path.ancestors() {
        let owner = dir.symlink_metadata()?.uid();
        if owner != 0 && Some(owner) != outsider {
            return Err(io::Error::other(format!("{} belongs to user {owner}", dir.display())));
        }
    }
    Ok(())
}

/// The number that everybody has here who has none, if nobody else can have it.
fn outsider() -> Option<u32> {
    let number = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok()?.trim().parse().ok()?;
    let map = std::fs::read_to_string("/proc/self/uid_map").ok()?;
    (!is_mapped(&map, number)?).then_some(number)
}

/// Whether a namespace of users has this number; `None` when the map cannot be read.
fn is_mapped(map: &str, number: u32) -> Option<bool> {
    let mut mapped = false;
    for line in map.lines() {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (first, _, count) = (numbers.next()?.ok()?, numbers.next()?, numbers.next()?.ok()?);
        mapped |= number.checked_sub(first).is_some_and(|after| after < count);
    }
    Some(mapped)
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
    fn who_has_a_number_in_a_namespace() {
        let all = "         0          0 4294967295\n";
        assert_eq!((is_mapped(all, 0), is_mapped(all, 65534)), (Some(true), Some(true)));
        let one = "0 1000 1\n";
        assert_eq!((is_mapped(one, 0), is_mapped(one, 65534)), (Some(true), Some(false)));
        let many = "0 1000 1\n1 100000 65536\n";
        assert_eq!((is_mapped(many, 65534), is_mapped(many, 65537)), (Some(true), Some(false)));
        assert_eq!(is_mapped("nonsense", 1), None);
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
