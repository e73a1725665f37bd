//! `outfs run`: a command, cached.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::how::As;
use super::out;
use super::shelf::StoreShelf;
use crate::cache::CachePolicy;
use crate::control::{Failure, Kind};
use crate::daemon::{MountInfo, mount_table};
use crate::model::session::{SessionError, SessionId};
use crate::model::units::parse_duration;
use crate::run::{
    Held, Inputs, Place, Reason, Report, RunError, SandboxKind, Shelf, Sink, Task, Times, Voice, Ways, guard,
    run,
};

/// Between being asked to end and being killed.
const GRACE: Duration = Duration::from_secs(10);
/// Reasons that are printed; the rest is counted.
const SHOWN: usize = 10;
/// What outfs itself exits with when it cannot run a command.
const OWN_ERROR: u8 = 125;

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Policy {
    /// Read and write
    Normal,
    /// Never write
    Readonly,
    /// Always run, and replace what is there
    Writeonly,
    /// Neither read nor write
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
    /// Now, in the order they had
    Now,
    /// As they were made
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
    /// A file or directory that is made
    #[arg(long, value_name = "PATH")]
    output: Vec<PathBuf>,
    /// A variable whose value counts
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
    /// Something else that counts
    #[arg(long, value_name = "K=V", value_parser = parameter)]
    param: Vec<(String, String)>,
    /// A task whose outputs count
    #[arg(long, value_name = "TASK")]
    after: Vec<String>,
    /// Has the outputs of an entry or a task at a path for the time of the run
    #[arg(long, value_name = "PATH=KEY|TASK", value_parser = upstream)]
    from: Vec<(PathBuf, String)>,
    /// Start from the outputs of an entry or a task
    #[arg(long, value_name = "KEY|TASK")]
    base: Option<String>,
    /// What the command runs in
    #[arg(long, value_enum, value_name = "KIND", default_value = "none")]
    sandbox: SandboxArg,
    /// Leave it the network in a sandbox
    #[arg(long)]
    net: bool,
    /// End the command after so long
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// What the cache may be used for
    #[arg(long, value_enum, value_name = "POLICY", default_value = "normal")]
    policy: Policy,
    /// Run it whatever is there, and replace that
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
    /// How outputs come back
    #[arg(long = "as", value_enum, value_name = "HOW", default_value = "auto")]
    how: As,
    /// Which modification times they get
    #[arg(long, value_enum, value_name = "WHICH", default_value = "now")]
    mtime: Mtime,
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
        Some((name, _)) => Err(format!(
            "name it only, its value is that of the environment: 'env {text} outfs run --env {name} …'; or '--param {text}'"
        )),
        None => Ok(text.to_owned()),
    }
}

fn parameter(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it like NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Run {
    /// With the store, or why there is none.
    pub(super) fn run(self, store: Result<PathBuf, String>) -> Result<ExitCode, Failure> {
        let json = self.json;
        let place = std::env::current_dir().map(|cwd| Place::of(&cwd));
        let id = self.task.clone();
        let id =
            id.or_else(|| Some(Task::default_id(&self.command, place.as_ref().ok()?))).unwrap_or_default();
        let mut teller = Teller { task: out::clean(&id), open: false, lost: None };
        let place = place.map_err(|e| RunError::io("find", ".", e));
        let ended = place.and_then(|place| self.execute(&id, place, store, &mut teller));
        let mut report = ended.unwrap_or_else(|e| {
            out::note(&out::clean(&e.to_string()));
            let code = if let RunError::Command { code, .. } = e { code } else { OWN_ERROR };
            Report { exit_code: code, error: Some(e.to_string()), ..Report::of(&id) }
        });
        if let Some(e) = teller.lost {
            out::note(&format!("the output is lost, it cannot be written: {e}"));
            report.exit_code = if report.exit_code == 0 { OWN_ERROR } else { report.exit_code };
        }
        if json {
            // A line of its own, whatever the command printed.
            if teller.open {
                out::line("")?;
            }
            out::json(&report)?;
        } else if let Some(parts) = &report.parts {
            print_plan(&report, parts)?;
        } else if let Some(differs) = &report.differs {
            print_differences(differs);
        }
        Ok(ExitCode::from(report.exit_code))
    }

    fn execute(
        self,
        id: &str,
        place: Place,
        store: Result<PathBuf, String>,
        teller: &mut Teller,
    ) -> Result<Report, RunError> {
        let team_key = self.team_key()?;
        let session = session()?;
        if self.ephemeral && session.is_none() {
            let message =
                "an ephemeral result lasts as long as a session: run this in 'outfs session -- COMMAND'";
            return Err(RunError::usage(message));
        }
        let task = Task {
            id: id.to_owned(),
            outputs: Task::outputs_of(&self.output, &place)?,
            inputs: match (self.no_inputs, self.input.is_empty()) {
                (false, true) => Inputs::Git,
                _ => Inputs::Named(self.input),
            },
            argv: self.command,
            place,
            env: self.env,
            secrets: self.secret,
            tools: self.tool,
            params: self.param.into_iter().collect::<BTreeMap<_, _>>(),
            after: self.after,
            from: Vec::new(),
            base: self.base,
            sandbox: match self.sandbox {
                SandboxArg::None => SandboxKind::None,
                SandboxArg::Bwrap => SandboxKind::Bwrap,
            },
            net: self.net,
        };
        let task = Task { from: Task::from_of(self.from, &task.outputs, &task.place)?, ..task };
        let ways = Ways {
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
            way: self.how.way(),
            times: if self.mtime == Mtime::Keep { Times::Keep } else { Times::Now },
            timeout: self.timeout,
            grace: GRACE,
            lock: self.lock,
            team_key,
            guard: vec!["/proc/self/exe".into(), "guard".into()],
            memory: memory(),
            hidden: hidden(store.as_deref().ok()),
        };
        let mut shelf = StoreShelf::new(store);
        let report = run(&task, &ways, &mut shelf, teller);
        shelf.rest();
        report
    }

    fn team_key(&self) -> Result<Option<Vec<u8>>, RunError> {
        match &self.secret_key_file {
            Some(file) => std::fs::read(file).map(Some).map_err(|e| RunError::io("read", file, e)),
            None => Ok(std::env::var_os("OUTFS_SECRET_KEY").map(OsString::into_vec)),
        }
    }
}

/// The store, and what shows it.
fn hidden(store: Option<&Path>) -> Vec<PathBuf> {
    let views = mount_table().into_iter().filter(MountInfo::is_outfs).map(|m| m.at);
    store.and_then(|store| store.canonicalize().ok()).into_iter().chain(views).collect()
}

/// The session that this is in.
fn session() -> Result<Option<SessionId>, RunError> {
    let name = std::env::var(super::sessions::VARIABLE).ok().filter(|name| !name.is_empty());
    name.map(|name| name.parse()).transpose().map_err(|e: SessionError| RunError::usage(e.to_string()))
}

/// Where projects are remembered; nowhere without a home.
fn memory() -> Option<PathBuf> {
    let dir = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    dir("XDG_CACHE_HOME").or_else(|| dir("HOME").map(|h| h.join(".cache"))).map(|d| d.join("outfs-run"))
}

/// Says what happens on standard error; the command's output goes where it belongs.
struct Teller {
    task: String,
    /// The last line on standard output has no end.
    open: bool,
    /// Why output is lost.
    lost: Option<io::Error>,
}

impl Sink for Teller {
    fn wrote(&mut self, stderr: bool, bytes: &[u8]) {
        let done = match stderr {
            true => return drop(io::stderr().write_all(bytes)),
            false => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
        };
        self.open = bytes.last().map_or(self.open, |last| *last != b'\n');
        // A reader that went away is no reason to end the command, and wants no more.
        if let Err(e) = done
            && e.kind() != io::ErrorKind::BrokenPipe
        {
            self.lost.get_or_insert(e);
        }
    }
}

impl Voice for Teller {
    fn miss(&mut self, reasons: &[Reason]) {
        for reason in reasons.iter().take(SHOWN) {
            out::note(&format!("run {}: {}", self.task, out::clean(&reason.to_string())));
        }
        if reasons.len() > SHOWN {
            out::note(&format!("run {}: and {} more reasons", self.task, reasons.len() - SHOWN));
        }
    }

    fn hit(&mut self, held: &Held) {
        let age = jiff::Timestamp::now().duration_since(held.made_at);
        out::note(&format!(
            "hit {}: saved {}, made {} ago",
            self.task,
            for_people(Duration::from_millis(held.duration_ms)),
            for_people(age.try_into().unwrap_or_default())
        ));
    }

    fn wait(&mut self, pid: Option<u32>) {
        let who = pid.map_or("another process".into(), |pid| format!("process {pid}"));
        out::note(&format!("waiting for {who}, which runs {} already", self.task));
    }

    fn wait_turn(&mut self, pid: Option<u32>) {
        let who = pid.map_or("another process".into(), |pid| format!("process {pid}"));
        out::note(&format!("waiting for {who}, which writes the same outputs"));
    }

    fn warn(&mut self, what: &str) {
        out::note(&out::clean(&format!("warning: {what}")));
    }
}

/// `1.2 s`, `5 min`: the two leading figures of a time.
fn for_people(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 1.0 => format!("{} ms", time.as_millis()),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86400.0),
    }
}

fn print_plan(report: &Report, parts: &crate::run::Parts) -> Result<(), Failure> {
    let one = |name: &str, value: &str| out::line(&format!("{name:<10} {}", out::clean(value)));
    one("task", &report.task)?;
    one("key", report.key.as_ref().map_or("", |k| k.as_str()))?;
    one("command", &crate::run::shell_words(&parts.argv))?;
    one("program", &parts.program)?;
    one("directory", if parts.cwd.is_empty() { "." } else { &parts.cwd })?;
    one("platform", &parts.platform)?;
    one("sandbox", &parts.sandbox)?;
    one("network", &parts.network)?;
    let maps = [
        ("tool", &parts.tools),
        ("env", &parts.env),
        ("secret", &parts.secrets),
        ("param", &parts.params),
        ("after", &parts.after),
        ("from", &parts.from),
        ("base", &parts.base),
    ];
    for (name, map) in maps {
        for (k, v) in map {
            one(name, &format!("{k} {v}"))?;
        }
    }
    for output in &parts.outputs {
        one("output", output)?;
    }
    for input in &parts.inputs {
        one("input", &input.to_string())?;
    }
    match report.reasons.is_empty() {
        true => one("would", "hit"),
        false => report.reasons.iter().try_for_each(|r| one("would run", &r.to_string())),
    }
}

fn print_differences(differs: &[String]) {
    if differs.is_empty() {
        out::note("verified: the same result again");
    }
    for path in differs {
        out::note(&out::clean(&format!("differs: {path}")));
    }
}

/// Look after a command (for outfs itself)
#[derive(Args)]
#[command(hide = true)]
pub(crate) struct Guard {
    /// Signals are for what the command starts
    #[arg(long)]
    inner: bool,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Guard {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        // Else `ps` and `pgrep` would know it as "exe".
        let _ = nix::sys::prctl::set_name(c"outfs");
        let (code, error) = guard(&self.command, self.inner);
        if let Some(e) = error {
            let program = self.command.first().map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
            return match code {
                126 | 127 => {
                    out::note(&out::clean(&format!("{program}: {e}")));
                    Ok(ExitCode::from(code))
                }
                _ => Err(Failure::new(Kind::Failed, e.to_string())),
            };
        }
        Ok(ExitCode::from(code))
    }
}
