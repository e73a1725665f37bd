//! What a process does, as strace sees it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::{eventually, need};

/// System calls of a running process, recorded with strace.
pub struct Trace {
    strace: Child,
    out: PathBuf,
}

impl Trace {
    /// Attaches to all threads of a process; returns when every call is recorded.
    #[track_caller]
    pub fn attach(pid: i32, out: PathBuf) -> Trace {
        Self::meddling(pid, out, &[])
    }

    /// The same; strace is told what to do to some calls, too.
    #[track_caller]
    pub fn meddling(pid: i32, out: PathBuf, how: &[&str]) -> Trace {
        need("strace");
        let stderr = out.with_extension("stderr");
        let mut c = Command::new("strace");
        c.args(["-f", "-y", "-e", "trace=file,desc", "-o"])
            .arg(&out)
            .args(how)
            .args(["-p", &pid.to_string()]);
        c.stdin(Stdio::null()).stderr(File::create(&stderr).expect("a file for strace's messages"));
        let strace = c.spawn().expect("strace starts");
        // It says so once, after the last thread.
        eventually("strace to attach", || fs::read_to_string(&stderr).is_ok_and(|t| t.contains(" attached")));
        Trace { strace, out }
    }

    /// Detaches and gives the recorded calls, one a line.
    #[track_caller]
    pub fn finish(mut self) -> Vec<String> {
        let pid = nix::unistd::Pid::from_raw(self.strace.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGINT).expect("our own child");
        self.strace.wait().expect("our own child");
        fs::read_to_string(&self.out).expect("strace wrote it").lines().map(str::to_owned).collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}
