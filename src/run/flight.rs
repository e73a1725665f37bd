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
use super::{Result, RunError};
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
    /// Fails where it cannot make a marker, or take away one that a death has left.
    pub fn take(dir: &Path, key: &EntryKey) -> Result<Takeoff> {
        let path = &dir.join(key.as_str());
        let fail = |op| move |e| RunError::io(op, path, e);
        loop {
            let marker = Marker::open_or_make(dir, path).map_err(fail("make"))?;
            if !marker.try_lock().map_err(fail("lock"))? {
                return Ok(Takeoff::Others(Other { marker }));
            }
            if !marker.stands_at(path).map_err(fail("look at"))? {
                continue;
            }
            if !marker.is_empty().map_err(fail("look at"))? {
                // Left by a death, maybe of another user: a new one is ours to write. While it is locked nobody else
                // takes it away.
                match marker::remove(path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail("remove")(e)),
                    _ => continue,
                }
            }
            // Made only now: one that is dropped removes what stands there.
            let flight = Flight { marker, path: path.clone() };
            flight.marker.sign().map_err(fail("write to"))?;
            Flight::sweep(dir);
            return Ok(Takeoff::Mine(flight));
        }
    }

    /// Removes what deaths have left; what is in the air is locked.
    pub fn sweep(dir: &Path) {
        for path in marker::all(dir) {
            let Ok(marker) = Marker::open(&path) else { continue };
            // An empty one may be about to be locked by who has just made it.
            let done = marker.is_empty().is_ok_and(|empty| !empty || marker.is_old());
            if done && marker.try_lock().unwrap_or(false) && marker.stands_at(&path).unwrap_or(false) {
                drop(Flight { marker, path });
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
