//! The handshake: what is agreed with the kernel before the first request.
//!
//! fuser speaks it; this chooses.

use std::sync::Arc;

use fuser::{InitFlags, KernelConfig, Request};
use parking_lot::Mutex;

use super::device::MAX_WRITE;
use super::far::UNASKED;
use super::without::Without;
use super::{MountOptions, Passthrough};
use crate::vfs::View;

/// What was agreed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Agreed {
    pub passthrough: bool,
    pub rings: bool,
    pub readdirplus: bool,
}

/// What fuser takes for a file system: it answers nothing.
pub(super) struct Handshake {
    view: Arc<View>,
    passthrough: Passthrough,
    rings: bool,
    without: Without,
    agreed: Arc<Mutex<Agreed>>,
}

impl Handshake {
    /// For a mount of `view`; the result is there when the session is.
    pub(super) fn new(
        view: Arc<View>,
        options: &MountOptions,
        rings: bool,
        without: Without,
    ) -> (Handshake, Arc<Mutex<Agreed>>) {
        let agreed = Arc::<Mutex<Agreed>>::default();
        let passthrough = if without.passthrough { Passthrough::Off } else { options.passthrough };
        (Handshake { view, passthrough, rings, without, agreed: agreed.clone() }, agreed)
    }
}

impl fuser::Filesystem for Handshake {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let mut useful = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            // There are no ACLs; with this the kernel remembers that of each file, and `ls -l` need not ask.
            | InitFlags::FUSE_POSIX_ACL;
        if self.without.readdirplus {
            useful.remove(InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO);
        }
        let agreed_on = useful & config.capabilities();
        let _ = config.add_capabilities(agreed_on);
        let _ = config.set_max_write(MAX_WRITE as u32);
        let _ = config.set_max_background(if self.view.has_tiers() { UNASKED } else { 64 });
        let mut agreed = self.agreed.lock();
        agreed.readdirplus = agreed_on.contains(InitFlags::FUSE_DO_READDIRPLUS);
        let wanted = match self.passthrough {
            Passthrough::Off => false,
            Passthrough::Auto => self.view.may_pass_through() && self.view.gains_by_opens(),
            Passthrough::Require => self.view.may_pass_through(),
        };
        if wanted {
            agreed.passthrough = nix::unistd::geteuid().is_root()
                && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
                && config.set_max_stack_depth(1).is_ok();
        }
        agreed.rings = self.rings && config.add_capabilities(InitFlags::FUSE_OVER_IO_URING).is_ok();
        Ok(())
    }
}
