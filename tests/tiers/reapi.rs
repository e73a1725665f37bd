//! A tier on a server of the Remote Execution API, against one of our own that is as ill as it is told to be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bazel_remote_apis::build::bazel::remote::execution::v2 as re;
use bazel_remote_apis::google::protobuf::{Timestamp, UInt32Value};
use outfs::cache::{Cache, Entry, LeaseKind, Limits, Reader, SealRequest, TaskFacts};
use outfs::model::manifest::{DigestKind, Origin};
use outfs::model::{BlobHash, EntryKey, RecordKind};
use outfs::tier::{self, Object, Source, Tier, TierErrorKind, ship};
use prost::Message;
use re::digest_function::Value;

use super::cas::{BATCH, Server, Wrong, digest};
use super::common::{Mount, eventually, read as mount_read};
use super::mounted::{content, patient};
use super::others::Other;
use super::proxy::{Ails, Proxy};
use super::suite::{contents_conform, key, soon};

pub fn open(address: &str, push: bool) -> Arc<dyn Tier> {
    tier::open(&address.parse().expect("an address"), push).expect("it opens")
}

/// A cache in a new store, with a server as its tier.
struct World {
    cache: Cache,
    dir: tempfile::TempDir,
}

impl World {
    fn new(server: &Server) -> World {
        Self::at(&server.tier())
    }

    fn at(server: &str) -> World {
        let dir = tempfile::Builder::new().prefix("outfs-test-").tempdir().expect("a temporary directory");
        let cache = Cache::open(&dir.path().join("store"), Limits::default()).expect("a new store");
        cache.attach_tiers(vec![open(server, false)], patient());
        World { cache, dir }
    }

    fn find(&self, action: &re::Digest) -> Option<Entry> {
        self.cache.find(&key_of(action), LeaseKind::Hold).expect("a tier that is ill makes a miss")
    }
}

fn key_of(action: &re::Digest) -> EntryKey {
    key(&format!("{}-{}", action.hash, action.size_bytes))
}

fn read(entry: &Entry, path: &str) -> Result<Vec<u8>, outfs::cache::CacheError> {
    entry.read_all(entry.file(path.as_bytes())?, u64::MAX)
}

fn time(seconds: i64, nanos: i32) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos })
}

fn file(server: &Server, path: &str, bytes: &[u8]) -> re::OutputFile {
    re::OutputFile { path: path.into(), digest: Some(server.add(bytes)), ..Default::default() }
}

fn result(files: Vec<re::OutputFile>) -> re::ActionResult {
    re::ActionResult { output_files: files, ..Default::default() }
}

/// Of an action that nobody has described.
fn action(n: u8) -> re::Digest {
    digest(Value::Sha256, &[n; 142])
}

/// A result with all that a result can have.
fn odd_result(server: &Server) -> re::ActionResult {
    let deep = re::Directory {
        files: vec![re::FileNode {
            name: "deep".into(),
            digest: Some(server.add(b"deep down")),
            is_executable: true,
            ..Default::default()
        }],
        ..Default::default()
    };
    let empty = re::Directory::default();
    let below = |name: &str, directory: &re::Directory| re::DirectoryNode {
        name: name.into(),
        digest: Some(server.digest(&directory.encode_to_vec())),
    };
    let root = re::Directory {
        files: vec![re::FileNode {
            name: "shallow".into(),
            digest: Some(server.add(b"shallow")),
            ..Default::default()
        }],
        directories: vec![below("deeper", &deep), below("empty", &empty), below("same", &deep)],
        symlinks: vec![re::SymlinkNode { name: "up".into(), target: "../x".into(), ..Default::default() }],
        ..Default::default()
    };
    let tree = re::Tree { root: Some(root), children: vec![deep, empty] };
    let properties = re::NodeProperties {
        mtime: time(1_700_000_123, 456),
        unix_mode: Some(UInt32Value { value: 0o100640 }),
        ..Default::default()
    };
    let mut files = vec![
        file(server, "dist/large", &content(1, 1, 3 * BATCH + 77)),
        file(server, "dist/small", b"small"),
        file(server, "empty", b""),
        file(server, "tool", b"#!/bin/sh\n"),
    ];
    files[1].node_properties = Some(properties);
    files[3].is_executable = true;
    re::ActionResult {
        output_files: files,
        output_symlinks: vec![re::OutputSymlink {
            path: "dist/link".into(),
            target: "small".into(),
            ..Default::default()
        }],
        output_directories: vec![re::OutputDirectory {
            path: "a/tree".into(),
            tree_digest: Some(server.add(&tree.encode_to_vec())),
            ..Default::default()
        }],
        exit_code: 3,
        stdout_digest: Some(server.add(b"it said this\n")),
        stderr_raw: b"and complained\n".to_vec(),
        execution_metadata: Some(re::ExecutedActionMetadata {
            worker: "worker-7".into(),
            execution_start_timestamp: time(1_700_000_000, 0),
            execution_completed_timestamp: time(1_700_000_002, 500_000_000),
            ..Default::default()
        }),
        ..Default::default()
    }
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

#[test]
fn a_passing_trouble_is_not_noticed() {
    let server = Server::start("main", Value::Sha256);
    let odd = odd_result(&server);
    server.set_result(&action(1), odd);
    for wrong in [Wrong::Busy, Wrong::Often] {
        let n = std::sync::atomic::AtomicU64::new(0);
        let next = move || n.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        server.set_wrong(move |_| Some(wrong).filter(|_| next().is_multiple_of(3)));
        let tier = open(&server.tier(), false);
        tier.find(&key_of(&action(1)), soon()).unwrap_or_else(|e| panic!("{wrong:?}: {e}"));
    }
}

/// S15.14 What other tools wrote to a server of the Remote Execution API is shown under `<hash>-<size>` of its action: what it put
/// out, its logs, and metadata of its execution, sealed when that ended.
#[test]
fn what_other_tools_wrote_becomes_an_entry() {
    let server = Server::start("main", Value::Sha256);
    server.set_result(&action(1), odd_result(&server));
    let world = World::new(&server);
    assert!(world.find(&action(2)).is_none());
    let entry = world.find(&action(1)).expect("it is there");
    assert_eq!(server.calls("batch read"), 1, "nothing but the tree has come");
    let manifest = entry.manifest().unwrap();
    assert_eq!(manifest.seal().sealed_at_ns, 1_700_000_002_500_000_000);
    assert_eq!((&manifest.seal().origin.how[..], &manifest.seal().origin.host[..]), ("action", "worker-7"));
    let metadata = entry.metadata().unwrap().unwrap();
    assert_eq!((metadata.exit_code, metadata.duration_ms), (3, 2500));
    assert_eq!(metadata.created_at.as_millisecond(), 1_700_000_002_500);
    let all: [(&str, &[u8]); 8] = [
        ("outputs/dist/large", &content(1, 1, 3 * BATCH + 77)),
        ("outputs/dist/small", b"small"),
        ("outputs/empty", b""),
        ("outputs/tool", b"#!/bin/sh\n"),
        ("outputs/a/tree/shallow", b"shallow"),
        ("outputs/a/tree/deeper/deep", b"deep down"),
        ("logs/stdout.log", b"it said this\n"),
        ("logs/stderr.log", b"and complained\n"),
    ];
    for (path, bytes) in all {
        assert!(read(&entry, path).unwrap() == bytes, "{path}");
    }
    let at = |path: &str| manifest.get(manifest.find(path.as_bytes()).expect(path)).expect(path);
    assert_eq!((at("outputs/dist/small").perm(), at("outputs/tool").perm()), (0o640, 0o755));
    assert_eq!(at("outputs/dist/small").mtime_ns(), 1_700_000_123_000_000_456);
    assert_eq!(at("outputs/tool").mtime_ns(), manifest.seal().sealed_at_ns);
    assert_eq!(at("outputs/a/tree/empty").kind(), RecordKind::Dir);
    assert_eq!(at("outputs/a/tree/same/deep").perm(), 0o755);
    let target = |path: &str| manifest.target(manifest.find(path.as_bytes()).expect(path)).to_vec();
    assert_eq!(
        (target("outputs/dist/link"), target("outputs/a/tree/up")),
        (b"small".to_vec(), b"../x".to_vec())
    );
    assert_eq!(at("outputs/dist/large").digest_kind(), Some(DigestKind::Sha256));
    assert_eq!(at("metadata.json").digest_kind(), Some(DigestKind::Blake3));
    let other = World::new(&server);
    let again = other.find(&action(1)).expect("it is there");
    assert_eq!(again.manifest_hash().unwrap(), entry.manifest_hash().unwrap(), "it is the same everywhere");
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
    let who = Reader { by: &|_| Instant::now() + Duration::from_millis(100), payer: None };
    let late = entry.read_by(record, 0, &mut [0; 10], &who);
    assert!(late.is_err() && begun.elapsed() < Duration::from_secs(60));
    drop(hold);
    assert!(read(&entry, "outputs/large").unwrap() == bytes);
    assert_eq!(server.calls("read"), 3, "nothing was asked for twice");
}

#[test]
fn what_a_result_says_is_not_believed() {
    let server = Server::start("main", Value::Sha256);
    let world = World::new(&server);
    let sound = || file(&server, "sound", b"sound");
    let named = |path: &str| result(vec![sound(), file(&server, path, b"x")]);
    let digested = |digest: Option<re::Digest>| {
        result(vec![re::OutputFile { path: "x".into(), digest, ..Default::default() }, sound()])
    };
    let of = |hash: &str, size_bytes| Some(re::Digest { hash: hash.into(), size_bytes });
    let link = |target: &str| re::ActionResult {
        output_symlinks: vec![re::OutputSymlink {
            path: "l".into(),
            target: target.into(),
            ..Default::default()
        }],
        ..result(vec![sound()])
    };
    let tree = |bytes: &[u8]| re::ActionResult {
        output_directories: vec![re::OutputDirectory {
            path: "d".into(),
            tree_digest: Some(server.add(bytes)),
            ..Default::default()
        }],
        ..result(vec![sound()])
    };
    let lacking = re::Directory {
        directories: vec![re::DirectoryNode { name: "d".into(), digest: Some(server.digest(b"no such")) }],
        ..Default::default()
    };
    let up = re::Directory {
        files: vec![re::FileNode { name: "..".into(), digest: Some(server.add(b"x")), ..Default::default() }],
        ..Default::default()
    };
    let root = |root: re::Directory| re::Tree { root: Some(root), children: Vec::new() }.encode_to_vec();
    let hash = server.add(b"x").hash;
    let long_name = "n".repeat(256);
    let deep = vec!["d"; 5000].join("/");
    let wrong = [
        named("../x"),
        named("a/../x"),
        named("/x"),
        named(""),
        named("a//x"),
        named("x/"),
        named("a\0b"),
        named(&long_name),
        named(&deep),
        named("sound"),
        named("sound/x"),
        digested(None),
        digested(of("", 1)),
        digested(of(&hash.to_uppercase(), 1)),
        digested(of(&hash, -1)),
        digested(of(&hash, 0)),
        digested(of(&hash, i64::MAX)),
        result(vec![
            file(&server, "a", b"x"),
            re::OutputFile { path: "b".into(), digest: of(&hash, 2), ..Default::default() },
        ]),
        link(""),
        link("a\0b"),
        link(&"t".repeat(5000)),
        tree(b"\xff\xff\xff"),
        tree(&root(lacking)),
        tree(&root(up)),
        re::ActionResult { stderr_raw: vec![b'x'; 300_000], ..Default::default() },
        re::ActionResult {
            output_directories: vec![re::OutputDirectory { path: "d".into(), ..Default::default() }],
            ..Default::default()
        },
    ];
    for (n, wrong) in wrong.into_iter().enumerate() {
        server.set_result(&action(n as u8), wrong.clone());
        assert!(world.find(&action(n as u8)).is_none(), "{n}: {wrong:?}");
    }
    let facts = &world.cache.tier_facts()[0];
    assert!(!facts.ill && facts.corrupt > 20, "that says nothing of whether others come: {facts:?}");
    server.set_result(&action(100), result(vec![sound()]));
    assert!(world.find(&action(100)).is_some());
}

/// S15.14 What the server has forgotten in part is not found.
#[test]
fn a_result_whose_contents_the_server_has_forgotten_is_none() {
    let server = Server::start("main", Value::Sha256);
    server.set_result(&action(1), odd_result(&server));
    let world = World::new(&server);
    for forgotten in [server.digest(b"deep down"), server.digest(b"it said this\n"), server.digest(b"small")]
    {
        server.set(&forgotten, None);
        assert!(world.find(&action(1)).is_none());
        odd_result(&server);
    }
    assert!(world.find(&action(1)).is_some());
}

#[test]
fn a_tree_is_no_larger_than_what_it_says() {
    // Each directory has the next one twice: few bytes that stand for more files than there can be.
    let server = Server::start("main", Value::Sha256);
    let mut children = vec![re::Directory {
        files: vec![re::FileNode { name: "f".into(), digest: Some(server.add(b"x")), ..Default::default() }],
        ..Default::default()
    }];
    for _ in 0..40 {
        let digest = Some(server.digest(&children[children.len() - 1].encode_to_vec()));
        let twice = ["a", "b"].map(|name| re::DirectoryNode { name: name.into(), digest: digest.clone() });
        children.push(re::Directory { directories: twice.to_vec(), ..Default::default() });
    }
    let root = children.pop();
    let tree = re::Tree { root, children }.encode_to_vec();
    let directory =
        re::OutputDirectory { path: "d".into(), tree_digest: Some(server.add(&tree)), ..Default::default() };
    let result = re::ActionResult { output_directories: vec![directory], ..Default::default() };
    server.set_result(&action(1), result);
    assert!(World::new(&server).find(&action(1)).is_none());
}

/// S15.14 What other tools wrote to a server of the Remote Execution API is shown under `<hash>-<size>` of its action; S15.15
/// `user.outfs.sha256` shows its digest.
#[test]
fn results_of_actions_appear_in_a_mount() {
    let server = Server::start("main", Value::Sha256);
    server.set_result(&action(1), odd_result(&server));
    let tier = server.tier();
    let mut m = Mount::unmounted(&["--size", "1G", "--tier", &tier]);
    m.start();
    let below = |path: &str| m.path(format!("{}/{path}", key_of(&action(1))));
    let large = content(1, 1, 3 * BATCH + 77);
    assert!(mount_read(below("outputs/dist/large")) == large);
    assert_eq!(mount_read(below("outputs/dist/link")), b"small");
    assert_eq!(mount_read(below("logs/stderr.log")), b"and complained\n");
    assert_eq!(std::fs::read_dir(below("outputs/a/tree")).expect("a directory").count(), 5);
    let attribute = |path: &str, name: &str| xattr::get(below(path), name).expect("attributes");
    let hex = BlobHash::sha256_of(&large).to_hex();
    assert_eq!(attribute("outputs/dist/large", "user.outfs.sha256"), Some(hex.into_bytes()));
    assert_eq!(attribute("outputs/dist/large", "user.outfs.blake3"), None);
    assert_eq!(attribute("metadata.json", "user.outfs.sha256"), None);
    assert_eq!(m.code(&["fsck", "--verify-data"]), 0);
    assert!(m.has_event("found", &key_of(&action(1)).to_string()));
}

/// S15.18 In a mount with tiers the hash of an action alone is a symlink to the entry of the action, once there is one here.
#[test]
fn the_hash_alone_leads_to_what_is_here() {
    let server = Server::start("main", Value::Sha256);
    let output = file(&server, "f", b"of another tool");
    server.set_result(&action(1), result(vec![output.clone()]));
    let tier = server.tier();
    let mut m = Mount::unmounted(&["--size", "1G", "--tier", &tier]);
    m.start();
    let full = |n: u8| key_of(&action(n)).to_string();
    let alone = m.path(action(1).hash);
    assert!(std::fs::symlink_metadata(&alone).is_err(), "nobody knows its size yet");
    assert_eq!(mount_read(m.path(full(1)).join("outputs/f")), b"of another tool");
    assert_eq!(std::fs::read_link(&alone).expect("a symlink"), std::path::Path::new(&full(1)));
    m.entry_of(&full(2), "sealed here");
    m.entry_of(&action(3).hash, "its own");
    m.entry_of(&full(3), "of the action");
    let shown = |m: &Mount| {
        [1, 2, 3]
            .map(|n| String::from_utf8(mount_read(m.path(action(n).hash).join("outputs/f"))).expect("text"))
    };
    assert_eq!(shown(&m), ["of another tool", "sealed here", "its own"]);
    m.restart();
    assert_eq!(shown(&m), ["of another tool", "sealed here", "its own"]);
    server.set(&output.digest.expect("it has one"), None);
    m.evict(&full(1));
    eventually("there is nothing to lead to", || std::fs::symlink_metadata(&alone).is_err());
}

/// An entry as a tool makes it: outputs of all kinds, logs and metadata.
fn put(world: &World, name: &EntryKey, files: &[(&str, &[u8])]) -> Entry {
    use std::os::unix::fs::PermissionsExt;
    let top = world.dir.path().join("tree");
    for (path, bytes) in files {
        let path = top.join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        std::fs::write(&path, bytes).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).expect("chmod");
    }
    std::fs::create_dir_all(top.join("empty/er")).expect("mkdir");
    std::os::unix::fs::symlink("../a/b", top.join("empty/link")).expect("symlink");
    let origin = Origin::default();
    let request = SealRequest { key: name.clone(), origin, inferred: false, replace: false };
    let facts = TaskFacts { task_id: "task".into(), exit_code: 0, ..TaskFacts::default() };
    world.cache.put_dir(&top, &facts, [None, None], request).expect("it can be stored").into_entry()
}

/// Contents of an entry that is here.
struct Contents<'a>(&'a Entry);

impl Source for Contents<'_> {
    fn open(&self, record: u32) -> std::io::Result<Box<dyn std::io::Read + '_>> {
        let all = self.0.read_all(record, u64::MAX).map_err(std::io::Error::other)?;
        Ok(Box::new(std::io::Cursor::new(all)))
    }
}

fn ships(server: &str, entry: &Entry) -> Result<tier::Places, tier::ShipError> {
    ship(&*open(server, true), &entry.manifest().expect("it is there"), &Contents(entry), &soon)
}

/// What is at a path below an entry: its kind, mode and time, and its content or target.
type Found = (Vec<u8>, RecordKind, u32, i64, Vec<u8>);

/// All that is below an entry.
fn tree_of(entry: &Entry) -> Vec<Found> {
    let manifest = entry.manifest().expect("it is there");
    let paths = manifest.paths();
    let all = paths.into_iter().enumerate().map(|(n, path)| {
        let (n, r) = (n as u32, &manifest.records()[n]);
        let bytes = match r.kind() {
            RecordKind::File => entry.read_all(n, u64::MAX).expect("it can be read"),
            _ => manifest.target(n).to_vec(),
        };
        // The API has no times and modes of directories and symlinks here.
        let file = r.kind() == RecordKind::File && path.starts_with(b"outputs/");
        (path, r.kind(), if file { r.perm() } else { 0 }, if file { r.mtime_ns() } else { 0 }, bytes)
    });
    let mut all: Vec<_> = all.filter(|(path, ..)| path != b"logs").collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn comes_back(server: &str, name: &EntryKey, files: &[(&str, &[u8])]) {
    let (here, there) = (World::at(server), World::at(server));
    let entry = put(&here, name, files);
    ships(server, &entry).expect("the server takes it");
    let found = there.cache.find(name, LeaseKind::Hold).expect("no trouble").expect("it is there");
    assert_eq!(tree_of(&found), tree_of(&entry));
    assert_eq!(found.sealed_at_ns(), entry.sealed_at_ns());
    assert_eq!(found.metadata_bytes().unwrap(), entry.metadata_bytes().unwrap());
}

fn entries_come_back_from(server: &str, prefix: &str) {
    let large = content(7, 1, 3 * BATCH + 5);
    let files: [(&str, &[u8]); 4] =
        [("a/large", &large), ("a/b/small", b"small"), ("a/b/same", b"small"), ("zero", b"")];
    comes_back(server, &key(&format!("{prefix}some-key")), &files);
    let action = digest(Value::Sha256, prefix.as_bytes());
    comes_back(server, &key(&format!("{}-4711", action.hash)), &files);
}

/// S15.16 With `--push` entries become results of actions on a server of the Remote Execution API, which other tools can use.
#[test]
fn entries_that_were_brought_come_back() {
    for function in [Value::Sha256, Value::Blake3] {
        let server = Server::start("main", function);
        entries_come_back_from(&server.tier(), "one-");
        let flat =
            server.results().into_iter().find(|((hash, _), _)| *hash == digest(Value::Sha256, b"one-").hash);
        let ((_, size), result) = flat.expect("it is under its own digest");
        let paths: Vec<_> = result.output_files.iter().map(|f| &f.path[..]).collect();
        assert_eq!((size, paths), (4711, vec!["a/b/same", "a/b/small", "a/large", "zero"]));
        assert_eq!(result.output_symlinks[0].path, "empty/link");
        assert_eq!(result.output_directories[0].path, "empty/er");
    }
}

#[test]
fn entries_of_very_many_files_come_back_as_trees() {
    let server = Server::start("main", Value::Sha256);
    // So many that a flat list of them would be too large for a message.
    let paths: Vec<String> = (0..4000).map(|n| format!("dir-{}/{n:0>250}/{n:0>250}", n % 7)).collect();
    let files: Vec<(&str, &[u8])> = paths.iter().map(|path| (&path[..], &path.as_bytes()[..5])).collect();
    comes_back(&server.tier(), &key("very-many"), &files);
    let result = server.results().remove(0).1;
    assert_eq!((result.output_files.len(), result.output_directories.len()), (0, 8));
}

/// S15.19 Small contents go to a server of the Remote Execution API, and come from it, together: not each by a call of its own.
#[test]
fn many_small_files_cost_few_calls() {
    let server = Server::start("main", Value::Sha256);
    let (here, there) = (World::new(&server), World::new(&server));
    let contents: Vec<(String, Vec<u8>)> =
        (0..900).map(|n| (format!("dir-{}/{n}", n % 30), content(1, n, 1000 + n))).collect();
    let files: Vec<(&str, &[u8])> = contents.iter().map(|(path, bytes)| (&path[..], &bytes[..])).collect();
    let entry = put(&here, &key("many-files"), &files);
    ships(&server.tier(), &entry).expect("the server takes it");
    // 1.3 MB, of which a message takes one, and then what describes the action.
    let sent = server.calls("batch update");
    assert!(sent <= 5, "{sent} calls");
    assert_eq!(server.calls("write"), 0);

    let found =
        there.cache.find(&key("many-files"), LeaseKind::Hold).expect("no trouble").expect("it is there");
    let before = server.calls("batch read");
    // One after another, as programs do.
    assert_eq!(tree_of(&found), tree_of(&entry));
    let came = server.calls("batch read") - before;
    assert!(came <= 5, "{came} calls");
    assert_eq!(server.calls("read"), 0);
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

#[test]
fn a_server_that_lacks_something_takes_no_result_and_nothing_is_sent_twice() {
    let server = Server::start("main", Value::Sha256);
    let world = World::new(&server);
    let entry = put(&world, &key("some-key"), &[("a", b"one"), ("b", b"two")]);
    server.set_wrong(|call| Some(Wrong::Denied).filter(|_| call == "update"));
    ships(&server.tier(), &entry).expect_err("it refuses");
    assert!(server.results().is_empty());
    server.set_wrong(|_| None);
    let sent = server.calls("batch update");
    ships(&server.tier(), &entry).expect("it takes it");
    ships(&server.tier(), &entry).expect("it takes it");
    assert_eq!(server.calls("batch update"), sent);
    assert_eq!(server.results().len(), 1);
    let reader = open(&server.tier(), false);
    let manifest = entry.manifest().unwrap();
    ship(&*reader, &manifest, &Contents(&entry), &soon).expect_err("it is for reading");
}

#[test]
fn what_the_api_has_no_words_for_is_not_brought() {
    use std::os::unix::ffi::OsStrExt;
    let server = Server::start("main", Value::Sha256);
    let world = World::new(&server);
    let top = world.dir.path().join("tree");
    std::fs::create_dir_all(&top).unwrap();
    std::fs::write(top.join(std::ffi::OsStr::from_bytes(b"\xff")), b"x").unwrap();
    let entry = put(&world, &key("no-words"), &[]);
    let refused = ships(&server.tier(), &entry).unwrap_err();
    assert!(matches!(refused, tier::ShipError::Unsuitable(_)), "{refused}");
    assert_eq!(server.calls("batch update"), 0);
}

/// What every server of the API does, done by one that others wrote.
fn serves(server: Option<Other>) {
    let Some(server) = server else { return };
    let server = server.tier();
    contents_conform(&|| open(&server, true), BlobHash::sha256_of);
    entries_come_back_from(&server, "other-");
}

#[test]
fn entries_come_back_from_casd() {
    serves(Other::casd("main"));
}

#[test]
fn entries_come_back_from_buildgrid() {
    serves(Other::buildgrid("main"));
}

/// S15.7 With `--push` what is sealed here is brought to the tiers in the background.
#[test]
fn what_one_machine_seals_another_one_finds_there() {
    let server = Server::start("main", Value::Sha256);
    let tier = server.tier();
    let mut one = Mount::unmounted(&["--size", "1G", "--tier", &tier, "--push"]);
    one.start();
    let large = content(1, 1, 2 * BATCH);
    one.entry_of("first", "of one machine");
    one.entry_of("second", &large);
    let pushed = one.json(&["push", "--wait"]);
    assert_eq!((&pushed["push"]["waiting"], &pushed["push"]["brought"]), (&0.into(), &2.into()), "{pushed}");
    let mut other = Mount::unmounted(&["--size", "1G", "--tier", &tier]);
    other.start();
    assert_eq!(mount_read(other.path("first/outputs/f")), b"of one machine");
    assert!(mount_read(other.path("second/outputs/f")) == large);
    assert_eq!(server.results().len(), 2);
}
