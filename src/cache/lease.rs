//! Leases: who holds which entry, and what happens when the last one lets go.
//!
//! Invariants: an entry with a lease is never freed; an entry that was hidden while leased is
//! handed to the reaper after its last lease was dropped; taking a lease and choosing an entry
//! for eviction exclude each other; a reserved blob is never freed, and a blob that is just
//! being freed cannot be reserved until it is gone (then it must be stored anew). Dropping a
//! lease or a reservation does no I/O. Model-checked by `tests/interleavings`. Must not know: files, the index,
//! what an eviction is for.
//!
//! Who seals reserves the hashes first, and only then asks the index which blobs are there:
//! what it is told then stays until the reservation is dropped, after the commit.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::model::BlobHash;
use crate::sync::{Condvar, Mutex};

/// How many evicted row ids are remembered, so that a lookup that has read an entry's row just
/// before it went gets no lease. (Row ids are never used again.)
const REMEMBERED: usize = 16 * 1024;

/// Who holds an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseKind {
    /// A view's kernel look-ups: given back when the kernel is asked to forget.
    View,
    /// An operation, a scoped view, a link, a client: given back when it ends.
    Hold,
}

/// Keeps an entry from being freed; dropping gives it back.
#[derive(Debug)]
pub struct Lease {
    /// Row id of the entry.
    pub entry: i64,
    /// Who holds it.
    pub kind: LeaseKind,
    shared: Arc<Shared>,
}

impl Lease {
    /// One more lease of the same entry, which may be hidden already.
    pub fn another(&self, kind: LeaseKind) -> Lease {
        let mut table = self.shared.table.lock();
        table.held.entry(self.entry).or_default().add(kind, 1);
        Lease { entry: self.entry, kind, shared: self.shared.clone() }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut table = self.shared.table.lock();
        let Some(held) = table.held.get_mut(&self.entry) else { return };
        held.add(self.kind, -1);
        if held.leases() > 0 || held.state == State::Evicting {
            return;
        }
        if held.state == State::Condemned {
            // Whoever reaps holds the other end; without it there is nothing to free.
            let _ = self.shared.reaper.send(self.entry);
        }
        table.held.remove(&self.entry);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Live,
    /// Chosen: no new leases until the choice is dropped or carried out.
    Evicting,
    /// Out of the index, waiting for its last lease.
    Condemned,
}

#[derive(Debug, Clone, Copy, Default)]
struct Held {
    view: i64,
    hold: i64,
    state: State,
}

impl Held {
    fn add(&mut self, kind: LeaseKind, n: i64) {
        match kind {
            LeaseKind::View => self.view += n,
            LeaseKind::Hold => self.hold += n,
        }
    }
    fn leases(&self) -> i64 {
        self.view + self.hold
    }
}

#[derive(Debug, Default)]
struct Table {
    held: HashMap<i64, Held>,
    gone: HashSet<i64>,
    gone_order: VecDeque<i64>,
}

impl Table {
    /// No new leases from now on; true when there are none.
    fn condemn(&mut self, entry: i64) -> bool {
        if self.gone.insert(entry) {
            self.gone_order.push_back(entry);
        }
        if self.gone_order.len() > REMEMBERED
            && let Some(oldest) = self.gone_order.pop_front()
        {
            self.gone.remove(&oldest);
        }
        match self.held.get_mut(&entry) {
            // Whoever has chosen it finds out when it drops the choice.
            Some(held) if held.leases() > 0 || held.state == State::Evicting => {
                held.state = State::Condemned;
                false
            }
            _ => {
                self.held.remove(&entry);
                true
            }
        }
    }
}

#[derive(Debug, Default)]
struct Blobs {
    reserved: HashMap<BlobHash, u32>,
    claimed: HashSet<BlobHash>,
}

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    reaper: Sender<i64>,
    blobs: Mutex<Blobs>,
    freed: Condvar,
}

/// Who holds an entry now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    /// Leases of views.
    pub view: u64,
    /// Others.
    pub hold: u64,
}

/// All leases and reservations of a cache.
pub(crate) struct LeaseTable {
    shared: Arc<Shared>,
    condemned: Receiver<i64>,
}

impl Default for LeaseTable {
    fn default() -> Self {
        let (reaper, condemned) = unbounded();
        let shared =
            Shared { table: Mutex::default(), reaper, blobs: Mutex::default(), freed: Condvar::new() };
        LeaseTable { shared: Arc::new(shared), condemned }
    }
}

impl LeaseTable {
    /// Leases the entry with this row id, as the index has just given it; `None` when it is
    /// being evicted or went meanwhile: it is not there any more.
    pub(crate) fn take(&self, entry: i64, kind: LeaseKind) -> Option<Lease> {
        let mut table = self.shared.table.lock();
        if table.gone.contains(&entry) {
            return None;
        }
        let held = table.held.entry(entry).or_default();
        if held.state != State::Live {
            return None;
        }
        held.add(kind, 1);
        Some(Lease { entry, kind, shared: self.shared.clone() })
    }

    /// Nobody holds, evicts or reserves anything.
    pub(crate) fn is_idle(&self) -> bool {
        self.shared.table.lock().held.is_empty() && self.shared.blobs.lock().reserved.is_empty()
    }

    /// Who holds the entry.
    pub(crate) fn counts(&self, entry: i64) -> Counts {
        let table = self.shared.table.lock();
        table
            .held
            .get(&entry)
            .map_or(Counts::default(), |h| Counts { view: h.view.max(0) as u64, hold: h.hold.max(0) as u64 })
    }

    /// Chooses an entry for eviction; with `leased`, even when it has leases. `None` when it has
    /// and may not, or somebody else chose it.
    pub(crate) fn choose(&self, entry: i64, leased: bool) -> Option<Choice> {
        let mut table = self.shared.table.lock();
        if table.gone.contains(&entry) {
            return None;
        }
        let held = table.held.entry(entry).or_default();
        if held.state != State::Live || (!leased && held.leases() > 0) {
            return None;
        }
        held.state = State::Evicting;
        Some(Choice { entry, shared: self.shared.clone(), done: false })
    }

    /// An entry went out of the index without having been chosen (it was replaced). True when
    /// nobody holds it: free it now; otherwise it comes from `next_condemned` later.
    pub(crate) fn condemn(&self, entry: i64) -> bool {
        let mut table = self.shared.table.lock();
        table.condemn(entry)
    }

    /// The next hidden entry whose last lease is gone.
    pub(crate) fn next_condemned(&self) -> Option<i64> {
        self.condemned.try_recv().ok()
    }

    /// Reserves blobs against being freed; waits for those that are just being freed.
    /// Never called while holding a [`Claim`].
    pub(crate) fn reserve(&self, hashes: impl IntoIterator<Item = BlobHash>) -> Reservation {
        let mut r = Reservation { hashes: Vec::new(), shared: self.shared.clone() };
        r.add(hashes);
        r
    }

    /// Whoever reserves this blob now waits.
    pub(crate) fn is_claimed(&self, hash: &BlobHash) -> bool {
        self.shared.blobs.lock().claimed.contains(hash)
    }

    /// Of `hashes`, those that nobody reserves or claims: nobody can reserve them until the claim is
    /// dropped, after the files are gone.
    pub(crate) fn claim(&self, hashes: impl IntoIterator<Item = BlobHash>) -> Claim {
        let mut blobs = self.shared.blobs.lock();
        let hashes = hashes
            .into_iter()
            .filter(|h| !blobs.reserved.contains_key(h) && blobs.claimed.insert(*h))
            .collect();
        Claim { hashes, shared: self.shared.clone() }
    }

    /// Somebody reserves this blob.
    pub(crate) fn is_reserved(&self, hash: &BlobHash) -> bool {
        self.shared.blobs.lock().reserved.contains_key(hash)
    }
}

/// An entry chosen for eviction: nobody can lease it. Dropped, the choice is taken back.
pub(crate) struct Choice {
    entry: i64,
    shared: Arc<Shared>,
    done: bool,
}

impl Choice {
    /// The entry is out of the index. True when nobody holds it: free it now; otherwise it
    /// comes from [`LeaseTable::next_condemned`] later.
    pub(crate) fn condemn(mut self) -> bool {
        self.done = true;
        let mut table = self.shared.table.lock();
        if let Some(held) = table.held.get_mut(&self.entry) {
            held.state = State::Live;
        }
        table.condemn(self.entry)
    }
}

impl Drop for Choice {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut table = self.shared.table.lock();
        let Some(held) = table.held.get_mut(&self.entry) else { return };
        let condemned = held.state == State::Condemned;
        if !condemned {
            held.state = State::Live;
        }
        if held.leases() == 0 {
            table.held.remove(&self.entry);
            if condemned {
                let _ = self.shared.reaper.send(self.entry);
            }
        }
    }
}

/// Keeps blobs from being freed; dropping gives them back.
#[derive(Debug)]
pub(crate) struct Reservation {
    hashes: Vec<BlobHash>,
    shared: Arc<Shared>,
}

impl Reservation {
    /// Reserves more; waits for those that are just being freed.
    pub(crate) fn add(&mut self, hashes: impl IntoIterator<Item = BlobHash>) {
        let mut blobs = self.shared.blobs.lock();
        for hash in hashes {
            while blobs.claimed.contains(&hash) {
                self.shared.freed.wait(&mut blobs);
            }
            *blobs.reserved.entry(hash).or_default() += 1;
            self.hashes.push(hash);
        }
    }

    /// What it reserves.
    pub(crate) fn hashes(&self) -> &[BlobHash] {
        &self.hashes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut blobs = self.shared.blobs.lock();
        for hash in &self.hashes {
            if let Some(n) = blobs.reserved.get_mut(hash) {
                *n -= 1;
                if *n == 0 {
                    blobs.reserved.remove(hash);
                }
            }
        }
    }
}

/// Blobs that are being freed.
pub(crate) struct Claim {
    hashes: HashSet<BlobHash>,
    shared: Arc<Shared>,
}

impl Claim {
    /// It is claimed: may be freed.
    pub(crate) fn has(&self, hash: &BlobHash) -> bool {
        self.hashes.contains(hash)
    }

    /// All of them.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = &BlobHash> {
        self.hashes.iter()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut blobs = self.shared.blobs.lock();
        for hash in &self.hashes {
            blobs.claimed.remove(hash);
        }
        self.shared.freed.notify_all();
    }
}
