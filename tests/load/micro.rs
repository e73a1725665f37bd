//! The inner loops, guarded by criterion: a look-up in a manifest, a read from a pack, a seal and an eviction.
//!
//! `cargo bench` compares with the run before it; `cargo bench -- --test` only sees that all of it runs. The store is in
//! memory where there is /dev/shm, so that the disk is in no figure.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use outfs::cache::{Cache, LeaseKind, Limits, SealRequest, TaskFacts};
use outfs::model::EntryKey;
use outfs::model::manifest::Origin;
use tempfile::TempDir;

/// Files of the entry that is read, and of the one that is sealed and evicted.
const MANY: usize = 10_000;
const FEW: usize = 100;
const LENGTH: usize = 4096;

fn temporary() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary directory")
}

fn path(n: usize) -> String {
    format!("dir-{:03}/file-{n:06}", n / 100)
}

fn tree(dir: &Path, files: usize) {
    for n in 0..files {
        let path = dir.join(path(n));
        fs::create_dir_all(path.parent().expect("a file is in a directory")).expect("its directory");
        fs::write(&path, &n.to_string().repeat(LENGTH).as_bytes()[..LENGTH]).expect("a file");
    }
}

fn key(name: &str) -> EntryKey {
    EntryKey::parse(name).expect("a valid key")
}

fn put(cache: &Cache, name: &str, tree: &Path) {
    let request = SealRequest {
        key: key(name),
        origin: Origin { how: "library".into(), ..Origin::default() },
        inferred: false,
        replace: false,
    };
    cache.put_dir(tree, &TaskFacts::default(), [None, None], request).expect("put");
}

fn reading(c: &mut Criterion) {
    let dir = temporary();
    let source = dir.path().join("source");
    tree(&source, MANY);
    let cache = Cache::open(&dir.path().join("store"), Limits::default()).expect("a new store");
    put(&cache, "bench.many", &source);
    let entry = cache.entry(&key("bench.many"), LeaseKind::Hold).expect("the entry").expect("it is there");
    let manifest = entry.manifest().expect("its manifest");
    let paths: Vec<_> = (0..MANY).map(|n| format!("outputs/{}", path(n)).into_bytes()).collect();
    // A prime step, so that neighbours in time are none in the manifest.
    let mut all = (0..MANY).cycle().step_by(7919);
    c.bench_function("manifest lookup", |b| {
        b.iter(|| manifest.find(black_box(&paths[all.next().expect("it never ends")])).expect("it is there"))
    });
    let records: Vec<_> = paths.iter().map(|p| entry.file(p).expect("a file")).collect();
    let mut buffer = vec![0; LENGTH];
    let mut group = c.benchmark_group("pack");
    group.throughput(Throughput::Bytes(LENGTH as u64));
    group.bench_function("pack read", |b| {
        b.iter(|| entry.read(records[all.next().expect("it never ends")], 0, &mut buffer).expect("a read"))
    });
    group.finish();
    drop(entry);
    cache.close().expect("close the store");
}

fn writing(c: &mut Criterion) {
    let dir = temporary();
    let source = dir.path().join("source");
    tree(&source, FEW);
    let cache = Cache::open(&dir.path().join("store"), Limits::default()).expect("a new store");
    // Either is the other's preparation.
    let round = |rounds: u64, timed: fn(Duration, Duration) -> Duration| {
        let mut all = Duration::ZERO;
        for _ in 0..rounds {
            let started = Instant::now();
            put(&cache, "bench.few", &source);
            let sealed = started.elapsed();
            assert!(cache.evict(&key("bench.few"), "bench").expect("evict"));
            all += timed(sealed, started.elapsed() - sealed);
        }
        all
    };
    let mut group = c.benchmark_group("entry");
    group.sample_size(20);
    group.throughput(Throughput::Elements(FEW as u64));
    group.bench_function("seal", |b| b.iter_custom(|n| round(n, |sealed, _| sealed)));
    group.bench_function("evict", |b| b.iter_custom(|n| round(n, |_, evicted| evicted)));
    group.finish();
    cache.close().expect("close the store");
}

criterion_group!(benches, reading, writing);
criterion_main!(benches);
