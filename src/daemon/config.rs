//! The configuration file: daemon settings in TOML. Flags win over it.
//!
//! It is `$OUTFS_CONFIG`, else `$XDG_CONFIG_HOME/outfs/config.toml`, else
//! `~/.config/outfs/config.toml`. Unknown settings are errors that name file and line.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::LogSpec;
use crate::cache::Prefetch;
use crate::control::{LimitFlags, Span};
use crate::fuse::{Passthrough, Transport};
use crate::model::units::Bytes;
use crate::tier::Address;
use crate::vfs::Overwrite;

/// All settings; each may be absent.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// As `--log`.
    pub log: Option<LogSpec>,
    /// `[limits]`: size, reserve, entries, high_water, low_water, min_age, draft_ttl, scrub, memory.
    pub limits: LimitFlags,
    /// `[mount]`: what `outfs mount` would otherwise take by default.
    pub mount: MountConfig,
}

/// Defaults for mounts.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MountConfig {
    /// As `--read-only`.
    pub read_only: Option<bool>,
    /// As `--seal-quiet`; `"0s"` or absent is off.
    pub seal_quiet: Option<Span>,
    /// As `--overwrite`.
    pub overwrite: Option<Overwrite>,
    /// As `--passthrough`.
    pub passthrough: Option<Passthrough>,
    /// As `--transport`.
    pub transport: Option<Transport>,
    /// As `--tier`, in the order in which they are asked.
    pub tiers: Option<Vec<Address>>,
    /// As `--push`.
    pub push: Option<bool>,
    /// As `--prefetch`.
    pub prefetch: Option<Prefetch>,
    /// As `--push-limit`.
    pub push_limit: Option<Bytes>,
    /// As `--scan-budget`.
    pub scan_budget: Option<Bytes>,
    /// As `--allow-other`.
    pub allow_other: Option<bool>,
    /// As `--threads`.
    pub threads: Option<usize>,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{path}:{line}: {why}", path = .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// What is wrong.
        why: String,
    },
}

impl Config {
    /// Reads the user's configuration; a file that was not named and is missing is an empty one.
    pub fn load() -> Result<Config, ConfigError> {
        let env = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(named) = env("OUTFS_CONFIG") {
            return Self::read(&named);
        }
        let base = env("XDG_CONFIG_HOME").or_else(|| env("HOME").map(|h| h.join(".config")));
        let Some(path) = base.map(|b| b.join("outfs/config.toml")) else { return Ok(Self::default()) };
        match Self::read(&path) {
            Err(ConfigError::Read { source, .. })
                if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::EACCES)) =>
            {
                Ok(Self::default())
            }
            other => other,
        }
    }

    /// Reads one file.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Reads the text of the file at `path`, which is named in errors.
    pub(super) fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|e| {
            let before = e.span().map_or(0, |s| s.start.min(text.len()));
            let line = text.as_bytes()[..before].iter().filter(|&&b| b == b'\n').count() + 1;
            ConfigError::Parse { path: path.to_owned(), line, why: e.message().trim().replace('\n', ", ") }
        })?;
        config.limits.check().map_err(|(name, why)| {
            let names = |l: &str| l.trim_start().starts_with(name);
            let line = text.lines().position(names).map_or(1, |i| i + 1);
            ConfigError::Parse { path: path.to_owned(), line, why }
        })?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn every_setting() {
        let config = read(
            "log = 'json:stderr'\n[limits]\nsize = '20%'\nreserve = '1G'\nentries = 9\nhigh_water = 90\n\
             low_water = 80\nmin_age = '1m'\ndraft_ttl = '2h'\nscrub = 'off'\nmemory = '64M'\n[mount]\nread_only = false\n\
             seal_quiet = '10s'\noverwrite = 'replace'\npassthrough = 'off'\ntransport = 'dev'\ntiers = ['s3://b/p']\npush = true\nprefetch = 'all'\npush_limit = '10M'\nscan_budget = '1T'\nallow_other = true\nthreads = 8\n",
        )
        .unwrap();
        assert_eq!(config.limits.size, Some("20%".parse().unwrap()));
        assert_eq!(config.limits.memory, Some("64M".parse().unwrap()));
        assert_eq!(config.limits.scrub, Some("off".parse().unwrap()));
        assert_eq!(config.mount.threads, Some(8));
        assert_eq!(config.mount.transport, Some(Transport::Dev));
        assert_eq!(config.mount.tiers, Some(vec!["s3://b/p".parse().unwrap()]));
        assert_eq!(config.mount.overwrite, Some(Overwrite::Replace));
        assert_eq!(read("[mount]\nprefetch = 'none'\n").unwrap().mount.prefetch, Some(Prefetch::Manifest));
        assert_eq!(read("").unwrap(), Config::default());
    }

    #[test]
    fn errors_name_file_and_line() {
        for (text, line, part) in [
            ("\n[limits]\nsiez = '1G'\n", 3, "siez"),
            ("[limits]\nsize = '1Q'\n", 2, "size"),
            ("[mount]\n\noverwrite = 'maybe'\n", 3, "maybe"),
            ("[mount]\ntiers = ['s3://a:b@c']\n", 2, "no credentials"),
            ("= 1", 1, ""),
            ("[limits]\nhigh_water = 50\nlow_water = 80\n", 3, "above"),
            ("[limits]\nhigh_water = 101\n", 2, "over 100"),
            ("[limits]\n\nsize = '0'\n", 3, "no room"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(&format!("config.toml:{line}: ")) && error.contains(part), "{error}");
        }
    }
}
