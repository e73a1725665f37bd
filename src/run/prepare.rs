//! From a task as it was asked for to the parts of its key: programs found, inputs hashed, variables read.
//!
//! Invariant: no value of a variable or secret leaves this file, only hashes. Must not know: what
//! is decided by the key.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::inputs::{Apart, Gathered, hash_all, hash_program, list};
use super::ledger::Ledger;
use super::lock::Lock;
use super::outputs::check_way;
use super::remembered::Remembered;
use super::spec::{Inputs, Task};
use super::upstream::{After, Made, Sought, Upstream, Upstreams};
use super::{Parts, Result, RunError, SandboxKind, platform, secret_hash, text, value_hash};
use crate::model::EntryKey;
use crate::model::session::SessionId;

/// A task whose key is known.
#[derive(Debug)]
pub(super) struct Prepared {
    pub parts: Arc<Parts>,
    pub key: EntryKey,
    pub gathered: Arc<Gathered>,
    /// Where nothing is an input: outputs, absolute, and what else a run writes.
    pub apart: Apart,
    pub remembered: Remembered,
    /// The lock file's content; `None` when it is not there.
    pub lock: Option<Lock>,
    /// What tasks made that come before it.
    pub after: Vec<After>,
    /// Paths and the results that are read there.
    pub from: Vec<(PathBuf, Upstream)>,
    /// What it starts from.
    pub base: Option<Upstream>,
    /// The command and its tools.
    pub programs: Vec<Program>,
}

/// A program that counts by its content.
#[derive(Debug)]
pub(super) struct Program {
    /// As it was named.
    pub name: OsString,
    /// Where it was found.
    pub path: PathBuf,
    pub hash: String,
}

impl Program {
    /// It is named by where it is, not looked for.
    pub fn is_path(&self) -> bool {
        self.name.as_bytes().contains(&b'/')
    }
}

/// What preparing needs beside the task.
pub(super) struct Around<'a> {
    pub ledger: &'a Ledger,
    pub lock: Option<&'a Path>,
    pub team_key: Option<&'a [u8]>,
    /// The session that the run is in.
    pub session: Option<&'a SessionId>,
    /// What outputs that stand as links lead into.
    pub views: &'a [PathBuf],
    /// Those, and where projects are remembered.
    pub own: Vec<PathBuf>,
    /// Asks the store for a result.
    pub ask: &'a mut dyn FnMut(Sought<'_>) -> Option<Made>,
}

/// Finds out all parts of the key.
pub(super) fn prepare(task: &Task, around: Around<'_>) -> Result<Prepared> {
    let cwd = &task.place.cwd;
    check_way(cwd, &task.outputs)?;
    check_apart(task)?;
    let lock_file = around.lock.map(|l| task.place.file(l));
    let lock = lock_file.as_deref().map(Lock::read).transpose()?.flatten();
    let program = find_program(&task.argv[0], cwd)?;
    let mut tools = Vec::new();
    for tool in &task.tools {
        tools.push((tool, find_program(tool, cwd).map_err(|e| RunError::usage(format!("--tool {e}")))?));
    }
    // The lock file is written by every run, so it is no input.
    let theirs = task.outputs.iter().chain(task.from.iter().map(|(path, _)| path));
    let behind = lock_file.as_deref().map(|file| task.place.file(&Lock::behind(file)));
    let apart: Vec<PathBuf> = theirs.map(|o| cwd.join(o)).chain(lock_file).chain(behind).collect();
    let apart = Apart { outputs: apart, stay: task.base.is_some(), own: around.own };
    let open = || Remembered::open(around.ledger.inputs());
    let (mut remembered, found) = std::thread::scope(|scope| {
        let opened = std::thread::Builder::new().spawn_scoped(scope, open);
        let found = list(&task.inputs, &task.place, &apart);
        let remembered = match opened {
            Ok(thread) => thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)),
            // No more threads are to be had.
            Err(_) => open(),
        };
        (remembered, found)
    });
    let gathered = hash_all(&task.place, found?, &mut remembered)?;
    let named = std::iter::once((&task.argv[0], program)).chain(tools);
    let programs = named.map(|(name, path)| {
        let hash = hash_program(&path, &mut remembered)?.to_hex();
        Ok(Program { name: name.clone(), path, hash })
    });
    let programs = programs.collect::<Result<Vec<_>>>()?;
    let mut upstream = Upstreams {
        ledger: around.ledger,
        lock: lock.as_ref(),
        session: around.session,
        views: around.views,
        task,
        ask: around.ask,
    };
    let from = task.from.iter().map(|(path, name)| Ok((path.clone(), upstream.result(name)?)));
    let from = from.collect::<Result<Vec<_>>>()?;
    let base = task.base.as_deref().map(|name| upstream.result(name)).transpose()?;
    let after = upstream.after(&task.after)?;
    let mut parts = Parts {
        argv: task.argv.iter().map(text).collect(),
        program: programs[0].hash.clone(),
        tools: programs[1..].iter().map(|tool| (text(&tool.name), tool.hash.clone())).collect(),
        cwd: text(task.place.below()),
        outputs: task.declared().iter().map(text).collect(),
        env: task.env.iter().map(|n| (n.clone(), hash_of(n))).collect(),
        secrets: secrets(task, around.team_key)?,
        params: task.params.clone(),
        after: after.iter().map(|of| (of.name.clone(), of.outputs_hash.clone())).collect(),
        from: from.iter().map(|(path, of)| (text(path), of.outputs_hash.clone())).collect(),
        sources: from.iter().map(|(path, of)| (text(path), of.name.clone())).collect(),
        base: base.iter().map(|of| (of.name.clone(), of.outputs_hash.clone())).collect(),
        platform: platform(),
        sandbox: task.sandbox.name().into(),
        network: if task.net || task.sandbox == SandboxKind::None { "host" } else { "none" }.into(),
        ..Parts::default()
    };
    parts.set_inputs(gathered.inputs.clone());
    let gathered = Arc::new(gathered);
    let (key, parts) = (parts.key(), Arc::new(parts));
    Ok(Prepared { key, parts, gathered, apart, remembered, lock, after, from, base, programs })
}

/// Refuses an output that is a named input: it would be taken away before the command could read it.
fn check_apart(task: &Task) -> Result<()> {
    let Inputs::Named(names) = &task.inputs else { return Ok(()) };
    let cwd = &task.place.cwd;
    for name in names.iter().filter(|_| task.base.is_none()) {
        let path = task.place.inside(Path::new(name));
        let taken = task.outputs.iter().any(|output| path.starts_with(cwd.join(output)));
        if taken && path.symlink_metadata().is_ok() {
            return Err(RunError::usage(format!(
                "the input {} is an output, too, and outputs are taken away before the command runs",
                name.to_string_lossy()
            )));
        }
    }
    Ok(())
}

fn hash_of(name: &str) -> String {
    value_hash(std::env::var_os(name).as_deref().map(OsStr::as_bytes))
}

fn secrets(task: &Task, team_key: Option<&[u8]>) -> Result<BTreeMap<String, String>> {
    if task.secrets.is_empty() {
        return Ok(BTreeMap::new());
    }
    // A file ends with a newline, which a shell takes away from a variable.
    let key = team_key.map(<[u8]>::trim_ascii_end).filter(|k| !k.is_empty()).ok_or_else(|| {
        RunError::usage(
            "secrets are hashed with a key that your team shares: set OUTFS_SECRET_KEY, or name a file with \
             --secret-key-file",
        )
    })?;
    let hash = |n: &String| secret_hash(key, n, std::env::var_os(n).as_deref().map(OsStr::as_bytes));
    Ok(task.secrets.iter().map(|n| (n.clone(), hash(n))).collect())
}

/// The file that a command's name stands for, as a shell finds it.
fn find_program(name: &OsStr, cwd: &Path) -> Result<PathBuf> {
    let refuse = |why: &str, code| {
        Err(RunError::Command { command: name.to_string_lossy().into_owned(), why: why.into(), code })
    };
    let usable =
        |path: &Path| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if name.as_bytes().contains(&b'/') {
        let path = cwd.join(name);
        return match path.metadata() {
            Ok(_) if usable(&path) => Ok(path),
            Ok(_) => refuse("it cannot be executed", 126),
            Err(_) => refuse("not found", 127),
        };
    }
    let dirs: OsString = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let found: Vec<PathBuf> = std::env::split_paths(&dirs).map(|d| cwd.join(d).join(name)).collect();
    match found.iter().find(|p| usable(p)) {
        Some(path) => Ok(path.clone()),
        None if found.iter().any(|p| p.is_file()) => refuse("it cannot be executed", 126),
        None => refuse("not found", 127),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("plain"), "").unwrap();
        let code = |name: &str| match find_program(OsStr::new(name), dir.path()) {
            Err(RunError::Command { code, .. }) => code,
            other => panic!("{other:?}"),
        };
        assert!(find_program(OsStr::new("sh"), dir.path()).unwrap().is_absolute());
        assert_eq!(
            (code("./plain"), code("./nothing"), code("no-such-program-at-all"), code("/")),
            (126, 127, 127, 126)
        );
    }
}
