//! Tiers, as the cache uses them.
//!
//! `suite` says what every tier does; each is run through it.

#[path = "../common/mod.rs"]
mod common;

mod groups;
mod memory;
mod mounted;
mod suite;
