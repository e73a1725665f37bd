//! Mounts of the system, beside those of the program under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::need_root;

/// Is `path` a mount point now?
pub fn is_mounted(path: &Path) -> bool {
    let wanted = path.to_str().expect("temporary directories have plain names");
    fs::read_to_string("/proc/self/mountinfo")
        .expect("mountinfo is readable")
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(wanted))
}

/// Unmounts lazily, however many mounts are stacked there.
pub fn detach(at: &Path) {
    for _ in 0..8 {
        if !is_mounted(at) {
            return;
        }
        if nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH).is_err() {
            let _ = Command::new("fusermount3").args(["-uz".as_ref(), at.as_os_str()]).status();
        }
    }
}

/// A file system mounted for a test (tmpfs, bind); unmounted when dropped.
pub struct Mounted(pub PathBuf);

impl Mounted {
    /// A tmpfs of this size.
    pub fn tmpfs(at: &Path, size: &str) -> Mounted {
        need_root();
        fs::create_dir_all(at).expect("a mount point");
        let at = at.canonicalize().expect("it exists");
        let data = format!("size={size},mode=0755");
        nix::mount::mount(
            Some("outfs-test"),
            &at,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(data.as_str()),
        )
        .expect("a tmpfs");
        Mounted(at)
    }

    /// A bind mount of `what`.
    pub fn bind(what: &Path, at: &Path) -> Mounted {
        need_root();
        fs::create_dir_all(at).expect("a mount point");
        let at = at.canonicalize().expect("it exists");
        nix::mount::mount(Some(what), &at, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)
            .expect("a bind mount");
        Mounted(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        detach(&self.0);
    }
}
