//! Cached execution: a task's key, the decision whether it is run, and why.
//!
//! Purpose: what `outfs run` does, as functions over plain data: which inputs a task has, the key made of
//! them, what is compared with what to say why a task runs, and running it with its output kept and nothing left behind. Invariants: equal state gives
//! equal keys, wherever a project lies; nothing of a secret is kept but a keyed hash; a cache that fails
//! never fails the task. Must not know: the command line, terminals, the control socket (it
//! asks a [`Shelf`] for what a store knows).

mod accompany;
mod capture;
mod clock;
mod decide;
#[cfg(test)]
mod decide_tests;
mod error;
mod exec;
#[cfg(test)]
mod exec_tests;
mod flight;
#[cfg(test)]
mod flight_tests;
mod flow;
mod guard;
mod hit;
mod inputs;
#[cfg(test)]
mod inputs_tests;
mod key;
mod kin;
mod ledger;
mod live;
mod lock;
mod marker;
mod meanwhile;
#[cfg(test)]
mod meanwhile_tests;
mod miss;
mod outputs;
mod own;
mod pieces;
mod prepare;
mod remembered;
mod report;
mod sandbox;
mod served;
mod shelf;
mod signals;
mod spec;
mod spool;
mod stage;
mod text;
mod turn;
mod uncommitted;
mod undeclared;
mod upstream;
mod walk;

pub use accompany::{accompany, lead};
pub use capture::{Capture, Order, Sink, Writers};
pub use decide::{Decision, Earlier, Locked, Reason, Situation, compare, decide, shell_words};
pub use error::RunError;
pub use exec::{End, Outcome, Plan, execute};
pub use flow::run;
pub use guard::{NOT_HERE, Post, guard};
pub use inputs::{Apart, Gathered, gather, hash_program};
pub use key::{ABSENT, Input, Kind, PARTS_LIMIT, Parts, VERSION, platform, secret_hash, value_hash};
pub use ledger::{LastRun, Ledger, Stand};
pub use live::follow;
pub use lock::{Block, Lock};
pub use own::{is_ours_to_make, memory, own_caches};
pub use remembered::{Remembered, State};
pub use report::{Report, Voice, Ways};
pub use sandbox::{Left, Room, Rooms, Sandbox, SandboxKind, Scene, Tree};
pub use shelf::*;
pub use spec::{Inputs, Place, Task, output_path};
pub use text::text;
pub use upstream::Made;

/// What everything here returns.
pub type Result<T> = std::result::Result<T, RunError>;
