//! A server of the Remote Execution API in this process: strict about what it is asked and given, and as ill as it is told to
//! be.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use bazel_remote_apis::build::bazel::remote::execution::v2 as re;
use bazel_remote_apis::google::bytestream::byte_stream_server::{ByteStream, ByteStreamServer};
use bazel_remote_apis::google::bytestream::{
    QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest, WriteResponse,
};
use bazel_remote_apis::google::rpc;
use outfs::model::BlobHash;
use prost::Message;
use re::action_cache_server::{ActionCache, ActionCacheServer};
use re::capabilities_server::{Capabilities, CapabilitiesServer};
use re::content_addressable_storage_server::{ContentAddressableStorage, ContentAddressableStorageServer};
use re::digest_function::Value;
use tokio_stream::Stream;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// It cannot just now.
    Busy,
    /// There are too many calls.
    Often,
    /// It refuses, and will.
    Denied,
    /// It never answers.
    Silent,
    /// One bit of what it answers is wrong.
    Flipped,
    /// Half of what it answers is missing.
    Halved,
    /// It answers more than it was asked for.
    Longer,
}

/// A call: its name, and the content that it is about, where it is about one.
type Chooser = Arc<dyn Fn(&str) -> Option<Wrong> + Send + Sync>;

/// What it has.
struct State {
    instance: String,
    function: Value,
    batch: usize,
    blobs: HashMap<(String, i64), Vec<u8>>,
    /// Hashes of contents that it cannot give just now.
    busy: HashSet<String>,
    actions: HashMap<(String, i64), re::ActionResult>,
    wrong: Chooser,
    calls: HashMap<String, u64>,
    token: Option<String>,
}

/// The server; it ends when this is dropped.
pub struct Server {
    state: Shared,
    at: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<State>>);

/// Contents of so many bytes go in one message.
pub const BATCH: usize = 1 << 20;

impl Server {
    /// An empty one, whose digests are of this function.
    pub fn start(instance: &str, function: Value) -> Server {
        let state = State {
            instance: instance.to_owned(),
            function,
            batch: BATCH,
            blobs: HashMap::new(),
            busy: HashSet::new(),
            actions: HashMap::new(),
            wrong: Arc::new(|_| None),
            calls: HashMap::new(),
            token: None,
        };
        let state = Shared(Arc::new(Mutex::new(state)));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let (all, incoming) = {
            let _within = runtime.enter();
            let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a port");
            let all = tonic::transport::Server::builder()
                .add_service(CapabilitiesServer::new(state.clone()))
                .add_service(ActionCacheServer::new(state.clone()))
                .add_service(ContentAddressableStorageServer::new(state.clone()))
                .add_service(ByteStreamServer::new(state.clone()));
            (all, incoming)
        };
        let at = incoming.local_addr().expect("it is bound");
        runtime.spawn(async move { all.serve_with_incoming(incoming).await });
        Server { state, at, _runtime: runtime }
    }

    /// Its address, as a tier.
    pub fn tier(&self) -> String {
        let instance = self.state.lock().instance.clone();
        if instance.is_empty() {
            format!("grpc://{}", self.at)
        } else {
            format!("grpc://{}/{instance}", self.at)
        }
    }

    pub fn port(&self) -> u16 {
        self.at.port()
    }

    /// What came with the last question what it can do, to say who asks.
    pub fn token(&self) -> Option<String> {
        self.state.lock().token.clone()
    }

    /// Its address; it goes on for ever.
    pub fn leak(self) -> String {
        let tier = self.tier();
        std::mem::forget(self);
        tier
    }

    /// The digest of these bytes there.
    pub fn digest(&self, bytes: &[u8]) -> re::Digest {
        digest(self.state.lock().function, bytes)
    }

    /// It has this content.
    pub fn add(&self, bytes: &[u8]) -> re::Digest {
        let mut state = self.state.lock();
        let digest = digest(state.function, bytes);
        state.blobs.insert((digest.hash.clone(), digest.size_bytes), bytes.to_vec());
        digest
    }

    /// It has this content under this digest, whatever that is.
    pub fn set(&self, digest: &re::Digest, bytes: Option<Vec<u8>>) {
        let (mut state, name) = (self.state.lock(), (digest.hash.clone(), digest.size_bytes));
        match bytes {
            Some(bytes) => drop(state.blobs.insert(name, bytes)),
            None => drop(state.blobs.remove(&name)),
        }
    }

    /// It cannot give this content just now, and does not say when.
    pub fn set_busy(&self, digest: &re::Digest) {
        self.state.lock().busy.insert(digest.hash.clone());
    }

    /// It has this result of this action, whatever it says.
    pub fn set_result(&self, action: &re::Digest, result: re::ActionResult) {
        self.state.lock().actions.insert((action.hash.clone(), action.size_bytes), result);
    }

    /// The results that it has, with their actions.
    pub fn results(&self) -> Vec<((String, i64), re::ActionResult)> {
        self.state.lock().actions.iter().map(|(name, result)| (name.clone(), result.clone())).collect()
    }

    /// From now on, `choose` is asked before each call what goes wrong with it.
    pub fn set_wrong(&self, choose: impl Fn(&str) -> Option<Wrong> + Send + Sync + 'static) {
        self.state.lock().wrong = Arc::new(choose);
    }

    /// How often it was called by this name.
    pub fn calls(&self, name: &str) -> u64 {
        self.state.lock().calls.get(name).copied().unwrap_or(0)
    }
}

/// The digest of these bytes.
pub fn digest(function: Value, bytes: &[u8]) -> re::Digest {
    let hash = match function {
        Value::Sha256 => BlobHash::sha256_of(bytes),
        _ => BlobHash::of(bytes),
    };
    re::Digest { hash: hash.to_hex(), size_bytes: bytes.len() as i64 }
}

fn bad<T>(why: impl Into<String>) -> Result<T, Status> {
    Err(Status::invalid_argument(why))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Counts a call, and has happen what goes wrong with it.
    async fn begin(
        &self,
        call: &str,
        instance: &str,
        function: Option<i32>,
    ) -> Result<Option<Wrong>, Status> {
        let wrong = {
            let mut state = self.lock();
            *state.calls.entry(call.to_owned()).or_default() += 1;
            if instance != state.instance {
                return Err(Status::not_found("there is no such instance"));
            }
            if function.is_some_and(|f| f != state.function as i32) {
                return bad("that is not the digest function here");
            }
            state.wrong.clone()
        };
        match wrong(call) {
            Some(Wrong::Busy) => Err(Status::unavailable("not now")),
            Some(Wrong::Often) => Err(Status::resource_exhausted("too many calls")),
            Some(Wrong::Denied) => Err(Status::permission_denied("not you")),
            Some(Wrong::Silent) => std::future::pending().await,
            other => Ok(other),
        }
    }

    fn blob(&self, digest: &Option<re::Digest>) -> Result<Vec<u8>, Status> {
        let Some(digest) = digest else { return bad("there is no digest") };
        let state = self.lock();
        if state.busy.contains(&digest.hash) {
            return Err(Status::unavailable("not now"));
        }
        let found = state.blobs.get(&(digest.hash.clone(), digest.size_bytes)).cloned();
        found.ok_or_else(|| Status::not_found("it is not here"))
    }

    fn store(&self, digest: &Option<re::Digest>, data: &[u8]) -> Result<(), Status> {
        let function = self.lock().function;
        if digest.as_ref() != Some(&self::digest(function, data)) {
            return bad("the digest is not that of the content");
        }
        let named = digest.clone().unwrap_or_default();
        self.lock().blobs.insert((named.hash, named.size_bytes), data.to_vec());
        Ok(())
    }

    /// What a result says is here, and can be.
    fn holds(&self, result: &re::ActionResult) -> Result<(), Status> {
        let mut paths = Vec::new();
        for file in &result.output_files {
            self.blob(&file.digest)?;
            paths.push(&file.path);
        }
        for link in &result.output_symlinks {
            if link.target.is_empty() {
                return bad("a symlink has no target");
            }
            paths.push(&link.path);
        }
        for directory in &result.output_directories {
            let Ok(tree) = re::Tree::decode(&self.blob(&directory.tree_digest)?[..]) else {
                return bad("no tree");
            };
            self.tree(&tree)?;
            paths.push(&directory.path);
        }
        for log in [&result.stdout_digest, &result.stderr_digest] {
            if log.is_some() {
                self.blob(log)?;
            }
        }
        let sound = |path: &&String| path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if let Some(path) = paths.iter().find(|path| !sound(path)) {
            return bad(format!("{path:?} is no path"));
        }
        let mut unique = paths.clone();
        unique.sort();
        unique.dedup();
        if unique.len() < paths.len() { bad("a path comes twice") } else { Ok(()) }
    }

    fn tree(&self, tree: &re::Tree) -> Result<(), Status> {
        let function = self.lock().function;
        let children: Vec<_> =
            tree.children.iter().map(|child| digest(function, &child.encode_to_vec())).collect();
        for directory in tree.root.iter().chain(&tree.children) {
            for names in [
                directory.files.iter().map(|f| &f.name).collect::<Vec<_>>(),
                directory.directories.iter().map(|d| &d.name).collect(),
                directory.symlinks.iter().map(|s| &s.name).collect(),
            ] {
                if names.windows(2).any(|two| two[0] >= two[1]) {
                    return bad("names are not in order");
                }
            }
            for file in &directory.files {
                self.blob(&file.digest)?;
            }
            for below in &directory.directories {
                if !below.digest.as_ref().is_some_and(|digest| children.contains(digest)) {
                    return bad("a directory is not in its tree");
                }
            }
        }
        Ok(())
    }

    /// The digest in the name of a resource, after `kind`.
    fn resource(&self, name: &str, kind: &str) -> Result<re::Digest, Status> {
        let (instance, function) = {
            let state = self.lock();
            (state.instance.clone(), state.function)
        };
        let rest = match instance.is_empty() {
            true => Some(name),
            false => name.strip_prefix(&instance).and_then(|rest| rest.strip_prefix('/')),
        };
        let Some(rest) = rest.and_then(|rest| rest.strip_prefix(kind)) else {
            return bad("another resource");
        };
        let rest = match (kind, function) {
            ("uploads/", _) => rest.split_once("/blobs/").map(|(unique, rest)| {
                assert_eq!(unique.len(), 36, "{unique} is no UUID");
                rest
            }),
            _ => Some(rest),
        };
        let Some(rest) = rest else { return bad("no digest") };
        let rest = if function == Value::Sha256 { rest } else { rest.strip_prefix("blake3/").unwrap_or("") };
        let Some((hash, size)) = rest.split_once('/') else { return bad("no digest") };
        let size = size.parse().map_err(|_| Status::invalid_argument("no size"))?;
        Ok(re::Digest { hash: hash.to_owned(), size_bytes: size })
    }
}

/// What goes wrong with bytes that are given.
fn give(mut bytes: Vec<u8>, wrong: Option<Wrong>) -> Vec<u8> {
    match wrong {
        Some(Wrong::Flipped) if !bytes.is_empty() => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
        }
        Some(Wrong::Halved) => bytes.truncate(bytes.len() / 2),
        Some(Wrong::Longer) => bytes.extend_from_slice(b"and more"),
        _ => {}
    }
    bytes
}

#[tonic::async_trait]
impl Capabilities for Shared {
    async fn get_capabilities(
        &self,
        request: Request<re::GetCapabilitiesRequest>,
    ) -> Result<Response<re::ServerCapabilities>, Status> {
        self.begin("capabilities", &request.get_ref().instance_name, None).await?;
        let mut state = self.lock();
        let token = request.metadata().get("authorization").and_then(|token| token.to_str().ok());
        state.token = token.map(str::to_owned);
        let cache = re::CacheCapabilities {
            digest_functions: vec![Value::Md5 as i32, state.function as i32],
            action_cache_update_capabilities: Some(re::ActionCacheUpdateCapabilities {
                update_enabled: true,
            }),
            max_batch_total_size_bytes: state.batch as i64,
            ..Default::default()
        };
        Ok(Response::new(re::ServerCapabilities { cache_capabilities: Some(cache), ..Default::default() }))
    }
}

#[tonic::async_trait]
impl ActionCache for Shared {
    async fn get_action_result(
        &self,
        request: Request<re::GetActionResultRequest>,
    ) -> Result<Response<re::ActionResult>, Status> {
        let asked = request.into_inner();
        self.begin("result", &asked.instance_name, Some(asked.digest_function)).await?;
        let Some(action) = asked.action_digest else { return bad("there is no digest") };
        let found = self.lock().actions.get(&(action.hash, action.size_bytes)).cloned();
        found.map(Response::new).ok_or_else(|| Status::not_found("there is no result"))
    }

    async fn update_action_result(
        &self,
        request: Request<re::UpdateActionResultRequest>,
    ) -> Result<Response<re::ActionResult>, Status> {
        let asked = request.into_inner();
        self.begin("update", &asked.instance_name, Some(asked.digest_function)).await?;
        let (Some(action), Some(result)) = (asked.action_digest, asked.action_result) else {
            return bad("there is no result");
        };
        self.holds(&result)?;
        // An action that is here must be one that can be executed.
        if let Ok(described) = self.blob(&Some(action.clone())) {
            let Ok(described) = re::Action::decode(&described[..]) else { return bad("it is no action") };
            let Ok(command) = re::Command::decode(&self.blob(&described.command_digest)?[..]) else {
                return bad("it has no command");
            };
            if command.arguments.is_empty() {
                return bad("its command says nothing");
            }
            self.blob(&described.input_root_digest)?;
        }
        self.lock().actions.insert((action.hash, action.size_bytes), result.clone());
        Ok(Response::new(result))
    }
}

type Never<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn nothing<T>() -> Result<T, Status> {
    Err(Status::unimplemented("not here"))
}

#[tonic::async_trait]
impl ContentAddressableStorage for Shared {
    type GetTreeStream = Never<re::GetTreeResponse>;
    type GetChunkMappingStream = Never<re::GetChunkMappingResponse>;

    async fn find_missing_blobs(
        &self,
        request: Request<re::FindMissingBlobsRequest>,
    ) -> Result<Response<re::FindMissingBlobsResponse>, Status> {
        let asked = request.into_inner();
        self.begin("missing", &asked.instance_name, Some(asked.digest_function)).await?;
        let state = self.lock();
        let lacks = |d: &re::Digest| !state.blobs.contains_key(&(d.hash.clone(), d.size_bytes));
        let missing_blob_digests = asked.blob_digests.into_iter().filter(lacks).collect();
        Ok(Response::new(re::FindMissingBlobsResponse { missing_blob_digests }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<re::BatchUpdateBlobsRequest>,
    ) -> Result<Response<re::BatchUpdateBlobsResponse>, Status> {
        let asked = request.into_inner();
        self.begin("batch update", &asked.instance_name, Some(asked.digest_function)).await?;
        if asked.requests.iter().map(|r| r.data.len()).sum::<usize>() > BATCH {
            return bad("that is too much at once");
        }
        let stored = asked.requests.into_iter().map(|r| {
            let status = match self.store(&r.digest, &r.data) {
                Ok(()) => rpc::Status::default(),
                Err(e) => {
                    rpc::Status { code: e.code() as i32, message: e.message().into(), ..Default::default() }
                }
            };
            re::batch_update_blobs_response::Response { digest: r.digest, status: Some(status) }
        });
        Ok(Response::new(re::BatchUpdateBlobsResponse { responses: stored.collect() }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<re::BatchReadBlobsRequest>,
    ) -> Result<Response<re::BatchReadBlobsResponse>, Status> {
        let asked = request.into_inner();
        let wrong = self.begin("batch read", &asked.instance_name, Some(asked.digest_function)).await?;
        if asked.digests.iter().map(|d| d.size_bytes as usize).sum::<usize>() > BATCH {
            return bad("that is too much at once");
        }
        let read = asked.digests.into_iter().map(|digest| {
            let digest = Some(digest);
            let (data, status) = match self.blob(&digest) {
                Ok(data) => (give(data, wrong), rpc::Status::default()),
                Err(e) => (Vec::new(), rpc::Status { code: e.code() as i32, ..Default::default() }),
            };
            re::batch_read_blobs_response::Response { digest, data, compressor: 0, status: Some(status) }
        });
        Ok(Response::new(re::BatchReadBlobsResponse { responses: read.collect() }))
    }

    async fn get_tree(
        &self,
        _: Request<re::GetTreeRequest>,
    ) -> Result<Response<Self::GetTreeStream>, Status> {
        nothing()
    }

    async fn split_blob(
        &self,
        _: Request<re::SplitBlobRequest>,
    ) -> Result<Response<re::SplitBlobResponse>, Status> {
        nothing()
    }

    async fn get_chunk_mapping(
        &self,
        _: Request<re::GetChunkMappingRequest>,
    ) -> Result<Response<Self::GetChunkMappingStream>, Status> {
        nothing()
    }

    async fn splice_blob(
        &self,
        _: Request<re::SpliceBlobRequest>,
    ) -> Result<Response<re::SpliceBlobResponse>, Status> {
        nothing()
    }

    async fn register_chunk_mapping(
        &self,
        _: Request<Streaming<re::RegisterChunkMappingRequest>>,
    ) -> Result<Response<re::RegisterChunkMappingResponse>, Status> {
        nothing()
    }
}

#[tonic::async_trait]
impl ByteStream for Shared {
    type ReadStream = Never<ReadResponse>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let asked = request.into_inner();
        let digest = self.resource(&asked.resource_name, "blobs/")?;
        let instance = self.lock().instance.clone();
        let wrong = self.begin("read", &instance, None).await?;
        let bytes = self.blob(&Some(digest))?;
        let from = asked.read_offset as usize;
        if asked.read_offset < 0 || from > bytes.len() {
            return Err(Status::out_of_range("it ends before that"));
        }
        let most = if asked.read_limit == 0 { usize::MAX } else { asked.read_limit as usize };
        let bytes = give(bytes[from..bytes.len().min(from.saturating_add(most))].to_vec(), wrong);
        let pieces: Vec<_> =
            bytes.chunks(60_000).map(|data| Ok(ReadResponse { data: data.to_vec() })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        let mut pieces = request.into_inner();
        let instance = self.lock().instance.clone();
        self.begin("write", &instance, None).await?;
        let (mut digest, mut bytes) = (None, Vec::new());
        while let Some(piece) = pieces.message().await? {
            if digest.is_none() {
                digest = Some(self.resource(&piece.resource_name, "uploads/")?);
            } else if !piece.resource_name.is_empty() {
                return bad("the name comes once");
            }
            if piece.write_offset != bytes.len() as i64 {
                return bad("something lacks");
            }
            bytes.extend_from_slice(&piece.data);
            if piece.finish_write {
                self.store(&digest, &bytes)?;
                return Ok(Response::new(WriteResponse { committed_size: bytes.len() as i64 }));
            }
        }
        Err(Status::new(Code::InvalidArgument, "it does not end"))
    }

    async fn query_write_status(
        &self,
        _: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        nothing()
    }
}
