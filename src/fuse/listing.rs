//! Listings: a view's names into the kernel's buffer, with or without attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use fuser::{Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::adapter::Adapter;
use super::convert::{file_attr, file_type};
use super::errno::errno;
use crate::vfs::{Attr, Caller, Result, VfsError};

/// The positions of `.` and `..`; a directory's own items follow.
const DOTS: u64 = 2;

impl Adapter {
    /// Fills a listing from `offset` on, until it is full or at its end.
    pub(super) fn list(&self, ino: INodeNo, offset: u64, reply: &mut ReplyDirectory) -> Result<()> {
        for (at, name) in [(1, "."), (2, "..")] {
            if offset < at && reply.add(ino, at, fuser::FileType::Directory, name) {
                return Ok(());
            }
        }
        let start = offset.saturating_sub(DOTS);
        let mut from = start;
        loop {
            let items = self.view.readdir(ino.0, from)?;
            let Some(last) = items.last() else {
                // An answer without a name: the kernel takes the listing for whole.
                if offset >= DOTS && from == start {
                    self.view.end_of_listing(ino.0);
                }
                return Ok(());
            };
            from = last.next;
            for i in &items {
                // A listing must not say 0: that means 'deleted' to old readers.
                let number = INodeNo(if i.ino == 0 { u64::MAX >> 1 } else { i.ino });
                let name = OsStr::from_bytes(&i.name);
                if reply.add(number, i.next + DOTS, file_type(i.kind), name) {
                    return Ok(());
                }
            }
        }
    }

    /// As `list`, looking every name up: what the kernel gets is counted.
    pub(super) fn list_with_attributes(
        &self,
        who: Caller,
        ino: INodeNo,
        offset: u64,
        reply: &mut ReplyDirectoryPlus,
    ) -> Result<()> {
        let own = self.view.getattr(ino.0)?;
        for (at, name) in [(1, "."), (2, "..")] {
            if offset < at && reply.add(ino, at, name, &Duration::ZERO, &file_attr(&own.attr), Generation(0))
            {
                return Ok(());
            }
        }
        let mut from = offset.saturating_sub(DOTS);
        let (mut counted, mut added) = (false, false);
        loop {
            let items = match self.view.readdir(ino.0, from) {
                // The kernel must hear of what was counted for it; its next call fails.
                Err(_) if counted => return Ok(()),
                items => items?,
            };
            let Some(last) = items.last() else {
                // Also when all that was left went between.
                if offset >= DOTS && !added {
                    self.view.end_of_listing(ino.0);
                }
                return Ok(());
            };
            from = last.next;
            for i in &items {
                let found = match self.view.look_up_item(who, ino.0, i) {
                    Ok(f) => f,
                    // Removed between: not there.
                    Err(VfsError::NotFound | VfsError::Draft(nix::errno::Errno::ENOENT)) => continue,
                    // One that cannot be looked at hides no others: number 0 says that nothing is known of it.
                    Err(e) => {
                        let code = errno(&e).code();
                        tracing::debug!(name = %i.name.escape_ascii(), code, "listed without attributes");
                        let attr = file_attr(&Attr { ino: 0, kind: i.kind, ..own.attr });
                        let name = OsStr::from_bytes(&i.name);
                        let next = i.next + DOTS;
                        if reply.add(INodeNo(0), next, name, &Duration::ZERO, &attr, Generation(0)) {
                            return Ok(());
                        }
                        added = true;
                        continue;
                    }
                };
                (counted, added) = (true, true);
                let name = OsStr::from_bytes(&i.name);
                let ttl = found.attr_ttl.min(found.name_ttl);
                if reply.add(
                    INodeNo(found.attr.ino),
                    i.next + DOTS,
                    name,
                    &ttl,
                    &file_attr(&found.attr),
                    Generation(found.generation),
                ) {
                    // It did not fit, so the kernel will not know it.
                    self.view.forget(found.attr.ino, 1);
                    return Ok(());
                }
            }
        }
    }
}
