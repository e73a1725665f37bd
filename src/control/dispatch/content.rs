//! Entries in and out: put, seal, import, restore, cat, logs.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use super::super::{
    Channel, DataWriter, Failure, ImportKind, Kind, LogStream, Progress, PutRequest, RawPath, Reply,
};
use super::watch::watched;
use super::{Caller, entries, held, hit, no_entry};
use crate::cache::{Cache, CacheError, Draft, Entry, LeaseKind, RestoreAs, SealRequest, Sealed};
use crate::model::units::counted;
use crate::model::{EntryKey, RecordKind};
use crate::store::DraftPlace;

pub(super) fn put(
    cache: &Cache,
    caller: &Caller,
    put: &PutRequest,
    channel: &mut dyn Channel,
) -> Result<Reply, Failure> {
    let source = put.dir.as_ref().map_or("-".into(), |d| d.0.to_string_lossy());
    let request = SealRequest {
        key: put.key.clone(),
        origin: caller.origin("put", &source),
        inferred: false,
        replace: false,
    };
    let logs = [put.stdout.as_ref().map(|p| p.0.as_path()), put.stderr.as_ref().map(|p| p.0.as_path())];
    let sealed = match &put.dir {
        Some(dir) => watched(channel, (&format!("storing {}", put.key), "file", "files"), |work| {
            cache.put_dir_watched(&dir.0, &put.facts, logs, request, work)
        })?,
        None => cache.put_tar(&mut channel.input(), &put.facts, logs, request)?,
    };
    stored(sealed)
}

pub(super) fn prefetch(
    cache: &Cache,
    key: &EntryKey,
    paths: &[RawPath],
    channel: &mut dyn Channel,
) -> Result<Reply, Failure> {
    let entry = cache.find(key, LeaseKind::Hold)?.ok_or_else(|| no_entry(key))?;
    let paths: Vec<Vec<u8>> = paths.iter().map(|p| p.as_bytes().to_vec()).collect();
    let came = watched(channel, (&format!("fetching {key}"), "content", "contents"), |work| {
        entry.prefetch(&paths, work)
    })?;
    Ok(Reply::Prefetched(came))
}

pub(super) fn stored(sealed: Sealed) -> Result<Reply, Failure> {
    let new = matches!(sealed, Sealed::New(_));
    Ok(Reply::Stored { entry: entries::facts(sealed.into_entry().row()?), new })
}

pub(super) fn seal(
    cache: &Cache,
    caller: &Caller,
    name: &[u8],
    key: Option<EntryKey>,
) -> Result<Reply, Failure> {
    let shown = String::from_utf8_lossy(name);
    let draft = find_draft(cache, name, key.is_some())
        .ok_or_else(|| CacheError::NoDraft(shown.clone().into_owned()))?;
    let place = draft.place();
    let own = place.key().cloned();
    let key = match (key, own) {
        (Some(asked), Some(own)) if asked != own => {
            return Err(Failure::new(
                Kind::Usage,
                format!("the draft {shown} is for the key {own}; it cannot be sealed as {asked}"),
            ));
        }
        (Some(key), _) | (None, Some(key)) => key,
        (None, None) => {
            return Err(Failure::new(
                Kind::Usage,
                format!("the draft {shown} has no key yet: 'outfs seal {shown} KEY'"),
            ));
        }
    };
    let request = SealRequest {
        key,
        origin: caller.origin("seal", &shown),
        inferred: false,
        replace: matches!(place, DraftPlace::Replace { .. }),
    };
    stored(cache.seal(&draft, request)?)
}

/// By work name, by key, or by id. A work draft has no key: without one it gives way to the draft for the key that has its name.
fn find_draft(cache: &Cache, name: &[u8], has_key: bool) -> Option<Arc<Draft>> {
    let by_key = || cache.draft_for(&EntryKey::from_digest(std::str::from_utf8(name).ok()?).ok()?);
    let by_work = || cache.work_draft(name);
    match has_key {
        true => by_work().or_else(by_key),
        false => by_key().or_else(by_work),
    }
    .or_else(|| cache.drafts().into_iter().find(|d| d.id().as_bytes() == name))
}

pub(super) fn restore(
    cache: &Cache,
    key: &EntryKey,
    dest: &Path,
    (how, force, dir_mode): (RestoreAs, bool, u32),
    channel: &mut dyn Channel,
) -> Result<Reply, Failure> {
    let entry = hit(cache, key)?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(dir_mode)
        .create(dest)
        .map_err(|e| Failure::failed(format!("cannot create {}: {e}", dest.display())))?;
    let restored = watched(channel, (&format!("restoring {key}"), "file", "files"), |work| {
        entry.restore_watched(dest, how, force, work)
    })?;
    Ok(Reply::Restored(restored))
}

pub(super) fn restore_tar(
    cache: &Cache,
    key: &EntryKey,
    channel: &mut dyn Channel,
) -> Result<Reply, Failure> {
    // Small writes become large frames.
    let mut out = std::io::BufWriter::with_capacity(1 << 18, DataWriter(channel));
    hit(cache, key)?.write_tar(&mut out)?;
    std::io::Write::flush(&mut out).map_err(unwritable)?;
    Ok(Reply::Done)
}

pub(super) fn cat(
    cache: &Cache,
    key: &EntryKey,
    path: &[u8],
    channel: &mut dyn Channel,
) -> Result<Reply, Failure> {
    let entry = held(cache, key)?;
    let shown = String::from_utf8_lossy(path).into_owned();
    let manifest = entry.manifest()?;
    let record = manifest.find(path).ok_or(CacheError::NoFile { key: key.clone(), path: shown.clone() })?;
    match manifest.get(record).map(|r| r.kind()) {
        Some(RecordKind::File) => {}
        Some(RecordKind::Symlink) => {
            let target = String::from_utf8_lossy(manifest.target(record)).into_owned();
            return Err(Failure::failed(format!("{shown} is a symlink to {target}; name the file itself")));
        }
        _ => {
            return Err(Failure::failed(format!(
                "{shown} is a directory; 'outfs ls {key} {shown}' lists it"
            )));
        }
    }
    stream(&entry, record, channel)?;
    cache.touch(&entry);
    Ok(Reply::Done)
}

pub(super) fn log(
    cache: &Cache,
    key: &EntryKey,
    which: LogStream,
    channel: &mut dyn Channel,
) -> Result<Reply, Failure> {
    let entry = held(cache, key)?;
    let manifest = entry.manifest()?;
    let file = |r: &u32| manifest.get(*r).is_some_and(|r| r.kind() == RecordKind::File);
    if let Some(record) = manifest.find(which.path().as_bytes()).filter(file) {
        stream(&entry, record, channel)?;
    }
    cache.touch(&entry);
    Ok(Reply::Done)
}

/// Streams what is in memory already.
pub(super) fn send(bytes: &[u8], channel: &mut dyn Channel) -> Result<(), Failure> {
    bytes.chunks(crate::model::groups::GROUP).try_for_each(|piece| channel.data(piece)).map_err(unwritable)
}

fn stream(entry: &Entry, record: u32, channel: &mut dyn Channel) -> Result<(), Failure> {
    let mut buffer = vec![0; crate::model::groups::GROUP];
    let mut offset = 0;
    loop {
        let n = entry.read(record, offset, &mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        channel.data(&buffer[..n]).map_err(unwritable)?;
        offset += n as u64;
    }
}

fn unwritable(e: std::io::Error) -> Failure {
    match e.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::new(Kind::Hangup, "the output was closed"),
        _ => Failure::failed(format!("cannot write the output: {e}")),
    }
}

pub(super) fn import(
    cache: &Cache,
    kind: ImportKind,
    source: &Path,
    channel: &mut dyn Channel,
) -> Result<Reply, Failure> {
    let mut done = 0;
    let mut each = |key: &EntryKey| {
        done += 1;
        channel.progress(Progress {
            what: format!("importing: {}, last {key}", counted(done, "entry", "entries")),
            done,
            total: None,
        });
    };
    let report = match kind {
        ImportKind::Cuenv => cache.import_cuenv(source, &mut each)?,
        ImportKind::Dir => cache.import_dir(source, &mut each)?,
    };
    Ok(Reply::Imported(report))
}
