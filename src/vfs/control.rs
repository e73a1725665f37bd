//! The `.outfs` directory: work, by-task, blobs, trash and the control files.
//!
//! Control files are snapshots: each look-up makes one, with its true size, so that a reader
//! never sees a file change under it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use super::nodes::Own;
use super::types::{Caller, DirItem, FOREVER, Found, Ino, Kind};
use super::{Result, VfsError, View, ino};
use crate::index::EntryRow;
use crate::model::BlobHash;

/// Entries listed of one task.
const TASK_ENTRIES: usize = 10_000;
/// Tasks listed per page.
const PAGE: usize = 512;
/// Events in `events.jsonl`: the newest ones; `outfs events` pages through all.
const EVENTS: u64 = 10_000;

/// Control files by name.
const FILES: [&str; 3] = ["stats.json", "metrics", "events.jsonl"];

/// Writes a task id as one path component: `%` and two digits for `/`, `%`, control characters,
/// bytes outside ASCII, and a leading dot.
fn percent_encode(task: &str) -> String {
    let mut out = String::new();
    for (i, b) in task.bytes().enumerate() {
        if b.is_ascii_graphic() && b != b'/' && b != b'%' && !(i == 0 && b == b'.') {
            out.push(b as char);
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

fn percent_decode(name: &OsStr) -> Option<String> {
    let bytes = name.as_bytes();
    let (mut out, mut i) = (Vec::new(), 0);
    while i < bytes.len() {
        if bytes[i] == b'%' {
            let hex = std::str::from_utf8(bytes.get(i + 1..i + 3)?).ok()?;
            out.push(u8::from_str_radix(hex, 16).ok()?);
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    let task = String::from_utf8(out).ok()?;
    // One spelling per task: others are not names.
    (percent_encode(&task).as_bytes() == bytes).then_some(task)
}

/// `<sealed_at>-<key8>`: sorts by time.
fn link_name(row: &EntryRow) -> String {
    let at = jiff::Timestamp::from_nanosecond(row.sealed_at_ns.into()).unwrap_or_default();
    format!("{}-{}", at.strftime("%Y%m%dT%H%M%S%.6fZ"), row.key.short())
}

/// The blob that a name in `blobs` means.
pub(super) fn blob_named(name: &OsStr) -> Option<BlobHash> {
    name.to_str()?.parse().ok()
}

fn item(name: &str, kind: Kind, next: u64) -> DirItem {
    DirItem { name: name.as_bytes().to_vec(), kind, ino: 0, next }
}

impl View {
    /// The directories and files of `.outfs` this view has.
    fn control_names(&self) -> Vec<(&'static str, Kind)> {
        let mut names = vec![("blobs", Kind::Dir)];
        if self.scope.is_none() {
            names.push(("by-task", Kind::Dir));
            names.extend(FILES.map(|f| (f, Kind::File)));
        }
        if !self.read_only() {
            names.push(("work", Kind::Dir));
            names.push(("trash", Kind::Dir));
        }
        names
    }

    pub(super) fn list_control(&self, offset: u64) -> Vec<DirItem> {
        let items = (1u64..).zip(self.control_names()).skip(offset as usize);
        items.map(|(n, (name, kind))| item(name, kind, n)).collect()
    }

    pub(super) fn lookup_control(&self, caller: Caller, dir: Ino, name: &OsStr) -> Result<Found> {
        match dir {
            ino::CONTROL => {
                let known = self.control_names().into_iter().find(|(n, _)| name == *n);
                match known.ok_or(VfsError::NotFound)?.0 {
                    "blobs" => self.own_found(ino::BLOBS),
                    "by-task" => self.own_found(ino::BY_TASK),
                    "trash" => self.own_found(ino::TRASH),
                    "work" => {
                        self.seal_publishing(caller);
                        self.own_found(ino::WORK)
                    }
                    "metrics" => self.found_snapshot(self.metrics()?.into_bytes()),
                    "events.jsonl" => self.found_snapshot(self.events()?),
                    _ => self.found_snapshot(self.stats_json()?),
                }
            }
            ino::WORK => {
                let Some(draft) = self.cache.work_draft(name.as_bytes()) else {
                    let published = self.publishing.top_as(caller.pid, name.as_bytes());
                    let (top, node) = published.ok_or(VfsError::NotFound)?;
                    // The entry may have been evicted already, and the kernel have forgotten it.
                    self.nodes.look_up_again(&node);
                    return Ok(top);
                };
                // A gesture takes the name away at any time.
                Ok(Found { name_ttl: Duration::ZERO, ..self.enter_top(&draft)? })
            }
            ino::BY_TASK => {
                let task = percent_decode(name).ok_or(VfsError::NotFound)?;
                if self.cache.index().by_task(&task, 1)?.is_empty() {
                    return Err(VfsError::NotFound);
                }
                let ino = self.nodes.look_up_own(Own::Task(task.into()));
                self.getattr(ino)
            }
            ino::BLOBS => self.lookup_blob(name),
            _ => Err(VfsError::NotFound),
        }
    }

    fn lookup_blob(&self, name: &OsStr) -> Result<Found> {
        let hash = blob_named(name).ok_or(VfsError::NotFound)?;
        if let Some(scope) = &self.scope {
            let mut has = false;
            for entry in scope.values().flatten() {
                has = has || entry.manifest()?.records().iter().any(|r| r.hash() == Some(hash));
            }
            if !has {
                return Err(VfsError::NotFound);
            }
        }
        let held = self.cache.hold_blob(&hash)?.ok_or(VfsError::NotFound)?;
        let ino = self.nodes.look_up_blob(hash, held);
        // The name cannot mean anything else, but the blob may be evicted.
        Ok(Found { attr_ttl: FOREVER, ..self.getattr(ino)? })
    }

    pub(super) fn list_tasks(&self, offset: u64) -> Result<Vec<DirItem>> {
        // Task ids have no numbers, so a position is how many come before it; the page that was read last
        // says where to go on without counting from the start.
        let (mut n, mut after) = self.task_page.lock().clone();
        if n > offset {
            (n, after) = (0, String::new());
        }
        loop {
            let tasks = self.cache.index().tasks_after(&after, PAGE)?;
            let Some(last) = tasks.last().cloned() else { return Ok(Vec::new()) };
            let count = tasks.len() as u64;
            if n + count > offset {
                let items = (n + 1..).zip(&tasks).skip((offset - n) as usize);
                let names = items.map(|(n, t)| (n, percent_encode(t)));
                // What is no name cannot be looked up, and would fail the whole listing.
                let shown = names.filter(|(_, t)| (1..=255).contains(&t.len()));
                let page: Vec<_> = shown.map(|(n, t)| item(&t, Kind::Dir, n)).collect();
                if !page.is_empty() {
                    *self.task_page.lock() = (n, after);
                    return Ok(page);
                }
            }
            n += count;
            after = last;
        }
    }

    pub(super) fn list_task(&self, task: &str, offset: u64) -> Result<Vec<DirItem>> {
        let rows = self.cache.index().by_task(task, TASK_ENTRIES)?;
        let latest = (!rows.is_empty()).then(|| "latest".to_owned());
        let names = latest.into_iter().chain(rows.iter().map(link_name));
        Ok((1u64..).zip(names).skip(offset as usize).map(|(n, name)| item(&name, Kind::Symlink, n)).collect())
    }

    pub(super) fn lookup_task_link(&self, task: &str, name: &OsStr) -> Result<Found> {
        let limit = if name == "latest" { 1 } else { TASK_ENTRIES };
        let rows = self.cache.index().by_task(task, limit)?;
        let row = rows.iter().find(|r| name == "latest" || name == link_name(r).as_str());
        self.found_link(&format!("../../../{}", row.ok_or(VfsError::NotFound)?.key))
    }

    fn stats_json(&self) -> Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(&self.cache.stats()?).unwrap_or_default();
        json.push(b'\n');
        Ok(json)
    }

    /// The same figures in the Prometheus text format.
    fn metrics(&self) -> Result<String> {
        let stats = serde_json::to_value(self.cache.stats()?).unwrap_or_default();
        let mut out = String::new();
        flatten("outfs", &stats, &mut out);
        Ok(out)
    }

    fn events(&self) -> Result<Vec<u8>> {
        let store = self.cache.store();
        let newest = store.read_events(u64::MAX, 1)?.newest;
        let page = store.read_events(newest.saturating_sub(EVENTS), EVENTS as usize)?;
        let mut out = Vec::new();
        for event in page.events {
            if serde_json::to_writer(&mut out, &event).is_ok() {
                out.push(b'\n');
            }
        }
        Ok(out)
    }
}

fn flatten(name: &str, value: &serde_json::Value, out: &mut String) {
    match value {
        serde_json::Value::Number(n) => out.push_str(&format!("# TYPE {name} gauge\n{name} {n}\n")),
        serde_json::Value::Bool(b) => {
            out.push_str(&format!("# TYPE {name} gauge\n{name} {}\n", u8::from(*b)))
        }
        serde_json::Value::Object(map) => {
            map.iter().for_each(|(k, v)| flatten(&format!("{name}_{k}"), v, out))
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, Limits};
    use crate::index::NewEntry;
    use crate::model::ManifestHash;
    use crate::vfs::ViewOptions;

    #[test]
    fn task_names_are_one_component_and_come_back() {
        for task in ["build", "a/b:c", "..", ".hidden", "50%", "sp ace", "ümlaut", "a\nb"] {
            let name = percent_encode(task);
            assert!(!name.contains('/') && name != ".." && !name.starts_with('.'), "{name}");
            assert_eq!(percent_decode(OsStr::new(&name)).as_deref(), Some(task));
        }
        assert_eq!(percent_decode(OsStr::new("%zz")), None);
        assert_eq!(percent_decode(OsStr::new("%61")), None, "another spelling of a");
    }

    #[test]
    fn tasks_are_listed_from_any_position() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("store"), Limits::default()).unwrap();
        let rows = (0..1500u32).map(|n| {
            let manifest = ManifestHash::of(&n.to_le_bytes());
            let row = EntryRow {
                id: 0,
                key: format!("key-{n}").parse().unwrap(),
                manifest,
                task_id: format!("task-{n:04}"),
                sealed_at_ns: 1,
                accessed_at_ns: 1,
                logical_bytes: 0,
                files: 0,
                inferred: false,
                readable: true,
                metadata_bytes: 0,
                top: None,
                in_tier: Default::default(),
            };
            NewEntry { row, blobs: Vec::new(), packs: Vec::new(), replaces: None, healed: Vec::new() }
        });
        cache.index().commit_all(rows.collect()).unwrap();
        let view = View::new(cache, ViewOptions::default()).unwrap();
        let from = |offset| view.readdir(ino::BY_TASK, offset).unwrap();
        let mut all: Vec<DirItem> = Vec::new();
        loop {
            let page = from(all.last().map_or(0, |i| i.next));
            if page.is_empty() {
                break;
            }
            // As a kernel whose buffer is full before the page is at its end.
            all.extend(page.into_iter().take(300));
        }
        let names = (0..1500).map(|n| format!("task-{n:04}").into_bytes());
        assert!(all.iter().map(|i| i.name.clone()).eq(names));
        for offset in [1400, 700, 0, 1499, 512] {
            assert_eq!(from(offset)[0], all[offset as usize], "seekdir");
        }
    }

    #[test]
    fn metrics_are_flat() {
        let mut out = String::new();
        flatten("outfs", &serde_json::json!({"a": {"b": 1, "s": "x"}, "c": true}), &mut out);
        assert_eq!(out, "# TYPE outfs_a_b gauge\noutfs_a_b 1\n# TYPE outfs_c gauge\noutfs_c 1\n");
    }
}
