//! What the nodes of a draft are in the entry that it became.
//!
//! Nobody changes the draft meanwhile, so each directory on the way to a node is looked at once, however many are below it and
//! however deep it lies.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::draft_node::{Climb, DraftNode};
use super::reach::{Reach, identity};
use super::sys;
use super::types::{Ino, Kind};
use crate::model::Manifest;

/// Finds the records of nodes.
pub(super) struct Settling<'a> {
    manifest: Option<&'a Manifest>,
    /// What another view may have moved is looked at: the newest known names must lead to it.
    look: Option<&'a Reach>,
    dirs: HashMap<Ino, Option<u32>>,
}

impl<'a> Settling<'a> {
    /// Without a manifest no node has a record.
    pub fn new(manifest: Option<&'a Manifest>, look: Option<&'a Reach>) -> Self {
        Settling { manifest, look, dirs: HashMap::new() }
    }

    /// The record that a node is now; `None` without a name in the entry.
    pub fn record(&mut self, node: &Arc<DraftNode>) -> Option<u32> {
        let manifest = self.manifest?;
        // Up to the nearest directory that is known, then down again: depth must not cost stack.
        let (mut way, mut at, mut climb) = (Vec::new(), node.clone(), Climb::from(node));
        let mut found = loop {
            if at.top {
                break Some(0);
            }
            if let Some(known) = self.dirs.get(&at.ino) {
                break *known;
            }
            let Some((parent, name)) = at.place().filter(|(parent, _)| climb.reaches(parent)) else {
                break None;
            };
            way.push((std::mem::replace(&mut at, parent.clone()), parent, name));
        };
        while let Some((child, parent, name)) = way.pop() {
            found = found.and_then(|dir| manifest.lookup(dir, name.as_encoded_bytes()));
            found = found.filter(|_| self.stands(&parent, &name, &child));
            if child.kind == Kind::Dir {
                self.dirs.insert(child.ino, found);
            }
        }
        found.map(|record| manifest.get(record).map_or(record, |r| r.canonical()))
    }

    fn stands(&self, parent: &Arc<DraftNode>, name: &std::ffi::OsStr, child: &DraftNode) -> bool {
        let Some(reach) = self.look else { return true };
        let stat = |dir: Arc<OwnedFd>| sys::stat_at(&*dir, name).ok();
        reach.dir(parent).ok().and_then(stat).is_some_and(|st| identity(&st) == child.backing)
    }
}
