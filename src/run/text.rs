//! File names and arguments as text: UTF-8 stands for itself, other bytes are `\xNN`, a backslash is `\\`.
//!
//! Invariant: different bytes give different text, so that text can stand in keys, metadata and lock files.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

/// The text of a name.
pub fn text(name: impl AsRef<OsStr>) -> String {
    // Nearly all of them.
    if let Some(plain) = name.as_ref().to_str().filter(|name| !name.contains('\\')) {
        return plain.to_owned();
    }
    name.as_ref().as_bytes().utf8_chunks().fold(String::new(), |mut out, chunk| {
        out.push_str(&chunk.valid().replace('\\', r"\\"));
        for b in chunk.invalid() {
            let _ = write!(out, "\\x{b:02x}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_bytes_are_different_text() {
        let of = |bytes: &[u8]| text(OsStr::from_bytes(bytes));
        assert_eq!(of("größe".as_bytes()), "größe");
        assert_eq!(of(b"a\xffb"), r"a\xffb");
        assert_eq!(of(br"a\xffb"), r"a\\xffb");
        assert_eq!(of(br"\"), r"\\");
    }
}
