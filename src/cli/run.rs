//! `outfs run`: a command, cached.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::how::As;
use super::out;
use super::shelf::StoreShelf;
use super::teller::{Teller, print_differences, print_json, print_plan};
use crate::cache::CachePolicy;
use crate::control::{Failure, Kind};
use crate::daemon::{MountInfo, mount_table};
use crate::model::session::{SessionError, SessionId};
use crate::model::units::parse_duration;
use crate::run::{
    Inputs, Lock, Place, Report, Rooms, RunError, SandboxKind, Shelf, Task, Times, Voice, Ways, memory, run,
};

/// Between being asked to end and being killed.
const GRACE: Duration = Duration::from_secs(10);
/// What outfs itself exits with when it cannot run a command.
pub(super) const OWN_ERROR: u8 = 125;

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Policy {
    /// Read and write
    Normal,
    /// Never write
    Readonly,
    /// Always run, and replace what is there
    Writeonly,
    /// Neither read nor write: options about results (--force, --lock, --as …) then do nothing
    Disabled,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum SandboxArg {
    /// The project itself
    None,
    /// Bubblewrap: only declared inputs exist, no network
    Bwrap,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Mtime {
    /// As if they were made now, in the order they had, so that make finds them newer than their sources
    Now,
    /// Those that they had when they were made
    Keep,
}

/// Run a command, or give back what it made before from the same inputs
#[derive(Args)]
#[command(after_help = "Examples: outfs run --output app -- make app\n          \
        outfs run --task test --input 'src/**/*.py' --env CI -- pytest\n\n\
        Exit codes: the command's own, 124 timed out, 125 outfs itself (also a missing output), 126 and 127 as \
        shells.\nStandard input is empty. What counts is named: inputs, --env, --secret, --tool, --param, --after.")]
pub(crate) struct Run {
    /// The task's name, for the history [default: the program's name]
    #[arg(long, value_name = "ID")]
    task: Option<String>,
    /// A file, a directory or a glob that is read [default: what git tracks or does not ignore]
    #[arg(long, value_name = "PATH|GLOB")]
    input: Vec<OsString>,
    /// No file is read
    #[arg(long, conflicts_with = "input")]
    no_inputs: bool,
    /// A file or directory that the command makes; what stands there is deleted before it runs, but not what git tracks and
    /// you have changed, nor a repository: then nothing is run
    #[arg(long, value_name = "PATH")]
    output: Vec<PathBuf>,
    /// A variable whose value counts; in a sandbox no others are set but a few, such as PATH and HOME
    #[arg(long, value_name = "NAME", value_parser = variable)]
    env: Vec<String>,
    /// A variable whose value counts and is written nowhere
    #[arg(long, value_name = "NAME", value_parser = variable)]
    secret: Vec<String>,
    /// A file with the key that secrets are hashed with [default: the variable OUTFS_SECRET_KEY]
    #[arg(long, value_name = "FILE")]
    secret_key_file: Option<PathBuf>,
    /// A program whose content counts, beside the command's own
    #[arg(long, value_name = "NAME")]
    tool: Vec<OsString>,
    /// Something else that counts: with another value the command runs again
    #[arg(long, value_name = "K=V", value_parser = parameter)]
    param: Vec<(String, String)>,
    /// A task whose outputs count
    #[arg(long, value_name = "TASK")]
    after: Vec<String>,
    /// Have what an earlier run made (of this task, or under this key) stand at PATH while the command runs, to be read
    #[arg(long, value_name = "PATH=KEY|TASK", value_parser = upstream)]
    from: Vec<(PathBuf, String)>,
    /// Have what an earlier run made stand at the outputs before the command starts, to go on from it
    #[arg(long, value_name = "KEY|TASK")]
    base: Option<String>,
    /// What the command runs in
    #[arg(long, value_enum, value_name = "KIND", default_value = "none")]
    sandbox: SandboxArg,
    /// Let the command in a sandbox use the network and sockets in /run, which it otherwise has not
    #[arg(long)]
    net: bool,
    /// End the command, and all it has started, after so long, as in 90s or 1h30m [default: 0, no limit]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// What the cache may be used for
    #[arg(long, value_enum, value_name = "POLICY", default_value = "normal")]
    policy: Policy,
    /// Run the command even if its result is in the cache, and keep the new one instead
    #[arg(long, conflicts_with = "verify")]
    force: bool,
    /// Run a hit again and say what differs
    #[arg(long)]
    verify: bool,
    /// Say every part of the key and what would happen
    #[arg(long)]
    dry_run: bool,
    /// Run it past the cache, and have its result for later runs of the same 'outfs session'
    #[arg(long, conflicts_with_all = ["policy", "force", "verify", "cache_failures", "dry_run"])]
    ephemeral: bool,
    /// Run it even while another process runs the same
    #[arg(long)]
    no_wait: bool,
    /// Keep the results of commands that fail, too
    #[arg(long)]
    cache_failures: bool,
    /// How the outputs of a hit come back [default: auto]
    #[arg(long = "as", value_enum, value_name = "HOW")]
    how: Option<As>,
    /// Which modification times files have that a hit gives back [default: now]
    #[arg(long, value_enum, value_name = "WHICH")]
    mtime: Option<Mtime>,
    /// A file that says what each task's last run was made of, to be committed
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Print one JSON record at the end
    #[arg(long)]
    json: bool,
    /// The command
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn upstream(text: &str) -> Result<(PathBuf, String), String> {
    let (path, name) = text.split_once('=').ok_or("write it like PATH=KEY or PATH=TASK")?;
    Ok((path.into(), name.to_owned()))
}

fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        None if text.is_empty() => Err("a variable has a name".into()),
        Some((name, _)) => Err(format!(
            "name it only, its value is that of the environment: 'env {text} outfs run --env {name} …'; or '--param {text}'"
        )),
        None => Ok(text.to_owned()),
    }
}

fn parameter(text: &str) -> Result<(String, String), String> {
    let (name, value) =
        text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("write it like NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// What is told of a run that could not be made.
pub(super) fn refused(task: &str, why: &str) -> Report {
    Report { exit_code: OWN_ERROR, error: Some(why.to_owned()), ..Report::of(task) }
}

impl Run {
    /// Refuses what would silently do nothing, or something else than it says.
    fn check(&self) -> Result<(), RunError> {
        let empty = |text: &OsString| text.is_empty();
        let disabled = self.ephemeral || self.policy == Policy::Disabled;
        let reads = !disabled && self.policy != Policy::Writeonly;
        let mut names: Vec<&(String, String)> = self.param.iter().collect();
        names.sort_unstable();
        let twice =
            names.windows(2).find(|two| two[0].0 == two[1].0 && two[0].1 != two[1].1).map(|two| &two[0].0);
        let wrong = [
            (self.task.as_deref() == Some(""), "--task: a task's name is not empty"),
            (self.command.first().is_none_or(empty), "the command is empty"),
            (self.input.iter().any(empty), "--input: a path is not empty ('.' is the working directory)"),
            (self.tool.iter().any(empty), "--tool: a program's name is not empty"),
            (
                self.net && self.sandbox == SandboxArg::None,
                "--net is for a sandbox: a command outside of one has the network anyway",
            ),
            (self.verify && self.dry_run, "--verify runs the command, and with --dry-run nothing is run"),
            (self.verify && !reads, "--verify runs a hit again, and with this --policy there are no hits"),
            (
                self.mtime.is_some() && self.how == Some(As::Link),
                "--mtime is for files: links lead into a mount, where files have the times of the entry",
            ),
        ];
        if let Some((_, why)) = wrong.into_iter().find(|(is_so, _)| *is_so) {
            return Err(RunError::usage(why));
        }
        match twice {
            Some(name) => Err(RunError::usage(format!(
                "--param {name} is given twice, with two values, and only one could count"
            ))),
            None => Ok(()),
        }
    }

    /// A lock file in an output would be deleted with it.
    fn check_lock(&self, task: &Task) -> Result<(), RunError> {
        let Some(lock) = &self.lock else { return Ok(()) };
        let (cwd, file) = (&task.place.cwd, task.place.file(lock));
        let ways = [cwd.join(lock), task.place.file(&Lock::behind(&file)), file];
        match task.outputs.iter().find(|o| ways.iter().any(|way| way.starts_with(cwd.join(o)))) {
            Some(output) => Err(RunError::usage(format!(
                "the lock file {} lies in the output {}, with which it would be deleted",
                lock.display(),
                output.display()
            ))),
            None => Ok(()),
        }
    }

    /// With the store, or why there is none.
    pub(super) fn run(self, store: Result<PathBuf, String>) -> Result<ExitCode, Failure> {
        let json = self.json;
        let place = std::env::current_dir().map(|cwd| Place::of(&cwd));
        let id = self.task.clone();
        let id =
            id.or_else(|| Some(Task::default_id(&self.command, place.as_ref().ok()?))).unwrap_or_default();
        let mut teller = Teller::new(&id);
        let place = place.map_err(|e| RunError::io("find", ".", e));
        let ended = place.and_then(|place| self.execute(&id, place, store, &mut teller));
        let mut report = ended.unwrap_or_else(|e| {
            out::note(&out::clean(&e.to_string()));
            let code = if let RunError::Command { code, .. } = e { code } else { OWN_ERROR };
            Report { exit_code: code, ..refused(&id, &e.to_string()) }
        });
        if let Some(e) = teller.lost {
            out::note(&format!("the output is lost, it cannot be written: {e}"));
            report.exit_code = if report.exit_code == 0 { OWN_ERROR } else { report.exit_code };
        }
        let told = match (&report.parts, &report.differs) {
            _ if json => print_json(&report, teller.open),
            (Some(parts), _) => print_plan(&report, parts),
            (None, Some(differs)) => {
                print_differences(differs);
                Ok(())
            }
            (None, None) => Ok(()),
        };
        Ok(ExitCode::from(match told {
            Err(e) if e.kind != Kind::Hangup => {
                out::note(&out::clean(&e.message));
                if report.exit_code == 0 { OWN_ERROR } else { report.exit_code }
            }
            // A reader that went away changes nothing of how the command ended.
            _ => report.exit_code,
        }))
    }

    fn execute(
        mut self,
        id: &str,
        place: Place,
        store: Result<PathBuf, String>,
        teller: &mut Teller,
    ) -> Result<Report, RunError> {
        self.check()?;
        let team_key = self.team_key()?;
        let mut warnings = Vec::new();
        let session = session().unwrap_or_else(|e| {
            let warning = format!("this run is in no session: {e}");
            teller.warn(&warning);
            warnings.push(warning);
            if std::mem::take(&mut self.ephemeral) {
                self.policy = Policy::Disabled;
            }
            None
        });
        if self.ephemeral && session.is_none() {
            let message =
                "an ephemeral result lasts as long as a session: run this in 'outfs session -- COMMAND'";
            return Err(RunError::usage(message));
        }
        let task = self.task(id, place)?;
        self.check_lock(&task)?;
        let ways = self.ways(session, team_key, hidden(store.as_deref().ok()));
        let reads = (ways.policy == CachePolicy::Readonly).then(|| Rooms::of(ways.memory.as_deref()));
        let mut shelf = StoreShelf::new(store, reads);
        let report = run(&task, &ways, &mut shelf, teller);
        shelf.rest();
        let mut report = report?;
        report.warnings.splice(0..0, warnings);
        report.warnings.append(&mut shelf.warnings());
        Ok(report)
    }

    fn task(&self, id: &str, place: Place) -> Result<Task, RunError> {
        let (outputs, within) = Task::outputs_of(&self.output, &place)?;
        let task = Task {
            id: id.to_owned(),
            outputs,
            within,
            inputs: match (self.no_inputs, self.input.is_empty()) {
                (false, true) => Inputs::Git,
                _ => Inputs::Named(self.input.clone()),
            },
            argv: self.command.clone(),
            place,
            env: self.env.clone(),
            secrets: self.secret.clone(),
            tools: self.tool.clone(),
            params: self.param.iter().cloned().collect::<BTreeMap<_, _>>(),
            after: self.after.clone(),
            from: Vec::new(),
            base: self.base.clone(),
            sandbox: match self.sandbox {
                SandboxArg::None => SandboxKind::None,
                SandboxArg::Bwrap => SandboxKind::Bwrap,
            },
            net: self.net,
        };
        let from = Task::from_of(self.from.clone(), &task.outputs, &task.place)?;
        Ok(Task { from, ..task })
    }

    fn ways(self, session: Option<SessionId>, team_key: Option<Vec<u8>>, hidden: Vec<PathBuf>) -> Ways {
        Ways {
            ephemeral: self.ephemeral,
            policy: match self.policy {
                _ if self.ephemeral => CachePolicy::Disabled,
                Policy::Normal => CachePolicy::Normal,
                Policy::Readonly => CachePolicy::Readonly,
                Policy::Writeonly => CachePolicy::Writeonly,
                Policy::Disabled => CachePolicy::Disabled,
            },
            force: self.force,
            verify: self.verify,
            dry_run: self.dry_run,
            no_wait: self.no_wait,
            session,
            cache_failures: self.cache_failures,
            way: self.how.unwrap_or(As::Auto).way(),
            times: if self.mtime == Some(Mtime::Keep) { Times::Keep } else { Times::Now },
            // As with GNU's timeout.
            timeout: self.timeout.filter(|limit| !limit.is_zero()),
            grace: GRACE,
            lock: self.lock,
            team_key,
            guard: vec!["/proc/self/exe".into(), "guard".into()],
            // As paths of the project are.
            memory: memory(caches().as_deref()).map(|dir| dir.canonicalize().unwrap_or(dir)),
            hidden,
        }
    }

    fn team_key(&self) -> Result<Option<Vec<u8>>, RunError> {
        match &self.secret_key_file {
            Some(file) => std::fs::read(file).map(Some).map_err(|e| RunError::io("read", file, e)),
            None => Ok(std::env::var_os("OUTFS_SECRET_KEY").map(OsString::into_vec)),
        }
    }
}

/// The store, wherever it will be, and what shows it.
fn hidden(store: Option<&Path>) -> Vec<PathBuf> {
    let views = mount_table().into_iter().filter(MountInfo::is_outfs).map(|m| m.at);
    let store = store.map(|store| store.canonicalize().unwrap_or_else(|_| store.to_owned()));
    store.into_iter().chain(views).collect()
}

/// The session that this is in.
fn session() -> Result<Option<SessionId>, RunError> {
    let name = std::env::var(super::sessions::VARIABLE).ok().filter(|name| !name.is_empty());
    name.map(|name| name.parse()).transpose().map_err(|e: SessionError| RunError::usage(e.to_string()))
}

/// Where caches are; nowhere without a home.
pub(super) fn caches() -> Option<PathBuf> {
    let dir = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    dir("XDG_CACHE_HOME").or_else(|| dir("HOME").map(|h| h.join(".cache")))
}
