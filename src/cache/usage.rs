//! Accounting: what the store uses, what it may use, and what each entry costs.
//!
//! Invariants: a shared blob counts once; bytes that were evicted but are still held count
//! until they are gone; drafts count as what they occupy, measured at most every few seconds, and so do
//! directories and what else there is beside the entries; asking is cheap enough for every statfs and every create.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::stat::FileStat;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Cache, CacheError, Result};
use crate::index::{Totals, occupied};
use crate::model::{BlobHash, EntryKey, Manifest};
use crate::store::port::paths;
use crate::store::{Location, PACK_LIMIT, table_bytes};

/// The smallest default quota.
const LEAST: u64 = 5 << 30;
/// Drafts are measured no more often than this.
const MEASURE_EVERY: Duration = Duration::from_secs(2);

/// This share of the file system's inodes is left free.
const FILES_RESERVE: u64 = 100;

/// The files of the index.
const INDEX: [&str; 2] = ["index.sqlite", "index.sqlite-wal"];

/// With so much room, the next [`ROOMY_FOR`] are not asked about.
const PLENTY: u64 = 512 << 20;
const ROOMY_FOR: Duration = Duration::from_millis(200);

/// What the store uses of what it may, in bytes where not said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// The quota.
    pub limit: u64,
    /// Bytes used: packs, blobs, manifests, index, events, drafts, and what was evicted but is still held.
    pub used: u64,
    /// What may still be written: within the quota and above the reserve.
    pub available: u64,
    /// Number of entries.
    pub entries: u64,
    /// Bytes of drafts, of `used`.
    pub drafts: u64,
    /// Bytes evicted but still held, of `used`.
    pub held: u64,
    /// Bytes in packs that nothing refers to, of `used`.
    pub dead: u64,
    /// Bytes of contents that came from a tier in part, of `used`.
    #[serde(default)]
    pub partial: u64,
    /// Manifests and their tables, of `used`; and the inodes of all that is stored, where they take room.
    pub metadata: u64,
    /// The index, the event log, directories and the like, of `used`.
    pub index: u64,
    /// Free on the file system that holds the store.
    pub disk_available: u64,
    /// To be left free there.
    pub reserve: u64,
    /// Inodes available there (nearly endless where they are made as they are needed).
    pub files_available: u64,
    /// Inodes to be left there.
    pub files_reserve: u64,
}

/// All figures of a cache.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// The process that owns the store.
    pub pid: u32,
    /// The store's id.
    pub store_id: String,
    /// This program's version.
    pub version: String,
    /// What is used.
    pub usage: Usage,
    /// What the index holds.
    pub totals: Totals,
    /// The keys of all entries are in memory: a look-up is at its fastest.
    pub keys_in_memory: bool,
    /// Bytes of outputs read from packs and blobs by this process.
    pub blob_bytes_read: u64,
    /// Entries evicted by this process.
    pub evicted: u64,
    /// Packs whose live blobs it moved, so that they could go.
    #[serde(default)]
    pub compacted: u64,
    /// Rounds of upkeep that are over: when several have changed nothing, it is at rest.
    pub rounds: u64,
    /// Pins.
    pub pins: u64,
    /// What the kernel knows of this process's views.
    pub known: super::Known,
    /// The scrub.
    pub scrub: super::ScrubFacts,
    /// The tiers, in the order in which they are asked.
    pub tiers: Vec<super::TierFacts>,
    /// What budgets kept from coming from them.
    #[serde(default)]
    pub scans: super::ScanFacts,
}

/// What one entry costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Du {
    /// The entry.
    pub key: EntryKey,
    /// Bytes of its files.
    pub logical: u64,
    /// Bytes of its distinct blobs.
    pub stored: u64,
    /// Of these, what no other entry has: what evicting it would free.
    pub exclusive: u64,
    /// Of these, what other entries have too.
    pub shared: u64,
    /// Of these, what is on this disk; the rest is in a tier only.
    #[serde(default)]
    pub here: u64,
    /// How much that is.
    #[serde(default)]
    pub residency: super::Residency,
}

/// What was measured last.
#[derive(Default)]
pub(crate) struct Accounts {
    measured: Mutex<Measured>,
    /// Bytes of the index.
    index: AtomicU64,
    /// Until when there is so much room that nobody needs to ask.
    roomy: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Measured {
    /// Bytes by draft.
    of: HashMap<String, u64>,
    /// Bytes of what is beside entries, drafts and the index.
    rest: u64,
    at: Option<Instant>,
    took: Duration,
}

impl Accounts {
    /// A draft is gone: sealed, so that its files count as the entry's, or dropped.
    pub(super) fn draft_gone(&self, id: &str) {
        self.measured.lock().of.remove(id);
    }

    /// The bytes that a draft counts for.
    pub(super) fn of_draft(&self, id: &str) -> u64 {
        self.measured.lock().of.get(id).copied().unwrap_or(0)
    }

    /// A moment ago there was plenty of room, for `bytes` too.
    pub(super) fn is_roomy(&self, bytes: u64) -> bool {
        bytes < PLENTY / 2 && self.roomy.lock().is_some_and(|until| Instant::now() < until)
    }
}

impl Cache {
    /// What the store uses and may use.
    pub fn usage(&self) -> Result<Usage> {
        let totals = self.inner.index.totals()?;
        let space = self.inner.store.file_system_space()?;
        let (disk, disk_available) = (space.bytes, space.available);
        let files_reserve = space.files / FILES_RESERVE;
        let (drafts, rest) = self.measured_bytes(space.inode);
        let index = self.index_bytes() + rest;
        let limits = self.inner.limits.read();
        let quota = limits.size.map_or((disk / 10).max(LEAST), |s| s.of(disk)).min(disk);
        let reserve = limits.reserve.map_or(disk / 100, |s| s.of(disk)).min(disk);
        let unlimited = limits.entries.is_none();
        drop(limits);
        let metadata = totals.metadata_bytes + files(&totals) * space.inode;
        let partial = self.inner.partials.bytes();
        let used = totals.occupied_bytes + drafts + metadata + index + partial;
        let available = quota.saturating_sub(used).min(disk_available.saturating_sub(reserve));
        let roomy = available > PLENTY && unlimited && space.files_available / 2 >= files_reserve;
        *self.inner.upkeep.accounts.roomy.lock() = roomy.then(|| Instant::now() + ROOMY_FOR);
        Ok(Usage {
            limit: quota,
            used,
            available,
            entries: totals.entries,
            drafts,
            held: totals.unreferenced_bytes,
            dead: totals.dead_bytes.saturating_sub(totals.unreferenced_bytes),
            partial,
            metadata,
            index,
            disk_available,
            reserve,
            files_available: space.files_available,
            files_reserve,
        })
    }

    /// All figures, for `stats`, `stats.json` and `metrics`.
    pub fn stats(&self) -> Result<Stats> {
        let pins = self.pins().iter().map(|(_, names)| names.len() as u64).sum();
        let usage = self.usage()?;
        Ok(Stats {
            scrub: self.scrub_facts(&usage),
            tiers: self.tier_facts(),
            scans: self.scan_facts(),
            pid: std::process::id(),
            store_id: self.inner.store.id().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            usage,
            totals: self.inner.index.totals()?,
            keys_in_memory: self.inner.index.has_keys(),
            blob_bytes_read: self.inner.blob_bytes_read.load(Ordering::Relaxed),
            evicted: self.inner.upkeep.evicted.load(Ordering::Relaxed),
            compacted: self.inner.upkeep.compacted.load(Ordering::Relaxed),
            rounds: self.inner.upkeep.rounds.load(Ordering::Relaxed),
            pins,
            known: self.known(),
        })
    }

    /// How many bytes of content are here, and in how many contents; nothing when the index cannot say.
    pub fn stored(&self) -> (u64, u64) {
        let stored = |t: Totals| (t.loose_bytes + t.pack_bytes.saturating_sub(t.dead_bytes), t.blobs);
        self.inner.index.totals().map(stored).unwrap_or_default()
    }

    /// Measures the drafts anew when that is due.
    pub(super) fn refresh_usage(&self) -> Result<()> {
        self.measured_bytes(self.inner.store.file_system_space()?.inode);
        Ok(())
    }

    /// The index with its journal, which grows by some pages with every entry: asked for each time. What cannot be told is as it was.
    fn index_bytes(&self) -> u64 {
        let last = &self.inner.upkeep.accounts.index;
        match INDEX.iter().map(|name| file_bytes(&self.inner.store.path(name))).sum::<io::Result<u64>>() {
            Ok(bytes) => last.store(bytes, Ordering::Relaxed),
            Err(e) => tracing::debug!("the index cannot be measured: {e}"),
        }
        last.load(Ordering::Relaxed)
    }

    /// The drafts, and what is beside entries and the index: measured now and then; large drafts, which take long to
    /// measure, more rarely. While one thread measures, others get the last result, and so does everybody of what cannot be
    /// measured now. Each inode takes `inode` bytes.
    fn measured_bytes(&self, inode: u64) -> (u64, u64) {
        let accounts = &self.inner.upkeep.accounts;
        {
            let mut last = accounts.measured.lock();
            let fresh = |at: Instant| at.elapsed() < MEASURE_EVERY.max(last.took * 20);
            if last.at.is_some_and(fresh) {
                return (last.of.values().sum(), last.rest);
            }
            last.at = Some(Instant::now());
        }
        let begun = Instant::now();
        let measure = |id: &str| tree_bytes(&self.inner.store.draft_path(id), inode);
        let measured: Vec<_> = self.drafts().iter().map(|d| (d.id().to_owned(), measure(d.id()))).collect();
        let live: HashSet<String> = self.drafts().iter().map(|d| d.id().to_owned()).collect();
        let rest = rest_bytes(self.inner.store.root(), inode);
        let mut last = accounts.measured.lock();
        let last = &mut *last;
        last.rest = rest.unwrap_or_else(|e| kept(last.rest, &e));
        let of = measured.into_iter().filter(|(id, _)| live.contains(id)).map(|(id, bytes)| {
            let before = last.of.get(&id).copied().unwrap_or_default();
            (id, bytes.unwrap_or_else(|e| kept(before, &e)))
        });
        last.of = of.collect();
        last.at = Some(Instant::now());
        last.took = begun.elapsed();
        (last.of.values().sum(), last.rest)
    }

    /// What one entry costs.
    pub fn du(&self, key: &EntryKey) -> Result<Du> {
        let no_entry = || CacheError::NoEntry { key: key.clone(), why: None };
        let row = self.inner.index.entry(key)?.ok_or_else(no_entry)?;
        let blobs = self.inner.store.read_manifest(&row.manifest)?.blobs();
        let hashes: Vec<BlobHash> = blobs.iter().map(|(h, _, _)| *h).collect();
        let rows = self.inner.index.blobs(&hashes)?;
        let residency = self.residency(&row)?;
        let mut du = Du {
            key: row.key,
            logical: row.logical_bytes,
            stored: 0,
            exclusive: 0,
            shared: 0,
            here: 0,
            residency,
        };
        for ((hash, size, _), row) in blobs.iter().zip(rows) {
            du.stored += size;
            let elsewhere = row.is_some_and(|r| r.location == Location::Elsewhere);
            du.here += if elsewhere { self.partial_bytes(hash) } else { *size };
            match row.is_some_and(|r| r.refs > 1) {
                true => du.shared += size,
                false => du.exclusive += size,
            }
        }
        Ok(du)
    }
}

/// Bytes that an entry's manifest and location table occupy, and places of so many bytes.
pub(super) fn metadata_bytes(manifest: &Manifest, places: usize) -> u64 {
    occupied(manifest.as_bytes().len() as u64) + occupied(table_bytes(manifest)) + occupied(places as u64)
}

/// About how many files the entries consist of: manifest, table and pack of each, and the loose blobs, none of which is
/// smaller than a pack's content may be.
pub(super) fn files(totals: &Totals) -> u64 {
    3 * totals.entries + totals.loose_bytes / PACK_LIMIT
}

/// What was measured before counts when it cannot be measured now: without descriptors a store looks empty.
fn kept(before: u64, e: &io::Error) -> u64 {
    tracing::debug!("the account stays as it was, because something cannot be measured: {e}");
    before
}

/// Bytes of what is in a store beside packs, blobs, manifests, drafts, contents in part and the index: directories, the spare, events. What
/// is unfinished is about to count as something else.
fn rest_bytes(store: &Path, inode: u64) -> io::Result<u64> {
    let mut bytes = file_bytes(store)? + inode;
    let mut below = Vec::new();
    let takes = |stat: &FileStat| blocks(stat) + inode;
    paths::each_stat(store, &mut |name, stat| match name.to_str() {
        Some(name) if INDEX.contains(&name) => bytes += inode,
        Some("drafts" | "packs" | "tmp" | "partial") => bytes += takes(stat),
        Some("blobs" | "manifests") => {
            bytes += takes(stat);
            below.push((store.join(name), true));
        }
        _ => below.push((store.join(name), false)),
    })?;
    for (path, shards) in below {
        match shards {
            true => paths::each_stat(&path, &mut |_, stat| bytes += takes(stat))?,
            false => bytes += tree_bytes(&path, inode)?,
        }
    }
    Ok(bytes)
}

fn blocks(stat: &FileStat) -> u64 {
    stat.st_blocks as u64 * 512
}

/// Bytes that the blocks of a file or directory occupy; nothing when it is not there.
fn file_bytes(path: &Path) -> io::Result<u64> {
    Ok(paths::stat(path)?.map_or(0, |stat| blocks(&stat)))
}

/// Bytes that a tree (or a file) and its inodes occupy, hard links once. What vanishes meanwhile counts nothing, nor does what may
/// not be looked at or has too long a path.
fn tree_bytes(top: &Path, inode: u64) -> io::Result<u64> {
    let mut seen = HashSet::new();
    let mut todo: Vec<PathBuf> = vec![top.to_owned()];
    let mut bytes = file_bytes(top)? + inode;
    while let Some(dir) = todo.pop() {
        let listed = paths::each_stat(&dir, &mut |name, stat| {
            if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
                todo.push(dir.join(name));
            } else if stat.st_nlink > 1 && !seen.insert(stat.st_ino) {
                return;
            }
            bytes += blocks(stat) + inode;
        });
        match listed {
            Err(e) if !counts_nothing(&e) => return Err(e),
            _ => {}
        }
    }
    Ok(bytes)
}

fn counts_nothing(e: &io::Error) -> bool {
    let errno = e.raw_os_error();
    matches!(errno, Some(libc::ENOENT | libc::ENOTDIR | libc::EACCES | libc::ELOOP | libc::ENAMETOOLONG))
}

#[cfg(test)]
mod tests {
    use super::super::tests::Fixture;
    use crate::store::Fault;

    /// Without descriptors, or on a disk that fails, a store must not look smaller than it is: it would be filled beyond its quota.
    #[test]
    fn what_cannot_be_measured_stays_as_it_was() {
        let f = Fixture::new();
        let (_draft, path) = f.in_place("abcd");
        std::fs::create_dir(path.join("dir")).unwrap();
        std::fs::write(path.join("dir/file"), vec![1; 300_000]).unwrap();
        let measure = || {
            f.cache.inner.upkeep.accounts.measured.lock().at = None;
            (f.cache.measured_bytes(0), f.cache.index_bytes())
        };
        let before = measure();
        assert!(before.0.0 >= 300_000 && before.0.1 > 0 && before.1 > 0, "{before:?}");
        for n in 0.. {
            let fault = Fault::after(n, libc::EMFILE, true);
            assert_eq!(measure(), before, "with call {n} and all that follow failing");
            if !fault.fired() {
                assert!(n > 20, "only {n} calls were seen");
                break;
            }
        }
        assert_eq!(measure(), before);
    }
}
