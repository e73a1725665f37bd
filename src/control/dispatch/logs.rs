//! A task's logs, page by page: lines with numbers, standard output first.
//!
//! Invariants: the lines of all pages, one behind the other, are the logs; a page is bounded in lines and in bytes,
//! however long a line is. Must not know: how they are shown.

use super::super::{Failure, Kind, LogLine, LogStream, Reply};
use super::held;
use crate::cache::{Cache, Entry};
use crate::model::groups::GROUP;
use crate::model::{EntryKey, RecordKind};

/// The most lines in one page.
const MOST_LINES: usize = 10_000;
/// A line that is longer comes in pieces, each with a number of its own.
const LINE: usize = 64 << 10;
/// A page ends behind so many bytes.
const PAGE_BYTES: usize = 4 << 20;

/// Lines from number `start` on.
pub(super) fn page(
    cache: &Cache,
    key: &EntryKey,
    stream: Option<LogStream>,
    (start, limit): (u64, usize),
) -> Result<Reply, Failure> {
    if limit > MOST_LINES {
        let message =
            format!("{limit} lines are more than the {MOST_LINES} of a page; ask for fewer, and go on");
        return Err(Failure::new(Kind::TooMany, message));
    }
    let entry = held(cache, key)?;
    let mut page = Page { start, limit, number: 0, bytes: 0, lines: Vec::new(), more: false };
    for log in [LogStream::Stdout, LogStream::Stderr] {
        if !page.more && stream.is_none_or(|wanted| wanted == log) {
            page.read(&entry, log)?;
        }
    }
    cache.touch(&entry);
    if start > page.number {
        let message = format!("line {start} is behind the end of the log, which has {} lines", page.number);
        return Err(Failure::new(Kind::BadCursor, message));
    }
    let next = start + page.lines.len() as u64;
    Ok(Reply::LogLines { lines: page.lines, next, more: page.more })
}

struct Page {
    start: u64,
    limit: usize,
    /// Of the line that comes next.
    number: u64,
    bytes: usize,
    lines: Vec<LogLine>,
    more: bool,
}

impl Page {
    fn read(&mut self, entry: &Entry, stream: LogStream) -> Result<(), Failure> {
        let manifest = entry.manifest()?;
        let file = |r: &u32| manifest.get(*r).is_some_and(|r| r.kind() == RecordKind::File);
        let Some(record) = manifest.find(stream.path().as_bytes()).filter(file) else { return Ok(()) };
        let mut buffer = vec![0; GROUP];
        let (mut offset, mut rest) = (0, Vec::new());
        loop {
            let n = entry.read(record, offset, &mut buffer)?;
            offset += n as u64;
            rest.extend_from_slice(&buffer[..n]);
            let mut taken = 0;
            while let Some(length) = line(&rest[taken..], n == 0) {
                if !self.take(&rest[taken..taken + length], stream) {
                    return Ok(());
                }
                taken += length;
            }
            rest.drain(..taken);
            if n == 0 {
                return Ok(());
            }
        }
    }

    /// Takes a line, if it belongs to the page; false when the page ends before it.
    fn take(&mut self, line: &[u8], stream: LogStream) -> bool {
        if self.number < self.start {
            self.number += 1;
            return true;
        }
        if self.lines.len() >= self.limit || self.bytes >= PAGE_BYTES {
            self.more = true;
            return false;
        }
        let text = String::from_utf8_lossy(line).into_owned();
        self.lines.push(LogLine { line: self.number, stream, text });
        self.bytes += line.len();
        self.number += 1;
        true
    }
}

/// How long the line is that begins here; `None` when its end is not there yet.
fn line(bytes: &[u8], last: bool) -> Option<usize> {
    match bytes.iter().take(LINE).position(|&b| b == b'\n') {
        Some(end) => Some(end + 1),
        None if bytes.len() >= LINE => Some(piece(bytes)),
        None => (last && !bytes.is_empty()).then_some(bytes.len()),
    }
}

/// A piece of a long line: not in the middle of a character.
fn piece(bytes: &[u8]) -> usize {
    let continues = |b: &u8| b & 0b1100_0000 == 0b1000_0000;
    let behind = bytes[..LINE].iter().rev().take(3).take_while(|b| continues(b)).count();
    let lead = LINE - 1 - behind;
    if bytes[lead] >= 0b1100_0000 { lead } else { LINE }
}
