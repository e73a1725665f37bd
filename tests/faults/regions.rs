//! Where the parts of a store's files lie: after `docs/format.md`, with nothing of the program's own.
//!
//! A part that comes again and again (the fields of records, of blobs in a pack) stands here again and again.

use std::ops::Range;
use std::path::Path;

type Parts = Vec<(&'static str, Range<usize>)>;
type Fields = &'static [(&'static str, usize)];

const MANIFEST: Fields = &[
    ("manifest: magic", 8),
    ("manifest: version", 4),
    ("manifest: flags", 4),
    ("manifest: records", 4),
    ("manifest: group rows", 4),
    ("manifest: groups", 8),
    ("manifest: length of the heap", 8),
    ("manifest: sealed at", 8),
    ("manifest: sizes", 8),
    ("manifest: names of files", 8),
    ("manifest: what it replaced", 32),
    ("manifest: key", 8),
    ("manifest: origin", 8),
    ("manifest: reserved", 64),
];
const RECORD: Fields = &[
    ("record: body", 32),
    ("record: size", 8),
    ("record: mtime", 8),
    ("record: place of the name", 4),
    ("record: length of the name", 1),
    ("record: kind of digest", 1),
    ("record: mode", 2),
    ("record: place of owner and attributes", 4),
    ("record: canonical", 4),
];
const GROUP: Fields = &[("group: record", 4), ("group: count", 4), ("group: first value", 8)];
const PACK: Fields = &[("pack: magic", 8), ("pack: id", 8)];
const BLOB: Fields = &[("blob: magic", 4), ("blob: length", 4), ("blob: hash", 32), ("blob: checksum", 8)];
const TABLE: Fields = &[("table: magic", 8), ("table: manifest", 32), ("table: slots", 8)];
const SLOT: Fields = &[("slot: pack", 8), ("slot: offset", 8)];
const OTHERS: [&str; 4] = ["manifest: group values", "manifest: heap", "blob: content", "table: checksum"];

/// The names of all parts that a store of small entries has.
pub fn names() -> impl Iterator<Item = &'static str> {
    let all = [MANIFEST, RECORD, GROUP, PACK, BLOB, TABLE, SLOT];
    all.into_iter().flatten().map(|(name, _)| *name).chain(OTHERS)
}

/// Reads a file from its start.
struct Reader<'a> {
    bytes: &'a [u8],
    parts: Parts,
}

impl Reader<'_> {
    fn at(&self) -> usize {
        self.parts.last().map_or(0, |(_, range)| range.end)
    }

    fn part(&mut self, name: &'static str, len: usize) {
        let at = self.at();
        assert!(at + len <= self.bytes.len(), "{name} lies beyond the end");
        if len > 0 {
            self.parts.push((name, at..at + len));
        }
    }

    fn fields(&mut self, fields: Fields) {
        fields.iter().for_each(|(name, len)| self.part(name, *len));
    }

    fn number(&self, at: usize, len: usize) -> usize {
        self.bytes[at..at + len].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    }
}

/// The parts of a file, in order; of one whose format has none, nothing.
pub fn parts(file: &Path, bytes: &[u8]) -> Parts {
    let mut reader = Reader { bytes, parts: Vec::new() };
    let suffix = file.extension().and_then(|e| e.to_str());
    match (file.iter().next().and_then(|room| room.to_str()), suffix) {
        (Some("manifests"), None) => {
            reader.fields(MANIFEST);
            (0..reader.number(16, 4)).for_each(|_| reader.fields(RECORD));
            (0..reader.number(20, 4)).for_each(|_| reader.fields(GROUP));
            reader.part("manifest: group values", reader.number(24, 8) * 32);
            reader.part("manifest: heap", reader.number(32, 8));
        }
        (Some("manifests"), Some("loc")) => {
            reader.fields(TABLE);
            (0..reader.number(40, 8)).for_each(|_| reader.fields(SLOT));
            reader.part("table: checksum", 32);
        }
        (Some("packs"), Some("pack")) => {
            reader.fields(PACK);
            while reader.at() < bytes.len() {
                let len = reader.number(reader.at() + 4, 4);
                reader.fields(BLOB);
                reader.part("blob: content", len);
            }
        }
        _ => return Vec::new(),
    }
    assert_eq!(reader.at(), bytes.len(), "{}: it has more than its format says", file.display());
    reader.parts
}
