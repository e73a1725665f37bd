//! The sentences of docs/semantics.md on a real mount, a module for each of its sections.
//!
//! Every test quotes the label and the text of the sentence it proves.

#[path = "../common/mod.rs"]
#[macro_use]
mod common;

mod differences;
mod s01_keys;
mod s02_drafts;
mod s02_listings;
mod s03_ingest;
mod s04_sealing;
mod s05_one_result;
mod s06_sealed;
mod s07_metadata;
mod s08_verify;
mod s09_evict;
mod s10_full;
mod s11_policies;
mod s12_native;
