//! What the client tests share: cuenv's task and entry values, and a mount to use them on.
//!
//! Purpose: `tests/` runs cuenv's own `LocalCacheBackend`, unmodified, on a real outfs mount (and on
//! a plain directory, which shows that a check tests cuenv's promise and not our guess of it).
//! Must not know: anything about how outfs works inside.

mod adapter;
mod mount;

pub use adapter::Adapter;
pub use mount::Mount;

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cuenv_ci::executor::{CacheEntry, CacheOutput};
use cuenv_ci::ir::{CachePolicy, Task};

/// A task as cuenv's compiler would make it.
pub fn task(id: &str) -> Task {
    Task {
        id: id.into(),
        runtime: None,
        command: vec!["make".into(), id.into()],
        shell: false,
        env: HashMap::new(),
        secrets: HashMap::new(),
        resources: None,
        concurrency_group: None,
        inputs: vec![],
        outputs: vec![],
        depends_on: vec![],
        cache_policy: CachePolicy::Normal,
        deployment: false,
        manual_approval: false,
    }
}

/// A result with logs, an executable, nested files, an empty file and one of 300 KiB.
pub fn result(seed: u8) -> CacheEntry {
    let output =
        |path: &str, data: Vec<u8>, is_executable| CacheOutput { path: path.into(), data, is_executable };
    CacheEntry {
        stdout: Some(format!("out {seed}\n")),
        stderr: Some(format!("err {seed}\n")),
        exit_code: 0,
        duration_ms: 1000 + u64::from(seed),
        outputs: vec![
            output("bin/tool", vec![seed; 300 * 1024], true),
            output("a.txt", format!("a {seed}\n").into_bytes(), false),
            output("deep/er/est/b.txt", format!("b {seed}\n").into_bytes(), false),
            output("empty", vec![], false),
        ],
    }
}

/// A digest in cuenv's form: `sha256:` and 64 hexadecimal digits.
pub fn digest(seed: u64) -> String {
    format!("sha256:{:016x}{:048x}", seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), seed)
}

/// The key under which outfs shows a digest.
pub fn key(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// Runs one of cuenv's futures to its end.
pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime of one thread").block_on(future)
}

/// Asserts that `dir` holds the outputs of `entry`: bytes and executable bits, and nothing else.
pub fn assert_outputs(dir: &Path, entry: &CacheEntry) {
    for output in &entry.outputs {
        let path = dir.join(&output.path);
        let data = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(data == output.data, "{}: {} bytes differ from what was stored", path.display(), data.len());
        let mode = std::fs::metadata(&path).expect("stat of a file just read").permissions().mode();
        assert_eq!(mode & 0o111 != 0, output.is_executable, "executable bit of {}", path.display());
    }
    assert_eq!(count_files(dir), entry.outputs.len(), "files below {}", dir.display());
}

fn count_files(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries
        .map(|entry| entry.expect("a directory entry"))
        .map(
            |entry| {
                if entry.file_type().expect("its type").is_dir() { count_files(&entry.path()) } else { 1 }
            },
        )
        .sum()
}
