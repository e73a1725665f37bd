//! The cache as a library, and imports.

use super::*;

fn task() -> Task {
    Task { id: "build".into(), command: vec!["make".into()] }
}

fn result(content: &str) -> CacheEntry {
    let output =
        |path: &str, data: Vec<u8>, is_executable| CacheOutput { path: path.into(), data, is_executable };
    CacheEntry {
        stdout: Some("said".into()),
        stderr: None,
        exit_code: 7,
        duration_ms: 42,
        outputs: vec![
            output("bin/tool", content.into(), true),
            output("bin/sub/large", bytes(400_000, 1), false),
            output("readme", b"r".to_vec(), false),
        ],
    }
}

#[test]
fn policies_decide_what_is_read_and_written() {
    let f = Fixture::new();
    let backend: &dyn CacheBackend = &f.cache;
    let digest = "sha256:abcdef0123";
    let hit = |policy| backend.check(&task(), digest, policy).unwrap().hit;
    for policy in [CachePolicy::Readonly, CachePolicy::Disabled] {
        backend.store(&task(), digest, &result("1"), policy).unwrap();
        assert!(!hit(CachePolicy::Normal), "{policy:?} wrote");
    }
    backend.store(&task(), digest, &result("1"), CachePolicy::Normal).unwrap();
    assert!(hit(CachePolicy::Normal) && hit(CachePolicy::Readonly));
    assert!(!hit(CachePolicy::Writeonly) && !hit(CachePolicy::Disabled));
    let found = backend.check(&task(), digest, CachePolicy::Normal).unwrap();
    assert_eq!((found.cached_duration_ms, found.cached_exit_code), (Some(42), Some(7)));
    assert_eq!(found.key, digest);
    assert!(f.cache.entry(&key("abcdef0123"), LeaseKind::Hold).unwrap().is_some());
    // The same again is fine, something else is not, and writeonly stores over it.
    backend.store(&task(), digest, &result("1"), CachePolicy::Normal).unwrap();
    let other = backend.store(&task(), digest, &result("2"), CachePolicy::Normal);
    assert!(matches!(other, Err(CacheError::Exists { .. })));
    backend.store(&task(), digest, &result("2"), CachePolicy::Writeonly).unwrap();
    let workspace = f.beside("workspace");
    let mut restored = backend.restore_outputs(&task(), digest, &workspace).unwrap();
    let mut wanted = result("2").outputs;
    restored.sort_by(|a, b| a.path.cmp(&b.path));
    wanted.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(restored, wanted);
    assert_eq!(std::fs::read(workspace.join("bin/tool")).unwrap(), b"2");
    assert_eq!(workspace.join("bin/tool").metadata().unwrap().mode() & 0o111, 0o111);
    assert_eq!(std::fs::read(workspace.join("bin/sub/large")).unwrap(), bytes(400_000, 1));
    assert_eq!(backend.get_logs(&task(), digest).unwrap(), (Some("said".into()), None));
    assert_eq!(backend.name(), "outfs");
    backend.health_check().unwrap();
}

#[test]
fn unknown_and_hostile_requests() {
    let f = Fixture::new();
    assert!(f.cache.restore_outputs(&task(), "nothing", &f.beside("w")).unwrap().is_empty());
    assert_eq!(f.cache.get_logs(&task(), "nothing").unwrap(), (None, None));
    assert!(f.cache.check(&task(), "../../etc", CachePolicy::Normal).is_err());
    for path in ["/etc/x", "../x", "a/../../x", "", "a//b", "..", "a/"] {
        let mut entry = result("1");
        entry.outputs[0].path = path.into();
        let stored = CacheBackend::store(&f.cache, &task(), "abcdef", &entry, CachePolicy::Normal);
        assert!(matches!(stored, Err(CacheError::BadInput { .. } | CacheError::Tree(_))), "{path}");
    }
    assert!(!f.cache.check(&task(), "abcdef", CachePolicy::Normal).unwrap().hit);
}

#[test]
fn a_rejected_key_misses_until_it_is_stored_again() {
    let f = Fixture::new();
    CacheBackend::store(&f.cache, &task(), "abcdef", &result("1"), CachePolicy::Normal).unwrap();
    f.cache.reject(&key("abcdef"), "wrong").unwrap();
    match f.cache.lookup(&key("abcdef")).unwrap() {
        Lookup::Miss(Miss::Rejected(why)) => assert_eq!(why, "wrong"),
        other => panic!("{other:?}"),
    }
    CacheBackend::store(&f.cache, &task(), "abcdef", &result("1"), CachePolicy::Normal).unwrap();
    assert!(matches!(f.cache.lookup(&key("abcdef")).unwrap(), Lookup::Hit { .. }));
}

#[test]
fn importing_a_cuenv_cache_twice() {
    let f = Fixture::new();
    let src = f.beside("cuenv");
    let good = src.join("ab/cd/abcdef01");
    std::fs::create_dir_all(good.join("outputs/bin")).unwrap();
    std::fs::create_dir_all(good.join("logs")).unwrap();
    std::fs::write(good.join("logs/stdout.log"), "hello").unwrap();
    std::fs::write(good.join("outputs/bin/tool"), bytes(300_000, 1)).unwrap();
    let meta = r#"{"task_id":"t","digest":"sha256:abcdef01","command":["x"],
        "created_at":"2026-01-02T03:04:05.5Z","duration_ms":1,"exit_code":0}"#;
    std::fs::write(good.join("metadata.json"), meta).unwrap();
    let broken = src.join("ef/01/ef012345");
    std::fs::create_dir_all(&broken).unwrap();
    std::fs::write(broken.join("metadata.json"), "{").unwrap();
    let mut heard = Vec::new();
    let report = f.cache.import_cuenv(&src, &mut |key| heard.push(key.to_string())).unwrap();
    assert_eq!((report.imported, report.same, report.skipped.len()), (1, 0, 1), "{report:?}");
    assert_eq!(report.skipped[0].path, broken);
    assert_eq!(heard, ["abcdef01"]);
    let again = f.cache.import_cuenv(&src, &mut |_| ()).unwrap();
    assert_eq!((again.imported, again.same), (0, 1));
    let Lookup::Hit { metadata, .. } = f.cache.lookup(&key("abcdef01")).unwrap() else { panic!("a miss") };
    assert_eq!((metadata.task_id.as_str(), metadata.digest.as_str()), ("t", "sha256:abcdef01"));
    assert_eq!(f.cache.get_logs(&task(), "abcdef01").unwrap().0.as_deref(), Some("hello"));
}

#[test]
fn importing_a_directory_of_trees() {
    let f = Fixture::new();
    let src = f.beside("src");
    std::fs::create_dir_all(src.join("plain/sub")).unwrap();
    std::fs::write(src.join("plain/sub/f"), "x").unwrap();
    std::fs::create_dir_all(src.join("whole/outputs")).unwrap();
    std::fs::create_dir_all(src.join("no")).unwrap();
    let report = f.cache.import_dir(&src, &mut |_| ()).unwrap();
    assert_eq!((report.imported, report.skipped.len()), (2, 1), "{report:?}");
    let entry = f.cache.entry(&key("plain"), LeaseKind::Hold).unwrap().unwrap();
    assert_eq!(entry.read_all(entry.file(b"outputs/sub/f").unwrap(), 10).unwrap(), b"x");
}
