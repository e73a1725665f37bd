//! What the daemon holds, and that it stays what it was: the later half of a life of the daemon against the earlier, and
//! one life against another at the same age.

/// Fewer samples of a life say nothing.
const SAMPLES: usize = 6;

/// What the daemon holds.
#[derive(Debug, Clone, Copy)]
pub struct Holds {
    /// Without those of rings.
    pub descriptors: u64,
    /// Without those of rings.
    pub threads: u64,
    /// Threads of rings: a view has the same number of them all its life.
    pub rings: u64,
    pub bytes: u64,
}

/// Samples of each of the daemon's lives, at equal distances.
pub struct Lives {
    lives: Vec<Vec<Holds>>,
    compared: usize,
}

impl Lives {
    pub fn new() -> Self {
        Self { lives: vec![Vec::new()], compared: 0 }
    }

    pub fn sample(&mut self, holds: Holds) {
        self.lives.last_mut().expect("there is always one").push(holds);
    }

    /// A life is over.
    pub fn next(&mut self) {
        self.halves();
        self.lives.push(Vec::new());
    }

    /// The last one is over, too. What was never compared is not known to be flat.
    pub fn end(mut self) -> usize {
        self.halves();
        // The first began with an empty store.
        if let [_, second, .., last] = &self.lives[..] {
            let age = second.len().min(last.len());
            if age >= SAMPLES {
                flat("one life after another, at the same age", &second[..age], &last[..age]);
                self.compared += 1;
            }
        }
        assert!(self.compared > 0, "no life was long enough to be compared with anything");
        self.compared
    }

    fn halves(&mut self) {
        let life = self.lives.last().expect("there is always one");
        if life.len() >= SAMPLES {
            let (before, after) = life.split_at(life.len() / 2);
            flat("in one life", before, after);
            self.compared += 1;
        }
    }
}

/// The most; but of threads the least: views have some twenty each and come and go, and one that should have gone is there in all
/// samples.
fn flat(when: &str, before: &[Holds], after: &[Holds]) {
    let sorted = |part: &[Holds], of: fn(&Holds) -> u64| {
        let mut all: Vec<_> = part.iter().map(of).collect();
        all.sort_unstable();
        all
    };
    for (what, of, some, most) in [
        ("descriptors", (|h: &Holds| h.descriptors) as fn(&Holds) -> u64, 30, true),
        ("threads", |h| h.threads, 4, false),
        ("bytes", |h| h.bytes, 16 << 20, true),
    ] {
        let figure = |part: &[Holds]| {
            let all = sorted(part, of);
            (if most { all.last() } else { all.first() }).copied().unwrap_or(0)
        };
        let (before, after) = (figure(before), figure(after));
        assert!(after <= before * 5 / 4 + some, "its {what} grow, {when}: {before} at first, {after} later");
    }
}
