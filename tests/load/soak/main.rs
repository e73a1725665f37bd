//! A long day: many clients do everything against everything, in a store that is ten times too small.
//!
//! usage: `soak SECONDS THREADS KILL_EVERY [SEED]` with OUTFS_BIN set, as root. Each KILL_EVERY seconds (0: never) the
//! daemon is killed with -9 and started again, but not in the last third of the time. Panics with a reason when a byte
//! is wrong, something open, mapped or held is lost, an error is none of those that are promised, a call does not come
//! back within 5 s (also of those that wait for a daemon that is killed) besides what its client waits for a processor and all for the disk, a view has requests and answers none for 5 s, or what the daemon holds grows; when an action
//! hardly ever succeeded, nothing was compacted, or no life of the daemon was compared with anything, for then nothing was
//! shown. Every ten seconds all clients pause: by then nothing waits. In the end no mount is left, nor any draft but those of whom
//! a kill has met, and the store is sound.

mod actions;
#[path = "../calls.rs"]
mod calls;
#[path = "../daemon.rs"]
mod daemon;
mod holds;
#[path = "../ingest.rs"]
mod ingest;
#[path = "../library.rs"]
mod library;
mod mapped;
mod slow;
mod watch;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use actions::{ACTIONS, Client, ONE_OF};
use calls::{ANSWERED, Calls};
use daemon::{Daemon, Random};
use holds::{Holds, Lives};

/// Entries are of a third of a mebibyte.
const SIZE: &str = "32M";
const KEYS: u64 = 960;
/// About half of what there is room for.
const RECENT: usize = 48;
const PAUSE_EVERY: Duration = Duration::from_secs(10);
/// How much longer the day lasts at most until something was compacted.
const LONGER: Duration = Duration::from_secs(60);
/// How often it is asked what the daemon holds.
const SAMPLE_EVERY: Duration = Duration::from_secs(2);

/// How often something was tried, and how often it succeeded.
#[derive(Default)]
struct Tally {
    tried: AtomicU64,
    succeeded: AtomicU64,
}

struct Day {
    daemon: Daemon,
    place: tempfile::TempDir,
    threads: u64,
    over: AtomicBool,
    /// Somebody has told what went wrong.
    failed: AtomicBool,
    /// Grows when the daemon is about to be killed, and when it is there again: odd while it is not.
    lives: AtomicU64,
    pid: AtomicI32,
    /// Held while a client does something.
    going: RwLock<()>,
    calls: Arc<Calls>,
    /// Drafts that were there after the last kill.
    excused: Mutex<HashSet<String>>,
    /// What was stored last.
    recent: Mutex<VecDeque<String>>,
    removals: Removals,
    tallies: [Tally; ACTIONS.len()],
}

/// How often somebody began to take a key away on purpose, and how often that was over.
#[derive(Default)]
struct Removals(Mutex<HashMap<String, (u64, u64)>>);

impl Removals {
    fn during<T>(&self, key: &str, remove: impl FnOnce() -> T) -> T {
        self.0.lock().unwrap().entry(key.to_owned()).or_default().0 += 1;
        let result = remove();
        self.0.lock().unwrap().entry(key.to_owned()).or_default().1 += 1;
        result
    }

    /// Removals of the key that are over.
    fn over(&self, key: &str) -> u64 {
        self.0.lock().unwrap().get(key).map_or(0, |(_, over)| *over)
    }

    /// Whether one has gone on since so many were over.
    fn any_since(&self, key: &str, over: u64) -> bool {
        self.0.lock().unwrap().get(key).is_some_and(|(begun, _)| *begun > over)
    }
}

fn key(n: u64) -> String {
    format!("key{n}")
}

impl Day {
    fn new(threads: u64) -> Self {
        let daemon = Daemon::new();
        let place = tempfile::Builder::new().prefix("outfs-soak-").tempdir().expect("a temporary directory");
        let replacing = place.path().join("replacing");
        let views = (0..threads).map(|n| place.path().join(format!("view{n}")));
        let mounts: Vec<_> = views.chain([replacing, place.path().join("shared")]).collect();
        mounts.iter().for_each(|at| fs::create_dir(at).expect("a mount point"));
        // For each daemon, whoever begins it. What a kill has left of drafts takes room for a minute, not all day.
        let limits = format!(
            "[limits]\nsize = '{SIZE}'\nreserve = '0'\nmin_age = '0s'\nscrub = '1s'\ndraft_ttl = '1m'\n"
        );
        fs::write(daemon.config(), limits).expect("a configuration");
        let calls = Arc::new(Calls::on(mounts.into_iter().chain([daemon.mnt()])));
        Self {
            daemon,
            place,
            threads,
            over: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            lives: AtomicU64::new(0),
            pid: AtomicI32::new(0),
            going: RwLock::new(()),
            calls,
            excused: Mutex::default(),
            recent: Mutex::default(),
            removals: Removals::default(),
            tallies: Default::default(),
        }
    }

    fn mnt(&self) -> PathBuf {
        self.daemon.mnt()
    }

    /// The view in which storing over an entry replaces it.
    fn replacing(&self) -> PathBuf {
        self.place.path().join("replacing")
    }

    /// Where a client mounts a view of its own now and then.
    fn view_of(&self, number: u64) -> PathBuf {
        self.place.path().join(format!("view{number}"))
    }

    /// Where all of them mount a view now and then.
    fn shared(&self) -> PathBuf {
        self.place.path().join("shared")
    }

    /// Is this one of its mounts?
    fn has(&self, at: &Path) -> bool {
        at == self.mnt() || at.starts_with(self.place.path())
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The daemon was not there, or has died since.
    fn died_since(&self, life: u64) -> bool {
        !life.is_multiple_of(2) || self.lives.load(Ordering::SeqCst) != life
    }

    fn stored(&self, key: &str) {
        let mut recent = self.recent.lock().expect("nobody panics here");
        recent.push_back(key.to_owned());
        if recent.len() > RECENT {
            recent.pop_front();
        }
    }

    /// One that is probably there, as a rule.
    fn some_key(&self, random: &mut Random) -> String {
        let recent = self.recent.lock().expect("nobody panics here");
        if recent.is_empty() || random.below(8) == 0 {
            return key(random.below(KEYS));
        }
        recent[random.below(recent.len() as u64) as usize].clone()
    }

    fn begin(&self) {
        self.daemon.mount(&[]);
        self.daemon.mount_at(&self.replacing(), &["--overwrite", "replace"]);
        self.pid.store(self.daemon.pid(), Ordering::SeqCst);
        // Whoever was just mounting it when the last daemon died may have begun this one.
        let shared = self.shared();
        if let Err(why) = self.daemon.ask(&["mount", shared.to_str().expect("text"), "--read-only"]) {
            assert!(why.contains("there is a mount already"), "{why}");
        }
        self.daemon.has_features(&shared);
    }

    /// Of the daemon.
    fn listed(&self, what: &str) -> impl Iterator<Item = PathBuf> {
        let pid = self.pid.load(Ordering::SeqCst);
        let all = fs::read_dir(format!("/proc/{pid}/{what}")).expect("the daemon's");
        all.map(|one| one.expect("the daemon's").path())
    }

    fn holds(&self) -> Holds {
        // Each thread of a ring has two, 128 in a view, and views come and go: the threads are counted, in the end. One whose link
        // cannot be read is closed already.
        let stays = |fd: &PathBuf| {
            let of_ring = ["anon_inode:[io_uring]", "anon_inode:[eventfd]"].map(Path::new);
            fs::read_link(fd).is_ok_and(|of| !of_ring.contains(&&*of))
        };
        let of_ring =
            |task: &PathBuf| fs::read(task.join("comm")).is_ok_and(|name| name.starts_with(b"ring-"));
        let (rings, others): (Vec<_>, Vec<_>) = self.listed("task").partition(of_ring);
        Holds {
            descriptors: self.listed("fd").filter(stays).count() as u64,
            threads: others.len() as u64,
            rings: rings.len() as u64,
            bytes: daemon::resident(self.pid.load(Ordering::SeqCst)),
        }
    }

    /// Packs that the living daemon has compacted.
    fn compacted(&self) -> u64 {
        self.daemon.stats()["compacted"].as_u64().expect("stats have it")
    }

    /// What the daemon and the kernel say, when something has gone wrong: the store goes with this process.
    fn tell(&self) {
        let log = fs::read_to_string(self.daemon.store().join("daemon.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].iter().for_each(|line| eprintln!("log: {line}"));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        mounts.lines().filter(|line| line.contains("outfs")).for_each(|line| eprintln!("mounted: {line}"));
    }

    /// All clients pause: how long that took, and how long until nothing waited any more.
    fn pause(&self) -> (Duration, Duration) {
        let begun = Instant::now();
        let _nobody = self.going.write().expect("no client panics");
        let paused = begun.elapsed();
        let begun = Instant::now();
        let waiting = || {
            watch::views(self).iter().filter_map(|(connection, _)| watch::waiting(*connection)).sum::<u64>()
        };
        while waiting() > 0 {
            assert!(begun.elapsed() < ANSWERED, "{} requests are not answered", waiting());
            std::thread::sleep(Duration::from_millis(5));
        }
        (paused, begun.elapsed())
    }

    fn kill(&self) {
        let pid = self.pid.load(Ordering::SeqCst);
        self.lives.fetch_add(1, Ordering::SeqCst);
        let begun = Instant::now();
        // SAFETY: a signal to the daemon that this program started.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0, "kill -9 {pid}");
        // Whoever was at it has failed by now. What is done between two mounts would land below the mount point.
        let _nobody = self.going.write().expect("no client panics");
        let failed = begun.elapsed();
        self.begin();
        self.lives.fetch_add(1, Ordering::SeqCst);
        println!(
            "killed process {pid}; all clients were back after {failed:.0?}, both views after {:.0?}",
            begun.elapsed()
        );
        self.excuse();
    }

    fn drafts(&self) -> Vec<serde_json::Value> {
        let said = self.daemon.run(&["drafts", "--json"]);
        said.lines().map(|line| serde_json::from_str(line).expect("outfs prints JSON")).collect()
    }

    /// Drafts that are there after a kill, when nobody works, are its own: clients and the canary had one each at most, and the canary
    /// may have its next.
    fn excuse(&self) {
        let there: HashSet<_> = self.drafts().iter().map(|draft| draft["id"].to_string()).collect();
        let mut excused = self.excused.lock().expect("nobody panics here");
        let new = there.difference(&excused).count() as u64;
        assert!(new <= self.threads + 2, "{new} drafts were left by one kill: {there:?}");
        *excused = there;
    }
}

/// When it is dropped the day is over, also for who works when something has gone wrong.
struct Evening<'a>(&'a Day);

impl Drop for Evening<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.0.failed.swap(true, Ordering::Relaxed) {
            self.0.tell();
        }
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// All actions in turn, then by chance.
fn work(client: &Client, seed: u64) {
    let day = &*client.day;
    calls::watched_by(&day.calls);
    let mut random = Random::new(seed * day.threads + client.number + 1);
    let total: u64 = ACTIONS.iter().map(|(_, _, weight)| weight).sum();
    let mut first = 0..ACTIONS.len();
    while !day.is_over() {
        let which = first.next().unwrap_or_else(|| {
            let mut chosen = random.below(total);
            let mut which = 0;
            while chosen >= ACTIONS[which].2 {
                chosen -= ACTIONS[which].2;
                which += 1;
            }
            which
        });
        let _going = day.going.read().expect("nobody panics in a pause");
        let life = day.lives.load(Ordering::SeqCst);
        let tally = &day.tallies[which];
        tally.tried.fetch_add(1, Ordering::Relaxed);
        match ACTIONS[which].1(client, &mut random) {
            Ok(done) => drop(tally.succeeded.fetch_add(u64::from(done), Ordering::Relaxed)),
            // Whoever was at it when the daemon died.
            Err(_) if day.died_since(life) || day.failed.load(Ordering::Relaxed) => {}
            Err(why) => panic!("{}: {why}", ACTIONS[which].0),
        }
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

/// There are no drafts but those that kills have left. They go; after that there is none.
fn clear_drafts(day: &Day) {
    let left = day.drafts();
    let excused = day.excused.lock().expect("nobody panics here");
    for draft in &left {
        assert!(excused.contains(&draft["id"].to_string()), "a draft was left by nobody's death: {draft}");
        let name = draft["name"].as_str().expect("a name of ours is text");
        let at = match draft["kind"].as_str() {
            Some("work") => day.mnt().join(".outfs/work").join(name),
            Some("replace") => day.replacing().join(name),
            _ => day.mnt().join(name),
        };
        let trash = if at.starts_with(day.mnt()) { day.mnt() } else { day.replacing() }.join(".outfs/trash");
        fs::rename(&at, trash.join(name)).unwrap_or_else(|e| panic!("dropping {draft}: {e}"));
    }
    assert!(day.drafts().is_empty(), "a draft is left");
    println!("{} drafts were left by kills, and dropped", left.len());
}

/// What the daemon holds once it has no rings but those of the views that are there: a view's end soon after it.
fn only_rings_of_views(day: &Day, each: u64) -> Holds {
    let begun = Instant::now();
    loop {
        let (holds, views) = (day.holds(), watch::views(day).len() as u64);
        if holds.rings <= each * views {
            return holds;
        }
        assert!(begun.elapsed() < ANSWERED, "{views} views, with {each} threads of rings each: {holds:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What hardly ever succeeded was not tested.
fn count(day: &Day) {
    for ((name, ..), tally) in ACTIONS.iter().zip(&day.tallies) {
        let (tried, succeeded) =
            (tally.tried.load(Ordering::Relaxed), tally.succeeded.load(Ordering::Relaxed));
        println!("{succeeded:>8} of {tried:>8} x {name}");
        // Only root can bind.
        let can = *name != "bind" || nix::unistd::geteuid().is_root();
        assert!(!can || succeeded >= (tried / ONE_OF).max(1), "{name}: hardly any succeeded");
    }
    let slowest: Vec<_> =
        day.calls.longest().into_iter().map(|(what, took)| format!("{what} {took:.0?}")).collect();
    println!("the longest of each: {}", slowest.join(", "));
}

/// What came of the hours.
#[derive(Default)]
struct Came {
    paused: Duration,
    drained: Duration,
    kills: u64,
    compacted: u64,
}

/// Until the evening: samples, pauses and kills.
fn pass(day: &Day, time: Duration, kill_every: Duration) -> (Came, Lives) {
    let (begun, mut came, mut lives) = (Instant::now(), Came::default(), Lives::new());
    let (mut last_kill, mut last_pause) = (Instant::now(), Instant::now());
    let compacts = |came: &Came| came.compacted + day.compacted() > 0 || begun.elapsed() > time + LONGER;
    while !day.is_over() && (begun.elapsed() < time || !compacts(&came)) {
        std::thread::sleep(SAMPLE_EVERY);
        lives.sample(day.holds());
        if last_pause.elapsed() >= PAUSE_EVERY {
            let (paused, drained) = day.pause();
            (came.paused, came.drained) = (came.paused.max(paused), came.drained.max(drained));
            last_pause = Instant::now();
        }
        let morning = begun.elapsed() < time * 2 / 3;
        if !kill_every.is_zero() && last_kill.elapsed() >= kill_every && morning {
            lives.next();
            came.compacted += day.compacted();
            day.kill();
            (last_kill, came.kills) = (Instant::now(), came.kills + 1);
        }
    }
    came.compacted += day.compacted();
    (came, lives)
}

fn main() {
    watch::need_connections();
    let usage = "usage: soak SECONDS THREADS KILL_EVERY [SEED]";
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>().expect(usage));
    let mut next = || args.next().expect(usage);
    let (time, threads, kill_every) = (Duration::from_secs(next()), next(), Duration::from_secs(next()));
    // Not of the process: in a namespace of its own its number is always the same.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let seed = args.next().unwrap_or(now.as_millis() as u64 % 1_000_000);
    let day = Arc::new(Day::new(threads));
    day.begin();
    let (first, views_at_first) = (day.holds(), watch::views(&day).len() as u64);
    println!("seed {seed}; the daemon holds {first:?}");
    let begun = Instant::now();
    let (came, lives, looked, sung, synced) = std::thread::scope(|scope| {
        for number in 0..threads {
            let client = Client { day: day.clone(), number, last: Default::default() };
            scope.spawn(move || {
                let day = client.day.clone();
                let _evening = Evening(&day);
                work(&client, seed);
            });
        }
        let watching = |work: fn(&Day) -> watch::Looked| {
            let day = day.clone();
            scope.spawn(move || work(&day))
        };
        let watcher = watching(watch::watch);
        let (of_disk, of_late) = (day.clone(), day.clone());
        let beside = day.place.path().join("synced");
        let disk = scope.spawn(move || of_disk.calls.disk.watch(&beside, || of_disk.is_over()));
        scope.spawn(move || slow::tell_of_late(&of_late));
        let (of, canary) = (day.clone(), day.clone());
        let canary = scope.spawn(move || {
            let _evening = Evening(&of);
            watch::canary(&canary)
        });
        let evening = Evening(&day);
        let (came, lives) = pass(&day, time, kill_every);
        drop(evening);
        let sung = canary.join().expect("the canary lives");
        let (looked, synced) = (watcher.join(), disk.join());
        (came, lives, looked.expect("the watcher lives"), sung, synced.expect("it lives"))
    });
    let lives = lives.end();
    clear_drafts(&day);
    nothing_damaged(&day);
    let last = only_rings_of_views(&day, first.rings / views_at_first);
    day.daemon.run(&["stop"]);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let left = mounts.lines().find(|l| l.contains("outfs-load-") || l.contains("outfs-soak-"));
    assert!(left.is_none(), "a mount is left: {left:?}");
    day.daemon.run(&["fsck", "--verify-data"]);
    count(&day);
    println!(
        "{} looks at up to {} views: at most {} requests of one waited, at most {:.0?} without an answer; {sung} songs of the canary",
        looked.times, looked.views, looked.waiting, looked.longest
    );
    println!("a sync of 4 KiB took the disk {synced:.0?} at most");
    assert!(looked.waiting > 0 && looked.views > 2, "the watcher saw nothing");
    assert!(sung > 0, "the canary never sang");
    assert!(came.compacted > 0, "nothing was compacted");
    println!(
        "{threads} clients for {:.0?}, {} kills: all bytes right; clients paused within {:.1?}, nothing waited {:.0?} \
         after that; {} packs compacted; {lives} comparisons of what the daemon holds, in the end {last:?}; no draft and \
         no mount left, fsck --verify-data passed",
        begun.elapsed(),
        came.kills,
        came.paused,
        came.drained,
        came.compacted,
    );
}
