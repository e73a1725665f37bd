//! Groups that were read, and found good, for who wanted only a part of them.
//!
//! Purpose: a kernel that reads 128 KiB at a time (it does for who is not root) wants each group twice, often at
//! the same time; it is read from the disk and hashed once. Invariants: what is kept was verified under the value that names
//! it; there are few, in memory that is used again. Must not know: what is read for whom.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Result;

/// Groups that are kept, 256 KiB each at most.
const KEPT: usize = 8;

#[derive(Default)]
struct Place {
    /// Says which group is here or being read, most likely.
    tag: AtomicU64,
    group: Mutex<Group>,
}

#[derive(Default)]
struct Group {
    /// Its value, or its blob's where that has one group only.
    of: Option<[u8; 32]>,
    bytes: Vec<u8>,
}

/// The last of those groups.
#[derive(Default)]
pub(super) struct Kept([Place; KEPT]);

impl Kept {
    /// Hands the group with this value, of `len` bytes, to `take`: as it is kept, or as `read` reads and verifies it. Those with numbers
    /// in a row are kept beside each other.
    pub(super) fn group(
        &self,
        value: &[u8; 32],
        number: u64,
        len: usize,
        read: impl FnOnce(&mut [u8]) -> Result<()>,
        take: impl FnOnce(&[u8]),
    ) -> Result<()> {
        let tag = value.iter().take(8).fold(0, |tag, byte| tag << 8 | u64::from(*byte));
        let place = &self.0[(number % KEPT as u64) as usize];
        let mut group = match place.group.try_lock() {
            Some(group) => group,
            // Somebody reads just this one.
            None if place.tag.load(Ordering::Relaxed) == tag => place.group.lock(),
            None => {
                let mut bytes = vec![0; len];
                read(&mut bytes)?;
                take(&bytes);
                return Ok(());
            }
        };
        if group.of != Some(*value) || group.bytes.len() != len {
            group.of = None;
            place.tag.store(tag, Ordering::Relaxed);
            group.bytes.resize(len, 0);
            read(&mut group.bytes)?;
            group.of = Some(*value);
        }
        take(&group.bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::StoreError;
    use super::*;

    const LEN: usize = 1000;

    #[test]
    fn a_group_is_read_once_and_what_was_bad_is_not_kept() {
        let (kept, reads) = (Kept::default(), Cell::new(0));
        let get = |number: u64, good: bool| {
            let mut taken = Vec::new();
            let read = |bytes: &mut [u8]| {
                reads.set(reads.get() + 1);
                bytes.fill(number as u8);
                if good { Ok(()) } else { Err(StoreError::Elsewhere { what: "it".into() }) }
            };
            kept.group(&[number as u8; 32], number, LEN, read, |bytes| taken.extend_from_slice(bytes))
                .map(|()| taken)
        };
        assert!(get(1, false).is_err());
        assert_eq!(get(1, true).unwrap(), [1; LEN]);
        assert_eq!(get(1, true).unwrap(), [1; LEN]);
        assert_eq!(reads.get(), 2, "it was kept when it was good");
        // As many as there is room for beside each other, and one that takes the place of the first.
        for number in 2..=KEPT as u64 + 1 {
            assert_eq!(get(number, true).unwrap(), [number as u8; LEN]);
        }
        assert_eq!(get(2, true).unwrap(), [2; LEN]);
        assert_eq!(reads.get(), 2 + KEPT);
        assert_eq!(get(1, true).unwrap(), [1; LEN]);
        assert_eq!(reads.get(), 3 + KEPT);
    }

    #[test]
    fn who_wants_the_same_group_waits_for_it_and_others_do_not() {
        let (kept, reads) = (&Kept::default(), &AtomicU64::new(0));
        let (begun, begin) = std::sync::mpsc::channel();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|s| {
            s.spawn(move || {
                let read = |bytes: &mut [u8]| {
                    begun.send(()).unwrap();
                    let _ = gone.recv();
                    reads.fetch_add(1, Ordering::Relaxed);
                    bytes.fill(7);
                    Ok(())
                };
                kept.group(&[1; 32], 1, LEN, read, |_| {}).unwrap();
            });
            begin.recv().unwrap();
            // In the same place, and not the same.
            let mut other = 0;
            let read = |bytes: &mut [u8]| {
                bytes.fill(8);
                Ok(())
            };
            kept.group(&[2; 32], 1 + KEPT as u64, LEN, read, |bytes| other = bytes[0]).unwrap();
            assert_eq!(other, 8);
            let same = s.spawn(move || {
                let mut same = 0;
                let read = |_: &mut [u8]| panic!("somebody reads it already");
                kept.group(&[1; 32], 1, LEN, read, |bytes| same = bytes[0]).unwrap();
                same
            });
            drop(go);
            assert_eq!(same.join().unwrap(), 7);
        });
        assert_eq!(reads.load(Ordering::Relaxed), 1);
    }
}
