//! What there is: entries, trees, drafts, sizes, numbers, events.

use jiff::Timestamp;

use super::super::{
    DraftFacts, EntryFacts, EventsFacts, Failure, LimitFlags, NodeFacts, RawPath, Reply, ShowFacts,
    StatsFacts,
};
use super::held;
use crate::cache::{Cache, CacheError, Draft, EventsError};
use crate::index::EntryRow;
use crate::model::{Cursor, EntryKey, Manifest, RecordKind};
use crate::store::DraftPlace;

/// Most rows in one page, whatever a client asks for.
const MAX_PAGE: usize = 10_000;

pub(super) fn time(ns: i64) -> Timestamp {
    Timestamp::from_nanosecond(ns.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

pub(super) fn facts(row: &EntryRow) -> EntryFacts {
    EntryFacts {
        key: row.key.clone(),
        manifest: row.manifest,
        task_id: row.task_id.clone(),
        sealed_at: time(row.sealed_at_ns),
        accessed_at: time(row.accessed_at_ns),
        bytes: row.logical_bytes,
        files: row.files,
        inferred: row.inferred,
        readable: row.readable,
        residency: None,
    }
}

/// The same, with how much of it is here.
fn facts_here(cache: &Cache, row: &EntryRow) -> EntryFacts {
    EntryFacts { residency: cache.residency(row).ok(), ..facts(row) }
}

pub(super) fn page(cache: &Cache, after: i64, limit: usize) -> Result<Reply, Failure> {
    let limit = limit.clamp(1, MAX_PAGE);
    let rows = cache.index().entries_after(after, limit)?;
    let next = (rows.len() == limit).then(|| rows.last().map(|r| r.id)).flatten();
    Ok(Reply::Entries { entries: rows.iter().map(|row| facts_here(cache, row)).collect(), next })
}

pub(super) fn tree(cache: &Cache, key: &EntryKey, path: &[u8]) -> Result<Reply, Failure> {
    let entry = held(cache, key)?;
    let manifest = &*entry.manifest()?;
    let at = manifest
        .find(path)
        .ok_or_else(|| CacheError::NoFile { key: key.clone(), path: String::from_utf8_lossy(path).into() })?;
    let mut prefix: Vec<u8> =
        path.split(|&b| b == b'/').filter(|c| !c.is_empty()).collect::<Vec<_>>().join(&b'/');
    let is_dir = manifest.get(at).is_some_and(|r| r.kind() == RecordKind::Dir);
    if !is_dir {
        return Ok(Reply::Tree { nodes: node(manifest, at, &prefix).into_iter().collect() });
    }
    if !prefix.is_empty() {
        prefix.push(b'/');
    }
    let child = |i: u32| node(manifest, i, &[&prefix, manifest.name(i)].concat());
    Ok(Reply::Tree { nodes: manifest.children(at).filter_map(child).collect() })
}

fn node(manifest: &Manifest, index: u32, path: &[u8]) -> Option<NodeFacts> {
    let record = manifest.get(index)?;
    let (uid, gid) = manifest.owner(record);
    let kind = record.kind();
    Some(NodeFacts {
        path: RawPath::from_bytes(path),
        kind: match kind {
            RecordKind::File => "file",
            RecordKind::Dir => "dir",
            RecordKind::Symlink => "symlink",
        }
        .into(),
        mode: format!("{:04o}", record.perm()),
        uid,
        gid,
        size: record.size(),
        mtime: time(record.mtime_ns()),
        blake3: record.blake3().map(|h| h.to_hex()),
        target: (kind == RecordKind::Symlink).then(|| RawPath::from_bytes(manifest.target(index))),
    })
}

pub(super) fn show(cache: &Cache, key: &EntryKey) -> Result<Reply, Failure> {
    let entry = held(cache, key)?;
    let manifest = entry.manifest()?;
    let seal = manifest.seal();
    let pins = cache.store().pins()?.into_iter().filter(|p| p.key == *key).map(|p| p.name).collect();
    let rejected = cache.rejection(key, Some(&entry.row()?.manifest)).map(|r| r.reason);
    let (metadata, metadata_error) = match entry.metadata()? {
        Ok(metadata) => (Some(metadata), None),
        Err(why) => (None, Some(why)),
    };
    Ok(Reply::Show(Box::new(ShowFacts {
        entry: facts(entry.row()?),
        origin: seal.origin.clone(),
        replaces: seal.replaces,
        pins,
        rejected,
        metadata,
        metadata_error,
    })))
}

pub(super) fn du(cache: &Cache, keys: &[EntryKey], after: Option<i64>) -> Result<Reply, Failure> {
    let mut entries = Vec::new();
    if !keys.is_empty() {
        for key in keys {
            entries.push(cache.du(key)?);
        }
        return Ok(Reply::Du { entries, next: None });
    }
    let mut at = after.unwrap_or(0);
    loop {
        let page = cache.index().keys_after(at, MAX_PAGE)?;
        let Some((last, _)) = page.last() else { return Ok(Reply::Du { entries, next: None }) };
        at = *last;
        for (_, key) in page {
            match cache.du(&key) {
                Ok(du) => entries.push(du),
                // It was evicted meanwhile, or its manifest is damaged: fsck's business.
                Err(e) => tracing::warn!("left out: {e}"),
            }
        }
        if after.is_some() {
            return Ok(Reply::Du { entries, next: Some(at) });
        }
    }
}

pub(super) fn drafts(cache: &Cache) -> Reply {
    Reply::Drafts { drafts: cache.drafts().iter().map(|d| draft_facts(cache, d)).collect() }
}

pub(super) fn draft_facts(cache: &Cache, draft: &Draft) -> DraftFacts {
    let key_name = |key: EntryKey| RawPath::from_bytes(key.as_str().as_bytes());
    let (kind, name) = match draft.place() {
        DraftPlace::InPlace { key } => ("in-place", key_name(key)),
        DraftPlace::Work { name } => ("work", RawPath::from_bytes(&name)),
        DraftPlace::Replace { key } => ("replace", key_name(key)),
        DraftPlace::Native { label } => ("native", RawPath::from_bytes(label.as_bytes())),
    };
    DraftFacts {
        id: draft.id().to_owned(),
        kind: kind.into(),
        name,
        path: cache.store().draft_path(draft.id()).into(),
        writers: draft.writers(),
        changed_at: time(draft.changed_at_ns()),
    }
}

pub(super) fn stats(cache: &Cache) -> Result<Reply, Failure> {
    let stats = cache.stats()?;
    Ok(Reply::Stats(Box::new(StatsFacts {
        store: cache.store().root().into(),
        id: stats.store_id,
        pid: None,
        daemon: None,
        version: stats.version,
        usage: stats.usage,
        totals: stats.totals,
        drafts: cache.drafts().len() as u64,
        pins: stats.pins,
        evicted: stats.evicted,
        compacted: stats.compacted,
        rounds: stats.rounds,
        keys_in_memory: stats.keys_in_memory,
        blob_bytes_read: stats.blob_bytes_read,
        known: stats.known,
        scrub: stats.scrub,
        tiers: stats.tiers,
        scans: stats.scans,
        limits: LimitFlags::of(&cache.limits()),
    })))
}

pub(super) fn events(cache: &Cache, since: Option<&str>, limit: usize) -> Result<Reply, Failure> {
    let since: Option<Cursor> = since.map(str::parse).transpose().map_err(EventsError::Cursor)?;
    let page = cache.events(since.as_ref(), limit)?;
    Ok(Reply::Events(EventsFacts {
        events: page.events,
        cursor: page.cursor.to_string(),
        more: page.more,
        gap: page.gap,
    }))
}
