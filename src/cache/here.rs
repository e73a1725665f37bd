//! Now and here: the clock and the machine's name, as entries record them.

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    jiff::Timestamp::now().as_nanosecond().clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

/// This machine's name, as far as it has one.
pub(crate) fn host_name() -> String {
    nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}
