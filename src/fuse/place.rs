//! Which mount is ours: a path may have another one by now.
//!
//! Invariant: nothing is asked of whoever serves a mount, so that none that hangs holds this up. Must not know:
//! how mounts are made and taken away.

use std::io;
use std::path::Path;

/// A mount, as the kernel tells it from all others while it stands, and since Linux 6.8 from all that come after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its number in mount tables: the next mount may have it when this one is gone.
    id: u64,
    dev: (u32, u32),
    /// Its number that no other mount ever has.
    only: Option<u64>,
}

/// What became of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// It is the one that stands at its path.
    Here,
    /// It stands, but its path leads elsewhere: another mount covers it, or it was moved.
    Hidden,
    /// It is in no place any more. Who has files of it open may use it still.
    Detached,
}

/// `major` and `minor` of the device of what a path leads to, asked of the kernel alone.
pub fn device_of(path: &Path) -> io::Result<(u32, u32)> {
    statx(path, 0, 0).map(|there| (there.stx_dev_major, there.stx_dev_minor))
}

impl Identity {
    /// Of what `at` leads to, asked of the kernel alone. The daemon must ask nothing of itself: killed
    /// meanwhile, it would wait for its own answer, and not die.
    pub fn of(at: &Path) -> io::Result<Identity> {
        let found = statx(at, libc::AT_SYMLINK_NOFOLLOW, 0)?;
        // Whom the mount does not let in gets an answer only to a question for nothing.
        let only = statx(at, libc::AT_SYMLINK_NOFOLLOW, STATX_MNT_ID_UNIQUE).ok();
        let only = only.filter(|o| o.stx_mask & STATX_MNT_ID_UNIQUE != 0).map(|o| o.stx_mnt_id);
        Ok(Identity { id: found.stx_mnt_id, dev: (found.stx_dev_major, found.stx_dev_minor), only })
    }

    /// `major` and `minor` of its device.
    pub(super) fn device(&self) -> (u32, u32) {
        self.dev
    }

    /// Where it is now, having been mounted at `at`.
    pub fn whereabouts(&self, at: &Path) -> Whereabouts {
        match Self::of(at) {
            Ok(there) if there.may_be(self) => return Whereabouts::Here,
            // Another has its number, unless it came between two questions.
            Ok(there) if there.has_number_of(self) && Self::of(at).is_ok_and(|again| again == there) => {
                return Whereabouts::Detached;
            }
            _ => {}
        }
        match std::fs::read("/proc/self/mountinfo") {
            Ok(table) if !table.split(|&b| b == b'\n').any(|line| self.is(line)) => Whereabouts::Detached,
            _ => Whereabouts::Hidden,
        }
    }

    fn has_number_of(&self, other: &Identity) -> bool {
        (self.id, self.dev) == (other.id, other.dev)
    }

    /// The same, as far as the kernel can tell.
    fn may_be(&self, other: &Identity) -> bool {
        let differ = self.only.zip(other.only).is_some_and(|(one, another)| one != another);
        self.has_number_of(other) && !differ
    }

    /// Is this line of a mount table about it? (Its first field is the mount's number, its third the device's.)
    fn is(&self, line: &[u8]) -> bool {
        let mut fields = line.split(|&b| b == b' ').map(|field| std::str::from_utf8(field).unwrap_or(""));
        let id = fields.next().and_then(|id| id.parse().ok());
        let (major, minor) = self.dev;
        id == Some(self.id) && fields.nth(1) == Some(&format!("{major}:{minor}"))
    }
}

/// Since Linux 6.8; older kernels leave it out of what they say they have answered.
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

fn statx(at: &Path, follow: libc::c_int, asked: u32) -> io::Result<libc::statx> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(at.as_os_str().as_bytes())?;
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_STATX_DONT_SYNC | follow | libc::AT_NO_AUTOMOUNT;
    // SAFETY: the path and the result live through the call, which fills the result when it succeeds.
    unsafe {
        match libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, asked, found.as_mut_ptr()) {
            0 => Ok(found.assume_init()),
            _ => Err(io::Error::last_os_error()),
        }
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
        if let Some(only) = proc.only {
            let another = Identity { only: Some(only + 1), ..proc };
            assert_eq!(another.whereabouts(Path::new("/proc")), Whereabouts::Detached);
        }
        let some = Identity { id: 36, dev: (0, 52), only: None };
        assert!(some.is(b"36 35 0:52 / /mnt rw - fuse.outfs outfs rw"));
        assert!(!some.is(b"35 36 0:52 / /mnt rw") && !some.is(b"36 35 0:53 / /mnt rw") && !some.is(b""));
    }
}
