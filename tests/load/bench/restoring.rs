//! Restoring: from the request until the last file of an entry can be read, in every way there is.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::options::{Mode, Options};
use crate::peers::{self, KEY};
use crate::place::{self, Place, Store};
use crate::reading::{text, worker};
use crate::stats::{Point, Results, Target};
use crate::trees::{self, Tree};

const BASE: &str = "hard links";
/// Times faster than hard links, and at most so long.
const FASTER: f64 = 500.0;
const AT_MOST: f64 = 1e-3;

/// Rows: with the disk's caches warm, and (the view and the farm only) with all caches dropped.
const WARM: &str = "restore-first";
const COLD: &str = "restore-first-cold";
const WITHIN: &str = "restore-first-time";

/// One way to restore into a directory of its own.
struct Way {
    peer: &'static str,
    /// A program and its arguments; the destination follows.
    command: Vec<String>,
    /// Where destinations are made.
    below: PathBuf,
}

/// Measures restoring, if it is wanted.
pub fn measure(place: &Place, options: &Options, results: &mut Results) -> Result<(), String> {
    if ![WARM, COLD, WITHIN].iter().any(|row| options.wants_row(row)) {
        return Ok(());
    }
    let name = match options.mode {
        Mode::Full => "source",
        Mode::Quick => "source-2k",
        Mode::Smoke => "few",
    };
    let tree = trees::make(place, name)?;
    let last = tree.files.last().ok_or("the tree is empty")?.clone();
    let below = place.fresh("restore")?;
    let store = Store::new(place, &place.run.join("restore-outfs"), false)?;
    place::run(store.command(["put", KEY]).arg(&tree.dir))?;
    let view = store.mount("view", &["--read-only", "--size", "20G"])?;
    let mut ways = ways(place, &tree, &store, &below, &mut results.notes)?;
    // The store serves one view; where reflinks are possible there is another.
    let reflinks = match reflinks(place, &tree) {
        Ok((store, more)) => {
            ways.extend(more);
            Some(store)
        }
        Err(e) => {
            results.notes.push(format!("reflinks left out: {e}"));
            None
        }
    };
    // A small farm is made quickly; the view takes as long as ever.
    let farm = (options.mode == Mode::Full).then_some(Target::Times(1.0 / FASTER));
    let mut last_round = Duration::ZERO;
    for round in 0..options.repeat {
        if round > 0 && !options.has_time(last_round) {
            results.notes.push(format!("restoring: out of time after {round} rounds"));
            break;
        }
        let began = Instant::now();
        for way in &ways {
            let took = restore(way, &last)?;
            add(results, WARM, name, way.peer, None, took);
        }
        let took = first_byte(&store, &view, &last, false)?;
        add(results, WARM, name, "outfs view", farm, took);
        add(results, WITHIN, name, "outfs view", Some(Target::Seconds(AT_MOST)), took);
        place::drop_caches()?;
        add(results, COLD, name, BASE, None, restore(&ways[0], &last)?);
        let took = first_byte(&store, &view, &last, true)?;
        add(results, COLD, name, "outfs view", farm, took);
        last_round = began.elapsed();
    }
    drop(reflinks);
    Ok(())
}

fn add(results: &mut Results, row: &str, tree: &str, peer: &str, target: Option<Target>, took: f64) {
    let title = match row {
        WARM => "until the last file can be read",
        COLD => "until the last file can be read, caches dropped",
        _ => "request to first byte of the last file",
    };
    let tree = format!("{tree}, restored");
    results.add(Point { row, title, tree: &tree, peer, base: BASE, target }, took);
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

fn outfs(store: &Store, place: &Place, how: &str) -> Result<Vec<String>, String> {
    let var = format!("OUTFS_STORE={}", text(&store.dir.join("store"))?);
    Ok(words(&["env", &var, text(&place.outfs)?, "restore", "--as", how, KEY]))
}

fn ways(
    place: &Place,
    tree: &Tree,
    store: &Store,
    below: &Path,
    notes: &mut Vec<String>,
) -> Result<Vec<Way>, String> {
    let dir = text(&tree.dir)?;
    let archive = peers::image(place, tree, "tar.zst", |to| {
        let mut make = Command::new("tar");
        make.arg("-C").arg(&tree.dir).args(["-I", "zstd", "-cf"]).arg(to).arg(".");
        make
    })?;
    let unpack = ["sh", "-c", "mkdir \"$2\" && tar -C \"$2\" -I zstd -xf \"$1\"", "-", text(&archive)?];
    let way = |peer, command| Way { peer, command, below: below.to_owned() };
    let mut ways = vec![
        way(BASE, words(&["cp", "-al", dir])),
        way("cp -r", words(&["cp", "-r", dir])),
        way("tar.zst", words(&unpack)),
        way("outfs link", outfs(store, place, "link")?),
        way("outfs copy", outfs(store, place, "copy")?),
    ];
    match std::env::var("BENCH_CUENV") {
        Ok(program) => ways.push(way("cuenv", cuenv(place, tree, program)?)),
        Err(_) => notes.push("cuenv left out: scripts/test-clients --no-run builds it".into()),
    }
    Ok(ways)
}

/// cuenv's `restore_outputs`, from a cache as cuenv lays it out.
fn cuenv(place: &Place, tree: &Tree, program: String) -> Result<Vec<String>, String> {
    let root = place.fresh("restore-cuenv")?;
    let entry = root.join(&KEY[..2]).join(&KEY[2..4]).join(KEY);
    fs::create_dir_all(&entry).map_err(|e| format!("creating {}: {e}", entry.display()))?;
    place::run(Command::new("cp").arg("-a").arg(&tree.dir).arg(entry.join("outputs")))?;
    Ok(vec![program, text(&root)?.to_owned(), KEY.to_owned()])
}

/// The same on XFS, which can share data between files.
fn reflinks(place: &Place, tree: &Tree) -> Result<(Store, Vec<Way>), String> {
    let volume = place.volume("restore-xfs", "xfs", 4)?;
    let copy = volume.join("tree");
    place::run(Command::new("cp").arg("-a").arg(&tree.dir).arg(&copy))?;
    let store = Store::new(place, &volume.join("outfs"), false)?;
    place::run(store.command(["put", KEY]).arg(&copy))?;
    store.mount("view", &["--read-only", "--size", "3G"])?;
    let way = |peer, command| Way { peer, command, below: volume.clone() };
    let ways = vec![
        way("cp --reflink", words(&["cp", "-r", "--reflink=always", text(&copy)?])),
        way("outfs reflink", outfs(&store, place, "reflink")?),
    ];
    Ok((store, ways))
}

/// Restores into a new directory, reads the first byte of the last file, and deletes it again.
fn restore(way: &Way, last: &str) -> Result<f64, String> {
    let to = way.below.join("restored");
    place::run(&mut Command::new("sync"))?;
    let mut args = vec!["run", "/"];
    args.extend(way.command.iter().map(String::as_str));
    args.push(text(&to)?);
    let took = worker(false, &args)? + worker(false, &["first", text(&to.join(last))?])?;
    let facts = fs::symlink_metadata(&to).map_err(|e| format!("{}: {e}", to.display()))?;
    if facts.is_symlink() { fs::remove_file(&to) } else { fs::remove_dir_all(&to) }
        .map_err(|e| format!("deleting {}: {e}", to.display()))?;
    Ok(took)
}

/// A new daemon and a new mount have never seen the entry.
fn first_byte(store: &Store, view: &Path, last: &str, cold: bool) -> Result<f64, String> {
    store.stop()?;
    place::run(store.command([OsStr::new("mount"), view.as_os_str()]).args([
        "--read-only",
        "--size",
        "20G",
    ]))?;
    // As before the others: what they have deleted is still being written out.
    place::run(&mut Command::new("sync"))?;
    if cold {
        place::drop_caches()?;
    }
    worker(false, &["first", text(&view.join(KEY).join("outputs").join(last))?])
}
