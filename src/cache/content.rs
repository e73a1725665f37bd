//! Storing the contents of a planned tree: small files into one pack in tree order, large ones
//! each as a file of its own.
//!
//! Invariants: what is stored is exactly what was hashed; a draft's file is hashed and linked
//! under one read lease; a file that is not ours is cloned and the clone is verified; at
//! most a few batches of small files are in memory at a time.
//! Must not know: keys, manifests' bytes, the commit.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::ingest::{Asked, FileId, Memory, ReadLease, STEP, hash_bytes, hash_file, read_some};
use super::known::Known;
use super::stash::{NewPack, Stash};
use super::walk::{From, Plan, Source, Tree};
use super::way::Way;
use super::work::Work;
use super::{Cache, CacheError, Result, at, workers};
use crate::model::BlobHash;
use crate::model::manifest::Content;
use crate::store::{Adopt, Hashed, Inode, PACK_LIMIT, StoreError};

/// How long a writer that is about to close is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Small files are looked up and packed in batches of so many files or bytes.
const BATCH_FILES: usize = 512;
const BATCH_BYTES: usize = 8 << 20;
/// Small files that a thread reads before it hands them on, and how often it may be ahead.
const RUN: usize = 8;
const RUNS_AHEAD: usize = 8;

/// What storing needs to know.
pub(super) struct Storer<'a> {
    pub cache: &'a Cache,
    pub stash: &'a Stash,
    /// The draft's memory of hashes; `None` for what is not ours.
    pub memory: Option<&'a Memory>,
    /// Until when a file that somebody is writing is waited for.
    pub deadline: Instant,
    /// Told how far it is.
    pub work: Option<&'a Work>,
    /// What the tree was made from.
    pub known: Option<&'a Known>,
}

/// All contents of a plan.
pub(super) struct Contents {
    /// By position in the plan's sources.
    pub of: Vec<Option<Content>>,
    /// The bytes of the one source that was asked for, if it is small.
    pub kept: Option<Vec<u8>>,
}

/// What reading a small file gave.
enum Small {
    Bytes(Hashed),
    /// It has become too large for a pack.
    Grown,
}

impl Storer<'_> {
    /// Stores all contents; `keep` is the source whose bytes the caller wants to see.
    pub fn store(&self, plan: &Plan, keep: Option<usize>) -> Result<Contents> {
        let mut contents = Contents { of: vec![None; plan.sources.len()], kept: None };
        self.store_known(plan, &mut contents.of)?;
        let mut small = Vec::new();
        let mut large = Vec::new();
        let mut links = HashSet::new();
        for node in plan.builder.files_in_order() {
            let i = plan.sources.binary_search_by_key(&node, |s| s.node).expect("every file has a source");
            if contents.of[i].is_none() && plan.sources[i].link.is_none_or(|l| links.insert(l)) {
                let list = if plan.sources[i].size_hint() <= PACK_LIMIT { &mut small } else { &mut large };
                list.push(i);
            }
        }
        let sizes = small.iter().chain(&large).map(|i| plan.sources[*i].size_hint());
        self.expect((small.len() + large.len()) as u64, sizes.sum());
        large.extend(self.store_small(plan, &small, keep, &mut contents)?);
        self.store_large(plan, &large, &mut contents)?;
        share_links(plan, &mut contents);
        Ok(contents)
    }

    fn expect(&self, files: u64, bytes: u64) {
        if let Some(work) = self.work {
            work.expect(files, bytes);
        }
    }

    fn did(&self, files: u64, bytes: u64) {
        if let Some(work) = self.work {
            work.did(files, bytes);
        }
    }

    /// Packs small files; returns those that turned out to be large.
    fn store_small(
        &self,
        plan: &Plan,
        order: &[usize],
        keep: Option<usize>,
        contents: &mut Contents,
    ) -> Result<Vec<usize>> {
        let mut packing = Packing { storer: self, pack: NewPack::default(), batch: Vec::new(), bytes: 0 };
        let mut grown = Vec::new();
        let take = |at: usize, small: Small| -> Result<()> {
            let i = order[at];
            match small {
                Small::Grown => grown.push(i),
                Small::Bytes(content) => {
                    let size = content.bytes().len() as u64;
                    self.did(1, size);
                    contents.of[i] = Some(Content { hash: content.hash(), size, groups: Vec::new() });
                    if keep == Some(i) {
                        contents.kept = Some(content.bytes().to_vec());
                    }
                    packing.push(content)?;
                }
            }
            Ok(())
        };
        match order.len() {
            0..=FEW => self.read_alone(plan, order, take)?,
            _ => self.read_in_order(plan, order, take)?,
        }
        packing.finish()?;
        Ok(grown)
    }

    /// Reads small files by all processors and gives them to `take` in order.
    fn read_in_order(
        &self,
        plan: &Plan,
        order: &[usize],
        mut take: impl FnMut(usize, Small) -> Result<()>,
    ) -> Result<()> {
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (send, receive) = crossbeam_channel::bounded::<(usize, Vec<Result<Small>>)>(RUNS_AHEAD);
        let runs: Vec<_> = order.chunks(RUN).collect();
        std::thread::scope(|scope| -> Result<()> {
            let mut readers = 0;
            for _ in 0..workers().min(runs.len()) {
                let (send, next, stop, runs) = (send.clone(), &next, &stop, &runs);
                let read = move || {
                    let mut dirs = OpenDir::default();
                    while !stop.load(Ordering::Relaxed) {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        let Some(run) = runs.get(n) else { return };
                        let read = |i: &usize| self.read_small(plan, &plan.sources[*i], &mut dirs);
                        if send.send((n, run.iter().map(read).collect())).is_err() {
                            return;
                        }
                    }
                };
                readers += u32::from(std::thread::Builder::new().spawn_scoped(scope, read).is_ok());
            }
            drop(send);
            if readers == 0 {
                return self.read_alone(plan, order, take);
            }
            // The workers are a little out of order; packs are in tree order.
            let mut early = BTreeMap::new();
            let mut due = 0;
            // Whoever waits to hand something over is told when this ends early, for the receiver ends with it.
            for (n, run) in receive {
                early.insert(n, run);
                while let Some(run) = early.remove(&due) {
                    let mut read = run.into_iter().enumerate();
                    let result = read.try_for_each(|(i, small)| take(due * RUN + i, small?));
                    if result.is_err() {
                        stop.store(true, Ordering::Relaxed);
                        return result;
                    }
                    due += 1;
                }
            }
            Ok(())
        })
    }

    fn read_small(&self, plan: &Plan, source: &Source, dirs: &mut OpenDir) -> Result<Small> {
        let bytes = match &source.from {
            From::Memory(bytes) => bytes.clone(),
            From::Open(file, label) => read_some(file, PACK_LIMIT, source.size_hint())
                .map_err(|e| CacheError::io("read", label, e))?,
            From::Tree { dir, name, id } => {
                let tree = tree_of(plan);
                let fail = |e| CacheError::io("read", tree.path(*dir, name), e);
                let file = dirs.open_file(tree, *dir, name).map_err(fail)?;
                self.refuse_unwritten(tree, (*dir, name), &file)?;
                match self.memory {
                    None => read_some(&file, PACK_LIMIT, id.size).map_err(fail)?,
                    Some(_) => self.under_lease(tree, (*dir, name), &file, |lease| {
                        let bytes = read_some(&file, PACK_LIMIT, id.size).map_err(fail)?;
                        Ok(lease.is_none_or(|l| l.stands()).then_some(bytes))
                    })?,
                }
            }
        };
        if bytes.len() as u64 > PACK_LIMIT {
            return Ok(Small::Grown);
        }
        Ok(Small::Bytes(Hashed::of(bytes)))
    }

    /// The same by this thread alone.
    fn read_alone(
        &self,
        plan: &Plan,
        order: &[usize],
        mut take: impl FnMut(usize, Small) -> Result<()>,
    ) -> Result<()> {
        let mut dirs = OpenDir::default();
        for (at, i) in order.iter().enumerate() {
            take(at, self.read_small(plan, &plan.sources[*i], &mut dirs)?)?;
        }
        Ok(())
    }

    fn store_large(&self, plan: &Plan, list: &[usize], contents: &mut Contents) -> Result<()> {
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (send, receive) = crossbeam_channel::unbounded();
        let store = |send: Sender<_>| {
            let mut dirs = OpenDir::default();
            while !stop.load(Ordering::Relaxed) {
                let Some(&i) = list.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                let content = self.large(plan, &plan.sources[i], &mut dirs);
                stop.fetch_or(content.is_err(), Ordering::Relaxed);
                let _ = send.send((i, content));
            }
        };
        std::thread::scope(|scope| {
            let mut threads = 0;
            for _ in 0..workers().min(list.len()) {
                let (send, store) = (send.clone(), &store);
                let begun = std::thread::Builder::new().spawn_scoped(scope, move || store(send));
                threads += u32::from(begun.is_ok());
            }
            match threads {
                0 => store(send),
                _ => drop(send),
            }
            for (i, content) in receive.iter() {
                let content = content?;
                // What is not ours was counted as it was read.
                self.did(1, if self.memory.is_some() { content.size } else { 0 });
                contents.of[i] = Some(content);
            }
            Ok(())
        })
    }

    /// Hashes and stores one large file.
    fn large(&self, plan: &Plan, source: &Source, dirs: &mut OpenDir) -> Result<Content> {
        match &source.from {
            From::Memory(bytes) => {
                let content = hash_bytes(bytes);
                if !self.stash.has_large(self.cache, &content)? {
                    self.store_copy(bytes, &content)?;
                }
                Ok(content)
            }
            From::Open(file, label) => self.foreign(file, label),
            From::Tree { dir, name, .. } => {
                let tree = tree_of(plan);
                let path = || tree.path(*dir, name);
                let file = dirs.open_file(tree, *dir, name).map_err(|e| CacheError::io("open", path(), e))?;
                self.refuse_unwritten(tree, (*dir, name), &file)?;
                match self.memory {
                    None => self.foreign(&file, &path()),
                    Some(memory) => self.own(tree, (*dir, name), &file, memory),
                }
            }
        }
    }

    /// A draft's file: hashed, or known, and linked under one lease.
    fn own(&self, tree: &Tree, at: (u32, &[u8]), file: &File, memory: &Memory) -> Result<Content> {
        let path = || tree.path(at.0, at.1);
        self.under_lease(tree, at, file, |lease| {
            let fail = |e| CacheError::io("hash", path(), e);
            let Some(lease) = lease else { return self.foreign(file, &path()).map(Some) };
            let stat = at::stat_of(file).map_err(fail)?;
            let id = FileId::of(&stat);
            let running = memory.start(id.dev, id.ino);
            let content = match memory.get(&id) {
                Some(known) => known,
                None => match running.hash(file, lease).map_err(fail)? {
                    Some(content) => content,
                    None => return Ok(None),
                },
            };
            running.remember(id, &content);
            if content.size > PACK_LIMIT {
                self.link(tree, at, file, &content, memory)?;
                return Ok(lease.stands().then_some(content));
            }
            // It shrank since it was found.
            let bytes = read_some(file, PACK_LIMIT, content.size).map_err(fail)?;
            self.pack_one(bytes).map(Some)
        })
    }

    /// Links a draft's file into the store, under a lease.
    fn link(
        &self,
        tree: &Tree,
        at: (u32, &[u8]),
        file: &File,
        content: &Content,
        memory: &Memory,
    ) -> Result<()> {
        let path = || tree.path(at.0, at.1);
        let inode = Inode::of(file).map_err(|e| CacheError::io("stat", path(), e))?;
        match self.stash.put_large(self.cache, file, content, Adopt::Link) {
            Err(CacheError::Store(StoreError::Unwritten { source, .. })) => {
                tracing::warn!("the disk did not take what was written to {}: {source}", path());
                memory.unwritten.add(inode);
            }
            other => other?,
        }
        match memory.unwritten.has_after_sync(&inode) {
            true => Err(CacheError::Unwritten { path: path() }),
            false => Ok(()),
        }
    }

    /// Refuses a draft's file of which the disk has not taken everything.
    fn refuse_unwritten(&self, tree: &Tree, at: (u32, &[u8]), file: &File) -> Result<()> {
        let path = || tree.path(at.0, at.1);
        match self.memory.map_or(Ok(false), |memory| memory.unwritten.has(file)) {
            Ok(false) => Ok(()),
            Ok(true) => Err(CacheError::Unwritten { path: path() }),
            Err(e) => Err(CacheError::io("stat", path(), e)),
        }
    }

    /// A file that others may write to at any time: hashed, and cloned if it is new (the store
    /// verifies the clone, so what changed in between is noticed).
    fn foreign(&self, file: &File, label: &str) -> Result<Content> {
        let fail = |e| CacheError::io("read", label, e);
        let mut tries = 0;
        loop {
            let before = std::cell::Cell::new(0);
            let step = || {
                self.did(0, before.replace(STEP as u64));
                true
            };
            let content = hash_file(file, &step).map_err(fail)?.expect("nobody cancels");
            if content.size <= PACK_LIMIT {
                return self.pack_one(read_some(file, PACK_LIMIT, content.size).map_err(fail)?);
            }
            match self.stash.put_large(self.cache, file, &content, Adopt::Clone) {
                Ok(()) => return Ok(content),
                Err(CacheError::Store(StoreError::Corrupt { .. })) if tries < 3 => tries += 1,
                Err(CacheError::Store(StoreError::Corrupt { .. })) => {
                    return Err(CacheError::Busy { path: label.to_owned() });
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Stores bytes in memory as a large file.
    fn store_copy(&self, bytes: &[u8], content: &Content) -> Result<()> {
        let mut scratch = self.cache.inner.store.scratch()?;
        scratch.write(bytes)?;
        self.stash.put_large(self.cache, scratch.file(), content, Adopt::Link)
    }

    /// Does `work` under a read lease on a draft's file (without one where there are no leases),
    /// again while it says `None`; a file that somebody keeps writing is `Busy`.
    fn under_lease<T>(
        &self,
        tree: &Tree,
        at: (u32, &[u8]),
        file: &File,
        mut work: impl FnMut(Option<&ReadLease<'_>>) -> Result<Option<T>>,
    ) -> Result<T> {
        loop {
            let done = match ReadLease::ask(file) {
                Asked::Granted(lease) => work(Some(&lease))?,
                Asked::Unsupported => work(None)?,
                Asked::Writer => None,
            };
            if let Some(done) = done {
                return Ok(done);
            }
            if Instant::now() >= self.deadline {
                return Err(CacheError::Busy { path: tree.path(at.0, at.1) });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stores one small content in a pack of its own.
    pub fn pack_one(&self, bytes: Vec<u8>) -> Result<Content> {
        let bytes = Hashed::of(bytes);
        let content = Content { hash: bytes.hash(), size: bytes.bytes().len() as u64, groups: Vec::new() };
        let mut packing = Packing { storer: self, pack: NewPack::default(), batch: Vec::new(), bytes: 0 };
        packing.push(bytes)?;
        packing.finish()?;
        Ok(content)
    }
}

impl Source {
    fn size_hint(&self) -> u64 {
        match &self.from {
            From::Tree { id, .. } => id.size,
            From::Open(file, _) => at::stat_of(file).map_or(0, |s| s.st_size as u64),
            From::Memory(bytes) => bytes.len() as u64,
        }
    }
}

/// So few small files are read sooner than a thread starts.
const FEW: usize = 8;

fn tree_of(plan: &Plan) -> &Tree {
    plan.tree.as_ref().expect("a source in a tree comes with its tree")
}

/// Gives all hard links of a file the content that was found for the first.
fn share_links(plan: &Plan, contents: &mut Contents) {
    let mut by_link = HashMap::new();
    for (source, content) in plan.sources.iter().zip(&contents.of) {
        if let (Some(link), Some(content)) = (source.link, content) {
            by_link.insert(link, content.clone());
        }
    }
    for (source, content) in plan.sources.iter().zip(&mut contents.of) {
        if content.is_none() {
            *content = source.link.and_then(|l| by_link.get(&l).cloned());
        }
    }
}

/// The directory that was used last: files come in tree order.
#[derive(Default)]
struct OpenDir {
    last: Option<(u32, Rc<OwnedFd>)>,
    way: Way,
}

impl OpenDir {
    fn open_file(&mut self, tree: &Tree, dir: u32, name: &[u8]) -> io::Result<File> {
        let fd = match self.last.take() {
            Some((d, fd)) if d == dir => fd,
            _ => tree.open_dir(dir, &mut self.way)?,
        };
        let (_, fd) = self.last.insert((dir, fd));
        let file = tree.open_file(fd.as_fd(), name)?;
        match at::kind(&at::stat_of(&file)?) {
            libc::S_IFREG => Ok(file),
            _ => Err(io::Error::other("it was replaced by something that is no file")),
        }
    }
}

/// The path of the first file of a tree that somebody writes to.
pub(super) fn first_writer(plan: &Plan) -> Option<String> {
    let mut dirs = OpenDir::default();
    plan.sources.iter().find_map(|source| {
        let From::Tree { dir, name, .. } = &source.from else { return None };
        let file = dirs.open_file(tree_of(plan), *dir, name).ok()?;
        matches!(ReadLease::ask(&file), Asked::Writer).then(|| tree_of(plan).path(*dir, name))
    })
}

/// Calls `each` for every large file of a tree that has other names, with its hash.
pub(super) fn each_shared_file(
    plan: &Plan,
    each: &mut dyn FnMut(&File, BlobHash) -> Result<()>,
) -> Result<()> {
    let mut dirs = OpenDir::default();
    for source in plan.sources.iter().filter(|s| s.link.is_some() && s.size_hint() > PACK_LIMIT) {
        let From::Tree { dir, name, .. } = &source.from else { continue };
        let fail = |e| CacheError::io("read", tree_of(plan).path(*dir, name), e);
        let file = dirs.open_file(tree_of(plan), *dir, name).map_err(fail)?;
        if let Some(content) = hash_file(&file, &|| true).map_err(fail)? {
            each(&file, content.hash)?;
        }
    }
    Ok(())
}

/// Small contents on their way into a pack.
struct Packing<'a> {
    storer: &'a Storer<'a>,
    pack: NewPack,
    batch: Vec<Hashed>,
    bytes: usize,
}

impl Packing<'_> {
    fn push(&mut self, content: Hashed) -> Result<()> {
        self.bytes += content.bytes().len();
        self.batch.push(content);
        if self.batch.len() >= BATCH_FILES || self.bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.storer.stash.put_small(self.storer.cache, &mut self.pack, &self.batch)?;
        self.batch.clear();
        self.bytes = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.storer.stash.finish_pack(self.pack)
    }
}
