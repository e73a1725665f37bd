//! The lives that are lived once for every fault, and what must hold afterwards.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use outfs::cache::{
    Cache, CacheError, FsckOptions, LeaseKind, Limits, Lookup, Process, SealRequest, TaskFacts,
};
use outfs::model::EntryKey;
use outfs::model::manifest::Origin;
use outfs::model::units::Size;
use outfs::store::{DraftPlace, StoreError, owner_of};
use outfs::vfs::{VfsError, ino};

use super::causes;
use super::client::{self, Client};
use super::doors::{Armed, Door, Kind};

type Result<T> = std::result::Result<T, CacheError>;

/// Entries that a template has.
pub const SEALED: [&str; 3] = ["kept", "shares", "mostly-dead"];
/// A draft that it has.
pub const WAITING: &str = "waiting";

pub fn key(text: &str) -> EntryKey {
    EntryKey::parse(text).unwrap()
}

pub fn limits() -> Limits {
    let limits = Limits { min_age: Duration::ZERO, reserve: Some(Size::Bytes(0)), ..Limits::default() };
    Limits { size: Some(Size::Bytes(1 << 30)), ..limits }
}

/// Bytes that no other seed gives.
fn noise(seed: &str, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut out);
    out
}

/// What an entry of this key has below `outputs`, and nothing else ever.
pub fn outputs(of: &str) -> Vec<(String, Vec<u8>)> {
    let own = |name: &str, len| (name.to_owned(), noise(&format!("{of} {name}"), len));
    let shared = ("shared".to_owned(), noise("shared", 700));
    match of {
        // After the eviction of the one its pack is mostly dead, but for what the other one needs.
        "mostly-dead" => vec![own("a", 9000), own("b", 9000), own("large", 300_000), shared],
        "shares" => vec![own("a", 100), shared],
        _ => vec![own("a", 3000), own("large", 300_000), shared],
    }
}

fn write_outputs(top: &Path, of: &str) {
    fs::create_dir_all(top).unwrap();
    for (name, content) in outputs(of) {
        fs::write(top.join(name), content).unwrap();
    }
}

pub fn request(of: &str) -> SealRequest {
    let origin = Origin { how: "library".into(), ..Origin::default() };
    SealRequest { key: key(of), origin, inferred: false, replace: false }
}

pub fn put(cache: &Cache, beside: &Path, of: &str) -> Result<()> {
    let source = beside.join(format!("source-{of}"));
    write_outputs(&source, of);
    cache.put_dir(&source, &TaskFacts::default(), [None, None], request(of)).map(drop)
}

/// Whether the entry is there; if it is found, with what it must have.
pub fn look_up(cache: &Cache, of: &str) -> Result<bool> {
    let entry = match cache.lookup(&key(of))? {
        Lookup::Hit { entry, .. } => entry,
        Lookup::Miss(_) => return Ok(false),
    };
    for (name, content) in outputs(of) {
        let record = entry.file(format!("outputs/{name}").as_bytes())?;
        assert!(entry.read_all(record, u64::MAX)? == content, "{of}/{name} has wrong bytes");
    }
    assert!(cache.entry(&key(of), LeaseKind::Hold)?.is_some());
    Ok(true)
}

/// Store directories that others are copies of.
pub struct Template {
    pub dir: tempfile::TempDir,
}

/// Memory where there is some: the index waits for the disk.
pub fn quick_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

impl Template {
    pub fn make() -> Template {
        outfs::store::skip_syncs(true);
        outfs::store::four_shards();
        let dir = quick_dir();
        let cache = Cache::open(&dir.path().join("store"), limits()).unwrap();
        for of in ["kept", "mostly-dead", "shares"] {
            put(&cache, dir.path(), of).unwrap();
        }
        cache.pin("holds", &key("kept")).unwrap();
        let draft = cache.create_draft(DraftPlace::InPlace { key: key(WAITING) }).unwrap();
        write_outputs(&cache.store().draft_path(draft.id()), WAITING);
        drop(draft);
        cache.close().unwrap();
        Template { dir }
    }
}

/// Copies a tree; what is deleted meanwhile is left out.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => copy(&from, &to),
            Ok(kind) if kind.is_file() => drop(fs::copy(&from, &to)),
            _ => {}
        }
    }
}

/// Opens a store; a view's last thread may still be on its way out of it.
fn open_soon(store: &Path) -> Result<Cache> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match Cache::open(store, limits()) {
            Err(CacheError::Store(StoreError::Locked { .. })) if Instant::now() < end => {
                std::thread::yield_now()
            }
            opened => return opened,
        }
    }
}

/// One life on a store of its own.
struct Life {
    dir: tempfile::TempDir,
    door: Door,
    kind: Kind,
    /// While there is one.
    armed: Option<Armed>,
    /// For messages: the fault.
    fault: String,
    /// What was reported sealed, and is not evicted since.
    sealed: BTreeSet<&'static str>,
    /// What may be there or not: its sealing or eviction failed.
    unsure: BTreeSet<&'static str>,
    errors: Vec<(&'static str, CacheError)>,
    /// What clients store through views must be there in the end.
    through_views: bool,
    /// What clients of a view were told.
    told: Vec<(&'static str, VfsError)>,
}

impl Life {
    fn new(template: &Template, (door, kind, n): (Door, Kind, u64)) -> Life {
        let dir = quick_dir();
        copy(&template.dir.path().join("store"), &dir.path().join("store"));
        let sealed = SEALED.into_iter().collect();
        let fault = format!("{kind:?} at call {n} of the {door:?}");
        Life {
            dir,
            door,
            kind,
            armed: None,
            fault,
            sealed,
            unsure: BTreeSet::new(),
            errors: Vec::new(),
            through_views: false,
            told: Vec::new(),
        }
    }

    fn struck_a_sync(&self) -> bool {
        self.armed.as_ref().is_some_and(Armed::struck_a_sync)
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Does something that may fail.
    fn step<T>(&mut self, what: &'static str, work: impl FnOnce(&Path) -> Result<T>) -> Option<T> {
        match work(self.dir.path()) {
            Ok(done) => Some(done),
            Err(e) => {
                let explained = causes::explains(self.door, self.kind, self.struck_a_sync(), &e);
                assert!(explained, "{what}: {e:?} with {}", self.fault);
                self.errors.push((what, e));
                None
            }
        }
    }

    /// Does something through a view that may fail.
    fn ask<T>(&mut self, what: &'static str, answer: client::Result<T>) -> Option<T> {
        let answer = answer.map_err(|e| {
            let explained = causes::explains_to_client(self.door, self.kind, self.struck_a_sync(), &e);
            assert!(explained, "a client is told {e:?} when it is to {what}, with {}", self.fault);
            self.told.push((what, e));
        });
        answer.ok()
    }

    fn open(&mut self) -> Option<Cache> {
        self.step("open", |dir| open_soon(&dir.join("store")))
    }

    /// Seals, by `work`.
    fn seal(&mut self, of: &'static str, work: impl FnOnce(&Path) -> Result<()>) {
        match self.step("seal", work) {
            Some(()) => self.sealed.insert(of),
            None => self.unsure.insert(of),
        };
    }

    /// Reads all that must be there: each is found whole, or the answer is an error.
    fn read(&mut self, cache: &Cache) {
        for of in self.sealed.clone() {
            let found = self.step("read", |_| look_up(cache, of));
            assert_ne!(found, Some(false), "{of} is a miss with {}", self.fault);
        }
        for of in self.unsure.clone() {
            self.step("read", |_| look_up(cache, of));
        }
    }

    /// Everything that was promised holds, in a cache without faults.
    fn check(&self, cache: &Cache, which: &str) {
        let told = || format!("{which}, with {}; it failed: {:?}", self.fault, self.errors);
        for of in &self.sealed {
            let found = look_up(cache, of).unwrap_or_else(|e| panic!("{of} cannot be read: {e}; {}", told()));
            assert!(found, "{of} is lost: {}", told());
        }
        for of in &self.unsure {
            look_up(cache, of).unwrap_or_else(|e| panic!("{of} is broken: {e}; {}", told()));
        }
        let draft = cache.draft_for(&key(WAITING));
        let draft = draft.unwrap_or_else(|| panic!("the draft is lost: {}", told()));
        let path = cache.store().draft_path(draft.id()).join("a");
        assert_eq!(fs::read(path).unwrap(), outputs(WAITING)[0].1, "{}", told());
        let pins: Vec<_> = cache.pins().into_iter().flat_map(|(_, names)| names).collect();
        assert!(pins.iter().any(|p| p == "holds"), "the pin is lost: {}", told());
    }

    /// A process that took the store over sees to what is left.
    fn check_store(&self, store: &Path, which: &str) {
        let told = || format!("{which}, with {}; it failed: {:?}", self.fault, self.errors);
        let cache = open_soon(store).unwrap_or_else(|e| panic!("cannot be opened: {e}; {}", told()));
        self.check(&cache, which);
        assert_eq!(ephemeral(store, &cache), 0, "a dead session's result is left: {}", told());
        cache.finish_sweep().unwrap();
        let options = FsckOptions { verify_data: true, ..FsckOptions::default() };
        let report = cache.fsck(options, &mut |_| {}).unwrap();
        assert_eq!(report.damage, [], "{}", told());
        assert_eq!(report.orphans, 0, "left for ever: {}", told());
        self.check(&cache, which);
        cache.close().unwrap();
    }

    /// The fault is gone: goes on with the cache that is open, with a copy of what a kill would leave, and with a
    /// cache that is opened anew.
    fn end(mut self, cache: Option<Cache>) {
        let until = Instant::now() + Duration::from_secs(20);
        // What is closed may still be on its way out, and a copy of what it is writing is not what a kill leaves.
        while cache.is_none() && owner_of(&self.store()).is_some() {
            assert!(Instant::now() < until, "a cache that was closed still has the store");
            std::thread::yield_now();
        }
        let copied = self.dir.path().join("killed");
        copy(&self.store(), &copied);
        if let Some(cache) = cache {
            self.check(&cache, "the open one");
            put(&cache, self.dir.path(), "after").unwrap_or_else(|e| panic!("put: {e}; with {}", self.fault));
            if let Some(draft) = cache.draft_for(&key("drafted")) {
                match cache.seal(&draft, request("drafted")) {
                    // The disk did not take it when it was to; who wrote it has to write it again.
                    Err(CacheError::Unwritten { .. }) => {
                        cache.drop_draft(&draft, "it is written anew").unwrap()
                    }
                    sealed => drop(sealed.unwrap()),
                }
            }
            if self.through_views {
                let client = Client::new(&cache).unwrap();
                client.have("published", Client::publish);
                client.have("sealed-by-chmod", Client::seal_by_chmod);
            }
            cache.evict(&key("mostly-dead"), "request").unwrap();
            cache.compact().unwrap();
            cache.close().unwrap();
            self.check_store(&copied, "after a kill");
            self.sealed.insert("after");
            if self.through_views {
                self.sealed.extend(["published", "sealed-by-chmod"]);
            }
            self.sealed.remove("mostly-dead");
            self.unsure.remove("mostly-dead");
        } else {
            self.check_store(&copied, "after a kill");
        }
        self.check_store(&self.store(), "the next one");
    }
}

/// Runs `script` with a fault; false when there were not so many calls.
fn with_fault(
    template: &Template,
    (door, kind, n): (Door, Kind, u64),
    prepare: impl FnOnce(&Path),
    script: impl FnOnce(&mut Life) -> Option<Cache>,
) -> bool {
    let mut life = Life::new(template, (door, kind, n));
    prepare(&life.store());
    life.armed = Some(Armed::at(door, kind, n));
    let cache = script(&mut life);
    let fired = life.armed.take().expect("it is armed").fired();
    if !fired || kind.is_no_failure() {
        let (errors, told) = (&life.errors, &life.told);
        assert!(
            errors.is_empty() && told.is_empty(),
            "nothing failed, and yet: {errors:?} {told:?} with {}",
            life.fault
        );
    }
    life.end(cache);
    fired
}

/// Opens, reads, stores, pins, evicts, compacts.
pub fn work(template: &Template, door: Door, kind: Kind, n: u64) -> bool {
    with_fault(
        template,
        (door, kind, n),
        |_| {},
        |life| {
            let cache = life.open()?;
            life.read(&cache);
            if let Some(draft) =
                life.step("draft", |_| cache.create_draft(DraftPlace::InPlace { key: key("drafted") }))
            {
                let tree = cache.store().draft_path(draft.id());
                write_outputs(&tree.join("outputs"), "drafted");
                fs::set_permissions(tree.join("outputs"), fs::Permissions::from_mode(0o555)).unwrap();
                life.step("ingest", |_| {
                    cache.ingest(&draft, &File::open(tree.join("outputs/large")).unwrap())
                });
                life.seal("drafted", |_| cache.seal(&draft, request("drafted")).map(drop));
            }
            life.seal("stored", |dir| put(&cache, dir, "stored"));
            if life.step("pin", |_| cache.pin("also", &key("shares"))).is_some() {
                assert!(cache.evict(&key("shares"), "request").is_err(), "{}", life.fault);
            }
            life.step("unpin", |_| cache.unpin("also", &key("shares")));
            life.sealed.remove("mostly-dead");
            match life.step("evict", |_| cache.evict(&key("mostly-dead"), "request")) {
                Some(gone) => assert!(gone),
                None => drop(life.unsure.insert("mostly-dead")),
            }
            life.step("compact", |_| cache.compact());
            cache.settle();
            cache.tick();
            life.read(&cache);
            Some(cache)
        },
    )
}

impl Life {
    /// A client stores an entry, once more if it could not and what was wrong is over.
    fn store_by(
        &mut self,
        client: &Client,
        of: &'static str,
        store: fn(&Client, &str) -> client::Result<()>,
    ) {
        match self.ask("store", store(client, of)) {
            None if self.kind.lasts() => drop(self.unsure.insert(of)),
            None => client.have(of, store),
            Some(()) => {}
        }
        if !self.unsure.contains(of) {
            self.sealed.insert(of);
        }
    }

    /// Clients read all that must be there.
    fn read_by(&mut self, client: &Client) {
        for of in self.sealed.clone() {
            let found = self.ask("read", client.read(of));
            assert_ne!(found, Some(false), "{of} is a miss with {}", self.fault);
        }
    }

    /// What a client does with a view.
    fn serve(&mut self, client: &Client) {
        self.read_by(client);
        self.store_by(client, "published", Client::publish);
        self.store_by(client, "sealed-by-chmod", Client::seal_by_chmod);
        self.sealed.remove("mostly-dead");
        if self.ask("evict", client.throw_away(ino::ROOT, "mostly-dead")).is_none() {
            self.unsure.insert("mostly-dead");
        }
        self.read_by(client);
    }
}

/// Opens, and has clients read, write, store and evict through a view; compacts, and opens again.
pub fn views(template: &Template, door: Door, kind: Kind, n: u64) -> bool {
    let script = |life: &mut Life| {
        life.through_views = true;
        let cache = life.open()?;
        let client = life.ask("view", Client::new(&cache));
        if let Some(client) = &client {
            life.serve(client);
        }
        drop(client);
        life.step("compact", |_| cache.compact());
        cache.settle();
        cache.tick();
        life.step("close", |_| cache.close());
        let cache = life.open()?;
        let client = life.ask("view", Client::new(&cache));
        client.iter().for_each(|client| life.read_by(client));
        Some(cache)
    };
    with_fault(template, (door, kind, n), |_| {}, script)
}

/// Opens, closes and opens again.
pub fn restart(template: &Template, door: Door, kind: Kind, n: u64) -> bool {
    with_fault(
        template,
        (door, kind, n),
        |_| {},
        |life| {
            let cache = life.open()?;
            life.read(&cache);
            life.step("close", |_| cache.close());
            let cache = life.open()?;
            life.read(&cache);
            cache.tick();
            Some(cache)
        },
    )
}

/// How much there is of sessions.
fn ephemeral(store: &Path, cache: &Cache) -> usize {
    let entries = cache.index().tasks_after("session/", 10).unwrap().len();
    entries + fs::read_dir(store.join("sessions")).unwrap().count()
}

/// Sessions of processes that have ended when the next one opens the store: one ends in order, one with its process.
pub fn sessions(template: &Template, door: Door, kind: Kind, n: u64) -> bool {
    with_fault(
        template,
        (door, kind, n),
        |_| {},
        |life| {
            let cache = life.open()?;
            let here = Process::this().unwrap();
            let dead = Process { started: here.started + 1, ..here };
            for (ends, of) in [(true, "ended"), (false, "died")] {
                let Some(id) = life.step("begin", |_| cache.begin_session(&dead)) else { continue };
                life.step("put", |dir| {
                    let source = dir.join(format!("source-{of}"));
                    write_outputs(&source, of);
                    let facts = TaskFacts { task_id: id.task(of), ..TaskFacts::default() };
                    let request = SealRequest { key: id.key(of), ..request(of) };
                    cache.put_dir(&source, &facts, [None, None], request).map(drop)
                });
                if ends {
                    life.step("end", |_| cache.end_session(&id));
                }
            }
            cache.tick();
            life.read(&cache);
            Some(cache)
        },
    )
}

/// The same after a death that cost the index.
pub fn rebuild(template: &Template, door: Door, kind: Kind, n: u64) -> bool {
    let lose = |store: &Path| {
        fs::write(store.join("index.sqlite"), noise("garbage", 9000)).unwrap();
        fs::write(store.join("lock"), "4194304   \n").unwrap();
    };
    with_fault(template, (door, kind, n), lose, |life| {
        let cache = life.open()?;
        cache.tick();
        Some(cache)
    })
}
