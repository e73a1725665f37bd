//! A client of a view: does around each request what a kernel does, and gives up what it was doing at the first error.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use outfs::cache::Cache;
use outfs::vfs::{Attr, Caller, Found, Ino, Kind, SetAttr, SetTime, Time, VfsError, View, ViewOptions, ino};

use super::life::{key, outputs};

pub type Result<T> = std::result::Result<T, VfsError>;

/// What the kernel sends of a write at once.
const PIECE: usize = 128 << 10;
const METADATA: &str = r#"{"task_id":"build","digest":"sha256:abcd","command":["make"],
    "created_at":"2026-01-02T03:04:05Z","duration_ms":12,"exit_code":0}"#;

pub struct Client {
    view: Arc<View>,
    caller: Caller,
    /// What was looked up and is not forgotten yet.
    seen: RefCell<Vec<Ino>>,
}

/// Waits as the room above a view does, and looks a stale name up again as a kernel does.
fn answered<T>(view: &View, mut request: impl FnMut() -> Result<T>) -> Result<T> {
    let mut stale = 0;
    loop {
        match request() {
            Err(VfsError::Stale) if stale < 2 => stale += 1,
            Err(VfsError::Crowded) => view.make_room()?,
            Err(VfsError::Committing(_)) => std::thread::yield_now(),
            done => return done,
        }
    }
}

impl Client {
    pub fn new(cache: &Cache) -> Result<Client> {
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let view = View::new(cache.clone(), ViewOptions::default())?;
        Ok(Client { view, caller: Caller { uid, gid, pid: 4711 }, seen: RefCell::default() })
    }

    /// A request that finds or makes a name.
    fn find(&self, request: impl FnMut() -> Result<Found>) -> Result<Attr> {
        let found = answered(&self.view, request)?;
        self.seen.borrow_mut().push(found.attr.ino);
        Ok(found.attr)
    }

    fn look_up(&self, dir: Ino, name: &str) -> Result<Attr> {
        self.find(|| self.view.lookup(self.caller, dir, OsStr::new(name)))
    }

    fn mkdir(&self, dir: Ino, name: &str) -> Result<Ino> {
        Ok(self.find(|| self.view.mkdir(self.caller, dir, OsStr::new(name), 0o755))?.ino)
    }

    /// Forgets everything, as a kernel does sooner or later.
    fn forget<T>(&self, done: T) -> T {
        self.seen.take().into_iter().for_each(|ino| self.view.forget(ino, 1));
        done
    }

    /// Makes a file with this content, as a temporary one that gets its name when it is whole.
    fn write_file(&self, dir: Ino, name: &str, content: &[u8]) -> Result<Ino> {
        let (flags, new) = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, OsStr::new("new"));
        let (found, opened) = answered(&self.view, || {
            self.view.create(self.caller, dir, new, libc::S_IFREG | 0o644, flags, true)
        })?;
        self.seen.borrow_mut().push(found.attr.ino);
        let written = self.fill(found.attr.ino, opened.fh, content);
        self.view.release(opened.fh);
        written?;
        answered(&self.view, || self.view.rename(self.caller, dir, new, dir, OsStr::new(name), 0))?;
        Ok(found.attr.ino)
    }

    /// Writes what a file is to have, and reads it back.
    fn fill(&self, file: Ino, fh: u64, content: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < content.len() {
            let piece = &content[done..content.len().min(done + PIECE)];
            done += self.view.write(fh, done as u64, piece, true)?;
        }
        if content.len() > PIECE {
            self.view.fsync(file, fh, true)?;
            assert_eq!(self.view.seek(file, fh, 0, libc::SEEK_DATA)?, 0);
        }
        let mut read = vec![0; content.len() + 1];
        let n = self.view.read(file, fh, 0, &mut read)?;
        assert!(read[..n] == *content, "other bytes than were written");
        Ok(())
    }

    /// Everything else that can be done to a file of a draft.
    fn play(&self, dir: Ino, whole: Ino) -> Result<()> {
        let (view, name, link) = (&self.view, OsStr::new("plaything"), OsStr::new("link"));
        let made = self.write_file(dir, "plaything", b"some bytes")?;
        let set = |set: SetAttr| answered(view, || view.setattr(made, &set)).map(drop);
        let (from, to) =
            (view.open(self.caller, whole, libc::O_RDONLY)?, view.open(self.caller, made, libc::O_WRONLY)?);
        let copied = view
            .fallocate(to.fh, 0, 0, 10_000, true)
            .and_then(|()| view.copy_range((from.fh, 0), (to.fh, 0), 100, true).map(drop));
        view.release(from.fh);
        view.release(to.fh);
        copied?;
        set(SetAttr { size: Some(100), drop_setid: true, ..SetAttr::default() })?;
        set(SetAttr { mode: Some(0o600), ..SetAttr::default() })?;
        let at = SetTime::At(Time { sec: 1, nsec: 2 });
        set(SetAttr { atime: Some(at), mtime: Some(at), ..SetAttr::default() })?;
        set(SetAttr { uid: Some(self.caller.uid), gid: Some(self.caller.gid), ..SetAttr::default() })?;
        set(SetAttr { size: Some(0), ..SetAttr::default() })?;
        let (attribute, value) = (OsStr::new("user.of-the-test"), b"value");
        match view.set_xattr(made, attribute, value, 0) {
            // There are kernels that have no attributes in memory.
            Err(VfsError::Draft(Errno::EOPNOTSUPP)) => {}
            set => {
                set?;
                assert_eq!(view.get_xattr(made, attribute)?, value);
                assert_eq!(view.list_xattr(made)?, b"user.of-the-test\0");
                view.remove_xattr(made, attribute)?;
            }
        }
        self.find(|| view.link(made, dir, link))?;
        assert_eq!(view.getattr(made)?.attr.nlink, 2);
        answered(view, || view.rename(self.caller, dir, name, dir, link, 0))?;
        view.unlink(dir, link)?;
        view.unlink(dir, name)?;
        let target = Path::new("anywhere");
        let symlink = self.find(|| view.symlink(self.caller, dir, link, target))?.ino;
        assert_eq!(view.readlink(symlink)?, b"anywhere");
        self.find(|| view.mknod(self.caller, dir, OsStr::new("fifo"), libc::S_IFIFO | 0o600, 0))?;
        view.unlink(dir, OsStr::new("fifo"))?;
        self.mkdir(dir, "empty")?;
        view.rmdir(dir, OsStr::new("empty"))?;
        view.fsync(dir, 0, false)
    }

    /// A draft at this name with what an entry of this key has, and what more a client may do there.
    fn write_draft(&self, parent: Ino, name: &str, of: &str) -> Result<Ino> {
        let top = self.mkdir(parent, name)?;
        let dir = self.mkdir(top, "outputs")?;
        let mut whole = 0;
        for (name, content) in outputs(of) {
            whole = self.write_file(dir, &name, &content)?;
        }
        self.write_file(top, "metadata.json", METADATA.as_bytes())?;
        self.play(dir, whole)?;
        for (name, content) in outputs(of) {
            let file = self.look_up(dir, &name)?;
            assert_eq!(file.size, content.len() as u64);
            let hash = self.view.get_xattr(file.ino, OsStr::new("user.outfs.blake3"))?;
            assert_eq!(hash, blake3::hash(&content).to_hex().as_bytes());
        }
        let names = self.view.readdir(dir, 0)?.len();
        assert_eq!(names, outputs(of).len() + 1);
        self.view.end_of_listing(dir);
        Ok(top)
    }

    /// Stores an entry by a rename that publishes.
    pub fn publish(&self, of: &str) -> Result<()> {
        let published = self.write_draft(ino::WORK, of, of).and_then(|_| {
            answered(&self.view, || {
                self.look_up(ino::CONTROL, "work")?;
                self.view.rename(self.caller, ino::WORK, OsStr::new(of), ino::ROOT, OsStr::new(of), 0)
            })
        });
        self.forget(published)
    }

    /// Stores an entry by taking the write bits of its directory.
    pub fn seal_by_chmod(&self, of: &str) -> Result<()> {
        let set = SetAttr { mode: Some(0o555), ..SetAttr::default() };
        let sealed = self
            .write_draft(ino::ROOT, of, of)
            .and_then(|top| answered(&self.view, || self.view.setattr(top, &set)).map(drop));
        self.forget(sealed)
    }

    pub fn throw_away(&self, dir: Ino, name: &str) -> Result<()> {
        let (old, new) = (OsStr::new(name), OsStr::new("thrown-away"));
        let thrown = self.look_up(dir, name).and_then(|_| {
            answered(&self.view, || self.view.rename(self.caller, dir, old, ino::TRASH, new, 0))
        });
        self.forget(thrown)
    }

    /// Whether there is an entry; if there is, it has what it must have.
    pub fn read(&self, of: &str) -> Result<bool> {
        self.forget(self.look_and_read(of))
    }

    fn look_and_read(&self, of: &str) -> Result<bool> {
        let top = match self.look_up(ino::ROOT, key(of).as_str()) {
            Err(VfsError::NotFound) => return Ok(false),
            top => top?.ino,
        };
        if self.view.get_xattr(top, OsStr::new("user.outfs.state"))? == b"draft" {
            return Ok(false);
        }
        let dir = self.look_up(top, "outputs")?.ino;
        for (name, content) in outputs(of) {
            let file = self.look_up(dir, &name)?;
            assert!(file.kind == Kind::File && file.size == content.len() as u64, "{of}/{name}");
            let opened = self.view.open(self.caller, file.ino, libc::O_RDONLY)?;
            let mut bytes = vec![0; content.len()];
            let read = self.view.read(file.ino, opened.fh, 0, &mut bytes);
            if opened.fh != 0 {
                self.view.release(opened.fh);
            }
            assert!(read? == bytes.len() && bytes == content, "{of}/{name} has wrong bytes");
        }
        Ok(true)
    }

    /// The same after faults, by whoever has to store it again if it is not there.
    pub fn have(&self, of: &str, store: fn(&Client, &str) -> Result<()>) {
        let told = |what: &str| format!("{what} {of} when there is no fault any more");
        if !self.read(of).unwrap_or_else(|e| panic!("{}: {e:?}", told("reading"))) {
            for dir in [ino::WORK, ino::ROOT] {
                match self.throw_away(dir, of) {
                    Ok(()) | Err(VfsError::NotFound) => {}
                    Err(e) => panic!("{}: {e:?}", told("throwing away")),
                }
            }
            store(self, of).unwrap_or_else(|e| panic!("{}: {e:?}", told("storing")));
        }
        assert!(self.read(of).unwrap_or_else(|e| panic!("{}: {e:?}", told("reading"))), "{of} is not there");
    }
}
