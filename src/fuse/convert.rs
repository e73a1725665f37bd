//! The view's attributes and times as fuser has them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

use crate::vfs::{Attr, Kind, Time};

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

fn system_time(t: Time) -> SystemTime {
    let whole = Duration::from_secs(t.sec.unsigned_abs());
    let base = if t.sec < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base.and_then(|b| b.checked_add(Duration::from_nanos(t.nsec.into()))).unwrap_or(UNIX_EPOCH)
}

/// The time of a request, as the kernel sent it. fuser 0.18 takes the nanoseconds of a time before 1970
/// away from its seconds instead of adding them; this takes that back.
pub(super) fn time_of(t: SystemTime) -> Time {
    match t.duration_since(UNIX_EPOCH) {
        Ok(d) => Time { sec: d.as_secs() as i64, nsec: d.subsec_nanos() },
        Err(before) => {
            let d = before.duration();
            Time { sec: -(d.as_secs() as i64), nsec: d.subsec_nanos() }
        }
    }
}

pub(super) fn file_attr(a: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(a.ino),
        size: a.size,
        blocks: a.blocks,
        atime: system_time(a.atime),
        mtime: system_time(a.mtime),
        ctime: system_time(a.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(a.kind),
        perm: a.perm as u16,
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

    const TIMES: [(i64, u32); 6] =
        [(0, 0), (1, 999_999_999), (-1, 0), (-1, 1), (-5, 500_000_000), (u32::MAX as i64 * 2, 7)];

    /// What fuser makes of a request's time.
    fn as_fuser_gives_it(t: Time) -> SystemTime {
        match u64::try_from(t.sec) {
            Ok(sec) => UNIX_EPOCH + Duration::new(sec, t.nsec),
            Err(_) => UNIX_EPOCH - Duration::new(t.sec.unsigned_abs(), t.nsec),
        }
    }

    #[test]
    fn times_of_requests() {
        for (sec, nsec) in TIMES {
            let t = Time { sec, nsec };
            assert_eq!(time_of(as_fuser_gives_it(t)), t);
        }
    }

    #[test]
    fn times_of_answers() {
        for (sec, nsec) in TIMES {
            let ns = match system_time(Time { sec, nsec }).duration_since(UNIX_EPOCH) {
                Ok(d) => d.as_nanos() as i128,
                Err(before) => -(before.duration().as_nanos() as i128),
            };
            assert_eq!(ns, i128::from(sec) * 1_000_000_000 + i128::from(nsec));
        }
    }
}
