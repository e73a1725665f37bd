//! Pins and rejections: one small JSON file each.
//!
//! Invariants: written durably before the call returns; a damaged one is an error that names it,
//! never a hold that is silently lost. A pin's file is named by a hash of its name and key,
//! because a pin's name may be any text; a rejection's by its key.
//! Must not know: what a pin or a rejection means to lookups or eviction.

use std::ffi::OsStr;

use super::dir::Dir;
use super::{Pin, Rejection, Result, Store, StoreError};
use crate::model::EntryKey;

fn pin_file(name: &str, key: &EntryKey) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key.as_str().as_bytes()).update(b"\0").update(name.as_bytes());
    format!("{}.json", &hasher.finalize().to_hex()[..32])
}

fn load<T: serde::de::DeserializeOwned>(room: &Dir, file_of: impl Fn(&T) -> String) -> Result<Vec<T>> {
    let mut all = Vec::new();
    for name in room.names()? {
        // Removed this moment.
        let Some(bytes) = room.read_all(&name)? else { continue };
        let corrupt = |line, why| StoreError::Corrupt { path: room.path().join(&name), line, why };
        let note: T =
            serde_json::from_slice(&bytes).map_err(|e| corrupt(Some(e.line() as u64), e.to_string()))?;
        if OsStr::new(&file_of(&note)) != name {
            return Err(corrupt(None, "it says another name than its file has".into()));
        }
        all.push(note);
    }
    Ok(all)
}

fn encode(note: &impl serde::Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(note).expect("pins and rejections have string keys only");
    bytes.push(b'\n');
    bytes
}

impl Store {
    /// All pins. A damaged one is `Corrupt`; `quarantine` with the error's path sets it aside.
    pub fn pins(&self) -> Result<Vec<Pin>> {
        load(&self.pins, |p: &Pin| pin_file(&p.name, &p.key))
    }

    /// Writes a pin durably.
    pub fn write_pin(&self, pin: &Pin) -> Result<()> {
        self.writable()?;
        self.pins.write_durably(&self.tmp, pin_file(&pin.name, &pin.key), &encode(pin))
    }

    /// Removes a pin; false when there was none.
    pub fn remove_pin(&self, name: &str, key: &EntryKey) -> Result<bool> {
        self.remove_note(&self.pins, &pin_file(name, key))
    }

    /// All rejections. A damaged one is `Corrupt`; `quarantine` with the error's path sets it aside.
    pub fn rejections(&self) -> Result<Vec<Rejection>> {
        load(&self.rejections, |r: &Rejection| r.key.as_str().to_owned())
    }

    /// Writes a rejection durably.
    pub fn write_rejection(&self, r: &Rejection) -> Result<()> {
        self.writable()?;
        self.rejections.write_durably(&self.tmp, r.key.as_str(), &encode(r))
    }

    /// Lifts a rejection; false when there was none.
    pub fn remove_rejection(&self, key: &EntryKey) -> Result<bool> {
        self.remove_note(&self.rejections, key.as_str())
    }

    /// Removes a small file durably; false when there was none.
    pub(super) fn remove_note(&self, room: &Dir, name: &str) -> Result<bool> {
        self.writable()?;
        let was = room.unlink(name)?;
        room.sync()?;
        room.confirm()?;
        Ok(was)
    }
}
