//! Changes of sealed entries in views that replace them.
//!
//! The first one makes a draft that begins as a copy of the entry, which takes as long as the
//! entry is large: it is made by a job, not by a thread that other requests need.

use fuser::{Errno, INodeNo, ReplyCreate, ReplyEmpty, ReplyEntry, ReplyOpen};

use super::adapter::{Adapter, run};

/// A reply that can say why not.
pub(super) trait Refuse: Send + 'static {
    fn refuse(self, why: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {$(
        impl Refuse for $reply {
            fn refuse(self, why: Errno) {
                self.error(why);
            }
        }
    )*};
}

refuse!(ReplyCreate, ReplyEmpty, ReplyEntry, ReplyOpen);

impl Adapter {
    /// Gives the reply back, unless a change of `ino` begins a replacement: then a job makes it and
    /// tells the kernel to look again.
    pub(super) fn unless_replaced<R: Refuse>(&self, ino: INodeNo, reply: R) -> Option<R> {
        if !self.view.replaces(ino.0) {
            return Some(reply);
        }
        let view = self.view.clone();
        self.jobs.run(move || match run(|| view.replace(ino.0)) {
            Ok(()) => reply.refuse(Errno::ESTALE),
            Err(why) => reply.refuse(why),
        });
        None
    }
}
