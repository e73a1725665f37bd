//! The memory that an entry shares with the kernel: headers and a payload.
//!
//! Invariant: it belongs to the kernel from the entry's submission to its completion, and from then on to the one
//! [`Slot`](super::entry::Slot) that answers it. Pages that nobody has touched take no memory.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use zerocopy::{FromBytes, IntoBytes};

use super::super::device::MAX_WRITE;
use super::super::wire::{EntInOut, InHeader, OutHeader};

/// `struct fuse_uring_req_header`: the request's or reply's header, the operation's struct, the entry's.
const OP_IN: usize = 128;
const FACTS: usize = 256;
const HEADERS: usize = FACTS + size_of::<EntInOut>();
/// Where the payload begins: on a page of its own.
const PAYLOAD: usize = 4096;
/// The kernel wants room for the largest read and write.
const PAYLOAD_LEN: usize = MAX_WRITE;

/// The memory of an entry.
pub(super) struct Memory(NonNull<u8>);

// SAFETY: it is plain memory; who may touch it when is the invariant above.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// A request as it lies in an entry.
pub(super) struct Asked<'a> {
    pub head: InHeader,
    /// The operation's struct.
    pub first: &'a [u8],
    /// Its further arguments.
    pub rest: &'a [u8],
    /// The kernel's number for the commit.
    pub commit: u64,
}

impl Memory {
    /// New, all zero.
    pub(super) fn new() -> std::io::Result<Memory> {
        let len = NonZeroUsize::new(PAYLOAD + PAYLOAD_LEN).expect("it is not 0");
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { mmap_anonymous(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        Ok(Memory(at.cast()))
    }

    /// The two buffers to register.
    pub(super) fn buffers(&self) -> [libc::iovec; 2] {
        // SAFETY: within the mapping.
        let payload = unsafe { self.0.add(PAYLOAD) };
        [
            libc::iovec { iov_base: self.0.as_ptr().cast(), iov_len: HEADERS },
            libc::iovec { iov_base: payload.as_ptr().cast(), iov_len: PAYLOAD_LEN },
        ]
    }

    /// # Safety
    /// The entry belongs to the caller, and nobody writes to it while the result is in use.
    unsafe fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        // SAFETY: all callers stay within the mapping; the rest is the caller's word.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().add(offset), len) }
    }

    /// # Safety
    /// The entry belongs to the caller, and nothing of it is borrowed while the result is in use.
    #[allow(clippy::mut_from_ref)]
    unsafe fn bytes_mut(&self, offset: usize, len: usize) -> &mut [u8] {
        // SAFETY: all callers stay within the mapping; the rest is the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr().add(offset), len) }
    }

    /// What is asked.
    ///
    /// # Safety
    /// The entry belongs to the caller, and nobody writes to it while the result is in use.
    pub(super) unsafe fn asked(&self) -> Asked<'_> {
        // SAFETY: the caller's word.
        let (head, facts) = unsafe { (self.bytes(0, OP_IN), self.bytes(FACTS, size_of::<EntInOut>())) };
        let (head, _) = InHeader::read_from_prefix(head).expect("128 bytes are enough");
        let facts = EntInOut::read_from_bytes(facts).expect("it has this length");
        let len = (facts.payload_sz as usize).min(PAYLOAD_LEN);
        // SAFETY: the caller's word.
        let (first, rest) = unsafe { (self.bytes(OP_IN, FACTS - OP_IN), self.bytes(PAYLOAD, len)) };
        Asked { head, first, rest, commit: facts.commit_id }
    }

    /// Where the reply's bytes go.
    ///
    /// # Safety
    /// The entry belongs to the caller, and nothing of it is borrowed while the result is in use.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn payload(&self) -> &mut [u8] {
        // SAFETY: the caller's word.
        unsafe { self.bytes_mut(PAYLOAD, PAYLOAD_LEN) }
    }

    /// Writes the headers of a reply.
    ///
    /// # Safety
    /// The entry belongs to the caller, and nothing of it is borrowed.
    pub(super) unsafe fn finish(&self, out: OutHeader, facts: EntInOut) {
        // SAFETY: the caller's word.
        unsafe {
            self.bytes_mut(0, size_of::<OutHeader>()).copy_from_slice(out.as_bytes());
            self.bytes_mut(FACTS, size_of::<EntInOut>()).copy_from_slice(facts.as_bytes());
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and with the last owner of this nobody has the entry any more.
        let _ = unsafe { munmap(self.0.cast(), PAYLOAD + PAYLOAD_LEN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_bounded_by_the_payload() {
        let memory = Memory::new().unwrap();
        let facts = EntInOut { flags: 0, commit_id: 9, payload_sz: u32::MAX, padding: 0, reserved: 0 };
        // SAFETY: the memory is the test's own, and nothing of it is borrowed.
        unsafe { memory.finish(OutHeader { len: 40, error: 1, unique: 7 }, facts) };
        // SAFETY: nobody writes to it.
        let asked = unsafe { memory.asked() };
        assert_eq!((asked.commit, asked.rest.len(), asked.first.len()), (9, PAYLOAD_LEN, 128));
        assert_eq!((asked.head.len, asked.head.opcode, asked.head.unique), (40, 1, 7));
        let [head, payload] = memory.buffers();
        assert_eq!((head.iov_len, payload.iov_len), (288, 1 << 20));
        assert_eq!(payload.iov_base as usize - head.iov_base as usize, 4096);
    }
}
