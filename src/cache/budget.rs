//! How much each process may have come from tiers by reading: a scan of a mount ends before all of it has come.
//!
//! The budget is a process's, with all its threads, and not its session's or group's: a build is one session, too, and has more come in
//! all than any scan should. What tells a scan from a build is that it reads something of very many entries: so each entry counts, beside the bytes.
//!
//! Invariants: only what came from a tier because a process reads counts, once, for the process that had it asked for; what is here costs
//! nothing; whoever has used up a budget is told of by one event; what is remembered is bounded, however many processes and
//! entries there are. Must not know: what a tier is, what is read, how reading is answered.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::process::Program;
use super::{Cache, CacheError, Entry, Result, now_ns};
use crate::model::EventKind;
use crate::model::units::human_bytes;

/// What an entry counts for when a process first has something of it come.
const ENTRY: u64 = 4 << 20;
/// What was used is there again after this time; it comes back evenly.
const BACK: Duration = Duration::from_secs(24 * 3600);
/// Processes that are remembered; one that is forgotten begins anew.
const PROCESSES: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Entries of one process that are remembered; then they count anew.
const ENTRIES: usize = 4096;

/// Whose budget what comes is taken from.
#[derive(Clone)]
pub struct Payer(Arc<Mutex<Account>>);

impl Payer {
    /// Whether nothing is left of this budget.
    pub(super) fn has_spent(&self, budget: u64) -> bool {
        self.0.lock().has_spent(budget, Instant::now())
    }

    /// So many bytes came for it.
    pub(super) fn pay(&self, bytes: u64) {
        self.0.lock().pay(bytes);
    }
}

/// What a process has used of its budget.
struct Account {
    used: f64,
    /// As of then.
    at: Instant,
    seen: HashSet<i64>,
    /// Entries and bytes since nothing was used.
    entries: u64,
    came: u64,
    told: bool,
}

/// Whether a process may have more come.
#[derive(Debug, PartialEq, Eq)]
enum May {
    Read,
    /// `tell`: that is news.
    NotRead {
        tell: bool,
    },
}

impl Account {
    fn new(now: Instant) -> Account {
        Account { used: 0.0, at: now, seen: HashSet::new(), entries: 0, came: 0, told: false }
    }

    /// Whether nothing is left, when what came back by now is there again.
    fn has_spent(&mut self, budget: u64, now: Instant) -> bool {
        self.used -= budget as f64 * now.saturating_duration_since(self.at).div_duration_f64(BACK);
        self.at = now;
        if self.used <= 0.0 {
            *self = Account::new(now);
        }
        self.used >= budget as f64
    }

    /// It is about to read something of this entry that is not here.
    fn read(&mut self, entry: i64, budget: u64, now: Instant) -> May {
        if self.has_spent(budget, now) {
            return May::NotRead { tell: !std::mem::replace(&mut self.told, true) };
        }
        // Else who goes on and gets a little now and then would be told of each time.
        self.told &= self.used > budget as f64 / 2.0;
        if self.seen.len() >= ENTRIES {
            self.seen.clear();
        }
        if self.seen.insert(entry) {
            self.used += ENTRY as f64;
            self.entries += 1;
        }
        May::Read
    }

    fn pay(&mut self, bytes: u64) {
        self.used += bytes as f64;
        self.came += bytes;
    }
}

/// The accounts of all processes.
pub(super) struct Budgets {
    /// By number and when they started.
    accounts: Mutex<LruCache<(u32, u64), Payer>>,
    facts: Mutex<ScanFacts>,
}

impl Default for Budgets {
    fn default() -> Self {
        Budgets { accounts: Mutex::new(LruCache::new(PROCESSES)), facts: Mutex::default() }
    }
}

impl Budgets {
    fn of(&self, program: &Program) -> Payer {
        let new = || Payer(Arc::new(Mutex::new(Account::new(Instant::now()))));
        self.accounts.lock().get_or_insert((program.pid, program.started), new).clone()
    }
}

/// What budgets kept from coming.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ScanFacts {
    /// Processes that had used up their budgets.
    pub stopped: u64,
    /// Reads of theirs that were refused.
    pub refused: u64,
    /// The last of them: when (nanoseconds since 1970), its number, and what it is called.
    pub last: Option<(i64, u32, String)>,
}

impl Cache {
    /// Whose budget it is taken from when this thread reads of an entry what is not here. Nobody's where it cannot be told whose thread it
    /// is, and where it is the kernel's, which reads for others.
    pub fn payer(&self, thread: u32, entry: &Entry) -> Result<Option<Payer>> {
        let Some(budget) = self.inner.tiers.attached().1.scan_budget else { return Ok(None) };
        let Some(program) = Program::of_thread(thread) else { return Ok(None) };
        let budgets = &self.inner.tiers.budgets;
        let payer = budgets.of(&program);
        let (may, entries, came) = {
            let mut account = payer.0.lock();
            (account.read(entry.id(), budget, Instant::now()), account.entries, account.came)
        };
        let tell = match may {
            May::Read => return Ok(Some(payer)),
            May::NotRead { tell } => tell,
        };
        let Program { pid, name, .. } = program;
        let mut facts = budgets.facts.lock();
        facts.refused += 1;
        if tell {
            facts.stopped += 1;
            facts.last = Some((now_ns(), pid, name.clone()));
            drop(facts);
            self.tell_of_scan(entry, pid, &name, (entries, came, budget));
        }
        Err(CacheError::OverBudget { pid, program: name, budget })
    }

    fn tell_of_scan(&self, entry: &Entry, pid: u32, program: &str, (entries, came, budget): (u64, u64, u64)) {
        let key = entry.key();
        let go_on = format!(
            "'outfs prefetch {key}' brings this entry, whoever reads it then; 'outfs mount --scan-budget SIZE' lets \
             each process have more come"
        );
        tracing::warn!(
            "process {pid} ({program:?}) has had {} of {entries} entries come from tiers by reading, its budget of {}, and gets \
             EDQUOT: {go_on}",
            human_bytes(came),
            human_bytes(budget)
        );
        let program = program.to_owned();
        let event = EventKind::OverBudget { pid, program, entries, bytes: came, budget, go_on };
        self.note(event, Some(key), false);
    }

    /// What budgets kept from coming.
    pub(super) fn scan_facts(&self) -> ScanFacts {
        self.inner.tiers.budgets.facts.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{bytes, events};
    use super::super::tier_tests::{World, patient};
    use super::super::{LeaseKind, TierOptions, Work};
    use super::*;
    use crate::model::groups::GROUP;
    use crate::tier::Fault;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    /// As mounts have it.
    fn usual() -> u64 {
        TierOptions::default().scan_budget.unwrap()
    }

    #[test]
    fn a_toolchain_is_no_scan_and_very_many_entries_are() {
        let now = Instant::now();
        let mut build = Account::new(now);
        for entry in 0..40 {
            assert_eq!(build.read(entry, usual(), now), May::Read);
            (0..10_000).for_each(|_| build.pay(MIB));
            // Again and again.
            assert_eq!(build.read(entry % 7, usual(), now), May::Read, "{entry}");
            if build.came > 50 * GIB {
                break;
            }
        }
        assert!(build.came > 50 * GIB);
        let mut scan = Account::new(now);
        let read = (0..100_000).take_while(|entry| scan.read(*entry, usual(), now) == May::Read).count();
        assert!((8000..=16384).contains(&read), "{read} entries");
    }

    #[test]
    fn what_was_used_comes_back_and_is_told_of_once() {
        let begin = Instant::now();
        let mut scan = Account::new(begin);
        assert_eq!(scan.read(1, GIB, begin), May::Read);
        scan.pay(GIB);
        let tells = |scan: &mut Account, now| match scan.read(2, GIB, now) {
            May::Read => None,
            May::NotRead { tell } => Some(tell),
        };
        assert_eq!(tells(&mut scan, begin), Some(true));
        assert_eq!(tells(&mut scan, begin), Some(false));
        // It goes on trying: however often, it comes back as fast.
        for minute in 0..5 {
            assert_eq!(tells(&mut scan, begin + Duration::from_secs(60 * minute)), Some(false));
        }
        let later = begin + Duration::from_secs(8 * 60);
        assert!(!scan.has_spent(GIB, later), "who asks sees what has come back");
        assert_eq!(tells(&mut scan, later), None, "a little has come back");
        assert_eq!(tells(&mut scan, later), Some(false), "that was all, and it was told of");
        let (next, day) = (begin + BACK, BACK);
        assert_eq!(tells(&mut scan, next), None);
        scan.pay(2 * GIB);
        assert_eq!(tells(&mut scan, next), Some(true), "on another day");
        assert_eq!(tells(&mut scan, next + 3 * day), None);
        assert_eq!((scan.entries, scan.came), (1, 0), "all is forgotten");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (now, budgets) = (Instant::now(), Budgets::default());
        let mut scan = Account::new(now);
        for entry in 0..100_000 {
            assert_eq!(scan.read(entry, u64::MAX, now), May::Read);
            assert!(scan.seen.len() <= ENTRIES);
        }
        let program = |pid, started| Program { pid, started, name: "x".into() };
        let same = |a: &Payer, b: &Payer| Arc::ptr_eq(&a.0, &b.0);
        let first = budgets.of(&program(1, 1));
        assert!(same(&first, &budgets.of(&program(1, 1))));
        assert!(!same(&first, &budgets.of(&program(1, 2))), "another process has its number now");
        (2..10_000).for_each(|pid| drop(budgets.of(&program(pid, 1))));
        assert_eq!(budgets.accounts.lock().len(), PROCESSES.get());
    }

    /// Bytes that were paid for by this process.
    fn paid(w: &World) -> u64 {
        let us = Program::of_thread(std::process::id()).unwrap();
        w.near.cache.inner.tiers.budgets.of(&us).0.lock().came
    }

    /// Reads all of a file of an entry as a process of a mount does.
    fn read(w: &World, entry: &Entry, name: &str) -> Result<usize> {
        let payer = w.near.cache.payer(std::process::id(), entry)?;
        let record = entry.file(format!("outputs/{name}").as_bytes())?;
        let mut buf = vec![0; 4 << 20];
        let who = super::super::Reader::of(payer);
        entry.read_by(record, 0, &mut buf, &who)
    }

    #[test]
    fn all_that_comes_is_paid_for_once_and_nothing_else() {
        let w = World::new();
        // Of which little comes back while this runs.
        w.attach(TierOptions { scan_budget: Some(GIB), ..patient() });
        let small: Vec<String> = (0..40).map(|n| format!("small{n:02}")).collect();
        let mut files: Vec<(&str, Vec<u8>)> =
            small.iter().zip(0..).map(|(name, seed)| (&name[..], bytes(10_000, seed))).collect();
        let large = bytes(9 * GROUP, 99);
        files.extend([("large", large.clone()), ("other", bytes(3 * GROUP, 98))]);
        w.send_files("abcd", &files);
        let entry = w.find("abcd").unwrap();
        w.tier.set_faults(|_| Some(Fault::Refuses));
        // One that nothing is read ahead of, or so many failures could make the tier ill.
        read(&w, &entry, "small00").unwrap_err();
        assert_eq!(paid(&w), 0, "nothing came");
        w.tier.set_faults(|_| None);
        assert_eq!(read(&w, &entry, "small07").unwrap(), 10_000);
        assert_eq!(paid(&w), 400_000, "its neighbours came with it");
        small.iter().for_each(|name| assert_eq!(read(&w, &entry, name).unwrap(), 10_000));
        assert_eq!(read(&w, &entry, "large").unwrap(), large.len());
        assert_eq!(paid(&w), 400_000 + large.len() as u64);
        assert_eq!(read(&w, &entry, "large").unwrap(), large.len());
        entry.prefetch(&[], &Work::default()).unwrap();
        assert_eq!(read(&w, &entry, "other").unwrap(), 3 * GROUP);
        assert_eq!(paid(&w), 400_000 + large.len() as u64, "others had it come");
    }

    #[test]
    fn who_has_used_up_a_budget_reads_what_is_here_and_is_told_of_once() {
        let w = World::new();
        for n in 0..3 {
            w.send_files(&format!("entry{n}"), &[("f", bytes(1000, n)), ("g", bytes(3 * GROUP, 10 + n))]);
        }
        w.attach(TierOptions { scan_budget: Some(ENTRY + MIB), ..patient() });
        let entries: Vec<Entry> = (0..3).map(|n| w.find(&format!("entry{n}")).unwrap()).collect();
        assert_eq!(read(&w, &entries[0], "f").unwrap(), 1000);
        assert_eq!(read(&w, &entries[1], "f").unwrap(), 1000);
        for name in ["f", "g"] {
            let refused = read(&w, &entries[2], name).unwrap_err();
            assert!(matches!(refused, CacheError::OverBudget { .. }), "{refused}");
        }
        let facts = w.near.cache.stats().unwrap().scans;
        let us = std::process::id();
        assert_eq!((facts.stopped, facts.refused, facts.last.unwrap().1), (1, 2, us));
        let told: Vec<_> = events(&w.near.cache)
            .into_iter()
            .filter_map(|e| match e {
                EventKind::OverBudget { pid, entries, bytes, go_on, .. } => {
                    Some((pid, entries, bytes, go_on))
                }
                _ => None,
            })
            .collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].0, told[0].1, told[0].2), (us, 2, 2000));
        assert!(told[0].3.contains("outfs prefetch entry2"), "{told:?}");
        // Others who read it have it come.
        let again = w.near.cache.entry(entries[2].key(), LeaseKind::Hold).unwrap().unwrap();
        again.prefetch(&[], &Work::default()).unwrap();
        let record = entries[2].file(b"outputs/f").unwrap();
        assert_eq!(entries[2].read_here(record, 0, &mut [0; 1000]).unwrap(), 1000);
    }
}
