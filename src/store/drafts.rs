//! Drafts: entries that are still being written, as real trees.
//!
//! Purpose: `drafts/<id>/{draft.json,tree/}`. Invariants: a draft appears whole (it is made aside
//! and renamed); one that is being deleted is called `.gone-<id>` and is deleted by the next
//! owner if this one dies. A draft survives the death of the daemon; nothing here waits for the disk. One that was being
//! committed says so, because its large files are the entry's blobs from then on.
//! Must not know: what is in the tree.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use super::dir::{Dir, Temp, temp_name};
use super::open::random_hex;
use super::{DraftPlace, Result, Store, StoreError, port, remove, twice};
use crate::model::ManifestHash;

const PLACE: &str = "draft.json";
const TREE: &str = "tree";
const GONE: &str = ".gone-";
const SEALED: &str = "sealed-";
const UNWRITTEN: &str = "unwritten-";

/// Which file of a draft, under whatever name, for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inode {
    ino: u64,
    /// When it was made, because numbers are used again; 0 where that is not known.
    born_ns: u64,
}

impl Inode {
    /// That of an open file.
    pub fn of(file: impl AsFd) -> io::Result<Inode> {
        port::inode(file.as_fd()).map(|(ino, born_ns)| Inode { ino, born_ns })
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.ino
    }

    fn note(&self) -> String {
        format!("{UNWRITTEN}{}-{}", self.ino, self.born_ns)
    }

    fn of_note(name: &str) -> Option<Inode> {
        let (ino, born) = name.strip_prefix(UNWRITTEN)?.split_once('-')?;
        Some(Inode { ino: ino.parse().ok()?, born_ns: born.parse().ok()? })
    }
}

fn gone(id: &str) -> OsString {
    format!("{GONE}{id}").into()
}

fn encode(place: &DraftPlace) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(place).expect("a draft's place has string keys only");
    bytes.push(b'\n');
    bytes
}

impl Store {
    /// Creates `drafts/<id>/{draft.json,tree/}` so that it survives a crash of the daemon; returns
    /// the id. The tree's top has mode 0755.
    pub fn create_draft(&self, place: &DraftPlace) -> Result<String> {
        self.writable()?;
        let name = temp_name();
        port::mkdir(self.tmp.fd(), &name, 0o700).map_err(self.tmp.err("create", &name))?;
        let id = random_hex();
        match self.fill_draft(&name, &id, place) {
            Ok(()) => Ok(id),
            Err(e) => {
                // Best effort: what stays is swept when the store is opened next.
                let _ = remove::tree(&self.tmp, &name, &mut || {});
                Err(e)
            }
        }
    }

    fn fill_draft(&self, aside: &OsStr, id: &str, place: &DraftPlace) -> Result<()> {
        let dir = self.tmp.sub(aside)?;
        dir.mkdir(TREE, 0o700)?;
        let tree = dir.sub(TREE)?;
        port::chmod(tree.fd(), 0o755).map_err(dir.err("chmod", TREE.as_ref()))?;
        self.write_place(&dir, place)?;
        let id = OsStr::new(id);
        port::rename_new(self.tmp.fd(), aside, self.drafts.fd(), id).map_err(self.drafts.err("create", id))
    }

    fn write_place(&self, draft: &Dir, place: &DraftPlace) -> Result<()> {
        let mut temp = Temp::create(&self.tmp)?;
        temp.write(&encode(place))?;
        temp.publish(draft, PLACE.as_ref(), false)
    }

    /// Replaces a draft's `draft.json` (rename of a work draft).
    pub fn set_draft_place(&self, id: &str, place: &DraftPlace) -> Result<()> {
        self.writable()?;
        self.write_place(&self.draft_dir(id)?, place)
    }

    /// All drafts: id, place, last modification of `draft.json` or the tree's top (ns since 1970).
    /// One whose `draft.json` cannot be read is `Native` with a label that says so: its tree is kept.
    pub fn drafts(&self) -> Result<Vec<(String, DraftPlace, i64)>> {
        let mut all = Vec::new();
        for name in self.drafts.names()? {
            let Some(id) = name.to_str().filter(|n| !n.starts_with('.')) else { continue };
            let dir = match self.draft_dir(id) {
                Ok(dir) => dir,
                // Dropped meanwhile, or no draft at all.
                Err(StoreError::Missing { .. }) => continue,
                Err(StoreError::Io { source, .. }) if source.raw_os_error() == Some(libc::ENOTDIR) => {
                    continue;
                }
                Err(e) => return Err(e),
            };
            let time = |name: &str| -> Result<Option<i64>> {
                let name = OsStr::new(name);
                let stat = port::stat_at(dir.fd(), name).map_err(dir.err("stat", name))?;
                Ok(stat.map(|s| s.st_mtime * 1_000_000_000 + s.st_mtime_nsec))
            };
            let Some(tree) = time(TREE)? else { continue };
            let place = match twice(|| dir.read_all(PLACE)) {
                Err(e) if e.is_bad_spot() => None,
                bytes => bytes?.and_then(|b| serde_json::from_slice(&b).ok()),
            };
            let place = place.unwrap_or(DraftPlace::Native { label: "its draft.json was unreadable".into() });
            all.push((id.to_owned(), place, time(PLACE)?.map_or(tree, |t| t.max(tree))));
        }
        Ok(all)
    }

    /// Notes that the draft is about to become the entry with this manifest, which is not written yet. Not synced: on a file system with
    /// a journal it is there when a name is that was made and synced later, as the manifest's is. (The index's log is written over in
    /// place: syncing that carries no names.)
    pub fn note_sealing(&self, id: &str, manifest: &ManifestHash) -> Result<()> {
        self.writable()?;
        let (dir, name) = (self.draft_dir(id)?, format!("{SEALED}{}", manifest.to_hex()));
        let name = OsStr::new(&name);
        port::create(dir.fd(), name).map(drop).map_err(dir.err("create", name))
    }

    /// The manifests that the draft was about to become.
    pub fn sealings(&self, id: &str) -> Result<Vec<ManifestHash>> {
        let names = self.draft_dir(id)?.names()?;
        let noted = names.iter().filter_map(|n| n.to_str()?.strip_prefix(SEALED)?.parse().ok());
        Ok(noted.collect())
    }

    /// Notes that the disk did not take what was written to a file of the draft. It outlives the process, as what the
    /// kernel has in memory of such a file does.
    pub fn note_unwritten(&self, id: &str, file: &Inode) -> Result<()> {
        self.writable()?;
        let (dir, name) = (self.draft_dir(id)?, file.note());
        let name = OsStr::new(&name);
        port::open_write(dir.fd(), name).map(drop).map_err(dir.err("create", name))
    }

    /// Takes the note back.
    pub fn forget_unwritten(&self, id: &str, file: &Inode) -> Result<()> {
        self.writable()?;
        self.draft_dir(id)?.unlink(file.note()).map(drop)
    }

    /// The files of the draft of which that is noted.
    pub fn unwritten(&self, id: &str) -> Result<Vec<Inode>> {
        let names = self.draft_dir(id)?.names()?;
        Ok(names.iter().filter_map(|n| Inode::of_note(n.to_str()?)).collect())
    }

    /// The draft's `tree/`, opened O_PATH.
    pub fn draft_tree(&self, id: &str) -> Result<OwnedFd> {
        let dir = self.draft_dir(id)?;
        port::open_path(dir.fd(), TREE.as_ref()).map_err(dir.err("open", TREE.as_ref()))
    }

    /// The real path of the draft's `tree/`.
    pub fn draft_path(&self, id: &str) -> PathBuf {
        self.drafts.path().join(id).join(TREE)
    }

    /// Moves the draft out of sight: one rename, after which it is no draft any more, whatever
    /// happens. [`remove_draft`](Self::remove_draft) deletes it. A missing one is fine.
    pub fn hide_draft(&self, id: &str) -> Result<()> {
        self.writable()?;
        let (from, to) = (OsStr::new(id), gone(id));
        match port::rename_new(self.drafts.fd(), from, self.drafts.fd(), &to) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(self.drafts.err("delete", from)),
        }
    }

    /// Moves the draft out of sight at once and deletes it (any tree, any modes, any depth). A missing
    /// one is fine.
    pub fn remove_draft(&self, id: &str) -> Result<()> {
        self.hide_draft(id)?;
        remove::tree(&self.drafts, &gone(id), &mut || {})
    }

    /// Deletes what `hide_draft` left when its process died. What cannot be deleted now (something is
    /// mounted inside) is left for the next time.
    pub(super) fn sweep_drafts(&self) -> Result<()> {
        for name in self.drafts.names()? {
            if name.as_encoded_bytes().starts_with(GONE.as_bytes())
                && let Err(e) = remove::tree(&self.drafts, &name, &mut || {})
            {
                tracing::warn!("a dropped draft stays for now: {e}");
            }
        }
        Ok(())
    }

    fn draft_dir(&self, id: &str) -> Result<Dir> {
        let name = OsStr::new(id);
        match port::open_dir(self.drafts.fd(), name) {
            Ok(fd) => Ok(Dir::new(fd, self.drafts.path().join(id))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(StoreError::Missing {
                what: format!("the draft {id}"),
                path: self.drafts.path().join(id),
            }),
            Err(e) => Err(self.drafts.err("open", name)(e)),
        }
    }
}
