//! A store on a disk that is too small, and under a quota that is reached, with a daemon at work.
//!
//! usage: `full ext4|xfs [MEBIBYTES [USERS_PLACE]]` with OUTFS_BIN set, as root, who may become an ordinary user for all but the disks. Eviction makes room, or whoever writes gets
//! ENOSPC at once; reading goes on; what returns of space heals the daemon, without a restart; the quota holds by
//! what the disk reports; inodes count, too. Panics with a reason when that is not so; prints what it measured.

#[path = "daemon.rs"]
mod daemon;
#[path = "quota.rs"]
mod quota;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use daemon::{Daemon, Random};

const MIB: u64 = 1 << 20;
/// "At once".
const AT_ONCE: Duration = Duration::from_secs(1);
/// An entry that makes others go first, on a disk that others fill meanwhile.
const IN_TIME: Duration = Duration::from_secs(5);

/// A file system in a file, mounted; both go when it is dropped.
struct Disk {
    at: PathBuf,
    image: PathBuf,
}

impl Disk {
    fn new(kind: &str, below: &Path, mib: u64, options: &[&str]) -> Self {
        let (image, at) = (below.join("image"), below.join("disk"));
        fs::create_dir_all(&at).expect("a directory");
        File::create(&image).and_then(|f| f.set_len(mib * MIB)).expect("an image");
        run(Command::new(format!("mkfs.{kind}")).args(options).arg("-q").arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        Self { at, image }
    }
}

/// What a disk has.
struct Space {
    at: PathBuf,
}

impl Space {
    fn space(&self) -> nix::sys::statvfs::Statvfs {
        nix::sys::statvfs::statvfs(&self.at).expect("statvfs")
    }

    fn used(&self) -> u64 {
        let s = self.space();
        (s.blocks() - s.blocks_free()) * s.fragment_size()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = || Command::new("umount").arg(&self.at).output().is_ok_and(|o| o.status.success());
        let end = Instant::now() + Duration::from_secs(30);
        while !unmounted() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = fs::remove_file(&self.image);
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An entry with a large file of `size` bytes and some small ones, written through the mount; what was in it.
fn write_entry(daemon: &Daemon, key: &str, size: usize, small: usize) -> io::Result<()> {
    let work = daemon.mnt().join(".outfs/work").join(key);
    let outputs = work.join("outputs");
    let written = (|| {
        fs::create_dir(&work)?;
        fs::create_dir(&outputs)?;
        fs::write(outputs.join("large"), content(key, size))?;
        (0..small).try_for_each(|n| fs::write(outputs.join(format!("small{n}")), format!("{key} {n}")))?;
        fs::rename(&work, daemon.mnt().join(key))
    })();
    if written.is_err() {
        let _ = fs::remove_dir_all(&work);
    }
    written
}

fn content(key: &str, size: usize) -> Vec<u8> {
    Random::new(key.bytes().fold(7, |sum, b| sum * 31 % 0xffff_fffb + u64::from(b))).bytes(size)
}

fn whole(daemon: &Daemon, key: &str, size: usize) {
    let read = fs::read(daemon.mnt().join(key).join("outputs/large"));
    assert!(
        read.unwrap_or_else(|e| panic!("reading {key}: {e}")) == content(key, size),
        "{key} is not whole"
    );
}

/// How long it takes until this is refused for want of space.
fn refused(what: &str, attempt: impl FnOnce() -> io::Result<()>) -> Duration {
    let begun = Instant::now();
    let result = attempt();
    let took = begun.elapsed();
    match result {
        Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {}
        other => panic!("{what}: ENOSPC was expected: {other:?}"),
    }
    assert!(took < AT_ONCE, "{what}: refused after {took:?}");
    took
}

/// Reads an entry's large file from the daemon: the kernel's pages of it are given up first. And once more through the program.
fn whole_from_the_store(daemon: &Daemon, key: &str, size: usize) {
    let file =
        File::open(daemon.mnt().join(key).join("outputs/large")).unwrap_or_else(|e| panic!("{key}: {e}"));
    nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .expect("fadvise");
    whole(daemon, key, size);
    let said = daemon.try_run(&["cat", key, "outputs/large"]);
    assert!(said.status.success() && said.stdout == content(key, size), "cat of {key}: {}", said.status);
}

/// Writes until the disk is full.
fn fill(ballast: &Path) {
    let mut f = File::options().create(true).append(true).open(ballast).expect("open");
    let full = loop {
        if let Err(e) = f.write_all(&[1; 65536]) {
            break e;
        }
    };
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC), "{full}");
}

/// While others take what becomes free: entries are written, or refused for want of space, in time, until none but this
/// many are left. The longest that one took.
fn starve(daemon: &Daemon, left: usize, size: usize, mut take: impl FnMut()) -> Duration {
    let (mut longest, end) = (Duration::ZERO, Instant::now() + Duration::from_secs(60));
    while keys(daemon) > left {
        assert!(Instant::now() < end, "{} entries stay", keys(daemon));
        let begun = Instant::now();
        match write_entry(daemon, "more", size, 0) {
            Ok(()) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EEXIST)) => {}
            Err(e) => panic!("an entry on a full disk: {e}"),
        }
        longest = longest.max(begun.elapsed());
        assert!(longest < IN_TIME, "an entry on a full disk took {longest:?}");
        take();
    }
    longest
}

fn put_refused(daemon: &Daemon, tree: &Path) -> Duration {
    let begun = Instant::now();
    let put = daemon.try_run(&["put", "refused", tree.to_str().expect("text")]);
    let said = String::from_utf8_lossy(&put.stderr).into_owned();
    assert!(put.status.code() == Some(1) && said.contains("no room"), "put: {said}");
    begun.elapsed()
}

fn keys(daemon: &Daemon) -> usize {
    daemon.run(&["ls", "--json"]).lines().count()
}

fn sound(daemon: &Daemon) {
    daemon.run(&["stop"]);
    daemon.run(&["fsck", "--verify-data"]);
}

/// Until it succeeds; how long that took.
fn heals(what: &str, mut attempt: impl FnMut() -> io::Result<()>) -> Duration {
    let begun = Instant::now();
    loop {
        match attempt() {
            Ok(()) => return begun.elapsed(),
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && begun.elapsed() < Duration::from_secs(10) => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(e) => panic!("{what}: {e} after {:?}", begun.elapsed()),
        }
    }
}

/// A quota far below what is written: everything is stored, and the disk never shows more than the quota.
fn quota(disk: &Space, daemon: &Daemon, mib: u64, empty: u64) {
    let quota = mib * 3 / 8 * MIB;
    let size = (quota / 24) as usize;
    daemon.mount(&["--size", &quota.to_string(), "--reserve", "0", "--min-age", "0s"]);
    let within = quota + quota / 100;
    let (mut most, mut at_first) = (0, 0);
    for n in 0..72 {
        let key = format!("key{n}");
        write_entry(daemon, &key, size, 10).unwrap_or_else(|e| panic!("{key}: {e}"));
        daemon.run(&["gc"]);
        let mut used = disk.used().saturating_sub(empty);
        at_first = at_first.max(used);
        // A draft may go past the quota; sealed, it makes others go with the next tick, and freed blocks come back then.
        let begun = Instant::now();
        while used > within && begun.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(10));
            used = disk.used().saturating_sub(empty);
        }
        most = most.max(used);
        whole(daemon, &key, size);
    }
    let share = |used: u64| used as f64 / quota as f64 * 100.0;
    println!(
        "quota of {} MiB, three times that written: at most {:.1} % of it by the disk, {:.1} % right after a seal",
        quota / MIB,
        share(most),
        share(at_first)
    );
    assert!(most <= within, "the quota does not hold");
    assert!(keys(daemon) >= 15, "it is used, too");
    sound(daemon);
}

/// A quota that is reached, and nothing that may go.
fn quota_refuses(daemon: &Daemon, tree: &Path) {
    daemon.mount(&["--size", "16M", "--reserve", "0", "--min-age", "1h"]);
    let full = (0..40).find_map(|n| write_entry(daemon, &format!("young{n}"), 1 << 20, 3).err());
    assert_eq!(full.and_then(|e| e.raw_os_error()), Some(libc::ENOSPC));
    assert!(keys(daemon) >= 8, "the quota is used, too");
    let mnt = daemon.mnt();
    let mkdir = refused("mkdir", || fs::create_dir(mnt.join(".outfs/work/refused")));
    let put = put_refused(daemon, tree);
    println!("quota reached, all young: mkdir is refused after {mkdir:.0?}, put after {put:.0?}");
    whole(daemon, "young0", 1 << 20);
    daemon.run(&["evict", "young0"]);
    daemon.run(&["evict", "young1"]);
    let took = heals("after an eviction", || write_entry(daemon, "healed", 1 << 20, 3));
    println!("after an eviction an entry is stored within {took:.0?}");
    sound(daemon);
}

/// A disk that others fill: eviction makes room as long as there is anything to evict.
fn disk_full(disk: &Space, daemon: &Daemon, tree: &Path, reserve: &str) {
    daemon.mount(&["--size", "100%", "--reserve", reserve, "--min-age", "0s"]);
    let total = disk.space().blocks() * disk.space().fragment_size();
    let entries = 2 * total / MIB;
    for n in 0..entries {
        let key = format!("key{n}");
        write_entry(daemon, &key, 1 << 20, 3).unwrap_or_else(|e| panic!("{key} of {entries}: {e}"));
    }
    println!(
        "disk of {} MiB, reserve {reserve}: {entries} MiB written, {} entries stay",
        total / MIB,
        keys(daemon)
    );
    assert!(keys(daemon) as u64 >= total / MIB / 2, "the disk is used, too");
    let [unread, last] = [2, 1].map(|n| format!("key{}", entries - n));
    whole(daemon, &last, 1 << 20);
    daemon.run(&["pin", &last]);
    daemon.run(&["pin", &unread]);

    let ballast = disk.at.join("ballast");
    fill(&ballast);
    // Everything but the pinned entries has to go now, and that is not enough.
    let mnt = daemon.mnt();
    let evicting = starve(daemon, 2, 100, || fill(&ballast));
    let mkdir = refused("mkdir", || fs::create_dir(mnt.join(".outfs/work/refused")));
    let put = put_refused(daemon, tree);
    println!(
        "disk full: at most {evicting:.0?} for an entry; then mkdir is refused after {mkdir:.0?}, put after {put:.0?}"
    );
    whole(daemon, &last, 1 << 20);
    // Nobody has read this one yet.
    whole_from_the_store(daemon, &unread, 1 << 20);
    fs::remove_file(&ballast).expect("unlink");
    let took = heals("after space returned", || write_entry(daemon, "healed", 1 << 20, 3));
    println!("after space returned an entry is stored within {took:.0?}");
    sound(daemon);
}

/// A disk with few inodes.
fn inodes(disk: &Space, daemon: &Daemon, tree: &Path) {
    daemon.mount(&["--size", "100%", "--reserve", "0", "--min-age", "0s"]);
    let total = disk.space().files();
    // Each takes three and more.
    let entries = total / 3;
    for n in 0..entries {
        let key = format!("key{n}");
        write_entry(daemon, &key, 100, 3).unwrap_or_else(|e| panic!("{key} of {entries}: {e}"));
    }
    let left = disk.space().files_free();
    println!(
        "disk of {total} inodes: {entries} entries written, {} stay, {left} inodes are free",
        keys(daemon)
    );
    // The last entry took of what is to stay free, and upkeep has others go for it.
    heals("1 % of the inodes free", || match disk.space().files_free() >= total / 100 {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
    });
    assert!(keys(daemon) as u64 >= total / 8, "they are used, too");
    let [unread, last] = [2, 1].map(|n| format!("key{}", entries - n));
    whole(daemon, &last, 100);
    daemon.run(&["pin", &last]);
    daemon.run(&["pin", &unread]);

    // Others take all there are.
    let ballast = disk.at.join("ballast");
    fs::create_dir(&ballast).expect("mkdir");
    let mut taken = 0;
    let mut take = || {
        while File::create(ballast.join(taken.to_string())).is_ok() {
            taken += 1;
        }
    };
    take();
    let longest = starve(daemon, 2, 100, &mut take);
    let mnt = daemon.mnt();
    let mkdir = refused("mkdir", || fs::create_dir(mnt.join(".outfs/work/refused")));
    let put = put_refused(daemon, tree);
    println!(
        "others take {taken} inodes: at most {longest:.0?} for an entry; then mkdir is refused after {mkdir:.0?}, put after {put:.0?}"
    );
    whole(daemon, &last, 100);
    whole_from_the_store(daemon, &unread, 100);
    fs::remove_dir_all(&ballast).expect("they go");
    let took = heals("after inodes returned", || write_entry(daemon, "healed", 100, 3));
    println!("after inodes returned an entry is stored within {took:.0?}");
    sound(daemon);
}

/// What is done on a disk of its own.
struct Phase {
    name: &'static str,
    /// For mkfs.
    options: &'static [&'static str],
    /// The least size of the disk, in MiB.
    mib: u64,
    work: fn(&Place),
}

/// Where a phase works.
struct Place {
    disk: Space,
    daemon: Daemon,
    tree: PathBuf,
    mib: u64,
    /// What was used before there was anything of outfs.
    empty: u64,
}

const PHASES: [Phase; 5] = [
    Phase {
        name: "quota by the disk",
        options: &[],
        mib: 640,
        work: |p| quota::by_the_disk(&p.disk, &p.daemon, p.empty),
    },
    Phase { name: "quota", options: &[], mib: 0, work: |p| quota(&p.disk, &p.daemon, p.mib, p.empty) },
    Phase { name: "quota refuses", options: &[], mib: 0, work: |p| quota_refuses(&p.daemon, &p.tree) },
    Phase { name: "disk full", options: &[], mib: 0, work: |p| disk_full(&p.disk, &p.daemon, &p.tree, "8M") },
    Phase { name: "inodes", options: &["-N", "1200"], mib: 0, work: |p| inodes(&p.disk, &p.daemon, &p.tree) },
];

fn work_on(phase: &Phase, disk: &Path, tree: &Path, mib: u64) {
    let space = Space { at: disk.to_owned() };
    let empty = space.used();
    (phase.work)(&Place { disk: space, daemon: Daemon::kept(disk), tree: tree.to_owned(), mib, empty });
}

/// The same by an ordinary user, in whose directory there are copies of this program and of outfs.
fn work_as_user(phase: &Phase, disk: &Path, tree: &Path, mib: u64, place: &Path) {
    run(Command::new("chown").arg("nobody").arg(disk));
    let script = "test -e fuse || mknod -m 666 fuse c 10 229
        mountpoint -q /dev/fuse || mount --bind fuse /dev/fuse
        exec setpriv --reuid=nobody --regid=nogroup --clear-groups \"$@\"";
    let status = Command::new("sh")
        .args(["-ec", script, "-"])
        .arg(place.join("full"))
        .args(["--phase", phase.name])
        .args([disk, tree])
        .arg(mib.to_string())
        .current_dir(place)
        .env("HOME", place)
        .env("TMPDIR", place.join("tmp"))
        .env("OUTFS_BIN", place.join("outfs"))
        .status()
        .expect("sh starts");
    assert!(status.success(), "{}: {status}", phase.name);
}

fn main() {
    let usage = "usage: full ext4|xfs [MEBIBYTES [USERS_PLACE]]";
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, phase, disk, tree, mib] = &args[..]
        && flag == "--phase"
    {
        let phase = PHASES.iter().find(|p| p.name == phase).expect(usage);
        return work_on(phase, Path::new(disk), Path::new(tree), mib.parse().expect(usage));
    }
    let mut args = args.into_iter();
    let kind = args.next().expect(usage);
    let mib = args.next().map_or(64, |n| n.parse().expect(usage));
    let user = args.next().map(PathBuf::from);
    let place = tempfile::Builder::new().prefix("outfs-full-").tempdir().expect("a temporary directory");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let tree = place.path().join("tree");
    fs::create_dir(&tree).expect("a directory");
    fs::write(tree.join("f"), vec![7; 2 << 20]).expect("a file");
    for phase in PHASES.iter().filter(|p| kind == "ext4" || p.options.is_empty()) {
        let disk = Disk::new(&kind, place.path(), mib.max(phase.mib), phase.options);
        match &user {
            Some(user) => work_as_user(phase, &disk.at, &tree, mib, user),
            None => work_on(phase, &disk.at, &tree, mib),
        }
    }
    println!("{kind}: passed");
}
