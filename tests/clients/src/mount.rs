//! An outfs daemon with one mount in a temporary place, started and stopped through the command line.
//!
//! `OUTFS_BIN` names the program. There is no skipping: without it, or without /dev/fuse, a test fails.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long anything may take before a test fails.
const DEADLINE: Duration = Duration::from_secs(30);

/// A mounted store that is unmounted, stopped and deleted on drop.
pub struct Mount {
    dir: TempDir,
}

impl Mount {
    /// Mounts a fresh store; `options` are those of `outfs mount`.
    pub fn start(options: &[&str]) -> Self {
        let mount = Self {
            dir: tempfile::Builder::new().prefix("outfs-clients-").tempdir().expect("a temporary directory"),
        };
        std::fs::create_dir(mount.path()).expect("the mount point");
        mount.mount(options);
        mount
    }

    /// Mounts (again, after [`Mount::stop`]).
    pub fn mount(&self, options: &[&str]) {
        let path = self.path();
        let mut args = vec!["mount", path.to_str().expect("a temporary path is text")];
        args.extend(options);
        self.outfs(&args);
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// The store below it.
    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Ends the daemon cleanly.
    pub fn stop(&self) {
        self.outfs(&["stop"]);
    }

    /// Runs `outfs` on this store and asserts that it succeeds; its standard output.
    pub fn outfs(&self, args: &[&str]) -> String {
        let output = self.try_outfs(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "outfs {}: {}: {stderr}", args.join(" "), output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `outfs` on this store.
    pub fn try_outfs(&self, args: &[&str]) -> Output {
        let program = std::env::var_os("OUTFS_BIN").expect("OUTFS_BIN names the outfs program to test");
        let mut command = Command::new(&program);
        command.args(args).env("OUTFS_STORE", self.store());
        command.output().unwrap_or_else(|e| panic!("{}: {e}", Path::new(&program).display()))
    }

    /// `user.outfs.state` of an entry's directory; `None` when there is no such entry.
    pub fn state(&self, key: &str) -> Option<String> {
        let path = self.path().join(key);
        if !path.exists() {
            return None;
        }
        let value = xattr::get(&path, "user.outfs.state").expect("getxattr");
        Some(String::from_utf8(value.expect("every entry has a state")).expect("states are text"))
    }

    /// Asks again and again until `done` says so; fails at the deadline.
    pub fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let started = Instant::now();
        while !done() {
            assert!(started.elapsed() < DEADLINE, "after {DEADLINE:?}: not {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A test that fails must leave no mount behind, or the next run trips over it.
        if !self.try_outfs(&["stop"]).status.success() {
            let _ = Command::new("fusermount3").args(["-u", "-z", "-q"]).arg(self.path()).status();
        }
    }
}
