//! Semantics 2: listings of drafts, while they change and while they are sealed.
//!
//! The kernel remembers listings and opens no directory in the daemon: what is promised here holds without either
//! knowing when a listing begins and ends.

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::*;

fn draft() -> (Mount, PathBuf) {
    let m = Mount::new();
    let d = m.work("w");
    mkdir(&d);
    (m, d)
}

/// S2.1 A directory that is read while it changes neither repeats nor loses what stays.
#[test]
fn s2_1_readdir_while_changing() {
    let (_m, d) = draft();
    for i in 0..2000 {
        write(d.join(format!("stays-{i:04}")), "");
    }
    let mut list = fs::read_dir(&d).expect("opendir");
    let mut seen: Vec<_> = list.by_ref().take(10).map(|e| e.expect("an entry").file_name()).collect();
    for i in 0..100 {
        write(d.join(format!("new-{i:04}")), "");
    }
    seen.extend(list.map(|e| e.expect("an entry").file_name()));
    let mut stays: Vec<_> = seen.iter().filter(|n| n.as_bytes().starts_with(b"stays-")).collect();
    stays.sort();
    stays.dedup();
    assert_eq!(stays.len(), 2000);
    let total = seen.iter().filter(|n| n.as_bytes().starts_with(b"stays-")).count();
    assert_eq!(total, 2000, "no name comes twice");
}

/// S2.1 A listing goes on when its draft is sealed in the middle of it: each name once.
#[test]
fn s2_1_readdir_while_it_is_sealed() {
    let (m, dir) = draft();
    let mut made: Vec<_> = (0..1500).map(|i| format!("a-file-with-a-rather-long-name-{i:05}")).collect();
    for name in made.iter().rev() {
        write(dir.join(name), "");
    }
    let mut listing = fs::read_dir(&dir).expect("opendir");
    let first = listing.next().expect("there are names");
    assert_eq!(m.code(&["seal", "w", "key1"]), 0);
    let listed = std::iter::once(first).chain(listing);
    let mut listed: Vec<_> =
        listed.map(|e| e.expect("readdir").file_name().into_string().expect("it is text")).collect();
    listed.sort();
    made.sort();
    assert!(listed == made, "{} of {} names", listed.len(), made.len());
}

/// A directory that is read with positions.
struct Listing(*mut libc::DIR);

impl Listing {
    fn of(dir: &Path) -> Listing {
        let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).expect("no NUL");
        // SAFETY: the path ends in NUL; the result is checked.
        let open = unsafe { libc::opendir(path.as_ptr()) };
        assert!(!open.is_null(), "opendir: {}", std::io::Error::last_os_error());
        Listing(open)
    }

    /// The next name but `.` and `..`, and the position before it.
    fn next(&mut self) -> Option<(libc::c_long, String)> {
        loop {
            // SAFETY: an open directory that only this thread has.
            let (at, entry) = unsafe { (libc::telldir(self.0), libc::readdir(self.0)) };
            if entry.is_null() {
                return None;
            }
            // SAFETY: readdir gives a name that ends in NUL, valid until the next call.
            let name = unsafe { std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()) };
            let name = name.to_str().expect("the test's names are text").to_owned();
            if name != "." && name != ".." {
                return Some((at, name));
            }
        }
    }

    fn rest(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.next()).map(|(_, name)| name).collect()
    }

    fn seek(&mut self, at: libc::c_long) {
        // SAFETY: an open directory, and a position that telldir gave.
        unsafe { libc::seekdir(self.0, at) }
    }

    fn rewind(&mut self) {
        // SAFETY: an open directory.
        unsafe { libc::rewinddir(self.0) }
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        // SAFETY: opened in `of`, closed once.
        unsafe { libc::closedir(self.0) };
    }
}

/// S2.1 telldir, seekdir and rewinddir while names go, and when the draft is sealed meanwhile.
#[test]
fn s2_1_positions_in_directories() {
    const NAMES: usize = 10_000;
    let m = Mount::new();
    let top = m.draft("w", |out| (0..NAMES).for_each(|i| write(out.join(format!("f{i:05}")), "")));
    let dir = top.join("outputs");
    // Every other name goes.
    let stays = |name: &String| name[1..].parse::<usize>().expect("a number") % 2 == 0;
    let once = |mut names: Vec<String>, what: &str| {
        names.retain(stays);
        let listed = names.len();
        names.sort();
        names.dedup();
        assert_eq!((names.len(), listed), (NAMES / 2, NAMES / 2), "{what}");
    };
    let mut list = Listing::of(&dir);
    let (start, first) = list.next().expect("there are names");
    let mut seen = vec![(start, first)];
    seen.extend(std::iter::from_fn(|| list.next()).take(4000));
    let (at, after) = (seen[2000].0, seen[2000..].iter().map(|(_, name)| name.clone()).collect::<Vec<_>>());
    for i in (1..NAMES).step_by(2) {
        fs::remove_file(dir.join(format!("f{i:05}"))).expect("unlink");
    }
    let rest = list.rest();
    once(seen.iter().map(|(_, name)| name.clone()).chain(rest.clone()).collect(), "names went meanwhile");
    let mut wanted: Vec<_> = after.into_iter().chain(rest).collect();
    wanted.retain(stays);
    // Back to the start is no new beginning: other positions go on meaning what they meant.
    list.seek(start);
    once(list.rest(), "from the first position");
    list.seek(at);
    let mut again = list.rest();
    again.retain(stays);
    assert!(again == wanted, "{} and {} names after a position", again.len(), wanted.len());
    list.rewind();
    let fresh = list.rest();
    assert!(fresh.iter().all(stays), "what went is not listed anew");
    once(fresh, "after rewinddir");

    list.rewind();
    list.next().expect("there are names");
    fs::rename(&top, m.path("key1")).expect("seal");
    list.rewind();
    once(list.rest(), "rewound when it was sealed");
    let mut list = Listing::of(&m.path("key1/outputs"));
    let all: Vec<_> = std::iter::from_fn(|| list.next()).collect();
    list.seek(all[3000].0);
    assert!(list.rest().iter().eq(all[3000..].iter().map(|(_, name)| name)), "a sealed directory");
}

/// S2.1 Names that stay are listed once each, whatever is made and removed beside them all the time.
#[test]
fn s2_1_readdir_beside_changes() {
    let (_m, d) = draft();
    let stays: BTreeSet<_> = (0..1500).map(|i| format!("stays-with-a-long-name-{i:05}")).collect();
    stays.iter().for_each(|name| write(d.join(name), ""));
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        for thread in 0..2 {
            let (d, over) = (&d, &over);
            s.spawn(move || {
                for i in (0..).take_while(|_| !over.load(Ordering::Relaxed)) {
                    let name = d.join(format!("goes-{thread}-{}", i % 200));
                    write(&name, "");
                    if i % 3 == 0 {
                        fs::rename(&name, d.join(format!("moved-{thread}-{}", i % 50))).expect("rename");
                    } else {
                        fs::remove_file(&name).expect("unlink");
                    }
                }
            });
        }
        for _ in 0..40 {
            let listed = names(&d).into_iter().filter(|n| n.starts_with("stays")).collect::<Vec<_>>();
            let once: BTreeSet<_> = listed.iter().cloned().collect();
            over.fetch_or(once != stays || listed.len() != stays.len(), Ordering::Relaxed);
            assert!(once == stays && listed.len() == stays.len(), "{} of {}", listed.len(), stays.len());
        }
        over.store(true, Ordering::Relaxed);
    });
}

/// S2.1 What is made is listed, and what is removed is not, at once and every time.
#[test]
fn s2_1_a_listing_is_never_old() {
    let (_m, d) = draft();
    let mut there = BTreeSet::new();
    for i in 0..300 {
        let name = format!("f{i:03}");
        match i % 3 {
            0 => mkdir(d.join(&name)),
            1 => write(d.join(&name), ""),
            _ => {
                let before = d.join(format!("f{:03}", i - 1));
                fs::hard_link(before, d.join(&name))
                    .or_else(|_| fs::write(d.join(&name), ""))
                    .expect("a name")
            }
        }
        there.insert(name);
        assert!(names(&d).into_iter().eq(there.iter().cloned()), "after {i} names");
        if i % 7 == 6 {
            let old = there.pop_first().expect("some are left");
            let gone = if d.join(&old).is_dir() {
                fs::remove_dir(d.join(&old))
            } else {
                fs::remove_file(d.join(&old))
            };
            gone.expect("remove");
            assert!(names(&d).into_iter().eq(there.iter().cloned()), "without {old}");
        }
        if i % 11 == 10 {
            let old = there.pop_last().expect("some are left");
            fs::rename(d.join(&old), d.join("renamed")).map(|()| there.insert("renamed".into())).ok();
            if d.join(&old).exists() {
                there.insert(old);
            }
            assert!(names(&d).into_iter().eq(there.iter().cloned()), "after a rename");
        }
    }
}

/// S2.1 A directory that was removed while it is open lists nothing.
#[test]
fn s2_1_a_listing_of_what_was_removed() {
    let (_m, d) = draft();
    mkdir(d.join("dir"));
    write(d.join("dir/f"), "");
    let mut list = Listing::of(&d.join("dir"));
    assert_eq!(list.rest(), ["f"]);
    fs::remove_dir_all(d.join("dir")).expect("rm -r");
    list.rewind();
    assert_eq!(list.rest(), [""; 0]);
}

/// D3 … what another view … changes ( … a file in a draft) is seen within that time …, in listings that the
/// kernel remembers, too, and when the directory has the time that it had.
#[test]
fn d3_a_listing_after_another_views_change() {
    let mut m = Mount::new();
    let other = m.add_view("other", &[]);
    mkdir(m.path("key1"));
    let (here, there) = (m.path("key1/dir"), other.join("key1/dir"));
    mkdir(&here);
    let old = FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    let set_back = || File::open(&here).expect("open").set_times(old).expect("utimens");
    let mut wanted = BTreeSet::new();
    for i in 0..20 {
        set_back();
        let listed = || names(&there).into_iter().eq(wanted.iter().cloned());
        eventually("the other view's listing", listed);
        assert!(listed() && listed(), "remembered");
        write(here.join(format!("f{i:02}")), "");
        wanted.insert(format!("f{i:02}"));
        if i % 4 == 3 {
            let gone = wanted.pop_first().expect("there are names");
            fs::remove_file(here.join(gone)).expect("unlink");
        }
    }
}

/// S2.2 … `st_ino` … is what a listing shows: also when the kernel remembered the listing from before it was sealed.
/// S7.3 A missing `metadata.json` is written at sealing: and listed at once.
#[test]
fn s2_2_a_remembered_listing_and_sealing() {
    let (m, top) = draft();
    let dir = top.join("dir");
    mkdir(&dir);
    // Longer than what one message holds: of the names behind that the kernel knows no more than the listing.
    (0..2000).for_each(|i| write(dir.join(format!("a-name-that-is-rather-long-{i:05}")), ""));
    let held = File::open(&dir).expect("open");
    sh("sh", &[&"-c", &"echo 2 >/proc/sys/vm/drop_caches"]);
    for _ in 0..2 {
        assert_eq!(names(&dir).len(), 2000);
        assert_eq!(names(&top), ["dir"]);
    }
    let top_held = Listing::of(&top);
    m.ok(&["seal", "w", "key1"]);
    let top = m.path("key1");
    eventually("the sealed entry", || m.is_sealed("key1"));
    assert_eq!(names(&top), ["dir", "metadata.json"]);
    assert_eq!(fs::metadata(top.join("dir")).expect("stat").ino(), held.metadata().expect("fstat").ino());
    for _ in 0..2 {
        let listed: Vec<_> =
            fs::read_dir(top.join("dir")).expect("opendir").map(|e| e.expect("readdir")).collect();
        assert_eq!(listed.len(), 2000);
        for e in listed {
            assert_eq!(e.ino(), fs::symlink_metadata(e.path()).expect("stat").ino(), "{:?}", e.path());
        }
    }
    drop((held, top_held));
}

/// S6.3 … it is freed when the last holder lets go: one who lists it is one, and gets all names.
#[test]
fn s6_3_a_listing_of_what_is_evicted() {
    let m = Mount::new();
    for sealed_here in [true, false] {
        let made: Vec<_> = (0..3000).map(|i| format!("a-name-that-is-rather-long-{i:05}")).collect();
        m.entry("key1", |out| made.iter().for_each(|name| write(out.join(name), "")));
        if !sealed_here {
            // Not as a former draft.
            sh("sh", &[&"-c", &"echo 2 >/proc/sys/vm/drop_caches"]);
        }
        let mut list = Listing::of(&m.path("key1/outputs"));
        let (start, first) = list.next().expect("there are names");
        m.ok(&["evict", "key1"]);
        let mut all = vec![first];
        all.extend(list.rest());
        all.sort();
        assert!(all == made, "{} of {} names", all.len(), made.len());
        list.seek(start);
        assert_eq!(list.rest().len(), made.len());
        drop(list);
        eventually("it is freed", || m.manifests() == 0);
    }
}

/// D3 … Listings of `MNT`, `MNT/.outfs/work` and `MNT/.outfs/by-task` show at once what anybody changed.
#[test]
fn d3_listings_show_at_once_what_anybody_changed() {
    let mut m = Mount::new();
    let other = m.add_view("other", &[]);
    let ro = m.add_view("ro", &["--read-only"]);
    let dir = m.outside("dir");
    mkdir(&dir);
    write(dir.join("f"), "x");
    let dir = dir.to_str().expect("plain").to_owned();
    let mut keys = BTreeSet::new();
    for i in 0..12 {
        let key = format!("key-{i:02}");
        m.ok(&["put", &key, &dir, "--task-id", &format!("task-{i:02}")]);
        keys.insert(key);
        let check = |what: &str, keys: &BTreeSet<String>| {
            for top in [m.mnt(), &other, &ro] {
                for _ in 0..3 {
                    assert!(names(top).into_iter().eq(keys.iter().cloned()), "{what}: {}", top.display());
                }
                let tasks = names(top.join(".outfs/by-task")).len();
                assert_eq!(tasks, keys.len(), "tasks after {what}: {}", top.display());
            }
        };
        check("a put", &keys);
        if i % 3 == 2 {
            let gone = keys.pop_first().expect("there are keys");
            m.ok(&["evict", &gone]);
            check("an eviction", &keys);
        }
    }
    // Drafts: in the views that show them.
    for i in 0..6 {
        let (from, to) = if i % 2 == 0 { (m.mnt(), &*other) } else { (&*other, m.mnt()) };
        assert!(names(to.join(".outfs/work")).is_empty());
        mkdir(from.join(format!("draft-{i}")));
        mkdir(from.join(format!(".outfs/work/w{i}")));
        assert!(names(to).contains(&format!("draft-{i}")));
        assert_eq!(names(to.join(".outfs/work")), [format!("w{i}")]);
        fs::rename(from.join(format!(".outfs/work/w{i}")), from.join(format!("sealed-{i}"))).expect("seal");
        assert!(names(to).contains(&format!("sealed-{i}")));
        fs::rename(from.join(format!("draft-{i}")), from.join(format!(".outfs/trash/draft-{i}")))
            .expect("drop");
        assert!(!names(to).contains(&format!("draft-{i}")));
        assert!(!names(from).contains(&format!("draft-{i}")));
    }
}
