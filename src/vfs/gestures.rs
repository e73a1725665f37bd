//! Gestures: renames and chmods that seal, move or evict. (Publishing by a rename is in `publishing`.)

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use nix::errno::Errno;

use super::draft_node::DraftNode;
use super::types::{Caller, Ino, SetAttr};
use super::writers::Writers;
use super::{Overwrite, Result, Target, VfsError, View, ino, sys};
use crate::cache::{self, CacheError, Draft, Entry, LeaseKind, SealRequest, host_name};
use crate::model::manifest::Origin;
use crate::model::{EntryKey, Metadata};
use crate::store::DraftPlace;

/// What stands at a name of the top directory or of `work`.
pub(super) enum TopLevel {
    Draft(Arc<Draft>),
    Sealed(Entry),
}

/// A draft that ended after it was found by its name has that name no more.
pub(super) fn no_longer_there(e: CacheError) -> VfsError {
    match e {
        CacheError::Gone(_) => VfsError::NotFound,
        other => other.into(),
    }
}

impl View {
    pub(super) fn top_level(&self, dir: Ino, name: &OsStr) -> Result<TopLevel> {
        if dir == ino::WORK {
            let draft = self.cache.work_draft(name.as_bytes()).ok_or(VfsError::NotFound)?;
            return Ok(TopLevel::Draft(draft));
        }
        let key = EntryKey::parse_os(name).map_err(|_| VfsError::NotFound)?;
        if let Some(draft) = self.shown_draft(&key) {
            return Ok(TopLevel::Draft(draft));
        }
        let entry = self.cache.entry(&key, LeaseKind::Hold)?.ok_or(VfsError::NotFound)?;
        Ok(TopLevel::Sealed(entry))
    }

    /// Renames: within a draft as on any file system, at the top level as a gesture.
    pub fn rename(
        &self,
        caller: Caller,
        from: Ino,
        name: &OsStr,
        to: Ino,
        new: &OsStr,
        flags: u32,
    ) -> Result<()> {
        let (source, target) = (self.target(from)?, self.target(to)?);
        if self.read_only() {
            return Err(VfsError::ReadOnly);
        }
        if (from, to) == (ino::WORK, ino::ROOT)
            && let Some(done) = self.finish_publication(caller, name, new)
        {
            return done;
        }
        match (source, target) {
            (Target::Draft(a), Target::Draft(b)) => self.draft_rename(&a, name, &b, new, flags),
            (Target::Sealed(r), _) | (_, Target::Sealed(r)) => Err(self.refuse_change(&r.entry)),
            (Target::Fixed(a @ (ino::ROOT | ino::WORK)), Target::Fixed(b)) => {
                if flags & (libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT) != 0 {
                    return Err(VfsError::Invalid);
                }
                match (self.top_level(a, name)?, b) {
                    (what, ino::TRASH) => {
                        if let Some(entry) = self.throw_away(what, name)? {
                            self.forget_thrown_away(entry);
                        }
                        Ok(())
                    }
                    (TopLevel::Sealed(_), _) => Err(VfsError::ReadOnly),
                    (TopLevel::Draft(d), ino::ROOT | ino::WORK) => self.move_top(caller, &d, b, new),
                    _ => Err(VfsError::NotPermitted),
                }
            }
            (Target::Fixed(_), _) | (_, Target::Fixed(_)) => Err(VfsError::CrossDevice),
            _ => Err(VfsError::NotPermitted),
        }
    }

    /// The row id of what was an entry.
    fn throw_away(&self, what: TopLevel, name: &OsStr) -> Result<Option<i64>> {
        match what {
            TopLevel::Draft(d) => match self.cache.drop_draft(&d, "trash") {
                // It was sealed just now, or dropped otherwise. What it was to replace is not what was thrown away.
                Err(CacheError::Gone(_)) => match d.place() {
                    DraftPlace::InPlace { key } if key.as_str() == name => {
                        let entry = self.cache.entry(&key, LeaseKind::Hold)?.ok_or(VfsError::NotFound)?;
                        self.throw_away(TopLevel::Sealed(entry), name)
                    }
                    _ => Err(VfsError::NotFound),
                },
                done => done.map(|_| None).map_err(VfsError::from),
            },
            TopLevel::Sealed(entry) => {
                let (id, key) = (entry.id(), entry.key().clone());
                drop(entry);
                self.cache.evict(&key, "trash")?;
                Ok(Some(id))
            }
        }
    }

    fn move_top(&self, caller: Caller, draft: &Arc<Draft>, to: Ino, new: &OsStr) -> Result<()> {
        if to == ino::WORK {
            if self.cache.work_draft(new.as_bytes()).is_some() {
                return Err(VfsError::Exists);
            }
            let to = DraftPlace::Work { name: new.as_bytes().to_vec() };
            return self.cache.move_draft(draft, to).map_err(no_longer_there);
        }
        let key = EntryKey::parse_os(new).map_err(|_| VfsError::Invalid)?;
        if self.cache.draft_for(&key).is_some() || self.cache.index().entry(&key)?.is_some() {
            return Err(VfsError::Exists);
        }
        match draft.place() {
            DraftPlace::Work { name } => self.publish(caller, draft, key, &name),
            _ => self.cache.move_draft(draft, DraftPlace::InPlace { key }).map_err(no_longer_there),
        }
    }

    /// Whether a change of attributes is the sealing gesture: the write bits of an in-place draft's
    /// top directory go, and its metadata parses.
    pub fn seals_by_chmod(&self, ino: Ino, set: &SetAttr) -> bool {
        // What cannot be told is found out, and answered, where sealing is.
        self.is_seal(ino, set).unwrap_or(true)
    }

    pub(super) fn is_seal(&self, ino: Ino, set: &SetAttr) -> Result<bool> {
        let Some(mode) = set.mode else { return Ok(false) };
        let only_mode = SetAttr { mode: Some(mode), ..SetAttr::default() } == *set;
        if mode & 0o222 != 0 || !only_mode || self.read_only() {
            return Ok(false);
        }
        let Ok(Target::Draft(node)) = self.target(ino) else { return Ok(false) };
        Ok(node.top && node.draft.place().key().is_some() && reads_metadata(&node.draft)?)
    }

    pub(super) fn seal_by_chmod(&self, node: &Arc<DraftNode>) -> Result<()> {
        Ok(told(&node.draft, self.seal_in_place(&node.draft, "chmod", false))?)
    }

    fn seal_in_place(&self, draft: &Arc<Draft>, how: &str, inferred: bool) -> cache::Result<()> {
        let key = draft.place().key().cloned().ok_or_else(|| CacheError::Gone(draft.name()))?;
        let replace = self.options.overwrite == Overwrite::Replace;
        let origin = Origin { how: how.into(), uid: self.owner.0, host: host_name(), source: String::new() };
        self.cache.seal(draft, SealRequest { key, origin, inferred, replace })?;
        Ok(())
    }

    /// Remembers that this view has seen the draft being made (needed as `note_writer` is).
    pub(super) fn note_born(&self, draft: &Draft) {
        if self.options.seal_quiet.is_some() {
            self.born_here.lock().insert(draft.id().to_owned(), Writers::default());
        }
    }

    /// Remembers who changes a draft that may be sealed by quiet (not needed in other views).
    pub(super) fn note_writer(&self, caller: Caller, draft: &Draft) {
        if self.options.seal_quiet.is_some()
            && let Some(writers) = self.born_here.lock().get_mut(draft.id())
        {
            writers.note(caller.pid);
        }
    }

    /// The same for who is about to change what this number is of.
    pub fn note_changer(&self, caller: Caller, ino: Ino) {
        if self.options.seal_quiet.is_some()
            && let Ok(Target::Draft(node)) = self.target(ino)
        {
            self.note_writer(caller, &node.draft);
        }
    }

    /// Seals by quiet what is due; called every now and then by the daemon.
    pub fn tick(&self) {
        let Some(quiet) = self.options.seal_quiet else { return };
        let quiet = i64::try_from(quiet.as_nanos()).unwrap_or(i64::MAX);
        for draft in self.cache.drafts() {
            let writers = |ask: &dyn Fn(&mut Writers) -> bool| {
                self.born_here.lock().get_mut(draft.id()).is_some_and(ask)
            };
            let changed_at = draft.last_change();
            let due = draft.place().key().is_some()
                && draft.writers() == 0
                && draft.idle_ns() >= quiet
                && writers(&|w| w.may_seal(changed_at) && w.trusted())
                && reads_metadata(&draft).unwrap_or(false);
            if due
                && let Err(e) = self.seal_in_place(&draft, "quiet", true)
                && writers(&|w| w.refuse(changed_at))
            {
                tracing::info!(draft = draft.name(), "not sealed by quiet: {e}");
            }
        }
        // Locked first: a draft that is born meanwhile is entered after this.
        let mut born_here = self.born_here.lock();
        let live: std::collections::HashSet<_> =
            self.cache.drafts().iter().map(|d| d.id().to_owned()).collect();
        born_here.retain(|id, _| live.contains(id));
    }
}

/// Hands the result of a gesture on. An errno names no path: the log says which file is in the way.
pub(super) fn told<T>(draft: &Draft, result: cache::Result<T>) -> cache::Result<T> {
    if let Err(e) = &result {
        tracing::info!(draft = draft.name(), "not sealed: {e}");
    }
    result
}

/// Whether the draft has a `metadata.json` that parses; an error where that cannot be told.
fn reads_metadata(draft: &Draft) -> Result<bool> {
    let fd = match sys::open_at(draft.tree(), OsStr::new("metadata.json"), sys::OFlag::O_RDONLY) {
        // There is none, or something else.
        Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO | Errno::EACCES) => return Ok(false),
        fd => fd?,
    };
    let st = sys::stat(&fd)?;
    if st.st_mode & libc::S_IFMT != libc::S_IFREG || st.st_size as u64 > Metadata::MAX_BYTES {
        return Ok(false);
    }
    let mut bytes = vec![0; st.st_size as usize];
    Ok(sys::read(&fd, 0, &mut bytes)? == bytes.len() && Metadata::parse(&bytes).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, Limits};
    use crate::vfs::ViewOptions;

    /// Between its end and when its name goes there is a moment.
    #[test]
    fn a_draft_that_ends_while_it_is_thrown_away_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("store"), Limits::default()).unwrap();
        let view = View::new(cache.clone(), ViewOptions::default()).unwrap();
        let caller =
            Caller { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw(), pid: 1 };
        let made = |parent, name: &str| {
            view.mkdir(caller, parent, name.as_ref(), 0o755).unwrap();
            view.top_level(parent, name.as_ref()).unwrap()
        };
        for (parent, to, new) in [
            (ino::ROOT, ino::TRASH, "abcd"),
            (ino::ROOT, ino::ROOT, "dcba"),
            (ino::WORK, ino::TRASH, "abcd"),
            (ino::WORK, ino::WORK, "dcba"),
        ] {
            let TopLevel::Draft(draft) = made(parent, "abcd") else { panic!("it is a draft") };
            draft.end_for_tests();
            let done = view.rename(caller, parent, "abcd".as_ref(), to, new.as_ref(), 0);
            assert!(matches!(done, Err(VfsError::NotFound)), "{done:?}");
            let done = view.rmdir(parent, "abcd".as_ref());
            assert!(matches!(done, Err(VfsError::NotFound)), "{done:?}");
            cache.forget_draft(&draft, Vec::new());
        }
    }

    #[test]
    fn what_was_sealed_while_it_was_thrown_away_is_thrown_away() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("store"), Limits::default()).unwrap();
        let view = View::new(cache.clone(), ViewOptions::default()).unwrap();
        let key: EntryKey = "abcd".parse().unwrap();
        let there = || cache.entry(&key, LeaseKind::Hold).unwrap().is_some();
        for (place, name, thrown) in [
            (DraftPlace::InPlace { key: key.clone() }, "abcd", true),
            (DraftPlace::InPlace { key: key.clone() }, "before", false),
            (DraftPlace::Work { name: b"abcd".to_vec() }, "abcd", false),
        ] {
            let draft = cache.create_draft(place).unwrap();
            let origin = Origin::default();
            let request = SealRequest { key: key.clone(), origin, inferred: false, replace: false };
            cache.seal(&draft, request).unwrap();
            let done = view.throw_away(TopLevel::Draft(draft), name.as_ref());
            assert_eq!((done.is_ok(), there()), (thrown, !thrown), "{name}");
            cache.evict(&key, "request").unwrap();
        }
    }
}
