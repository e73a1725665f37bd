//! The file-system logic without a kernel as a target: look-ups, names and forgetting by hand.
//!
//! Does what the kernel does around each request: walks component by component, follows no
//! symlink (all of them lead nowhere), looks up again when told that a name is stale, and
//! forgets what it looked up — one operation later, so that numbers live longer than their names.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outfs::cache::{Cache, CacheError, Limits, SealRequest};
use outfs::model::EntryKey;
use outfs::model::manifest::Origin;
use outfs::vfs::{Attr, Caller, Ino, Kind, SetAttr, SetTime, Time, VfsError, View, ViewOptions, ino};

use super::ops::*;

type Res<T> = Result<T, i32>;

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 4711 };

/// A view that no kernel knows.
pub struct Direct {
    served: Option<(Arc<View>, Cache)>,
    seen: Vec<Ino>,
    seen_before: Vec<Ino>,
    dir: tempfile::TempDir,
}

/// A stale name is looked up again, with everything above it.
const STALE: i32 = libc::ESTALE;

fn errno(e: VfsError) -> i32 {
    match e {
        VfsError::NotFound => libc::ENOENT,
        VfsError::Exists => libc::EEXIST,
        VfsError::NotDir => libc::ENOTDIR,
        VfsError::IsDir => libc::EISDIR,
        VfsError::NotEmpty => libc::ENOTEMPTY,
        VfsError::ReadOnly => libc::EROFS,
        VfsError::Invalid => libc::EINVAL,
        VfsError::CrossDevice => libc::EXDEV,
        VfsError::NotPermitted => libc::EPERM,
        VfsError::NoAttribute => libc::ENODATA,
        VfsError::Unsupported => libc::EOPNOTSUPP,
        VfsError::Committing(_) => panic!("nobody seals meanwhile"),
        VfsError::Crowded => panic!("there is no quota"),
        VfsError::Scarce(_) => panic!("nothing is kept open for long"),
        VfsError::Remote => panic!("there are no tiers"),
        VfsError::Stale => STALE,
        VfsError::BadHandle => libc::EBADF,
        VfsError::Draft(e) => e as i32,
        VfsError::Cache(CacheError::Exists { .. } | CacheError::DraftExists(_)) => libc::EEXIST,
        VfsError::Cache(CacheError::NoEntry { .. } | CacheError::NoDraft(_)) => libc::ENOENT,
        VfsError::Cache(CacheError::Gone(_)) => STALE,
        VfsError::Cache(CacheError::Busy { .. } | CacheError::Pinned { .. }) => libc::EBUSY,
        VfsError::Cache(e) => panic!("a failure that no operation here can cause: {e}"),
    }
}

/// Whoever still has the store open would write its index anew while it is deleted.
impl Drop for Direct {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
            self.open().close().expect("a clean close");
        }
    }
}

impl Direct {
    /// A new store.
    pub fn new() -> Direct {
        // Syncing is most of the time on a disk, and nothing here is about power loss.
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir =
            tempfile::Builder::new().prefix("outfs-test-").tempdir_in(base).expect("a temporary directory");
        let mut d = Direct { served: None, seen: Vec::new(), seen_before: Vec::new(), dir };
        d.start();
        d
    }

    fn open(&self) -> Cache {
        let end = Instant::now() + Duration::from_secs(20);
        // The former owner's last thread may still be on its way out.
        loop {
            match Cache::open(&self.dir.path().join("store"), Limits::default()) {
                Ok(c) => return c,
                Err(e) if Instant::now() > end => panic!("opening the store: {e}"),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn start(&mut self) {
        let cache = self.open();
        // As a daemon does.
        cache.load_keys();
        let view = View::new(cache.clone(), ViewOptions::default()).expect("a view");
        self.served = Some((view, cache));
    }

    fn view(&self) -> &Arc<View> {
        &self.served.as_ref().expect("open").0
    }

    fn look_up(&mut self, parent: Ino, name: &OsStr) -> Res<Attr> {
        let found = self.view().lookup(CALLER, parent, name).map_err(errno)?;
        self.seen.push(found.attr.ino);
        Ok(found.attr)
    }

    /// The directory that holds a top directory, and its name there.
    fn above(&mut self, top: Top) -> Res<(Ino, String)> {
        match top {
            Top::Key(k) => Ok((ino::ROOT, format!("key{k}"))),
            Top::Work(w) => {
                let control = self.look_up(ino::ROOT, ".outfs".as_ref())?.ino;
                Ok((self.look_up(control, "work".as_ref())?.ino, format!("work {w}")))
            }
        }
    }

    /// Without following a symlink at the end.
    fn find(&mut self, at: &At) -> Res<Attr> {
        let (dir, name) = self.above(at.top)?;
        let mut found = self.look_up(dir, name.as_ref())?;
        for name in &at.names {
            match found.kind {
                Kind::Dir => found = self.look_up(found.ino, name.as_ref())?,
                Kind::Symlink => return Err(libc::ENOENT),
                _ => return Err(libc::ENOTDIR),
            }
        }
        Ok(found)
    }

    fn follow(&mut self, at: &At) -> Res<Attr> {
        let found = self.find(at)?;
        if found.kind == Kind::Symlink { Err(libc::ENOENT) } else { Ok(found) }
    }

    fn parent(&mut self, at: &At) -> Res<(Ino, &'static OsStr)> {
        let (&last, before) = at.names.split_last().expect("a place below a top");
        let dir = self.follow(&At { top: at.top, names: before.to_vec() })?;
        if dir.kind == Kind::Dir { Ok((dir.ino, OsStr::new(last))) } else { Err(libc::ENOTDIR) }
    }

    fn write_open(&mut self, at: &At, append: bool, offset: u64, bytes: &[u8]) -> Res<()> {
        let file = self.follow(at)?;
        if file.kind == Kind::Dir {
            return Err(libc::EISDIR);
        }
        let opened = self.view().open(CALLER, file.ino, libc::O_WRONLY).map_err(errno)?;
        let end = self.view().getattr(file.ino).map_err(errno)?.attr.size;
        let done = self.write_all(opened.fh, if append { end } else { offset }, bytes);
        self.view().release(opened.fh);
        done
    }

    fn write_all(&self, fh: u64, offset: u64, bytes: &[u8]) -> Res<()> {
        let mut done = 0;
        for piece in bytes.chunks(128 << 10) {
            let n = self.view().write(fh, offset + done, piece, false).map_err(errno)?;
            assert_eq!(n, piece.len());
            done += n as u64;
        }
        Ok(())
    }

    fn write_anew(&mut self, at: &At, bytes: &[u8]) -> Res<()> {
        let (dir, name) = self.parent(at)?;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        let opened = match self.look_up(dir, name) {
            Ok(a) if a.kind == Kind::Dir => return Err(libc::EISDIR),
            Ok(a) if a.kind == Kind::Symlink => return Err(libc::ENOENT),
            Ok(a) => {
                let opened = self.view().open(CALLER, a.ino, libc::O_WRONLY).map_err(errno)?;
                let set = SetAttr { size: Some(0), ..SetAttr::default() };
                self.view().setattr(a.ino, &set).map_err(errno)?;
                opened
            }
            Err(libc::ENOENT) => {
                let made = self
                    .view()
                    .create(CALLER, dir, name, libc::S_IFREG | 0o644, flags, true)
                    .map_err(errno)?;
                self.seen.push(made.0.attr.ino);
                made.1
            }
            Err(e) => return Err(e),
        };
        let done = self.write_all(opened.fh, 0, bytes);
        self.view().release(opened.fh);
        done
    }

    fn read_all(&mut self, at: &At) -> Res<Vec<u8>> {
        let file = self.follow(at)?;
        if file.kind == Kind::Dir {
            return Err(libc::EISDIR);
        }
        let opened = self.view().open(CALLER, file.ino, libc::O_RDONLY).map_err(errno)?;
        let mut all = vec![0; file.size as usize + 1];
        let n = self.view().read(file.ino, opened.fh, 0, &mut all).map_err(errno)?;
        if opened.fh != 0 {
            self.view().release(opened.fh);
        }
        all.truncate(n);
        Ok(all)
    }

    fn list(&mut self, at: &At) -> Res<Seen> {
        let dir = self.follow(at)?;
        if dir.kind != Kind::Dir {
            return Err(libc::ENOTDIR);
        }
        let view = self.view().clone();
        let (mut names, mut offset) = (std::collections::BTreeSet::new(), 0);
        loop {
            let page = view.readdir(dir.ino, offset).map_err(errno)?;
            let Some(last) = page.last() else { break };
            offset = last.next;
            for item in page {
                let name = String::from_utf8_lossy(&item.name).into_owned();
                assert!(names.insert(name), "{:?} comes twice", item.name);
            }
        }
        view.end_of_listing(dir.ino);
        Ok(Seen::Names(names))
    }

    fn set(&mut self, at: &At, set: SetAttr) -> Res<()> {
        let node = self.follow(at)?;
        self.view().setattr(node.ino, &set).map_err(errno).map(|_| ())
    }

    fn made(&mut self, found: Result<outfs::vfs::Found, VfsError>) -> Res<Seen> {
        self.seen.push(found.map_err(errno)?.attr.ino);
        Ok(Seen::Done)
    }

    /// A name in a directory where nothing stands yet.
    fn free(&mut self, at: &At) -> Res<(Ino, &'static OsStr)> {
        let (dir, name) = self.parent(at)?;
        match self.look_up(dir, name) {
            Ok(_) => Err(libc::EEXIST),
            Err(libc::ENOENT) => Ok((dir, name)),
            Err(e) => Err(e),
        }
    }

    fn rename(&mut self, top: Top, from: &[&'static str], to: &[&'static str], how: How) -> Res<()> {
        let (old_dir, old) = self.parent(&At { top, names: from.to_vec() })?;
        let (new_dir, new) = self.parent(&At { top, names: to.to_vec() })?;
        let source = self.look_up(old_dir, old)?;
        let target = match self.look_up(new_dir, new) {
            Ok(a) => Some(a),
            Err(libc::ENOENT) => None,
            Err(e) => return Err(e),
        };
        let flags = match how {
            How::Replace => 0,
            How::NoReplace => libc::RENAME_NOREPLACE,
            How::Exchange => libc::RENAME_EXCHANGE,
        };
        match (how, &target) {
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
        if target.is_some_and(|t| t.ino == source.ino) {
            return Ok(());
        }
        self.view().rename(CALLER, old_dir, old, new_dir, new, flags).map_err(errno)
    }

    fn rename_top(&mut self, from: Top, to_dir: Ino, to: &str) -> Res<()> {
        let (dir, name) = self.above(from)?;
        self.look_up(dir, name.as_ref())?;
        if self.look_up(to_dir, to.as_ref()).is_ok() {
            return Err(libc::EEXIST);
        }
        self.view().rename(CALLER, dir, name.as_ref(), to_dir, to.as_ref(), 0).map_err(errno)
    }

    fn try_run(&mut self, op: &Op) -> Res<Seen> {
        let done = |()| Seen::Done;
        match op {
            Op::MakeTop(t) => {
                let (dir, name) = self.above(*t)?;
                let made = self.view().mkdir(CALLER, dir, name.as_ref(), 0o755);
                self.made(made)
            }
            Op::RemoveTop(t) => {
                let (dir, name) = self.above(*t)?;
                self.view().rmdir(dir, name.as_ref()).map_err(errno).map(done)
            }
            Op::Write(a, c) => self.write_anew(a, &c.bytes()).map(done),
            Op::WriteAt(a, offset, c) => self.write_open(a, false, *offset, &c.bytes()).map(done),
            Op::Append(a, c) => self.write_open(a, true, 0, &c.bytes()).map(done),
            Op::Truncate(a, len) => {
                if self.follow(a)?.kind == Kind::Dir {
                    return Err(libc::EISDIR);
                }
                self.set(a, SetAttr { size: Some(*len), ..SetAttr::default() }).map(done)
            }
            Op::Rename(t, from, to, how) => self.rename(*t, from, to, *how).map(done),
            Op::Link(t, from, to) => {
                let node = self.find(&At { top: *t, names: from.clone() })?;
                let (dir, name) = self.free(&At { top: *t, names: to.clone() })?;
                if node.kind == Kind::Dir {
                    return Err(libc::EPERM);
                }
                let made = self.view().link(node.ino, dir, name);
                self.made(made)
            }
            Op::Symlink(a) => {
                let (dir, name) = self.free(a)?;
                let made = self.view().symlink(CALLER, dir, name, Path::new(TARGET));
                self.made(made)
            }
            Op::Mkdir(a) => {
                let (dir, name) = self.free(a)?;
                let made = self.view().mkdir(CALLER, dir, name, 0o755);
                self.made(made)
            }
            Op::Unlink(a) | Op::Rmdir(a) => self.remove(a, matches!(op, Op::Rmdir(_))).map(done),
            Op::Chmod(a, mode) => self.set(a, SetAttr { mode: Some(*mode), ..SetAttr::default() }).map(done),
            Op::SetTime(a, sec, nsec) => {
                let mtime = Some(SetTime::At(Time { sec: *sec, nsec: *nsec }));
                self.set(a, SetAttr { mtime, ..SetAttr::default() }).map(done)
            }
            Op::SetXattr(a, v) => {
                let ino = self.follow(a)?.ino;
                self.view().set_xattr(ino, XATTR.as_ref(), &[*v; 3], 0).map_err(errno).map(done)
            }
            Op::RemoveXattr(a) => {
                let ino = self.follow(a)?.ino;
                self.view().remove_xattr(ino, XATTR.as_ref()).map_err(errno).map(done)
            }
            Op::GetXattr(a) => {
                let ino = self.follow(a)?.ino;
                self.view().get_xattr(ino, XATTR.as_ref()).map_err(errno).map(Seen::Bytes)
            }
            Op::ReadDir(a) => self.list(a),
            Op::Read(a) => self.read_all(a).map(Seen::Bytes),
            Op::Stat(a) => self.find(a).map(|attr| Seen::Stat(stat(&attr))),
            Op::ReadLink(a) => match self.find(a)? {
                attr if attr.kind == Kind::Symlink => {
                    self.view().readlink(attr.ino).map_err(errno).map(Seen::Bytes)
                }
                _ => Err(libc::EINVAL),
            },
            Op::Publish(w, k) => self.rename_top(Top::Work(*w), ino::ROOT, &format!("key{k}")).map(done),
            Op::Evict(k) => {
                let control = self.look_up(ino::ROOT, ".outfs".as_ref())?.ino;
                let trash = self.look_up(control, "trash".as_ref())?.ino;
                self.rename_top(Top::Key(*k), trash, &format!("key{k}")).map(done)
            }
            Op::Seal(k) => {
                self.seal(&EntryKey::parse(&format!("key{k}")).expect("it fits the grammar"));
                Ok(Seen::Done)
            }
            Op::Restart => {
                self.restart();
                Ok(Seen::Done)
            }
        }
    }

    fn remove(&mut self, at: &At, dir_wanted: bool) -> Res<()> {
        let (dir, name) = self.parent(at)?;
        let kind = self.look_up(dir, name)?.kind;
        match (kind == Kind::Dir, dir_wanted) {
            (true, false) => Err(libc::EISDIR),
            (false, true) => Err(libc::ENOTDIR),
            (_, true) => self.view().rmdir(dir, name).map_err(errno),
            (_, false) => self.view().unlink(dir, name).map_err(errno),
        }
    }

    fn seal(&mut self, key: &EntryKey) {
        let cache = self.served.as_ref().expect("open").1.clone();
        let draft = cache.draft_for(key).expect("the model knows a draft");
        let origin = Origin { how: "seal".into(), uid: 0, host: String::new(), source: String::new() };
        let request = SealRequest { key: key.clone(), origin, inferred: false, replace: false };
        cache.seal(&draft, request).expect("a draft without writers seals");
    }

    fn stop(&mut self) {
        self.seen.clear();
        self.seen_before.clear();
        let (view, cache) = self.served.take().expect("open");
        drop(view);
        cache.close().expect("a clean close");
    }

    fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// The kernel forgets what the operation before this one looked up.
    fn forget(&mut self) {
        let old = std::mem::replace(&mut self.seen_before, std::mem::take(&mut self.seen));
        for ino in old {
            self.view().forget(ino, 1);
        }
    }
}

fn stat(a: &Attr) -> Stat {
    let (kind, mode) = match a.kind {
        Kind::Dir => ('d', a.perm),
        Kind::Symlink => ('l', 0),
        _ => ('f', a.perm),
    };
    let dir = kind == 'd';
    Stat {
        kind,
        mode,
        size: if dir { 0 } else { a.size },
        nlink: if dir { 0 } else { a.nlink.into() },
        mtime: Some((a.mtime.sec, a.mtime.nsec)),
    }
}

impl Target for Direct {
    fn run(&mut self, op: &Op) -> Res<Seen> {
        let mut tries = 0;
        let result = loop {
            match self.try_run(op) {
                // The kernel gives up after the second time.
                Err(STALE) if tries < 2 => tries += 1,
                other => break other,
            }
        };
        self.forget();
        result
    }
}
