//! The library as cuenv's `dyn CacheBackend`, beside cuenv's own backend: the same answers.

use std::path::Path;
use std::sync::{Arc, Barrier};

use cuenv_ci::executor::{CacheBackend, CacheEntry, LocalCacheBackend};
use cuenv_ci::ir::CachePolicy;
use outfs::cache::{Cache, Limits};
use outfs_clients::{Adapter, assert_outputs, block_on, digest, result, task};
use tempfile::{TempDir, tempdir};

fn library(store: &Path) -> Arc<dyn CacheBackend> {
    Arc::new(Adapter(Cache::open(store, Limits::default()).expect("a store")))
}

/// cuenv's backend and the library's, each in a directory of its own.
fn both() -> [(TempDir, Arc<dyn CacheBackend>); 2] {
    let (plain, store) = (tempdir().expect("a directory"), tempdir().expect("a directory"));
    let local = Arc::new(LocalCacheBackend::new(plain.path()));
    let outfs = library(&store.path().join("store"));
    [(plain, local), (store, outfs)]
}

fn store(backend: &dyn CacheBackend, digest: &str, entry: &CacheEntry, policy: CachePolicy) {
    block_on(backend.store(&task("t"), digest, entry, policy)).expect("store");
}

fn hit(backend: &dyn CacheBackend, digest: &str, policy: CachePolicy) -> Option<u64> {
    let found = block_on(backend.check(&task("t"), digest, policy)).expect("check");
    assert_eq!((found.key.as_str(), found.hit), (digest, found.cached_duration_ms.is_some()));
    found.cached_duration_ms
}

fn assert_served(backend: &dyn CacheBackend, digest: &str, entry: &CacheEntry) {
    assert_eq!(hit(backend, digest, CachePolicy::Normal), Some(entry.duration_ms));
    assert_eq!(hit(backend, digest, CachePolicy::Readonly), Some(entry.duration_ms));
    let logs = block_on(backend.get_logs(&task("t"), digest)).expect("get_logs");
    assert_eq!(logs, (entry.stdout.clone(), entry.stderr.clone()));
    let workspace = tempdir().expect("a workspace");
    let mut restored =
        block_on(backend.restore_outputs(&task("t"), digest, workspace.path())).expect("restore_outputs");
    assert_outputs(workspace.path(), entry);
    restored.sort_by(|a, b| a.path.cmp(&b.path));
    let mut stored: Vec<_> = entry.outputs.iter().collect();
    stored.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(restored.len(), stored.len());
    for (r, s) in restored.iter().zip(stored) {
        assert!((&r.path, &r.data, r.is_executable) == (&s.path, &s.data, s.is_executable), "{}", s.path);
    }
}

#[test]
fn the_same_answers() {
    for (_dir, backend) in both() {
        let backend = &*backend;
        block_on(backend.health_check()).expect("health_check");
        assert_eq!(hit(backend, &digest(1), CachePolicy::Normal), None);
        let absent = block_on(backend.get_logs(&task("t"), &digest(1))).expect("get_logs");
        assert_eq!(absent, (None, None));
        let workspace = tempdir().expect("a workspace");
        let nothing = block_on(backend.restore_outputs(&task("t"), &digest(1), workspace.path()));
        assert!(nothing.expect("restore_outputs").is_empty());

        store(backend, &digest(1), &result(1), CachePolicy::Normal);
        assert_served(backend, &digest(1), &result(1));
        store(backend, &digest(1), &result(1), CachePolicy::Normal);
        assert_served(backend, &digest(1), &result(1));

        let failed = CacheEntry { stdout: None, stderr: None, exit_code: 3, duration_ms: 7, outputs: vec![] };
        store(backend, &digest(2), &failed, CachePolicy::Normal);
        assert_served(backend, &digest(2), &failed);
    }
}

#[test]
fn the_four_policies() {
    for (_dir, backend) in both() {
        let backend = &*backend;
        store(backend, &digest(1), &result(1), CachePolicy::Readonly);
        store(backend, &digest(1), &result(1), CachePolicy::Disabled);
        assert_eq!(hit(backend, &digest(1), CachePolicy::Normal), None);
        // Storing twice under writeonly: the last one counts.
        store(backend, &digest(1), &result(1), CachePolicy::Writeonly);
        assert_served(backend, &digest(1), &result(1));
        store(backend, &digest(1), &result(2), CachePolicy::Writeonly);
        assert_served(backend, &digest(1), &result(2));
        assert_eq!(hit(backend, &digest(1), CachePolicy::Writeonly), None);
        assert_eq!(hit(backend, &digest(1), CachePolicy::Disabled), None);
    }
}

#[test]
fn restoring_merges_and_replaces() {
    for (_dir, backend) in both() {
        store(&*backend, &digest(1), &result(1), CachePolicy::Normal);
        let workspace = tempdir().expect("a workspace");
        std::fs::write(workspace.path().join("a.txt"), "an older build's").expect("write");
        std::fs::create_dir(workspace.path().join("bin")).expect("mkdir");
        std::fs::write(workspace.path().join("bin/other"), "not of this task").expect("write");
        block_on(backend.restore_outputs(&task("t"), &digest(1), workspace.path())).expect("restore_outputs");
        assert_eq!(std::fs::read_to_string(workspace.path().join("a.txt")).expect("read"), "a 1\n");
        assert_eq!(
            std::fs::read_to_string(workspace.path().join("bin/other")).expect("read"),
            "not of this task"
        );
    }
}

#[test]
fn eight_at_once() {
    for (_dir, backend) in both() {
        let all = Barrier::new(8);
        std::thread::scope(|scope| {
            for n in 0..8 {
                let (all, backend) = (&all, &*backend);
                scope.spawn(move || {
                    all.wait();
                    store(backend, &digest(n), &result(n as u8), CachePolicy::Normal);
                    assert_served(backend, &digest(n), &result(n as u8));
                    all.wait();
                    store(backend, &digest(8), &result(9), CachePolicy::Normal);
                });
            }
        });
        assert_served(&*backend, &digest(8), &result(9));
    }
}

/// Where the two differ on purpose: the first sealed result of a key wins, and cuenv is told so.
#[test]
fn a_different_result_under_normal_is_refused() {
    let dir = tempdir().expect("a directory");
    let backend = library(&dir.path().join("store"));
    store(&*backend, &digest(1), &result(1), CachePolicy::Normal);
    let refused = block_on(backend.store(&task("t"), &digest(1), &result(2), CachePolicy::Normal));
    assert!(refused.expect_err("other outputs").is_gracefully_degradable());
    assert_served(&*backend, &digest(1), &result(1));
}

/// A store that the library wrote survives it.
#[test]
fn another_process_finds_it() {
    let dir = tempdir().expect("a directory");
    let backend = library(&dir.path().join("store"));
    store(&*backend, &digest(1), &result(1), CachePolicy::Normal);
    drop(backend);
    assert_served(&*library(&dir.path().join("store")), &digest(1), &result(1));
}
