//! The transport through io_uring: a queue for each processor, and threads there that answer.
//!
//! The kernel puts a request into the queue of the processor on which it was made, so that nobody on another one
//! needs to be woken for it. FORGETs (but for one kind) and notifications stay with `/dev/fuse`. Must not know: what requests mean.

mod awake;
mod entry;
mod memory;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

pub(super) use entry::Slot;

use super::adapter::Adapter;
use awake::Awake;
use entry::{Entry, Queue};

/// Entries, each with a thread, that all queues have together, but for the least and most for one queue. An entry is
/// taken until its request is answered, also while that waits for a draft being committed or for a job.
const ENTRIES: u16 = 256;
const LEAST: u16 = 8;
const MOST: u16 = 32;

type Start = (Arc<Adapter>, Arc<OwnedFd>, Option<Arc<Awake>>);

struct Thread {
    start: Sender<Start>,
    /// First whether the ring could be made, then whether it was registered.
    came_to: Receiver<io::Result<()>>,
    thread: JoinHandle<()>,
}

/// Rings for all processors, made before the handshake: once the kernel has been promised rings, it waits for them.
pub(super) struct Rings(Vec<Thread>);

/// Whether the kernel offers this transport to new mounts: root sets that for the whole system.
pub(crate) fn offered() -> Result<bool, io::Error> {
    Ok(std::fs::read_to_string("/sys/module/fuse/parameters/enable_uring")?.starts_with('Y'))
}

/// Whether this process may use io_uring (which `kernel.io_uring_disabled` or a container's rules can forbid).
pub(crate) fn allowed() -> io::Result<()> {
    Entry::new(0, Queue::of(1)).map(drop)
}

impl Rings {
    /// Makes them. Fails where io_uring is not allowed.
    pub(super) fn prepare() -> io::Result<Rings> {
        let cpus = possible_cpus()?;
        let each = (ENTRIES / cpus.max(1)).clamp(LEAST, MOST);
        // One of each queue after the other: the sooner every queue has one, the sooner the kernel begins.
        let queues: Vec<_> = (0..cpus).map(|_| Queue::of(each)).collect();
        let order = (0..each).flat_map(|_| (0..cpus).zip(&queues));
        let threads = order.map(|(cpu, queue)| thread(cpu, queue.clone())).collect::<io::Result<Vec<_>>>()?;
        for t in &threads {
            t.came_to.recv().map_err(|_| io::Error::other("a ring's thread died"))??;
        }
        Ok(Rings(threads))
    }

    /// Descriptors that they take: each a ring, and what wakes its thread.
    pub(super) fn descriptors(&self) -> u64 {
        2 * self.0.len() as u64
    }

    /// Offers them to the kernel and answers, until the connection ends. Processors may be kept `awake` meanwhile.
    pub(super) fn start(
        self,
        adapter: &Arc<Adapter>,
        device: &Arc<OwnedFd>,
        awake: bool,
    ) -> io::Result<Vec<JoinHandle<()>>> {
        let awake = if awake { Awake::begin().map(Arc::new) } else { None };
        for t in &self.0 {
            let _ = t.start.send((adapter.clone(), device.clone(), awake.clone()));
        }
        for t in &self.0 {
            t.came_to.recv().map_err(|_| io::Error::other("a ring's thread died"))??;
        }
        Ok(self.0.into_iter().map(|t| t.thread).collect())
    }
}

fn thread(cpu: u16, queue: Arc<Queue>) -> io::Result<Thread> {
    let (start, started) = channel::<Start>();
    let (tell, came_to) = channel();
    let work = move || {
        pin(cpu);
        let mut entry = match Entry::new(cpu, queue) {
            Ok(entry) => entry,
            Err(e) => return drop(tell.send(Err(e))),
        };
        let _ = tell.send(Ok(()));
        let Ok((adapter, device, awake)) = started.recv() else { return };
        let _ = tell.send(entry.register(&device));
        if let Err(e) = entry.serve(&adapter, &device, awake.as_deref()) {
            tracing::error!(cpu, error = %e, "an entry of a ring failed");
        }
    };
    let thread = std::thread::Builder::new().name(format!("ring-{cpu}")).spawn(work)?;
    Ok(Thread { start, came_to, thread })
}

/// Keeps this thread on its processor. One that is not there now has nothing to ask either.
fn pin(cpu: u16) {
    let mut set = CpuSet::new();
    let pinned = set.set(cpu.into()).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(e) = pinned {
        tracing::debug!(cpu, error = %e, "a ring's thread is not kept on its processor");
    }
}

/// How many processors there may ever be: the kernel wants a queue for each.
fn possible_cpus() -> io::Result<u16> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    last_of(&text).map(|n| n + 1).ok_or_else(|| io::Error::other("the processors cannot be counted"))
}

/// The last number of a list as `0-3,8`.
fn last_of(list: &str) -> Option<u16> {
    list.trim().rsplit([',', '-']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted() {
        assert_eq!(last_of("0-1\n"), Some(1));
        assert_eq!(last_of("0\n"), Some(0));
        assert_eq!(last_of("0-3,8-11\n"), Some(11));
        assert_eq!(last_of("\n"), None);
    }

    #[test]
    fn rings_that_are_not_started_end() {
        let Ok(rings) = Rings::prepare() else { return };
        let threads: Vec<_> = rings.0.into_iter().map(|t| t.thread).collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
    }
}
