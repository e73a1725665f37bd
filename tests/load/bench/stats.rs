//! Samples, and what is said about them.

use serde::{Deserialize, Serialize};

use crate::curves::Curve;

/// What a figure must not exceed.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Times the baseline.
    Times(f64),
    /// Seconds.
    Seconds(f64),
}

/// What a sample is of.
#[derive(Clone, Copy)]
pub struct Point<'a> {
    /// The row's short name and what it means.
    pub row: &'a str,
    pub title: &'a str,
    pub tree: &'a str,
    pub peer: &'a str,
    /// The peer that others are divided by.
    pub base: &'a str,
    pub target: Option<Target>,
}

/// The samples of one row, tree and peer, in seconds.
#[derive(Serialize, Deserialize)]
pub struct Cell {
    pub row: String,
    pub title: String,
    pub tree: String,
    pub peer: String,
    #[serde(rename = "baseline")]
    pub base: String,
    pub target: Option<Target>,
    #[serde(rename = "seconds")]
    pub samples: Vec<f64>,
    /// Which of the runs it is from.
    #[serde(default)]
    pub run: usize,
}

/// All that was measured, in order.
#[derive(Default)]
pub struct Results {
    pub cells: Vec<Cell>,
    /// How costs grow.
    pub curves: Vec<Curve>,
    /// What the trees are, and what was left out and why.
    pub notes: Vec<String>,
    /// Whether figures are only there to see that all works.
    pub unjudged: bool,
}

impl Results {
    /// Adds a sample to a row.
    pub fn add(&mut self, p: Point, seconds: f64) {
        let found = self.cells.iter_mut().find(|c| c.row == p.row && c.tree == p.tree && c.peer == p.peer);
        match found {
            Some(cell) => cell.samples.push(seconds),
            None => self.cells.push(Cell {
                row: p.row.into(),
                title: p.title.into(),
                tree: p.tree.into(),
                peer: p.peer.into(),
                base: p.base.into(),
                target: p.target.filter(|_| !self.unjudged),
                samples: vec![seconds],
                run: 0,
            }),
        }
    }

    /// One row's cell of a peer.
    pub fn cell(&self, row: &str, tree: &str, peer: &str) -> Option<&Cell> {
        self.cells.iter().find(|c| c.row == row && c.tree == tree && c.peer == peer)
    }

    /// The baseline's median for a cell.
    pub fn base(&self, cell: &Cell) -> Option<f64> {
        self.cell(&cell.row, &cell.tree, &cell.base).map(Cell::median)
    }

    /// The cell's figure over its target: above 1, it missed.
    pub fn strain(&self, cell: &Cell) -> Option<f64> {
        match cell.target? {
            Target::Times(times) => Some(cell.median() / self.base(cell)? / times),
            Target::Seconds(seconds) => Some(cell.median() / seconds),
        }
    }

    /// The trees in order.
    pub fn trees(&self) -> Vec<&str> {
        distinct(self.cells.iter().map(|c| c.tree.as_str()))
    }

    /// The rows and peers of a tree in order.
    pub fn table(&self, tree: &str) -> (Vec<&Cell>, Vec<&str>) {
        let cells = || self.cells.iter().filter(|c| c.tree == tree);
        let rows = distinct(cells().map(|c| c.row.as_str()));
        let first = rows.iter().filter_map(|row| cells().find(|c| c.row == *row)).collect();
        (first, distinct(cells().map(|c| c.peer.as_str())))
    }
}

fn distinct<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut some = vec![];
    all.for_each(|one| {
        if !some.contains(&one) {
            some.push(one)
        }
    });
    some
}

impl Cell {
    /// The median of the samples.
    pub fn median(&self) -> f64 {
        median(&self.samples)
    }

    /// The smallest and the largest sample.
    pub fn spread(&self) -> (f64, f64) {
        let least = self.samples.iter().copied().fold(f64::INFINITY, f64::min);
        (least, self.samples.iter().copied().fold(0.0, f64::max))
    }
}

/// The middle one; of an even number, the mean of the two in the middle.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// Three digits that count.
pub fn ratio(value: f64) -> String {
    match value {
        v if v < 0.1 => format!("{v:.4}"),
        v if v < 10.0 => format!("{v:.2}"),
        v => format!("{v:.0}"),
    }
}

/// Seconds in a unit that fits.
pub fn seconds(value: f64) -> String {
    match value {
        v if v < 1e-3 => format!("{:.0} us", v * 1e6),
        v if v < 1.0 => format!("{:.1} ms", v * 1e3),
        v => format!("{v:.2} s"),
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Target::Times(times) => write!(f, "{times}"),
            Target::Seconds(s) => write!(f, "{}", seconds(*s)),
        }
    }
}
