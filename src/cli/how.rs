//! How outputs come back: `--as`, the same for every command that has it.

use clap::ValueEnum;

use crate::cache::RestoreAs;
use crate::run::Way;

/// A word for each way.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum As {
    /// Reflink where the file system can, else copy
    Auto,
    /// Share the data of large files with the store, or do not restore; small ones are copied
    Reflink,
    /// Copy
    Copy,
    /// Symlinks into a mount, for whoever only reads
    Link,
}

impl As {
    pub(super) fn way(self) -> Way {
        match self {
            As::Auto => Way::Files(RestoreAs::Auto),
            As::Reflink => Way::Files(RestoreAs::Reflink),
            As::Copy => Way::Files(RestoreAs::Copy),
            As::Link => Way::Link,
        }
    }
}
