//! What earlier runs left in docs/benchmarks/results.json, so that a part can be measured again alone.
//!
//! Invariant: the figures of a row on a tree are all from one run; a new run replaces all of them.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::curves::Curve;
use crate::stats::{Cell, Results, ratio};

/// A run: how it was started, on what, and what was left out.
#[derive(Serialize, Deserialize)]
pub struct Run {
    pub how: String,
    pub machine: Vec<(String, String)>,
    pub notes: Vec<String>,
}

/// All runs that figures are still from.
pub struct Kept {
    pub runs: Vec<Run>,
    pub results: Results,
}

/// A cell, and what follows from it and others (for programs that only read).
#[derive(Serialize)]
struct Figure<'a> {
    #[serde(flatten)]
    cell: &'a Cell,
    median: f64,
    over_baseline: Option<String>,
    met: Option<bool>,
}

#[derive(Serialize)]
struct Written<'a> {
    runs: &'a [Run],
    results: Vec<Figure<'a>>,
    curves: &'a [Curve],
}

#[derive(Deserialize)]
struct Read {
    runs: Vec<Run>,
    results: Vec<Cell>,
    #[serde(default)]
    curves: Vec<Curve>,
}

/// The new run with what it did not measure of those in the file.
pub fn merge(path: &Path, run: Run, results: Results) -> Kept {
    let old = fs::read(path).ok().and_then(|text| match serde_json::from_slice::<Read>(&text) {
        Ok(old) => Some(old),
        Err(e) => {
            eprintln!("{} is replaced: {e}", path.display());
            None
        }
    });
    let old = old.unwrap_or(Read { runs: vec![], results: vec![], curves: vec![] });
    let mut all = Kept { runs: old.runs, results: Results { notes: vec![], ..results } };
    let new = all.runs.len();
    all.runs.push(run);
    let Results { cells, curves, .. } = &mut all.results;
    cells.iter_mut().for_each(|c| c.run = new);
    curves.iter_mut().for_each(|c| c.run = new);
    let again = |c: &Cell| cells.iter().any(|n| n.row == c.row && n.tree == c.tree);
    let mut kept: Vec<_> = old.results.into_iter().filter(|c| !again(c)).collect();
    kept.append(cells);
    *cells = kept;
    let again = |c: &Curve| curves.iter().any(|n| n.chart == c.chart);
    let mut kept: Vec<_> = old.curves.into_iter().filter(|c| !again(c)).collect();
    kept.append(curves);
    *curves = kept;
    all.forget();
    all
}

impl Kept {
    /// Drops runs that no figure is from any more, and orders what is left as a full run does.
    fn forget(&mut self) {
        let Results { cells, curves, .. } = &mut self.results;
        let used = |n: usize| cells.iter().any(|c| c.run == n) || curves.iter().any(|c| c.run == n);
        let used: Vec<_> = (0..self.runs.len()).filter(|n| used(*n)).collect();
        let place = |run: usize| used.iter().position(|n| *n == run).unwrap_or(0);
        cells.iter_mut().for_each(|c| c.run = place(c.run));
        curves.iter_mut().for_each(|c| c.run = place(c.run));
        let mut n = 0;
        self.runs.retain(|_| {
            n += 1;
            used.contains(&(n - 1))
        });
        let part = |c: &Cell| ["read-", "restore-", "write-"].iter().position(|p| c.row.starts_with(p));
        cells.sort_by_key(part);
        curves.sort_by(|a, b| a.chart.cmp(&b.chart));
    }

    /// As JSON.
    pub fn json(&self) -> Result<String, String> {
        let results = &self.results;
        let figure = |cell| Figure {
            cell,
            median: Cell::median(cell),
            over_baseline: results.base(cell).map(|base| ratio(cell.median() / base)),
            met: results.strain(cell).map(|s| s <= 1.0),
        };
        let all = Written {
            runs: &self.runs,
            results: results.cells.iter().map(figure).collect(),
            curves: &results.curves,
        };
        serde_json::to_string_pretty(&all).map(|text| text + "\n").map_err(|e| format!("as JSON: {e}"))
    }
}
