//! Readers and writers at once, with the same work shared among more threads. Beside it, native and EROFS.

use std::fs;

use super::rounds;
use crate::curves::{Chart, Unit};
use crate::options::{Mode, Options};
use crate::peers;
use crate::place::{self, Place, Store};
use crate::reading::{same_bytes, text, worker};
use crate::stats::Results;
use crate::trees;

const fn chart(name: &'static str, title: &'static str, along: &'static str) -> Chart {
    Chart { name, title, along, unit: Unit::Seconds }
}

const COLD: Chart = chart("readers-cold", "Parallel readers: all files of a tree, cold", "readers");
const WARM: Chart = chart("readers-warm", "Parallel readers: all files of a tree, warm", "readers");
const WRITE: Chart = chart("writers", "Parallel writers: 64 entries of 50 files, durable", "writers");

/// Entries, and files in each.
const WRITTEN: [u64; 2] = [64, 50];

/// One to sixteen.
pub fn measure(place: &Place, options: &Options, results: &mut Results) -> Result<(), String> {
    let steps: &[u64] = if options.mode == Mode::Smoke { &[1, 4] } else { &[1, 2, 4, 8, 16] };
    readers(place, options, steps, results)?;
    writers(place, options, steps, results)
}

fn readers(place: &Place, options: &Options, steps: &[u64], results: &mut Results) -> Result<(), String> {
    let name = match options.mode {
        Mode::Full => "source-8k",
        Mode::Quick => "source-2k",
        Mode::Smoke => "few",
    };
    let tree = trees::make(place, name)?;
    let list = place.run.join("parallel.list");
    fs::write(&list, tree.files.join("\n")).map_err(|e| format!("writing {}: {e}", list.display()))?;
    let mut some = options.clone();
    some.peers = Some(["erofs", "outfs ro", "outfs rw"].map(str::to_owned).to_vec());
    if options.mode == Mode::Smoke {
        some.peers = Some(vec!["outfs ro".into()]);
    }
    let mut served = peers::serve(place, &tree, &some, &mut results.notes)?;
    same_bytes(&tree, &mut served.peers, &mut results.notes)?;
    rounds(options, || {
        for threads in steps {
            for peer in &served.peers {
                let (work, root) = (format!("read{threads}"), text(&peer.root)?);
                place::drop_caches()?;
                let cold = worker(peer.user, &[&work, root, text(&list)?])?;
                results.point(&COLD, peer.name, *threads as f64, cold);
                let warm = worker(peer.user, &[&work, root, text(&list)?])?;
                results.point(&WARM, peer.name, *threads as f64, warm);
            }
        }
        Ok(())
    })
}

fn writers(place: &Place, options: &Options, steps: &[u64], results: &mut Results) -> Result<(), String> {
    let volume = place.volume("grow-writers", "xfs", 8)?;
    let dir = |name: &str| {
        let dir = volume.join(name);
        fs::create_dir_all(&dir).map(|()| dir).map_err(|e| format!("{name}: {e}"))
    };
    let (drafts, entries) = (dir("drafts")?, dir("entries")?);
    let store = Store::new(place, &dir("outfs")?, false)?;
    let view = store.mount("view", &["--size", "4G"])?;
    let [count, files] = WRITTEN.map(|n| n.to_string());
    rounds(options, || {
        for threads in steps {
            let (x, threads) = (*threads as f64, threads.to_string());
            place::run(&mut std::process::Command::new("sync"))?;
            let how = ["sync", &threads, &count, &files];
            let took = worker(false, &[&["publish", text(&drafts)?, text(&entries)?], &how[..]].concat())?;
            results.point(&WRITE, "native", x, took);
            worker(false, &["drop", text(&entries)?, "-", &count])?;

            store.wait_until_empty()?;
            store.settle()?;
            let (work, trash) = (view.join(".outfs/work"), view.join(".outfs/trash"));
            let how = ["view", &threads, &count, &files];
            let took = worker(false, &[&["publish", text(&work)?, text(&view)?], &how[..]].concat())?;
            results.point(&WRITE, "outfs", x, took);
            worker(false, &["drop", text(&view)?, text(&trash)?, &count])?;
        }
        Ok(())
    })
}
