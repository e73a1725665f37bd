//! What README.md tells people to type works as it is written there.
//!
//! Must not know: the crate's inside.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

const README: &str = include_str!("../README.md");

/// The code blocks of a section, of the kind that stands behind the three ticks.
fn blocks(section: &str, kind: &str) -> Vec<String> {
    let text = README.split("\n## ").find(|s| s.starts_with(section)).expect("the section is there");
    let mut parts = text.split("```");
    let mut found = Vec::new();
    while let (Some(_), Some(block)) = (parts.next(), parts.next()) {
        found.extend(block.strip_prefix(kind).and_then(|b| b.strip_prefix('\n')).map(str::to_owned));
    }
    assert!(!found.is_empty(), "{section} has {kind} blocks");
    found
}

#[test]
fn everyday_use_works_as_written() {
    common::need_fuse();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let home = dir.path().canonicalize().expect("it exists");
    fs::write(home.join("report.html"), "a report\n").expect("write");
    // It is followed for ever otherwise.
    let script = blocks("Everyday use", "").concat().replace("events --follow", "events");
    // What ends in `make install` is the reader's own.
    let make = "make() { mkdir -p \"${2#DESTDIR=}/bin\" && echo made >\"${2#DESTDIR=}/bin/program\"; }\n";
    let program = Path::new(env!("CARGO_BIN_EXE_outfs")).parent().expect("a directory");
    let path = std::env::join_paths(
        std::iter::once(program.to_owned())
            .chain(std::env::split_paths(&std::env::var_os("PATH").expect("a PATH"))),
    );
    let mut bash = Command::new("bash");
    bash.args(["-euc", &format!("trap 'outfs stop' EXIT\n{make}{script}")]).current_dir(&home);
    for name in ["OUTFS_STORE", "OUTFS_LOG", "OUTFS_CONFIG", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"] {
        bash.env_remove(name);
    }
    bash.env("HOME", &home).env("PATH", path.expect("no colons"));
    let out = bash.output().expect("bash starts");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    assert_eq!(fs::read_to_string(home.join("DEST/bin/program")).expect("restored"), "made\n", "{said}");
    assert!(!common::is_mounted(&home.join("cache")));
}

#[test]
fn the_configuration_is_a_good_one() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("config.toml");
    let text = blocks("Settings", "toml").concat();
    // What is commented out works, too.
    let all = text.replace(
        "# entries = 100000, high_water = 95, low_water = 85",
        "entries = 100000\nhigh_water = 95\nlow_water = 85",
    );
    assert!(all.contains("\nentries"), "{text}");
    fs::write(&file, all).expect("write");
    let mut c = common::outfs();
    c.env("OUTFS_CONFIG", &file).args(["put", "key1", "/etc/skel", "--store"]).arg(dir.path().join("store"));
    common::ok(c);
}
