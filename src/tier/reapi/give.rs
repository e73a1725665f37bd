//! The result of an action made of an entry, in the words that the API has.
//!
//! Invariants: the same entry makes the same result; what the API has no words for (owners, attributes, hard links) is left out, and an entry
//! whose names it cannot say, or that has more than outputs, logs and metadata, is refused before anything is sent. The action is
//! the one that the key names, or one that is made of the key alone, so that whoever knows the key finds the result. Must not
//! know: how things are sent.

use std::collections::BTreeSet;

use bazel_remote_apis::build::bazel::remote::execution::v2 as re;
use bazel_remote_apis::google::protobuf::{Any, Timestamp, UInt32Value};
use prost::Message;

use super::digest::{Function, Name};
use crate::model::manifest::Record;
use crate::model::{EntryKey, Manifest, Metadata, RecordKind};
use crate::tier::Places;

/// What stands for an entry's `metadata.json`, which goes along with the result.
pub(super) const METADATA: &str = "outfs/metadata.json";
/// A result is one message: servers take 4 MiB. One that were larger has its directories as trees.
const MOST_FLAT: usize = 2 << 20;
const NS: i64 = 1_000_000_000;

/// A result, and the contents that are made for it.
pub(super) struct Given {
    pub action: Name,
    pub result: re::ActionResult,
    pub made: Vec<(Name, Vec<u8>)>,
}

/// The action of a key: the one that it names, or one of outfs's own, with the contents that describe it.
pub(super) fn action(key: &EntryKey, function: Function) -> (Name, Vec<(Name, Vec<u8>)>) {
    if let Some(name) = Name::of_action(key) {
        return (name, Vec::new());
    }
    let arguments = vec!["outfs".to_owned(), key.as_str().to_owned()];
    let command = re::Command { arguments, ..Default::default() }.encode_to_vec();
    let inputs = re::Directory::default().encode_to_vec();
    let action = re::Action {
        command_digest: Some(function.name(&command).message()),
        input_root_digest: Some(function.name(&inputs).message()),
        ..Default::default()
    };
    let made = [inputs, command, action.encode_to_vec()].map(|bytes| (function.name(&bytes), bytes));
    (made[2].0, made.to_vec())
}

/// Why the API has no words for an entry.
pub(super) fn unsuitable(manifest: &Manifest) -> Option<String> {
    let top = |n: u32| !matches!(manifest.name(n), b"outputs" | b"logs" | b"metadata.json");
    if let Some(other) = manifest.children(0).find(|n| top(*n)) {
        return Some(format!("it has {}, beside outputs, logs and metadata", shown(manifest.name(other))));
    }
    let logs = manifest.find(b"logs").map_or(0..0, |logs| manifest.children(logs));
    let log = |n: u32| matches!(manifest.name(n), b"stdout.log" | b"stderr.log");
    if let Some(other) = logs.clone().find(|n| !log(*n)) {
        return Some(format!("it has {} among its logs", shown(manifest.name(other))));
    }
    let records = manifest.records();
    let text = |n: &u32| {
        std::str::from_utf8(manifest.name(*n)).is_ok() && std::str::from_utf8(manifest.target(*n)).is_ok()
    };
    let wrong = (0..records.len() as u32).find(|n| !text(n))?;
    Some(format!("{} is no text", shown(&manifest.path(wrong))))
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// The result of an entry that is suitable.
pub(super) fn result(
    manifest: &Manifest,
    metadata: Option<&[u8]>,
    places: &Places,
    function: Function,
) -> Given {
    let mut giving = Giving { manifest, places, function, made: Vec::new() };
    let mut result = re::ActionResult::default();
    for (path, log) in [
        (&b"logs/stdout.log"[..], &mut result.stdout_digest),
        (b"logs/stderr.log", &mut result.stderr_digest),
    ] {
        let record = manifest.find(path).and_then(|n| manifest.get(n));
        *log = record.map(|r| giving.digest(r));
    }
    if let Some(outputs) = manifest.find(b"outputs") {
        giving.flat(outputs, &mut result);
        if result.encoded_len() > MOST_FLAT {
            (result.output_files, result.output_symlinks) = Default::default();
            result.output_directories.clear();
            giving.made.clear();
            giving.trees(outputs, &mut result);
        }
    }
    let parsed = metadata.and_then(|bytes| Metadata::parse(bytes).ok());
    result.exit_code = parsed.as_ref().map_or(0, |m| m.exit_code);
    let end_ns = manifest.seal().sealed_at_ns;
    let took_ns =
        parsed.as_ref().map_or(0, |m| m.duration_ms.min(i64::MAX as u64 / 1_000_000) as i64 * 1_000_000);
    let (start, end) = (time(end_ns.saturating_sub(took_ns)), time(end_ns));
    let host = &manifest.seal().origin.host;
    result.execution_metadata = Some(re::ExecutedActionMetadata {
        worker: if host.is_empty() { "outfs".to_owned() } else { host.clone() },
        worker_start_timestamp: start,
        execution_start_timestamp: start,
        execution_completed_timestamp: end,
        worker_completed_timestamp: end,
        auxiliary_metadata: metadata
            .map(|bytes| Any { type_url: METADATA.to_owned(), value: bytes.to_vec() })
            .into_iter()
            .collect(),
        ..Default::default()
    });
    let (action, mut made) = action(&manifest.seal().key, function);
    made.append(&mut giving.made);
    Given { action, result, made }
}

struct Giving<'a> {
    manifest: &'a Manifest,
    places: &'a Places,
    function: Function,
    made: Vec<(Name, Vec<u8>)>,
}

impl Giving<'_> {
    fn digest(&self, record: &Record) -> re::Digest {
        let hash = record.hash().map(|hash| self.places.named(&hash));
        match hash {
            Some(hash) if record.size() > 0 => Name { hash, size: record.size() }.message(),
            _ => self.function.name(b"").message(),
        }
    }

    fn made(&mut self, bytes: Vec<u8>) -> re::Digest {
        let name = self.function.name(&bytes);
        self.made.push((name, bytes));
        name.message()
    }

    /// All by their paths below `top`; of directories only those that have nothing in them.
    fn flat(&mut self, top: u32, result: &mut re::ActionResult) {
        let mut waiting = vec![(top, String::new())];
        while let Some((dir, path)) = waiting.pop() {
            for n in self.manifest.children(dir) {
                let Some(record) = self.manifest.get(n) else { continue };
                let name = shown(self.manifest.name(n));
                let path = if path.is_empty() { name } else { format!("{path}/{name}") };
                match record.kind() {
                    RecordKind::Dir if self.manifest.children(n).is_empty() => {
                        result.output_directories.push(self.tree(n, path));
                    }
                    RecordKind::Dir => waiting.push((n, path)),
                    _ => self.output(n, record, path, result),
                }
            }
        }
        result.output_files.sort_by(|a, b| a.path.cmp(&b.path));
        result.output_symlinks.sort_by(|a, b| a.path.cmp(&b.path));
        result.output_directories.sort_by(|a, b| a.path.cmp(&b.path));
    }

    /// What is in `top`, its directories as trees.
    fn trees(&mut self, top: u32, result: &mut re::ActionResult) {
        for n in self.manifest.children(top) {
            let Some(record) = self.manifest.get(n) else { continue };
            let path = shown(self.manifest.name(n));
            match record.kind() {
                RecordKind::Dir => result.output_directories.push(self.tree(n, path)),
                _ => self.output(n, record, path, result),
            }
        }
    }

    fn output(&self, n: u32, record: &Record, path: String, result: &mut re::ActionResult) {
        if record.kind() == RecordKind::Symlink {
            let target = shown(self.manifest.target(n));
            return result.output_symlinks.push(re::OutputSymlink { path, target, node_properties: None });
        }
        result.output_files.push(re::OutputFile {
            path,
            digest: Some(self.digest(record)),
            is_executable: record.perm() & 0o100 != 0,
            contents: Vec::new(),
            node_properties: Some(properties(record)),
        });
    }

    /// The tree of a directory: those below it stand in it after those that they are in.
    fn tree(&mut self, top: u32, path: String) -> re::OutputDirectory {
        let mut dirs = vec![top];
        let mut at = 0;
        while at < dirs.len() {
            let below = self.manifest.children(dirs[at]);
            dirs.extend(below.filter(|n| self.manifest.get(*n).is_some_and(|r| r.kind() == RecordKind::Dir)));
            at += 1;
        }
        let mut digests = std::collections::HashMap::new();
        let (mut children, mut seen) = (Vec::new(), BTreeSet::new());
        let mut root = re::Directory::default();
        for dir in dirs.iter().rev() {
            root = self.directory(*dir, &digests);
            let name = self.function.name(&root.encode_to_vec());
            digests.insert(*dir, name);
            if *dir != top && seen.insert(name.hash) {
                children.push(root.clone());
            }
        }
        children.reverse();
        let tree = re::Tree { root: Some(root), children }.encode_to_vec();
        re::OutputDirectory { path, tree_digest: Some(self.made(tree)), ..Default::default() }
    }

    fn directory(&self, dir: u32, digests: &std::collections::HashMap<u32, Name>) -> re::Directory {
        let mut made = re::Directory::default();
        for n in self.manifest.children(dir) {
            let Some(record) = self.manifest.get(n) else { continue };
            let name = shown(self.manifest.name(n));
            match record.kind() {
                RecordKind::Dir => {
                    made.directories
                        .push(re::DirectoryNode { name, digest: digests.get(&n).map(Name::message) });
                }
                RecordKind::Symlink => {
                    let target = shown(self.manifest.target(n));
                    made.symlinks.push(re::SymlinkNode { name, target, node_properties: None });
                }
                RecordKind::File => made.files.push(re::FileNode {
                    name,
                    digest: Some(self.digest(record)),
                    is_executable: record.perm() & 0o100 != 0,
                    node_properties: Some(properties(record)),
                }),
            }
        }
        made
    }
}

fn properties(record: &Record) -> re::NodeProperties {
    let unix_mode = Some(UInt32Value { value: libc::S_IFREG | record.perm() });
    re::NodeProperties { mtime: time(record.mtime_ns()), unix_mode, ..Default::default() }
}

fn time(ns: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds: ns.div_euclid(NS), nanos: ns.rem_euclid(NS) as i32 })
}
