//! What makes a task run and what does not.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::project::{Project, Ran, tree};

/// S13.2 A miss says why before the command runs.
#[test]
fn a_c_project_from_clean_to_changed() {
    let p = Project::in_c();
    let first = p.make(&["--env", "CC_FLAVOUR"]);
    first.is_miss(&["first_run"]).kept(true).says("first run");
    assert_eq!((first.code, &first.stdout[..]), (0, "linked\n"));
    let why = first.stderr.find("first run").unwrap();
    assert!(why < first.stderr.find("warned").unwrap(), "{first:#?}");
    let built = tree(&p.path("out"));
    // A plain build of the same sources gives the same.
    fs::remove_dir_all(p.path("out")).unwrap();
    assert!(
        Command::new("make").args(["-s", "out/app"]).current_dir(&p.cwd).output().unwrap().status.success()
    );
    assert_eq!(tree(&p.path("out")), built);
    let again = p.make(&["--env", "CC_FLAVOUR"]);
    again.is_hit().says("saved");
    assert_eq!((&again.stdout, again.key()), (&first.stdout, first.key()));
    assert!(again.stderr.contains("warned\n"), "{again:#?}");
    assert_eq!(tree(&p.path("out")), built);
    // Touched.
    let later = SystemTime::now() + Duration::from_secs(2);
    fs::File::options().append(true).open(p.path("main.c")).unwrap().set_modified(later).unwrap();
    p.make(&["--env", "CC_FLAVOUR"]).is_hit();
    fs::remove_dir_all(p.path("out")).unwrap();
    p.make(&["--env", "CC_FLAVOUR"]).is_hit();
    assert_eq!(tree(&p.path("out")), built);
    // Changed, added, and back again.
    p.write("h.h", "#define N 2\n");
    let changed = p.make(&["--env", "CC_FLAVOUR"]);
    changed.is_miss(&["dep_changed"]).says("the input h.h changed");
    p.write("README", "more");
    p.make(&["--env", "CC_FLAVOUR"]).is_miss(&["dep_changed"]).says("the input README is new");
    fs::remove_file(p.path("README")).unwrap();
    p.write("h.h", "#define N 1\n");
    p.make(&["--env", "CC_FLAVOUR"]).is_hit();
    assert_eq!(tree(&p.path("out")), built);
    let mut other =
        p.command(&["run", "--json", "--task", "build", "--output", "out", "--env", "CC_FLAVOUR"]);
    other.env("CC_FLAVOUR", "x").args(["--", "make", "-s", "out/app"]);
    Ran::of(other).is_miss(&["env_changed"]).says("the variable CC_FLAVOUR changed");
}

/// S13.1 What a result hashes to is the same whether the store tells it or what stands there is looked at.
#[test]
fn a_result_hashes_to_the_same_for_the_store_and_for_who_looks() {
    let p = Project::new();
    let script = "mkdir -p d/a d/a-b; for f in a.b a-b/c a/b a/b.c ab 'a\\b' ü; do echo $f > \"d/$f\"; done; ln -s ab d/l";
    p.sh(&["--task", "one", "--no-inputs", "--output", "d"], script).kept(true);
    let next = ["run", "--json", "--task", "next", "--after", "one", "--no-inputs", "--", "true"];
    Ran::of(p.command(&next)).kept(true);
    let mut remembers_nothing = p.command(&next);
    remembers_nothing.env("XDG_CACHE_HOME", p.dir.path().join("another memory"));
    Ran::of(remembers_nothing).is_hit();
}

#[test]
fn evicted_rejected_and_forced() {
    let p = Project::new();
    let run = |options: &[&str]| {
        let task = ["--task", "t", "--no-inputs", "--output", "o"];
        p.sh(&[&task, options].concat(), "echo ran; date +%N > o")
    };
    let first = run(&[]);
    first.is_miss(&["first_run"]);
    let key = first.key();
    p.ok(&["evict", key]);
    let evicted = run(&[]);
    evicted.is_miss(&["evicted"]).kept(true).says("the entry was evicted at 20");
    p.ok(&["reject", key, "--reason", "bad compiler"]);
    run(&[]).is_miss(&["rejected"]).kept(true).says("bad compiler");
    run(&[]).is_hit();
    let before = p.read("o");
    run(&["--force"]).is_miss(&["forced"]).kept(true);
    assert_ne!(p.read("o"), before);
    let forced = p.read("o");
    fs::remove_file(p.path("o")).unwrap();
    run(&[]).is_hit();
    assert_eq!(p.read("o"), forced, "force replaces");
    let why: serde_json::Value = serde_json::from_str(&p.ok(&["why", "t", "--json"])).unwrap();
    assert_eq!((&why["key"], &why["reasons"][0]["why"]), (&key.into(), &"forced".into()));
    assert!(p.ok(&["why", key]).contains("was run    forced"));
    let kinds: Vec<String> = p.events().iter().map(|e| e["event"].as_str().unwrap().to_owned()).collect();
    for kind in ["hit", "miss", "sealed", "evicted", "rejected"] {
        assert!(kinds.contains(&kind.to_owned()), "{kind} in {kinds:?}");
    }
}

#[test]
fn what_is_named_counts() {
    let p = Project::new();
    let bin = p.dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let tool = |content: &str| {
        fs::write(bin.join("mytool"), content).unwrap();
        fs::set_permissions(bin.join("mytool"), fs::Permissions::from_mode(0o755)).unwrap();
    };
    tool("#!/bin/sh\necho 1\n");
    let run = |options: &[&str], script: &str| {
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let task = ["run", "--json", "--task", "t", "--no-inputs", "--tool", "mytool"];
        let mut c = p.command(&[&task, options, &["--", "sh", "-c", script]].concat());
        c.env("PATH", path);
        Ran::of(c)
    };
    run(&["--param", "a=1"], "mytool").is_miss(&["first_run"]);
    run(&["--param", "a=1"], "mytool").is_hit();
    tool("#!/bin/sh\necho 2\n");
    let other = run(&["--param", "a=1"], "mytool");
    other.is_miss(&["tool_changed"]).says("the program mytool changed");
    assert_eq!(other.stdout, "2\n");
    run(&["--param", "a=2"], "mytool").is_miss(&["params_changed"]);
    run(&["--param", "a=2"], "mytool; :").is_miss(&["cmd_changed"]);
    run(&["--param", "a=2", "--output", "x"], "mytool; touch x").is_miss(&["cmd_changed", "outputs_changed"]);
}

/// S13.8 The value of a secret is written nowhere.
#[test]
fn secrets_count_and_are_written_nowhere() {
    let p = Project::new();
    let run = |secret: &str, key: Option<&str>| {
        let mut c =
            p.command(&["run", "--json", "--task", "t", "--no-inputs", "--secret", "TOKEN", "--", "true"]);
        c.env("TOKEN", secret).env_remove("OUTFS_SECRET_KEY");
        key.map(|k| c.env("OUTFS_SECRET_KEY", k));
        Ran::of(c)
    };
    assert_eq!(run("very-secret-value", None).says("OUTFS_SECRET_KEY").code, 125);
    run("very-secret-value", Some("team")).is_miss(&["first_run"]);
    run("very-secret-value", Some("team")).is_hit();
    run("other-secret-value", Some("team")).is_miss(&["env_changed"]);
    run("very-secret-value", Some("another team")).is_miss(&["env_changed"]);
    let all = [tree(&p.store), tree(&p.dir.path().join("memory"))].concat();
    assert!(all.len() > 5);
    for (path, content) in all {
        let has = content.windows(12).any(|w| w == b"secret-value");
        assert!(!has, "{}", path.display());
    }
}

/// S13.1 A key is made of what was named (command, programs, inputs, outputs, variables, secrets, parameters, tasks
/// before, directory, platform) and of nothing else: equal state gives equal keys, wherever a project lies.
#[test]
fn two_checkouts_of_one_project_have_the_same_keys() {
    let keys: Vec<String> = [Project::in_c(), Project::in_c()]
        .iter()
        .map(|p| {
            p.make(&[]);
            let dry = p.make(&["--dry-run"]);
            assert_eq!(dry.record["result"], "hit");
            dry.key().to_owned()
        })
        .collect();
    assert_eq!(keys[0], keys[1]);
    assert_eq!(keys[0].len(), 64);
}

#[test]
fn a_dry_run_says_everything_and_does_nothing() {
    let p = Project::in_c();
    let dry = p.make(&["--dry-run", "--param", "level=3"]);
    dry.is_miss(&["first_run"]);
    let parts = &dry.record["parts"];
    assert_eq!((&parts["params"]["level"], &parts["argv"][2]), (&"3".into(), &"out/app".into()));
    assert_eq!(parts["inputs"].as_array().unwrap().len(), 5);
    assert!(!p.path("out").exists() && !p.store.exists());
    let text = p.ok(&["run", "--dry-run", "--input", "*.c", "--output", "x", "--", "true"]);
    assert!(
        text.contains("would run  first run") && text.contains("main.c") && !text.contains("h.h"),
        "{text}"
    );
}

#[test]
fn make_finds_outputs_newer_than_inputs() {
    let p = Project::in_c();
    p.make(&[]);
    let up_to_date =
        || Command::new("make").args(["-q", "out/app"]).current_dir(&p.cwd).status().unwrap().success();
    for name in ["main.c", "h.h"] {
        fs::File::options().append(true).open(p.path(name)).unwrap().set_modified(SystemTime::now()).unwrap();
        assert!(!up_to_date());
        p.make(&[]).is_hit();
        assert!(up_to_date(), "times of outputs are now");
    }
    let times = |name: &str| p.path(name).metadata().unwrap().modified().unwrap();
    assert!(times("out/main.o") <= times("out/app"));
    let (app, inode) = (times("out/app"), p.path("out/app").metadata().unwrap().ino());
    p.make(&[]).is_hit();
    let after = p.path("out/app").metadata().unwrap();
    assert_eq!((after.modified().unwrap(), after.ino()), (app, inode), "what stands there is left alone");
    fs::remove_dir_all(p.path("out")).unwrap();
    p.make(&["--mtime", "keep"]).is_hit();
    assert!(times("out/app") < app);
}

/// S13.3 A hit leaves exactly the entry's outputs at the declared paths, each file appearing whole; what stands there
/// unchanged is not touched.
#[test]
fn a_hit_leaves_exactly_the_outputs() {
    let p = Project::in_c();
    p.make(&[]);
    let built = tree(&p.path("out"));
    p.write("out/stale", "x");
    p.write("out/app", "not the program");
    p.make(&[]).is_hit();
    assert_eq!(tree(&p.path("out")), built);
    for how in ["copy", "auto"] {
        fs::remove_dir_all(p.path("out")).unwrap();
        p.make(&["--as", how]).is_hit();
        assert_eq!(tree(&p.path("out")), built, "{how}");
        let inode = p.path("out/app").metadata().unwrap().ino();
        p.make(&["--as", how]).is_hit();
        assert_eq!(p.path("out/app").metadata().unwrap().ino(), inode, "{how}");
        let mode = p.path("out/app").metadata().unwrap().mode();
        assert_eq!(mode & 0o300, 0o300, "owner-writable");
    }
}

#[test]
fn tasks_after_each_other() {
    let p = Project::new();
    p.write("in", "1\n");
    p.write(".gitignore", "gen\nsum\n");
    let generate = || p.sh(&["--task", "gen", "--input", "in", "--output", "gen"], "head -c1 in > gen");
    let sum = || {
        let options = ["--task", "sum", "--no-inputs", "--after", "gen", "--output", "sum"];
        p.sh(&options, "cat gen gen > sum")
    };
    assert_eq!(sum().says("run it first").code, 125);
    generate().is_miss(&["first_run"]);
    sum().is_miss(&["first_run"]);
    // It ran again, to the same result.
    p.write("in", "1 and more\n");
    generate().is_miss(&["dep_changed"]);
    sum().is_hit();
    p.write("in", "2\n");
    generate().is_miss(&["dep_changed"]);
    sum().is_miss(&["upstream_rerun"]).says("the task gen ran again");
    assert_eq!(p.read("sum"), "22");
    // A hit on an older result counts as the last run.
    p.write("in", "1\n");
    generate().is_hit();
    sum().is_hit();
    assert_eq!(p.read("sum"), "11");
    // And one past the cache, too.
    p.write("in", "3\n");
    p.sh(&["--task", "gen", "--output", "gen", "--policy", "disabled"], "head -c1 in > gen");
    sum().is_miss(&["upstream_rerun"]);
    assert_eq!(p.read("sum"), "33");
}

#[test]
fn a_lock_file_wins_over_the_history() {
    let p = Project::new();
    p.write("in", "1");
    let run = |task: &str| p.sh(&["--task", task, "--lock", "outfs.lock", "--output", "o"], "cat in > o");
    run("t").is_miss(&["no_lock_file"]);
    run("t").is_hit();
    p.write("o2", "");
    run("t").is_miss(&["dep_changed"]);
    fs::remove_file(p.path("o2")).unwrap();
    let lock = p.read("outfs.lock");
    p.write("in", "2");
    run("other").is_miss(&["task_not_in_lock"]);
    run("t").is_hit();
    // As if it came from somebody else, who has another store.
    fs::write(p.path("outfs.lock"), lock).unwrap();
    fs::remove_dir_all(&p.store).unwrap();
    run("t")
        .is_miss(&["dep_changed", "dep_changed"])
        .says("the input in changed")
        .says("the input o2 was removed");
    // As if another version of outfs had written it.
    fs::write(p.path("outfs.lock"), p.read("outfs.lock").replace("key_version = 2", "key_version = 1"))
        .unwrap();
    p.write("in", "3");
    run("t").is_miss(&["cache_key_mismatch"]).says("a key of form 1 -> a key of form 2");
    run("t").is_hit();
    assert!(p.read("outfs.lock").contains("\nkey_version = 2\n"));
    let damaged = p.read("outfs.lock").replace("cwd = \"\"", "cwd = \"");
    fs::write(p.path("outfs.lock"), &damaged).unwrap();
    let line = 1 + damaged[..damaged.find("cwd = \"").unwrap()].matches('\n').count();
    assert_eq!(run("t").says(&format!("outfs.lock, line {line}: ")).code, 125);
}

#[test]
fn two_entries_compared() {
    let p = Project::in_c();
    let old = p.make(&[]);
    p.write("other.c", "#include \"h.h\"\nint other(void) { return N + 0 * 7 + N - N; }\nint more;\n");
    let new = p.make(&[]);
    let text = p.ok(&["diff", old.key(), new.key()]);
    assert!(text.contains("key: the input other.c changed"), "{text}");
    assert!(text.contains("output changed: out/other.o"), "{text}");
    assert!(!text.contains("main.o"), "{text}");
}

#[test]
fn verifying_says_what_differs() {
    let p = Project::new();
    let run = |options: &[&str], script: &str| {
        p.sh(&[&["--task", "t", "--no-inputs", "--output", "o"], options].concat(), script)
    };
    run(&[], "mkdir o; echo 1 > o/same; date +%s%N > o/time");
    let differs = run(&["--verify"], "mkdir o; echo 1 > o/same; date +%s%N > o/time");
    assert_eq!((differs.code, &differs.record["differs"]), (1, &serde_json::json!(["o/time"])));
    run(&[], "echo 1 > o");
    let same = run(&["--verify"], "echo 1 > o");
    assert_eq!((same.code, &same.record["differs"]), (0, &serde_json::json!([])));
}

#[test]
fn the_nearest_of_many_results_is_compared() {
    let p = Project::new();
    let run = |round: u32| {
        let param = format!("round={round}");
        p.sh(&["--task", "t", "--input", "in", "--param", &param], &format!("cat in; echo {}", round / 2))
    };
    p.write("in", "1");
    run(0).is_miss(&["first_run"]);
    for round in 1..12 {
        p.write("in", &round.to_string());
        run(2 * round);
    }
    // All newer ones have another command, too.
    p.write("in", "0");
    run(1).is_miss(&["params_changed", "dep_changed"]).says("the parameter round changed");
}
