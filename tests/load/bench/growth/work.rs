//! The measurements that only charts have; each runs in a worker's process.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::fill;
use crate::worker::timed;

/// A prime, so that a walk of this step visits entries once; keys are hashes, so their order is random.
const STEP: u64 = 7919;

/// `fill`, `plain`, `look`, `publish` and `drop`: see the functions.
pub fn measure(work: &str, path: &Path, rest: &[String]) -> io::Result<Duration> {
    match work {
        "fill" => {
            let [from, to] = numbers(rest)?;
            let scratch = path.with_extension("scratch");
            timed(|| {
                fill::entries(path, &scratch, from..to, |_| ());
                Ok(())
            })
        }
        "plain" => {
            let [from, to] = numbers(rest)?;
            timed(|| plain(path, from, to))
        }
        "look" => {
            let [layout, rest @ ..] = rest else { return Err(wrong()) };
            let [count, all] = numbers(rest)?;
            timed(|| (0..count).try_for_each(|n| look(path, layout == "sharded", n * STEP % all)))
        }
        "publish" => {
            let [to, how, rest @ ..] = rest else { return Err(wrong()) };
            let [threads, count, files] = numbers(rest)?;
            let sync = how == "sync";
            timed(|| in_turns(threads, count, |n| publish(path, Path::new(to), n, files, sync)))
        }
        "drop" => {
            let [to, rest @ ..] = rest else { return Err(wrong()) };
            let [count] = numbers(rest)?;
            timed(|| (0..count).try_for_each(|n| discard(&path.join(published(n)), to, n)))
        }
        _ => Err(io::Error::other("no such work")),
    }
}

fn wrong() -> io::Error {
    io::Error::other("wrong arguments")
}

fn numbers<const N: usize>(rest: &[String]) -> io::Result<[u64; N]> {
    let all: Vec<u64> =
        rest.iter().map(|n| n.parse().map_err(io::Error::other)).collect::<io::Result<_>>()?;
    all.try_into().map_err(|_| wrong())
}

/// An entry's directory as cuenv lays them out.
fn sharded(top: &Path, n: u64) -> PathBuf {
    let key = fill::key(n);
    top.join(&key[..2]).join(&key[2..4]).join(key)
}

/// `plain DIR FROM TO`: entries as directories, without syncing.
fn plain(top: &Path, from: u64, to: u64) -> io::Result<()> {
    for n in from..to {
        let dir = sharded(top, n);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("metadata.json"), format!("{{\"task_id\":\"task-{n}\"}}\n"))?;
    }
    // SAFETY: sync(2) takes and returns nothing.
    unsafe { libc::sync() };
    Ok(())
}

/// `look DIR flat|sharded COUNT ALL`: finds so many of all entries.
fn look(top: &Path, is_sharded: bool, n: u64) -> io::Result<()> {
    let path = if is_sharded { sharded(top, n) } else { top.join(fill::key(n)) };
    fs::symlink_metadata(&path).map(drop)
}

fn published(n: u64) -> String {
    format!("bench.new-{n}")
}

fn in_turns(threads: u64, count: u64, work: impl Fn(u64) -> io::Result<()> + Sync) -> io::Result<()> {
    let next = AtomicU64::new(0);
    let one = || -> io::Result<()> {
        loop {
            match next.fetch_add(1, Ordering::Relaxed) {
                n if n < count => work(n)?,
                _ => return Ok(()),
            }
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        others.into_iter().try_for_each(|t| t.join().unwrap_or(Err(io::Error::other("a writer panicked"))))
    })
}

/// `publish DRAFTS ENTRIES view|sync THREADS COUNT FILES`: writes entries of so many files of 4 KiB aside and gives them
/// their names; in a view that makes them durable, elsewhere everything is synced as a careful program would.
fn publish(drafts: &Path, entries: &Path, n: u64, files: u64, sync: bool) -> io::Result<()> {
    let draft = drafts.join(format!("new-{n}"));
    let outputs = draft.join("outputs");
    fs::create_dir_all(&outputs)?;
    let put = |path: &Path, data: &[u8]| {
        let mut file = File::create_new(path)?;
        file.write_all(data)?;
        if sync { file.sync_all() } else { Ok(()) }
    };
    let mut block = [0; 4096];
    for f in 0..files {
        // No two files are the same, in this process or another.
        let mut hash = blake3::Hasher::new();
        hash.update(&n.to_le_bytes()).update(&f.to_le_bytes()).update(&std::process::id().to_le_bytes());
        hash.finalize_xof().fill(&mut block);
        put(&outputs.join(format!("file-{f}")), &block)?;
    }
    put(&draft.join("metadata.json"), METADATA)?;
    if sync {
        File::open(&outputs)?.sync_all()?;
        File::open(&draft)?.sync_all()?;
    }
    fs::rename(&draft, entries.join(published(n)))?;
    if sync { File::open(entries)?.sync_all() } else { Ok(()) }
}

/// What cuenv would write.
const METADATA: &[u8] =
    br#"{"task_id":"bench","digest":"bench.new","command":[],"created_at":"2024-01-01T00:00:00Z",
    "runtime":null,"secrets_fingerprint":null,"exit_code":0,"duration_ms":1,"outputs":[]}"#;

/// `drop ENTRIES TRASH|- COUNT`: deletes entries, or moves them to where that happens.
fn discard(path: &Path, trash: &str, n: u64) -> io::Result<()> {
    match trash {
        "-" => fs::remove_dir_all(path),
        _ => fs::rename(path, Path::new(trash).join(published(n))),
    }
}
