//! The index against a naive model of reference counting, and its promises one by one.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rusqlite::Connection;

use super::*;

/// Does to an index what nobody should.
pub(crate) fn run_sql(file: &std::path::Path, text: &str) {
    let db = Connection::open(file).unwrap();
    db.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    db.execute_batch(text).unwrap();
}

/// Opens an index that has its keys in memory.
fn open_at(file: &std::path::Path) -> Result<(Index, bool)> {
    let (index, new) = Index::open(file, 1 << 20)?;
    assert_eq!(index.load_keys(0, 1000)?, None);
    assert!(index.has_keys());
    Ok((index, new))
}

pub(super) fn open() -> (tempfile::TempDir, Index) {
    let dir = tempfile::tempdir().unwrap();
    let (index, new) = open_at(&dir.path().join("index.sqlite")).unwrap();
    assert!(new && !index.is_finished());
    index.finish().unwrap();
    (dir, index)
}

fn hash(n: u8) -> BlobHash {
    BlobHash::of(&[n])
}

pub(super) fn key(n: u8) -> EntryKey {
    EntryKey::parse(&format!("key-{n}")).unwrap()
}

pub(super) fn manifest(n: u32) -> ManifestHash {
    ManifestHash::of(&n.to_le_bytes())
}

pub(super) fn entry(
    k: u8,
    m: u32,
    blobs: Vec<(BlobHash, u64, Location)>,
    packs: Vec<(PackId, u64)>,
) -> NewEntry {
    NewEntry {
        row: EntryRow {
            id: 0,
            key: key(k),
            manifest: manifest(m),
            task_id: String::new(),
            sealed_at_ns: i64::from(m),
            accessed_at_ns: i64::from(m),
            logical_bytes: 10,
            files: 1,
            inferred: false,
            readable: true,
            metadata_bytes: 8192,
            top: Some(Top { perm: 0o750, nlink: 3, mtime_ns: -i64::from(m) }),
            in_tier: Default::default(),
        },
        blobs,
        packs,
        replaces: None,
        healed: Vec::new(),
    }
}

fn at(pack: u64, offset: u64) -> Location {
    Location::Pack { pack: PackId(pack), offset }
}

pub(super) fn done(c: Commit) -> i64 {
    match c {
        Commit::Done(id, _) => id,
        Commit::Taken(row) => panic!("taken by {row:?}"),
    }
}

#[test]
fn an_entry_survives_reopening_and_totals_add_up() {
    let (dir, index) = open();
    let blobs = vec![(hash(1), 100, at(7, 64)), (hash(2), 1 << 20, Location::Loose)];
    let id = done(index.commit(entry(1, 1, blobs, vec![(PackId(7), 200)])).unwrap());
    index.close().unwrap();
    assert!(matches!(index.commit(entry(2, 2, vec![], vec![])), Err(IndexError::Closed)));
    drop(index);

    let (index, new) = open_at(&dir.path().join("index.sqlite")).unwrap();
    assert!(!new);
    let row = index.entry(&key(1)).unwrap().unwrap();
    assert_eq!((row.id, row.manifest, row.files), (id, manifest(1), 1));
    assert_eq!(index.entry_by_id(id).unwrap(), Some(row));
    assert_eq!(index.entry(&key(2)).unwrap(), None);
    assert_eq!(
        index.totals().unwrap(),
        Totals {
            occupied_bytes: 4096 + (1 << 20),
            metadata_bytes: 8192,
            entries: 1,
            blobs: 2,
            loose_bytes: 1 << 20,
            unreferenced_bytes: 0,
            pack_bytes: 200,
            dead_bytes: 100,
            logical_bytes: 10,
            elsewhere_bytes: 0,
        }
    );
    assert_eq!(index.pack_blobs(PackId(7)).unwrap().len(), 1);
    assert_eq!(index.integrity().unwrap(), Vec::<String>::new());
}

#[test]
fn an_index_of_the_first_version_keeps_its_rows() {
    let (dir, index) = open();
    let row = |index: &Index| index.entry(&key(1)).unwrap().unwrap();
    done(index.commit(entry(1, 1, vec![], vec![])).unwrap());
    let written = row(&index);
    assert!(written.top.is_some());
    drop(index);
    let file = dir.path().join("index.sqlite");
    let drop_columns =
        ["number", "top_perm", "top_nlink", "top_mtime", "metadata", "backed", "tier", "dropped_at"];
    let totals = ["occupied_bytes", "metadata_bytes", "elsewhere_bytes"]
        .map(|c| format!("ALTER TABLE totals DROP COLUMN {c};"));
    let sql =
        drop_columns.map(|c| format!("ALTER TABLE entries DROP COLUMN {c};")).concat() + &totals.concat();
    let sql = format!("DROP INDEX entries_backed; DROP INDEX entries_number; {sql}");
    run_sql(
        &file,
        &format!(
            "{sql} ALTER TABLE blobs DROP COLUMN backed; DROP TABLE learned; DROP TABLE digests; PRAGMA user_version = 1"
        ),
    );

    let (index, new) = open_at(&file).unwrap();
    assert!(!new);
    assert_eq!(row(&index), EntryRow { top: None, ..written });
    done(index.commit(entry(2, 2, vec![], vec![])).unwrap());
    assert_eq!(index.entry(&key(2)).unwrap().unwrap().top, entry(2, 2, vec![], vec![]).row.top);
    assert!(index.entry(&key(2)).unwrap().unwrap().id > written.id, "numbers go on");
    assert_eq!(index.integrity().unwrap(), Vec::<String>::new());
}

#[test]
fn the_first_place_of_a_blob_wins_and_unreferenced_rows_are_reused() {
    let (_dir, index) = open();
    done(index.commit(entry(1, 1, vec![(hash(1), 5, at(1, 64))], vec![(PackId(1), 100)])).unwrap());
    done(index.commit(entry(2, 2, vec![(hash(1), 5, Location::Loose)], vec![])).unwrap());
    let row = index.blob(&hash(1)).unwrap().unwrap();
    assert_eq!((row.refs, row.location), (2, at(1, 64)));

    for (k, m) in [(1, 1), (2, 2)] {
        let freed = index.remove_entry(&key(k), &manifest(m), &[hash(1)], &|_| true).unwrap().unwrap();
        assert_eq!((freed.loose, freed.packs), (vec![], vec![]));
    }
    assert_eq!(index.blob(&hash(1)).unwrap().unwrap().refs, 0);
    assert_eq!(index.unreferenced(9).unwrap(), [hash(1)]);
    done(index.commit(entry(3, 3, vec![(hash(1), 5, Location::Loose)], vec![])).unwrap());
    assert_eq!(index.blob(&hash(1)).unwrap().unwrap().location, at(1, 64));
    assert_eq!(index.drop_unreferenced(vec![hash(1)]).unwrap(), Freed::default());

    let freed = index.remove_entry(&key(3), &manifest(3), &[hash(1)], &|_| false).unwrap().unwrap();
    assert_eq!((freed.packs, freed.dead_in_packs), (vec![(PackId(1), 100)], 0));
    assert_eq!(index.totals().unwrap(), Totals::default());
}

#[test]
fn a_key_is_taken_until_its_manifest_is_replaced() {
    let (_dir, index) = open();
    let first = done(index.commit(entry(1, 1, vec![(hash(1), 5, Location::Loose)], vec![])).unwrap());
    assert!(matches!(index.commit(entry(1, 2, vec![], vec![])).unwrap(), Commit::Taken(r) if r.id == first));
    let mut other = entry(1, 3, vec![], vec![]);
    other.replaces = Some(Replaced { manifest: manifest(9), blobs: vec![hash(1)] });
    assert!(matches!(index.commit(other.clone()).unwrap(), Commit::Taken(_)));
    assert_eq!(index.blob(&hash(1)).unwrap().unwrap().refs, 1);
    other.replaces = Some(Replaced { manifest: manifest(1), blobs: vec![hash(1)] });
    let Commit::Done(second, Some(old)) = index.commit(other).unwrap() else { panic!("not replaced") };
    assert!(old.id == first && second > first);
    assert_eq!(index.blob(&hash(1)).unwrap().unwrap().refs, 0);
    assert!(index.remove_entry(&key(1), &manifest(1), &[], &|_| false).unwrap().is_none());
}

#[test]
fn of_concurrent_commits_of_one_key_exactly_one_is_done() {
    let (_dir, index) = open();
    for round in 0..5u8 {
        let results: Vec<Commit> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..8u32)
                .map(|i| {
                    let index = &index;
                    s.spawn(move || {
                        index.commit(entry(round, i, vec![(hash(i as u8), 1, Location::Loose)], vec![]))
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap().unwrap()).collect()
        });
        assert_eq!(results.iter().filter(|c| matches!(c, Commit::Done(..))).count(), 1);
    }
    assert_eq!(index.totals().unwrap().entries, 5);
    assert_eq!(index.integrity().unwrap(), Vec::<String>::new());
}

#[test]
fn a_failed_change_takes_nothing_along() {
    let (_dir, index) = open();
    let blobs = vec![(hash(1), 5, Location::Loose), (hash(2), 5, at(4, 64))];
    let e = index.commit(entry(1, 1, blobs, vec![])).unwrap_err();
    assert!(e.to_string().contains("pack 4"), "{e}");
    assert_eq!((index.entry(&key(1)).unwrap(), index.blob(&hash(1)).unwrap()), (None, None));
    let results = index.commit_all(vec![entry(1, 1, vec![], vec![]), entry(1, 2, vec![], vec![])]).unwrap();
    assert!(matches!(results[..], [Commit::Done(..), Commit::Taken(_)]));
}

#[test]
fn pages_follow_ids_access_and_tasks() {
    let (_dir, index) = open();
    for n in 0..10u8 {
        let mut e = entry(n, u32::from(n) / 2, vec![], vec![]);
        e.row.manifest = manifest(u32::from(n));
        e.row.task_id = ["a", "b", ""][usize::from(n) % 3].into();
        done(index.commit(e).unwrap());
    }
    let mut seen = Vec::new();
    let mut after = 0;
    loop {
        let page = index.keys_after(after, 3).unwrap();
        let Some(last) = page.last() else { break };
        after = last.0;
        seen.extend(page.into_iter().map(|(_, k)| k));
    }
    assert_eq!(seen, (0..10).map(key).collect::<Vec<_>>());
    assert_eq!(index.entries_after(0, 99).unwrap().len(), 10);

    // Touched: the first goes last. An older access than is known changes nothing.
    let ids: Vec<i64> = index.keys_after(0, 99).unwrap().into_iter().map(|(id, _)| id).collect();
    index.touch(&[(ids[0], 100), (ids[9], 1), (999_999, 5)]).unwrap();
    let mut order = Vec::new();
    let mut after = None;
    loop {
        let page = index.oldest(after, 4).unwrap();
        let Some(last) = page.last() else { break };
        after = Some((last.accessed_at_ns, last.id));
        order.extend(page.into_iter().map(|r| r.id));
    }
    assert_eq!(order, ids[1..].iter().chain([&ids[0]]).copied().collect::<Vec<_>>());

    assert_eq!(index.tasks_after("", 9).unwrap(), ["a", "b"]);
    assert_eq!(index.tasks_after("a", 9).unwrap(), ["b"]);
    let of_a: Vec<_> = index.by_task("a", 2).unwrap().into_iter().map(|r| r.key).collect();
    assert_eq!(of_a, [key(9), key(6)]);
}

#[test]
fn pages_use_indexes_and_never_sort() {
    let (dir, index) = open();
    let db = Connection::open(dir.path().join("index.sqlite")).unwrap();
    for sql in [
        "SELECT * FROM entries WHERE (accessed_at, id) > (1, 2) ORDER BY accessed_at, id LIMIT 3",
        "SELECT * FROM entries WHERE task_id = 'x' ORDER BY sealed_at DESC, id DESC LIMIT 3",
        "SELECT min(task_id) FROM entries WHERE task_id > 'x'",
        "SELECT hash FROM blobs WHERE refs = 0 LIMIT 3",
        "SELECT hash FROM blobs WHERE pack = 3 AND pack > 0",
    ] {
        let mut q = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let plan: Vec<String> = q.query_map([], |r| r.get(3)).unwrap().map(|r| r.unwrap()).collect();
        let text = plan.join("; ");
        assert!(
            text.contains("INDEX") && !text.contains("SCAN") && !text.contains("B-TREE"),
            "{sql}: {text}"
        );
    }
    drop(index);
}

#[test]
fn an_unusable_file_is_set_aside_and_a_newer_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("index.sqlite");
    let bad = dir.path().join("index.sqlite.bad");
    for content in [&b"this is no database, but it is long enough to look at"[..], &[7; 8192]] {
        std::fs::write(&file, content).unwrap();
        let (index, new) = open_at(&file).unwrap();
        assert!(new && index.totals().unwrap() == Totals::default());
        assert_eq!(std::fs::read(&bad).unwrap(), content);
        drop(index);
        std::fs::remove_file(&file).unwrap();
    }
    // Somebody else's database, and a directory.
    Connection::open(&file).unwrap().execute_batch("CREATE TABLE entries(x); PRAGMA user_version=1").unwrap();
    assert!(open_at(&file).unwrap().1);
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert!(open_at(&file).unwrap().1);

    Connection::open(&file).unwrap().execute_batch("PRAGMA user_version=99").unwrap();
    let e = open_at(&file).unwrap_err();
    assert!(matches!(e, IndexError::TooNew { found: 99, .. }), "{e}");
    assert!(file.exists());
}

#[test]
fn it_counts_as_new_until_it_was_finished() {
    let (dir, index) = open();
    let file = dir.path().join("index.sqlite");
    drop(index);
    let (index, new) = open_at(&file).unwrap();
    assert!(!new && index.is_finished());
    index.reset().unwrap();
    drop(index);
    for _ in 0..2 {
        assert!(open_at(&file).unwrap().1);
    }
    open_at(&file).unwrap().0.finish().unwrap();
    assert!(!open_at(&file).unwrap().1);
}

#[test]
fn reset_begins_anew_with_a_greater_epoch_and_growing_ids() {
    let (_dir, index) = open();
    let first = done(index.commit(entry(1, 1, vec![(hash(1), 1, Location::Loose)], vec![])).unwrap());
    let epoch = index.epoch();
    index.reset().unwrap();
    assert!(index.epoch() > epoch);
    assert_eq!(index.totals().unwrap(), Totals::default());
    assert_eq!(index.entry(&key(1)).unwrap(), None);
    let second = done(index.commit(entry(1, 1, vec![], vec![])).unwrap());
    assert!(second > first);
    assert_eq!(index.entry(&key(1)).unwrap().unwrap().id, second);
}

/// What the model knows: entries with their blobs, blobs with references and place, packs.
#[derive(Default)]
struct Model {
    entries: BTreeMap<u8, (u32, BTreeSet<u8>)>,
    blobs: BTreeMap<u8, Location>,
    packs: BTreeSet<u64>,
}

impl Model {
    fn refs(&self, blob: u8) -> u64 {
        self.entries.values().filter(|(_, b)| b.contains(&blob)).count() as u64
    }

    /// Forgets unreferenced blobs among `which`; then packs that nobody names.
    fn drop(&mut self, which: &BTreeSet<u8>) {
        for b in which {
            if self.refs(*b) == 0 {
                self.blobs.remove(b);
            }
        }
        let named: BTreeSet<u64> = self.blobs.values().filter_map(pack_of).collect();
        self.packs.retain(|p| named.contains(p));
    }
}

fn pack_of(l: &Location) -> Option<u64> {
    match l {
        Location::Pack { pack, .. } => Some(pack.0),
        Location::Loose | Location::Elsewhere => None,
    }
}

#[derive(Debug, Clone)]
enum Op {
    Commit { key: u8, blobs: BTreeSet<u8>, replace: bool, far: bool },
    Remove { key: u8, keep: BTreeSet<u8> },
    Drop(BTreeSet<u8>),
    Relocate,
}

fn op() -> impl Strategy<Value = Op> {
    let blobs = || prop::collection::btree_set(0u8..12, 0..6);
    prop_oneof![
        4 => (0u8..6, blobs(), any::<bool>(), any::<bool>())
            .prop_map(|(key, blobs, replace, far)| Op::Commit { key, blobs, replace, far }),
        2 => (0u8..6, blobs()).prop_map(|(key, keep)| Op::Remove { key, keep }),
        1 => blobs().prop_map(Op::Drop),
        1 => Just(Op::Relocate),
    ]
}

fn apply(index: &Index, m: &mut Model, n: u32, op: Op) {
    match op {
        Op::Commit { key: k, blobs, replace, far } => {
            // Odd blobs are loose; new even ones go into a pack of this commit; but for those of a tier's entry.
            let place = |b: u8| {
                let fresh = match b % 2 {
                    _ if far => Location::Elsewhere,
                    1 => Location::Loose,
                    _ => at(u64::from(n) + 1, u64::from(b) * 100 + 64),
                };
                m.blobs.get(&b).copied().filter(|at| *at != Location::Elsewhere).unwrap_or(fresh)
            };
            let placed: Vec<(u8, Location)> = blobs.iter().map(|b| (*b, place(*b))).collect();
            let brings = placed.iter().any(|(_, l)| pack_of(l) == Some(u64::from(n) + 1));
            let packs = if brings { vec![(PackId(u64::from(n) + 1), 5000)] } else { vec![] };
            let list = placed.iter().map(|(b, l)| (hash(*b), u64::from(*b) + 1, *l)).collect();
            let mut new = entry(k, n, list, packs);
            let old = m.entries.get(&k).cloned();
            if let (true, Some((manifest_no, blobs))) = (replace, &old) {
                let blobs = blobs.iter().map(|b| hash(*b)).collect();
                new.replaces = Some(Replaced { manifest: manifest(*manifest_no), blobs });
            }
            let taken = old.is_some() && !replace;
            let got = index.commit(new).unwrap();
            assert_eq!(matches!(got, Commit::Taken(_)), taken);
            if !taken {
                m.entries.insert(k, (n, blobs));
                if brings {
                    m.packs.insert(u64::from(n) + 1);
                }
                m.blobs.extend(placed);
            }
        }
        Op::Remove { key: k, keep } => {
            let Some((no, blobs)) = m.entries.remove(&k) else {
                assert!(index.remove_entry(&key(k), &manifest(0), &[], &|_| false).unwrap().is_none());
                return;
            };
            let list: Vec<_> = blobs.iter().map(|b| hash(*b)).collect();
            let kept: BTreeSet<_> = keep.iter().map(|b| hash(*b)).collect();
            let before = m.packs.clone();
            let freed =
                index.remove_entry(&key(k), &manifest(no), &list, &|h| kept.contains(h)).unwrap().unwrap();
            m.drop(&blobs.difference(&keep).copied().collect());
            let gone: BTreeSet<u64> = freed.packs.iter().map(|(p, _)| p.0).collect();
            assert_eq!(gone, before.difference(&m.packs).copied().collect());
        }
        Op::Drop(which) => {
            index.drop_unreferenced(which.iter().map(|b| hash(*b)).collect()).unwrap();
            m.drop(&which);
        }
        Op::Relocate => {
            let Some(from) = m.packs.first().copied() else { return };
            let to = u64::from(n) + 1;
            let rows = index.pack_blobs(PackId(from)).unwrap();
            // What came from a tier meanwhile goes along.
            let far = m.blobs.iter().find(|(_, at)| **at == Location::Elsewhere).map(|(b, _)| hash(*b));
            let hashes = rows.iter().map(|r| r.hash).chain(far);
            let moved: Vec<_> =
                hashes.enumerate().map(|(i, hash)| (hash, at(to, i as u64 * 10 + 64))).collect();
            let gone = index.relocate(moved.clone(), Some((PackId(to), 3000)), vec![PackId(from)]).unwrap();
            assert_eq!(gone, [(PackId(from), if from == to { 3000 } else { gone[0].1 })]);
            for (h, l) in moved {
                let b = (0u8..12).find(|b| hash(*b) == h).unwrap();
                m.blobs.insert(b, l);
            }
            m.packs.remove(&from);
            m.packs.insert(to);
        }
    }
}

fn check(index: &Index, m: &Model) {
    for b in 0u8..12 {
        let row = index.blob(&hash(b)).unwrap();
        assert_eq!(row.map(|r| (r.refs, r.location)), m.blobs.get(&b).map(|l| (m.refs(b), *l)), "blob {b}");
    }
    let packs: BTreeSet<u64> = index.packs_after(PackId(0), 999).unwrap().iter().map(|p| p.id.0).collect();
    assert_eq!(packs, m.packs);
    for k in 0u8..6 {
        let row = index.entry(&key(k)).unwrap();
        assert_eq!(row.map(|r| r.manifest), m.entries.get(&k).map(|(no, _)| manifest(*no)), "key {k}");
    }
    let totals = index.totals().unwrap();
    assert_eq!((totals.entries, totals.blobs), (m.entries.len() as u64, m.blobs.len() as u64));
    let far = m.blobs.iter().filter(|(_, at)| **at == Location::Elsewhere);
    assert_eq!(totals.elsewhere_bytes, far.map(|(b, _)| u64::from(*b) + 1).sum::<u64>());
    assert_eq!(index.integrity().unwrap(), Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn reference_counts_agree_with_a_naive_model(ops in prop::collection::vec(op(), 1..40)) {
        let (_dir, index) = open();
        let mut m = Model::default();
        for (n, op) in ops.into_iter().enumerate() {
            apply(&index, &mut m, n as u32 + 1, op);
            check(&index, &m);
        }
    }
}

#[test]
fn a_disk_that_fills_up_in_the_middle_of_a_change_is_called_full() {
    let (_dir, index) = open();
    done(index.commit(entry(1, 1, vec![(hash(1), 1, Location::Loose)], vec![])).unwrap());
    let limit = |pages: &'static str| {
        let set = move |db: &Connection| {
            db.query_row(pages, [], |r| r.get::<_, i64>(0)).map_err(sqlite("limit its pages"))
        };
        index.writer.run(set).unwrap();
    };
    limit("PRAGMA max_page_count = 1");
    let many = (0..9999u32).map(|n| (BlobHash::of(&n.to_le_bytes()), 1, Location::Loose)).collect();
    let full = index.commit(entry(2, 2, many, vec![])).unwrap_err();
    assert!(full.is_no_space(), "{full}");
    assert!(index.entry(&key(1)).unwrap().is_some() && index.entry(&key(2)).unwrap().is_none());
    limit("PRAGMA max_page_count = 1000000");
    done(index.commit(entry(2, 2, vec![(hash(2), 1, Location::Loose)], vec![])).unwrap());
    assert_eq!(index.integrity().unwrap(), Vec::<String>::new());
}

/// Whoever fills the disk takes each byte that is given up: a removal has its own.
#[test]
fn on_a_full_disk_a_removal_is_written_to_blocks_that_the_log_has() {
    use crate::store::tests::{is_root, mount_tmpfs, with_own_mounts};
    if !is_root() {
        return;
    }
    with_own_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        mount_tmpfs(dir.path(), nix::mount::MsFlags::empty());
        let again = nix::mount::MsFlags::MS_REMOUNT;
        nix::mount::mount(None::<&str>, dir.path(), None::<&str>, again, Some("size=12m")).unwrap();
        let (index, _) = open_at(&dir.path().join("index.sqlite")).unwrap();
        for n in 0..4u8 {
            let blobs = (0..100).map(|b| (BlobHash::of(&[n, b]), 1, Location::Loose)).collect();
            done(index.commit(entry(n, u32::from(n), blobs, vec![])).unwrap());
        }
        let mut ballast = std::fs::File::create(dir.path().join("ballast")).unwrap();
        let mut fill = || while std::io::Write::write_all(&mut ballast, &[1; 4096]).is_ok() {};
        fill();
        for n in 0..4u8 {
            let blobs: Vec<_> = (0..100).map(|b| BlobHash::of(&[n, b])).collect();
            let gone = index.remove_entry(&key(n), &manifest(n.into()), &blobs, &|_| false).unwrap().unwrap();
            assert_eq!(gone.loose.len(), 100);
            fill();
        }
        assert!(dir.path().join("index.spare").exists(), "the spare was not needed");
        let blobs = (0..9999u32).map(|n| (BlobHash::of(&n.to_le_bytes()), 1, Location::Loose)).collect();
        let full = index.commit(entry(9, 9, blobs, vec![])).unwrap_err();
        assert!(full.is_no_space(), "{full}");
        drop((index, ballast));
        nix::mount::umount(dir.path()).unwrap();
    });
}

#[test]
fn errors_of_sqlite_say_what_to_do() {
    let told = |code| {
        let source = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        IndexError::Sqlite { op: "commit", source }.to_string()
    };
    assert!(told(rusqlite::ffi::SQLITE_BUSY).ends_with("end that and try again"));
    assert!(told(rusqlite::ffi::SQLITE_FULL).ends_with("free some space on its disk"));
    assert!(told(rusqlite::ffi::SQLITE_IOERR_WRITE).ends_with("nothing stored is lost"));
    assert!(told(rusqlite::ffi::SQLITE_CORRUPT).ends_with("'outfs fsck --rebuild-index' makes it anew"));
}

#[test]
fn what_the_system_refuses_around_the_file_is_its_error_and_not_sqlites() {
    use crate::store::Fault;
    for n in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let fault = Fault::after(n, libc::EIO, false);
        let opened = Index::open(&dir.path().join("index.sqlite"), 1 << 20);
        let fired = fault.fired();
        drop(fault);
        match opened {
            Ok(_) if !fired => return assert!(n > 3, "only {n} calls were seen"),
            // It does without.
            Ok(_) => {}
            Err(IndexError::Io { source, .. }) => assert_eq!(source.raw_os_error(), Some(libc::EIO)),
            Err(e) => panic!("call {n}: {e:?}"),
        }
    }
}

/// What an owner that died left in the log is in a copy, too, and the files that are copied stay as they are.
#[test]
fn a_copy_has_what_is_in_the_log() {
    let (dir, index) = open();
    done(index.commit(entry(1, 1, vec![], vec![])).unwrap());
    let (file, copy) = (dir.path().join("index.sqlite"), tempfile::tempdir().unwrap());
    let read = || ["", "-wal"].map(|end| std::fs::read(format!("{}{end}", file.display())).unwrap());
    let before = read();
    assert!(!before[1].is_empty());
    let other = Index::open_copy(&file, &copy.path().join("index.sqlite"), 0).unwrap();
    assert!(other.entry(&key(1)).unwrap().is_some() && read() == before);
    // One that nobody has finished, or that is not there, is none.
    let missing = Index::open_copy(&dir.path().join("none"), &copy.path().join("none"), 0);
    assert!(missing.err().unwrap().to_string().contains("cannot copy"));
    std::fs::write(dir.path().join("bad"), [7; 8192]).unwrap();
    let bad = Index::open_copy(&dir.path().join("bad"), &copy.path().join("bad"), 0);
    assert!(bad.err().unwrap().to_string().contains("made anew"));
}
