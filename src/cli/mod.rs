//! The command line: a file per command, and the only room that prints.
//!
//! Exit codes: 0 done, 1 failed, 2 usage, 3 no such entry, 4 damage found. Facts go to standard output,
//! as tables or with `--json` as one JSON object per line; everything else goes to standard error.
//! Must not know: how anything is done (it asks `control` and `daemon`).

mod background;
mod cat;
mod diff;
mod doctor;
mod drafts;
mod du;
mod events;
mod evict;
mod fsck;
mod gc;
mod generate;
mod guard;
mod how;
mod import;
mod logs;
mod look;
mod ls;
mod mount;
mod out;
mod pin;
mod prefetch;
mod push;
mod put;
mod reject;
mod restore;
mod run;
mod seal;
mod session;
mod sessions;
mod shelf;
mod show;
mod stats;
mod status;
mod store;
mod teller;
mod unmount;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::control::{Failure, Kind, Reply};
use crate::daemon::LogSpec;

const EXIT_CODES: &str = "A KEY is given whole, as 'outfs ls' lists it; 'outfs run --json' and 'outfs why TASK' tell a run's.\n\n\
    Exit codes: 0 done, 1 failed, 2 usage, 3 no such entry, 4 damage found.\n\
    Environment: OUTFS_STORE (the store), OUTFS_CONFIG (a configuration file), OUTFS_LOG (what is logged, \
    as in info or outfs=debug).";

/// A build cache as a mounted file system.
#[derive(Parser)]
#[command(name = "outfs", version, after_help = EXIT_CODES, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Cli {
    /// The store [default: $OUTFS_STORE, else $XDG_CACHE_HOME/outfs, else ~/.cache/outfs]
    // An option that clap itself takes from the environment is in all its usages, as if it were required. Unlike a path's own
    // parser this takes an empty one, which is as good as none.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        value_parser = OsStringValueParser::new().map(PathBuf::from)
    )]
    store: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

/// How facts are printed.
#[derive(Args)]
pub(crate) struct Output {
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    Mount(Box<mount::Mount>),
    Unmount(unmount::Unmount),
    Stop(unmount::Stop),
    Status(status::Status),
    Run(Box<run::Run>),
    Session(sessions::Sessions),
    Why(why::Why),
    Diff(diff::Diff),
    Put(put::Put),
    Prefetch(prefetch::Prefetch),
    Push(push::Push),
    Restore(restore::Restore),
    Ls(ls::Ls),
    Show(show::Show),
    Cat(cat::Cat),
    Logs(logs::Logs),
    Du(du::Du),
    Drafts(drafts::Drafts),
    Seal(seal::Seal),
    Reject(reject::Reject),
    Evict(evict::Evict),
    Pin(pin::Pin),
    Unpin(pin::Unpin),
    Gc(gc::Gc),
    Fsck(fsck::Fsck),
    Stats(stats::Stats),
    Events(events::Events),
    Import(import::Import),
    Store(store::StoreCommand),
    Doctor(doctor::Doctor),
    Completions(generate::Completions),
    Man(generate::Man),
    Daemon(background::Background),
    Guard(guard::Guard),
    Look(look::Look),
}

/// What commands log to standard error, where OUTFS_LOG does not say.
const LOG_LEVEL: &str = "warn,outfs::cache::fsck=off";

/// The same in a run, which says itself what became of the entry that it looked up.
const RUN_LOG_LEVEL: &str = "warn,outfs::cache::lookup=off";

/// What every command is given.
struct Context {
    store: PathBuf,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return refuse(e),
    };
    match run(cli) {
        Ok(code) => code,
        Err(failure) if failure.kind == Kind::Hangup => ExitCode::SUCCESS,
        Err(failure) => {
            out::note(&out::clean(&failure.message));
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Says what is wrong with the command line, or prints the help that was asked for. In `outfs run` 2 may be the command's
/// own code.
fn refuse(mut e: clap::Error) -> ExitCode {
    let is_run = || {
        let matches = Cli::command().ignore_errors(true).try_get_matches();
        matches.is_ok_and(|m| m.subcommand_name() == Some("run"))
    };
    let is_run = e.exit_code() != 0 && is_run();
    let hint = is_run.then(|| before_the_command(&e)).flatten();
    if let Some(hint) = &hint {
        e.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint.clone().into()]));
    }
    let _ = e.print();
    match e.exit_code() {
        0 => ExitCode::SUCCESS,
        _ if is_run => {
            if std::env::args_os().take_while(|arg| arg != "--").any(|arg| arg == "--json") {
                let text = e.render().to_string();
                let said = text.lines().next().unwrap_or_default();
                let said = said.trim_start_matches("error: ");
                let said = hint.map_or(said.to_owned(), |hint| format!("{said}: {hint}"));
                let _ = out::json(&run::refused("", &said));
            }
            ExitCode::from(run::OWN_ERROR)
        }
        code => ExitCode::from(code as u8),
    }
}

/// What is missing where the command stands among the options.
fn before_the_command(e: &clap::Error) -> Option<String> {
    match e.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word))
            if e.kind() == ErrorKind::UnknownArgument && !word.starts_with('-') =>
        {
            Some(format!("put '--' before the command: 'outfs run [OPTIONS] -- {word}'"))
        }
        _ => None,
    }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Completions(c) => c.run()?,
        Command::Man(c) => c.run()?,
        Command::Daemon(c) => c.run()?,
        Command::Look(c) => c.run()?,
        Command::Guard(c) => return c.run(),
        command => return run_on_store(cli.store, command),
    }
    Ok(ExitCode::SUCCESS)
}

fn run_on_store(store: Option<PathBuf>, command: Command) -> Result<ExitCode, Failure> {
    let store = store.or_else(|| std::env::var_os("OUTFS_STORE").map(PathBuf::from));
    let store = match store.filter(|s| !s.as_os_str().is_empty()) {
        Some(store) => Ok(store),
        None => session::default_store(),
    };
    let store = store.and_then(|store| absolute(&store));
    // Whatever is wrong with the cache, a task runs.
    if let Command::Run(run) = command {
        if let Err(failure) = LogSpec::install_in_command(RUN_LOG_LEVEL) {
            out::note(&out::clean(&format!("warning: {failure}")));
        }
        return run.run(store.map_err(|failure| failure.message));
    }
    if let Command::Session(session) = command {
        if let Err(failure) = LogSpec::install_in_command(LOG_LEVEL) {
            out::note(&out::clean(&format!("warning: {failure}")));
        }
        return session.run(store.map(|store| Context { store }));
    }
    let cx = Context { store: store? };
    if !matches!(command, Command::Mount(_)) {
        // The daemon has a log of its own; a command warns where it stands. What a check finds, it prints.
        LogSpec::install_in_command(LOG_LEVEL)?;
    }
    match command {
        Command::Why(c) => c.run(&cx)?,
        Command::Diff(c) => c.run(&cx)?,
        Command::Mount(c) => c.run(&cx)?,
        Command::Unmount(c) => c.run(&cx)?,
        Command::Stop(c) => c.run(&cx)?,
        Command::Status(c) => c.run(&cx)?,
        Command::Prefetch(c) => c.run(&cx)?,
        Command::Put(c) => c.run(&cx)?,
        Command::Push(c) => c.run(&cx)?,
        Command::Restore(c) => c.run(&cx)?,
        Command::Ls(c) => c.run(&cx)?,
        Command::Show(c) => c.run(&cx)?,
        Command::Cat(c) => c.run(&cx)?,
        Command::Logs(c) => c.run(&cx)?,
        Command::Du(c) => c.run(&cx)?,
        Command::Drafts(c) => c.run(&cx)?,
        Command::Seal(c) => c.run(&cx)?,
        Command::Reject(c) => c.run(&cx)?,
        Command::Evict(c) => c.run(&cx)?,
        Command::Pin(c) => c.run(&cx)?,
        Command::Unpin(c) => c.run(&cx)?,
        Command::Gc(c) => c.run(&cx)?,
        Command::Fsck(c) => c.run(&cx)?,
        Command::Stats(c) => c.run(&cx)?,
        Command::Events(c) => c.run(&cx)?,
        Command::Import(c) => c.run(&cx)?,
        Command::Store(c) => c.run(&cx)?,
        Command::Doctor(c) => c.run(&cx)?,
        Command::Run(_)
        | Command::Session(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Daemon(_)
        | Command::Look(_)
        | Command::Guard(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Requests carry absolute paths.
fn absolute(path: &std::path::Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|e| Failure::new(Kind::Usage, format!("{} is no usable path: {e}", path.display())))
}

/// The daemon is another version's if this ever happens.
fn unexpected(reply: Reply) -> Failure {
    Failure::new(Kind::Protocol, format!("an answer that fits no question: {reply:?}"))
}
