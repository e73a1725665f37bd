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
        let m = Mount::unmounted(&["--size", "4G", "--reserve", "0", "--passthrough", passthrough]);
        let disk = Mounted::tmpfs(&m.outside("disk"), "24M");
        let mut m = m.store_at(disk.0.join("store"));
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

/// S10.2 for sealing: it is ENOSPC, nothing is lost, and it can be repeated.
#[test]
fn s10_2_sealing_on_a_full_disk_loses_nothing() {
    need_root();
    let m = Mount::unmounted(&["--size", "4G", "--reserve", "0"]);
    let disk = Mounted::tmpfs(&m.outside("disk"), "24M");
    let mut m = m.store_at(disk.0.join("store"));
    m.start();
    let top = m.draft("w", |out| {
        for i in 0..40 {
            write(out.join(format!("f{i}")), noise(i, 200_000));
        }
    });
    let ballast = disk.0.join("ballast");
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
