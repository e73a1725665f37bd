//! Who may do what, and tasks that write what no task should: a second user on a shared mount, and drafts full of
//! traps.
//!
//! Must not know: the crate's inside.

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use common::{Mount, chmod, mkdir, need_root, read, write};

/// `nobody`.
const STRANGER: u32 = 65534;

/// A mount that others may enter, down to it.
fn shared() -> Mount {
    need_root();
    let m = Mount::with(&["--size", "4G", "--allow-other"]);
    for dir in m.mnt().ancestors().skip(1).take_while(|dir| dir.starts_with(m.outside(""))) {
        chmod(dir, 0o755).expect("chmod");
    }
    m
}

/// Runs a shell script as the stranger.
fn stranger(script: &str, args: &[&Path]) -> Output {
    let mut c = Command::new("sh");
    c.arg("-c").arg(script).arg("stranger").args(args).uid(STRANGER).gid(STRANGER).current_dir("/");
    c.output().expect("sh starts")
}

#[track_caller]
fn may(script: &str, args: &[&Path]) {
    let out = stranger(script, args);
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
}

#[track_caller]
fn may_not(script: &str, args: &[&Path]) {
    let out = stranger(script, args);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success(), "{script} was done");
    let reasons = ["Permission denied", "Operation not permitted", "ermission", "only the store's owner"];
    assert!(reasons.iter().any(|r| said.contains(r)), "{script}: {said}");
}

#[test]
fn a_stranger_on_a_shared_mount_has_the_rights_that_the_modes_say() {
    let m = shared();
    let sealed = m.entry("key-sealed", |out| {
        write(out.join("open"), "for all");
        write(out.join("secret"), "for its owner");
        chmod(out.join("secret"), 0o600).expect("chmod");
    });
    may("cat \"$1\"/outputs/open", &[&sealed]);
    may_not("cat \"$1\"/outputs/secret", &[&sealed]);

    let mnt = m.mnt();
    may_not("mkdir \"$1\"/key-strange", &[mnt]);
    may_not("mkdir \"$1\"/.outfs/work/strange", &[mnt]);
    may_not("mv \"$1\"/key-sealed \"$1\"/.outfs/trash/", &[mnt]);
    assert!(m.is_sealed("key-sealed"));

    let draft = m.path("key-draft");
    mkdir(&draft);
    write(draft.join("mine"), "root's");
    write(draft.join("metadata.json"), "{}");
    mkdir(draft.join("common"));
    chmod(draft.join("common"), 0o1777).expect("chmod");
    write(draft.join("common/mine"), "root's");
    may("cat \"$1\"/mine >/dev/null", &[&draft]);
    may_not("echo more >>\"$1\"/mine", &[&draft]);
    may_not("rm -f \"$1\"/mine", &[&draft]);
    may_not("chmod a-w \"$1\"", &[&draft]);
    may_not("mv \"$1\" \"$2\"/.outfs/trash/", &[&draft, mnt]);
    may("umask 077; echo strange >\"$1\"/common/file", &[&draft]);
    may_not("rm -f \"$1\"/common/mine", &[&draft]);
    let made = fs::metadata(draft.join("common/file")).expect("it was made");
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o777), (STRANGER, STRANGER, 0o600), "its maker's");
}

#[test]
fn a_stranger_cannot_command_the_daemon() {
    let m = shared();
    m.entry_of("key-sealed", "content");
    let program = m.outside("outfs-for-all");
    // Not by this process: a test beside this one could be forking while the copy is open for writing.
    common::sh("cp", &[&env!("CARGO_BIN_EXE_outfs"), &program]);
    chmod(&program, 0o755).expect("chmod");
    // It is not said that there is no store or no daemon.
    for command in ["ls", "fsck", "status", "stop", "put key-strange /etc/skel"] {
        may_not(&format!("\"$1\" --store \"$2\" {command}"), &[&program, m.store()]);
    }
    // Even where the store's own protection was taken away.
    chmod(m.store(), 0o777).expect("chmod");
    chmod(m.store().join("control.sock"), 0o777).expect("chmod");
    for command in [
        "evict key-sealed",
        "pin key-sealed",
        "seal key-sealed",
        "reject key-sealed --reason x",
        "gc",
        "stop",
    ] {
        may_not(&format!("\"$1\" --store \"$2\" {command}"), &[&program, m.store()]);
    }
    assert!(m.is_sealed("key-sealed"), "the daemon runs and has the entry");
}

/// The store's directory keeps others out; so does every file in it, should it be opened one day.
#[test]
fn nothing_in_a_store_is_writable_by_others() {
    let mut m = Mount::new();
    m.entry_of("key-sealed", "content");
    m.kill9();
    m.start();
    assert_eq!(fs::metadata(m.store()).expect("the store").mode() & 0o777, 0o700);
    for file in common::files_below(m.store()) {
        // The daemon makes and removes files meanwhile.
        let Ok(mode) = fs::symlink_metadata(&file).map(|m| m.mode()) else { continue };
        assert_eq!(mode & 0o022, 0, "{}: {mode:o}", file.display());
    }
}

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
        fs::create_dir_all(out.join(&deep)).expect("deep directories");
        write(out.join(&deep).join("bottom"), "deep");
        write(out.join(escape), "strange name");
        write(out.join("privileged"), "#!/bin/sh\n");
        chmod(out.join("privileged"), 0o6755).expect("chmod");
    });
    let privileged = fs::metadata(entry.join("outputs/privileged")).expect("it is there");
    assert_eq!(privileged.permissions().mode() & 0o7777, 0o555, "without its set-id bits");
    assert_eq!(read(entry.join("outputs").join(&deep).join("bottom")), b"deep");

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
    for args in [&["restore", "key-tree", dest_text][..], &["restore", "key-tree", dest_text, "--force"][..]]
    {
        let _ = m.run(args);
        assert_eq!(read(victim.join("plain")), b"victim's", "{args:?}");
        assert!(!victim.join("file").exists(), "{args:?}");
    }
}

/// A client with very many open files costs the daemon none of its own limit, and others go on.
#[test]
fn very_many_open_files() {
    let m = Mount::new();
    let entry =
        m.entry("key-many", |out| (0..2000).for_each(|n| write(out.join(n.to_string()), n.to_string())));
    let soft = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("getrlimit");
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, soft.1, soft.1)
        .expect("setrlimit");
    let most = (soft.1 as usize / 2).min(20_000);
    let open: Vec<fs::File> = (0..most)
        .map(|n| fs::File::open(entry.join("outputs").join((n % 2000).to_string())).expect("it opens"))
        .collect();
    let draft = m.path("key-draft");
    mkdir(&draft);
    let files: Vec<fs::File> = (0..(most / 4).min(2000))
        .map(|n| fs::File::create(draft.join(n.to_string())).expect("it is created"))
        .collect();
    m.entry_of("key-other", "others go on");
    drop((open, files));
    assert!(m.is_sealed("key-other"));
}
