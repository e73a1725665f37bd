//! cuenv's `LocalCacheBackend`, unmodified, with `cache_root` = a mount (and a plain directory beside it).

use std::path::{Path, PathBuf};
use std::sync::Barrier;

use cuenv_ci::executor::{BackendResult, CacheBackend, CacheEntry, LocalCacheBackend};
use cuenv_ci::ir::CachePolicy;
use outfs_clients::{Mount, assert_outputs, block_on, digest, key, result, task};
use tempfile::tempdir;

const ALL: [CachePolicy; 4] =
    [CachePolicy::Normal, CachePolicy::Readonly, CachePolicy::Writeonly, CachePolicy::Disabled];

fn store(root: &Path, digest: &str, entry: &CacheEntry, policy: CachePolicy) -> BackendResult<()> {
    block_on(LocalCacheBackend::new(root).store(&task("t"), digest, entry, policy))
}

/// Where cuenv keeps a digest.
fn sharded(root: &Path, digest: &str) -> PathBuf {
    let key = key(digest);
    root.join(&key[..2]).join(&key[2..4]).join(key)
}

/// Everything cuenv can read of `digest` is `entry`.
fn assert_served(root: &Path, digest: &str, entry: &CacheEntry) {
    let backend = LocalCacheBackend::new(root);
    let task = task("t");
    let found = block_on(backend.check(&task, digest, CachePolicy::Normal)).expect("check");
    assert!(found.hit, "{digest} must be a hit");
    assert_eq!(found.cached_duration_ms, Some(entry.duration_ms));
    let logs = block_on(backend.get_logs(&task, digest)).expect("get_logs");
    assert_eq!(logs, (entry.stdout.clone(), entry.stderr.clone()));
    let workspace = tempdir().expect("a workspace");
    let restored =
        block_on(backend.restore_outputs(&task, digest, workspace.path())).expect("restore_outputs");
    assert_eq!(restored.len(), entry.outputs.len());
    assert_outputs(workspace.path(), entry);
}

fn assert_miss(root: &Path, digest: &str, policy: CachePolicy) {
    let found = block_on(LocalCacheBackend::new(root).check(&task("t"), digest, policy)).expect("check");
    assert!(!found.hit, "{digest} must be a miss under {policy:?}");
}

/// What cuenv promises on any directory.
fn promises(root: &Path) {
    let backend = LocalCacheBackend::new(root);
    block_on(backend.health_check()).expect("health_check");
    assert_miss(root, &digest(1), CachePolicy::Normal);

    // Stored, it is read back at once by the same process.
    store(root, &digest(1), &result(1), CachePolicy::Normal).expect("store");
    assert_served(root, &digest(1), &result(1));

    // A failed task is a hit too; absent logs stay absent; no outputs restore nothing.
    let failed = CacheEntry { stdout: None, stderr: None, exit_code: 3, duration_ms: 7, outputs: vec![] };
    store(root, &digest(2), &failed, CachePolicy::Normal).expect("store");
    assert_served(root, &digest(2), &failed);

    // The four policies: who may write, and who may read what was written.
    for (n, policy) in (10..).zip(ALL) {
        store(root, &digest(n), &result(3), policy).expect("store");
        match policy {
            CachePolicy::Normal | CachePolicy::Writeonly => assert_served(root, &digest(n), &result(3)),
            CachePolicy::Readonly | CachePolicy::Disabled => {
                assert_miss(root, &digest(n), CachePolicy::Normal)
            }
        }
        assert_miss(root, &digest(n), CachePolicy::Writeonly);
        assert_miss(root, &digest(n), CachePolicy::Disabled);
    }

    // Metadata that does not parse is a miss, and storing again mends it.
    std::fs::write(sharded(root, &digest(10)).join("metadata.json"), "{").expect("write");
    assert_miss(root, &digest(10), CachePolicy::Normal);
    store(root, &digest(10), &result(3), CachePolicy::Normal).expect("store");
    assert_served(root, &digest(10), &result(3));
}

/// Eight tasks at once, then eight stores of one digest at once.
fn crowd(root: &Path, first: u64) {
    let all = Barrier::new(8);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let all = &all;
            scope.spawn(move || {
                all.wait();
                let (own, seed) = (digest(first + n), n as u8);
                store(root, &own, &result(seed), CachePolicy::Normal).expect("store of an own digest");
                assert_served(root, &own, &result(seed));
                all.wait();
                store(root, &digest(first + 8), &result(9), CachePolicy::Normal)
                    .expect("store of one digest");
            });
        }
    });
    assert_served(root, &digest(first + 8), &result(9));
}

/// `create_dir_all` on one sharded path from eight threads.
fn directories(root: &Path) {
    for n in 200..220 {
        let own = digest(n);
        let path = sharded(root, &own).join("outputs/deep");
        let all = Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    all.wait();
                    std::fs::create_dir_all(&path).expect("create_dir_all");
                });
            }
        });
        assert!(path.is_dir());
    }
}

fn seal(mount: &Mount, digest: &str) {
    mount.outfs(&["seal", key(digest)]);
    assert_eq!(mount.state(key(digest)).as_deref(), Some("sealed"));
}

#[test]
fn a_plain_directory() {
    let root = tempdir().expect("a directory");
    promises(root.path());
    crowd(root.path(), 100);
    directories(root.path());
}

#[test]
fn drafts_serve_before_sealing() {
    let mount = Mount::start(&[]);
    promises(&mount.path());
    crowd(&mount.path(), 100);
    directories(&mount.path());
}

#[test]
fn sealed_entries_serve_after_a_restart() {
    let mount = Mount::start(&[]);
    let root = mount.path();
    crowd(&root, 100);
    for n in 100..109 {
        seal(&mount, &digest(n));
    }
    let failed = CacheEntry { stdout: None, stderr: None, exit_code: 3, duration_ms: 7, outputs: vec![] };
    store(&root, &digest(1), &failed, CachePolicy::Normal).expect("store");
    seal(&mount, &digest(1));
    for _ in 0..2 {
        assert_served(&root, &digest(1), &failed);
        for n in 0..8 {
            assert_served(&root, &digest(100 + n), &result(n as u8));
            assert_miss(&root, &digest(100 + n), CachePolicy::Writeonly);
            assert_miss(&root, &digest(100 + n), CachePolicy::Disabled);
        }
        assert_served(&root, &digest(108), &result(9));
        mount.stop();
        mount.mount(&[]);
    }
    mount.outfs(&["fsck", "--verify-data"]);
}

#[test]
fn the_first_result_wins_unless_a_view_replaces() {
    let mount = Mount::start(&[]);
    let root = mount.path();
    store(&root, &digest(1), &result(1), CachePolicy::Writeonly).expect("store");
    seal(&mount, &digest(1));
    let refused = store(&root, &digest(1), &result(2), CachePolicy::Writeonly).expect_err("the view denies");
    assert!(refused.to_string().contains("Read-only file system"), "{refused}");
    assert_served(&root, &digest(1), &result(1));
}

#[test]
fn storing_again_replaces() {
    let mount = Mount::start(&["--overwrite", "replace"]);
    let root = mount.path();
    for seed in 1..4 {
        store(&root, &digest(1), &result(seed), CachePolicy::Writeonly).expect("store");
        assert_served(&root, &digest(1), &result(seed));
        seal(&mount, &digest(1));
        assert_served(&root, &digest(1), &result(seed));
    }
    // Eight at once over a sealed entry.
    crowd(&root, 100);
    seal(&mount, &digest(108));
    crowd(&root, 100);
    seal(&mount, &digest(108));
    assert_served(&root, &digest(108), &result(9));
    mount.outfs(&["fsck", "--verify-data"]);
}
