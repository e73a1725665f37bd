//! Making room: which entries go, and when.
//!
//! Invariants: what tiers have gives up its bytes first, and stays visible; then least recently used first; never a pinned one, one that somebody holds, or one younger
//! than the minimum age. An entry that a kernel knows is not evicted in the round that finds
//! it: the kernel is asked to forget it, and it goes in a later round if nobody has come back
//! to it (warm reads are invisible, so only a look-up tells). One round at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::evict::Outcome;
use super::here::now_ns;
use super::patience::PATIENCE;
use super::{Cache, CacheError, Result, Usage, Work};
use crate::index::{EntryRow, occupied};
use crate::model::EntryKey;
use crate::model::units::human_bytes;
use crate::store::Location;

/// Entries read from the index at a time.
const PAGE: usize = 128;
/// The most entries that a pass of a round in the background looks at; the next round goes on behind them.
const ROUND: usize = 20_000;
/// How long a kernel has to come back to an entry it was asked to forget, before it may go.
const SECOND_CHANCE: Duration = Duration::from_millis(100);
/// How long a kernel takes to let go of what nobody uses.
const MOMENT: Duration = Duration::from_millis(20);
/// How long what turned out to be in use is left alone.
const BUSY_FOR: Duration = Duration::from_millis(150);
/// How many entries are asked for again at once.
const AT_ONCE: usize = 32;
/// What `gc` is to do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GcOptions {
    /// Only say what would go.
    pub dry_run: bool,
    /// Evict entries that were not used for this long, beyond what the limits ask for.
    pub older_than: Option<Duration>,
}

/// What `gc` did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcReport {
    /// Evicted entries, least recently used first.
    pub evicted: Vec<EntryKey>,
    /// Entries that gave up their bytes, which a tier has, and stay visible.
    #[serde(default)]
    pub let_go: Vec<EntryKey>,
    /// Bytes given back; an estimate for a dry run.
    pub freed: u64,
    /// Drafts that were abandoned.
    pub drafts: Vec<String>,
    /// Entries that would go but are pinned, held, or known to a kernel.
    pub held: u64,
    /// Entries that would go but are younger than the minimum age.
    #[serde(default)]
    pub young: u64,
    /// Bytes used afterwards.
    pub used: u64,
}

/// How much has to go.
#[derive(Debug, Clone, Copy)]
struct Goal {
    bytes: u64,
    entries: u64,
    /// Everything that was last used before (nanoseconds since 1970).
    before: Option<i64>,
}

/// What becomes of an entry, and why.
#[derive(Clone, Copy)]
enum Way<'a> {
    /// It goes.
    Evict(&'a str),
    /// Its bytes go.
    LetGo(&'a str),
}

/// The last entry that a pass has looked at: when it was last used, and its row id.
type Seen = Option<(i64, i64)>;

/// Where rounds in the background stopped, in each of their passes.
#[derive(Debug, Default)]
pub(super) struct Stopped {
    let_go: Seen,
    evict: Seen,
    evict_shown: Seen,
}

/// How a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The goal is reached.
    Reached,
    /// It has seen all entries.
    All,
    /// It has seen [`ROUND`] of them.
    Stopped,
}

/// The entries page by page, least recently used first: all of them, or some more than the last round in the background saw.
struct Pass<'a> {
    stopped: Option<&'a mut Seen>,
    after: Seen,
    left: usize,
}

impl<'a> Pass<'a> {
    fn new(stopped: Option<&'a mut Seen>) -> Pass<'a> {
        match stopped {
            Some(seen) => Pass { after: seen.take(), left: ROUND, stopped: Some(seen) },
            None => Pass { after: None, left: usize::MAX, stopped: None },
        }
    }

    /// The next page of what `read` gives, or how it ends.
    fn page(
        &mut self,
        read: impl FnOnce(Seen) -> std::result::Result<Vec<EntryRow>, crate::index::IndexError>,
    ) -> Result<std::result::Result<Vec<EntryRow>, End>> {
        if self.left == 0 {
            if let Some(stopped) = &mut self.stopped {
                **stopped = self.after;
            }
            return Ok(Err(End::Stopped));
        }
        let page = read(self.after)?;
        let Some(last) = page.last() else { return Ok(Err(End::All)) };
        self.after = Some((last.accessed_at_ns, last.id));
        self.left = self.left.saturating_sub(page.len());
        Ok(Ok(page))
    }
}

/// What a round did.
#[derive(Debug, Default)]
struct Round {
    evicted: Vec<(EntryKey, Outcome)>,
    /// Entries that gave up their bytes to tiers.
    let_go: Vec<(EntryKey, Outcome)>,
    /// Entries and bytes that a kernel was asked to forget.
    asked: u64,
    asked_bytes: u64,
    held: u64,
    young: u64,
    /// For kernels to let go.
    waited: Duration,
}

impl Round {
    fn ask(&mut self, row: &EntryRow) -> Result<()> {
        self.asked += 1;
        self.asked_bytes += row.logical_bytes + row.metadata_bytes;
        Ok(())
    }
    fn bytes(&self) -> u64 {
        self.evicted.iter().chain(&self.let_go).map(|(_, o)| o.freed + o.dead).sum()
    }
    fn is_empty(&self) -> bool {
        self.evicted.is_empty() && self.let_go.is_empty()
    }
    /// The goal is reached before `next`, if all that were asked let go.
    fn reached(&self, goal: &Goal, next: &EntryRow) -> bool {
        goal.before.is_none_or(|b| next.accessed_at_ns >= b)
            && self.bytes() + self.asked_bytes >= goal.bytes
            && self.evicted.len() as u64 + self.asked >= goal.entries
    }
}

/// How many entries have to go so that there are inodes enough: each gives back those of manifest, table and pack.
fn for_files(u: &Usage) -> u64 {
    u.files_reserve.saturating_sub(u.files_available).div_ceil(3)
}

impl Cache {
    /// Makes room for `bytes` more under the limits, evicting least recently used entries;
    /// `NoSpace` when it cannot. Called before anything is created.
    pub fn make_room(&self, bytes: u64) -> Result<()> {
        if self.inner.upkeep.accounts.is_roomy(bytes) || self.lacking(bytes)?.is_none() {
            return Ok(());
        }
        let begun = Instant::now();
        let patience = &self.inner.upkeep.patience;
        let wait = patience.of(begun);
        let made = match self.inner.upkeep.round.try_lock_for(wait.turn) {
            Some(_round) => self.evict_until_roomy(bytes, begun + wait.patience, wait.most),
            None => self.no_room_unless_enough(bytes),
        };
        patience.over(wait, begun, Instant::now(), made.is_ok());
        made
    }

    /// Rounds until `bytes` fit, or none helps, for which kernels are waited for until then; and no longer than `most` after the end
    /// of the first one.
    fn evict_until_roomy(&self, bytes: u64, until: Instant, most: Duration) -> Result<()> {
        let mut first = None;
        loop {
            self.reap()?;
            let Some(goal) = self.lacking(bytes)? else { return Ok(()) };
            let round = self.evict_round(&goal, false, "lru", &Work::default(), None)?;
            if round.evicted.iter().chain(&round.let_go).any(|(_, o)| o.dead > 0)
                && round.bytes() >= goal.bytes
            {
                self.compact_if_there_is_room()?;
                self.trim_events()?;
            }
            let waiting = round.asked > 0 || !self.inner.upkeep.suspects.lock().is_empty();
            let over = first.get_or_insert_with(Instant::now).elapsed() >= most;
            if over || round.is_empty() && (!waiting || Instant::now() > until) {
                self.reap()?;
                return self.no_room_unless_enough(bytes);
            }
            if round.is_empty() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// Whether [`make_room`](Self::make_room) for nothing in particular would return at once.
    pub fn has_room(&self) -> Result<bool> {
        Ok(self.inner.upkeep.accounts.is_roomy(0) || self.lacking(0)?.is_none())
    }

    fn no_room_unless_enough(&self, bytes: u64) -> Result<()> {
        if self.lacking(bytes)?.is_none() {
            return Ok(());
        }
        let u = self.usage()?;
        Err(CacheError::NoSpace(if u.used + bytes > u.limit {
            format!(
                "{} of {} are used, {} more are needed, and no more can be evicted (pinned, in use, too young, or others \
                 take what is freed); \
                 raise --size or evict entries",
                human_bytes(u.used),
                human_bytes(u.limit),
                human_bytes(bytes)
            )
        } else if u.disk_available < u.reserve.saturating_add(bytes) {
            format!(
                "the disk has {} free and {} are to stay free; free some space or lower --reserve",
                human_bytes(u.disk_available),
                human_bytes(u.reserve)
            )
        } else if for_files(&u) > 0 {
            format!(
                "the disk has {} inodes free and {} are to stay free; delete some files or evict entries",
                u.files_available, u.files_reserve
            )
        } else {
            "the limit of entries is reached and none can be evicted; raise it or evict entries".into()
        }))
    }

    /// What has to go so that `bytes` more fit; `None` when they do.
    fn lacking(&self, bytes: u64) -> Result<Option<Goal>> {
        let u = self.usage()?;
        let most = self.inner.limits.read().entries.unwrap_or(u64::MAX);
        let over = u.used.saturating_add(bytes).saturating_sub(u.limit);
        let disk = u.reserve.saturating_add(bytes).saturating_sub(u.disk_available);
        let entries = (u.entries + 1).saturating_sub(most).max(for_files(&u));
        let goal = Goal { bytes: over.max(disk), entries, before: None };
        Ok((goal.bytes > 0 || goal.entries > 0).then_some(goal))
    }

    /// One round down to the low-water mark, when the high-water mark is passed.
    pub(super) fn evict_above_high_water(&self) -> Result<()> {
        let Some(goal) = self.above_high_water(&self.usage()?) else { return Ok(()) };
        let Some(mut stopped) = self.inner.upkeep.round.try_lock() else { return Ok(()) };
        // Old requests are worth nothing: the kernel has had all the time to look up again.
        let stale = now_ns() - 600_000_000_000;
        self.inner.upkeep.suspects.lock().retain(|_, s| s.asked_at > stale);
        let round = self.evict_round(&goal, false, "lru", &Work::default(), Some(&mut stopped))?;
        tracing::debug!(
            evicted = round.evicted.len(),
            asked = round.asked,
            "evicted above the high-water mark"
        );
        Ok(())
    }

    fn above_high_water(&self, u: &Usage) -> Option<Goal> {
        let limits = self.inner.limits.read();
        let share = |n: u64, percent: u8| (u128::from(n) * u128::from(percent.min(100)) / 100) as u64;
        let low = limits.low_water.min(limits.high_water);
        let mut goal = Goal { bytes: 0, entries: 0, before: None };
        if u.used > share(u.limit, limits.high_water) {
            goal.bytes = u.used - share(u.limit, low);
        }
        goal.bytes = goal.bytes.max(u.reserve.saturating_sub(u.disk_available));
        if let Some(most) = limits.entries.filter(|m| u.entries > share(*m, limits.high_water)) {
            goal.entries = u.entries - share(most, low);
        }
        goal.entries = goal.entries.max(for_files(u));
        (goal.bytes > 0 || goal.entries > 0).then_some(goal)
    }

    /// Collects garbage: what the limits ask for, what is older than asked, what nothing refers to.
    pub fn gc(&self, options: &GcOptions) -> Result<GcReport> {
        self.gc_watched(options, &Work::default())
    }

    /// The same, saying in `work` how many entries and bytes are gone.
    pub fn gc_watched(&self, options: &GcOptions, work: &Work) -> Result<GcReport> {
        let before = options.older_than.map(|age| now_ns().saturating_sub(nanos(age)));
        let usage = self.usage()?;
        let goal = self.above_high_water(&usage).unwrap_or(Goal { bytes: 0, entries: 0, before });
        let goal = Goal { before, ..goal };
        let _round = self.inner.upkeep.round.lock();
        let mut report = GcReport::default();
        if !options.dry_run {
            self.reap()?;
        }
        if goal.bytes > 0 || goal.entries > 0 || goal.before.is_some() {
            let round = self.evict_round(&goal, options.dry_run, "gc", work, None)?;
            report.held = round.held + round.asked;
            report.young = round.young;
            report.freed = round.evicted.iter().map(|(_, o)| o.freed).sum();
            report.freed += round.let_go.iter().map(|(_, o)| o.freed).sum::<u64>();
            report.let_go = round.let_go.into_iter().map(|(key, _)| key).collect();
            report.evicted = round.evicted.into_iter().map(|(key, _)| key).collect();
        }
        let ttl = self.inner.limits.read().draft_ttl.as_nanos().min(i64::MAX as u128) as i64;
        let idle = |d: &Arc<super::Draft>| d.writers() == 0 && d.idle_ns() > ttl;
        report.drafts = self.drafts().iter().filter(|d| idle(d)).map(|d| d.name()).collect();
        if !options.dry_run {
            self.drop_idle_drafts()?;
            self.free_unreferenced()?;
            self.compact_if_there_is_room()?;
            report.freed = report.freed.max(usage.used.saturating_sub(self.usage()?.used));
        }
        report.used = self.usage()?.used;
        Ok(report)
    }

    /// Goes through the entries, least recently used first, until the goal is reached; with `stopped` for a while only.
    fn evict_round(
        &self,
        goal: &Goal,
        dry_run: bool,
        why: &str,
        work: &Work,
        mut stopped: Option<&mut Stopped>,
    ) -> Result<Round> {
        let Some(_all) = self.index_knows_all() else { return Ok(Round::default()) };
        self.inner.flush_accesses()?;
        let now = now_ns();
        let young = now.saturating_sub(nanos(self.inner.limits.read().min_age));
        let mut round = Round::default();
        if goal.bytes > 0 && goal.before.is_none() && !dry_run && self.has_tiers() {
            let pass = Pass::new(stopped.as_deref_mut().map(|s| &mut s.let_go));
            self.let_go_round(goal, (now, young), why, pass, &mut round)?;
            if round.bytes() + round.asked_bytes >= goal.bytes && goal.entries == 0 {
                return Ok(round);
            }
        }
        // What has no bytes here goes last: that would free next to nothing, unless there is very much of it.
        let usage = self.usage()?;
        let crowded = usage.metadata > usage.limit / 4;
        for shown_only in [false, true] {
            let stopped = stopped.as_deref_mut();
            let pass = Pass::new(stopped.map(|s| if shown_only { &mut s.evict_shown } else { &mut s.evict }));
            let flags = (dry_run, shown_only, crowded);
            if self.evict_all(goal, (now, young), flags, (why, work), pass, &mut round)? != End::All {
                break;
            }
        }
        Ok(round)
    }

    /// Has entries that tiers have give up their bytes, least recently used first, until the goal is reached.
    fn let_go_round(
        &self,
        goal: &Goal,
        (now, young): (i64, i64),
        why: &str,
        mut pass: Pass<'_>,
        round: &mut Round,
    ) -> Result<()> {
        while let Ok(page) = pass.page(|after| self.inner.index.oldest_backed(after, PAGE))? {
            self.ask_again(&page, now, &mut round.waited);
            for row in page {
                if round.bytes() + round.asked_bytes >= goal.bytes {
                    return Ok(());
                }
                let pinned = self.inner.upkeep.verdicts.pinned_by(&row.key).is_some();
                if !is_young(row.sealed_at_ns, now, young) && !pinned && self.may_let_go(&row) {
                    self.try_evict(&row, now, Way::LetGo(why), round)?;
                }
            }
        }
        Ok(())
    }

    /// Goes through the entries, least recently used first: those that have bytes here, or (`shown_only`) the others.
    fn evict_all(
        &self,
        goal: &Goal,
        (now, young): (i64, i64),
        (dry_run, shown_only, crowded): (bool, bool, bool),
        (why, work): (&str, &Work),
        mut pass: Pass<'_>,
        round: &mut Round,
    ) -> Result<End> {
        let mut planned = Plan::default();
        let mut gone = (0, 0);
        loop {
            let page = match pass.page(|after| self.inner.index.oldest(after, PAGE))? {
                Ok(page) => page,
                Err(end) => return Ok(end),
            };
            if !dry_run {
                self.ask_again(&page, now, &mut round.waited);
            }
            for row in page {
                if round.reached(goal, &row) {
                    return Ok(End::Reached);
                }
                let bare = row.in_tier.is_backed() && row.accessed_at_ns <= row.in_tier.dropped_at_ns;
                if shown_only != (bare && !crowded && goal.before.is_none() && goal.entries == 0) {
                    continue;
                }
                if is_young(row.sealed_at_ns, now, young) {
                    round.young += 1;
                    continue;
                }
                if self.inner.upkeep.verdicts.pinned_by(&row.key).is_some() {
                    round.held += 1;
                } else if dry_run {
                    let freed = planned.add(self, &row)?;
                    round.evicted.push((row.key, Outcome { freed, dead: 0 }));
                } else {
                    self.try_evict(&row, now, Way::Evict(why), round)?;
                }
                work.did(round.evicted.len() as u64 - gone.0, round.bytes() - gone.1);
                gone = (round.evicted.len() as u64, round.bytes());
            }
        }
    }

    /// Evicts one candidate, or has it give up its bytes, or asks the kernel to let go of it.
    fn try_evict(&self, row: &EntryRow, now: i64, way: Way<'_>, round: &mut Round) -> Result<()> {
        let counts = self.inner.leases.counts(row.id);
        let suspect = self.inner.upkeep.suspects.lock().get(&row.id).copied();
        let free = match suspect {
            _ if counts.hold > 0 => false,
            None if counts.view == 0 => true,
            None => {
                let suspect = Suspect { asked_at: now, busy_until: 0 };
                self.inner.upkeep.suspects.lock().insert(row.id, suspect);
                self.holders().iter().for_each(|h| h.prune(row.id));
                return round.ask(row);
            }
            // Somebody came back to it.
            Some(s) if row.accessed_at_ns > s.asked_at => {
                self.inner.upkeep.suspects.lock().remove(&row.id);
                return Ok(());
            }
            Some(s) if !s.is_due(now) && s.busy_until == 0 => return round.ask(row),
            Some(_) => counts.view == 0,
        };
        if !free {
            round.held += 1;
            return Ok(());
        }
        let why = match way {
            Way::Evict(why) => why,
            Way::LetGo(why) => return self.try_to_let_go(row, why, round),
        };
        let Some(choice) = self.choose(row, false) else { return Ok(()) };
        if self.inner.upkeep.verdicts.pinned_by(&row.key).is_some() {
            return Ok(());
        }
        match self.remove_chosen(row, choice, why) {
            Ok(outcome) => round.evicted.extend(outcome.map(|o| (row.key.clone(), o))),
            // What is on a bad spot of the disk must not keep the others from going.
            Err(CacheError::Store(e)) => {
                tracing::warn!(key = %row.key, error = %e, "an entry could not be evicted");
                round.held += 1;
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn try_to_let_go(&self, row: &EntryRow, why: &str, round: &mut Round) -> Result<()> {
        match self.or_sweep(self.let_go_of_bytes(row, why)) {
            Ok(outcome) => round.let_go.extend(outcome.map(|o| (row.key.clone(), o))),
            // Whether it can go as a whole is found out where that is tried.
            Err(CacheError::Store(e)) => {
                tracing::warn!(key = %row.key, error = %e, "an entry could not give up its bytes");
            }
            Err(e) => return Err(e),
        }
        self.inner.upkeep.suspects.lock().remove(&row.id);
        Ok(())
    }

    /// Asks the kernels again for what had its second chance: a listing makes a kernel know an entry
    /// again, which is no use of it. Waits the moment it takes them to let go of what is not in use, in a round not too often.
    fn ask_again(&self, page: &[EntryRow], now: i64, waited: &mut Duration) {
        let view = |id| self.inner.leases.counts(id).view;
        let mut due: Vec<i64> = {
            let suspects = self.inner.upkeep.suspects.lock();
            let due = |r: &&EntryRow| {
                suspects.get(&r.id).is_some_and(|s| s.is_due(now) && r.accessed_at_ns <= s.asked_at)
            };
            page.iter().filter(due).map(|r| r.id).collect()
        };
        due.retain(|id| view(*id) > 0);
        due.truncate(AT_ONCE);
        for holder in self.holders() {
            due.iter().for_each(|id| holder.prune(*id));
        }
        let begun = Instant::now();
        while !due.is_empty() && begun.elapsed() < MOMENT && *waited < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
            due.retain(|id| view(*id) > 0);
        }
        *waited += begun.elapsed();
        let mut suspects = self.inner.upkeep.suspects.lock();
        for id in due {
            if let Some(suspect) = suspects.get_mut(&id) {
                suspect.busy_until = now + BUSY_FOR.as_nanos() as i64;
            }
        }
    }
}

/// An entry that a kernel was asked to forget.
#[derive(Debug, Clone, Copy)]
pub(super) struct Suspect {
    /// When (nanoseconds since 1970).
    asked_at: i64,
    /// It was in use then: it is not asked for again before this. 0 when it was not.
    busy_until: i64,
}

impl Suspect {
    /// It had its second chance.
    fn is_due(&self, now: i64) -> bool {
        now >= self.busy_until && now - self.asked_at >= SECOND_CHANCE.as_nanos() as i64
    }
}

/// What a dry run has counted off so far.
#[derive(Default)]
struct Plan {
    dropped: std::collections::HashMap<crate::model::BlobHash, u64>,
}

impl Plan {
    /// Bytes that nothing would refer to once this entry went too.
    fn add(&mut self, cache: &Cache, row: &EntryRow) -> Result<u64> {
        let blobs = cache.inner.store.read_manifest(&row.manifest)?.blobs();
        let hashes: Vec<_> = blobs.iter().map(|(h, _, _)| *h).collect();
        let mut freed = row.metadata_bytes;
        for blob in cache.inner.index.blobs(&hashes)?.into_iter().flatten() {
            let dropped = self.dropped.entry(blob.hash).or_default();
            *dropped += 1;
            if *dropped >= blob.refs {
                freed += match blob.location {
                    Location::Loose => occupied(blob.size),
                    Location::Pack { .. } => blob.size,
                    Location::Elsewhere => 0,
                };
            }
        }
        Ok(freed)
    }
}

/// Whether what was sealed then is too young to go. What another machine's clock says of a time to come is no age.
pub(super) fn is_young(sealed_at_ns: i64, now: i64, young: i64) -> bool {
    sealed_at_ns > young && sealed_at_ns <= now.saturating_add(now.saturating_sub(young))
}

/// Nanoseconds; of more than 292 years as many as there can be.
fn nanos(age: Duration) -> i64 {
    i64::try_from(age.as_nanos()).unwrap_or(i64::MAX)
}
