//! The event log: append-only segments of JSON lines.
//!
//! Invariants: a segment is named by the first `seq` it may hold (20 digits); `seq` grows by
//! one within a segment's life and is never used twice, even when everything was trimmed: the last
//! segment always stays. A torn last line (a crash, a full disk) is cut before anything is
//! appended. At most [`UNSYNCED`] records are not on the disk; after an unclean death the log goes
//! on that much further, because a power cut may have taken records that somebody has read.
//! Must not know: what the events mean.

use std::ffi::OsStr;
use std::fs::File;
use std::sync::Arc;

use jiff::Timestamp;
use memchr::memmem;

use super::dir::{Dir, Temp, read_whole};
use super::{EventPage, Result, Store, StoreError, port};
use crate::model::{EntryKey, Event, EventKind};

/// A segment of this many bytes is followed by a new one.
const SEGMENT: u64 = 1 << 20;
/// A page of records ends behind so many bytes.
const PAGE_BYTES: usize = 16 << 20;
/// So many records may wait for the disk.
pub(super) const UNSYNCED: u64 = 1024;

/// The end of the log, where the owner appends.
#[derive(Default)]
pub(super) struct EventLog {
    /// The last segment: its first `seq`, its file, its length.
    last: Option<(u64, File, u64)>,
    newest: u64,
    unsynced: u64,
    /// A segment was begun since the log was opened or trimmed.
    rotated: bool,
    /// The last segment may end in a torn line that could not be cut.
    torn: bool,
    /// The disk has refused the last segment once: it is not believed to take it the next time.
    refused: bool,
}

/// Where segments lie, and where they are made.
#[derive(Clone, Copy)]
pub(super) struct Rooms<'a> {
    pub events: &'a Dir,
    pub tmp: &'a Arc<Dir>,
}

fn segment_name(first: u64) -> String {
    format!("{first:020}.jsonl")
}

/// The first `seq` of every segment, in order.
fn segments(events: &Dir) -> Result<Vec<u64>> {
    let parse = |n: std::ffi::OsString| {
        let first = n.to_str()?.strip_suffix(".jsonl")?.parse().ok()?;
        (OsStr::new(&segment_name(first)) == n).then_some(first)
    };
    let mut all: Vec<u64> = events.names()?.into_iter().filter_map(parse).collect();
    all.sort_unstable();
    Ok(all)
}

/// The complete lines of a segment.
fn lines(bytes: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    let end = bytes.iter().rposition(|&b| b == b'\n');
    let whole = end.map(|end| &bytes[..end]);
    whole.into_iter().flat_map(|w| w.split(|&b| b == b'\n'))
}

/// A record's `seq`, without parsing all of it.
fn seq_of(line: &[u8]) -> Option<u64> {
    let digits = line.strip_prefix(b"{\"seq\":")?;
    let end = digits.iter().position(|b| !b.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

/// The highest `seq` that a segment may have given out.
fn newest_in(first: u64, bytes: &[u8]) -> u64 {
    let written = first.saturating_sub(1) + lines(bytes).count() as u64;
    lines(bytes).filter_map(seq_of).max().unwrap_or(0).max(written)
}

impl EventLog {
    /// Opens the log for appending: cuts a torn last line, finds where to go on.
    pub fn open(rooms: Rooms<'_>, after_death: bool) -> Result<EventLog> {
        let Rooms { events, .. } = rooms;
        let mut log = EventLog::default();
        if let Some(&first) = segments(events)?.last() {
            let name = segment_name(first);
            let name = OsStr::new(&name);
            let file = port::open_append(events.fd(), name).map_err(events.err("open", name))?;
            let bytes = match read_whole(&file).map_err(events.err("read", name)) {
                Err(e) if e.is_bad_spot() => {
                    // It goes on further than that one can have come; fsck sets it aside.
                    tracing::error!(
                        "the end of the event log cannot be read, and goes on in a new segment: {e}"
                    );
                    log.newest = first + 2 * SEGMENT;
                    match log.rotate(rooms) {
                        Err(e) if e.is_no_space() => log.torn = true,
                        other => other?,
                    }
                    return Ok(log);
                }
                bytes => bytes?,
            };
            let len = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
            if len < bytes.len() {
                port::truncate(&file, len as u64).map_err(events.err("cut", name))?;
            }
            log.newest = newest_in(first, &bytes[..len]);
            log.last = Some((first, file, len as u64));
        }
        if after_death {
            match log.go_on_further(rooms) {
                // The next segment that can be made remembers it, or the next owner skips again.
                Err(e) if e.is_no_space() => log.torn = true,
                other => other?,
            }
        }
        Ok(log)
    }

    /// Skips the numbers that may have been given to records which are lost. The new segment's name
    /// remembers it; an empty one before it has nothing to say any more.
    fn go_on_further(&mut self, rooms: Rooms<'_>) -> Result<()> {
        let before = self.last.take();
        self.newest += UNSYNCED;
        self.rotate(rooms)?;
        match before {
            Some((first, _, 0)) => rooms.events.unlink(segment_name(first)).map(drop),
            _ => Ok(()),
        }
    }

    /// Nothing is left of a failed append that could not be undone.
    pub fn is_sound(&self) -> bool {
        !self.torn
    }

    /// Waits until all records are on the disk.
    pub fn sync(&mut self, rooms: Rooms<'_>) -> Result<()> {
        if let (Some((first, file, _)), true) = (&self.last, self.unsynced > 0) {
            if self.refused {
                self.write_anew(rooms)?;
            } else if let Err(e) = port::sync_data(file) {
                self.refused = true;
                return Err(rooms.events.err("sync", segment_name(*first).as_ref())(e));
            }
        }
        self.unsynced = 0;
        Ok(())
    }

    /// Puts a copy of the last segment in its place, durably.
    fn write_anew(&mut self, rooms: Rooms<'_>) -> Result<()> {
        let Some((first, file, len)) = &mut self.last else { return Ok(()) };
        let (events, name) = (rooms.events, segment_name(*first));
        let name = OsStr::new(&name);
        let bytes = read_whole(file).map_err(events.err("read", name))?;
        let mut temp = Temp::create(rooms.tmp)?;
        temp.write(&bytes[..bytes.len().min(*len as usize)])?;
        temp.place(events, name, true)?;
        *file = port::open_append(events.fd(), name).map_err(events.err("open", name))?;
        self.refused = false;
        Ok(())
    }

    /// Starts a new segment.
    fn rotate(&mut self, rooms: Rooms<'_>) -> Result<()> {
        self.sync(rooms)?;
        let Rooms { events, .. } = rooms;
        let first = self.newest + 1;
        let name = segment_name(first);
        let name = OsStr::new(&name);
        let file = port::open_append(events.fd(), name).map_err(events.err("create", name))?;
        events.sync()?;
        self.last = Some((first, file, 0));
        self.torn = false;
        self.rotated = true;
        Ok(())
    }

    fn append(&mut self, rooms: Rooms<'_>, event: &Event, durable: bool) -> Result<()> {
        if self.torn || self.last.as_ref().is_none_or(|(_, _, len)| *len >= SEGMENT) {
            self.rotate(rooms)?;
        }
        let mut line = serde_json::to_vec(event).expect("events have string keys only");
        line.push(b'\n');
        let (first, file, len) = self.last.as_mut().expect("rotating made one");
        let name = segment_name(*first);
        if let Err(e) = port::write_all(file, &line) {
            self.torn = port::truncate(file, *len).is_err();
            // A torn record keeps its number; the next one begins a segment.
            self.newest += u64::from(self.torn);
            return Err(rooms.events.err("append to", name.as_ref())(e));
        }
        *len += line.len() as u64;
        self.newest = event.seq;
        self.unsynced += 1;
        if durable || self.unsynced >= UNSYNCED { self.sync(rooms) } else { Ok(()) }
    }
}

impl Store {
    pub(super) fn log_rooms(&self) -> Rooms<'_> {
        Rooms { events: &self.events, tmp: &self.tmp }
    }

    /// Appends a record and returns its `seq`; synced when `durable`.
    pub fn append_event(&self, event: EventKind, key: Option<&EntryKey>, durable: bool) -> Result<Event> {
        self.writable()?;
        let mut log = self.log.lock();
        let event = Event { seq: log.newest + 1, at: Timestamp::now(), key: key.cloned(), kind: event };
        log.append(self.log_rooms(), &event, durable)?;
        Ok(event)
    }

    /// A segment of the log was begun since the store was opened, or the log trimmed.
    pub fn has_new_segment(&self) -> bool {
        self.log.lock().rotated
    }

    /// Up to `limit` records after `since`, fewer when they are large. A damaged line is `Corrupt`, with its number.
    pub fn read_events(&self, since: u64, limit: usize) -> Result<EventPage> {
        let all = segments(&self.events)?;
        let newest = self.newest_event(&all)?;
        let mut page = EventPage { events: Vec::new(), more: false, oldest: 0, newest };
        page.oldest = self.oldest_event(&all)?;
        let start = all.partition_point(|&first| first <= since.saturating_add(1)).saturating_sub(1);
        if since >= newest {
            return Ok(page);
        }
        let mut read = 0;
        for &first in &all[start..] {
            let Some(bytes) = self.events.read_all(segment_name(first))? else {
                // It was trimmed meanwhile, which is told by what is the oldest now.
                return self.read_events(since, limit);
            };
            for (number, line) in (1..).zip(lines(&bytes)) {
                if seq_of(line).is_some_and(|seq| seq <= since) {
                    continue;
                }
                if page.events.len() >= limit || read > PAGE_BYTES {
                    page.more = true;
                    return Ok(page);
                }
                let event: Event = serde_json::from_slice(line).map_err(|e| StoreError::Corrupt {
                    path: self.events.path().join(segment_name(first)),
                    line: Some(number),
                    why: e.to_string(),
                })?;
                page.events.push(event);
                read += line.len();
            }
        }
        Ok(page)
    }

    /// The newest record of a key that is `wanted`. Lines that cannot be read are passed over. Of a key that nothing is
    /// known of the whole log is searched, at some GB/s.
    pub fn last_event(&self, key: &EntryKey, wanted: &dyn Fn(&EventKind) -> bool) -> Result<Option<Event>> {
        // As it stands in a line; a key has nothing to escape.
        let needle = format!("\"key\":\"{key}\"");
        let finder = memmem::FinderRev::new(&needle);
        for &first in segments(&self.events)?.iter().rev() {
            let bytes = self.events.read_all(segment_name(first))?.unwrap_or_default();
            let mut rest = &bytes[..bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1)];
            while let Some(at) = finder.rfind(rest) {
                let start = rest[..at].iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
                let line = rest[start..].split(|&b| b == b'\n').next().unwrap_or_default();
                match serde_json::from_slice::<Event>(line) {
                    Ok(event) if event.key.as_ref() == Some(key) && wanted(&event.kind) => {
                        return Ok(Some(event));
                    }
                    _ => rest = &rest[..start],
                }
            }
        }
        Ok(None)
    }

    fn newest_event(&self, all: &[u64]) -> Result<u64> {
        if self.lock.is_some() {
            return Ok(self.log.lock().newest);
        }
        let Some(&first) = all.last() else { return Ok(0) };
        Ok(newest_in(first, &self.events.read_all(segment_name(first))?.unwrap_or_default()))
    }

    /// The first record's `seq`; 0 when there is none.
    fn oldest_event(&self, all: &[u64]) -> Result<u64> {
        for &first in all {
            let name = segment_name(first);
            let Some(file) = self.events.read(&name)? else { continue };
            let mut start = [0; 32];
            let n = port::read_at(&file, &mut start, 0).map_err(self.events.err("read", name.as_ref()))?;
            if let Some(seq) = seq_of(&start[..n]) {
                return Ok(seq);
            }
        }
        Ok(0)
    }

    /// Takes damaged lines out of the log: the segment goes to quarantine, and a copy with the lines
    /// that are sound takes its place; of one that cannot be read there is none. Returns how many lines were damaged.
    pub fn repair_events(&self) -> Result<u64> {
        self.writable()?;
        let mut log = self.log.lock();
        let mut damaged = 0;
        for first in segments(&self.events)? {
            let name = segment_name(first);
            let read = self.events.read_all(&name);
            let unreadable = matches!(&read, Err(e) if e.is_bad_spot());
            let bytes = if unreadable { Vec::new() } else { read?.unwrap_or_default() };
            let (good, bad): (Vec<&[u8]>, Vec<&[u8]>) =
                lines(&bytes).partition(|line| serde_json::from_slice::<Event>(line).is_ok());
            if bad.is_empty() && !unreadable {
                continue;
            }
            damaged += bad.len() as u64;
            if log.last.as_ref().is_some_and(|(last, _, _)| *last == first) {
                log.rotate(self.log_rooms())?;
            }
            self.set_aside("events", &self.events, name.as_ref())?;
            if !good.is_empty() {
                let text: Vec<u8> = good.into_iter().flat_map(|line| [line, b"\n"].concat()).collect();
                self.events.write_durably(&self.tmp, &name, &text)?;
            }
        }
        Ok(damaged)
    }

    /// Drops whole segments whose last record was written before `older_than_ns` (nanoseconds
    /// since 1970), whole segments that the newest `keep_count` records do not need, and the oldest, but for the last
    /// segment, until what is left has at most `keep_bytes`.
    pub fn trim_events(&self, older_than_ns: i64, keep_count: u64, keep_bytes: u64) -> Result<()> {
        self.writable()?;
        let mut log = self.log.lock();
        log.rotated = false;
        let all = segments(&self.events)?;
        let mut bytes = 0;
        for &first in &all {
            bytes += self.events.size_of(segment_name(first))?.unwrap_or(0);
        }
        for (i, &first) in all.iter().enumerate() {
            let name = segment_name(first);
            if bytes > keep_bytes && i + 1 < all.len() {
                bytes -= self.events.size_of(&name)?.unwrap_or(0);
                self.events.unlink(&name)?;
                continue;
            }
            let bytes = match self.events.read_all(&name) {
                // It stays, and fsck tells of it; others go.
                Err(e) if e.is_bad_spot() => continue,
                read => read?.unwrap_or_default(),
            };
            let last = lines(&bytes).rev().find_map(|l| serde_json::from_slice::<Event>(l).ok());
            let end = all.get(i + 1).map_or(log.newest, |next| next - 1);
            let old = last.is_none_or(|e| e.at.as_nanosecond() < i128::from(older_than_ns));
            if !old && log.newest - end < keep_count {
                break;
            }
            if i + 1 == all.len() {
                if bytes.is_empty() {
                    break;
                }
                // The last segment remembers how far the log has come: one takes its place first.
                log.rotate(self.log_rooms())?;
            }
            self.events.unlink(&name)?;
        }
        Ok(())
    }
}
