//! What only a tier has: which look-ups and reads would ask one, and doing so.
//!
//! Invariants: a thread that answers requests only asks whether a look-up or a read [would](VfsError::Remote) wait for a
//! tier, and another one has it done; what was asked of a tier is then looked up and read as if it had always been here.
//! Must not know: what a tier is, which thread this is.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use super::namespace::{CONTROL_NAME, key_of_shard, shard_part};
use super::types::{Caller, Found, Ino};
use super::{Result, Target, VfsError, View, ino};
use crate::cache::{CacheError, Entry, LeaseKind, Reader};
use crate::model::EntryKey;
use crate::store::StoreError;

impl View {
    /// Whether anything may be in a tier only.
    pub fn has_tiers(&self) -> bool {
        self.cache.has_tiers()
    }

    /// Whether tiers are asked before this look-up says that there is nothing.
    pub fn look_up_asks_tiers(&self, parent: Ino, name: &OsStr) -> bool {
        let asks =
            |key: EntryKey| self.shown_draft(&key).is_none() && self.cache.asks_tiers(&key).unwrap_or(false);
        self.has_tiers() && self.key_at(parent, name).is_some_and(asks)
    }

    /// As [`lookup`](Self::lookup), of what tiers are asked for; they are waited for from `since` on.
    pub fn look_up_in_tiers(
        &self,
        caller: Caller,
        parent: Ino,
        name: &OsStr,
        since: Instant,
    ) -> Result<Found> {
        let Some(key) = self.key_at(parent, name) else { return self.lookup(caller, parent, name) };
        // Held until it is looked up.
        let _entry = self.cache.find_since(&key, LeaseKind::Hold, since)?;
        self.lookup(caller, parent, name)
    }

    /// The key whose entry a name stands for, here and wherever else; none where all that there can be is here.
    fn key_at(&self, parent: Ino, name: &OsStr) -> Option<EntryKey> {
        // The keys of a scoped view were looked up when it was made.
        if self.scope.is_some() {
            return None;
        }
        match ino::meaning(parent) {
            ino::Meaning::Fixed(ino::ROOT) if name != CONTROL_NAME && shard_part(name, true).is_none() => {
                EntryKey::parse_os(name).ok()
            }
            ino::Meaning::Shard(shard) if shard[2] != 0 => key_of_shard(shard, name).ok(),
            _ => None,
        }
    }

    /// As [`read`](Self::read), of a file that only a tier has, for a thread whose process has a budget for it. It is waited for
    /// from `since` on, no longer than a read may, nor than `most`.
    pub fn read_from_tiers(
        &self,
        thread: u32,
        (ino, offset): (Ino, u64),
        buf: &mut [u8],
        since: Instant,
        most: Option<Duration>,
    ) -> Result<usize> {
        let Target::Sealed(r) = self.target(ino)? else { return Err(VfsError::Stale) };
        // What came while this waited is no matter of budgets.
        match self.read_sealed(&r.entry, r.record, offset, buf) {
            Err(VfsError::Remote) => {}
            here => return here,
        }
        let by = |options: &crate::cache::TierOptions| since + most.unwrap_or(options.read).min(options.read);
        let payer = self.cache.payer(thread, &r.entry)?;
        Ok(r.entry.read_by(
            r.record,
            offset,
            buf,
            &Reader { by: &by, payer, exact: false, patient: false },
        )?)
    }

    /// Reads what is here.
    pub(super) fn read_sealed(
        &self,
        entry: &Entry,
        record: u32,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize> {
        match entry.read_here(record, offset, buf) {
            Err(CacheError::Store(StoreError::Elsewhere { .. })) if self.has_tiers() => Err(VfsError::Remote),
            here => Ok(here?),
        }
    }
}
