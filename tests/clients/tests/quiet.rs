//! `--seal-quiet` with cuenv as the writer: whole entries are sealed, half ones never.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use cuenv_ci::executor::{CacheBackend, LocalCacheBackend};
use cuenv_ci::ir::CachePolicy;
use outfs_clients::{Mount, assert_outputs, block_on, digest, key, result, task};

fn child(mount: &Mount, digest: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_store-and-die"));
    command.arg(mount.path()).args([digest, "5"]);
    command
}

fn store(mount: &Mount, digest: &str) {
    let backend = LocalCacheBackend::new(mount.path());
    block_on(backend.store(&task("t"), digest, &result(5), CachePolicy::Normal)).expect("store");
}

fn wait_sealed(mount: &Mount, digest: &str) {
    mount.wait("sealed by quiet", || mount.state(key(digest)).as_deref() == Some("inferred"));
}

#[test]
fn quiet_seals_what_a_living_client_stored() {
    let mount = Mount::start(&["--seal-quiet", "1s"]);
    store(&mount, &digest(1));
    wait_sealed(&mount, &digest(1));
    assert_outputs(&mount.path().join(key(&digest(1))).join("outputs"), &result(5));
    mount.outfs(&["fsck", "--verify-data"]);
}

#[test]
fn quiet_never_seals_half_an_entry() {
    let mount = Mount::start(&["--seal-quiet", "1s"]);
    let whole = child(&mount, &digest(0)).output().expect("store-and-die");
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let changes: u64 = String::from_utf8_lossy(&whole.stdout).trim().parse().expect("a count");
    assert!(changes >= 18, "directories, files and their contents: {changes} changes are too few");

    for n in 1..=changes {
        let status = child(&mount, &digest(n)).arg(n.to_string()).status().expect("store-and-die");
        assert_eq!(status.signal(), Some(9), "killed before change {n}");
    }
    // Stored last and by a process that lives: once this one is sealed, all others were quiet for longer.
    store(&mount, &digest(1000));
    wait_sealed(&mount, &digest(1000));
    for n in 1..=changes {
        // Killed before its first change it left nothing.
        let left = (n > 1).then_some("draft");
        let state = mount.state(key(&digest(n)));
        assert_eq!(state.as_deref(), left, "killed before change {n} of {changes}");
    }
}
