//! Makes a store of many small entries, straight through the library, with syncing switched off in this process:
//! making them is not what is measured.

use std::ffi::c_int;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use outfs::cache::{Cache, Limits, SealRequest, TaskFacts};
use outfs::model::EntryKey;
use outfs::model::manifest::Origin;

const THREADS: u64 = 16;

/// Whether this process syncs nothing.
static HASTY: AtomicBool = AtomicBool::new(false);

fn sync(call: libc::c_long, fd: c_int) -> c_int {
    if HASTY.load(Ordering::Relaxed) {
        return 0;
    }
    // SAFETY: all three calls take a descriptor and no pointer.
    unsafe { libc::syscall(call, fd) as c_int }
}

/// The standard library and SQLite call these three instead of libc's.
#[unsafe(no_mangle)]
extern "C" fn fsync(fd: c_int) -> c_int {
    sync(libc::SYS_fsync, fd)
}

/// See `fsync`.
#[unsafe(no_mangle)]
extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync(libc::SYS_fdatasync, fd)
}

/// See `fsync`.
#[unsafe(no_mangle)]
extern "C" fn syncfs(fd: c_int) -> c_int {
    sync(libc::SYS_syncfs, fd)
}

/// The key of the `n`th entry.
pub fn key(n: u64) -> String {
    blake3::hash(&n.to_le_bytes()).to_hex().to_string()
}

fn put(cache: &Cache, n: u64, source: &Path) {
    fs::write(source.join("result.txt"), format!("the result of task {n}\n")).expect("the output");
    let facts = TaskFacts { task_id: format!("task-{}", n % 1000), duration_ms: n, ..TaskFacts::default() };
    let request = SealRequest {
        key: EntryKey::parse(&key(n)).expect("a hash is a key"),
        origin: Origin { how: "library".into(), ..Origin::default() },
        inferred: false,
        replace: false,
    };
    cache.put_dir(source, &facts, [None, None], request).unwrap_or_else(|e| panic!("entry {n}: {e}"));
}

/// Adds these entries to a store, which is made if need be; `scratch` is on its file system. `made` is told of each.
pub fn entries(store: &Path, scratch: &Path, range: Range<u64>, made: impl Fn(u64) + Sync) {
    HASTY.store(true, Ordering::Relaxed);
    let cache = Cache::open(store, Limits::default()).expect("the store");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (cache, source, range) = (&cache, scratch.join(thread.to_string()), range.clone());
            let made = &made;
            scope.spawn(move || {
                fs::create_dir_all(&source).expect("a source directory");
                for n in range.skip(thread as usize).step_by(THREADS as usize) {
                    put(cache, n, &source);
                    made(n);
                }
            });
        }
    });
    cache.close().expect("close the store");
    HASTY.store(false, Ordering::Relaxed);
    // What was left to the page cache must not be written while it is measured.
    // SAFETY: sync(2) takes and returns nothing.
    unsafe { libc::sync() };
}
