//! Tiers, as the cache uses them.
//!
//! `suite` says what every tier does; each is run through it.

#[path = "../common/mod.rs"]
mod common;

#[cfg(feature = "reapi")]
mod cas;
#[cfg(feature = "s3")]
mod distributed;
#[cfg(feature = "s3")]
mod garage;
mod groups;
#[cfg(feature = "s3")]
mod link;
mod memory;
#[cfg(feature = "reapi")]
mod moon;
mod mounted;
#[cfg(any(feature = "reapi", feature = "s3"))]
mod others;
#[cfg(feature = "s3")]
mod program;
#[cfg(any(feature = "reapi", feature = "s3"))]
mod proxy;
#[cfg(feature = "reapi")]
mod reapi;
#[cfg(feature = "reapi")]
mod reapi_push;
#[cfg(feature = "reapi")]
mod reapi_results;
#[cfg(feature = "s3")]
mod s3;
#[cfg(feature = "s3")]
mod scans;
#[cfg(feature = "s3")]
mod server;
mod suite;
#[cfg(all(feature = "reapi", feature = "s3"))]
mod tls;
mod traffic;
#[cfg(any(feature = "reapi", feature = "s3"))]
mod trouble;
