//! What was measured, as a table.

use crate::options::{Mode, Options};
use crate::stats::{Cell, Results};

/// The first peer is what the others are divided by.
const NATIVE: &str = "native";

/// Prints a table for each tree, then what missed its target.
pub fn print(results: &Results, options: &Options) {
    let mut trees: Vec<&str> = vec![];
    results.cells.iter().for_each(|c| {
        if !trees.contains(&c.tree.as_str()) {
            trees.push(&c.tree)
        }
    });
    for tree in &trees {
        println!("\n{tree}: time over {NATIVE} (least to most); ! misses its target");
        table(results, tree);
    }
    results.notes.iter().for_each(|note| println!("{note}"));
    if options.mode != Mode::Smoke {
        verdict(results);
    }
}

fn table(results: &Results, tree: &str) {
    let (mut rows, mut peers): (Vec<&Cell>, Vec<&str>) = (vec![], vec![]);
    for cell in results.cells.iter().filter(|c| c.tree == tree) {
        if !rows.iter().any(|r| r.row == cell.row) {
            rows.push(cell);
        }
        if !peers.contains(&cell.peer.as_str()) {
            peers.push(&cell.peer);
        }
    }
    print!("{:<18}", "");
    peers.iter().for_each(|peer| print!("{peer:<0$}", width(peer)));
    println!();
    for row in rows {
        print!("{:<18}", row.row);
        let native = results.cell(&row.row, tree, NATIVE).map(Cell::median);
        for peer in &peers {
            let text = match (results.cell(&row.row, tree, peer), native) {
                (Some(cell), _) if *peer == NATIVE => {
                    let (least, most) = cell.spread();
                    format!(
                        "{} {}-{}",
                        seconds(cell.median()),
                        ratio(least / cell.median()),
                        ratio(most / cell.median())
                    )
                }
                (Some(cell), Some(native)) => over(cell, native),
                _ => "-".into(),
            };
            print!("{text:<0$}", width(peer));
        }
        println!();
    }
}

/// Columns of outfs have a target in them.
fn width(peer: &str) -> usize {
    if peer.starts_with("outfs") {
        24
    } else if peer == NATIVE {
        20
    } else {
        16
    }
}

/// `1.23 1.18-1.40 <=1.25`.
fn over(cell: &Cell, native: f64) -> String {
    let (least, most) = cell.spread();
    let mut text =
        format!("{} {}-{}", ratio(cell.median() / native), ratio(least / native), ratio(most / native));
    if let Some(target) = cell.target {
        let missed = if cell.median() / native > target { "!" } else { "" };
        text += &format!(" <={target}{missed}");
    }
    text
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

fn verdict(results: &Results) {
    let mut met = 0;
    let mut missed = vec![];
    for cell in &results.cells {
        let native = results.cell(&cell.row, &cell.tree, NATIVE).map(Cell::median);
        let (Some(native), Some(target)) = (native, cell.target) else { continue };
        let value = cell.median() / native;
        if value <= target {
            met += 1;
        } else {
            missed.push((
                value / target,
                format!(
                    "{:<18} {:<11} {:<11} {} > {target} ({})",
                    cell.row,
                    cell.tree,
                    cell.peer,
                    ratio(value),
                    cell.title
                ),
            ));
        }
    }
    missed.sort_by(|a, b| b.0.total_cmp(&a.0));
    println!(
        "\n{met} targets met, {} missed{}",
        missed.len(),
        if missed.is_empty() { "" } else { ", furthest first:" }
    );
    missed.iter().for_each(|(_, line)| println!("  {line}"));
}
