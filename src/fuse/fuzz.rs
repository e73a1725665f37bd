//! What must hold of the kernel's requests, whatever bytes they are made of.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::request::{Args, Op, parse};
use super::wire::*;

/// Requests mean the same from the device and from a ring; names and data are bytes of the request, and positions are
/// those of files. The first byte is the opcode.
pub fn request(data: &[u8]) {
    let Some((&opcode, args)) = data.split_first() else { return };
    let opcode = u32::from(opcode);
    let joined = parse(opcode, Args::Joined(args));
    let Some((first, rest)) = args.split_at_checked(first_struct(opcode)) else {
        assert!(joined.is_err(), "{joined:?} of too few bytes");
        return;
    };
    assert_eq!(parse(opcode, Args::Parted { first, rest }), joined);
    if let Ok(op) = joined {
        names(&op, rest);
        bounds(&op, args, rest);
    }
}

/// The length of what stands before names and data.
fn first_struct(opcode: u32) -> usize {
    match opcode {
        2 => size_of::<ForgetIn>(),
        4 => size_of::<SetattrIn>(),
        8 => size_of::<MknodIn>(),
        9 => size_of::<MkdirIn>(),
        12 => size_of::<RenameIn>(),
        13 => size_of::<LinkIn>(),
        14 => size_of::<OpenIn>(),
        15 | 28 | 44 => size_of::<ReadIn>(),
        16 => size_of::<WriteIn>(),
        18 => size_of::<ReleaseIn>(),
        20 | 30 => size_of::<FsyncIn>(),
        21 => size_of::<SetxattrIn>(),
        22 | 23 => size_of::<GetxattrIn>(),
        35 => size_of::<CreateIn>(),
        42 => size_of::<BatchForgetIn>(),
        43 => size_of::<FallocateIn>(),
        45 => size_of::<Rename2In>(),
        46 => size_of::<LseekIn>(),
        47 => size_of::<CopyFileRangeIn>(),
        _ => 0,
    }
}

/// What follows the struct begins with the operation's names, each with its NUL.
fn names(op: &Op<'_>, rest: &[u8]) {
    let names: &[&OsStr] = match op {
        Op::Lookup { name }
        | Op::Mknod { name, .. }
        | Op::Mkdir { name, .. }
        | Op::Unlink { name }
        | Op::Rmdir { name }
        | Op::Link { name, .. }
        | Op::Create { name, .. }
        | Op::Setxattr { name, .. }
        | Op::Getxattr { name, .. }
        | Op::Removexattr { name } => &[name],
        Op::Symlink { name, target } => &[name, target],
        Op::Rename { name, newname, .. } => &[name, newname],
        _ => &[],
    };
    let mut at = 0;
    for name in names {
        let end = at + name.len();
        assert!(&rest[at..end] == name.as_bytes() && rest[end] == 0 && !name.as_bytes().contains(&0));
        at = end + 1;
    }
    if let Op::Setxattr { value, .. } = op {
        assert_eq!(&rest[at..at + value.len()], value);
    }
}

fn bounds(op: &Op<'_>, args: &[u8], rest: &[u8]) {
    let position = |n: u64| assert!(i64::try_from(n).is_ok(), "{op:?}");
    match op {
        Op::Write { offset, data, .. } => {
            position(*offset);
            assert!(args.as_ptr_range().contains(&data.as_ptr()) || data.is_empty());
            assert_eq!(*data, &rest[..data.len()]);
        }
        Op::Read { offset, .. } => position(*offset),
        Op::Fallocate { offset, length, .. } => [offset, length].into_iter().for_each(|n| position(*n)),
        Op::CopyFileRange { from, to, .. } => [from.1, to.1].into_iter().for_each(position),
        Op::BatchForget { items } => assert!(size_of_val(&items[..]) <= rest.len()),
        _ => {}
    }
}
