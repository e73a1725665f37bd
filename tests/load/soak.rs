//! A long day: many clients do everything against everything, in a store that is ten times too small.
//!
//! usage: `soak SECONDS THREADS KILL_EVERY [SEED]` with OUTFS_BIN set, as root. Each KILL_EVERY seconds (0: never) the
//! daemon is killed with -9 and started again. Every few seconds all clients pause: by then no request may be left
//! unanswered, and what the daemon holds (descriptors, threads, memory) is noted. Panics with a reason when a byte
//! is wrong, something open or held is lost, an error is none of those that are promised, a request
//! is not answered within 5 s, or what the daemon holds grows; in the end no draft and no mount is left, and the
//! store is sound.

#[path = "daemon.rs"]
mod daemon;
#[path = "ingest.rs"]
mod ingest;
#[path = "library.rs"]
mod library;

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use daemon::{Daemon, Random};
use ingest::{ingest, whole};

/// Entries are of a third of a mebibyte.
const SIZE: &str = "32M";
const KEYS: u64 = 960;
/// Every request is answered within this time.
const ANSWERED: Duration = Duration::from_secs(5);
/// Where the kernel says what is not answered.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";
const PAUSE_EVERY: Duration = Duration::from_secs(10);
/// What is looked at before it is called flat.
const SAMPLES: usize = 6;

/// What the daemon holds.
#[derive(Debug, Clone, Copy)]
struct Holds {
    descriptors: u64,
    threads: u64,
    bytes: u64,
}

struct Day {
    daemon: Daemon,
    place: tempfile::TempDir,
    threads: u64,
    over: AtomicBool,
    /// Grows when the daemon is about to be killed, and when it is there again: odd while it is not.
    lives: AtomicU64,
    /// Held while a client does something.
    going: RwLock<()>,
    done: [AtomicU64; ACTIONS.len()],
}

type Action = fn(&Client, &mut Random) -> Result<(), String>;

const ACTIONS: [(&str, Action); 14] = [
    ("publish", Client::publish),
    ("read", Client::read),
    ("write in place", Client::in_place),
    ("hold open", Client::hold_open),
    ("shell tools", Client::shell),
    ("evict", Client::evict),
    ("trash", Client::trash),
    ("pin", Client::pin),
    ("collect", Client::collect),
    ("restore", Client::restore),
    ("bind", Client::bind),
    ("view", Client::view),
    ("replace", Client::replace),
    ("library", Client::library),
];
/// How often each is done, in the order above.
const WEIGHTS: [u64; ACTIONS.len()] = [30, 30, 6, 10, 4, 6, 6, 3, 1, 3, 2, 1, 3, 4];

impl Day {
    fn mnt(&self) -> PathBuf {
        self.daemon.mnt()
    }

    /// The view in which storing over an entry replaces it.
    fn replacing(&self) -> PathBuf {
        self.place.path().join("replacing")
    }

    fn begin(&self) {
        let options = ["--size", SIZE, "--reserve", "0", "--min-age", "0s", "--scrub", "1s"];
        self.daemon.mount(&options);
        let at = self.replacing();
        self.daemon.run(&["mount", at.to_str().expect("text"), "--overwrite", "replace"]);
    }

    fn holds(&self) -> Holds {
        let pid = self.daemon.pid();
        let count =
            |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).expect("the daemon's").count() as u64;
        Holds { descriptors: count("fd"), threads: count("task"), bytes: self.daemon.resident() }
    }

    /// What the daemon and the kernel say, when something has gone wrong: the store goes with this process.
    fn tell(&self) {
        let log = fs::read_to_string(self.daemon.store().join("daemon.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].iter().for_each(|line| eprintln!("log: {line}"));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        mounts.lines().filter(|line| line.contains("outfs")).for_each(|line| eprintln!("mounted: {line}"));
    }

    /// Requests of both views that are not answered.
    fn waiting(&self) -> u64 {
        let of = |at: &Path| {
            let minor = nix::sys::stat::minor(fs::metadata(at).expect("a view").st_dev());
            let path = format!("{CONNECTIONS}/{minor}/waiting");
            let waiting = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
            waiting.trim().parse::<u64>().expect("a number")
        };
        of(&self.mnt()) + of(&self.replacing())
    }

    /// All clients pause: how long that took, how long the last request took, and what the daemon holds then.
    fn pause(&self) -> (Duration, Duration, Holds) {
        let begun = Instant::now();
        let _nobody = self.going.write().expect("no client panics");
        let paused = begun.elapsed();
        let begun = Instant::now();
        while self.waiting() > 0 {
            assert!(begun.elapsed() < ANSWERED, "{} requests are not answered", self.waiting());
            std::thread::sleep(Duration::from_millis(5));
        }
        (paused, begun.elapsed(), self.holds())
    }

    fn kill(&self) {
        let pid = self.daemon.pid();
        self.lives.fetch_add(1, Ordering::SeqCst);
        // SAFETY: a signal to the daemon that this program started.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0, "kill -9 {pid}");
        let begun = Instant::now();
        // Whoever was at it has failed by now. What is done between two mounts would land below the mount point.
        let _nobody = self.going.write().expect("no client panics");
        self.begin();
        self.lives.fetch_add(1, Ordering::SeqCst);
        println!("killed process {pid}; both views are there again after {:.0?}", begun.elapsed());
    }
}

/// When it is dropped the day is over, also for who works when something has gone wrong.
struct Evening<'a>(&'a Day);

impl Drop for Evening<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// One of those who work.
struct Client {
    day: Arc<Day>,
    number: u64,
}

fn key(n: u64) -> String {
    format!("key{n}")
}

/// An error that may come, as text; others stop everything.
fn allowed(what: &str, result: io::Result<()>, errnos: &[i32]) -> Result<(), String> {
    match result {
        Ok(()) => Ok(()),
        Err(e) if e.raw_os_error().is_some_and(|n| errnos.contains(&n)) => Ok(()),
        Err(e) => Err(format!("{what}: {e}")),
    }
}

fn absent_or_whole(result: Result<(), String>) -> Result<(), String> {
    match result {
        Err(why) if why.contains("(os error 2)") => Ok(()),
        // What a dead daemon cannot excuse.
        Err(why) if why.contains("its bytes") => panic!("{why}"),
        other => other,
    }
}

impl Client {
    /// A key that this client alone stores under.
    fn own(&self, random: &mut Random) -> String {
        key(random.below(KEYS / self.day.threads) * self.day.threads + self.number)
    }

    /// Asks the daemon; it may refuse, but for a bad reason.
    fn ask(&self, args: &[&str]) -> Result<bool, String> {
        match self.day.daemon.ask(args) {
            Ok(_) => Ok(true),
            Err(why) => {
                let bad = ["panicked", "nput/output", "damage", "signal", "exit status: 4"];
                if bad.iter().any(|b| why.contains(b)) { Err(why) } else { Ok(false) }
            }
        }
    }

    fn trash_of(&self, at: &Path, name: &str) {
        let _ = fs::rename(at, self.day.mnt().join(".outfs/trash").join(name));
    }

    fn publish(&self, random: &mut Random) -> Result<(), String> {
        let key = self.own(random);
        let gesture = [0, 1, 0, 3][random.below(4) as usize];
        let result = ingest(&self.day.daemon, &key, gesture);
        if result.is_err() {
            self.trash_of(&self.day.mnt().join(".outfs/work").join(&key), &key);
            let _ = fs::remove_dir_all(self.day.daemon.scratch().join(&key));
        }
        match result {
            // A put that was refused says so in words.
            Err(e) if e.raw_os_error().is_none() && !e.to_string().contains("nput/output") => Ok(()),
            other => allowed("publishing", other.map(drop), &[libc::EEXIST, libc::ENOSPC]),
        }
    }

    fn in_place(&self, random: &mut Random) -> Result<(), String> {
        let key = format!("own{}.{}", self.number, random.below(20));
        let mnt = self.day.mnt();
        let result = ingest(&self.day.daemon, &key, 2);
        let there = result.is_ok();
        // Refused, it is a draft, or an entry of an earlier time.
        if !there {
            self.trash_of(&mnt.join(&key), &key);
        }
        // Whoever evicts may have been faster than the one who set the mode.
        let errnos = [libc::EEXIST, libc::ENOSPC, libc::ENOENT, libc::EROFS];
        allowed("writing in place", result.map(drop), &errnos)?;
        if there { absent_or_whole(whole(&mnt, &key)) } else { Ok(()) }
    }

    fn read(&self, random: &mut Random) -> Result<(), String> {
        absent_or_whole(whole(&self.day.mnt(), &key(random.below(KEYS))))
    }

    /// What is open stays good, whatever becomes of the entry.
    fn hold_open(&self, random: &mut Random) -> Result<(), String> {
        let key = key(random.below(KEYS));
        let name = ["small", "deep/er/medium", "large", "shared"][random.below(4) as usize];
        let path = self.day.mnt().join(&key).join("outputs").join(name);
        let Ok(mut file) = File::open(&path) else { return Ok(()) };
        let mut first = Vec::new();
        let fail = |e: io::Error| format!("{}, which is open: {e}", path.display());
        file.read_to_end(&mut first).map_err(fail)?;
        match random.below(3) {
            0 => drop(self.ask(&["evict", &key])?),
            1 => self.trash_of(&self.day.mnt().join(&key), &key),
            _ => std::thread::sleep(Duration::from_millis(random.below(200))),
        }
        let mut again = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut again)).map_err(fail)?;
        assert!(first == again, "{} has changed while it was open", path.display());
        Ok(())
    }

    fn library(&self, random: &mut Random) -> Result<(), String> {
        library::put_and_read(&self.day.daemon, &self.own(random), &key(random.below(KEYS)))
    }

    fn shell(&self, random: &mut Random) -> Result<(), String> {
        let key = key(random.below(KEYS));
        let script = [
            "find . -type f | sort | head -100; du -s .",
            "tar cf - . | tar tf -",
            "grep -r nothing . ; ls -lR .",
            "cmp outputs/small outputs/small; cat outputs/large | wc -c",
        ][random.below(4) as usize];
        let at = self.day.mnt().join(key);
        let output = Command::new("timeout").args(["60", "sh", "-c", script]).current_dir(&at).output();
        let Ok(output) = output else { return Ok(()) };
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("nput/output") || output.status.code() == Some(124) {
            return Err(format!("{script} in {}: {}: {said}", at.display(), output.status));
        }
        Ok(())
    }

    fn evict(&self, random: &mut Random) -> Result<(), String> {
        self.ask(&["evict", &key(random.below(KEYS))]).map(drop)
    }

    fn trash(&self, random: &mut Random) -> Result<(), String> {
        let key = key(random.below(KEYS));
        let to = self.day.mnt().join(".outfs/trash").join(&key);
        allowed("trashing", fs::rename(self.day.mnt().join(&key), to), &[libc::ENOENT, libc::EBUSY])
    }

    fn pin(&self, random: &mut Random) -> Result<(), String> {
        let key = key(random.below(KEYS));
        // Others may pin it, too, and let go of it earlier.
        let name = format!("client{}", self.number);
        if self.ask(&["pin", &key, "--name", &name])? {
            let mnt = self.day.mnt();
            let kept = whole(&mnt, &key);
            self.ask(&["unpin", &key, "--name", &name])?;
            return kept.map_err(|why| format!("pinned: {why}"));
        }
        Ok(())
    }

    fn collect(&self, _random: &mut Random) -> Result<(), String> {
        self.ask(&["gc"]).map(drop)
    }

    fn restore(&self, random: &mut Random) -> Result<(), String> {
        let key = key(random.below(KEYS));
        let to = self.day.place.path().join(format!("restored{}", self.number));
        let how = ["auto", "copy", "link"][random.below(3) as usize];
        let result = self.ask(&["restore", &key, to.to_str().expect("text"), "--as", how]);
        let kept = match result {
            // A link holds its entry.
            Ok(true) => fs::read(to.join("large")).map(drop).map_err(|e| format!("restored as {how}: {e}")),
            other => other.map(drop),
        };
        let _ = if to.is_symlink() { fs::remove_file(&to) } else { fs::remove_dir_all(&to) };
        kept
    }

    /// Somebody's sandbox.
    fn bind(&self, random: &mut Random) -> Result<(), String> {
        let key = key(random.below(KEYS));
        let to = self.day.place.path().join(format!("bound{}", self.number));
        fs::create_dir_all(&to).map_err(|e| e.to_string())?;
        let from = self.day.mnt().join(&key).join("outputs");
        let bound = Command::new("mount").arg("--bind").arg(&from).arg(&to).output();
        if !bound.is_ok_and(|o| o.status.success()) {
            return Ok(());
        }
        self.ask(&["evict", &key])?;
        let read = fs::read(to.join("large")).map(drop).map_err(|e| format!("bound and evicted: {e}"));
        let unbound = Command::new("umount").arg(&to).output().map_err(|e| e.to_string())?;
        if !unbound.status.success() {
            let _ = Command::new("umount").arg("--lazy").arg(&to).output();
            return Err(format!("unbinding: {}", String::from_utf8_lossy(&unbound.stderr)));
        }
        read
    }

    /// A view of a few entries, which go on being there.
    fn view(&self, random: &mut Random) -> Result<(), String> {
        let key = key(random.below(KEYS));
        let at = self.day.place.path().join(format!("view{}", self.number));
        let to = at.to_str().expect("text");
        if !self.ask(&["mount", to, "--read-only", "--key", &key])? {
            return Ok(());
        }
        let there = at.join(&key).exists();
        self.ask(&["evict", &key])?;
        let kept = if there { whole(&at, &key).map_err(|e| format!("in a view: {e}")) } else { Ok(()) };
        self.ask(&["unmount", to])?;
        kept
    }

    fn replace(&self, random: &mut Random) -> Result<(), String> {
        let key = self.own(random);
        let at = self.day.replacing().join(&key);
        if !at.exists() {
            return Ok(());
        }
        let written = fs::write(at.join("outputs/extra"), key.as_bytes());
        let sealed = written.is_ok() && self.ask(&["seal", &key])?;
        if !sealed {
            let _ = fs::rename(&at, self.day.replacing().join(".outfs/trash").join(&key));
        }
        allowed("replacing", written, &[libc::ENOENT, libc::ENOSPC, libc::ESTALE, libc::EEXIST])
    }
}

fn work(client: &Client, seed: u64) {
    let day = &*client.day;
    let mut random = Random::new(seed * day.threads + client.number + 1);
    let total: u64 = WEIGHTS.iter().sum();
    while !day.over.load(Ordering::Relaxed) {
        let mut chosen = random.below(total);
        let mut which = 0;
        while chosen >= WEIGHTS[which] {
            chosen -= WEIGHTS[which];
            which += 1;
        }
        let _going = day.going.read().expect("nobody panics in a pause");
        let life = day.lives.load(Ordering::SeqCst);
        if let Err(why) = ACTIONS[which].1(client, &mut random) {
            // Whoever was at it when the daemon died.
            if life.is_multiple_of(2) && day.lives.load(Ordering::SeqCst) == life {
                day.over.store(true, Ordering::Relaxed);
                day.tell();
                panic!("{}: {why}", ACTIONS[which].0);
            }
        }
        day.done[which].fetch_add(1, Ordering::Relaxed);
    }
}

/// What the daemon holds stays what it was: the later half of its life against the earlier.
fn flat(life: &[Holds]) {
    if life.len() < SAMPLES {
        return;
    }
    let (before, after) = life.split_at(life.len() / 2);
    for (what, of, some) in [
        ("descriptors", (|h: &Holds| h.descriptors) as fn(&Holds) -> u64, 30),
        ("threads", |h| h.threads, 4),
        ("bytes", |h| h.bytes, 16 << 20),
    ] {
        let most = |part: &[Holds]| part.iter().map(of).max().unwrap_or(0);
        let (before, after) = (most(before), most(after));
        assert!(after <= before * 5 / 4 + some, "its {what} grow: {before} at first, {after} later");
    }
}

/// No event tells of damage.
fn nothing_damaged(day: &Day) {
    let mut since = None;
    loop {
        let mut args = vec!["events", "--limit", "10000"];
        args.extend(since.iter().flat_map(|cursor: &String| ["--since", cursor]));
        let page = day.daemon.run(&args);
        let damage = page.lines().find(|line| line.contains(" damaged "));
        assert!(damage.is_none(), "damage was seen where nothing was damaged: {damage:?}");
        let end = page.lines().last().and_then(|l| l.strip_prefix("# cursor ")).expect("a page has an end");
        match end.split_once(',') {
            Some((cursor, _)) => since = Some(cursor.to_owned()),
            None => return,
        }
    }
}

/// Drafts that kills have left go; after that there is none.
fn clear_drafts(day: &Day, kills: bool) {
    let drafts = || day.daemon.run(&["drafts", "--json"]);
    let left = drafts();
    assert!(kills || left.is_empty(), "drafts were left: {left}");
    for line in left.lines() {
        let draft: serde_json::Value = serde_json::from_str(line).expect("outfs prints JSON");
        let name = draft["name"].as_str().expect("a name of ours is text");
        let at = match draft["kind"].as_str() {
            Some("work") => day.mnt().join(".outfs/work").join(name),
            Some("replace") => day.replacing().join(name),
            _ => day.mnt().join(name),
        };
        let trash = if at.starts_with(day.mnt()) { day.mnt() } else { day.replacing() }.join(".outfs/trash");
        fs::rename(&at, trash.join(name)).unwrap_or_else(|e| panic!("dropping {line}: {e}"));
    }
    assert_eq!(drafts(), "", "a draft is left");
    println!("{} drafts were left by kills, and dropped", left.lines().count());
}

fn main() {
    if fs::read_dir(CONNECTIONS).map_or(true, |mut d| d.next().is_none()) {
        // It may be there for nobody else, too; then the first pause says so.
        let _ = Command::new("mount").args(["-t", "fusectl", "fusectl", CONNECTIONS]).output();
    }
    let usage = "usage: soak SECONDS THREADS KILL_EVERY [SEED]";
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>().expect(usage));
    let mut next = || args.next().expect(usage);
    let (time, threads, kill_every) = (Duration::from_secs(next()), next(), Duration::from_secs(next()));
    // Not of the process: in a namespace of its own its number is always the same.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let seed = args.next().unwrap_or(now.as_millis() as u64 % 1_000_000);
    let day = Arc::new(Day {
        daemon: Daemon::new(),
        place: tempfile::Builder::new().prefix("outfs-soak-").tempdir().expect("a temporary directory"),
        threads,
        over: AtomicBool::new(false),
        lives: AtomicU64::new(0),
        going: RwLock::new(()),
        done: Default::default(),
    });
    fs::create_dir(day.replacing()).expect("a mount point");
    day.begin();
    println!("seed {seed}; the daemon holds {:?}", day.holds());
    let begun = Instant::now();
    let (mut life, mut longest, mut kills) = (Vec::new(), (Duration::ZERO, Duration::ZERO), 0);
    std::thread::scope(|scope| {
        for number in 0..threads {
            let client = Client { day: day.clone(), number };
            scope.spawn(move || work(&client, seed));
        }
        let _evening = Evening(&day);
        let mut last_kill = Instant::now();
        while begun.elapsed() < time && !day.over.load(Ordering::Relaxed) {
            std::thread::sleep(PAUSE_EVERY.min(time));
            let (paused, answered, holds) = day.pause();
            longest = (longest.0.max(paused), longest.1.max(answered));
            life.push(holds);
            if !kill_every.is_zero() && last_kill.elapsed() >= kill_every && begun.elapsed() < time {
                flat(&life);
                life.clear();
                day.kill();
                (last_kill, kills) = (Instant::now(), kills + 1);
            }
        }
    });
    flat(&life);
    clear_drafts(&day, kills > 0);
    nothing_damaged(&day);
    let last = day.holds();
    day.daemon.run(&["stop"]);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let left = mounts.lines().find(|l| l.contains("outfs-load-") || l.contains("outfs-soak-"));
    assert!(left.is_none(), "a mount is left: {left:?}");
    day.daemon.run(&["fsck", "--verify-data"]);
    for ((name, _), done) in ACTIONS.iter().zip(&day.done) {
        println!("{:>8} x {name}", done.load(Ordering::Relaxed));
    }
    println!(
        "{threads} clients for {:.0?}, {kills} kills: all bytes right; clients paused within {:.1?}, the last request \
         answered {:.0?} after that; in the end {last:?}; no draft and no mount left, fsck --verify-data passed",
        begun.elapsed(),
        longest.0,
        longest.1
    );
}
