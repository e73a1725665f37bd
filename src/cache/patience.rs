//! How long those who need room wait for kernels to let go.
//!
//! Purpose: kernels have those who change a directory come one after the other, so what each waits in vain adds up for the
//! last of them. Invariant: once somebody has waited in vain, all who come in the time after that wait no longer than
//! [`TOGETHER`] together. Must not know: what makes room.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long the first waits.
pub(super) const PATIENCE: Duration = Duration::from_millis(700);
/// How long the first goes on evicting when others take what its first round made.
const PERSISTENCE: Duration = Duration::from_secs(3);
/// How long who comes soon after somebody who waited in vain does either. A second chance, and asking twice, take no more.
const AFTER_VAIN: Duration = Duration::from_millis(300);
/// How long those wait together; then they are told that there is no room without waiting.
const TOGETHER: Duration = Duration::from_millis(600);
/// How long that is at most; it is not longer than twice the time that was waited either.
const VAIN: Duration = Duration::from_secs(3);

/// How long somebody may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wait {
    /// For the turn to evict.
    pub turn: Duration,
    /// For kernels to let go.
    pub patience: Duration,
    /// For rounds after the first.
    pub most: Duration,
    /// Who comes soon after somebody who waited in vain.
    after_vain: bool,
}

/// Somebody waited in vain.
struct Vain {
    /// Until when that counts.
    until: Instant,
    /// What those who come until then may wait.
    left: Duration,
}

/// What those who come now may wait.
#[derive(Default)]
pub(super) struct Patience(Mutex<Option<Vain>>);

impl Patience {
    /// Of who begins now.
    pub fn of(&self, now: Instant) -> Wait {
        let vain = self.0.lock();
        let Some(Vain { left, .. }) = vain.as_ref().filter(|vain| now < vain.until) else {
            return Wait { turn: PATIENCE, patience: PATIENCE, most: PERSISTENCE, after_vain: false };
        };
        let patience = AFTER_VAIN.min(*left);
        Wait { turn: patience, patience, most: patience, after_vain: true }
    }

    /// Who began then, with this, has `made` room or not.
    pub fn over(&self, wait: Wait, begun: Instant, now: Instant, made: bool) {
        let mut vain = self.0.lock();
        let took = now.saturating_duration_since(begun);
        match &mut *vain {
            vain if made => *vain = None,
            Some(vain) if wait.after_vain => vain.left = vain.left.saturating_sub(took),
            _ if wait.after_vain => {}
            vain => *vain = Some(Vain { until: now + (2 * took).min(VAIN), left: TOGETHER }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When the last of so many who come one after the other is answered, each of whom takes all the time that it may, and
    /// `work` besides.
    fn last(patience: &Patience, begin: Instant, callers: u32, work: Duration) -> Duration {
        let mut now = begin;
        for _ in 0..callers {
            let wait = patience.of(now);
            let begun = now;
            now += wait.patience + work;
            patience.over(wait, begun, now, false);
        }
        now - begin
    }

    #[test]
    fn those_who_come_one_after_the_other_wait_in_vain_but_shortly() {
        let begin = Instant::now();
        for work in [1, 20, 60] {
            let took = last(&Patience::default(), begin, 16, Duration::from_millis(work));
            assert!(took < Duration::from_millis(3_300), "{took:?} with {work} ms");
        }
        let few = last(&Patience::default(), begin, 2, Duration::ZERO);
        assert_eq!(few, PATIENCE + AFTER_VAIN, "the next one still gives kernels time");
    }

    #[test]
    fn after_a_while_or_when_there_was_room_all_is_as_before() {
        let (patience, begin) = (Patience::default(), Instant::now());
        let first = patience.of(begin);
        assert_eq!((first.turn, first.patience, first.most), (PATIENCE, PATIENCE, PERSISTENCE));
        patience.over(first, begin, begin + PATIENCE, false);
        let soon = begin + PATIENCE;
        assert_eq!(patience.of(soon).most, AFTER_VAIN);
        assert_eq!(patience.of(soon + 2 * PATIENCE), first);
        let second = patience.of(soon);
        patience.over(second, soon, soon + 4 * AFTER_VAIN, false);
        let none = patience.of(soon + Duration::from_millis(1));
        assert_eq!((none.turn, none.patience, none.most), (Duration::ZERO, Duration::ZERO, Duration::ZERO));
        patience.over(none, soon, soon, true);
        assert_eq!(patience.of(soon + Duration::from_millis(2)), first);
    }
}
