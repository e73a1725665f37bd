//! What a run's command prints, for whoever follows it from elsewhere.
//!
//! Purpose: a flight's marker is where all runs of a key meet, and it lasts exactly as long as the run; so what is printed stands
//! in it, behind the number of the process. Invariants: nobody waits for a follower; no more than a bound is written;
//! a follower ends when the run does, however that ends. Must not know: what is kept of it.

use std::cell::Cell;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use crate::model::EntryKey;

/// Bytes that are shown of a run at most.
const BOUND: u64 = 64 << 20;
/// Between two looks of a follower.
const PAUSE: Duration = Duration::from_millis(50);

/// The marker of one's own flight, written to.
pub(super) struct Live<'a> {
    marker: BorrowedFd<'a>,
    left: Cell<u64>,
}

impl<'a> Live<'a> {
    pub fn new(marker: BorrowedFd<'a>) -> Live<'a> {
        Live { marker, left: Cell::new(BOUND) }
    }

    /// Shows what was printed, on standard error if `stderr`. What cannot be written is not shown.
    pub fn show(&self, stderr: bool, bytes: &[u8]) {
        let left = self.left.get();
        if left == 0 {
            return;
        }
        let fits = bytes.len() as u64 <= left;
        let (stderr, bytes) = match fits {
            true => (stderr, bytes),
            false => (true, &b"\n[outfs: no more is shown while it runs]\n"[..]),
        };
        let mut piece = format!("{} {}\n", if stderr { 'e' } else { 'o' }, bytes.len()).into_bytes();
        piece.extend_from_slice(bytes);
        let shown = self.write(&piece).is_ok() && fits;
        self.left.set(if shown { left - bytes.len() as u64 } else { 0 });
    }

    fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match nix::unistd::write(self.marker, bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// Passes on what the command prints that is run for `key` now, from its start to its end; false when nobody runs it. `dir` is
/// where all runs meet.
pub fn follow(
    dir: &Path,
    key: &EntryKey,
    each: &mut dyn FnMut(bool, &[u8]) -> io::Result<()>,
) -> io::Result<bool> {
    let path = dir.join(key.as_str());
    let marker = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        marker => marker?,
    };
    // The number of the process comes first.
    let (mut at, mut seen, mut found) = (0, Vec::new(), false);
    loop {
        let over = is_over(&marker)?;
        if over && !found {
            return Ok(false);
        }
        found = true;
        while read(&marker, &mut at, &mut seen)? {
            let signed = seen
                .iter()
                .position(|b| *b == b'\n')
                .filter(|_| seen.first().is_some_and(u8::is_ascii_digit));
            signed.into_iter().for_each(|end| drop(seen.drain(..=end)));
            while let Some((stderr, head, end)) = piece(&seen) {
                each(stderr, &seen[head..end])?;
                seen.drain(..end);
            }
        }
        if over {
            return Ok(true);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Nobody has it locked.
fn is_over(marker: &File) -> io::Result<bool> {
    match marker.try_lock_shared() {
        Ok(()) => marker.unlock().map(|()| true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Reads on; false at the end.
fn read(marker: &File, at: &mut u64, seen: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 1 << 16];
    let n = marker.read_at(&mut buffer, *at)?;
    *at += n as u64;
    seen.write_all(&buffer[..n])?;
    Ok(n > 0)
}

/// The first piece, if all of it is there: its stream, and where its bytes begin and end.
fn piece(seen: &[u8]) -> Option<(bool, usize, usize)> {
    let line = seen.iter().position(|b| *b == b'\n')?;
    let (stream, length) = std::str::from_utf8(&seen[..line]).ok()?.split_once(' ')?;
    let end = (line + 1).checked_add(length.parse().ok()?)?;
    (seen.len() >= end).then_some((stream == "e", line + 1, end))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn key() -> EntryKey {
        EntryKey::parse("abcd").unwrap()
    }

    fn marker(dir: &Path) -> File {
        let marker = File::create(dir.join("abcd")).unwrap();
        marker.lock().unwrap();
        (&marker).write_all(b"123\n").unwrap();
        marker
    }

    #[test]
    fn what_is_printed_is_followed_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let marker = marker(dir.path());
        let live = Live::new(marker.as_fd());
        live.show(false, b"one\n");
        let (tell, told) = std::sync::mpsc::channel();
        let place = dir.path().to_owned();
        let follower = std::thread::spawn(move || {
            follow(&place, &key(), &mut |stderr, bytes| {
                tell.send((stderr, bytes.to_vec())).map_err(io::Error::other)
            })
        });
        assert_eq!(told.recv().unwrap(), (false, b"one\n".to_vec()));
        live.show(true, b"7 is no number of a process\n");
        assert_eq!(told.recv().unwrap(), (true, b"7 is no number of a process\n".to_vec()));
        let long = vec![b'x'; 200_000];
        live.show(false, &long);
        std::fs::remove_file(dir.path().join("abcd")).unwrap();
        drop(marker);
        assert_eq!(told.recv().unwrap(), (false, long));
        assert!(follower.join().unwrap().unwrap());
        assert!(told.recv().is_err());
    }

    #[test]
    fn nobody_runs_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut none = |_, _: &[u8]| -> io::Result<()> { panic!("nothing is printed") };
        assert!(!follow(dir.path(), &key(), &mut none).unwrap());
        // What a death has left.
        drop(marker(dir.path()));
        assert!(!follow(dir.path(), &key(), &mut none).unwrap());
    }

    #[test]
    fn no_more_than_a_bound_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let marker = marker(dir.path());
        let live = Live::new(marker.as_fd());
        live.left.set(10);
        for _ in 0..4 {
            live.show(false, b"12345678");
        }
        let text = std::fs::read_to_string(dir.path().join("abcd")).unwrap();
        assert!(
            text.starts_with("123\no 8\n12345678e ") && text.ends_with("is shown while it runs]\n"),
            "{text}"
        );
    }
}
