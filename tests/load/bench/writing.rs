//! Writing: into a read-write view, published durably, and `outfs put`, beside the native file system.
//!
//! Invariant: every sample starts with an empty store and a daemon that has nothing to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::options::{Mode, Options};
use crate::place::{self, Place, Store};
use crate::reading::{text, worker};
use crate::stats::{Point, Results, Target};
use crate::trees;

/// What is written, and how far.
#[derive(Clone, Copy, PartialEq)]
enum Work {
    /// One file, closed.
    Close,
    /// One file, durable.
    Durable,
    /// Many small files by `cp -r`.
    Copy,
    /// The same, durable.
    CopyDurable,
    /// `outfs put` of them, durable.
    Put,
}

/// More than any sample writes.
const TOUCHED_MIB: &str = "768";

struct Row {
    name: &'static str,
    title: &'static str,
    volume: &'static str,
    work: Work,
    /// For root's read-write view (or `outfs put`), and an ordinary user's.
    targets: Option<[f64; 2]>,
}

#[rustfmt::skip]
const ROWS: [Row; 7] = [
    Row { name: "write-close-tmpfs", title: "a file written and closed", volume: "tmpfs", work: Work::Close, targets: Some([1.05, 4.0]) },
    Row { name: "write-durable-tmpfs", title: "a file written and sealed, over write and fsync", volume: "tmpfs", work: Work::Durable, targets: None },
    Row { name: "write-close-xfs", title: "a file written and closed", volume: "xfs", work: Work::Close, targets: Some([1.05, 4.0]) },
    Row { name: "write-durable-xfs", title: "a file written and sealed, over write and fsync", volume: "xfs", work: Work::Durable, targets: Some([1.75, 4.0]) },
    Row { name: "write-cp-tmpfs", title: "cp -r of small files", volume: "tmpfs", work: Work::Copy, targets: Some([4.5, 5.5]) },
    Row { name: "write-cp-durable-xfs", title: "cp -r of small files and seal, over cp -r and sync", volume: "xfs", work: Work::CopyDurable, targets: Some([4.0, 5.0]) },
    Row { name: "write-put-xfs", title: "outfs put of small files, over cp -r and sync", volume: "xfs", work: Work::Put, targets: Some([1.3, f64::INFINITY]) },
];

/// A file system to write to, and what stands on it.
struct Volume {
    dir: PathBuf,
    /// The small files.
    source: PathBuf,
    stores: Vec<(&'static str, Store, PathBuf)>,
}

/// Measures all writing rows that are wanted.
pub fn measure(place: &Place, options: &Options, results: &mut Results) -> Result<(), String> {
    for kind in ["tmpfs", "xfs"] {
        let rows: Vec<_> = ROWS.iter().filter(|r| r.volume == kind && options.wants_row(r.name)).collect();
        if rows.is_empty() {
            continue;
        }
        let volume = match set_up(place, kind, options) {
            Ok(volume) => volume,
            Err(e) => {
                results.notes.push(format!("writing on {kind} left out: {e}"));
                continue;
            }
        };
        for row in rows {
            // A new file system is slow at first, and native would be the first to write.
            native(row.work, &volume, mib(options)).map_err(|e| format!("{}: {e}", row.name))?;
            for round in 0..options.repeat {
                if round > 0 && !options.has_time(Duration::ZERO) {
                    results.notes.push(format!("{}: out of time after {round} rounds", row.name));
                    break;
                }
                sample(row, &volume, options, results)?;
            }
            eprintln!("{} done", row.name);
        }
    }
    Ok(())
}

fn set_up(place: &Place, kind: &'static str, options: &Options) -> Result<Volume, String> {
    let name = match options.mode {
        Mode::Full => "source-8k",
        Mode::Quick => "source-2k",
        Mode::Smoke => "few",
    };
    let tree = trees::make(place, name)?;
    let dir = place.volume(&format!("write-{kind}"), kind, if kind == "tmpfs" { 4 } else { 8 })?;
    let source = dir.join("source");
    place::run(Command::new("cp").arg("-r").arg(&tree.dir).arg(&source))?;
    let mut stores = vec![];
    for (peer, user) in [("outfs rw", false), ("outfs rw user", true)] {
        let store = Store::new(place, &dir.join(peer.replace(' ', "-")), user)?;
        let view = store.mount("view", &["--size", "3G"])?;
        stores.push((peer, store, view));
    }
    Ok(Volume { dir, source, stores })
}

/// How large the one file is.
fn mib(options: &Options) -> &'static str {
    match options.mode {
        Mode::Full => "512",
        Mode::Quick => "256",
        Mode::Smoke => "8",
    }
}

fn sample(row: &Row, volume: &Volume, options: &Options, results: &mut Results) -> Result<(), String> {
    let mib = mib(options);
    let mut add = |peer: &str, target: Option<f64>, took: f64| {
        let target = target.filter(|t| t.is_finite()).map(Target::Times);
        let title = &format!("{}, {}", row.title, row.volume);
        let point = Point { row: row.name, title, tree: "written", peer, base: "native", target };
        results.add(point, took);
    };
    let took = native(row.work, volume, mib).map_err(|e| format!("{}: native: {e}", row.name))?;
    add("native", None, took);
    for (n, (peer, store, view)) in volume.stores.iter().enumerate() {
        let failed = |e: String| format!("{}: {peer}: {e}", row.name);
        store.wait_until_empty().and_then(|()| store.settle()).map_err(failed)?;
        let took = through(row.work, volume, store, view, mib).map_err(failed)?;
        add(peer, row.targets.map(|t| t[n]), took);
    }
    Ok(())
}

/// Everybody begins with nothing to write out, and with memory that the host of this machine does not have to find first.
fn begin() -> Result<(), String> {
    place::run(&mut Command::new("sync"))?;
    worker(false, &["memory", "/", TOUCHED_MIB]).map(drop)
}

fn native(work: Work, volume: &Volume, mib: &str) -> Result<f64, String> {
    let to = volume.dir.join("written");
    let (path, source) = (text(&to)?, text(&volume.source)?);
    begin()?;
    let took = match work {
        Work::Close => worker(false, &["write", path, mib, "close"]),
        Work::Durable => worker(false, &["write", path, mib, "sync"]),
        Work::Copy => worker(false, &["run", "/", "cp", "-r", source, path]),
        Work::CopyDurable | Work::Put => {
            worker(false, &["run", "/", "sh", "-c", "cp -r \"$1\" \"$2\" && sync", "-", source, path])
        }
    }?;
    if to.is_dir() { fs::remove_dir_all(&to) } else { fs::remove_file(&to) }
        .map_err(|e| format!("deleting {path}: {e}"))?;
    Ok(took)
}

/// The same through a view; afterwards the store is empty again.
fn through(work: Work, volume: &Volume, store: &Store, view: &Path, mib: &str) -> Result<f64, String> {
    let (draft, entry) = (view.join(".outfs/work/w"), view.join("bench.written"));
    let outputs = draft.join("outputs");
    let file = outputs.join("written");
    let (source, from, to) = (text(&volume.source)?, text(&draft)?, text(&entry)?);
    let mut prepare = Command::new("mkdir");
    place::become_user(&mut prepare, store.user);
    if work != Work::Put {
        place::run(prepare.args(["-p", text(&outputs)?]))?;
    }
    begin()?;
    let took = match work {
        Work::Close => worker(store.user, &["write", text(&file)?, mib, "close"]),
        Work::Durable => worker(store.user, &["write", text(&file)?, mib, "publish", from, to]),
        Work::Copy => worker(store.user, &["run", "/", "cp", "-r", source, text(&outputs)?]),
        Work::CopyDurable => {
            let script = "cp -r \"$1\" \"$2/outputs\" && mv -T \"$2\" \"$3\"";
            worker(store.user, &["run", "/", "sh", "-c", script, "-", source, from, to])
        }
        Work::Put => {
            let var = format!("OUTFS_STORE={}", text(&store.dir.join("store"))?);
            let program = store.command([""; 0]).get_program().to_string_lossy().into_owned();
            worker(store.user, &["run", "/", "env", &var, &program, "put", "bench.written", source])
        }
    }?;
    let mut clean = Command::new("rm");
    place::become_user(&mut clean, store.user);
    match work {
        Work::Close | Work::Copy => place::run(clean.args(["-r", from]))?,
        _ => place::run(&mut store.command(["evict", "bench.written"]))?,
    }
    Ok(took)
}
