//! What nobody has committed is not taken away because somebody declares it as an output.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use crate::common::{Mount, need};
use crate::project::{Project, Ran, said};

const MAKE: &str = "mkdir -p src; echo made > src/a; echo made > src/more";
const OTHER: &str = "mkdir -p src; echo other > src/a";

fn project() -> Project {
    let p = Project::new();
    p.write("src/a", "written by hand\n");
    p.write(".gitignore", "*.o\n");
    p.git(&["add", "."]);
    p
}

fn run(p: &Project, n: &str, options: &[&str], script: &str) -> Ran {
    let param = format!("n={n}");
    let task = ["--task", "t", "--no-inputs", "--output", "src", "--param", &param];
    p.sh(&[&task, options].concat(), script)
}

#[track_caller]
fn refused(p: &Project, ran: Ran, path: &str, content: &str) {
    assert_eq!(ran.code, 125, "{ran:#?}");
    let why = ran.record["error"].as_str().unwrap_or_default();
    assert!(why.starts_with(&format!("{path} is not in git")) && why.contains("commit it"), "{ran:#?}");
    assert!(!ran.stderr.contains("outfs: run "), "what does not run has no reasons: {ran:#?}");
    assert_eq!(p.read(path), content);
}

/// S13.15 What git tracks at an output, or what lies beside that, is not taken away as long as git does not have it so.
#[test]
fn work_at_an_output_is_not_taken_away() {
    let p = project();
    need("bwrap");
    run(&p, "1", &[], MAKE).kept(true);
    let edited = "edited by hand\n";
    p.write("src/a", edited);
    // On a hit as on a miss, in a sandbox, on top of an earlier result, and past the cache.
    let ways = [
        ("1", &[][..]),
        ("2", &[]),
        ("1", &["--verify"]),
        ("1", &["--force"]),
        ("3", &["--sandbox", "bwrap"]),
        ("4", &["--base", "t"]),
        ("5", &["--base", "t", "--sandbox", "bwrap"]),
        ("6", &["--policy", "disabled"]),
    ];
    for (n, options) in ways {
        refused(&p, run(&p, n, options, MAKE), "src/a", edited);
    }
    // What was touched, and what git has, can be had again.
    p.git(&["add", "src/a"]);
    fs::File::open(p.path("src/a")).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    run(&p, "2", &[], MAKE).kept(true);
    // A new file in a directory that git tracks; what it ignores is nobody's work.
    p.write("src/x.o", "");
    run(&p, "3", &[], MAKE).kept(true);
    p.write("src/new", "new\n");
    refused(&p, run(&p, "1", &[], MAKE), "src/new", "new\n");
    fs::remove_file(p.path("src/new")).unwrap();
    run(&p, "1", &[], MAKE).is_hit();
    // Nobody can tell outside git.
    p.write("src/a", edited);
    fs::remove_dir_all(p.path(".git")).unwrap();
    let outside = run(&p, "1", &[], MAKE);
    assert_eq!((outside.is_hit().stderr.lines().count(), p.read("src/a").as_str()), (1, "made\n"));
}

/// … `--dry-run` tells it, and is as fine as ever.
#[test]
fn what_would_be_refused_is_told_before() {
    let p = project();
    run(&p, "1", &[], MAKE).kept(true);
    let refused = |n: &str| run(&p, n, &["--dry-run"], MAKE).record["refused"].clone();
    // As a run left it.
    assert_eq!((refused("1"), refused("2")), (Value::Null, Value::Null));
    p.write("src/a", "edited by hand\n");
    for n in ["1", "2"] {
        let would = run(&p, n, &["--dry-run"], MAKE);
        assert_eq!((would.code, &would.record["error"]), (0, &Value::Null), "{would:#?}");
        assert_eq!(would.record["refused"], run(&p, n, &[], MAKE).record["error"], "{would:#?}");
        assert!(would.record["refused"].as_str().unwrap().starts_with("src/a is not in git"), "{would:#?}");
    }
    let told = p.ok(&["run", "--dry-run", "--task", "t", "--no-inputs", "--output", "src", "--", "true"]);
    assert!(
        told.lines().last().unwrap().starts_with("refused    src/a is not in git as it stands"),
        "{told}"
    );
    assert_eq!(p.read("src/a"), "edited by hand\n");
    p.git(&["add", "src/a"]);
    assert_eq!((refused("1"), refused("2")), (Value::Null, Value::Null));
}

/// … Where git fails nothing is known of work, and that is said once; not of what a run has left.
#[test]
fn where_git_fails_that_is_said() {
    let p = project();
    run(&p, "1", &[], MAKE).kept(true);
    run(&p, "2", &[], OTHER).kept(true);
    p.write("bin/git", "#!/bin/sh\necho 'fatal: not today' >&2; echo more >&2; exit 128\n");
    fs::set_permissions(p.path("bin/git"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", p.path("bin").display(), std::env::var("PATH").unwrap());
    let go = |n: &str, options: &[&str], script: &str| {
        let param = format!("n={n}");
        let task = ["run", "--json", "--task", "t", "--no-inputs", "--output", "src", "--param", &param];
        let mut c = p.command(&[&task, options, &["--", "sh", "-c", script]].concat());
        Ran::of({
            c.env("PATH", &path);
            c
        })
    };
    let warning = format!(
        "git fails in {}, so work there that is not committed is not spared: fatal: not today",
        p.cwd.display()
    );
    let told = |ran: &Ran| {
        let warnings: Vec<&str> =
            ran.record["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let ours = warnings.iter().filter(|w| w.starts_with("git fails")).count();
        let lines = ran.stderr.lines().filter(|line| *line == format!("outfs: warning: {warning}")).count();
        assert_eq!((ours, ran.stderr.contains("not today")), (lines, lines > 0), "{ran:#?}");
        lines
    };
    assert_eq!(told(&go("1", &[], MAKE)), 0, "as a run left it");
    p.write("src/a", "edited\n");
    assert_eq!(told(&go("1", &["--dry-run"], MAKE)), 1);
    let hit = go("1", &[], MAKE);
    assert_eq!((told(hit.is_hit()), p.read("src/a").as_str()), (1, "made\n"));
    // Twice asked, once said: what was to be given back has to be made.
    const LARGE: &str = "mkdir -p src; head -c 1000000 /dev/zero > src/a";
    go("4", &[], LARGE).kept(true);
    fs::remove_dir_all(p.store.join("blobs")).unwrap();
    fs::create_dir(p.store.join("blobs")).unwrap();
    p.write("src/a", "edited\n");
    assert_eq!(told(go("4", &[], LARGE).is_miss(&["output_missing"])), 1);
    p.write("src/a", "edited\n");
    assert_eq!(told(&go("3", &[], "mkdir src; echo half > src/a; exit 1")), 1);
    assert_eq!(told(&go("3", &[], "mkdir src; echo half > src/a; exit 1")), 0, "as a run left it");
    // No repository is no failure.
    p.write("src/a", "edited\n");
    fs::remove_dir_all(p.path(".git")).unwrap();
    assert_eq!(told(&go("1", &[], MAKE)), 0);
}

/// … What runs have made there goes as ever, however they ended.
#[test]
fn generated_files_that_are_committed_do_not_get_stuck() {
    let p = project();
    run(&p, "1", &[], MAKE).kept(true);
    run(&p, "2", &[], OTHER).kept(true);
    run(&p, "1", &[], MAKE).is_hit();
    run(&p, "3", &["--policy", "disabled"], "mkdir src; echo 3 > src/a");
    assert_eq!(run(&p, "4", &[], "mkdir src; echo half > src/a; exit 1").code, 1);
    assert_eq!(run(&p, "5", &[], "exit 1").code, 1);
    assert_eq!(run(&p, "4", &[], "mkdir src; echo half > src/a; exit 1").code, 1);
    run(&p, "1", &["--verify"], MAKE);
    run(&p, "2", &[], OTHER).is_hit();
    // Without a memory: what an entry has can be had again, file by file.
    fs::remove_dir_all(p.dir.path().join("memory")).unwrap();
    run(&p, "2", &[], OTHER).is_hit();
    run(&p, "1", &[], MAKE).is_hit();
    fs::remove_dir_all(p.dir.path().join("memory")).unwrap();
    fs::remove_file(p.path("src/more")).unwrap();
    run(&p, "6", &[], MAKE).kept(true);
    p.write("src/more", "edited\n");
    refused(&p, run(&p, "7", &[], MAKE), "src/more", "edited\n");
    // Somebody looks at them before the next run.
    fs::remove_dir_all(p.path("src")).unwrap();
    assert_eq!(run(&p, "8", &[], "mkdir src; echo 8 > src/a; exit 1").code, 1);
    p.sh(&["--task", "next", "--no-inputs", "--after", "t"], "true");
    run(&p, "9", &[], MAKE).kept(true);
}

#[test]
fn links_into_a_mount_are_nobodys_work() {
    let m = Mount::new();
    let mut p = project();
    p.store = m.store().to_owned();
    run(&p, "1", &[], MAKE).kept(true);
    run(&p, "1", &["--as", "link"], MAKE).is_hit();
    fs::remove_dir_all(p.dir.path().join("memory")).unwrap();
    run(&p, "2", &[], MAKE).kept(true);
}

/// A submodule, and a repository that lies in the project, are looked at themselves.
#[test]
fn repositories_inside_are_looked_at() {
    let p = Project::new();
    let outer = p.cwd.clone();
    let mut inner = Project::new();
    inner.cwd = outer.join("dep");
    inner.write("gen/a", "1\n");
    inner.git(&["init", "-q"]);
    inner.git(&["add", "."]);
    let go = |options: &[&str]| {
        let task = ["--task", "t", "--no-inputs"];
        p.sh(&[&task, options].concat(), "mkdir -p dep/gen; echo 2 > dep/gen/a")
    };
    inner.write("gen/a", "edited\n");
    refused(&p, go(&["--output", "dep/gen"]), "dep/gen/a", "edited\n");
    inner.git(&["add", "."]);
    go(&["--output", "dep/gen"]).kept(true);
}

/// S13.15 … Nor is a repository that stands at an output or below it, in git or not, on a hit or a miss: it has commits.
#[test]
fn repositories_are_not_taken_away() {
    let p = Project::new();
    let git = p.outfs(&["run", "--no-inputs", "--output", ".git", "--", "true"]);
    assert!(git.status.code() == Some(125) && said(&git).contains("git's own"), "{}", said(&git));
    assert!(p.path(".git/HEAD").exists());
    let go = |n: &str, options: &[&str]| {
        let param = format!("n={n}");
        let task = ["--task", "t", "--no-inputs", "--output", "sub", "--param", &param];
        p.sh(&[&task, options].concat(), "mkdir sub; echo made > sub/a")
    };
    go("1", &[]).kept(true);
    // At the output and below it, as a work tree of another one, bare.
    let kinds: [(&str, &[&str], &str); 4] = [
        ("sub", &["init", "-q", "sub"], "sub/.git"),
        ("sub/deep", &["init", "-q", "sub/deep"], "sub/deep/.git"),
        ("sub/tree", &["worktree", "add", "-q", "sub/tree"], "sub/tree/.git"),
        ("sub/bare", &["init", "-q", "--bare", "sub/bare"], "sub/bare"),
    ];
    p.git(&["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "one"]);
    for inside in [true, false] {
        for (dir, make, named) in kinds {
            fs::remove_dir_all(p.path("sub")).unwrap();
            p.git(make);
            if !inside {
                fs::rename(p.path(".git"), p.path("aside")).unwrap();
            }
            for (n, options) in [("1", &[][..]), ("2", &[]), ("2", &["--policy", "disabled"])] {
                let ran = go(n, options);
                let why = ran.record["error"].as_str().unwrap_or_default();
                assert!(
                    ran.code == 125 && why.starts_with(&format!("{named} is a git repository")),
                    "{ran:#?}"
                );
            }
            assert_eq!(go("2", &["--dry-run"]).record["refused"], go("2", &[]).record["error"]);
            assert!(p.path(dir).exists(), "{dir}");
            if !inside {
                fs::rename(p.path("aside"), p.path(".git")).unwrap();
            }
            p.git(&["worktree", "prune"]);
            let _ = Command::new("git").args(["branch", "-q", "-D", "tree"]).current_dir(&p.cwd).status();
        }
    }
}

/// … What a run has cloned there goes as ever, until somebody commits to it.
#[test]
fn repositories_that_runs_made_go_as_ever() {
    const COMMIT: &[&str] =
        &["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "one"];
    let p = Project::new();
    p.write(".gitignore", "build\n");
    let go = |n: &str, options: &[&str], end: &str| {
        let param = format!("n={n}");
        let task = ["--task", "t", "--no-inputs", "--output", "build", "--param", &param];
        let make = "git init -q build/dep; cd build/dep; echo a > a; git add a";
        p.sh(&[&task, options].concat(), &format!("{make}; git {}; {end}", COMMIT.join(" ")))
    };
    let in_it = |args: &[&str]| p.git(&[&["-C", "build/dep"], args].concat());
    go("1", &[], "").kept(true);
    go("2", &[], "").kept(true);
    // However it ended.
    assert_eq!(go("3", &[], "exit 1").code, 1);
    assert_eq!(go("4", &["--policy", "disabled"], "").code, 0);
    go("2", &[], "").is_hit();
    // Somebody looks at it and builds in it.
    fs::File::open(p.path("build/dep/a")).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    in_it(&["status"]);
    p.write("build/by-hand.o", "");
    go("1", &[], "").is_hit();
    in_it(COMMIT);
    let ran = go("2", &[], "");
    assert_eq!(ran.says("build/dep/.git is a git repository and not as a run left it").code, 125);
    assert_eq!(go("5", &[], "").code, 125);
    assert!(p.path("build/dep/.git/HEAD").exists());
}
