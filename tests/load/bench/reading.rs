//! Reading: every row on every tree through every peer, peers taking turns within each round.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::options::{Mode, Options};
use crate::peers::{self, Peer};
use crate::place::{self, Place};
use crate::rows::{READING, Reading, VIEWS, Work};
use crate::stats::Results;
use crate::trees::{self, Tree};

/// Runs a worker and gives the seconds it reports.
pub fn worker(user: bool, args: &[&str]) -> Result<f64, String> {
    let text = worker_output(user, args)?;
    let nanos: u64 =
        text.trim().parse().map_err(|_| format!("bench worker {}: said {text}", args.join(" ")))?;
    Ok(nanos as f64 / 1e9)
}

fn worker_output(user: bool, args: &[&str]) -> Result<String, String> {
    let program = std::env::current_exe().map_err(|e| format!("where this program is: {e}"))?;
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "300"]).arg(program).arg("worker").args(args);
    place::become_user(&mut command, user);
    place::output(&mut command)
}

fn text(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or(format!("{} is no text", path.display()))
}

/// Measures all reading rows that are wanted.
pub fn measure(place: &Place, options: &Options, results: &mut Results) -> Result<(), String> {
    let wanted = |r: &&Reading| {
        let named = |state: &str| options.wants_row(&format!("{}-{state}", r.name));
        r.cold.is_some() && named("cold") || r.warm.is_some() && named("warm")
    };
    for name in trees::NAMES.into_iter().filter(|n| options.wants_tree(n)) {
        let rows: Vec<_> = READING.iter().filter(wanted).filter(|r| r.big == trees::is_big(name)).collect();
        if rows.is_empty() {
            continue;
        }
        eprintln!("{name}: setting up");
        let tree = trees::make(place, name)?;
        let list = place.run.join(format!("{name}.list"));
        fs::write(&list, tree.files.join("\n")).map_err(|e| format!("writing {}: {e}", list.display()))?;
        let served = peers::serve(place, &tree, options, &mut results.notes)?;
        same_bytes(&tree, &served.peers)?;
        results.notes.push(format!("{name}: {} files, {} MB", tree.files.len(), tree.bytes / 1_000_000));
        for row in rows {
            let started = Instant::now();
            Run { row, tree: &tree, list: &list, options }.all(&served.peers, results)?;
            eprintln!("{name}: {} in {:.1} s", row.name, started.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

/// Nothing is reported of a peer that shows other bytes.
fn same_bytes(tree: &Tree, peers: &[Peer]) -> Result<(), String> {
    let mut native = None;
    for peer in peers {
        let hash = worker_output(peer.user, &["tree", text(&peer.root)?])?;
        let native = native.get_or_insert_with(|| hash.clone());
        if *native != hash {
            return Err(format!(
                "{}: {} shows other bytes than native: nothing is reported",
                tree.name, peer.name
            ));
        }
    }
    Ok(())
}

struct Run<'a> {
    row: &'a Reading,
    tree: &'a Tree,
    list: &'a PathBuf,
    options: &'a Options,
}

impl Run<'_> {
    fn all(&self, peers: &[Peer], results: &mut Results) -> Result<(), String> {
        let mut spent: HashMap<&str, f64> = HashMap::new();
        for round in 0..self.options.repeat {
            // Whoever comes first may find the disk in another state: each round begins with another peer.
            let (before, after) = peers.split_at(round % peers.len());
            for peer in after.iter().chain(before) {
                let started = Instant::now();
                let spent = spent.entry(peer.name).or_default();
                let patient = peer.name == "native" || peer.name.starts_with("outfs");
                if patient || *spent < self.options.patience().as_secs_f64() {
                    self.one(peer, results)?;
                }
                *spent += started.elapsed().as_secs_f64();
            }
        }
        Ok(())
    }

    /// Cold, then warm; the cold run is what warms.
    fn one(&self, peer: &Peer, results: &mut Results) -> Result<(), String> {
        let named = |state: &str| format!("{}-{state}", self.row.name);
        let mut add = |state: &str, targets: [f64; 3], seconds: f64| {
            let judged = ["source", "source-8k", "source-4k", "big"].contains(&self.tree.name);
            let view = VIEWS.iter().position(|v| *v == peer.name).filter(|_| judged);
            let title = format!("{}, {state}", self.row.title);
            results.add(&named(state), &title, self.tree.name, peer.name, view.map(|v| targets[v]), seconds);
        };
        let cold = self.row.cold.filter(|_| self.options.wants_row(&named("cold")));
        match cold {
            Some(targets) => {
                place::drop_caches()?;
                add("cold", targets, self.work(peer)?);
            }
            None => self.warm_up(peer)?,
        }
        if let Some(targets) = self.row.warm.filter(|_| self.options.wants_row(&named("warm"))) {
            let mut all = 0.0;
            // What is short is measured three times, for a steadier median.
            for _ in 0..3 {
                let took = self.work(peer)?;
                add("warm", targets, took);
                all += took;
                if all > 0.5 || self.options.mode == Mode::Smoke {
                    break;
                }
            }
        }
        Ok(())
    }

    /// How pages came into the cache decides how large its folios are, so the large file is always read from its start.
    fn warm_up(&self, peer: &Peer) -> Result<(), String> {
        if !self.row.big {
            return self.work(peer).map(drop);
        }
        place::drop_caches()?;
        worker(peer.user, &["sequential", text(&peer.root.join("big"))?]).map(drop)
    }

    fn work(&self, peer: &Peer) -> Result<f64, String> {
        let (root, list) = (text(&peer.root)?, text(self.list)?);
        let big = peer.root.join("big");
        let big = text(&big)?;
        match self.row.work {
            Work::ReadAll(1) => worker(peer.user, &["read1", root, list]),
            Work::ReadAll(_) => worker(peer.user, &["read2", root, list]),
            Work::Program(args) => worker(peer.user, &[&["run", root], args].concat()),
            Work::Sequential => worker(peer.user, &["sequential", big]),
            Work::Random => worker(peer.user, &["random", big]),
            Work::Mapped => worker(peer.user, &["mapped", big]),
        }
        .map_err(|e| format!("{}: {} on {}: {e}", self.row.name, peer.name, self.tree.name))
    }
}
