//! Telling the kernel things: names to look up again, inodes to let go of.
//!
//! A thread of its own: a notification can wait for a lock that a request in progress holds,
//! so nobody who answers requests, or is waited for by one who does, may send one.

use std::ffi::{OsStr, OsString};
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Weak;

use crossbeam_channel::{Sender, unbounded};
use fuser::{INodeNo, Notifier};

use crate::vfs::{Ino, Kernel, View};

/// FUSE_NOTIFY_PRUNE of Linux 6.18: ask to drop unused dentries of inodes.
const FUSE_NOTIFY_PRUNE: i32 = 9;
/// Inodes per message.
const PRUNE_BATCH: usize = 4096;

enum Message {
    Name(Ino, OsString),
    Prune(Option<OsString>, Vec<Ino>),
}

/// The kernel's end of a session.
pub struct KernelEnd(Sender<Message>);

impl KernelEnd {
    /// Starts the thread; it ends with the view or with the sender.
    pub fn start(view: Weak<View>, notifier: Notifier, device: OwnedFd) -> std::io::Result<Self> {
        let (tx, rx) = unbounded();
        std::thread::Builder::new().name("notify".into()).spawn(move || {
            let mut prunes = true;
            for message in rx {
                let Some(view) = view.upgrade() else { return };
                match message {
                    Message::Name(parent, name) => {
                        if !view.name_is_current(parent, &name) {
                            log_failure(notifier.inval_entry(INodeNo(parent), &name));
                        }
                    }
                    Message::Prune(name, inos) => {
                        prunes = prunes && inos.chunks(PRUNE_BATCH).all(|batch| prune(&device, batch));
                        if let (false, Some(name)) = (prunes, name) {
                            log_failure(notifier.inval_entry(INodeNo(crate::vfs::ino::ROOT), &name));
                        }
                    }
                }
            }
        })?;
        Ok(Self(tx))
    }
}

impl Kernel for KernelEnd {
    fn forget_name(&self, parent: Ino, name: &OsStr) {
        let _ = self.0.send(Message::Name(parent, name.to_owned()));
    }

    fn prune(&self, name: Option<&OsStr>, inos: Vec<Ino>) {
        let _ = self.0.send(Message::Prune(name.map(OsStr::to_owned), inos));
    }
}

fn log_failure(result: std::io::Result<()>) {
    if let Err(e) = result {
        tracing::debug!(error = %e, "the kernel did not take a notification");
    }
}

/// Writes one prune message: `fuse_out_header`, `fuse_notify_prune_out`, node ids. False when
/// this kernel does not know it.
fn prune(device: &OwnedFd, inos: &[Ino]) -> bool {
    let ids: Vec<u8> = inos.iter().flat_map(|i| i.to_ne_bytes()).collect();
    let len = 16 + 16 + ids.len() as u32;
    let mut head = Vec::with_capacity(32);
    head.extend_from_slice(&len.to_ne_bytes());
    head.extend_from_slice(&FUSE_NOTIFY_PRUNE.to_ne_bytes());
    head.extend_from_slice(&0u64.to_ne_bytes());
    head.extend_from_slice(&(inos.len() as u32).to_ne_bytes());
    head.extend_from_slice(&[0; 12]);
    match nix::sys::uio::writev(device, &[IoSlice::new(&head), IoSlice::new(&ids)]) {
        Ok(_) => true,
        Err(nix::errno::Errno::EINVAL) => false,
        Err(e) => {
            tracing::debug!(error = %e, "the kernel did not take a prune");
            true
        }
    }
}
