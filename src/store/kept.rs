//! Groups that were read, and found good, for who wanted only a part of them or wants them next.
//!
//! Purpose: a kernel that reads 128 KiB at a time (it does for who is not root) wants each group twice, often at
//! the same time; it is read from the disk and hashed once. And it asks for the next piece only when its reader is at the last
//! one: so what follows is read by a thread of our own meanwhile. Invariants: what is kept was verified under the
//! value that names it; there are few, in memory that is used again. Must not know: what is read for whom.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::aside::Aside;
use super::{Result, port};
use crate::model::groups::{GROUP, GroupHash, group_hash};

/// Groups that are kept, 256 KiB each at most.
const KEPT: usize = 16;
/// Groups that are read before they are wanted.
const AHEAD: usize = 2;

#[derive(Default)]
struct Place {
    /// Says which group is here or being read, most likely.
    tag: AtomicU64,
    /// The group that was wanted last, of those that belong here.
    wanted: AtomicU64,
    group: Mutex<Group>,
}

#[derive(Default)]
struct Group {
    /// Its value, or its blob's where that has one group only.
    of: Option<GroupHash>,
    bytes: Vec<u8>,
}

impl Group {
    /// Reads a group of `len` bytes by `read`, which verifies it, unless it is here.
    fn have<E>(
        &mut self,
        place: &Place,
        (value, len): (&GroupHash, usize),
        read: impl FnOnce(&mut [u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        if self.of != Some(*value) || self.bytes.len() != len {
            self.of = None;
            place.tag.store(tag_of(value), Ordering::Relaxed);
            self.bytes.resize(len, 0);
            read(&mut self.bytes)?;
            self.of = Some(*value);
        }
        Ok(())
    }
}

/// A content that is read in order: its file holds all of it from the beginning, and these are the values of its groups.
pub(super) struct Reading<'a> {
    pub file: &'a Arc<File>,
    pub size: u64,
    pub values: &'a [GroupHash],
    /// The number of its first group.
    pub number: u64,
}

/// A group to be read before it is wanted.
struct Next {
    file: Arc<File>,
    index: u64,
    value: GroupHash,
    len: usize,
    number: u64,
    places: Arc<Places>,
}

type Places = [Place; KEPT];

/// The last of those groups.
#[derive(Default)]
pub(super) struct Kept {
    places: Arc<Places>,
    work: Aside<Next>,
}

impl Kept {
    /// Hands the group with this value, of `len` bytes, to `take`: as it is kept, or as `read` reads and verifies it. Those with numbers
    /// in a row are kept beside each other.
    pub(super) fn group(
        &self,
        value: &GroupHash,
        number: u64,
        len: usize,
        read: impl FnOnce(&mut [u8]) -> Result<()>,
        take: impl FnOnce(&[u8]),
    ) -> Result<()> {
        let place = self.place(number);
        let mut group = match place.group.try_lock() {
            Some(group) => group,
            // Somebody reads just this one.
            None if place.is_tagged(value) => place.group.lock(),
            None => {
                let mut bytes = vec![0; len];
                read(&mut bytes)?;
                take(&bytes);
                return Ok(());
            }
        };
        group.have(place, (value, len), read)?;
        take(&group.bytes);
        Ok(())
    }

    /// Whether it is worth asking for the group with this value and number.
    pub(super) fn has(&self, value: &GroupHash, number: u64) -> bool {
        self.place(number).is_tagged(value)
    }

    /// The group with this index is wanted: if the one before it was, those behind it are read, too. What is wrong with one is
    /// found by who wants it.
    pub(super) fn read_ahead(&self, of: &Reading<'_>, index: u64) {
        let value = |index: u64| usize::try_from(index).ok().and_then(|i| of.values.get(i));
        let place = |index: u64| self.place(of.number.wrapping_add(index));
        if let Some(value) = value(index) {
            place(index).wanted.store(tag_of(value), Ordering::Relaxed);
        }
        let was_wanted =
            |i: u64| value(i).is_some_and(|v| place(i).wanted.load(Ordering::Relaxed) == tag_of(v));
        if !index.checked_sub(1).is_some_and(was_wanted) {
            return;
        }
        for index in (index + 1..).take(AHEAD) {
            let Some(value) = value(index) else { return };
            if !place(index).is_tagged(value) {
                let len = (of.size - index * GROUP as u64).min(GROUP as u64) as usize;
                let (file, places) = (of.file.clone(), self.places.clone());
                let number = of.number.wrapping_add(index);
                // Not wanted yet.
                place(index).wanted.store(0, Ordering::Relaxed);
                self.work.give(
                    Next { file, index, value: *value, len, number, places },
                    "groups",
                    Next::read,
                );
            }
        }
    }

    fn place(&self, number: u64) -> &Place {
        &self.places[(number % KEPT as u64) as usize]
    }
}

impl Place {
    fn is_tagged(&self, value: &GroupHash) -> bool {
        self.tag.load(Ordering::Relaxed) == tag_of(value)
    }
}

impl Next {
    fn read(self) {
        let place = &self.places[(self.number % KEPT as u64) as usize];
        // Who wants it was faster.
        if place.wanted.load(Ordering::Relaxed) == tag_of(&self.value) {
            return;
        }
        // Somebody is there, for this or for another.
        let Some(mut group) = place.group.try_lock() else { return };
        let read = |bytes: &mut [u8]| {
            let n = port::read_at(&*self.file, bytes, self.index * GROUP as u64).map_err(drop)?;
            let is_good = n == bytes.len() && group_hash(self.index, bytes) == self.value;
            if is_good { Ok(()) } else { Err(()) }
        };
        let _ = group.have(place, (&self.value, self.len), read);
    }
}

fn tag_of(value: &GroupHash) -> u64 {
    value.iter().take(8).fold(0, |tag, byte| tag << 8 | u64::from(*byte))
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

    /// A file of so many groups, the last a short one, and the values of its groups.
    fn file(groups: usize) -> (Arc<File>, u64, Vec<GroupHash>) {
        let bytes: Vec<u8> = (0..groups * GROUP - 7).map(|i| (i / 1000) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        let values = bytes.chunks(GROUP).zip(0..).map(|(group, i)| group_hash(i, group)).collect();
        (Arc::new(file), bytes.len() as u64, values)
    }

    /// Reads a group and says whether it was here before.
    fn wanted(kept: &Kept, of: &Reading<'_>, index: u64) -> bool {
        kept.read_ahead(of, index);
        let (mut read, len) = (false, (of.size - index * GROUP as u64).min(GROUP as u64) as usize);
        let reads = |bytes: &mut [u8]| {
            read = true;
            port::read_at(&**of.file, bytes, index * GROUP as u64).unwrap();
            Ok(())
        };
        let mut good = false;
        let value = of.values[index as usize];
        kept.group(&value, of.number + index, len, reads, |b| good = group_hash(index, b) == value).unwrap();
        assert!(good);
        !read
    }

    /// Waits until the group with this number is kept.
    fn comes(kept: &Kept, of: &Reading<'_>, index: u64) -> bool {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::time::Instant::now() < end {
            if kept.place(of.number + index).group.lock().of == Some(of.values[index as usize]) {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    #[test]
    fn what_follows_is_here_when_it_is_wanted() {
        let (kept, (file, size, values)) = (Kept::default(), file(6));
        let of = Reading { file: &file, size, values: &values, number: 13 };
        assert!(!wanted(&kept, &of, 0));
        assert!(!wanted(&kept, &of, 1), "nobody knew that this would follow");
        for index in 2..6 {
            assert!(comes(&kept, &of, index));
            assert!(wanted(&kept, &of, index));
        }
    }

    #[test]
    fn who_reads_here_and_there_has_nothing_read_ahead() {
        let (kept, (file, size, values)) = (Kept::default(), file(8));
        let of = Reading { file: &file, size, values: &values, number: 0 };
        [6, 0, 3].into_iter().for_each(|index| assert!(!wanted(&kept, &of, index)));
        [1, 2, 4, 5, 7].into_iter().for_each(|index| assert!(kept.place(index).group.lock().of.is_none()));
    }

    #[test]
    fn what_is_bad_is_not_kept_by_who_reads_ahead() {
        let (kept, (file, size, mut values)) = (Kept::default(), file(4));
        values[2][31] ^= 1;
        let of = Reading { file: &file, size, values: &values, number: 0 };
        assert!(!wanted(&kept, &of, 0));
        assert!(!wanted(&kept, &of, 1));
        // It comes after that one.
        assert!(comes(&kept, &of, 3));
        let bad = kept.place(2).group.lock().of;
        assert_eq!(bad, None);
        let mut asked = false;
        let read = |_: &mut [u8]| {
            asked = true;
            Err(super::super::StoreError::Elsewhere { what: "it".into() })
        };
        assert!(kept.group(&values[2], 2, GROUP, read, |_| panic!("it is bad")).is_err());
        assert!(asked);
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
