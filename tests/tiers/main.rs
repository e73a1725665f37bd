//! Tiers, as the cache uses them.
//!
//! `suite` says what every tier does; each is run through it.

mod groups;
mod memory;
mod suite;
