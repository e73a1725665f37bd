//! Processors that stay awake while requests follow each other.
//!
//! A processor with nothing to do goes to sleep, and a virtual one is given back to the host: waking it takes longer than
//! most requests. An answer wakes the caller on a processor that is idle, although the caller's own is free in a
//! moment. So while requests follow each other, a thread of the lowest priority on each other processor has it not be idle.
//! Invariants: such a thread ends soon after the last request, and stays away, each time for longer, when somebody
//! else wants its processor. Only where that is a few processors, and time on them is not counted. Must not know: what
//! requests mean.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use super::pin;

/// With more, all but one would have to be kept awake for one caller.
const MOST_CPUS: usize = 4;
/// Requests follow each other when no more than this is between them.
const CLOSE: Duration = Duration::from_micros(300);
/// So many in a row are worth it.
const ROW: u32 = 4;
/// Whoever lost more than half of at least this time is not alone on its processor.
const LOOK: Duration = Duration::from_millis(1);
/// What is missing between two looks at the clock was somebody else's.
const LOST: Duration = Duration::from_micros(20);
/// How long a thread stays away then, the first time and at most.
const AWAY: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];

/// Keeps processors awake; ends its threads when it is dropped.
pub(super) struct Awake(Arc<Shared>);

struct Shared {
    began: Instant,
    /// When the last request came; this and other times in nanoseconds since `began`.
    last: AtomicU64,
    /// How many came close to the one before.
    row: AtomicU32,
    keepers: Vec<Keeper>,
    over: AtomicBool,
}

/// A thread that keeps a processor awake, or sleeps itself.
struct Keeper {
    cpu: u16,
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
    not_before: AtomicU64,
}

/// Why a keeper stopped.
#[derive(PartialEq)]
enum Stop {
    Quiet,
    Wanted,
}

impl Awake {
    /// Where it makes sense.
    pub(super) fn begin() -> Option<Awake> {
        let cpus = usable_cpus();
        if !(2..=MOST_CPUS).contains(&cpus.len()) || is_counted() {
            return None;
        }
        let keeper = |cpu| Keeper {
            cpu,
            thread: OnceLock::new(),
            asleep: AtomicBool::new(true),
            not_before: AtomicU64::new(0),
        };
        let shared = Arc::new(Shared {
            began: Instant::now(),
            last: AtomicU64::new(0),
            row: AtomicU32::new(0),
            keepers: cpus.into_iter().map(keeper).collect(),
            over: AtomicBool::new(false),
        });
        let awake = Awake(shared.clone());
        for n in 0..shared.keepers.len() {
            let own = shared.clone();
            let name = format!("awake-{}", shared.keepers[n].cpu);
            let thread =
                std::thread::Builder::new().name(name).spawn(move || own.serve(&own.keepers[n])).ok()?;
            let _ = shared.keepers[n].thread.set(thread.thread().clone());
        }
        Some(awake)
    }

    /// A request has come on this processor.
    pub(super) fn request(&self, cpu: u16) {
        let shared = &self.0;
        let now = shared.now();
        let gap = now.saturating_sub(shared.last.swap(now, Ordering::Relaxed));
        if gap > CLOSE.as_nanos() as u64 {
            shared.row.store(0, Ordering::Relaxed);
            return;
        }
        if shared.row.fetch_add(1, Ordering::Relaxed) < ROW {
            return;
        }
        for keeper in shared.keepers.iter().filter(|k| k.cpu != cpu && k.asleep.load(Ordering::Relaxed)) {
            if now >= keeper.not_before.load(Ordering::Relaxed)
                && keeper.asleep.swap(false, Ordering::AcqRel)
                && let Some(thread) = keeper.thread.get()
            {
                thread.unpark();
            }
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
        self.0.keepers.iter().filter_map(|k| k.thread.get()).for_each(Thread::unpark);
    }
}

impl Shared {
    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn serve(&self, keeper: &Keeper) {
        pin(keeper.cpu);
        // SAFETY: the call takes numbers; 0 is this thread.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) } != 0 {
            return;
        }
        let mut away = AWAY[0];
        while !self.over.load(Ordering::Acquire) {
            if keeper.asleep.load(Ordering::Acquire) {
                std::thread::park();
                continue;
            }
            match self.keep() {
                Stop::Quiet => away = AWAY[0],
                Stop::Wanted => {
                    keeper.not_before.store(self.now() + away.as_nanos() as u64, Ordering::Relaxed);
                    away = (away * 2).min(AWAY[1]);
                }
            }
            keeper.asleep.store(true, Ordering::Release);
        }
    }

    fn keep(&self) -> Stop {
        let began = self.now();
        let (mut seen, mut lost) = (began, 0);
        loop {
            (0..32).for_each(|_| std::hint::spin_loop());
            let now = self.now();
            if now - seen > LOST.as_nanos() as u64 {
                lost += now - seen;
            }
            seen = now;
            if now - began > LOOK.as_nanos() as u64 && lost > (now - began) / 2 {
                return Stop::Wanted;
            }
            let quiet = now.saturating_sub(self.last.load(Ordering::Relaxed));
            if quiet > CLOSE.as_nanos() as u64 || self.over.load(Ordering::Relaxed) {
                return Stop::Quiet;
            }
        }
    }
}

/// The processors that this process may use.
fn usable_cpus() -> Vec<u16> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    let usable = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false));
    usable.filter_map(|cpu| u16::try_from(cpu).ok()).collect()
}

/// Whether a control group limits this process's processor time, or that cannot be told.
fn is_counted() -> bool {
    let Ok(groups) = std::fs::read_to_string("/proc/self/cgroup") else { return true };
    is_limited(&groups, |file| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(file)).ok())
}

/// From `/proc/self/cgroup`, of both versions of control groups, and what files of theirs say. In a container the group's
/// own path may not be there, and what holds for it is further up.
fn is_limited(groups: &str, read: impl Fn(&Path) -> Option<String>) -> bool {
    let mut files = groups.lines().filter_map(|line| {
        let (own, names) = line.split_once(':')?.1.split_once(':').map(|(names, own)| (own, names))?;
        let own = own.trim_start_matches('/');
        match names {
            "" => Some((Path::new(own).to_owned(), "cpu.max", "max")),
            _ if names.split(',').any(|n| n == "cpu") => {
                Some((Path::new("cpu").join(own), "cpu.cfs_quota_us", "-1"))
            }
            _ => None,
        }
    });
    files.any(|(own, file, none)| {
        own.ancestors().filter_map(|group| read(&group.join(file))).any(|says| !says.starts_with(none))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_seen() {
        let none = |_: &Path| None;
        let of = |file: &'static str| {
            move |at: &Path| {
                let limit = if at == Path::new(file) { "5000" } else { "max 100000" };
                let limit = if limit == "5000" || at.ends_with("cpu.max") { limit } else { "-1" };
                Some(limit.to_owned())
            }
        };
        let two = "0::/a/b\n";
        assert!(!is_limited(two, none) && !is_limited("", none) && !is_limited(two, of("c/cpu.max")));
        assert!(
            is_limited(two, of("a/b/cpu.max"))
                && is_limited(two, of("a/cpu.max"))
                && is_limited(two, of("cpu.max"))
        );
        let one = "4:cpu,cpuacct:/d/c\n2:cpuset:/\n0::/\n";
        assert!(!is_limited(one, none) && !is_limited(one, of("cpuset/cpu.cfs_quota_us")));
        assert!(
            is_limited(one, of("cpu/d/c/cpu.cfs_quota_us")) && is_limited(one, of("cpu/cpu.cfs_quota_us"))
        );
    }

    #[test]
    fn they_wake_for_a_row_of_requests_and_sleep_again() {
        let Some(awake) = Awake::begin() else { return };
        let asleep = || awake.0.keepers.iter().filter(|k| k.asleep.load(Ordering::Acquire)).count();
        let all = awake.0.keepers.len();
        awake.request(awake.0.keepers[0].cpu);
        assert_eq!(asleep(), all, "one request is no row");
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut seen = all;
        while seen == all && Instant::now() < deadline {
            awake.request(awake.0.keepers[0].cpu);
            seen = asleep();
        }
        assert!(seen < all, "requests follow each other");
        assert!(
            awake.0.keepers[0].asleep.load(Ordering::Acquire),
            "where requests come from is awake anyway"
        );
        while asleep() < all && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(asleep(), all, "nobody asks any more");
    }
}
