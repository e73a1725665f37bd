//! What `outfs run` says: what happens on standard error, the command's output where it belongs, a plan as a table.

use std::io::{self, Write};
use std::time::Duration;

use super::out;
use crate::control::Failure;
use crate::run::{Held, Parts, Reason, Report, Sink, Voice, shell_words};

/// Reasons that are printed; the rest is counted.
const SHOWN: usize = 10;

/// Says what happens on standard error; the command's output goes where it belongs.
pub(super) struct Teller {
    /// Its task, for people.
    task: String,
    /// The last line on standard output has no end.
    pub open: bool,
    /// Why output is lost.
    pub lost: Option<io::Error>,
}

impl Teller {
    pub(super) fn new(task: &str) -> Teller {
        Teller { task: out::clean(task), open: false, lost: None }
    }
}

impl Sink for Teller {
    fn wrote(&mut self, stderr: bool, bytes: &[u8]) {
        let done = match stderr {
            true => return drop(io::stderr().write_all(bytes)),
            false => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
        };
        self.open = bytes.last().map_or(self.open, |last| *last != b'\n');
        // A reader that went away is no reason to end the command, and wants no more.
        if let Err(e) = done
            && e.kind() != io::ErrorKind::BrokenPipe
        {
            self.lost.get_or_insert(e);
        }
    }
}

impl Voice for Teller {
    fn miss(&mut self, reasons: &[Reason]) {
        for reason in reasons.iter().take(SHOWN) {
            out::note(&format!("run {}: {}", self.task, out::clean(&reason.to_string())));
        }
        if reasons.len() > SHOWN {
            out::note(&format!("run {}: and {} more reasons", self.task, reasons.len() - SHOWN));
        }
    }

    fn hit(&mut self, held: &Held) {
        let age = jiff::Timestamp::now().duration_since(held.made_at);
        out::note(&format!(
            "hit {}: saved {}, made {} ago",
            self.task,
            for_people(Duration::from_millis(held.duration_ms)),
            for_people(age.try_into().unwrap_or_default())
        ));
    }

    fn wait(&mut self, pid: Option<u32>) {
        let who = pid.map_or("another process".into(), |pid| format!("process {pid}"));
        out::note(&format!("waiting for {who}, which runs {} already", self.task));
    }

    fn wait_turn(&mut self, pid: Option<u32>) {
        let who = pid.map_or("another process".into(), |pid| format!("process {pid}"));
        out::note(&format!("waiting for {who}, which writes the same outputs"));
    }

    fn warn(&mut self, what: &str) {
        out::note(&out::clean(&format!("warning: {what}")));
    }

    fn fail(&mut self, what: &str) {
        out::note(&out::clean(what));
    }
}

/// `1.2 s`, `5 min`: the two leading figures of a time.
fn for_people(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 1.0 => format!("{} ms", time.as_millis()),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86400.0),
    }
}

/// A report on a line of its own, whatever the command printed: `open` says that it ended in the middle of one.
pub(super) fn print_json(report: &Report, open: bool) -> Result<(), Failure> {
    if open {
        out::line("")?;
    }
    out::json(report)
}

/// All parts of a key, and what would happen.
pub(super) fn print_plan(report: &Report, parts: &Parts) -> Result<(), Failure> {
    let one = |name: &str, value: &str| out::line(&format!("{name:<10} {}", out::clean(value)));
    one("task", &report.task)?;
    one("key", report.key.as_ref().map_or("", |k| k.as_str()))?;
    one("command", &shell_words(&parts.argv))?;
    one("program", &parts.program)?;
    one("directory", if parts.cwd.is_empty() { "." } else { &parts.cwd })?;
    one("platform", &parts.platform)?;
    one("sandbox", &parts.sandbox)?;
    one("network", &parts.network)?;
    let maps = [
        ("tool", &parts.tools),
        ("env", &parts.env),
        ("secret", &parts.secrets),
        ("param", &parts.params),
        ("after", &parts.after),
        ("from", &parts.from),
        ("base", &parts.base),
    ];
    for (name, map) in maps {
        for (k, v) in map {
            one(name, &format!("{k} {v}"))?;
        }
    }
    for output in &parts.outputs {
        one("output", output)?;
    }
    for input in &parts.inputs {
        one("input", &input.to_string())?;
    }
    match report.reasons.is_empty() {
        true => one("would", "hit")?,
        false => report.reasons.iter().try_for_each(|r| one("would run", &r.to_string()))?,
    }
    report.refused.iter().try_for_each(|why| one("refused", why))
}

/// What came out otherwise when a hit ran again.
pub(super) fn print_differences(differs: &[String]) {
    if differs.is_empty() {
        out::note("verified: the same result again");
    }
    for path in differs {
        out::note(&out::clean(&format!("differs: {path}")));
    }
}
