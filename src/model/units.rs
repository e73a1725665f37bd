//! Sizes and durations as people write them: `10G`, `512MiB`, `10%`, `24h`, `250ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A text that is no size or duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}; write it like {example}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    example: &'static str,
}

/// An amount of bytes, or a share of the file system that holds the store.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Size {
    /// Bytes.
    Bytes(u64),
    /// Per cent of the file system's size, 0 to 100.
    Percent(f64),
}

impl Size {
    /// The amount in bytes on a file system of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Size::Bytes(b) => b,
            Size::Percent(p) => (total as f64 * p / 100.0) as u64,
        }
    }
}

/// An amount of bytes, written like a [`Size`] that is no share of anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = UnitError;
    fn from_str(s: &str) -> Result<Self, UnitError> {
        match s.parse() {
            Ok(Size::Bytes(bytes)) => Ok(Bytes(bytes)),
            _ => Err(UnitError { text: s.into(), what: "number of bytes", example: "128M or 1GiB" }),
        }
    }
}

impl TryFrom<String> for Bytes {
    type Error = UnitError;
    fn try_from(s: String) -> Result<Self, UnitError> {
        s.parse()
    }
}

impl From<Bytes> for String {
    fn from(b: Bytes) -> String {
        b.0.to_string()
    }
}

fn split_number(s: &str) -> Option<(f64, &str)> {
    let s = s.trim();
    let end = s.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(s.len());
    let number: f64 = s[..end].parse().ok()?;
    number.is_finite().then(|| (number, s[end..].trim()))
}

impl FromStr for Size {
    type Err = UnitError;
    fn from_str(s: &str) -> Result<Self, UnitError> {
        let err = || UnitError { text: s.into(), what: "size", example: "512M, 10GiB or 10%" };
        let (n, unit) = split_number(s).ok_or_else(err)?;
        let shift = match unit.to_ascii_lowercase().as_str() {
            "%" if n <= 100.0 => return Ok(Size::Percent(n)),
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(err()),
        };
        let bytes = n * (1u64 << shift) as f64;
        // `i64::MAX` as a float is one more than that.
        if bytes >= i64::MAX as f64 { Err(err()) } else { Ok(Size::Bytes(bytes as u64)) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Bytes(b) => write!(f, "{b}"),
            Size::Percent(p) => write!(f, "{p}%"),
        }
    }
}

impl TryFrom<String> for Size {
    type Error = UnitError;
    fn try_from(s: String) -> Result<Self, UnitError> {
        s.parse()
    }
}

impl From<Size> for String {
    fn from(s: Size) -> String {
        s.to_string()
    }
}

/// Parses `250ms`, `10s`, `10m`, `24h`, `7d` and sums of them as `1h30m`; a bare number is seconds. Milliseconds are whole (rounded
/// up): that is how durations are written, too.
pub fn parse_duration(s: &str) -> Result<Duration, UnitError> {
    let err = || UnitError { text: s.into(), what: "duration", example: "250ms, 10s, 1h30m or 7d" };
    let (mut seconds, mut rest, mut alone) = (0.0, s, true);
    loop {
        let (n, more) = split_number(rest).ok_or_else(err)?;
        let end = more.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(more.len());
        let (unit, more) = more.split_at(end);
        seconds += match unit {
            "ms" => n / 1e3,
            "" if alone && more.is_empty() => n,
            "s" => n,
            "m" | "min" => n * 60.0,
            "h" => n * 3600.0,
            "d" => n * 86400.0,
            _ => return Err(err()),
        };
        (rest, alone) = (more, false);
        if rest.trim().is_empty() {
            break;
        }
    }
    let exact = Duration::try_from_secs_f64(seconds).map_err(|_| err())?;
    let ms = u64::try_from(exact.as_nanos().div_ceil(1_000_000)).map_err(|_| err())?;
    Ok(Duration::from_millis(ms))
}

/// `1.5 GiB`, `312 B`: for people.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `1 file`, `2 files`.
pub fn counted(n: u64, one: &str, more: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { more })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!("10".parse(), Ok(Size::Bytes(10)));
        assert_eq!("1.5k".parse(), Ok(Size::Bytes(1536)));
        assert_eq!("2GiB".parse(), Ok(Size::Bytes(2 << 30)));
        assert_eq!("10%".parse(), Ok(Size::Percent(10.0)));
        assert_eq!(Size::Percent(10.0).of(1000), 100);
        assert_eq!("2M".parse(), Ok(Bytes(2 << 20)));
        assert!("10%".parse::<Bytes>().is_err());
        for bad in ["", "x", "10q", "101%", "-1", "1e99", "9999999T", "9223372036854775807"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("24h"), Ok(Duration::from_secs(86400)));
        assert_eq!(parse_duration("3"), Ok(Duration::from_secs(3)));
        assert_eq!(parse_duration("0.1"), Ok(Duration::from_millis(100)));
        assert_eq!(parse_duration(".0444"), Ok(Duration::from_millis(45)));
        assert_eq!(parse_duration("0.001ms"), Ok(Duration::from_millis(1)), "not none at all");
        assert_eq!(parse_duration("10m30s"), Ok(Duration::from_secs(630)));
        assert_eq!(parse_duration("1d 2h 1.5s 5ms"), Ok(Duration::from_millis(93_601_505)));
        for bad in ["", "soon", "99999999999999999d", "10m30", "10 30s", "m", "1h-5m", "1h,5m", "1hm"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn for_people() {
        assert_eq!(human_bytes(312), "312 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
    }
}
