//! Now and here: the clock, the machine's name as entries record it, its processors and processes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Instant;

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    jiff::Timestamp::now().as_nanosecond().clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

/// Nanoseconds by a clock that nobody sets and that stands still while the machine sleeps, since some moment of this process.
pub(crate) fn awake_ns() -> i64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos().min(i64::MAX as u128) as i64
}

/// This machine's name, as far as it has one.
pub(crate) fn host_name() -> String {
    nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// How many threads look at files at the same time: one for each processor, within reason.
pub(crate) fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 8)
}

/// A descriptor that is readable when the process has ended.
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers.
    match unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } {
        fd if fd < 0 => Err(io::Error::last_os_error()),
        // SAFETY: a new descriptor, which nobody else owns.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
    }
}

/// Sends a signal to the process that a descriptor is of, and to no other one that has its number by now.
pub(crate) fn pidfd_signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let (fd, info) = (process.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: the call takes numbers, and no pointer that leads anywhere.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
