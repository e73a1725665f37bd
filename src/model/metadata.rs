//! `metadata.json`: what a task was and how it ended, in the form cuenv writes.
//!
//! Unknown members are kept, so that other clients' metadata survives a round trip.
//! An entry whose metadata does not parse here is a miss (Semantics 7).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

/// The parsed `metadata.json` of an entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// The client's name for the task.
    pub task_id: String,
    /// The digest as the client wrote it (maybe with `sha256:`).
    pub digest: String,
    /// Argument vector, empty when unknown.
    pub command: Vec<String>,
    /// When the task's result was made.
    pub created_at: Timestamp,
    /// How long the task ran, in milliseconds.
    pub duration_ms: u64,
    /// The task's exit code: reported, not judged.
    pub exit_code: i32,
    /// Everything else, untouched.
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// What of it says whether there is a result. All else is passed over unseen: it may be long.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Summary<M = IgnoredAny> {
    /// As in [`Metadata`], as are the others.
    pub task_id: String,
    /// See there.
    pub digest: String,
    /// See there.
    pub command: Vec<String>,
    /// See there.
    pub created_at: Timestamp,
    /// See there.
    pub duration_ms: u64,
    /// See there.
    pub exit_code: i32,
    /// What a run wrote beside them.
    pub outfs: Option<M>,
}

impl Metadata {
    /// The most bytes of a `metadata.json` that are read; a longer one counts as broken.
    pub const MAX_BYTES: u64 = 16 << 20;

    /// Parses the bytes of a `metadata.json`.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// The bytes written to `metadata.json`: indented JSON and a newline.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut v = serde_json::to_vec_pretty(self).expect("metadata has string keys only");
        v.push(b'\n');
        v
    }

    /// The same with one more member, whose value is there as JSON already: a large one is not taken apart to be written.
    pub fn to_bytes_with(&self, name: &str, json: &str) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::from_str::<IgnoredAny>(json)?;
        let mut v = self.to_bytes();
        v.truncate(v.len() - b"\n}\n".len());
        v.extend(b",\n  ");
        serde_json::to_writer(&mut v, name)?;
        v.reserve(json.len() + 8);
        [b": ", json.as_bytes(), b"\n}\n"].iter().for_each(|part| v.extend_from_slice(part));
        Ok(v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUENV: &str = r#"{"task_id":"build","digest":"sha256:abcd","command":["make"],
        "created_at":"2026-01-02T03:04:05.123456789Z","duration_ms":12,"exit_code":3,"more":[1]}"#;

    #[test]
    fn cuenvs_form_and_unknown_members() {
        let m = Metadata::parse(CUENV.as_bytes()).unwrap();
        assert_eq!((m.task_id.as_str(), m.exit_code, m.duration_ms), ("build", 3, 12));
        assert_eq!(Metadata::parse(&m.to_bytes()).unwrap(), m);
        assert!(m.extra.contains_key("more"));
        let summary: Summary = serde_json::from_str(CUENV).unwrap();
        assert_eq!((summary.task_id, summary.created_at, summary.outfs), (m.task_id, m.created_at, None));
    }

    #[test]
    fn a_member_that_is_json_already() {
        let m = Metadata::parse(CUENV.as_bytes()).unwrap();
        let with = m.to_bytes_with("a \"name\"", "{\n  \"b\": [1, null]\n}").unwrap();
        let parsed = Metadata::parse(&with).unwrap();
        assert_eq!(parsed.extra["a \"name\""], serde_json::json!({"b": [1, null]}));
        assert_eq!(parsed.extra.len(), m.extra.len() + 1);
        for bad in ["", "{", "1,\"x\":2", "1}"] {
            assert!(m.to_bytes_with("x", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn broken_is_an_error() {
        for bad in ["", "{}", "[1", r#"{"task_id":1}"#, &CUENV[..CUENV.len() - 1]] {
            assert!(Metadata::parse(bad.as_bytes()).is_err(), "{bad}");
            assert!(serde_json::from_str::<Summary>(bad).is_err(), "{bad}");
        }
    }
}
