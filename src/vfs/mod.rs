//! File-system logic without a kernel: namespace, sealed entries, drafts, control files.
//!
//! Purpose: what every operation on a view means. Invariants: sealed inode numbers are computed
//! (slot and record), everything else has a number in a table until the kernel forgets it; an
//! entry with a look-up count is leased; no lock is held across disk I/O but a draft's gate, and
//! nobody waits for that one ([`VfsError::Committing`]).
//! Must not know: fuser, errno values (its errors are [`VfsError`]), mounting, sockets.
//!
//! Operations are methods of [`View`], in a file per subject: `namespace` (which node a name is),
//! `sealed`, `draft`, `control` (each kind of node), `files` (open, read, write), `dirs`
//! and `names` (listing), `attrs`, `xattrs`, `gestures` and `publishing` (sealing and evicting by rename and chmod), `remote`
//! (what only a tier has).

mod attrs;
mod control;
mod counted;
mod dirs;
mod draft;
mod draft_node;
mod error;
mod files;
mod gestures;
mod holder;
pub mod ino;
mod known;
mod makers;
mod names;
mod namespace;
mod nodes;
mod publishing;
mod reach;
mod remote;
mod sealed;
mod settling;
mod slots;
mod sys;
mod types;
mod writers;
mod xattrs;

pub use counted::{Scarce, Taken};
pub use error::{Result, VfsError};
pub use holder::{Kernel, Top, When};
pub use types::*;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, Entry, LeaseKind, now_ns};
use crate::model::EntryKey;
use draft_node::DraftNode;
use known::Bound;
use makers::Makers;
use nodes::{Node, Nodes, Own};
use reach::Reach;
use sealed::SealedRef;
use slots::Slots;
use writers::Writers;

/// What happens when a client stores over a sealed entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overwrite {
    /// EROFS: the first result wins.
    #[default]
    Deny,
    /// The change continues in a draft that replaces the entry when sealed.
    Replace,
}

/// Bytes: opening and closing a file takes about as long as the daemon's part in reading so much of it.
const LARGE_AS_A_RULE: u64 = 512 << 10;

/// What a view shows and allows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ViewOptions {
    /// EROFS throughout; no opens reach the daemon, unless files are large as a rule.
    pub read_only: bool,
    /// Only these keys (leased while the view lives); implies `read_only`.
    pub scope: Option<Vec<EntryKey>>,
    /// Seal in-place drafts with parsing metadata after this much quiet.
    pub seal_quiet: Option<Duration>,
    /// Storing over a sealed entry.
    pub overwrite: Overwrite,
}

/// One mount's view of a cache.
pub struct View {
    cache: Cache,
    options: ViewOptions,
    /// Keys of a scoped view, with the leases that keep them.
    scope: Option<HashMap<EntryKey, Option<Entry>>>,
    owner: (u32, u32),
    slots: Slots,
    nodes: Nodes,
    reach: Reach,
    handles: RwLock<HashMap<u64, Arc<files::Handle>>>,
    makers: Makers,
    next_handle: AtomicU64,
    listings: names::Listings,
    /// The tree's own directories, by number.
    own_shown: [names::Shown; ino::TRASH as usize + 1],
    kernel: OnceLock<Box<dyn Kernel>>,
    /// Last change of the top directory, nanoseconds since 1970.
    root_changed: AtomicI64,
    /// Drafts this view has seen being made, and by whom: only these may be sealed by quiet.
    born_here: Mutex<HashMap<String, Writers>>,
    /// The page of `by-task` that was listed last: how many tasks come before it, and the last of them.
    task_page: Mutex<(u64, String)>,
    /// One replacement draft is made at a time.
    replacing: Mutex<()>,
    publishing: publishing::Publishing,
    ingest: files::IngestQueue,
    bound: Bound,
    /// For threads that work for it, as long as it lives.
    myself: Weak<View>,
}

/// What a number stands for.
enum Target {
    Fixed(Ino),
    Shard([u8; 4]),
    Sealed(SealedRef),
    Draft(Arc<DraftNode>),
    Snapshot(Arc<[u8]>),
    Task(Arc<str>),
    Made,
    Link(Arc<[u8]>),
    Blob(Arc<nodes::BlobNode>),
}

impl View {
    /// Makes a view and registers it with the cache as a holder.
    pub fn new(cache: Cache, mut options: ViewOptions) -> Result<Arc<View>> {
        let mut scope = None;
        if let Some(keys) = &options.scope {
            options.read_only = true;
            let mut leased = HashMap::new();
            for key in keys {
                leased.insert(key.clone(), cache.find(key, LeaseKind::Hold)?);
            }
            scope = Some(leased);
        }
        let ingest = files::IngestQueue::start(cache.clone());
        let bound = Bound::new(cache.share_of_kernels());
        let view = Arc::new_cyclic(|myself| View {
            cache,
            options,
            scope,
            owner: (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()),
            slots: Slots::default(),
            nodes: Nodes::default(),
            reach: Reach::default(),
            handles: RwLock::default(),
            makers: Makers::default(),
            next_handle: AtomicU64::new(1),
            listings: names::Listings::default(),
            own_shown: Default::default(),
            kernel: OnceLock::new(),
            root_changed: AtomicI64::new(now_ns()),
            born_here: Mutex::default(),
            task_page: Mutex::default(),
            replacing: Mutex::default(),
            publishing: publishing::Publishing::default(),
            ingest,
            bound,
            myself: myself.clone(),
        });
        let holder: Arc<dyn crate::cache::Holder> = view.clone();
        view.cache.register_holder(Arc::downgrade(&holder));
        view.share_again();
        Ok(view)
    }

    /// Where the store lies that it shows.
    pub fn store(&self) -> &std::path::Path {
        self.cache.store().root()
    }

    /// What the view shows and allows.
    pub fn options(&self) -> &ViewOptions {
        &self.options
    }

    /// Whether nothing can change through it.
    pub fn read_only(&self) -> bool {
        self.options.read_only
    }

    /// Whether the kernel may read and write files by itself. A draft's file is released when it is closed, while
    /// a mapping of it still writes: only a lease shows that.
    pub fn may_pass_through(&self) -> bool {
        self.read_only() || self.cache.has_leases()
    }

    /// Whether requests to open files are worth what they cost, to have large ones passed through. Drafts always gain;
    /// a read-only view, which needs no opens otherwise, only where files are large as a rule, as it is now.
    pub fn gains_by_opens(&self) -> bool {
        let (bytes, files) = match &self.scope {
            None if !self.read_only() => return true,
            None => self.cache.stored(),
            Some(scope) => scope
                .values()
                .flatten()
                .filter_map(|e| e.row().ok())
                .fold((0, 0), |(bytes, files), row| (bytes + row.logical_bytes, files + row.files)),
        };
        files > 0 && bytes / files >= LARGE_AS_A_RULE
    }

    fn target(&self, ino: Ino) -> Result<Target> {
        match ino::meaning(ino) {
            ino::Meaning::Fixed(n) => Ok(Target::Fixed(n)),
            ino::Meaning::Shard(s) => Ok(Target::Shard(s)),
            ino::Meaning::Sealed { slot, record } => {
                let slot = self.slots.get(slot).ok_or(VfsError::Stale)?;
                Ok(Target::Sealed(SealedRef { entry: slot.entry.clone(), record, ino, slot: Some(slot) }))
            }
            ino::Meaning::Table(n) => Ok(match self.nodes.get(n).ok_or(VfsError::Stale)? {
                Node::Draft(d) => {
                    // Where a draft's top stood there may be an entry now: the name is to be asked for again.
                    let ended = d.top && d.draft.has_ended() == Some(true);
                    match d.sealed() {
                        Some((entry, record)) => Target::Sealed(SealedRef { entry, record, ino, slot: None }),
                        None if ended => return Err(VfsError::Stale),
                        None => Target::Draft(d),
                    }
                }
                Node::Own(Own::Snapshot(s)) => Target::Snapshot(s),
                Node::Own(Own::Task(t)) => Target::Task(t),
                Node::Own(Own::Made) => Target::Made,
                Node::Own(Own::Link(l)) => Target::Link(l),
                Node::Own(Own::Blob(b)) => Target::Blob(b),
            }),
        }
    }

    /// The kernel gives back `n` look-ups of `ino`.
    pub fn forget(&self, ino: Ino, n: u64) {
        self.bound.forgot(1);
        match ino::meaning(ino) {
            ino::Meaning::Sealed { slot, .. } => self.slots.forget(slot, n),
            ino::Meaning::Table(t) => {
                self.reach.drop_dir(t);
                self.listings.forget(t);
                if let Some(slot) = self.nodes.forget(t, n) {
                    self.slots.forget(slot.number, 1);
                }
                self.cache.note_let_go(known::NODE as u64);
            }
            ino::Meaning::Fixed(_) | ino::Meaning::Shard(_) => {}
        }
    }
}

impl Drop for View {
    /// A connection that was cut off (`umount -f`) releases nothing: its writers are gone all the same.
    fn drop(&mut self) {
        for (_, handle) in self.handles.get_mut().drain() {
            if handle.writer {
                handle.node.draft.writer_closed();
            }
        }
    }
}
