//! kill -9 of a command, of `outfs run` or of the daemon, at random moments of cached runs.
//!
//! usage: `runs KILLS [SEED]` with OUTFS_BIN set. Goes on until so many have hit. Runs start from nothing, from another entry (`--base`),
//! or read one (`--from`), with a sandbox and without. After each death the same is run again: it must succeed and leave exactly
//! what its inputs ask for, in names, contents, modes and links. Nothing of the command that died may live on; drafts, mounts, rooms and
//! locks of runs are gone after the next start; a run whose daemon dies ends well. At the end, fsck --verify-data.

mod daemon;

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use daemon::{Daemon, Random};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getsid};

/// Inputs are one of so many: the same key comes back again and again.
const INPUTS: u64 = 5;
/// What is started from, or read, is made of one of so many.
const BASES: u64 = 2;
/// What was killed must be gone within, and a run must end.
const GONE: Duration = Duration::from_secs(15);
const VICTIMS: [&str; 3] = ["the command", "outfs", "the daemon"];
/// What the command exits with if the other entry cannot be read.
const UNREADABLE: i32 = 9;
/// Makes the other entry.
const BASE: &str = "umask 022; mkdir -p o/dir o/empty; cat seed > o/dir/seed; chmod 640 o/dir/seed; chmod 750 o/dir; \
    ln -s dir/seed o/link; echo tool > o/tool; chmod 755 o/tool";

/// What stands somewhere: its mode and kind, and its content or target.
type Tree = BTreeMap<PathBuf, (u32, Vec<u8>)>;

/// What a run has besides its input.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Other {
    Nothing,
    Base,
    From,
}

/// How a task is run.
#[derive(Debug, Clone, Copy)]
struct Way {
    sandbox: &'static str,
    other: Other,
}

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

    fn memory(&self) -> PathBuf {
        self.daemon.scratch().join("memory")
    }

    fn outfs(&self, args: &[&str]) -> Command {
        let mut c = Command::new(std::env::var_os("OUTFS_BIN").expect("OUTFS_BIN names the outfs program"));
        c.args(args).current_dir(&self.dir);
        c.env("OUTFS_STORE", self.daemon.store()).env("XDG_CACHE_HOME", self.memory());
        c.stdout(Stdio::null()).stderr(Stdio::null());
        c
    }

    /// `outfs run` of a script that starts what has to be killed with it, and writes some of each output at a time.
    fn run(&self, way: Way) -> Command {
        let script = format!(
            "umask 022; export OUTFS_LOAD_MARK={0}; setsid sh -c 'while :; do sleep 0.1; done' {0} & S=$!; sleep 60 & \
             sh -c 'sleep 0.05' {0}; mkdir -p o; cat in in > o/twice; chmod 600 o/twice; ln -s twice o/alias; \
             head -c 400000 /dev/zero > o/large; sleep 0.0$(cut -c1 in); cat in >> o/large; chmod 755 o/large; \
             if [ -e o/dir ]; then cat in >> o/dir/seed; fi; \
             if [ -e g ]; then cat g/o/link > o/got || exit {UNREADABLE}; fi; kill $S",
            self.mark
        );
        let mut args = vec!["run", "--task", "t", "--input", "in", "--output", "o", "--sandbox", way.sandbox];
        match way.other {
            Other::Nothing => {}
            Other::Base => args.extend(["--base", "base"]),
            Other::From => args.extend(["--from", "g=base"]),
        }
        args.extend(["--", "sh", "-c", &script, &self.mark]);
        self.outfs(&args)
    }

    /// Has the other entry be there.
    fn make_base(&self, round: u64) {
        let args = ["run", "--task", "base", "--input", "seed", "--output", "o", "--", "sh", "-c", BASE];
        let status = ended(&mut self.outfs(&args).spawn().expect("outfs starts"), round);
        assert!(status.success(), "round {round}: the other entry: {status}");
        assert_same(round, &tree(&self.dir.join("o")), &base(&self.seed()));
    }

    fn seed(&self) -> Vec<u8> {
        fs::read(self.dir.join("seed")).expect("it was written")
    }

    /// What a run must leave.
    fn wanted(&self, content: &str, other: Other) -> Tree {
        let seed = self.seed();
        let mut all = if other == Other::Base { base(&seed) } else { Tree::new() };
        if let Some((_, bytes)) = all.get_mut(Path::new("dir/seed")) {
            bytes.extend(content.as_bytes());
        }
        let large = [&vec![0; 400_000][..], content.as_bytes()].concat();
        let made = [
            ("", 0o40755, vec![]),
            ("twice", 0o100_600, content.repeat(2).into_bytes()),
            ("alias", 0o120_777, b"twice".to_vec()),
            ("large", 0o100_755, large),
        ];
        let got = (other == Other::From).then_some(("got", 0o100_644, seed));
        all.extend(made.into_iter().chain(got).map(|(name, mode, bytes)| (name.into(), (mode, bytes))));
        all
    }

    /// Processes of the command, and who looks after it.
    fn processes(&self) -> Vec<i32> {
        let has = |file: String| {
            let text = fs::read(file).unwrap_or_default();
            text.windows(self.mark.len()).any(|w| w == self.mark.as_bytes())
        };
        let all = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| has(format!("/proc/{pid}/cmdline")) || has(format!("/proc/{pid}/environ")))
            .collect()
    }

    /// The shell that runs the script, and no copy of it that is about to become something else.
    fn command(&self) -> Option<i32> {
        let is_script = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with(b"sh\0-c\0umask")
        };
        let shells: Vec<i32> = self.processes().into_iter().filter(is_script).collect();
        shells.iter().copied().find(|pid| parent(*pid).is_some_and(|parent| !shells.contains(&parent)))
    }

    /// Kills the victim; true when it was there, and the run, too.
    fn kill(&self, victim: usize, child: &mut Child) -> bool {
        // What has ended and was not waited for can be killed, too.
        let runs = child.try_wait().expect("our own child").is_none();
        let pid = match victim {
            0 => self.command(),
            1 => runs.then_some(child.id() as i32),
            _ => Some(self.daemon.pid()),
        };
        pid.is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()) && runs
    }

    /// What has a session of its own lives on when a command has ended that nobody asked to, and nothing else does.
    fn end_session(&self, round: u64) {
        let alone = |pid: &i32| getsid(Some(Pid::from_raw(*pid))) != getsid(None);
        self.eventually(round, "it has no session of its own", || {
            self.processes().into_iter().filter(|pid| !alone(pid)).collect()
        });
        let leads = |pid: &i32| getsid(Some(Pid::from_raw(*pid))) == Ok(Pid::from_raw(*pid));
        let leaders: Vec<i32> = self.processes().into_iter().filter(leads).collect();
        assert!(leaders.len() <= 1, "round {round}: the command made one session: {leaders:?}");
        for pid in leaders {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    fn nothing_left(&self, round: u64) {
        self.eventually(round, "it is still there", || self.processes());
    }

    fn eventually(&self, round: u64, what: &str, left: impl Fn() -> Vec<i32>) {
        let end = Instant::now() + GONE;
        loop {
            let left = left();
            if left.is_empty() {
                return;
            }
            let lines = left.iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")));
            assert!(Instant::now() < end, "round {round}: {what}: {left:?} {:?}", lines.collect::<Vec<_>>());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Outputs that fit the inputs.
    fn check(&self, round: u64, content: &str, other: Other) {
        assert_same(round, &tree(&self.dir.join("o")), &self.wanted(content, other));
    }

    /// Nothing in the store, or beside it, that a run began and did not end.
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
        let names: Vec<PathBuf> =
            tree(&self.dir).into_keys().filter(|p| p.components().count() == 1).collect();
        assert_eq!(names, ["in", "o", "seed"].map(PathBuf::from), "round {round}: in the project");
        for path in tree(&self.memory()).into_keys().map(|path| self.memory().join(path)) {
            let in_room = path.ancestors().any(|dir| dir.ends_with("rooms"));
            assert!(!in_room || path.ends_with("rooms"), "round {round}: {} is left", path.display());
            if path.is_file() {
                let lock = File::open(&path).expect("our own file").try_lock();
                let held = matches!(lock, Err(TryLockError::WouldBlock));
                assert!(!held, "round {round}: {} is locked", path.display());
            }
        }
    }
}

/// What the other entry has.
fn base(seed: &[u8]) -> Tree {
    let all: [(&str, u32, &[u8]); 6] = [
        ("", 0o40755, b""),
        ("dir", 0o40750, b""),
        ("dir/seed", 0o100_640, seed),
        ("empty", 0o40755, b""),
        ("link", 0o120_777, b"dir/seed"),
        ("tool", 0o100_755, b"tool\n"),
    ];
    all.into_iter().map(|(name, mode, bytes)| (name.into(), (mode, bytes.to_vec()))).collect()
}

fn tree(top: &Path) -> Tree {
    let (mut all, mut waiting) = (Tree::new(), vec![top.to_owned()]);
    while let Some(path) = waiting.pop() {
        let Ok(meta) = path.symlink_metadata() else { continue };
        let bytes = match (meta.is_dir(), meta.is_symlink()) {
            (true, _) => {
                waiting
                    .extend(fs::read_dir(&path).expect("a directory").map(|e| e.expect("an entry").path()));
                Vec::new()
            }
            (_, true) => fs::read_link(&path).expect("a link").as_os_str().as_bytes().to_vec(),
            _ => fs::read(&path).expect("a file"),
        };
        let below = path.strip_prefix(top).expect("below");
        all.insert(below.to_owned(), (meta.permissions().mode(), bytes));
    }
    all
}

fn assert_same(round: u64, is: &Tree, wanted: &Tree) {
    let differs = is.keys().chain(wanted.keys()).find(|path| is.get(*path) != wanted.get(*path));
    let short = |tree: &Tree, path| {
        let node =
            tree.get(path).map(|(mode, bytes)| (format!("{mode:o}"), bytes.len(), bytes.last_chunk::<9>()));
        format!("{node:?}")
    };
    if let Some(path) = differs {
        let (is, wanted) = (short(is, path), short(wanted, path));
        panic!("round {round}: a wrong result at {path:?}: {is}, not {wanted}");
    }
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Waits for a run, which must not wait for ever itself.
fn ended(child: &mut Child, round: u64) -> ExitStatus {
    let end = Instant::now() + 2 * GONE;
    loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            return status;
        }
        assert!(Instant::now() < end, "round {round}: a run does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Kills at some moment of what such a run takes, and looks what comes of it.
fn round(p: &Project, round: u64, random: &mut Random, ways: &[Way], takes: Duration) -> Option<usize> {
    let content = format!("{}\n", random.below(INPUTS));
    let way = ways[random.below(ways.len() as u64) as usize];
    fs::write(p.dir.join("in"), &content).expect("write");
    fs::write(p.dir.join("seed"), format!("seed {}\n", random.below(BASES))).expect("write");
    if random.below(3) > 0 {
        // Else most of them would be hits.
        let _ = p.daemon.ask(&["gc", "--older-than", "0s"]);
    }
    if way.other != Other::Nothing {
        p.make_base(round);
    }
    if random.below(2) == 0 {
        let _ = fs::remove_dir_all(p.dir.join("o"));
    }
    let mut child = p.run(way).spawn().expect("outfs starts");
    std::thread::sleep(Duration::from_micros(random.below(takes.as_micros() as u64)));
    let victim = random.below(3) as usize;
    let killed = p.kill(victim, &mut child);
    let status = ended(&mut child, round);
    let told =
        format!("round {round}, {way:?}: {} was killed: {killed}, and the run: {status}", VICTIMS[victim]);
    match victim {
        // A sandbox leaves nothing at all.
        0 if killed && way.sandbox == "none" => p.end_session(round),
        1 if killed => assert!(status.signal().is_some() || status.success(), "{told}"),
        _ => {}
    }
    p.nothing_left(round);
    let unreadable = victim == 2 && way.other == Other::From && status.code() == Some(UNREADABLE);
    match victim {
        0 if killed => assert!(matches!(status.code(), Some(0 | 137)), "{told}"),
        1 if killed => {}
        _ => assert!(status.success() || unreadable, "{told}"),
    }
    if status.success() {
        p.check(round, &content, way.other);
    }
    if victim == 2 {
        let _ = Command::new("fusermount3").args(["-u", "-z", "-q"]).arg(p.daemon.mnt()).status();
        p.daemon.mount(&["--min-age", "0s"]);
    }
    let status = ended(&mut p.run(way).spawn().expect("outfs starts"), round);
    assert!(status.success(), "round {round}, {way:?}: after the death of {}: {status}", VICTIMS[victim]);
    p.check(round, &content, way.other);
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
    let inside = Way { sandbox: "bwrap", other: Other::Nothing };
    let took = |way| {
        let begun = Instant::now();
        let works = p.run(way).status().expect("outfs starts").success();
        works.then(|| begun.elapsed())
    };
    let mut alone = "; there is no sandbox here";
    let mut takes = took(Way { sandbox: "none", ..inside }).expect("a run works");
    if let Some(took) = took(inside) {
        takes = takes.max(took);
        sandboxes.push("bwrap");
        alone = "";
    }
    let others = [Other::Nothing, Other::Base, Other::From];
    let ways: Vec<Way> =
        sandboxes.iter().flat_map(|&sandbox| others.map(|other| Way { sandbox, other })).collect();
    fs::write(p.dir.join("seed"), "seed 0\n").expect("write");
    p.make_base(0);
    for way in ways.iter().filter(|way| way.other != Other::Nothing) {
        takes = takes.max(took(*way).expect("a run works"));
    }
    println!("a run takes up to {takes:?}{alone}");
    let (mut kills, mut tried) = ([0; 3], 0);
    // Some runs have ended before they are to be killed; those rounds prove less, and do not count.
    while kills.iter().sum::<u64>() < wanted {
        assert!(tried < 10 * wanted, "of {tried} rounds only {kills:?} killed something");
        if let Some(victim) = round(&p, tried, &mut random, &ways, takes) {
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
