//! Who keeps a mount busy: found in /proc, as far as this user may look.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::mounts::{mount_table, mounted_at};
use crate::control::{Failure, Kind};
use crate::fuse::device_of;

/// At most so many are named.
const NAMED: usize = 8;

/// The failure of an unmount: names who holds it and says what to do.
pub(super) fn busy(at: &Path) -> Failure {
    let mut found = holders(at);
    let more = found.len().saturating_sub(NAMED);
    found.truncate(NAMED);
    if more > 0 {
        found.push(format!("{more} more"));
    }
    let who = match found.is_empty() {
        true => "used by a process this user cannot see".to_owned(),
        false => format!("used by {}", found.join(", ")),
    };
    let message =
        format!("{} is busy: {who}; end them, or detach it with 'outfs unmount --lazy {0}'", at.display());
    Failure::new(Kind::Busy, message)
}

/// Whether anybody is found who does.
pub(super) fn any(at: &Path) -> bool {
    !holders(at).is_empty()
}

fn holders(at: &Path) -> Vec<String> {
    let below = |m: &PathBuf| m != at && m.starts_with(at);
    let mut found: Vec<String> = mount_table()
        .into_iter()
        .map(|m| m.at)
        .filter(below)
        .map(|m| format!("the mount on {}", m.display()))
        .collect();
    let dev = mounted_at(at).map(|m| m.dev);
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if let Some(how) = how_held(&entry.path(), at, dev.as_deref()) {
            found.push(format!("process {pid} ({}, {how})", command(&entry.path())));
        }
    }
    found
}

fn how_held(process: &Path, at: &Path, dev: Option<&str>) -> Option<&'static str> {
    // What was below the mount point before the mount has such a path, too, and another device.
    let here = |link: &Path| {
        let (Some(dev), Ok(found)) = (dev, device_of(link)) else { return true };
        format!("{}:{}", found.0, found.1) == dev
    };
    let inside =
        |link: PathBuf| std::fs::read_link(&link).is_ok_and(|target| target.starts_with(at)) && here(&link);
    if inside(process.join("cwd")) {
        return Some("working directory");
    }
    if inside(process.join("root")) {
        return Some("root directory");
    }
    if inside(process.join("exe")) {
        return Some("running program");
    }
    let fds = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    if fds.map(|fd| fd.path()).any(inside) {
        return Some("open file");
    }
    let maps = std::fs::read(process.join("maps")).unwrap_or_default();
    let mapped = dev.is_some_and(|dev| maps.split(|&b| b == b'\n').any(|line| maps_device(line, dev)));
    mapped.then_some("mapped file")
}

/// `maps` has the device in hexadecimal, `mountinfo` in decimal.
fn maps_device(line: &[u8], dev: &str) -> bool {
    let parse = |text: &str, radix| {
        let (major, minor) = text.split_once(':')?;
        Some((u32::from_str_radix(major, radix).ok()?, u32::from_str_radix(minor, radix).ok()?))
    };
    let field = line.split(|&b| b == b' ').nth(3).and_then(|f| std::str::from_utf8(f).ok());
    field.and_then(|f| parse(f, 16)).is_some_and(|found| Some(found) == parse(dev, 10))
}

fn command(process: &Path) -> String {
    let name = std::fs::read(process.join("comm")).unwrap_or_default();
    let name = std::ffi::OsStr::from_bytes(name.trim_ascii_end());
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_an_open_file_and_a_working_directory_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let _open = std::fs::File::create(path.join("held")).unwrap();
        let me = format!("process {} ", std::process::id());
        assert!(holders(&path).iter().any(|h| h.starts_with(&me) && h.ends_with("open file)")));
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(&path).spawn().unwrap();
        let found = holders(&path);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&format!("process {} (sleep, working directory)", child.id())), "{found:?}");
    }

    #[test]
    fn what_was_below_the_mount_point_before_is_not_on_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let _open = std::fs::File::create(path.join("held")).unwrap();
        let (me, own) = (Path::new("/proc/self"), device_of(&path).unwrap());
        assert_eq!(how_held(me, &path, Some(&format!("{}:{}", own.0, own.1))), Some("open file"));
        assert_eq!(how_held(me, &path, Some("9999:1")), None);
    }

    #[test]
    fn devices_in_maps() {
        let line = b"7f00-7f01 r--s 00000000 00:3a 12   /mnt/x";
        assert!(maps_device(line, "0:58"));
        assert!(!maps_device(line, "0:3a") && !maps_device(b"", "0:58"));
    }
}
