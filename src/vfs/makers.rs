//! Who makes small files one after the other.
//!
//! A file that is made for writing alone (as `cp` and `tar` do) is passed through if it becomes large: then its writes cost nothing
//! here. For a small one that costs more than the one write that it saves. How large it becomes is not known when it is made, so what the same
//! thread made last says it. Invariants: a wrong guess costs time and nothing else; it is bounded.

use std::sync::atomic::{AtomicU32, Ordering};

/// Threads that are remembered.
const SLOTS: usize = 256;
/// What is smaller is written faster than it is registered for passing through.
const SMALL: u64 = 1 << 20;

/// Threads whose last file was small.
pub(super) struct Makers(Box<[AtomicU32]>);

impl Default for Makers {
    fn default() -> Makers {
        Makers((0..SLOTS).map(|_| AtomicU32::new(0)).collect())
    }
}

impl Makers {
    fn slot(&self, thread: u32) -> &AtomicU32 {
        &self.0[thread as usize % SLOTS]
    }

    pub(super) fn makes_small(&self, thread: u32) -> bool {
        thread != 0 && self.slot(thread).load(Ordering::Relaxed) == thread
    }

    /// A file of this thread's was closed.
    pub(super) fn made(&self, thread: u32, size: u64) {
        if size < SMALL {
            self.slot(thread).store(thread, Ordering::Relaxed);
        } else {
            // What another thread has made is left as it is.
            let _ = self.slot(thread).compare_exchange(thread, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_file_says_what_the_next_will_be() {
        let makers = Makers::default();
        assert!(!makers.makes_small(7), "nobody knows it yet");
        makers.made(7, SMALL - 1);
        assert!(makers.makes_small(7));
        let other = 7 + SLOTS as u32;
        assert!(!makers.makes_small(other));
        makers.made(other, SMALL);
        assert!(makers.makes_small(7), "another one's large file says nothing of it");
        makers.made(7, SMALL);
        assert!(!makers.makes_small(7));
        makers.made(0, 1);
        assert!(!makers.makes_small(0), "the kernel itself");
    }
}
