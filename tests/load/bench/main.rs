//! Measures outfs beside its peers: same trees, one run, interleaved. Started by `scripts/bench`.
//!
//! Each measurement runs in a process of its own (`worker.rs`), so that it can run as an ordinary user and leaves
//! nothing behind; the worker takes the time itself, so that starting a process is in no figure.
//! Must not know: how outfs works inside; it uses the command line and mounts, as everybody does.

mod ahead;
mod cas;
mod curves;
#[path = "../fill.rs"]
mod fill;
mod growth;
mod hash;
mod kept;
mod options;
mod page;
mod peers;
mod place;
mod reading;
mod report;
mod restoring;
mod rows;
mod stats;
mod svg;
mod trees;
mod worker;
mod writing;

use std::process::ExitCode;

use options::Options;
use place::Place;
use stats::Results;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "worker") {
        return worker::main(&args[1..]);
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bench: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<(), String> {
    let options = Options::parse(args)?;
    let place = Place::new(&options)?;
    let mut results = Results { unjudged: options.mode == options::Mode::Smoke, ..Results::default() };
    let started = std::time::Instant::now();
    if options.growth {
        growth::measure(&place, &options, &mut results)?;
    } else {
        reading::measure(&place, &options.leaving(0.45), &mut results)?;
        restoring::measure(&place, &options.leaving(0.3), &mut results)?;
        writing::measure(&place, &options, &mut results)?;
    }
    report::print(&results, &options);
    if options.write {
        let quoted = |a: &String| if a.contains('|') { format!(" '{a}'") } else { format!(" {a}") };
        let shown = args.iter().filter(|a| *a != "--write").map(quoted).collect::<String>();
        page::write(results, &place, &shown)?;
    }
    println!("\nmeasured in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}
