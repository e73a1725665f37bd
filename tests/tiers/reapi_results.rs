//! What other tools wrote to a server of the Remote Execution API: results of actions, as entries.

use bazel_remote_apis::build::bazel::remote::execution::v2 as re;
use bazel_remote_apis::google::protobuf::{Timestamp, UInt32Value};
use outfs::model::manifest::DigestKind;
use outfs::model::{BlobHash, RecordKind};
use prost::Message;
use re::digest_function::Value;

use super::cas::{BATCH, Server, Wrong};
use super::common::{Mount, eventually, read as mount_read};
use super::mounted::content;
use super::reapi::{World, action, file, key_of, open, read, result};
use super::suite::soon;

fn time(seconds: i64, nanos: i32) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos })
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
/// `user.outfs.sha256` shows its digest, and `user.outfs.blake3` the other one once it is here.
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
    // Of what is here the other name is found, once; nothing is fetched for it.
    let blake3 = |bytes: &[u8]| Some(blake3::hash(bytes).to_hex().to_string().into_bytes());
    assert_eq!(attribute("outputs/dist/large", "user.outfs.blake3"), blake3(&large));
    assert_eq!(attribute("outputs/dist/large", "user.outfs.blake3"), blake3(&large));
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
