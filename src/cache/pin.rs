//! Pins and rejections: files of the store, mirrored in memory while the cache is open.
//!
//! Invariants: one change at a time, of file and memory together, so that they agree; a pin that was reported set holds its entry from then on: it stands in memory
//! before the entry is leased for the check, and eviction looks at the pins after it has chosen
//! an entry, so one of the two sees the other. A rejection stands against the manifest that
//! was current when it was given, and against no other.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use parking_lot::Mutex;

use super::fsck::path_of;
use super::here::now_ns;
use super::{Cache, CacheError, LeaseKind, Result};
use crate::model::{EntryKey, EventKind, ManifestHash};
use crate::store::{Pin, Rejection, Store, StoreError, twice};

/// What users hold and reject, in memory.
#[derive(Default)]
pub(crate) struct Verdicts {
    /// Held by who changes any of this, here and in the store.
    changing: Mutex<()>,
    pins: Mutex<BTreeMap<EntryKey, BTreeSet<String>>>,
    rejections: Mutex<HashMap<EntryKey, Rejection>>,
}

impl Verdicts {
    /// Reads what the store has.
    pub(super) fn load(&self, store: &Store) -> Result<()> {
        let mut pins = BTreeMap::<EntryKey, BTreeSet<String>>::new();
        for pin in twice(|| store.pins())? {
            pins.entry(pin.key).or_default().insert(pin.name);
        }
        *self.pins.lock() = pins;
        *self.rejections.lock() =
            twice(|| store.rejections())?.into_iter().map(|r| (r.key.clone(), r)).collect();
        Ok(())
    }

    /// Reads what the store has, as far as it can be read: files that are damaged or on a bad spot of the disk go to quarantine and are
    /// returned as errors. (A store that cannot be opened could not be repaired.)
    pub(super) fn load_or_set_aside(&self, store: &Store) -> Result<Vec<StoreError>> {
        let _alone = self.changing.lock();
        let mut damaged = Vec::new();
        loop {
            match self.load(store) {
                Err(CacheError::Store(e)) if e.is_damage() => match store.quarantine(&path_of(&e)) {
                    // It is no file that cannot be read, but where they are.
                    Err(StoreError::Unsuitable { .. }) => return Err(e.into()),
                    aside => {
                        aside?;
                        damaged.push(e);
                    }
                },
                other => return other.map(|()| damaged),
            }
        }
    }

    /// One of the pins that hold this key.
    pub(super) fn pinned_by(&self, key: &EntryKey) -> Option<String> {
        self.pins.lock().get(key).and_then(|names| names.first().cloned())
    }

    fn add(&self, name: &str, key: &EntryKey) -> bool {
        self.pins.lock().entry(key.clone()).or_default().insert(name.to_owned())
    }

    fn remove(&self, name: &str, key: &EntryKey) {
        let mut pins = self.pins.lock();
        if let Some(names) = pins.get_mut(key) {
            names.remove(name);
            if names.is_empty() {
                pins.remove(key);
            }
        }
    }
}

impl Cache {
    /// Pins an entry under a name: it is not evicted until unpinned. False when it was already.
    pub fn pin(&self, name: &str, key: &EntryKey) -> Result<bool> {
        if name.is_empty() || name.len() > 200 || name.contains(['/', '\0', '\n']) {
            return Err(CacheError::BadInput {
                what: format!("the pin name {name:?}"),
                why: "it has 1 to 200 bytes, without slashes and newlines".into(),
            });
        }
        let _stands = self.index_stands();
        let verdicts = &self.inner.upkeep.verdicts;
        let alone = verdicts.changing.lock();
        let new = verdicts.add(name, key);
        let result = self.pin_held(name, key, new);
        if result.is_err() && new {
            verdicts.remove(name, key);
        }
        drop(alone);
        if result.is_ok() {
            self.wait_shown(key);
        }
        result
    }

    fn pin_held(&self, name: &str, key: &EntryKey, new: bool) -> Result<bool> {
        // A pin that holds an entry already is good however the entry fares; it is asked again all the same.
        let Some(_lease) = self.lease_for_pin(key)? else {
            return Err(CacheError::NoEntry { key: key.clone(), why: None });
        };
        if !new {
            return Ok(false);
        }
        self.inner.store.write_pin(&Pin { name: name.into(), key: key.clone(), at_ns: now_ns() })?;
        self.note(EventKind::Pinned { name: name.into(), on: true }, Some(key), true);
        Ok(true)
    }

    /// Waits out an eviction that is under way: it sees the pin, or it removes the entry.
    fn lease_for_pin(&self, key: &EntryKey) -> Result<Option<super::Lease>> {
        for _ in 0..500 {
            let Some(row) = self.inner.index.entry(key)? else { return Ok(None) };
            if let Some(lease) = self.take_lease(row.id, LeaseKind::Hold) {
                return Ok(Some(lease));
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        Ok(None)
    }

    /// Lifts a pin. False when there was none.
    pub fn unpin(&self, name: &str, key: &EntryKey) -> Result<bool> {
        let _alone = self.inner.upkeep.verdicts.changing.lock();
        let was = self.inner.store.remove_pin(name, key)?;
        self.inner.upkeep.verdicts.remove(name, key);
        if was {
            self.note(EventKind::Pinned { name: name.into(), on: false }, Some(key), true);
        }
        Ok(was)
    }

    /// All pins: key and names, by key.
    pub fn pins(&self) -> Vec<(EntryKey, Vec<String>)> {
        let pins = self.inner.upkeep.verdicts.pins.lock();
        pins.iter().map(|(k, names)| (k.clone(), names.iter().cloned().collect())).collect()
    }

    /// Rejects a key: lookups miss until another entry replaces the current one or the rejection
    /// is lifted.
    pub fn reject(&self, key: &EntryKey, reason: &str) -> Result<()> {
        let _alone = self.inner.upkeep.verdicts.changing.lock();
        let manifest = self.inner.index.entry(key)?.map(|row| row.manifest);
        let r = Rejection { key: key.clone(), reason: reason.into(), at_ns: now_ns(), manifest };
        self.inner.store.write_rejection(&r)?;
        self.inner.upkeep.verdicts.rejections.lock().insert(key.clone(), r);
        self.note(EventKind::Rejected { reason: Some(reason.into()) }, Some(key), true);
        Ok(())
    }

    /// Lifts a rejection. False when there was none.
    pub fn lift(&self, key: &EntryKey) -> Result<bool> {
        let _alone = self.inner.upkeep.verdicts.changing.lock();
        let was = self.inner.store.remove_rejection(key)?;
        self.inner.upkeep.verdicts.rejections.lock().remove(key);
        if was {
            self.note(EventKind::Rejected { reason: None }, Some(key), true);
        }
        Ok(was)
    }

    /// All rejections, by key.
    pub fn rejections(&self) -> Vec<Rejection> {
        let mut all: Vec<_> = self.inner.upkeep.verdicts.rejections.lock().values().cloned().collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    }

    /// The rejection of `key` that stands against the entry with manifest `current` (from memory).
    pub(crate) fn rejection(&self, key: &EntryKey, current: Option<&ManifestHash>) -> Option<Rejection> {
        let rejections = self.inner.upkeep.verdicts.rejections.lock();
        rejections.get(key).filter(|r| r.manifest.as_ref() == current).cloned()
    }

    /// Forgets a rejection of what the entry with manifest `current` has replaced.
    pub(crate) fn rejection_replaced(&self, key: &EntryKey, current: &ManifestHash) -> Result<()> {
        let verdicts = &self.inner.upkeep.verdicts;
        let is_of_another =
            || verdicts.rejections.lock().get(key).is_some_and(|r| r.manifest.as_ref() != Some(current));
        // Most have none. One that is just being given is against what was there before, and counts no more than this.
        if !is_of_another() {
            return Ok(());
        }
        let _alone = verdicts.changing.lock();
        if is_of_another() {
            self.inner.store.remove_rejection(key)?;
            verdicts.rejections.lock().remove(key);
        }
        Ok(())
    }
}
