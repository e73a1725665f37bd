//! A tier in memory: strict about what it is given, and as ill as it is told to be.
//!
//! Purpose: tests of everything above a tier, without a server; and the measure of what the others must do. Invariants:
//! an object's content is what its name says, an entry's objects are all there before it is, and a range lies
//! inside its object: what breaks that is refused. Faults are the caller's: asked before each call.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{
    Capabilities, EntryObject, Object, Places, Result, Tier, TierError, TierErrorKind, Tree, find_with,
};
use crate::model::{EntryKey, Manifest, TreeHash};

/// A call to a tier, as a fault is chosen for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call<'a> {
    /// Of this key's entry.
    Find(&'a EntryKey),
    /// Of a range of an object.
    Get(&'a Object, Range<u64>),
    /// Of an object.
    Put(&'a Object),
    /// Of what it does not have.
    Missing,
    /// Of this key's entry.
    Publish(&'a EntryKey),
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The tier says that it does not have it.
    Absent,
    /// It is asked to come back, after so long where it says so.
    Busy(Option<Duration>),
    /// It refuses.
    Refuses,
    /// It does not answer before the deadline.
    Hangs,
    /// One bit of what it answers is wrong.
    Flips,
    /// Half of what it answers, or is given, is lost on the way, and nobody notices.
    Halves,
}

/// What was asked of a tier and answered, since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Calls, failed ones included; of an entry that is found, one for each of its two objects.
    pub calls: u64,
    /// Bytes of content that it gave.
    pub given: u64,
    /// Bytes of content that it took.
    pub taken: u64,
}

type Chooser = Arc<dyn Fn(&Call<'_>) -> Option<Fault> + Send + Sync>;

/// The tier.
pub struct MemoryTier {
    name: String,
    capabilities: Capabilities,
    state: Mutex<State>,
}

struct State {
    /// By path.
    objects: HashMap<String, Arc<[u8]>>,
    faults: Chooser,
    traffic: Traffic,
}

impl MemoryTier {
    /// An empty one.
    pub fn new(name: &str, capabilities: Capabilities) -> MemoryTier {
        let state =
            State { objects: HashMap::new(), faults: Arc::new(|_| None), traffic: Traffic::default() };
        MemoryTier { name: name.to_owned(), capabilities, state: Mutex::new(state) }
    }

    /// From now on, `choose` is asked before each call what goes wrong with it; it may take its time.
    pub fn set_faults(&self, choose: impl Fn(&Call<'_>) -> Option<Fault> + Send + Sync + 'static) {
        self.state.lock().faults = Arc::new(choose);
    }

    /// What was asked of it so far.
    pub fn traffic(&self) -> Traffic {
        self.state.lock().traffic
    }

    /// The paths of all that it has, in order.
    pub fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = self.state.lock().objects.keys().cloned().collect();
        paths.sort();
        paths
    }

    /// The bytes at a path.
    pub fn raw(&self, path: &str) -> Option<Vec<u8>> {
        self.state.lock().objects.get(path).map(|b| b.to_vec())
    }

    /// Puts any bytes at a path, or takes away what is there: what a store has that somebody else writes to.
    pub fn set_raw(&self, path: &str, bytes: Option<Vec<u8>>) {
        let objects = &mut self.state.lock().objects;
        match bytes {
            Some(bytes) => drop(objects.insert(path.to_owned(), bytes.into())),
            None => drop(objects.remove(path)),
        }
    }

    fn error(&self, kind: TierErrorKind, op: &'static str, what: &dyn ToString, why: &str) -> TierError {
        TierError::new(kind, &self.name, op, what.to_string(), why)
    }

    /// Counts a call, and has happen what goes wrong with it. What is left to the caller is returned.
    fn begin(
        &self,
        call: &Call<'_>,
        op: &'static str,
        what: &dyn ToString,
        by: Instant,
    ) -> Result<Option<Fault>> {
        let faults = {
            let mut state = self.state.lock();
            state.traffic.calls += 1;
            state.faults.clone()
        };
        let late =
            || self.error(TierErrorKind::Transient { after: None }, op, what, "there was no answer in time");
        match faults(call) {
            Some(Fault::Absent) => Err(TierError::absent(&self.name, op, what.to_string())),
            Some(Fault::Busy(after)) => {
                Err(self.error(TierErrorKind::Transient { after }, op, what, "too many requests"))
            }
            Some(Fault::Refuses) => Err(self.error(TierErrorKind::Permanent, op, what, "access denied")),
            Some(Fault::Hangs) => {
                std::thread::sleep(by.saturating_duration_since(Instant::now()));
                Err(late())
            }
            _ if Instant::now() >= by => Err(late()),
            other => Ok(other),
        }
    }

    fn writable(&self, op: &'static str, what: &dyn ToString) -> Result<()> {
        match self.capabilities.push {
            true => Ok(()),
            false => Err(self.error(TierErrorKind::Permanent, op, what, "it was opened for reading only")),
        }
    }

    fn refuse<T>(&self, op: &'static str, what: &dyn ToString, why: &str) -> Result<T> {
        Err(self.error(TierErrorKind::Permanent, op, what, why))
    }

    fn read(&self, path: &str, op: &'static str) -> Result<Arc<[u8]>> {
        let there = self.state.lock().objects.get(path).cloned();
        there.ok_or_else(|| TierError::absent(&self.name, op, path))
    }

    /// Hands bytes out, with what goes wrong on the way.
    fn give(&self, bytes: &[u8], fault: Option<Fault>) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        match fault {
            Some(Fault::Flips) if !bytes.is_empty() => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x10;
            }
            Some(Fault::Halves) => bytes.truncate(bytes.len() / 2),
            _ => {}
        }
        self.state.lock().traffic.given += bytes.len() as u64;
        bytes
    }

    fn store(&self, path: String, bytes: &[u8]) {
        let mut state = self.state.lock();
        state.traffic.taken += bytes.len() as u64;
        state.objects.insert(path, bytes.into());
    }
}

impl Tier for MemoryTier {
    fn name(&self) -> &str {
        &self.name
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn find(&self, key: &EntryKey, by: Instant) -> Result<Tree> {
        let fault = self.begin(&Call::Find(key), "find", key, by)?;
        let entry = || Ok(self.give(&self.read(&Object::entry_path(key), "find")?, None));
        let tree = |object: &Object, bytes: u64| {
            self.state.lock().traffic.calls += 1;
            let there = self.read(&object.path(), "find")?;
            let wanted = there.get(..usize::try_from(bytes).unwrap_or(usize::MAX)).unwrap_or(&there);
            Ok(self.give(wanted, fault))
        };
        find_with(&self.name, key, entry, tree)
    }

    fn get(&self, object: &Object, range: Range<u64>, by: Instant) -> Result<Vec<u8>> {
        let fault = self.begin(&Call::Get(object, range.clone()), "get", object, by)?;
        let there = self.read(&object.path(), "get")?;
        let inside = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        match inside.and_then(|(start, end)| there.get(start..end)) {
            Some(bytes) => Ok(self.give(bytes, fault)),
            None => self.refuse("get", object, &format!("it has {} bytes, not {range:?}", there.len())),
        }
    }

    fn put(&self, object: &Object, size: u64, content: &mut dyn Read, by: Instant) -> Result<()> {
        let fault = self.begin(&Call::Put(object), "put", object, by)?;
        self.writable("put", object)?;
        let mut bytes = Vec::new();
        if let Err(e) = content.take(size.saturating_add(1)).read_to_end(&mut bytes) {
            return self.refuse("put", object, &e.to_string());
        }
        if bytes.len() as u64 != size || !object.names(&bytes) {
            return self.refuse("put", object, "the content is not what its name says");
        }
        let kept = if fault == Some(Fault::Halves) { &bytes[..bytes.len() / 2] } else { &bytes };
        self.store(object.path(), kept);
        Ok(())
    }

    fn missing(&self, objects: &[Object], by: Instant) -> Result<Vec<Object>> {
        self.begin(&Call::Missing, "look for", &format!("{} objects", objects.len()), by)?;
        let state = self.state.lock();
        let there = |o: &Object| state.objects.get(&o.path()).is_some_and(|is| o.may_have(is.len() as u64));
        Ok(objects.iter().filter(|o| !there(o)).copied().collect())
    }

    fn publish(&self, manifest: &Manifest, places: &Places, by: Instant) -> Result<()> {
        let key = &manifest.seal().key;
        self.begin(&Call::Publish(key), "publish", key, by)?;
        self.writable("publish", key)?;
        if places.manifest() != manifest.hash() {
            return self.refuse("publish", key, "the places are another manifest's");
        }
        if let Some(object) = self.missing(&places.objects(), by)?.first() {
            return self.refuse("publish", key, &format!("{object} is not there"));
        }
        let bytes = Tree::encode(manifest, places);
        let tree = TreeHash::of(&bytes);
        self.store(Object::Tree(tree).path(), &bytes);
        let tree_bytes = bytes.len() as u64;
        let entry = EntryObject { key: key.clone(), manifest: manifest.hash(), tree, tree_bytes };
        self.store(Object::entry_path(key), &entry.encode());
        Ok(())
    }
}
