//! `outfs mount`: a view, by a new daemon or by the one that runs.

use std::io::{self, BufRead};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::out::{self, Streams};
use super::session::{self, connect};
use super::{Context, Output, absolute, background, unexpected};
use crate::cache::Prefetch;
use crate::control::{Failure, Kind, LimitFlags, Period, Reply, Request, Span, ViewFacts, Wanted};
use crate::daemon::{self, Config, LogSpec, LogTarget, Start};
use crate::fuse::{MountOptions, Passthrough, Transport};
use crate::model::EntryKey;
use crate::model::units::{Bytes, Size};
use crate::tier::Address;
use crate::vfs::{Overwrite, ViewOptions};

/// How long to wait for an owner that is about to go.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, ValueEnum)]
enum OverwriteArg {
    /// The first result wins
    Deny,
    /// A later store replaces the entry
    Replace,
}

#[derive(Clone, Copy, ValueEnum)]
enum PassthroughArg {
    /// Where kernel and privileges allow; in read-only views, if files are large as a rule
    Auto,
    /// Never
    Off,
    /// Refuse to mount without
    Require,
}

#[derive(Clone, Copy, ValueEnum)]
enum TransportArg {
    /// Through io_uring where the kernel offers it, else through /dev/fuse
    Auto,
    /// Through /dev/fuse
    Dev,
    /// Through io_uring; refuse to mount without
    Uring,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrefetchArg {
    /// What says what is in it; the rest when it is read (`none` means the same)
    #[value(alias = "none")]
    Manifest,
    /// All of it, in the background
    All,
    /// What was read first of earlier entries of its task, in the background
    Learned,
}

/// Mount a view of the store; returns when it is ready
#[derive(Args)]
#[command(after_help = "Examples: outfs mount /mnt/cache --size 20G\n          \
    outfs mount /tmp/sandbox --read-only --key \"$KEY\"\n\n\
    The first mount of a store starts its daemon, which ends with its last view. Options that are not given \
    come from the configuration file. Credentials for tiers come from the environment of the mount that starts the \
    daemon (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, OUTFS_GRPC_TOKEN) or the profile's file. --log takes stderr (with --foreground), journal or a file, with json: \
    before it for JSON; the default is daemon.log in the store, or stderr with --foreground. A file is begun anew at 16 MiB, and the one before \
    is kept beside it as .old. OUTFS_LOG \
    chooses what is logged (info, outfs=debug).")]
pub(crate) struct Mount {
    /// An empty directory
    mount_point: PathBuf,
    /// Bytes the store may use, as 20G or 10% of its file system [default: 10%, at least 5G]
    #[arg(long)]
    size: Option<Size>,
    /// Space to leave free on the store's file system [default: 1%]
    #[arg(long, value_name = "SIZE")]
    reserve: Option<Size>,
    /// Most entries [default: no limit]
    #[arg(long, value_name = "N")]
    max_entries: Option<u64>,
    /// Never evict entries younger than this to make room [default: 10m]
    #[arg(long, value_name = "DURATION")]
    min_age: Option<Span>,
    /// Drop drafts that were idle for so long [default: 24h]
    #[arg(long, value_name = "DURATION")]
    draft_ttl: Option<Span>,
    /// Read and verify all content again once in so long, or "off" [default: 7d]
    #[arg(long, value_name = "PERIOD")]
    scrub: Option<Period>,
    /// Memory the daemon may take for what it keeps of the store [default: 128M]
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// Allow no change; reading is fastest so
    #[arg(long)]
    read_only: bool,
    /// Show only this entry (may be repeated); read-only
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<EntryKey>,
    /// Show only the entries a file lists, one key a line ("-" is standard input)
    #[arg(long, value_name = "FILE")]
    keys_from: Option<PathBuf>,
    /// Seal drafts that have metadata and were quiet for so long, or "off"
    #[arg(long, value_name = "DURATION", value_parser = quiet)]
    seal_quiet: Option<Span>,
    /// What storing over a sealed entry does [default: deny]
    #[arg(long, value_enum)]
    overwrite: Option<OverwriteArg>,
    /// Let large files and drafts bypass the daemon [default: auto]
    #[arg(long, value_enum)]
    passthrough: Option<PassthroughArg>,
    /// How the kernel's requests reach the daemon [default: auto]
    #[arg(long, value_enum)]
    transport: Option<TransportArg>,
    /// Look up in this tier what is not here, and read it from there: s3://BUCKET/PREFIX?endpoint=URL&region=NAME
    /// or grpc://HOST:PORT/INSTANCE, grpcs:// with TLS (may be repeated: they are asked in this order)
    #[arg(long = "tier", value_name = "URL")]
    tiers: Vec<Address>,
    /// What comes of an entry of a tier when it is looked up [default: manifest]
    #[arg(long, value_enum)]
    prefetch: Option<PrefetchArg>,
    /// Bring what is sealed here to the tiers, in the background
    #[arg(long)]
    push: bool,
    /// Bring no more than so many bytes a second, as 10M, to each tier [default: no limit]
    #[arg(long, value_name = "SIZE")]
    push_limit: Option<Bytes>,
    /// What a process may have come from tiers by reading, as 64G, or 0 for no limit; each entry it reads counts as 4 MiB
    /// more. Then it gets EDQUOT [default: 64G]
    #[arg(long, value_name = "SIZE")]
    scan_budget: Option<Bytes>,
    /// Let other users enter
    #[arg(long)]
    allow_other: bool,
    /// Threads that answer what comes through /dev/fuse, at least 2 [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=256))]
    threads: Option<u16>,
    /// Stay here and log to standard error
    #[arg(long)]
    foreground: bool,
    /// Where the daemon logs: stderr, journal or a file; json: before it for JSON
    #[arg(long, value_name = "WHERE")]
    log: Option<LogSpec>,
    #[command(flatten)]
    output: Output,
}

/// `off` is no time at all.
fn quiet(text: &str) -> Result<Span, String> {
    if text == "off" { Ok(Span(Duration::ZERO)) } else { text.parse().map_err(|e| format!("{e}, or off")) }
}

impl Mount {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let config = session::config()?;
        let start = self.start(cx, &config)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let result = match connect(&cx.store)? {
                Some(client) => self.join(client, &start),
                None if self.foreground => daemon::run(&start, |ready| {
                    if let Ok(facts) = ready {
                        self.print(facts)
                    }
                })
                .map(|()| None),
                None => background::spawn(&start).map(Some),
            };
            match result {
                Ok(None) => return Ok(()),
                Ok(Some(facts)) => {
                    self.print(&facts);
                    return Ok(());
                }
                // Another process owns the store for a moment, or its daemon is ending.
                Err(failure)
                    if matches!(failure.kind, Kind::Locked | Kind::Stopping | Kind::Lost)
                        && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Asks the daemon that runs to add the view.
    fn join(&self, mut client: crate::control::Client, start: &Start) -> Result<Option<ViewFacts>, Failure> {
        if self.foreground {
            return Err(Failure::failed(
                "a daemon serves this store already ('outfs status'); leave out --foreground to add a view to it",
            ));
        }
        let request = Request::Mount {
            at: start.at.clone(),
            view: start.view.clone(),
            mount: start.mount.clone(),
            wanted: Wanted {
                limits: self.limits(),
                tiers: self.tiers.clone(),
                push: self.push,
                prefetch: self.prefetch.map(Prefetch::from),
                push_limit: self.push_limit,
                scan_budget: self.scan_budget,
                log: self.log.as_ref().map(LogSpec::to_string),
            },
        };
        match client.call(request, &mut Streams::to_stdout())? {
            Reply::Mounted(facts) => Ok(Some(facts)),
            other => Err(unexpected(other)),
        }
    }

    fn limits(&self) -> LimitFlags {
        LimitFlags {
            size: self.size,
            reserve: self.reserve,
            entries: self.max_entries,
            min_age: self.min_age,
            draft_ttl: self.draft_ttl,
            scrub: self.scrub,
            memory: self.memory,
            ..LimitFlags::default()
        }
    }

    fn start(&self, cx: &Context, config: &Config) -> Result<Start, Failure> {
        let usage = |m: String| Failure::new(Kind::Usage, m);
        let (m, scope) = (&config.mount, self.scope()?);
        let quiet = self.seal_quiet.or(m.seal_quiet).map(|s| s.0).filter(|d| !d.is_zero());
        let threads = self.threads.map(usize::from).or(m.threads).unwrap_or(MountOptions::default().threads);
        if threads < 2 {
            return Err(usage("the configuration's threads must be at least 2".into()));
        }
        self.limits().check().map_err(|(_, why)| usage(why))?;
        Ok(Start {
            store: cx.store.clone().into(),
            limits: session::over_config(config, &self.limits()),
            log: self.log(cx, config)?,
            at: absolute(&self.mount_point)?.into(),
            push: self.push || m.push.unwrap_or(false),
            prefetch: self.prefetch.map(Prefetch::from).or(m.prefetch).unwrap_or_default(),
            push_limit: self.push_limit.or(m.push_limit).filter(|limit| limit.0 > 0),
            scan_budget: self.scan_budget.or(m.scan_budget),
            tiers: match self.tiers.is_empty() {
                true => m.tiers.clone().unwrap_or_default(),
                false => self.tiers.clone(),
            },
            view: ViewOptions {
                read_only: self.read_only || m.read_only.unwrap_or(false) || scope.is_some(),
                scope,
                seal_quiet: quiet,
                overwrite: self.overwrite.map(Overwrite::from).or(m.overwrite).unwrap_or_default(),
            },
            mount: MountOptions {
                passthrough: self.passthrough.map(Passthrough::from).or(m.passthrough).unwrap_or_default(),
                transport: self.transport.map(Transport::from).or(m.transport).unwrap_or_default(),
                allow_other: self.allow_other || m.allow_other.unwrap_or(false),
                threads,
            },
        })
    }

    fn log(&self, cx: &Context, config: &Config) -> Result<LogSpec, Failure> {
        match self.log.clone().or(config.log.clone()) {
            Some(log) if log.target == LogTarget::Stderr && !self.foreground => {
                Err(Failure::new(Kind::Usage, "--log stderr needs --foreground; name a file or the journal"))
            }
            Some(log) => Ok(log),
            None if self.foreground => Ok(LogSpec { target: LogTarget::Stderr, json: false }),
            None => Ok(LogSpec { target: LogTarget::File(daemon::default_log(&cx.store)), json: false }),
        }
    }

    /// The keys the view is limited to.
    fn scope(&self) -> Result<Option<Vec<EntryKey>>, Failure> {
        let Some(path) = &self.keys_from else {
            return Ok((!self.keys.is_empty()).then(|| self.keys.clone()));
        };
        let unreadable = |e: io::Error| Failure::failed(format!("cannot read {}: {e}", path.display()));
        let input: Box<dyn BufRead> = match path.as_os_str() == "-" {
            true => Box::new(io::stdin().lock()),
            false => Box::new(io::BufReader::new(std::fs::File::open(path).map_err(unreadable)?)),
        };
        let mut keys = self.keys.clone();
        for (number, line) in input.lines().enumerate() {
            let line = line.map_err(unreadable)?;
            let text = line.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let place = || format!("{}:{}", path.display(), number + 1);
            keys.push(text.parse().map_err(|e| Failure::new(Kind::Usage, format!("{}: {e}", place())))?);
        }
        Ok(Some(keys))
    }

    /// The mount stands whether or not anybody reads this.
    fn print(&self, facts: &ViewFacts) {
        let _ = match self.output.json {
            true => out::json(facts),
            false => out::line(&format!("mounted {}", out::clean_path(&facts.at))),
        };
    }
}

impl From<PrefetchArg> for Prefetch {
    fn from(a: PrefetchArg) -> Self {
        match a {
            PrefetchArg::Manifest => Prefetch::Manifest,
            PrefetchArg::All => Prefetch::All,
            PrefetchArg::Learned => Prefetch::Learned,
        }
    }
}

impl From<OverwriteArg> for Overwrite {
    fn from(a: OverwriteArg) -> Self {
        match a {
            OverwriteArg::Deny => Overwrite::Deny,
            OverwriteArg::Replace => Overwrite::Replace,
        }
    }
}

impl From<TransportArg> for Transport {
    fn from(a: TransportArg) -> Self {
        match a {
            TransportArg::Auto => Transport::Auto,
            TransportArg::Dev => Transport::Dev,
            TransportArg::Uring => Transport::Uring,
        }
    }
}

impl From<PassthroughArg> for Passthrough {
    fn from(a: PassthroughArg) -> Self {
        match a {
            PassthroughArg::Auto => Passthrough::Auto,
            PassthroughArg::Off => Passthrough::Off,
            PassthroughArg::Require => Passthrough::Require,
        }
    }
}
