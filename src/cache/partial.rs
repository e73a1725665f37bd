//! Large contents that came from a tier in part, kept on the disk until they are whole.
//!
//! Invariants: what is kept counts as used, and has room made for it first; its row says all the while that it is elsewhere, and it goes
//! with the row, or when the content is here another way; what is read of it is verified, and what is not whole is asked for
//! again. It becomes a blob like any other in the background, while nobody else can put that blob in place. Must not know:
//! tiers.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::background::Job;
use super::fetch::WINDOW;
use super::lease::Reservation;
use super::{Cache, Inner, Result};
use crate::model::BlobHash;
use crate::model::groups::{GROUP, GroupHash, group_bytes};
use crate::store::{Location, StoreError};

/// All that are there.
#[derive(Default)]
pub(super) struct Partials(Mutex<HashMap<BlobHash, Arc<Partial>>>);

/// One of them.
pub(super) struct Partial(Mutex<State>);

struct State {
    /// Which groups may be there; found out when it is used first.
    groups: Option<Vec<bool>>,
    /// Bytes that it occupies.
    bytes: u64,
    /// It goes, or becomes a blob: nothing more is written.
    ends: bool,
}

impl State {
    fn is_whole(&self) -> bool {
        !self.ends && self.groups.as_ref().is_some_and(|groups| groups.iter().all(|there| *there))
    }
}

impl Partials {
    fn get(&self, hash: &BlobHash) -> Option<Arc<Partial>> {
        self.0.lock().get(hash).cloned()
    }

    /// What they occupy.
    pub fn bytes(&self) -> u64 {
        let all: Vec<_> = self.0.lock().values().cloned().collect();
        all.iter().map(|partial| partial.0.lock().bytes).sum()
    }
}

/// A large content: its name, its size and the values of its groups.
#[derive(Clone, Copy)]
pub(super) struct Large<'a> {
    pub hash: BlobHash,
    pub size: u64,
    pub values: &'a [GroupHash],
}

impl Large<'_> {
    fn groups(&self, offset: u64, len: usize) -> Range<usize> {
        let end = offset.saturating_add(len as u64).min(self.size);
        (offset / GROUP as u64) as usize..end.div_ceil(GROUP as u64) as usize
    }

    fn group_bytes(&self, group: usize) -> u64 {
        group_bytes(self.size, group as u64)
    }
}

impl Cache {
    /// After a start: which ones there are. Those that nobody would look for go.
    pub(super) fn load_partials(&self) -> Result<()> {
        let found = self.inner.store.partials()?;
        if found.is_empty() {
            return Ok(());
        }
        let mut all = self.inner.partials.0.lock();
        for (hash, bytes) in found {
            let state = State { groups: None, bytes, ends: false };
            all.insert(hash, Arc::new(Partial(Mutex::new(state))));
        }
        drop(all);
        self.sweep_partials()
    }

    /// Takes away what is of no use any more: its row is gone, or says that the content is here.
    pub(super) fn sweep_partials(&self) -> Result<()> {
        let Some(_all) = self.index_knows_all() else { return Ok(()) };
        let hashes: Vec<BlobHash> = self.inner.partials.0.lock().keys().copied().collect();
        if hashes.is_empty() {
            return Ok(());
        }
        let rows = self.inner.index.blobs(&hashes)?;
        let elsewhere = |at: Location| at == Location::Elsewhere;
        for (hash, row) in hashes.iter().zip(rows) {
            if !row.is_some_and(|row| elsewhere(row.location)) {
                self.drop_partial(hash)?;
            }
        }
        Ok(())
    }

    /// Takes away what is here of these contents, whose rows are gone; returns the bytes that it occupied.
    pub(super) fn drop_partials(&self, hashes: &[BlobHash]) -> Result<u64> {
        let mut freed = 0;
        for hash in hashes {
            freed += self.drop_partial(hash)?;
        }
        Ok(freed)
    }

    fn drop_partial(&self, hash: &BlobHash) -> Result<u64> {
        let Some(partial) = self.inner.partials.get(hash) else { return Ok(0) };
        {
            let mut state = partial.0.lock();
            // Whoever makes a blob of it sees to that.
            if state.ends {
                return Ok(0);
            }
            state.ends = true;
        }
        let removed = self.inner.store.remove_partial(hash);
        let bytes = partial.0.lock().bytes;
        self.inner.partials.0.lock().remove(hash);
        removed?;
        Ok(bytes)
    }

    /// How many bytes of a content that is elsewhere are here.
    pub(super) fn partial_bytes(&self, hash: &BlobHash) -> u64 {
        self.inner.partials.get(hash).map_or(0, |partial| partial.0.lock().bytes)
    }

    /// Reads what is here of a content that is elsewhere; `None` unless all of what is asked for is.
    pub(super) fn read_partial(&self, of: Large<'_>, offset: u64, buf: &mut [u8]) -> Option<usize> {
        let partial = self.inner.partials.get(&of.hash)?;
        let wanted = of.groups(offset, buf.len());
        {
            let mut state = partial.0.lock();
            let there = self.groups_of(&mut state, of)?;
            if !there.get(wanted.clone())?.iter().all(|there| *there) {
                return None;
            }
        }
        match self.inner.store.read_partial(&of.hash, of.size, of.values, offset, buf) {
            Ok(n) => {
                self.finish_if_whole(&partial, &of.hash);
                Some(n)
            }
            Err(e) => {
                // After a power cut there may be anything: it is fetched again.
                tracing::debug!("what is here of a content is not used: {e}");
                let mut state = partial.0.lock();
                let state = &mut *state;
                for group in wanted {
                    if let Some(there) = state.groups.as_mut().and_then(|groups| groups.get_mut(group)) {
                        state.bytes =
                            state.bytes.saturating_sub(if *there { of.group_bytes(group) } else { 0 });
                        *there = false;
                    }
                }
                None
            }
        }
    }

    /// Whether all of this window of a content that is elsewhere may be here.
    pub(super) fn has_window(&self, of: Large<'_>, window: u64) -> bool {
        let Range { start, end } = of.groups(window * WINDOW, WINDOW as usize);
        self.has_groups(of, start as u64..end as u64)
    }

    /// Whether all these groups of a content that is elsewhere may be here.
    pub(super) fn has_groups(&self, of: Large<'_>, groups: Range<u64>) -> bool {
        let Some(partial) = self.inner.partials.get(&of.hash) else { return false };
        let mut state = partial.0.lock();
        let there = self.groups_of(&mut state, of);
        there
            .and_then(|there| there.get(groups.start as usize..groups.end as usize))
            .is_some_and(|groups| groups.iter().all(|there| *there))
    }

    /// Which groups are there; `None` when that cannot be found out.
    fn groups_of<'s>(&self, state: &'s mut State, of: Large<'_>) -> Option<&'s Vec<bool>> {
        if state.groups.is_none() {
            state.groups = self.inner.store.partial_groups(&of.hash, of.size).ok();
        }
        state.groups.as_ref()
    }

    /// Keeps whole groups, verified, that begin at `offset` of a content that is elsewhere.
    pub(super) fn keep_partial(&self, of: Large<'_>, offset: u64, bytes: &[u8]) -> Result<()> {
        if let Some(partial) = self.write_partial(of, offset, bytes)? {
            self.finish_if_whole(&partial, &of.hash);
        }
        Ok(())
    }

    /// As `keep_partial`, and nothing comes of it: of what can only be verified as a whole. `None` when it goes.
    pub(super) fn write_partial(
        &self,
        of: Large<'_>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Option<Arc<Partial>>> {
        self.make_room(bytes.len() as u64)?;
        let partial = match self.inner.partials.get(&of.hash) {
            Some(partial) => partial,
            None => {
                self.inner.store.create_partial(&of.hash, of.size)?;
                let state = State { groups: None, bytes: 0, ends: false };
                let new = Arc::new(Partial(Mutex::new(state)));
                self.inner.partials.0.lock().entry(of.hash).or_insert(new).clone()
            }
        };
        if partial.0.lock().ends {
            return Ok(None);
        }
        // Before anything is written, so that what is found is not what is just being written.
        self.groups_of(&mut partial.0.lock(), of);
        self.inner.store.write_partial(&of.hash, offset, bytes)?;
        {
            let mut state = partial.0.lock();
            let state = &mut *state;
            for group in of.groups(offset, bytes.len()) {
                if let Some(there) = state.groups.as_mut().and_then(|groups| groups.get_mut(group)) {
                    state.bytes += if *there { 0 } else { of.group_bytes(group) };
                    *there = true;
                }
            }
        }
        Ok(Some(partial))
    }

    /// What is not here of a content that is elsewhere, in ranges of at most `piece` bytes, a multiple of a group.
    pub(super) fn pieces_lacking(&self, of: Large<'_>, piece: u64) -> Result<Vec<Range<u64>>> {
        let groups = of.groups(0, usize::MAX);
        let there = match self.inner.partials.get(&of.hash) {
            Some(partial) => self.groups_of(&mut partial.0.lock(), of).cloned(),
            None => None,
        };
        let lacks = |group: &usize| there.as_ref().is_none_or(|there| there.get(*group) != Some(&true));
        let mut all: Vec<Range<u64>> = Vec::new();
        for group in groups.filter(lacks) {
            let start = group as u64 * GROUP as u64;
            let end = start + of.group_bytes(group);
            match all.last_mut() {
                Some(last) if last.end == start && end - last.start <= piece => last.end = end,
                _ => all.push(start..end),
            }
        }
        Ok(all)
    }

    /// Makes a blob of a content all of which has come, or takes it away when it is not what it should be.
    pub(super) fn finish_partial(&self, hash: &BlobHash) -> Result<()> {
        if let Some(partial) = self.inner.partials.get(hash) {
            partial.0.lock().ends = true;
        }
        let reserved = self.reserve(&[*hash]);
        finish_reserved(&self.inner, hash, reserved)
    }

    /// Has a whole one become a blob, in the background. Its entry is held by who reads it.
    fn finish_if_whole(&self, partial: &Partial, hash: &BlobHash) {
        let mut state = partial.0.lock();
        if !state.is_whole() {
            return;
        }
        state.ends = true;
        drop(state);
        let reserved = self.reserve(&[*hash]);
        self.inner.background.send(Job::FinishPartial(*hash, reserved));
    }
}

/// Makes a blob of a content all of which is here; one that is not what it should be goes.
pub(super) fn finish(inner: &Arc<Inner>, hash: &BlobHash, reserved: Reservation) {
    if let Err(e) = finish_reserved(inner, hash, reserved) {
        tracing::warn!("a content that came from a tier cannot be made a blob: {e}");
    }
}

fn finish_reserved(inner: &Arc<Inner>, hash: &BlobHash, reserved: Reservation) -> Result<()> {
    let cache = Cache { inner: inner.clone() };
    let done = inner.claims.alone_with(hash, || finish_alone(&cache, hash));
    drop(reserved);
    let done = cache.or_sweep(done);
    inner.store.close_partial(hash);
    inner.partials.0.lock().remove(hash);
    done
}

fn finish_alone(cache: &Cache, hash: &BlobHash) -> Result<()> {
    let Inner { store, index, .. } = &*cache.inner;
    let is_at = |wanted: Location| -> Result<bool> {
        Ok(index.blob(hash)?.is_some_and(|row| row.location == wanted))
    };
    if !is_at(Location::Elsewhere)? {
        return Ok(store.remove_partial(hash)?);
    }
    match store.finish_partial(hash) {
        Err(e @ StoreError::Corrupt { .. }) => {
            tracing::warn!("what is here of a content is thrown away: {e}");
            return Ok(store.remove_partial(hash)?);
        }
        other => other?,
    }
    index.relocate(vec![(*hash, Location::Loose)], None, Vec::new())?;
    if !is_at(Location::Loose)? {
        store.remove_blob(hash)?;
    }
    Ok(())
}
