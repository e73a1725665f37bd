//! outfs: a build cache as a mounted file system.
//!
//! The crate is the product; the command line is one user of it. Rooms, from the top down
//! (a room knows only those below it; `docs/architecture.md` has the picture):
//! `cli` → `daemon` → `control` → [`run`] → `fuse` → `vfs` → [`cache`] → [`store`], [`index`], [`tier`] → [`model`].

#![warn(missing_docs)]

pub mod cache;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod fuse;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod index;
pub mod model;
pub mod run;
pub mod store;
mod sync;
pub mod tier;
pub mod vfs;
