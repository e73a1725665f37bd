//! What a hostile task leaves behind: links, devices, names and metadata that are meant to hurt whoever comes upon them.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Output;

use crate::common::{Mount, chmod, mkdir, names, need_root, read, write};

/// What a hostile task leaves is stored as it is, and followed by nobody.
#[test]
fn a_draft_full_of_traps() {
    let m = Mount::new();
    let secret = m.outside("secret");
    write(&secret, "not the task's");
    let deep = (0..300).map(|_| "d").collect::<Vec<_>>().join("/");
    let escape = std::ffi::OsStr::from_bytes(b"\x1b[31mred\x1b[0m\nline\xff");
    let entry = m.entry("key-traps", |out| {
        symlink(&secret, out.join("absolute")).expect("a symlink");
        symlink("../../../../../../../../etc/passwd", out.join("upwards")).expect("a symlink");
        symlink("loop", out.join("loop")).expect("a symlink");
        symlink("/", out.join("root")).expect("a symlink");
        assert_errno!(fs::hard_link(&secret, out.join("stolen")), EXDEV);
        write(out.join("twice"), "two names");
        fs::hard_link(out.join("twice"), out.join("twice-again")).expect("a hard link");
        fs::create_dir_all(out.join(&deep)).expect("deep directories");
        write(out.join(&deep).join("bottom"), "deep");
        write(out.join(escape), "strange name");
        write(out.join("privileged"), "#!/bin/sh\n");
        chmod(out.join("privileged"), 0o6755).expect("chmod");
    });
    let privileged = fs::metadata(entry.join("outputs/privileged")).expect("it is there");
    assert_eq!(privileged.permissions().mode() & 0o7777, 0o555, "without its set-id bits");
    assert_eq!(read(entry.join("outputs").join(&deep).join("bottom")), b"deep");

    let twice =
        ["twice", "twice-again"].map(|n| fs::metadata(entry.join("outputs").join(n)).expect("it is there"));
    assert_eq!(twice[0].ino(), twice[1].ino(), "one file");
    assert_eq!(twice[0].nlink(), 2, "as many names as in the draft");

    let listed = m.run(&["ls", "-R", "key-traps"]);
    assert!(listed.status.success());
    assert!(!listed.stdout.contains(&0x1b), "no terminal is told anything by a name");

    // Restored, links are links: nothing outside is read or written.
    let dest = m.outside("dest");
    m.ok(&["restore", "key-traps", dest.to_str().expect("a temporary path is text")]);
    assert_eq!(fs::read_link(dest.join("absolute")).expect("a link"), secret);
    assert_eq!(read(dest.join(escape)), b"strange name");
    assert_eq!(read(dest.join(&deep).join("bottom")), b"deep");
    assert_eq!(read(&secret), b"not the task's");
}

/// Restoring goes through no symlink that stands in the destination.
#[test]
fn a_destination_full_of_symlinks() {
    let m = Mount::new();
    m.entry("key-tree", |out| {
        mkdir(out.join("dir"));
        write(out.join("dir/file"), "restored");
        write(out.join("plain"), "restored");
    });
    let (dest, victim) = (m.outside("dest"), m.outside("victim"));
    mkdir(&dest);
    mkdir(&victim);
    write(victim.join("plain"), "victim's");
    symlink(&victim, dest.join("dir")).expect("a symlink");
    symlink(victim.join("plain"), dest.join("plain")).expect("a symlink");
    let dest_text = dest.to_str().expect("a temporary path is text");
    let intact = |when: &str| {
        assert_eq!(read(victim.join("plain")), b"victim's", "{when}");
        assert_eq!(names(&victim), ["plain"], "{when}");
    };
    let refused = m.run(&["restore", "key-tree", dest_text]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("exists and differs; use --force"), "{said}");
    assert_eq!(fs::read_link(dest.join("dir")).expect("it is still a link"), victim);
    assert_eq!(fs::read_link(dest.join("plain")).expect("it is still a link"), victim.join("plain"));
    intact("without --force");

    m.ok(&["restore", "key-tree", dest_text, "--force"]);
    // The links are gone: what stands in their places is the entry's own.
    assert!(fs::symlink_metadata(dest.join("dir")).expect("it is there").is_dir());
    assert!(fs::symlink_metadata(dest.join("plain")).expect("it is there").is_file());
    assert_eq!(read(dest.join("dir/file")), b"restored");
    assert_eq!(read(dest.join("plain")), b"restored");
    intact("with --force");
}

/// What is no file, directory or symlink may stand in a draft. It is not sealed then, and who seals is told where, in
/// words that a terminal can bear.
#[test]
fn devices_fifos_and_sockets_are_refused_by_name() {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    need_root();
    let m = Mount::new();
    let node = |kind: SFlag| move |at: &Path| mknod(at, kind, Mode::S_IRWXU, makedev(1, 3)).expect("mknod");
    let socket = |at: &Path| {
        // The address of a socket has 107 bytes at most.
        let dir = fs::File::open(at.parent().expect("a directory")).expect("open");
        let name = at.file_name().expect("a name").to_str().expect("text");
        UnixListener::bind(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd())).expect("bind");
    };
    type Make<'a> = &'a dyn Fn(&Path);
    let makers: [(&str, Make); 5] = [
        ("socket", &socket),
        ("fifo", &node(SFlag::S_IFIFO)),
        ("device", &node(SFlag::S_IFCHR)),
        ("device", &node(SFlag::S_IFBLK)),
        ("socket", &node(SFlag::S_IFSOCK)),
    ];
    for (n, (what, make)) in makers.into_iter().enumerate() {
        let key = format!("key-{n}");
        let draft = m.draft(&key, |out| write(out.join("f"), "x"));
        let at = draft.join("outputs/\u{1b}[31mtrap");
        make(&at);
        assert_errno!(fs::rename(&draft, m.path(&key)), EOPNOTSUPP);
        let refused = m.run(&["seal", &key, &key]);
        assert_eq!(refused.status.code(), Some(1), "{what}");
        bearable(&refused, "seal");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("outputs/\\u{1b}[31mtrap is a ") && said.contains(what), "{what}: {said}");
        fs::remove_file(&at).expect("unlink");
        fs::rename(&draft, m.path(&key)).expect("without it, it can be sealed");
        assert_eq!(names(m.path(&key).join("outputs")), ["f"]);
    }
}

/// Nothing that moves a cursor, colours, rings or hides, in what a command says.
#[track_caller]
fn bearable(output: &Output, what: &str) {
    for said in [&output.stdout, &output.stderr] {
        let said = std::str::from_utf8(said).unwrap_or_else(|e| panic!("{what}: {e}"));
        let hides = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let bad = said.chars().find(|c| (c.is_control() && !matches!(c, '\n' | '\t')) || hides(*c));
        assert_eq!(bad, None, "{what}: {said}");
    }
}

/// Metadata are a client's, and may say anything: no command hands that to a terminal.
#[test]
fn metadata_that_would_command_a_terminal() {
    // Colours, a title, the bell, a carriage return, a C1 control sequence, text from right to left.
    const EVIL: &str = "\u{1b}[2Jgone\u{1b}]0;title\u{7}\r\u{9b}31m\u{202e}txt";
    let m = Mount::new();
    let metadata = |digest: &str| {
        serde_json::json!({
            "task_id": EVIL, "digest": digest, "command": [EVIL, EVIL], "created_at": "2026-01-02T03:04:05Z",
            "duration_ms": 1, "exit_code": 0, "env": { EVIL: EVIL }, EVIL: EVIL,
        })
    };
    for key in ["key-evil", "key-again"] {
        let draft = m.draft(key, |out| {
            write(out.join(EVIL.replace('/', "")), "x");
            write(out.join("f"), key);
        });
        write(draft.join("metadata.json"), metadata(key).to_string());
        write(draft.join("logs/stdout.log"), "out\n");
        fs::rename(&draft, m.path(key)).expect("seal");
    }
    // A result that differs, pins and rejections in such words, a draft of such a name that cannot be sealed.
    let refused = m.run(&["seal", EVIL, "key-evil"]);
    bearable(&refused, "seal of no draft");
    let draft = m.draft(EVIL, |out| write(out.join(EVIL), "other"));
    for said in [m.run(&["seal", EVIL, "key-evil"]), m.run(&["pin", "key-evil", "--name", EVIL])] {
        bearable(&said, "seal and pin");
    }
    assert!(draft.exists(), "what differs is not sealed");
    m.ok(&["pin", "key-evil", "--name", "plain"]);
    bearable(&m.run(&["evict", "key-evil"]), "evict of what is pinned");
    m.ok(&["reject", "key-again", "--reason", EVIL]);
    let commands: [&[&str]; 12] = [
        &["ls"],
        &["ls", "-l"],
        &["ls", "-R", "key-evil"],
        &["show", "key-evil"],
        &["show", "key-again"],
        &["events"],
        &["why", EVIL],
        &["why", "key-evil"],
        &["drafts"],
        &["pin"],
        &["du", "key-evil"],
        &["diff", "key-evil", "key-again"],
    ];
    for args in commands {
        for more in [&[][..], &["--json"]] {
            bearable(&m.run(&[args, more].concat()), &format!("{args:?} {more:?}"));
        }
    }
    // They were not refused for some other reason.
    for args in [&["ls", "-l"][..], &["show", "key-evil"], &["drafts"], &["events"]] {
        assert!(m.ok(args).contains("\\u{1b}["), "{args:?} shows it, harmless");
    }
    assert!(m.ok(&["show", "key-evil", "--json"]).contains("\\u001b["), "JSON keeps it");
}
