//! Opening a cache as the owner of its store, and closing it.
//!
//! Invariant: nobody gets a [`Cache`] before recovery is done.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::background::{Background, Job};
use super::memory::Shares;
use super::{Cache, CacheError, Inner, Limits, Result, ingest, lease, lookup, peek};
use crate::index::Index;
use crate::store::{Access, Store, Unowned};

const INDEX: &str = "index.sqlite";

impl Cache {
    /// Opens the store at `root` as its owner, creates it if missing, recovers from any kind of death.
    pub fn open(root: &Path, limits: Limits) -> Result<Cache> {
        ingest::ignore_sigio();
        let store = Store::open(root, Access::Own)?;
        let (index, fresh) = Index::open(&store.path(INDEX), Shares::of(limits.memory).keys)?;
        let cache = Cache::assemble(store, index, limits)?;
        cache.make_ready(fresh)?;
        if let Err(e) = cache.end_dead_sessions().and_then(|()| cache.end_forgotten_sessions()) {
            tracing::warn!(error = %e, "what ended sessions have left stays for now");
        }
        Ok(cache)
    }

    /// Opens the store at `root`, in which nothing can be written, for what it has: with a copy of its index in the directory `aside`. Nothing
    /// is recovered, and nobody owns the store as long as what is returned beside the cache is held.
    pub fn open_to_read(root: &Path, aside: &Path, limits: Limits) -> Result<(Cache, Unowned)> {
        ingest::ignore_sigio();
        let unowned = Unowned::hold(root)?;
        let store = Store::open(root, Access::Read)?;
        let keys = Shares::of(limits.memory).keys;
        let index = Index::open_copy(&store.path(INDEX), &aside.join(INDEX), keys)?;
        let cache = Cache::assemble(store, index, limits)?;
        cache.inner.upkeep.verdicts.load(&cache.inner.store)?;
        cache.know_damaged()?;
        Ok((cache, unowned))
    }

    fn assemble(store: Store, index: Index, limits: Limits) -> Result<Cache> {
        let (store, shares) = (Arc::new(store), Shares::of(limits.memory));
        let mut started = Ok(());
        let inner = Arc::new_cyclic(|cache| {
            let (background, thread) = Background::start(cache.clone());
            started = thread;
            Inner {
                store,
                index,
                anew: Default::default(),
                leases: lease::LeaseTable::default(),
                holders: Default::default(),
                limits: parking_lot::RwLock::new(limits),
                upkeep: Default::default(),
                drafts: Default::default(),
                sealing: Default::default(),
                births: Default::default(),
                manifests: Default::default(),
                claims: Default::default(),
                tiers: Default::default(),
                aliases: Default::default(),
                partials: Default::default(),
                push: Default::default(),
                loaded: lookup::AllLoaded::new(shares.manifests),
                peeks: peek::Peeks::new(shares.peeks),
                share_of_kernels: shares.kernels,
                let_go: Default::default(),
                damaged: Default::default(),
                bad_index: Default::default(),
                bad_manifests: Default::default(),
                blob_bytes_read: Default::default(),
                scrub: Default::default(),
                background,
                closing: Default::default(),
            }
        });
        started.map_err(|e| CacheError::io("start a thread for", inner.store.root(), e))?;
        Ok(Cache { inner })
    }

    /// Recovers. An index whose damage shows only now is no worse than one that could not be opened: it is made anew.
    fn make_ready(&self, fresh: bool) -> Result<()> {
        let ready = |fresh| {
            self.recover(fresh)?;
            self.load_damaged()?;
            self.load_partials()?;
            self.load_drafts()
        };
        match ready(fresh) {
            Err(CacheError::Index(e)) if !fresh && e.is_damage() => {
                tracing::warn!(error = %e, "the index is damaged and made anew");
                ready(true)
            }
            other => other,
        }
    }

    /// Has the keys of all entries taken into memory, in the background: worth it for who looks many up.
    pub fn load_keys(&self) {
        self.inner.background.send(Job::LoadKeys(0));
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }

    /// The limits it runs with.
    pub fn limits(&self) -> Limits {
        self.inner.limits.read().clone()
    }

    /// The index.
    pub fn index(&self) -> &Index {
        &self.inner.index
    }

    /// Finishes what runs in the background, but for hashing drafts' files, and writes down the accesses.
    /// The store is free for another owner when the last clone of the cache and the last [`Entry`](super::Entry) are gone.
    pub fn close(self) -> Result<()> {
        self.inner.closing.store(true, std::sync::atomic::Ordering::Relaxed);
        self.inner.background.stop();
        // What a tier does not answer is not waited for.
        self.wait_for_ahead(Duration::from_secs(1));
        let ended = self.or_sweep(self.write_down());
        // Also when that failed: what is left behind then is what the next start looks for.
        self.remember_sweep();
        ended
    }

    /// The last that a cache does.
    fn write_down(&self) -> Result<()> {
        self.inner.note_reads();
        self.inner.flush_accesses()?;
        self.reap()?;
        self.free_let_go()?;
        // Without a daemon nobody else does; once for each segment that was written.
        if self.inner.store.has_new_segment() {
            self.trim_events()?;
        }
        Ok(())
    }

    /// Waits until nothing is read ahead any more, deleted drafts are off the disk and accesses are written down.
    pub fn settle(&self) {
        self.wait_for_ahead(Duration::from_secs(60));
        self.inner.background.wait();
        if let Err(e) = self.inner.flush_accesses() {
            tracing::warn!("cannot write down accesses: {e}");
        }
    }
}
