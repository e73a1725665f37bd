//! What a mount shows besides entries: `.outfs`, aliases, scopes, attributes, listings, users.

#[macro_use]
mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::trace::Trace;
use common::*;

/// `MNT/ab/cd/abcd…/`: the same entries under cuenv's sharded path (found, not listed).
#[test]
fn the_sharded_alias() {
    let m = Mount::new();
    m.entry_of("abcdef01", "sealed");
    mkdir(m.path("abzz0000"));
    assert_eq!(read(m.path("ab/cd/abcdef01/outputs/f")), b"sealed");
    let (a, b) =
        (fs::metadata(m.path("abcdef01/outputs/f")), fs::metadata(m.path("ab/cd/abcdef01/outputs/f")));
    assert_eq!(a.expect("stat").ino(), b.expect("stat").ino(), "the same file");
    write(m.path("ab/zz/abzz0000/f"), "through the alias");
    assert_eq!(read(m.path("abzz0000/f")), b"through the alias");
    fs::create_dir_all(m.path("12/34/123456/outputs")).expect("create_dir_all makes a draft in place");
    write(m.path("12/34/123456/outputs/f"), "x");
    assert_eq!(read(m.path("123456/outputs/f")), b"x");
    assert_eq!(names(m.mnt()), ["123456", "abcdef01", "abzz0000"], "the shards are not listed");
    assert_errno!(fs::symlink_metadata(m.path("ab/cd/abzz0000")), ENOENT);
    assert_errno!(fs::symlink_metadata(m.path("ab/cd/abcdef02")), ENOENT);
    assert!(fs::create_dir(m.path("ab/cd/99990000")).is_err(), "a key in a shard that is not its own");
}

/// cuenv's `create_dir_all` of one sharded path from 8 threads: all of them succeed.
#[test]
fn create_dir_all_on_the_alias_from_8_threads() {
    let m = Mount::new();
    for round in 0..5 {
        let path = m.path(format!("cc/{round}{round}/cc{round}{round}7788/outputs/deep/er"));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || fs::create_dir_all(path))
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().expect("no panic").expect("create_dir_all"));
        assert!(path.is_dir());
    }
}

/// `.outfs` is found but not listed; its files have their true size.
#[test]
fn control_files() {
    let m = Mount::new();
    m.entry_of("key1", "content");
    assert!(names(m.mnt()).iter().all(|n| !n.starts_with('.')));
    let found = sh("find", &[&m.mnt(), &"-name", &"stats.json"]);
    assert_eq!(found, "", "find does not enter .outfs");
    let listed = names(m.path(".outfs"));
    for name in ["blobs", "by-task", "events.jsonl", "metrics", "stats.json", "trash", "work"] {
        let shown = listed.iter().any(|n| n == name);
        assert!(shown || name == "blobs", "{name} is not in {listed:?}");
        assert!(fs::symlink_metadata(m.path(".outfs").join(name)).is_ok(), "{name}");
    }
    for name in ["stats.json", "metrics", "events.jsonl"] {
        let mut f = File::open(m.path(".outfs").join(name)).expect("open");
        let size = f.metadata().expect("fstat").len();
        let mut text = String::new();
        f.read_to_string(&mut text).expect("read");
        assert_eq!(text.len() as u64, size, "{name} tells its true size");
        assert!(size > 0, "{name} is not empty");
    }
    assert!(m.stats().is_object());
    let events = m.events();
    assert!(events.iter().any(|e| e["event"] == "sealed" && e["key"] == "key1"));
    m.entry_of("key2", "content");
    assert!(m.has_event("sealed", "key2"), "a new look-up gives a new snapshot");
    assert_errno!(fs::write(m.path(".outfs/stats.json"), "x"), EROFS);
    let metrics = String::from_utf8(read(m.path(".outfs/metrics"))).expect("text");
    assert!(metrics.lines().any(|l| l.starts_with("outfs_")), "{metrics}");
}

/// A snapshot stays as it is for who has it open.
#[test]
fn a_snapshot_does_not_change_under_its_reader() {
    let m = Mount::new();
    m.entry_of("key1", "x");
    let f = File::open(m.path(".outfs/events.jsonl")).expect("open");
    let size = f.metadata().expect("fstat").len();
    for i in 2..6 {
        m.entry_of(&format!("key{i}"), "x");
    }
    let mut buf = vec![0; size as usize + 4096];
    let mut got = 0;
    loop {
        let n = f.read_at(&mut buf[got..], got as u64).expect("read");
        got += n;
        if n == 0 {
            break;
        }
    }
    assert_eq!(got as u64, size);
    assert!(String::from_utf8_lossy(&buf[..got]).lines().all(|l| !l.contains("key2")));
}

/// `by-task/<task_id>/<sealed_at>-<key8>` and `latest`; task ids are percent-encoded.
#[test]
fn by_task() {
    let m = Mount::new();
    m.entry_of("aaaabbbbcccc", "1");
    m.entry_of("ddddeeeeffff", "2");
    let tasks = names(m.path(".outfs/by-task"));
    assert_eq!(tasks, ["%2F%2Fpkg:build"], "the task id of the test's metadata");
    let dir = m.path(".outfs/by-task").join(&tasks[0]);
    let links = names(&dir);
    assert_eq!(links.len(), 3, "{links:?}");
    assert!(links.contains(&"latest".to_owned()));
    assert!(links.iter().any(|n| n.ends_with("-aaaabbbb")) && links.iter().any(|n| n.ends_with("-ddddeeee")));
    for name in &links {
        assert!(fs::metadata(dir.join(name)).expect("the link leads to an entry").is_dir());
    }
    assert_eq!(read(dir.join("latest/outputs/f")), b"2");
    assert_errno!(fs::symlink_metadata(m.path(".outfs/by-task/other")), ENOENT);
}

/// `blobs/<blake3>`: any blob, read-only (found, not listed).
#[test]
fn blobs_by_hash() {
    let m = Mount::new();
    for (key, content) in [("key1", noise(1, 1000)), ("key2", noise(2, 1 << 20))] {
        m.entry_of(key, &content);
        let path = m.path(".outfs/blobs").join(blake3::hash(&content).to_hex().as_str());
        assert!(read(&path) == content);
        assert_errno!(fs::write(&path, "x"), EROFS);
        let mode = fs::metadata(&path).expect("stat").mode();
        assert_eq!(mode & 0o222, 0);
    }
    assert_eq!(names(m.path(".outfs/blobs")), [""; 0]);
    let unknown = blake3::hash(b"nobody stored this").to_hex().to_string();
    assert_errno!(fs::symlink_metadata(m.path(".outfs/blobs").join(unknown)), ENOENT);
    assert_errno!(fs::symlink_metadata(m.path(".outfs/blobs/zz")), ENOENT);
}

/// xattrs: `user.outfs.{key,state,blake3,residency}`; ENODATA at once for `security.*`.
#[test]
fn xattrs() {
    let m = Mount::new();
    m.entry_of("key1", "content");
    let f = m.path("key1/outputs/f");
    assert_eq!(xattr_text(m.path("key1"), "user.outfs.key").as_deref(), Some("key1"));
    assert_eq!(xattr_text(m.path("key1"), "user.outfs.state").as_deref(), Some("sealed"));
    assert_eq!(xattr_text(&f, "user.outfs.blake3"), Some(blake3::hash(b"content").to_hex().to_string()));
    assert_eq!(xattr_text(&f, "user.outfs.residency").as_deref(), Some("local"));
    assert_eq!(xattr::get(&f, "security.capability").expect("no error but ENODATA"), None);
    assert_eq!(xattr::get(&f, "security.ima").expect("no error but ENODATA"), None);
    let labels = xattr::get(&f, "security.selinux").expect_err("there are no labels");
    assert_eq!(labels.raw_os_error(), Some(nix::libc::EOPNOTSUPP));
    assert_eq!(xattr::get(&f, "system.posix_acl_access").ok().flatten(), None);
    assert_eq!(xattr::get(&f, "user.other").expect("no error but ENODATA"), None);
    let text = sh("getfattr", &[&"-n", &"user.outfs.key", &"--absolute-names", &m.path("key1")]);
    assert!(text.contains("user.outfs.key=\"key1\""), "{text}");
    // Programs that copy attributes must not carry these along: they are answered, not listed.
    assert_eq!(xattr::list(&f).expect("listxattr").count(), 0);
    mkdir(m.path("key2"));
    write(m.path("key2/d"), "x");
    assert_eq!(xattr::get(m.path("key2/d"), "security.capability").expect("no error but ENODATA"), None);
    assert!(xattr::set(m.path("key2/d"), "user.outfs.blake3", b"forged").is_err());
    assert!(xattr::set(m.path("key2"), "user.outfs.state", b"sealed").is_err());
}

/// A scoped view shows its keys and nothing else, and holds them.
#[test]
fn scoped_views() {
    let mut m = Mount::new();
    for key in ["key1", "key2", "key3"] {
        m.entry_of(key, format!("content of {key}"));
    }
    let list = m.outside("keys");
    write(&list, "key2\n");
    let scoped = m.add_view("scoped", &["--key", "key1", "--keys-from", list.to_str().expect("plain")]);
    assert_eq!(names(&scoped), ["key1", "key2"]);
    assert_eq!(read(scoped.join("key1/outputs/f")), b"content of key1");
    assert_errno!(fs::symlink_metadata(scoped.join("key3")), ENOENT);
    assert_errno!(fs::create_dir(scoped.join("key4")), EROFS);
    for name in ["work", "trash", "stats.json", "metrics", "events.jsonl", "by-task"] {
        assert_errno!(fs::symlink_metadata(scoped.join(".outfs").join(name)), ENOENT);
    }
    let blob =
        |content: &str| scoped.join(".outfs/blobs").join(blake3::hash(content.as_bytes()).to_hex().as_str());
    assert_eq!(read(blob("content of key2")), b"content of key2");
    assert_errno!(fs::symlink_metadata(blob("content of key3")), ENOENT);

    m.evict("key1");
    assert_errno!(fs::symlink_metadata(m.path("key1")), ENOENT);
    assert_eq!(read(scoped.join("key1/outputs/f")), b"content of key1", "the scope holds it");
    m.ok(&["unmount", scoped.to_str().expect("plain")]);
    assert!(!is_mounted(&scoped));
    eventually("the evicted entry to be freed", || m.manifests() == 2);
    assert!(m.path("key2").exists(), "the other view goes on");
}

/// A key of the scope that has no entry is simply not there.
#[test]
fn a_scope_with_a_key_that_has_no_entry() {
    let mut m = Mount::new();
    m.entry_of("key1", "x");
    let scoped = m.add_view("scoped", &["--key", "nokey", "--key", "key1"]);
    assert_eq!(names(&scoped), ["key1"]);
    assert_errno!(fs::symlink_metadata(scoped.join("nokey")), ENOENT);
}

/// The root lists every key, in pages, also while keys come and go.
#[test]
fn a_root_with_many_keys() {
    let m = Mount::new();
    for i in 0..1500 {
        mkdir(m.path(format!("draft-{i:05}")));
    }
    let dir = m.outside("dir");
    mkdir(&dir);
    for i in 0..30 {
        m.ok(&["put", &format!("sealed-{i:05}"), dir.to_str().expect("plain")]);
    }
    let mut list = fs::read_dir(m.mnt()).expect("opendir");
    let mut seen: Vec<_> = list.by_ref().take(5).map(|e| e.expect("an entry").file_name()).collect();
    m.evict("sealed-00007");
    // One that sorts before all others, and one behind them.
    mkdir(m.path("aaaa-new"));
    mkdir(m.path("zzzz-new"));
    seen.extend(list.map(|e| e.expect("an entry").file_name()));
    let total = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), total, "no key comes twice");
    let stays =
        seen.iter().filter(|n| !n.to_string_lossy().ends_with("-new") && *n != "sealed-00007").count();
    assert_eq!(stays, 1529, "no key that stays is left out");
    let count = sh("ls", &[&"-f", &m.mnt()]).lines().filter(|l| !l.starts_with('.')).count();
    assert_eq!(count, 1531);
}

/// What the kernel knows it lists without asking (decision 0026): no message for a directory, however many there are.
#[test]
fn known_listings_send_no_message() {
    let m = Mount::new();
    m.entry("key1", |out| {
        for i in 0..200 {
            mkdir(out.join(format!("d{i}")));
            (0..3).for_each(|j| write(out.join(format!("d{i}/f{j}")), "x"));
        }
    });
    let list = || sh("sh", &[&"-c", &"cd \"$0\" && find . && ls -lR .", &m.path("key1/outputs")]);
    let all = list();
    list();
    let answers = |n: usize| {
        let trace = Trace::attach(m.pid(), m.outside(&format!("trace{n}")));
        assert!(list() == all);
        let calls = trace.finish();
        calls.iter().filter(|l| l.contains("write") && l.contains("/dev/fuse")).count()
    };
    // Names of the top directory last a second; and of three times, since the kernel may be short of memory.
    let fewest = (0..3).map(answers).min().expect("three times");
    assert!(fewest < 20, "{fewest} messages");
}

/// No output data is read from the store before a reader asks for it.
#[test]
fn nothing_is_read_before_a_reader_asks() {
    let mut m = Mount::new();
    m.entry("key1", |out| {
        write(out.join("big"), noise(1, 2 << 20));
        (0..50).for_each(|i| write(out.join(format!("small{i}")), noise(100 + i, 2000)));
    });
    m.restart();
    let trace = Trace::attach(m.pid(), m.outside("trace"));
    assert_eq!(names(m.mnt()), ["key1"]);
    assert_eq!(sh("find", &[&m.path("key1"), &"-type", &"f", &"-size", &"+0"]).lines().count(), 54);
    sh("ls", &[&"-laR", &m.path("key1")]);
    sh("du", &[&"-s", &m.path("key1")]);
    assert!(xattr_text(m.path("key1/outputs/big"), "user.outfs.blake3").is_some());
    let before = data_reads(&trace.finish());
    assert!(before.is_empty(), "read before anybody asked: {before:#?}");

    let trace = Trace::attach(m.pid(), m.outside("trace2"));
    assert!(read(m.path("key1/outputs/small3")) == noise(103, 2000));
    let after = data_reads(&trace.finish());
    assert!(!after.is_empty(), "the trace would have shown it");
    let bytes: u64 = after.iter().filter_map(|l| l.rsplit("= ").next()?.parse::<u64>().ok()).sum();
    assert!(bytes < 64 << 10, "one small file was asked for, {bytes} bytes were read");
}

/// Reads of packs and blobs in a trace.
fn data_reads(calls: &[String]) -> Vec<String> {
    let reads =
        ["read(", "pread64(", "preadv(", "preadv2(", "readv(", "copy_file_range(", "splice(", "mmap("];
    calls
        .iter()
        .filter(|c| reads.iter().any(|r| c.contains(r)) && (c.contains("/packs/") || c.contains("/blobs/")))
        .cloned()
        .collect()
}

/// An ordinary user mounts through fusermount3, stores, reads and unmounts.
#[test]
fn an_ordinary_user() {
    need_root();
    need_fuse();
    for program in ["fusermount3", "setpriv", "unshare"] {
        need(program);
    }
    // /dev/fuse is for root alone on some machines; a private mount namespace and a device node of
    // its own show what an ordinary user's machine has.
    let dir = tempfile::Builder::new().prefix("outfs-test-").tempdir().expect("a temporary directory");
    let home = dir.path().canonicalize().expect("it exists");
    chmod(&home, 0o755).expect("chmod");
    for name in ["mnt", "both", "store"] {
        mkdir(home.join(name));
    }
    sh("chown", &[&"-R", &"65534:65534", &home]);
    let program = home.join("outfs");
    fs::copy(env!("CARGO_BIN_EXE_outfs"), &program).expect("a copy that everybody may run");
    chmod(&program, 0o755).expect("chmod");
    let script = r#"set -eu
mknod -m 666 "$H/fuse" c 10 229 && mount --bind "$H/fuse" /dev/fuse
exec setpriv --reuid=65534 --regid=65534 --clear-groups -- sh -euc '
cd "$H"
./outfs mount mnt --store store --size 4G
test "$(stat -c %u mnt)" = 65534
mkdir -p mnt/.outfs/work/w/outputs
echo hello >mnt/.outfs/work/w/outputs/f
mv -T mnt/.outfs/work/w mnt/key1
test "$(cat mnt/key1/outputs/f)" = hello
test "$(stat -c %u mnt/key1/outputs/f)" = 65534
if echo more 2>/dev/null >>mnt/key1/outputs/f; then exit 9; fi
mkdir mnt/.outfs/work/v && dd if=/dev/zero of=mnt/.outfs/work/v/big bs=64k count=32 2>/dev/null
mv -T mnt/.outfs/work/v mnt/key2
test "$(wc -c <mnt/key2/big)" = 2097152
mkdir mnt/.outfs/work/u
(umask 0222; dd if=/dev/zero of=mnt/.outfs/work/u/locked bs=1k seek=4 count=1 2>/dev/null)
test "$(stat -c %s:%a mnt/.outfs/work/u/locked)" = 5120:444
mkdir mnt/ab/cd/abcd1234 && mkdir mnt/ab/cd/abcd1234/outputs
echo alias >mnt/ab/cd/abcd1234/outputs/f
test "$(cat mnt/abcd1234/outputs/f)" = alias
cat mnt/.outfs/stats.json mnt/.outfs/metrics mnt/.outfs/events.jsonl >/dev/null && ls mnt/.outfs/by-task >/dev/null
cat "mnt/.outfs/blobs/$(getfattr --only-values -n user.outfs.blake3 mnt/key1/outputs/f 2>/dev/null)" | grep -q hello
# Whoever unmounts takes what he was asked for, and nothing that somebody mounts there meanwhile.
for who in 1 2 3; do
    (for n in $(seq 40); do ./outfs mount both --store store --read-only || true; done >/dev/null 2>>said) &
    (for n in $(seq 40); do ./outfs unmount both --store store || true; done >/dev/null 2>>said) &
done
wait $(jobs -p)
if grep "before it was ready" said; then exit 7; fi
grep -q "there is a mount already" said
./outfs unmount both --store store 2>/dev/null || true
./outfs unmount mnt --store store
if grep -q " $H/mnt " /proc/self/mountinfo; then exit 8; fi
./outfs ls --store store | grep -q key1
./outfs stop --store store || true
'"#;
    let mut c = Command::new("unshare");
    c.args(["-m", "sh", "-c", script]);
    c.env("H", &home).env("HOME", &home).env_remove("OUTFS_STORE").env_remove("XDG_CACHE_HOME");
    let out = c.output().expect("unshare starts");
    assert!(
        out.status.success(),
        "{}\n{}{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Two views move directories, each below the other, and one has seen only half of it.
#[test]
fn directories_that_changed_places_behind_a_view() {
    let mut m = Mount::new();
    let other = m.add_view("other", &[]);
    fs::create_dir_all(m.path("key1/a/b")).expect("mkdir");
    write(m.path("key1/a/b/f"), "content");
    let script = "cd \"$A/key1/a/b\" && mv \"$B/key1/a/b\" \"$B/key1/b\" && mv \"$B/key1/a\" \"$B/key1/b/a\" && \
                  { stat a; mkdir y; ls; cat f; cd \"$A/key1/b/a\"; } >/dev/null 2>&1; true";
    let (a, b) = (m.mnt().to_owned(), other.clone());
    within(SOON, "whoever stands in one of them", move || {
        Command::new("sh").args(["-c", script]).env("A", a).env("B", b).status()
    })
    .expect("sh starts");
    eventually("the new place is seen", || m.path("key1/b/a").is_dir());
    assert_eq!(read(m.path("key1/b/f")), b"content");
    write(m.path("key1/metadata.json"), METADATA);
    m.seal(&["key1"]);
    assert!(m.path("key1/b/a").is_dir());
    assert_eq!(read(other.join("key1/b/f")), b"content");
}

/// An overlay file system over `lower`, what is changed in a tmpfs.
fn overlay(lower: &Path, at: &Path) -> (Mounted, Mounted) {
    let changes = Mounted::tmpfs(&at.with_extension("changes"), "16M");
    let (upper, work) = (changes.0.join("upper"), changes.0.join("work"));
    [at, &upper, &work].into_iter().for_each(|dir| fs::create_dir(dir).expect("mkdir"));
    let layers =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    sh("mount", &[&"-t", &"overlay", &"overlay", &"-o", &layers, &at]);
    (Mounted(at.to_owned()), changes)
}

/// D13 A view that passes files through can lie below one overlay file system …; with `--passthrough off` it can
/// [lie below an overlay of an overlay].
#[test]
fn an_entry_below_overlays() {
    need_root();
    let mut m = Mount::new();
    m.entry("key1", |out| {
        write(out.join("large"), noise(31, 2 << 20));
        write(out.join("small"), "small");
    });
    for (name, args, levels) in
        [("v1", &["--read-only"][..], 1), ("v2", &["--read-only", "--passthrough", "off"], 2)]
    {
        let view = m.add_view(name, args);
        let (mut lower, mut over) = (view.join("key1/outputs"), Vec::new());
        for level in 0..levels {
            let at = m.outside(&format!("{name}-{level}"));
            over.push(overlay(&lower, &at));
            lower = at;
        }
        assert!(read(lower.join("large")) == noise(31, 2 << 20));
        let mut end = fs::OpenOptions::new().append(true).open(lower.join("large")).expect("it is copied up");
        std::io::Write::write_all(&mut end, b"more").expect("write");
        fs::remove_file(lower.join("small")).expect("unlink");
        assert_eq!((names(&lower), read(lower.join("large")).len()), (vec!["large".into()], (2 << 20) + 4));
        assert!(read(view.join("key1/outputs/large")) == noise(31, 2 << 20), "nothing reaches the entry");
        while let Some((overlay, changes)) = over.pop() {
            drop(overlay);
            drop(changes);
        }
    }
}

/// A look-up does not wait for the sealing of another key.
#[test]
fn lookups_go_on_while_another_key_is_published() {
    let m = Mount::new();
    m.entry_of("other", "x");
    let top = m.draft("w", |out| {
        for i in 0..1500u64 {
            write(out.join(format!("f{i}")), noise(i, 3000));
        }
        write(out.join("big"), noise(9999, 64 << 20));
    });
    let target = m.path("key1");
    let publish = std::thread::spawn(move || fs::rename(top, target));
    let mut slowest = Duration::ZERO;
    let mut n = 0u64;
    while !publish.is_finished() {
        let start = Instant::now();
        assert!(fs::symlink_metadata(m.path(format!("absent-{n}"))).is_err());
        assert!(fs::symlink_metadata(m.path("other/outputs/f")).is_ok());
        slowest = slowest.max(start.elapsed());
        n += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    publish.join().expect("no panic").expect("the publish succeeds");
    // The promise is 20 ms on an idle machine; a test machine is seldom idle.
    assert!(
        slowest < Duration::from_millis(500),
        "a look-up took {slowest:?} while another key was published"
    );
}

/// A view that is cut off while a file is open for writing leaves no writer behind in its draft.
#[test]
fn a_view_that_is_cut_off_has_no_writers() {
    need_fuse();
    need_root();
    let mut m = Mount::new();
    let other = m.add_view("other", &[]);
    mkdir(other.join("key1"));
    let open = fs::File::create(other.join("key1/f")).expect("create");
    let _ = Command::new("umount").arg("-f").arg(&other).output();
    drop(open);
    detach(&other);
    eventually("the draft is sealed", || m.code(&["seal", "key1"]) == 0);
}

/// A directory that is open in one view stays good when another view moves it.
#[test]
fn a_directory_moved_in_another_view() {
    need_fuse();
    let mut m = Mount::new();
    let other = m.add_view("other", &[]);
    mkdir(m.path("key1"));
    mkdir(m.path("key1/dir"));
    write(m.path("key1/dir/f"), "content");
    let dir = fs::File::open(other.join("key1/dir")).expect("open");
    assert_eq!(read(other.join("key1/dir/f")), b"content");
    fs::rename(m.path("key1/dir"), m.path("key1/moved")).expect("rename");
    assert!(dir.metadata().expect("stat").is_dir());
    let below = format!("/proc/self/fd/{}/f", dir.as_raw_fd());
    assert_eq!(read(below), b"content");
}

/// A file that another view has moved, and replaced at its old name, does not become the new one when
/// the draft is sealed.
#[test]
fn a_file_moved_in_another_view_stays_itself() {
    need_fuse();
    let mut m = Mount::new();
    let other = m.add_view("other", &[]);
    mkdir(m.path("key1"));
    write(m.path("key1/f"), "the old content");
    let file = fs::File::open(other.join("key1/f")).expect("open");
    fs::rename(m.path("key1/f"), m.path("key1/g")).expect("rename");
    write(m.path("key1/f"), "new");
    m.seal(&["key1"]);
    assert_eq!(file.metadata().expect("stat").len(), 15, "the open file is what it was");
    eventually("the other view shows what was sealed", || {
        read(other.join("key1/f")) == b"new" && read(other.join("key1/g")) == b"the old content"
    });
}

/// The same when that view is gone by then: what is open keeps its content, and the entry has its own.
#[test]
fn a_file_replaced_in_a_view_that_is_gone_stays_itself() {
    need_fuse();
    for passthrough in ["auto", "off"] {
        let mut m = Mount::with(&["--size", "4G", "--passthrough", passthrough]);
        let other = m.add_view("other", &["--passthrough", passthrough]);
        let top = m.draft("w", |out| write(out.join("f"), "the old content"));
        let file = fs::File::open(top.join("outputs/f")).expect("open");
        let there = other.join(".outfs/work/w/outputs");
        write(there.join("new"), "new");
        fs::rename(there.join("new"), there.join("f")).expect("rename");
        m.ok(&["unmount", other.to_str().expect("plain")]);
        fs::rename(&top, m.path("key1")).expect("publish");
        eventually("the entry has its own content", || read(m.path("key1/outputs/f")) == b"new");
        let mut old = String::new();
        std::io::Read::read_to_string(&mut &file, &mut old).expect("read");
        assert_eq!(old, "the old content", "{passthrough}");
        assert_eq!(read(m.path("key1/outputs/f")), b"new", "{passthrough}");
        m.terminate();
    }
}

/// A publish waits up to a second for writers; an fsync that comes meanwhile does not wait for it, nor does a large copy.
#[test]
fn an_fsync_waits_for_no_publish() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let m = Mount::new();
    let other = m.draft("other", |_| {});
    let synced = File::create(other.join("outputs/f")).expect("a file");
    synced.set_len(8 << 20).expect("a large file");
    let copy = || fs::copy(other.join("outputs/f"), other.join("outputs/copy")).expect("a copy");
    let round = |n: usize| {
        let drafts: Vec<_> = (0..4).map(|i| m.draft(&format!("w{n}-{i}"), |_| {})).collect();
        let _writers: Vec<_> = drafts.iter().map(|d| File::create(d.join("outputs/open"))).collect();
        let ended = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for (i, draft) in drafts.iter().enumerate() {
                let (ended, key) = (&ended, m.path(format!("key{n}-{i}")));
                s.spawn(move || {
                    let refused = fs::rename(draft, key).expect_err("it is being written to");
                    assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
                    ended.fetch_add(1, Ordering::SeqCst);
                });
            }
            let begun = Instant::now();
            while ended.load(Ordering::SeqCst) == 0 {
                // By then they all wait.
                let late = begun.elapsed() > Duration::from_millis(300);
                synced.sync_all().expect("fsync");
                assert_eq!(copy(), 8 << 20);
                if late && ended.load(Ordering::SeqCst) == 0 {
                    return true;
                }
            }
            false
        })
    };
    assert!((0..20).any(round), "each fsync waited for a publish");
}

/// Nor does a look-up of a name that nobody has asked for yet, when one more is published than there are threads for that.
#[test]
fn a_lookup_waits_for_no_publish_that_waits_for_others() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let m = Mount::new();
    let round = |n: usize| {
        let drafts: Vec<_> = (0..4).map(|i| m.draft(&format!("w{n}-{i}"), |_| {})).collect();
        let _writers: Vec<_> = drafts.iter().map(|d| File::create(d.join("outputs/open"))).collect();
        let small = m.draft(&format!("s{n}"), |_| {});
        let ended = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for (i, draft) in drafts.iter().enumerate() {
                let (ended, key) = (&ended, m.path(format!("key{n}-{i}")));
                s.spawn(move || {
                    fs::rename(draft, key).expect_err("it is being written to");
                    ended.fetch_add(1, Ordering::SeqCst);
                });
            }
            let begun = Instant::now();
            let (mut fifth, mut longest) = (false, Duration::ZERO);
            while ended.load(Ordering::SeqCst) == 0 {
                // By then they all wait.
                if begun.elapsed() > Duration::from_millis(200) && !fifth {
                    let key = m.path(format!("key{n}-small"));
                    s.spawn(|| fs::rename(&small, key).expect("publish"));
                    fifth = true;
                }
                let asked = Instant::now();
                let _ = m.path(format!("absent{n}-{}", begun.elapsed().as_nanos())).symlink_metadata();
                longest = longest.max(asked.elapsed());
            }
            longest
        })
    };
    let longest = (0..5).map(round).min().expect("five rounds");
    assert!(
        longest < Duration::from_millis(400),
        "each time a look-up waited for a publish, at least {longest:?}"
    );
}

/// What is sealed under a key is seen there, also where somebody has begun a draft in its place: that goes on among the work.
#[test]
fn what_is_sealed_is_not_hidden_by_a_draft() {
    need_fuse();
    let m = Mount::new();
    let key = m.path("key1");
    mkdir(&key);
    mkdir(key.join("outputs"));
    write(key.join("outputs/f"), "partial");
    let own = fs::File::open(&key).expect("open");
    let dir = m.outside("whole");
    mkdir(&dir);
    write(dir.join("f"), "whole");
    m.ok(&["put", "key1", dir.to_str().expect("plain")]);
    eventually("the entry is seen", || fs::read(key.join("outputs/f")).is_ok_and(|b| b == b"whole"));
    assert_eq!(names(m.mnt()), ["key1"]);
    // Its maker finds it by what he has open, and everybody by its id.
    let below = format!("/proc/self/fd/{}/outputs", own.as_raw_fd());
    assert_eq!(read(format!("{below}/f")), b"partial");
    write(format!("{below}/more"), "more");
    let ids = names(m.path(".outfs/work"));
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(names(m.path(".outfs/work").join(&ids[0]).join("outputs")), ["f", "more"]);
}

/// … also by one that was begun while it was published: who publishes is told so, and finds it.
#[test]
fn what_is_published_is_not_hidden_by_a_draft() {
    need_fuse();
    let m = Mount::new();
    let begun = (0..20).filter(|n| {
        let key = m.path(format!("key{n}"));
        let top = m.draft("w", |out| {
            for i in 0..50 {
                write(out.join(format!("f{i}")), format!("{n} {i}"));
            }
        });
        std::thread::scope(|s| {
            let begins = s.spawn(|| fs::create_dir(&key).is_ok());
            let published = fs::rename(&top, &key);
            let begun = begins.join().expect("no panic");
            let both = published.is_ok() && begun;
            match published {
                Ok(()) => eventually("the entry is seen", || {
                    fs::read(key.join("outputs/f7")).is_ok_and(|b| b == format!("{n} 7").into_bytes())
                }),
                // It was begun before.
                Err(e) => {
                    assert!(begun && top.join("outputs/f7").exists(), "{e}");
                    fs::remove_dir_all(&top).expect("rm");
                }
            }
            both
        })
    });
    assert!(begun.count() > 0, "none was begun while another was published");
}
