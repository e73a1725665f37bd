//! What a second entry shares with the first: bytes on disk, and how long it takes. Beside it, a copy, which shares nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::rounds;
use crate::curves::{Chart, Unit};
use crate::options::{Mode, Options};
use crate::place::{self, Place, Store};
use crate::reading::{text, worker};
use crate::stats::Results;
use crate::trees::Random;

const ALONG: &str = "percent of the files that are shared";
const BYTES: Chart =
    Chart { name: "shared-bytes", title: "Shared content: bytes on disk", along: ALONG, unit: Unit::Bytes };
const SEAL: Chart = Chart {
    name: "shared-seal",
    title: "Shared content: put and durable",
    along: ALONG,
    unit: Unit::Seconds,
};

/// Files of 32 KiB and, of every twentieth, 1 MiB.
fn files(to: &Path, count: u64, seed: impl Fn(u64) -> u64) -> Result<(), String> {
    let failed = |e| format!("writing {}: {e}", to.display());
    fs::create_dir_all(to).map_err(failed)?;
    for n in 0..count {
        let length = if n % 20 == 0 { 1 << 20 } else { 32 << 10 };
        fs::write(to.join(format!("f{n:04}")), Random::new(seed(n)).bytes(length)).map_err(failed)?;
    }
    Ok(())
}

/// None to 95 of 100 files are those of the first entry.
pub fn measure(place: &Place, options: &Options, results: &mut Results) -> Result<(), String> {
    let volume = place.volume("grow-shared", "xfs", 4)?;
    let count = if options.mode == Mode::Smoke { 20 } else { 1000 };
    let store = Store::new(place, &volume.join("outfs"), false)?;
    let first = volume.join("first");
    files(&first, count, |n| n)?;
    store.mount("view", &["--size", "2G"])?;
    place::run(store.command(["put", "bench.first"]).arg(&first))?;
    let var = format!("OUTFS_STORE={}", text(&store.dir.join("store"))?);
    let put = ["run", "/", "env", &var, text(&place.outfs)?, "put", "bench.second"];
    let used = || disk_usage(&store.dir.join("store"));
    for share in [0, 25, 50, 75, 95] {
        let (x, second, copy) = (share as f64, volume.join("second"), volume.join("copy"));
        // Every file's turn comes evenly, large ones included.
        files(&second, count, |n| if n * 37 % 100 < share { n } else { n + 1_000_000 })?;
        rounds(options, || {
            store.wait_for_entries(1)?;
            store.settle()?;
            place::run(&mut Command::new("sync"))?;
            let before = used()?;
            let took = worker(false, &[&put[..], &[text(&second)?]].concat())?;
            results.point(&SEAL, "outfs put", x, took);
            store.settle()?;
            results.point(&BYTES, "outfs", x, used()?.saturating_sub(before) as f64);
            place::run(&mut store.command(["evict", "bench.second"]))?;

            place::run(&mut Command::new("sync"))?;
            let script = ["run", "/", "sh", "-c", "cp -r \"$1\" \"$2\" && sync", "-"];
            let took = worker(false, &[&script[..], &[text(&second)?, text(&copy)?]].concat())?;
            results.point(&SEAL, "cp -r and sync", x, took);
            results.point(&BYTES, "cp -r", x, disk_usage(&copy)? as f64);
            fs::remove_dir_all(&copy).map_err(|e| format!("deleting the copy: {e}"))
        })?;
        fs::remove_dir_all(&second).map_err(|e| format!("deleting the files: {e}"))?;
    }
    Ok(())
}

/// What the files below a directory take on disk, in bytes.
fn disk_usage(dir: &Path) -> Result<u64, String> {
    let said = place::output(Command::new("du").args(["-s", "-B1"]).arg(dir))?;
    let number = said.split_whitespace().next().and_then(|n| n.parse().ok());
    number.ok_or(format!("du: {said}"))
}
