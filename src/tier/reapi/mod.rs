//! A tier on a server of the Remote Execution API, version 2: the results of actions, as any tool wrote them there, are its
//! entries.
//!
//! Invariants: every call ends by its deadline; nothing that the server says is believed: names and digests are checked
//! when an entry is made of a result, contents by whoever asks for them; content goes up under the digest of what was sent, or
//! not at all. Only this room knows gRPC and its runtime. Must not know: who asks, and what is done about errors.

mod client;
mod digest;
mod errors;
mod give;
mod result;

use std::io::{self, Read};
use std::ops::Range;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tonic::Status;

use super::{Capabilities, Object, OpenError, Places, Result, Server, Tier, TierError, TierErrorKind, Tree};
use crate::model::hash::Sha256;
use crate::model::manifest::DigestKind;
use crate::model::{BlobHash, EntryKey, Manifest};
use client::{Abilities, Client};
use digest::{Function, Name};
use errors::{kind_of, why};

/// Where a token for servers with TLS is looked for.
const TOKEN: &str = "OUTFS_GRPC_TOKEN";
/// Bytes of a content that are sent in one message.
const PIECE: u64 = 1 << 20;

/// Contents in one batch: their digests, too, must fit into a message.
const TOGETHER: usize = 500;

/// The tier.
pub(super) struct ReapiTier {
    name: String,
    push: bool,
    client: Client,
    /// What the server said that it can do.
    abilities: Mutex<Option<Abilities>>,
    /// Dropped without waiting.
    runtime: Option<Runtime>,
}

impl Drop for ReapiTier {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What is asked of the server, for messages.
type Asked<'a> = (&'static str, &'a dyn ToString);

impl ReapiTier {
    /// Opens it, with the token that the environment has. Nothing is asked of the server.
    pub(super) fn open(server: &Server, push: bool) -> std::result::Result<ReapiTier, OpenError> {
        let name = super::Address::Server(server.clone()).to_string();
        let fail = |why: String| OpenError::Unusable { tier: name.clone(), why };
        let runtime = super::runtime::runtime().map_err(&fail)?;
        let token = std::env::var(TOKEN).ok().filter(|token| !token.is_empty());
        let client = {
            let _within = runtime.enter();
            Client::new(server, token.as_deref()).map_err(&fail)?
        };
        Ok(ReapiTier { name, push, client, abilities: Mutex::default(), runtime: Some(runtime) })
    }

    /// Waits for what is asked of the server, until `by`.
    fn wait<T>(
        &self,
        asked: Asked<'_>,
        by: Instant,
        answer: impl Future<Output = std::result::Result<T, Status>>,
    ) -> Result<T> {
        let late =
            || self.error(TierErrorKind::Transient { after: None }, asked, "there was no answer in time");
        let Some(runtime) = self.runtime.as_ref().filter(|_| Instant::now() < by) else { return Err(late()) };
        let answer = runtime.block_on(async { tokio::time::timeout_at(by.into(), answer).await });
        if Instant::now() >= by && !matches!(answer, Ok(Ok(_))) {
            let _within = runtime.enter();
            self.client.renew();
        }
        match answer {
            Err(_) => Err(late()),
            Ok(Err(status)) => Err(self.said(asked, &status)),
            Ok(Ok(done)) => Ok(done),
        }
    }

    /// What the server said instead of an answer.
    fn said(&self, asked: Asked<'_>, status: &Status) -> TierError {
        match kind_of(status.code()) {
            TierErrorKind::Absent => self.absent(asked),
            kind => self.error(kind, asked, why(status)),
        }
    }

    fn error(&self, kind: TierErrorKind, (op, what): Asked<'_>, why: impl ToString) -> TierError {
        TierError::new(kind, &self.name, op, what.to_string(), why)
    }

    fn absent(&self, (op, what): Asked<'_>) -> TierError {
        TierError::absent(&self.name, op, what.to_string())
    }

    fn refuse<T>(&self, asked: Asked<'_>, why: impl ToString) -> Result<T> {
        Err(self.error(TierErrorKind::Permanent, asked, why))
    }

    /// What the server can do; it is asked until it has answered once.
    fn abilities(&self, asked: Asked<'_>, by: Instant) -> Result<Abilities> {
        if let Some(known) = *self.abilities.lock() {
            return Ok(known);
        }
        let said = match self.wait(asked, by, self.client.abilities(by)) {
            // It is the instance that is not there, and not what is asked for.
            Err(e) if e.is_absent() => self.refuse(asked, "there is no such instance"),
            other => other,
        }?;
        *self.abilities.lock() = Some(said);
        Ok(said)
    }

    /// All of a content, verified; its size is bounded by the caller.
    fn content(&self, of: Abilities, name: Name, asked: Asked<'_>, by: Instant) -> Result<Vec<u8>> {
        let bytes = match name.size {
            0 => Vec::new(),
            size if size <= of.batch => self.wait(asked, by, self.client.read_small(of, name, by))?,
            size => self.wait(asked, by, self.client.read(of, name, 0, size, by))?,
        };
        match of.function.name(&bytes) == name {
            true => Ok(bytes),
            false => {
                let why = format!("the content {} does not have the hash in its name", name.hash);
                Err(self.error(TierErrorKind::Corrupt, asked, why))
            }
        }
    }

    /// In pieces, each of which is sent while the next is read.
    fn put_in_pieces(
        &self,
        (of, name): (Abilities, Name),
        object: &Object,
        content: &mut dyn Read,
        by: Instant,
    ) -> Result<()> {
        let asked: Asked<'_> = ("put", object);
        let Some(runtime) = &self.runtime else { return self.refuse(asked, "it is closed") };
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        let client = self.client.clone();
        let writing = runtime.spawn(async move { client.write(receiver.into(), by).await });
        let resource_name = self.client.upload(of, name, &unique());
        let mut hasher = Hasher::new(of.function);
        let mut at = 0;
        while at < name.size {
            let n = PIECE.min(name.size - at);
            let finish_write = at + n == name.size;
            let read = self.read_content(asked, n, content).and_then(|data| {
                hasher.update(&data);
                if finish_write {
                    self.at_its_end(asked, content)?;
                    self.is_named(
                        asked,
                        name,
                        std::mem::replace(&mut hasher, Hasher::new(of.function)).finish(),
                    )?;
                }
                Ok(data)
            });
            let data = read.inspect_err(|_| writing.abort())?;
            let request = bazel_remote_apis::google::bytestream::WriteRequest {
                resource_name: if at == 0 { resource_name.clone() } else { String::new() },
                write_offset: at as i64,
                finish_write,
                data,
            };
            at += n;
            let sent =
                runtime.block_on(async { tokio::time::timeout_at(by.into(), sender.send(request)).await });
            match sent {
                Ok(Ok(())) => {}
                // It has answered already: it may have it.
                Ok(Err(_)) => break,
                Err(_) => {
                    writing.abort();
                    let _within = runtime.enter();
                    self.client.renew();
                    return Err(self.error(
                        TierErrorKind::Transient { after: None },
                        asked,
                        "it did not take it in time",
                    ));
                }
            }
        }
        drop(sender);
        let stop = writing.abort_handle();
        let done = self.wait(asked, by, async {
            writing.await.unwrap_or_else(|_| Err(Status::cancelled("it was given up")))
        });
        stop.abort();
        match done?.committed_size {
            all if all == name.size as i64 => Ok(()),
            _ => {
                Err(self.error(TierErrorKind::Transient { after: None }, asked, "it did not take all of it"))
            }
        }
    }

    fn read_content(&self, asked: Asked<'_>, n: u64, content: &mut dyn Read) -> Result<Vec<u8>> {
        let mut bytes = vec![0; n as usize];
        match content.read_exact(&mut bytes) {
            Ok(()) => Ok(bytes),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                self.refuse(asked, "the content is shorter than was said")
            }
            Err(e) => self.refuse(asked, e),
        }
    }

    fn at_its_end(&self, asked: Asked<'_>, content: &mut dyn Read) -> Result<()> {
        match content.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => self.refuse(asked, "the content is longer than was said"),
            Err(e) => self.refuse(asked, e),
        }
    }

    fn is_named(&self, asked: Asked<'_>, name: Name, hash: BlobHash) -> Result<()> {
        match hash == name.hash {
            true => Ok(()),
            false => self.refuse(asked, "the content is not what its name says"),
        }
    }
}

impl Tier for ReapiTier {
    fn name(&self) -> &str {
        &self.name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { push: self.push, packs: false }
    }

    fn naming(&self, by: Instant) -> Result<DigestKind> {
        Ok(self.abilities(("ask what it can do", &""), by)?.function.kind())
    }

    fn unsuitable(&self, manifest: &Manifest) -> Option<String> {
        give::unsuitable(manifest)
    }

    fn find(&self, key: &EntryKey, by: Instant) -> Result<Tree> {
        let asked: Asked<'_> = ("find", key);
        let of = self.abilities(asked, by)?;
        let (action, _) = give::action(key, of.function);
        let result = self.wait(asked, by, self.client.result(of, action, by))?;
        let tree = |name| self.content(of, name, asked, by);
        let found = result::tree(key, &result, of.function, &tree);
        let (found, contents) = found.map_err(|e| match e {
            result::ResultError::Tier(e) => e,
            e => self.error(TierErrorKind::Corrupt, asked, e),
        })?;
        // A server may forget contents before it forgets who names them: what is found is whole.
        if !self.wait(asked, by, self.client.missing(of, &contents, by))?.is_empty() {
            return Err(self.absent(asked));
        }
        Ok(found)
    }

    fn get(&self, object: &Object, range: Range<u64>, by: Instant) -> Result<Vec<u8>> {
        let asked: Asked<'_> = ("get", object);
        let Object::Blob(hash, size) = *object else {
            return Err(self.absent(asked));
        };
        let of = self.abilities(asked, by)?;
        let name = Name { hash, size };
        let len = range.end.saturating_sub(range.start);
        if range.end > size || len == 0 {
            return self.refuse(asked, format!("it has {size} bytes, not {range:?}"));
        }
        match len == size && size <= of.batch {
            true => self.wait(asked, by, self.client.read_small(of, name, by)),
            false => self.wait(asked, by, self.client.read(of, name, range.start, len, by)),
        }
    }

    fn put(&self, object: &Object, size: u64, content: &mut dyn Read, by: Instant) -> Result<()> {
        let asked: Asked<'_> = ("put", object);
        if !self.push {
            return self.refuse(asked, "it was opened for reading only");
        }
        let Object::Blob(hash, named) = *object else {
            return self.refuse(asked, "it keeps nothing but contents");
        };
        if named != size {
            return self.refuse(asked, "the content is not what its name says");
        }
        let of = self.abilities(asked, by)?;
        let name = Name { hash, size };
        if size > of.batch {
            return self.put_in_pieces((of, name), object, content, by);
        }
        let bytes = self.read_content(asked, size, content)?;
        self.at_its_end(asked, content)?;
        self.is_named(asked, name, of.function.name(&bytes).hash)?;
        self.wait(asked, by, self.client.write_batch(of, &[(name, &bytes)], by))
    }

    fn get_all(&self, objects: &[Object], by: Instant) -> Result<Vec<Result<Vec<u8>>>> {
        let what = format!("{} objects", objects.len());
        let of = self.abilities(("get", &what), by)?;
        let mut all = Vec::with_capacity(objects.len());
        for some in batches(objects, of.batch, |object| name_of(object).map_or(u64::MAX, |name| name.size)) {
            let names: Vec<Name> = some.iter().filter_map(name_of).collect();
            // One that is no content, empty or larger than a batch is alone.
            if names.len() < 2 {
                all.extend(
                    some.iter()
                        .map(|object| self.get(object, 0..name_of(object).map_or(0, |name| name.size), by)),
                );
                continue;
            }
            let came = self.wait(("get", &what), by, self.client.read_batch(of, &names, by))?;
            let each = came.into_iter().zip(some);
            all.extend(each.map(|(one, object)| one.map_err(|status| self.said(("get", object), &status))));
        }
        Ok(all)
    }

    fn put_all(&self, contents: &[(Object, Vec<u8>)], by: Instant) -> Result<()> {
        let what = format!("{} objects", contents.len());
        let asked: Asked<'_> = ("put", &what);
        if !self.push {
            return self.refuse(asked, "it was opened for reading only");
        }
        let of = self.abilities(asked, by)?;
        for some in batches(contents, of.batch, |(_, bytes)| bytes.len() as u64) {
            if let [(object, bytes)] = some {
                self.put(object, bytes.len() as u64, &mut &bytes[..], by)?;
                continue;
            }
            let mut named = Vec::with_capacity(some.len());
            for (object, bytes) in some {
                let name = of.function.name(bytes);
                if name_of(object) != Some(name) {
                    return self.refuse(("put", object), "the content is not what its name says");
                }
                named.push((name, &bytes[..]));
            }
            self.wait(asked, by, self.client.write_batch(of, &named, by))?;
        }
        Ok(())
    }

    fn missing(&self, objects: &[Object], by: Instant) -> Result<Vec<Object>> {
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        let what = format!("{} objects", objects.len());
        let asked: Asked<'_> = ("look for", &what);
        let of = self.abilities(asked, by)?;
        let names: Vec<Name> = objects.iter().filter_map(name_of).collect();
        let missing: std::collections::HashSet<Name> =
            self.wait(asked, by, self.client.missing(of, &names, by))?.into_iter().collect();
        let lacks = |object: &&Object| name_of(object).is_none_or(|name| missing.contains(&name));
        Ok(objects.iter().filter(lacks).copied().collect())
    }

    fn publish(&self, manifest: &Manifest, places: &Places, by: Instant) -> Result<()> {
        let asked: Asked<'_> = ("publish", &manifest.seal().key);
        if !self.push {
            return self.refuse(asked, "it was opened for reading only");
        }
        if places.manifest() != manifest.hash() {
            return self.refuse(asked, "the places are another manifest's");
        }
        if let Some(why) = give::unsuitable(manifest) {
            return self.refuse(asked, why);
        }
        let of = self.abilities(asked, by)?;
        let metadata = manifest.find(b"metadata.json").and_then(|n| manifest.get(n)?.hash());
        let metadata = metadata.and_then(|hash| places.carried(&hash));
        let given = give::result(manifest, metadata, places, of.function);
        let names: Vec<Name> = given.made.iter().map(|(name, _)| *name).collect();
        let missing = self.wait(asked, by, self.client.missing(of, &names, by))?;
        let lacking = given.made.into_iter().filter(|(name, _)| missing.contains(name));
        let lacking = lacking.map(|(name, bytes)| (Object::Blob(name.hash, name.size), bytes));
        self.put_all(&lacking.collect::<Vec<_>>(), by)?;
        self.wait(asked, by, self.client.update(of, given.action, given.result, by))
    }
}

/// What the API calls a content; `None` of anything else.
fn name_of(object: &Object) -> Option<Name> {
    match *object {
        Object::Blob(hash, size) => Some(Name { hash, size }),
        _ => None,
    }
}

/// In their order, as many together as have `most` bytes and go into a message; what has more is alone.
fn batches<T>(all: &[T], most: u64, size: impl Fn(&T) -> u64) -> impl Iterator<Item = &[T]> {
    let mut rest = all;
    std::iter::from_fn(move || {
        let mut bytes = 0u64;
        let fit = rest.iter().take(TOGETHER).take_while(|one| {
            bytes = bytes.saturating_add(size(one));
            bytes <= most
        });
        let (some, after) = rest.split_at(fit.count().max(1).min(rest.len()));
        rest = after;
        (!some.is_empty()).then_some(some)
    })
}

/// Hashes what is sent.
enum Hasher {
    Sha256(Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    fn new(function: Function) -> Hasher {
        match function {
            Function::Sha256 => Hasher::Sha256(Sha256::default()),
            Function::Blake3 => Hasher::Blake3(Box::default()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    fn finish(self) -> BlobHash {
        match self {
            Hasher::Sha256(hasher) => hasher.finish(),
            Hasher::Blake3(hasher) => BlobHash(*hasher.finalize().as_bytes()),
        }
    }
}

/// A name in the form of a UUID, for an upload that nobody else makes.
fn unique() -> String {
    use std::hash::{BuildHasher, RandomState};
    let word = |n: u64| RandomState::new().hash_one(n);
    let (a, b) = (word(1), word(2));
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xfff,
        b >> 52,
        b & 0xffff_ffff_ffff
    )
}
