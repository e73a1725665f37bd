//! The two doors to the disk, and faults at them: the store's port, and SQLite's table of system calls.

use std::ffi::{c_char, c_int, c_void};
use std::sync::{Mutex, Once, OnceLock};

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
    /// A read or write does half of what it is asked for, this once.
    Less,
    /// All do so from now on.
    Trickle,
    /// A signal interrupts a call, this once.
    Interrupted,
}

impl Kind {
    /// Each in turn, but the one that is the same at each point.
    pub const ALL: [Kind; 6] =
        [Kind::Hiccup, Kind::Broken, Kind::Full, Kind::NoDescriptor, Kind::Less, Kind::Interrupted];

    pub fn errno(self) -> i32 {
        match self {
            Kind::Hiccup | Kind::Broken => libc::EIO,
            Kind::Full => libc::ENOSPC,
            Kind::NoDescriptor => libc::EMFILE,
            Kind::Interrupted => libc::EINTR,
            Kind::Less | Kind::Trickle => 0,
        }
    }

    pub fn lasts(self) -> bool {
        matches!(self, Kind::Broken | Kind::Full | Kind::Trickle)
    }

    /// No failure at all for who knows how to read, write and ask again.
    pub fn is_no_failure(self) -> bool {
        matches!(self, Kind::Less | Kind::Trickle | Kind::Interrupted)
    }

    /// Whether it can become of such a call.
    fn is_for(self, call: Call) -> bool {
        match self {
            Kind::Less | Kind::Trickle => call == Call::Transfer,
            Kind::Interrupted => matches!(call, Call::Transfer | Call::Long),
            _ => true,
        }
    }
}

/// What a call of SQLite does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    /// Reads or writes.
    Transfer,
    /// Can be interrupted.
    Long,
    Other,
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
            Door::Store if kind.errno() == 0 => Armed::Store(Fault::of_less(n, kind.lasts())),
            Door::Store => Armed::Store(Fault::everywhere(n, kind.errno(), kind.lasts())),
            Door::Index => {
                replace_system_calls();
                *PLAN.lock().unwrap() = Some(Plan { before: n, kind, syncs: false, fired: false });
                Armed::Index
            }
        }
    }

    /// The sync of SQLite after the next `n` fails, and from then on says that all is well.
    pub fn at_sync(n: u64) -> Armed {
        replace_system_calls();
        *PLAN.lock().unwrap() = Some(Plan { before: n, kind: Kind::Hiccup, syncs: true, fired: false });
        Armed::Index
    }

    /// Whether it has struck a call of the store that waits for the disk.
    pub fn struck_a_sync(&self) -> bool {
        matches!(self, Armed::Store(fault) if fault.refused().is_some())
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
    /// No calls but syncs.
    syncs: bool,
    fired: bool,
}

static PLAN: Mutex<Option<Plan>> = Mutex::new(None);

/// Counts a call; how it is to fail, with `errno` set.
fn strikes(call: Call, sync: bool) -> Option<Kind> {
    let mut plan = PLAN.lock().unwrap();
    let plan = plan.as_mut().filter(|plan| plan.kind.is_for(call) && (sync || !plan.syncs))?;
    let strike = if plan.fired {
        plan.kind.lasts()
    } else if plan.before > 0 {
        plan.before -= 1;
        false
    } else {
        plan.fired = true;
        true
    };
    nix::errno::Errno::from_raw(plan.kind.errno()).set();
    strike.then_some(plan.kind)
}

unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: SQLite's own arguments, handed on.
    if strikes(Call::Long, false).is_some() { -1 } else { unsafe { libc::open(path, flags, mode) } }
}

unsafe extern "C" fn pread(fd: c_int, buf: *mut c_void, n: usize, at: libc::off_t) -> isize {
    match strikes(Call::Transfer, false) {
        // SAFETY: as above.
        None => unsafe { libc::pread(fd, buf, n, at) },
        // SAFETY: as above.
        Some(Kind::Less | Kind::Trickle) => unsafe { libc::pread(fd, buf, n.div_ceil(2), at) },
        Some(_) => -1,
    }
}

unsafe extern "C" fn pwrite(fd: c_int, buf: *const c_void, n: usize, at: libc::off_t) -> isize {
    let Some(kind) = strikes(Call::Transfer, false) else {
        // SAFETY: as above.
        return unsafe { libc::pwrite(fd, buf, n, at) };
    };
    let errno = nix::errno::Errno::last();
    // SAFETY: as above; half of what is there to be written.
    let written = unsafe { libc::pwrite(fd, buf, n.div_ceil(2), at) };
    errno.set();
    if kind.errno() == 0 { written } else { -1 }
}

unsafe extern "C" fn ftruncate(fd: c_int, len: libc::off_t) -> c_int {
    // SAFETY: as above.
    if strikes(Call::Long, false).is_some() { -1 } else { unsafe { libc::ftruncate(fd, len) } }
}

unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: as above.
    if strikes(Call::Other, false).is_some() { -1 } else { unsafe { libc::unlink(path) } }
}

type Open = unsafe extern "C" fn(
    *mut ffi::sqlite3_vfs,
    *const c_char,
    *mut ffi::sqlite3_file,
    c_int,
    *mut c_int,
) -> c_int;
type Sync = unsafe extern "C" fn(*mut ffi::sqlite3_file, c_int) -> c_int;

static OPEN: OnceLock<Open> = OnceLock::new();
static SYNC: OnceLock<Sync> = OnceLock::new();
/// The tables of files' methods that SQLite has, by their addresses, and what we have in their place.
static METHODS: Mutex<Vec<(usize, &'static ffi::sqlite3_io_methods)>> = Mutex::new(Vec::new());

/// Syncing is not in the table of system calls, but a method of a file: this gives it ours.
unsafe extern "C" fn open_file(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    let open = OPEN.get().expect("it was set before this was");
    // SAFETY: SQLite's own arguments, handed on.
    let opened = unsafe { open(vfs, name, file, flags, out) };
    // SAFETY: SQLite gave it, and it lives at least as long as the call.
    let methods = unsafe { &mut (*file).pMethods };
    // SAFETY: what a file that was opened has there is one of SQLite's tables, which live for ever.
    if let Some(table) = unsafe { methods.as_ref() }.filter(|_| opened == ffi::SQLITE_OK) {
        *methods = ours_for(table);
    }
    opened
}

fn ours_for(table: &'static ffi::sqlite3_io_methods) -> &'static ffi::sqlite3_io_methods {
    let mut known = METHODS.lock().unwrap();
    let address = std::ptr::from_ref(table).addr();
    if let Some((_, ours)) = known.iter().find(|(of, _)| *of == address) {
        return ours;
    }
    SYNC.get_or_init(|| table.xSync.expect("a file can be synced"));
    let ours: &'static _ = Box::leak(Box::new(ffi::sqlite3_io_methods { xSync: Some(sync), ..*table }));
    known.push((address, ours));
    ours
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    if strikes(Call::Other, true).is_some() {
        return ffi::SQLITE_IOERR_FSYNC;
    }
    let sync = SYNC.get().expect("it was set before a file had this");
    // SAFETY: SQLite's own arguments, handed on.
    unsafe { sync(file, flags) }
}

/// Has SQLite make its system calls through here, of files that are opened from then on.
pub fn replace_system_calls() {
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
            let open = (*vfs).xOpen.expect("files can be opened");
            OPEN.set(open).expect("this is done once");
            (*vfs).xOpen = Some(open_file);
        }
    });
}
