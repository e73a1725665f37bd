//! Opening, creating and destroying a store.
//!
//! Invariants: `format` is written last, so a directory that has it has the whole layout on
//! the disk; what is not a store is never written into, and never deleted. All `ab/`
//! directories exist from the start. Must not know: what the files in the rooms mean.

use std::ffi::OsStr;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;

use super::ahead::Ahead;
use super::dir::Dir;
use super::events::EventLog;
use super::format::{self, FORMAT};
use super::kept::Kept;
use super::lock::{LOCK, Lock};
use super::packs::PackIds;
use super::{Access, Result, Space, Store, StoreError, port, remove, shards};

/// Directories of a store; the first two are divided into `00` to `ff`.
const ROOMS: [&str; 13] = [
    "manifests",
    "blobs",
    "packs",
    "drafts",
    "events",
    "pins",
    "rejections",
    "quarantine",
    "tmp",
    "runs",
    "sessions",
    "partial",
    "damaged",
];
const SHARDED: usize = 2;

/// How files of other rooms at the store's top begin (see [`Store::path`]).
const FOREIGN: [&str; 8] =
    ["index.", "control.", "daemon.", "views.", "limits.", "links.", "scrub.", "push."];

fn is_foreign(name: &OsStr) -> bool {
    FOREIGN.iter().any(|f| name.as_encoded_bytes().starts_with(f.as_bytes()))
}

/// Descriptors of packs and loose blobs that are kept open.
const OPEN_FILES: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not 0");

impl Store {
    /// Opens the store at `root`, creating it (mode 0700) when missing and `access` is `Own`.
    /// Sweeps what a dead owner left unfinished (temporary files, half-deleted drafts) when owned.
    pub fn open(root: &Path, access: Access) -> Result<Store> {
        match access {
            Access::Own => open_owned(root),
            Access::Read => open_read(root),
        }
    }

    /// Deletes the store at `root` (only if it is one, and nobody owns it). Files that are not
    /// outfs's are left, with an error that names one. `told` hears now and then how many files are gone.
    pub fn destroy(root: &Path, told: &mut dyn FnMut(u64)) -> Result<()> {
        let root = canonical(root)?;
        let dir = Dir::open_root(&root)?;
        read_format(&dir)?.ok_or_else(|| not_a_store(&root))?;
        let _lock = Lock::take(&dir)?;
        let mut gone = 0;
        let mut each = || {
            gone += 1;
            told(gone);
        };
        for room in ROOMS {
            remove::tree(&dir, room.as_ref(), &mut each)?;
        }
        for name in dir.names()?.iter().filter(|n| is_foreign(n)) {
            dir.unlink(name)?;
        }
        // Last, so that a destruction that was interrupted can be repeated.
        dir.unlink(FORMAT)?;
        dir.unlink(LOCK)?;
        match port::paths::remove_dir(&root) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Err(StoreError::Unsuitable {
                why: format!(
                    "the store in it is deleted, but {} is not outfs's and was left",
                    dir.names()?.first().map_or("a file".into(), |n| n.display().to_string())
                ),
                path: root,
            }),
            Err(e) => Err(StoreError::io("delete", root, e)),
            Ok(()) => Ok(()),
        }
    }

    /// 16 hexadecimal digits, chosen when the store was created.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The owner before this one died without closing the store.
    pub fn owner_died(&self) -> bool {
        self.lock.as_ref().is_some_and(|l| l.after_death)
    }

    /// Has the next owner look for what is left, as after a death.
    pub fn leave_in_disorder(&self) {
        self.disorder.store(true, Relaxed);
    }

    /// Where it lies.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The path for a file of another room at the store's top. Its name begins with `index.`,
    /// `control.`, `daemon.`, `limits.`, `links.`, `scrub.` or `views.`: `destroy` deletes these and nothing it does not know.
    /// `tmp` is the directory for scratch files; what stays in it is swept by the next owner.
    pub fn path(&self, name: &str) -> PathBuf {
        debug_assert!(name == "tmp" || is_foreign(name.as_ref()), "{name}");
        self.root().join(name)
    }

    /// Whether there is an empty file of another room's at the store's top (see [`path`](Self::path)).
    pub fn has_marker(&self, name: &str) -> Result<bool> {
        Ok(self.root.size_of(name)?.is_some())
    }

    /// Creates or removes it; it is on the disk when the disk has it.
    pub fn set_marker(&self, name: &str, on: bool) -> Result<()> {
        debug_assert!(is_foreign(name.as_ref()), "{name}");
        self.writable()?;
        if !on {
            return self.root.unlink(name).map(drop);
        }
        let name = OsStr::new(name);
        port::open_write(self.root.fd(), name).map(drop).map_err(self.root.err("create", name))
    }

    /// A small file of another room's at the store's top (see [`path`](Self::path)); `None` when there is none.
    pub fn read_note(&self, name: &str) -> Result<Option<Vec<u8>>> {
        debug_assert!(is_foreign(name.as_ref()), "{name}");
        self.root.read_all(name)
    }

    /// Writes it durably, in place of what is there.
    pub fn write_note(&self, name: &str, bytes: &[u8]) -> Result<()> {
        debug_assert!(is_foreign(name.as_ref()), "{name}");
        self.writable()?;
        self.root.write_durably(&self.tmp, name, bytes)
    }

    /// The room of the file system that holds the store.
    pub fn file_system_space(&self) -> Result<Space> {
        let (space, _) = port::space(self.root.fd())
            .map_err(|e| StoreError::io("ask for the free space of", self.root(), e))?;
        Ok(space)
    }

    /// An error unless this process owns the store.
    pub(super) fn writable(&self) -> Result<()> {
        if self.lock.is_some() {
            return Ok(());
        }
        let why = io::Error::new(io::ErrorKind::PermissionDenied, "it was opened for reading only");
        Err(StoreError::io("change", self.root(), why))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let Some(lock) = &self.lock else { return };
        let mut log = self.log.lock();
        if log.sync(self.log_rooms()).is_ok() && log.is_sound() && !self.disorder.load(Relaxed) {
            lock.closed_in_order();
        }
    }
}

fn open_owned(root: &Path) -> Result<Store> {
    let (root, created) = create_root(root)?;
    let dir = Dir::open_root(&root)?;
    refuse_file_system(&dir)?;
    if read_format(&dir)?.is_none() {
        refuse_strangers(&dir)?;
    }
    let lock = Lock::take(&dir)?;
    let id = match read_format(&dir)? {
        Some(id) => {
            create_rooms(&dir)?;
            id
        }
        None => {
            // Of a store that was deleted while it was in use: its index says what is not there any more.
            for name in dir.names()?.iter().filter(|n| n.as_encoded_bytes().starts_with(b"index.")) {
                dir.unlink(name)?;
            }
            create_rooms(&dir)?;
            let id = random_hex();
            let tmp = Arc::new(dir.sub("tmp")?);
            dir.write_durably(&tmp, FORMAT, format::write(&id).as_bytes())?;
            id
        }
    };
    // A parent that we may not list cannot be synced.
    if let Some(Ok(parent)) = root.parent().filter(|_| created).map(Dir::open_root) {
        parent.sync()?;
    }
    let after_death = lock.after_death;
    let store = assemble(dir, id, Some(lock))?;
    remove::contents(&store.tmp, &mut || {})?;
    store.sweep_drafts()?;
    *store.log.lock() = EventLog::open(store.log_rooms(), after_death)?;
    Ok(store)
}

fn open_read(root: &Path) -> Result<Store> {
    let root = canonical(root)?;
    let dir = Dir::open_root(&root)?;
    let id = read_format(&dir)?.ok_or_else(|| not_a_store(&root))?;
    assemble(dir, id, None)
}

fn assemble(root: Dir, id: String, lock: Option<Lock>) -> Result<Store> {
    let room = |name: &str| root.sub(name).map(Arc::new);
    Ok(Store {
        manifests: room("manifests")?,
        blobs: room("blobs")?,
        packs: room("packs")?,
        drafts: room("drafts")?,
        events: room("events")?,
        pins: room("pins")?,
        rejections: room("rejections")?,
        quarantined: room("quarantine")?,
        tmp: room("tmp")?,
        files: Mutex::new(lru::LruCache::new(OPEN_FILES)),
        ahead: Ahead::default(),
        kept: Kept::default(),
        pack_ids: Mutex::new(PackIds::default()),
        log: Mutex::new(EventLog::default()),
        disorder: Default::default(),
        id,
        lock,
        root,
    })
}

fn read_format(root: &Dir) -> Result<Option<String>> {
    root.read_all(FORMAT)?.map(|bytes| format::read(&bytes, root.path())).transpose()
}

/// Creates the rooms that are missing. Their parents are synced; a new directory itself is
/// empty, and every file system that orders its metadata writes it with its name.
fn create_rooms(root: &Dir) -> Result<()> {
    let mut new = false;
    for (i, room) in ROOMS.iter().enumerate() {
        new |= root.mkdir(room, 0o700)?;
        if i < SHARDED {
            let dir = root.sub(room)?;
            let mut new_shards = false;
            for shard in shards::all() {
                new_shards |= dir.mkdir(shards::name(shard), 0o700)?;
            }
            if new_shards {
                dir.sync()?;
            }
        }
    }
    if new { root.sync() } else { Ok(()) }
}

/// Makes the directory (and those above it) when missing; its real path, and whether it is new.
fn create_root(root: &Path) -> Result<(PathBuf, bool)> {
    let refused = |e: io::Error| match e.raw_os_error() {
        Some(libc::EROFS) => unsuitable(root, READ_ONLY),
        Some(libc::ENOTDIR | libc::EEXIST) => {
            unsuitable(root, "a file stands in its way; choose another directory")
        }
        _ => StoreError::io("create", root, e),
    };
    if let Some(parent) = root.parent().filter(|p| !p.as_os_str().is_empty()) {
        port::paths::make_dirs(parent).map_err(refused)?;
    }
    let created = match port::paths::make_dir(root, 0o700) {
        Ok(()) => true,
        Err(_) if root.is_dir() => false,
        Err(e) => return Err(refused(e)),
    };
    Ok((canonical(root)?, created))
}

fn canonical(root: &Path) -> Result<PathBuf> {
    match port::paths::real(root) {
        Ok(p) if p.is_dir() => Ok(p),
        Ok(_) => Err(unsuitable(root, "it is not a directory; choose another one")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(unsuitable(root, "there is no such directory; check --store"))
        }
        Err(e) => Err(StoreError::io("open", root, e)),
    }
}

const READ_ONLY: &str = "it is on a read-only file system; choose another directory with --store, or make that \
                         file system writable";

fn refuse_file_system(root: &Dir) -> Result<()> {
    let ask = |e| StoreError::io("ask for the file system of", root.path(), e);
    if let Some(name) = port::network_file_system(root.fd()).map_err(ask)? {
        let why = format!(
            "it is on a network file system ({name}), where locks and leases cannot be relied on; choose a \
             directory on a local disk with --store"
        );
        return Err(unsuitable(root.path(), &why));
    }
    let (_, read_only) = port::space(root.fd()).map_err(ask)?;
    if read_only { Err(unsuitable(root.path(), READ_ONLY)) } else { Ok(()) }
}

/// A directory without `format` is taken only when it is empty (but for what other rooms put at a
/// store's top, such as the daemon's log), or when a store was being created in it: there is a
/// `lock` and nothing else but rooms.
fn refuse_strangers(root: &Dir) -> Result<()> {
    let names = root.names()?;
    let room = |n: &OsStr| ROOMS.iter().any(|r| n == *r);
    let begun = names.iter().any(|n| n == LOCK);
    if names.iter().all(|n| is_foreign(n) || n == LOCK || begun && room(n)) {
        return Ok(());
    }
    Err(unsuitable(root.path(), "it is not empty and not an outfs store; choose an empty directory"))
}

fn not_a_store(root: &Path) -> StoreError {
    unsuitable(root, "it is not an outfs store (it has no file 'format'); check --store")
}

fn unsuitable(root: &Path, why: &str) -> StoreError {
    StoreError::Unsuitable { path: root.to_owned(), why: why.into() }
}

/// 16 random hexadecimal digits: the standard library seeds its hash keys from the system.
pub(super) fn random_hex() -> String {
    use std::hash::BuildHasher;
    let state = std::collections::hash_map::RandomState::new();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{:016x}", state.hash_one(now))
}
