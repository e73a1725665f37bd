//! What a failed request means, and what is said of it.
//!
//! Invariant: nothing that is said has a header, a signature or a whole answer in it.

use std::error::Error;

use object_store::client::HttpError;

use super::TierErrorKind;
use super::bounded::TooMuch;

/// Most of a message that is kept.
const MOST: usize = 300;

/// Whether asking again is of any use.
pub(super) fn kind_of(error: &object_store::Error) -> TierErrorKind {
    let again = TierErrorKind::Transient { after: None };
    match error {
        object_store::Error::NotFound { source, .. } => match source.to_string().contains("NoSuchBucket") {
            // Nothing that it does not have would ever be put there.
            true => TierErrorKind::Permanent,
            false => TierErrorKind::Absent,
        },
        object_store::Error::Generic { .. } if has::<TooMuch>(error) => TierErrorKind::Corrupt,
        object_store::Error::Generic { .. } => match status(error) {
            Some(408 | 429 | 500..) => again,
            Some(400..) => TierErrorKind::Permanent,
            // An error in the body of what began as a success.
            Some(_) => again,
            // Lost on the way, the request or its answer.
            None if has::<HttpError>(error) => again,
            None if error.to_string().contains("redirect") => TierErrorKind::Permanent,
            // Credentials that could not be had.
            None if error.to_string().contains("redential") => again,
            None => TierErrorKind::Corrupt,
        },
        object_store::Error::JoinError { .. } => again,
        _ => TierErrorKind::Permanent,
    }
}

/// Whether this kind of error is behind it.
fn has<E: Error + 'static>(error: &object_store::Error) -> bool {
    let mut at: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = at {
        if error.is::<E>() {
            return true;
        }
        at = error.source();
    }
    false
}

/// The status of the answer. The type that has it is not public.
fn status(error: &object_store::Error) -> Option<u16> {
    let text = error.to_string();
    let (_, after) = text.split_once("status code: ")?;
    after.get(..3)?.parse().ok()
}

/// What is said: the status, and of the body no more than its code.
pub(super) fn why(error: &object_store::Error) -> String {
    let text = error.to_string();
    let code =
        text.split_once("<Code>").and_then(|(_, after)| after.split_once("</Code>")).map(|(code, _)| code);
    let answer = text.split_once("status code: ").map(|(_, after)| {
        let end = after.find([':', '<', '\n']).unwrap_or(after.len());
        after[..end].trim()
    });
    let said = match (answer, code) {
        (Some(answer), Some(code)) => format!("{answer}, {code}"),
        (Some(answer), None) => answer.to_owned(),
        (None, Some(code)) => code.to_owned(),
        (None, None) => deepest(error),
    };
    said.chars().filter(|c| !c.is_control()).take(MOST).collect()
}

/// What the innermost errors say: those around them repeat it, and name the request.
fn deepest(error: &object_store::Error) -> String {
    let (mut said, mut at) = (error.to_string(), error.source());
    while let Some(inner) = at {
        said = inner.to_string();
        at = inner.source();
    }
    said
}
