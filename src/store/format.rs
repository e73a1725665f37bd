//! The file `format`: that a directory is a store, of which version, with which id.
//!
//! Invariants: four lines of text; the first two keep their form in every version to come, so
//! that an older program can say what it has met.

use std::path::Path;

use super::{Result, StoreError};

pub(super) const FORMAT: &str = "format";

/// The version this program writes and the newest it reads.
pub(super) const VERSION: u32 = 1;

const MAGIC: &str = "outfs store";

/// The bytes of the file.
pub(super) fn write(id: &str) -> String {
    let body = format!("{MAGIC}\nversion {VERSION}\nid {id}\n");
    let check = check(&body);
    format!("{body}check {check}\n")
}

fn check(body: &str) -> String {
    blake3::hash(body.as_bytes()).to_hex()[..16].to_owned()
}

/// The store's id. `root` is for messages.
pub(super) fn read(bytes: &[u8], root: &Path) -> Result<String> {
    // No command can set it aside: without it there is no store.
    let advice = "delete this file if the directory is an outfs store: the next mount writes it anew and has every \
                  entry, pin and event";
    let corrupt = |line, why: &str| StoreError::Unsuitable {
        path: root.to_owned(),
        why: format!("its file 'format' is damaged, line {line}: {why}; {advice}"),
    };
    let text = std::str::from_utf8(bytes).map_err(|_| corrupt(1, "it is not text"))?;
    let mut lines = text.lines();
    if lines.next() != Some(MAGIC) {
        return Err(corrupt(1, "it does not begin as one of outfs does (else choose another directory)"));
    }
    let version = lines.next().and_then(|l| l.strip_prefix("version ")).and_then(|v| v.parse::<u32>().ok());
    match version {
        Some(found) if found > VERSION => {
            return Err(StoreError::TooNew { path: root.to_owned(), found, known: VERSION });
        }
        Some(VERSION) => {}
        _ => return Err(corrupt(2, "the version is not readable")),
    }
    let id = lines
        .next()
        .and_then(|l| l.strip_prefix("id "))
        .filter(|id| id.len() == 16 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
        .ok_or_else(|| corrupt(3, "the store id is not 16 hexadecimal digits"))?;
    if text != write(id) {
        return Err(corrupt(4, "the checksum does not fit"));
    }
    Ok(id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_flipped_bit() {
        let root = Path::new("/s");
        let good = write("00c0ffee00c0ffee").into_bytes();
        assert_eq!(read(&good, root).unwrap(), "00c0ffee00c0ffee");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bad, root).is_err(), "bit {bit}");
        }
        for cut in 0..good.len() {
            assert!(read(&good[..cut], root).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_newer_format_is_refused_with_its_number() {
        let newer = b"outfs store\nversion 7\nwhatever comes then\n";
        let e = read(newer, Path::new("/s")).unwrap_err();
        assert!(matches!(e, StoreError::TooNew { found: 7, known: VERSION, .. }), "{e}");
    }
}
