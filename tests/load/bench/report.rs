//! What was measured, as tables on the terminal.

use crate::ahead;
use crate::curves;
use crate::options::{Mode, Options};
use crate::stats::{Cell, Results, Target, ratio, seconds};

/// Prints a table for each tree, then what missed its target.
pub fn print(results: &Results, options: &Options) {
    for tree in results.trees() {
        println!("\n{tree}: time over the first column, least to most; ! misses its target");
        table(results, tree);
    }
    for chart in results.charts() {
        println!("\n{}", chart[0].title);
        for row in curves::rows(&chart) {
            let (x, values) = row.split_first().expect("a row begins with x");
            println!("{x:<38}{}", values.iter().map(|v| format!("{v:<16}")).collect::<String>().trim_end());
        }
    }
    results.notes.iter().for_each(|note| println!("{note}"));
    if options.mode != Mode::Smoke && !results.cells.is_empty() {
        verdict(results);
        ahead(results);
    }
}

fn table(results: &Results, tree: &str) {
    let (rows, peers) = results.table(tree);
    let texts: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            peers
                .iter()
                .map(|p| results.cell(&row.row, tree, p).map_or("-".into(), |c| text(results, c)))
                .collect()
        })
        .collect();
    let wide = |n: usize| texts.iter().map(|t| t[n].len()).chain([peers[n].len()]).max().unwrap_or(0) + 2;
    let widths: Vec<_> = (0..peers.len()).map(wide).collect();
    print!("{:<22}", "");
    peers.iter().zip(&widths).for_each(|(peer, width)| print!("{peer:<width$}"));
    println!();
    for (row, texts) in rows.iter().zip(&texts) {
        print!("{:<22}", row.row);
        texts.iter().zip(&widths).for_each(|(text, width)| print!("{text:<width$}"));
        println!();
    }
}

/// `1.23 1.18-1.40 <=1.25`; the baseline shows its time.
pub fn text(results: &Results, cell: &Cell) -> String {
    let (least, most) = cell.spread();
    let base = results
        .base(cell)
        .filter(|_| cell.peer != cell.base && !matches!(cell.target, Some(Target::Seconds(_))));
    let mut text = match base {
        Some(base) => {
            format!("{} {}-{}", ratio(cell.median() / base), ratio(least / base), ratio(most / base))
        }
        None => {
            let median = cell.median();
            format!("{} {}-{}", seconds(median), ratio(least / median), ratio(most / median))
        }
    };
    if let (Some(target), Some(strain)) = (cell.target, results.strain(cell)) {
        text += &format!(" <={target}{}", if strain > 1.0 { "!" } else { "" });
    }
    text
}

/// The read-only view beside the fastest other FUSE file system.
fn ahead(results: &Results) {
    let all = ahead::all(results);
    let behind: Vec<_> = all.iter().filter(|a| !a.met()).collect();
    println!("\nahead of every FUSE peer as wanted in {} of {} rows", all.len() - behind.len(), all.len());
    for a in behind {
        println!("  {:<22} {:<10} {}", a.cell.row, a.cell.tree, a.text());
    }
}

fn verdict(results: &Results) {
    let judged: Vec<_> = results.cells.iter().filter_map(|c| Some((results.strain(c)?, c))).collect();
    let mut missed: Vec<_> = judged.iter().filter(|(strain, _)| *strain > 1.0).collect();
    missed.sort_by(|a, b| b.0.total_cmp(&a.0));
    println!("\n{} targets met, {} missed", judged.len() - missed.len(), missed.len());
    for (_, cell) in missed {
        println!(
            "  {:<22} {:<10} {:<11} {} ({})",
            cell.row,
            cell.tree,
            cell.peer,
            text(results, cell),
            cell.title
        );
    }
}
