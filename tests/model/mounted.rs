//! A real mount as a target.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::ops::*;
use crate::common::{self, Mount};

/// The operations as system calls below a mount point.
pub struct Mounted {
    /// The mount; restarted by [`Op::Restart`].
    pub mount: Mount,
    killed: bool,
}

impl Mounted {
    /// A target on this mount.
    pub fn new(mount: Mount) -> Mounted {
        Mounted { mount, killed: false }
    }

    fn top(&self, top: Top) -> PathBuf {
        match top {
            Top::Work(w) => self.mount.work(&format!("work {w}")),
            Top::Key(k) => self.mount.path(format!("key{k}")),
        }
    }

    fn path(&self, at: &At) -> PathBuf {
        let mut p = self.top(at.top);
        p.extend(&at.names);
        p
    }

    fn below(&self, top: Top, names: &[&str]) -> PathBuf {
        let mut p = self.top(top);
        p.extend(names);
        p
    }

    fn try_run(&mut self, op: &Op) -> io::Result<Seen> {
        let done = |()| Seen::Done;
        match op {
            Op::MakeTop(t) => fs::create_dir(self.top(*t)).map(done),
            Op::RemoveTop(t) => fs::remove_dir(self.top(*t)).map(done),
            Op::Write(a, c) => fs::write(self.path(a), c.bytes()).map(done),
            Op::WriteAt(a, offset, c) => {
                let f = OpenOptions::new().write(true).open(self.path(a))?;
                f.write_all_at(&c.bytes(), *offset).map(done)
            }
            Op::Append(a, c) => {
                let mut f = OpenOptions::new().append(true).open(self.path(a))?;
                f.write_all(&c.bytes()).map(done)
            }
            Op::Truncate(a, len) => Ok(done(nix::unistd::truncate(&self.path(a), *len as i64)?)),
            Op::Rename(t, from, to, how) => {
                let flags = match how {
                    How::Replace => RenameFlags::empty(),
                    How::NoReplace => RenameFlags::RENAME_NOREPLACE,
                    How::Exchange => RenameFlags::RENAME_EXCHANGE,
                };
                let (from, to) = (self.below(*t, from), self.below(*t, to));
                Ok(done(renameat2(AT_FDCWD, &from, AT_FDCWD, &to, flags)?))
            }
            Op::Link(t, from, to) => fs::hard_link(self.below(*t, from), self.below(*t, to)).map(done),
            Op::Symlink(a) => std::os::unix::fs::symlink(TARGET, self.path(a)).map(done),
            Op::Unlink(a) => fs::remove_file(self.path(a)).map(done),
            Op::Mkdir(a) => fs::create_dir(self.path(a)).map(done),
            Op::Rmdir(a) => fs::remove_dir(self.path(a)).map(done),
            Op::Chmod(a, mode) => common::chmod(self.path(a), *mode).map(done),
            Op::SetTime(a, s, n) => self.set_time(a, *s, *n).map(done),
            Op::SetXattr(a, v) => xattr::set_deref(self.path(a), XATTR, &[*v; 3]).map(done),
            Op::RemoveXattr(a) => xattr::remove_deref(self.path(a), XATTR).map(done),
            Op::GetXattr(a) => match xattr::get_deref(self.path(a), XATTR)? {
                Some(v) => Ok(Seen::Bytes(v)),
                None => Err(io::Error::from_raw_os_error(libc::ENODATA)),
            },
            Op::ReadDir(a) => {
                let list: io::Result<Vec<_>> = fs::read_dir(self.path(a))?.collect();
                Ok(Seen::Names(list?.iter().map(|e| e.file_name().to_string_lossy().into_owned()).collect()))
            }
            Op::Read(a) => fs::read(self.path(a)).map(Seen::Bytes),
            Op::Stat(a) => fs::symlink_metadata(self.path(a)).map(|m| Seen::Stat(stat(&m))),
            Op::ReadLink(a) => {
                fs::read_link(self.path(a)).map(|t| Seen::Bytes(t.into_os_string().into_encoded_bytes()))
            }
            Op::Publish(w, k) => fs::rename(self.top(Top::Work(*w)), self.top(Top::Key(*k))).map(done),
            Op::Seal(k) => {
                self.mount.seal(&[&format!("key{k}")]);
                Ok(Seen::Done)
            }
            Op::Evict(k) => {
                let trash = self.mount.path(format!(".outfs/trash/key{k}"));
                fs::rename(self.top(Top::Key(*k)), trash).map(done)
            }
            Op::Restart => {
                // Every second time without a warning.
                self.killed = !self.killed;
                if self.killed {
                    self.mount.kill9();
                    self.mount.start();
                } else {
                    self.mount.restart();
                }
                Ok(Seen::Done)
            }
        }
    }

    fn set_time(&self, a: &At, seconds: i64, nanos: u32) -> io::Result<()> {
        use nix::sys::stat::{UtimensatFlags, utimensat};
        use nix::sys::time::TimeSpec;
        let path = self.path(a);
        let time = TimeSpec::new(seconds, i64::from(nanos));
        let keep = TimeSpec::new(0, libc::UTIME_OMIT);
        utimensat(AT_FDCWD, &path, &keep, &time, UtimensatFlags::FollowSymlink)?;
        // What was set is shown at once.
        let shown = fs::metadata(&path)?.modified()?;
        let wanted = if seconds < 0 {
            UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + Duration::from_nanos(nanos.into())
        } else {
            UNIX_EPOCH + Duration::new(seconds as u64, nanos)
        };
        assert_eq!(shown, wanted);
        Ok(())
    }
}

fn stat(m: &fs::Metadata) -> Stat {
    let (kind, mode) = match m.mode() & libc::S_IFMT {
        libc::S_IFDIR => ('d', m.mode() & 0o7777),
        libc::S_IFLNK => ('l', 0),
        _ => ('f', m.mode() & 0o7777),
    };
    let dir = kind == 'd';
    Stat {
        kind,
        mode,
        size: if dir { 0 } else { m.len() },
        nlink: if dir { 0 } else { m.nlink() },
        mtime: Some((m.mtime(), m.mtime_nsec() as u32)),
    }
}

impl Target for Mounted {
    fn run(&mut self, op: &Op) -> Result<Seen, i32> {
        self.try_run(op)
            .map_err(|e| e.raw_os_error().unwrap_or_else(|| panic!("an error without a number: {e}")))
    }
}
