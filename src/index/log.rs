//! Whether the index's write-ahead log is damaged, asked before SQLite reads it.
//!
//! SQLite takes a frame that does not fit for the end of the log: after a power cut that is what it is, and what was
//! committed behind it was never promised. But what is damaged later looks the same, and everything behind it, promised
//! long ago, would be gone without a word. They can be told apart: a transaction is begun when the one before
//! is synced, so behind a power cut there are frames of one transaction at most. Not told apart is damage in the
//! last transaction. Format: <https://sqlite.org/fileformat2.html#the_write_ahead_log>. Must not know: what is in the pages.

use std::io::{self, BufReader, ErrorKind, Read};
use std::path::Path;

use crate::store::port::paths;

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// The lowest bit says in which order checksums take the bytes of a word.
const MAGIC: u32 = 0x377f_0682;

type Sum = (u32, u32);

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn add(sum: Sum, bytes: &[u8], big_endian: bool) -> Sum {
    let read = |b: &[u8]| {
        let word = [b[0], b[1], b[2], b[3]];
        if big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
    };
    bytes.chunks_exact(8).fold(sum, |(a, b), two| {
        let a = a.wrapping_add(read(&two[..4])).wrapping_add(b);
        (a, b.wrapping_add(read(&two[4..])).wrapping_add(a))
    })
}

/// Reads all of `buffer`; false at the end of the file.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

/// Frames behind the place up to which everything fits.
#[derive(Default)]
struct Behind {
    /// The salts of a frame that ends a transaction.
    ended: Option<u64>,
    another: bool,
}

impl Behind {
    fn add(&mut self, salts: u64, ends: bool) {
        self.another |= self.ended == Some(salts);
        if ends && self.ended.is_none() {
            self.ended = Some(salts);
        }
    }
}

/// Is this log damaged before its last transaction? A file that is not there is not.
pub(super) fn is_damaged(log: &Path) -> io::Result<bool> {
    match paths::open(log) {
        Ok(file) => look(&mut BufReader::with_capacity(1 << 17, file)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn look(log: &mut impl Read) -> io::Result<bool> {
    let mut header = [0; HEADER];
    if !fill(log, &mut header)? {
        return Ok(false);
    }
    let (magic, page) = (word(&header, 0), word(&header, 8) as usize);
    let big_endian = magic & 1 == 1;
    let mut sum = add((0, 0), &header[..24], big_endian);
    let mut fits = magic & !1 == MAGIC && sum == (word(&header, 24), word(&header, 28));
    let salts_of = |bytes: &[u8], at| u64::from(word(bytes, at)) << 32 | u64::from(word(bytes, at + 4));
    let salts = salts_of(&header, 16);
    // Of a header that does not fit nothing is known but what SQLite has by itself.
    let page = if fits { page.clamp(512, 65536) } else { 4096 };
    let (mut frame, mut behind) = (vec![0; FRAME_HEADER + page], Behind::default());
    let whole_header = fits;
    while fill(log, &mut frame)? {
        let (head, content) = frame.split_at(FRAME_HEADER);
        let own = salts_of(head, 8);
        if fits {
            sum = add(add(sum, &head[..8], big_endian), content, big_endian);
            fits = own == salts && sum == (word(head, 16), word(head, 20));
        }
        // What is left of an older log has other salts.
        if !fits && word(head, 0) != 0 && (own == salts || !whole_header) {
            behind.add(own, word(head, 4) != 0);
        }
    }
    Ok(behind.another)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of so many transactions, and where the last one begins.
    fn log(dir: &Path, transactions: u32) -> (Vec<u8>, usize) {
        let file = dir.join("db");
        let db = rusqlite::Connection::open(&file).unwrap();
        db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t(x, y)")
            .unwrap();
        let mut last = 0;
        for n in 0..transactions {
            last = std::fs::metadata(dir.join("db-wal")).unwrap().len() as usize;
            db.execute("INSERT INTO t VALUES(?1, zeroblob(5000))", [n]).unwrap();
        }
        (std::fs::read(dir.join("db-wal")).unwrap(), last)
    }

    fn damaged(bytes: &[u8]) -> bool {
        look(&mut &bytes[..]).unwrap()
    }

    #[test]
    fn a_log_that_ends_anywhere_is_not_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, _) = log(dir.path(), 5);
        assert!(whole.len() > 10 * 4096 && !damaged(&whole));
        for end in (0..whole.len()).step_by(97) {
            assert!(!damaged(&whole[..end]), "it ends at {end}");
        }
        assert!(!is_damaged(&dir.path().join("none")).unwrap());
    }

    #[test]
    fn damage_before_the_last_transaction_is_found_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, last) = log(dir.path(), 5);
        let mut missed = 0;
        for at in (0..last).step_by(61) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            missed += usize::from(!damaged(&bytes));
        }
        assert_eq!(missed, 0);
    }

    /// After a power cut: of what was not synced some is there, and the rest is as it was before.
    #[test]
    fn a_torn_last_transaction_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, last) = log(dir.path(), 5);
        for at in (last..whole.len()).step_by(61) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            assert!(!damaged(&bytes), "it is torn at {at}");
        }
        // The log begins anew over an older one, whose frames follow.
        let mut bytes = whole.clone();
        bytes[16] ^= 1;
        let (a, b) = add((0, 0), &bytes[..24], word(&bytes, 0) & 1 == 1);
        bytes[24..28].copy_from_slice(&a.to_be_bytes());
        bytes[28..32].copy_from_slice(&b.to_be_bytes());
        assert!(!damaged(&bytes));
    }
}
