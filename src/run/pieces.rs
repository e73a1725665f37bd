//! Hashing very many small pieces: BLAKE3 gets them in large parts, which takes it a fraction of the time.
//!
//! Invariant: the hash is that of all pieces, one behind the other. Must not know: what they are.

/// So many bytes are collected.
const PART: usize = 1 << 16;

/// What was not hashed yet, and the hash of what was.
pub(super) struct Pieces {
    hasher: blake3::Hasher,
    waiting: Vec<u8>,
}

impl Pieces {
    /// Into a hash that has just begun.
    pub fn of(hasher: blake3::Hasher) -> Pieces {
        Pieces { hasher, waiting: Vec::new() }
    }

    /// One more.
    pub fn add(&mut self, piece: &[u8]) -> &mut Pieces {
        if self.waiting.len() + piece.len() > PART {
            self.hasher.update(&self.waiting);
            self.waiting.clear();
        }
        self.waiting.extend_from_slice(piece);
        self
    }

    /// One more, and how long it is before it.
    pub fn add_with_length(&mut self, piece: &[u8]) -> &mut Pieces {
        self.add(&(piece.len() as u64).to_le_bytes()).add(piece)
    }

    /// Of all of them.
    pub fn end(mut self) -> blake3::Hash {
        self.hasher.update(&self.waiting).finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_hashed_as_one() {
        let mut pieces = Pieces::of(blake3::Hasher::new());
        let mut whole = Vec::new();
        for length in [0, 1, 7, PART - 9, 1, 2, PART, 3, 2 * PART + 1, 0, 5] {
            let piece: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            pieces.add(&piece);
            whole.extend(&piece);
        }
        pieces.add_with_length(b"abc");
        whole.extend(3_u64.to_le_bytes());
        whole.extend(b"abc");
        assert_eq!(pieces.end(), blake3::hash(&whole));
    }
}
