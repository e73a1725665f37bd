//! What a command has printed and nobody has taken yet.
//!
//! Purpose: whoever reads our output may be slow, or not read at all, and the command's time is limited all the same; so
//! it is watched by one thread, and what it prints is passed on by another. Invariants: pieces keep their order; no more
//! than a bound is taken from a command that is still running. Must not know: where it comes from or goes.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use parking_lot::{Condvar, Mutex};

use super::capture::Sink;

/// Bytes that wait at most while the command runs; one piece more.
const BOUND: usize = 1 << 20;

/// Pieces on their way.
pub(super) struct Spool {
    queue: Mutex<Queue>,
    more: Condvar,
    room: UnixStream,
    tell: UnixStream,
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<(bool, Vec<u8>)>,
    bytes: usize,
    ended: bool,
}

impl Spool {
    pub fn new() -> io::Result<Spool> {
        let (room, tell) = UnixStream::pair()?;
        room.set_nonblocking(true)?;
        tell.set_nonblocking(true)?;
        Ok(Spool { queue: Mutex::default(), more: Condvar::new(), room, tell })
    }

    /// One more piece, of standard error if `stderr`.
    pub fn push(&self, stderr: bool, bytes: &[u8]) {
        let mut queue = self.queue.lock();
        queue.bytes += bytes.len();
        queue.pieces.push_back((stderr, bytes.to_vec()));
        self.more.notify_one();
    }

    /// There is no room for more, until [`Self::fd`] is readable.
    pub fn is_full(&self) -> bool {
        self.queue.lock().bytes >= BOUND
    }

    /// Readable when there is room again.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.room.as_fd()
    }

    /// Takes word of that.
    pub fn heard(&self) {
        let mut rest = [0; 64];
        while matches!((&self.room).read(&mut rest), Ok(n) if n > 0) {}
    }

    /// No more will come.
    pub fn end(&self) {
        self.queue.lock().ended = true;
        self.more.notify_one();
    }

    /// Passes all on that comes, until the end.
    pub fn pass_on(&self, sink: &mut dyn Sink) {
        let mut queue = self.queue.lock();
        loop {
            while let Some((stderr, bytes)) = queue.pieces.pop_front() {
                parking_lot::MutexGuard::unlocked(&mut queue, || sink.wrote(stderr, &bytes));
                let was_full = queue.bytes >= BOUND;
                queue.bytes -= bytes.len();
                if was_full && queue.bytes < BOUND {
                    // One that is full has told enough.
                    let _ = (&self.tell).write(&[0]);
                }
            }
            if queue.ended {
                return;
            }
            self.more.wait(&mut queue);
        }
    }
}
