//! What was stored for an entry that is not committed yet.
//!
//! Purpose: content becomes durable before the entry that refers to it is committed; this
//! remembers where, keeps it reserved, and takes it away again when the entry never comes.
//!
//! A large file of a draft enters the store as a hard link of the draft's own file, which may be
//! written again until the draft is sealed. Hence the invariants: a loose blob that the index does
//! not know is trusted by nobody but the stash that put it there; whoever else needs that content
//! replaces the file by its own ([`Claims::claim`]); and a commit first makes sure that all
//! its loose blobs are still its own ([`Claims::claim_own`]).
//! Must not know: manifests, keys, how content is found.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Cache, Inner, Result, at, lease};
use crate::model::BlobHash;
use crate::model::manifest::Content;
use crate::store::{Adopt, Hashed, Location, PACK_LIMIT, PackId, PackWriter};

/// Who put which uncommitted loose blob into the store.
#[derive(Default)]
pub(super) struct Claims {
    claims: Mutex<HashMap<BlobHash, Claim>>,
    changed: Condvar,
    insisting: Mutex<()>,
}

struct Claim {
    owner: u64,
    /// The owner is storing or committing it: others wait.
    busy: bool,
}

impl Claims {
    /// Makes `owner` the one who may put this blob in place, waiting for another who is at it.
    fn claim(&self, hash: &BlobHash, owner: u64) {
        let mut claims = self.claims.lock();
        while claims.get(hash).is_some_and(|c| c.busy && c.owner != owner) {
            self.changed.wait(&mut claims);
        }
        claims.insert(*hash, Claim { owner, busy: true });
    }

    /// The file is in place; others may replace it.
    fn settle(&self, hash: &BlobHash, owner: u64) {
        if let Some(c) = self.claims.lock().get_mut(hash).filter(|c| c.owner == owner) {
            c.busy = false;
        }
        self.changed.notify_all();
    }

    /// Holds a blob for a commit, if it is still `owner`'s.
    fn claim_own(&self, hash: &BlobHash, owner: u64) -> bool {
        let mut claims = self.claims.lock();
        match claims.get_mut(hash) {
            Some(c) if c.owner == owner => {
                c.busy = true;
                true
            }
            _ => false,
        }
    }

    /// Does `work` while nobody else puts this blob in place or commits it; waits for who is at it.
    pub fn alone_with<T>(&self, hash: &BlobHash, work: impl FnOnce() -> T) -> T {
        let owner = new_owner();
        self.claim(hash, owner);
        let done = work();
        self.release(hash, owner);
        done
    }

    fn release(&self, hash: &BlobHash, owner: u64) {
        let mut claims = self.claims.lock();
        if claims.get(hash).is_some_and(|c| c.owner == owner) {
            claims.remove(hash);
        }
        drop(claims);
        self.changed.notify_all();
    }
}

/// A number that no other has.
fn new_owner() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A stash that lost blobs to others once keeps what it claims until it has committed, so that
/// those who store the same content at once do not take it from each other for ever. Only one
/// at a time does so, hence it can wait for others, who never keep a claim while they wait.
pub(super) struct Insisting<'a> {
    stash: &'a Stash,
    cache: &'a Cache,
    _alone: MutexGuard<'a, ()>,
}

impl Drop for Insisting<'_> {
    fn drop(&mut self) {
        self.stash.insisting.store(false, Ordering::Release);
        self.stash.let_go(self.cache);
    }
}

/// Stored, reserved, not committed.
pub(super) struct Stash {
    owner: u64,
    insisting: AtomicBool,
    cache: Weak<Inner>,
    state: Mutex<Stored>,
}

#[derive(Default)]
struct Stored {
    reservations: Vec<lease::Reservation>,
    reserved: HashSet<BlobHash>,
    /// Where the blobs lie, known to the index or put there by us.
    placed: HashMap<BlobHash, Location>,
    packs: HashMap<PackId, u64>,
    loose: HashSet<BlobHash>,
    /// Those that are files of the draft itself.
    linked: HashSet<BlobHash>,
    /// Bytes that it takes on the disk and nobody else counts.
    bytes: u64,
}

impl Stash {
    /// An empty one.
    pub fn new(cache: &Cache) -> Stash {
        Stash {
            owner: new_owner(),
            insisting: AtomicBool::new(false),
            cache: Arc::downgrade(&cache.inner),
            state: Mutex::default(),
        }
    }

    /// Where a blob lies, if it is stored.
    pub fn location(&self, hash: &BlobHash) -> Option<Location> {
        self.state.lock().placed.get(hash).copied()
    }

    /// The draft is looked through again, and its files may have been written to since: what was linked is those files, so it
    /// counts as stored only once a file that has the content now was linked in its place.
    pub fn doubt_linked(&self) {
        let state = &mut *self.state.lock();
        for hash in state.linked.drain() {
            state.placed.remove(&hash);
        }
    }

    fn reserve(&self, cache: &Cache, hashes: &[BlobHash]) {
        let new: Vec<_> = {
            let state = self.state.lock();
            hashes.iter().filter(|h| !state.reserved.contains(h)).copied().collect()
        };
        if !new.is_empty() {
            // What is just being freed is waited for, by each who stores it for this stash.
            let reservation = cache.reserve(&new);
            let mut state = self.state.lock();
            state.reserved.extend(new);
            state.reservations.push(reservation);
        }
    }

    /// Makes sure that there is room for `bytes` more than what is stashed already.
    fn room_for(&self, cache: &Cache, bytes: u64) -> Result<()> {
        let stashed = self.state.lock().bytes;
        cache.make_room(stashed + bytes)
    }

    /// Takes small contents in order: what the index does not know goes into `pack`.
    pub fn put_small(&self, cache: &Cache, pack: &mut NewPack, batch: &[Hashed]) -> Result<()> {
        let mut seen = HashSet::new();
        let wanted: Vec<_> = batch
            .iter()
            .filter(|c| {
                let hash = &c.hash();
                self.location(hash).is_none() && !pack.placed.contains_key(hash) && seen.insert(*hash)
            })
            .collect();
        let hashes: Vec<_> = wanted.iter().map(|c| c.hash()).collect();
        self.reserve(cache, &hashes);
        let rows = cache.inner.index.blobs(&hashes)?;
        let mut new = Vec::new();
        for (item, row) in wanted.into_iter().zip(rows) {
            match row.filter(|row| row.location != Location::Elsewhere && !cache.is_damaged(&item.hash())) {
                Some(row) => drop(self.state.lock().placed.insert(item.hash(), row.location)),
                None => new.push(item),
            }
        }
        let more = new.iter().map(|c| c.bytes().len() as u64).sum::<u64>();
        self.room_for(cache, pack.bytes + more)?;
        pack.bytes += more;
        for content in new {
            let writer = match &mut pack.writer {
                Some(w) => w,
                none => none.insert(cache.inner.store.new_pack()?),
            };
            pack.placed.insert(content.hash(), writer.append_hashed(content)?);
        }
        Ok(())
    }

    /// Makes a pack durable; its blobs count as stored from now on.
    pub fn finish_pack(&self, pack: NewPack) -> Result<()> {
        if let Some(writer) = pack.writer {
            let info = writer.finish()?;
            let mut state = self.state.lock();
            state.bytes += info.bytes;
            state.packs.insert(info.id, info.bytes);
            state.placed.extend(pack.placed);
        }
        Ok(())
    }

    /// Which of these contents are stored already? Those are reserved from now on.
    pub fn have(&self, cache: &Cache, contents: &[&Content]) -> Result<Vec<bool>> {
        let hashes: Vec<_> = contents.iter().map(|c| c.hash).collect();
        self.reserve(cache, &hashes);
        let rows = cache.inner.index.blobs(&hashes)?;
        let mut placed = HashMap::new();
        for (content, row) in contents.iter().zip(rows) {
            let Some(row) = row.filter(|_| !cache.is_damaged(&content.hash)) else { continue };
            let there = match row.location {
                Location::Pack { .. } => true,
                Location::Loose => self.find_large(cache, content)?,
                Location::Elsewhere => false,
            };
            if there {
                placed.insert(content.hash, row.location);
            }
        }
        let have = hashes.iter().map(|h| placed.contains_key(h)).collect();
        self.state.lock().placed.extend(placed);
        Ok(have)
    }

    /// Is this large content stored already, by an entry or by us? It is reserved from now on.
    pub fn has_large(&self, cache: &Cache, content: &Content) -> Result<bool> {
        if self.location(&content.hash).is_some() {
            return Ok(true);
        }
        self.reserve(cache, &[content.hash]);
        self.find_large(cache, content)
    }

    /// Looks a large blob up in the index, and whether its file is really there.
    fn find_large(&self, cache: &Cache, content: &Content) -> Result<bool> {
        let Some(row) = cache.inner.index.blob(&content.hash)? else { return Ok(false) };
        let there = match row.location {
            Location::Pack { .. } => true,
            Location::Loose => cache
                .inner
                .store
                .blob_file(&content.hash)
                .is_ok_and(|f| at::stat_of(&f).is_ok_and(|s| s.st_size as u64 == content.size)),
            Location::Elsewhere => false,
        };
        if there && !cache.is_damaged(&content.hash) {
            self.state.lock().placed.insert(content.hash, row.location);
            return Ok(true);
        }
        Ok(false)
    }

    /// Puts a large file into the store. For [`Adopt::Link`] the caller holds a read lease on it,
    /// or is the only one who has it.
    pub fn put_large(&self, cache: &Cache, file: &File, content: &Content, how: Adopt) -> Result<()> {
        debug_assert!(content.size > PACK_LIMIT);
        if self.has_large(cache, content)? {
            return Ok(());
        }
        // A place that an entry has already is no draft's file.
        let how = if cache.is_damaged(&content.hash) { Adopt::Clone } else { how };
        // A link takes no room: its bytes count as the draft's already.
        self.room_for(cache, if how == Adopt::Link { 0 } else { content.size })?;
        let claims = &cache.inner.claims;
        claims.claim(&content.hash, self.owner);
        let put = (|| {
            // Somebody may have committed it while we waited.
            if self.find_large(cache, content)? {
                claims.release(&content.hash, self.owner);
                return Ok(());
            }
            // What lies there is nobody's, or another's who may still write to it.
            cache.inner.store.remove_blob(&content.hash)?;
            cache.inner.store.adopt(file, &content.hash, how)?;
            let mut state = self.state.lock();
            state.loose.insert(content.hash);
            if how == Adopt::Link {
                state.linked.insert(content.hash);
            }
            state.placed.insert(content.hash, Location::Loose);
            state.bytes += if how == Adopt::Link { 0 } else { content.size };
            drop(state);
            if !self.insisting.load(Ordering::Acquire) {
                claims.settle(&content.hash, self.owner);
            }
            Ok(())
        })();
        if put.is_err() {
            claims.release(&content.hash, self.owner);
        }
        put
    }

    /// From now on, until the guard is dropped, nothing that is ours is taken by others.
    pub fn insist<'a>(&'a self, cache: &'a Cache) -> Insisting<'a> {
        let alone = cache.inner.claims.insisting.lock();
        self.insisting.store(true, Ordering::Release);
        let all: Vec<_> = self.state.lock().loose.iter().copied().collect();
        for hash in all {
            if !cache.inner.claims.claim_own(&hash, self.owner) {
                self.forget_loose(&hash);
            }
        }
        Insisting { stash: self, cache, _alone: alone }
    }

    fn forget_loose(&self, hash: &BlobHash) {
        let mut state = self.state.lock();
        state.loose.remove(hash);
        state.linked.remove(hash);
        state.placed.remove(hash);
    }

    /// Holds everything among `hashes` that is ours for a commit. False when something was
    /// replaced by others meanwhile: then it is forgotten, and must be stored again.
    pub fn hold(&self, cache: &Cache, hashes: &HashSet<BlobHash>) -> bool {
        let ours: Vec<_> = self.state.lock().loose.iter().filter(|h| hashes.contains(h)).copied().collect();
        let mut lost = Vec::new();
        for hash in &ours {
            if !cache.inner.claims.claim_own(hash, self.owner) {
                lost.push(*hash);
            }
        }
        if lost.is_empty() {
            return true;
        }
        self.let_go(cache);
        lost.iter().for_each(|hash| self.forget_loose(hash));
        false
    }

    /// Whether it has put this blob there itself, and not committed it yet.
    pub fn is_own(&self, hash: &BlobHash, at: Location) -> bool {
        let state = self.state.lock();
        match at {
            Location::Pack { pack, .. } => state.packs.contains_key(&pack),
            Location::Loose => state.loose.contains(hash),
            Location::Elsewhere => false,
        }
    }

    /// Forgets that those of `hashes` are stored which others have stored and which were found damaged since. True when there
    /// were any: they must be stored anew.
    pub fn doubt_damaged(&self, cache: &Cache, hashes: &[(BlobHash, u64)]) -> bool {
        let others = |hash: &BlobHash| {
            cache.is_damaged(hash) && self.location(hash).is_some_and(|at| !self.is_own(hash, at))
        };
        let mut doubted = false;
        if cache.is_any_damaged(hashes.iter().map(|(hash, _)| hash)) {
            for (hash, _) in hashes.iter().filter(|(hash, _)| others(hash)) {
                doubted |= self.state.lock().placed.remove(hash).is_some();
            }
        }
        doubted
    }

    /// After a [`hold`](Self::hold) that led to no commit.
    pub fn let_go(&self, cache: &Cache) {
        if self.insisting.load(Ordering::Acquire) {
            return;
        }
        let loose: Vec<_> = self.state.lock().loose.iter().copied().collect();
        for hash in loose {
            cache.inner.claims.settle(&hash, self.owner);
        }
    }

    /// The packs among `locations` that are ours, with their file sizes.
    pub fn packs_of(&self, locations: impl Iterator<Item = Location>) -> Vec<(PackId, u64)> {
        let state = self.state.lock();
        let used: HashSet<_> = locations
            .filter_map(|l| match l {
                Location::Pack { pack, .. } => Some(pack),
                Location::Loose | Location::Elsewhere => None,
            })
            .collect();
        state.packs.iter().filter(|(id, _)| used.contains(id)).map(|(id, n)| (*id, *n)).collect()
    }

    /// After the commit of an entry with these blobs and packs: they are the index's now. Returns
    /// the loose blobs that came with it.
    pub fn committed(
        &self,
        cache: &Cache,
        hashes: &HashSet<BlobHash>,
        packs: &[(PackId, u64)],
    ) -> Vec<BlobHash> {
        let mut state = self.state.lock();
        for (id, _) in packs {
            state.packs.remove(id);
        }
        state.bytes = state.packs.values().sum();
        let done: Vec<_> = state.loose.extract_if(|h| hashes.contains(h)).collect();
        state.linked.retain(|h| !hashes.contains(h));
        drop(state);
        for hash in &done {
            cache.inner.claims.release(hash, self.owner);
        }
        done
    }

    /// Takes away what was stored and not committed, and gives the reservations back.
    pub fn discard(&self) {
        let Some(inner) = self.cache.upgrade() else { return };
        let cache = Cache { inner };
        let stored = std::mem::take(&mut *self.state.lock());
        // What failed may count after a death: then it is the next owner's to tell.
        if cache.inner.index.is_in_doubt() {
            cache.inner.upkeep.sweep.lock().left_something();
            stored.loose.iter().for_each(|hash| cache.inner.claims.release(hash, self.owner));
            return;
        }
        // What the index knows is some entry's, whatever we think.
        let remove_pack = |id| -> Result<()> {
            if cache.inner.index.pack(id)?.is_none() {
                cache.inner.store.remove_pack(id)?;
            }
            Ok(())
        };
        let remove_blob = |hash: &BlobHash| -> Result<()> {
            if cache.inner.index.blob(hash)?.is_none_or(|row| row.location == Location::Elsewhere) {
                cache.inner.store.remove_blob(hash)?;
            }
            Ok(())
        };
        let warn = |e| tracing::warn!("what was stored for nothing cannot be deleted: {e}");
        for id in stored.packs.into_keys() {
            cache.or_sweep(remove_pack(id)).unwrap_or_else(warn);
        }
        for hash in stored.loose {
            if cache.inner.claims.claim_own(&hash, self.owner) {
                cache.or_sweep(remove_blob(&hash)).unwrap_or_else(warn);
                cache.inner.claims.release(&hash, self.owner);
            }
        }
        drop(stored.reservations);
    }
}

impl Drop for Stash {
    fn drop(&mut self) {
        self.discard();
    }
}

/// A pack being filled for a stash.
#[derive(Default)]
pub(super) struct NewPack {
    writer: Option<PackWriter>,
    placed: HashMap<BlobHash, Location>,
    /// Content so far.
    bytes: u64,
}
