//! A way to the store: through the daemon that owns it, or as its owner for one command.
//!
//! Both answer with the same code (`control::dispatch`). When another short-lived command owns
//! the store, this one waits for its turn.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use super::out::{self, Streams};
use super::run::caches;
use crate::cache::{Cache, Limits};
use crate::control::{
    Caller, Channel, Client, ConnectError, Failure, Kind, LimitFlags, Reply, Request, dispatch,
};
use crate::daemon::{Config, Links, owned_by_us, stored_limits};
use crate::run::{Room, Rooms, RunError, is_ours_to_make, own_caches};
use crate::store::Unowned;

/// How long to wait for another owner without a daemon's socket.
const PATIENCE: Duration = Duration::from_secs(60);

/// A way to a store.
pub(super) struct Session {
    store: PathBuf,
    /// Where there is room for a copy of its index: nothing of it is to be changed.
    reads: Option<Rooms>,
    way: Way,
}

enum Way {
    /// Its daemon answers.
    Daemon(Client),
    /// This process owns it.
    Own(Owned),
}

/// A store owned for one command, with what its links point to held; closed in order however the
/// command ends.
struct Owned {
    cache: Option<Cache>,
    links: Option<Links>,
    /// Of a store that is merely read: what keeps owners out, and where the copy of its index is.
    read: Option<(Unowned, Room)>,
}

impl Owned {
    fn new(cache: Cache) -> Self {
        Self { links: Some(Links::hold(&cache)), cache: Some(cache), read: None }
    }

    /// One that lies on a file system which cannot be written to.
    fn to_read(store: &Path, rooms: &Rooms) -> Result<Owned, Failure> {
        let fail = |e: RunError| Failure::failed(format!("there is no place for a copy of the index: {e}"));
        let room = rooms.make().map_err(fail)?;
        let aside = room.dir("index").map_err(fail)?;
        let (cache, unowned) = Cache::open_to_read(store, &aside, limits(store)?)?;
        Ok(Owned { cache: Some(cache), links: None, read: Some((unowned, room)) })
    }

    fn close(&mut self) -> Result<(), Failure> {
        self.links = None;
        let closed = match self.cache.take() {
            Some(cache) => Ok(cache.close()?),
            None => Ok(()),
        };
        self.read = None;
        closed
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Err(failure) = self.close() {
            out::note(&out::clean(&failure.message));
        }
    }
}

impl Session {
    /// To an existing store.
    pub(super) fn open(store: &Path) -> Result<Session, Failure> {
        if !is_store(store)? {
            return Err(Failure::failed(format!(
                "there is no store in {}; 'outfs mount' or 'outfs put' makes one, --store or OUTFS_STORE names another",
                store.display()
            )));
        }
        Self::open_or_create(store)
    }

    /// To a store that is made when missing.
    pub(super) fn open_or_create(store: &Path) -> Result<Session, Failure> {
        Ok(Session { store: store.to_owned(), reads: None, way: Way::find(store, None)? })
    }

    /// To an existing store for who changes nothing in it. Its file system may be one that cannot be written to.
    pub(super) fn open_to_read(store: &Path, rooms: &Rooms) -> Result<Session, Failure> {
        let way = Way::find(store, Some(rooms))?;
        Ok(Session { store: store.to_owned(), reads: Some(rooms.clone()), way })
    }

    /// This process owns the store, and keeps others out as long as it does.
    pub(super) fn is_owner(&self) -> bool {
        matches!(self.way, Way::Own(_))
    }

    /// Asks for facts or an order without streams.
    pub(super) fn call(&mut self, request: Request) -> Result<Reply, Failure> {
        self.call_with(request, &mut Streams::to_stdout())
    }

    /// Asks with streams. When the daemon is on its way out, whoever owns the store then is asked.
    pub(super) fn call_with(
        &mut self,
        request: Request,
        channel: &mut dyn Channel,
    ) -> Result<Reply, Failure> {
        loop {
            match self.way.call(request.clone(), channel) {
                Err(failure) if may_ask_again(&request, failure.kind) => {
                    self.way = Way::find(&self.store, self.reads.as_ref())?;
                }
                answer => return answer,
            }
        }
    }

    /// Lets go of the store.
    pub(super) fn close(self) -> Result<(), Failure> {
        match self.way {
            Way::Daemon(_) => Ok(()),
            Way::Own(mut owned) => owned.close(),
        }
    }
}

/// A refusal was certainly not carried out; an answer that was lost may have been.
fn may_ask_again(request: &Request, kind: Kind) -> bool {
    match kind {
        Kind::Stopping => !request.wants_input(),
        Kind::Lost => request.is_question(),
        _ => false,
    }
}

impl Way {
    fn find(store: &Path, reads: Option<&Rooms>) -> Result<Way, Failure> {
        let reads = reads.filter(|_| access(store, AccessFlags::W_OK) == Err(Errno::EROFS));
        let deadline = Instant::now() + PATIENCE;
        let mut said = false;
        loop {
            if let Some(client) = connect(store)? {
                return Ok(Way::Daemon(client));
            }
            owned_by_us(store)?;
            let opened = match reads {
                Some(rooms) => Owned::to_read(store, rooms),
                None => Cache::open(store, limits(store)?).map(Owned::new).map_err(Failure::from),
            };
            match opened {
                Err(failure) if failure.kind == Kind::Locked && Instant::now() < deadline => {
                    if !said && deadline - Instant::now() < PATIENCE - Duration::from_secs(1) {
                        out::note(&format!("waiting: {failure}"));
                        said = true;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                other => return other.map(Way::Own),
            }
        }
    }

    fn call(&mut self, request: Request, channel: &mut dyn Channel) -> Result<Reply, Failure> {
        match self {
            Way::Daemon(client) => client.call(request, channel),
            Way::Own(Owned { cache: Some(cache), links, .. }) => {
                // What links hold keeps the index from being made anew, and what they hold may be dropped.
                let remakes = matches!(&request, Request::Fsck(f) if f.repair || f.rebuild_index);
                if remakes {
                    *links = None;
                }
                let answer = dispatch(cache, &Caller::this(), request, channel);
                if remakes {
                    *links = Some(Links::hold(cache));
                }
                answer
            }
            Way::Own(Owned { cache: None, .. }) => Err(Failure::failed("the store was closed already")),
        }
    }
}

/// The store's daemon, if there is one.
pub(super) fn connect(store: &Path) -> Result<Option<Client>, Failure> {
    match Client::connect(store) {
        Ok(client) => Ok(Some(client)),
        Err(ConnectError::NoDaemon) => Ok(None),
        Err(e @ ConnectError::Io(_)) => {
            Err(Failure::failed(format!("{e} (the store is {}; are you its owner?)", store.display())))
        }
    }
}

/// Whether a store was ever made there.
pub(super) fn is_store(store: &Path) -> Result<bool, Failure> {
    match store.join("format").try_exists() {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            let message = format!(
                "cannot look into {}: {e}; a store is for the user who made it: run this as that user, or name \
                 another store with --store or OUTFS_STORE",
                store.display()
            );
            Err(Failure::new(Kind::Denied, message))
        }
        there => Ok(there.unwrap_or(false)),
    }
}

/// Without a daemon: the limits its last one ran with, and the configuration's over them.
fn limits(store: &Path) -> Result<Limits, Failure> {
    let mut limits = Limits::default();
    stored_limits(store).apply(&mut limits);
    config()?.limits.apply(&mut limits);
    Ok(limits)
}

/// The user's configuration.
pub(super) fn config() -> Result<Config, Failure> {
    Config::load().map_err(|e| Failure::new(Kind::Usage, e.to_string()))
}

/// A given, complete or partial set of limits over the configuration's.
pub(super) fn over_config(config: &Config, flags: &LimitFlags) -> LimitFlags {
    let (c, f) = (&config.limits, flags);
    LimitFlags {
        size: f.size.or(c.size),
        reserve: f.reserve.or(c.reserve),
        entries: f.entries.or(c.entries),
        high_water: f.high_water.or(c.high_water),
        low_water: f.low_water.or(c.low_water),
        min_age: f.min_age.or(c.min_age),
        draft_ttl: f.draft_ttl.or(c.draft_ttl),
        scrub: f.scrub.or(c.scrub),
        memory: f.memory.or(c.memory),
    }
}

/// The store that is meant when none is named. Root, with another user's home (`sudo` that keeps HOME), means that user's store where there is
/// one, and makes none there, which would be root's and nobody else's: it has its own.
pub(super) fn default_store() -> Result<PathBuf, Failure> {
    let usage = |message: String| Failure::new(Kind::Usage, message);
    let no_home = || usage("there is no home directory; name the store with --store DIR".into());
    let named = caches().ok_or_else(no_home)?.join("outfs");
    let there = |store: &Path| is_store(store).unwrap_or(true);
    let Some(why) = is_ours_to_make(&named).err().filter(|_| !there(&named)) else { return Ok(named) };
    let own = own_caches().map(|caches| caches.join("outfs")).filter(|own| is_ours_to_make(own).is_ok());
    let own = own.ok_or_else(|| {
        usage(format!("root makes no store in {}: {why}; name one with --store DIR", named.display()))
    })?;
    if !there(&own) {
        out::note(&out::clean(&format!(
            "root's store is {}, as root makes none in {}: {why} (--store or OUTFS_STORE names another)",
            own.display(),
            named.display()
        )));
    }
    Ok(own)
}
