//! Unmodified programs in a mount: rsync, tar, git, cp, find.

#[macro_use]
mod common;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use common::tree as tree_look;
use common::*;

/// A tree with all that archivers care for; directories of mode 0555 among it.
fn tree(top: &Path) {
    mkdir(top);
    for d in ["a", "a/b", "read-only", "read-only/below", "empty"] {
        mkdir(top.join(d));
    }
    for i in 0..30u64 {
        write(top.join(format!("a/f{i}")), noise(i, 1000 + i as usize * 700));
    }
    write(top.join("a/b/large"), noise(99, 1 << 20));
    write(top.join("tool"), "#!/bin/sh\necho tool\n");
    chmod(top.join("tool"), 0o755).expect("chmod");
    write(top.join("read-only/below/f"), "f");
    chmod(top.join("read-only/below/f"), 0o444).expect("chmod");
    fs::hard_link(top.join("a/f1"), top.join("a/b/same-as-f1")).expect("link");
    fs::hard_link(top.join("a/f1"), top.join("f1-again")).expect("link");
    symlink("a/f2", top.join("link")).expect("symlink");
    symlink("/no/where at all", top.join("dangling")).expect("symlink");
    xattr::set(top.join("tool"), "user.note", b"a note").expect("setxattr");
    xattr::set(top.join("a"), "user.note", b"on a directory").expect("setxattr");
    for (i, f) in ["a/f0", "tool", "a/b/large"].iter().enumerate() {
        let t = UNIX_EPOCH + Duration::new(1_000_000_000 + i as u64, 123_456_789);
        File::open(top.join(f))
            .expect("open")
            .set_times(fs::FileTimes::new().set_modified(t))
            .expect("utimens");
    }
    // rsync takes times of the same second for equal.
    for s in ["link", "dangling"] {
        let old = nix::sys::time::TimeSpec::new(1_100_000_000, 7);
        let flags = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
        nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, &top.join(s), &old, &old, flags).expect("utimens");
    }
    chmod(top.join("read-only/below"), 0o555).expect("chmod");
    chmod(top.join("read-only"), 0o555).expect("chmod");
}

/// Write bits aside (a view masks them), all that a faithful copy keeps.
const MASKED: tree_look::Look = tree_look::Look { mode: 0o5555, ..tree_look::ALL };

/// Seals what was copied into a work draft and compares the entry, too.
#[track_caller]
fn seal_and_compare(m: &Mount, origin: &Path) {
    tree_look::assert_same(origin, &m.work("w").join("outputs"), tree_look::ALL);
    fs::rename(m.work("w"), m.path("key1")).expect("seal");
    tree_look::assert_same(origin, &m.path("key1/outputs"), MASKED);
}

/// `rsync -aHX` into a draft and out of the sealed entry, 0555 directories among it.
#[test]
fn rsync_in_and_out() {
    let m = Mount::new();
    let origin = m.outside("origin");
    tree(&origin);
    mkdir(m.work("w"));
    sh("rsync", &[&"-aHX", &format!("{}/", origin.display()), &m.work("w").join("outputs")]);
    seal_and_compare(&m, &origin);
    let out = sh(
        "rsync",
        &[&"-aHXni", &"--no-p", &"-c", &format!("{}/", origin.display()), &m.path("key1/outputs")],
    );
    assert!(
        !out.lines().any(|l| l.starts_with(">f") || l.starts_with("cL")),
        "rsync finds nothing to copy:\n{out}"
    );
    let back = m.outside("back");
    sh("rsync", &[&"-aHX", &format!("{}/", m.path("key1/outputs").display()), &back]);
    tree_look::assert_same(&origin, &back, MASKED);
}

/// rsync onto a draft in place whose top is 0555 in the origin: rsync's chmod is no gesture as long as there is
/// no metadata, and rsync finishes.
#[test]
fn rsync_of_a_whole_entry_in_place() {
    let m = Mount::new();
    let origin = m.outside("origin");
    tree(&origin);
    chmod(&origin, 0o555).expect("chmod");
    sh("rsync", &[&"-aHX", &format!("{}/", origin.display()), &m.path("key1")]);
    assert!(!m.is_sealed("key1"));
    tree_look::assert_same(&origin, &m.path("key1"), tree_look::ALL);
}

/// tar in and out with identical trees.
#[test]
fn tar_in_and_out() {
    let m = Mount::new();
    let (origin, t1, t2) = (m.outside("origin"), m.outside("1.tar"), m.outside("2.tar"));
    tree(&origin);
    sh("tar", &[&"--xattrs", &"--format=posix", &"-cf", &t1, &"-C", &origin, &"."]);
    fs::create_dir_all(m.work("w").join("outputs")).expect("mkdir");
    sh("tar", &[&"--xattrs", &"-xpf", &t1, &"-C", &m.work("w").join("outputs")]);
    seal_and_compare(&m, &origin);
    let out =
        sh_out("tar", &[&"--xattrs", &"--format=posix", &"-cf", &t2, &"-C", &m.path("key1/outputs"), &"."]);
    assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    let back = m.outside("back");
    mkdir(&back);
    sh("tar", &[&"--xattrs", &"-xpf", &t2, &"-C", &back]);
    tree_look::assert_same(&origin, &back, MASKED);
}

/// `outfs restore` and `put --tar -` agree with tar.
#[test]
fn put_and_restore_as_tar() {
    let m = Mount::new();
    let (origin, t1) = (m.outside("origin"), m.outside("1.tar"));
    tree(&origin);
    sh("tar", &[&"--xattrs", &"--format=posix", &"-cf", &t1, &"-C", &origin, &"."]);
    let mut put = m.command(&["put", "key1", "--tar", "-"]);
    put.stdin(File::open(&t1).expect("open"));
    assert!(put.status().expect("it starts").success());
    tree_look::assert_same(&origin, &m.path("key1/outputs"), MASKED);
    let back = m.outside("back");
    m.ok(&["restore", "key1", back.to_str().expect("plain")]);
    tree_look::assert_same(&origin, &back, tree_look::Look { mode: 0o7577, ..tree_look::ALL });
}

/// `cp -a` into a draft, from a sealed entry, and `diff -r` between them.
#[test]
fn cp_a() {
    let m = Mount::new();
    let origin = m.outside("origin");
    tree(&origin);
    mkdir(m.work("w"));
    sh("cp", &[&"-a", &origin, &m.work("w").join("outputs")]);
    seal_and_compare(&m, &origin);
    let back = m.outside("back");
    sh("cp", &[&"-a", &m.path("key1/outputs"), &back]);
    tree_look::assert_same(&origin, &back, MASKED);
    sh("diff", &[&"-r", &"--no-dereference", &origin, &m.path("key1/outputs")]);
    mkdir(m.work("v"));
    sh("cp", &[&"-a", &m.path("key1/outputs"), &m.work("v").join("outputs")]);
    fs::rename(m.work("v"), m.path("key2")).expect("seal");
    tree_look::assert_same(&m.path("key1/outputs"), &m.path("key2/outputs"), tree_look::ALL);
}

/// `git clone` and `git fsck` in a draft, and on the sealed entry.
#[test]
fn git_clone_and_fsck() {
    let m = Mount::new();
    let origin = m.outside("origin");
    mkdir(&origin);
    let git = |dir: &Path, args: &[&str]| {
        let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![
            &"-c",
            &"user.name=t",
            &"-c",
            &"user.email=t@example.org",
            &"-c",
            &"safe.directory=*",
            &"-C",
        ];
        all.push(&dir);
        let owned: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        all.extend(owned.iter().map(|a| a as &dyn AsRef<std::ffi::OsStr>));
        sh("git", &all)
    };
    git(&origin, &["init", "-q", "-b", "main"]);
    for i in 0..40u64 {
        write(origin.join(format!("f{i}")), noise(i, 3000));
        git(&origin, &["add", "."]);
        if i % 10 == 9 {
            git(&origin, &["commit", "-q", "-m", "more"]);
        }
    }
    mkdir(m.work("w"));
    let clone = m.work("w").join("outputs");
    git(&m.work("w"), &["clone", "-q", origin.to_str().expect("plain"), "outputs"]);
    git(&clone, &["fsck", "--full", "--strict"]);
    write(clone.join("f0"), "changed in the draft");
    git(&clone, &["commit", "-q", "-am", "in the draft"]);
    git(&clone, &["gc", "-q"]);
    assert_eq!(git(&clone, &["status", "--porcelain"]), "");
    fs::rename(m.work("w"), m.path("key1")).expect("seal");
    git(&m.path("key1/outputs"), &["fsck", "--full"]);
    assert_eq!(git(&m.path("key1/outputs"), &["log", "--format=%s", "-1"]).trim(), "in the draft");
}

/// Programs run from a draft and from a sealed entry; a build-like job with many small steps.
#[test]
fn programs_run_from_the_mount() {
    let m = Mount::new();
    mkdir(m.work("w"));
    let out = m.work("w").join("outputs");
    mkdir(&out);
    for i in 0..20 {
        let script = format!("#!/bin/sh\necho step {i} >>\"$1\"\n");
        write(out.join(format!("step{i}")), script);
        chmod(out.join(format!("step{i}")), 0o755).expect("chmod");
        sh(out.join(format!("step{i}")).to_str().expect("plain"), &[&out.join("log")]);
    }
    fs::copy("/bin/ls", out.join("ls")).expect("cp");
    sh("sed", &[&"-i", &"s/step 7/seven/", &out.join("log")]);
    fs::rename(m.work("w"), m.path("key1")).expect("seal");
    let log = String::from_utf8(read(m.path("key1/outputs/log"))).expect("text");
    assert_eq!(log.lines().count(), 20);
    assert!(log.contains("seven"));
    let listed = sh(m.path("key1/outputs/ls").to_str().expect("plain"), &[&m.path("key1/outputs")]);
    assert_eq!(listed.lines().count(), 22);
    assert_eq!(sh("grep", &[&"-rl", &"seven", &m.mnt()]).lines().count(), 1);
}

/// A tree as deep and as wide as builds make them is removed with `rm -rf` while it is a draft.
#[test]
fn rm_rf_of_a_draft() {
    let m = Mount::new();
    let mut deep = m.work("w");
    mkdir(&deep);
    for i in 0..60 {
        deep = deep.join(format!("d{i}"));
        mkdir(&deep);
        write(deep.join("f"), "x");
    }
    sh("rm", &[&"-rf", &m.work("w")]);
    assert_errno!(fs::symlink_metadata(m.work("w")), ENOENT);
    eventually("the draft's directory to go", || {
        fs::read_dir(m.store().join("drafts")).expect("list").next().is_none()
    });
}

/// What reads small files waits to hand them over: where storing fails halfway, that is not waited for.
#[test]
fn a_put_that_fails_halfway_ends() {
    ["prlimit", "timeout"].into_iter().for_each(need);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let src = dir.path().join("src");
    mkdir(&src);
    (0..3000).for_each(|n| write(src.join(format!("f{n}")), noise(n, 12_000)));
    let script = "trap '' XFSZ; exec timeout 60 prlimit --fsize=3000000 \"$0\" put abcd \"$1\"";
    let mut put = std::process::Command::new("sh");
    put.args(["-c", script, env!("CARGO_BIN_EXE_outfs")]).arg(&src);
    put.env("OUTFS_STORE", dir.path().join("store")).env("HOME", dir.path());
    let out = put.output().expect("sh starts");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && said.contains("File too large"), "{:?}: {said}", out.status);
}
