//! Sessions: one small file each, with what the cache says of it.
//!
//! Invariants: written durably before the call returns, so that no power cut has a session forgotten that has
//! results; removed durably. Must not know: what is in such a file, or when a session is over.

use std::ffi::OsStr;

use super::dir::Dir;
use super::{Result, Store};
use crate::model::session::SessionId;

impl Store {
    fn session_room(&self) -> Result<Dir> {
        self.root.sub("sessions")
    }

    /// All sessions. Files that are none are passed over.
    pub fn sessions(&self) -> Result<Vec<SessionId>> {
        let id = |name: &OsStr| name.to_str()?.parse().ok();
        Ok(self.session_room()?.names()?.iter().filter_map(|name| id(name)).collect())
    }

    /// Whether there is such a session.
    pub fn has_session(&self, id: &SessionId) -> Result<bool> {
        Ok(self.session_room()?.size_of(id.to_string())?.is_some())
    }

    /// What is said of a session, and when it was written, in nanoseconds since 1970; `None` when there is none.
    pub fn session(&self, id: &SessionId) -> Result<Option<(Vec<u8>, i64)>> {
        let (room, name) = (self.session_room()?, id.to_string());
        let Some(written) = room.changed_at_ns(&name)? else { return Ok(None) };
        Ok(room.read_all(&name)?.map(|bytes| (bytes, written)))
    }

    /// Writes durably what is said of a session.
    pub fn write_session(&self, id: &SessionId, bytes: &[u8]) -> Result<()> {
        self.writable()?;
        self.session_room()?.write_durably(&self.tmp, id.to_string(), bytes)
    }

    /// Removes a session; nothing happens when there is none.
    pub fn remove_session(&self, id: &SessionId) -> Result<()> {
        self.remove_note(&self.session_room()?, &id.to_string()).map(drop)
    }
}
