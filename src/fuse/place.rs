//! Which mount is ours: a path may have another one by now.
//!
//! Invariant: nothing is asked of whoever serves a mount, so that none that hangs holds this up. Must not know:
//! how mounts are made and taken away.

use std::io;
use std::path::Path;

/// A mount, as the kernel tells it from all others while it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    id: u64,
    dev: (u32, u32),
}

/// What became of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// It is the one that stands at its path.
    Here,
    /// It stands, but its path leads elsewhere: another mount covers it, or it was moved.
    Hidden,
    /// It is in no place any more. Who has files of it open may use it still.
    Detached,
}

/// `major` and `minor` of the device of what a path leads to, asked of the kernel alone.
pub fn device_of(path: &Path) -> io::Result<(u32, u32)> {
    Identity::of_what(path, 0).map(|there| there.dev)
}

impl Identity {
    /// Of what `at` leads to, asked of the kernel alone. The daemon must ask nothing of itself: killed
    /// meanwhile, it would wait for its own answer, and not die.
    pub(super) fn of(at: &Path) -> io::Result<Identity> {
        Self::of_what(at, libc::AT_SYMLINK_NOFOLLOW)
    }

    fn of_what(at: &Path, follow: libc::c_int) -> io::Result<Identity> {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::CString::new(at.as_os_str().as_bytes())?;
        let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
        let flags = libc::AT_STATX_DONT_SYNC | follow | libc::AT_NO_AUTOMOUNT;
        // SAFETY: the path and the result live through the call, which fills the result when it succeeds.
        unsafe {
            if libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, 0, found.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let found = found.assume_init();
            Ok(Identity { id: found.stx_mnt_id, dev: (found.stx_dev_major, found.stx_dev_minor) })
        }
    }

    /// `major` and `minor` of its device.
    pub(super) fn device(&self) -> (u32, u32) {
        self.dev
    }

    /// Where it is now, having been mounted at `at`.
    pub(super) fn whereabouts(&self, at: &Path) -> Whereabouts {
        if Self::of(at).is_ok_and(|there| there == *self) {
            return Whereabouts::Here;
        }
        match std::fs::read("/proc/self/mountinfo") {
            Ok(table) if !table.split(|&b| b == b'\n').any(|line| self.is(line)) => Whereabouts::Detached,
            _ => Whereabouts::Hidden,
        }
    }

    /// Is this line of a mount table about it? (Its first field is the mount's number, its third the device's.)
    fn is(&self, line: &[u8]) -> bool {
        let mut fields = line.split(|&b| b == b' ').map(|field| std::str::from_utf8(field).unwrap_or(""));
        let id = fields.next().and_then(|id| id.parse().ok());
        let (major, minor) = self.dev;
        id == Some(self.id) && fields.nth(1) == Some(&format!("{major}:{minor}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_known_by_its_number_and_device() {
        let proc = Identity::of(Path::new("/proc")).unwrap();
        assert_eq!(proc.whereabouts(Path::new("/proc")), Whereabouts::Here);
        assert_eq!(proc.whereabouts(Path::new("/")), Whereabouts::Hidden);
        let gone = Identity { id: u64::MAX, ..proc };
        assert_eq!(gone.whereabouts(Path::new("/proc")), Whereabouts::Detached);
        let some = Identity { id: 36, dev: (0, 52) };
        assert!(some.is(b"36 35 0:52 / /mnt rw - fuse.outfs outfs rw"));
        assert!(!some.is(b"35 36 0:52 / /mnt rw") && !some.is(b"36 35 0:53 / /mnt rw") && !some.is(b""));
    }
}
