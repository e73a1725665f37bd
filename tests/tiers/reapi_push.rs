//! What is brought to a server of the Remote Execution API, and comes back from there.

use bazel_remote_apis::build::bazel::remote::execution::v2 as re;
use outfs::cache::{Entry, LeaseKind, SealRequest, TaskFacts};
use outfs::model::manifest::Origin;
use outfs::model::{BlobHash, EntryKey, RecordKind};
use outfs::tier::{self, Source, ship};
use re::digest_function::Value;

use super::cas::{BATCH, Server, Wrong, digest};
use super::common::{Mount, read as mount_read};
use super::mounted::content;
use super::others::Other;
use super::reapi::{World, open};
use super::suite::{contents_conform, key, soon};

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
    let sha256 = |m: &Mount, path: &str| xattr::get(m.path(path), "user.outfs.sha256").expect("attributes");
    let hex = Some(BlobHash::sha256_of(&large).to_hex().into_bytes());
    assert_eq!(sha256(&one, "second/outputs/f"), hex, "it is known of what went there");
    assert_eq!(sha256(&other, "second/outputs/f"), hex);
}
