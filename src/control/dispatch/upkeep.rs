//! What becomes of entries: pins, rejections, eviction, collection, checks.

use std::time::Duration;

use parking_lot::Mutex;

use super::super::{Channel, Failure, GcFacts, Kind, PinFacts, Progress, Reply};
use super::entries::time;
use super::no_entry;
use super::watch::{beside, watched};
use crate::cache::{Cache, FsckOptions, FsckProgress, GcOptions};
use crate::model::EntryKey;
use crate::store::Pin;

fn pin_facts(pins: Vec<Pin>) -> Reply {
    let facts = |p: Pin| PinFacts { name: p.name, key: p.key, since: time(p.at_ns) };
    Reply::Pins { pins: pins.into_iter().map(facts).collect() }
}

pub(super) fn pins(cache: &Cache) -> Result<Reply, Failure> {
    Ok(pin_facts(cache.store().pins()?))
}

pub(super) fn pin(cache: &Cache, name: &str, key: &EntryKey) -> Result<Reply, Failure> {
    cache.pin(name, key)?;
    Ok(Reply::Done)
}

/// Lifts what matches, and says what that was.
pub(super) fn unpin(cache: &Cache, name: Option<&str>, key: Option<&EntryKey>) -> Result<Reply, Failure> {
    let matches = |p: &Pin| name.is_none_or(|n| n == p.name) && key.is_none_or(|k| *k == p.key);
    let mut lifted: Vec<Pin> = cache.store().pins()?.into_iter().filter(matches).collect();
    if lifted.is_empty() {
        return Err(Failure::new(Kind::NotFound, "there is no such pin; 'outfs pin' lists them"));
    }
    for pin in &lifted {
        cache.unpin(&pin.name, &pin.key)?;
    }
    lifted.sort_by(|a, b| (&a.name, &a.key).cmp(&(&b.name, &b.key)));
    Ok(pin_facts(lifted))
}

pub(super) fn reject(cache: &Cache, key: &EntryKey, reason: Option<&str>) -> Result<Reply, Failure> {
    match reason {
        Some(reason) => cache.reject(key, reason)?,
        None if cache.lift(key)? => {}
        None => return Err(Failure::new(Kind::NotFound, format!("the key {key} is not rejected"))),
    }
    Ok(Reply::Done)
}

pub(super) fn evict(cache: &Cache, key: &EntryKey) -> Result<Reply, Failure> {
    match cache.evict(key, "request")? {
        true => {
            cache.wait_until_hidden();
            Ok(Reply::Done)
        }
        false => Err(no_entry(key)),
    }
}

pub(super) fn gc(
    cache: &Cache,
    dry_run: bool,
    older_than: Option<Duration>,
    channel: &mut dyn Channel,
) -> Result<Reply, Failure> {
    let options = GcOptions { dry_run, older_than };
    let report =
        watched(channel, ("collecting", "entry", "entries"), |work| cache.gc_watched(&options, work))?;
    Ok(Reply::Gc(GcFacts { report, dry_run }))
}

pub(super) fn fsck(cache: &Cache, options: FsckOptions, channel: &mut dyn Channel) -> Result<Reply, Failure> {
    let last = Mutex::new(None::<FsckProgress>);
    let tell = || {
        let p = last.lock().take()?;
        let total = (p.total > 0).then_some(p.total);
        let of = total.map(|t| format!(" of {t}")).unwrap_or_default();
        Some(Progress { what: format!("checking {}: {}{of}", p.stage, p.done), done: p.done, total })
    };
    let report = beside(channel, &tell, || cache.fsck(options, &mut |p| *last.lock() = Some(p)))?;
    Ok(Reply::Fsck(report))
}
