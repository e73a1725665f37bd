//! Input hashes remembered from run to run, as git's index remembers: by (device, inode, size, mtime, ctime).
//!
//! Invariants: a hash counts only for a file in exactly the state that was hashed, and only if that state was
//! older than the moment of looking: what was changed in the same instant may be changed again
//! without a trace, so it is hashed again (git's racy-mtime rule). How long an instant is can be told from a time
//! itself: file systems that keep whole seconds have no others. A missing or damaged file is none: it costs time,
//! never a wrong hash. Written aside and renamed; of two runs at a time one wins. Must not know: the store.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::{SystemTime, UNIX_EPOCH};

use super::clock::{settled_at, since_1970};
use crate::model::BlobHash;

/// Starts the file; the number is the version of its form.
const MAGIC: &[u8; 16] = b"outfs inputs 1\n\0";
/// Bytes of a record.
const RECORD: usize = 8 * 7 + 4 + 32;
/// What was not asked for so many days is forgotten.
const KEPT_DAYS: u32 = 30;

/// Which state of which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub(super) dev: u64,
    pub(super) ino: u64,
    pub(super) size: u64,
    /// Nanoseconds since 1970, as are the others.
    pub(super) mtime: i128,
    pub(super) ctime: i128,
}

impl State {
    /// Of a file as it was found.
    pub fn of(meta: &std::fs::Metadata) -> State {
        use std::os::unix::fs::MetadataExt;
        let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        State {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            mtime: ns(meta.mtime(), meta.mtime_nsec()),
            ctime: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// The same, of what the system says of a file.
    pub(super) fn of_stat(stat: &libc::stat) -> State {
        let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        State {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: stat.st_size as u64,
            mtime: ns(stat.st_mtime, stat.st_mtime_nsec),
            ctime: ns(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// When it was last modified, nanoseconds since 1970.
    pub fn mtime_ns(&self) -> i128 {
        self.mtime
    }

    /// Could it be changed again after the moment `now` without looking different?
    pub(super) fn is_racy(&self, now: SystemTime) -> bool {
        let now = since_1970(now);
        // A time that was set to a later one does not come again by itself; there are file systems without a ctime.
        settled_at(self.ctime) >= now || (self.mtime <= now && settled_at(self.mtime) >= now)
    }

    fn write(&self, out: &mut Vec<u8>) {
        [self.dev, self.ino, self.size].iter().for_each(|n| out.extend(n.to_le_bytes()));
        for time in [self.mtime, self.ctime] {
            out.extend((time.div_euclid(1_000_000_000) as i64).to_le_bytes());
            out.extend((time.rem_euclid(1_000_000_000) as i64).to_le_bytes());
        }
    }

    fn read(words: &mut impl Iterator<Item = u64>) -> Option<State> {
        let mut next = || words.next();
        let (dev, ino, size) = (next()?, next()?, next()?);
        let mut time = || Some(i128::from(next()? as i64) * 1_000_000_000 + i128::from(next()? as i64));
        Some(State { dev, ino, size, mtime: time()?, ctime: time()? })
    }
}

#[derive(Debug)]
struct Known {
    state: State,
    /// Days since 1970 when it was last asked for.
    used: AtomicU32,
    hash: BlobHash,
}

/// By device and inode.
type Table = HashMap<(u64, u64), Known, BuildHasherDefault<Mix>>;

/// A quick hash of numbers that nobody chooses to be in each other's way.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(26) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u64((*b).into()));
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

/// The hashes of one project's inputs.
#[derive(Debug)]
pub struct Remembered {
    /// Nothing is kept where there is no place for it.
    file: Option<PathBuf>,
    known: Table,
    today: u32,
    changed: AtomicBool,
}

impl Remembered {
    /// What the file says; nothing without one.
    pub fn open(file: Option<PathBuf>) -> Remembered {
        let known = file.as_deref().and_then(|f| std::fs::read(f).ok()).and_then(|b| parse(&b));
        let days = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() / 86_400);
        Remembered { file, known: known.unwrap_or_default(), today: days as u32, changed: false.into() }
    }

    /// The hash of a file in this state.
    pub fn get(&self, state: &State) -> Option<BlobHash> {
        let known = self.known.get(&(state.dev, state.ino)).filter(|k| k.state == *state)?;
        if known.used.load(Relaxed) != self.today {
            known.used.store(self.today, Relaxed);
            self.changed.store(true, Relaxed);
        }
        Some(known.hash)
    }

    /// Remembers what was read of a file that was in this state at the moment `looked`, before it was read, and
    /// after.
    pub fn put(&mut self, state: State, looked: SystemTime, hash: BlobHash) {
        if !state.is_racy(looked) {
            self.known.insert((state.dev, state.ino), Known { state, used: self.today.into(), hash });
            self.changed = true.into();
        }
    }

    /// Writes it down, if there is something new.
    pub fn save(&mut self) -> io::Result<()> {
        let Some(file) = self.file.as_deref().filter(|_| self.changed.load(Relaxed)) else { return Ok(()) };
        let oldest = self.today.saturating_sub(KEPT_DAYS);
        let kept = self.known.values().filter(|k| k.used.load(Relaxed) >= oldest);
        let mut bytes = Vec::with_capacity(MAGIC.len() + 32 + self.known.len() * RECORD);
        bytes.extend(MAGIC);
        for k in kept {
            k.state.write(&mut bytes);
            bytes.extend(k.used.load(Relaxed).to_le_bytes());
            bytes.extend(k.hash.as_bytes());
        }
        bytes.extend(blake3::hash(&bytes).as_bytes());
        write_aside(file, &bytes)?;
        self.changed = false.into();
        Ok(())
    }
}

/// Writes a file of one's own as a whole or not at all; its directories are made.
pub(super) fn write_aside(file: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let dir = file.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut aside = tempfile::NamedTempFile::new_in(dir)?;
    aside.write_all(bytes)?;
    aside.persist(file).map_err(|e| e.error)?;
    Ok(())
}

/// `None` for what is damaged or of another form.
fn parse(bytes: &[u8]) -> Option<Table> {
    let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    let records = body.strip_prefix(MAGIC)?;
    if blake3::hash(body).as_bytes() != sum || records.len() % RECORD != 0 {
        return None;
    }
    let record = |r: &[u8]| {
        let (words, rest) = r.split_at(RECORD - 36);
        let mut words = words.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes")));
        let state = State::read(&mut words)?;
        let used = u32::from_le_bytes(rest[..4].try_into().ok()?).into();
        let hash = BlobHash(rest[4..].try_into().ok()?);
        Some(((state.dev, state.ino), Known { state, used, hash }))
    };
    // With room for all from the start.
    let mut known = Table::with_capacity_and_hasher(records.len() / RECORD, BuildHasherDefault::default());
    for bytes in records.chunks_exact(RECORD) {
        let (file, of) = record(bytes)?;
        known.insert(file, of);
    }
    Some(known)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::clock::clock_tick;
    use super::*;

    fn state(ino: u64, ns: i128) -> State {
        State { dev: 1, ino, size: 3, mtime: ns, ctime: ns - 1 }
    }

    fn at(ns: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(ns)
    }

    const LATE: u64 = 1_000_000_000_007;

    #[test]
    fn what_is_kept_is_found_again_for_the_same_state_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = Some(dir.path().join("a/b/file"));
        let mut one = Remembered::open(file.clone());
        let hash = BlobHash::of(b"x");
        for ino in 0..1000 {
            one.put(state(ino, -5), at(LATE), hash);
        }
        one.save().unwrap();
        let two = Remembered::open(file.clone());
        assert_eq!(two.get(&state(7, -5)), Some(hash));
        let other = State { size: 4, ..state(7, -5) };
        for other in [other, state(7, -4), State { dev: 2, ..state(7, -5) }, state(1000, -5)] {
            assert_eq!(two.get(&other), None, "{other:?}");
        }
        assert_eq!(Remembered::open(None).get(&state(7, -5)), None);
        Remembered::open(None).save().unwrap();
    }

    #[test]
    fn what_may_change_unseen_is_not_remembered() {
        let mut one = Remembered::open(None);
        let hash = BlobHash::of(b"x");
        let tick = 2 * clock_tick().as_nanos() as u64;
        for (ns, known) in [(LATE, false), (LATE + 1, false), (LATE - tick, false), (LATE - tick - 1, true)] {
            let state = state(ns, ns.into());
            one.put(state, at(LATE), hash);
            assert_eq!(one.get(&state).is_some(), known, "{ns}");
        }
    }

    #[test]
    fn coarse_times_settle_later() {
        let now = 5_000_000_000_001;
        let racy = |mtime: i128, ctime: i128| State { mtime, ctime, ..state(1, 0) }.is_racy(at(now));
        let old = 7;
        let now = i128::from(now);
        // Of whole seconds, and of two.
        assert!(racy(4_999_000_000_000, 4_999_000_000_000) && racy(old, 4_998_000_000_000));
        assert!(!racy(old, 4_997_000_000_000) && !racy(old, 4_999_000_000_001));
        // Of hundredths.
        assert!(racy(old, 4_999_990_000_000) && !racy(old, 4_999_900_000_001));
        // The time that it was given is to come; when that was done is long ago, or is not.
        assert!(!racy(now + 1_000_000_000, old) && racy(now + 1_000_000_000, now - 1));
        assert!(racy(old, now + 1_000_000_000), "the clock was set back");
        // No ctime.
        assert!(racy(now - 1, 0));
    }

    #[test]
    fn a_damaged_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let mut one = Remembered::open(Some(file.clone()));
        one.put(state(1, 5), at(LATE), BlobHash::of(b"x"));
        one.save().unwrap();
        let good = std::fs::read(&file).unwrap();
        assert!(parse(&good).is_some());
        for n in 0..good.len() {
            let mut bad = good.clone();
            bad[n] ^= 1;
            assert!(parse(&bad).is_none(), "byte {n}");
            assert!(parse(&good[..n]).is_none(), "{n} bytes");
        }
        std::fs::write(&file, b"junk").unwrap();
        assert_eq!(Remembered::open(Some(file)).get(&state(1, 5)), None);
    }

    #[test]
    fn what_nobody_asks_for_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let file = Some(dir.path().join("file"));
        let mut one = Remembered::open(file.clone());
        one.today = 100;
        one.put(state(1, 5), at(LATE), BlobHash::of(b"x"));
        one.put(state(2, 5), at(LATE), BlobHash::of(b"x"));
        one.save().unwrap();
        let mut two = Remembered::open(file.clone());
        two.today = 100 + KEPT_DAYS + 1;
        assert!(two.get(&state(1, 5)).is_some());
        two.save().unwrap();
        let three = Remembered::open(file);
        assert!(three.get(&state(1, 5)).is_some() && three.get(&state(2, 5)).is_none());
    }
}
