//! What every tier does, whatever is behind it.
//!
//! One function takes what makes an empty tier, and has it do all of it. Whether a tier refuses what is wrong is
//! not asked here: that is the strict one's.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outfs::model::groups::{GROUP, GroupHasher};
use outfs::model::manifest::{Attrs, Content, NodeId, Origin, Seal, TreeBuilder};
use outfs::model::{BlobHash, EntryKey, Manifest, PackHash};
use outfs::tier::{Form, Object, Source, Tier, TierErrorKind, ship};

/// Long enough for a server on a busy machine.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(120)
}

pub fn key(text: &str) -> EntryKey {
    text.parse().unwrap()
}

/// An entry with the contents it is made of.
pub struct Made {
    pub manifest: Manifest,
    contents: Vec<(BlobHash, Vec<u8>)>,
}

/// See [`Made::new`].
pub const TEXT: u8 = 200;

impl Made {
    /// Files by their names below the top; a number of bytes each, of which the second says which: noise, or from [`TEXT`] on
    /// what becomes smaller when it is compressed.
    pub fn new(key: &str, files: &[(&str, usize, u8)]) -> Made {
        Self::with(TreeBuilder::new(Attrs::default()), key, files, |tree| tree.top())
    }

    /// The same, below `outputs/`, where other tools have them.
    #[cfg(feature = "reapi")]
    pub fn outputs(key: &str, files: &[(&str, usize, u8)]) -> Made {
        let outputs = |tree: &mut TreeBuilder| {
            tree.dir(tree.top(), b"outputs", Attrs { mode: 0o755, ..Attrs::default() }).unwrap()
        };
        Self::with(TreeBuilder::new(Attrs::default()), key, files, outputs)
    }

    fn with(
        mut tree: TreeBuilder,
        key: &str,
        files: &[(&str, usize, u8)],
        dir: impl FnOnce(&mut TreeBuilder) -> NodeId,
    ) -> Made {
        let dir = dir(&mut tree);
        let mut contents = Vec::new();
        for (name, size, seed) in files {
            let mut bytes: Vec<u8> = (0..*size).map(|i| (i * 7 + i / 256 * 13) as u8 ^ seed).collect();
            if *seed < TEXT {
                blake3::Hasher::new().update(&[*seed]).finalize_xof().fill(&mut bytes);
            }
            let mut hasher = GroupHasher::default();
            hasher.update(&bytes);
            let (hash, groups, size) = hasher.finish();
            let node = tree.file(dir, name.as_bytes(), Attrs::default(), None).unwrap();
            tree.set_content(node, Content { hash, size, groups });
            contents.push((hash, bytes));
        }
        let (key, origin) = (key.parse().unwrap(), Origin::default());
        let seal = Seal { key, sealed_at_ns: 1, inferred: false, replaces: None, origin };
        Made { manifest: Manifest::parse(tree.finish(&seal).unwrap()).unwrap(), contents }
    }

    pub fn content(&self, hash: &BlobHash) -> &[u8] {
        &self.contents.iter().find(|(h, _)| h == hash).unwrap().1
    }
}

impl Source for Made {
    fn open(&self, record: u32) -> io::Result<Box<dyn Read + '_>> {
        let hash = self.manifest.get(record).and_then(|r| r.hash()).unwrap();
        Ok(Box::new(self.content(&hash)))
    }
}

/// An entry with all kinds of content: empty, small, twice the same, of exactly one group, of several.
pub fn odd_entry(key: &str) -> Made {
    let files = [
        ("metadata.json", 80, 1),
        ("empty", 0, 0),
        ("small", 5, 2),
        ("same as small", 5, 2),
        ("a group", GROUP, 3),
        ("more than a group", GROUP + 1, 4),
        ("groups", 5 * GROUP + 77, 5),
        ("groups of text", 3 * GROUP + 77, TEXT),
    ];
    Made::new(key, &files)
}

/// Has a tier do everything that tiers do. `empty` makes one that has nothing and takes objects and entries.
pub fn conforms(empty: &dyn Fn() -> Arc<dyn Tier>) {
    contents_conform(empty, BlobHash::of);
    entries_are_found_whole(&*empty());
    the_last_entry_of_a_key_stays(&*empty());
    nothing_is_sent_twice(&*empty());
    calls_from_many_threads(&*empty());
}

/// What of it has to do with contents alone, which the tier names so.
pub fn contents_conform(empty: &dyn Fn() -> Arc<dyn Tier>, name: Namer) {
    objects_come_back(&*empty(), name);
    contents_come_and_go_together(&*empty(), name);
    ranges_are_exact(&*empty(), name);
    what_is_not_there_is_absent(&*empty(), name);
    deadlines_hold(&*empty(), name);
}

type Namer = fn(&[u8]) -> BlobHash;

fn put(tier: &dyn Tier, object: &Object, bytes: &[u8]) {
    tier.put(object, bytes.len() as u64, &mut &*bytes, soon()).unwrap();
}

fn objects_come_back(tier: &dyn Tier, name: Namer) {
    for size in [1, 100, GROUP, 9 << 20] {
        let bytes = vec![size as u8; size];
        let object = Object::Blob(name(&bytes), bytes.len() as u64);
        assert_eq!(tier.missing(&[object], soon()).unwrap(), [object]);
        for _ in 0..2 {
            put(tier, &object, &bytes);
            assert!(tier.missing(&[object], soon()).unwrap().is_empty());
            assert!(tier.get(&object, 0..size as u64, soon()).unwrap() == bytes, "{size} bytes");
        }
    }
    if tier.capabilities().packs {
        let pack = Object::Pack(PackHash::of(b"small ones"), 10);
        put(tier, &pack, b"small ones");
        assert_eq!(tier.get(&pack, 6..10, soon()).unwrap(), b"ones");
        let blob = Object::Blob(name(b"small ones"), 10);
        assert_eq!(tier.missing(&[pack, blob], soon()).unwrap(), [blob], "a pack is no blob");
    }
}

fn contents_come_and_go_together(tier: &dyn Tier, name: Namer) {
    let made = |n: usize| vec![n as u8; 1 + n * 100];
    let object = |bytes: &[u8]| Object::Blob(name(bytes), bytes.len() as u64);
    let mut all: Vec<(Object, Vec<u8>)> = (0..250).map(made).map(|bytes| (object(&bytes), bytes)).collect();
    let large = vec![7; 5 << 20];
    all.insert(100, (object(&large), large));
    tier.put_all(&all, soon()).unwrap();
    tier.put_all(&[], soon()).unwrap();
    let mut objects: Vec<Object> = all.iter().map(|(object, _)| *object).collect();
    assert!(tier.missing(&objects, soon()).unwrap().is_empty());
    // One that is not there, and one that is asked for twice.
    objects.insert(50, object(b"never put"));
    objects.push(objects[3]);
    let mut came = tier.get_all(&objects, soon()).unwrap();
    assert_eq!(came.len(), objects.len());
    assert!(came.pop().unwrap().unwrap() == all[3].1);
    assert!(came.remove(50).unwrap_err().is_absent());
    assert!(came.iter().zip(&all).all(|(came, (_, bytes))| came.as_ref().unwrap() == bytes));
    assert!(tier.get_all(&[], soon()).unwrap().is_empty());
    let wrong = [all[0].clone(), (object(b"other"), b"wrong".to_vec())];
    assert_eq!(tier.put_all(&wrong, soon()).unwrap_err().kind, TierErrorKind::Permanent);
}

fn ranges_are_exact(tier: &dyn Tier, name: Namer) {
    let bytes: Vec<u8> = (0..1000).map(|i| (i % 251) as u8).collect();
    let object = Object::Blob(name(&bytes), bytes.len() as u64);
    put(tier, &object, &bytes);
    for (start, end) in [(0, 1), (0, 1000), (999, 1000), (17, 400)] {
        assert_eq!(tier.get(&object, start as u64..end as u64, soon()).unwrap(), bytes[start..end]);
    }
    for outside in [900..1001, 1000..1001, 5000..5001, u64::MAX - 1..u64::MAX] {
        let error = tier.get(&object, outside.clone(), soon()).unwrap_err();
        let kinds = [TierErrorKind::Permanent, TierErrorKind::Corrupt];
        assert!(kinds.contains(&error.kind), "{outside:?}: {error:?}");
    }
}

fn what_is_not_there_is_absent(tier: &dyn Tier, name: Namer) {
    let object = Object::Blob(name(b"never put"), 9);
    assert!(tier.get(&object, 0..1, soon()).unwrap_err().is_absent());
    assert!(tier.find(&key("never-published"), soon()).unwrap_err().is_absent());
    assert!(tier.missing(&[], soon()).unwrap().is_empty());
}

fn entries_are_found_whole(tier: &dyn Tier) {
    let made = odd_entry("entry-one");
    let sent = ship(tier, &made.manifest, &made, &soon).unwrap();
    let found = tier.find(&key("entry-one"), soon()).unwrap();
    assert_eq!(found.manifest.as_bytes(), made.manifest.as_bytes());
    assert_eq!(found.places, sent);
    assert!(tier.find(&key("entry-two"), soon()).unwrap_err().is_absent());
    for (hash, size, _) in made.manifest.blobs() {
        let there = match found.places.object(&hash) {
            Some(_) if size > GROUP as u64 => {
                let (stored, all) = (found.places.stored(&hash).unwrap(), 0..size.div_ceil(GROUP as u64));
                let (object, range) = stored.at(all.clone());
                stored.groups(all, tier.get(&object, range, soon()).unwrap()).unwrap()
            }
            Some((object, range)) => tier.get(&object, range, soon()).unwrap(),
            None if size == 0 => Vec::new(),
            None => found.places.carried(&hash).unwrap().to_vec(),
        };
        assert!(there == made.content(&hash), "the content of {size} bytes");
    }
    let metadata = made.manifest.get(made.manifest.find(b"metadata.json").unwrap()).unwrap().hash().unwrap();
    assert!(
        found.places.carried(&metadata).is_some(),
        "whether it is a hit is known without another request"
    );
}

fn the_last_entry_of_a_key_stays(tier: &dyn Tier) {
    for seed in [1, 2] {
        let made = Made::new("entry-one", &[("f", 100, seed)]);
        ship(tier, &made.manifest, &made, &soon).unwrap();
        assert_eq!(tier.find(&key("entry-one"), soon()).unwrap().manifest.hash(), made.manifest.hash());
    }
}

/// Which records of a source are read.
#[derive(Default)]
struct Counted {
    opened: RefCell<HashSet<u32>>,
    forms: RefCell<HashMap<BlobHash, Form>>,
}

struct CountedSource<'a>(&'a Made, &'a Counted);

impl Source for CountedSource<'_> {
    fn open(&self, record: u32) -> io::Result<Box<dyn Read + '_>> {
        self.1.opened.borrow_mut().insert(record);
        self.0.open(record)
    }

    fn made(&self, hash: &BlobHash) -> Option<Form> {
        self.1.forms.borrow().get(hash).cloned()
    }

    fn note_made(&self, hash: &BlobHash, form: &Form) {
        self.1.forms.borrow_mut().insert(*hash, form.clone());
    }
}

fn nothing_is_sent_twice(tier: &dyn Tier) {
    let files = [("large", 3 * GROUP, 1), ("text", 3 * GROUP, TEXT), ("other", 2 * GROUP, 2)];
    let (first, second) = (Made::new("entry-one", &files[..2]), Made::new("entry-two", &files));
    let counted = Counted::default();
    for (made, opened) in [(&first, 2), (&second, 1), (&second, 0)] {
        ship(tier, &made.manifest, &CountedSource(made, &counted), &soon).unwrap();
        assert_eq!(counted.opened.take().len(), opened, "large contents read here to be sent");
    }
}

fn calls_from_many_threads(tier: &dyn Tier) {
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            scope.spawn(move || {
                for round in 0..5 {
                    let name = format!("entry-{thread}-{round}");
                    let made = Made::new(&name, &[("own", 1000, thread), ("shared", GROUP + 5, round)]);
                    ship(tier, &made.manifest, &made, &soon).unwrap();
                    let found = tier.find(&key(&name), soon()).unwrap();
                    assert_eq!(found.manifest.hash(), made.manifest.hash());
                }
            });
        }
    });
}

fn deadlines_hold(tier: &dyn Tier, name: Namer) {
    let past = Instant::now();
    let object = Object::Blob(name(b"x"), 1);
    let errors = [
        tier.find(&key(&format!("{}-142", name(b"an action"))), past).unwrap_err(),
        tier.get(&object, 0..1, past).unwrap_err(),
        tier.put(&object, 1, &mut &b"x"[..], past).unwrap_err(),
        tier.missing(&[object], past).unwrap_err(),
    ];
    for error in errors {
        assert!(error.is_transient(), "{error:?}");
        assert!(error.to_string().starts_with(tier.name()), "{error}");
    }
}
