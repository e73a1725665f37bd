//! Mounting and unmounting.
//!
//! Mounts are private, nosuid and nodev, and the kernel checks permissions. As root the mount is
//! made directly, otherwise by fusermount3.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};

use super::adapter::Adapter;
use super::backing::Backings;
use super::detach::{detach, in_use};
use super::device;
use super::far::Far;
use super::handshake::{Agreed, Handshake};
use super::looker::Looker;
use super::notify::KernelEnd;
use super::place::{Identity, Whereabouts};
use super::ring::{self, Rings};
use super::serve::Pools;
use super::without::Without;
use super::{MountError, MountOptions, Passthrough, Transport};
use crate::vfs::{Taken, View};

#[derive(Default)]
struct End {
    over: Mutex<bool>,
    changed: Condvar,
}

/// A mounted view; dropping it unmounts.
pub struct Mounted {
    at: PathBuf,
    /// Which of all mounts it is.
    identity: Identity,
    end: Arc<End>,
    agreed: Agreed,
    no_open: bool,
    prunes: bool,
    /// Unmounted by us: what is mounted there now is somebody else's, even while the session still ends.
    unmounted: AtomicBool,
    /// fuser unmounts the path by itself when the session ends, unless it was told to before.
    fusers_own: Mutex<SessionUnmounter>,
}

impl Mounted {
    /// Where it is mounted.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Is passthrough in use?
    pub fn passthrough(&self) -> bool {
        self.agreed.passthrough
    }

    /// Do listings come with attributes?
    pub fn readdirplus(&self) -> bool {
        self.agreed.readdirplus
    }

    /// Are files opened without a word?
    pub fn no_open(&self) -> bool {
        self.no_open
    }

    /// Is the kernel asked to prune? An older one will refuse.
    pub fn prunes(&self) -> bool {
        self.prunes
    }

    /// How requests come; never `Auto`.
    pub fn transport(&self) -> Transport {
        if self.agreed.rings { Transport::Uring } else { Transport::Dev }
    }

    /// False once the kernel side is gone (unmounted by anyone).
    pub fn alive(&self) -> bool {
        !*self.end.over.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Unmounts: `lazy` detaches even when busy. On `Err` the mount stands as before. What is mounted there by now, after
    /// somebody else has detached this one, is left alone; under another mount it is out of reach.
    pub fn unmount(&self, lazy: bool) -> std::io::Result<()> {
        if self.unmounted.load(Ordering::SeqCst) || !self.alive() {
            return Ok(());
        }
        let detached = || matches!(self.identity.whereabouts(&self.at), Whereabouts::Detached);
        let ours = match self.identity.whereabouts(&self.at) {
            Whereabouts::Here => match detach(&self.at, lazy) {
                Ok(()) => true,
                // Somebody else was faster.
                Err(_) if detached() => false,
                Err(e) => return Err(e),
            },
            Whereabouts::Hidden => return Err(hidden()),
            Whereabouts::Detached => false,
        };
        self.unmounted.store(true, Ordering::SeqCst);
        if ours {
            // There is nothing left to unmount: this is for fuser to forget the path.
            let _ = self.fusers_own.lock().unwrap_or_else(|e| e.into_inner()).unmount();
        }
        Ok(())
    }

    /// Whether an unmount that is not lazy would be refused as busy; `None` where only trying it would tell. `Err`: it
    /// would be refused for another reason.
    pub fn in_use(&self) -> std::io::Result<Option<bool>> {
        if self.unmounted.load(Ordering::SeqCst) || !self.alive() {
            return Ok(Some(false));
        }
        match self.identity.whereabouts(&self.at) {
            Whereabouts::Here => Ok(in_use(&self.at)),
            Whereabouts::Hidden => Err(hidden()),
            Whereabouts::Detached => Ok(Some(false)),
        }
    }

    /// Calls `then` from another thread when the session has ended, for whatever reason.
    pub fn on_end(&self, then: Box<dyn FnOnce() + Send>) {
        let end = self.end.clone();
        let wait = move || {
            let mut over = end.over.lock().unwrap_or_else(|e| e.into_inner());
            while !*over {
                over = end.changed.wait(over).unwrap_or_else(|e| e.into_inner());
            }
            drop(over);
            then();
        };
        if let Err(e) = std::thread::Builder::new().name("mount-end".into()).spawn(wait) {
            tracing::error!(error = %e, "cannot watch for the end of a mount");
        }
    }
}

fn hidden() -> std::io::Error {
    std::io::Error::other("another mount covers it, or it was moved; unmount what is mounted there first")
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(e) = self.unmount(true) {
            tracing::warn!(at = %self.at.display(), error = %e, "cannot unmount");
        }
    }
}

fn explain(e: &std::io::Error, allow_other: bool) -> (String, bool) {
    let device = Path::new("/dev/fuse");
    if !device.exists() {
        let why = "there is no /dev/fuse; load the fuse module, or give the container the device (--device /dev/fuse). \
                   Without it put, restore, ls and cat still work on the store";
        return (why.into(), true);
    }
    let text = e.to_string();
    if allow_other && text.contains("user_allow_other") {
        return ("--allow-other needs the line user_allow_other in /etc/fuse.conf".into(), false);
    }
    if e.kind() == std::io::ErrorKind::NotConnected {
        return ("somebody unmounted it before it was ready; mount it again".into(), false);
    }
    match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            let why = format!(
                "{e}; mounting needs root, or fusermount3 (package fuse3) and access to the directory"
            );
            (why, true)
        }
        Some(libc::ENOENT) if nix::unistd::geteuid().is_root() => (e.to_string(), false),
        Some(libc::ENOENT) => ("fusermount3 was not found; install the package fuse3".into(), true),
        _ => (text.trim().to_owned(), false),
    }
}

/// Mounts a view; requests are answered when it returns. `looker` is a command that calls [`look`](super::look) for the
/// directory that is its last argument with its standard input; without one, a kernel without prune keeps what it knows of entries
/// that are to be evicted.
pub fn mount(
    view: Arc<View>,
    at: &Path,
    options: &MountOptions,
    looker: &[OsString],
) -> Result<Mounted, MountError> {
    let fail = |why: String, no_fuse: bool| MountError { path: at.to_owned(), why, no_fuse };
    let io = |e: std::io::Error| {
        let (why, no_fuse) = explain(&e, options.allow_other);
        fail(why, no_fuse)
    };
    let at = at.canonicalize().map_err(io)?;
    let without = Without::asked();
    let transport = if without.io_uring { Transport::Dev } else { options.transport };
    let rings = rings(transport).map_err(|why| fail(why, false))?;
    let (handshake, agreed) = Handshake::new(view.clone(), options, rings.is_some(), without);
    let mut session = Session::new(handshake, &at, &config(&view, options)).map_err(io)?;
    let agreed = *agreed.lock();
    let identity = Identity::of(&at).map_err(io)?;
    if options.passthrough == Passthrough::Require && !agreed.passthrough {
        let _ = session.unmount();
        let why = "passthrough was required, but it needs Linux 6.9 or newer, root, and, unless the view is read-only, \
                   a store on a file system with leases (fcntl F_SETLEASE)";
        return Err(fail(why.into(), false));
    }
    if options.transport == Transport::Uring && !agreed.rings {
        let _ = session.unmount();
        return Err(fail(NO_RINGS.into(), false));
    }
    let device = Arc::new(session.as_fd().try_clone_to_owned().map_err(io)?);
    // Who is never asked to open a file cannot say that it is passed through.
    let no_open = view.read_only() && !agreed.passthrough && !without.no_open;
    let looker = Looker::new(looker.to_vec(), &at);
    let adapter = Arc::new(Adapter {
        view: view.clone(),
        backings: Arc::new(Backings::new(agreed.passthrough.then(|| device.clone()))),
        pools: Arc::new(Pools::start().map_err(io)?),
        far: Far::new(),
        no_open,
        looker: looker.who(),
        only: (!options.allow_other).then(|| nix::unistd::geteuid().as_raw()),
    });
    let kernel = KernelEnd::start(session.notifier(), device.clone(), !without.prune, looker).map_err(io)?;
    view.attach(Box::new(kernel));
    let fusers_own = Mutex::new(session.unmount_callable());
    let taken = rings.as_ref().map(|rings| Taken::new(rings.descriptors()));
    let mut threads = device::serve(&adapter, &device, options.threads.max(2)).map_err(io)?;
    if let Some(rings) = rings.filter(|_| agreed.rings) {
        // Failing, the session is dropped and with it the mount: the kernel would wait for the rings.
        threads.extend(rings.start(&adapter, &device, !without.awake).map_err(io)?);
    }
    let end = Arc::new(End::default());
    let over = end.clone();
    let wait = move || {
        for thread in threads {
            let _ = thread.join();
        }
        drop((adapter, session, taken));
        *over.over.lock().unwrap_or_else(|e| e.into_inner()) = true;
        over.changed.notify_all();
    };
    std::thread::Builder::new().name("mount".into()).spawn(wait).map_err(io)?;
    // What only a tier has would come for it, and of a program whatever lies around what it runs.
    if !view.has_tiers() {
        read_further_ahead(&at, identity.device());
    }
    let prunes = !without.prune;
    Ok(Mounted { at, identity, end, agreed, no_open, prunes, unmounted: AtomicBool::new(false), fusers_own })
}

const NO_RINGS: &str = "FUSE over io_uring was required, but the kernel does not offer it: it needs Linux 6.14 or newer, \
                        and root to have written Y to /sys/module/fuse/parameters/enable_uring";

/// Rings, where they are wanted and possible. `Err`: they are required, and why there are none.
fn rings(wanted: Transport) -> Result<Option<Rings>, String> {
    if wanted == Transport::Dev || (wanted == Transport::Auto && !ring::offered().unwrap_or(false)) {
        return Ok(None);
    }
    match Rings::prepare() {
        Ok(rings) => Ok(Some(rings)),
        Err(e) if wanted == Transport::Uring => Err(format!(
            "FUSE over io_uring was required, but this process may not use io_uring: {e}; the setting \
             kernel.io_uring_disabled or the container's rules (seccomp) forbid it"
        )),
        Err(e) => {
            tracing::info!(error = %e, "io_uring cannot be used; requests come through /dev/fuse");
            Ok(None)
        }
    }
}

/// What the mount table calls the view: whose it is, so that `outfs unmount` finds its daemon. Mount options cannot
/// say every path.
fn source(store: &Path) -> String {
    match store.to_str() {
        Some(path) if !path.contains([',', '\\', '\n']) => format!("outfs:{path}"),
        _ => "outfs".into(),
    }
}

/// Bytes the kernel may read ahead of a sequential reader: as many as one request takes.
const READ_AHEAD: usize = 1 << 20;

/// Sets that for the mount at `at`. The handshake can only lower the kernel's own 128 KiB, and only root may
/// raise it: without it large files are read half as fast, no more.
fn read_further_ahead(at: &Path, (major, minor): (u32, u32)) {
    let set = || {
        let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        std::fs::write(file, format!("{}\n", READ_AHEAD / 1024))
    };
    if let Err(e) = set() {
        tracing::debug!(at = %at.display(), error = %e, "the kernel reads ahead as far as it does by itself");
    }
}

fn config(view: &View, options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(source(view.store())),
        MountOption::Subtype("outfs".into()),
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        if view.read_only() { MountOption::RO } else { MountOption::RW },
    ];
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config
}
