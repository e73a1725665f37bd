//! An outfs daemon in a temporary place, for the load programs; driven through the command line.
//!
//! `OUTFS_BIN` names the program. Everything here panics with a reason: a load program has no other way on.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// A store, a mount point and whoever serves them; cleaned up on drop, but for a directory that was given.
pub struct Daemon {
    dir: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Daemon {
    /// A temporary place; nothing runs yet.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("outfs-load-").tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("mnt")).expect("the mount point");
        Self { dir: dir.path().to_owned(), _temporary: Some(dir) }
    }

    /// In a directory that stays, with what an earlier run left there.
    pub fn kept(dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("mnt")).expect("the mount point");
        Self { dir: dir.to_owned(), _temporary: None }
    }

    /// Mounts and gives the time from start to mounted.
    pub fn mount(&self, options: &[&str]) -> Duration {
        self.mount_at(&self.mnt(), options)
    }

    /// Mounts a view there. It has the features of the kernel that `scripts/lib.sh` asks for, and not the others.
    pub fn mount_at(&self, at: &Path, options: &[&str]) -> Duration {
        let started = Instant::now();
        let mut args = vec!["mount", at.to_str().expect("a temporary path is text")];
        args.extend(options);
        self.run(&args);
        let took = started.elapsed();
        self.has_features(at);
        took
    }

    /// Panics unless the view there has the features that are asked for, and none of the others.
    pub fn has_features(&self, at: &Path) {
        for (variable, wanted) in [("OUTFS_TEST_WITHOUT", false), ("OUTFS_TEST_WITH", true)] {
            let named = std::env::var(variable).unwrap_or_default();
            for feature in named.split(',').filter(|name| !name.is_empty()) {
                assert_eq!(self.has(at, feature), wanted, "{}: {feature}", at.display());
            }
        }
    }

    /// Whether a view uses a feature of the kernel.
    fn has(&self, at: &Path, feature: &str) -> bool {
        let status: serde_json::Value =
            serde_json::from_str(&self.run(&["status", "--json"])).expect("status is JSON");
        let views = status["views"].as_array().expect("views");
        let view = views.iter().find(|v| v["at"].as_str() == at.to_str()).expect("the view is there");
        match feature {
            "io_uring" => view["transport"] == "uring",
            feature => view[feature].as_bool().unwrap_or_else(|| panic!("status says nothing of {feature}")),
        }
    }

    /// Where it is mounted.
    pub fn mnt(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// The store.
    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Room for a program's own files, on the store's file system.
    pub fn scratch(&self) -> PathBuf {
        self.dir.join("scratch")
    }

    /// A configuration file; it need not be there.
    pub fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// The store's numbers, as JSON.
    pub fn stats(&self) -> serde_json::Value {
        serde_json::from_str(&self.run(&["stats", "--json"])).expect("stats are JSON")
    }

    /// The serving process.
    pub fn pid(&self) -> i32 {
        self.stats()["pid"].as_i64().expect("stats have the daemon's pid") as i32
    }

    /// Runs `outfs` on this store; panics unless it succeeds.
    pub fn run(&self, args: &[&str]) -> String {
        self.ask(args).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Runs `outfs` on this store: what it prints, or what it complains about.
    pub fn ask(&self, args: &[&str]) -> Result<String, String> {
        let output = self.try_run(args);
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => {
                let stderr = String::from_utf8_lossy(&output.stderr);
                Err(format!("outfs {}: {}: {stderr}", args.join(" "), output.status))
            }
        }
    }

    /// Runs `outfs` on this store.
    pub fn try_run(&self, args: &[&str]) -> Output {
        let program = std::env::var_os("OUTFS_BIN").expect("OUTFS_BIN names the outfs program");
        let mut command = Command::new(program);
        command.args(args).env("OUTFS_STORE", self.store());
        if self.config().exists() {
            command.env("OUTFS_CONFIG", self.config());
        }
        command.output().expect("outfs starts")
    }

    /// `VmRSS` of the serving process, in bytes.
    pub fn resident(&self) -> u64 {
        resident(self.pid())
    }
}

/// `VmRSS` of a process, in bytes.
pub fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon's status");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") * 1024
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.try_run(&["stop"]).status.success() {
            let _ = Command::new("fusermount3").args(["-u", "-z", "-q"]).arg(self.mnt()).status();
        }
    }
}

/// A small generator of numbers: same seed, same run.
pub struct Random(u64);

impl Random {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// `length` bytes that do not repeat.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut data = Vec::with_capacity(length + 8);
        while data.len() < length {
            data.extend(self.below(u64::MAX).to_le_bytes());
        }
        data.truncate(length);
        data
    }
}

/// The value below which `percent` of the sorted times lie.
pub fn percentile(sorted: &[Duration], percent: f64) -> Duration {
    sorted.get(((sorted.len() as f64 - 1.0) * percent / 100.0).round() as usize).copied().unwrap_or_default()
}
