//! Generated sequences of operations, on a simple model in memory and on the real thing.
//!
//! Every result and every error of the real thing must be one that the model expects, and what
//! is there at the end must be what the model holds. Evictions, seals and restarts are among the
//! operations.

#[path = "../common/mod.rs"]
#[macro_use]
mod common;

mod direct;
mod mounted;
mod ops;
mod reference;

use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};

use ops::{At, Op, Seen, Target, sequence};
use reference::{Expect, Model};

/// `metadata.json` is written at sealing where it is missing; no generated name is like it.
const WRITTEN_AT_SEALING: &str = "metadata.json";

fn config(cases: u32) -> Config {
    Config {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(cases),
        max_shrink_iters: 300,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..Config::default()
    }
}

/// Tries a sequence on a target and compares it with the model, step by step and at the end.
fn compare(target: &mut dyn Target, ops: &[Op]) -> Result<(), TestCaseError> {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let mut model = Model::default();
    for (i, op) in ops.iter().enumerate() {
        step(target, &mut model, op).map_err(|e| TestCaseError::fail(format!("step {i}, {op:?}: {e}")))?;
    }
    for at in model.everything() {
        for op in looks(&at) {
            step(target, &mut model, &op)
                .map_err(|e| TestCaseError::fail(format!("at the end, {op:?}: {e}")))?;
        }
    }
    Ok(())
}

fn looks(at: &At) -> Vec<Op> {
    let mut v = vec![Op::Stat(at.clone()), Op::ReadDir(at.clone()), Op::GetXattr(at.clone())];
    if !at.names.is_empty() {
        v.extend([Op::Read(at.clone()), Op::ReadLink(at.clone())]);
    }
    v
}

fn step(target: &mut dyn Target, model: &mut Model, op: &Op) -> Result<(), String> {
    let expected = model.run(op);
    if matches!(expected, Expect::Skip) {
        return Ok(());
    }
    let got = target.run(op);
    match (expected, got) {
        (Expect::Ok(want), Ok(seen)) => same(want, seen),
        (Expect::Err(allowed), Err(e)) if allowed.contains(&e) => Ok(()),
        (Expect::Ok(_), Err(e)) => Err(format!("failed with {}", std::io::Error::from_raw_os_error(e))),
        (Expect::Err(allowed), Err(e)) => {
            Err(format!("gave {} where {allowed:?} is expected", std::io::Error::from_raw_os_error(e)))
        }
        (Expect::Err(allowed), Ok(_)) => Err(format!("succeeded where {allowed:?} is expected")),
        (Expect::Skip, _) => unreachable!("skipped above"),
    }
}

fn same(want: Seen, seen: Seen) -> Result<(), String> {
    let (want, seen) = match (want, seen) {
        (Seen::Stat(w), Seen::Stat(mut s)) => {
            if w.mtime.is_none() {
                s.mtime = None;
            }
            (Seen::Stat(w), Seen::Stat(s))
        }
        (w, Seen::Names(mut n)) => {
            n.remove(WRITTEN_AT_SEALING);
            (w, Seen::Names(n))
        }
        other => other,
    };
    match (&want, &seen) {
        _ if want == seen => Ok(()),
        (Seen::Bytes(w), Seen::Bytes(s)) => {
            let at = w.iter().zip(s).position(|(a, b)| a != b).unwrap_or(w.len().min(s.len()));
            Err(format!("{} bytes where {} are expected; they differ from byte {at} on", s.len(), w.len()))
        }
        _ => Err(format!("shows {seen:?} where {want:?} is expected")),
    }
}

proptest! {
    #![proptest_config(config(64))]

    /// The file-system logic without a kernel.
    #[test]
    fn the_logic_behaves_as_the_model(ops in sequence(100)) {
        compare(&mut direct::Direct::new(), &ops)?;
    }
}

proptest! {
    #![proptest_config(config(12))]

    /// A real mount, files passed through where kernel and privileges allow.
    #[test]
    fn a_mount_behaves_as_the_model(ops in sequence(80)) {
        let mut target = mounted::Mounted::new(common::Mount::new());
        compare(&mut target, &ops)?;
        prop_assert_eq!(target.mount.code(&["fsck", "--verify-data"]), 0);
    }

    /// A real mount whose daemon reads and writes everything itself.
    #[test]
    fn a_mount_without_passthrough_behaves_as_the_model(ops in sequence(80)) {
        let mount = common::Mount::with(&["--size", "4G", "--passthrough", "off"]);
        compare(&mut mounted::Mounted::new(mount), &ops)?;
    }
}
