//! Reaching a draft's inodes: from a node to a descriptor, without following symlinks.
//!
//! Invariant: what `pin` returns is the inode the node stands for (device and inode number are
//! compared), whatever was renamed meanwhile. Directories' descriptors are kept in a small LRU,
//! so depth costs nothing and no path is ever longer than one component.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use lru::LruCache;
use nix::errno::Errno;
use parking_lot::Mutex;

use super::counted::Counted;
use super::draft_node::{Climb, DraftNode, Open};
use super::error::{Result, VfsError};
use super::sys;
use super::types::{Ino, Kind};

/// Directory descriptors kept open.
const KEPT: NonZeroUsize = NonZeroUsize::new(256).expect("256 is not zero");

/// Descriptors of directories that were used lately.
pub struct Reach {
    dirs: Mutex<LruCache<Ino, Arc<OwnedFd>>>,
}

impl Default for Reach {
    fn default() -> Self {
        Self { dirs: Mutex::new(LruCache::new(KEPT)) }
    }
}

/// Device and inode number.
pub fn identity(st: &libc::stat) -> (u64, u64) {
    (st.st_dev, st.st_ino)
}

fn open_child(dir: &OwnedFd, name: &OsStr, node: &DraftNode) -> Result<(Arc<OwnedFd>, libc::stat)> {
    let fd = sys::open_handle(dir, name)?;
    let st = sys::stat(&fd)?;
    // A number that was given to something else is not this node.
    if identity(&st) != node.backing || Kind::of_mode(st.st_mode) != node.kind {
        return Err(VfsError::Draft(Errno::ENOENT));
    }
    Ok((Arc::new(fd), st))
}

impl Reach {
    /// An O_PATH (or open) descriptor of the node's inode, and its attributes.
    pub fn pin(&self, node: &Arc<DraftNode>) -> Result<(Arc<OwnedFd>, libc::stat)> {
        for _ in 0..8 {
            if let Some(fd) = node.descriptor() {
                let st = sys::stat(&fd)?;
                return Ok((fd, st));
            }
            // A directory at hand is reached even when another view has moved it.
            let at_hand = self.dirs.lock().get(&node.ino).cloned();
            if let Some(fd) = at_hand {
                let st = sys::stat(&fd)?;
                return Ok((fd, st));
            }
            let Some((parent, name)) = node.place() else { break };
            let opened = self.dir(&parent).and_then(|dir| open_child(&dir, &name, node));
            match opened {
                // The name went away between: try the next one known.
                Err(VfsError::Draft(Errno::ENOENT | Errno::ENOTDIR)) => {
                    node.drop_name(parent.ino, &name, None)
                }
                other => return other,
            }
        }
        Err(VfsError::Stale)
    }

    /// What reaches the node's inode without a name. [`VfsError::Scarce`] when no descriptor is to spare for that.
    pub fn keep(&self, node: &Arc<DraftNode>) -> Result<Arc<Open>> {
        if let Some(open) = node.open() {
            return Ok(open);
        }
        let counted = Counted::nameless()?;
        Ok(Open::kept(self.pin(node)?.0, Some(counted)))
    }

    /// An O_PATH descriptor of a directory.
    pub fn dir(&self, node: &Arc<DraftNode>) -> Result<Arc<OwnedFd>> {
        // Up to the nearest directory at hand, then down again: depth must not cost stack.
        let mut chain = Vec::new();
        let (mut at, mut climb) = (node.clone(), Climb::from(node));
        let mut fd = loop {
            if let Some(fd) = at.descriptor() {
                break fd;
            }
            if let Some(fd) = self.dirs.lock().get(&at.ino) {
                break fd.clone();
            }
            let (parent, name) = at.place().ok_or(VfsError::Stale)?;
            if !climb.reaches(&parent) {
                at.drop_name(parent.ino, &name, None);
                return Err(VfsError::Stale);
            }
            chain.push((at, name));
            at = parent;
        };
        while let Some((child, name)) = chain.pop() {
            fd = open_child(&fd, &name, &child)?.0;
            self.dirs.lock().put(child.ino, fd.clone());
        }
        Ok(fd)
    }

    /// Lets go of a directory's descriptor: it was removed, sealed or forgotten.
    pub fn drop_dir(&self, ino: Ino) {
        let old = self.dirs.lock().pop(&ino);
        drop(old);
    }

    /// Lets go of all.
    pub fn clear(&self) {
        self.dirs.lock().clear();
    }
}
