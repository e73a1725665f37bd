//! What was asked for.

use std::time::{Duration, Instant};

/// How much is measured.
#[derive(Clone, Copy, PartialEq)]
pub enum Mode {
    /// All trees and peers.
    Full,
    /// Two minutes: small trees, few peers.
    Quick,
    /// Seconds: only that everything works; nothing is judged.
    Smoke,
}

/// The options of a run.
#[derive(Clone)]
pub struct Options {
    pub mode: Mode,
    pub only: Option<String>,
    pub trees: Option<Vec<String>>,
    pub peers: Option<Vec<String>>,
    pub repeat: usize,
    /// When no further round begins.
    pub until: Instant,
    /// How long all of it may take.
    limit: Duration,
    /// Whether docs/benchmarks/ is written.
    pub write: bool,
    /// Whether it is measured how costs grow, instead of the tables.
    pub growth: bool,
    /// Entries of the largest store that growth is measured with.
    pub most: u64,
}

impl Options {
    /// Reads the arguments that `scripts/bench` passes on.
    pub fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Self {
            mode: Mode::Full,
            only: None,
            trees: None,
            peers: None,
            repeat: 0,
            until: Instant::now(),
            limit: Duration::ZERO,
            write: false,
            growth: false,
            most: 100_000,
        };
        let mut limit = None;
        let list = |text: &str| Some(text.split(',').map(str::to_owned).collect());
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--quick" => options.mode = Mode::Quick,
                "--smoke" => options.mode = Mode::Smoke,
                "--limit" => limit = Some(value()?.parse().map_err(|_| "--limit takes seconds")?),
                "--write" => options.write = true,
                "--growth" => options.growth = true,
                "--most" => options.most = value()?.parse().map_err(|_| "--most takes a number")?,
                "--only" => options.only = Some(value()?.clone()),
                "--trees" => options.trees = list(value()?),
                "--peers" => options.peers = list(value()?),
                "--repeat" => {
                    options.repeat =
                        value()?.parse().ok().filter(|n| *n > 0).ok_or("--repeat takes a number")?
                }
                _ => return Err(format!("unknown option {arg}")),
            }
        }
        if options.repeat == 0 {
            options.repeat = match options.mode {
                Mode::Full => 5,
                Mode::Quick => 3,
                Mode::Smoke => 1,
            };
        }
        let limit = limit.unwrap_or(if options.mode == Mode::Full { 2400 } else { 120 });
        options.limit = Duration::from_secs(limit);
        options.until = Instant::now() + options.limit;
        Ok(options)
    }

    /// The options of a part, which leaves `rest` of the time to those after it, unless only some rows are wanted.
    pub fn leaving(&self, rest: f64) -> Self {
        let rest = if self.only.is_some() { 0.0 } else { rest };
        Self { until: self.until - self.limit.mul_f64(rest), ..self.clone() }
    }

    /// Whether a row of this name is wanted: `--only` takes alternatives (`read-1|grep`), each a part of the name.
    pub fn wants_row(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.split('|').any(|part| name.contains(part)))
    }

    /// Whether a tree is wanted; without `--trees`, those of the mode.
    pub fn wants_tree(&self, name: &str) -> bool {
        let default: &[&str] = match self.mode {
            Mode::Full => &["source", "target", "big", "tiny"],
            Mode::Quick => &["source-2k", "quarter-big"],
            Mode::Smoke => &["few", "small-big"],
        };
        self.trees.as_ref().map_or(default.contains(&name), |trees| trees.iter().any(|t| t == name))
    }

    /// Whether a peer is wanted; without `--peers`, those of the mode. Native is always measured.
    pub fn wants_peer(&self, name: &str) -> bool {
        let quick = ["erofs", "fuse-overlayfs"];
        name == "native"
            || match &self.peers {
                Some(peers) => peers.iter().any(|p| name == p || name.starts_with(&format!("{p} "))),
                None => self.mode != Mode::Quick || name.starts_with("outfs") || quick.contains(&name),
            }
    }

    /// Whether a round that takes as long as the last may begin.
    pub fn has_time(&self, last: Duration) -> bool {
        Instant::now() + last < self.until
    }

    /// How long a slow peer is measured again and again; after that one sample has to do.
    pub fn patience(&self) -> Duration {
        Duration::from_secs_f64(if self.mode == Mode::Full { 30.0 } else { 2.0 })
    }
}
