//! Replies: results to bytes, and the bytes to whoever asked.
//!
//! Invariant: every request is answered once; a reply that is dropped answers EIO. Must not know: what was
//! asked, and why it is answered so.

use std::cell::RefCell;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::convert::{attr_out, dirent_type};
use super::ring::Slot;
use super::wire::*;
use crate::vfs::{Attr as Attributes, Found, Kind};

/// Where a reply goes.
enum To {
    /// To the descriptor that the request was read from: no other knows it.
    Device { device: Arc<OwnedFd>, unique: u64 },
    /// Back into the entry of a ring.
    Ring(Slot),
    /// Nowhere any more.
    Answered,
}

/// What a request is answered through, from any thread.
pub(super) struct Reply(To);

thread_local! {
    /// Where the content of files is put together for the device.
    static CONTENT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Reply {
    /// To a request that was read from `device`.
    pub(super) fn to_device(device: Arc<OwnedFd>, unique: u64) -> Reply {
        Reply(To::Device { device, unique })
    }

    /// To a request in the entry of a ring.
    pub(super) fn to_ring(slot: Slot) -> Reply {
        Reply(To::Ring(slot))
    }

    fn send(&mut self, error: Option<Errno>, body: &[u8]) {
        match std::mem::replace(&mut self.0, To::Answered) {
            To::Device { device, unique } => send_to_device(&device, unique, error, body),
            To::Ring(slot) => slot.send(error, body),
            To::Answered => {}
        }
    }

    /// Says why not.
    pub(super) fn error(mut self, why: Errno) {
        self.send(Some(why), &[]);
    }

    /// Done, and there is nothing to say.
    pub(super) fn done(mut self) {
        self.send(None, &[]);
    }

    /// These bytes.
    pub(super) fn bytes(mut self, body: &[u8]) {
        self.send(None, body);
    }

    fn value(self, value: &(impl IntoBytes + Immutable)) {
        self.bytes(value.as_bytes());
    }

    /// Up to `size` bytes, as many as `fill` says that it has put there. When it says nothing this is not answered, and
    /// comes back.
    pub(super) fn content(
        mut self,
        size: usize,
        fill: impl FnOnce(&mut [u8]) -> Option<Result<usize, Errno>>,
    ) -> Option<Reply> {
        // A ring's entry has the place.
        if let To::Ring(_) = &self.0
            && let To::Ring(slot) = std::mem::replace(&mut self.0, To::Answered)
        {
            return slot.fill(size, fill).map(Reply::to_ring);
        }
        CONTENT.with_borrow_mut(|buf| {
            if buf.len() < size {
                buf.resize(size, 0);
            }
            match fill(&mut buf[..size]) {
                Some(Ok(n)) => self.bytes(&buf[..n]),
                Some(Err(e)) => self.error(e),
                None => return Some(self),
            }
            None
        })
    }

    /// It is going to wait for a tier: false when too many of those that share what it takes do so already.
    pub(super) fn park(&mut self) -> bool {
        match &mut self.0 {
            To::Ring(slot) => slot.park(),
            To::Device { .. } | To::Answered => true,
        }
    }

    pub(super) fn empty(self, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.done(),
            Err(e) => self.error(e),
        }
    }

    pub(super) fn entry(self, found: Result<Found, Errno>) {
        match found {
            Ok(f) => self.value(&entry_out(&f)),
            Err(e) => self.error(e),
        }
    }

    /// A name that does not exist, for the kernel to remember so long.
    pub(super) fn absent(self, lasts: Duration) {
        // Number 0 says it; the attributes mean nothing.
        self.value(&entry_out(&Found {
            attr: Attributes::NONE,
            name_ttl: lasts,
            attr_ttl: lasts,
            generation: 0,
        }));
    }

    pub(super) fn attr(self, found: Result<Found, Errno>) {
        match found {
            Ok(f) => self.value(&AttrOut {
                attr_valid: f.attr_ttl.as_secs(),
                attr_valid_nsec: f.attr_ttl.subsec_nanos(),
                dummy: 0,
                attr: attr_out(&f.attr),
            }),
            Err(e) => self.error(e),
        }
    }

    /// An opened file; `backing`: the kernel's number of the file that is passed through.
    pub(super) fn opened(self, fh: u64, flags: u32, backing: Option<u32>) {
        self.value(&open_out(fh, flags, backing));
    }

    /// As `opened`, of a file that was made.
    pub(super) fn created(self, found: &Found, fh: u64, flags: u32, backing: Option<u32>) {
        // The kernel takes one time to live for both; the attributes' is the shorter.
        let found = Found { name_ttl: found.attr_ttl, ..*found };
        self.value(&CreateOut { entry: entry_out(&found), open: open_out(fh, flags, backing) });
    }

    /// So many bytes were written.
    pub(super) fn written(self, result: Result<usize, Errno>) {
        match result {
            Ok(n) => self.value(&WriteOut { size: n as u32, padding: 0 }),
            Err(e) => self.error(e),
        }
    }

    /// A value for a caller with room for `size` bytes; with none, its length.
    pub(super) fn xattr(self, size: u32, value: Result<Vec<u8>, Errno>) {
        match value {
            Ok(v) if size == 0 => self.value(&GetxattrOut { size: v.len() as u32, padding: 0 }),
            Ok(v) if v.len() > size as usize => self.error(Errno::ERANGE),
            Ok(v) => self.bytes(&v),
            Err(e) => self.error(e),
        }
    }

    pub(super) fn position(self, at: Result<i64, Errno>) {
        match at {
            Ok(at) => self.value(&LseekOut { offset: at as u64 }),
            Err(e) => self.error(e),
        }
    }

    pub(super) fn space(self, space: &StatfsOut) {
        self.value(space);
    }

    /// A listing, or why there is none.
    pub(super) fn listing(self, result: Result<Listing, Errno>) {
        match result {
            Ok(l) => self.bytes(&l.bytes),
            Err(e) => self.error(e),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !matches!(self.0, To::Answered) {
            tracing::warn!("a request was not answered; it gets EIO");
            self.send(Some(Errno::EIO), &[]);
        }
    }
}

fn send_to_device(device: &OwnedFd, unique: u64, error: Option<Errno>, body: &[u8]) {
    let len = (size_of::<OutHeader>() + body.len()) as u32;
    let head = OutHeader { len, error: error.map_or(0, |e| -(e as i32)), unique };
    let head = head.as_bytes();
    let sent = match body.is_empty() {
        true => nix::unistd::write(device, head),
        false => nix::sys::uio::writev(device, &[IoSlice::new(head), IoSlice::new(body)]),
    };
    match sent {
        // The request was interrupted, or the mount is gone: nobody waits.
        Ok(_) | Err(Errno::ENOENT | Errno::ENODEV) => {}
        Err(e) => tracing::error!(error = %e, "the kernel did not take a reply"),
    }
}

fn entry_out(f: &Found) -> EntryOut {
    EntryOut {
        nodeid: f.attr.ino,
        generation: f.generation,
        entry_valid: f.name_ttl.as_secs(),
        attr_valid: f.attr_ttl.as_secs(),
        entry_valid_nsec: f.name_ttl.subsec_nanos(),
        attr_valid_nsec: f.attr_ttl.subsec_nanos(),
        attr: attr_out(&f.attr),
    }
}

fn open_out(fh: u64, flags: u32, backing: Option<u32>) -> OpenOut {
    OpenOut { fh, open_flags: flags, backing_id: backing.unwrap_or(0) }
}

/// The names of a directory, as many as there is room for.
pub(super) struct Listing {
    bytes: Vec<u8>,
    room: usize,
}

impl Listing {
    /// Of at most `room` bytes.
    pub(super) fn new(room: usize) -> Listing {
        Listing { bytes: Vec::new(), room }
    }

    /// Adds a name that the kernel goes on behind with `next`. False when there is no room.
    pub(super) fn add(&mut self, ino: u64, next: u64, kind: Kind, name: &[u8]) -> bool {
        let head = Dirent { ino, off: next, namelen: name.len() as u32, kind: dirent_type(kind) };
        self.push(head.as_bytes(), name)
    }

    /// As `add`, with the attributes.
    pub(super) fn add_with_attributes(&mut self, next: u64, name: &[u8], found: &Found) -> bool {
        let kind = dirent_type(found.attr.kind);
        let dirent = Dirent { ino: found.attr.ino, off: next, namelen: name.len() as u32, kind };
        self.push(Direntplus { entry: entry_out(found), dirent }.as_bytes(), name)
    }

    /// As `add`, in a listing with attributes: the kernel is told nothing of what it stands for.
    pub(super) fn add_bare(&mut self, ino: u64, next: u64, kind: Kind, name: &[u8]) -> bool {
        let dirent = Dirent { ino, off: next, namelen: name.len() as u32, kind: dirent_type(kind) };
        self.push(Direntplus { entry: EntryOut::new_zeroed(), dirent }.as_bytes(), name)
    }

    fn push(&mut self, head: &[u8], name: &[u8]) -> bool {
        let whole = (head.len() + name.len()).next_multiple_of(8);
        if self.bytes.len() + whole > self.room {
            return false;
        }
        let end = self.bytes.len() + whole;
        self.bytes.extend_from_slice(head);
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn answer(give: impl FnOnce(Reply)) -> Vec<u8> {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        give(Reply::to_device(Arc::new(theirs.into()), 7));
        let mut all = Vec::new();
        ours.read_to_end(&mut all).unwrap();
        all
    }

    fn head(len: u32, error: i32) -> Vec<u8> {
        OutHeader { len, error, unique: 7 }.as_bytes().to_vec()
    }

    #[test]
    fn a_reply_is_a_header_and_its_bytes() {
        assert_eq!(answer(Reply::done), head(16, 0));
        assert_eq!(answer(|r| r.error(Errno::ENOENT)), head(16, -libc::ENOENT));
        assert_eq!(answer(|r| r.written(Ok(3))), [head(24, 0), vec![3, 0, 0, 0, 0, 0, 0, 0]].concat());
        let content = answer(|r| {
            let back = r.content(9, |_| None).expect("not answered");
            let answered = back.content(9, |buf| {
                buf[..2].copy_from_slice(b"ab");
                Some(Ok(2))
            });
            assert!(answered.is_none());
        });
        assert_eq!(content, [head(18, 0), b"ab".to_vec()].concat());
    }

    #[test]
    fn a_reply_that_is_dropped_is_eio() {
        assert_eq!(answer(drop), head(16, -libc::EIO));
    }

    #[test]
    fn an_attribute_needs_room() {
        assert_eq!(
            answer(|r| r.xattr(0, Ok(b"abc".to_vec()))),
            [head(24, 0), vec![3, 0, 0, 0, 0, 0, 0, 0]].concat()
        );
        assert_eq!(answer(|r| r.xattr(2, Ok(b"abc".to_vec()))), head(16, -libc::ERANGE));
        assert_eq!(answer(|r| r.xattr(3, Ok(b"abc".to_vec()))), [head(19, 0), b"abc".to_vec()].concat());
    }

    #[test]
    fn names_are_padded_and_stop_at_the_end_of_the_room() {
        let mut listing = Listing::new(64);
        assert!(listing.add(5, 1, Kind::File, b"abc"));
        assert!(listing.add(6, 2, Kind::Dir, b"12345678"));
        assert!(!listing.add(7, 3, Kind::File, b""));
        assert_eq!(listing.bytes.len(), 64);
        assert_eq!(&listing.bytes[24..32], b"abc\0\0\0\0\0");
        assert_eq!(listing.bytes[20], 8, "a file is DT_REG");
        assert_eq!(listing.bytes[32 + 20], 4, "a directory is DT_DIR");
    }
}
