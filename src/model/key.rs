//! Entry keys: the digest a client chose for a task, and the entry's directory name.
//!
//! Invariant: an [`EntryKey`] always satisfies the grammar
//! `[A-Za-z0-9][A-Za-z0-9._+=-]{3,254}`, so it is a safe single path component. It never
//! converts to or from a [`BlobHash`](super::BlobHash).

use std::ffi::OsStr;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest key, in bytes (the longest file name Linux accepts).
pub const MAX_KEY_LEN: usize = 255;
/// The shortest key, in bytes.
pub const MIN_KEY_LEN: usize = 4;

/// A task digest chosen by a client; names an entry.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntryKey(Box<str>);

/// Why a text is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Shorter than 4 or longer than 255 bytes.
    #[error("a key has 4 to 255 characters, this one has {0}")]
    Length(usize),
    /// A character outside the grammar.
    #[error(
        "a key consists of letters, digits and . _ + = - and starts with a letter or digit; \
         this one has {found} at position {at}"
    )]
    Character {
        /// Byte offset of the first offending byte.
        at: usize,
        /// The offending byte, printable.
        found: String,
    },
}

impl EntryKey {
    /// Checks `text` against the grammar, without any normalisation.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        Self::parse_bytes(text.as_bytes())
    }

    /// Checks a file name against the grammar, without any normalisation.
    pub fn parse_os(name: &OsStr) -> Result<Self, KeyError> {
        Self::parse_bytes(name.as_encoded_bytes())
    }

    /// Makes a key of a digest as clients write it: a `sha256:` prefix is dropped, any
    /// other `algo:` becomes `algo-`, so that algorithms never merge.
    pub fn from_digest(digest: &str) -> Result<Self, KeyError> {
        if let Some(rest) = digest.strip_prefix("sha256:") {
            return Self::parse(rest);
        }
        match digest.split_once(':') {
            Some((algo, rest)) => Self::parse(&format!("{algo}-{rest}")),
            None => Self::parse(digest),
        }
    }

    fn parse_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        if !(MIN_KEY_LEN..=MAX_KEY_LEN).contains(&bytes.len()) {
            return Err(KeyError::Length(bytes.len()));
        }
        let bad = bytes.iter().enumerate().position(|(i, &b)| {
            !(b.is_ascii_alphanumeric() || (i > 0 && matches!(b, b'.' | b'_' | b'+' | b'=' | b'-')))
        });
        if let Some(at) = bad {
            let found = match bytes[at] {
                b if b.is_ascii_graphic() => format!("'{}'", b as char),
                b => format!("byte 0x{b:02x}"),
            };
            return Err(KeyError::Character { at, found });
        }
        let text = std::str::from_utf8(bytes).expect("the grammar admits ASCII only");
        Ok(Self(text.into()))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The two directory names of cuenv's sharded path `ab/cd/abcd…`.
    pub fn shards(&self) -> (&str, &str) {
        (&self.0[..2], &self.0[2..4])
    }

    /// The first eight characters (fewer if the key is shorter), for labels.
    pub fn short(&self) -> &str {
        &self.0[..self.0.len().min(8)]
    }
}

impl fmt::Display for EntryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EntryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryKey({})", self.0)
    }
}

impl FromStr for EntryKey {
    type Err = KeyError;
    fn from_str(s: &str) -> Result<Self, KeyError> {
        Self::from_digest(s)
    }
}

impl TryFrom<String> for EntryKey {
    type Error = KeyError;
    fn try_from(s: String) -> Result<Self, KeyError> {
        Self::parse(&s)
    }
}

impl From<EntryKey> for String {
    fn from(k: EntryKey) -> String {
        k.0.into()
    }
}

impl AsRef<OsStr> for EntryKey {
    fn as_ref(&self) -> &OsStr {
        OsStr::new(&*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn grammar() {
        for good in ["abcd", "0a.b", "A+b=c-d_e.f", &"x".repeat(255)] {
            assert!(EntryKey::parse(good).is_ok(), "{good}");
        }
        let long = "x".repeat(256);
        for bad in [
            "", "abc", &long, "..", "../abcd", ".abcd", "-abc", "ab/cd", "ab\0cd", "abcdé", "ab cd",
            "ab\ncd", "a:bcd",
        ] {
            assert!(EntryKey::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn digests_of_clients() {
        assert_eq!(EntryKey::from_digest("sha256:abcdef").unwrap().as_str(), "abcdef");
        assert_eq!(EntryKey::from_digest("blake3:abcdef").unwrap().as_str(), "blake3-abcdef");
        assert_eq!(EntryKey::from_digest("abcdef").unwrap().as_str(), "abcdef");
        assert!(EntryKey::from_digest("a:b:cdef").is_err());
    }

    proptest! {
        #[test]
        fn a_key_is_one_safe_component(s in ".{0,300}") {
            if let Ok(k) = EntryKey::parse(&s) {
                prop_assert_eq!(k.as_str(), &s);
                prop_assert!(!s.contains('/') && !s.contains('\0') && s != "." && s != "..");
            }
        }
    }
}
