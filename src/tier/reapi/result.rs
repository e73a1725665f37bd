//! An entry made of the result of an action: a tree of what it put out, its logs, and metadata of what is known of its execution.
//!
//! Invariants: the same result makes the same manifest everywhere; whatever the result says, what comes of it is a valid
//! manifest, whose tree is bounded in depth and size, or an error. A tree's directories are found by the digests of their bytes, so
//! that none can be within itself. Must not know: where results and trees come from.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bazel_remote_apis::build::bazel::remote::execution::v2 as re;
use bazel_remote_apis::google::protobuf::Timestamp;
use prost::Message;

use super::digest::{Function, Name};
use super::give::METADATA;
use crate::model::groups::GROUP;
use crate::model::manifest::{Attrs, Content, FormatError, NodeId, Origin, Seal, TreeBuilder, TreeError};
use crate::model::{BlobHash, EntryKey, Manifest, Metadata};
use crate::tier::{PlacesBuilder, Tree};

/// The largest tree of a directory.
const MOST_TREE: u64 = 64 << 20;
/// Nobody puts out so many files.
const MOST_NODES: usize = 1 << 20;
/// Bytes that the names and targets in a tree take together at most.
const MOST_TEXT: usize = 128 << 20;
/// Bytes that the trees of one result take together at most.
const MOST_TREES: u64 = 4 * MOST_TREE;
/// Bytes of directories that are read of one tree, each as often as it is named.
const MOST_READ: usize = 256 << 20;
/// What the kernel takes as a symlink's target.
const MOST_TARGET: usize = 4095;
const NS: i64 = 1_000_000_000;

/// Why a result makes no entry.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResultError {
    /// A tree could not be had.
    #[error(transparent)]
    Tier(#[from] crate::tier::TierError),
    /// It says what cannot be.
    #[error("its result says what cannot be: {0}")]
    Wrong(String),
    /// It cannot be a tree.
    #[error("its result is no tree: {0}")]
    Tree(#[from] TreeError),
    /// It cannot be a manifest.
    #[error("its result makes no manifest: {0}")]
    Manifest(#[from] FormatError),
}

type Result<T> = std::result::Result<T, ResultError>;

fn wrong<T>(why: impl Into<String>) -> Result<T> {
    Err(ResultError::Wrong(why.into()))
}

/// The directories of a tree, as bytes: what a directory says of another is the digest of these.
#[derive(Clone, PartialEq, Message)]
struct RawTree {
    #[prost(bytes = "vec", tag = "1")]
    root: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    children: Vec<Vec<u8>>,
}

/// The entry of a key, and the contents that the server must have for it. `get` gives all of a content, verified.
pub(super) fn tree(
    key: &EntryKey,
    result: &re::ActionResult,
    function: Function,
    get: &dyn Fn(Name) -> crate::tier::Result<Vec<u8>>,
) -> Result<(Tree, Vec<Name>)> {
    let times = Times::of(result.execution_metadata.as_ref());
    let mut making = Making::new(function, times.end_ns);
    let outputs = making.dir(making.tree.top(), b"outputs")?;
    for file in &result.output_files {
        let (dir, name) = making.parent(outputs, &file.path)?;
        let of = (file.digest.as_ref(), file.is_executable, file.node_properties.as_ref());
        making.file(dir, name, of)?;
    }
    #[allow(deprecated, reason = "older servers give nothing else")]
    let older = result.output_file_symlinks.iter().chain(&result.output_directory_symlinks);
    // A server that knows both may give both.
    let older = older.filter(|_| result.output_symlinks.is_empty());
    for link in result.output_symlinks.iter().chain(older) {
        let (dir, name) = making.parent(outputs, &link.path)?;
        making.symlink(dir, name, &link.target, link.node_properties.as_ref())?;
    }
    let mut trees = 0;
    for directory in &result.output_directories {
        let top = match &directory.path[..] {
            "" => outputs,
            path => {
                let (dir, name) = making.parent(outputs, path)?;
                making.dir(dir, name)?
            }
        };
        let Some(name) = Name::parse(directory.tree_digest.as_ref()) else {
            return wrong(format!("the directory {:?} has no tree", directory.path));
        };
        trees += name.size.min(MOST_TREE + 1);
        if name.size > MOST_TREE || trees > MOST_TREES {
            return wrong(format!("the tree of {:?} is too large", directory.path));
        }
        making.directory(top, &get(name)?)?;
    }
    making.logs(result)?;
    let metadata = given(result).unwrap_or_else(|| metadata(key, result, &times).to_bytes());
    making.carried(making.tree.top(), b"metadata.json", metadata)?;
    making.finish(key, result)
}

/// A tree that is being made.
struct Making {
    tree: TreeBuilder,
    function: Function,
    /// Of what no time is known.
    time_ns: i64,
    dirs: HashMap<(NodeId, Vec<u8>), NodeId>,
    places: PlacesBuilder,
    contents: HashMap<BlobHash, Name>,
    bytes: u64,
    /// How many names were looked at, those that were there already too, and the bytes of names and targets.
    named: usize,
    text: usize,
}

impl Making {
    fn new(function: Function, time_ns: i64) -> Making {
        let attrs = Attrs { mode: 0o755, mtime_ns: time_ns, ..Attrs::default() };
        Making {
            tree: TreeBuilder::new(attrs),
            function,
            time_ns,
            dirs: HashMap::new(),
            // Nothing goes into packs.
            places: PlacesBuilder::new(u64::MAX),
            contents: HashMap::new(),
            bytes: 0,
            named: 0,
            text: 0,
        }
    }

    /// Before anything is done with a name: a small tree may name the same very often.
    fn counted(&mut self, name: &[u8], target: &str) -> Result<()> {
        self.named += 1;
        self.text += name.len() + target.len();
        match self.named <= MOST_NODES && self.text <= MOST_TEXT {
            true => Ok(()),
            false => wrong("there are too many files"),
        }
    }

    /// The directory of this name, new or there already.
    fn dir(&mut self, parent: NodeId, name: &[u8]) -> Result<NodeId> {
        self.dir_with(parent, name, None)
    }

    fn dir_with(
        &mut self,
        parent: NodeId,
        name: &[u8],
        properties: Option<&re::NodeProperties>,
    ) -> Result<NodeId> {
        self.counted(name, "")?;
        if let Some(dir) = self.dirs.get(&(parent, name.to_vec())) {
            return Ok(*dir);
        }
        let dir = self.tree.dir(parent, name, self.attrs(0o755, properties))?;
        self.dirs.insert((parent, name.to_vec()), dir);
        Ok(dir)
    }

    /// The directory that a relative path lies in, and its last name.
    fn parent<'p>(&mut self, top: NodeId, path: &'p str) -> Result<(NodeId, &'p [u8])> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut dir = top;
        for part in above.split('/').filter(|_| path.contains('/')) {
            dir = self.dir(dir, part.as_bytes())?;
        }
        Ok((dir, name.as_bytes()))
    }

    fn attrs(&self, mode: u32, properties: Option<&re::NodeProperties>) -> Attrs {
        let time = properties.and_then(|p| nanoseconds(p.mtime.as_ref()?));
        let mode = properties.and_then(|p| Some(p.unix_mode.as_ref()?.value & 0o1777)).unwrap_or(mode);
        Attrs { mode, mtime_ns: time.unwrap_or(self.time_ns), ..Attrs::default() }
    }

    fn file(
        &mut self,
        dir: NodeId,
        name: &[u8],
        (digest, executable, properties): (Option<&re::Digest>, bool, Option<&re::NodeProperties>),
    ) -> Result<()> {
        self.counted(name, "")?;
        let Some(content) = Name::parse(digest) else {
            return wrong(format!("the file {:?} has no digest", String::from_utf8_lossy(name)));
        };
        let mut attrs = self.attrs(if executable { 0o755 } else { 0o644 }, properties);
        if executable {
            attrs.mode |= 0o100;
        }
        let file = self.tree.file(dir, name, attrs, None)?;
        self.named(file, content)
    }

    /// A file's content is what the server names so.
    fn named(&mut self, file: NodeId, content: Name) -> Result<()> {
        if content.size == 0 {
            // Nothing of it needs to be fetched, so it is checked here.
            if content != self.function.name(b"") {
                return wrong("a content without bytes has the digest of others");
            }
            self.tree.set_content(file, Content { hash: BlobHash::of(b""), size: 0, groups: Vec::new() });
            return Ok(());
        }
        match self.bytes.checked_add(content.size) {
            Some(bytes) if bytes < 1 << 60 => self.bytes = bytes,
            _ => return wrong("it is too large"),
        }
        if self.contents.insert(content.hash, content).is_some_and(|other| other != content) {
            return wrong("a content has two sizes");
        }
        self.tree.set_name(file, content.hash, content.size, self.function.kind());
        Ok(())
    }

    /// A file whose content comes along.
    fn carried(&mut self, dir: NodeId, name: &[u8], content: Vec<u8>) -> Result<()> {
        if content.len() > GROUP {
            return wrong(format!("{:?} is too large to come with it", String::from_utf8_lossy(name)));
        }
        let attrs = self.attrs(0o644, None);
        let file = self.tree.file(dir, name, attrs, None)?;
        let (hash, size) = (BlobHash::of(&content), content.len() as u64);
        self.places.carry(&content);
        self.tree.set_content(file, Content { hash, size, groups: Vec::new() });
        Ok(())
    }

    fn symlink(
        &mut self,
        dir: NodeId,
        name: &[u8],
        target: &str,
        properties: Option<&re::NodeProperties>,
    ) -> Result<()> {
        self.counted(name, target)?;
        if target.len() > MOST_TARGET {
            return wrong("a symlink's target is too long");
        }
        let attrs = self.attrs(0o777, properties);
        self.tree.symlink(dir, name, attrs, target.as_bytes(), None)?;
        Ok(())
    }

    /// What the tree in these bytes holds.
    fn directory(&mut self, top: NodeId, bytes: &[u8]) -> Result<()> {
        let Ok(raw) = RawTree::decode(bytes) else { return wrong("a tree is none") };
        let function = self.function;
        let children: HashMap<Name, &[u8]> =
            raw.children.iter().map(|child| (function.name(child), &child[..])).collect();
        let mut waiting = vec![(None, &raw.root[..])];
        // The same one may be named in many places: each is read when it is its turn, and all of them are no more than so many bytes.
        let mut left = MOST_READ;
        while let Some((place, bytes)) = waiting.pop() {
            let Some(less) = left.checked_sub(bytes.len()) else {
                return wrong("a tree names large directories too often");
            };
            left = less;
            let Ok(directory) = re::Directory::decode(bytes) else { return wrong("a directory is none") };
            let at = match place {
                None => top,
                Some((above, name)) => {
                    let name: String = name;
                    self.dir_with(above, name.as_bytes(), directory.node_properties.as_ref())?
                }
            };
            for file in &directory.files {
                let of = (file.digest.as_ref(), file.is_executable, file.node_properties.as_ref());
                self.file(at, file.name.as_bytes(), of)?;
            }
            for link in &directory.symlinks {
                self.symlink(at, link.name.as_bytes(), &link.target, link.node_properties.as_ref())?;
            }
            for below in directory.directories {
                let found = Name::parse(below.digest.as_ref()).and_then(|name| match name.size {
                    // One without anything in it need not be among them.
                    0 => Some(&[][..]).filter(|_| name == function.name(b"")),
                    _ => children.get(&name).copied(),
                });
                let Some(found) = found else {
                    return wrong(format!("a tree lacks its directory {:?}", below.name));
                };
                waiting.push((Some((at, below.name)), found));
            }
        }
        Ok(())
    }

    fn logs(&mut self, result: &re::ActionResult) -> Result<()> {
        for (name, raw, digest) in [
            (&b"stdout.log"[..], &result.stdout_raw, result.stdout_digest.as_ref()),
            (&b"stderr.log"[..], &result.stderr_raw, result.stderr_digest.as_ref()),
        ] {
            if digest.is_none() && raw.is_empty() {
                continue;
            }
            let logs = self.dir(self.tree.top(), b"logs")?;
            match digest {
                Some(digest) => self.file(logs, name, (Some(digest), false, None))?,
                None => self.carried(logs, name, raw.clone())?,
            }
        }
        Ok(())
    }

    fn finish(self, key: &EntryKey, result: &re::ActionResult) -> Result<(Tree, Vec<Name>)> {
        let Making { tree, places, contents, time_ns, .. } = self;
        let host = result.execution_metadata.as_ref().map(|m| text(&m.worker)).unwrap_or_default();
        let origin = Origin { how: "action".into(), host, ..Origin::default() };
        let seal = Seal { key: key.clone(), sealed_at_ns: time_ns, inferred: false, replaces: None, origin };
        let manifest = Manifest::parse(tree.finish(&seal)?)?;
        let places = places.finish(&manifest);
        Ok((Tree { manifest: Arc::new(manifest), places }, contents.into_values().collect()))
    }
}

/// When an action was executed, nanoseconds since 1970.
struct Times {
    start_ns: i64,
    end_ns: i64,
}

impl Times {
    /// What is not said is the nearest that is, or the beginning of all time, so that it is the same everywhere.
    fn of(metadata: Option<&re::ExecutedActionMetadata>) -> Times {
        let ns = |time: &Option<Timestamp>| nanoseconds(time.as_ref()?);
        let Some(m) = metadata else { return Times { start_ns: 0, end_ns: 0 } };
        let end = ns(&m.execution_completed_timestamp)
            .or_else(|| ns(&m.worker_completed_timestamp))
            // Outputs are sent when there are any: some tools say nothing else.
            .or_else(|| ns(&m.output_upload_start_timestamp))
            .or_else(|| ns(&m.output_upload_completed_timestamp))
            .or_else(|| ns(&m.execution_start_timestamp))
            .or_else(|| ns(&m.worker_start_timestamp))
            .unwrap_or(0);
        let start = ns(&m.execution_start_timestamp).or_else(|| ns(&m.worker_start_timestamp)).unwrap_or(end);
        Times { start_ns: start.min(end), end_ns: end }
    }
}

fn nanoseconds(time: &Timestamp) -> Option<i64> {
    let nanos = i64::from(time.nanos);
    let within = (0..NS).contains(&nanos);
    time.seconds.checked_mul(NS)?.checked_add(nanos).filter(|ns| within && *ns >= 0)
}

/// What a server says, as far as it can be shown.
fn text(said: &str) -> String {
    said.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// The metadata that outfs gave along with a result.
fn given(result: &re::ActionResult) -> Option<Vec<u8>> {
    let all = &result.execution_metadata.as_ref()?.auxiliary_metadata;
    let given = &all.iter().find(|any| any.type_url == METADATA)?.value;
    let sound = given.len() <= GROUP && Metadata::parse(given).is_ok_and(|m| m.exit_code == result.exit_code);
    sound.then(|| given.clone())
}

fn metadata(key: &EntryKey, result: &re::ActionResult, times: &Times) -> Metadata {
    let mut extra = BTreeMap::new();
    if let Some(m) = &result.execution_metadata
        && !m.worker.is_empty()
    {
        extra.insert("worker".to_owned(), text(&m.worker).into());
    }
    let ns = (times.end_ns - times.start_ns) as u64;
    Metadata {
        task_id: key.as_str().to_owned(),
        digest: key.as_str().to_owned(),
        command: Vec::new(),
        created_at: jiff::Timestamp::from_nanosecond(times.end_ns.into())
            .unwrap_or(jiff::Timestamp::UNIX_EPOCH),
        duration_ms: ns / 1_000_000,
        exit_code: result.exit_code,
        extra,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(name: Name) -> Option<re::Digest> {
        Some(re::Digest { hash: name.hash.to_hex(), size_bytes: name.size as i64 })
    }

    /// A few kilobytes that name the same directory twice on each of 40 levels are no 2^40 rounds.
    #[test]
    fn a_small_tree_of_very_many_names_is_refused() {
        let function = Function::Sha256;
        let (mut children, mut below) = (Vec::new(), None);
        for _ in 0..40 {
            let node =
                |digest: &re::Digest| re::DirectoryNode { name: "a".into(), digest: Some(digest.clone()) };
            let twice: Vec<_> = below.iter().chain(&below).map(node).collect();
            let directory = re::Directory { directories: twice, ..Default::default() };
            below = digest(function.name(&directory.encode_to_vec())).filter(|d| d.size_bytes > 0);
            // The innermost has nothing in it.
            below = below.or(digest(function.name(b"")));
            children.push(directory);
        }
        let root = children.pop();
        let bytes = re::Tree { root, children }.encode_to_vec();
        let directory = re::OutputDirectory {
            path: "o".into(),
            tree_digest: digest(function.name(&bytes)),
            ..Default::default()
        };
        let result = re::ActionResult { output_directories: vec![directory], ..Default::default() };
        let key = EntryKey::parse("abcd").unwrap();
        let made = tree(&key, &result, function, &|_| Ok(bytes.clone()));
        let why = made.expect_err("it is refused").to_string();
        assert!(why.contains("too many files") && bytes.len() < 10_000, "{why}");
    }
}
