//! `outfs run` as a user has it: the real program, real stores, real builds.
//!
//! Must not know: the crate's inside.

#[path = "../common/mod.rs"]
mod common;

mod cache;
mod chains;
mod ends;
mod events;
mod faults;
mod flights;
mod inputs;
mod options;
mod project;
mod sandbox;
mod served;
mod sessions;
mod tasks;
mod truth;
mod turns;
mod uncommitted;
mod users;
mod without;
