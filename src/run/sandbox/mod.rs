//! Where a command runs: in the project itself, or in a place of its own.
//!
//! Purpose: one way to run a task, whatever surrounds its command: make a place (or restore one from an
//! earlier result), put in what the command may read, execute, take out what it made, leave nothing. Invariants: what is
//! made stands at the outputs in the working directory afterwards, whether the command succeeded or not, and nothing else does;
//! where no command could be run the project is as it was, as far as the place is not the project itself; `remove` takes
//! away all there is, also of a place that was half made. Must not know: keys, stores (trees come through [`Tree`]).

mod bwrap;
mod environment;
mod hint;
mod layout;
mod plain;
mod room;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub use bwrap::Bwrap;
pub use plain::Plain;
pub(super) use room::VIEW;
pub use room::{Room, Rooms};

use super::capture::Sink;
use super::exec::{Outcome, Plan};
use super::spec::Place;
use super::{Result, RunError, text};
use crate::cache::remove_tree;

/// What a command runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SandboxKind {
    /// The project itself, as any process.
    #[default]
    None,
    /// Namespaces, made by bubblewrap.
    Bwrap,
}

impl SandboxKind {
    /// As it stands in keys.
    pub fn name(self) -> &'static str {
        match self {
            SandboxKind::None => "none",
            // The number goes up when commands see something else in it.
            SandboxKind::Bwrap => "bwrap/2",
        }
    }
}

/// What a place is made for.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The project.
    pub place: &'a Place,
    /// Declared outputs, below the working directory.
    pub outputs: &'a [PathBuf],
    /// Declared inputs, absolute and in order.
    pub inputs: &'a [&'a Path],
    /// Paths below the working directory where trees will be put in.
    pub given: &'a [PathBuf],
    /// Declared variables.
    pub variables: &'a [String],
    /// The command may use the network.
    pub net: bool,
    /// Directories that no command has business with: the store.
    pub hidden: &'a [PathBuf],
    /// Programs that count by their content, where they were found: inside, too, they are to be what is found.
    pub programs: &'a [PathBuf],
}

/// The outputs of an earlier result.
pub trait Tree {
    /// A directory where they can be read without being copied, for as long as the place exists.
    fn view(&mut self) -> Option<PathBuf>;
    /// Has them stand in a directory: all of them, or exactly these paths of them.
    fn lay(&mut self, dest: &Path, only: Option<&[PathBuf]>) -> Result<()>;
    /// They have something at this path.
    fn has(&self, path: &Path) -> bool;
    /// They stand at the outputs in the working directory already.
    fn stands(&self) -> bool;
}

/// A place for one command.
pub trait Sandbox {
    /// Makes the place, in which nothing stands at the outputs.
    fn create(&mut self) -> Result<()>;
    /// Makes the place, in which these outputs of an earlier result stand.
    fn restore(&mut self, base: &mut dyn Tree) -> Result<()>;
    /// Puts a tree in, below the working directory, to be read.
    fn inject(&mut self, at: &Path, tree: &mut dyn Tree) -> Result<()>;
    /// The directory that the command will know as its working directory.
    fn work(&self) -> PathBuf;
    /// Runs a command to its end.
    fn exec(&mut self, plan: Plan<'_>, sink: &mut dyn Sink) -> Result<Outcome>;
    /// Has what the command made stand at the outputs, as far as it made them.
    fn snapshot(&mut self) -> Result<Left>;
    /// Is anything of it there?
    fn exists(&self) -> bool;
    /// Takes away what there is.
    fn remove(&mut self) -> Result<()>;
    /// Ends it, however far it came.
    fn destroy(&mut self) -> Result<()> {
        if self.exists() { self.remove() } else { Ok(()) }
    }
}

/// What is known of a place after a command has ended.
#[derive(Debug, Default)]
pub struct Left {
    /// What it made beside its outputs and is gone; `None` when nobody but git can tell.
    pub beside: Option<Vec<PathBuf>>,
    /// Files that it may have looked for and that only exist outside, when it failed.
    pub wanted: Vec<PathBuf>,
    /// Variables that it may have looked for and that are only set outside, when it failed.
    pub variables: Vec<String>,
}

impl Left {
    /// The files that it may have looked for, for people.
    pub fn wanted_names(&self) -> String {
        self.wanted.iter().map(text).collect::<Vec<_>>().join(", ")
    }

    /// All that it may have lacked, for people.
    pub fn lacked(&self) -> Option<String> {
        let variables = self.variables.iter().map(|name| format!("the variable {name}"));
        let all: Vec<String> = self.wanted.iter().map(text).chain(variables).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }
}

/// Are both on one file system, so that one can be renamed to the other?
pub(super) fn same_device(a: &Path, b: &Path) -> bool {
    let device = |path: &Path| path.metadata().ok().map(|m| std::os::unix::fs::MetadataExt::dev(&m));
    device(a).is_some() && device(a) == device(b)
}

/// Moves what stands at `from`, by copying where it cannot be renamed.
fn move_tree(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(|e| RunError::io("create", parent, e))?;
    }
    match rename(from, to) {
        Err(e) if e.kind() == std::io::ErrorKind::CrossesDevices => {
            layout::copy_tree(from, to)?;
            let gone = if from.is_dir() && !from.is_symlink() {
                remove_tree(from)
            } else {
                std::fs::remove_file(from)
            };
            gone.map_err(|e| RunError::io("remove", from, e))
        }
        other => other.map_err(|e| RunError::io("move", from, e)),
    }
}

/// A directory that its owner may not write into cannot be moved either: it knows the one above it. Nor can anything be
/// taken out of it. Both are as they were afterwards.
fn rename(from: &Path, to: &Path) -> std::io::Result<()> {
    let denied = match std::fs::rename(from, to) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => e,
        other => return other,
    };
    let locked: Vec<_> = [Some(from), from.parent()].into_iter().flatten().filter_map(locked).collect();
    let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    if locked.is_empty() || locked.iter().any(|(path, mode)| set(path, mode | 0o200).is_err()) {
        return Err(denied);
    }
    let moved = std::fs::rename(from, to);
    for (path, mode) in locked {
        set(if path == from && moved.is_ok() { to } else { path }, mode)?;
    }
    moved
}

/// A directory that its owner may not write into, with its mode.
fn locked(path: &Path) -> Option<(&Path, u32)> {
    let meta = path.symlink_metadata().ok().filter(std::fs::Metadata::is_dir)?;
    let mode = meta.permissions().mode() & 0o7777;
    (mode & 0o200 == 0).then_some((path, mode))
}
