//! Content hashes: digests of blobs, of manifests and of what tiers keep, as types that never mix.
//!
//! All are BLAKE3, but for the names of contents that only SHA-256 is known of.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest;

/// Why a text is not a hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a hash is 64 lower-case hexadecimal digits, this is {0:?}")]
pub struct HashError(String);

macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// Hashes `bytes` in one go.
            pub fn of(bytes: &[u8]) -> Self {
                Self(*blake3::hash(bytes).as_bytes())
            }

            /// The digest's bytes.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// 64 lower-case hexadecimal digits.
            pub fn to_hex(&self) -> String {
                blake3::Hash::from(self.0).to_hex().as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(blake3::Hash::from(self.0).to_hex().as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = HashError;
            fn from_str(s: &str) -> Result<Self, HashError> {
                from_hex(s).map(Self).ok_or_else(|| HashError(s.chars().take(80).collect()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = HashError;
            fn try_from(s: String) -> Result<Self, HashError> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(h: $name) -> String {
                h.to_hex()
            }
        }
    };
}

hash_type! {
    /// Names a blob: BLAKE3 of its content, or SHA-256 of one that came under that name. Nobody can make a content whose one
    /// digest is another's other one, so a name needs not say which it is.
    BlobHash
}

impl BlobHash {
    /// SHA-256 of `bytes`.
    pub fn sha256_of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// Whether these bytes are the content of this name.
    pub fn names(&self, bytes: &[u8]) -> bool {
        Self::of(bytes) == *self || Self::sha256_of(bytes) == *self
    }
}

/// Makes the SHA-256 of a content that comes in pieces.
#[derive(Default)]
pub struct Sha256(sha2::Sha256);

impl Sha256 {
    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The name that all of it has.
    pub fn finish(self) -> BlobHash {
        BlobHash(self.0.finalize().into())
    }
}

hash_type! {
    /// BLAKE3 of a manifest's bytes; names a manifest.
    ManifestHash
}
hash_type! {
    /// BLAKE3 of a tier's pack; names it there. Packs of a store have numbers.
    PackHash
}
hash_type! {
    /// BLAKE3 of a tier's tree object; names it there.
    TreeHash
}

/// The value of each digit; lists of inputs have tens of thousands of hashes.
const DIGITS: [u8; 256] = {
    let mut values = [u8::MAX; 256];
    let mut n = 0;
    while n < 16 {
        values[b"0123456789abcdef"[n] as usize] = n as u8;
        n += 1;
    }
    values
};

/// 32 bytes of 64 hexadecimal digits; capital ones are none.
fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let (mut bytes, mut seen) = ([0; 32], 0);
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let (high, low) = (DIGITS[pair[0] as usize], DIGITS[pair[1] as usize]);
        seen |= high | low;
        *byte = high << 4 | low & 15;
    }
    (seen < 16).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_of_either_digest() {
        let sha =
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".parse::<BlobHash>().unwrap();
        assert_eq!(BlobHash::sha256_of(b"abc"), sha);
        assert!(sha.names(b"abc") && BlobHash::of(b"abc").names(b"abc"));
        assert!(!sha.names(b"abd") && !BlobHash::of(b"abc").names(b"abd"));
    }

    #[test]
    fn text_form() {
        let h = BlobHash::of(b"");
        assert_eq!(h.to_hex(), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
        assert_eq!(h.to_hex().parse::<BlobHash>().unwrap(), h);
        assert!(h.to_hex().to_uppercase().parse::<BlobHash>().is_err());
        assert!("xyz".parse::<BlobHash>().is_err());
    }
}
