//! What a failed call means, and what is said of it.
//!
//! Invariant: nothing that is said has metadata of a request in it.

use tonic::{Code, Status};

use super::TierErrorKind;

/// Most of a message that is kept.
const MOST: usize = 300;

/// Whether asking again is of any use.
pub(super) fn kind_of(code: Code) -> TierErrorKind {
    match code {
        Code::NotFound => TierErrorKind::Absent,
        // A message that is larger than it may be is out of range, too.
        Code::OutOfRange | Code::DataLoss => TierErrorKind::Corrupt,
        Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented
        | Code::FailedPrecondition
        | Code::AlreadyExists => TierErrorKind::Permanent,
        // Also what went wrong on the way.
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => TierErrorKind::Transient { after: None },
    }
}

/// What is said: the code and the server's words.
pub(super) fn why(status: &Status) -> String {
    said(status.code(), status.message())
}

pub(super) fn said(code: Code, message: &str) -> String {
    let words: String = message.chars().filter(|c| !c.is_control()).take(MOST).collect();
    if words.is_empty() { format!("{code:?}") } else { format!("{code:?}, {words}") }
}
