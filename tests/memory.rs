//! What the daemon takes of memory stays below `--memory`, and what it takes of descriptors does not grow with the store.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use common::{METADATA, Mount, eventually};

/// `VmRSS` of a process, in bytes.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon's status");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") * 1024
}

/// Looks at everything below a directory, and gives how many there were.
fn walk(dir: &Path) -> usize {
    fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let is_dir = fs::symlink_metadata(&path).expect("what is listed is there").is_dir();
            1 + if is_dir { walk(&path) } else { 0 }
        })
        .sum()
}

#[test]
fn a_walk_over_large_manifests_stays_below_the_bound() {
    const ENTRIES: usize = 20;
    const LINKS: usize = 1000;
    const BOUND: u64 = 64 << 20;
    let mut m = Mount::new();
    let tree = m.outside("tree");
    fs::create_dir(&tree).expect("mkdir");
    for n in 0..LINKS {
        symlink(format!("{n:0>4000}"), tree.join(n.to_string())).expect("a symlink");
    }
    for n in 0..ENTRIES {
        m.ok(&["put", &format!("large-{n}"), tree.to_str().expect("text")]);
    }
    m.restart_with(&["--memory", "64M"]);
    let mut most = 0;
    for n in 0..ENTRIES {
        assert!(walk(&m.path(format!("large-{n}"))) > LINKS);
        most = most.max(resident(m.pid()));
    }
    let manifests: u64 = ENTRIES as u64 * LINKS as u64 * 4000;
    assert!(manifests > BOUND);
    assert!(most < BOUND, "{} MiB, and may be {}", most >> 20, BOUND >> 20);
    // What is there is told apart from what is wanted.
    let other = m.run(&["mount", m.outside("other").to_str().expect("text"), "--memory", "32M"]);
    assert!(String::from_utf8_lossy(&other.stderr).contains("--memory 32.0 MiB (it runs with 64.0 MiB)"));
}

/// Whether the kernel can be asked to forget what is unused (Linux 6.18).
fn prunes() -> bool {
    let release = nix::sys::utsname::uname().expect("uname").release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(18))
}

/// What the kernel knows of drafts takes memory. It is asked to forget what is more than a share of `--memory`, and nobody notices.
#[test]
fn what_the_kernel_knows_of_a_large_draft_stays_below_the_bound() {
    const FILES: usize = 20_000;
    // An eighth of the 2 MiB that are left.
    const INODES: u64 = (256 << 10) / 200;
    let mut m = Mount::new();
    m.restart_with(&["--memory", "34M"]);
    let known = || m.stats()["known"]["inodes"].as_u64().expect("a number");
    let draft = m.path("large");
    let dir = draft.join("outputs/dir");
    fs::create_dir_all(&dir).expect("mkdir");
    let name = |n: usize| dir.join(n.to_string());
    fs::write(name(0), "the first").expect("write");
    let mut open = fs::File::options().read(true).write(true).open(name(0)).expect("open");
    let inside = fs::File::open(&dir).expect("open");
    fs::write(name(1), "the second").expect("write");
    let number = |n: usize| fs::metadata(name(n)).expect("it is there").ino();
    let (first, second) = (number(0), number(1));
    (2..FILES).for_each(|n| drop(fs::File::create(name(n)).expect("create")));
    if prunes() {
        eventually("the kernel to have forgotten most", || known() < INODES);
    }
    assert_eq!((number(0), number(1)), (first, second), "numbers stay");
    let mut content = String::new();
    open.read_to_string(&mut content).expect("read");
    open.write_all(b" file").expect("write");
    assert_eq!(content, "the first");
    assert_eq!(fs::read(name(0)).expect("read"), b"the first file");
    let listed = fs::read_dir(format!("/proc/self/fd/{}", inside.as_raw_fd())).expect("listed").count();
    assert_eq!(listed, FILES);
    drop((open, inside));
    fs::write(draft.join("metadata.json"), METADATA).expect("write");
    fs::set_permissions(&draft, PermissionsExt::from_mode(0o555)).expect("sealed");
    assert_eq!(walk(&draft.join("outputs")), FILES + 1);
    assert_eq!(fs::read(name(0)).expect("read"), b"the first file");
    if prunes() {
        eventually("the kernel to have forgotten most", || known() < INODES);
        m.ok(&["evict", "large"]);
        eventually("all to be forgotten", || known() < 50);
    }
}

/// The kernel remembers what was sealed in a view; that costs no descriptor for each.
#[test]
fn sealed_drafts_take_up_no_descriptors() {
    let m = Mount::new();
    let open = || fs::read_dir(format!("/proc/{}/fd", m.pid())).expect("the daemon's descriptors").count();
    let seal = |n: usize| {
        m.entry(&format!("key-{n}"), |out| fs::write(out.join("f"), n.to_string()).expect("write"));
    };
    seal(0);
    let before = open();
    (1..60).for_each(seal);
    assert!(open() < before + 30, "{before} and {} descriptors", open());
}

/// Nor does what was thrown away.
#[test]
fn dropped_drafts_take_up_no_descriptors() {
    let m = Mount::new();
    let open = || fs::read_dir(format!("/proc/{}/fd", m.pid())).expect("the daemon's descriptors").count();
    let throw_away = |n: usize| {
        let draft = m.path(format!("key-{n}"));
        fs::create_dir_all(draft.join("outputs/sub")).expect("mkdir");
        fs::write(draft.join("outputs/sub/f"), n.to_string()).expect("write");
        fs::rename(&draft, m.path(format!(".outfs/trash/key-{n}"))).expect("thrown away");
    };
    throw_away(0);
    let before = open();
    (1..60).for_each(throw_away);
    assert!(open() < before + 30, "{before} and {} descriptors", open());
}
