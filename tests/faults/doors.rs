//! The two doors to the disk, and faults at them: the store's port, and SQLite's table of system calls.

use std::ffi::{c_char, c_int, c_void};
use std::sync::{Mutex, Once};

use outfs::store::Fault;
use rusqlite::ffi;

/// Which calls are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Store,
    Index,
}

/// How a call fails. A write that fails lets half of its bytes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// EIO, this once.
    Hiccup,
    /// EIO from now on.
    Broken,
    /// ENOSPC from now on.
    Full,
    /// EMFILE, this once.
    NoDescriptor,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Hiccup, Kind::Broken, Kind::Full, Kind::NoDescriptor];

    fn errno(self) -> i32 {
        match self {
            Kind::Hiccup | Kind::Broken => libc::EIO,
            Kind::Full => libc::ENOSPC,
            Kind::NoDescriptor => libc::EMFILE,
        }
    }

    fn lasts(self) -> bool {
        matches!(self, Kind::Broken | Kind::Full)
    }
}

/// A fault that is armed; lifted when dropped.
pub enum Armed {
    Store(Fault),
    Index,
}

impl Armed {
    /// The call after the next `n` fails.
    pub fn at(door: Door, kind: Kind, n: u64) -> Armed {
        match door {
            Door::Store => Armed::Store(Fault::everywhere(n, kind.errno(), kind.lasts())),
            Door::Index => {
                replace_system_calls();
                *PLAN.lock().unwrap() = Some(Plan { before: n, kind, fired: false });
                Armed::Index
            }
        }
    }

    /// Whether it has struck.
    pub fn fired(&self) -> bool {
        match self {
            Armed::Store(fault) => fault.fired(),
            Armed::Index => PLAN.lock().unwrap().is_some_and(|p| p.fired),
        }
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        if let Armed::Index = self {
            *PLAN.lock().unwrap() = None;
        }
    }
}

#[derive(Clone, Copy)]
struct Plan {
    before: u64,
    kind: Kind,
    fired: bool,
}

static PLAN: Mutex<Option<Plan>> = Mutex::new(None);

/// Counts a call; true when it is to fail, with `errno` set.
fn strikes() -> bool {
    let mut plan = PLAN.lock().unwrap();
    let Some(plan) = plan.as_mut() else { return false };
    let strike = if plan.fired {
        plan.kind.lasts()
    } else if plan.before > 0 {
        plan.before -= 1;
        false
    } else {
        plan.fired = true;
        true
    };
    if strike {
        nix::errno::Errno::from_raw(plan.kind.errno()).set();
    }
    strike
}

unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    if strikes() { -1 } else { unsafe { libc::open(path, flags, mode) } }
}

unsafe extern "C" fn pread(fd: c_int, buf: *mut c_void, n: usize, at: libc::off_t) -> isize {
    // SAFETY: as above.
    if strikes() { -1 } else { unsafe { libc::pread(fd, buf, n, at) } }
}

unsafe extern "C" fn pwrite(fd: c_int, buf: *const c_void, n: usize, at: libc::off_t) -> isize {
    if strikes() {
        let errno = nix::errno::Errno::last();
        // SAFETY: as above; half of what is there to be written.
        unsafe { libc::pwrite(fd, buf, n / 2, at) };
        errno.set();
        return -1;
    }
    // SAFETY: as above.
    unsafe { libc::pwrite(fd, buf, n, at) }
}

unsafe extern "C" fn ftruncate(fd: c_int, len: libc::off_t) -> c_int {
    // SAFETY: as above.
    if strikes() { -1 } else { unsafe { libc::ftruncate(fd, len) } }
}

unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: as above.
    if strikes() { -1 } else { unsafe { libc::unlink(path) } }
}

/// Has SQLite make its system calls through here. (Syncs are not in its table.)
fn replace_system_calls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let calls: [(&std::ffi::CStr, *const ()); 5] = [
            (c"open", open as *const ()),
            (c"pread", pread as *const ()),
            (c"pwrite", pwrite as *const ()),
            (c"ftruncate", ftruncate as *const ()),
            (c"unlink", unlink as *const ()),
        ];
        // SAFETY: the functions have the types that SQLite documents for these names, and no connection is
        // open in this process yet or while a template is copied.
        unsafe {
            let vfs = ffi::sqlite3_vfs_find(c"unix-excl".as_ptr());
            let set = (*vfs).xSetSystemCall.expect("the unix VFS has it");
            for (name, call) in calls {
                let call: unsafe extern "C" fn() = std::mem::transmute(call);
                assert_eq!(set(vfs, name.as_ptr(), Some(call)), ffi::SQLITE_OK, "{name:?}");
            }
        }
    });
}
