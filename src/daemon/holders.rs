//! Who uses a mount: found in /proc, as far as this user may look.
//!
//! By the mount's device and not by paths: whoever has it in a mount namespace of its own, or bound to another place, uses it
//! as much, and the kernel tells only of those in ours. Nothing is asked of whoever serves a mount.

use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::mounts::{mount_table, mounted_at};
use crate::control::{Failure, Kind};
use crate::fuse::device_of;

/// So long whoever is not to be seen is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// At most so many are named.
const NAMED: usize = 8;

/// A mount's device.
type Device = (u32, u32);

/// The refusal to unmount what is in use, as far as can be seen. The kernel itself refuses only for users in this mount
/// namespace.
pub(super) fn refuse(at: &Path) -> Result<(), Failure> {
    let found = holders(at);
    if found.is_empty() { Ok(()) } else { Err(failure(at, found)) }
}

/// The failure of an unmount that the kernel refused: names who holds it and says what to do.
pub(super) fn busy(at: &Path) -> Failure {
    failure(at, holders(at))
}

/// Does what the kernel may refuse because a mount is in use, again for a moment where nobody is to be seen who uses it: whoever looks at the
/// mount, as another unmount does, is in its way for that long.
pub(super) fn patiently(at: &Path, act: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match act() {
            Err(e)
                if e.raw_os_error() == Some(libc::EBUSY)
                    && Instant::now() < end
                    && holders(at).is_empty() =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

fn failure(at: &Path, mut found: Vec<String>) -> Failure {
    let more = found.len().saturating_sub(NAMED);
    found.truncate(NAMED);
    if more > 0 {
        found.push(format!("{more} more"));
    }
    let who = match found.is_empty() {
        false => format!("used by {}", found.join(", ")),
        true if nix::unistd::geteuid().is_root() => "used by something that /proc does not show".to_owned(),
        true => "used by something this user cannot see".to_owned(),
    };
    let message =
        format!("{} is busy: {who}; end them, or detach it with 'outfs unmount --lazy {0}'", at.display());
    Failure::new(Kind::Busy, message)
}

fn holders(at: &Path) -> Vec<String> {
    let below = |m: &PathBuf| m != at && m.starts_with(at);
    let mounts = mount_table().into_iter().map(|m| m.at).filter(below);
    let mut found: Vec<String> = mounts.map(|m| format!("the mount on {}", m.display())).collect();
    found.extend(loop_devices(Path::new("/sys/block"), at));
    let device = mounted_at(at).and_then(|m| parse_device(&m.dev, 10));
    found.extend(device.map(processes).unwrap_or_default());
    found
}

/// The processes that use what lies on a device.
fn processes(device: Device) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if let Some(how) = how_held(&entry.path(), device) {
            found.push(format!("process {pid} ({}, {how})", command(&entry.path())));
        }
    }
    found
}

fn how_held(process: &Path, device: Device) -> Option<&'static str> {
    let there = |link: PathBuf| device_of(&link).is_ok_and(|found| found == device);
    if there(process.join("cwd")) {
        return Some("working directory");
    }
    if there(process.join("root")) {
        return Some("root directory");
    }
    if there(process.join("exe")) {
        return Some("running program");
    }
    let fds = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    if fds.map(|fd| fd.path()).any(there) {
        return Some("open file");
    }
    let maps = std::fs::read(process.join("maps")).unwrap_or_default();
    maps.split(|&b| b == b'\n').any(|line| maps_device(line, device)).then_some("mapped file")
}

/// Loop devices on files below `at`: the kernel has these open, and no process.
fn loop_devices(devices: &Path, at: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(devices).into_iter().flatten().flatten() {
        let Ok(mut file) = std::fs::read(entry.path().join("loop/backing_file")) else { continue };
        file.truncate(file.trim_ascii_end().len());
        let file = PathBuf::from(std::ffi::OsString::from_vec(file));
        if file.starts_with(at) {
            let name = entry.file_name();
            found.push(format!("the loop device /dev/{} ({})", name.display(), file.display()));
        }
    }
    found
}

/// `major:minor`; `maps` has it in hexadecimal, `mountinfo` in decimal.
fn parse_device(text: &str, radix: u32) -> Option<Device> {
    let (major, minor) = text.split_once(':')?;
    Some((u32::from_str_radix(major, radix).ok()?, u32::from_str_radix(minor, radix).ok()?))
}

fn maps_device(line: &[u8], device: Device) -> bool {
    let field = line.split(|&b| b == b' ').nth(3).and_then(|f| std::str::from_utf8(f).ok());
    field.and_then(|f| parse_device(f, 16)) == Some(device)
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
        let _open = std::fs::File::create(dir.path().join("held")).unwrap();
        let device = device_of(dir.path()).unwrap();
        let mut child =
            std::process::Command::new("sleep").arg("60").current_dir(dir.path()).spawn().unwrap();
        let found = processes(device);
        child.kill().unwrap();
        child.wait().unwrap();
        let me = format!("process {} ", std::process::id());
        assert!(found.iter().any(|h| h.starts_with(&me)), "{found:?}");
        assert!(found.contains(&format!("process {} (sleep, working directory)", child.id())), "{found:?}");
        assert_eq!(how_held(Path::new("/proc/self"), (9999, 1)), None);
    }

    #[test]
    fn loop_devices_on_files_of_the_mount() {
        let dir = tempfile::tempdir().unwrap();
        for (name, file) in [("loop0", "/mnt/x/a b\n"), ("loop1", "/mnt/xy/f\n"), ("vda", "")] {
            std::fs::create_dir_all(dir.path().join(name).join("loop")).unwrap();
            if !file.is_empty() {
                std::fs::write(dir.path().join(name).join("loop/backing_file"), file).unwrap();
            }
        }
        let found = loop_devices(dir.path(), Path::new("/mnt/x"));
        assert_eq!(found, ["the loop device /dev/loop0 (/mnt/x/a b)"]);
    }

    #[test]
    fn devices_in_maps() {
        let line = b"7f00-7f01 r--s 00000000 00:3a 12   /mnt/x";
        assert_eq!(parse_device("0:58", 10), Some((0, 58)));
        assert!(maps_device(line, (0, 58)));
        assert!(!maps_device(line, (0, 3)) && !maps_device(b"", (0, 58)));
    }
}
