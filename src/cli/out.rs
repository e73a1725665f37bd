//! What reaches the terminal: escaped text, JSON, tables, byte streams, progress.
//!
//! Invariant: no control character of a path, key or metadata is printed as such; JSON has the exact
//! text. A reader that goes away is no error.

use std::cell::Cell;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::control::{Channel, Failure, Kind, Progress, RawPath};
use crate::model::units::human_bytes;

/// Text without control characters, for a terminal or a line-based reader.
pub(super) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || hides(c) {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// As [`clean`]; bytes that are not UTF-8 become `\xNN`.
pub(super) fn clean_path(path: &RawPath) -> String {
    path.as_bytes().utf8_chunks().fold(String::new(), |mut out, chunk| {
        out.push_str(&clean(chunk.valid()));
        for b in chunk.invalid() {
            let _ = write!(out, "\\x{b:02x}");
        }
        out
    })
}

/// An error of writing to standard output.
pub(super) fn unwritable(e: io::Error) -> Failure {
    match e.kind() {
        io::ErrorKind::BrokenPipe => Failure::new(Kind::Hangup, "the output was closed"),
        _ => Failure::failed(format!("cannot write the output: {e}")),
    }
}

/// Prints a line as it is; the caller has cleaned it.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).map_err(unwritable)
}

/// Prints a value as one line of JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text =
        serde_json::to_string(value).map_err(|e| Failure::failed(format!("cannot print JSON: {e}")))?;
    line(&harmless_json(text))
}

/// JSON need not escape all that a terminal obeys: DEL, the controls from U+0080 on, and what hides text. These stand in
/// strings only, and mean the same escaped.
fn harmless_json(text: String) -> String {
    let obeyed = |c: char| c.is_control() || hides(c);
    if !text.contains(obeyed) {
        return text;
    }
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match obeyed(c) {
            true => drop(write!(out, "\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
        out
    })
}

/// Bidirectional overrides and the like make text look like other text.
fn hides(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// With `--json` a failure is a record, too, with its kind: whoever reads need not understand what is said beside the output.
pub(super) fn or_record<T>(as_json: bool, done: Result<T, Failure>) -> Result<T, Failure> {
    if let Err(failure) = &done
        && as_json
        && failure.kind != Kind::Hangup
    {
        json(&serde_json::json!({ "error": failure.message, "kind": failure.kind }))?;
    }
    done
}

/// Says something beside the output.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "outfs: {text}");
}

/// `2026-01-02T03:04:05Z`: to the second.
pub(super) fn time(t: jiff::Timestamp) -> String {
    jiff::Timestamp::from_second(t.as_second()).unwrap_or(t).to_string()
}

/// A table of columns; the last one is not padded.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    right: &'static [usize],
}

impl Table {
    /// With a heading; the columns numbered in `right` hold numbers.
    pub(super) fn new(heading: &[&str], right: &'static [usize]) -> Self {
        Self { rows: vec![heading.iter().map(|h| (*h).to_owned()).collect()], right }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Prints all rows; only the heading when there are no others.
    pub(super) fn print(&self) -> Result<(), Failure> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| self.rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
        let mut out = io::BufWriter::new(io::stdout().lock());
        for row in &self.rows {
            let mut text = String::new();
            for (c, cell) in row.iter().enumerate() {
                let pad = widths[c] - cell.chars().count();
                let last = c + 1 == row.len();
                if self.right.contains(&c) {
                    let _ = write!(text, "{:pad$}{cell}", "");
                } else if last {
                    text.push_str(cell);
                } else {
                    let _ = write!(text, "{cell}{:pad$}", "");
                }
                text.push_str(if last { "" } else { "  " });
            }
            let text = format!("{}\n", text.trim_end());
            out.write_all(text.as_bytes()).map_err(unwritable)?;
        }
        out.flush().map_err(unwritable)
    }
}

/// How often figures change.
const SHOW_EVERY: Duration = Duration::from_millis(50);

/// Progress on a terminal, nothing elsewhere.
#[derive(Clone)]
pub(super) struct Meter {
    bar: ProgressBar,
    what: String,
    /// When a figure was shown last.
    last: Cell<Option<Instant>>,
}

impl Meter {
    pub(super) fn silent() -> Self {
        Self { bar: ProgressBar::hidden(), what: String::new(), last: Cell::default() }
    }

    /// Shows `what` from the start, numbers when they come.
    pub(super) fn start(what: &str) -> Self {
        if !io::stderr().is_terminal() {
            return Self::silent();
        }
        let bar = ProgressBar::new_spinner().with_message(clean(what));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar, what: clean(what), last: Cell::default() }
    }

    /// Shows how much of what it was started for is done, as often as people can read.
    pub(super) fn figure(&self, figure: impl FnOnce() -> String) {
        let soon = self.last.get().is_some_and(|at| at.elapsed() < SHOW_EVERY);
        if !soon && !self.bar.is_hidden() {
            self.last.set(Some(Instant::now()));
            self.bar.set_message(format!("{}: {}", self.what, figure()));
        }
    }

    /// Takes it off the terminal.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    fn show(&self, progress: &Progress) {
        if let Some(total) = progress.total
            && self.bar.length() != Some(total)
        {
            self.bar.set_length(total);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{wide_bar}] {percent}% {eta}") {
                self.bar.set_style(style);
            }
        }
        self.bar.set_message(clean(&progress.what));
        self.bar.set_position(progress.done);
    }
}

/// The streams beside a request: from an input, to an output, with a meter.
pub(super) struct Streams {
    input: Counted<Box<dyn Read>>,
    pub(super) output: Box<dyn Write>,
    meter: Meter,
    written: u64,
}

/// A reader that shows how much was read.
struct Counted<R> {
    inner: R,
    meter: Meter,
    read: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.read += n as u64;
        self.meter.figure(|| format!("{} read", human_bytes(self.read)));
        Ok(n)
    }
}

impl Streams {
    /// Standard output, no input.
    pub(super) fn to_stdout() -> Self {
        Self::with(Box::new(io::empty()), Meter::silent())
    }

    /// All of it is written. What is left when a program ends is lost without a word.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        self.output.flush().map_err(unwritable)
    }

    fn with(input: Box<dyn Read>, meter: Meter) -> Self {
        let input = Counted { inner: input, meter: meter.clone(), read: 0 };
        Self { input, output: Box::new(io::stdout()), meter, written: 0 }
    }

    /// No streams, only a meter.
    pub(super) fn metered(what: &str) -> Self {
        Self::with(Box::new(io::empty()), Meter::start(what))
    }

    /// An input and a meter.
    pub(super) fn reading(input: Box<dyn Read>, what: &str) -> Self {
        Self::with(input, Meter::start(what))
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.meter.clear();
    }
}

impl Channel for Streams {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        self.written += bytes.len() as u64;
        self.meter.figure(|| format!("{} written", human_bytes(self.written)));
        Ok(())
    }
    fn input(&mut self) -> &mut dyn Read {
        &mut self.input
    }
    fn progress(&mut self, progress: Progress) {
        self.meter.show(&progress);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_that_steers_it() {
        assert_eq!(clean("a\x1b[31m\n\u{202e}é"), "a\\u{1b}[31m\\n\\u{202e}é");
        assert_eq!(clean_path(&RawPath::from_bytes(b"x\xff\x07y")), "x\\xff\\u{7}y");
    }
}
