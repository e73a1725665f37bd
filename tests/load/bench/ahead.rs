//! How far the read-only view is ahead of every other FUSE file system.
//!
//! It has to be twice as fast where data or metadata are not in the page cache yet, and not slower anywhere else.

use crate::stats::{Cell, Results, ratio};

const FUSE: [&str; 5] = ["fuse-overlayfs", "bindfs", "mergerfs", "squashfuse", "buildbox-fuse"];
const COLD: f64 = 2.0;

/// A row on a tree: the fastest of the others, and how many times faster the view is.
pub struct Ahead<'a> {
    pub cell: &'a Cell,
    pub peer: &'a str,
    pub times: f64,
    pub wanted: f64,
}

impl Ahead<'_> {
    /// Whether it is as far ahead as it must be.
    pub fn met(&self) -> bool {
        self.times >= self.wanted
    }

    /// In the words of a table.
    pub fn text(&self) -> String {
        let missed = if self.met() { "" } else { "!" };
        format!("{} times {} >={}{missed}", ratio(self.times), self.peer, self.wanted)
    }
}

/// All reading rows that were measured through the view and at least one other.
pub fn all(results: &Results) -> Vec<Ahead<'_>> {
    let ours = results.cells.iter().filter(|c| c.row.starts_with("read-") && c.peer == "outfs ro");
    ours.filter_map(|cell| {
        let others =
            FUSE.iter().filter_map(|peer| Some((*peer, results.cell(&cell.row, &cell.tree, peer)?.median())));
        let (peer, best) = others.min_by(|a, b| a.1.total_cmp(&b.1))?;
        let wanted = if cell.row.ends_with("-cold") { COLD } else { 1.0 };
        Some(Ahead { cell, peer, times: best / cell.median(), wanted })
    })
    .collect()
}
