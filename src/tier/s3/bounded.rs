//! Answers that do not grow beyond what was asked for.
//!
//! Invariant: of an answer no more is taken than the request names bytes, or a little where it names none, whatever the server
//! announces: one that sends for ever costs no memory, and its connection is closed. Must not know: what is asked for, and why.

use std::error::Error;
use std::fmt;
use std::pin::Pin;

use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService, ReqwestConnector,
};
use tokio_stream::StreamExt;

/// More than an answer has that is no content, and than is read of an error.
const LITTLE: u64 = 64 << 10;

/// The server sent more than it was asked for.
#[derive(Debug)]
pub(super) struct TooMuch;

impl fmt::Display for TooMuch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it sends more than it was asked for")
    }
}

impl Error for TooMuch {}

/// Makes clients whose answers are bounded.
#[derive(Debug)]
pub(super) struct Bounded;

impl HttpConnector for Bounded {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Client(ReqwestConnector::default().connect(options)?)))
    }
}

#[derive(Debug)]
struct Client(HttpClient);

type Answer = Result<HttpResponse, HttpError>;

impl HttpService for Client {
    // As `async_trait` has it.
    fn call<'a, 'b>(&'a self, request: HttpRequest) -> Pin<Box<dyn Future<Output = Answer> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let most = asked_for(&request).unwrap_or(LITTLE).max(LITTLE);
            let (parts, body) = self.0.execute(request).await?.into_parts();
            let bytes = match parts.status.is_success() {
                true => collect(body, most).await?.ok_or_else(too_much)?,
                // The status says what matters.
                false => collect(body, LITTLE).await?.unwrap_or_default(),
            };
            Ok(HttpResponse::from_parts(parts, bytes.into()))
        })
    }
}

fn too_much() -> HttpError {
    HttpError::new(HttpErrorKind::Decode, TooMuch)
}

/// How many bytes the request names.
fn asked_for(request: &HttpRequest) -> Option<u64> {
    let range = request.headers().get("range")?.to_str().ok()?;
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    last.parse::<u64>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
}

/// The body; `None` when it has more than so many bytes.
async fn collect(body: HttpResponseBody, most: u64) -> Result<Option<Vec<u8>>, HttpError> {
    let (mut stream, mut bytes) = (body.bytes_stream(), Vec::new());
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        if (bytes.len() + piece.len()) as u64 > most {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Some(bytes))
}
