//! In which order a tier's thread takes entries: as they were sealed, and those that failed by themselves once more later.
//!
//! Invariants: an entry that fails holds up no other; up to where all went is never beyond one that is set aside, so that the next process
//! begins there. Must not know: what becomes of an entry, why one failed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::push::{LOOK, LOOK_LATER};

/// Entries by their row ids.
pub(super) struct Queue {
    /// Where this began, or what was last said of how far it is.
    noted: i64,
    /// All up to here went or are set aside.
    at: i64,
    aside: BTreeSet<i64>,
    /// Those that are tried again now, the next one last.
    round: Vec<i64>,
    due: Instant,
    pause: Duration,
}

impl Queue {
    /// All up to `noted` went.
    pub fn new(noted: i64) -> Queue {
        let (aside, round) = Default::default();
        Queue { noted, at: noted, aside, round, due: Instant::now(), pause: LOOK }
    }

    /// Begins anew if somebody else says how far it is: the index is another one.
    pub fn follow(&mut self, noted: i64) {
        if noted != self.noted {
            *self = Queue::new(noted);
        }
    }

    /// The next one is the first after this.
    pub fn at(&self) -> i64 {
        self.at
    }

    /// When there is none: one that was set aside and is due.
    pub fn again(&mut self, now: Instant) -> Option<i64> {
        if self.round.is_empty() && !self.aside.is_empty() && now >= self.due {
            self.round = self.aside.iter().rev().copied().collect();
            self.due = now + self.pause;
            self.pause = (self.pause * 2).min(LOOK_LATER);
        }
        self.round.pop()
    }

    /// This one went, or is not to be brought.
    pub fn went(&mut self, id: i64) {
        self.at = self.at.max(id);
        self.aside.remove(&id);
    }

    /// This one failed; true when it is the first time.
    pub fn set_aside(&mut self, id: i64, now: Instant) -> bool {
        if self.aside.is_empty() {
            (self.due, self.pause) = (now + LOOK, LOOK);
        }
        self.at = self.at.max(id);
        self.aside.insert(id)
    }

    /// How many are set aside.
    pub fn aside(&self) -> u64 {
        self.aside.len() as u64
    }

    /// Up to where all went, if that was not said yet.
    pub fn news(&mut self) -> Option<i64> {
        let up_to = self.aside.first().map_or(self.at, |first| first - 1);
        (std::mem::replace(&mut self.noted, up_to) != up_to).then_some(up_to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_holds_up_no_other_and_is_not_forgotten() {
        let (mut queue, begin) = (Queue::new(3), Instant::now());
        queue.went(4);
        assert_eq!((queue.news(), queue.news()), (Some(4), None));
        assert!(queue.set_aside(5, begin));
        queue.went(6);
        assert!(queue.set_aside(8, begin));
        queue.went(9);
        assert_eq!((queue.at(), queue.aside(), queue.news()), (9, 2, None));
        // The next process begins behind 4.
        assert_eq!(queue.again(begin), None, "not yet");
        let later = begin + LOOK;
        assert_eq!(queue.again(later), Some(5));
        assert!(!queue.set_aside(5, later));
        assert_eq!((queue.again(later), queue.again(later)), (Some(8), None));
        queue.went(8);
        assert_eq!(queue.news(), None);
        assert_eq!(queue.again(later + LOOK / 2), None);
        assert_eq!(queue.again(later + LOOK_LATER), Some(5));
        queue.went(5);
        assert_eq!((queue.news(), queue.again(later + 10 * LOOK_LATER)), (Some(9), None));
    }

    #[test]
    fn a_new_index_begins_anew() {
        let mut queue = Queue::new(7);
        queue.set_aside(8, Instant::now());
        queue.follow(7);
        assert_eq!((queue.at(), queue.aside()), (8, 1));
        queue.follow(0);
        assert_eq!((queue.at(), queue.aside()), (0, 0));
    }
}
