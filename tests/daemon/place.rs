//! Where a test's daemon lives, and what uses it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::{self, need_fuse, outfs, write};

/// A store and directories to mount on; what runs there is ended when it is dropped.
pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        need_fuse();
        let p = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        fs::create_dir(p.at("m1")).expect("mkdir");
        fs::create_dir(p.at("m2")).expect("mkdir");
        p
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().expect("it exists").join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = outfs();
        c.args(args).env("OUTFS_STORE", self.at("store")).current_dir(self.dir.path());
        c
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("outfs starts")
    }

    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "outfs {args:?}: {}", said(&out));
        String::from_utf8(out.stdout).expect("text")
    }

    #[track_caller]
    pub fn fails(&self, part: &str, args: &[&str]) -> String {
        let out = self.run(args);
        assert_eq!(out.status.code(), Some(1), "outfs {args:?}: {}", said(&out));
        assert!(said(&out).contains(part), "outfs {args:?} says {part:?}: {}", said(&out));
        said(&out)
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).expect("JSON")
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.json(&["stats"])["pid"].as_i64().expect("a daemon runs") as i32)
    }

    pub fn running(&self) -> bool {
        self.json(&["status"])["running"] == true
    }

    /// An entry with one output, made through the mount.
    pub fn entry(&self, key: &str) {
        let work = self.at("m1/.outfs/work").join(key);
        fs::create_dir_all(work.join("outputs")).expect("a draft");
        write(work.join("outputs/f"), key);
        fs::rename(work, self.at("m1").join(key)).expect("published");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.run(&["stop", "--lazy"]).status.success() {
            eprintln!("{}", fs::read_to_string(self.at("store/daemon.log")).unwrap_or_default());
        }
        for at in ["m1", "m2"] {
            common::detach(&self.at(at));
        }
    }
}

pub fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// A process that keeps a file open until it is dropped.
pub struct Reader(pub Child);

impl Reader {
    pub fn of(path: &Path) -> Self {
        let file = fs::File::open(path).expect("it opens");
        Self(Command::new("sleep").arg("600").stdin(Stdio::from(file)).spawn().expect("sleep starts"))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that goes on when this is dropped.
pub struct Halted(pub Pid);

impl Halted {
    pub fn new(pid: Pid) -> Self {
        kill(pid, Signal::SIGSTOP).expect("our daemon");
        Self(pid)
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}
