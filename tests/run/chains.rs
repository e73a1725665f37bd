//! Runs that start from, or read, what other runs made.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::common::{Mount, eventually, need};
use crate::project::{Project, Ran, tree};

const PLACES: [&str; 2] = ["none", "bwrap"];

/// The first step: files of several kinds.
fn first(p: &Project) -> Ran {
    let script = "mkdir -p t/sub; echo a > t/a; head -c 1000000 /dev/zero > t/large; echo b > t/sub/b; ln -s a t/l; \
        echo gone > t/gone; chmod 755 t/sub/b";
    p.sh(&["--task", "one", "--no-inputs", "--output", "t"], script)
}

fn second(p: &Project, sandbox: &str, options: &[&str], script: &str) -> Ran {
    need("bwrap");
    let named = ["--task", "two", "--no-inputs", "--base", "one", "--output", "t", "--sandbox", sandbox];
    p.sh(&[&named, options].concat(), script)
}

const CHANGE: &str = "cat t/a t/sub/b t/gone; echo more >> t/a; rm t/gone; mkdir t/new; echo n > t/new/n";

/// S14.4 With a base a run starts from exactly an earlier result, and what it leaves alone is stored once.
#[test]
fn a_run_starts_from_an_earlier_result() {
    for sandbox in PLACES {
        let p = Project::new();
        first(&p).is_miss(&["first_run"]);
        let blobs = || tree(&p.store.join("blobs")).len();
        let packed = || tree(&p.store.join("packs")).iter().map(|(_, c)| c.len()).sum::<usize>();
        let (blobs_before, packed_before) = (blobs(), packed());
        // What stands there is not what the task made.
        p.write("t/a", "tampered\n");
        p.write("t/more", "");
        let ran = second(&p, sandbox, &[], CHANGE);
        assert_eq!(ran.is_miss(&["first_run"]).kept(true).stdout, "a\nb\ngone\n", "{sandbox}");
        let names: Vec<_> =
            tree(&p.path("t")).into_iter().map(|(n, c)| (n.display().to_string(), c.len())).collect();
        let expected = [("a", 7), ("l", 7), ("large", 1_000_000), ("new/n", 2), ("sub/b", 2)];
        assert_eq!(names, expected.map(|(n, l)| (n.to_owned(), l)), "{sandbox}");
        assert_eq!(p.path("t/sub/b").metadata().unwrap().mode() & 0o777, 0o755);
        assert_eq!(blobs(), blobs_before);
        assert!(packed() - packed_before < 2000, "{sandbox}: only what changed was packed");
        let made = tree(&p.path("t"));
        fs::remove_dir_all(p.path("t")).unwrap();
        second(&p, sandbox, &[], CHANGE).is_hit();
        assert_eq!(tree(&p.path("t")), made, "{sandbox}");
        let verified = second(&p, sandbox, &["--verify"], CHANGE);
        assert_eq!(
            (verified.code, &verified.record["differs"]),
            (0, &serde_json::json!([])),
            "{verified:#?}"
        );
        p.ok(&["fsck", "--verify-data"]);
    }
}

/// S14.5 What counts of a result that a run starts from or reads is what it hashes to: one that was made again and came out the
/// same changes nothing.
#[test]
fn an_upstream_that_comes_out_the_same_changes_nothing() {
    let p = Project::new();
    p.write("in", "1\n");
    let one = || p.sh(&["--task", "one", "--input", "in", "--output", "t"], "mkdir -p t; head -n 1 in > t/f");
    let base = || p.sh(&["--task", "base", "--no-inputs", "--base", "one", "--output", "t"], "echo x >> t/f");
    let from = || {
        p.sh(&["--task", "from", "--no-inputs", "--from", "d=one", "--output", "o"], "cat d/t/f d/t/f > o")
    };
    let key = one().key().to_owned();
    base().is_miss(&["first_run"]).kept(true);
    from().is_miss(&["first_run"]).kept(true);
    assert_eq!((p.read("t/f"), p.read("o")), ("1\nx\n".into(), "1\n1\n".into()));
    p.write("in", "1\nmore\n");
    one().is_miss(&["dep_changed"]);
    base().is_hit();
    from().is_hit();
    p.write("in", "2\n");
    one().is_miss(&["dep_changed"]);
    base().is_miss(&["upstream_rerun"]).says("the task one ran again");
    from().is_miss(&["upstream_rerun"]).says("the task one ran again");
    assert_eq!((p.read("t/f"), p.read("o")), ("2\nx\n".into(), "2\n2\n".into()));
    // By its key: an older one.
    let by_key = ["--task", "base", "--no-inputs", "--base", &key, "--output", "t"];
    p.sh(&by_key, "echo x >> t/f").is_hit();
    assert_eq!(p.read("t/f"), "1\nx\n");
    let dry = p.ok(&["run", "--dry-run", "--no-inputs", "--base", "one", "--from", "d=one", "--", "true"]);
    assert!(dry.lines().any(|l| l.starts_with("base       one ")), "{dry}");
    assert!(dry.lines().any(|l| l.starts_with("from       d ")), "{dry}");
    let none = p.sh(&["--task", "x", "--no-inputs", "--base", "nothing"], "true");
    assert_eq!(none.says("there is no entry and no task nothing").code, 125);
    p.ok(&["evict", &key]);
    p.ok(&["evict", one().key()]);
    let gone = p.sh(&["--task", "y", "--no-inputs", "--base", "one"], "true");
    assert_eq!(gone.says("was evicted at").code, 125);
}

/// Ten steps from one to the next, each of which changes one file.
#[test]
fn a_chain_stores_only_what_changes() {
    for sandbox in PLACES {
        let p = Project::new();
        need("bwrap");
        let make = "mkdir t; for i in 1 2 3 4 5 6 7 8; do head -c 400000 /dev/urandom > t/f$i; done";
        p.sh(&["--task", "s0", "--no-inputs", "--output", "t"], make).kept(true);
        let size = || tree(&p.store.join("blobs")).iter().map(|(_, c)| c.len()).sum::<usize>();
        let before = size();
        let step = |n: usize| {
            let (task, base) = (format!("s{n}"), format!("s{}", n - 1));
            let options =
                ["--task", &task, "--no-inputs", "--base", &base, "--output", "t", "--sandbox", sandbox];
            p.sh(&options, &format!("head -c 300000 /dev/urandom > t/f{}", 1 + n % 8))
        };
        for n in 1..=10 {
            step(n).is_miss(&["first_run"]).kept(true);
        }
        assert_eq!(size() - before, 10 * 300_000, "{sandbox}");
        let made = tree(&p.path("t"));
        fs::remove_dir_all(p.path("t")).unwrap();
        step(10).is_hit();
        assert_eq!(tree(&p.path("t")), made);
        // From another place in the chain, and in the project what another step made.
        step(5).is_hit();
        assert_eq!(step(6).is_hit().record["kept"], true);
        let again = p.sh(
            &["--task", "s6b", "--no-inputs", "--base", "s5", "--output", "t", "--sandbox", sandbox],
            "echo small > t/f1",
        );
        again.is_miss(&["first_run"]).kept(true);
        p.ok(&["fsck", "--verify-data"]);
    }
}

#[test]
fn a_base_is_not_stored_for_what_changed_unseen() {
    let p = Project::new();
    let script = "mkdir t; head -c 400000 /dev/zero > t/f; echo 1 > t/g";
    p.sh(&["--task", "one", "--no-inputs", "--output", "t"], script).kept(true);
    // Of the same size, at the time it had.
    let sly = "printf x | dd of=t/f conv=notrunc 2> /dev/null; touch -r t/g t/f; printf 2 | dd of=t/g conv=notrunc 2> /dev/null; \
        touch -d @1000000000 t/g";
    for sandbox in PLACES {
        need("bwrap");
        let options =
            ["--task", "two", "--no-inputs", "--base", "one", "--output", "t", "--sandbox", sandbox];
        p.sh(&options, sly).kept(true);
        fs::remove_dir_all(p.path("t")).unwrap();
        p.sh(&options, sly).is_hit();
        assert_eq!((p.read("t/g"), p.read("t/f").as_bytes()[0]), ("2\n".into(), b'x'), "{sandbox}");
    }
}

/// S14.6 A result that is read at a path is there for the time of the run, read-only in a sandbox, and no output.
#[test]
fn results_are_read_at_a_path() {
    let p = Project::new();
    first(&p);
    let script = "cat lib/one/t/a lib/one/t/sub/b > o; readlink lib/one/t/l";
    let run = |options: &[&str], script: &str| {
        let named = ["--task", "r", "--no-inputs", "--from", "lib/one=one", "--output", "o"];
        p.sh(&[&named, options].concat(), script)
    };
    let ran = run(&[], script);
    assert_eq!(ran.is_miss(&["first_run"]).kept(true).stdout, "a\n");
    assert_eq!((p.read("o"), &ran.record["undeclared"]), ("a\nb\n".into(), &serde_json::json!([])));
    assert!(!p.path("lib").exists(), "nor what was made for it");
    run(&[], script).is_hit();
    p.write("lib/one/mine", "");
    assert_eq!(run(&["--force"], script).says("exists; --from").code, 125);
    assert!(p.path("lib/one/mine").exists());
    let inside = run(&["--sandbox", "bwrap"], &format!("{script}; ls lib/one; touch lib/one/x || true"));
    assert_eq!(inside.kept(true).stdout, "a\nt\n");
    assert!(inside.stderr.contains("Read-only file system"), "{inside:#?}");
    assert_eq!(inside.record["undeclared"], serde_json::json!([]));
    assert!(p.path("lib/one/mine").exists() && p.read("o") == "a\nb\n");
    let in_the_way = run(&["--from", "o/x=one"], script);
    assert_eq!(in_the_way.says("in each other's way").code, 125);
}

/// A sandbox that cannot be made costs the project nothing of what stood there.
#[test]
fn a_sandbox_that_cannot_be_made_leaves_what_stands_there() {
    let p = Project::new();
    first(&p);
    let made = tree(&p.path("t"));
    let bin = p.dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(
        bin.join("bwrap"),
        "#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n",
    )
    .unwrap();
    crate::common::chmod(bin.join("bwrap"), 0o755).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let fails = |base: &[&str]| {
        let named = ["run", "--json", "--task", "two", "--no-inputs", "--output", "t", "--sandbox", "bwrap"];
        let mut c = p.command(&[&named, base, &["--", "sh", "-c", CHANGE]].concat());
        c.env("PATH", &path);
        let ran = Ran::of(c);
        assert_eq!(ran.says("cannot make the sandbox: No permissions").code, 125);
        assert_eq!(tree(&p.path("t")), made);
        assert_eq!(p.ok(&["drafts", "--json"]), "");
    };
    // It stands there, and was moved into the place already; it does not count; it stands there, and was laid.
    fails(&["--base", "one"]);
    fails(&[]);
    fails(&["--base", "one"]);
    assert_eq!(second(&p, "bwrap", &[], CHANGE).kept(true).stdout, "a\nb\ngone\n");
}

/// S14.8 What a run has taken into a sandbox to start from stands where it was again, should the run be killed: after the next
/// start, with a daemon or without.
#[test]
fn what_a_killed_run_started_from_comes_back() {
    need("bwrap");
    let m = Mount::new();
    for served in [false, true] {
        let mut p = Project::new();
        if served {
            p.store = m.store().to_owned();
        }
        first(&p).kept(true);
        let made = tree(&p.path("t"));
        let named = ["run", "--task", "two", "--no-inputs", "--base", "one", "--output", "t", "--sandbox"];
        let mut c = p.command(&[&named, &["bwrap", "--", "sh", "-c", "echo; sleep 60"][..]].concat());
        let mut child = c.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut byte = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
        assert!(!p.path("t").exists(), "it is in the sandbox");
        child.kill().unwrap();
        child.wait().unwrap();
        // Once nothing of the command is left.
        crate::common::eventually("what stood there to be back", || {
            p.sh(&["--task", "other", "--no-inputs"], "true").code == 0 && p.path("t").exists()
        });
        assert_eq!(tree(&p.path("t")), made);
        crate::common::eventually("the draft to be gone", || p.ok(&["drafts", "--json"]).is_empty());
        let ran = second(&p, "bwrap", &[], CHANGE);
        assert_eq!(ran.kept(true).stdout, "a\nb\ngone\n");
    }
}

#[test]
fn results_are_mounted_where_there_is_a_daemon() {
    need("bwrap");
    let m = Mount::new();
    let mut p = Project::new();
    p.store = m.store().to_owned();
    let key = first(&p).key().to_owned();
    let run = |script: &str| {
        let named =
            ["--task", "r", "--no-inputs", "--from", "lib=one", "--output", "o", "--sandbox", "bwrap"];
        p.sh(&named, script)
    };
    let ran = run("cat lib/t/a > o; stat -f -c %T lib; ls lib; touch lib/x 2>&1; true");
    ran.kept(true);
    assert!(ran.stdout.starts_with("fuse") && ran.stdout.contains("Read-only"), "{ran:#?}");
    assert_eq!(p.read("o"), "a\n");
    let views = || {
        let status: serde_json::Value = serde_json::from_str(&p.ok(&["status", "--json"])).unwrap();
        status["views"].as_array().map_or(0, Vec::len)
    };
    crate::common::eventually("the view to be gone", || views() == 1);
    // One that is killed leaves a mount, which the next run takes away.
    let mut c = p.command(&["run", "--task", "k", "--no-inputs", "--from", "lib=one", "--sandbox", "bwrap"]);
    c.args(["--", "sh", "-c", "echo; sleep 60"]).stdout(std::process::Stdio::piped());
    let mut child = c.spawn().unwrap();
    let mut byte = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
    assert_eq!(views(), 2);
    let evicted = p.outfs(&["evict", &key]);
    assert!(evicted.status.success(), "{}", crate::project::said(&evicted));
    child.kill().unwrap();
    child.wait().unwrap();
    first(&p).is_miss(&["evicted"]);
    run("cat lib/t/sub/b > o").kept(true);
    crate::common::eventually("the views to be gone", || views() == 1);
    crate::common::eventually("the draft of the dead run to be gone", || {
        p.ok(&["drafts", "--json"]).is_empty()
    });
}

/// S14.7 A task that comes after another depends on what stands at that one's outputs, here.
#[test]
fn what_stands_there_is_what_counts() {
    let p = Project::new();
    let make = || p.sh(&["--task", "g1", "--no-inputs", "--output", "g"], "echo good > g");
    let next = || p.sh(&["--task", "g2", "--no-inputs", "--after", "g1", "--output", "h"], "cat g > h");
    make().kept(true);
    next().is_miss(&["first_run"]).kept(true);
    next().is_hit();
    p.write("g", "bad!\n");
    next().is_miss(&["upstream_rerun"]).kept(true);
    assert_eq!(p.read("h"), "bad!\n");
    make().is_hit();
    next().is_hit();
    assert_eq!((p.read("g"), p.read("h")), ("good\n".into(), "good\n".into()));
    // What is not there counts as it was made, and what is made without it is not kept.
    fs::remove_file(p.path("g")).unwrap();
    next().is_hit();
    let without = p.sh(&["--task", "g3", "--no-inputs", "--after", "g1", "--output", "i"], "ls > i");
    without.is_miss(&["first_run"]).kept(false).says("the outputs of the task g1").says("are not there");
    assert_eq!(without.code, 0);
    // Nor what is made while it changes.
    make().is_hit();
    let script = "cat g > j; echo other > g";
    let late = p.sh(&["--task", "g4", "--no-inputs", "--after", "g1", "--output", "j"], script);
    late.kept(false).says("what the task g1 made changed while the command ran");
    // Somebody else's memory: what stands there counts all the same.
    make().is_hit();
    p.write("g", "bad!\n");
    fs::remove_dir_all(p.dir.path().join("memory")).unwrap();
    next().is_hit();
    assert_eq!(p.read("h"), "bad!\n");
}

/// Two checkouts that stand at one path in turns, as in containers, share a store and a memory.
#[test]
fn checkouts_at_one_path_do_not_mix() {
    let p = Project::new();
    let aside = |n: usize| p.dir.path().join(format!("job{n}"));
    p.write("tests/t", "t");
    for n in [1, 2] {
        let done = std::process::Command::new("cp").arg("-r").arg(&p.cwd).arg(aside(n)).status().unwrap();
        assert!(done.success());
        fs::write(aside(n).join("src"), format!("lib {n}")).unwrap();
    }
    fs::remove_dir_all(&p.cwd).unwrap();
    let within = |n: usize, run: &dyn Fn() -> Ran| {
        fs::rename(aside(n), &p.cwd).unwrap();
        let ran = run();
        fs::rename(&p.cwd, aside(n)).unwrap();
        ran
    };
    let build = || p.sh(&["--task", "build", "--input", "src", "--output", "dist"], "cp src dist");
    let test = |task: &str, options: &[&str], script: &str| {
        p.sh(&[&["--task", task, "--input", "tests", "--output", "report"], options].concat(), script)
    };
    let after = || test("after", &["--after", "build"], "cp dist report");
    let from = || test("from", &["--from", "d=build"], "cp d/dist report");
    for n in [1, 2] {
        within(n, &build).kept(true);
    }
    for run in [&after as &dyn Fn() -> Ran, &from] {
        for n in [1, 2] {
            let ran = within(n, run);
            assert_eq!(
                (&ran.record["result"], &ran.record["kept"]),
                (&"miss".into(), &true.into()),
                "{ran:#?}"
            );
            assert_eq!(fs::read_to_string(aside(n).join("report")).unwrap(), format!("lib {n}"));
        }
        for n in [1, 2] {
            within(n, run).is_hit();
            assert_eq!(fs::read_to_string(aside(n).join("report")).unwrap(), format!("lib {n}"));
        }
    }
}

/// Who needs a result that was evicted is told that, and not why it would run.
#[test]
fn what_was_evicted_cannot_be_gone_on_from() {
    let p = Project::new();
    let made = p.sh(&["--task", "one", "--no-inputs", "--output", "o"], "echo 1 > o");
    let key = made.key().to_owned();
    p.ok(&["evict", &key]);
    for options in [&["--base", "one", "--output", "o"][..], &["--from", "x=one"]] {
        let ran = p.sh(&[&["--task", "two", "--no-inputs"], options].concat(), "true");
        assert_eq!(ran.says("the result of one, which the task needs, was evicted at 20").code, 125);
        assert!(!ran.stderr.contains("outfs: run "), "{ran:#?}");
        let by_key = [options[0], &options[1].replace("one", &key)];
        let ran = p.sh(&[&["--task", "two", "--no-inputs"][..], &by_key, &options[2..]].concat(), "true");
        assert_eq!(ran.says(&format!("'outfs why {key}' says what became of it")).code, 125);
        assert!(p.ok(&["why", &key]).contains("was evicted at"));
    }
}

/// S14.4 What a run started from is what its key says, also where somebody makes another of the same key meanwhile.
#[test]
fn what_a_run_started_from_may_be_replaced_meanwhile() {
    let p = Project::new();
    let other = p.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let git = std::process::Command::new("git").args(["init", "-q"]).current_dir(&other).status();
    assert!(git.unwrap().success());
    let base = ["run", "--json", "--task", "base", "--no-inputs", "--output", "t"];
    let make = ["--", "sh", "-c", "mkdir -p t; head -c 8 /dev/urandom | od -An -tx1 > t/lib"];
    Ran::of(p.command(&[&base[..], &make].concat())).kept(true);
    let lib = p.read("t/lib");
    let script = "touch ../started; while [ ! -e ../go ]; do sleep 0.01; done; cp t/lib t/app";
    let mut app =
        p.command(&["run", "--json", "--task", "app", "--no-inputs", "--base", "base", "--output", "t"]);
    app.args(["--", "sh", "-c", script]);
    let app = app.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    eventually("the command to start", || p.dir.path().join("started").exists());
    let mut again = p.command(&[&base[..], &["--force"], &make].concat());
    again.current_dir(&other);
    Ran::of(again).kept(true);
    fs::write(p.dir.path().join("go"), "").unwrap();
    let ran = Ran::ended(app.wait_with_output().unwrap());
    ran.kept(true);
    for file in ["lib", "app"] {
        assert_eq!(p.ok(&["cat", ran.key(), &format!("outputs/t/{file}")]), lib, "{file}");
    }
    p.ok(&["fsck", "--verify-data"]);
}
