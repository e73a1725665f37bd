//! Answers requests on a cache: the same for the daemon and for a command that owns the store.
//!
//! Must not know: who asks over what, mounting, terminals. What only a daemon can do is
//! refused here with a message that says so.

mod content;
mod entries;
mod logs;
mod runs;
mod upkeep;
mod watch;

use super::{Channel, Failure, Kind, Reply, Request};
use crate::cache::{Cache, Entry, LeaseKind, Lookup, Miss, host_name};
use crate::model::manifest::Origin;
use crate::model::{EntryKey, Summary};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
}

impl Caller {
    /// This process.
    pub fn this() -> Self {
        Caller { uid: nix::unistd::getuid().as_raw() }
    }

    fn origin(&self, how: &str, source: &str) -> Origin {
        Origin { how: how.into(), uid: self.uid, host: host_name(), source: source.into() }
    }
}

/// Answers one request.
pub fn dispatch(
    cache: &Cache,
    caller: &Caller,
    request: Request,
    channel: &mut dyn Channel,
) -> Result<Reply, Failure> {
    match request {
        Request::Put(put) => match &put.run {
            Some(run) => runs::keep(cache, caller, &put, run, channel),
            None => content::put(cache, caller, &put, channel),
        },
        Request::Find { key, outputs, fate } => runs::find(cache, &key, &outputs, fate),
        Request::History { task, from } => runs::history(cache, &task, from, channel),
        Request::Newest { task } => runs::newest(cache, &task),
        Request::Place { key, cwd, outputs, how, times } => {
            runs::place(cache, &key, (&cwd, &outputs), (how, times), channel)
        }
        Request::Nodes { key } => runs::nodes(cache, &key),
        Request::RunDraft { process, task } => runs::draft(cache, &process, &task),
        Request::DropDraft { id } => runs::drop_draft(cache, &id),
        Request::BeginSession { process } => Ok(Reply::Session { id: cache.begin_session(&process)? }),
        Request::EndSession { id } => {
            cache.end_session(&id)?;
            Ok(Reply::Done)
        }
        Request::Note { key, task, note } => runs::note(cache, &key, task, note),
        Request::Restore { key, dest, how, force, dir_mode } => {
            content::restore(cache, &key, &dest.0, (how, force, dir_mode), channel)
        }
        Request::Prefetch { key, paths } => content::prefetch(cache, &key, &paths, channel),
        Request::RestoreTar { key } => content::restore_tar(cache, &key, channel),
        Request::Cat { key, path } => content::cat(cache, &key, path.as_bytes(), channel),
        Request::Log { key, stream } => content::log(cache, &key, stream, channel),
        Request::LogLines { key, stream, start, limit } => logs::page(cache, &key, stream, (start, limit)),
        Request::Seal { name, key } => content::seal(cache, caller, name.as_bytes(), key),
        Request::Import { kind, source } => content::import(cache, kind, &source.0, channel),
        Request::Entries { after, limit } => entries::page(cache, after, limit),
        Request::Tree { key, path } => entries::tree(cache, &key, path.as_bytes()),
        Request::Show { key } => entries::show(cache, &key),
        Request::Du { keys, after } => entries::du(cache, &keys, after),
        Request::Drafts => Ok(entries::drafts(cache)),
        Request::Stats => entries::stats(cache),
        Request::Events { since, limit } => entries::events(cache, since.as_deref(), limit),
        Request::Pins => upkeep::pins(cache),
        Request::Pin { name, key } => upkeep::pin(cache, &name, &key),
        Request::Unpin { name, key } => upkeep::unpin(cache, name.as_deref(), key.as_ref()),
        Request::Reject { key, reason } => upkeep::reject(cache, &key, reason.as_deref()),
        Request::Evict { key } => upkeep::evict(cache, &key),
        Request::Gc { dry_run, older_than } => upkeep::gc(cache, dry_run, older_than, channel),
        Request::Fsck(options) => upkeep::fsck(cache, options, channel),
        Request::Status | Request::Mount { .. } | Request::Unmount { .. } | Request::Stop { .. } => {
            Err(Failure::failed("no daemon runs for this store; 'outfs mount' starts one"))
        }
        Request::Link { .. } => Err(Failure::failed(
            "a link points into a mount, and this store has none; 'outfs mount' makes one, or restore a copy",
        )),
    }
}

/// The entry as a client's lookup finds it, held: a broken or rejected one is a miss.
pub fn hit(cache: &Cache, key: &EntryKey) -> Result<Entry, Failure> {
    match cache.lookup_as::<Summary>(key)? {
        Lookup::Hit { entry, .. } => Ok(entry),
        Lookup::Miss(Miss::NoEntry) => Err(no_entry(key)),
        Lookup::Miss(miss) => {
            Err(Failure::new(Kind::NotFound, format!("the entry {key} counts as a miss: {miss}")))
        }
    }
}

fn no_entry(key: &EntryKey) -> Failure {
    Failure::new(
        Kind::NotFound,
        format!("there is no entry {key}; 'outfs ls' lists them (a key is given whole)"),
    )
}

/// The entry as it is, held while it is looked at.
fn held(cache: &Cache, key: &EntryKey) -> Result<Entry, Failure> {
    let entry = cache.entry(key, LeaseKind::Hold)?.ok_or_else(|| no_entry(key))?;
    cache.wait_shown(key);
    Ok(entry)
}
