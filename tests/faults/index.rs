//! The index's files in the hands of others: held, deleted, replaced; and its syncs, which fail.
//!
//! That the disk is full, that a call of SQLite fails in any other way, and pages that rot are tried elsewhere (`life`, `rot`).

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use outfs::cache::{Cache, CacheError, FsckOptions};
use outfs::index::IndexError;
use outfs::model::EventKind;
use rusqlite::ErrorCode;

use super::alone;
use super::doors::{Armed, replace_system_calls};
use super::life::{SEALED, Template, copy, key, limits, look_up, put, quick_dir};

const INDEX: &str = "index.sqlite";
const LOG: &str = "index.sqlite-wal";

/// Another program that begins to write to the index, if it can, and goes on until it is told to end.
struct Other {
    child: Child,
    holds: bool,
}

const FILE_OF_OTHER: &str = "OUTFS_TEST_INDEX_OF_ANOTHER";

#[test]
#[ignore = "the tests below run it as another program"]
fn another_program() {
    let Some(file) = std::env::var_os(FILE_OF_OTHER) else { return };
    let db = rusqlite::Connection::open(file).unwrap();
    db.busy_timeout(Duration::ZERO).unwrap();
    match db.execute_batch("BEGIN IMMEDIATE") {
        Ok(()) => println!("\nit holds the index"),
        Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => println!("\nit is refused"),
        Err(e) => panic!("{e}"),
    }
    let _ = std::io::stdin().read(&mut [0]).unwrap();
}

impl Other {
    fn start(store: &Path) -> Other {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "index::another_program", "--ignored", "--nocapture"])
            .env(FILE_OF_OTHER, store.join(INDEX))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        let mut said = lines.map_while(Result::ok).filter(|line| line.starts_with("it "));
        let holds = said.next().expect("it says what it could do") == "it holds the index";
        Other { child, holds }
    }

    fn end(mut self) {
        self.child.stdin.take().unwrap().write_all(b"\n").unwrap();
        self.child.wait().unwrap();
    }
}

fn store_of(template: &Template, dir: &tempfile::TempDir) -> PathBuf {
    let store = dir.path().join("store");
    copy(&template.dir.path().join("store"), &store);
    store
}

/// These are there and whole, and nothing else is wrong.
fn check(cache: &Cache, keys: &[&str], what: &str) {
    for of in keys {
        assert!(look_up(cache, of).unwrap_or_else(|e| panic!("{of}, {what}: {e}")), "{of} is lost: {what}");
    }
    cache.finish_sweep().unwrap();
    let options = FsckOptions { verify_data: true, ..FsckOptions::default() };
    let report = cache.fsck(options, &mut |_| {}).unwrap();
    assert_eq!((report.damage, report.orphans), (Vec::new(), 0), "{what}");
}

#[test]
fn whoever_writes_to_the_index_is_waited_for() {
    let _alone = alone();
    let (template, dir) = (Template::make(), quick_dir());
    let store = store_of(&template, &dir);
    let other = Other::start(&store);
    assert!(other.holds);
    let cache = std::thread::scope(|scope| {
        let opened = scope.spawn(|| Cache::open(&store, limits()));
        let end = Instant::now() + Duration::from_millis(300);
        while Instant::now() < end {
            assert!(!opened.is_finished(), "it is open while another writes to its index");
            std::thread::yield_now();
        }
        other.end();
        opened.join().unwrap().unwrap()
    });
    check(&cache, &SEALED, "it was busy for a while");

    let other = Other::start(&store);
    assert!(!other.holds, "another writes to an index that is in use");
    put(&cache, dir.path(), "meanwhile").unwrap();
    other.end();
    check(&cache, &["meanwhile"], "another wanted it");
}

#[test]
fn an_index_that_is_busy_for_ever_is_a_typed_error() {
    let _alone = alone();
    let (template, dir) = (Template::make(), quick_dir());
    let store = store_of(&template, &dir);
    let other = Other::start(&store);
    let refused = Cache::open(&store, limits()).err();
    let busy = |source: &rusqlite::Error| source.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
    let Some(CacheError::Index(IndexError::Sqlite { source, .. })) = refused else { panic!("{refused:?}") };
    assert!(busy(&source), "{source:?}");
    other.end();
    check(&Cache::open(&store, limits()).unwrap(), &SEALED, "it was busy");
}

/// What becomes of the index's files while they are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    Delete(&'static [&'static str]),
    /// By what it was before.
    Older(&'static str),
    /// By another store's.
    Others(&'static str),
    Noise(&'static str),
}

/// What is done first after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Read,
    Store,
    Upkeep,
    Close,
}

const HARMS: [Harm; 9] = [
    Harm::Delete(&[INDEX]),
    Harm::Delete(&[LOG]),
    Harm::Delete(&[INDEX, LOG]),
    Harm::Older(INDEX),
    Harm::Older(LOG),
    Harm::Others(INDEX),
    Harm::Others(LOG),
    Harm::Noise(INDEX),
    Harm::Noise(LOG),
];

impl Harm {
    fn do_to(self, store: &Path, older: &Path, others: &Path) {
        let replace = |file: &str, with: &Path| {
            let aside = store.join("replacement");
            fs::copy(with.join(file), &aside).unwrap();
            fs::rename(aside, store.join(file)).unwrap();
        };
        match self {
            Harm::Delete(files) => files.iter().for_each(|file| fs::remove_file(store.join(file)).unwrap()),
            Harm::Older(file) => replace(file, older),
            Harm::Others(file) => replace(file, others),
            Harm::Noise(file) => {
                fs::remove_file(store.join(file)).unwrap();
                fs::write(store.join(file), vec![0xa5; 20_000]).unwrap();
            }
        }
    }
}

/// Many at once: more than there are connections that have the right files open.
fn read_at_once(cache: &Cache, keys: &[&str], what: &str) {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for of in keys {
                    let found = look_up(cache, of).unwrap_or_else(|e| panic!("{of}, {what}: {e}"));
                    assert!(found, "{of} is a miss: {what}");
                }
            });
        }
    });
}

fn live_on(template: &Template, others: &Path, harm: Harm, first: First) {
    let what = format!("{harm:?}, then {first:?}");
    let dir = quick_dir();
    let store = store_of(template, &dir);
    let cache = Cache::open(&store, limits()).unwrap();
    put(&cache, dir.path(), "early").unwrap();
    let older = dir.path().join("older");
    copy(&store, &older);
    put(&cache, dir.path(), "later").unwrap();
    assert!(cache.evict(&key("shares"), "request").unwrap());
    let mut keys = vec!["kept", "mostly-dead", "early", "later"];

    harm.do_to(&store, &older, others);
    match first {
        First::Read => read_at_once(&cache, &keys, &what),
        First::Store => {}
        First::Upkeep => cache.tick(),
        First::Close => {
            cache.close().unwrap();
            return check(&Cache::open(&store, limits()).unwrap(), &keys, &what);
        }
    }
    put(&cache, dir.path(), "last").unwrap_or_else(|e| panic!("{what}: {e}"));
    keys.push("last");
    read_at_once(&cache, &keys, &what);
    assert!(!look_up(&cache, "shares").unwrap(), "what was evicted is there again: {what}");
    let killed = dir.path().join("killed");
    copy(&store, &killed);
    cache.close().unwrap();
    for store in [killed, store] {
        let cache = Cache::open(&store, limits()).unwrap_or_else(|e| panic!("{what}: {e}"));
        check(&cache, &keys, &what);
        assert!(!look_up(&cache, "shares").unwrap(), "what was evicted is there again: {what}");
        cache.close().unwrap();
    }
}

#[test]
fn an_index_that_is_deleted_or_replaced_while_it_is_in_use_loses_nothing() {
    let _alone = alone();
    let (template, other) = (Template::make(), Template::make());
    let others = other.dir.path().join("killed");
    let cache = Cache::open(&other.dir.path().join("store"), limits()).unwrap();
    put(&cache, other.dir.path(), "of-another-store").unwrap();
    copy(&other.dir.path().join("store"), &others);
    drop(cache);
    for harm in HARMS {
        for first in [First::Read, First::Store, First::Upkeep, First::Close] {
            live_on(&template, &others, harm, first);
        }
    }
}

/// What has the same number and other content (`cp` over it) is not noticed before it is read, and then it is said what to do.
#[test]
fn an_index_that_is_overwritten_in_place_is_told_of_and_made_anew() {
    let _alone = alone();
    let (template, dir) = (Template::make(), quick_dir());
    let store = store_of(&template, &dir);
    let cache = Cache::open(&store, limits()).unwrap();
    let told = || {
        let events = cache.store().read_events(0, 9999).unwrap().events;
        let damage = events.into_iter().filter_map(|e| match e.kind {
            EventKind::Damaged { what } => Some(what),
            _ => None,
        });
        damage.collect::<Vec<_>>()
    };
    let len = fs::metadata(store.join(INDEX)).unwrap().len();
    let mut file = fs::File::options().write(true).open(store.join(INDEX)).unwrap();
    file.write_all(&vec![0xa5; len as usize]).unwrap();
    // Some pages it has in memory.
    let refused = (0..50).find_map(|n| put(&cache, dir.path(), &format!("more-{n}")).err());
    let Some(CacheError::Index(e)) = &refused else { panic!("{refused:?}") };
    assert!(e.is_damage(), "{e:?}");
    put(&cache, dir.path(), "another").unwrap_err();
    assert_eq!(told(), [e.to_string()]);
    assert!(e.to_string().contains("outfs fsck --rebuild-index"), "{e}");

    let options = FsckOptions { rebuild_index: true, ..FsckOptions::default() };
    cache.fsck(options, &mut |_| {}).unwrap();
    put(&cache, dir.path(), "another").unwrap();
    check(&cache, &["kept", "mostly-dead", "shares", "another"], "it was made anew");
}

/// A commit whose sync fails stands in the log all the same. Nothing that it spoke of may be missing when a death makes it count.
#[test]
fn a_commit_that_could_not_be_synced_harms_nobody_after_a_death() {
    let _alone = alone();
    let template = Template::make();
    replace_system_calls();
    let all = |n: u64| {
        let dir = quick_dir();
        let store = store_of(&template, &dir);
        let cache = Cache::open(&store, limits()).unwrap();
        let fault = Armed::at_sync(n);
        let mut gone = false;
        let steps: [&dyn Fn() -> bool; 4] = [
            &|| put(&cache, dir.path(), "stored").is_ok(),
            &|| cache.evict(&key("mostly-dead"), "request").is_ok(),
            &|| cache.compact().is_ok(),
            &|| put(&cache, dir.path(), "another").is_ok(),
        ];
        for (at, step) in steps.iter().enumerate() {
            gone |= step() && at == 1;
            if fault.fired() {
                break;
            }
        }
        let fired = fault.fired();
        let killed = dir.path().join("killed");
        copy(&store, &killed);
        drop(fault);
        for store in [killed, store.clone()] {
            let told = format!("sync {n} of the index failed");
            let cache = if store.ends_with("killed") {
                Cache::open(&store, limits()).unwrap()
            } else {
                cache.clone()
            };
            check(&cache, &["kept", "shares"], &told);
            for unsure in ["mostly-dead", "stored", "another"] {
                let found = look_up(&cache, unsure).unwrap_or_else(|e| panic!("{unsure}, {told}: {e}"));
                assert!(!(gone && found && unsure == "mostly-dead"), "it was evicted: {told}");
            }
        }
        fired
    };
    let seen = (0..).take_while(|n| all(*n)).count();
    assert!(seen > 3, "only {seen} syncs were seen");
}

/// Who deletes a store that is in use has it deleted: nothing of it is written once more, or what was is not believed.
#[test]
fn a_store_that_is_deleted_while_it_is_in_use_stays_deleted() {
    let _alone = alone();
    let template = Template::make();
    let delete_but = |store: &Path, spared: &[&str]| {
        for entry in fs::read_dir(store).unwrap().map(|entry| entry.unwrap()) {
            match entry.file_type().unwrap().is_dir() {
                true => fs::remove_dir_all(entry.path()).unwrap(),
                false if spared.iter().any(|name| entry.file_name() == *name) => {}
                false => fs::remove_file(entry.path()).unwrap(),
            }
        }
    };
    let dir = quick_dir();
    let store = store_of(&template, &dir);
    let cache = Cache::open(&store, limits()).unwrap();
    delete_but(&store, &[]);
    cache.tick();
    put(&cache, dir.path(), "more").expect_err("the store is gone");
    assert!(!store.join(INDEX).exists(), "its index was written once more");
    drop(cache.close());

    let dir = quick_dir();
    let store = store_of(&template, &dir);
    let cache = Cache::open(&store, limits()).unwrap();
    fs::remove_file(store.join(INDEX)).unwrap();
    cache.tick();
    assert!(store.join(INDEX).exists(), "till now somebody deleted the index alone");
    delete_but(&store, &[INDEX]);
    drop(cache.close());
    let cache = Cache::open(&store, limits()).unwrap();
    assert!(!look_up(&cache, "kept").unwrap(), "it is a new store");
    check(&cache, &[], "a store that was deleted");
}
