//! What must hold of configuration files, whatever is in them.

use std::path::Path;

use super::{Config, ConfigError};
use crate::cache::Limits;
use crate::control::LimitFlags;

/// A configuration that is accepted gives limits that a store can remember; what is refused names a line of the file.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, Path::new("config.toml")) {
        Ok(config) => {
            let mut limits = Limits::default();
            config.limits.apply(&mut limits);
            assert!(config.limits.conflicts(&limits).is_empty());
            let kept = serde_json::to_vec(&LimitFlags::of(&limits)).expect("limits are text");
            let again: LimitFlags = serde_json::from_slice(&kept).expect("what was written");
            assert_eq!(again, LimitFlags::of(&limits));
        }
        Err(ConfigError::Parse { line, .. }) => {
            assert!((1..=text.split('\n').count()).contains(&line), "line {line}");
        }
        Err(e @ ConfigError::Read { .. }) => panic!("nothing is read: {e}"),
    }
}
