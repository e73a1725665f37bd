//! The mount table of this process. Must not know: who mounted what.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// Where.
    pub at: PathBuf,
    /// `major:minor` of its device.
    pub dev: String,
    /// `fuse.outfs`, `ext4`, …
    pub fs_type: String,
    /// What was mounted.
    pub source: PathBuf,
}

impl MountInfo {
    /// A view of outfs. (A mount made by root itself has no subtype.)
    pub fn is_outfs(&self) -> bool {
        let source = self.source.as_os_str().as_bytes();
        self.fs_type == "fuse.outfs"
            || self.fs_type == "fuse" && (source == b"outfs" || source.starts_with(b"outfs:"))
    }

    /// The store that a view shows, where the mount names it.
    pub fn store(&self) -> Option<PathBuf> {
        let path = Path::new(OsStr::from_bytes(self.source.as_os_str().as_bytes().strip_prefix(b"outfs:")?));
        (self.is_outfs() && path.is_absolute()).then(|| path.to_owned())
    }
}

/// All mounts, in the order they were made; empty where /proc is not there.
pub fn mount_table() -> Vec<MountInfo> {
    let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    text.split(|&b| b == b'\n').filter_map(parse).collect()
}

/// The topmost mount exactly at `at`.
pub fn mounted_at(at: &Path) -> Option<MountInfo> {
    mount_table().into_iter().rev().find(|m| m.at == at)
}

fn parse(line: &[u8]) -> Option<MountInfo> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let text = |f: &[u8]| String::from_utf8_lossy(f).into_owned();
    Some(MountInfo {
        at: unescape(fields.get(4)?),
        dev: text(fields.get(2)?),
        fs_type: text(fields.get(dash + 1)?),
        source: unescape(fields.get(dash + 2)?),
    })
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&b, tail)) = rest.split_first() {
        let octal = (b == b'\\').then(|| tail.get(..3)).flatten();
        let value = octal.and_then(|o| u8::from_str_radix(std::str::from_utf8(o).ok()?, 8).ok());
        match value {
            Some(value) => {
                out.push(value);
                rest = &tail[3..];
            }
            None => {
                out.push(b);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_escapes_and_optional_fields() {
        let line =
            br"36 35 0:52 / /mnt/a\040b\134c rw,nosuid shared:1 master:2 - fuse.outfs /s\040t rw,user_id=0";
        let m = parse(line).unwrap();
        assert_eq!(m.at, Path::new("/mnt/a b\\c"));
        assert_eq!((m.dev.as_str(), m.is_outfs()), ("0:52", true));
        assert_eq!((m.source.as_path(), m.store()), (Path::new("/s t"), None));
        let of = |text: &str| parse(text.as_bytes()).unwrap();
        let m = of("36 35 0:52 / /mnt rw - fuse outfs:/a\\040b:c rw");
        assert!(m.is_outfs() && m.store() == Some("/a b:c".into()));
        assert!(!of("36 35 0:52 / /mnt rw - fuse sshfs:/a rw").is_outfs());
        assert_eq!(parse(b"36 35 0:52 / /mnt"), None);
    }

    #[test]
    fn this_machine_has_a_root() {
        assert!(mounted_at(Path::new("/")).is_some());
    }
}
