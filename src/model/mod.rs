//! The words of outfs as types: keys, hashes, manifests, metadata, events, units.
//!
//! Everything here is pure: no I/O, no clock, no global state. Rooms above read and
//! write the bytes; this room says what they mean.

pub mod event;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod groups;
pub mod hash;
pub mod key;
pub mod manifest;
pub mod metadata;
pub mod session;
pub mod units;

pub use event::{Cursor, CursorError, Event, EventKind};
pub use hash::{BlobHash, ManifestHash, PackHash, TreeHash};
pub use key::EntryKey;
pub use manifest::{Manifest, RecordKind};
pub use metadata::{Metadata, Summary};
