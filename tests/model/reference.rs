//! The reference: what every operation does, in memory and as simply as can be.
//!
//! Where several errors apply at once (a name that is missing in an entry that may not change),
//! each of them is right: an expectation lists all.

use std::collections::{BTreeMap, BTreeSet};

use super::ops::*;

/// What is expected of an operation.
#[derive(Debug)]
pub enum Expect {
    /// It succeeds and shows this.
    Ok(Seen),
    /// It fails with one of these.
    Err(Vec<i32>),
    /// Nothing is promised: do not try it.
    Skip,
}

#[derive(Clone, Debug)]
enum Kind {
    Dir(BTreeMap<String, usize>),
    File(Vec<u8>),
    Symlink,
}

#[derive(Clone, Debug)]
struct Inode {
    kind: Kind,
    mode: u32,
    mtime: Option<(i64, u32)>,
    xattr: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
struct Entry {
    root: usize,
    sealed: bool,
}

/// The model of a cache's name space.
#[derive(Default, Debug)]
pub struct Model {
    inodes: Vec<Inode>,
    tops: BTreeMap<Top, Entry>,
}

type Res<T> = Result<T, i32>;

/// Permission bits as an entry shows them: set-id and write bits masked.
fn masked(mode: u32) -> u32 {
    mode & 0o555
}

impl Model {
    /// Does it to the model and says what is expected of a target.
    pub fn run(&mut self, op: &Op) -> Expect {
        match op {
            Op::Restart => Expect::Ok(Seen::Done),
            Op::MakeTop(t) => self.make_top(*t),
            Op::RemoveTop(t) => self.remove_top(*t),
            Op::Publish(w, k) => self.publish(*w, *k),
            Op::Seal(k) => self.seal(*k),
            Op::Evict(k) => self.evict(*k),
            Op::GetXattr(_) | Op::ReadDir(_) | Op::Read(_) | Op::Stat(_) | Op::ReadLink(_) => {
                match self.look(op) {
                    Ok(seen) => Expect::Ok(seen),
                    Err(e) => Expect::Err(vec![e]),
                }
            }
            _ => self.change(op),
        }
    }

    /// Every place there is, for a final comparison.
    pub fn everything(&self) -> Vec<At> {
        let mut all = Vec::new();
        for (top, entry) in &self.tops {
            let mut todo = vec![(Vec::new(), entry.root)];
            while let Some((names, ino)) = todo.pop() {
                all.push(At { top: *top, names: names.clone() });
                if let Kind::Dir(d) = &self.inodes[ino].kind {
                    for (name, child) in d {
                        let mut below = names.clone();
                        below.push(NAMES.iter().find(|n| *n == name).expect("only known names are made"));
                        todo.push((below, *child));
                    }
                }
            }
        }
        all
    }

    fn new_inode(&mut self, kind: Kind, mode: u32) -> usize {
        self.inodes.push(Inode { kind, mode, mtime: None, xattr: None });
        self.inodes.len() - 1
    }

    fn make_top(&mut self, top: Top) -> Expect {
        if self.tops.contains_key(&top) {
            return Expect::Err(vec![libc::EEXIST]);
        }
        let root = self.new_inode(Kind::Dir(BTreeMap::new()), 0o755);
        self.tops.insert(top, Entry { root, sealed: false });
        Expect::Ok(Seen::Done)
    }

    fn remove_top(&mut self, top: Top) -> Expect {
        let Some(entry) = self.tops.get(&top) else { return Expect::Err(vec![libc::ENOENT]) };
        let empty = matches!(&self.inodes[entry.root].kind, Kind::Dir(d) if d.is_empty());
        match (entry.sealed, empty) {
            (true, _) => Expect::Err(vec![libc::EROFS, libc::ENOTEMPTY]),
            (false, false) => Expect::Err(vec![libc::ENOTEMPTY]),
            (false, true) => {
                self.tops.remove(&top);
                Expect::Ok(Seen::Done)
            }
        }
    }

    fn publish(&mut self, w: u8, k: u8) -> Expect {
        let Some(draft) = self.tops.get(&Top::Work(w)).cloned() else {
            return Expect::Err(vec![libc::ENOENT]);
        };
        if self.tops.contains_key(&Top::Key(k)) {
            return Expect::Err(vec![libc::EEXIST]);
        }
        self.tops.remove(&Top::Work(w));
        self.tops.insert(Top::Key(k), Entry { root: draft.root, sealed: true });
        Expect::Ok(Seen::Done)
    }

    fn seal(&mut self, k: u8) -> Expect {
        match self.tops.get_mut(&Top::Key(k)) {
            Some(e) if !e.sealed => {
                e.sealed = true;
                Expect::Ok(Seen::Done)
            }
            _ => Expect::Skip,
        }
    }

    fn evict(&mut self, k: u8) -> Expect {
        match self.tops.get(&Top::Key(k)) {
            None => Expect::Err(vec![libc::ENOENT]),
            Some(e) if e.sealed => {
                self.tops.remove(&Top::Key(k));
                Expect::Ok(Seen::Done)
            }
            Some(_) => Expect::Skip,
        }
    }

    /// A change inside a top: done on a copy first, so that a sealed entry stays as it is.
    fn change(&mut self, op: &Op) -> Expect {
        let top = match op {
            Op::Rename(t, ..) | Op::Link(t, ..) => *t,
            Op::Write(a, _)
            | Op::WriteAt(a, ..)
            | Op::Append(a, _)
            | Op::Truncate(a, _)
            | Op::Symlink(a)
            | Op::Unlink(a)
            | Op::Mkdir(a)
            | Op::Rmdir(a)
            | Op::Chmod(a, _)
            | Op::SetTime(a, ..)
            | Op::SetXattr(a, _)
            | Op::RemoveXattr(a) => a.top,
            _ => unreachable!("no change: {op:?}"),
        };
        if !self.tops.get(&top).is_some_and(|e| e.sealed) {
            return match self.apply(op) {
                Ok(()) => Expect::Ok(Seen::Done),
                Err(e) => Expect::Err(vec![e]),
            };
        }
        if self.changes_nothing(op) {
            return Expect::Ok(Seen::Done);
        }
        let before = self.inodes.clone();
        let posix = self.apply(op);
        self.inodes = before;
        match (posix, op) {
            (Err(e), _) => Expect::Err(vec![e, libc::EROFS]),
            // Renaming one name of a file onto another one changes nothing, but need not be noticed.
            (Ok(()), Op::Rename(..)) if self.changes_nothing_by_rename(op) => Expect::Skip,
            // So it is with an xattr that has this value already.
            (Ok(()), Op::SetXattr(a, v)) if self.xattr(a).is_ok_and(|x| x == Some(vec![*v; 3])) => {
                Expect::Skip
            }
            (Ok(()), _) => Expect::Err(vec![libc::EROFS]),
        }
    }

    /// An attribute change of a sealed entry that changes nothing succeeds.
    fn changes_nothing(&self, op: &Op) -> bool {
        let node = |a: &At| self.follow(a).ok().map(|i| &self.inodes[i]);
        match op {
            // The mode that is shown, or the one that the manifest keeps.
            Op::Chmod(a, mode) => node(a).is_some_and(|n| masked(n.mode) == *mode || n.mode == *mode),
            Op::SetTime(a, s, n) => node(a).is_some_and(|i| i.mtime == Some((*s, *n))),
            Op::Truncate(a, len) => {
                node(a).is_some_and(|n| matches!(&n.kind, Kind::File(b) if b.len() as u64 == *len))
            }
            _ => false,
        }
    }

    fn changes_nothing_by_rename(&self, op: &Op) -> bool {
        let Op::Rename(t, a, b, _) = op else { return false };
        let find = |names: &Vec<&'static str>| self.find(&At { top: *t, names: names.clone() });
        matches!((find(a), find(b)), (Ok(x), Ok(y)) if x == y)
    }

    fn apply(&mut self, op: &Op) -> Res<()> {
        match op {
            Op::Write(a, c) => {
                let ino = match self.find(a) {
                    Err(libc::ENOENT) => self.add(a, Kind::File(Vec::new()), 0o644)?,
                    other => other?,
                };
                self.edit(ino, |b| *b = c.bytes())
            }
            Op::WriteAt(a, offset, c) => {
                let ino = self.follow(a)?;
                self.edit(ino, |b| {
                    let (start, bytes) = (*offset as usize, c.bytes());
                    if !bytes.is_empty() && b.len() < start + bytes.len() {
                        b.resize(start + bytes.len(), 0);
                    }
                    if !bytes.is_empty() {
                        b[start..start + bytes.len()].copy_from_slice(&bytes);
                    }
                })
            }
            Op::Append(a, c) => {
                let ino = self.follow(a)?;
                self.edit(ino, |b| b.extend(c.bytes()))
            }
            Op::Truncate(a, len) => {
                let ino = self.follow(a)?;
                self.edit(ino, |b| b.resize(*len as usize, 0))
            }
            Op::Rename(t, from, to, how) => self.rename(*t, from, to, *how),
            Op::Link(t, from, to) => self.link(*t, from, to),
            Op::Symlink(a) => self.add(a, Kind::Symlink, 0o777).map(|_| ()),
            Op::Mkdir(a) => self.add(a, Kind::Dir(BTreeMap::new()), 0o755).map(|_| ()),
            Op::Unlink(a) => {
                let ino = self.find(a)?;
                if matches!(self.inodes[ino].kind, Kind::Dir(_)) {
                    return Err(libc::EISDIR);
                }
                self.remove(a)
            }
            Op::Rmdir(a) => {
                let ino = self.find(a)?;
                match &self.inodes[ino].kind {
                    Kind::Dir(d) if d.is_empty() => self.remove(a),
                    Kind::Dir(_) => Err(libc::ENOTEMPTY),
                    _ => Err(libc::ENOTDIR),
                }
            }
            Op::Chmod(a, mode) => {
                let ino = self.follow(a)?;
                self.inodes[ino].mode = *mode;
                Ok(())
            }
            Op::SetTime(a, s, n) => {
                let ino = self.follow(a)?;
                self.inodes[ino].mtime = Some((*s, *n));
                Ok(())
            }
            Op::SetXattr(a, v) => {
                let ino = self.follow(a)?;
                self.inodes[ino].xattr = Some(vec![*v; 3]);
                Ok(())
            }
            Op::RemoveXattr(a) => {
                let ino = self.follow(a)?;
                self.inodes[ino].xattr.take().map(|_| ()).ok_or(libc::ENODATA)
            }
            _ => unreachable!("no change: {op:?}"),
        }
    }

    fn edit(&mut self, ino: usize, how: impl FnOnce(&mut Vec<u8>)) -> Res<()> {
        let node = &mut self.inodes[ino];
        match &mut node.kind {
            Kind::Dir(_) => Err(libc::EISDIR),
            Kind::Symlink => Err(libc::ENOENT),
            Kind::File(b) => {
                how(b);
                node.mtime = None;
                Ok(())
            }
        }
    }

    /// The directory that holds the last name, and that name.
    fn parent(&self, a: &At) -> Res<(usize, &'static str)> {
        let (last, before) = a.names.split_last().expect("a place below a top");
        let dir = self.follow(&At { top: a.top, names: before.to_vec() })?;
        match &self.inodes[dir].kind {
            Kind::Dir(_) => Ok((dir, last)),
            _ => Err(libc::ENOTDIR),
        }
    }

    fn dir(&self, ino: usize) -> &BTreeMap<String, usize> {
        match &self.inodes[ino].kind {
            Kind::Dir(d) => d,
            _ => panic!("checked to be a directory"),
        }
    }

    fn dir_mut(&mut self, ino: usize) -> &mut BTreeMap<String, usize> {
        self.inodes[ino].mtime = None;
        match &mut self.inodes[ino].kind {
            Kind::Dir(d) => d,
            _ => panic!("checked to be a directory"),
        }
    }

    /// Without following a symlink at the end.
    fn find(&self, a: &At) -> Res<usize> {
        if a.names.is_empty() {
            return self.tops.get(&a.top).map(|e| e.root).ok_or(libc::ENOENT);
        }
        let (dir, name) = self.parent(a)?;
        self.dir(dir).get(name).copied().ok_or(libc::ENOENT)
    }

    /// Every symlink leads to nowhere.
    fn follow(&self, a: &At) -> Res<usize> {
        let ino = self.find(a)?;
        if matches!(self.inodes[ino].kind, Kind::Symlink) { Err(libc::ENOENT) } else { Ok(ino) }
    }

    fn add(&mut self, a: &At, kind: Kind, mode: u32) -> Res<usize> {
        let (dir, name) = self.parent(a)?;
        if self.dir(dir).contains_key(name) {
            return Err(libc::EEXIST);
        }
        let ino = self.new_inode(kind, mode);
        self.dir_mut(dir).insert(name.to_owned(), ino);
        Ok(ino)
    }

    fn remove(&mut self, a: &At) -> Res<()> {
        let (dir, name) = self.parent(a)?;
        self.dir_mut(dir).remove(name);
        Ok(())
    }

    fn link(&mut self, top: Top, from: &[&'static str], to: &[&'static str]) -> Res<()> {
        let ino = self.find(&At { top, names: from.to_vec() })?;
        let (dir, name) = self.parent(&At { top, names: to.to_vec() })?;
        if self.dir(dir).contains_key(name) {
            return Err(libc::EEXIST);
        }
        if matches!(self.inodes[ino].kind, Kind::Dir(_)) {
            return Err(libc::EPERM);
        }
        self.dir_mut(dir).insert(name.to_owned(), ino);
        Ok(())
    }

    /// In the order in which Linux checks.
    fn rename(&mut self, top: Top, from: &[&'static str], to: &[&'static str], how: How) -> Res<()> {
        let (old, new) = (At { top, names: from.to_vec() }, At { top, names: to.to_vec() });
        let (old_dir, old_name) = self.parent(&old)?;
        let (new_dir, new_name) = self.parent(&new)?;
        let source = *self.dir(old_dir).get(old_name).ok_or(libc::ENOENT)?;
        let target = self.dir(new_dir).get(new_name).copied();
        match (how, target) {
            (How::NoReplace, Some(_)) => return Err(libc::EEXIST),
            (How::Exchange, None) => return Err(libc::ENOENT),
            _ => {}
        }
        if to.len() > from.len() && to.starts_with(from) {
            return Err(libc::EINVAL);
        }
        if from.len() > to.len() && from.starts_with(to) {
            return Err(if how == How::Exchange { libc::EINVAL } else { libc::ENOTEMPTY });
        }
        if target == Some(source) {
            return Ok(());
        }
        let is_dir = |i: usize| matches!(self.inodes[i].kind, Kind::Dir(_));
        if let (Some(target), true) = (target, how != How::Exchange) {
            match (is_dir(source), is_dir(target)) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !self.dir(target).is_empty() => return Err(libc::ENOTEMPTY),
                _ => {}
            }
        }
        self.dir_mut(old_dir).remove(old_name);
        self.dir_mut(new_dir).insert(new_name.to_owned(), source);
        if let (Some(target), How::Exchange) = (target, how) {
            self.dir_mut(old_dir).insert(old_name.to_owned(), target);
        }
        Ok(())
    }

    fn xattr(&self, a: &At) -> Res<Option<Vec<u8>>> {
        Ok(self.inodes[self.follow(a)?].xattr.clone())
    }

    fn look(&self, op: &Op) -> Res<Seen> {
        match op {
            Op::GetXattr(a) => self.xattr(a)?.map(Seen::Bytes).ok_or(libc::ENODATA),
            Op::ReadDir(a) => match &self.inodes[self.follow(a)?].kind {
                Kind::Dir(d) => Ok(Seen::Names(d.keys().cloned().collect::<BTreeSet<_>>())),
                _ => Err(libc::ENOTDIR),
            },
            Op::Read(a) => match &self.inodes[self.follow(a)?].kind {
                Kind::File(b) => Ok(Seen::Bytes(b.clone())),
                _ => Err(libc::EISDIR),
            },
            Op::ReadLink(a) => match &self.inodes[self.find(a)?].kind {
                Kind::Symlink => Ok(Seen::Bytes(TARGET.as_bytes().to_vec())),
                _ => Err(libc::EINVAL),
            },
            Op::Stat(a) => Ok(Seen::Stat(self.stat(a.top, self.find(a)?))),
            _ => unreachable!("no look: {op:?}"),
        }
    }

    fn stat(&self, top: Top, ino: usize) -> Stat {
        let node = &self.inodes[ino];
        let sealed = self.tops[&top].sealed;
        // An entry's top keeps its owner's write bit: without it nobody could move it to the trash.
        let movable = if ino == self.tops[&top].root { 0o200 } else { 0 };
        let mode = if sealed { masked(node.mode) | movable } else { node.mode };
        let (kind, mode, size) = match &node.kind {
            Kind::Dir(_) => ('d', mode, 0),
            Kind::File(b) => ('f', mode, b.len() as u64),
            Kind::Symlink => ('l', 0, TARGET.len() as u64),
        };
        let nlink = match kind {
            'd' => 0,
            _ => self.links(self.tops[&top].root, ino),
        };
        Stat { kind, mode, size, nlink, mtime: if kind == 'f' { node.mtime } else { None } }
    }

    fn links(&self, dir: usize, ino: usize) -> u64 {
        let Kind::Dir(d) = &self.inodes[dir].kind else { return 0 };
        d.values().map(|i| u64::from(*i == ino) + self.links(*i, ino)).sum()
    }
}
