//! Semantics 10: a full store or disk. (S10.1 is with S9.3 in `s09_evict`.)

use std::fs::{self, File};
use std::io::Write;

use crate::common::*;

/// S10.2 Native and passed-through writes get ENOSPC when the disk's floor is reached.
/// S10.3 The daemon is well again as soon as space returns, without a restart.
#[test]
fn s10_2_s10_3_a_full_disk_heals() {
    need_root();
    for passthrough in ["auto", "off"] {
        let mut m = Mount::unmounted(&["--size", "4G", "--reserve", "0", "--passthrough", passthrough])
            .on_disk("24M");
        m.start();
        m.entry_of("key1", noise(40, 1 << 20));
        let top = m.draft("w", |_| {});
        let mut f = File::create(top.join("outputs/f")).expect("create");
        let full =
            (0..48).find_map(|i| f.write_all(&noise(i, 1 << 20)).err()).expect("24 MiB do not hold 48");
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC), "passthrough {passthrough}: {full}");
        drop(f);
        assert!(read(m.path("key1/outputs/f")) == noise(40, 1 << 20), "reading goes on");
        assert!(fs::metadata(m.path(".outfs/stats.json")).is_ok());

        File::options()
            .write(true)
            .open(top.join("outputs/f"))
            .expect("open")
            .set_len(1 << 20)
            .expect("truncate");
        eventually("a seal after space has returned", || match fs::rename(&top, m.path("key2")) {
            Ok(()) => true,
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::ENOSPC), "{e}");
                false
            }
        });
        m.entry_of("key3", noise(41, 1 << 20));
        assert_eq!(m.code(&["fsck", "--verify-data"]), 0);
        m.terminate();
        drop(m);
    }
}

/// S10.2 … So does every write on a disk that is full, at once, although entries could go: nobody waits. They go by themselves
/// then, and within seconds there is room.
#[test]
fn s10_2_room_comes_by_itself() {
    need_root();
    let mut m = Mount::unmounted(&["--size", "4G", "--reserve", "0", "--min-age", "0s"]).on_disk("24M");
    m.start();
    m.entry_of("key1", noise(40, 8 << 20));
    let mut f = File::create(m.draft("w", |_| {}).join("outputs/f")).expect("create");
    let write_some = |f: &mut File| {
        let full = f.write_all(&noise(1, 1 << 20)).err();
        full.inspect(|e| assert_eq!(e.raw_os_error(), Some(libc::ENOSPC), "{e}")).is_none()
    };
    assert!((0..40).any(|_| !write_some(&mut f)), "24 MiB do not hold 40");
    // Beside the entry there is no room for 17.
    eventually("there to be room", || {
        write_some(&mut f);
        f.metadata().expect("stat").len() > 17 << 20
    });
    eventually("it is the entry that went", || !m.path("key1").exists());
    drop(f);
    m.terminate();
}

/// S10.2 for sealing: it is ENOSPC, nothing is lost, and it can be repeated.
#[test]
fn s10_2_sealing_on_a_full_disk_loses_nothing() {
    need_root();
    let mut m = Mount::unmounted(&["--size", "4G", "--reserve", "0"]).on_disk("24M");
    m.start();
    let top = m.draft("w", |out| {
        for i in 0..40 {
            write(out.join(format!("f{i}")), noise(i, 200_000));
        }
    });
    let ballast = m.disk().join("ballast");
    let mut f = File::create(&ballast).expect("create");
    while f.write_all(&[0; 65536]).is_ok() {}
    drop(f);
    assert_errno!(fs::rename(&top, m.path("key1")), ENOSPC);
    assert_eq!(names(top.join("outputs")).len(), 40, "the draft is whole");
    assert_errno!(fs::symlink_metadata(m.path("key1")), ENOENT);
    fs::remove_file(&ballast).expect("unlink");
    eventually("a seal after space has returned", || fs::rename(&top, m.path("key1")).is_ok());
    for i in 0..40 {
        assert!(read(m.path(format!("key1/outputs/f{i}"))) == noise(i, 200_000));
    }
    m.terminate();
}

/// Fills the file system to the last byte.
fn fill(disk: &std::path::Path) -> std::path::PathBuf {
    let ballast = disk.join("ballast");
    let mut f = File::create(&ballast).expect("create");
    for size in [1 << 16, 4096, 1] {
        while f.write_all(&vec![1; size]).is_ok() {}
    }
    let space = nix::sys::statvfs::statvfs(disk).expect("statvfs");
    assert_eq!(space.blocks_available(), 0, "the disk is full");
    ballast
}

/// S10.5 On a disk without a free byte, with a daemon or without, what reads and what frees goes on (`ls`, `show`,
/// `cat`, `logs`, `restore`, `du`, `evict`, `gc`), and what stores says that there is no space.
#[test]
fn s10_5_a_disk_without_a_free_byte() {
    need_root();
    for (daemon, died, young) in [
        (false, false, true),
        (false, true, true),
        (true, false, true),
        (true, true, true),
        (false, false, false),
        (true, true, false),
    ] {
        let case = format!("daemon {daemon}, died {died}, young {young}");
        let min_age = if young { "10m" } else { "0s" };
        let mut m =
            Mount::unmounted(&["--size", "4G", "--reserve", "0", "--min-age", min_age]).on_disk("12M");
        m.start();
        for (i, key) in (0..).zip(["key1", "key2", "key3", "key4"]) {
            m.entry(key, |out| {
                write(out.join("f"), noise(i, 500_000));
                (0..30).for_each(|n| write(out.join(format!("s{n}")), noise(100 * i + n, 2000)));
            });
        }
        if died {
            m.kill9()
        } else {
            m.terminate()
        }
        if died {
            detach(m.mnt());
        }
        let ballast = fill(m.disk());
        if daemon {
            m.start();
            assert!(read(m.path("key1/outputs/f")) == noise(0, 500_000), "reading a mount");
        }
        assert_eq!(m.ok(&["ls"]).lines().count(), 4);
        for args in
            [&["show", "key1"][..], &["logs", "key1"], &["du", "key1"], &["stats"], &["gc", "--dry-run"]]
        {
            m.ok(args);
        }
        assert!(m.run(&["cat", "key1", "outputs/f"]).stdout == noise(0, 500_000), "cat");
        let back = m.outside("back");
        m.ok(&["restore", "key2", back.to_str().expect("plain")]);
        assert!(read(back.join("f")) == noise(1, 500_000), "restore");

        fs::create_dir(m.outside("tree")).expect("mkdir");
        write(m.outside("tree/g"), noise(50, 3_000_000));
        if young {
            m.ok(&["gc"]);
            let put = m.run(&["put", "key5", m.outside("tree").to_str().expect("plain")]);
            let said = String::from_utf8_lossy(&put.stderr).into_owned();
            assert!(put.status.code() == Some(1) && said.contains("no room"), "{case}: {said}");
            m.ok(&["evict", "key4"]);
        } else {
            m.ok(&["gc", "--older-than", "0s"]);
        }
        assert_eq!(m.code(&["show", "key4"]), 3, "{case}");
        let free = nix::sys::statvfs::statvfs(m.disk()).expect("statvfs");
        assert!(free.blocks_available() > 100, "{case}: it frees");

        fs::remove_file(ballast).expect("unlink");
        m.ok(&["put", "key5", m.outside("tree").to_str().expect("plain")]);
        assert!(m.run(&["cat", "key5", "outputs/g"]).stdout == noise(50, 3_000_000), "put heals");
        assert_eq!(m.code(&["fsck", "--verify-data"]), 0, "{case}");
        if daemon {
            m.terminate();
        }
        assert!(m.store().join("index.spare").exists(), "the spare is there again");
    }
}
