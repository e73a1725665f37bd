//! An entry of a processor's queue, and the thread on that processor which answers what the kernel puts there.
//!
//! A thread has a ring of its own with one entry: so no request waits for a thread that is busy while another is
//! idle, and of the idle ones the kernel takes the one that was busy last. Invariants: only this thread submits to
//! its ring, so that the kernel's work for it is done on its processor; who answers from another thread leaves
//! the answer to it and wakes it. It ends when the kernel gives the entry back.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::ThreadId;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use zerocopy::IntoBytes;

use super::super::adapter::Adapter;
use super::super::reply::Reply;
use super::super::request::{Args, is_forget};
use super::super::wire::{EntInOut, OutHeader, UringCmd};
use super::awake::Awake;
use super::memory::Memory;

const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;
/// Completions: of the entry, and of what wakes the thread.
const ENTRY: u64 = 0;
const WAKE: u64 = 1;
/// Commands under way: the entry's, and the wait for being woken.
const COMMANDS: u32 = 2;

/// What the thread and those who answer elsewhere share.
struct Shared {
    memory: Memory,
    /// The kernel's number of the request that was answered last and is not committed yet.
    answered: Mutex<Option<u64>>,
    wake: EventFd,
    thread: ThreadId,
    queue: Arc<Queue>,
}

/// What the entries of a processor's queue share.
pub(super) struct Queue {
    /// Entries that are taken by requests that wait for a tier.
    parked: AtomicU16,
    /// How many may be.
    most: u16,
}

impl Queue {
    /// Of so many entries.
    pub(super) fn of(entries: u16) -> Arc<Queue> {
        Arc::new(Queue { parked: AtomicU16::new(0), most: entries / 2 })
    }

    fn park(self: &Arc<Queue>) -> Option<Parked> {
        let parked = Parked(self.clone());
        let before = self.parked.fetch_add(1, Ordering::Relaxed);
        (before < self.most).then_some(parked)
    }
}

/// One that waits.
struct Parked(Arc<Queue>);

impl Drop for Parked {
    fn drop(&mut self) {
        self.0.parked.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request in an entry, to be answered.
pub(in super::super) struct Slot {
    shared: Arc<Shared>,
    commit: u64,
    unique: u64,
    parked: Option<Parked>,
}

impl Slot {
    /// The request is going to wait for a tier. False when half of the queue's entries do so.
    pub(in super::super) fn park(&mut self) -> bool {
        self.parked = self.shared.queue.park();
        self.parked.is_some()
    }

    /// Answers. The bytes of a success are `body`.
    pub(in super::super) fn send(self, error: Option<Errno>, body: &[u8]) {
        // SAFETY: the slot owns the entry, and nothing of it is borrowed: see `Entry::take`.
        let payload = unsafe { self.shared.memory.payload() };
        match payload.get_mut(..body.len()) {
            Some(room) => {
                room.copy_from_slice(body);
                self.finish(error, body.len());
            }
            None => self.finish(Some(Errno::EIO), 0),
        }
    }

    /// Answers with up to `size` bytes, as many as `fill` says that it has put there. When it says nothing this is not
    /// answered, and comes back. It must not panic.
    pub(in super::super) fn fill(
        self,
        size: usize,
        fill: impl FnOnce(&mut [u8]) -> Option<Result<usize, Errno>>,
    ) -> Option<Slot> {
        // SAFETY: as above.
        let payload = unsafe { self.shared.memory.payload() };
        match payload.get_mut(..size).map_or(Some(Err(Errno::EINVAL)), fill) {
            Some(Ok(n)) => self.finish(None, n),
            Some(Err(e)) => self.finish(Some(e), 0),
            None => return Some(self),
        }
        None
    }

    fn finish(self, error: Option<Errno>, len: usize) {
        let len = len as u32;
        let head = size_of::<OutHeader>() as u32;
        let out = OutHeader { len: head + len, error: error.map_or(0, |e| -(e as i32)), unique: self.unique };
        let facts = EntInOut { flags: 0, commit_id: self.commit, payload_sz: len, padding: 0, reserved: 0 };
        // SAFETY: as above.
        unsafe { self.shared.memory.finish(out, facts) };
        *self.shared.answered.lock() = Some(self.commit);
        if std::thread::current().id() != self.shared.thread
            && let Err(e) = self.shared.wake.write(1)
        {
            tracing::error!(error = %e, "cannot wake a ring's thread");
        }
    }
}

/// An entry that is ready to be registered.
pub(super) struct Entry {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    shared: Arc<Shared>,
    cpu: u16,
}

impl Entry {
    /// Made by the thread that is to serve it, on its processor.
    pub(super) fn new(cpu: u16, queue: Arc<Queue>) -> io::Result<Entry> {
        // No flags: what says that only one thread submits, or that work may wait, made requests slower.
        let ring = IoUring::<squeue::Entry128, cqueue::Entry>::builder().build(COMMANDS)?;
        let shared = Shared {
            memory: Memory::new()?,
            answered: Mutex::default(),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?,
            thread: std::thread::current().id(),
            queue,
        };
        Ok(Entry { ring, shared: Arc::new(shared), cpu })
    }

    fn command(&self, device: &OwnedFd, op: u32, commit_id: u64) -> squeue::Entry128 {
        let mut cmd = [0; 80];
        let asked = UringCmd { flags: 0, commit_id, qid: self.cpu, padding: [0; 6] };
        cmd[..size_of::<UringCmd>()].copy_from_slice(asked.as_bytes());
        opcode::UringCmd80::new(types::Fd(device.as_raw_fd()), op).cmd(cmd).build().user_data(ENTRY)
    }

    fn push(&mut self, sqe: &squeue::Entry128) {
        // SAFETY: what commands point to lives as long as the ring (the memory), or is read when the command is
        // submitted (the two buffers of `register`).
        let pushed = unsafe { self.ring.submission().push(sqe) };
        debug_assert!(pushed.is_ok(), "there is room for both commands");
    }

    fn wait_for_wake(&mut self) {
        let wake = types::Fd(self.shared.wake.as_raw_fd());
        self.push(&opcode::PollAdd::new(wake, libc::POLLIN as u32).build().user_data(WAKE).into());
    }

    /// Offers the entry to the kernel.
    pub(super) fn register(&mut self, device: &OwnedFd) -> io::Result<()> {
        let buffers = self.shared.memory.buffers();
        let mut sqe = self.command(device, REGISTER, 0);
        with_buffers(&mut sqe, &buffers);
        self.push(&sqe);
        self.wait_for_wake();
        // The kernel reads where the buffers are now.
        self.ring.submit()?;
        Ok(())
    }

    /// Answers until the connection ends.
    pub(super) fn serve(
        mut self,
        adapter: &Adapter,
        device: &OwnedFd,
        awake: Option<&Awake>,
    ) -> io::Result<()> {
        loop {
            let answered = self.shared.answered.lock().take();
            if let Some(commit) = answered {
                let sqe = self.command(device, COMMIT_AND_FETCH, commit);
                self.push(&sqe);
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {
                    continue;
                }
                Err(e) => return Err(e),
            }
            let Some(done) = self.ring.completion().next() else { continue };
            match (done.user_data(), -done.result()) {
                (WAKE, _) => {
                    self.shared.wake.read()?;
                    self.wait_for_wake();
                }
                (_, 0) => {
                    if let Some(awake) = awake {
                        awake.request(self.cpu);
                    }
                    self.take(adapter);
                }
                (_, libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED) => return Ok(()),
                (_, error) => return Err(io::Error::from_raw_os_error(error)),
            }
        }
    }

    fn take(&self, adapter: &Adapter) {
        // SAFETY: the completion gave us the entry. The reply, which alone writes to it, is made when nothing of the
        // request is looked at any more.
        let asked = unsafe { self.shared.memory.asked() };
        let (commit, unique) = (asked.commit, asked.head.unique);
        let reply = || Reply::to_ring(Slot { shared: self.shared.clone(), commit, unique, parked: None });
        let forgets = is_forget(asked.head.opcode);
        adapter.take(&asked.head, Args::Parted { first: asked.first, rest: asked.rest }, reply);
        if forgets {
            // One that comes here, and not through the device as others do, is waited for (by who lists a directory that the kernel
            // cannot link in), and without an answer the entry would be lost, too.
            reply().done();
        }
    }
}

/// Completes a register command: the crate has no way to say how many buffers there are.
fn with_buffers(sqe: &mut squeue::Entry128, buffers: &[libc::iovec; 2]) {
    /// Of `struct io_uring_sqe`.
    const ADDR: usize = 16;
    const LEN: usize = 24;
    let raw = std::ptr::from_mut(sqe).cast::<u8>();
    // SAFETY: it is the kernel's struct of 128 bytes, aligned to 8.
    unsafe {
        raw.add(ADDR).cast::<u64>().write(buffers.as_ptr() as u64);
        raw.add(LEN).cast::<u32>().write(buffers.len() as u32);
    }
}
