//! A tier in an S3 bucket: the objects of `docs/format.md`, below a prefix.
//!
//! Invariants: every call ends by its deadline, repeated requests included, and takes no more than it asked for; content goes up under the hash of what was sent,
//! or not at all; an entry object is put last, and no conditional request is needed. Only this room knows the runtime, and
//! nothing of it says a credential. Must not know: who asks, and what is done about errors.

mod bounded;
mod errors;
mod profile;

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, MultipartUpload, ObjectStoreExt, PutPayload, RetryConfig,
};
use tokio::runtime::Runtime;

use super::{
    Bucket, Capabilities, EntryObject, Object, OpenError, Places, Result, Tier, TierError, TierErrorKind,
    Tree, find_with,
};
use crate::model::{EntryKey, Manifest, TreeHash};
use errors::{kind_of, why};

/// Objects of more bytes are put in parts of so many at least.
const PART: u64 = 8 << 20;
/// S3 takes 10,000.
const MOST_PARTS: u64 = 9_000;
/// More than an entry object can have.
const MOST_ENTRY: u64 = 1024;
/// Objects that are asked for at a time.
const AT_A_TIME: usize = 8;
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// The tier.
pub(super) struct S3Tier {
    name: String,
    prefix: Path,
    push: bool,
    bucket: Arc<AmazonS3>,
    /// Dropped without waiting.
    runtime: Option<Runtime>,
}

impl Drop for S3Tier {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl S3Tier {
    /// Opens it, with the credentials that the environment or the profile has. Nothing is asked of the server.
    pub(super) fn open(address: &Bucket, push: bool) -> std::result::Result<S3Tier, OpenError> {
        let name = address.to_string();
        let fail = |why: String| OpenError::Unusable { tier: name.clone(), why };
        // A provider that is there already is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let bucket = builder(address).map_err(&fail)?.build().map_err(|e| fail(why(&e)))?;
        let prefix = Path::parse(&address.prefix).map_err(|e| fail(e.to_string()))?;
        let runtime = super::runtime::runtime().map_err(&fail)?;
        Ok(S3Tier { name: name.clone(), prefix, push, bucket: Arc::new(bucket), runtime: Some(runtime) })
    }

    fn path(&self, below: &str) -> Path {
        below.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Waits for what is asked of the server, until `by`.
    fn wait<T>(
        &self,
        (op, what): (&'static str, &dyn ToString),
        by: Instant,
        asked: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T> {
        let fail = |kind, why: String| TierError::new(kind, &self.name, op, what.to_string(), why);
        let late = || fail(TierErrorKind::Transient { after: None }, "there was no answer in time".into());
        let Some(runtime) = self.runtime.as_ref().filter(|_| Instant::now() < by) else { return Err(late()) };
        match runtime.block_on(async { tokio::time::timeout_at(by.into(), asked).await }) {
            Err(_) => Err(late()),
            Ok(Err(e)) => match kind_of(&e) {
                TierErrorKind::Absent => Err(TierError::absent(&self.name, op, what.to_string())),
                kind => Err(fail(kind, why(&e))),
            },
            Ok(Ok(done)) => Ok(done),
        }
    }

    fn refuse<T>(&self, op: &'static str, what: &dyn ToString, why: impl ToString) -> Result<T> {
        Err(TierError::new(TierErrorKind::Permanent, &self.name, op, what.to_string(), why))
    }

    fn writable(&self, op: &'static str, what: &dyn ToString) -> Result<()> {
        if self.push { Ok(()) } else { self.refuse(op, what, "it was opened for reading only") }
    }

    fn put_whole(&self, path: &Path, what: &dyn ToString, bytes: Vec<u8>, by: Instant) -> Result<()> {
        let payload = PutPayload::from(bytes);
        self.wait(("put", what), by, async { self.bucket.put(path, payload).await.map(drop) })
    }

    /// In parts, each of which is sent while nothing else is read. What is begun and not finished is given up.
    fn put_in_parts(&self, object: &Object, size: u64, content: &mut dyn Read, by: Instant) -> Result<()> {
        let asked = ("put", object as &dyn ToString);
        let path = self.path(&object.path());
        let mut upload = self.wait(asked, by, self.bucket.put_multipart(&path))?;
        let sent = self.send_parts(object, size, content, by, &mut *upload);
        if sent.is_err() {
            let soon = Instant::now() + CONNECT;
            if let Err(e) = self.wait(("give up", object), soon, upload.abort()) {
                tracing::debug!("{e}");
            }
        }
        sent
    }

    fn send_parts(
        &self,
        object: &Object,
        size: u64,
        content: &mut dyn Read,
        by: Instant,
        upload: &mut dyn MultipartUpload,
    ) -> Result<()> {
        let part = PART.max(size.div_ceil(MOST_PARTS));
        let (mut left, mut hasher) = (size, blake3::Hasher::new());
        while left > 0 {
            let bytes = self.read_content(object, left.min(part), content)?;
            left -= bytes.len() as u64;
            hasher.update(&bytes);
            self.wait(("put", object), by, upload.put_part(PutPayload::from(bytes)))?;
        }
        self.at_its_end(object, content)?;
        if !object.is_hash(&hasher.finalize()) {
            return self.refuse("put", object, "the content is not what its name says");
        }
        self.wait(("put", object), by, upload.complete()).map(drop)
    }

    fn read_content(&self, object: &Object, n: u64, content: &mut dyn Read) -> Result<Vec<u8>> {
        let mut bytes = vec![0; n as usize];
        match content.read_exact(&mut bytes) {
            Ok(()) => Ok(bytes),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                self.refuse("put", object, "the content is shorter than was said")
            }
            Err(e) => self.refuse("put", object, e),
        }
    }

    fn at_its_end(&self, object: &Object, content: &mut dyn Read) -> Result<()> {
        match content.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => self.refuse("put", object, "the content is longer than was said"),
            Err(e) => self.refuse("put", object, e),
        }
    }

    fn get_entry(&self, key: &EntryKey, by: Instant) -> Result<Vec<u8>> {
        let path = Object::entry_path(key);
        let asked = async {
            let got = self.bucket.get(&self.path(&path)).await?;
            if got.meta.size > MOST_ENTRY { Ok(None) } else { got.bytes().await.map(Some) }
        };
        match self.wait(("find", key), by, asked)? {
            Some(bytes) => Ok(bytes.to_vec()),
            None => {
                let kind = TierErrorKind::Corrupt;
                Err(TierError::new(kind, &self.name, "find", path, "it is too large for an entry object"))
            }
        }
    }
}

impl Tier for S3Tier {
    fn name(&self) -> &str {
        &self.name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { push: self.push, packs: true }
    }

    fn find(&self, key: &EntryKey, by: Instant) -> Result<Tree> {
        let get_entry = || self.get_entry(key, by);
        find_with(&self.name, key, get_entry, |object, bytes| self.get(object, 0..bytes, by))
    }

    fn get(&self, object: &Object, range: Range<u64>, by: Instant) -> Result<Vec<u8>> {
        let path = self.path(&object.path());
        let bytes = self.wait(("get", object), by, self.bucket.get_range(&path, range.clone()))?;
        if bytes.len() as u64 != range.end - range.start {
            return Err(TierError::corrupt(&self.name, object, "it gave another number of bytes"));
        }
        Ok(bytes.into())
    }

    fn put(&self, object: &Object, size: u64, content: &mut dyn Read, by: Instant) -> Result<()> {
        self.writable("put", object)?;
        if size > PART {
            return self.put_in_parts(object, size, content, by);
        }
        let bytes = self.read_content(object, size, content)?;
        self.at_its_end(object, content)?;
        if !object.names(&bytes) {
            return self.refuse("put", object, "the content is not what its name says");
        }
        self.put_whole(&self.path(&object.path()), object, bytes, by)
    }

    fn missing(&self, objects: &[Object], by: Instant) -> Result<Vec<Object>> {
        let mut missing = Vec::new();
        for some in objects.chunks(AT_A_TIME) {
            let asked = async {
                // Those that are not waited for any more end with it.
                let mut heads = tokio::task::JoinSet::new();
                for (n, object) in some.iter().enumerate() {
                    let (bucket, path) = (self.bucket.clone(), self.path(&object.path()));
                    heads.spawn(async move { (n, bucket.head(&path).await) });
                }
                let mut there = vec![false; some.len()];
                while let Some(head) = heads.join_next().await {
                    let (n, head) = head?;
                    there[n] = match head {
                        Ok(meta) => some[n].may_have(meta.size),
                        Err(e) if kind_of(&e) == TierErrorKind::Absent => false,
                        Err(e) => return Err(e),
                    };
                }
                Ok(there)
            };
            let there = self.wait(("look for", &format!("{} objects", some.len())), by, asked)?;
            missing.extend(some.iter().zip(there).filter(|(_, there)| !there).map(|(object, _)| *object));
        }
        // Nothing was asked for nothing, but in time.
        Ok(missing)
    }

    fn publish(&self, manifest: &Manifest, places: &Places, by: Instant) -> Result<()> {
        let key = &manifest.seal().key;
        self.writable("publish", key)?;
        if places.manifest() != manifest.hash() {
            return self.refuse("publish", key, "the places are another manifest's");
        }
        let bytes = Tree::encode(manifest, places);
        let (tree, tree_bytes) = (TreeHash::of(&bytes), bytes.len() as u64);
        self.put(&Object::Tree(tree), tree_bytes, &mut &bytes[..], by)?;
        let entry = EntryObject { key: key.clone(), manifest: manifest.hash(), tree, tree_bytes };
        self.put_whole(&self.path(&Object::entry_path(key)), key, entry.encode(), by)
    }
}

/// The bucket's client: the environment's settings, the profile's where it has none, and the address above both.
fn builder(address: &Bucket) -> std::result::Result<AmazonS3Builder, String> {
    let mut builder = AmazonS3Builder::from_env();
    let has = |b: &AmazonS3Builder, key| b.get_config_value(&key).is_some();
    if !has(&builder, AmazonS3ConfigKey::AccessKeyId)
        && !has(&builder, AmazonS3ConfigKey::WebIdentityTokenFile)
        && let Some(found) = profile::credentials()?
    {
        builder = builder.with_access_key_id(found.key_id).with_secret_access_key(found.secret);
        if let Some(token) = found.token {
            builder = builder.with_token(token);
        }
    }
    let region = match &address.region {
        Some(region) => Some(region.clone()),
        None if has(&builder, AmazonS3ConfigKey::Region)
            || has(&builder, AmazonS3ConfigKey::DefaultRegion) =>
        {
            None
        }
        None => profile::region(),
    };
    if let Some(region) = region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &address.endpoint {
        builder = builder
            .with_config(AmazonS3ConfigKey::S3Endpoint, endpoint)
            .with_virtual_hosted_style_request(false);
    }
    let plain = builder
        .get_config_value(&AmazonS3ConfigKey::S3Endpoint)
        .is_some_and(|e| e.starts_with("http://"))
        || builder.get_config_value(&AmazonS3ConfigKey::Endpoint).is_some_and(|e| e.starts_with("http://"));
    let mut options =
        ClientOptions::new().with_allow_http(plain).with_connect_timeout(CONNECT).with_timeout_disabled();
    for certificate in certificates()? {
        options = options.with_root_certificate(certificate);
    }
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(50),
        max_backoff: Duration::from_secs(2),
        base: 2.,
    };
    // The deadline of each call bounds it.
    let retry = RetryConfig { backoff, max_retries: 4, retry_timeout: Duration::from_secs(60) };
    let builder = builder.with_bucket_name(&address.bucket).with_client_options(options);
    Ok(builder.with_retry(retry).with_http_connector(bounded::Bounded))
}

/// Certificates of authorities to be trusted beside the system's, as the programs of AWS find them.
fn certificates() -> std::result::Result<Vec<Certificate>, String> {
    let Some(path) = std::env::var_os("AWS_CA_BUNDLE").filter(|p| !p.is_empty()) else {
        return Ok(Vec::new());
    };
    let of = |why: String| format!("AWS_CA_BUNDLE, {}: {why}", path.display());
    let pem = std::fs::read(&path).map_err(|e| of(e.to_string()))?;
    Certificate::from_pem_bundle(&pem).map_err(|e| of(e.to_string()))
}
