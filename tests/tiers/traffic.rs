//! How little is moved.

use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outfs::cache::{Cache, LeaseKind, Limits, TierOptions};
use outfs::fuse::Transport;
use outfs::model::groups::{GroupHash, GroupHasher};
use outfs::model::manifest::{Attrs, Content, Origin, Seal, TreeBuilder};
use outfs::model::{BlobHash, EntryKey, Manifest};
use outfs::tier::{
    self, Capabilities, MemoryTier, Object, Places, PlacesBuilder, Tier, TierError, Tree, ship,
};

use super::mounted::{World, content, patient};
use super::suite::{Made, key, soon};

/// S15.9 Listing an entry that only a tier has moves only what says what is in it; reading all of it, hardly more than its
/// contents.
#[test]
fn listing_moves_the_manifest_and_reading_each_content_once() {
    const FILES: usize = 20_000;
    const SIZE: usize = 1500;
    let w = World::new(Transport::Dev, patient(), FILES, SIZE);
    let (top, before) = (w.mnt.join("far-away"), w.tier.traffic());
    let listed = Command::new("ls").arg("-lR").arg(&top).output().expect("ls");
    assert!(listed.status.success());
    assert!(String::from_utf8_lossy(&listed.stdout).lines().count() > FILES);
    let after = w.tier.traffic();
    let entry = w.cache.entry(&key("far-away"), LeaseKind::Hold).expect("an index").expect("it was found");
    let manifest = entry.manifest().expect("it is here").as_bytes().len() as u64;
    assert_eq!(after.calls - before.calls, 2, "the entry and its tree");
    let listing = after.given - before.given;
    assert!(listing < manifest + FILES as u64 * 40, "{listing} of a manifest of {manifest}");
    for n in 0..FILES {
        assert!(fs::read(top.join(format!("outputs/{n}"))).expect("read") == content(1, n, SIZE), "{n}");
    }
    let given = w.tier.traffic().given - after.given;
    let unique = (FILES * SIZE) as u64;
    eprintln!("listing moved {listing} bytes; reading {unique} bytes moved {given}");
    assert!(given * 100 <= unique * 102, "{given} of {unique}");
}

/// S15.9 Listing an entry that only a tier has moves only what says what is in it; reading all of it, hardly more than its
/// contents.
#[test]
fn all_of_an_entry_comes_once_however_many_read_it() {
    const SIZES: [usize; 8] = [10, 5000, 200_000, 262_144, 262_145, 524_288, 1_000_000, 3_000_077];
    // Of which the last two of each size have the same content as the first two.
    let files = (0..10u8).flat_map(|seed| SIZES.map(|size| (format!("{size}-{seed}"), size, seed % 8)));
    let files: Vec<(String, usize, u8)> = files.collect();
    let unique = 8 * SIZES.iter().sum::<usize>() as u64;
    let made = Made::new("far-away", &files.iter().map(|(n, s, i)| (&n[..], *s, *i)).collect::<Vec<_>>());
    let tier = Arc::new(MemoryTier::new("memory", Capabilities { push: true, packs: true }));
    ship(&*tier, &made.manifest, &made, &soon).expect("it can be sent");
    let dir = tempfile::Builder::new().prefix("outfs-test-").tempdir().expect("a temporary directory");
    let cache = Cache::open(&dir.path().join("store"), Limits::default()).expect("a new store");
    cache.attach_tiers(vec![tier.clone()], patient());
    let entry = cache.find(&key("far-away"), LeaseKind::Hold).expect("an answer").expect("it is there");
    let before = tier.traffic().given;
    let reader = |first: usize| {
        for n in 0..files.len() {
            let (name, size, _) = &files[(first * 19 + n * 7) % files.len()];
            let record = entry.file(name.as_bytes()).expect("it has it");
            let hash = made.manifest.get(record).and_then(|r| r.hash()).expect("a file");
            let read = entry.read_all(record, *size as u64).expect("read");
            assert!(read == made.content(&hash), "{name}");
        }
    };
    std::thread::scope(|s| (0..4).for_each(|first| drop(s.spawn(move || reader(first)))));
    cache.settle();
    let given = tier.traffic().given - before;
    eprintln!("reading {unique} bytes moved {given}");
    assert!(unique <= given && given * 100 <= unique * 102, "{given} of {unique}");
}

/// A tier with one entry, of one content too large to be kept in memory.
struct Huge {
    tree: Tree,
    given: AtomicU64,
}

const HUGE: u64 = 1 << 30;
const BLOCK: u64 = 64 << 10;

/// Some of the content.
fn huge(range: Range<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut at = range.start / BLOCK;
    while at * BLOCK < range.end {
        let mut block = vec![at as u8; BLOCK as usize];
        block[..8].copy_from_slice(&at.to_le_bytes());
        let from = range.start.saturating_sub(at * BLOCK).min(BLOCK) as usize;
        let to = (range.end - at * BLOCK).min(BLOCK) as usize;
        bytes.extend_from_slice(&block[from..to]);
        at += 1;
    }
    bytes
}

impl Huge {
    fn new() -> Huge {
        let mut hasher = GroupHasher::default();
        (0..HUGE / (1 << 20)).for_each(|n| hasher.update(&huge(n << 20..(n + 1) << 20)));
        let (hash, groups, size): (BlobHash, Vec<GroupHash>, u64) = hasher.finish();
        let mut tree = TreeBuilder::new(Attrs::default());
        let node = tree.file(tree.top(), b"huge", Attrs::default(), None).expect("a name");
        tree.set_content(node, Content { hash, size, groups });
        let (replaces, origin) = (None, Origin::default());
        let seal = Seal { key: key("far-away"), sealed_at_ns: 1, inferred: false, replaces, origin };
        let manifest = Manifest::parse(tree.finish(&seal).expect("a tree")).expect("a manifest");
        let places = PlacesBuilder::new(1 << 20).finish(&manifest);
        Huge { tree: Tree { manifest: Arc::new(manifest), places }, given: AtomicU64::new(0) }
    }
}

impl Tier for Huge {
    fn name(&self) -> &str {
        "huge"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { push: false, packs: true }
    }

    fn find(&self, wanted: &EntryKey, _by: Instant) -> tier::Result<Tree> {
        if *wanted != key("far-away") {
            return Err(TierError::absent("huge", "find", wanted));
        }
        let bytes = Tree::encode(&self.tree.manifest, &self.tree.places).len() as u64;
        self.given.fetch_add(bytes, Ordering::Relaxed);
        Ok(self.tree.clone())
    }

    fn get(&self, _object: &Object, range: Range<u64>, _by: Instant) -> tier::Result<Vec<u8>> {
        self.given.fetch_add(range.end - range.start, Ordering::Relaxed);
        Ok(huge(range))
    }

    fn put(&self, object: &Object, _: u64, _: &mut dyn Read, _: Instant) -> tier::Result<()> {
        Err(TierError::absent("huge", "put", object))
    }

    fn missing(&self, objects: &[Object], _by: Instant) -> tier::Result<Vec<Object>> {
        Ok(objects.to_vec())
    }

    fn publish(&self, manifest: &Manifest, _: &Places, _: Instant) -> tier::Result<()> {
        Err(TierError::absent("huge", "publish", &manifest.seal().key))
    }
}

/// S15.9 Listing an entry that only a tier has moves only what says what is in it; reading all of it, hardly more than its
/// contents.
#[test]
fn a_page_of_a_gibibyte_moves_less_than_a_mebibyte() -> io::Result<()> {
    let dir = tempfile::Builder::new().prefix("outfs-test-").tempdir()?;
    let cache = Cache::open(&dir.path().join("store"), Limits::default()).expect("a new store");
    let tier = Arc::new(Huge::new());
    let long = Duration::from_secs(120);
    let options =
        TierOptions { look_up: long, answer: long, read: long, absent: long, ..TierOptions::default() };
    cache.attach_tiers(vec![tier.clone()], options);
    let entry = cache.find(&key("far-away"), LeaseKind::Hold).expect("an answer").expect("it is there");
    let record = entry.file(b"huge").expect("it has it");
    let mut before = 0;
    // The third and fourth lie beside each other, the fourth where it needs two of what is fetched at once.
    let anywhere = (1..60u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (HUGE - 4096));
    for at in [700_000_001, HUGE - 4096, 512 << 10, (3 << 19) - 100].into_iter().chain(anywhere) {
        let mut page = [0; 4096];
        assert_eq!(entry.read(record, at, &mut page).expect("read"), 4096);
        assert!(page[..] == huge(at..at + 4096));
        // What is read ahead counts, too.
        cache.settle();
        let given = tier.given.load(Ordering::Relaxed);
        assert!(given - before <= 1 << 20, "{} bytes for 4 KiB at {at}", given - before);
        before = given;
    }
    Ok(())
}
