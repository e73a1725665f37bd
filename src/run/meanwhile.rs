//! What changed, while a command ran, of what its key was made of.
//!
//! Purpose: a result is only of its key if all was there, the same, and nothing else, for as long as the command could read it.
//! Inputs are found once more, as they were found for the key, so one that came is seen like one that went. Invariants: what only
//! looks different (touched, given other rights and back, written anew with what was in it) is the same, and so is one that was elsewhere
//! for a while: times tell that from nothing that builds do. Must not know: what becomes of the result.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::flow::Run;
use super::inputs::{Apart, Gathered, hash_program, list, read};
use super::prepare::{Prepared, Program};
use super::remembered::Remembered;
use super::spec::Place;
use super::undeclared::not_ignored;
use super::walk::{Found, Seen};
use super::{Kind, Result};
use crate::model::BlobHash;

/// What is not as it was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The input of this name is another, or gone.
    Other(String),
    /// These are inputs and were none, absolute.
    New(Vec<PathBuf>),
    /// The inputs cannot be found, for this reason.
    Lost(String),
    /// What the task of this name made.
    After(String),
    /// The command itself, or a tool.
    Program(String),
}

impl Change {
    /// For people.
    pub fn text(&self, place: &Place) -> String {
        match self {
            Change::Other(name) => format!("the input {name} changed while the command ran"),
            Change::New(paths) => {
                let some: Vec<String> = paths.iter().take(5).map(|path| place.name(path)).collect();
                let more = paths.len().saturating_sub(5);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                format!("{}{more} came among the inputs while the command ran", some.join(", "))
            }
            Change::Lost(why) => format!("the inputs could not be found again after the command: {why}"),
            Change::Program(name) => format!("the program {name} changed while the command ran"),
            Change::After(task) => format!("what the task {task} made changed while the command ran"),
        }
    }

    /// What can be done about it.
    pub fn help(&self) -> &'static str {
        match self {
            Change::New(_) => ": what the command makes itself has to be an output, or no input",
            _ => "",
        }
    }

    /// The files that it names as new.
    pub fn into_new(self) -> Vec<PathBuf> {
        match self {
            Change::New(paths) => paths,
            _ => Vec::new(),
        }
    }
}

impl Run<'_> {
    /// What changed while a command ran.
    pub(super) fn change_meanwhile(&self, prepared: &mut Prepared) -> Option<Change> {
        let task = self.task;
        let listed = list(&task.inputs, &task.place, &Apart { stay: true, ..prepared.apart.clone() });
        let change = changed_since(&prepared.gathered, listed, &mut prepared.remembered);
        change
            .and_then(|change| without_ignored(change, &task.place))
            .or_else(|| {
                let changed = prepared.after.iter().find(|of| of.has_changed());
                changed.map(|of| Change::After(of.name.clone()))
            })
            .or_else(|| {
                let Prepared { programs, remembered, .. } = prepared;
                let mut changed = |of: &&Program| {
                    !hash_program(&of.path, remembered).is_ok_and(|hash| hash.to_hex() == of.hash)
                };
                let first = programs.iter().find(|of| changed(of));
                first.map(|of| Change::Program(of.name.to_string_lossy().into_owned()))
            })
    }
}

/// What git ignores and came below a named input is what commands leave beside their sources (`__pycache__`), and no change.
fn without_ignored(change: Change, place: &Place) -> Option<Change> {
    let Change::New(paths) = change else { return Some(change) };
    let below = |path: &PathBuf| path.strip_prefix(&place.root).map(Path::to_owned).ok();
    let inside = not_ignored(&place.root, paths.iter().filter_map(below).collect());
    let inside: BTreeSet<PathBuf> = inside.into_iter().collect();
    let counts = |path: &PathBuf| below(path).is_none_or(|path| inside.contains(&path));
    let paths: Vec<PathBuf> = paths.into_iter().filter(counts).collect();
    (!paths.is_empty()).then_some(Change::New(paths))
}

/// How inputs differ from what they were when they were gathered, as they are listed now.
pub(super) fn changed_since(
    gathered: &Gathered,
    listed: Result<Found>,
    remembered: &mut Remembered,
) -> Option<Change> {
    let (listed, lost) = match listed {
        Ok(listed) => (listed, None),
        // Most often one of them is gone.
        Err(e) => (Found::new(), Some(Change::Lost(e.to_string()))),
    };
    let (suspects, new) = differences(gathered, listed);
    let other = suspects.into_iter().find(|at| !is_same(gathered, *at, remembered));
    let other = other.map(|at| Change::Other(gathered.inputs[at].path.clone()));
    other.or(lost).or_else(|| (!new.is_empty()).then_some(Change::New(new)))
}

/// Those that look different or could be so unseen, and the paths that are new. Both lists are in order.
fn differences(gathered: &Gathered, listed: Found) -> (Vec<usize>, Vec<PathBuf>) {
    let (mut suspects, mut new) = (Vec::new(), Vec::new());
    let mut listed = listed.into_iter().peekable();
    for (at, (path, before)) in gathered.found.iter().enumerate() {
        while let Some((other, _)) = listed.next_if(|(other, _)| other.as_os_str() < path.as_os_str()) {
            new.push(other);
        }
        let now =
            listed.next_if(|(same, _)| same.as_os_str() == path.as_os_str()).map(|(_, seen)| seen.state);
        if before.is_none() || now != *before {
            suspects.push(at);
        }
    }
    new.extend(listed.map(|(path, _)| path));
    (suspects, new)
}

/// Touched, or written anew, or who knows: does an input have the content that it had?
fn is_same(gathered: &Gathered, at: usize, remembered: &mut Remembered) -> bool {
    let ((path, _), input) = (&gathered.found[at], &gathered.inputs[at]);
    let Ok(seen) = Seen::at(path) else { return false };
    if input.kind == Kind::Link {
        let same = |target: PathBuf| BlobHash::of(target.as_os_str().as_bytes()) == input.hash;
        return std::fs::read_link(path).is_ok_and(same);
    }
    if !seen.is_file() || seen.is_program() != (input.kind == Kind::Program) {
        return false;
    }
    let state = seen.state;
    let Ok((looked, hash)) = read(path, &state, &mut vec![0; 1 << 17]) else { return false };
    remembered.put(state, looked, hash);
    hash == input.hash
}
