//! Paths in JSON: text where they are UTF-8, else an array of bytes. Must not know: what they name.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path or file name of any bytes that survives JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct RawPath(pub PathBuf);

impl RawPath {
    /// Of a name as it stands in a manifest or draft.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(PathBuf::from(OsString::from_vec(bytes.to_vec())))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_os_str().as_bytes()
    }
}

impl From<&Path> for RawPath {
    fn from(p: &Path) -> Self {
        Self(p.to_owned())
    }
}

impl From<PathBuf> for RawPath {
    fn from(p: PathBuf) -> Self {
        Self(p)
    }
}

impl Serialize for RawPath {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => s.serialize_str(text),
            None => s.collect_seq(self.as_bytes()),
        }
    }
}

impl<'de> Deserialize<'de> for RawPath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(PathBuf),
            Bytes(Vec<u8>),
        }
        Ok(match Form::deserialize(d)? {
            Form::Text(path) => Self(path),
            Form::Bytes(bytes) => Self::from_bytes(&bytes),
        })
    }
}
