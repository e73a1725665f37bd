//! Limits as people give them: by flag, in the configuration file, or as a store remembers them.
//! Each value may be absent, so that one layer can be laid over another.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cache::Limits;
use crate::model::units::{Bytes, Size, UnitError, human_bytes, parse_duration};

/// A duration written like `10s` or `24h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = UnitError;
    fn from_str(s: &str) -> Result<Self, UnitError> {
        parse_duration(s).map(Span)
    }
}

impl TryFrom<String> for Span {
    type Error = UnitError;
    fn try_from(s: String) -> Result<Self, UnitError> {
        s.parse()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        if !ms.is_multiple_of(1000) {
            return write!(f, "{ms}ms");
        }
        match ms / 1000 {
            0 => f.write_str("0s"),
            s if s.is_multiple_of(86400) => write!(f, "{}d", s / 86400),
            s if s.is_multiple_of(3600) => write!(f, "{}h", s / 3600),
            s if s.is_multiple_of(60) => write!(f, "{}m", s / 60),
            s => write!(f, "{s}s"),
        }
    }
}

impl From<Span> for String {
    fn from(s: Span) -> String {
        s.to_string()
    }
}

/// How often something is done: a duration, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Period(pub Duration);

impl FromStr for Period {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "off" => Ok(Period(Duration::ZERO)),
            _ => parse_duration(s).map(Period).map_err(|e| format!("{e}, or off")),
        }
    }
}

impl TryFrom<String> for Period {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() { f.write_str("off") } else { Span(self.0).fmt(f) }
    }
}

impl From<Period> for String {
    fn from(p: Period) -> String {
        p.to_string()
    }
}

/// Limits where each may be absent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitFlags {
    /// Bytes the store may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Bytes of the file system to leave free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve: Option<Size>,
    /// Most entries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// Eviction starts above this share of `size`, per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high_water: Option<u8>,
    /// Eviction stops at this share of `size`, per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low_water: Option<u8>,
    /// Entries younger than this are never evicted to make room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_age: Option<Span>,
    /// Drafts idle for longer are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft_ttl: Option<Span>,
    /// How often the daemon verifies all content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scrub: Option<Period>,
    /// Memory that the daemon may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
}

impl LimitFlags {
    /// What is given makes sense together; else which setting does not, and why.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if matches!(self.size, Some(Size::Bytes(0))) || self.size == Some(Size::Percent(0.0)) {
            return Err(("size", "a size of 0 leaves no room for any entry".into()));
        }
        for (name, share) in [("high_water", self.high_water), ("low_water", self.low_water)] {
            if let Some(share) = share.filter(|s| *s > 100) {
                return Err((
                    name,
                    format!("{name} is a share of size in per cent, and {share} is over 100"),
                ));
            }
        }
        match (self.high_water, self.low_water) {
            (Some(high), Some(low)) if low > high => {
                Err(("low_water", format!("low_water ({low}) is above high_water ({high})")))
            }
            _ => Ok(()),
        }
    }

    /// Lays what is given here over `limits`.
    pub fn apply(&self, limits: &mut Limits) {
        limits.size = self.size.or(limits.size);
        limits.reserve = self.reserve.or(limits.reserve);
        limits.entries = self.entries.or(limits.entries);
        limits.high_water = self.high_water.unwrap_or(limits.high_water);
        limits.low_water = self.low_water.unwrap_or(limits.low_water);
        limits.min_age = self.min_age.map_or(limits.min_age, |s| s.0);
        limits.draft_ttl = self.draft_ttl.map_or(limits.draft_ttl, |s| s.0);
        limits.scrub = self.scrub.map_or(limits.scrub, |p| p.0);
        limits.memory = self.memory.unwrap_or(limits.memory);
    }

    /// What is given here and differs from `limits`, as `--size 5G (it runs with 10%)`.
    pub fn conflicts(&self, limits: &Limits) -> Vec<String> {
        let mut wanted = limits.clone();
        self.apply(&mut wanted);
        let mut found = Vec::new();
        let mut compare = |flag: &str, (wanted, runs): (String, String)| {
            if wanted != runs {
                found.push(format!("{flag} {wanted} (it runs with {runs})"));
            }
        };
        let size = |s: Option<Size>, exact: bool| match s {
            None => "the default".to_owned(),
            Some(Size::Bytes(bytes)) if exact => format!("{bytes} bytes"),
            Some(Size::Bytes(bytes)) => human_bytes(bytes),
            Some(percent) => percent.to_string(),
        };
        // What reads the same need not be.
        let sizes = |a: Option<Size>, b: Option<Size>| {
            let exact = a != b && size(a, false) == size(b, false);
            (size(a, exact), size(b, exact))
        };
        let count = |n: Option<u64>| n.map_or("no limit".to_owned(), |n| n.to_string());
        let memory = |limits: &Limits| Some(Size::Bytes(limits.memory.0));
        compare("--size", sizes(wanted.size, limits.size));
        compare("--reserve", sizes(wanted.reserve, limits.reserve));
        compare("--max-entries", (count(wanted.entries), count(limits.entries)));
        compare("high_water", (wanted.high_water.to_string(), limits.high_water.to_string()));
        compare("low_water", (wanted.low_water.to_string(), limits.low_water.to_string()));
        compare("--min-age", (Span(wanted.min_age).to_string(), Span(limits.min_age).to_string()));
        compare("--draft-ttl", (Span(wanted.draft_ttl).to_string(), Span(limits.draft_ttl).to_string()));
        compare("--scrub", (Period(wanted.scrub).to_string(), Period(limits.scrub).to_string()));
        compare("--memory", sizes(memory(&wanted), memory(limits)));
        found
    }

    /// The complete form of `limits`.
    pub fn of(limits: &Limits) -> Self {
        Self {
            size: limits.size,
            reserve: limits.reserve,
            entries: limits.entries,
            high_water: Some(limits.high_water),
            low_water: Some(limits.low_water),
            min_age: Some(Span(limits.min_age)),
            draft_ttl: Some(Span(limits.draft_ttl)),
            scrub: Some(Period(limits.scrub)),
            memory: Some(limits.memory),
        }
    }
}
