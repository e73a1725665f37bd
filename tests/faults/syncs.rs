//! Syncs that fail once and then say that all is well, as Linux does: nothing that such a file holds may be believed.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use outfs::cache::{Cache, CacheError, Draft, Sealed};
use outfs::model::EventKind;
use outfs::store::{DraftPlace, Fault};

use super::alone;
use super::life::{Template, copy, key, limits, look_up, outputs, put, quick_dir, request};

/// Attempts of which all but the first must not meet the fault.
const ATTEMPTS: usize = 3;

/// A draft with what an entry of this key has, in a place of its own.
fn draft(cache: &Cache, of: &str) -> Arc<Draft> {
    let draft = cache.create_draft(DraftPlace::InPlace { key: key(of) }).unwrap();
    let outputs_dir = cache.store().draft_path(draft.id()).join("outputs");
    fs::create_dir(&outputs_dir).unwrap();
    for (name, content) in outputs(of) {
        fs::write(outputs_dir.join(name), content).unwrap();
    }
    draft
}

/// Has the disk take what lies at this path in a new file.
fn write_anew(path: &Path) {
    let content = fs::read(path).unwrap();
    // The old one keeps its number until the new one has another.
    let old = File::open(path).unwrap();
    fs::remove_file(path).unwrap();
    fs::write(path, content).unwrap();
    drop(old);
}

/// Whatever it takes, as long as the fault is met once.
fn at_last<T>(what: &str, mut attempt: impl FnMut() -> Result<T, CacheError>) -> T {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Ok(done) => return done,
            Err(CacheError::Store(_) | CacheError::Unwritten { .. } | CacheError::Io { .. }) => {}
            Err(e) => panic!("{what}: {e}"),
        }
    }
    attempt().unwrap_or_else(|e| panic!("{what} fails without a fault: {e}"))
}

/// Hashes, seals, stores, pins and notes something, each again until it succeeds.
fn live(cache: &Cache, beside: &Path) {
    let drafted = draft(cache, "drafted");
    let large = cache.store().draft_path(drafted.id()).join("outputs/large");
    let ingested = cache.ingest(&drafted, &File::open(&large).unwrap());
    let mut anew = ingested.is_ok();
    at_last("seal", || {
        let sealed = cache.seal(&drafted, request("drafted"));
        if let Err(CacheError::Unwritten { path }) = &sealed {
            assert_eq!(path, "outputs/large");
            assert!(matches!(cache.seal(&drafted, request("drafted")), Err(CacheError::Unwritten { .. })));
            write_anew(&large);
            anew = true;
        }
        assert!(anew || sealed.is_err(), "it was sealed although its sync had failed");
        sealed
    });
    at_last("put", || put(cache, beside, "stored"));
    at_last("pin", || cache.pin("also", &key("stored")).map(drop));
    at_last("note", || {
        let event = EventKind::Damaged { what: "nothing".into() };
        cache.store().append_event(event, None, true).map(drop).map_err(CacheError::from)
    });
}

/// No name below here leads to that file; what is unfinished is left out.
fn nothing_is(refused: u64, dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, meta) = (entry.path(), entry.metadata().unwrap());
        if meta.is_dir() && !path.ends_with("drafts") && !path.ends_with("tmp") {
            nothing_is(refused, &path);
        }
        let believed = meta.is_file() && meta.ino() == refused;
        assert!(!believed, "{} is a file whose sync had failed", path.display());
    }
}

/// Every sync of a life fails in turn, and whoever retries is told that all is well.
#[test]
fn what_the_disk_refused_once_is_believed_by_nobody() {
    let _alone = alone();
    let template = Template::make();
    for n in 0.. {
        let dir = quick_dir();
        let store = dir.path().join("store");
        copy(&template.dir.path().join("store"), &store);
        let cache = Cache::open(&store, limits()).unwrap();
        let fault = Fault::of_sync(n, libc::EIO);
        live(&cache, dir.path());
        let refused = fault.fired().then(|| fault.refused().unwrap());
        drop(fault);
        let Some(refused) = refused else {
            assert!(n > 8, "only {n} syncs were seen");
            return;
        };
        nothing_is(refused, &store);
        cache.close().unwrap();
        let cache = Cache::open(&store, limits()).unwrap();
        for of in ["drafted", "stored"] {
            assert!(look_up(&cache, of).unwrap(), "{of} is lost with sync {n} failing");
        }
    }
}

/// S4.9 What the disk did not take when it was to be made durable … is not sealed: the gesture is EIO, and the log names the
/// file, until it was cut to nothing or another has taken its place.
///
/// The kernel's memory of such a file outlives the daemon, and so does the daemon's; when it was emptied, it is written anew.
#[test]
fn what_the_disk_refused_is_not_sealed_by_the_next_daemon_either() {
    let _alone = alone();
    let template = Template::make();
    let dir = quick_dir();
    let store = dir.path().join("store");
    copy(&template.dir.path().join("store"), &store);
    let open = || Cache::open(&store, limits()).unwrap();
    let cache = open();
    let drafted = draft(&cache, "drafted");
    let large = cache.store().draft_path(drafted.id()).join("outputs/large");
    {
        let _fault = Fault::of_sync(0, libc::EIO);
        assert!(cache.ingest(&drafted, &File::open(&large).unwrap()).is_err());
    }
    for _ in 0..2 {
        assert!(matches!(cache.seal(&drafted, request("drafted")), Err(CacheError::Unwritten { .. })));
    }
    drop(drafted);
    cache.close().unwrap();

    let cache = open();
    let drafted = cache.draft_for(&key("drafted")).unwrap();
    assert!(matches!(cache.seal(&drafted, request("drafted")), Err(CacheError::Unwritten { .. })));
    let content = fs::read(&large).unwrap();
    let file = File::create(&large).unwrap();
    cache.emptied(&drafted, std::os::fd::AsFd::as_fd(&file));
    fs::write(&large, content).unwrap();
    drop(file);
    let sealed = cache.seal(&drafted, request("drafted")).unwrap();
    assert!(matches!(sealed, Sealed::New(_)));
    assert!(look_up(&cache, "drafted").unwrap());
}
