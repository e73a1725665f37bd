//! Telling the kernel to let go of inodes, and of what it remembers of them.
//!
//! A thread of its own: nobody who answers requests, or is waited for by one who does, may send a
//! notification that waits. (That attributes changed is sent at once: the kernel takes a spin lock for it and
//! no other, and whoever made the change must see it. That names changed waits for the locks of the pages which hold
//! them: for who is copying these, who waits for no request.) And nothing is sent that waits for a directory's lock,
//! which a request in progress can hold: killed in such a wait, the daemon would not die until that request was answered, which nobody
//! would do any more. (Before Linux 6.18 there is only the kind that does: there a name is looked up instead, see `looker.rs`.)

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam_channel::{Sender, unbounded};
use fuser::{INodeNo, Notifier};

use super::looker::Looker;
use crate::vfs::{Ino, Kernel, Top, When};

/// FUSE_NOTIFY_PRUNE of Linux 6.18: ask to drop unused dentries of inodes.
const FUSE_NOTIFY_PRUNE: i32 = 9;
/// Inodes per message.
const PRUNE_BATCH: usize = 4096;

/// Says which inodes to let go of.
type Choose = Box<dyn FnOnce() -> Vec<Ino> + Send>;

enum Message {
    Prune {
        top: Option<Top>,
        inos: Vec<Ino>,
    },
    /// Pages of these: names of directories, or content.
    Pages(Vec<Ino>),
    /// To be pruned, once they are chosen.
    Forget(Choose),
}

/// The kernel's end of a session.
pub struct KernelEnd {
    messages: Sender<Message>,
    notifier: Notifier,
}

impl KernelEnd {
    /// Starts the thread; it ends with the sender. `prunes` is false where the kernel is known not to.
    pub fn start(
        notifier: Notifier,
        device: Arc<OwnedFd>,
        prunes: bool,
        looker: Looker,
    ) -> std::io::Result<Self> {
        let (tx, rx) = unbounded::<Message>();
        let mut work = Work { notifier: notifier.clone(), device, prunes, looker };
        std::thread::Builder::new().name("notify".into()).spawn(move || {
            rx.iter().for_each(|message| work.on(message));
        })?;
        Ok(Self { messages: tx, notifier })
    }
}

/// What the thread works with.
struct Work {
    notifier: Notifier,
    device: Arc<OwnedFd>,
    /// The kernel has not refused to.
    prunes: bool,
    looker: Looker,
}

impl Work {
    fn on(&mut self, message: Message) {
        let (top, inos) = match message {
            Message::Pages(inos) => return forget_pages(&self.notifier, &inos),
            Message::Prune { top, inos } => (top, inos),
            // Without prunes there is nothing to choose for.
            Message::Forget(choose) => (None, if self.prunes { choose() } else { Vec::new() }),
        };
        self.prunes = self.prunes && inos.chunks(PRUNE_BATCH).all(|batch| prune(&self.device, batch));
        if let (false, Some(top)) = (self.prunes, top) {
            self.looker.look(top);
        }
    }
}

impl Kernel for KernelEnd {
    fn prune(&self, top: Option<Top>, inos: Vec<Ino>) {
        let _ = self.messages.send(Message::Prune { top, inos });
    }

    fn attributes_changed(&self, inos: &[Ino]) {
        for ino in inos {
            // A negative offset leaves the pages alone.
            log_failure(self.notifier.inval_inode(INodeNo(*ino), -1, 0));
        }
    }

    fn names_changed(&self, inos: Vec<Ino>, when: When) {
        match when {
            When::Now => forget_pages(&self.notifier, &inos),
            When::Soon => drop(self.messages.send(Message::Pages(inos))),
        }
    }

    fn forget(&self, choose: Choose) {
        let _ = self.messages.send(Message::Forget(choose));
    }

    fn content_changed(&self, ino: Ino) {
        let _ = self.messages.send(Message::Pages(vec![ino]));
    }
}

/// Takes the pages in which the kernel keeps listings or content. It waits for each page's lock: whoever has that is
/// copying out of it, or waits for us to fill it.
fn forget_pages(notifier: &Notifier, inos: &[Ino]) {
    for ino in inos {
        log_failure(notifier.inval_inode(INodeNo(*ino), 0, 0));
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
