//! Harness of the tests that mount for real: one daemon, one store and one mount for each test.
//!
//! Invariants: what a test started is gone when it ends, also when it fails; nothing outside
//! its own temporary directory is touched; waiting is polling with a deadline, never sleeping.
//! Must not know: the crate's inside. It drives the program as a user would.

#![allow(dead_code)]

pub mod files;
mod limits;
pub mod mounts;
pub mod trace;
pub mod tree;

pub use files::*;
pub use mounts::*;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Metadata as cuenv writes it.
pub const METADATA: &str = r#"{"task_id":"//pkg:build","digest":"sha256:00","command":["make","all"],
"created_at":"2026-01-02T03:04:05.123456789Z","duration_ms":1234,"exit_code":0}"#;

/// How long anything that happens in the background may take on a loaded machine.
pub const SOON: Duration = Duration::from_secs(60);

/// The program under test, in a clean environment.
pub fn outfs() -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_outfs"));
    for name in ["OUTFS_STORE", "OUTFS_LOG", "OUTFS_CONFIG", "XDG_CONFIG_HOME"] {
        c.env_remove(name);
    }
    // What root may make is not made beside the system's directories.
    let caches = concat!(env!("CARGO_TARGET_TMPDIR"), "/caches");
    c.env("HOME", "/nonexistent").env("XDG_CACHE_HOME", caches).stdin(Stdio::null());
    c
}

/// How the tests' mounts get the kernel's requests, if somebody chose (`OUTFS_TEST_TRANSPORT=uring`) and the test does not.
fn transport(args: &[impl AsRef<str>]) -> Vec<String> {
    let chosen = std::env::var("OUTFS_TEST_TRANSPORT")
        .ok()
        .filter(|_| !args.iter().any(|a| a.as_ref() == "--transport"));
    chosen.map_or(Vec::new(), |t| vec!["--transport".into(), t])
}

/// Fails the test where there is no FUSE: such a machine cannot vouch for a mount.
pub fn need_fuse() {
    assert!(
        Path::new("/dev/fuse").exists(),
        "this test mounts for real and needs /dev/fuse, which is missing here (modprobe fuse; in a container: --device /dev/fuse)"
    );
}

/// Fails the test where a program is missing; `scripts/test` installs them.
pub fn need(program: &str) {
    let found = std::env::var_os("PATH")
        .is_some_and(|p| std::env::split_paths(&p).any(|d| d.join(program).is_file()));
    assert!(
        found,
        "this test needs the program {program}, which is not installed (scripts/test installs it)"
    );
}

/// Fails the test when it is not run by root.
pub fn need_root() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root (it mounts, or changes users)");
}

/// Polls until `condition` holds; fails after [`SOON`], saying what was waited for.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    eventually_some(what, || condition().then_some(()));
}

/// Polls until there is a value; fails after [`SOON`], saying what was waited for.
#[track_caller]
pub fn eventually_some<T>(what: &str, mut value: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(v) = value() {
            return v;
        }
        assert!(Instant::now() < end, "waited {SOON:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs `work` in a thread and fails when it hangs.
#[track_caller]
pub fn within<T: Send + 'static>(
    limit: Duration,
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (tx, rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || tx.send(work()));
    rx.recv_timeout(limit).unwrap_or_else(|_| panic!("{what} took longer than {limit:?} (or panicked)"))
}

/// The error's number; fails when the operation succeeded.
#[track_caller]
pub fn errno<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("the operation succeeded, an error was expected"),
        Err(e) => e.raw_os_error().unwrap_or_else(|| panic!("an error without a number: {e}")),
    }
}

/// Asserts that an operation fails with this error.
#[macro_export]
macro_rules! assert_errno {
    ($result:expr, $errno:ident) => {{
        let got = $crate::common::errno($result);
        assert!(
            got == libc::$errno,
            "{} gave {} where {} is promised",
            stringify!($result),
            std::io::Error::from_raw_os_error(got),
            stringify!($errno)
        );
    }};
}

/// Runs a program and fails, with its output, unless it succeeds; gives its standard output.
#[track_caller]
pub fn sh(program: &str, args: &[&dyn AsRef<OsStr>]) -> String {
    let out = sh_out(program, args);
    assert!(
        out.status.success(),
        "{program} {:?} failed with {}:\n{}{}",
        args.iter().map(|a| a.as_ref().to_owned()).collect::<Vec<_>>(),
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs a program with the C locale.
#[track_caller]
pub fn sh_out(program: &str, args: &[&dyn AsRef<OsStr>]) -> Output {
    need(program);
    let mut c = Command::new(program);
    c.env("LC_ALL", "C").stdin(Stdio::null());
    args.iter().for_each(|a| {
        c.arg(a.as_ref());
    });
    c.output().unwrap_or_else(|e| panic!("cannot run {program}: {e}"))
}

/// A store, a mount point and the daemon that serves them.
pub struct Mount {
    mnt: PathBuf,
    store: PathBuf,
    args: Vec<String>,
    daemon: Option<Child>,
    log: PathBuf,
    more_mounts: Vec<PathBuf>,
    without_leases: bool,
    env: Vec<(String, String)>,
    descriptors: Option<u64>,
    /// What lies in `dir`, and goes before it.
    disk: Option<Mounted>,
    dir: tempfile::TempDir,
}

impl Mount {
    /// A new store, mounted with defaults and a quota that no test reaches by accident.
    #[track_caller]
    pub fn new() -> Mount {
        Mount::with(&["--size", "4G"])
    }

    /// A new store, mounted with these options.
    #[track_caller]
    pub fn with(args: &[&str]) -> Mount {
        let mut m = Mount::unmounted(args);
        m.start();
        m
    }

    /// A place for a store and a mount point, nothing started yet.
    pub fn unmounted(args: &[&str]) -> Mount {
        need_fuse();
        let dir = tempfile::Builder::new().prefix("outfs-test-").tempdir().expect("a temporary directory");
        let root = dir.path().canonicalize().expect("it exists");
        let mnt = root.join("mnt");
        fs::create_dir(&mnt).expect("a mount point");
        Mount {
            store: root.join("store"),
            log: root.join("log"),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            daemon: None,
            more_mounts: Vec::new(),
            without_leases: false,
            env: Vec::new(),
            descriptors: None,
            disk: None,
            mnt,
            dir,
        }
    }

    /// Puts the store on a disk of its own, of this size (before the start).
    pub fn on_disk(mut self, size: &str) -> Mount {
        let disk = Mounted::tmpfs(&self.dir.path().join("disk"), size);
        self.store = disk.0.join("store");
        self.disk = Some(disk);
        self
    }

    /// Where that disk is mounted.
    pub fn disk(&self) -> &Path {
        &self.disk.as_ref().expect("it has one").0
    }

    /// Has the daemon find no leases, as on a file system without them (before the start).
    pub fn without_leases(mut self) -> Mount {
        self.without_leases = true;
        self
    }

    /// Sets a variable of the daemon's environment (before the start).
    pub fn with_env(mut self, name: &str, value: &str) -> Mount {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Has the daemon do with so many descriptors (before the start).
    pub fn with_descriptors(mut self, most: u64) -> Mount {
        self.descriptors = Some(most);
        self
    }

    /// Starts the daemon and waits until the mount answers.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.daemon.is_none(), "the daemon runs already");
        let log = File::options().create(true).append(true).open(&self.log).expect("a log file");
        let mut c = outfs();
        c.arg("mount").arg(&self.mnt).arg("--store").arg(&self.store).arg("--foreground").args(&self.args);
        c.args(transport(&self.args)).envs(self.env.iter().map(|(name, value)| (name, value)));
        c.stdout(log.try_clone().expect("a second descriptor")).stderr(log);
        if self.without_leases {
            limits::no_leases(&mut c);
        }
        if let Some(most) = self.descriptors {
            limits::descriptors(&mut c, most);
        }
        let mut child = c.spawn().expect("the program under test starts");
        let mnt = self.mnt.clone();
        let end = Instant::now() + SOON;
        // A stale mount of a killed daemon does not answer this, and before the new one the directory below does.
        let answers = || {
            use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};
            statfs(&mnt).is_ok_and(|fs| fs.filesystem_type() == FUSE_SUPER_MAGIC)
        };
        while !answers() {
            if let Some(status) = child.try_wait().expect("our own child") {
                panic!("outfs mount ended with {status}:\n{}", self.log_text());
            }
            if Instant::now() >= end {
                let _ = child.kill();
                let _ = child.wait();
                detach(&mnt);
                panic!("the mount is not there after {SOON:?}:\n{}", self.log_text());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.daemon = Some(child);
    }

    /// Adds a view of the same store on a second mount point and gives its path.
    #[track_caller]
    pub fn add_view(&mut self, name: &str, args: &[&str]) -> PathBuf {
        let at = self.dir.path().canonicalize().expect("it exists").join(name);
        fs::create_dir(&at).expect("a mount point");
        let mut c = outfs();
        c.arg("mount").arg(&at).arg("--store").arg(&self.store).args(args).args(transport(args));
        self.more_mounts.push(at.clone());
        ok(c);
        assert!(is_mounted(&at), "outfs mount returned before the mount was ready");
        at
    }

    /// What the daemon logged.
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The daemon's process id.
    pub fn pid(&self) -> i32 {
        self.daemon.as_ref().expect("the daemon runs").id() as i32
    }

    /// Kills the daemon without a warning; the stale mount stays.
    #[track_caller]
    pub fn kill9(&mut self) {
        let mut child = self.daemon.take().expect("the daemon runs");
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }

    /// Ends the daemon with SIGTERM and waits.
    #[track_caller]
    pub fn terminate(&mut self) {
        let mut child = self.daemon.take().expect("the daemon runs");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGTERM)
            .expect("our own child");
        let end = Instant::now() + SOON;
        while child.try_wait().expect("our own child").is_none() {
            if Instant::now() >= end {
                let _ = child.kill();
                let _ = child.wait();
                detach(&self.mnt);
                panic!("the daemon did not end within {SOON:?} of SIGTERM:\n{}", self.log_text());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the daemon with SIGTERM and starts it again.
    #[track_caller]
    pub fn restart(&mut self) {
        self.terminate();
        self.start();
    }

    /// Ends it and starts it with other options.
    #[track_caller]
    pub fn restart_with(&mut self, args: &[&str]) {
        self.terminate();
        self.start_with(args);
    }

    /// Starts it with other options from now on.
    #[track_caller]
    pub fn start_with(&mut self, args: &[&str]) {
        self.args = args.iter().map(|a| (*a).to_owned()).collect();
        self.start();
    }

    /// The mount point.
    pub fn mnt(&self) -> &Path {
        &self.mnt
    }

    /// A path below the mount point.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.mnt.join(below)
    }

    /// A work draft's path.
    pub fn work(&self, name: &str) -> PathBuf {
        self.mnt.join(".outfs/work").join(name)
    }

    /// The store.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// A path in the test's temporary directory, outside store and mount.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `outfs ARGS --store STORE`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = outfs();
        c.args(args).arg("--store").arg(&self.store);
        c
    }

    /// Runs `outfs ARGS --store STORE` and gives its output, whatever it is.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program under test starts")
    }

    /// Runs it; fails unless it succeeds; gives its standard output.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        ok(self.command(args))
    }

    /// Runs it and gives its exit code.
    #[track_caller]
    pub fn code(&self, args: &[&str]) -> i32 {
        self.run(args).status.code().expect("it was not killed")
    }

    /// Runs it with `--json` and parses the one object it prints.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = self.json_lines(args);
        assert_eq!(all.len(), 1, "outfs {args:?} --json prints one object");
        all.remove(0)
    }

    /// Runs it with `--json` and parses every line.
    #[track_caller]
    pub fn json_lines(&self, args: &[&str]) -> Vec<Value> {
        let mut c = self.command(args);
        c.arg("--json");
        let text = ok(c);
        let parse =
            |l| serde_json::from_str(l).unwrap_or_else(|e| panic!("outfs {args:?} --json: {e} in {l}"));
        text.lines().map(parse).collect()
    }

    /// All events so far, oldest first, from the mount's own file.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let text =
            fs::read_to_string(self.mnt.join(".outfs/events.jsonl")).expect("events.jsonl is readable");
        text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e} in {l}"))).collect()
    }

    /// Is there an event of this kind for this key?
    #[track_caller]
    pub fn has_event(&self, kind: &str, key: &str) -> bool {
        self.events().iter().any(|e| e["event"] == kind && e["key"] == key)
    }

    /// `.outfs/stats.json`.
    #[track_caller]
    pub fn stats(&self) -> Value {
        let text = fs::read(self.mnt.join(".outfs/stats.json")).expect("stats.json is readable");
        serde_json::from_slice(&text).expect("stats.json is JSON")
    }

    /// Makes a work draft with metadata and lets `fill` write `outputs/`.
    #[track_caller]
    pub fn draft(&self, name: &str, fill: impl FnOnce(&Path)) -> PathBuf {
        let top = self.work(name);
        fs::create_dir(&top).expect("a work draft");
        fill_entry(&top, fill);
        top
    }

    /// Seals an entry by renaming a work draft and gives its path.
    #[track_caller]
    pub fn entry(&self, key: &str, fill: impl FnOnce(&Path)) -> PathBuf {
        let draft = self.draft(&format!("for-{key}"), fill);
        let sealed = self.path(key);
        fs::rename(&draft, &sealed).unwrap_or_else(|e| panic!("publishing {key}: {e}\n{}", self.log_text()));
        sealed
    }

    /// Seals an entry with one output `f` of this content.
    #[track_caller]
    pub fn entry_of(&self, key: &str, content: impl AsRef<[u8]>) -> PathBuf {
        self.entry(key, |outputs| write(outputs.join("f"), content))
    }

    /// `outfs seal ARGS`, the last of which is the key; waits until the mount shows it (D3).
    #[track_caller]
    pub fn seal(&self, args: &[&str]) {
        let key = args.last().expect("a key");
        self.ok(&[&["seal"], args].concat());
        eventually("the mount to show what was sealed", || self.is_sealed(key));
    }

    /// `outfs evict KEY`; waits until the mount does not show it any more (D3).
    #[track_caller]
    pub fn evict(&self, key: &str) {
        self.ok(&["evict", key]);
        eventually("the mount to hide what was evicted", || fs::symlink_metadata(self.path(key)).is_err());
    }

    /// Is this key's entry sealed? (A draft in place has the same path.)
    pub fn is_sealed(&self, key: &str) -> bool {
        matches!(xattr_text(self.path(key), "user.outfs.state").as_deref(), Some("sealed" | "inferred"))
    }

    /// Does the store still have the bytes of the entry's only output? Tells by the number of
    /// manifests.
    pub fn manifests(&self) -> usize {
        files_below(&self.store.join("manifests")).into_iter().filter(|p| p.extension().is_none()).count()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon's log:\n{}---", self.log_text());
        }
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for at in self.more_mounts.iter().chain([&self.mnt]) {
            detach(at);
        }
    }
}

/// Runs it, fails with its output unless it succeeds, and gives its standard output.
#[track_caller]
pub fn ok(mut c: Command) -> String {
    let out = c.output().expect("the program under test starts");
    assert!(
        out.status.success(),
        "{:?} failed with {}:\n{}{}",
        c,
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).expect("output is UTF-8")
}
