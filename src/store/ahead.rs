//! Reading packs ahead of whoever reads them in order.
//!
//! Purpose: the kernel reads a file ahead by itself, but loses the thread when several threads read small pieces of it with
//! gaps between, as those of a pack are read that are wanted: then each half megabyte is waited for. Invariants: only
//! advice is given, by a thread of its own, which nobody waits for; it begins with a few reads in order, so reading here
//! and there costs nothing more. Must not know: what is read, and whether it is good.

use std::fs::File;
use std::sync::Arc;

use parking_lot::Mutex;

use super::aside::Aside;
use super::{PackId, port};

/// Bytes that are read ahead: what a disk of 2 GB/s brings in two milliseconds.
const AHEAD: u64 = 4 << 20;
/// A read that begins so near the end of the last one goes on from there: what is left out may be stored elsewhere.
const NEAR: u64 = 512 << 10;
/// Reads in order, before it begins.
const ENOUGH: u32 = 3;
/// Places that are read from at the same time.
const PLACES: usize = 16;

/// Where somebody reads in order.
#[derive(Debug, Clone, Copy)]
struct Place {
    pack: PackId,
    /// Where the furthest read ended.
    end: u64,
    /// Reads in order so far.
    reads: u32,
    /// How far has been read ahead.
    ahead: u64,
}

/// Who reads where, the latest last.
#[derive(Debug, Default)]
struct Places(Vec<Place>);

impl Places {
    /// A read; gives what to read ahead now, from and to.
    fn note(&mut self, pack: PackId, offset: u64, len: u64) -> Option<(u64, u64)> {
        let near = |p: &Place| p.pack == pack && offset.abs_diff(p.end) <= NEAR;
        let mut place = match self.0.iter().rposition(near) {
            Some(at) => self.0.remove(at),
            None => {
                if self.0.len() == PLACES {
                    self.0.remove(0);
                }
                Place { pack, end: 0, reads: 0, ahead: 0 }
            }
        };
        place.end = place.end.max(offset + len);
        place.reads = place.reads.saturating_add(1);
        let due = place.reads > ENOUGH && place.end + AHEAD / 2 >= place.ahead;
        let wanted = due.then(|| (place.ahead.max(place.end), place.end + AHEAD));
        place.ahead = wanted.map_or(place.ahead, |(_, to)| to);
        self.0.push(place);
        wanted
    }
}

/// A piece of a file.
type Piece = (Arc<File>, u64, u64);

/// What reads ahead.
#[derive(Default)]
pub(super) struct Ahead {
    places: Mutex<Places>,
    work: Aside<Piece>,
}

impl Ahead {
    /// Takes note of a read, before it is made.
    pub fn note(&self, pack: PackId, file: &Arc<File>, offset: u64, len: u64) {
        let Some((from, to)) = self.places.lock().note(pack, offset, len) else { return };
        let advise = |(file, from, len): Piece| port::will_read(&file, from, len);
        self.work.give((file.clone(), from, to - from), "ahead", advise);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACK: PackId = PackId(1);
    const PIECE: u64 = 20_000;

    #[test]
    fn what_is_read_in_order_is_read_ahead_once_and_without_gaps() {
        let mut places = Places::default();
        let (mut ahead, mut given) = (None, 0);
        for n in 0..1000 {
            let offset = n * (PIECE + 100);
            if let Some((from, to)) = places.note(PACK, offset, PIECE) {
                let begun = *ahead.get_or_insert(from);
                assert!(from < to && to - from <= AHEAD);
                assert!(begun == from || from == ahead.unwrap(), "a gap before {from}");
                ahead = Some(to);
                given += 1;
            }
            let known = ahead.unwrap_or(u64::MAX);
            assert!(n < 4 || known >= offset + PIECE + AHEAD / 2 - PIECE, "{n}: only up to {known}");
        }
        assert!(given <= 1000 * (PIECE + 100) / (AHEAD / 2) + 1, "{given} times");
    }

    #[test]
    fn reading_here_and_there_reads_nothing_ahead() {
        let mut places = Places::default();
        for n in 0..1000 {
            let offset = (n * 7_919) % 1000 * (2 * NEAR);
            assert_eq!(places.note(PACK, offset, PIECE), None, "{n}");
        }
        assert_eq!(places.0.len(), PLACES);
    }

    #[test]
    fn several_read_in_order_at_the_same_time() {
        let mut places = Places::default();
        let mut given = [0; 4];
        for n in 0..400 {
            for reader in 0..4 {
                let offset = reader * (1 << 30) + n * PIECE;
                given[reader as usize] += u32::from(places.note(PACK, offset, PIECE).is_some());
            }
        }
        assert!(given.iter().all(|n| *n > 1), "{given:?}");
    }

    #[test]
    fn readers_may_overtake_each_other() {
        let mut places = Places::default();
        let order = (0..200).flat_map(|n| [2 * n + 1, 2 * n]);
        let given = order.filter(|n| places.note(PACK, n * PIECE, PIECE).is_some()).count();
        assert!((2..10).contains(&given), "{given}");
        assert_eq!(places.0.len(), 1);
    }
}
