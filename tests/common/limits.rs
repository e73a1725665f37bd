//! What the program under test must do without.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Bounds how many descriptors the program may have.
pub fn descriptors(c: &mut Command, most: u64) {
    use nix::sys::resource::{Resource, setrlimit};
    // SAFETY: setrlimit is all that the child calls before it becomes another program.
    unsafe { c.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)) };
}

/// Makes fcntl(F_SETLEASE) fail with EINVAL in the program.
pub fn no_leases(c: &mut Command) {
    let op = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, equal, give) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    // The number of the call is at 0, the low word of its second argument at 24.
    let second = if cfg!(target_endian = "little") { 24 } else { 28 };
    let mut filter = [
        op(load, 0, 0, 0),
        op(equal, 0, 3, libc::SYS_fcntl as u32),
        op(load, 0, 0, second),
        op(equal, 0, 1, libc::F_SETLEASE as u32),
        op(give, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32),
        op(give, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: two calls of the kernel that allocate nothing; the program lives through the second.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: see `install`.
    unsafe { c.pre_exec(install) };
}
