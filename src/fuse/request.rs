//! Requests of the kernel, taken apart: bytes to operations.
//!
//! Every length is checked; what does not fit is EINVAL, what is unknown ENOSYS (which for most operations the
//! kernel takes to heart and does not ask again). Must not know: who answers, how the bytes came.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::wire::*;
use crate::vfs::{SetAttr, SetTime, Time};

/// Where the arguments of a request lie.
#[derive(Clone, Copy)]
pub(super) enum Args<'a> {
    /// One behind the other (`/dev/fuse`).
    Joined(&'a [u8]),
    /// The first struct for itself (a ring's entry).
    Parted { first: &'a [u8], rest: &'a [u8] },
}

impl<'a> Args<'a> {
    /// The first struct, and what follows it.
    fn split<T: FromBytes + KnownLayout + Immutable>(self) -> Result<(T, &'a [u8]), Errno> {
        let (from, rest) = match self {
            Args::Joined(all) => (all, None),
            Args::Parted { first, rest } => (first, Some(rest)),
        };
        let (value, behind) = T::read_from_prefix(from).map_err(|_| Errno::EINVAL)?;
        Ok((value, rest.unwrap_or(behind)))
    }

    fn only<T: FromBytes + KnownLayout + Immutable>(self) -> Result<T, Errno> {
        Ok(self.split()?.0)
    }

    /// What follows, of a request without a struct.
    fn rest(self) -> &'a [u8] {
        match self {
            Args::Joined(all) => all,
            Args::Parted { rest, .. } => rest,
        }
    }
}

/// An operation. Numbers and names are those of `linux/fuse.h`; `ino` is the header's node.
#[derive(Debug, PartialEq)]
pub(super) enum Op<'a> {
    Lookup {
        name: OsString,
    },
    Forget {
        n: u64,
    },
    BatchForget {
        items: Vec<(u64, u64)>,
    },
    Getattr,
    Setattr(SetAttr),
    Readlink,
    Symlink {
        name: OsString,
        target: OsString,
    },
    Mknod {
        name: OsString,
        mode: u32,
        rdev: u32,
    },
    Mkdir {
        name: OsString,
        mode: u32,
    },
    Unlink {
        name: OsString,
    },
    Rmdir {
        name: OsString,
    },
    Rename {
        name: OsString,
        newdir: u64,
        newname: OsString,
        flags: u32,
    },
    /// The header's node is the directory.
    Link {
        ino: u64,
        name: OsString,
    },
    Open {
        flags: i32,
    },
    Create {
        name: OsString,
        mode: u32,
        flags: i32,
    },
    Read {
        fh: u64,
        offset: u64,
        size: u32,
    },
    Write {
        fh: u64,
        offset: u64,
        data: &'a [u8],
        drop_setid: bool,
    },
    Statfs,
    Release {
        fh: u64,
    },
    /// Also of a directory, without a handle.
    Fsync {
        fh: u64,
        datasync: bool,
    },
    Setxattr {
        name: OsString,
        value: Vec<u8>,
        flags: i32,
    },
    Getxattr {
        name: OsString,
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: OsString,
    },
    Releasedir,
    Readdir {
        offset: u64,
        size: u32,
    },
    Readdirplus {
        offset: u64,
        size: u32,
    },
    Fallocate {
        fh: u64,
        offset: u64,
        length: u64,
        mode: i32,
    },
    Lseek {
        fh: u64,
        offset: i64,
        whence: i32,
    },
    CopyFileRange {
        from: (u64, u64),
        to: (u64, u64),
        len: u64,
    },
    Destroy,
}

impl Op<'_> {
    /// What the kernel may send in its own name, whoever caused it, also of a file that somebody else has opened: it looks at
    /// the attributes while it reads one, and refuses strangers who ask for them.
    pub(super) fn is_the_kernels(&self) -> bool {
        matches!(
            self,
            Op::Read { .. }
                | Op::Write { .. }
                | Op::Fsync { .. }
                | Op::Release { .. }
                | Op::Getattr
                | Op::Lseek { .. }
                | Op::Releasedir
                | Op::Readdir { .. }
                | Op::Readdirplus { .. }
        )
    }
}

const WRITE_KILL_SUIDGID: u32 = 1 << 2;
const FSYNC_FDATASYNC: u32 = 1;

/// A name up to its NUL, and what follows that.
fn name(bytes: &[u8]) -> Result<(OsString, &[u8]), Errno> {
    let end = bytes.iter().position(|b| *b == 0).ok_or(Errno::EINVAL)?;
    Ok((OsString::from_vec(bytes[..end].to_vec()), &bytes[end + 1..]))
}

fn one_name(bytes: &[u8]) -> Result<OsString, Errno> {
    Ok(name(bytes)?.0)
}

fn two_names(bytes: &[u8]) -> Result<(OsString, OsString), Errno> {
    let (first, rest) = name(bytes)?;
    Ok((first, one_name(rest)?))
}

/// Offsets and lengths of files, which have a sign elsewhere.
fn position(n: u64) -> Result<u64, Errno> {
    i64::try_from(n).map(|_| n).map_err(|_| Errno::EINVAL)
}

/// Whether a request of this kind has no answer.
pub(super) fn is_forget(opcode: u32) -> bool {
    matches!(opcode, 2 | 42)
}

/// Takes the arguments of a request apart.
pub(super) fn parse(opcode: u32, args: Args<'_>) -> Result<Op<'_>, Errno> {
    Ok(match opcode {
        1 => Op::Lookup { name: one_name(args.rest())? },
        2 => Op::Forget { n: args.only::<ForgetIn>()?.nlookup },
        3 => Op::Getattr,
        4 => Op::Setattr(setattr(&args.only()?)),
        5 => Op::Readlink,
        10 => Op::Unlink { name: one_name(args.rest())? },
        11 => Op::Rmdir { name: one_name(args.rest())? },
        14 => Op::Open { flags: args.only::<OpenIn>()?.flags as i32 },
        15 | 28 | 44 => reading(opcode, args.only()?)?,
        16 => write(args)?,
        17 => Op::Statfs,
        18 => Op::Release { fh: args.only::<ReleaseIn>()?.fh },
        20 | 30 => {
            let a: FsyncIn = args.only()?;
            let fh = if opcode == 30 { 0 } else { a.fh };
            Op::Fsync { fh, datasync: a.fsync_flags & FSYNC_FDATASYNC != 0 }
        }
        21..=24 => attribute(opcode, args)?,
        29 => Op::Releasedir,
        38 => Op::Destroy,
        42 => batch_forget(args)?,
        43 => {
            let a: FallocateIn = args.only()?;
            let (offset, length) = (position(a.offset)?, position(a.length)?);
            Op::Fallocate { fh: a.fh, offset, length, mode: a.mode as i32 }
        }
        46 => {
            let a: LseekIn = args.only()?;
            Op::Lseek { fh: a.fh, offset: a.offset as i64, whence: a.whence as i32 }
        }
        47 => {
            let a: CopyFileRangeIn = args.only()?;
            let (from, to) = ((a.fh_in, position(a.off_in)?), (a.fh_out, position(a.off_out)?));
            Op::CopyFileRange { from, to, len: a.len }
        }
        _ => making(opcode, args)?,
    })
}

/// What makes or moves a name.
fn making(opcode: u32, args: Args<'_>) -> Result<Op<'_>, Errno> {
    Ok(match opcode {
        6 => {
            let (name, target) = two_names(args.rest())?;
            Op::Symlink { name, target }
        }
        8 => {
            let (a, rest) = args.split::<MknodIn>()?;
            Op::Mknod { name: one_name(rest)?, mode: a.mode, rdev: a.rdev }
        }
        9 => {
            let (a, rest) = args.split::<MkdirIn>()?;
            Op::Mkdir { name: one_name(rest)?, mode: a.mode }
        }
        12 => {
            let (a, rest) = args.split::<RenameIn>()?;
            let (name, newname) = two_names(rest)?;
            Op::Rename { name, newdir: a.newdir, newname, flags: 0 }
        }
        13 => {
            let (a, rest) = args.split::<LinkIn>()?;
            Op::Link { ino: a.oldnodeid, name: one_name(rest)? }
        }
        35 => {
            let (a, rest) = args.split::<CreateIn>()?;
            Op::Create { name: one_name(rest)?, mode: a.mode, flags: a.flags as i32 }
        }
        45 => {
            let (a, rest) = args.split::<Rename2In>()?;
            let (name, newname) = two_names(rest)?;
            Op::Rename { name, newdir: a.newdir, newname, flags: a.flags }
        }
        _ => return Err(Errno::ENOSYS),
    })
}

fn reading(opcode: u32, a: ReadIn) -> Result<Op<'static>, Errno> {
    Ok(match opcode {
        28 => Op::Readdir { offset: a.offset, size: a.size },
        44 => Op::Readdirplus { offset: a.offset, size: a.size },
        _ => Op::Read { fh: a.fh, offset: position(a.offset)?, size: a.size },
    })
}

fn write(args: Args<'_>) -> Result<Op<'_>, Errno> {
    let (a, rest) = args.split::<WriteIn>()?;
    let data = rest.get(..a.size as usize).ok_or(Errno::EINVAL)?;
    let drop_setid = a.write_flags & WRITE_KILL_SUIDGID != 0;
    Ok(Op::Write { fh: a.fh, offset: position(a.offset)?, data, drop_setid })
}

fn attribute(opcode: u32, args: Args<'_>) -> Result<Op<'_>, Errno> {
    Ok(match opcode {
        21 => {
            let (a, rest) = args.split::<SetxattrIn>()?;
            let (name, rest) = name(rest)?;
            let value = rest.get(..a.size as usize).ok_or(Errno::EINVAL)?.to_vec();
            Op::Setxattr { name, value, flags: a.flags as i32 }
        }
        22 => {
            let (a, rest) = args.split::<GetxattrIn>()?;
            Op::Getxattr { name: one_name(rest)?, size: a.size }
        }
        23 => Op::Listxattr { size: args.only::<GetxattrIn>()?.size },
        _ => Op::Removexattr { name: one_name(args.rest())? },
    })
}

fn batch_forget(args: Args<'_>) -> Result<Op<'_>, Errno> {
    let (a, mut rest) = args.split::<BatchForgetIn>()?;
    let mut items = Vec::new();
    for _ in 0..a.count {
        let (one, behind) = ForgetOne::read_from_prefix(rest).map_err(|_| Errno::EINVAL)?;
        items.push((one.nodeid, one.nlookup));
        rest = behind;
    }
    Ok(Op::BatchForget { items })
}

fn setattr(a: &SetattrIn) -> SetAttr {
    let has = |bit: u32| a.valid & (1 << bit) != 0;
    let time = |given: u32, now: u32, sec: u64, nsec: u32| match (has(given), has(now)) {
        (false, _) => None,
        (true, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(Time { sec: sec as i64, nsec })),
    };
    SetAttr {
        mode: has(0).then_some(a.mode),
        uid: has(1).then_some(a.uid),
        gid: has(2).then_some(a.gid),
        size: has(3).then_some(a.size),
        atime: time(4, 7, a.atime, a.atimensec),
        mtime: time(5, 8, a.mtime, a.mtimensec),
        // Whoever knows the caller says it.
        drop_setid: false,
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    /// Both forms of the same arguments.
    fn both<'a>(opcode: u32, first: &'a [u8], rest: &'a [u8]) -> Result<String, Errno> {
        let joined = [first, rest].concat();
        let parted = parse(opcode, Args::Parted { first, rest }).map(|op| format!("{op:?}"));
        assert_eq!(parse(opcode, Args::Joined(&joined)).map(|op| format!("{op:?}")), parted);
        parted
    }

    #[test]
    fn operations_are_the_same_from_the_device_and_from_a_ring() {
        assert_eq!(both(1, &[], b"name\0").unwrap(), r#"Lookup { name: "name" }"#);
        assert_eq!(both(6, &[], b"a\0to/b\0").unwrap(), r#"Symlink { name: "a", target: "to/b" }"#);
        let rename = Rename2In { newdir: 7, flags: 1, padding: 0 };
        assert_eq!(
            both(45, rename.as_bytes(), b"old\0new\0").unwrap(),
            r#"Rename { name: "old", newdir: 7, newname: "new", flags: 1 }"#
        );
        let set = SetxattrIn { size: 3, flags: 2 };
        assert_eq!(
            both(21, set.as_bytes(), b"user.x\0val").unwrap(),
            r#"Setxattr { name: "user.x", value: [118, 97, 108], flags: 2 }"#
        );
        let write =
            WriteIn { fh: 5, offset: 9, size: 2, write_flags: 4, lock_owner: 0, flags: 0, padding: 0 };
        assert_eq!(
            both(16, write.as_bytes(), b"hi").unwrap(),
            "Write { fh: 5, offset: 9, data: [104, 105], drop_setid: true }"
        );
        let forget = BatchForgetIn { count: 2, dummy: 0 };
        let items = [3u64, 1, 4, 2];
        assert_eq!(
            both(42, forget.as_bytes(), items.as_bytes()).unwrap(),
            "BatchForget { items: [(3, 1), (4, 2)] }"
        );
    }

    #[test]
    fn times_and_their_flags() {
        let mut a = SetattrIn::read_from_bytes(&[0; size_of::<SetattrIn>()]).unwrap();
        assert_eq!(setattr(&a), SetAttr::default());
        (a.valid, a.atime, a.atimensec, a.size) =
            (1 << 4 | 1 << 5 | 1 << 8 | 1 << 3, -5i64 as u64, 500_000_000, 12);
        let set = setattr(&a);
        assert_eq!(set.atime, Some(SetTime::At(Time { sec: -5, nsec: 500_000_000 })));
        assert_eq!((set.mtime, set.size, set.mode), (Some(SetTime::Now), Some(12), None));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let write =
            WriteIn { fh: 0, offset: 0, size: 9, write_flags: 0, lock_owner: 0, flags: 0, padding: 0 };
        assert_eq!(both(16, write.as_bytes(), b"short"), Err(Errno::EINVAL));
        assert_eq!(both(1, &[], b"no end"), Err(Errno::EINVAL));
        assert_eq!(both(45, &[0; 16], b"one\0"), Err(Errno::EINVAL));
        assert_eq!(
            both(42, BatchForgetIn { count: u32::MAX, dummy: 0 }.as_bytes(), &[0; 40]),
            Err(Errno::EINVAL)
        );
        assert_eq!(parse(15, Args::Joined(&[0; 39])), Err(Errno::EINVAL));
        let read =
            ReadIn { fh: 0, offset: 1 << 63, size: 1, read_flags: 0, lock_owner: 0, flags: 0, padding: 0 };
        assert_eq!(both(15, read.as_bytes(), &[]), Err(Errno::EINVAL));
        for opcode in [25, 27, 31, 34, 36, 37, 39, 40, 50, 51, 52, 9999] {
            assert_eq!(parse(opcode, Args::Joined(&[0; 64])), Err(Errno::ENOSYS), "{opcode}");
        }
    }
}
