//! What docs/semantics.md says is different from a local file system.
//!
//! D1 is with S1.3 and in `tests/views.rs`, D5 in `tests/views.rs`.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::common::*;

/// D2 Drafts are like file systems of their own: a rename or hard link from one to another, or from a
/// draft to an entry, is EXDEV or EROFS; `mv` and `cp` copy.
#[test]
fn d2_drafts_are_file_systems_of_their_own() {
    let m = Mount::new();
    for name in ["one", "two"] {
        mkdir(m.work(name));
    }
    write(m.work("one").join("f"), "x");
    assert_errno!(fs::rename(m.work("one").join("f"), m.work("two").join("f")), EXDEV);
    assert_errno!(fs::hard_link(m.work("one").join("f"), m.work("two").join("f")), EXDEV);
    sh("mv", &[&m.work("one").join("f"), &m.work("two").join("f")]);
    assert_eq!(read(m.work("two").join("f")), b"x");
    m.entry_of("key1", "sealed");
    assert_errno!(fs::hard_link(m.path("key1/outputs/f"), m.work("one").join("g")), EXDEV);
    sh("cp", &[&m.path("key1/outputs/f"), &m.work("one").join("g")]);
    assert_eq!(read(m.work("one").join("g")), b"sealed");
}

/// D3 Names in drafts and in the top directory last a second in the kernel: what another view or a command
/// changes … is seen within that time; what this view changes is seen at once.
#[test]
fn d3_other_views_changes_are_seen_soon() {
    let mut m = Mount::new();
    mkdir(m.path("key1"));
    write(m.path("key1/f"), "one");
    let other = m.add_view("other", &[]);
    assert_eq!(read(other.join("key1/f")), b"one");
    assert!(!other.join("key1/g").exists());
    fs::remove_file(m.path("key1/f")).expect("unlink");
    write(m.path("key1/g"), "new");
    eventually("the other view to notice", || {
        !other.join("key1/f").exists() && other.join("key1/g").exists()
    });
    m.seal(&["key1"]);
    eventually("the other view to show the sealed entry", || {
        xattr_text(other.join("key1"), "user.outfs.state").as_deref() == Some("sealed")
    });
    assert_eq!(read(other.join("key1/g")), b"new");
}

/// D4 A sealed file's ctime is when it was sealed, its atime is its mtime. A directory's size is 0.
#[test]
fn d4_times_and_sizes() {
    let m = Mount::new();
    let before = std::time::SystemTime::now() - Duration::from_secs(1);
    m.entry("key1", |out| {
        write(out.join("f"), "x");
        let old = fs::FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000));
        File::open(out.join("f")).expect("open").set_times(old).expect("utimens");
    });
    m.ok(&["show", "key1"]);
    let s = fs::metadata(m.path("key1/outputs/f")).expect("stat");
    assert_eq!((s.mtime(), s.atime()), (1_000_000_000, 1_000_000_000));
    assert!(UNIX_EPOCH + Duration::from_secs(s.ctime() as u64) >= before - Duration::from_secs(1));
    assert_eq!(fs::metadata(m.path("key1/outputs")).expect("stat").len(), 0);
}

/// D7 … views are mounted `nosuid,nodev`.
#[test]
fn d7_nosuid_nodev() {
    let m = Mount::new();
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let line = table.lines().find(|l| l.contains(m.mnt().to_str().expect("plain"))).expect("it is mounted");
    assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
}

/// D8 O_TMPFILE is not supported.
#[test]
fn d8_no_unnamed_files() {
    let m = Mount::new();
    mkdir(m.work("w"));
    let made = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(m.work("w"));
    assert_errno!(made, EOPNOTSUPP);
    tempfile::tempfile_in(m.work("w")).expect("programs fall back to a named file that they unlink");
}

/// D9 A read-only view shows no drafts …
#[test]
fn d9_read_only_views_show_no_drafts() {
    let mut m = Mount::new();
    mkdir(m.path("key1"));
    m.entry_of("key2", "x");
    let ro = m.add_view("ro", &["--read-only"]);
    assert_eq!(names(&ro), ["key2"]);
    assert_errno!(fs::symlink_metadata(ro.join("key1")), ENOENT);
    m.seal(&["key1"]);
    eventually("the sealed entry in the read-only view", || ro.join("key1").exists());
}

/// D10 `mv` of a draft into the trash drops it.
#[test]
fn d10_drafts_in_the_trash() {
    let m = Mount::new();
    mkdir(m.path("key1"));
    write(m.path("key1/f"), "x");
    fs::rename(m.path("key1"), m.path(".outfs/trash/key1")).expect("rename");
    assert_errno!(fs::symlink_metadata(m.path("key1")), ENOENT);
    assert!(m.events().iter().any(|e| e["event"] == "draft_dropped"));
    mkdir(m.path("key1"));
    assert_eq!(names(m.path("key1")), [""; 0]);
}

/// D11 In a read-write view an entry's top directory shows its owner's write bit, or only root could move
/// it to the trash. It cannot be written all the same.
#[test]
fn d11_the_top_of_an_entry() {
    let mut m = Mount::new();
    m.entry_of("key1", "x");
    let ro = m.add_view("ro", &["--read-only"]);
    let mode = |top: &std::path::Path| fs::metadata(top.join("key1")).expect("stat").mode() & 0o777;
    assert_eq!((mode(m.mnt()), mode(&ro)), (0o755, 0o555));
    assert_errno!(fs::write(m.path("key1/new"), "x"), EROFS);
}

/// A chain of `d` below a directory, as deep as it may be; the number of directories, and why it ended.
fn chain(top: &std::path::Path) -> (usize, OwnedFd, nix::errno::Errno) {
    let open = |dir: &OwnedFd| {
        nix::fcntl::openat(dir, "d", OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).expect("openat")
    };
    let mut at: OwnedFd = File::open(top).expect("open").into();
    for depth in 0.. {
        if let Err(e) = nix::sys::stat::mkdirat(&at, "d", Mode::S_IRWXU) {
            return (depth, at, e);
        }
        at = open(&at);
    }
    unreachable!()
}

/// D12 A directory's path below the top of its draft or entry has at most 8,192 bytes, twice what a system call takes: what
/// would be longer is ENAMETOOLONG when it is made or moved there.
#[test]
fn d12_how_deep_directories_nest() {
    let m = Mount::new();
    mkdir(m.path("key1"));
    let (depth, bottom, errno) = chain(&m.path("key1"));
    assert_eq!((depth, errno), (4096, nix::errno::Errno::ENAMETOOLONG));
    write(proc_path(&bottom).join("f"), "bottom");
    mkdir(m.path("key1/e"));
    assert_errno!(fs::rename(m.path("key1/e"), proc_path(&bottom).join("e")), ENAMETOOLONG);
    fs::rename(m.path("key1/e"), m.path("key1/d/e")).expect("rename");
    drop(bottom);
    m.seal(&["key1"]);
    let mut at: OwnedFd = File::open(m.path("key1")).expect("open").into();
    for _ in 0..depth {
        at = nix::fcntl::openat(&at, "d", OFlag::O_PATH, Mode::empty()).expect("openat");
    }
    assert_eq!(read(proc_path(&at).join("f")), b"bottom");
    drop(at);
    sh("find", &[&m.path("key1"), &"-depth", &"-name", &"none"]);
    m.evict("key1");
}

/// D12 … What is deeper because a directory that holds others was moved is told by sealing, as is what was made natively and
/// what is put or imported.
#[test]
fn d12_what_nests_too_deep_is_not_sealed() {
    let m = Mount::new();
    mkdir(m.work("w"));
    mkdir(m.work("w").join("a"));
    chain(&m.work("w").join("a"));
    fs::create_dir_all(m.work("w").join("b/d/d/d/d")).expect("mkdir");
    fs::rename(m.work("w").join("a"), m.work("w").join("b/d/d/d/d/a")).expect("rename");
    assert_errno!(fs::rename(m.work("w"), m.path("key1")), ENAMETOOLONG);
    let said = m.run(&["seal", "w", "key1"]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("b/d/d/d") && said.contains("nest"), "{said}");
    sh("rm", &[&"-rf", &m.work("w")]);
    let tree = m.outside("tree");
    mkdir(&tree);
    let mut at: OwnedFd = File::open(&tree).expect("open").into();
    for _ in 0..5000 {
        nix::sys::stat::mkdirat(&at, "d", Mode::S_IRWXU).expect("mkdirat");
        at = nix::fcntl::openat(&at, "d", OFlag::O_PATH, Mode::empty()).expect("openat");
    }
    let said = m.run(&["put", "key1", tree.to_str().expect("a name")]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("outputs/d/d/d") && said.contains("nest"), "{said}");
    sh("rm", &[&"-rf", &tree]);
}

/// What `ioctl` says to this request with room for an answer.
fn ioctl(file: &File, request: libc::Ioctl) -> std::io::Result<()> {
    let mut room = [0u64; 64];
    // SAFETY: the room is larger than what any of the requests of this test reads or writes.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, room.as_mut_ptr()) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A read that may not wait.
fn read_without_waiting(file: &File) -> std::io::Result<usize> {
    let mut room = [0u8; 16];
    let slice = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // SAFETY: the one slice lies in `room`, which lives through the call.
    match unsafe { libc::preadv2(file.as_raw_fd(), &slice, 1, 0, libc::RWF_NOWAIT) } {
        -1 => Err(std::io::Error::last_os_error()),
        n => Ok(n as usize),
    }
}

/// D14 What the kernel has no message to FUSE for is refused: `fallocate` that takes a range out or puts one in
/// (COLLAPSE_RANGE, INSERT_RANGE), FIEMAP, and reads with RWF_NOWAIT (EOPNOTSUPP) … File flags … are ENOTTY.
#[test]
fn d14_what_fuse_has_no_message_for() {
    const FS_IOC_GETFLAGS: libc::Ioctl = 0x8008_6601;
    const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f;
    const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b;
    for passthrough in ["auto", "off"] {
        let m = Mount::with(&["--size", "4G", "--passthrough", passthrough]);
        m.entry_of("key1", noise(1, 1 << 20));
        let draft = m.draft("w", |out| write(out.join("f"), noise(2, 1 << 20)));
        let file = File::options().read(true).write(true).open(draft.join("outputs/f")).expect("open");
        for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE] {
            // SAFETY: an open file and numbers.
            let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, 4096, 4096) };
            let errno = std::io::Error::last_os_error().raw_os_error();
            assert_eq!((done, errno), (-1, Some(libc::EOPNOTSUPP)), "mode {mode}");
        }
        for file in [file, File::open(m.path("key1/outputs/f")).expect("open")] {
            for request in [FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR] {
                assert_errno!(ioctl(&file, request), ENOTTY);
            }
            assert_errno!(ioctl(&file, FS_IOC_FIEMAP), EOPNOTSUPP);
            assert_errno!(read_without_waiting(&file), EOPNOTSUPP);
        }
        assert!(read(draft.join("outputs/f")) == noise(2, 1 << 20), "nothing of it was done");
    }
}

fn proc_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
