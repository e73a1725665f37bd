//! Where a tier is, as people write it.
//!
//! Invariants: an address has no credentials in it, so that it can be shown; what parses is written the same way by all.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a tier is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// An S3 bucket.
    Bucket(Bucket),
    /// A server of the Remote Execution API.
    Server(Server),
}

/// `grpc://HOST:PORT/INSTANCE`, or `grpcs://` for TLS: a server of the Remote Execution API, and the name of the instance, which may be empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    /// With TLS.
    pub tls: bool,
    /// Host and port.
    pub host: String,
    /// Without slashes at its ends; may be empty.
    pub instance: String,
}

/// `s3://BUCKET/PREFIX?endpoint=URL&region=NAME`: a bucket, what the names of all objects in it begin with, and, where they
/// are not AWS's own, the server's URL and region.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// The bucket's name.
    pub bucket: String,
    /// Without slashes at its ends; may be empty.
    pub prefix: String,
    /// The server; `None` is what the environment says, or AWS.
    pub endpoint: Option<String>,
    /// Its region; `None` is what the environment says.
    pub region: Option<String>,
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{why}; a tier is written s3://BUCKET/PREFIX?endpoint=URL&region=NAME, endpoint and region being optional, or grpc://HOST:PORT/INSTANCE, or grpcs:// for TLS"
)]
pub struct AddressError {
    why: String,
}

fn wrong<T>(why: impl Into<String>) -> Result<T, AddressError> {
    Err(AddressError { why: why.into() })
}

/// `%` and two digits are a byte.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

fn is_plain(text: &str, more: &[u8]) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
}

fn prefix_of(path: &str) -> Result<String, AddressError> {
    let prefix = path.trim_matches('/');
    let bad = |name: &str| !is_plain(name, b"-._=+ ,@") || matches!(name, "." | "..");
    match prefix.split('/').any(bad) && !prefix.is_empty() {
        true => wrong("a tier's prefix has names of letters, digits and -._=+,@ with single slashes between"),
        false => Ok(prefix.to_owned()),
    }
}

fn endpoint_of(url: &str) -> Result<String, AddressError> {
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let host = host.map(|h| h.trim_end_matches('/'));
    match host {
        Some(host) if is_plain(host, b"-._:[]/") => Ok(url.trim_end_matches('/').to_owned()),
        // It may hold a password, so it is not repeated.
        _ => wrong(
            "the endpoint of a tier is http:// or https://, a host and perhaps a port, without credentials",
        ),
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.split_once("://").unwrap_or(("", "")) {
            ("s3", rest) => bucket(rest).map(Address::Bucket),
            ("grpc", rest) => server(rest, false).map(Address::Server),
            ("grpcs", rest) => server(rest, true).map(Address::Server),
            (scheme, _) if is_plain(scheme, b"+-.") => {
                wrong(format!("there is no kind of tier called {scheme}"))
            }
            _ => wrong("this is no address of a tier"),
        }
    }
}

fn server(rest: &str, tls: bool) -> Result<Server, AddressError> {
    let (host, instance) = rest.split_once('/').unwrap_or((rest, ""));
    if host.contains('@') {
        return wrong("an address has no credentials: they come from the environment");
    }
    let port = host.rsplit_once(':').and_then(|(name, port)| {
        let number = port.parse::<u16>().ok().filter(|n| *n > 0);
        number.filter(|_| !name.is_empty())
    });
    if !is_plain(host, b"-._:[]") || port.is_none() {
        return wrong("the server of a tier is a host and a port");
    }
    let instance = prefix_of(instance)?;
    // What the names of contents have in them there.
    let reserved =
        ["blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"];
    if instance.split('/').any(|part| reserved.contains(&part)) {
        return wrong("no part of an instance's name may be what names of contents have in them");
    }
    Ok(Server { tls, host: host.to_owned(), instance })
}

fn bucket(rest: &str) -> Result<Bucket, AddressError> {
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, path) = place.split_once('/').unwrap_or((place, ""));
    if bucket.contains('@') {
        return wrong("an address has no credentials: they come from the environment or the profile");
    }
    if !is_plain(bucket, b"-._") {
        return wrong("this is no name of a bucket");
    }
    let mut address =
        Bucket { bucket: bucket.to_owned(), prefix: prefix_of(path)?, endpoint: None, region: None };
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(value) = percent_decoded(value) else { return wrong("an escape in it is none") };
        match name {
            "endpoint" => address.endpoint = Some(endpoint_of(&value)?),
            "region" if is_plain(&value, b"-_") => address.region = Some(value),
            "region" => return wrong("this is no name of a region"),
            name if is_plain(name, b"-_") => return wrong(format!("a tier has no setting {name}")),
            _ => return wrong("a tier has no such setting"),
        }
    }
    Ok(address)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Bucket(bucket) => bucket.fmt(f),
            Address::Server(server) => server.fmt(f),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Server { tls, host, instance } = self;
        write!(f, "{}://{host}", if *tls { "grpcs" } else { "grpc" })?;
        if instance.is_empty() { Ok(()) } else { write!(f, "/{instance}") }
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Bucket { bucket, prefix, endpoint, region } = self;
        write!(f, "s3://{bucket}")?;
        if !prefix.is_empty() {
            write!(f, "/{prefix}")?;
        }
        let settings = [("endpoint", endpoint), ("region", region)];
        let there = settings.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        for (n, (name, value)) in there.enumerate() {
            write!(f, "{}{name}={value}", if n == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let bucket = |text: &str| match text.parse().unwrap() {
            Address::Bucket(bucket) => bucket,
            Address::Server(server) => panic!("{server} is no bucket"),
        };
        let short = bucket("s3://bucket");
        assert_eq!((&short.bucket[..], &short.prefix[..], &short.endpoint), ("bucket", "", &None));
        let text = "s3://my-bucket/a/b.c?endpoint=http://127.0.0.1:3900&region=garage";
        let long = bucket(text);
        assert_eq!((&long.prefix[..], long.region.as_deref()), ("a/b.c", Some("garage")));
        assert_eq!(long.to_string(), text);
        let same = "s3://my-bucket//a/b.c/?region=garage&endpoint=http%3A%2F%2F127.0.0.1:3900%2f";
        assert_eq!(bucket(same), long);
        let long = Address::Bucket(long);
        let through_json: Address = serde_json::from_str(&serde_json::to_string(&long).unwrap()).unwrap();
        assert_eq!(through_json, long);
    }

    #[test]
    fn servers_are_read_and_written() {
        let server = |tls, host: &str, instance: &str| {
            Address::Server(Server { tls, host: host.into(), instance: instance.into() })
        };
        for (text, meant) in [
            ("grpc://localhost:8980", server(false, "localhost:8980", "")),
            ("grpcs://[::1]:443/main", server(true, "[::1]:443", "main")),
            ("grpc://10.0.0.1:50051/a/b", server(false, "10.0.0.1:50051", "a/b")),
        ] {
            let read: Address = text.parse().unwrap();
            assert_eq!((&read, &read.to_string()[..]), (&meant, text));
        }
        assert_eq!("grpc://host:1/".parse::<Address>().unwrap(), server(false, "host:1", ""));
    }

    #[test]
    fn what_is_none_is_refused_and_secrets_are_not_repeated() {
        for (text, part) in [
            ("bucket", "no address"),
            ("ftp://host", "called ftp"),
            ("s3://", "bucket"),
            ("s3://AKIA:hunter2@bucket/x", "credentials"),
            ("s3://b?endpoint=https://user:hunter2@host", "without credentials"),
            ("s3://b?endpoint=host", "endpoint"),
            ("s3://b/../c", "prefix"),
            ("s3://b/a//c", "prefix"),
            ("s3://b?secret_key=hunter2", "no setting secret_key"),
            ("s3://b?region=%zz", "escape"),
            ("s3://b?region=", "region"),
            ("grpc://host", "a port"),
            ("grpc://:80", "a port"),
            ("grpc://host:0", "a port"),
            ("grpc://host:x/main", "a port"),
            ("grpcs://user:hunter2@host:443", "no credentials"),
            ("grpc://host:80/a/blobs", "names of contents"),
            ("grpc://host:80/a?token=hunter2", "prefix"),
        ] {
            let said = text.parse::<Address>().unwrap_err().to_string();
            assert!(said.contains(part) && !said.contains("hunter2"), "{text}: {said}");
        }
    }
}
