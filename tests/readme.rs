//! What README.md and the help texts tell people to type works as it is written there.
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

/// What each example of a help text needs that is there before: behind what it begins with.
const BEFORE: &[(&str, &str)] = &[
    ("outfs put", "outfs evict \"$KEY\""),
    ("tar -c out", "outfs evict \"$KEY\""),
    ("outfs restore", "rm -r target/out"),
    ("outfs unmount", "outfs mount \"$PWD/mnt\""),
    ("outfs unpin", "outfs pin \"$KEY\" --name release-1.2"),
    ("outfs reject \"$KEY\" --lift", "outfs reject \"$KEY\" --reason none"),
    ("outfs seal \"$KEY\"", "KEY=another; outfs mount \"$PWD/mnt\"; mkdir \"mnt/$KEY\""),
    ("outfs seal build-1", "KEY=another; outfs mount \"$PWD/mnt\"; mkdir mnt/.outfs/work/build-1"),
    ("outfs events", "CURSOR=$(outfs events --limit 1 | sed -n 's/^# cursor \\([^,]*\\).*/\\1/p')"),
    (
        "outfs logs",
        "KEY=$(outfs run --no-inputs --json -- seq 1000 | tail -n 1 | sed 's/.*\"key\":\"\\([0-9a-f]*\\).*/\\1/')",
    ),
    ("outfs why", "outfs run --no-inputs --task build -- true"),
    ("outfs run --output app", "printf 'app:\\n\\ttouch app\\n' > Makefile"),
];

/// All that help texts tell to type, by the command they are of.
fn examples() -> Vec<(String, String)> {
    let help = |args: &[&str]| {
        let mut c = common::outfs();
        c.args(args);
        common::ok(c)
    };
    let all = help(&["--help"]);
    let commands = all.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    let names = commands.filter_map(|l| l.split_whitespace().next()).filter(|name| *name != "help");
    let mut found = Vec::new();
    for name in names {
        let args = if name == "store" { vec!["store", "destroy"] } else { vec![name] };
        let text = help(&[&args[..], &["--help"]].concat());
        let (_, text) =
            text.split_once("\nExample").unwrap_or_else(|| panic!("outfs {name} --help has an example"));
        let lines = text.split_once(": ").expect("they follow").1.lines().take_while(|l| !l.is_empty());
        // A remark stands in brackets, behind some space.
        found.extend(lines.map(|l| (name.to_owned(), l.split("  (").next().unwrap_or(l).trim().to_owned())));
    }
    found
}

#[test]
fn examples_of_the_help_work_as_written() {
    common::need_fuse();
    let program = Path::new(env!("CARGO_BIN_EXE_outfs")).parent().expect("a directory");
    let examples = examples();
    assert!(examples.len() >= 40, "{examples:#?}");
    // Where there is something to be brought to `tests/tiers` does it.
    for (name, example) in examples.into_iter().filter(|(_, example)| example != "outfs push --wait") {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let home = dir.path().canonicalize().expect("it exists");
        // Places of the whole machine are others here, and what follows does so for ever.
        let mut typed = example.replace("--follow ", "").replace("CURSOR", "\"$CURSOR\"");
        for (theirs, ours) in [
            ("/mnt/cache", "mnt"),
            ("/tmp/sandbox", "sandbox"),
            ("/etc/bash_completion.d/", ""),
            ("/usr/local/share/man/", "man/"),
            ("/var/cache/outfs", ".cache/outfs"),
        ] {
            typed = typed.replace(theirs, &format!("{}/{ours}", home.display()));
        }
        let before = BEFORE.iter().find(|(start, _)| example.starts_with(start)).map_or("", |(_, b)| b);
        let script = format!(
            "mkdir -p mnt sandbox target/out/bin src .cache/cuenv/tasks programs; git init -q; cp -r target/out out
             echo report > target/out/report.txt; echo 1 > src/a.py; touch target/out/bin/program
             for program in ci.sh programs/pytest; do printf '#!/bin/sh\\n' > $program; chmod +x $program; done
             KEY=key-of-an-entry OLD=key-of-an-entry NEW=key-of-another
             for key in $KEY $NEW; do outfs put $key target/out --task-id build --exit-code 0; done
             trap 'outfs stop --lazy' EXIT
             {before}
             {typed}"
        );
        let mut bash = Command::new("bash");
        bash.args(["-euc", &script]).current_dir(&home);
        for name in ["OUTFS_STORE", "OUTFS_LOG", "OUTFS_CONFIG", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"] {
            bash.env_remove(name);
        }
        let all = std::env::var_os("PATH").expect("a PATH");
        let path = [program.to_owned(), home.join("programs")].into_iter().chain(std::env::split_paths(&all));
        bash.env("HOME", &home).env("PATH", std::env::join_paths(path).expect("no colons"));
        let out = bash.output().expect("bash starts");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "outfs {name} --help says: {example}\n{said}");
    }
}
