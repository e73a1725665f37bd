//! Entries in the store: how long until it is mounted, a look-up, a seal and an eviction take, and how much memory is used.
//! Beside it, entries as directories (cuenv's layout), natively and through bindfs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{rounds, steps};
use crate::curves::{Chart, Unit};
use crate::options::{Mode, Options};
use crate::place::{self, Place, Store};
use crate::reading::{text, worker};
use crate::stats::Results;

const fn chart(name: &'static str, title: &'static str, unit: Unit) -> Chart {
    Chart { name, title, along: "entries in the store", unit }
}

const START: Chart = chart("entries-start", "Entries in the store: until it is mounted", Unit::Seconds);
const LOOKUP: Chart =
    chart("entries-lookup", "Entries in the store: the first look-up of a key", Unit::Seconds);
const SEAL: Chart =
    chart("entries-seal", "Entries in the store: an entry of one file, durable", Unit::Seconds);
const EVICT: Chart = chart("entries-evict", "Entries in the store: an entry evicted", Unit::Seconds);
const MEMORY: Chart =
    chart("entries-memory", "Entries in the store: memory after 1,000 look-ups", Unit::Bytes);

/// Entries that are sealed and evicted in a round.
const NEW: u64 = 20;

struct Both {
    store: Store,
    view: PathBuf,
    plain: PathBuf,
    bound: Option<PathBuf>,
    drafts: PathBuf,
}

/// The same store and the same directory grow from step to step.
pub fn measure(place: &Place, options: &Options, results: &mut Results) -> Result<(), String> {
    let volume = place.volume("grow-entries", "xfs", 40)?;
    let dir = |name: &str| {
        let dir = volume.join(name);
        std::fs::create_dir_all(&dir).map(|()| dir).map_err(|e| format!("{name}: {e}"))
    };
    let store = Store::new(place, &dir("outfs")?, false)?;
    let view = store.dir.join("view");
    // A smoke test does without peers that must be installed.
    let bound = if options.mode == Mode::Smoke { None } else { Some(dir("bound")?) };
    let both = Both { store, view, plain: dir("plain")?, bound, drafts: dir("drafts")? };
    let mut made = 0;
    for count in steps(options, 1000, options.most) {
        let range = [made.to_string(), count.to_string()];
        worker(false, &["fill", text(&both.store.dir.join("store"))?, &range[0], &range[1]])?;
        worker(false, &["plain", text(&both.plain)?, &range[0], &range[1]])?;
        made = count;
        rounds(options, || round(place, &both, count, results))?;
        eprintln!("{count} entries done");
    }
    Ok(())
}

fn round(place: &Place, both: &Both, count: u64, results: &mut Results) -> Result<(), String> {
    let x = count as f64;
    let (looks, all) = (1000.min(count), count.to_string());
    let looked = looks.to_string();
    let each = |took: f64, n: u64| took / n as f64;
    let var = format!("OUTFS_STORE={}", text(&both.store.dir.join("store"))?);
    both.store.mount("view", &["--size", "30G"])?;
    both.store.stop()?;
    let view = text(&both.view)?;
    let mount = ["run", "/", "env", &var, text(&place.outfs)?, "mount", view, "--size", "30G"];
    results.point(&START, "outfs", x, worker(false, &mount)?);
    let took = worker(false, &["look", view, "flat", &looked, &all])?;
    results.point(&LOOKUP, "outfs", x, each(took, looks));
    results.point(&MEMORY, "outfs", x, both.store.resident()? as f64);

    let plain = text(&both.plain)?;
    place::drop_names()?;
    let took = worker(false, &["look", plain, "sharded", &looked, &all])?;
    results.point(&LOOKUP, "directories", x, each(took, looks));
    if let Some(bound) = &both.bound {
        through_bindfs(both, bound, [&looked, &all], x, results)?;
    }

    let new = NEW.to_string();
    let (work, trash) = (both.view.join(".outfs/work"), both.view.join(".outfs/trash"));
    let took = worker(false, &["publish", text(&work)?, view, "view", "1", &new, "1"])?;
    results.point(&SEAL, "outfs", x, each(took, NEW));
    let took = worker(false, &["drop", view, text(&trash)?, &new])?;
    results.point(&EVICT, "outfs", x, each(took, NEW));
    let took = worker(false, &["publish", text(&both.drafts)?, plain, "sync", "1", &new, "1"])?;
    results.point(&SEAL, "directories", x, each(took, NEW));
    let took = worker(false, &["drop", plain, "-", &new])?;
    results.point(&EVICT, "directories", x, each(took, NEW));
    both.store.wait_for_entries(count)?;
    both.store.stop()
}

fn through_bindfs(
    both: &Both,
    at: &Path,
    [looked, all]: [&str; 2],
    x: f64,
    results: &mut Results,
) -> Result<(), String> {
    let (plain, to) = (text(&both.plain)?, text(at)?);
    results.point(&START, "bindfs", x, worker(false, &["run", "/", "bindfs", plain, to])?);
    let took = worker(false, &["look", to, "sharded", looked, all])?;
    results.point(&LOOKUP, "bindfs", x, took / looked.parse::<f64>().map_err(|e| e.to_string())?);
    let pid = place::output(Command::new("pgrep").args(["-n", "-x", "bindfs"]).stdin(Stdio::null()))?;
    let pid = pid.trim().parse().map_err(|e| format!("bindfs's process: {e}"))?;
    results.point(&MEMORY, "bindfs", x, place::resident(pid)? as f64);
    place::run(Command::new("umount").arg(at))
}
