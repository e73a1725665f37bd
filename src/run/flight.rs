//! One run of a key at a time on a machine: who is first executes, the others wait for it and look again.
//!
//! Invariants: a flight is a lock on a file named by the key (its marker), so it ends with its holders, however they
//! die; while a guard holds it too, it ends when nothing of the command is left. Only who holds the lock
//! of the marker that stands there removes it; what a death left is removed by the next run of any key. Model-checked
//! by `tests/interleavings`. Must not know: what a run does, or what the store has.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use super::marker::{self, Marker};
use crate::model::EntryKey;

/// The right to execute a key's run; dropping it ends it.
#[derive(Debug)]
pub struct Flight {
    marker: Marker,
    path: PathBuf,
}

/// What came of asking for a flight.
#[derive(Debug)]
pub enum Takeoff {
    /// It is ours.
    Mine(Flight),
    /// Somebody else's.
    Others(Other),
    /// There is no place to meet, or no need to.
    Nowhere,
}

/// Somebody else's flight.
#[derive(Debug)]
pub struct Other {
    marker: Marker,
}

impl Flight {
    /// Takes off, if nobody else is in the air with `key`. `dir` is the same for all who are to meet.
    pub fn take(dir: &Path, key: &EntryKey) -> io::Result<Takeoff> {
        let path = dir.join(key.as_str());
        loop {
            let marker = Marker::open_or_make(dir, &path)?;
            if !marker.try_lock()? {
                return Ok(Takeoff::Others(Other { marker }));
            }
            let Some(flight) = Flight::standing(marker, path.clone())? else { continue };
            if !flight.marker.is_empty()? {
                // Left by a death, maybe of another user: dropped, so that a new one is ours to write.
                continue;
            }
            flight.marker.sign()?;
            Flight::sweep(dir);
            return Ok(Takeoff::Mine(flight));
        }
    }

    /// A locked marker as a flight, if it is still the one that stands there.
    fn standing(marker: Marker, path: PathBuf) -> io::Result<Option<Flight>> {
        // Made only if it is: one that is dropped removes what stands there.
        Ok(if marker.stands_at(&path)? { Some(Flight { marker, path }) } else { None })
    }

    /// Removes what deaths have left; what is in the air is locked.
    pub fn sweep(dir: &Path) {
        for path in marker::all(dir) {
            let Ok(marker) = Marker::open(&path) else { continue };
            // An empty one may be about to be locked by who has just made it.
            let done = marker.is_empty().is_ok_and(|empty| !empty || marker.is_old());
            if done && marker.try_lock().unwrap_or(false) {
                drop(Flight::standing(marker, path));
            }
        }
    }

    /// What has to be open for as long as the flight is to last.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.marker.fd()
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // Before the lock goes with the marker. What cannot be removed now is swept another time.
        let _ = marker::remove(&self.path);
    }
}

impl Other {
    /// The process that has it; `None` when it did not say so.
    pub fn pid(&self) -> Option<u32> {
        for _ in 0..20 {
            if let Some(pid) = self.marker.signed() {
                return Some(pid);
            }
            // It has just taken off.
            marker::moment();
        }
        None
    }

    /// Waits until it is over; a signal ends the waiting as it ends any process that does not catch it.
    pub fn wait(self) -> io::Result<()> {
        self.marker.wait()
    }
}
