//! Disks that refuse writes: what was acknowledged meanwhile is on them.
//!
//! Linux tells of a write that failed once, and calls what it could not write written. In each round writers store large files
//! while the disk refuses some writes, or all of them, for a moment again and again; who is refused tries again. Then the file system
//! is unmounted, so that nothing is left in memory, and what was reported sealed must be there.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Place;
use crate::check::{Told, check};
use crate::daemon::{Daemon, Random};
use crate::disk::{Marker, Refuses};
use crate::image::PAGE;
use crate::work::SEALED;

const WRITERS: u64 = 4;
/// How long writers work in a round.
const TIME: Duration = Duration::from_millis(2500);
/// How often who is refused tries again before it gives up.
const TRIES: usize = 5;
/// How the pages of large files begin.
const MARK: &[u8] = b"a page of a large file that the disk may refuse";

/// The files of an entry follow from its key.
pub fn files(key: &str) -> Vec<(&'static str, Vec<u8>)> {
    let mut random = Random::new(key.bytes().fold(11, |sum, b| sum * 31 % 0xffff_fffb + u64::from(b)));
    let mut large = |len| {
        let mut data = random.bytes(len);
        data.chunks_mut(PAGE).filter(|page| page.len() >= MARK.len()).for_each(|page| {
            page[..MARK.len()].copy_from_slice(MARK);
        });
        data
    };
    vec![("large", large(700_000)), ("larger", large(2_500_000)), ("small", key.repeat(40).into_bytes())]
}

fn write_files(outputs: &Path, key: &str) -> io::Result<()> {
    fs::create_dir_all(outputs)?;
    files(key).into_iter().try_for_each(|(name, data)| fs::write(outputs.join(name), data))
}

/// Whether an entry in a view has each of its files with each of its bytes; else what is wrong.
pub fn whole(mnt: &Path, key: &str) -> Result<(), String> {
    for (name, data) in files(key) {
        let path = mnt.join(key).join("outputs").join(name);
        let read = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        if read != data {
            return Err(format!("{}: its bytes are not those that were written", path.display()));
        }
    }
    Ok(())
}

/// Tries until it is done, or for so long that it is of no use.
fn again(random: &mut Random, mut what: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    for _ in 1..TRIES {
        match what() {
            Ok(()) => return Ok(()),
            Err(_) => std::thread::sleep(Duration::from_millis(random.below(120))),
        }
    }
    what()
}

/// Stores one entry in some way.
fn store(daemon: &Daemon, random: &mut Random, key: &str) -> io::Result<()> {
    let mnt = daemon.mnt();
    if random.below(4) == 0 {
        let source = daemon.scratch().join(key);
        write_files(&source, key)?;
        return again(random, || {
            let put = daemon.try_run(&["put", key, source.to_str().expect("a temporary path is text")]);
            let said = String::from_utf8_lossy(&put.stderr).into_owned();
            if put.status.success() { Ok(()) } else { Err(io::Error::other(said)) }
        });
    }
    let work = mnt.join(".outfs/work").join(key);
    fs::create_dir(&work)?;
    write_files(&work.join("outputs"), key)?;
    if random.below(3) == 0 {
        // A careful writer, who then goes on all the same.
        let synced = fs::File::open(work.join("outputs/large")).and_then(|file| file.sync_all());
        drop(synced);
    }
    // What was closed is made durable in the background meanwhile.
    std::thread::sleep(Duration::from_millis(random.below(250)));
    let mut tries = 0;
    again(random, || {
        tries += 1;
        // Once it was refused, it may be written anew, in another file or in the same.
        match tries {
            3 => {
                fs::remove_dir_all(work.join("outputs"))?;
                write_files(&work.join("outputs"), key)?;
            }
            4 => write_files(&work.join("outputs"), key)?,
            _ => {}
        }
        fs::rename(&work, mnt.join(key))
    })
}

fn write(daemon: &Daemon, sealed: &Mutex<Vec<String>>, over: &AtomicBool, mut random: Random, writer: u64) {
    for n in 0.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("writer{writer}.{n}");
        match store(daemon, &mut random, &key) {
            Ok(()) => sealed.lock().expect("no writer panics").push(key),
            // Of a file system that has broken down all is refused.
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Has writers work while the disk refuses what it refuses in this round; the keys of what was reported sealed.
fn work(daemon: &Daemon, marker: &Marker, refuses: Refuses, random: &mut Random) -> Vec<String> {
    let (over, sealed) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (over, sealed, random) = (&over, &sealed, Random::new(random.below(u64::MAX)));
            scope.spawn(move || write(daemon, sealed, over, random, writer));
        }
        let end = Instant::now() + TIME;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50 + random.below(200)));
            marker.refuse(Some(match refuses {
                Refuses::Nth(_) => Refuses::Nth(random.below(40)),
                other => other,
            }));
            std::thread::sleep(Duration::from_millis(20 + random.below(200)));
            marker.refuse(None);
        }
        over.store(true, Ordering::Relaxed);
    });
    sealed.into_inner().expect("no writer panics")
}

/// So many rounds; the number of those in which a promise was broken.
pub fn rounds(place: &Place, kind: &str, rounds: usize, seed: u64) -> usize {
    let Place { disk, base, at, .. } = place;
    let (mut random, mut broken, mut sealed) = (Random::new(seed), 0, 0);
    println!("{kind}, seed {seed}: {rounds} rounds with a disk that refuses writes");
    for round in 0..rounds {
        // What the file system itself writes is refused in some rounds, too: it gives up then.
        let (what, refuses) = [
            ("content", Refuses::Pages(MARK)),
            ("a write", Refuses::Nth(0)),
            ("content", Refuses::Pages(MARK)),
            ("all", Refuses::All),
        ][round % 4];
        disk.replace(base.clone());
        let attached = disk.mount(kind, at).expect("the new file system can be mounted");
        let daemon = Daemon::kept(at);
        daemon.mount(&["--size", "1G"]);
        let keys = work(&daemon, &disk.marker(), refuses, &mut random);
        drop(daemon);
        drop(attached);
        let mut told = Told::default();
        keys.iter().for_each(|key| told.learn(&format!("{SEALED} {key}")));
        sealed += told.entries();
        let result = disk.mount(kind, at).and_then(|_attached| check(&Daemon::kept(at), &told, whole));
        if let Err(why) = result {
            broken += 1;
            println!("round {round}, {what} refused: {why}");
        }
    }
    let refused = disk.marker().refused();
    println!("{kind}: {refused} writes refused, {sealed} entries reported sealed, {broken} rounds broken");
    assert!(refused > 0 && sealed > 0, "nothing was tried");
    broken
}
