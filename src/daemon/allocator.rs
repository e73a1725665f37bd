//! Memory that was freed goes back to the system.
//!
//! What is known of a million files, or taken to seal them, is freed in small pieces, and glibc's malloc keeps these for
//! itself: for as long as the process lives, unless it is told. Other allocators are left alone. Must not know: what was freed.

/// Bytes in small pieces that are worth looking for.
pub(super) const WORTH_IT: u64 = 8 << 20;

/// From this size on a piece is memory of its own, which goes back when it is freed. Left to itself malloc raises this to
/// whatever size was freed last, up to 32 MiB.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 256 << 10;

/// Sets how malloc works; before there are threads.
pub(super) fn prepare() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes numbers and sets two variables of malloc's.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Gives back the pages in which nothing is.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time; who allocates meanwhile waits for one arena at a time.
    unsafe {
        libc::malloc_trim(0);
    }
}
