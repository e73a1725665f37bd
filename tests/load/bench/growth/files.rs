//! Files in an entry: a first look-up, the first byte of the last file, and sealing. Beside it, an EROFS image of the same
//! files, a hard-link farm, and a copy.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{rounds, steps};
use crate::curves::{Chart, Unit};
use crate::options::{Mode, Options};
use crate::peers::KEY;
use crate::place::{self, Place, Store};
use crate::reading::{text, worker};
use crate::stats::Results;
use crate::{hash, trees};

const fn chart(name: &'static str, title: &'static str) -> Chart {
    Chart { name, title, along: "files in the entry", unit: Unit::Seconds }
}

const LOOKUP: Chart = chart("files-lookup", "Files in an entry: the first look-up of its last file");
const FIRST: Chart = chart("files-first", "Files in an entry: from request to first byte of its last file");
const SEAL: Chart = chart("files-seal", "Files in an entry: written and durable");

/// Small files, a hundred to a directory.
pub fn measure(place: &Place, options: &Options, results: &mut Results) -> Result<(), String> {
    let volume = place.volume("grow-files", "xfs", 12)?;
    for count in steps(options, 10, 100_000.min(options.most)) {
        let dir = volume.join(count.to_string());
        let source = dir.join("source");
        fs::create_dir_all(&source).map_err(|e| format!("making the files: {e}"))?;
        trees::many(&source, count as usize).map_err(|e| format!("making the files: {e}"))?;
        let all = hash::walk(&source).map_err(|e| format!("walking the files: {e}"))?;
        let last = all.iter().rfind(|(_, facts)| facts.is_file()).ok_or("there are no files")?;
        let store = Store::new(place, &dir.join("outfs"), false)?;
        store.mount("view", &["--size", "6G"])?;
        let image = image(options, &dir, &source)?;
        let one = Files { place, store, dir: &dir, last: &last.0, image, x: count as f64 };
        rounds(options, || {
            one.seal(results)?;
            one.read(results)
        })?;
        one.store.stop()?;
        drop(one);
        fs::remove_dir_all(&dir).map_err(|e| format!("deleting {}: {e}", dir.display()))?;
        eprintln!("{count} files done");
    }
    Ok(())
}

fn image(options: &Options, dir: &Path, source: &Path) -> Result<Option<String>, String> {
    if options.mode == Mode::Smoke {
        return Ok(None);
    }
    let image = dir.join("image.erofs");
    place::run(Command::new("mkfs.erofs").arg(&image).arg(source))?;
    fs::create_dir_all(dir.join("erofs")).map_err(|e| format!("creating a mount point: {e}"))?;
    text(&image).map(|i| Some(i.to_owned()))
}

struct Files<'a> {
    place: &'a Place,
    store: Store,
    dir: &'a Path,
    last: &'a Path,
    image: Option<String>,
    x: f64,
}

impl Files<'_> {
    fn seal(&self, results: &mut Results) -> Result<(), String> {
        let (source, copy) = (self.dir.join("source"), self.dir.join("copy"));
        let (source, copied) = (text(&source)?, text(&copy)?);
        let script = "cp -r \"$1\" \"$2\" && sync";
        place::run(&mut Command::new("sync"))?;
        let took = worker(false, &["run", "/", "sh", "-c", script, "-", source, copied])?;
        results.point(&SEAL, "cp -r and sync", self.x, took);
        fs::remove_dir_all(&copy).map_err(|e| format!("deleting {copied}: {e}"))?;

        let view = self.dir.join("outfs/view");
        let (draft, entry) = (view.join(".outfs/work/w"), view.join(KEY));
        fs::create_dir(&draft).map_err(|e| format!("starting a draft: {e}"))?;
        let script = "cp -r \"$1\" \"$2/outputs\" && mv -T \"$2\" \"$3\"";
        place::run(&mut Command::new("sync"))?;
        let args = ["run", "/", "sh", "-c", script, "-", source, text(&draft)?, text(&entry)?];
        results.point(&SEAL, "outfs view", self.x, worker(false, &args)?);
        self.empty()?;

        let var = format!("OUTFS_STORE={}", text(&self.store.dir.join("store"))?);
        place::run(&mut Command::new("sync"))?;
        let args = ["run", "/", "env", &var, text(&self.place.outfs)?, "put", KEY, source];
        results.point(&SEAL, "outfs put", self.x, worker(false, &args)?);
        Ok(())
    }

    fn empty(&self) -> Result<(), String> {
        place::run(&mut self.store.command(["evict", KEY]))?;
        self.store.wait_until_empty()?;
        self.store.settle()
    }

    /// A new daemon and a new mount each time: nobody has seen the entry yet.
    fn read(&self, results: &mut Results) -> Result<(), String> {
        let view = self.dir.join("outfs/view");
        let last = view.join(KEY).join("outputs").join(self.last);
        for (work, chart) in [("stat", &LOOKUP), ("first", &FIRST)] {
            self.store.stop()?;
            self.store.mount("view", &["--size", "6G"])?;
            results.point(chart, "outfs", self.x, worker(false, &[work, text(&last)?])?);
            if let Some(image) = &self.image {
                let at = self.dir.join("erofs");
                let mount =
                    Command::new("mount").args(["-i", "-t", "erofs", "-o", "ro", image]).arg(&at).status();
                if mount.is_ok_and(|s| s.success()) {
                    let took = worker(false, &[work, text(&at.join(self.last))?])?;
                    results.point(chart, "erofs", self.x, took);
                    place::run(Command::new("umount").arg(&at))?;
                }
            }
        }
        let farm = self.dir.join("farm");
        let source = self.dir.join("source");
        place::run(&mut Command::new("sync"))?;
        let took = worker(false, &["run", "/", "cp", "-al", text(&source)?, text(&farm)?])?
            + worker(false, &["first", text(&farm.join(self.last))?])?;
        results.point(&FIRST, "hard links", self.x, took);
        fs::remove_dir_all(&farm).map_err(|e| format!("deleting the farm: {e}"))?;
        self.empty()
    }
}
