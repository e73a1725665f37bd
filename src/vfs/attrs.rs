//! Attributes: reading and changing them, and the quota as `statfs` shows it.

use std::time::Duration;

use super::draft::draft_found;
use super::types::{Attr, FOREVER, Found, Ino, Kind, NAMES, SetAttr, Space, Time};
use super::{Result, Target, VfsError, View, ino};

impl View {
    /// Attributes of one of the tree's own directories or files.
    pub(super) fn own_attr(&self, ino: Ino, kind: Kind, size: u64) -> Attr {
        let changed = Time::from_ns(self.root_changed.load(std::sync::atomic::Ordering::Relaxed));
        // Entries are begun below shards as in the top directory.
        let begins = matches!(ino, ino::ROOT | ino::WORK | ino::TRASH)
            || matches!(ino::meaning(ino), ino::Meaning::Shard(_));
        let writable = begins && !self.read_only();
        // The rest of `.outfs` gives contents by their hash, whatever the modes of files that have them, and names tasks,
        // paths and hosts: that is the owner's.
        let for_all = begins || ino == ino::CONTROL;
        let perm = match kind {
            Kind::Dir if writable => 0o755,
            Kind::Dir if for_all => 0o555,
            Kind::Dir => 0o500,
            Kind::Symlink => 0o777,
            _ => 0o400,
        };
        Attr {
            ino,
            kind,
            perm,
            size,
            blocks: 0,
            nlink: if kind == Kind::Dir { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            atime: changed,
            mtime: changed,
            ctime: changed,
        }
    }

    /// Attributes of an inode, and how long they hold.
    pub fn getattr(&self, ino: Ino) -> Result<Found> {
        let own = |kind, size, ttl| Found {
            attr: self.own_attr(ino, kind, size),
            name_ttl: NAMES,
            attr_ttl: ttl,
            generation: 0,
        };
        if let Some(found) = self.publishing.top(ino) {
            return Ok(found);
        }
        Ok(match self.target(ino)? {
            Target::Fixed(_) | Target::Shard(_) => own(Kind::Dir, 0, NAMES),
            // Nothing tells the kernel when their listing changes, so that it asks for their time before each.
            Target::Task(_) => own(Kind::Dir, 0, Duration::ZERO),
            Target::Made => own(Kind::Dir, 0, Duration::ZERO),
            Target::Link(l) => own(Kind::Symlink, l.len() as u64, FOREVER),
            Target::Snapshot(s) => own(Kind::File, s.len() as u64, FOREVER),
            Target::Blob(b) => {
                let mut found = own(Kind::File, b.held.size, FOREVER);
                found.attr.blocks = b.held.size.div_ceil(512);
                found
            }
            Target::Sealed(r) => self.sealed_found(&r)?,
            Target::Draft(node) => draft_found(&node, &self.reach.pin(&node)?.1),
        })
    }

    /// Changes attributes. Taking the write bits of a draft's top directory may seal it: see
    /// [`seals_by_chmod`](View::seals_by_chmod).
    pub fn setattr(&self, ino: Ino, set: &SetAttr) -> Result<Found> {
        match self.target(ino)? {
            Target::Sealed(r) => self.sealed_setattr(&r, set),
            _ if self.read_only() => Err(VfsError::ReadOnly),
            Target::Draft(node) => {
                if self.is_seal(ino, set)? {
                    self.seal_by_chmod(&node)?;
                    return self.getattr(ino);
                }
                self.draft_setattr(&node, set)
            }
            _ => Err(VfsError::NotPermitted),
        }
    }

    /// A symlink's target.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        match self.target(ino)? {
            Target::Sealed(r) => Ok(r.manifest()?.target(r.record).to_vec()),
            Target::Draft(node) => self.draft_readlink(&node),
            Target::Link(l) => Ok(l.to_vec()),
            _ => Err(VfsError::Invalid),
        }
    }

    /// The quota, as a file system's size.
    pub fn statfs(&self) -> Result<Space> {
        let usage = self.cache.usage()?;
        Ok(Space {
            total_bytes: usage.limit,
            free_bytes: usage.limit.saturating_sub(usage.used),
            files: usage.entries,
        })
    }
}
