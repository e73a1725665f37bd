//! Sessions: what a result is called that lasts no longer than a process.
//!
//! Invariant: neither the key nor the task of such a result is one that a run outside the session asks for. Must not
//! know: processes, stores.

use std::fmt;
use std::hash::BuildHasher;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::key::EntryKey;

/// Names a session; 16 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId(String);

/// A text that names no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no session; 'outfs session' begins one, and the variable OUTFS_SESSION has its name")]
pub struct SessionError(String);

impl SessionId {
    /// How the names of all sessions' tasks begin in the store.
    pub const ALL: &str = "session/";

    /// One that nobody has had.
    pub fn random() -> SessionId {
        // Its keys are random, and nothing else is asked of it than to be another one each time.
        let state = std::collections::hash_map::RandomState::new();
        SessionId(format!("{:016x}", state.hash_one(std::process::id())))
    }

    /// How the names of its tasks begin in the store.
    pub fn prefix(&self) -> String {
        format!("{}{self}/", Self::ALL)
    }

    /// A text that is behind all of its tasks, and before those of later sessions.
    pub fn after_tasks(&self) -> String {
        // What follows a slash.
        format!("{}{self}0", Self::ALL)
    }

    /// The session that a task of the store belongs to.
    pub fn of_task(task: &str) -> Option<SessionId> {
        task.strip_prefix(Self::ALL)?.split_once('/')?.0.parse().ok()
    }

    /// A task of it, as the store knows it.
    pub fn task(&self, task: &str) -> String {
        format!("{}{task}", self.prefix())
    }

    /// The key of a task's result: one for each task.
    pub fn key(&self, task: &str) -> EntryKey {
        let text = format!("session-{self}-{}", &blake3::hash(task.as_bytes()).to_hex()[..32]);
        EntryKey::parse(&text).expect("letters, digits and hyphens are a key")
    }

    /// The session that a key's result belongs to.
    pub fn of_key(key: &EntryKey) -> Option<SessionId> {
        let (id, task) = key.as_str().strip_prefix("session-")?.split_once('-')?;
        if task.len() == 32 { id.parse().ok() } else { None }
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SessionId {
    type Err = SessionError;
    fn from_str(text: &str) -> Result<Self, SessionError> {
        let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        match text.len() == 16 && text.bytes().all(digits) {
            true => Ok(SessionId(text.to_owned())),
            false => Err(SessionError(text.chars().take(80).collect())),
        }
    }
}

impl TryFrom<String> for SessionId {
    type Error = SessionError;
    fn try_from(text: String) -> Result<Self, SessionError> {
        text.parse()
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> String {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_keys() {
        let id: SessionId = "0000000000c0ffee".parse().unwrap();
        assert_ne!(SessionId::random(), SessionId::random());
        assert_eq!(id.to_string().parse(), Ok(id.clone()));
        assert_eq!(id.task("a/b"), "session/0000000000c0ffee/a/b");
        assert_eq!(SessionId::of_key(&id.key("a/b")), Some(id.clone()));
        assert_eq!(SessionId::of_task(&id.task("a/b")), Some(id.clone()));
        assert_eq!((SessionId::of_task("session/x/y"), SessionId::of_task("a")), (None, None));
        let last = id.task("\u{10ffff}");
        assert!(last < id.after_tasks() && *id.after_tasks() < *"session/0000000000c0ffef/");
        assert_ne!(id.key("a"), id.key("b"));
        assert_eq!(SessionId::of_key(&EntryKey::parse("session-x-y").unwrap()), None);
        for bad in ["", "c0ffee", "0000000000C0FFEE", "../../../../../x"] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad}");
        }
    }
}
