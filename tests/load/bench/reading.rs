//! Reading: every row on every tree through every peer, peers taking turns within each round.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::options::{Mode, Options};
use crate::peers::{self, Peer};
use crate::place::{self, Place};
use crate::rows::{READING, Reading, VIEWS, Work};
use crate::stats::{Point, Results, Target};
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
    command.args(["-k", "5", "900"]).arg(program).arg("worker").args(args);
    place::become_user(&mut command, user);
    place::output(&mut command)
}

/// A path as an argument of a worker.
pub fn text(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or(format!("{} is no text", path.display()))
}

/// Trees whose figures are judged; of the others there are fewer rows.
const JUDGED: [&str; 5] = ["source", "source-8k", "source-2k", "big", "quarter-big"];
const FEW: [&str; 3] = ["read-1", "read-find", "read-ls"];

/// Measures all reading rows that are wanted.
pub fn measure(place: &Place, options: &Options, results: &mut Results) -> Result<(), String> {
    for name in trees::NAMES.into_iter().filter(|n| options.wants_tree(n)) {
        let fits = |r: &&Reading| {
            r.big == trees::is_big(name) && (name != "target" && name != "tiny" || FEW.contains(&r.name))
        };
        let wanted =
            |r: &&Reading| wants(options, r, "cold").is_some() || wants(options, r, "warm").is_some();
        let rows: Vec<_> = READING.iter().filter(fits).filter(wanted).collect();
        if rows.is_empty() {
            continue;
        }
        let started = Instant::now();
        let tree = trees::make(place, name)?;
        let list = place.run.join(format!("{name}.list"));
        fs::write(&list, tree.files.join("\n")).map_err(|e| format!("writing {}: {e}", list.display()))?;
        let mut served = peers::serve(place, &tree, options, &mut results.notes)?;
        same_bytes(&tree, &mut served.peers, &mut results.notes)?;
        results.notes.push(format!("{name}: {} files, {} MB", tree.files.len(), tree.bytes / 1_000_000));
        eprintln!("{name}: set up in {:.0} s", started.elapsed().as_secs_f64());
        Run { rows, tree: &tree, list: text(&list)?, options }.all(&served.peers, results)?;
    }
    Ok(())
}

/// The row's targets in a state, if that is wanted.
fn wants(options: &Options, row: &Reading, state: &str) -> Option<[f64; 3]> {
    let targets = if state == "cold" { row.cold } else { row.warm };
    targets.filter(|_| options.wants_row(&format!("{}-{state}", row.name)))
}

/// Nothing is reported when a peer shows other bytes than native; one that cannot be read at all is left out.
pub fn same_bytes(tree: &Tree, peers: &mut Vec<Peer>, notes: &mut Vec<String>) -> Result<(), String> {
    let (mut native, mut other) = (None, None);
    peers.retain(|peer| match text(&peer.root).and_then(|root| worker_output(peer.user, &["tree", root])) {
        Ok(hash) => {
            let native = native.get_or_insert_with(|| hash.clone());
            if *native != hash {
                other = Some(peer.name);
            }
            true
        }
        Err(e) if !peer.name.starts_with("outfs") => {
            notes.push(format!("{} left out: {}: {e}", peer.name, tree.name));
            false
        }
        Err(e) => {
            notes.push(e);
            other = Some(peer.name);
            true
        }
    });
    match other {
        Some(name) => Err(format!(
            "{}: {name} shows other bytes than native: nothing is reported\n{}",
            tree.name,
            notes.join("\n")
        )),
        None => Ok(()),
    }
}

struct Run<'a> {
    rows: Vec<&'a Reading>,
    tree: &'a Tree,
    list: &'a str,
    options: &'a Options,
}

impl Run<'_> {
    /// Peers take turns. Whoever comes first may find the disk in another state, so each round begins with another one.
    fn all(&self, peers: &[Peer], results: &mut Results) -> Result<(), String> {
        let mut spent: HashMap<&str, f64> = HashMap::new();
        let mut last = Duration::ZERO;
        for round in 0..self.options.repeat {
            if round > 0 && !self.options.has_time(last) {
                results.notes.push(format!("{}: out of time after {round} rounds", self.tree.name));
                break;
            }
            let began = Instant::now();
            let (before, after) = peers.split_at(round % peers.len());
            for peer in after.iter().chain(before) {
                let started = Instant::now();
                let spent = spent.entry(peer.name).or_default();
                let patient = peer.name == "native" || peer.name.starts_with("outfs");
                if patient || *spent < self.options.patience().as_secs_f64() {
                    self.turn(peer, results)?;
                }
                *spent += started.elapsed().as_secs_f64();
            }
            last = began.elapsed();
            eprintln!("{}: round {} in {:.0} s", self.tree.name, round + 1, last.as_secs_f64());
        }
        Ok(())
    }

    /// All rows of one peer: those with a cold state first, which warm the rest.
    fn turn(&self, peer: &Peer, results: &mut Results) -> Result<(), String> {
        let mut hot = false;
        for row in &self.rows {
            if let Some(targets) = wants(self.options, row, "cold") {
                place::drop_caches()?;
                let took = self.work(row, peer)?;
                self.add(results, row, peer, "cold", targets, took);
                hot = true;
            }
            if let Some(targets) = wants(self.options, row, "warm") {
                if !hot || row.cold.is_none() && !row.big {
                    self.warm_up(row, peer)?;
                    hot = true;
                }
                self.warm(row, peer, targets, results)?;
            }
        }
        Ok(())
    }

    /// What is short is measured three times, for a steadier median.
    fn warm(
        &self,
        row: &Reading,
        peer: &Peer,
        targets: [f64; 3],
        results: &mut Results,
    ) -> Result<(), String> {
        let mut all = 0.0;
        for _ in 0..3 {
            let took = self.work(row, peer)?;
            self.add(results, row, peer, "warm", targets, took);
            all += took;
            if all > 0.5 || self.options.mode == Mode::Smoke {
                break;
            }
        }
        Ok(())
    }

    fn add(
        &self,
        results: &mut Results,
        row: &Reading,
        peer: &Peer,
        state: &str,
        targets: [f64; 3],
        took: f64,
    ) {
        let judged = JUDGED.contains(&self.tree.name);
        let view = VIEWS.iter().position(|v| *v == peer.name).filter(|_| judged);
        let point = Point {
            row: &format!("{}-{state}", row.name),
            title: &format!("{}, {state}", row.title),
            tree: self.tree.name,
            peer: peer.name,
            base: "native",
            target: view.map(|v| Target::Times(targets[v])),
        };
        results.add(point, took);
    }

    /// How pages came into the cache decides how large its folios are, so the large file is always read from its start.
    fn warm_up(&self, row: &Reading, peer: &Peer) -> Result<(), String> {
        if !row.big {
            return self.work(row, peer).map(drop);
        }
        place::drop_caches()?;
        worker(peer.user, &["sequential", text(&peer.root.join("big"))?]).map(drop)
    }

    fn work(&self, row: &Reading, peer: &Peer) -> Result<f64, String> {
        let root = text(&peer.root)?;
        let big = peer.root.join("big");
        let big = text(&big)?;
        match row.work {
            Work::ReadAll(threads) => worker(peer.user, &[&format!("read{threads}"), root, self.list]),
            Work::Program(args) => worker(peer.user, &[&["run", root], args].concat()),
            Work::Sequential => worker(peer.user, &["sequential", big]),
            Work::Random => worker(peer.user, &["random", big]),
            Work::Mapped => worker(peer.user, &["mapped", big]),
        }
        .map_err(|e| format!("{}: {} on {}: {e}", row.name, peer.name, self.tree.name))
    }
}
