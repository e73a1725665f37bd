//! What becomes of entries: pins, rejections, eviction, collection, checks.

use std::time::Duration;

use super::super::{Channel, Failure, PinFacts, Reply};
use super::entries::time;
use super::no_entry;
use crate::cache::Cache;
use crate::model::EntryKey;
use crate::store::Pin;

fn pin_facts(pins: Vec<Pin>) -> Reply {
    let facts = |p: Pin| PinFacts { name: p.name, key: p.key, since: time(p.at_ns) };
    Reply::Pins { pins: pins.into_iter().map(facts).collect() }
}

pub(super) fn pins(cache: &Cache) -> Result<Reply, Failure> {
    Ok(pin_facts(cache.store().pins()?))
}

pub(super) fn pin(_cache: &Cache, _name: &str, _key: &EntryKey) -> Result<Reply, Failure> {
    Err(Failure::failed("pinning is not there yet"))
}

pub(super) fn unpin(_cache: &Cache, _name: Option<&str>, _key: Option<&EntryKey>) -> Result<Reply, Failure> {
    Err(Failure::failed("pinning is not there yet"))
}

pub(super) fn reject(_cache: &Cache, _key: &EntryKey, _reason: Option<&str>) -> Result<Reply, Failure> {
    Err(Failure::failed("rejecting is not there yet"))
}

pub(super) fn evict(cache: &Cache, key: &EntryKey) -> Result<Reply, Failure> {
    match cache.evict(key, "request")? {
        true => Ok(Reply::Done),
        false => Err(no_entry(key)),
    }
}

pub(super) fn gc(_cache: &Cache, _dry_run: bool, _older_than: Option<Duration>) -> Result<Reply, Failure> {
    Err(Failure::failed("collecting is not there yet"))
}

pub(super) fn fsck(
    _cache: &Cache,
    _verify_data: bool,
    _repair: bool,
    _rebuild_index: bool,
    _channel: &mut dyn Channel,
) -> Result<Reply, Failure> {
    Err(Failure::failed("checking is not there yet"))
}
