//! Runs cuenv's real `store` and dies by SIGKILL just before its Nth change to the file system.
//!
//! `store-and-die ROOT DIGEST SEED [N]`; without N it stores to the end and prints how many changes there were.
//!
//! How: this program defines `mkdir`, `open64`, `write` and `chmod` itself, so that the standard library calls
//! these instead of libc's; they count and pass on. cuenv's code stays as it is.

use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use cuenv_ci::executor::{CacheBackend, LocalCacheBackend};
use cuenv_ci::ir::CachePolicy;

/// Changes so far; counting begins when `LIMIT` is set.
static CHANGES: AtomicU64 = AtomicU64::new(0);
/// The change before which to die; 0 is: do not count.
static LIMIT: AtomicU64 = AtomicU64::new(0);

fn change() {
    let limit = LIMIT.load(Ordering::Relaxed);
    if limit != 0 && CHANGES.fetch_add(1, Ordering::Relaxed) + 1 == limit {
        // SAFETY: plain system calls without pointers.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

/// SAFETY of all four: the arguments go to the system call of the same meaning unchanged.
#[unsafe(no_mangle)]
unsafe extern "C" fn mkdir(path: *const c_char, mode: libc::mode_t) -> c_int {
    change();
    unsafe { libc::syscall(libc::SYS_mkdirat, libc::AT_FDCWD, path, mode) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    if flags & libc::O_CREAT != 0 {
        change();
    }
    unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, data: *const c_void, length: usize) -> isize {
    change();
    unsafe { libc::syscall(libc::SYS_write, fd, data, length) as isize }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn chmod(path: *const c_char, mode: libc::mode_t) -> c_int {
    change();
    unsafe { libc::syscall(libc::SYS_fchmodat, libc::AT_FDCWD, path, mode) as c_int }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, root, digest, seed, rest @ ..] = args.as_slice() else { panic!("ROOT DIGEST SEED [N]") };
    let seed = seed.parse().expect("SEED is a number below 256");
    let backend = LocalCacheBackend::new(root);
    let (task, result) = (outfs_clients::task("killed"), outfs_clients::result(seed));
    LIMIT.store(rest.first().map_or(u64::MAX, |n| n.parse().expect("N is a number")), Ordering::Relaxed);
    let stored = outfs_clients::block_on(backend.store(&task, digest, &result, CachePolicy::Normal));
    LIMIT.store(0, Ordering::Relaxed);
    stored.expect("store");
    println!("{}", CHANGES.load(Ordering::Relaxed));
}
