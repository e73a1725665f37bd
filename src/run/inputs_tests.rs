//! Tests of finding and hashing inputs, in real directories.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::inputs::{Apart, Gathered, gather};
use super::remembered::Remembered;
use super::spec::{Inputs, Place};
use super::{Kind, Result, RunError};

struct Project {
    dir: tempfile::TempDir,
}

impl Project {
    fn new(files: &[&str]) -> Project {
        let project = Project { dir: tempfile::tempdir().unwrap() };
        files.iter().for_each(|f| project.write(f, f));
        project
    }

    fn git(files: &[&str]) -> Project {
        let project = Project::new(files);
        project.run_git(&["init", "-q"]);
        project
    }

    fn run_git(&self, args: &[&str]) {
        let git = Command::new("git").args(args).current_dir(self.dir.path()).status().unwrap();
        assert!(git.success(), "git {args:?}");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn gather(&self, cwd: &str, inputs: Inputs, remembered: &mut Remembered) -> Result<Gathered> {
        let place = Place { root: self.path(""), cwd: self.path(cwd) };
        let outputs = vec![self.path("out"), self.path("sub/out.o")];
        gather(&inputs, &place, &Apart { outputs, stay: false, own: Vec::new() }, remembered)
    }

    fn names(&self, cwd: &str, inputs: Inputs) -> Vec<String> {
        let gathered = self.gather(cwd, inputs, &mut Remembered::open(None)).unwrap();
        gathered.inputs.into_iter().map(|i| i.path).collect()
    }

    #[track_caller]
    fn refuses(&self, part: &str, inputs: Inputs) {
        match self.gather("", inputs, &mut Remembered::open(None)) {
            Err(RunError::Usage(why)) => assert!(why.contains(part), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

fn named(names: &[&str]) -> Inputs {
    Inputs::Named(names.iter().map(Into::into).collect())
}

#[test]
fn what_git_tracks_or_does_not_ignore() {
    let p =
        Project::git(&["a.c", "sub/b.c", "sub/out.o", "sub/x.o", "out/app", "gone.c", ".gitignore", "new.c"]);
    p.write(".gitignore", "*.o\n");
    p.run_git(&["add", "a.c", "sub/b.c", "gone.c"]);
    p.run_git(&["add", "-f", "sub/x.o"]);
    std::fs::remove_file(p.path("gone.c")).unwrap();
    assert_eq!(p.names("", Inputs::Git), [".gitignore", "a.c", "new.c", "sub/b.c", "sub/x.o"]);
    assert_eq!(p.names("sub", Inputs::Git), ["sub/b.c", "sub/x.o"]);
}

#[test]
fn a_repository_inside_counts_with_its_own_files() {
    let p = Project::git(&["a"]);
    p.write("inner/.gitignore", "no");
    p.write("inner/no", "");
    p.write("inner/yes", "");
    let git = Command::new("git").args(["init", "-q"]).current_dir(p.path("inner")).status().unwrap();
    assert!(git.success());
    assert_eq!(p.names("", Inputs::Git), ["a", "inner/.gitignore", "inner/yes"]);
}

#[test]
fn outside_git_inputs_must_be_named() {
    let p = Project::new(&["a"]);
    // Also when some directory above is in git.
    let alone = p.gather("", Inputs::Git, &mut Remembered::open(None));
    match alone {
        Err(RunError::Usage(why)) => assert!(why.contains("--input") && why.contains("--no-inputs"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(p.names("", named(&[])).is_empty());
}

#[test]
fn inputs_in_an_ignored_directory_must_be_named() {
    let p = Project::git(&["a", "build/b", "build/kept", "other/c"]);
    p.write(".gitignore", "build/\nother/*\n");
    for cwd in ["build", "build/sub"] {
        std::fs::create_dir_all(p.path(cwd)).unwrap();
        match p.gather(cwd, Inputs::Git, &mut Remembered::open(None)) {
            Err(RunError::Usage(why)) => assert!(why.contains("git ignores that directory"), "{why}"),
            other => panic!("{other:?}"),
        }
        // Not even one that has a file that git was made to track.
        p.run_git(&["add", "-f", "build/kept"]);
    }
    assert!(p.names("other", Inputs::Git).is_empty(), "its files are ignored, not the directory");
    assert_eq!(p.names("build", named(&["b"])), ["build/b"]);
}

#[test]
fn files_directories_and_globs() {
    let p = Project::new(&[
        "a.c",
        "b.h",
        "sub/c.c",
        "sub/deep/d.c",
        "sub/out.o",
        "[x].c",
        "sub/.hidden",
        ".git/x",
    ]);
    let names = |list: &[&str]| p.names("", named(list));
    assert_eq!(names(&["a.c", "./a.c", "sub/../a.c"]), ["a.c"]);
    assert_eq!(names(&["sub"]), ["sub/.hidden", "sub/c.c", "sub/deep/d.c"]);
    assert_eq!(names(&["*.c"]), ["[x].c", "a.c"]);
    assert_eq!(names(&["[x].c"]), ["[x].c"], "what exists is no glob");
    assert_eq!(names(&["**/*.c"]), ["[x].c", "a.c", "sub/c.c", "sub/deep/d.c"]);
    assert_eq!(names(&["sub/*.{c,h}", "b.?"]), ["b.h", "sub/c.c"]);
    assert_eq!(p.names("sub", named(&["../a.c", "deep"])), ["a.c", "sub/deep/d.c"]);
    assert!(!names(&["."]).contains(&".git/x".to_owned()), "git's own files are no inputs");
    p.refuses("does not exist", named(&["nothing"]));
    p.refuses("matches no file", named(&["*.rs"]));
    p.refuses("matches no file", named(&["nowhere/*.c"]));
    p.refuses("the input a[", named(&["a["]));
}

#[test]
fn executable_bits_and_link_targets_count() {
    let p = Project::new(&["f", "x"]);
    std::fs::set_permissions(p.path("x"), std::fs::Permissions::from_mode(0o700)).unwrap();
    symlink("f", p.path("l")).unwrap();
    symlink("nowhere", p.path("dangling")).unwrap();
    symlink(".", p.path("to-dir")).unwrap();
    let gathered = p.gather("", named(&["."]), &mut Remembered::open(None)).unwrap();
    let seen: Vec<_> = gathered.inputs.iter().map(|i| (i.path.as_str(), i.kind)).collect();
    let wanted = [
        ("dangling", Kind::Link),
        ("f", Kind::File),
        ("l", Kind::Link),
        ("to-dir", Kind::Link),
        ("x", Kind::Program),
    ];
    assert_eq!(seen, wanted);
    assert_eq!(gathered.read, 2);
    assert!(nix::unistd::mkfifo(&p.path("fifo"), nix::sys::stat::Mode::S_IRWXU).is_ok());
    p.refuses("is no file", named(&["fifo"]));
}

/// Reads until everything is old enough to be remembered.
fn settle(p: &Project, remembered: &mut Remembered) {
    let end = Instant::now() + Duration::from_secs(20);
    while p.gather("", named(&["src"]), remembered).unwrap().read > 0 {
        assert!(Instant::now() < end, "it is never remembered");
    }
}

#[test]
fn a_second_run_of_many_inputs_opens_none() {
    let p = Project::new(&[]);
    for n in 0..3000 {
        p.write(&format!("src/{}/{n}", n % 20), &n.to_string());
    }
    let file = Some(p.path("remembered"));
    let mut first = Remembered::open(file.clone());
    let one = p.gather("", named(&["src"]), &mut first).unwrap();
    assert_eq!((one.inputs.len(), one.read), (3000, 3000));
    settle(&p, &mut first);
    first.save().unwrap();
    let mut second = Remembered::open(file);
    let two = p.gather("", named(&["src"]), &mut second).unwrap();
    assert_eq!((two.read, two.inputs == one.inputs), (0, true));
    // Touched, and changed without changing its size or mtime.
    let touch = |name: &str, content: Option<&str>| {
        let mtime = p.path(name).metadata().unwrap().modified().unwrap();
        if let Some(content) = content {
            p.write(name, content);
        }
        let file = std::fs::File::options().write(true).open(p.path(name)).unwrap();
        file.set_modified(if content.is_some() { mtime } else { mtime + Duration::from_secs(1) }).unwrap();
    };
    touch("src/1/1", None);
    touch("src/2/2", Some("3"));
    let three = p.gather("", named(&["src"]), &mut second).unwrap();
    assert_eq!(three.read, 2);
    let differ: Vec<_> = three.inputs.iter().zip(&one.inputs).filter(|(a, b)| a != b).collect();
    assert!(matches!(&differ[..], [(a, _)] if a.path == "src/2/2"), "{differ:?}");
}

#[test]
fn what_changes_in_the_instant_it_was_read_is_seen() {
    let p = Project::new(&["src/f"]);
    let mut remembered = Remembered::open(None);
    // Same size, and often within one tick of the clock.
    for n in 0..300 {
        let content = format!("{n:03}");
        std::fs::write(p.path("src/f"), &content).unwrap();
        let gathered = p.gather("", named(&["src"]), &mut remembered).unwrap();
        assert_eq!(gathered.inputs[0].hash, crate::model::BlobHash::of(content.as_bytes()));
    }
}

#[test]
fn what_vanishes_is_named() {
    let p = Project::new(&["src/f"]);
    let seen = super::walk::Seen::at(&p.path("src/f")).unwrap();
    std::fs::remove_file(p.path("src/f")).unwrap();
    let place = Place { root: p.path(""), cwd: p.path("") };
    let gone = super::inputs::hash_all(&place, vec![(p.path("src/f"), seen)], &mut Remembered::open(None));
    assert!(
        matches!(gone, Err(RunError::Unstable { ref path, what: "vanished" }) if path.ends_with("src/f"))
    );
    p.write("src/f", "longer than before");
    let other = super::inputs::hash_all(&place, vec![(p.path("src/f"), seen)], &mut Remembered::open(None));
    assert!(matches!(other, Err(RunError::Unstable { what: "changed", .. })), "{other:?}");
}

#[test]
fn others_are_told_in_whatever_order_they_are_asked_for() {
    let p = Project::new(&["a/b", "a-b", "c"]);
    let gathered = p.gather("", named(&["."]), &mut Remembered::open(None)).unwrap();
    let paths = ["z", "c", "a/b", "a-b", "a/a", "z"].map(|name| p.path(name)).into();
    assert_eq!(gathered.others(paths), [p.path("a/a"), p.path("z")]);
}

/// Such a directory is made by a run that restores beside this one.
#[test]
fn unfinished_directories_are_not_entered() {
    let p = Project::git(&[".outfs-1-2.tmp/sub/f", "sub/.outfs-1-2.tmp/f", "sub/f", "a"]);
    p.run_git(&["add", "a"]);
    let beside = Project::git(&[".outfs-1-2.tmp/f"]);
    for inputs in [Inputs::Git, named(&["."]), named(&["**"]), named(&["a", "sub"])] {
        assert_eq!(p.names("", inputs.clone()), ["a", "sub/f"], "{inputs:?}");
    }
    assert!(beside.names("", Inputs::Git).is_empty());
}
