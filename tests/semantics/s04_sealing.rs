//! Semantics 4: the gestures that seal.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use crate::common::*;

/// S4.1 Renaming a work draft onto a free key seals it: `mv -T MNT/.outfs/work/NAME MNT/KEY`.
#[test]
fn s4_1_renaming_a_work_draft_seals() {
    let m = Mount::new();
    let top = m.draft("w", |out| write(out.join("f"), "x"));
    sh("mv", &[&"-T", &top, &m.path("key1")]);
    assert!(m.is_sealed("key1"));
    assert_eq!(names(m.mnt()), ["key1"]);
    assert_eq!(names(m.path(".outfs/work")), [""; 0]);
    assert_eq!(read(m.path("key1/outputs/f")), b"x");
    assert_eq!(xattr_text(m.path("key1"), "user.outfs.key").as_deref(), Some("key1"));
    assert!(m.has_event("sealed", "key1"));
    let moved = m.draft("v", |out| write(out.join("f"), "x"));
    fs::rename(&moved, m.work("other")).expect("a work draft may get another name");
    assert_eq!(names(m.path(".outfs/work")), ["other"]);
}

/// S4.2 `outfs seal` seals …
#[test]
fn s4_2_outfs_seal() {
    let m = Mount::new();
    mkdir(m.path("key1"));
    fill_entry(&m.path("key1"), |out| write(out.join("f"), "x"));
    m.seal(&["key1"]);
    assert!(m.is_sealed("key1"));
    m.draft("w", |out| write(out.join("f"), "y"));
    m.seal(&["w", "key2"]);
    assert!(m.is_sealed("key2"));
    assert_eq!(read(m.path("key2/outputs/f")), b"y");
    assert_ne!(m.code(&["seal", "no-such-draft"]), 0);
}

/// S4.2 … so does `chmod a-w` on a draft's top directory, once its `metadata.json` parses. Before that
/// it is a plain chmod.
#[test]
fn s4_2_chmod_seals_when_the_metadata_parses() {
    let m = Mount::new();
    mkdir(m.path("key1"));
    mkdir(m.path("key1/outputs"));
    write(m.path("key1/outputs/f"), "x");
    chmod(m.path("key1"), 0o555).expect("a plain chmod");
    assert!(!m.is_sealed("key1"), "there is no metadata.json");
    chmod(m.path("key1"), 0o755).expect("a plain chmod");
    write(m.path("key1/metadata.json"), "{ not yet");
    chmod(m.path("key1"), 0o555).expect("a plain chmod");
    assert!(!m.is_sealed("key1"), "metadata.json does not parse");
    chmod(m.path("key1"), 0o755).expect("a plain chmod");
    write(m.path("key1/metadata.json"), METADATA);
    chmod(m.path("key1/outputs"), 0o555).expect("a plain chmod below the top");
    assert!(!m.is_sealed("key1"));
    sh("chmod", &[&"a-w", &m.path("key1")]);
    assert!(m.is_sealed("key1"));
    assert_eq!(read(m.path("key1/outputs/f")), b"x");
}

/// S4.3 A view mounted with `--seal-quiet` seals an in-place draft whose metadata parses, which has no
/// writer and in which nothing has changed for that long …
#[test]
fn s4_3_sealed_by_quiet() {
    let m = Mount::with(&["--size", "4G", "--seal-quiet", "400ms"]);
    mkdir(m.path("no-metadata"));
    write(m.path("no-metadata/f"), "x");
    mkdir(m.path("with-writer"));
    fill_entry(&m.path("with-writer"), |_| {});
    let writer = File::create(m.path("with-writer/outputs/w")).expect("create");
    m.draft("private", |_| {});
    mkdir(m.path("quiet-key"));
    let start = Instant::now();
    fill_entry(&m.path("quiet-key"), |out| write(out.join("f"), "x"));
    eventually("the quiet seal", || m.is_sealed("quiet-key"));
    assert!(start.elapsed() >= Duration::from_millis(400), "sealed after {:?}", start.elapsed());
    assert!(!m.is_sealed("no-metadata"), "its metadata does not parse");
    assert!(!m.is_sealed("with-writer"), "it has a writer");
    assert_eq!(names(m.path(".outfs/work")), ["private"], "only drafts in place are sealed by quiet");
    drop(writer);
    eventually("the quiet seal after the writer has gone", || m.is_sealed("with-writer"));
}

/// S4.3 … and one that could not be sealed as soon as it has become one that can.
#[test]
fn s4_3_what_was_in_the_way_of_a_quiet_seal() {
    let m = Mount::with(&["--size", "4G", "--seal-quiet", "200ms"]);
    mkdir(m.path("key1"));
    let socket = m.path("key1/socket");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    fill_entry(&m.path("key1"), |_| {});
    eventually("the refusal", || m.log_text().contains("not sealed by quiet"));
    assert!(!m.is_sealed("key1"));
    fs::remove_file(&socket).expect("remove");
    eventually("the quiet seal", || m.is_sealed("key1"));
}

/// S4.3 … nor one that somebody changed who then did not end well, also if he only moved or removed names.
#[test]
fn s4_3_whoever_moves_names_counts_too() {
    let m = Mount::with(&["--size", "4G", "--seal-quiet", "400ms"]);
    let killed = |key: &str, code: &str| {
        mkdir(m.path(key));
        fill_entry(&m.path(key), |out| write(out.join("a.tmp"), "a"));
        // Until that is over, nothing is quiet, however long it takes.
        let writer = File::create(m.path(key).join("outputs/w")).expect("create");
        let code = format!("import os; {code}; os.kill(os.getpid(), 9)");
        let mut python = std::process::Command::new("python3");
        let status = python.args(["-c", &code]).current_dir(m.path(key).join("outputs")).status();
        assert_eq!(status.expect("python3 starts").signal(), Some(libc::SIGKILL), "{code}");
        drop(writer);
    };
    for (key, code) in [
        ("renamed", "os.rename('a.tmp', 'a')"),
        ("removed", "os.unlink('a.tmp')"),
        ("linked", "os.link('a.tmp', 'a')"),
        ("chmoded", "os.chmod('a.tmp', 0o755)"),
        ("shortened", "os.truncate('a.tmp', 0)"),
    ] {
        killed(key, code);
    }
    mkdir(m.path("whole"));
    fill_entry(&m.path("whole"), |_| {});
    eventually("the quiet seal of what was made later", || m.is_sealed("whole"));
    for key in ["renamed", "removed", "linked", "chmoded", "shortened"] {
        assert!(!m.is_sealed(key), "{key}");
    }
}

/// S4.3 … only in a view that is mounted with it.
#[test]
fn s4_3_no_quiet_seal_unless_asked_for() {
    let plain = Mount::new();
    mkdir(plain.path("key1"));
    fill_entry(&plain.path("key1"), |_| {});
    // Another daemon is the clock: when it has sealed what was written later, the time was long enough.
    let quiet = Mount::with(&["--size", "4G", "--seal-quiet", "200ms"]);
    mkdir(quiet.path("key2"));
    fill_entry(&quiet.path("key2"), |_| {});
    eventually("the quiet seal", || quiet.is_sealed("key2"));
    assert!(!plain.is_sealed("key1"));
}

/// S4.3 … never a draft recovered after the daemon's death.
#[test]
fn s4_3_a_recovered_draft_is_not_sealed_by_quiet() {
    let mut m = Mount::new();
    mkdir(m.path("recovered"));
    fill_entry(&m.path("recovered"), |out| write(out.join("f"), "x"));
    m.kill9();
    detach(m.mnt());
    m.start();
    m.restart_with(&["--size", "4G", "--seal-quiet", "200ms"]);
    mkdir(m.path("fresh"));
    fill_entry(&m.path("fresh"), |_| {});
    eventually("the quiet seal of the fresh draft", || m.is_sealed("fresh"));
    assert!(!m.is_sealed("recovered"));
    m.seal(&["recovered"]);
    assert!(m.is_sealed("recovered"), "an explicit seal is possible");
}

/// S4.4 A quietly sealed entry is *inferred*: it is marked so, and a later store replaces it.
#[test]
fn s4_4_inferred_entries_are_replaced() {
    let m = Mount::with(&["--size", "4G", "--seal-quiet", "200ms"]);
    mkdir(m.path("key1"));
    fill_entry(&m.path("key1"), |out| write(out.join("f"), "inferred"));
    eventually("the quiet seal", || m.is_sealed("key1"));
    let shown = m.json(&["show", "key1"]);
    assert!(shown.to_string().contains(r#""inferred":true"#), "{shown}");
    let dir = m.outside("dir");
    mkdir(&dir);
    write(dir.join("f"), "stored");
    m.ok(&["put", "key1", dir.to_str().expect("plain")]);
    eventually("the stored result in the view", || {
        fs::read(m.path("key1/outputs/f")).is_ok_and(|b| b == b"stored")
    });
    let shown = m.json(&["show", "key1"]);
    assert!(shown.to_string().contains(r#""inferred":false"#), "{shown}");
}

/// S4.5 A gesture on a draft with open writers gets EBUSY, within a second.
#[test]
fn s4_5_busy_while_somebody_writes() {
    for passthrough in ["auto", "off"] {
        let m = Mount::with(&["--size", "4G", "--passthrough", passthrough]);
        let top = m.draft("w", |out| write(out.join("f"), "x"));
        mkdir(m.path("key2"));
        fill_entry(&m.path("key2"), |out| write(out.join("f"), "x"));
        let one = OpenOptions::new().append(true).open(top.join("outputs/f")).expect("open");
        let two = OpenOptions::new().write(true).open(m.path("key2/outputs/f")).expect("open");
        // Of three times, since a test machine may be busy.
        let soonest = |gesture: &dyn Fn() -> io::Result<()>| {
            let took = (0..3).map(|_| {
                let start = Instant::now();
                assert_errno!(gesture(), EBUSY);
                start.elapsed()
            });
            took.min().expect("three times")
        };
        let took = soonest(&|| fs::rename(&top, m.path("key1")));
        assert!(took < Duration::from_millis(1500), "{took:?}");
        let took = soonest(&|| chmod(m.path("key2"), 0o555));
        assert!(took < Duration::from_millis(1500), "{took:?}");
        let out = m.run(&["seal", "key2"]);
        assert_eq!(out.status.code(), Some(1));
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(said.contains("outputs/f"), "the message names the file: {said}");
        drop((one, two));
        fs::rename(&top, m.path("key1")).expect("sealing works once the writer has gone");
        chmod(m.path("key2"), 0o555).expect("sealing works once the writer has gone");
        assert!(m.is_sealed("key1") && m.is_sealed("key2"));
    }
}

/// S4.6 When a gesture returns, the entry is durable: it survives kill -9 … whole.
#[test]
fn s4_6_a_sealed_entry_survives_kill_9() {
    let mut m = Mount::new();
    let content = noise(7, 2 << 20);
    m.entry("key1", |out| {
        write(out.join("big"), &content);
        write(out.join("small"), "small");
    });
    m.kill9();
    m.start();
    assert!(m.is_sealed("key1"), "the stale mount was taken over");
    assert!(read(m.path("key1/outputs/big")) == content);
    assert_eq!(read(m.path("key1/outputs/small")), b"small");
    assert_eq!(m.code(&["fsck", "--verify-data"]), 0);
}

/// S4.6 "whole": each of many seals that were reported is there after the kill, and nothing half.
#[test]
fn s4_6_kill_9_during_a_busy_ingest() {
    let mut m = Mount::new();
    for round in 0..3u64 {
        let reported = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let workers: Vec<_> = (0..3u64)
            .map(|w| {
                let (mnt, reported) = (m.mnt().to_owned(), reported.clone());
                std::thread::spawn(move || {
                    for i in 0.. {
                        let key = format!("key-{round}-{w}-{i}");
                        let top = mnt.join(".outfs/work").join(&key);
                        let done = fs::create_dir(&top)
                            .and_then(|()| fs::create_dir(top.join("outputs")))
                            .and_then(|()| fs::write(top.join("outputs/f"), noise(w * 1000 + i, 300_000)))
                            .and_then(|()| fs::write(top.join("outputs/s"), key.as_bytes()))
                            .and_then(|()| fs::write(top.join("metadata.json"), METADATA))
                            .and_then(|()| fs::rename(&top, mnt.join(&key)));
                        match done {
                            Ok(()) => reported.lock().expect("no panics").push((key, w * 1000 + i)),
                            Err(_) => return,
                        }
                    }
                })
            })
            .collect();
        eventually("some seals", || reported.lock().expect("no panics").len() >= 4 + round as usize);
        m.kill9();
        detach(m.mnt());
        workers.into_iter().for_each(|w| w.join().expect("a worker ends with the mount"));
        m.start();
        for (key, seed) in reported.lock().expect("no panics").iter() {
            assert!(m.is_sealed(key), "{key} was reported sealed");
            assert!(read(m.path(key).join("outputs/f")) == noise(*seed, 300_000), "{key}");
            assert_eq!(read(m.path(key).join("outputs/s")), key.as_bytes());
        }
        assert_eq!(m.code(&["fsck", "--verify-data"]), 0, "after round {round}");
    }
}

/// S4.7 Before that it is a draft, and a draft survives the daemon's death.
#[test]
fn s4_7_drafts_survive_the_daemon() {
    let mut m = Mount::new();
    mkdir(m.path("key1"));
    write(m.path("key1/f"), "in place");
    m.draft("work name", |out| write(out.join("f"), noise(8, 400_000)));
    m.kill9();
    m.start();
    assert_eq!(names(m.mnt()), ["key1"]);
    assert_eq!(read(m.path("key1/f")), b"in place");
    assert!(!m.is_sealed("key1"));
    assert!(read(m.work("work name").join("outputs/f")) == noise(8, 400_000));
    write(m.path("key1/g"), "goes on");
    fs::rename(m.work("work name"), m.path("key2")).expect("a recovered draft can be sealed");
    m.restart();
    assert_eq!(read(m.path("key1/g")), b"goes on", "a clean stop keeps drafts too");
    assert!(m.is_sealed("key2"));
}

/// S4.8 A draft idle for longer than `--draft-ttl` counts as abandoned and goes.
#[test]
fn s4_8_abandoned_drafts_go() {
    let mut m = Mount::new();
    mkdir(m.path("key1"));
    m.draft("w", |_| {});
    m.entry_of("key2", "x");
    m.restart_with(&["--size", "4G", "--draft-ttl", "1s"]);
    eventually("the idle drafts to go", || {
        fs::symlink_metadata(m.path("key1")).is_err() && names(m.path(".outfs/work")).is_empty()
    });
    assert!(m.is_sealed("key2"));
    assert!(m.events().iter().any(|e| e["event"] == "draft_dropped"));
}

/// S4.1 What cannot be stored is refused, naming it, and the draft stays.
#[test]
fn s4_1_special_files_are_refused() {
    let m = Mount::new();
    let top = m.draft("w", |out| {
        nix::unistd::mkfifo(&out.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    });
    assert_errno!(fs::rename(&top, m.path("key1")), EOPNOTSUPP);
    assert!(m.log_text().contains("outputs/pipe is a fifo"), "the log names it: {}", m.log_text());
    let out = m.run(&["seal", "w", "key1"]);
    assert_eq!(out.status.code(), Some(1));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("outputs/pipe") && said.contains("fifo"), "{said}");
    fs::remove_file(top.join("outputs/pipe")).expect("unlink");
    fs::rename(&top, m.path("key1")).expect("seal");
}

/// S4.2 A draft that has a key is sealed by it, also when a work draft is called the same.
#[test]
fn s4_2_a_work_draft_of_a_keys_name_is_not_in_the_way() {
    let m = Mount::new();
    mkdir(m.work("key1"));
    mkdir(m.path("key1"));
    write(m.path("key1/f"), "in place");
    m.seal(&["key1"]);
    assert_eq!(read(m.path("key1/f")), b"in place");
    assert!(m.work("key1").exists(), "the work draft is left alone");
    m.seal(&["key1", "key2"]);
    assert!(m.path("key2").exists() && !m.work("key1").exists(), "with a key the name is a work draft's");
}
