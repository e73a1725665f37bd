//! One measurement, in a process of its own: prints how long it took in nanoseconds.
//!
//! usage: `bench worker WORK PATH [LIST]`; WORK is one of `readN` (with N threads), `sequential`, `random`, `mapped`,
//! `first`, `stat`, `memory` (`memory / MIB`), `tree` (which prints the tree's hash), `write`, `run` (`run PATH PROGRAM…`) and those of `growth/work.rs`.
//! LIST names files relative to PATH.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::{growth, hash};

/// Operations of the random rows.
const RANDOM: u64 = 100_000;
const PAGE: u64 = 4096;

/// Runs one measurement.
pub fn main(args: &[String]) -> ExitCode {
    let [work, path, rest @ ..] = args else {
        eprintln!("bench worker: WORK and PATH are missing");
        return ExitCode::FAILURE;
    };
    let path = Path::new(path);
    let done = match work.as_str() {
        "tree" => hash::tree(path).map(|h| println!("{h}")),
        _ => measure(work, path, rest).map(|took| println!("{}", took.as_nanos())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench worker: {work} {}: {e}", path.display());
            ExitCode::FAILURE
        }
    }
}

fn measure(work: &str, path: &Path, rest: &[String]) -> io::Result<Duration> {
    match work {
        "sequential" => timed(|| read_file(path, &mut vec![0; 1 << 20]).map(drop)),
        "random" => random(path),
        "mapped" => mapped(path),
        "first" => first(path),
        "stat" => timed(|| fs::symlink_metadata(path).map(drop)),
        "write" => write(path, rest),
        "memory" => memory(rest),
        "run" => program(path, rest),
        _ => match work.strip_prefix("read").and_then(|n| n.parse().ok()) {
            Some(threads) => read_all(path, &list(rest)?, threads),
            None => growth::work::measure(work, path, rest),
        },
    }
}

/// How long `work` took.
pub fn timed(work: impl FnOnce() -> io::Result<()>) -> io::Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}

/// Until the first byte is there: closing the file comes later.
fn first(path: &Path) -> io::Result<Duration> {
    let mut open = None;
    timed(|| open.insert(File::open(path)?).read_exact(&mut [0]))
}

fn list(rest: &[String]) -> io::Result<Vec<String>> {
    let [path] = rest else { return Err(io::Error::other("the list is missing")) };
    Ok(fs::read_to_string(path)?.lines().map(str::to_owned).collect())
}

fn read_file(path: &Path, buffer: &mut [u8]) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut all = 0;
    loop {
        match file.read(buffer)? {
            0 => return Ok(all),
            n => all += n as u64,
        }
    }
}

/// Opens and reads every file, in the order of the list; threads take turns.
fn read_all(top: &Path, names: &[String], threads: usize) -> io::Result<Duration> {
    let paths: Vec<_> = names.iter().map(|n| top.join(n)).collect();
    let next = AtomicUsize::new(0);
    let reader = || -> io::Result<()> {
        let mut buffer = vec![0; 128 << 10];
        loop {
            let first = next.fetch_add(16, Ordering::Relaxed);
            let Some(some) = paths.get(first..paths.len().min(first + 16)).filter(|s| !s.is_empty()) else {
                return Ok(());
            };
            for path in some {
                read_file(path, &mut buffer)
                    .map_err(|e| io::Error::other(format!("{}: {e}", path.display())))?;
            }
        }
    };
    timed(|| {
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(reader)).collect();
            reader()?;
            others
                .into_iter()
                .try_for_each(|t| t.join().unwrap_or(Err(io::Error::other("a reader panicked"))))
        })
    })
}

/// The same pages on every run.
fn pages(length: u64) -> impl Iterator<Item = u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..RANDOM).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % (length / PAGE).max(1) * PAGE
    })
}

fn random(path: &Path) -> io::Result<Duration> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut page = [0; PAGE as usize];
    timed(|| pages(length).try_for_each(|at| file.read_exact_at(&mut page, at)))
}

fn mapped(path: &Path) -> io::Result<Duration> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    timed(|| {
        // SAFETY: a new private mapping of a file that nobody truncates; unmapped below, after the last use.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length as usize,
                libc::PROT_READ,
                libc::MAP_SHARED,
                std::os::fd::AsRawFd::as_raw_fd(&file),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        for at in pages(length) {
            // SAFETY: `pages` stays within the mapping's length.
            black_box(unsafe { start.cast::<u8>().add(at as usize).read_volatile() });
        }
        // SAFETY: what was mapped above, and nothing points into it any more.
        unsafe { libc::munmap(start, length as usize) };
        Ok(())
    })
}

/// `memory / MIB`: touches so much memory and frees it. A virtual machine may have given free memory back to its host, and
/// whoever gets it first then pays for that: up to 3 ms for each MiB, thirty times what writing it takes.
fn memory(rest: &[String]) -> io::Result<Duration> {
    let [mib] = rest else { return Err(io::Error::other("how many MiB?")) };
    let length = mib.parse::<usize>().map_err(io::Error::other)? << 20;
    // SAFETY: a new private mapping, unmapped below after the last use; the advice may be ignored.
    unsafe {
        let (rw, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let start = libc::mmap(std::ptr::null_mut(), length, rw, private, -1, 0);
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Large pages: what large writes take is found among them.
        libc::madvise(start, length, libc::MADV_HUGEPAGE);
        let took = timed(|| {
            for at in (0..length).step_by(PAGE as usize) {
                start.cast::<u8>().add(at).write_volatile(1);
            }
            Ok(())
        });
        libc::munmap(start, length);
        took
    }
}

/// `write PATH MIB close|sync|publish [FROM TO]`: writes a new file that nothing else shares, and has it durable.
fn write(path: &Path, rest: &[String]) -> io::Result<Duration> {
    let [mib, end, names @ ..] = rest else {
        return Err(io::Error::other("write PATH MIB close|sync|publish"));
    };
    let mib: u64 = mib.parse().map_err(io::Error::other)?;
    let mut block = vec![0; 1 << 20];
    File::open("/dev/urandom")?.read_exact(&mut block)?;
    timed(|| {
        let mut file = File::create_new(path)?;
        for n in 0..mib {
            block[..8].copy_from_slice(&n.to_le_bytes());
            file.write_all(&block)?;
        }
        if end == "sync" {
            file.sync_all()?;
        }
        drop(file);
        match names {
            [from, to] if end == "publish" => fs::rename(from, to),
            _ => Ok(()),
        }
    })
}

/// `run PATH PROGRAM…`: a real program, with PATH as its working directory; what it prints goes nowhere.
fn program(path: &Path, rest: &[String]) -> io::Result<Duration> {
    let [name, args @ ..] = rest else { return Err(io::Error::other("which program?")) };
    let mut command = Command::new(name);
    command.args(args).current_dir(path).stdin(Stdio::null()).stdout(Stdio::null()).env("LC_ALL", "C");
    timed(|| {
        let status = command.status()?;
        // grep says 1 when nothing matches.
        match status.code() {
            Some(0) => Ok(()),
            Some(1) if name == "grep" => Ok(()),
            _ => Err(io::Error::other(format!("{name}: {status}"))),
        }
    })
}
