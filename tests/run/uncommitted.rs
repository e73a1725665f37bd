//! What nobody has committed is not taken away because somebody declares it as an output.

use std::fs;

use crate::common::{Mount, need};
use crate::project::{Project, Ran};

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
