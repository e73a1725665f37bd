//! Digests as servers write them, and which function they are of.
//!
//! Invariants: what parses is 64 lower-case hexadecimal digits and a size that no arithmetic here overflows with.

use bazel_remote_apis::build::bazel::remote::execution::v2 as re;

use crate::model::manifest::DigestKind;
use crate::model::{BlobHash, EntryKey};

/// No content is larger: sums of many fit into 64 bits.
const MOST: i64 = 1 << 40;

/// The digest function of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Sha256,
    Blake3,
}

impl Function {
    /// Of what a server offers, the one to use: SHA-256, which what other tools write there is named by, or else BLAKE3.
    pub fn of(offered: &[i32]) -> Option<Function> {
        let has = |value: re::digest_function::Value| offered.contains(&(value as i32));
        match () {
            // One that says nothing is of a time when there was no other.
            () if has(re::digest_function::Value::Sha256) || offered.is_empty() => Some(Function::Sha256),
            () if has(re::digest_function::Value::Blake3) => Some(Function::Blake3),
            () => None,
        }
    }

    /// Its number in messages.
    pub fn number(self) -> i32 {
        match self {
            Function::Sha256 => re::digest_function::Value::Sha256 as i32,
            Function::Blake3 => re::digest_function::Value::Blake3 as i32,
        }
    }

    /// What stands before a digest in the name of a resource.
    pub fn prefix(self) -> &'static str {
        match self {
            Function::Sha256 => "",
            Function::Blake3 => "blake3/",
        }
    }

    /// How manifests name contents by it.
    pub fn kind(self) -> DigestKind {
        match self {
            Function::Sha256 => DigestKind::Sha256,
            Function::Blake3 => DigestKind::Blake3,
        }
    }

    /// The name of these bytes.
    pub fn name(self, bytes: &[u8]) -> Name {
        let hash = match self {
            Function::Sha256 => BlobHash::sha256_of(bytes),
            Function::Blake3 => BlobHash::of(bytes),
        };
        Name { hash, size: bytes.len() as u64 }
    }
}

/// Hash and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub hash: BlobHash,
    pub size: u64,
}

impl Name {
    /// Of a message; `None` when it is none.
    pub fn parse(digest: Option<&re::Digest>) -> Option<Name> {
        let digest = digest.filter(|d| (0..=MOST).contains(&d.size_bytes))?;
        Some(Name { hash: digest.hash.parse().ok()?, size: digest.size_bytes as u64 })
    }

    /// The action that a key names: `<hash>-<size>`.
    pub fn of_action(key: &EntryKey) -> Option<Name> {
        let (hash, size) = key.as_str().split_once('-')?;
        let size: i64 = size.parse().ok().filter(|n| (0..=MOST).contains(n))?;
        let name = Name { hash: hash.parse().ok()?, size: size as u64 };
        (name.key() == key.as_str()).then_some(name)
    }

    /// The key that names it.
    pub fn key(&self) -> String {
        format!("{}-{}", self.hash, self.size)
    }

    pub fn message(&self) -> re::Digest {
        re::Digest { hash: self.hash.to_hex(), size_bytes: self.size as i64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hash_and_size() {
        let hash = BlobHash::sha256_of(b"x");
        let of = |text: String| Name::of_action(&text.parse().unwrap());
        assert_eq!(of(format!("{hash}-142")), Some(Name { hash, size: 142 }));
        let capital = hash.to_hex().to_uppercase();
        for wrong in [format!("{hash}"), format!("{hash}-"), format!("{hash}-0142"), format!("{capital}-1")] {
            assert_eq!(of(wrong.clone()), None, "{wrong}");
        }
        assert_eq!(of(format!("{hash}-9223372036854775807")), None);
        let negative = re::Digest { hash: hash.to_hex(), size_bytes: -1 };
        assert_eq!((Name::parse(Some(&negative)), Name::parse(None)), (None, None));
    }

    #[test]
    fn sha_256_is_chosen_before_blake3() {
        use re::digest_function::Value;
        assert_eq!(Function::of(&[Value::Md5 as i32, Value::Blake3 as i32]), Some(Function::Blake3));
        assert_eq!(Function::of(&[Value::Blake3 as i32, Value::Sha256 as i32]), Some(Function::Sha256));
        assert_eq!((Function::of(&[]), Function::of(&[3])), (Some(Function::Sha256), None));
    }
}
