//! Links: symlinks of `outfs restore --as link`, and the leases that keep what they point to.
//!
//! Invariants: an entry is held as long as its symlink stands as it was made, or cannot be looked at; the record beside
//! the store lets the next owner hold it again. A missing or damaged record is none. Nothing but a thread that nobody
//! waits for looks at links: they may be on file systems that hang.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::record;
use crate::cache::{Cache, Entry, LeaseKind, remove_tree};
use crate::control::{Failure, Kind, RawPath};
use crate::model::EntryKey;

const LINKS: &str = "links.json";

/// How long a look at one link may take before it counts as standing.
const PATIENCE: Duration = Duration::from_secs(2);
/// No more links are looked at while so many looks have not come back.
const MOST_HANGING: usize = 8;

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

    fn is_gone(&self) -> bool {
        self.is_gone_by(std::fs::read_link(&self.at.0))
    }

    /// Whether it is certain, by what was read there. An error that may pass says nothing.
    fn is_gone_by(&self, read: io::Result<PathBuf>) -> bool {
        match read {
            Ok(target) => target != self.target.0,
            // The last: something else than a symlink stands there.
            Err(e) => matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::EINVAL)),
        }
    }
}

/// Looks that have not come back, by the numbers of their links.
type Hanging = Arc<Mutex<HashSet<u64>>>;

/// Which links are gone for certain. A thread of its own looks, and is left alone with the first one that does not answer.
fn look(links: Vec<(u64, Link)>, hanging: &Hanging) -> Vec<u64> {
    let (tell, told) = mpsc::channel();
    let numbers: Vec<u64> = links.iter().map(|(number, _)| *number).collect();
    let (mut gone, mut seen, back) = (Vec::new(), 0, hanging.clone());
    let looking = move || {
        for (number, link) in links {
            let heard = tell.send((number, link.is_gone())).is_ok();
            // After the answer: who finds that missing looks for it once more, having noted that it is.
            back.lock().remove(&number);
            if !heard {
                return;
            }
        }
    };
    if numbers.is_empty() || std::thread::Builder::new().name("link".into()).spawn(looking).is_err() {
        return gone;
    }
    loop {
        match told.recv_timeout(PATIENCE) {
            Ok((number, is_gone)) => {
                seen += 1;
                gone.extend(is_gone.then_some(number));
            }
            Err(RecvTimeoutError::Disconnected) => return gone,
            Err(RecvTimeoutError::Timeout) => {
                let Some(number) = numbers.get(seen) else { return gone };
                hanging.lock().insert(*number);
                if told.try_recv().is_ok() {
                    hanging.lock().remove(number);
                }
                return gone;
            }
        }
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

struct Held {
    /// Tells it from one that was made in its place.
    number: u64,
    link: Link,
    /// One that is gone or damaged cannot be held; its link dangles.
    _entry: Option<Entry>,
}

/// The links of a store, held.
pub struct Links {
    /// Beside what the record lies.
    store: PathBuf,
    held: Mutex<(Vec<Held>, u64)>,
    hanging: Hanging,
}

impl Links {
    /// Holds what the recorded links point to.
    pub fn hold(cache: &Cache) -> Links {
        let store = cache.store().root().to_owned();
        let recorded: Vec<Link> = record::read(&store, LINKS).unwrap_or_default();
        let numbered: Vec<(u64, Link)> = (0..).zip(recorded).collect();
        let (next, hanging) = (numbered.len() as u64, Hanging::default());
        let gone = look(numbered.clone(), &hanging);
        let standing = numbered.into_iter().filter(|(number, _)| !gone.contains(number));
        let held = standing.map(|(number, link)| {
            let entry = cache.entry(&link.key, LeaseKind::Hold).ok().flatten();
            Held { number, link, _entry: entry }
        });
        Links { store, held: Mutex::new((held.collect(), next)), hanging }
    }

    /// Makes a symlink at `dest` to `target` inside a view, and holds the entry.
    pub(super) fn make(
        &self,
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
        let (list, next) = &mut *held;
        list.retain(|h| h.link.at != link.at);
        list.push(Held { number: *next, link, _entry: Some(entry) });
        *next += 1;
        self.write(list);
        Ok(())
    }

    /// Lets go of what no link points to any more. It may take long where file systems hang.
    pub(super) fn tick(&self) {
        let numbered: Vec<(u64, Link)> = {
            let (held, hanging) = (self.held.lock(), self.hanging.lock());
            if hanging.len() >= MOST_HANGING {
                return;
            }
            let others = held.0.iter().filter(|h| !hanging.contains(&h.number));
            others.map(|h| (h.number, h.link.clone())).collect()
        };
        let gone = look(numbered, &self.hanging);
        if gone.is_empty() {
            return;
        }
        let mut held = self.held.lock();
        let before = held.0.len();
        held.0.retain(|h| !gone.contains(&h.number));
        if held.0.len() != before {
            self.write(&held.0);
        }
    }

    /// Lets go of everything (the record stays).
    pub(super) fn let_go(&self) {
        self.held.lock().0.clear();
    }

    fn write(&self, held: &[Held]) {
        let links: Vec<&Link> = held.iter().map(|h| &h.link).collect();
        record::write(&self.store, LINKS, &links);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_gone_only_when_that_is_certain() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("link");
        let link = Link { key: "key1".parse().unwrap(), at: at.clone().into(), target: RawPath("/x".into()) };
        assert!(link.is_gone());
        std::fs::write(&at, "").unwrap();
        assert!(link.is_gone());
        std::fs::remove_file(&at).unwrap();
        symlink("/y", &at).unwrap();
        assert!(link.is_gone());
        std::fs::remove_file(&at).unwrap();
        symlink("/x", &at).unwrap();
        assert!(!link.is_gone() && link.stands());
        for passing in [libc::EIO, libc::EACCES, libc::ENOTCONN, libc::ESTALE, libc::EMFILE, libc::ETIMEDOUT]
        {
            assert!(!link.is_gone_by(Err(io::Error::from_raw_os_error(passing))), "{passing}");
        }
    }
}
