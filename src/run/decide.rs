//! Whether a task is run, and why: from what a store, a lock file and the history say.
//!
//! Invariants: pure, the same facts give the same decision; a miss has at least one reason; what is not a
//! finished run's result is never a hit. Must not know: where the facts come from, how they are shown.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::key::{Input, Parts, VERSION};
use super::lock::Block;
use super::shelf::Found;
use crate::model::EntryKey;

/// Why a task is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Reason {
    /// It was asked for, or the policy does not read.
    Forced,
    /// Nothing is known of an earlier run.
    FirstRun,
    /// A task before it made other outputs.
    UpstreamRerun {
        /// That task.
        task: String,
        /// It was not named before.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        new: bool,
        /// It is not named any more.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        removed: bool,
    },
    /// A lock file was named and is not there.
    NoLockFile,
    /// The lock file does not have the task.
    TaskNotInLock,
    /// The run before was no success, or not known to be one.
    PreviousRunIncomplete {
        /// How it ended.
        status: String,
    },
    /// Another command.
    CmdChanged {
        /// Before.
        old: String,
        /// Now.
        new: String,
    },
    /// The command's program or a named tool has other content.
    ToolChanged {
        /// Its name.
        name: String,
        /// It was not named before.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        new: bool,
        /// It is not named any more.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        removed: bool,
    },
    /// An input changed, came or went.
    DepChanged {
        /// Which.
        path: String,
        /// What it was; absent when it is new.
        old: Option<String>,
        /// What it is; absent when it was removed.
        new: Option<String>,
    },
    /// A declared variable or secret has another value.
    EnvChanged {
        /// Its name.
        name: String,
        /// It was not named before.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        new: bool,
        /// It is not named any more.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        removed: bool,
    },
    /// A parameter has another value.
    ParamsChanged {
        /// Its name.
        name: String,
        /// It was not given before.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        new: bool,
        /// It is not given any more.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        removed: bool,
    },
    /// Other outputs are declared.
    OutputsChanged,
    /// Something else that is part of the key: directory, platform, sandbox, network, whether there is a base; or what
    /// cannot be told, as the list of too many inputs or the key's form: then these are the keys.
    CacheKeyMismatch {
        /// Before.
        old: String,
        /// Now.
        new: String,
    },
    /// The entry lacks an output, or has lost its content.
    OutputMissing {
        /// Which.
        path: String,
    },
    /// The entry was rejected.
    Rejected {
        /// Why.
        reason: String,
    },
    /// The entry was evicted.
    Evicted {
        /// When.
        when: Timestamp,
    },
    /// The lock file has the key, and this store no such entry.
    NotInStore,
    /// What is no output stands where a directory of one belongs.
    InTheWay {
        /// What.
        path: String,
    },
    /// There is, or was, an entry of this key that cannot be given back.
    Unusable {
        /// Why.
        detail: String,
    },
}

impl Reason {
    /// The key's own entry is no good, or not wanted: a new result replaces it.
    pub fn is_about_the_entry(&self) -> bool {
        matches!(
            self,
            Reason::Forced
                | Reason::PreviousRunIncomplete { .. }
                | Reason::OutputMissing { .. }
                | Reason::Rejected { .. }
                | Reason::Unusable { .. }
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Forced => write!(f, "forced: results are not looked up (--force, or the policy)"),
            Reason::FirstRun => write!(f, "first run: no earlier result is known"),
            Reason::UpstreamRerun { task, new: true, .. } => {
                write!(f, "it comes after the task {task} now")
            }
            Reason::UpstreamRerun { task, removed: true, .. } => {
                write!(f, "it does not come after the task {task} any more")
            }
            Reason::UpstreamRerun { task, .. } => {
                write!(f, "the task {task} ran again and made other outputs")
            }
            Reason::NoLockFile => write!(f, "there is no lock file yet"),
            Reason::TaskNotInLock => write!(f, "the lock file does not have this task"),
            Reason::PreviousRunIncomplete { status } => write!(f, "the run before gave no result: {status}"),
            Reason::CmdChanged { old, new } => write!(f, "the command changed: {old} -> {new}"),
            Reason::ToolChanged { name, new: true, .. } => write!(f, "the program {name} is new"),
            Reason::ToolChanged { name, removed: true, .. } => {
                write!(f, "the program {name} is not named any more")
            }
            Reason::ToolChanged { name, .. } => write!(f, "the program {name} changed"),
            Reason::DepChanged { path, old: Some(old), new: Some(new) } => {
                write!(f, "the input {path} changed: {old} -> {new}")
            }
            Reason::DepChanged { path, old: None, .. } => write!(f, "the input {path} is new"),
            Reason::DepChanged { path, new: None, .. } => write!(f, "the input {path} was removed"),
            Reason::EnvChanged { name, new: true, .. } => write!(f, "the variable {name} is new"),
            Reason::EnvChanged { name, removed: true, .. } => {
                write!(f, "the variable {name} is not named any more")
            }
            Reason::EnvChanged { name, .. } => write!(f, "the variable {name} changed"),
            Reason::ParamsChanged { name, new: true, .. } => write!(f, "the parameter {name} is new"),
            Reason::ParamsChanged { name, removed: true, .. } => {
                write!(f, "the parameter {name} is not given any more")
            }
            Reason::ParamsChanged { name, .. } => write!(f, "the parameter {name} changed"),
            Reason::OutputsChanged => write!(f, "the declared outputs changed"),
            Reason::CacheKeyMismatch { old, new } => write!(f, "the key changed: {old} -> {new}"),
            Reason::OutputMissing { path } => write!(f, "the entry lacks the output {path}"),
            Reason::Rejected { reason } => write!(f, "the entry was rejected: {reason}"),
            Reason::Evicted { when } => {
                write!(f, "the entry was evicted at {}", whole_second(*when))
            }
            Reason::NotInStore => write!(f, "the lock file has this key, and the store no entry of it"),
            Reason::InTheWay { path } => write!(f, "{path} is in the way of the outputs"),
            Reason::Unusable { detail } => write!(f, "the entry cannot be used: {detail}"),
        }
    }
}

/// For people.
pub(super) fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// An exit code for people: shells have numbers for signals.
pub(super) fn exit_code(code: i32) -> String {
    let signal =
        (129..160).contains(&code).then(|| nix::sys::signal::Signal::try_from(code - 128).ok()).flatten();
    let signal = signal.map(|signal| format!(", as after {signal}")).unwrap_or_default();
    format!("exit code {code}{signal}")
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The result that is there is given back.
    Hit,
    /// The task is run; never without a reason.
    Miss(Vec<Reason>),
}

/// An earlier result of the same task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Earlier {
    /// Its key.
    pub key: EntryKey,
    /// What that was made of.
    pub parts: Parts,
}

/// What a lock file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locked<'a> {
    /// None was named.
    NotAsked,
    /// The named one is not there.
    NoFile,
    /// It does not have the task.
    NoTask,
    /// It has it, with a key of another form: of this version.
    OtherForm(u32),
    /// It has it.
    Has(&'a Block),
}

/// All that a decision depends on.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The key now.
    pub key: &'a EntryKey,
    /// What it is made of.
    pub parts: &'a Parts,
    /// Run whatever is there.
    pub force: bool,
    /// Failed runs are results, too.
    pub cache_failures: bool,
    /// What the store has.
    pub found: &'a Found,
    /// What the lock file has; it wins over the history.
    pub locked: Locked<'a>,
    /// Earlier results of the task, the newest first.
    pub history: &'a [Earlier],
}

/// See [`is_near`].
const NEAR: usize = 8;

/// Decides.
pub fn decide(s: &Situation<'_>) -> Decision {
    if s.force {
        return Decision::Miss(vec![Reason::Forced]);
    }
    let incomplete = |status: String| Reason::PreviousRunIncomplete { status };
    let reason = match s.found {
        Found::Entry(held) if held.inferred => incomplete("sealed by quiet, not by a run".into()),
        Found::Entry(held) if held.exit_code != 0 && !s.cache_failures => {
            incomplete(exit_code(held.exit_code))
        }
        Found::Entry(held) => match &held.missing {
            Some(path) => Reason::OutputMissing { path: path.clone() },
            None => return Decision::Hit,
        },
        Found::Rejected { reason } => Reason::Rejected { reason: reason.clone() },
        Found::Unreadable { why } => Reason::Unusable { detail: why.clone() },
        Found::Nothing { evicted: Some(when), .. } => Reason::Evicted { when: *when },
        Found::Nothing { failed: Some(status), .. } => incomplete(status.clone()),
        Found::Nothing { .. } => return Decision::Miss(unknown_key(s)),
    };
    Decision::Miss(vec![reason])
}

/// The store knows nothing of the key: what differs from the run before?
fn unknown_key(s: &Situation<'_>) -> Vec<Reason> {
    let (key, parts) = match s.locked {
        Locked::NoFile => return vec![Reason::NoLockFile],
        Locked::NoTask => return vec![Reason::TaskNotInLock],
        Locked::OtherForm(form) => {
            let of = |form: u32| format!("a key of form {form}");
            return vec![Reason::CacheKeyMismatch { old: of(form), new: of(VERSION) }];
        }
        Locked::Has(Block { key, status: Some(status), .. }) if key == s.key => {
            return vec![Reason::PreviousRunIncomplete { status: status.clone() }];
        }
        Locked::Has(block) if block.key == *s.key => return vec![Reason::NotInStore],
        Locked::Has(block) => (&block.key, &block.parts),
        Locked::NotAsked => match nearest(s.history, s.parts) {
            Some(earlier) => (&earlier.key, &earlier.parts),
            None => return vec![Reason::FirstRun],
        },
    };
    let mut reasons = compare(parts, s.parts);
    if reasons.is_empty() {
        reasons.push(Reason::CacheKeyMismatch { old: key.to_string(), new: s.key.to_string() });
    }
    reasons
}

/// The earlier result with the fewest differences, if possible one of the same sandbox and place: who runs a task in
/// two ways wants to know what changed since it last ran in this one. Of equally near ones the newest.
fn nearest<'a>(history: &'a [Earlier], parts: &Parts) -> Option<&'a Earlier> {
    history.iter().min_by_key(|e| (others(&e.parts) != others(parts), differences(&e.parts, parts)))
}

/// So near that no older result need be looked at: one thing differs, or a few inputs.
pub fn is_near(earlier: &Earlier, parts: &Parts) -> bool {
    others(&earlier.parts) == others(parts) && matches!(differences(&earlier.parts, parts), (1, ..=NEAR))
}

/// What has no reason of its own and differs: as it was, and as it is.
fn other_changes(old: &Parts, new: &Parts) -> (Vec<String>, Vec<String>) {
    let names = ["directory", "platform", "sandbox", "network", ""];
    let changed = names.iter().zip(others(old)).zip(others(new)).filter(|((_, a), b)| a != b);
    let told = |name: &str, value: &str| match (name, value) {
        ("", "") => "no base".to_owned(),
        ("", value) => value.to_owned(),
        ("directory", "") => "directory .".to_owned(),
        _ => format!("{name} {value}"),
    };
    changed.map(|((name, a), b)| (told(name, a), told(name, b))).unzip()
}

/// Groups of parts that differ, then inputs that differ.
fn differences(a: &Parts, b: &Parts) -> (usize, usize) {
    let groups = [
        a.argv != b.argv,
        a.program != b.program,
        a.tools != b.tools,
        a.outputs != b.outputs,
        a.env != b.env,
        a.secrets != b.secrets,
        a.params != b.params,
        a.after != b.after,
        a.from != b.from,
        !a.base.values().eq(b.base.values()),
        a.inputs_hash != b.inputs_hash,
    ];
    let groups = groups.into_iter().filter(|differs| *differs).count();
    (groups, if a.inputs_hash == b.inputs_hash { 0 } else { changed_inputs(a, b).count() })
}

/// Parts whose change has no reason of its own.
fn others(p: &Parts) -> [&str; 5] {
    [&p.cwd, &p.platform, &p.sandbox, &p.network, if p.base.is_empty() { "" } else { "a base" }]
}

/// All that differs between two keys' parts, as reasons.
pub fn compare(old: &Parts, new: &Parts) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if old.argv != new.argv {
        reasons.push(Reason::CmdChanged { old: shell_words(&old.argv), new: shell_words(&new.argv) });
    }
    // Another program under another name is the command's change.
    if old.program != new.program && old.argv.first() == new.argv.first() {
        let name = new.argv.first().cloned().unwrap_or_default();
        reasons.push(Reason::ToolChanged { name, new: false, removed: false });
    }
    let names = |a, b| changed_names(a, b).into_iter();
    let (before, now) = (&old.tools, &new.tools);
    let tools: Vec<Reason> = names(before, now)
        .map(|name| Reason::ToolChanged {
            new: !before.contains_key(&name),
            removed: !now.contains_key(&name),
            name,
        })
        .collect();
    // The command may be named as a tool, too.
    let tools: Vec<Reason> = tools.into_iter().filter(|tool| !reasons.contains(tool)).collect();
    reasons.extend(tools);
    for (before, now) in [(&old.env, &new.env), (&old.secrets, &new.secrets)] {
        reasons.extend(names(before, now).map(|name| Reason::EnvChanged {
            new: !before.contains_key(&name),
            removed: !now.contains_key(&name),
            name,
        }));
    }
    let (before, now) = (&old.params, &new.params);
    reasons.extend(names(before, now).map(|name| Reason::ParamsChanged {
        new: !before.contains_key(&name),
        removed: !now.contains_key(&name),
        name,
    }));
    if old.outputs != new.outputs {
        reasons.push(Reason::OutputsChanged);
    }
    let (before, now) = (&old.after, &new.after);
    reasons.extend(names(before, now).map(|task| Reason::UpstreamRerun {
        new: !before.contains_key(&task),
        removed: !now.contains_key(&task),
        task,
    }));
    reasons.extend(names(&old.from, &new.from).map(|path| changed_from(old, new, path)));
    reasons.extend(changed_base(old, new));
    if old.inputs_hash != new.inputs_hash {
        reasons.extend(changed_inputs(old, new).map(|(a, b)| Reason::DepChanged {
            path: a.or(b).map(|i| i.path.clone()).unwrap_or_default(),
            old: a.map(Input::state),
            new: b.map(Input::state),
        }));
    }
    let (before, now) = other_changes(old, new);
    if !before.is_empty() {
        reasons.push(Reason::CacheKeyMismatch { old: before.join(", "), new: now.join(", ") });
    }
    reasons
}

/// Other outputs are read at this path: the same task's, or another result's, or there was or is none.
fn changed_from(old: &Parts, new: &Parts, path: String) -> Reason {
    match (old.sources.get(&path), new.sources.get(&path)) {
        (Some(before), Some(now)) if before == now => {
            Reason::UpstreamRerun { task: now.clone(), new: false, removed: false }
        }
        _ => Reason::DepChanged {
            old: old.from.get(&path).map(|hash| hash.chars().take(12).collect()),
            new: new.from.get(&path).map(|hash| hash.chars().take(12).collect()),
            path,
        },
    }
}

/// The base, when there was and is one, and it is another now: made again, or another one.
fn changed_base(old: &Parts, new: &Parts) -> Option<Reason> {
    let ((before, old), (now, new)) = (old.base.first_key_value()?, new.base.first_key_value()?);
    match (old == new, before == now) {
        (true, _) => None,
        (_, true) => Some(Reason::UpstreamRerun { task: now.clone(), new: false, removed: false }),
        (_, false) => {
            Some(Reason::CacheKeyMismatch { old: format!("base {before}"), new: format!("base {now}") })
        }
    }
}

/// Names that are in one map only or have different values.
fn changed_names(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> Vec<String> {
    let mut names: Vec<String> =
        a.keys().chain(b.keys()).filter(|n| a.get(*n) != b.get(*n)).cloned().collect();
    names.sort();
    names.dedup();
    names
}

/// Inputs that are in one list only or differ, in order; none when a list was not kept.
fn changed_inputs<'a>(
    a: &'a Parts,
    b: &'a Parts,
) -> impl Iterator<Item = (Option<&'a Input>, Option<&'a Input>)> {
    let known = !a.inputs_left_out() && !b.inputs_left_out();
    let (a, b): (&[Input], &[Input]) = if known { (&a.inputs, &b.inputs) } else { (&[], &[]) };
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let pairs = std::iter::from_fn(move || {
        let order = match (a.peek(), b.peek()) {
            (None, None) => return None,
            (Some(x), Some(y)) => x.path.cmp(&y.path),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
        };
        Some(match order {
            std::cmp::Ordering::Less => (a.next(), None),
            std::cmp::Ordering::Greater => (None, b.next()),
            std::cmp::Ordering::Equal => (a.next(), b.next()),
        })
    });
    pairs.filter(|(x, y)| x != y)
}

/// A command as a shell would take it.
pub fn shell_words(argv: &[String]) -> String {
    let plain = |w: &str| {
        !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./=+:,@%^".contains(&b))
    };
    let quote = |w: &String| match plain(w) {
        true => w.clone(),
        false => format!("'{}'", w.replace('\'', r"'\''")),
    };
    argv.iter().map(quote).collect::<Vec<_>>().join(" ")
}
