//! The transport through `/dev/fuse`: threads that read requests and answer them.
//!
//! Each thread has a descriptor of its own where it can. Must not know: what requests mean.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::errno::Errno;
use zerocopy::FromBytes;

use super::adapter::{Adapter, Taken};
use super::reply::Reply;
use super::request::Args;
use super::wire::InHeader;

/// Bytes of the largest write.
pub(super) const MAX_WRITE: usize = 1 << 20;
/// A write and its headers, rounded up.
const REQUEST: usize = MAX_WRITE + 4096;

nix::ioctl_read!(clone_device, 229, 0, u32);

/// A further descriptor of the same connection, with a queue of its own.
fn further(device: &OwnedFd) -> io::Result<OwnedFd> {
    let new = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let mut of = device.as_raw_fd() as u32;
    // SAFETY: the call reads one number; both descriptors live through it.
    unsafe { clone_device(new.as_raw_fd(), &mut of) }?;
    Ok(new.into())
}

/// Starts `threads` threads that answer until the connection ends.
pub(super) fn serve(
    adapter: &Arc<Adapter>,
    device: &Arc<OwnedFd>,
    threads: usize,
) -> io::Result<Vec<JoinHandle<()>>> {
    let start = |n: usize| {
        // Who may not open the device shares the one that the mount came with.
        let own = if n == 0 { None } else { further(device).ok() };
        let (adapter, device) = (adapter.clone(), own.map_or_else(|| device.clone(), Arc::new));
        std::thread::Builder::new().name(format!("fuse-{n}")).spawn(move || {
            if let Err(e) = answer(&adapter, &device) {
                tracing::error!(error = %e, "a mount's session failed");
            }
        })
    };
    (0..threads).map(start).collect()
}

fn answer(adapter: &Adapter, device: &Arc<OwnedFd>) -> io::Result<()> {
    let mut buf = vec![0; REQUEST];
    loop {
        let len = match nix::unistd::read(device, &mut buf) {
            Ok(len) => len,
            // Interrupted: the request, or we.
            Err(Errno::ENOENT | Errno::EINTR | Errno::EAGAIN) => continue,
            Err(Errno::ENODEV) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let Ok((head, args)) = InHeader::read_from_prefix(&buf[..len]) else {
            return Err(io::Error::other("a request without a header"));
        };
        let reply = || Reply::to_device(device.clone(), head.unique);
        if adapter.take(&head, Args::Joined(args), reply) == Taken::Last {
            return Ok(());
        }
    }
}
