//! Listings: a view's names for the kernel, with or without attributes.

use std::time::Duration;

use super::adapter::Adapter;
use super::errno::errno;
use super::reply::Listing;
use crate::vfs::{Attr, Caller, DirItem, Found, Kind, Result, VfsError};

/// The positions of `.` and `..`; a directory's own items follow.
const DOTS: u64 = 2;

impl Adapter {
    /// A listing from `offset` on, of at most `room` bytes.
    pub(super) fn list(&self, ino: u64, offset: u64, room: usize) -> Result<Listing> {
        let mut listing = Listing::new(room);
        for (at, name) in [(1, "."), (2, "..")] {
            if offset < at && !listing.add(ino, at, Kind::Dir, name.as_bytes()) {
                return Ok(listing);
            }
        }
        let start = offset.saturating_sub(DOTS);
        let mut from = start;
        loop {
            let items = self.view.readdir(ino, from)?;
            let Some(last) = items.last() else {
                // An answer without a name: the kernel takes the listing for whole.
                if offset >= DOTS && from == start {
                    self.view.end_of_listing(ino);
                }
                return Ok(listing);
            };
            from = last.next;
            for i in &items {
                if !listing.add(number(i), i.next + DOTS, i.kind, &i.name) {
                    return Ok(listing);
                }
            }
        }
    }

    /// As `list`, looking every name up: what the kernel gets is counted.
    pub(super) fn list_with_attributes(
        &self,
        who: Caller,
        ino: u64,
        offset: u64,
        room: usize,
    ) -> Result<Listing> {
        let mut listing = Listing::new(room);
        let own = self.view.getattr(ino)?;
        for (at, name) in [(1, "."), (2, "..")] {
            if offset < at && !listing.add_with_attributes(at, name.as_bytes(), &for_now(own.attr)) {
                return Ok(listing);
            }
        }
        let mut from = offset.saturating_sub(DOTS);
        let (mut counted, mut added) = (false, false);
        loop {
            let items = match self.view.readdir(ino, from) {
                // The kernel must hear of what was counted for it; its next call fails.
                Err(_) if counted => return Ok(listing),
                items => items?,
            };
            let Some(last) = items.last() else {
                // Also when all that was left went between.
                if offset >= DOTS && !added {
                    self.view.end_of_listing(ino);
                }
                return Ok(listing);
            };
            from = last.next;
            for i in &items {
                let found = match self.view.look_up_item(who, ino, i) {
                    Ok(f) => f,
                    // Removed between: not there.
                    Err(VfsError::NotFound | VfsError::Draft(nix::errno::Errno::ENOENT)) => continue,
                    // One that cannot be looked at is listed all the same, and hides no others.
                    Err(e) => {
                        let code = errno(&e) as i32;
                        tracing::debug!(name = %i.name.escape_ascii(), code, "listed without attributes");
                        if !listing.add_bare(number(i), i.next + DOTS, i.kind, &i.name) {
                            return Ok(listing);
                        }
                        added = true;
                        continue;
                    }
                };
                (counted, added) = (true, true);
                let ttl = found.attr_ttl.min(found.name_ttl);
                let found = Found { attr_ttl: ttl, name_ttl: ttl, ..found };
                if !listing.add_with_attributes(i.next + DOTS, &i.name, &found) {
                    // It did not fit, so the kernel will not know it.
                    self.view.forget(found.attr.ino, 1);
                    return Ok(listing);
                }
            }
        }
    }
}

/// A listing must not say 0: to many readers that means that the name is gone.
fn number(item: &DirItem) -> u64 {
    if item.ino == 0 { u64::MAX >> 1 } else { item.ino }
}

/// Attributes to be used for this listing only, of what is not looked up by it.
fn for_now(attr: Attr) -> Found {
    Found { attr, name_ttl: Duration::ZERO, attr_ttl: Duration::ZERO, generation: 0 }
}
