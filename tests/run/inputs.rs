//! Inputs of large projects: what a run reads of them.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::common::eventually;
use crate::project::{Project, Ran};

const DIRS: usize = 50;
const FILES: usize = 1000;

/// Sees whatever opens a file in some directories, whoever it is.
struct Watch {
    events: File,
}

impl Watch {
    fn of<'a>(dirs: impl Iterator<Item = &'a Path>) -> Watch {
        // SAFETY: the call takes flags and gives a new descriptor, which is nobody else's.
        let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        assert!(fd >= 0, "inotify_init1: {}", std::io::Error::last_os_error());
        for dir in dirs {
            let name = CString::new(dir.as_os_str().as_bytes()).expect("a path");
            // SAFETY: the path is terminated and lives as long as the call.
            let added = unsafe { libc::inotify_add_watch(fd, name.as_ptr(), libc::IN_OPEN) };
            assert!(added >= 0, "inotify_add_watch: {}", std::io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made above.
        Watch { events: unsafe { OwnedFd::from_raw_fd(fd) }.into() }
    }

    /// How many files were opened since the last time.
    fn opened(&mut self) -> usize {
        const HEADER: usize = size_of::<libc::inotify_event>();
        let (mut count, mut buffer) = (0, vec![0; 1 << 16]);
        while let Ok(n) = self.events.read(&mut buffer) {
            let mut rest = &buffer[..n];
            while rest.len() >= HEADER {
                let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().expect("four bytes"));
                assert_eq!(word(4) & libc::IN_Q_OVERFLOW, 0, "more than can be counted");
                count += usize::from(word(4) & libc::IN_ISDIR == 0);
                rest = &rest[HEADER + word(12) as usize..];
            }
        }
        count
    }
}

/// Waits until the clock has moved on from when a file was last changed: before, git's racy case would have it read again.
fn old_enough(file: &Path) {
    let meta = file.metadata().expect("it is there");
    let changed = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
    eventually("the clock to move on", || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as i128;
        now - changed > 100_000_000
    });
}

#[track_caller]
fn read(ran: &Ran) -> u64 {
    assert_eq!(ran.record["inputs"], (DIRS * FILES) as u64, "{ran:#?}");
    ran.record["inputs_read"].as_u64().expect("a number")
}

/// A second run of 50,000 inputs opens none of them, one after a change opens that one.
#[test]
fn a_second_run_of_50_000_inputs_reads_none() {
    let p = Project::large();
    let dirs: Vec<_> = (0..DIRS).map(|d| p.path(&format!("src/{d}"))).collect();
    for (d, dir) in dirs.iter().enumerate() {
        fs::create_dir_all(dir).unwrap();
        (0..FILES).for_each(|f| fs::write(dir.join(f.to_string()), format!("{d} {f}")).unwrap());
    }
    let last = dirs[DIRS - 1].join((FILES - 1).to_string());
    old_enough(&last);
    let run = || p.sh(&["--task", "t", "--output", "o"], "echo 1 > o");
    assert_eq!(read(run().is_miss(&["first_run"]).kept(true)), (DIRS * FILES) as u64);
    let mut watch = Watch::of(dirs.iter().map(|d| d.as_path()));
    assert_eq!(read(run().is_hit()), 0);
    assert_eq!(watch.opened(), 0, "nothing was opened");
    // Another key of the same inputs, named in another way.
    let named = p.sh(&["--task", "t", "--input", "src", "--output", "o", "--param", "a=b"], "echo 1 > o");
    assert_eq!(read(named.is_miss(&["params_changed"])), 0);
    assert_eq!(watch.opened(), 0);
    // Other bytes, again and again, within a tick of the clock and at the time it had.
    let mtime = last.metadata().unwrap().modified().unwrap();
    for content in ["a", "b"] {
        fs::write(&last, content).unwrap();
        File::options().write(true).open(&last).unwrap().set_modified(mtime).unwrap();
        watch.opened();
        let ran = run();
        ran.is_miss(&["dep_changed"]).says("the input src/49/999 changed");
        assert_eq!(read(&ran), 1);
        assert!(watch.opened() > 0, "the watch sees what is opened");
    }
}
