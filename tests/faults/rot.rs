//! Rot: every kind of file of a store that was closed, or whose owner was killed, is damaged in every way.
//!
//! Whoever reads verified content never gets wrong bytes, but an error, and an event says so; `fsck --repair` leaves a
//! clean store and names what is lost; the rest is there. Rot of the index alone loses nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outfs::cache::{Cache, CacheError, FsckOptions, FsckReport};
use outfs::model::{EntryKey, Event, EventKind};
use outfs::store::StoreError;

use super::life::{SEALED, Template, copy, key, limits, look_up, put, quick_dir};
use super::{alone, points, regions};

const INDEX: &str = "index.sqlite";

/// More than the times of files are apart, at least.
const TICK: Duration = Duration::from_millis(30);

/// Bytes of SQLite's pages.
const PAGE: usize = 4096;

/// What happens to a file.
#[derive(Debug, Clone)]
enum Harm {
    Flip(usize),
    /// A page of the index becomes noise.
    Page(usize),
    Cut(usize),
    Grow,
    /// Gets the content of another of its kind.
    Swap(PathBuf),
    Lose,
}

/// Where a file is flipped and cut: of each part that its format knows the first byte where it comes first, and the last where it
/// comes last; of a file without parts, places at equal distances.
fn spots(file: &Path, bytes: &[u8], hit: &mut BTreeSet<&'static str>) -> BTreeSet<usize> {
    let parts = regions::parts(file, bytes);
    if parts.is_empty() {
        let (len, points) = (bytes.len(), if file.to_string_lossy().starts_with("index") { 60 } else { 12 });
        return (0..points)
            .map(|i| i * len / points)
            .chain(len.checked_sub(1))
            .filter(|at| *at < len)
            .collect();
    }
    hit.extend(parts.iter().map(|(name, _)| *name));
    let (mut first, mut last) = (BTreeMap::new(), BTreeMap::new());
    for (name, range) in parts {
        first.entry(name).or_insert(range.start);
        last.insert(name, range.end - 1);
    }
    first.into_values().chain(last.into_values()).collect()
}

impl Harm {
    fn all(store: &Path, file: &Path, others: &[PathBuf], hit: &mut BTreeSet<&'static str>) -> Vec<Harm> {
        let bytes = fs::read(store.join(file)).unwrap();
        let (len, spots) = (bytes.len(), spots(file, &bytes, hit));
        let mut all: Vec<Harm> = spots.iter().map(|at| Harm::Flip(*at)).collect();
        all.extend(spots.iter().step_by(3).map(|at| Harm::Cut(*at)));
        if file == Path::new(INDEX) {
            all.extend((0..len).step_by(PAGE).map(Harm::Page));
        }
        all.extend(others.iter().find(|o| *o != file).map(|o| Harm::Swap(o.clone())));
        all.extend([Harm::Grow, Harm::Lose]);
        all
    }

    fn do_to(&self, store: &Path, file: &Path) {
        let path = store.join(file);
        let mut bytes = fs::read(&path).unwrap();
        match self {
            Harm::Flip(at) => bytes[*at] ^= 0x11,
            Harm::Page(at) => {
                let end = bytes.len().min(at + PAGE);
                blake3::Hasher::new().update(b"rot").finalize_xof().fill(&mut bytes[*at..end]);
            }
            Harm::Cut(len) => bytes.truncate(*len),
            Harm::Grow => bytes.extend([0x5a; 700]),
            Harm::Swap(other) => bytes = fs::read(store.join(other)).unwrap(),
            Harm::Lose => {}
        }
        fs::remove_file(&path).unwrap();
        if !matches!(self, Harm::Lose) {
            fs::write(&path, bytes).unwrap();
        }
    }
}

/// The files of a store, by kind, as paths below it.
fn files(store: &Path) -> Vec<(String, PathBuf)> {
    let (mut todo, mut all) = (vec![store.to_owned()], Vec::new());
    while let Some(dir) = todo.pop() {
        for path in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let name = path.strip_prefix(store).unwrap().to_owned();
            let room = name.iter().next().unwrap().to_string_lossy();
            let suffix = name.extension().map_or("", |e| e.to_str().unwrap());
            let kind = format!("{room} {suffix}");
            // A draft's files are nobody's yet, and the spare is a file of nothing.
            if !name.starts_with("drafts") && room != "index.spare" {
                all.push((kind, name));
            }
        }
    }
    all.sort();
    all
}

fn check(cache: &Cache, repair: bool) -> FsckReport {
    let options = FsckOptions { verify_data: true, repair, ..FsckOptions::default() };
    cache.fsck(options, &mut |_| {}).unwrap()
}

/// The entries that events call damaged or swept, and whether anything is called damaged.
fn told(cache: &Cache) -> (BTreeSet<EntryKey>, bool) {
    // A damaged log says nothing.
    let Ok(page) = cache.store().read_events(0, 9999) else { return (BTreeSet::new(), true) };
    let lost = |e: &Event| matches!(e.kind, EventKind::Damaged { .. } | EventKind::Swept { .. });
    let any = page.events.iter().any(|e| matches!(e.kind, EventKind::Damaged { .. }));
    (page.events.into_iter().filter(lost).filter_map(|e| e.key).collect(), any)
}

/// Opens, reads, repairs and reads again what was harmed.
fn live_on(store: &Path, file: &Path) {
    // What was made within a tick of the clock before a start counts as the new owner's own, and is not swept.
    std::thread::sleep(TICK);
    let cache = match Cache::open(store, limits()) {
        Ok(cache) => cache,
        Err(e) => {
            assert!(file == Path::new("format"), "it cannot be opened: {e}");
            let typed = matches!(&e, CacheError::Store(StoreError::Corrupt { path, .. } | StoreError::Unsuitable { path, .. }
                | StoreError::TooNew { path, .. }) if path.starts_with(store));
            assert!(typed, "{e:?}");
            return;
        }
    };
    for of in SEALED {
        match look_up(&cache, of) {
            Ok(_) => {}
            Err(CacheError::Store(StoreError::Corrupt { .. } | StoreError::Missing { .. })) => {
                assert!(told(&cache).1, "no event tells of {of}");
            }
            Err(CacheError::Index(e)) => assert!(e.is_damage(), "{e}"),
            Err(e) => panic!("{of}: {e}"),
        }
    }
    let report = check(&cache, true);
    assert_eq!(report.remaining, [], "not repaired");
    assert_eq!(check(&cache, false).damage, []);
    // What an index that lost commits knows nothing of is told when the sweep comes to it.
    cache.finish_sweep().unwrap();
    let mut lost = told(&cache).0;
    lost.extend(report.lost);
    // What the log of the index alone knew of.
    let last = file.to_string_lossy().ends_with("-wal").then_some("last");
    for of in SEALED.into_iter().chain(last) {
        let found = look_up(&cache, of).unwrap_or_else(|e| panic!("{of} after the repair: {e}"));
        assert!(found || file != Path::new(INDEX), "{of} is lost, and only the index was rotten");
        assert!(found || lost.contains(&key(of)), "{of} is lost, and nobody says so");
    }
    let source = quick_dir();
    put(&cache, source.path(), "after").unwrap();
    cache.close().unwrap();
    let cache = Cache::open(store, limits()).unwrap();
    assert!(look_up(&cache, "after").unwrap());
    cache.finish_sweep().unwrap();
    let report = check(&cache, false);
    assert_eq!((report.damage, report.orphans), (Vec::new(), 0));
}

/// A store whose owner was killed: the index's log has its last commits.
fn killed(template: &Template) -> tempfile::TempDir {
    let (dir, run) = (quick_dir(), quick_dir());
    copy(&template.dir.path().join("store"), &run.path().join("store"));
    let cache = Cache::open(&run.path().join("store"), limits()).unwrap();
    put(&cache, run.path(), "last").unwrap();
    copy(&run.path().join("store"), &dir.path().join("store"));
    dir
}

/// What stands behind the damage was promised before it: it is not taken for what a power cut left.
#[test]
fn damage_inside_the_log_of_the_index_loses_no_entry() {
    let _alone = alone();
    let (dir, run) = (quick_dir(), quick_dir());
    let cache = Cache::open(&run.path().join("store"), limits()).unwrap();
    let source = quick_dir();
    fs::write(source.path().join("f"), "x").unwrap();
    let keys = ["early", "later", "last"];
    let log = run.path().join("store/index.sqlite-wal");
    let mut ends = Vec::new();
    for of in keys {
        put(&cache, source.path(), of).unwrap();
        cache.settle();
        ends.push(fs::metadata(&log).unwrap().len());
    }
    let killed = dir.path().join("store");
    copy(&run.path().join("store"), &killed);
    // The last of all transactions may come after the last entry's own.
    for at in (0..ends[1]).step_by(4096 + 41) {
        let again = quick_dir();
        let store = again.path().join("store");
        copy(&killed, &store);
        Harm::Flip(at as usize).do_to(&store, Path::new("index.sqlite-wal"));
        let cache = Cache::open(&store, limits()).unwrap();
        for of in keys {
            assert!(look_up(&cache, of).unwrap(), "{of} is lost, damaged at {at}");
        }
        assert_eq!(check(&cache, false).damage, []);
    }
}

/// Of some files a store has one only; another store has another.
#[test]
fn an_index_a_log_and_a_format_of_another_store_lose_nothing_in_silence() {
    let _alone = alone();
    let (template, other) = (Template::make(), Template::make());
    let (mine, others) = (killed(&template), killed(&other));
    let (whole, whole_other) = (template.dir.path().join("store"), other.dir.path().join("store"));
    let (dead, dead_other) = (mine.path().join("store"), others.path().join("store"));
    for (store, other, file) in [
        (&whole, &whole_other, INDEX),
        (&whole, &whole_other, "format"),
        (&dead, &dead_other, INDEX),
        (&dead, &dead_other, "index.sqlite-wal"),
        (&dead, &dead_other, "format"),
    ] {
        println!("{file} of another store");
        let dir = quick_dir();
        let copied = dir.path().join("store");
        copy(store, &copied);
        Harm::Swap(other.join(file)).do_to(&copied, Path::new(file));
        live_on(&copied, Path::new(file));
    }
}

#[test]
fn whatever_rots_nobody_reads_wrong_bytes_and_a_repair_says_what_is_lost() {
    let _alone = alone();
    let template = Template::make();
    let killed = killed(&template);
    let (mut cases, mut hit) = (Vec::new(), BTreeSet::new());
    for (store, wal) in [(template.dir.path().join("store"), false), (killed.path().join("store"), true)] {
        let files = files(&store);
        for (kind, file) in &files {
            if wal != kind.ends_with("sqlite-wal") {
                continue;
            }
            let others: Vec<_> = files.iter().filter(|(k, _)| k == kind).map(|(_, f)| f.clone()).collect();
            let harms = Harm::all(&store, file, &others, &mut hit);
            cases.extend(harms.into_iter().map(|h| (store.clone(), file.clone(), h)));
        }
    }
    let missed: Vec<_> = regions::names().filter(|name| !hit.contains(name)).collect();
    assert!(missed.is_empty(), "no file has {missed:?}");
    let mut failed = Vec::new();
    let (first, stride) = points(11);
    for (store, file, harm) in cases.iter().skip(first as usize).step_by(stride as usize) {
        let dir = quick_dir();
        let copied = dir.path().join("store");
        copy(store, &copied);
        harm.do_to(&copied, file);
        if std::panic::catch_unwind(|| live_on(&copied, file)).is_err() {
            failed.push((file, harm));
        }
    }
    println!("{} ways to damage a file", cases.len());
    assert!(failed.is_empty(), "{} of {} cases fail: {failed:#?}", failed.len(), cases.len());
}
