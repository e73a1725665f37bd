//! Tiers: places beyond the store that entries come from and go to.
//!
//! Purpose: one trait ([`Tier`]) for everything that holds entries elsewhere, the objects they are kept as there
//! (`docs/format.md`, "Objects of a tier"), S3 and servers of the Remote Execution API (where it was built with them), and a strict tier in memory. Invariants: every call has a
//! deadline and ends by it; what a tier says is a claim: entries and trees are checked here against their names, ranges of
//! blobs and packs are handed on unchecked, and who asked for them checks them; an entry object is written last, so that
//! an entry that is found is whole. The trait has no futures: a runtime is the business of the tier that needs one.
//! Must not know: the store, the index, eviction, mounts, sockets, the command line.

mod address;
mod compressed;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod layout;
mod memory;
mod object;
mod places;
#[cfg(feature = "reapi")]
mod reapi;
#[cfg(any(feature = "reapi", feature = "s3"))]
mod runtime;
#[cfg(feature = "s3")]
mod s3;
mod ship;
#[cfg(test)]
mod tests;

pub use address::{Address, AddressError, Bucket, Server};
pub use compressed::{Compressed, Form};
pub use error::{OpenError, TierError, TierErrorKind};
pub use layout::{EntryObject, LayoutError, Tree, find_with};
pub use memory::{Call, Fault, MemoryTier, Traffic};
pub use object::Object;
pub use places::{Place, Places, PlacesBuilder, Stored};
pub use ship::{ShipError, Source, name_of, ship};

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::model::manifest::DigestKind;
use crate::model::{EntryKey, Manifest};

/// What every call to a tier returns.
pub type Result<T> = std::result::Result<T, TierError>;

/// The tier at an address, for reading, and for writing where `push`. Nothing is asked of it yet: it need not answer.
pub fn open(address: &Address, push: bool) -> std::result::Result<Arc<dyn Tier>, OpenError> {
    let _ = push;
    match address {
        #[cfg(feature = "s3")]
        Address::Bucket(bucket) => Ok(Arc::new(s3::S3Tier::open(bucket, push)?)),
        #[cfg(feature = "reapi")]
        Address::Server(server) => Ok(Arc::new(reapi::ReapiTier::open(server, push)?)),
        #[cfg(not(all(feature = "reapi", feature = "s3")))]
        _ => Err(OpenError::Without { tier: address.to_string() }),
    }
}

/// What can be asked of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// It takes objects and entries; false for one that was opened for reading only.
    pub push: bool,
    /// It keeps small contents together in packs; false where each content is an object of its own.
    pub packs: bool,
}

/// A place that entries come from and go to.
///
/// All calls block, from any number of threads, until they are done or `by` has passed; one that is late is a
/// [`Transient`](TierErrorKind::Transient) error. None is repeated by the tier itself for longer than that.
pub trait Tier: Send + Sync {
    /// What it is called in messages: where it is, without credentials.
    fn name(&self) -> &str;

    /// What can be asked of it.
    fn capabilities(&self) -> Capabilities;

    /// What contents are named by there.
    fn naming(&self, _by: Instant) -> Result<DigestKind> {
        Ok(DigestKind::Blake3)
    }

    /// Why an entry cannot be brought there, whatever is tried.
    fn unsuitable(&self, _manifest: &Manifest) -> Option<String> {
        None
    }

    /// The entry of `key`; [`Absent`](TierErrorKind::Absent) when there is none, and
    /// [`Corrupt`](TierErrorKind::Corrupt) when what is there is no entry of this key.
    fn find(&self, key: &EntryKey, by: Instant) -> Result<Tree>;

    /// Exactly this range of an object, as the tier has it: the caller verifies it. `Absent` when there is no
    /// such object; a range that is not wholly inside is an error, never a shorter answer.
    fn get(&self, object: &Object, range: Range<u64>, by: Instant) -> Result<Vec<u8>>;

    /// All of each of these contents, as `get` gives it, in as few calls as the tier can: in their order, and each with its own
    /// error; none but the first where that cannot be had and each would be a call. They fit into memory together.
    fn get_all(&self, objects: &[Object], by: Instant) -> Result<Vec<Result<Vec<u8>>>> {
        let size = |object: &Object| if let Object::Blob(_, size) = object { *size } else { 0 };
        let get = |object| self.get(object, 0..size(object), by);
        let Some((first, rest)) = objects.split_first() else { return Ok(Vec::new()) };
        let first = get(first);
        let rest = if first.is_ok() { rest } else { &[] };
        Ok(std::iter::once(first).chain(rest.iter().map(get)).collect())
    }

    /// Stores these contents, in as few calls as the tier can; the first that fails ends it.
    fn put_all(&self, contents: &[(Object, Vec<u8>)], by: Instant) -> Result<()> {
        contents
            .iter()
            .try_for_each(|(object, bytes)| self.put(object, bytes.len() as u64, &mut &bytes[..], by))
    }

    /// Stores an object of `size` bytes under its name; one that is there already may be left or written again.
    fn put(&self, object: &Object, size: u64, content: &mut dyn Read, by: Instant) -> Result<()>;

    /// Those of `objects` that it does not have, in their order; what has another size is not there.
    fn missing(&self, objects: &[Object], by: Instant) -> Result<Vec<Object>>;

    /// Makes an entry be found under its key, in place of another one that may be there. All its contents have been put.
    fn publish(&self, manifest: &Manifest, places: &Places, by: Instant) -> Result<()>;
}
