//! Links: symlinks of `outfs restore --as link`, and the leases that keep what they point to.
//!
//! Invariants: an entry is held as long as its symlink stands as it was made; the record beside
//! the store lets the next owner hold it again. A missing or damaged record is none.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::record;
use crate::cache::{Cache, Entry, LeaseKind, remove_tree};
use crate::control::{Failure, Kind, RawPath};
use crate::model::EntryKey;

const LINKS: &str = "links.json";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Link {
    key: EntryKey,
    at: RawPath,
    target: RawPath,
}

impl Link {
    fn stands(&self) -> bool {
        std::fs::read_link(&self.at.0).is_ok_and(|target| target == self.target.0)
    }
}

/// Puts a symlink where something stands, in one step where that is no directory.
fn replace_with_link(target: &Path, dest: &Path) -> io::Result<()> {
    let name = dest.file_name().unwrap_or_default();
    let aside = dest.with_file_name(format!(".outfs-{}-{}", std::process::id(), name.to_string_lossy()));
    symlink(target, &aside)?;
    let replaced = match dest.symlink_metadata() {
        Ok(meta) if meta.is_dir() => exchange(&aside, dest).and_then(|()| remove_tree(&aside)),
        _ => std::fs::rename(&aside, dest),
    };
    if replaced.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    replaced
}

fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    Ok(renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE)?)
}

/// The links of a store, held.
#[derive(Default)]
pub struct Links {
    held: Mutex<Vec<(Link, Option<Entry>)>>,
}

impl Links {
    /// Holds what the recorded links point to.
    pub fn hold(cache: &Cache) -> Links {
        let recorded: Vec<Link> = record::read(cache.store().root(), LINKS).unwrap_or_default();
        let standing = recorded.into_iter().filter(Link::stands);
        let held = standing.map(|link| {
            // One that is gone or damaged cannot be held; its link dangles.
            let entry = cache.entry(&link.key, LeaseKind::Hold).ok().flatten();
            (link, entry)
        });
        Links { held: Mutex::new(held.collect()) }
    }

    /// Makes a symlink at `dest` to `target` inside a view, and holds the entry.
    pub(super) fn make(
        &self,
        cache: &Cache,
        entry: Entry,
        dest: &Path,
        target: PathBuf,
        replace: bool,
    ) -> Result<(), Failure> {
        let link = Link { key: entry.key().clone(), at: dest.into(), target: target.clone().into() };
        match symlink(&target, dest) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && link.stands() => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && replace => {
                replace_with_link(&target, dest)
                    .map_err(|e| Failure::failed(format!("cannot replace {}: {e}", dest.display())))?;
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let message = format!("{} exists; a link needs a free name", dest.display());
                return Err(Failure::new(Kind::Exists, message));
            }
            Err(e) => return Err(Failure::failed(format!("cannot make the link {}: {e}", dest.display()))),
            Ok(()) => {}
        }
        let mut held = self.held.lock();
        held.retain(|(l, _)| l.at != link.at);
        held.push((link, Some(entry)));
        Self::write(cache, &held);
        Ok(())
    }

    /// Lets go of what no link points to any more.
    pub(super) fn tick(&self, cache: &Cache) {
        let mut held = self.held.lock();
        let before = held.len();
        held.retain(|(link, _)| link.stands());
        if held.len() != before {
            Self::write(cache, &held);
        }
    }

    /// Lets go of everything (the record stays).
    pub(super) fn let_go(&self) {
        self.held.lock().clear();
    }

    fn write(cache: &Cache, held: &[(Link, Option<Entry>)]) {
        let links: Vec<&Link> = held.iter().map(|(link, _)| link).collect();
        record::write(cache.store().root(), LINKS, &links);
    }
}
