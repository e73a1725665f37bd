//! A tier on a server of the Remote Execution API, and how contents come from there, against one of our own that is as ill as it is
//! told to be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bazel_remote_apis::build::bazel::remote::execution::v2 as re;
use outfs::cache::{Cache, Entry, LeaseKind, Limits, Reader};
use outfs::model::manifest::DigestKind;
use outfs::model::{BlobHash, EntryKey};
use outfs::tier::{self, Object, Tier, TierErrorKind};
use re::digest_function::Value;

use super::cas::{BATCH, Server, Wrong, digest};
use super::mounted::{content, patient};
use super::proxy::{Ails, Proxy};
use super::suite::{contents_conform, key, soon};

pub fn open(address: &str, push: bool) -> Arc<dyn Tier> {
    tier::open(&address.parse().expect("an address"), push).expect("it opens")
}

/// A cache in a new store, with a server as its tier.
pub struct World {
    pub cache: Cache,
    pub dir: tempfile::TempDir,
}

impl World {
    pub fn new(server: &Server) -> World {
        Self::at(&server.tier())
    }

    pub fn at(server: &str) -> World {
        let dir = tempfile::Builder::new().prefix("outfs-test-").tempdir().expect("a temporary directory");
        let cache = Cache::open(&dir.path().join("store"), Limits::default()).expect("a new store");
        cache.attach_tiers(vec![open(server, false)], patient());
        World { cache, dir }
    }

    pub fn find(&self, action: &re::Digest) -> Option<Entry> {
        self.cache.find(&key_of(action), LeaseKind::Hold).expect("a tier that is ill makes a miss")
    }
}

pub fn key_of(action: &re::Digest) -> EntryKey {
    key(&format!("{}-{}", action.hash, action.size_bytes))
}

pub fn read(entry: &Entry, path: &str) -> Result<Vec<u8>, outfs::cache::CacheError> {
    entry.read_all(entry.file(path.as_bytes())?, u64::MAX)
}

pub fn file(server: &Server, path: &str, bytes: &[u8]) -> re::OutputFile {
    re::OutputFile { path: path.into(), digest: Some(server.add(bytes)), ..Default::default() }
}

pub fn result(files: Vec<re::OutputFile>) -> re::ActionResult {
    re::ActionResult { output_files: files, ..Default::default() }
}

/// Of an action that nobody has described.
pub fn action(n: u8) -> re::Digest {
    digest(Value::Sha256, &[n; 142])
}

#[test]
fn contents_come_and_go_under_the_digests_of_the_server() {
    for (function, instance) in [(Value::Sha256, ""), (Value::Blake3, "some/instance")] {
        let name = if function == Value::Sha256 { BlobHash::sha256_of } else { BlobHash::of };
        contents_conform(&|| open(&Server::start(instance, function).leak(), true), name);
    }
}

#[test]
fn large_contents_go_in_pieces_and_wrong_ones_not_at_all() {
    let server = Server::start("main", Value::Sha256);
    let tier = open(&server.tier(), true);
    let bytes = content(1, 1, 5 * BATCH + 1);
    let size = bytes.len() as u64;
    let object = Object::Blob(BlobHash::sha256_of(&bytes), size);
    tier.put(&object, size, &mut &bytes[..], soon()).unwrap();
    assert_eq!((server.calls("write"), server.calls("batch update")), (1, 0));
    assert_eq!(tier.get(&object, 0..size, soon()).unwrap(), bytes);
    let range = size / 2..size / 2 + 1000;
    let middle = &bytes[range.start as usize..range.end as usize];
    assert_eq!(tier.get(&object, range, soon()).unwrap(), middle);
    let other = Object::Blob(BlobHash::sha256_of(b"other"), size);
    let longer = [&bytes[..], b"x"].concat();
    for wrong in [&bytes[..], &bytes[..3 * BATCH], &longer] {
        let refused = tier.put(&other, size, &mut &*wrong, soon()).unwrap_err();
        assert_eq!(refused.kind, TierErrorKind::Permanent, "{refused}");
    }
    assert_eq!(tier.missing(&[object, other], soon()).unwrap(), [other]);
    let reader = open(&server.tier(), false);
    assert_eq!(reader.put(&other, 5, &mut &b"other"[..], soon()).unwrap_err().kind, TierErrorKind::Permanent);
}

#[test]
fn what_ails_a_server_is_told_apart() {
    let server = Server::start("main", Value::Sha256);
    let tier = open(&server.tier(), true);
    let bytes = content(1, 1, 2 * BATCH);
    let object = |bytes: &[u8]| Object::Blob(BlobHash::sha256_of(bytes), bytes.len() as u64);
    let (small, large) = (object(b"12345678"), object(&bytes));
    server.add(b"12345678");
    server.add(&bytes);
    for (what, size) in [(small, 8), (large, bytes.len() as u64)] {
        let ails = |wrong| {
            server.set_wrong(move |call| Some(wrong).filter(|_| call.contains("read")));
            let by =
                Instant::now() + Duration::from_millis(if wrong == Wrong::Silent { 300 } else { 60_000 });
            let got = tier.get(&what, 0..size, by);
            server.set_wrong(|_| None);
            got
        };
        tier.get(&what, 0..size, soon()).unwrap();
        for wrong in [Wrong::Busy, Wrong::Often, Wrong::Silent] {
            let said = ails(wrong).unwrap_err();
            assert!(said.is_transient(), "{wrong:?}: {said}");
        }
        assert_eq!(ails(Wrong::Denied).unwrap_err().kind, TierErrorKind::Permanent);
        for wrong in [Wrong::Halved, Wrong::Longer] {
            let said = ails(wrong).unwrap_err();
            assert_eq!(said.kind, TierErrorKind::Corrupt, "{wrong:?}: {said}");
        }
        assert_ne!(ails(Wrong::Flipped).unwrap(), tier.get(&what, 0..size, soon()).unwrap());
    }
    // BuildGrid gives whole blocks, whatever it is asked for.
    server.set_wrong(|call| Some(Wrong::Longer).filter(|_| call == "read"));
    assert_eq!(tier.get(&large, 10..1010, soon()).unwrap(), bytes[10..1010]);
    assert_eq!(tier.get(&large, 10..bytes.len() as u64, soon()).unwrap_err().kind, TierErrorKind::Corrupt);
    server.set_wrong(|_| None);
    let nobody = open("grpc://127.0.0.1:9/main", false).find(&key_of(&action(1)), soon()).unwrap_err();
    assert!(nobody.is_transient(), "{nobody}");
    let other = open(&server.tier().replace("/main", "/other"), false);
    let error = other.find(&key_of(&action(1)), soon()).unwrap_err();
    assert_eq!(
        error.kind,
        TierErrorKind::Permanent,
        "an instance that is not there is no empty one: {error}"
    );
    let md5 = Server::start("main", Value::Sha1);
    let error = open(&md5.tier(), false).find(&key_of(&action(1)), soon()).unwrap_err();
    assert_eq!(error.kind, TierErrorKind::Permanent, "{error}");
}

#[test]
fn a_connection_that_died_silently_is_not_used_again() {
    let server = Server::start("main", Value::Sha256);
    let proxy = Proxy::start(server.port(), 1);
    let tier = open(&format!("grpc://127.0.0.1:{}/main", proxy.port), false);
    server.add(b"12345678");
    let object = Object::Blob(BlobHash::sha256_of(b"12345678"), 8);
    tier.get(&object, 0..8, soon()).unwrap();
    proxy.set(Ails::Swallows);
    let by = Instant::now() + Duration::from_millis(300);
    assert!(tier.get(&object, 0..8, by).unwrap_err().is_transient());
    proxy.set(Ails::Nothing);
    // Sooner than signs of life are asked for.
    tier.get(&object, 0..8, Instant::now() + Duration::from_secs(15)).expect("it comes on another one");
}

/// S15.15 A content that only SHA-256 is known of is read when all of it is here and was checked.
#[test]
fn contents_that_only_sha_256_is_known_of_are_read_when_all_of_them_are_here() {
    let server = Server::start("main", Value::Sha256);
    let bytes = content(1, 1, 9 << 20);
    server.set_result(
        &action(1),
        result(vec![file(&server, "large", &bytes), file(&server, "small", b"small")]),
    );
    let World { cache, dir } = World::new(&server);
    let entry = cache.find(&key_of(&action(1)), LeaseKind::Hold).unwrap().expect("it is there");
    let record = entry.file(b"outputs/large").unwrap();
    let mut piece = [0; 1000];
    assert_eq!(server.calls("read"), 0);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (entry, bytes) = (&entry, &bytes);
            scope.spawn(move || {
                let (mut piece, at) = ([0; 1000], thread * 2_000_000);
                assert_eq!(entry.read(record, at, &mut piece).unwrap(), 1000);
                assert!(piece == bytes[at as usize..at as usize + 1000]);
            });
        }
    });
    assert_eq!(server.calls("read"), 3, "it came once, in pieces of 4 MiB");
    assert!(entry.backing(record).unwrap().is_some(), "it is a file of its own now");
    assert_eq!(read(&entry, "outputs/small").unwrap(), b"small");
    drop((entry, cache));
    // Without the server, and in another process.
    let cache = Cache::open(&dir.path().join("store"), Limits::default()).unwrap();
    let entry = cache.entry(&key_of(&action(1)), LeaseKind::Hold).unwrap().expect("it is here");
    assert_eq!(entry.read(record, 5_000_000, &mut piece).unwrap(), 1000);
    assert!(piece == bytes[5_000_000..5_001_000]);
    assert_eq!(read(&entry, "outputs/small").unwrap(), b"small");
}

#[test]
fn servers_with_blake3_are_read_by_it() {
    let server = Server::start("", Value::Blake3);
    let bytes = content(1, 1, 2 << 20);
    server.set_result(
        &action(1),
        result(vec![file(&server, "large", &bytes), file(&server, "small", b"small")]),
    );
    let world = World::new(&server);
    let entry = world.find(&action(1)).expect("it is there");
    assert!(read(&entry, "outputs/large").unwrap() == bytes);
    assert_eq!(read(&entry, "outputs/small").unwrap(), b"small");
    let manifest = entry.manifest().unwrap();
    let kind = |path: &[u8]| manifest.get(manifest.find(path).unwrap()).unwrap().digest_kind();
    assert_eq!(kind(b"outputs/large"), Some(DigestKind::Blake3Whole));
    assert_eq!(kind(b"outputs/small"), Some(DigestKind::Blake3));
}

#[test]
fn wrong_bytes_are_never_read_and_right_ones_are_when_they_come() {
    for function in [Value::Sha256, Value::Blake3] {
        let server = Server::start("main", function);
        let bytes = content(1, 1, 5 << 20);
        let files = vec![file(&server, "large", &bytes), file(&server, "small", b"small")];
        server.set_result(&action(1), result(files));
        let world = World::new(&server);
        let entry = world.find(&action(1)).expect("it is there");
        for wrong in [Wrong::Flipped, Wrong::Halved, Wrong::Longer] {
            server.set_wrong(move |call| Some(wrong).filter(|_| call.contains("read")));
            for path in ["outputs/large", "outputs/small"] {
                read(&entry, path).expect_err(path);
            }
        }
        assert!(world.cache.tier_facts()[0].corrupt >= 6, "{:?}", world.cache.tier_facts());
        server.set_wrong(|_| None);
        assert!(read(&entry, "outputs/large").unwrap() == bytes);
        assert_eq!(read(&entry, "outputs/small").unwrap(), b"small");
    }
}

/// S15.15 What does not come in time goes on coming, and the next read finds it.
#[test]
fn a_read_that_is_late_is_an_error_and_what_was_begun_goes_on() {
    let server = Server::start("main", Value::Sha256);
    let bytes = content(1, 1, 9 << 20);
    server.set_result(&action(1), result(vec![file(&server, "large", &bytes)]));
    let world = World::new(&server);
    let entry = world.find(&action(1)).expect("it is there");
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    server.set_wrong(move |call| {
        if call == "read" {
            // All that come meanwhile wait for the first.
            held.lock().unwrap().recv().ok();
        }
        None
    });
    let record = entry.file(b"outputs/large").unwrap();
    let begun = Instant::now();
    let who = Reader {
        by: &|_| Instant::now() + Duration::from_millis(100),
        payer: None,
        exact: false,
        patient: false,
    };
    let late = entry.read_by(record, 0, &mut [0; 10], &who);
    assert!(late.is_err() && begun.elapsed() < Duration::from_secs(60));
    drop(hold);
    assert!(read(&entry, "outputs/large").unwrap() == bytes);
    assert_eq!(server.calls("read"), 3, "nothing was asked for twice");
}

/// What one cannot have does not keep others from being read that would come with it.
#[test]
fn small_files_come_without_those_that_cannot() {
    let server = Server::start("main", Value::Sha256);
    let files = ["first", "gone", "wrong", "last"].map(|name| file(&server, name, name.as_bytes()));
    let digest = |n: usize| files[n].digest.clone().expect("it has one");
    let (gone, wrong) = (digest(1), digest(2));
    server.set_result(&action(1), result(files.to_vec()));
    let world = World::new(&server);
    let entry = world.find(&action(1)).expect("it is there");
    server.set(&gone, None);
    server.set(&wrong, Some(b"WRONG".to_vec()));
    for name in ["last", "first"] {
        assert_eq!(read(&entry, &format!("outputs/{name}")).unwrap(), name.as_bytes());
    }
    read(&entry, "outputs/gone").expect_err("it is gone");
    read(&entry, "outputs/wrong").expect_err("it is wrong");
    assert!(world.cache.tier_facts()[0].corrupt >= 2, "{:?}", world.cache.tier_facts());
    server.set(&gone, Some(b"gone".to_vec()));
    server.set(&wrong, Some(b"wrong".to_vec()));
    for name in ["gone", "wrong"] {
        assert_eq!(read(&entry, &format!("outputs/{name}")).unwrap(), name.as_bytes());
    }
}

/// What a server cannot give just now is asked for again, and what came beside it comes, whatever becomes of that.
#[test]
fn one_content_that_is_not_to_be_had_keeps_no_others_back() {
    let server = Server::start("main", Value::Sha256);
    let tier = open(&server.tier(), false);
    let contents: [&[u8]; 4] = [b"first", b"busy", b"absent", b"last"];
    let object = |bytes: &[u8]| Object::Blob(BlobHash::sha256_of(bytes), bytes.len() as u64);
    contents.iter().filter(|bytes| **bytes != b"absent").for_each(|bytes| drop(server.add(bytes)));
    let come = || tier.get_all(&contents.map(object), soon()).expect("it answers");
    let calls = server.calls("batch read");
    assert!(come()[1].as_ref().is_ok_and(|bytes| bytes == b"busy"));
    assert_eq!(server.calls("batch read") - calls, 1, "what is absent is not asked for again");
    server.set_busy(&server.digest(b"busy"));
    let came = come();
    assert_eq!(server.calls("batch read") - calls, 1 + 4, "it was tried");
    assert!(came[1].as_ref().is_err_and(|e| e.is_transient()), "{:?}", came[1]);
    assert!(came[2].as_ref().is_err_and(|e| e.is_absent()), "{:?}", came[2]);
    for n in [0, 3] {
        assert!(came[n].as_ref().is_ok_and(|bytes| bytes == contents[n]), "{:?}", came[n]);
    }
}
