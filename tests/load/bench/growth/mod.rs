//! How the cost grows: with the entries of a store, with the files of an entry, with readers and writers at once, and with
//! what entries share. Every chart has a line for outfs and for what comes closest to it.
//!
//! Invariant: all of it is written on a loop-mounted XFS, or read from trees that stay.

mod entries;
mod files;
mod parallel;
mod shared;
pub mod work;

use crate::options::{Mode, Options};
use crate::place::Place;
use crate::stats::Results;

/// Measures all charts.
pub fn measure(place: &Place, options: &Options, results: &mut Results) -> Result<(), String> {
    type Part = fn(&Place, &Options, &mut Results) -> Result<(), String>;
    let parts: [(&str, Part); 4] = [
        ("grow-entries", entries::measure),
        ("grow-files", files::measure),
        ("grow-parallel", parallel::measure),
        ("grow-shared", shared::measure),
    ];
    for (name, part) in parts {
        if options.wants_row(name) {
            let started = std::time::Instant::now();
            part(place, options, results).map_err(|e| format!("{name}: {e}"))?;
            eprintln!("{name} in {:.0} s", started.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

/// Steps of ten from `least`; few and small ones in a smoke test.
fn steps(options: &Options, least: u64, most: u64) -> Vec<u64> {
    match options.mode {
        Mode::Smoke => vec![least / 10, least / 5],
        _ => std::iter::successors(Some(least), |n| Some(n * 10)).take_while(|n| *n <= most).collect(),
    }
}

/// Rounds while there is time, at least one.
fn rounds(options: &Options, mut round: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    for n in 0..options.repeat {
        let started = std::time::Instant::now();
        round()?;
        if n + 1 < options.repeat && !options.has_time(started.elapsed()) {
            break;
        }
    }
    Ok(())
}
