//! Semantics 2: inside a draft the mount is a local POSIX file system.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::*;

fn draft() -> (Mount, PathBuf) {
    let m = Mount::new();
    let d = m.work("w");
    mkdir(&d);
    (m, d)
}

fn rename2(from: &Path, to: &Path, flags: nix::fcntl::RenameFlags) -> std::io::Result<()> {
    use nix::fcntl::{AT_FDCWD, renameat2};
    Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, flags)?)
}

/// S2.1 … rename and its flags …
#[test]
fn s2_1_rename_and_its_flags() {
    use nix::fcntl::RenameFlags;
    let (_m, d) = draft();
    write(d.join("a"), "a");
    write(d.join("b"), "b");
    assert_errno!(rename2(&d.join("a"), &d.join("b"), RenameFlags::RENAME_NOREPLACE), EEXIST);
    rename2(&d.join("a"), &d.join("b"), RenameFlags::RENAME_EXCHANGE).expect("exchange");
    assert_eq!((read(d.join("a")), read(d.join("b"))), (b"b".to_vec(), b"a".to_vec()));
    fs::rename(d.join("a"), d.join("b")).expect("replace");
    assert_eq!(read(d.join("b")), b"b");
    assert_errno!(fs::metadata(d.join("a")), ENOENT);
    mkdir(d.join("dir"));
    write(d.join("dir/in"), "in");
    assert_errno!(fs::rename(d.join("b"), d.join("dir")), EISDIR);
    mkdir(d.join("empty"));
    fs::rename(d.join("dir"), d.join("empty")).expect("onto an empty directory");
    assert_eq!(read(d.join("empty/in")), b"in");
    mkdir(d.join("full"));
    write(d.join("full/x"), "");
    assert_errno!(fs::rename(d.join("empty"), d.join("full")), ENOTEMPTY);
    assert_errno!(fs::rename(d.join("full"), d.join("full/below")), EINVAL);
}

/// S2.1 Inside a draft the mount behaves as a local POSIX file system … (and so does an entry: for root, too, a
/// file is executable only if somebody may execute it)
#[test]
fn s2_1_access_tells_what_is_executable() {
    use nix::unistd::{AccessFlags, access};
    let mut m = Mount::new();
    m.entry("key1", |out| {
        for (name, mode) in [("plain", 0o644), ("program", 0o700)] {
            write(out.join(name), "#!/bin/sh\n");
            chmod(out.join(name), mode).expect("chmod");
        }
    });
    let d = m.work("w");
    mkdir(&d);
    sh("cp", &[&"-a", &m.path("key1/outputs/plain"), &m.path("key1/outputs/program"), &d]);
    let read_only = m.add_view("ro", &["--read-only"]);
    for dir in [d.clone(), m.path("key1/outputs"), read_only.join("key1/outputs")] {
        let may = |name: &str| access(&dir.join(name), AccessFlags::X_OK);
        assert_eq!(may("plain"), Err(nix::errno::Errno::EACCES), "{}", dir.display());
        assert_eq!((may("program"), may("")), (Ok(()), Ok(())), "{}", dir.display());
        assert_eq!(access(&dir.join("plain"), AccessFlags::R_OK), Ok(()));
        assert_errno!(Command::new(dir.join("plain")).status(), EACCES);
        assert!(Command::new(dir.join("program")).status().expect("it may be executed").success());
        let inside = Command::new("/bin/true").current_dir(&dir).status();
        assert!(inside.expect("it may be entered").success());
    }
    chmod(d.join("plain"), 0o744).expect("chmod");
    assert_eq!(access(&d.join("plain"), AccessFlags::X_OK), Ok(()), "at once");
}

/// S2.1 … link, symlink …
#[test]
fn s2_1_link_and_symlink() {
    let (_m, d) = draft();
    write(d.join("a"), "a");
    fs::hard_link(d.join("a"), d.join("b")).expect("link");
    write(d.join("b"), "through b");
    assert_eq!(read(d.join("a")), b"through b");
    assert_errno!(fs::hard_link(d.join("a"), d.join("b")), EEXIST);
    let odd = std::ffi::OsStr::from_bytes(b"../no\xffwhere");
    symlink(odd, d.join("s")).expect("symlink");
    assert_eq!(fs::read_link(d.join("s")).expect("readlink"), Path::new(odd));
    assert_eq!(fs::symlink_metadata(d.join("s")).expect("lstat").len(), odd.len() as u64);
    symlink("a", d.join("t")).expect("symlink");
    assert_eq!(read(d.join("t")), b"through b");
}

/// S2.1 … chmod, utimens, truncate, fallocate …
#[test]
fn s2_1_chmod_utimens_truncate_fallocate() {
    use nix::fcntl::FallocateFlags as F;
    let (_m, d) = draft();
    let f = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .mode(0o640)
        .open(d.join("f"))
        .expect("create");
    assert_eq!(f.metadata().expect("fstat").mode() & 0o7777, 0o640 & !umask());
    chmod(d.join("f"), 0o751).expect("chmod");
    assert_eq!(fs::metadata(d.join("f")).expect("stat").mode() & 0o7777, 0o751);

    let (a, b) =
        (std::time::UNIX_EPOCH, std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_007, 123_456_789));
    f.set_times(fs::FileTimes::new().set_accessed(a).set_modified(b)).expect("utimens");
    let s = fs::metadata(d.join("f")).expect("stat");
    assert_eq!((s.atime(), s.mtime(), s.mtime_nsec()), (0, 1_000_000_007, 123_456_789));

    f.write_all_at(b"0123456789", 0).expect("write");
    f.set_len(4).expect("shrink");
    f.set_len(6).expect("grow");
    assert_eq!(read(d.join("f")), b"0123\0\0");
    nix::fcntl::fallocate(&f, F::empty(), 0, 8192).expect("fallocate");
    assert_eq!(fs::metadata(d.join("f")).expect("stat").len(), 8192);
    nix::fcntl::fallocate(&f, F::FALLOC_FL_PUNCH_HOLE | F::FALLOC_FL_KEEP_SIZE, 0, 4096)
        .expect("punch a hole");
    assert_eq!(read(d.join("f"))[..6], [0; 6]);
    nix::fcntl::fallocate(&f, F::FALLOC_FL_KEEP_SIZE, 0, 65536).expect("fallocate beyond the end");
    assert_eq!(fs::metadata(d.join("f")).expect("stat").len(), 8192);
}

fn umask() -> u32 {
    let text = fs::read_to_string("/proc/self/status").expect("proc");
    let line = text.lines().find_map(|l| l.strip_prefix("Umask:")).expect("a umask line");
    u32::from_str_radix(line.trim(), 8).expect("octal")
}

/// S2.1 A file that is being made can be read meanwhile, and by others later, also when it was sealed in between.
#[test]
fn s2_1_early_readers_are_in_nobody_s_way() {
    for passthrough in ["auto", "off"] {
        let m = Mount::with(&["--size", "4G", "--passthrough", passthrough]);
        let top = m.draft("w", |_| ());
        let mut path = top.join("outputs/f");
        let new = OpenOptions::new().create_new(true).write(true).open(&path).expect("create");
        new.write_all_at(b"content", 0).expect("write");
        let early = File::open(&path).expect("open");
        drop(new);
        // Its close reaches the daemon when it likes.
        eventually("the last writer is gone", || xattr_text(&path, "user.outfs.blake3").is_some());
        assert_eq!(read(&path), b"content", "passthrough {passthrough}");
        let later = File::open(&path).expect("open");
        fs::rename(&top, m.path("key1")).expect("seal");
        path = m.path("key1/outputs/f");
        assert_eq!(read(&path), b"content", "sealed, passthrough {passthrough}");
        for mut reader in [early, later] {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).expect("read");
            assert_eq!(bytes, b"content", "passthrough {passthrough}");
            drop(reader);
            assert_eq!(read(&path), b"content");
        }
    }
}

/// S2.1 … mmap, fsync … (with passthrough and without)
#[test]
fn s2_1_mmap_and_fsync() {
    for passthrough in ["auto", "off"] {
        let m = Mount::with(&["--size", "4G", "--passthrough", passthrough]);
        let d = m.work("w");
        mkdir(&d);
        let f = OpenOptions::new().create_new(true).read(true).write(true).open(d.join("f")).expect("create");
        f.write_all_at(&[b'.'; 8192], 0).expect("write");
        let map = Mapping::shared(&f, 8192, true);
        map.set(5000, b'M');
        f.sync_all().expect("fsync");
        f.sync_data().expect("fdatasync");
        File::open(&d).expect("opendir").sync_all().expect("fsync of a directory");
        assert_eq!(read(d.join("f"))[5000], b'M', "passthrough {passthrough}");
        f.write_all_at(b"W", 7).expect("write");
        assert_eq!(map.bytes()[7], b'W', "passthrough {passthrough}");
    }
}

/// S2.1 … mmap … (of a file that somebody else writes to, looked at without a pause)
#[test]
fn s2_1_what_others_write_is_seen_in_a_mapping() {
    for passthrough in ["auto", "off"] {
        let m = Mount::with(&["--size", "4G", "--passthrough", passthrough]);
        let d = m.work("w");
        mkdir(&d);
        let f = OpenOptions::new().write(true).create_new(true).open(d.join("f")).expect("create");
        f.write_all_at(&[0; 8192], 0).expect("write");
        let map = Mapping::shared(&File::open(d.join("f")).expect("open"), 8192, false);
        let over = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                let map = Mapping::shared(&File::open(d.join("f")).expect("open"), 8192, false);
                let begun = std::time::Instant::now();
                while !over.load(Ordering::Relaxed) && begun.elapsed().as_secs() < 60 {
                    map.bytes();
                }
            });
            for round in 1..=200u8 {
                f.write_all_at(&[round; 8192], 0).expect("write");
                assert_eq!(read(d.join("f")), [round; 8192], "passthrough {passthrough}");
                eventually(&format!("round {round} is seen, passthrough {passthrough}"), || {
                    map.bytes().iter().all(|b| *b == round)
                });
            }
            over.store(true, Ordering::Relaxed);
        });
    }
}

/// S2.1 … user xattrs …
#[test]
fn s2_1_user_xattrs() {
    let (_m, d) = draft();
    write(d.join("f"), "x");
    for path in [d.join("f"), d.clone()] {
        xattr::set(&path, "user.colour", b"blue\0ish").expect("setxattr");
        assert_eq!(xattr::get(&path, "user.colour").expect("getxattr").as_deref(), Some(&b"blue\0ish"[..]));
        assert!(xattr::list(&path).expect("listxattr").any(|n| n == "user.colour"));
        xattr::remove(&path, "user.colour").expect("removexattr");
        assert_errno!(xattr::remove(&path, "user.colour"), ENODATA);
        assert_eq!(xattr::get(&path, "user.colour").expect("getxattr"), None);
    }
}

/// S2.1 … kernel-local flock and fcntl locks …
#[test]
fn s2_1_locks() {
    let (_m, d) = draft();
    write(d.join("f"), "x");
    let one = OpenOptions::new().read(true).write(true).open(d.join("f")).expect("open");
    let two = OpenOptions::new().read(true).write(true).open(d.join("f")).expect("open");
    one.try_lock().expect("flock");
    assert!(matches!(two.try_lock(), Err(fs::TryLockError::WouldBlock)), "the second flock is refused");
    one.unlock().expect("unlock");
    two.try_lock().expect("flock after unlock");
    two.unlock().expect("unlock");

    let lock = |f: &File, kind: libc::c_int| {
        let l = libc::flock { l_type: kind as libc::c_short, l_whence: 0, l_start: 0, l_len: 1, l_pid: 0 };
        nix::fcntl::fcntl(f, nix::fcntl::FcntlArg::F_OFD_SETLK(&l))
    };
    lock(&one, libc::F_WRLCK).expect("a record lock");
    assert_eq!(lock(&two, libc::F_WRLCK), Err(nix::errno::Errno::EAGAIN));
    lock(&one, libc::F_UNLCK).expect("unlock");
    lock(&two, libc::F_WRLCK).expect("a record lock after unlock");
}

/// S2.1 … unlink while open …
#[test]
fn s2_1_unlink_while_open() {
    for passthrough in ["auto", "off"] {
        let m = Mount::with(&["--size", "4G", "--passthrough", passthrough]);
        let d = m.work("w");
        mkdir(&d);
        let mut f =
            OpenOptions::new().create_new(true).read(true).write(true).open(d.join("f")).expect("create");
        f.write_all(b"before").expect("write");
        fs::remove_file(d.join("f")).expect("unlink");
        assert_errno!(fs::metadata(d.join("f")), ENOENT);
        assert_eq!(f.metadata().expect("fstat").nlink(), 0);
        f.write_all(b" after").expect("write to what was unlinked");
        f.set_len(11).expect("ftruncate");
        f.seek(SeekFrom::Start(0)).expect("seek");
        let mut text = String::new();
        f.read_to_string(&mut text).expect("read");
        assert_eq!(text, "before afte");
        assert_eq!(names(&d), [""; 0], "no .fuse_hidden files");
        write(d.join("f"), "new");
        assert_eq!(f.metadata().expect("fstat").len(), 11);
    }
}

fn copy_file_range(from: &File, to: &File, len: usize) -> std::io::Result<usize> {
    let none = std::ptr::null_mut();
    // SAFETY: both descriptors are open; without offsets the file positions are used.
    let n = unsafe { libc::copy_file_range(from.as_raw_fd(), none, to.as_raw_fd(), none, len, 0) };
    if n > 0 { Ok(n as usize) } else { Err(std::io::Error::last_os_error()) }
}

/// S2.1 … copy_file_range, O_DIRECT.
#[test]
fn s2_1_copy_file_range_and_o_direct() {
    let (_m, d) = draft();
    write(d.join("f"), noise(1, 100_000));
    let from = File::open(d.join("f")).expect("open");
    let to = OpenOptions::new().create_new(true).read(true).write(true).open(d.join("g")).expect("create");
    let mut copied = 0;
    while copied < 100_000 {
        copied += copy_file_range(&from, &to, 100_000 - copied).expect("copy_file_range");
    }
    assert_eq!(read(d.join("g")), noise(1, 100_000));

    #[repr(align(4096))]
    struct Aligned([u8; 8192]);
    let mut buf = Aligned([b'd'; 8192]);
    let direct = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(d.join("d"));
    let direct = direct.expect("open with O_DIRECT");
    assert_eq!(direct.write_at(&buf.0, 0).expect("write"), 8192);
    buf.0.fill(0);
    assert_eq!(direct.read_at(&mut buf.0, 0).expect("read"), 8192);
    assert!(buf.0.iter().all(|b| *b == b'd'));
    assert_eq!(read(d.join("d")), [b'd'; 8192]);
}

/// S2.1: the rest of what programs do with directories and files.
#[test]
fn s2_1_directories_append_and_special_files() {
    let (_m, d) = draft();
    mkdir(d.join("a"));
    mkdir(d.join("a/b"));
    assert_errno!(fs::remove_dir(d.join("a")), ENOTEMPTY);
    assert_errno!(fs::remove_file(d.join("a")), EISDIR);
    write(d.join("f"), "x");
    assert_errno!(fs::remove_dir(d.join("f")), ENOTDIR);
    assert_errno!(fs::metadata(d.join("f/x")), ENOTDIR);
    assert_eq!(fs::metadata(d.join("a")).expect("stat").nlink(), 3);
    let mut log = OpenOptions::new().append(true).open(d.join("f")).expect("open");
    let mut log2 = OpenOptions::new().append(true).open(d.join("f")).expect("open");
    log.write_all(b"1").expect("append");
    log2.write_all(b"2").expect("append");
    log.write_all(b"3").expect("append");
    assert_eq!(read(d.join("f")), b"x123");
    let ro = File::open(d.join("f")).expect("open");
    assert_errno!(ro.write_at(b"x", 0), EBADF);
    for i in 0..500 {
        write(d.join(format!("a/{i:04}")), "");
    }
    assert_eq!(names(d.join("a")).len(), 501);
    nix::unistd::mkfifo(&d.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a fifo may stand in a draft");
    let long = "n".repeat(255);
    write(d.join(&long), "x");
    assert_errno!(fs::write(d.join("n".repeat(256)), "x"), ENAMETOOLONG);
    fs::remove_dir_all(d.join("a")).expect("rm -r");
}

/// S2.1 Sparse files stay sparse, and SEEK_HOLE finds the holes.
#[test]
fn s2_1_sparse_files() {
    let (_m, d) = draft();
    let f = OpenOptions::new().create_new(true).read(true).write(true).open(d.join("f")).expect("create");
    f.set_len(64 << 20).expect("grow");
    f.write_all_at(b"end", 48 << 20).expect("write");
    assert!(f.metadata().expect("fstat").blocks() * 512 < 1 << 20, "the hole takes no space");
    let data = nix::unistd::lseek(&f, 0, nix::unistd::Whence::SeekData).expect("SEEK_DATA");
    assert_eq!(data, 48 << 20);
}

/// S2.2 Names of one backing inode are one node: `st_ino` is the same through all of them and stays
/// while the kernel knows the file; link counts and times are live although attributes are cached.
#[test]
fn s2_2_one_node_for_each_inode() {
    let (_m, d) = draft();
    write(d.join("a"), "a");
    let kept = File::open(d.join("a")).expect("open");
    let stat = |n: &str| fs::symlink_metadata(d.join(n)).expect("lstat");
    assert_eq!(stat("a").nlink(), 1);
    let ctime = (stat("a").ctime(), stat("a").ctime_nsec());
    fs::hard_link(d.join("a"), d.join("b")).expect("link");
    assert_eq!((stat("a").nlink(), stat("b").nlink()), (2, 2), "the other name's count is live");
    assert_eq!((stat("a").ino(), kept.metadata().expect("fstat").ino()), (stat("b").ino(), stat("a").ino()));
    assert_ne!((stat("a").ctime(), stat("a").ctime_nsec()), ctime, "a link changes the ctime");
    write(d.join("b"), "longer");
    assert_eq!(stat("a").len(), 6, "the size through the other name");
    assert_eq!((stat("a").mtime(), stat("a").mtime_nsec()), (stat("b").mtime(), stat("b").mtime_nsec()));
    fs::rename(d.join("b"), d.join("c")).expect("rename");
    assert_eq!(stat("c").ino(), stat("a").ino());
    fs::remove_file(d.join("a")).expect("unlink");
    assert_eq!(stat("c").nlink(), 1);
    assert_eq!(kept.metadata().expect("fstat").ino(), stat("c").ino());
}

/// S2.2 … `st_ino` is … what a listing shows …: of names that nobody has looked up yet, too.
#[test]
fn s2_2_a_listing_shows_the_numbers_that_stat_shows() {
    let mut m = Mount::new();
    let other = m.add_view("other", &[]);
    // The second draft's inodes have the numbers of the first's, which kernels still know.
    for key in ["key1", "key2"] {
        mkdir(m.path(key));
        fill_entry(&m.path(key), |out| {
            (0..3000).for_each(|i| write(out.join(format!("a-file-with-a-long-name-{i:04}")), ""));
            mkdir(out.join("d"));
            fs::hard_link(out.join("a-file-with-a-long-name-0000"), out.join("link")).expect("link");
        });
        for mnt in [&other, m.mnt()] {
            let listed = fs::read_dir(mnt.join(key).join("outputs")).expect("opendir");
            let listed: Vec<_> = listed.map(|e| e.expect("readdir")).map(|e| (e.ino(), e.path())).collect();
            assert_eq!(listed.len(), 3002);
            for (number, path) in &listed {
                assert_eq!(*number, fs::symlink_metadata(path).expect("stat").ino(), "{}", path.display());
            }
        }
        m.ok(&["seal", key]);
        let listed = fs::read_dir(other.join(key).join("outputs")).expect("opendir");
        for e in listed.map(|e| e.expect("readdir")) {
            assert_eq!(e.ino(), fs::symlink_metadata(e.path()).expect("stat").ino(), "{:?}", e.path());
        }
    }
}

/// S2.2 as tar sees it: it complains of a file that changed when counts or times are not live.
#[test]
fn s2_2_tar_sees_no_change() {
    let (m, d) = draft();
    for i in 0..20 {
        write(d.join(format!("f{i}")), noise(i, 3000));
        fs::hard_link(d.join(format!("f{i}")), d.join(format!("l{i}"))).expect("link");
    }
    let tar = m.outside("t.tar");
    let out = sh_out("tar", &[&"-cf", &tar, &"-C", &d, &"."]);
    assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    let list = sh("tar", &[&"-tvf", &tar]);
    assert_eq!(list.lines().filter(|l| l.starts_with('h')).count(), 20, "{list}");
}

/// S2.1 as a local file system: who changes a file without privileges takes its set-id bits.
#[test]
fn s2_1_set_id_bits_go() {
    need_root();
    need("setpriv");
    for passthrough in ["auto", "off"] {
        let m = Mount::with(&["--size", "4G", "--allow-other", "--passthrough", passthrough]);
        chmod(m.mnt().parent().expect("it is in a directory"), 0o755).expect("chmod");
        let dir = m.path("key1");
        mkdir(&dir);
        for change in ["echo more >>f", "echo new >f", "truncate -s 1 f"] {
            let f = dir.join("f");
            write(&f, "content");
            chmod(&f, 0o6777).expect("chmod");
            let change = format!("cd '{}' && {change}", dir.display());
            let user = ["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &change];
            let args: Vec<&dyn AsRef<std::ffi::OsStr>> = user.iter().map(|a| a as _).collect();
            sh("setpriv", &args);
            let mode = fs::metadata(&f).expect("stat").mode();
            assert_eq!(mode & 0o7777, 0o777, "after {change}");
        }
    }
}

/// S2.1 … also when they were set while the file was open for writing, and not before it is written.
#[test]
fn s2_1_set_id_bits_of_an_open_file_go() {
    need_root();
    need("setpriv");
    need("fallocate");
    for passthrough in ["auto", "off"] {
        let m = Mount::with(&["--size", "4G", "--allow-other", "--passthrough", passthrough]);
        chmod(m.mnt().parent().expect("it is in a directory"), 0o755).expect("chmod");
        mkdir(m.path("key1"));
        let f = m.path("key1/f");
        write(&f, "content");
        chmod(&f, 0o666).expect("chmod");
        let script = format!(
            "exec 3>>'{0}'; echo one >&3; echo; read go; echo two >&3; echo; read go; fallocate -l 100 '{0}'",
            f.display()
        );
        let mut user = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv starts");
        let mut tell = user.stdin.take().expect("it is a pipe");
        let mut told = BufReader::new(user.stdout.take().expect("it is a pipe")).lines();
        let mode = || fs::metadata(&f).expect("stat").mode() & 0o7777;
        told.next().expect("it goes on").expect("it is text");
        chmod(&f, 0o6777).expect("chmod");
        assert_eq!(mode(), 0o6777);
        writeln!(tell).expect("it reads");
        told.next().expect("it goes on").expect("it is text");
        assert_eq!(mode(), 0o777, "after a write, passthrough {passthrough}");
        chmod(&f, 0o6777).expect("chmod");
        drop(fs::OpenOptions::new().write(true).open(&f).expect("open"));
        assert_eq!(mode(), 0o6777, "opened and not written");
        writeln!(tell).expect("it reads");
        assert!(user.wait().expect("our own child").success());
        assert_eq!(mode(), 0o777, "after fallocate, passthrough {passthrough}");
    }
}
