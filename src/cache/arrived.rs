//! Small contents that came from a tier and are on their way into a pack: who reads them meanwhile has them from memory, so that
//! nobody who reads waits for the disk.
//!
//! Invariants: what is here was verified, and is here until the index says in which pack it lies, synced, or until it could not be
//! kept; of more than [`MOST`] bytes who had them come makes a pack at once. What comes while a pack is made goes into the next one,
//! together. The thread begins when it is needed, ends when it is not, and keeps no cache open. Must not know: what a tier is, who reads.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::{Cache, Result};
use crate::model::BlobHash;

/// Bytes that are on their way at a time.
const MOST: usize = 4 << 20;

/// Contents that came together.
pub(super) type Contents = Vec<(BlobHash, Vec<u8>)>;

/// All that is on its way.
#[derive(Default)]
pub(super) struct Arrived {
    state: Mutex<State>,
    kept: Condvar,
    /// Held by the thread while it makes a pack.
    packing: Mutex<()>,
}

#[derive(Default)]
struct State {
    /// With what each came, and its place in that.
    contents: HashMap<BlobHash, (Arc<Contents>, usize)>,
    waiting: Vec<Arc<Contents>>,
    bytes: usize,
    at_work: bool,
    /// How often something came, and how much of that is not on its way any more.
    came: u64,
    done: u64,
}

fn size(contents: &Contents) -> usize {
    contents.iter().map(|(_, bytes)| bytes.len()).sum()
}

impl Arrived {
    /// Takes out of these what is on its way.
    pub fn take_out<T>(&self, contents: &mut Vec<(BlobHash, T)>) {
        let state = self.state.lock();
        contents.retain(|(hash, _)| !state.contents.contains_key(hash));
    }

    /// Whether there is room for these; and whether there is no thread for them.
    fn add(&self, came: &Arc<Contents>) -> (bool, bool) {
        let (mut state, bytes) = (self.state.lock(), size(came));
        if state.bytes + bytes > MOST {
            return (false, false);
        }
        let places = came.iter().enumerate().map(|(n, (hash, _))| (*hash, (came.clone(), n)));
        state.contents.extend(places);
        state.waiting.push(came.clone());
        state.bytes += bytes;
        state.came += 1;
        (true, !std::mem::replace(&mut state.at_work, true))
    }

    /// What is to be kept next, all together; empty when the thread is not needed any more.
    fn next(&self) -> Vec<Arc<Contents>> {
        let mut state = self.state.lock();
        let next = std::mem::take(&mut state.waiting);
        state.at_work = !next.is_empty();
        next
    }

    fn remove(&self, done: &[Arc<Contents>]) {
        let mut state = self.state.lock();
        for contents in done {
            contents.iter().for_each(|(hash, _)| drop(state.contents.remove(hash)));
            state.bytes -= size(contents);
        }
        state.done += done.len() as u64;
        self.kept.notify_all();
    }
}

impl Cache {
    /// Reads of a small content that is on its way.
    pub(super) fn read_arrived(&self, hash: &BlobHash, offset: u64, buf: &mut [u8]) -> Option<usize> {
        let (with, n) = self.inner.tiers.arrived.state.lock().contents.get(hash)?.clone();
        let rest = with[n].1.get(offset as usize..).unwrap_or(&[]);
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Some(n)
    }

    /// Small contents that came will be here; until then they are read from memory.
    pub(super) fn keep_soon(&self, came: &Arc<Contents>) {
        if came.is_empty() {
            return;
        }
        let (room, thread) = self.inner.tiers.arrived.add(came);
        if !room {
            return self.keep_or_warn(std::slice::from_ref(came));
        }
        if !thread {
            return;
        }
        let cache = Arc::downgrade(&self.inner);
        let work = move || {
            while let Some(inner) = cache.upgrade()
                && (Cache { inner }).keep_next()
            {}
        };
        if let Err(e) = std::thread::Builder::new().name("arrived".into()).spawn(work) {
            tracing::warn!("no thread keeps what came from a tier: {e}");
            while self.keep_next() {}
        }
    }

    /// Makes a pack of what has come meanwhile; false when nothing has.
    fn keep_next(&self) -> bool {
        let arrived = &self.inner.tiers.arrived;
        let _packing = arrived.packing.lock();
        let next = arrived.next();
        if catch_unwind(AssertUnwindSafe(|| self.keep_or_warn(&next))).is_err() {
            tracing::error!("keeping what came from a tier panicked");
        }
        arrived.remove(&next);
        !next.is_empty()
    }

    fn keep_or_warn(&self, came: &[Arc<Contents>]) {
        if let Err(e) = self.or_sweep(self.keep(came)) {
            tracing::warn!("what came from a tier is not kept: {e}");
        }
    }

    /// They are here from now on.
    fn keep(&self, came: &[Arc<Contents>]) -> Result<()> {
        let mut seen = HashSet::new();
        let contents: Vec<_> =
            came.iter().flat_map(|some| some.iter()).filter(|(hash, _)| seen.insert(hash)).collect();
        if contents.is_empty() {
            return Ok(());
        }
        self.make_room(contents.iter().map(|(_, bytes)| bytes.len() as u64).sum())?;
        let mut pack = self.inner.store.new_pack()?;
        let mut moved = Vec::new();
        for (hash, bytes) in contents {
            moved.push((*hash, pack.append(hash, bytes)?));
        }
        let pack = pack.finish()?;
        // All of it may have come another way meanwhile.
        for (unused, _) in self.inner.index.relocate(moved, Some((pack.id, pack.bytes)), vec![])? {
            self.inner.store.remove_pack(unused)?;
        }
        Ok(())
    }

    /// Waits until what has come so far is kept, or cannot be.
    pub(super) fn wait_for_arrived(&self) {
        let arrived = &self.inner.tiers.arrived;
        let mut state = arrived.state.lock();
        let came = state.came;
        while state.done < came {
            arrived.kept.wait(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::bytes;
    use super::super::tier_tests::{World, read, sound};
    use super::*;

    /// A world whose tier has an entry of so many files of 10,000 bytes, and their names.
    fn world(files: u64) -> (World, Vec<String>) {
        let w = World::new();
        let names: Vec<String> = (0..files).map(|n| format!("small{n:03}")).collect();
        let files: Vec<_> = names.iter().zip(0..).map(|(name, n)| (&name[..], bytes(10_000, n))).collect();
        w.send_files("abcd", &files);
        (w, names)
    }

    #[test]
    fn who_reads_small_contents_does_not_wait_for_the_disk() {
        let (w, names) = world(40);
        let (entry, cache) = (w.find("abcd").unwrap(), &w.near.cache);
        let elsewhere = || cache.index().totals().unwrap().elsewhere_bytes;
        let before = elsewhere();
        let packing = cache.inner.tiers.arrived.packing.lock();
        let right = || {
            for (name, n) in names.iter().zip(0..) {
                assert!(read(&entry, name).unwrap() == bytes(10_000, n), "{name}");
                let record = entry.file(format!("outputs/{name}").as_bytes()).unwrap();
                let (mut end, there) = ([0; 100], bytes(10_000, n));
                assert_eq!(entry.read_here(record, 9_990, &mut end).unwrap(), 10);
                assert_eq!(end[..10], there[9_990..]);
                assert_eq!(entry.read_here(record, 10_000, &mut end).unwrap(), 0);
            }
        };
        assert_eq!(w.traffic(right).calls, 1, "neighbours come together, and once");
        assert_eq!(elsewhere(), before, "nothing is kept yet");
        drop(packing);
        cache.wait_for_arrived();
        assert_eq!(elsewhere(), 0);
        assert!(cache.inner.tiers.arrived.state.lock().contents.is_empty());
        w.detach();
        right();
        sound(&w.near);
    }

    #[test]
    fn what_is_on_its_way_is_bounded_and_makes_one_pack() {
        let (w, names) = world(600);
        let entry = w.find("abcd").unwrap();
        let arrived = &w.near.cache.inner.tiers.arrived;
        let packing = arrived.packing.lock();
        for (name, n) in names.iter().zip(0..) {
            assert!(read(&entry, name).unwrap() == bytes(10_000, n), "{name}");
            assert!(arrived.state.lock().bytes <= MOST);
        }
        let packs = || w.near.cache.store().pack_ids().unwrap().len();
        let (waiting, at_once) = (arrived.state.lock().waiting.len(), packs());
        assert!(waiting > 5 && at_once > 2, "{waiting} {at_once}");
        drop(packing);
        w.near.cache.wait_for_arrived();
        assert_eq!(packs(), at_once + 1);
        w.detach();
        names.iter().for_each(|name| assert_eq!(read(&entry, name).unwrap().len(), 10_000));
        sound(&w.near);
    }
}
