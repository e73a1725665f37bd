//! Publishing: a work draft is sealed by renaming it onto a free key.
//!
//! A rename in the kernel holds the lock of the top directory, under which no new name can be
//! looked up there. So the first RENAME that would publish a draft is answered with `Stale`: the
//! kernel lets go of its locks and looks the path up again, and that look-up of `work` is what
//! waits while the draft is sealed. Until the second RENAME comes, which has nothing left to do, the
//! thread that renames is shown the names as they were.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::draft::draft_found;
use super::draft_node::DraftNode;
use super::gestures::told;
use super::reach::identity;
use super::types::{Caller, Found, Ino};
use super::{Result, VfsError, View, ino, sys};
use crate::cache::{Draft, Entry, SealRequest, Sealed, Stage, host_name};
use crate::model::EntryKey;
use crate::model::manifest::Origin;

/// Publishing renames between their first and second RENAME, by the thread that renames.
#[derive(Default)]
pub(super) struct Publishing {
    by_thread: Mutex<HashMap<u32, Publication>>,
    /// How many there are: look-ups need not lock when there are none.
    count: AtomicUsize,
}

struct Publication {
    draft: Arc<Draft>,
    key: EntryKey,
    name: Vec<u8>,
    since: Instant,
    /// The draft's top directory as the kernel knows it. Whoever moves a directory must be allowed
    /// to write it, which nobody but root may in a sealed entry.
    top: Found,
    node: Arc<DraftNode>,
    /// How sealing ended, once it has.
    done: Option<Result<Entry>>,
}

/// A second RENAME follows at once; of a thread that is gone, one that did not come within this time never will.
const RETRY: Duration = Duration::from_secs(2);

/// A thread that lives is waited for so long: on a machine that has much to do it may wait for its turn.
const LATE: Duration = Duration::from_secs(60);

/// A thread that was killed before its draft was sealed is forgotten after this.
const SEALING: Duration = Duration::from_secs(3600);

impl Publication {
    /// May the second RENAME still come?
    fn is_expected(&self, thread: u32) -> bool {
        let age = self.since.elapsed();
        match self.done {
            None => age < SEALING,
            Some(_) => age < RETRY || age < LATE && Path::new(&format!("/proc/{thread}")).exists(),
        }
    }
}

impl Publishing {
    fn with<T>(&self, work: impl FnOnce(&mut HashMap<u32, Publication>) -> T) -> T {
        let mut all = self.by_thread.lock();
        all.retain(|thread, p| p.is_expected(*thread));
        let result = work(&mut all);
        self.count.store(all.len(), Ordering::Release);
        result
    }

    pub fn none(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Is the entry that this key has now sealed by a rename that has not returned yet? Ask after the
    /// entry was found: while a commit is in progress that is not known.
    pub fn hides(&self, key: &EntryKey) -> Result<bool> {
        if self.none() {
            return Ok(false);
        }
        let (mut sealed, mut sealing) = (false, Vec::new());
        self.with(|all| {
            for p in all.values().filter(|p| p.key == *key) {
                match &p.done {
                    Some(Ok(_)) => sealed = true,
                    Some(Err(_)) => {}
                    None => sealing.push(p.draft.clone()),
                }
            }
        });
        for draft in sealing {
            match draft.stage() {
                _ if sealed => {}
                Some(stage) => sealed = stage == Stage::Gone,
                None => return Err(VfsError::Committing(draft)),
            }
        }
        Ok(sealed)
    }

    /// What a renaming thread still finds under its draft's old name.
    pub fn top_as(&self, thread: u32, name: &[u8]) -> Option<(Found, Arc<DraftNode>)> {
        if self.none() {
            return None;
        }
        self.with(|all| match all.get(&thread) {
            Some(Publication { name: n, top, node, done: Some(Ok(_)), .. }) if n == name => {
                Some((*top, node.clone()))
            }
            _ => None,
        })
    }

    /// The attributes that a renaming thread still finds there.
    pub fn top(&self, ino: Ino) -> Option<Found> {
        if self.none() {
            return None;
        }
        self.with(|all| {
            all.values().find(|p| p.top.attr.ino == ino && matches!(p.done, Some(Ok(_)))).map(|p| p.top)
        })
    }
}

impl View {
    /// The first RENAME of a publication; the kernel comes back after the look-ups between.
    pub(super) fn publish(
        &self,
        caller: Caller,
        draft: &Arc<Draft>,
        key: EntryKey,
        name: &[u8],
    ) -> Result<()> {
        if caller.pid == 0 {
            // Threads of a pid namespace that we do not see cannot be told apart: one RENAME does it all.
            return self.seal_publication(caller, draft, key, name).map(drop);
        }
        let st = sys::stat(draft.tree())?;
        let node = self.nodes.draft(draft, identity(&st)).ok_or(VfsError::Stale)?;
        // It is the draft's for this one rename only.
        let top = Found { attr_ttl: Duration::ZERO, ..draft_found(&node, &st) };
        let (draft, name, since) = (draft.clone(), name.to_vec(), Instant::now());
        self.publishing.with(|all| {
            all.insert(caller.pid, Publication { draft, key, name, since, top, node, done: None })
        });
        Err(VfsError::Stale)
    }

    /// The second RENAME of a publication. `None` when this is no second one.
    pub(super) fn finish_publication(&self, caller: Caller, name: &OsStr, new: &OsStr) -> Option<Result<()>> {
        let found = self.publishing.with(|all| all.remove(&caller.pid))?;
        if found.name != name.as_bytes() || new != found.key.as_str() {
            return None;
        }
        // Nor when something else has the name by now: the second one of the other never came.
        if self.cache.work_draft(&found.name).is_some_and(|now| !Arc::ptr_eq(&now, &found.draft)) {
            return None;
        }
        let done = match found.done {
            Some(done) => done,
            // Nothing was looked up between: the thread named both directories by descriptors.
            None => self.seal_publication(caller, &found.draft, found.key, &found.name),
        };
        self.note_root_change();
        Some(done.map(drop))
    }

    fn seal_publication(
        &self,
        caller: Caller,
        draft: &Arc<Draft>,
        key: EntryKey,
        name: &[u8],
    ) -> Result<Entry> {
        let source = String::from_utf8_lossy(name).into_owned();
        let origin = Origin { how: "rename".into(), uid: caller.uid, host: host_name(), source };
        let request = SealRequest { key, origin, inferred: false, replace: false };
        match told(draft, self.cache.seal_first(draft, request))? {
            Sealed::New(entry) => Ok(entry),
            // Somebody else was first, with the same outputs: a rename never replaces.
            Sealed::Same(_) => Err(VfsError::Exists),
        }
    }

    /// Whether this look-up must not be answered by a thread that others need: it waits for a draft to be
    /// sealed (between a publishing rename's two attempts), or for a blob that may be going.
    pub fn look_up_waits(&self, caller: Caller, parent: Ino, name: &OsStr) -> bool {
        match parent {
            ino::CONTROL => {
                !self.publishing.none()
                    && self.publishing.with(|all| all.get(&caller.pid).is_some_and(|p| p.done.is_none()))
            }
            ino::BLOBS => super::control::blob_named(name).is_some_and(|hash| self.cache.may_go(&hash)),
            _ => false,
        }
    }

    /// Seals the draft that `caller` is publishing; a failure shows at its second RENAME.
    pub(super) fn seal_publishing(&self, caller: Caller) {
        if self.publishing.none() {
            return;
        }
        let waiting = self.publishing.with(|all| {
            let p = all.get(&caller.pid).filter(|p| p.done.is_none())?;
            Some((p.draft.clone(), p.key.clone(), p.name.clone()))
        });
        let Some((draft, key, name)) = waiting else { return };
        let done = self.seal_publication(caller, &draft, key, &name);
        self.publishing.with(|all| {
            if let Some(p) = all.get_mut(&caller.pid).filter(|p| Arc::ptr_eq(&p.draft, &draft)) {
                p.done = Some(done);
                p.since = Instant::now();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, Limits};
    use crate::vfs::ViewOptions;

    const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 1 };

    struct Fixture {
        view: Arc<View>,
        _dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Fixture {
            let dir = tempfile::tempdir().unwrap();
            let cache = Cache::open(&dir.path().join("store"), Limits::default()).unwrap();
            let view = View::new(cache, ViewOptions::default()).unwrap();
            Fixture { view, _dir: dir }
        }

        /// A draft with a directory in it; the number of its top.
        fn draft(&self, inside: &str) -> Ino {
            let top = self.view.mkdir(CALLER, ino::WORK, OsStr::new("w"), 0o755).unwrap().attr.ino;
            self.view.mkdir(CALLER, top, OsStr::new(inside), 0o755).unwrap();
            top
        }

        fn rename(&self) -> Result<()> {
            self.view.rename(CALLER, ino::WORK, OsStr::new("w"), ino::ROOT, OsStr::new("abcd"), 0)
        }

        /// What the kernel does up to the second RENAME: the draft is sealed then.
        fn first_rename(&self) {
            assert!(matches!(self.rename(), Err(VfsError::Stale)));
            self.view.lookup(CALLER, ino::CONTROL, OsStr::new("work")).unwrap();
        }

        fn evict(&self) {
            assert!(self.view.cache.evict(&"abcd".parse().unwrap(), "test").unwrap());
        }
    }

    #[test]
    fn what_is_evicted_while_it_is_published_was_published() {
        let f = Fixture::new();
        let top = f.draft("one");
        f.first_rename();
        f.evict();
        f.view.forget(top, 1);
        let found = f.view.lookup(CALLER, ino::WORK, OsStr::new("w")).unwrap();
        assert_eq!(found.attr.ino, top);
        f.rename().unwrap();
        assert!(matches!(f.view.lookup(CALLER, ino::ROOT, OsStr::new("abcd")), Err(VfsError::NotFound)));
        f.view.forget(top, 1);
        assert!(matches!(f.view.getattr(top), Err(VfsError::Stale)));
    }

    #[test]
    fn who_is_told_of_an_entry_finds_it_in_a_view() {
        let f = Fixture::new();
        f.draft("one");
        f.first_rename();
        std::thread::scope(|scope| {
            let told = scope.spawn(|| {
                f.view.cache.pin("test", &"abcd".parse().unwrap()).unwrap();
                f.view.lookup(CALLER, ino::ROOT, OsStr::new("abcd"))
            });
            let end = Instant::now() + Duration::from_millis(50);
            while Instant::now() < end {
                assert!(!told.is_finished(), "it is not shown yet");
                std::thread::yield_now();
            }
            f.rename().unwrap();
            assert!(told.join().unwrap().is_ok());
        });
    }

    #[test]
    fn a_thread_that_lives_may_come_late() {
        let f = Fixture::new();
        let late = || {
            let long_ago = Instant::now().checked_sub(RETRY * 2).unwrap();
            f.view.publishing.with(|all| all.values_mut().for_each(|p| p.since = long_ago));
        };
        f.draft("one");
        f.first_rename();
        late();
        f.rename().unwrap();
        f.evict();

        // A thread that is gone has no number; what it published is shown to all.
        let gone = Caller { pid: u32::MAX, ..CALLER };
        f.draft("two");
        let (from, to) = (OsStr::new("w"), OsStr::new("abcd"));
        assert!(matches!(f.view.rename(gone, ino::WORK, from, ino::ROOT, to, 0), Err(VfsError::Stale)));
        f.view.lookup(gone, ino::CONTROL, OsStr::new("work")).unwrap();
        assert!(matches!(f.view.lookup(CALLER, ino::ROOT, to), Err(VfsError::NotFound)), "not yet");
        late();
        assert!(f.view.lookup(CALLER, ino::ROOT, to).is_ok());
    }

    #[test]
    fn a_rename_that_never_came_back_says_nothing_of_the_next() {
        let f = Fixture::new();
        f.draft("one");
        f.first_rename();
        f.evict();
        let top = f.draft("two");
        assert_eq!(f.view.lookup(CALLER, ino::WORK, OsStr::new("w")).unwrap().attr.ino, top);
        f.first_rename();
        f.rename().unwrap();
        let entry = f.view.lookup(CALLER, ino::ROOT, OsStr::new("abcd")).unwrap().attr.ino;
        assert!(f.view.lookup(CALLER, entry, OsStr::new("two")).is_ok(), "this one was sealed");
    }
}
