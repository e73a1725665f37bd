//! What a disk holds, and what it may hold after the power was cut.
//!
//! Invariants: the base is never changed; an image is the base and pages in memory, and costs little to clone. A flush
//! makes every earlier write durable; later ones may be lost, kept, kept in part, or torn between pages.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::daemon::Random;

pub const PAGE: usize = 4096;

/// What happened to the disk, in order.
pub enum Record {
    /// Bytes were written.
    Write { offset: u64, data: Vec<u8> },
    /// Bytes became zero.
    Zero { offset: u64, len: u64 },
    /// Everything before is durable.
    Flush,
    /// Somebody was told something by then.
    Mark(String),
}

/// What happens to the writes that no flush made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// All are lost.
    Lost,
    /// All arrived.
    Kept,
    /// Each arrived or was lost.
    Some,
    /// Each page of each arrived or was lost.
    Torn,
}

impl Fate {
    /// All of them.
    pub const ALL: [Fate; 4] = [Fate::Lost, Fate::Kept, Fate::Some, Fate::Torn];
}

/// The bytes of a disk.
#[derive(Clone)]
pub struct Image {
    base: Arc<File>,
    pages: HashMap<u64, Arc<[u8; PAGE]>>,
}

impl Image {
    /// A disk that holds what `base` holds.
    pub fn new(base: File) -> Self {
        Self { base: Arc::new(base), pages: HashMap::new() }
    }

    /// Fills `buf` from `offset` on; what lies behind the base's end is zero.
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        each_page(offset, buf.len(), |page, within, range| match self.pages.get(&page) {
            Some(bytes) => buf[range.clone()].copy_from_slice(&bytes[within..within + range.len()]),
            None => self.read_base(page * PAGE as u64 + within as u64, &mut buf[range]),
        });
    }

    fn read_base(&self, offset: u64, buf: &mut [u8]) {
        buf.fill(0);
        let mut done = 0;
        while done < buf.len() {
            match self.base.read_at(&mut buf[done..], offset + done as u64).expect("the base can be read") {
                0 => return,
                n => done += n,
            }
        }
    }

    /// Writes `data` at `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        each_page(offset, data.len(), |page, within, range| {
            self.page(page)[within..within + range.len()].copy_from_slice(&data[range]);
        });
    }

    /// Makes bytes zero.
    pub fn zero(&mut self, offset: u64, len: u64) {
        each_page(offset, len as usize, |page, within, range| {
            self.page(page)[within..within + range.len()].fill(0);
        });
    }

    fn page(&mut self, number: u64) -> &mut [u8; PAGE] {
        if !self.pages.contains_key(&number) {
            let mut bytes = [0; PAGE];
            self.read_base(number * PAGE as u64, &mut bytes);
            self.pages.insert(number, Arc::new(bytes));
        }
        Arc::make_mut(self.pages.get_mut(&number).expect("it was put there just now"))
    }

    /// Does what a record says.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Write { offset, data } => self.write(*offset, data),
            Record::Zero { offset, len } => self.zero(*offset, *len),
            Record::Flush | Record::Mark(_) => {}
        }
    }

    /// The disk after a power cut, when these writes were not durable yet.
    pub fn after_cut<'r>(
        &self,
        pending: impl Iterator<Item = &'r Record>,
        fate: Fate,
        random: &mut Random,
    ) -> Image {
        let mut image = self.clone();
        for record in pending {
            match (fate, record) {
                (Fate::Lost, _) => {}
                (Fate::Torn, Record::Write { offset, data }) => {
                    for (n, part) in data.chunks(PAGE).enumerate() {
                        if random.below(2) == 0 {
                            image.write(offset + (n * PAGE) as u64, part);
                        }
                    }
                }
                (Fate::Kept, _) => image.apply(record),
                (Fate::Some | Fate::Torn, _) => {
                    if random.below(2) == 0 {
                        image.apply(record);
                    }
                }
            }
        }
        image
    }
}

/// Calls `each` with the number of a page, where in it a part of `len` bytes at `offset` begins, and which part.
fn each_page(offset: u64, len: usize, mut each: impl FnMut(u64, usize, std::ops::Range<usize>)) {
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let within = (at % PAGE as u64) as usize;
        let n = (PAGE - within).min(len - done);
        each(at / PAGE as u64, within, done..done + n);
        done += n;
    }
}
