//! What operations on a view take and give: attributes, times, callers, open results.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// An inode number of a view.
pub type Ino = u64;

/// The kernel may keep what it was told until it is told otherwise.
pub const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
/// How long the kernel may keep names of the top directory and in drafts: they can come to mean something
/// else without the kernel being told.
pub const NAMES: Duration = crate::cache::NAMES_LAST;

/// Seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    /// Whole seconds, negative before 1970.
    pub sec: i64,
    /// 0 to 999,999,999.
    pub nsec: u32,
}

impl Time {
    /// From nanoseconds since 1970.
    pub fn from_ns(ns: i64) -> Self {
        Self { sec: ns.div_euclid(1_000_000_000), nsec: ns.rem_euclid(1_000_000_000) as u32 }
    }
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

impl Kind {
    /// From the type bits of an `st_mode`.
    pub fn of_mode(mode: u32) -> Kind {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => Kind::Dir,
            libc::S_IFLNK => Kind::Symlink,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFCHR => Kind::CharDevice,
            libc::S_IFBLK => Kind::BlockDevice,
            _ => Kind::File,
        }
    }

    /// From a `d_type`; `None` when the file system does not tell.
    pub fn of_dirent(t: nix::dir::Type) -> Kind {
        use nix::dir::Type;
        match t {
            Type::Directory => Kind::Dir,
            Type::Symlink => Kind::Symlink,
            Type::Fifo => Kind::Fifo,
            Type::Socket => Kind::Socket,
            Type::CharacterDevice => Kind::CharDevice,
            Type::BlockDevice => Kind::BlockDevice,
            Type::File => Kind::File,
        }
    }
}

/// The attributes of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Attr {
    pub ino: Ino,
    pub kind: Kind,
    /// Permission bits, 07777.
    pub perm: u32,
    pub size: u64,
    /// 512-byte blocks on this disk.
    pub blocks: u64,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
}

impl Attr {
    /// Those of nothing.
    pub const NONE: Attr = Attr {
        ino: 0,
        kind: Kind::File,
        perm: 0,
        size: 0,
        blocks: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        atime: Time { sec: 0, nsec: 0 },
        mtime: Time { sec: 0, nsec: 0 },
        ctime: Time { sec: 0, nsec: 0 },
    };
}

/// A found or made name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its attributes.
    pub attr: Attr,
    /// How long the kernel may trust the name.
    pub name_ttl: Duration,
    /// How long it may trust the attributes.
    pub attr_ttl: Duration,
    /// Tells uses of the same number apart; 0 for numbers that are used once.
    pub generation: u64,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

/// A new value for a time stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The present.
    Now,
    /// A given time.
    At(Time),
}

/// What to change of an inode; `None` stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// With a size: clear the set-id bits, as for a caller without privileges.
    pub drop_setid: bool,
}

/// How an opened file is read and written.
#[derive(Debug, Clone)]
pub enum How {
    /// Its pages may stay in the page cache for good.
    Keep,
    /// By the kernel on this file, where it can; else through this view, with the page cache.
    Backing(Arc<OwnedFd>),
    /// Through this view, past the page cache.
    Direct,
    /// By the kernel on this file, which nobody writes to any more.
    Blob(Arc<OwnedFd>),
    /// As `Keep`, of what a later open may find to be such a file: not while this one lasts.
    Elsewhere,
}

/// An opened file.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Names the handle in later calls; 0 needs no release.
    pub fh: u64,
    /// How it is read and written.
    pub how: How,
}

/// One name of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirItem {
    /// The name.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Its number, 0 when there is none yet.
    pub ino: Ino,
    /// Where to go on after it.
    pub next: u64,
}

/// The quota as `statfs` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Space {
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub files: u64,
}
