//! kill -9 of a command, of `outfs run` or of the daemon, at random moments of cached runs.
//!
//! usage: `runs KILLS [SEED]` with OUTFS_BIN set. Goes on until so many have hit. After each death the same is run again: it must succeed and leave exactly what
//! its input asks for. Nothing of the command that died may live on; drafts, mounts and locks of runs are gone
//! after the next start; a run whose daemon dies ends well. At the end, fsck --verify-data.

mod daemon;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use daemon::{Daemon, Random};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Inputs are one of so many: the same key comes back again and again.
const INPUTS: u64 = 5;
/// What was killed must be gone within.
const GONE: Duration = Duration::from_secs(15);
const VICTIMS: [&str; 3] = ["the command", "outfs", "the daemon"];

struct Project {
    daemon: Daemon,
    dir: PathBuf,
    mark: String,
}

impl Project {
    fn new() -> Project {
        let daemon = Daemon::new();
        let dir = daemon.scratch().join("project");
        fs::create_dir_all(&dir).expect("mkdir");
        Project { daemon, dir, mark: format!("outfs-load-runs-{}", std::process::id()) }
    }

    /// `outfs run` of a script that starts what has to be killed with it, and writes some of each output at a time.
    fn run(&self, sandbox: &str) -> Command {
        let script = format!(
            "setsid sh -c 'while :; do sleep 0.1; done' {0} & S=$!; sh -c 'sleep 60' {0} & sh -c 'sleep 0.05' {0}; mkdir -p o; \
             cat in in > o/twice; head -c 400000 /dev/zero > o/large; sleep 0.0$(cut -c1 in); cat in >> o/large; kill $S",
            self.mark
        );
        let mut c = Command::new(std::env::var_os("OUTFS_BIN").expect("OUTFS_BIN names the outfs program"));
        c.args([
            "run",
            "--task",
            "t",
            "--input",
            "in",
            "--output",
            "o",
            "--sandbox",
            sandbox,
            "--",
            "sh",
            "-c",
        ]);
        c.args([&script, &self.mark]).current_dir(&self.dir);
        c.env("OUTFS_STORE", self.daemon.store()).env("XDG_CACHE_HOME", self.daemon.scratch().join("memory"));
        c.stdout(Stdio::null()).stderr(Stdio::null());
        c
    }

    /// Processes of the command.
    fn processes(&self) -> Vec<i32> {
        let all = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        let ours = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.windows(self.mark.len()).any(|w| w == self.mark.as_bytes())
        };
        pids.filter(ours).collect()
    }

    /// The shell that runs the script: it is no outfs and no guard, and has the mark.
    fn command(&self) -> Option<i32> {
        let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        self.processes().into_iter().find(|pid| name(*pid).trim() == "sh")
    }

    /// Kills the victim; true when it was there.
    fn kill(&self, victim: usize, child: &mut Child) -> bool {
        let pid = match victim {
            0 => self.command(),
            1 => Some(child.id() as i32),
            _ => Some(self.daemon.pid()),
        };
        pid.is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok())
    }

    /// What has a session of its own lives on when the command has ended and nobody asked it to.
    fn end_sessions(&self) {
        let leads = |pid: &i32| nix::unistd::getsid(Some(Pid::from_raw(*pid))) == Ok(Pid::from_raw(*pid));
        for pid in self.processes().into_iter().filter(leads) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    fn nothing_left(&self, round: u64) {
        let end = Instant::now() + GONE;
        while !self.processes().is_empty() {
            assert!(Instant::now() < end, "round {round}: still there: {:?}", self.processes());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Outputs that fit the input.
    fn check(&self, round: u64, content: &str) {
        let read = |name: &str| {
            fs::read(self.dir.join(name)).unwrap_or_else(|e| panic!("round {round}: {name}: {e}"))
        };
        assert_eq!(read("o/twice"), [content, content].concat().as_bytes(), "round {round}: a wrong result");
        let large = read("o/large");
        let right = large.len() == 400_000 + content.len() && large.ends_with(content.as_bytes());
        assert!(right, "round {round}: a wrong result of {} bytes", large.len());
    }

    /// Nothing in the store that a run began and did not end.
    fn sound(&self, round: u64) {
        // The daemon looks once in a while whether those live for whom a draft is.
        let end = Instant::now() + GONE;
        loop {
            let drafts = self.daemon.run(&["drafts", "--json"]);
            if drafts.is_empty() {
                break;
            }
            assert!(Instant::now() < end, "round {round}: a draft is left: {drafts}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let runs = fs::read_dir(self.daemon.store().join("runs")).expect("the store").count();
        assert_eq!(runs, 0, "round {round}: a flight is left");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let place = self.daemon.store().parent().expect("it lies somewhere").to_owned();
        let ours = mounts.lines().filter(|line| line.contains(place.to_str().expect("text")));
        assert_eq!(ours.count(), 1, "round {round}: the daemon's own mount and no other");
    }
}

fn round(p: &Project, round: u64, random: &mut Random, sandboxes: &[&str]) -> Option<usize> {
    let content = format!("{}\n", random.below(INPUTS));
    let sandbox = sandboxes[random.below(sandboxes.len() as u64) as usize];
    fs::write(p.dir.join("in"), &content).expect("write");
    if random.below(3) > 0 {
        // Else most of them would be hits.
        let _ = p.daemon.ask(&["gc", "--older-than", "0s"]);
    }
    if random.below(2) == 0 {
        let _ = fs::remove_dir_all(p.dir.join("o"));
    }
    let mut child = p.run(sandbox).spawn().expect("outfs starts");
    std::thread::sleep(Duration::from_millis(random.below(400)));
    let victim = random.below(3) as usize;
    let killed = p.kill(victim, &mut child);
    let status = child.wait().expect("our own child");
    if victim == 0 {
        p.end_sessions();
    }
    p.nothing_left(round);
    if victim == 2 {
        assert!(status.success(), "round {round}: the daemon's death failed the task: {status}");
        p.check(round, &content);
        let _ = Command::new("fusermount3").args(["-u", "-z", "-q"]).arg(p.daemon.mnt()).status();
        p.daemon.mount(&["--min-age", "0s"]);
    }
    let status = p.run(sandbox).status().expect("outfs starts");
    assert!(status.success(), "round {round}: after the death of {}: {status}", VICTIMS[victim]);
    p.check(round, &content);
    p.nothing_left(round);
    p.sound(round);
    killed.then_some(victim)
}

fn main() {
    let mut args = std::env::args().skip(1);
    let wanted: u64 = args.next().and_then(|n| n.parse().ok()).expect("usage: runs KILLS [SEED]");
    let seed = args.next().map_or_else(|| u64::from(std::process::id()), |s| s.parse().expect("a number"));
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let p = Project::new();
    p.daemon.mount(&["--min-age", "0s"]);
    let mut sandboxes = vec!["none"];
    fs::write(p.dir.join("in"), "0\n").expect("write");
    match p.run("bwrap").status().expect("outfs starts").success() {
        true => sandboxes.push("bwrap"),
        false => println!("no sandbox here"),
    }
    let (mut kills, mut tried) = ([0; 3], 0);
    // Some runs have ended before they are to be killed; those rounds prove less, and do not count.
    while kills.iter().sum::<u64>() < wanted {
        assert!(tried < 3 * wanted, "of {tried} rounds only {kills:?} killed something");
        if let Some(victim) = round(&p, tried, &mut random, &sandboxes) {
            kills[victim] += 1;
        }
        tried += 1;
    }
    p.daemon.run(&["stop"]);
    p.daemon.run(&["fsck", "--verify-data"]);
    let told: Vec<String> = kills.iter().zip(VICTIMS).map(|(n, what)| format!("{what} {n} times")).collect();
    println!(
        "{tried} rounds, killed {}: no wrong hit, nothing left, fsck --verify-data passed",
        told.join(", ")
    );
}
