//! The view's attributes as the kernel has them.

use super::wire::Attr as AttrOut;
use crate::vfs::{Attr, Kind};

/// The type bits of a mode.
pub(super) fn mode_bits(kind: Kind) -> u32 {
    match kind {
        Kind::File => libc::S_IFREG,
        Kind::Dir => libc::S_IFDIR,
        Kind::Symlink => libc::S_IFLNK,
        Kind::Fifo => libc::S_IFIFO,
        Kind::Socket => libc::S_IFSOCK,
        Kind::CharDevice => libc::S_IFCHR,
        Kind::BlockDevice => libc::S_IFBLK,
    }
}

/// A listing's word for it.
pub(super) fn dirent_type(kind: Kind) -> u32 {
    mode_bits(kind) >> 12
}

pub(super) fn attr_out(a: &Attr) -> AttrOut {
    AttrOut {
        ino: a.ino,
        size: a.size,
        blocks: a.blocks,
        atime: a.atime.sec as u64,
        mtime: a.mtime.sec as u64,
        ctime: a.ctime.sec as u64,
        atimensec: a.atime.nsec,
        mtimensec: a.mtime.nsec,
        ctimensec: a.ctime.nsec,
        mode: mode_bits(a.kind) | a.perm,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        blksize: 4096,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::Time;

    #[test]
    fn times_before_1970_keep_their_sign() {
        let at = Time { sec: -5, nsec: 500_000_000 };
        let out = attr_out(&Attr { mtime: at, kind: Kind::Dir, perm: 0o755, ..Attr::NONE });
        assert_eq!((out.mtime as i64, out.mtimensec, out.mode), (-5, 500_000_000, 0o40755));
    }
}
