//! What runs ask: is there a result, what was before it, have it stand here, keep this one.

use std::fmt;
use std::path::PathBuf;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::super::{Channel, Failure, PutRequest, RawPath, Reply, RunBase, RunPut};
use super::entries::draft_facts;
use super::watch::watched;
use super::{Caller, content, held, hit};
use crate::cache::{
    Cache, CacheError, Entry, LeaseKind, Lookup, Miss, Placement, Process, RestoreAs, SealRequest, Sealed,
};
use crate::model::session::SessionId;
use crate::model::{EntryKey, EventKind, RecordKind, Summary};
use crate::run::{Found, Held, Kept, MEMBER, Node, Note, Placed, Times, sorted_nodes_hash, text};

/// At most so many earlier results are looked at.
const MOST_EARLIER: usize = 64;

/// In which order a run's logs were written, as its metadata says; empty where that says something else in its place: it is no reason
/// not to have the result. What is beside it may be long and is passed over.
#[derive(Debug, Default, PartialEq)]
struct Order(String);

impl<'de> Deserialize<'de> for Order {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Order, D::Error> {
        deserializer.deserialize_any(OrderVisitor)
    }
}

struct OrderVisitor;

impl<'de> Visitor<'de> for OrderVisitor {
    type Value = Order;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what a run knows")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Order, A::Error> {
        let mut order = Order::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "order" {
                order.0 = map.next_value::<serde_json::Value>()?.as_str().unwrap_or_default().to_owned();
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(order)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Order, A::Error> {
        IgnoredAny.visit_seq(seq).map(|_| Order::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Order, E> {
        Ok(Order::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Order, E> {
        Ok(Order::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Order, E> {
        Ok(Order::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Order, E> {
        Ok(Order::default())
    }

    fn visit_str<E>(self, _: &str) -> Result<Order, E> {
        Ok(Order::default())
    }
}

fn paths(raw: &[RawPath]) -> Vec<PathBuf> {
    raw.iter().map(|p| p.0.clone()).collect()
}

pub(super) fn find(cache: &Cache, key: &EntryKey, outputs: &[RawPath], fate: bool) -> Result<Reply, Failure> {
    let found = match cache.lookup_as::<Summary<Order>>(key) {
        Ok(Lookup::Hit { entry, metadata }) => match sorted_nodes(&entry) {
            Ok(nodes) => {
                let at = |o: &RawPath| nodes.binary_search_by(|(path, ..)| path.as_str().cmp(&text(&o.0)));
                let there = |o: &&RawPath| at(o).is_ok();
                Found::Entry(Box::new(Held {
                    manifest: entry.manifest_hash()?,
                    outputs_hash: hash(&nodes),
                    task_id: metadata.task_id.clone(),
                    made_at: metadata.created_at,
                    duration_ms: metadata.duration_ms,
                    exit_code: metadata.exit_code,
                    inferred: entry.row()?.inferred,
                    missing: outputs.iter().find(|o| !there(o)).map(|o| text(&o.0)),
                    order: metadata.outfs.unwrap_or_default().0,
                }))
            }
            Err(e) => unreadable(e)?,
        },
        Ok(Lookup::Miss(Miss::NoEntry)) if fate => nothing(cache, key)?,
        Ok(Lookup::Miss(Miss::NoEntry)) => Found::UNKNOWN,
        Ok(Lookup::Miss(Miss::Rejected(reason))) => Found::Rejected { reason },
        Ok(Lookup::Miss(miss @ Miss::BadMetadata(_))) => Found::Unreadable { why: miss.to_string() },
        Err(e) => unreadable(e)?,
    };
    Ok(Reply::Found(found))
}

/// Damage is an answer; a store that fails is not.
fn unreadable(e: CacheError) -> Result<Found, Failure> {
    use crate::store::StoreError;
    match &e {
        CacheError::Store(StoreError::Missing { .. } | StoreError::Corrupt { .. }) => {
            Ok(Found::Unreadable { why: e.to_string() })
        }
        _ => Err(e.into()),
    }
}

/// What became of a key that has no entry: the last word of the event log.
fn nothing(cache: &Cache, key: &EntryKey) -> Result<Found, Failure> {
    let last = cache.store().last_event(key, &|kind| {
        use EventKind::{Evicted, Failed, Repaired, Sealed};
        matches!(kind, Evicted { .. } | Failed { .. } | Repaired { .. } | Sealed { .. })
    })?;
    Ok(match last.map(|e| (e.at, e.kind)) {
        Some((at, EventKind::Evicted { .. })) => Found::Nothing { evicted: Some(at), failed: None },
        Some((_, EventKind::Failed { status, .. })) => Found::Nothing { evicted: None, failed: Some(status) },
        Some((_, EventKind::Repaired { what })) => Found::Unreadable { why: what },
        _ => Found::UNKNOWN,
    })
}

/// Path, kind and content of what is in an entry's `outputs/`.
type Listed = (String, &'static str, String);

/// All of them, in the order of their paths.
fn sorted_nodes(entry: &Entry) -> Result<Vec<Listed>, CacheError> {
    let manifest = entry.manifest()?;
    let mut nodes = Vec::with_capacity(manifest.records().len());
    for (index, path) in (0u32..).zip(manifest.paths()) {
        let (Some(path), Some(record)) = (path.strip_prefix(b"outputs/"), manifest.get(index)) else {
            continue;
        };
        let (kind, content) = match record.kind() {
            RecordKind::Dir => ("dir", String::new()),
            RecordKind::Symlink => ("symlink", name_text(manifest.target(index))),
            RecordKind::File => (
                if record.perm() & 0o111 != 0 { "program" } else { "file" },
                record.hash().map(|h| h.to_hex()).unwrap_or_default(),
            ),
        };
        nodes.push((name_text(path), kind, content));
    }
    nodes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(nodes)
}

fn hash(nodes: &[Listed]) -> String {
    sorted_nodes_hash(nodes.iter().map(|(path, kind, content)| [&path[..], kind, content]))
}

fn name_text(bytes: &[u8]) -> String {
    use std::os::unix::ffi::OsStrExt;
    text(std::ffi::OsStr::from_bytes(bytes))
}

pub(super) fn nodes(cache: &Cache, key: &EntryKey) -> Result<Reply, Failure> {
    let nodes = sorted_nodes(&held(cache, key)?)?.into_iter();
    let nodes = nodes.map(|(path, kind, content)| (path, Node { kind: kind.into(), content })).collect();
    Ok(Reply::Nodes { nodes })
}

/// The metadata of one of a task's results, as it is: whoever asks knows what is in it.
pub(super) fn history(
    cache: &Cache,
    task: &str,
    from: usize,
    channel: &mut dyn Channel,
) -> Result<Reply, Failure> {
    let rows = cache.index().by_task(task, MOST_EARLIER)?;
    for (at, row) in rows.into_iter().enumerate().skip(from) {
        let Some(entry) = cache.entry(&row.key, LeaseKind::Hold)? else { continue };
        // A damaged one is no history.
        let Ok(Ok(metadata)) = entry.metadata_bytes() else { continue };
        content::send(&metadata, channel)?;
        return Ok(Reply::History { key: Some(row.key), next: at + 1 });
    }
    Ok(Reply::History { key: None, next: MOST_EARLIER })
}

pub(super) fn newest(cache: &Cache, task: &str) -> Result<Reply, Failure> {
    for row in cache.index().by_task(task, MOST_EARLIER)? {
        if let Ok(Lookup::Hit { entry, .. }) = cache.lookup_as::<Summary>(&row.key) {
            return Ok(Reply::Newest {
                key: Some(row.key),
                outputs_hash: Some(hash(&sorted_nodes(&entry)?)),
            });
        }
    }
    Ok(Reply::Newest { key: None, outputs_hash: None })
}

pub(super) fn place(
    cache: &Cache,
    key: &EntryKey,
    (cwd, outputs): (&RawPath, &[RawPath]),
    (how, times): (RestoreAs, Times),
    channel: &mut dyn Channel,
) -> Result<Reply, Failure> {
    let entry = hit(cache, key)?;
    let newest = (times == Times::Now).then(crate::cache::now_ns);
    let placed = watched(channel, (&format!("restoring {key}"), "file", "files"), |work| {
        entry.place(&cwd.0, &paths(outputs), how, newest, work)
    })?;
    Ok(Reply::Placed(match placed {
        Placement::Done(restored) => Placed::Done { manifest: Some(entry.manifest_hash()?), restored },
        Placement::Lost { path, why } => Placed::Lost { path: text(path), why },
        Placement::NoReflinks { why } => Placed::NoReflinks { why },
        Placement::InTheWay { path } => Placed::InTheWay { path: text(path) },
    }))
}

/// A directory for a run's command to write in.
pub(super) fn draft(cache: &Cache, process: &Process, task: &str) -> Result<Reply, Failure> {
    let draft = cache.create_run_draft(process, task)?;
    Ok(Reply::Draft(draft_facts(cache, &draft)))
}

/// What is there no more is dropped already.
pub(super) fn drop_draft(cache: &Cache, id: &str) -> Result<Reply, Failure> {
    if let Some(draft) = cache.drafts().into_iter().find(|d| d.id() == id && d.is_of_a_run()) {
        cache.drop_draft(&draft, "its run has ended")?;
    }
    Ok(Reply::Done)
}

/// Stores some outputs of a directory, with what the run knows in the metadata.
pub(super) fn keep(
    cache: &Cache,
    caller: &Caller,
    put: &PutRequest,
    run: &RunPut,
    channel: &mut dyn Channel,
) -> Result<Reply, Failure> {
    let dir = put.dir.as_ref().ok_or_else(|| Failure::failed("a run's outputs are in a directory"))?;
    run.session.as_ref().map_or(Ok(()), |id| alive(cache, id))?;
    let request = SealRequest {
        key: put.key.clone(),
        origin: caller.origin("run", &dir.0.to_string_lossy()),
        inferred: false,
        replace: run.replace,
    };
    // It is known where it is remembered, and this may be another process than found it out.
    if run.lost
        && let Some(entry) = cache.entry(&put.key, LeaseKind::Hold)?
    {
        entry.read_through();
    }
    let logs = [put.stdout.as_ref().map(|p| p.0.as_path()), put.stderr.as_ref().map(|p| p.0.as_path())];
    let outputs = paths(&run.outputs);
    // Without it everything is read.
    let base = match &run.base {
        Some(base) => started_from(cache, base)?.map(|entry| (entry, paths(&base.changed))),
        None => None,
    };
    let base = base.as_ref().map(|(entry, changed)| (entry.clone(), &changed[..]));
    let sealed = watched(channel, (&format!("storing {}", put.key), "file", "files"), |work| {
        cache.put_outputs((&dir.0, &outputs), (&put.facts, (MEMBER, &run.member)), logs, base, request, work)
    })?;
    // It may have ended while this was written.
    if let Some(Err(ended)) = run.session.as_ref().map(|id| alive(cache, id)) {
        cache.evict(&put.key, "session")?;
        return Err(ended);
    }
    let new = matches!(sealed, Sealed::New(_));
    let entry = sealed.into_entry();
    let (manifest, outputs_hash) = (entry.manifest_hash()?, hash(&sorted_nodes(&entry)?));
    Ok(Reply::Kept(Kept { new, manifest, outputs_hash }))
}

/// The entry that a result was made from, unless another one has its key now.
fn started_from(cache: &Cache, base: &RunBase) -> Result<Option<Entry>, Failure> {
    let Some(entry) = cache.entry(&base.key, LeaseKind::Hold)? else { return Ok(None) };
    let same = base.outputs_hash.as_deref() == Some(&hash(&sorted_nodes(&entry)?));
    Ok(same.then_some(entry))
}

fn alive(cache: &Cache, id: &SessionId) -> Result<(), Failure> {
    match cache.has_session(id)? {
        true => Ok(()),
        false => Err(Failure::failed(format!("the session {id} has ended"))),
    }
}

pub(super) fn note(cache: &Cache, key: &EntryKey, task: String, note: Note) -> Result<Reply, Failure> {
    let kind = match note {
        Note::Hit { saved_ms } => EventKind::Hit { task, saved_ms },
        Note::Miss { reasons } => EventKind::Miss { task, reasons },
        Note::Failed { status } => EventKind::Failed { task, status },
    };
    cache.store().append_event(kind, Some(key), false)?;
    Ok(Reply::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_order_is_none() {
        let order = |outfs: &str| {
            let metadata = format!(
                r#"{{"task_id":"t","digest":"d","command":[],"created_at":"2026-01-02T03:04:05Z",
                "duration_ms":1,"exit_code":0{outfs}}}"#
            );
            let summary: Summary<Order> =
                serde_json::from_str(&metadata).unwrap_or_else(|e| panic!("{outfs}: {e}"));
            summary.outfs.unwrap_or_default().0
        };
        assert_eq!(order(r#", "outfs": {"a": [{"order": "b"}], "order": "o1", "z": null}"#), "o1");
        for order_is in ["null", "true", "1", "-1", "1.5", "[\"o1\"]", "{\"order\": \"o1\"}"] {
            assert_eq!(order(&format!(r#", "outfs": {{"order": {order_is}}}"#)), "", "{order_is}");
        }
        for outfs in ["null", "true", "1", "-1", "1.5", "\"o1\"", "[\"o1\", {}]", "{}"] {
            assert_eq!(order(&format!(r#", "outfs": {outfs}"#)), "", "{outfs}");
        }
        assert_eq!(order(""), "");
    }
}
