//! Samples, and what is said about them.

/// The samples of one row, tree and peer, in seconds.
pub struct Cell {
    pub row: String,
    pub title: String,
    pub tree: String,
    pub peer: String,
    pub samples: Vec<f64>,
    /// What the time over the baseline should not exceed.
    pub target: Option<f64>,
}

/// All that was measured, in order.
#[derive(Default)]
pub struct Results {
    pub cells: Vec<Cell>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

impl Results {
    /// Adds a sample to a row.
    pub fn add(&mut self, row: &str, title: &str, tree: &str, peer: &str, target: Option<f64>, seconds: f64) {
        let found = self.cells.iter_mut().find(|c| c.row == row && c.tree == tree && c.peer == peer);
        match found {
            Some(cell) => cell.samples.push(seconds),
            None => self.cells.push(Cell {
                row: row.into(),
                title: title.into(),
                tree: tree.into(),
                peer: peer.into(),
                samples: vec![seconds],
                target: target.filter(|t| t.is_finite()),
            }),
        }
    }

    /// One row's cell of a peer.
    pub fn cell(&self, row: &str, tree: &str, peer: &str) -> Option<&Cell> {
        self.cells.iter().find(|c| c.row == row && c.tree == tree && c.peer == peer)
    }
}

impl Cell {
    /// The middle sample; of an even number, the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
    }

    /// The smallest and the largest sample.
    pub fn spread(&self) -> (f64, f64) {
        let least = self.samples.iter().copied().fold(f64::INFINITY, f64::min);
        (least, self.samples.iter().copied().fold(0.0, f64::max))
    }
}
