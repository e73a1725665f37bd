//! The calls to a server, each as the API has it.
//!
//! Invariants: no answer takes more memory than it was asked for, with a bound where nobody can know; a call ends by its
//! deadline, tries included; only calls that change nothing, or the same again, are tried again. Credentials go to servers with
//! TLS alone. Must not know: entries.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bazel_remote_apis::build::bazel::remote::execution::v2 as re;
use bazel_remote_apis::google::bytestream::byte_stream_client::ByteStreamClient;
use bazel_remote_apis::google::bytestream::{ReadRequest, WriteRequest, WriteResponse};
use parking_lot::Mutex;
use re::action_cache_client::ActionCacheClient;
use re::capabilities_client::CapabilitiesClient;
use re::content_addressable_storage_client::ContentAddressableStorageClient;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use super::digest::{Function, Name};
use super::errors::kind_of;
use crate::tier::{Server, TierErrorKind};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection on which nothing comes is asked for a sign of life after so long; servers close those that ask more often than every
/// five minutes, as one does that only sends a large content.
const ASKED: Duration = Duration::from_secs(360);
/// It is given up when nothing came for so long after that.
const ALIVE: Duration = Duration::from_secs(20);
/// Bytes under way on a stream: what a fast link with a long way holds.
const UNDER_WAY: u32 = 4 << 20;
/// The largest result of an action.
const MOST_RESULT: usize = 64 << 20;
/// The largest message with content. Servers take 4 MiB where they say nothing else.
const MOST_MESSAGE: usize = 8 << 20;
/// Contents that are sent or asked for together, in bytes.
const BATCH: i64 = (4 << 20) - (64 << 10);
/// Contents that are looked for together.
const LOOKED_FOR: usize = 10_000;
/// How often a call is tried, and how long at first it is waited in between.
const TRIES: (u32, Duration) = (4, Duration::from_millis(50));

pub(super) type Result<T> = std::result::Result<T, Status>;

/// What a server can do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Abilities {
    pub function: Function,
    /// Bytes of contents in one message.
    pub batch: u64,
}

/// A server.
#[derive(Clone)]
pub(super) struct Client {
    endpoint: Endpoint,
    channel: Arc<Mutex<Channel>>,
    instance: String,
    token: Option<MetadataValue<Ascii>>,
}

impl Client {
    /// Nothing is asked yet. To be called within a runtime.
    pub fn new(server: &Server, token: Option<&str>) -> std::result::Result<Client, String> {
        let scheme = if server.tls { "https" } else { "http" };
        let fail = |e: tonic::transport::Error| e.to_string();
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{}", server.host))
            .map_err(fail)?
            .connect_timeout(CONNECT)
            .tcp_keepalive(Some(ALIVE))
            .http2_keep_alive_interval(ASKED)
            .keep_alive_timeout(ALIVE)
            .initial_stream_window_size(UNDER_WAY)
            .initial_connection_window_size(UNDER_WAY * 4);
        if server.tls {
            endpoint = endpoint.tls_config(ClientTlsConfig::new().with_native_roots()).map_err(fail)?;
        }
        let token = match token.filter(|_| server.tls) {
            // What is wrong with it is not said, since that could say what it is.
            Some(token) => Some(
                format!("Bearer {token}")
                    .parse()
                    .map_err(|_| "the token cannot be sent in a header".to_owned())?,
            ),
            None => None,
        };
        let channel = Arc::new(Mutex::new(endpoint.connect_lazy()));
        Ok(Client { endpoint, channel, instance: server.instance.clone(), token })
    }

    /// Has calls take another connection from now on: one on which no answer came may be dead without anybody saying so. To be
    /// called within a runtime.
    pub fn renew(&self) {
        *self.channel.lock() = self.endpoint.connect_lazy();
    }

    fn channel(&self) -> Channel {
        self.channel.lock().clone()
    }

    fn request<T>(&self, message: T, by: Instant) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(by.saturating_duration_since(Instant::now()));
        if let Some(token) = &self.token {
            let mut token = token.clone();
            token.set_sensitive(true);
            request.metadata_mut().insert("authorization", token);
        }
        request
    }

    fn contents(&self) -> ContentAddressableStorageClient<Channel> {
        ContentAddressableStorageClient::new(self.channel()).max_decoding_message_size(MOST_MESSAGE)
    }

    fn actions(&self) -> ActionCacheClient<Channel> {
        ActionCacheClient::new(self.channel()).max_decoding_message_size(MOST_RESULT)
    }

    fn streams(&self) -> ByteStreamClient<Channel> {
        ByteStreamClient::new(self.channel()).max_decoding_message_size(MOST_MESSAGE)
    }

    /// Has `call` tried until it is answered, or refused, or it has been tried often enough.
    async fn again<T, F: Future<Output = Result<T>>>(call: impl Fn() -> F) -> Result<T> {
        let mut wait = TRIES.1;
        for _ in 1..TRIES.0 {
            match call().await {
                Err(e) if matches!(kind_of(e.code()), TierErrorKind::Transient { .. }) => {}
                done => return done,
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        call().await
    }

    /// What it can do; an error where it is nothing that can be used.
    pub async fn abilities(&self, by: Instant) -> Result<Abilities> {
        let ask = || async {
            let request = re::GetCapabilitiesRequest { instance_name: self.instance.clone() };
            let mut client = CapabilitiesClient::new(self.channel());
            Ok(client.get_capabilities(self.request(request, by)).await?.into_inner())
        };
        let said = Self::again(ask).await?;
        let Some(cache) = said.cache_capabilities else {
            return Err(Status::failed_precondition("it is no cache"));
        };
        let Some(function) = Function::of(&cache.digest_functions) else {
            return Err(Status::failed_precondition("it has neither SHA-256 nor BLAKE3"));
        };
        let batch = match cache.max_batch_total_size_bytes {
            // It says nothing.
            ..=0 => BATCH,
            most => most.min(BATCH),
        };
        Ok(Abilities { function, batch: batch as u64 })
    }

    /// The result of an action.
    pub async fn result(&self, of: Abilities, action: Name, by: Instant) -> Result<re::ActionResult> {
        let ask = || async {
            let request = re::GetActionResultRequest {
                instance_name: self.instance.clone(),
                action_digest: Some(action.message()),
                digest_function: of.function.number(),
                ..Default::default()
            };
            Ok(self.actions().get_action_result(self.request(request, by)).await?.into_inner())
        };
        Self::again(ask).await
    }

    /// Makes that the result of an action.
    pub async fn update(
        &self,
        of: Abilities,
        action: Name,
        result: re::ActionResult,
        by: Instant,
    ) -> Result<()> {
        let ask = || async {
            let request = re::UpdateActionResultRequest {
                instance_name: self.instance.clone(),
                action_digest: Some(action.message()),
                action_result: Some(result.clone()),
                digest_function: of.function.number(),
                ..Default::default()
            };
            self.actions().update_action_result(self.request(request, by)).await.map(drop)
        };
        Self::again(ask).await
    }

    /// Those that it does not have, in no order.
    pub async fn missing(&self, of: Abilities, names: &[Name], by: Instant) -> Result<Vec<Name>> {
        let mut missing = Vec::new();
        for some in names.chunks(LOOKED_FOR) {
            let ask = || async {
                let request = re::FindMissingBlobsRequest {
                    instance_name: self.instance.clone(),
                    blob_digests: some.iter().map(Name::message).collect(),
                    digest_function: of.function.number(),
                };
                Ok(self.contents().find_missing_blobs(self.request(request, by)).await?.into_inner())
            };
            let answer = Self::again(ask).await?;
            let asked: HashSet<Name> = some.iter().copied().collect();
            for digest in &answer.missing_blob_digests {
                match Name::parse(Some(digest)).filter(|name| asked.contains(name)) {
                    Some(name) => missing.push(name),
                    None => return Err(Status::data_loss("it lacks what was not asked for")),
                }
            }
        }
        Ok(missing)
    }

    /// All of a content, unverified; it is no larger than a batch.
    pub async fn read_small(&self, of: Abilities, name: Name, by: Instant) -> Result<Vec<u8>> {
        let mut one = self.read_batch(of, &[name], by).await?;
        one.pop().unwrap_or_else(|| Err(Status::data_loss("it gave something else")))
    }

    /// All of each of these contents, unverified, in their order; together they are a batch. One that cannot be had just now
    /// has all asked for again; what came then comes, whatever became of that one.
    pub async fn read_batch(
        &self,
        of: Abilities,
        names: &[Name],
        by: Instant,
    ) -> Result<Vec<Result<Vec<u8>>>> {
        let came = Mutex::new(None);
        let ask = || async {
            let request = re::BatchReadBlobsRequest {
                instance_name: self.instance.clone(),
                digests: names.iter().map(Name::message).collect(),
                acceptable_compressors: Vec::new(),
                digest_function: of.function.number(),
            };
            let answer = self.contents().batch_read_blobs(self.request(request, by)).await?.into_inner();
            let named =
                |r: re::batch_read_blobs_response::Response| Some((Name::parse(r.digest.as_ref())?, r));
            let found: HashMap<Name, _> = answer.responses.into_iter().filter_map(named).collect();
            let all: Vec<Result<Vec<u8>>> =
                names.iter().map(|name| content(*name, found.get(name))).collect();
            let passing = |e: &&Status| matches!(kind_of(e.code()), TierErrorKind::Transient { .. });
            let passing = all.iter().filter_map(|one| one.as_ref().err()).find(passing).cloned();
            *came.lock() = Some(all);
            passing.map_or(Ok(()), Err)
        };
        let asked = Self::again(ask).await;
        match came.into_inner() {
            Some(all) => Ok(all),
            None => asked.map(|()| Vec::new()),
        }
    }

    /// So many bytes of a content from there on, unverified.
    pub async fn read(
        &self,
        of: Abilities,
        name: Name,
        offset: u64,
        len: u64,
        by: Instant,
    ) -> Result<Vec<u8>> {
        let ask = || async {
            let resource = format!("blobs/{}{}/{}", of.function.prefix(), name.hash, name.size);
            let request = ReadRequest {
                resource_name: self.resource(&resource),
                read_offset: offset as i64,
                read_limit: len as i64,
            };
            let mut stream = self.streams().read(self.request(request, by)).await?.into_inner();
            let mut bytes = Vec::with_capacity(len.min(UNDER_WAY.into()) as usize);
            while bytes.len() as u64 <= len
                && let Some(message) = stream.message().await?
            {
                bytes.extend_from_slice(&message.data);
            }
            // Some servers go on after what they were asked for; no content has more than its size.
            if bytes.len() as u64 > name.size.saturating_sub(offset) {
                return Err(Status::data_loss("it gave more bytes than the content has"));
            }
            bytes.truncate(len as usize);
            match bytes.len() as u64 == len {
                true => Ok(bytes),
                false => Err(Status::data_loss("it gave fewer bytes than it was asked for")),
            }
        };
        Self::again(ask).await
    }

    /// Stores contents that together are a batch.
    pub async fn write_batch(&self, of: Abilities, contents: &[(Name, &[u8])], by: Instant) -> Result<()> {
        let ask = || async {
            let one = |(name, bytes): &(Name, &[u8])| {
                let digest = Some(name.message());
                re::batch_update_blobs_request::Request { digest, data: bytes.to_vec(), compressor: 0 }
            };
            let request = re::BatchUpdateBlobsRequest {
                instance_name: self.instance.clone(),
                requests: contents.iter().map(one).collect(),
                digest_function: of.function.number(),
            };
            let answer = self.contents().batch_update_blobs(self.request(request, by)).await?.into_inner();
            let named =
                |r: re::batch_update_blobs_response::Response| Some((Name::parse(r.digest.as_ref())?, r));
            let said: HashMap<Name, _> = answer.responses.into_iter().filter_map(named).collect();
            contents.iter().try_for_each(|(name, _)| match said.get(name) {
                Some(said) => status(said.status.clone()),
                None => Err(Status::unknown("it does not say what became of it")),
            })
        };
        Self::again(ask).await
    }

    /// Stores a content that comes in pieces.
    pub async fn write(&self, pieces: ReceiverStream<WriteRequest>, by: Instant) -> Result<WriteResponse> {
        Ok(self.streams().write(self.request(pieces, by)).await?.into_inner())
    }

    /// The name under which a content is written; `unique` is nobody else's.
    pub fn upload(&self, of: Abilities, name: Name, unique: &str) -> String {
        self.resource(&format!("uploads/{unique}/blobs/{}{}/{}", of.function.prefix(), name.hash, name.size))
    }

    fn resource(&self, below: &str) -> String {
        match self.instance.is_empty() {
            true => below.to_owned(),
            false => format!("{}/{below}", self.instance),
        }
    }
}

/// What a server gave of a content.
fn content(name: Name, given: Option<&re::batch_read_blobs_response::Response>) -> Result<Vec<u8>> {
    let Some(given) = given else { return Err(Status::data_loss("it gave something else")) };
    status(given.status.clone())?;
    match given.compressor == 0 && given.data.len() as u64 == name.size {
        true => Ok(given.data.clone()),
        false => Err(Status::data_loss("it gave another number of bytes")),
    }
}

/// The status of one content among several.
fn status(said: Option<bazel_remote_apis::google::rpc::Status>) -> Result<()> {
    match said {
        Some(said) if said.code != 0 => Err(Status::new(Code::from_i32(said.code), said.message)),
        _ => Ok(()),
    }
}
