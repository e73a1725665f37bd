//! Tests of what changed while a command ran, in real directories.

use std::path::PathBuf;
use std::process::Command;

use super::inputs::{Apart, gather, list};
use super::meanwhile::{Change, changed_since};
use super::remembered::Remembered;
use super::spec::{Inputs, Place};

struct Project {
    _dir: tempfile::TempDir,
    top: PathBuf,
}

impl Project {
    fn new() -> Project {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(top.join("src/sub")).unwrap();
        ["src/a", "src/b", "src/sub/c", "top"].iter().for_each(|f| std::fs::write(top.join(f), f).unwrap());
        assert!(Command::new("git").args(["init", "-q"]).current_dir(&top).status().unwrap().success());
        Project { _dir: dir, top }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.top.join(name)
    }

    /// What changed while this was done.
    fn change(&self, inputs: &Inputs, act: impl FnOnce()) -> Option<Change> {
        let place = Place { root: self.path("").components().collect(), cwd: self.top.clone() };
        let (apart, mut remembered) = (self.apart(), Remembered::open(None));
        let gathered = gather(inputs, &place, &apart, &mut remembered).unwrap();
        act();
        let listed = list(inputs, &place, &apart);
        changed_since(&gathered, listed, &mut remembered)
    }

    fn apart(&self) -> Apart {
        Apart { outputs: vec![self.path("src/out")], stay: true, own: vec![self.path("src/own")] }
    }
}

fn ways() -> [Inputs; 4] {
    let named = |names: &[&str]| Inputs::Named(names.iter().map(Into::into).collect());
    [Inputs::Git, named(&["src"]), named(&["src/**/*"]), named(&["src/a", "src/*", "src/sub/*"])]
}

#[test]
fn what_comes_is_seen_however_inputs_are_named() {
    for inputs in &ways() {
        let p = Project::new();
        assert_eq!(p.change(inputs, || {}), None);
        let write = |name: &str| std::fs::write(p.path(name), name).unwrap();
        let came = p.change(inputs, || {
            ["src/aa", "src/sub/d", "src/out", "src/own"].map(write).iter().for_each(drop)
        });
        assert_eq!(came, Some(Change::New(vec![p.path("src/aa"), p.path("src/sub/d")])), "{inputs:?}");
        // What is changed is said first, and what is gone.
        let other = p.change(inputs, || {
            ["src/ab", "src/b"].map(|f| std::fs::write(p.path(f), "x").unwrap()).iter().for_each(drop)
        });
        assert_eq!(other, Some(Change::Other("src/b".into())), "{inputs:?}");
        let gone = p.change(inputs, || std::fs::remove_file(p.path("src/a")).unwrap());
        assert_eq!(gone, Some(Change::Other("src/a".into())), "{inputs:?}");
    }
}

#[test]
fn what_only_looks_different_is_the_same() {
    for inputs in &ways() {
        let p = Project::new();
        // Touched beside something new, given the mode it had, linked to, written anew.
        let stayed = p.change(inputs, || {
            std::fs::write(p.path("src/out"), "").unwrap();
            let file = std::fs::File::options().write(true).open(p.path("src/a")).unwrap();
            file.set_modified(std::time::SystemTime::now()).unwrap();
            file.set_permissions(file.metadata().unwrap().permissions()).unwrap();
            std::fs::write(p.path("src/b"), "src/b").unwrap();
            std::fs::hard_link(p.path("src/sub/c"), p.path("src/out.c")).unwrap();
            std::fs::remove_file(p.path("src/out.c")).unwrap();
        });
        assert_eq!(stayed, None, "{inputs:?}");
    }
}
