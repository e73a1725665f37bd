//! Where a run happens: its directories, the commands it runs, and the caches it drops.
//!
//! Invariant: all of it lies below `BENCH_RUN` (deleted by `scripts/bench` afterwards) and `BENCH_DIR` (kept, so that
//! trees and images need not be made again).

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::options::{Mode, Options};

/// The ordinary user, Debian's `nobody`.
pub const NOBODY: u32 = 65534;

/// The directories of a run.
pub struct Place {
    /// Kept between runs: trees and images.
    pub kept: PathBuf,
    /// This run's own.
    pub run: PathBuf,
    /// The outfs program.
    pub outfs: PathBuf,
}

impl Place {
    /// Takes the directories from the environment that `scripts/bench` sets.
    pub fn new(options: &Options) -> Result<Self, String> {
        let var = |name| {
            std::env::var_os(name).map(PathBuf::from).ok_or(format!("{name} is not set: use scripts/bench"))
        };
        let place = Self { kept: var("BENCH_DIR")?, run: var("BENCH_RUN")?, outfs: var("OUTFS_BIN")? };
        for dir in ["trees", "images"] {
            let dir = place.kept.join(dir);
            fs::create_dir_all(&dir).map_err(|e| format!("creating {}: {e}", dir.display()))?;
        }
        let kind = output(Command::new("stat").args(["-f", "-c", "%T"]).arg(&place.run))?;
        if options.mode != Mode::Smoke && !kind.starts_with("ext") {
            return Err(format!(
                "{} is on {}, but native means ext4 here; name a directory on ext4 with --dir",
                place.run.display(),
                kind.trim()
            ));
        }
        Ok(place)
    }

    /// A new empty directory of this run.
    pub fn fresh(&self, name: &str) -> Result<PathBuf, String> {
        let dir = self.run.join(name);
        fs::create_dir_all(&dir).map_err(|e| format!("creating {}: {e}", dir.display()))?;
        Ok(dir)
    }

    /// Mounts a file system image of this run, made by `mkfs`, or a tmpfs without one.
    pub fn volume(&self, name: &str, kind: &str, gib: u64) -> Result<PathBuf, String> {
        let dir = self.fresh(name)?;
        if kind == "tmpfs" {
            run(Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={gib}g,mode=755"), "tmpfs"])
                .arg(&dir))?;
        } else {
            let image = self.run.join(format!("{name}.img"));
            let file = fs::File::create(&image).map_err(|e| format!("creating {}: {e}", image.display()))?;
            file.set_len(gib << 30).map_err(|e| format!("extending {}: {e}", image.display()))?;
            run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image))?;
            run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&dir))?;
        }
        Ok(dir)
    }
}

/// A store and the views of its daemon, which ends with the value.
pub struct Store {
    program: PathBuf,
    pub dir: PathBuf,
    /// Whether an ordinary user owns it.
    pub user: bool,
}

impl Store {
    /// A store below `dir`, which is made; its files are made by the first command.
    pub fn new(place: &Place, dir: &Path, user: bool) -> Result<Self, String> {
        fs::create_dir_all(dir).map_err(|e| format!("creating {}: {e}", dir.display()))?;
        if user {
            give(dir)?;
        }
        Ok(Self { program: place.outfs.clone(), dir: dir.to_owned(), user })
    }

    /// An `outfs` command on this store, as its owner.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env("OUTFS_STORE", self.dir.join("store")).env("HOME", &self.dir).current_dir("/");
        become_user(&mut command, self.user);
        command
    }

    /// Mounts a view below the store's directory.
    pub fn mount(&self, name: &str, options: &[&str]) -> Result<PathBuf, String> {
        let at = self.dir.join(name);
        fs::create_dir_all(&at).map_err(|e| format!("creating {}: {e}", at.display()))?;
        if self.user {
            give(&at)?;
        }
        run(self.command([OsStr::new("mount"), at.as_os_str()]).args(options))?;
        Ok(at)
    }

    /// Ends the daemon with all its views.
    pub fn stop(&self) -> Result<(), String> {
        run(&mut self.command(["stop"]))
    }

    /// How the first view gets its requests: `dev` or `uring`.
    pub fn transport(&self) -> Result<String, String> {
        let text = output(&mut self.command(["status", "--json"]))?;
        let status: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| format!("outfs status: {e}"))?;
        Ok(status["views"][0]["transport"].as_str().unwrap_or("unknown").to_owned())
    }

    /// The store's numbers.
    pub fn stats(&self) -> Result<serde_json::Value, String> {
        let text = output(&mut self.command(["stats", "--json"]))?;
        serde_json::from_str(&text).map_err(|e| format!("outfs stats: {e}"))
    }

    /// Waits until the daemon has nothing left to do: for 200 ms it used no processor time.
    pub fn settle(&self) -> Result<(), String> {
        let pid = self.stats()?["pid"].as_i64().ok_or("no daemon runs")?;
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut before = String::new();
        while Instant::now() < deadline {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
                .map_err(|e| format!("the daemon's stat: {e}"))?;
            let used = stat.split(' ').skip(13).take(2).collect::<Vec<_>>().join(" ");
            if used == before {
                return Ok(());
            }
            before = used;
            thread::sleep(Duration::from_millis(200));
        }
        Err("the daemon is still busy after 20 s".into())
    }

    /// Waits until nothing is left of former samples: what a store holds already costs less to seal. What the kernel
    /// still knows is freed a little later.
    pub fn wait_until_empty(&self) -> Result<(), String> {
        self.wait("empty", |totals| {
            totals["entries"].as_u64() == Some(0) && totals["blobs"].as_u64() == Some(0)
        })
    }

    /// Waits until so many entries are left.
    pub fn wait_for_entries(&self, count: u64) -> Result<(), String> {
        self.wait("as it was", |totals| totals["entries"].as_u64() == Some(count))
    }

    fn wait(&self, what: &str, done: impl Fn(&serde_json::Value) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let totals = &self.stats()?["totals"];
            if done(totals) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("the store is not {what}: {totals}"));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The memory that the daemon has in use, in bytes.
    pub fn resident(&self) -> Result<u64, String> {
        resident(self.stats()?["pid"].as_u64().ok_or("no daemon runs")?)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.command(["stop"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// `VmRSS` of a process, in bytes.
pub fn resident(pid: u64) -> Result<u64, String> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(|e| format!("reading {path}: {e}"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kb = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kb.map(|kb| kb * 1024).ok_or(format!("{path}: no VmRSS"))
}

/// Makes a directory the ordinary user's.
fn give(dir: &Path) -> Result<(), String> {
    std::os::unix::fs::chown(dir, Some(NOBODY), Some(NOBODY))
        .map_err(|e| format!("chown {}: {e}", dir.display()))
}

/// Has a command run as the ordinary user.
pub fn become_user(command: &mut Command, user: bool) {
    if user {
        command.uid(NOBODY).gid(NOBODY);
    }
}

/// Runs a command that must succeed; its words are shown only when it fails.
pub fn run(command: &mut Command) -> Result<(), String> {
    output(command).map(drop)
}

/// What a command that must succeed says.
pub fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let shown = || format!("{command:?}").chars().take(300).collect::<String>();
    let shown = shown();
    // A file, not a pipe: what becomes a daemon keeps it open.
    let mut said = tempfile::tempfile().map_err(|e| format!("a temporary file: {e}"))?;
    let copy = || said.try_clone().map_err(|e| format!("a temporary file: {e}"));
    let status = command
        .stdin(Stdio::null())
        .stdout(copy()?)
        .stderr(copy()?)
        .status()
        .map_err(|e| format!("starting {name}: {e}"))?;
    let mut text = String::new();
    use std::io::{Read, Seek};
    said.rewind()
        .and_then(|()| said.read_to_string(&mut text))
        .map_err(|e| format!("output of {name}: {e}"))?;
    if !status.success() {
        return Err(format!("{shown}: {status}: {}", text.trim()));
    }
    Ok(text)
}

/// Empties the page, inode and name caches, and gives servers a moment to digest that.
pub fn drop_caches() -> Result<(), String> {
    run(&mut Command::new("sync"))?;
    for _ in 0..2 {
        fs::write("/proc/sys/vm/drop_caches", "3").map_err(|e| format!("dropping caches: {e}"))?;
        thread::sleep(Duration::from_millis(25));
    }
    Ok(())
}

/// Empties the name and inode caches only: what a first look-up finds.
pub fn drop_names() -> Result<(), String> {
    fs::write("/proc/sys/vm/drop_caches", "2").map_err(|e| format!("dropping caches: {e}"))
}

/// Waits until something is mounted at `at`.
pub fn wait_for_mount(at: &Path) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let wanted = format!(" {} ", at.display());
    while Instant::now() < deadline {
        if fs::read_to_string("/proc/self/mounts").is_ok_and(|m| m.contains(&wanted)) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(format!("nothing was mounted at {} in 20 s", at.display()))
}
