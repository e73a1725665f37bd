//! Errors of tiers: what was asked of which one, and whether asking again is of any use.

use std::time::Duration;

use super::Object;

/// What asking again, or asking another tier, may come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TierErrorKind {
    /// The tier answered: it does not have it.
    Absent,
    /// It did not answer in time, or could not just now; it may next time.
    Transient {
        /// Not before so long, where the tier said so.
        after: Option<Duration>,
    },
    /// It refuses, and will go on to: credentials, a read-only tier, a request that it does not understand.
    Permanent,
    /// What it has there is not what its name says.
    Corrupt,
}

/// A call to a tier that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{tier}: cannot {op} {what}: {why}")]
pub struct TierError {
    /// Whether asking again is of any use.
    pub kind: TierErrorKind,
    /// The tier's name.
    pub tier: String,
    /// What was being done, as a verb.
    pub op: &'static str,
    /// To what.
    pub what: String,
    /// The tier's answer, or what is wrong with it.
    pub why: String,
}

/// Why a tier cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its settings contradict themselves, or lack something.
    #[error("{tier} cannot be used: {why}")]
    Unusable {
        /// Its address.
        tier: String,
        /// What is wrong.
        why: String,
    },
    /// This program was built without such tiers.
    #[error("{tier} cannot be used: this program was built without such tiers (the features s3 and reapi)")]
    Without {
        /// Its address.
        tier: String,
    },
}

impl TierError {
    /// A failed call: its kind, the tier's name, a verb, to what, and why.
    pub fn new(
        kind: TierErrorKind,
        tier: &str,
        op: &'static str,
        what: impl ToString,
        why: impl ToString,
    ) -> TierError {
        TierError { kind, tier: tier.to_owned(), op, what: what.to_string(), why: why.to_string() }
    }

    /// The tier does not have it.
    pub fn absent(tier: &str, op: &'static str, what: impl ToString) -> TierError {
        Self::new(TierErrorKind::Absent, tier, op, what, "it is not there")
    }

    /// An object's content is not what its name, or who names it, says.
    pub fn corrupt(tier: &str, object: &Object, why: impl ToString) -> TierError {
        Self::new(TierErrorKind::Corrupt, tier, "use", object, why)
    }

    /// The tier does not have it.
    pub fn is_absent(&self) -> bool {
        self.kind == TierErrorKind::Absent
    }

    /// It may be answered next time.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, TierErrorKind::Transient { .. })
    }
}
