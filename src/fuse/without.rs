//! Going without what the kernel offers, as on an older one: for tests.
//!
//! `OUTFS_TEST_WITHOUT` of the daemon names what, with commas between. Must not know: what the features are for.

/// What a mount does not use although it could.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Without {
    pub passthrough: bool,
    pub readdirplus: bool,
    pub no_open: bool,
    pub prune: bool,
    pub io_uring: bool,
    /// No feature of the kernel's, but done without as well.
    pub awake: bool,
}

impl Without {
    /// What the environment asks for.
    pub(super) fn asked() -> Without {
        Self::parse(&std::env::var("OUTFS_TEST_WITHOUT").unwrap_or_default())
    }

    fn parse(text: &str) -> Without {
        let has = |feature| text.split(',').any(|f| f == feature);
        Without {
            passthrough: has("passthrough"),
            readdirplus: has("readdirplus"),
            no_open: has("no_open"),
            prune: has("prune"),
            io_uring: has("io_uring"),
            awake: has("awake"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_named() {
        assert_eq!(Without::parse(""), Without::default());
        let two = Without { no_open: true, prune: true, ..Without::default() };
        assert_eq!(Without::parse("no_open,prune"), two);
    }
}
