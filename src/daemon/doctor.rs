//! What this machine offers a mount, and what would offer more. Changes nothing (but makes and
//! removes temporary files beside the store).

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::mounts::mount_table;
use crate::cache::{ScanFacts, TierFacts};
use crate::control::DaemonFacts;
use crate::fuse;
use crate::model::units::{counted, human_bytes};

/// How well a thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// As it should be.
    Good,
    /// Works, but something is slower or missing.
    Limited,
    /// No mount is possible like this.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub what: String,
    /// How it stands.
    pub health: Health,
    /// What was found.
    pub found: String,
    /// What would make it better; empty when nothing needs to.
    pub advice: String,
}

/// How a tier of the daemon that runs does.
pub fn tier(facts: &TierFacts) -> Check {
    let said = facts.last_failure.as_ref().map_or("it has not said why", |(_, why)| why);
    let (health, found, advice) = match facts {
        TierFacts { ill: true, .. } => (
            Health::Limited,
            format!("{} does not answer, and is asked only now and then: {said}", facts.name),
            "see whether its server runs and can be reached from here, and whether the credentials the daemon was \
             started with are right",
        ),
        TierFacts { corrupt: 1.., .. } => (
            Health::Limited,
            format!("{} gave wrong bytes {} times, last: {said}", facts.name, facts.corrupt),
            "none of them were used; somebody else writes to it, or its disks or the network are broken",
        ),
        _ => (Health::Good, format!("{} answers", facts.name), ""),
    };
    check("tier", health, found, advice)
}

/// Whether processes were kept from having more come from tiers.
pub fn scans(facts: &ScanFacts) -> Option<Check> {
    let (_, pid, program) = facts.last.as_ref()?;
    let found = format!(
        "{} had used up what they may have come from tiers, and got EDQUOT; last: {program} (process {pid})",
        counted(facts.stopped, "process", "processes")
    );
    let advice = "if that was no scan: 'outfs prefetch KEY' brings an entry, and 'outfs mount --scan-budget SIZE' lets each process have \
                  more come";
    Some(check("scans", Health::Limited, found, advice))
}

/// Whether the daemon that runs has met faults of outfs itself.
pub fn faults(of: &DaemonFacts) -> Option<Check> {
    let found = (of.faults > 0)
        .then(|| format!("the daemon has met {} in itself", counted(of.faults, "fault", "faults")))?;
    let advice = format!("its log ({}) says where; please report it, and start it anew", of.log);
    Some(check("daemon", Health::Limited, found, advice))
}

fn check(what: &str, health: Health, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { what: what.into(), health, found: found.into(), advice: advice.into() }
}

/// Looks at everything a mount of this store needs.
pub fn examine(store: &Path) -> Vec<Check> {
    let root = nix::unistd::geteuid().is_root();
    let sys_admin = has_sys_admin();
    vec![
        kernel(),
        device(),
        helper(root),
        passthrough(sys_admin),
        transport(),
        allow_other(root),
        file_system(store),
        reflinks(store),
        leases(store),
        space(store),
        open_files(),
    ]
}

/// (major, minor) of the running kernel.
fn kernel_version() -> Option<(u32, u32)> {
    let release = nix::sys::utsname::uname().ok()?.release().to_str()?.to_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn kernel() -> Check {
    let Some((major, minor)) = kernel_version() else {
        return check("kernel", Health::Limited, "its version is unknown", "");
    };
    let found = format!("Linux {major}.{minor}");
    match (major, minor) {
        v if v >= (6, 18) => check("kernel", Health::Good, found, ""),
        v if v >= (6, 9) => check(
            "kernel",
            Health::Limited,
            found,
            "from 6.18 on the kernel lets go of unused entries when asked, so eviction is finer",
        ),
        _ => check("kernel", Health::Limited, found, "from 6.9 on large files and drafts bypass the daemon"),
    }
}

fn device() -> Check {
    let path = "/dev/fuse";
    let what = "/dev/fuse";
    match std::fs::metadata(path) {
        Err(e) => check(
            what,
            Health::Missing,
            e.to_string(),
            "'modprobe fuse' makes it; in a container: --device /dev/fuse --cap-add SYS_ADMIN, or mount on \
             the host and pass the mount in",
        ),
        Ok(m) if !m.file_type().is_char_device() => {
            check(what, Health::Missing, "it is not a device", "mknod /dev/fuse c 10 229")
        }
        Ok(_) => match std::fs::OpenOptions::new().read(true).write(true).open(path) {
            Ok(_) => check(what, Health::Good, "usable", ""),
            Err(e) => check(
                what,
                Health::Missing,
                format!("this user cannot open it: {e}"),
                "chmod 0666 /dev/fuse (as most systems have it), and allow the device in the container",
            ),
        },
    }
}

fn helper(root: bool) -> Check {
    let what = "fusermount3";
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&dirs).map(|d| d.join(what)).find(|p| p.is_file());
    let needed = if root { Health::Good } else { Health::Missing };
    match found {
        None => check(
            what,
            needed,
            if root { "not installed; root needs none" } else { "not installed" },
            if root { "" } else { "install the package fuse3" },
        ),
        Some(path) => match std::fs::metadata(&path) {
            Ok(m) if root || (m.mode() & 0o4000 != 0 && m.uid() == 0) => {
                check(what, Health::Good, path.display().to_string(), "")
            }
            _ => check(
                what,
                needed,
                format!("{} is not set-uid root", path.display()),
                format!(
                    "chmod u+s {}; where set-uid programs are not allowed, mount as root",
                    path.display()
                ),
            ),
        },
    }
}

/// CAP_SYS_ADMIN is bit 21 of the effective set.
fn has_sys_admin() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    line.and_then(|l| u64::from_str_radix(l.trim(), 16).ok()).is_some_and(|caps| caps & (1 << 21) != 0)
}

fn passthrough(sys_admin: bool) -> Check {
    let what = "passthrough";
    let new = kernel_version().is_some_and(|v| v >= (6, 9));
    match (sys_admin, new) {
        (true, true) => check(what, Health::Good, "available", ""),
        (false, true) => check(
            what,
            Health::Limited,
            "not available to this user",
            "with CAP_SYS_ADMIN (as root) large files and drafts are read and written at native speed",
        ),
        _ => check(what, Health::Limited, "this kernel has none", "Linux 6.9 or newer, and CAP_SYS_ADMIN"),
    }
}

fn transport() -> Check {
    let what = "io_uring";
    if let Err(e) = fuse::ring_allowed() {
        return check(
            what,
            Health::Limited,
            format!("not allowed: {e}"),
            "where the setting kernel.io_uring_disabled is 0 and the container's rules (seccomp) allow io_uring, \
             requests can reach the daemon on the caller's processor",
        );
    }
    match fuse::ring_offered() {
        Ok(true) => check(what, Health::Good, "the kernel offers FUSE over io_uring", ""),
        Ok(false) => check(
            what,
            Health::Limited,
            "FUSE over io_uring is switched off",
            "'echo Y > /sys/module/fuse/parameters/enable_uring' as root, for mounts made from then on: \
             several readers at a time are faster",
        ),
        Err(_) => check(
            what,
            Health::Limited,
            "the kernel has no FUSE over io_uring",
            "Linux 6.14 or newer, built with it",
        ),
    }
}

fn allow_other(root: bool) -> Check {
    let what = "--allow-other";
    let conf = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if root {
        return check(what, Health::Good, "root may always", "");
    }
    match conf.lines().any(|l| l.trim() == "user_allow_other") {
        true => check(what, Health::Good, "allowed in /etc/fuse.conf", ""),
        false => check(
            what,
            Health::Limited,
            "not allowed",
            "a line 'user_allow_other' in /etc/fuse.conf lets other users (and root) enter the mount",
        ),
    }
}

/// The store, or the closest directory above it that exists.
fn existing(store: &Path) -> PathBuf {
    let store = std::path::absolute(store).unwrap_or_else(|_| store.to_owned());
    store.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn file_system(store: &Path) -> Check {
    let what = "store";
    let dir = existing(store);
    let real = std::fs::canonicalize(&dir).unwrap_or_else(|_| dir.clone());
    let mount = mount_table().into_iter().rev().filter(|m| real.starts_with(&m.at));
    let fs = mount.max_by_key(|m| m.at.as_os_str().len()).map_or("?".into(), |m| m.fs_type);
    let found = format!("{} on {fs}", store.display());
    let network = ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "afs"];
    if network.contains(&fs.as_str()) {
        return check(
            what,
            Health::Limited,
            found,
            "a network file system has no reliable locks and syncs; use --store on a local disk",
        );
    }
    match tempfile::tempfile_in(&dir) {
        Ok(_) if fs == "tmpfs" => {
            check(what, Health::Limited, found, "the store is in memory and will not survive a restart")
        }
        Ok(_) => check(what, Health::Good, found, ""),
        Err(e) => check(
            what,
            Health::Missing,
            format!("{found}, not writable: {e}"),
            "give a writable directory with --store or OUTFS_STORE",
        ),
    }
}

fn reflinks(store: &Path) -> Check {
    let what = "reflinks";
    let dir = existing(store);
    let tried = || -> std::io::Result<()> {
        let temp = tempfile::tempdir_in(&dir)?;
        let (from, to) = (temp.path().join("a"), temp.path().join("b"));
        std::fs::write(&from, [7u8; 8192])?;
        reflink_copy::reflink(from, to)
    };
    match tried() {
        Ok(()) => check(what, Health::Good, "the store's file system shares data between files", ""),
        Err(_) => check(
            what,
            Health::Limited,
            "none: restored files are copies",
            "a store on btrfs, or on XFS made with reflink=1, restores without copying",
        ),
    }
}

fn leases(store: &Path) -> Check {
    let what = "leases";
    let tried = || -> std::io::Result<bool> {
        let path = tempfile::NamedTempFile::new_in(existing(store))?.into_temp_path();
        Ok(take_lease(&std::fs::File::open(&path)?))
    };
    match tried() {
        Ok(true) => check(what, Health::Good, "large files enter the store without a copy", ""),
        _ => check(
            what,
            Health::Limited,
            "none here: large files are copied into the store",
            "a store on a local disk file system (ext4, XFS, btrfs) that belongs to this user",
        ),
    }
}

fn space(store: &Path) -> Check {
    let what = "space";
    match nix::sys::statvfs::statvfs(&existing(store)) {
        Ok(s) => {
            let unit = s.fragment_size();
            let (total, free) = (s.blocks() * unit, s.blocks_available() * unit);
            let found = format!("{} free of {}", human_bytes(free), human_bytes(total));
            match free < 1 << 30 {
                true => check(what, Health::Limited, found, "make room, or put the store elsewhere"),
                false => check(what, Health::Good, found, ""),
            }
        }
        Err(e) => check(what, Health::Limited, format!("unknown: {e}"), ""),
    }
}

fn open_files() -> Check {
    use nix::sys::resource::{Resource, getrlimit};
    let what = "open files";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard < 65536 => check(
            what,
            Health::Limited,
            format!("at most {hard}"),
            "raise the hard limit (ulimit -Hn 1048576) for builds that keep many files open",
        ),
        Ok((_, hard)) => check(what, Health::Good, format!("at most {hard}"), ""),
        Err(e) => check(what, Health::Limited, format!("unknown: {e}"), ""),
    }
}

/// Whether a read lease can be had on `file`, which is open for reading only.
fn take_lease(file: &std::fs::File) -> bool {
    use std::os::fd::AsRawFd;
    // SAFETY: fcntl with F_SETLEASE takes an integer and touches no memory; the descriptor is open.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_that_is_not_good_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let checks = examine(&dir.path().join("not/yet/there"));
        assert!(checks.len() >= 10);
        for c in &checks {
            assert!(c.health == Health::Good || !c.advice.is_empty() || c.found.contains("unknown"), "{c:?}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    }
}
