//! Nobody passes the door to the file system: the source says so.

use std::fs;
use std::path::{Path, PathBuf};

/// What asks the file system for something.
const CALLS: [&str; 36] = [
    "fs::",
    "nix::dir",
    "nix::fcntl",
    "nix::sys::stat",
    "nix::sys::uio",
    "nix::unistd",
    "xattr::",
    "File::open",
    "File::create",
    "File::options",
    "OpenOptions",
    "DirBuilder",
    "tempfile",
    "linkat(",
    "openat(",
    "mkdirat(",
    "renameat",
    "fchownat(",
    "fchmod",
    "fstat",
    "symlinkat(",
    "readlinkat(",
    "unlinkat(",
    "truncate64(",
    "lseek",
    "pread(",
    "pwrite(",
    "libc::open",
    "libc::read",
    "libc::write",
    "libc::fsync",
    "libc::statx",
    ".sync_all(",
    ".set_len(",
    ".read_at(",
    ".symlink_metadata(",
];

/// These names are types, and no calls.
const TYPES: [&str; 14] = [
    "use std::fs::File;",
    "use nix::dir::Type;",
    "use nix::sys::stat::FileStat;",
    "use crate::fuse::",
    "Mode::",
    "use nix::unistd::{Gid, Uid};",
    "nix::unistd::geteuid()",
    "nix::unistd::getuid()",
    "nix::unistd::gethostname()",
    "use nix::sys::stat::SFlag",
    "nix::dir::Type",
    "-> nix::",
    "getrlimit",
    "std::fs::File>",
];

/// Files that may, and why.
const DOORS: [(&str, &str); 14] = [
    ("store/port.rs", "the door"),
    ("store/port/fault.rs", "plants the faults"),
    ("store/port/paths.rs", "the door, by path"),
    ("store/fuzz.rs", "makes a store for fuzzing"),
    ("cache/at.rs", "the door to trees of others; every function of it counts as the port's do"),
    ("cache/restore.rs", "a user's directory, into which an entry is restored"),
    ("cache/restore_files.rs", "as above"),
    ("cache/place.rs", "as above"),
    ("cache/uproot.rs", "as above: what stood there is deleted"),
    ("cache/put.rs", "a user's directory, which is stored"),
    ("cache/import.rs", "as above"),
    ("cache/process.rs", "/proc"),
    ("vfs/sys.rs", "the door to drafts, as clients use them; every function of it counts as the port's do"),
    ("vfs/writers.rs", "/proc"),
];

fn sources(dir: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name().into_string().unwrap();
        match path.is_dir() {
            true if name != "tests" => sources(&path, all),
            false if name.ends_with(".rs") && !name.ends_with("tests.rs") => all.push(path),
            _ => {}
        }
    }
}

#[test]
fn every_call_of_the_file_system_passes_the_door() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    for room in ["store", "index", "cache", "vfs"] {
        sources(&src.join(room), &mut all);
    }
    all.push(src.join("daemon/record.rs"));
    let mut past = Vec::new();
    for path in all {
        let name = path.strip_prefix(&src).unwrap().to_str().unwrap();
        if DOORS.iter().any(|(door, _)| *door == name) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        // What follows is tests.
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for (number, line) in (1..).zip(code.lines()) {
            let line = line.trim_start();
            if line.starts_with("//") || TYPES.iter().any(|of| line.contains(of)) {
                continue;
            }
            let call = CALLS.iter().find(|call| line.contains(**call) && !line.contains("port::"));
            past.extend(call.map(|call| format!("{name}:{number}: {call} in: {line}")));
        }
    }
    assert!(past.is_empty(), "these ask past the port:\n{}", past.join("\n"));
}

/// A door that does not count a call cannot have it fail.
#[test]
fn every_function_of_a_door_counts() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (door, functions) in
        [("store/port.rs", 30), ("store/port/paths.rs", 12), ("cache/at.rs", 15), ("vfs/sys.rs", 30)]
    {
        let text = fs::read_to_string(src.join(door)).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let can_fail = |f: &&str| f.split(" {\n").next().is_some_and(|head| head.contains("Result<"));
        let mut seen = 0;
        for function in code.split("\npub").skip(1).filter(can_fail) {
            let name =
                function.split(" fn ").nth(1).and_then(|rest| rest.split(['(', '<']).next()).unwrap_or("");
            // What it tells of is no call that failed, but what has failed before.
            if name == "confirm" {
                continue;
            }
            // Those that are made of others.
            let counts =
                ["step()", "step_of_", "uninterrupted(", "open(", "open_dir(", "match stat(", "port::"];
            let counts = counts.iter().chain(&["write_pieces(", "read_once("]);
            assert!(counts.clone().any(|call| function.contains(call)), "{door}: {name} does not count");
            seen += 1;
        }
        assert!(seen >= functions, "{door}: only {seen} functions were seen");
    }
}
