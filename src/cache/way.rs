//! Going through the directories of a tree that may be very deep, with few of them open.
//!
//! Purpose: from the directory that was opened last to the next one along `..`, so that whoever goes through a tree in its order pays
//! for each directory once, and not for its depth. Invariant: no tree leads out of itself, whatever is moved in it meanwhile:
//! what `..` leads to must be the directory that was passed on the way down, or it begins at the top again.
//! Must not know: what the tree is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use super::at;

/// Directories that are no deeper are opened from the top: that takes no longer.
const SHALLOW: usize = 16;

/// Where in a tree somebody is.
#[derive(Default)]
pub(super) struct Way(Option<Here>);

struct Here {
    fd: Rc<OwnedFd>,
    /// The names that lead here from the top.
    names: Vec<Box<[u8]>>,
    /// Device and inode number of the top and of what each name led to.
    passed: Vec<(u64, u64)>,
}

impl Way {
    /// Opens the directory to which `names` lead from `top`, which must be the same each time, to pass through it.
    pub fn open(&mut self, top: BorrowedFd<'_>, names: &[&[u8]]) -> io::Result<Rc<OwnedFd>> {
        self.open_by(top, names, &mut |dir, name| at::pass(dir, name))
    }

    /// The same, with another way to open a name of a directory.
    pub fn open_by(
        &mut self,
        top: BorrowedFd<'_>,
        names: &[&[u8]],
        open: &mut dyn FnMut(BorrowedFd<'_>, &[u8]) -> io::Result<OwnedFd>,
    ) -> io::Result<Rc<OwnedFd>> {
        if names.len() <= SHALLOW {
            let mut fd = top.try_clone_to_owned()?;
            for name in names {
                fd = open(fd.as_fd(), name)?;
            }
            return Ok(Rc::new(fd));
        }
        let near = self.0.take().and_then(|here| here.towards(names));
        let mut here = match near {
            Some(here) => here,
            None => {
                let fd = top.try_clone_to_owned()?;
                Here { passed: vec![identity(&fd)?], names: Vec::new(), fd: Rc::new(fd) }
            }
        };
        for name in &names[here.names.len()..] {
            let fd = open(here.fd.as_fd(), name)?;
            here.passed.push(identity(&fd)?);
            here.names.push((*name).into());
            here.fd = Rc::new(fd);
        }
        let fd = here.fd.clone();
        self.0 = Some(here);
        Ok(fd)
    }
}

impl Here {
    /// Up to where the ways part; `None` when that is not nearer than the top, or was moved.
    fn towards(mut self, names: &[&[u8]]) -> Option<Here> {
        let common = self.names.iter().zip(names).take_while(|(a, b)| ***a == ***b).count();
        let up = self.names.len() - common;
        if up >= common {
            return None;
        }
        for _ in 0..up {
            self.fd = Rc::new(at::pass(self.fd.as_fd(), b"..").ok()?);
        }
        self.names.truncate(common);
        self.passed.truncate(common + 1);
        (up == 0 || identity(&self.fd).ok()? == self.passed[common]).then_some(self)
    }
}

fn identity(fd: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = at::stat_of(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory, and the names of a chain below it.
    fn chain(dir: &std::path::Path, depth: usize) -> (OwnedFd, Vec<&'static [u8]>) {
        let names = vec![&b"d"[..]; depth];
        let top: OwnedFd = std::fs::File::open(dir).unwrap().into();
        let mut fd = top.try_clone().unwrap();
        for name in &names {
            at::mkdir(fd.as_fd(), name, 0o755).unwrap();
            fd = at::pass(fd.as_fd(), name).unwrap();
        }
        (top, names)
    }

    #[test]
    fn each_directory_is_opened_once() {
        let dir = tempfile::tempdir().unwrap();
        let (top, names) = chain(dir.path(), 2000);
        let (mut way, mut opened) = (Way::default(), 0);
        let mut count = |way: &mut Way, depth: usize| {
            way.open_by(top.as_fd(), &names[..depth], &mut |dir, name| {
                opened += 1;
                at::pass(dir, name)
            })
            .unwrap();
        };
        (SHALLOW + 1..=2000).for_each(|depth| count(&mut way, depth));
        (SHALLOW + 1..=2000).rev().for_each(|depth| count(&mut way, depth));
        count(&mut way, 2000);
        assert!(opened < 4100, "{opened}");
    }

    #[test]
    fn what_is_moved_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        let (top, names) = chain(&inside, 100);
        let mut way = Way::default();
        let there = identity(&way.open(top.as_fd(), &names[..60]).unwrap()).unwrap();
        way.open(top.as_fd(), &names[..70]).unwrap();
        // Where it stands now, `..` leads out of the tree after a few steps.
        let path = |depth: usize| inside.join(vec!["d"; depth].join("/"));
        std::fs::rename(path(65), dir.path().join("moved")).unwrap();
        assert_eq!(identity(&way.open(top.as_fd(), &names[..60]).unwrap()).unwrap(), there);
        way.open(top.as_fd(), &names[..62]).unwrap();
        assert_eq!(way.open(top.as_fd(), &names[..66]).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
