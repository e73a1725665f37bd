//! `slots.rs` and what it knows of its own room.

#[path = "../../src/vfs/ino.rs"]
pub mod ino;
#[path = "../../src/vfs/slots.rs"]
pub mod slots;

pub mod types {
    pub type Ino = u64;
}
