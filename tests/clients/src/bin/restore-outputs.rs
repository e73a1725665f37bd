//! Restores an entry with cuenv's real `restore_outputs`: a row of `scripts/bench`.
//!
//! `restore-outputs ROOT DIGEST WORKSPACE`, where ROOT is a cache as cuenv lays it out.

use std::path::Path;

use cuenv_ci::executor::{CacheBackend, LocalCacheBackend};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, root, digest, workspace] = args.as_slice() else { panic!("ROOT DIGEST WORKSPACE") };
    let task = outfs_clients::task("bench");
    let backend = LocalCacheBackend::new(root);
    let restored = outfs_clients::block_on(backend.restore_outputs(&task, digest, Path::new(workspace)));
    println!("{} files", restored.expect("restore_outputs").len());
}
