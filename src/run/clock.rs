//! The times that files get: how coarse they are, and when they tell one change from the next.
//!
//! Invariant: what is said to be settled cannot change again without looking different. Must not know: which files.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Times are not waited for any longer.
pub(super) const LONGEST_WAIT: Duration = Duration::from_millis(60);

fn coarse(
    read: unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> libc::c_int,
) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both calls that this is used for write one timespec, which is ours.
    let told = unsafe { read(libc::CLOCK_REALTIME_COARSE, &mut time) } == 0;
    told.then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// How often the clock moves that files get their times from.
pub(super) fn clock_tick() -> Duration {
    static TICK: OnceLock<Duration> = OnceLock::new();
    *TICK.get_or_init(|| coarse(libc::clock_getres).unwrap_or(Duration::from_millis(10)))
}

/// The earliest time that a file could get now, nanoseconds since 1970. Files that were looked at just before get a finer one,
/// up to [`now`].
fn file_clock() -> i128 {
    coarse(libc::clock_gettime).map_or_else(now, |now| now.as_nanos() as i128)
}

/// Now, nanoseconds since 1970: nothing has got a later time yet.
pub(super) fn now() -> i128 {
    since_1970(SystemTime::now())
}

/// A moment of the clock that files get their times from, later than `earlier`: whatever changes from now on gets no earlier
/// time. Not waited for long, if somebody sets the clock.
pub(super) fn file_clock_after(earlier: i128) -> i128 {
    let began = std::time::Instant::now();
    loop {
        let now = file_clock();
        if now > earlier || began.elapsed() > LONGEST_WAIT {
            return now;
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// Nanoseconds since 1970.
pub(super) fn since_1970(time: SystemTime) -> i128 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i128)
}

/// How coarse times are where a file has got this one, in nanoseconds.
pub(super) fn granule(time: i128) -> i128 {
    const SECOND: i128 = 1_000_000_000;
    // FAT counts two seconds, older ext4 and others one; exFAT and network file systems some decimal part of one.
    match time.rem_euclid(SECOND) as u64 {
        0 => 2 * SECOND,
        ns => (1..=8).map(|n| 10_u64.pow(n)).take_while(|g| ns % g == 0).last().unwrap_or(0).into(),
    }
}

/// Whatever changes after this moment gets a later time than this one, which a change has got.
pub(super) fn settled_at(changed: i128) -> i128 {
    // A file's time may be a tick behind the clock.
    changed + granule(changed) + 2 * clock_tick().as_nanos() as i128
}

/// A change that has got this time may have been made since a moment of the [`file_clock`].
pub(super) fn is_since(changed: i128, moment: i128) -> bool {
    changed >= moment || changed + granule(changed) > moment
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that was looked at gets a finer time than others when it changes again: it may be ahead of theirs.
    #[test]
    fn what_was_there_is_earlier_than_a_moment_after_it() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        for round in 0..50 {
            std::fs::write(&file, round.to_string()).unwrap();
            let _ = file.metadata().unwrap();
            std::thread::sleep(Duration::from_micros(round * 97));
            std::fs::write(&file, "again").unwrap();
            let meta = file.metadata().unwrap();
            let changed = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
            let now = now();
            let moment = file_clock_after(now);
            // Where the clock stood still for so long nothing is said.
            let told = moment > now && granule(changed) <= 1_000_000;
            assert!(!told || changed < moment, "round {round}: {changed}, {moment}");
        }
    }

    #[test]
    fn what_changed_since_a_moment() {
        let dir = tempfile::tempdir().unwrap();
        let ctime = |name: &str| {
            use std::os::unix::fs::MetadataExt;
            let meta = dir.path().join(name).metadata().unwrap();
            i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec())
        };
        std::fs::write(dir.path().join("before"), "").unwrap();
        let earlier = now();
        let moment = file_clock_after(earlier);
        assert!(moment > earlier);
        std::fs::write(dir.path().join("after"), "").unwrap();
        let coarse = granule(ctime("before")) > 10_000_000;
        assert!(is_since(ctime("after"), moment) && (coarse || !is_since(ctime("before"), moment)));
        // Of whole seconds.
        assert!(is_since(7_000_000_000, 8_900_000_000) && !is_since(7_000_000_000, 9_000_000_000));
    }
}
