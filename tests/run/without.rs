//! Runs without what they are used to: a home directory, a store, a memory, a session.

use std::fs;
use std::process::{Command, Stdio};

use crate::common::{eventually, need, need_root};
use crate::project::{Project, Ran, said, tree};

/// Neither a home nor a place for caches; temporary files have one.
fn homeless(p: &Project, args: &[&str]) -> Command {
    let tmp = p.dir.path().join("tmp");
    fs::create_dir_all(&tmp).unwrap();
    let mut c = p.command(args);
    c.env_remove("HOME").env_remove("XDG_CACHE_HOME").env("TMPDIR", tmp);
    c
}

/// S13.6 A cache that fails never fails the task: nor one that comes after another, of which nobody can tell what it made.
#[test]
fn a_task_after_another_needs_no_store() {
    let p = Project::new();
    let run = |options: &[&str]| {
        let args = [&["run", "--json", "--no-inputs"], options, &["--", "sh", "-c", "echo fine"]].concat();
        let mut c = homeless(&p, &args);
        c.env_remove("OUTFS_STORE");
        Ran::of(c)
    };
    assert_eq!(run(&["--task", "build"]).kept(false).code, 0);
    let after = |options: &[&str]| run(&[&["--task", "test", "--after", "build"], options].concat());
    for options in [&[][..], &["--policy", "readonly"], &["--sandbox", "bwrap"]] {
        if options.contains(&"bwrap") {
            need("bwrap");
        }
        let test = after(options);
        assert_eq!(
            (test.code, &test.stdout[..], &test.record["result"]),
            (0, "fine\n", &"uncached".into()),
            "{test:#?}"
        );
        test.kept(false).says("the task build has no result yet").says("the store cannot tell");
    }
    assert_eq!(after(&["--dry-run"]).code, 125, "there is no key");
    // What has to be there to be read is not, and a store that works can tell that there is none.
    assert_eq!(run(&["--task", "test", "--from", "a=build"]).code, 125);
    let c = homeless(&p, &["run", "--json", "--no-inputs", "--after", "build", "--", "true"]);
    assert_eq!(Ran::of(c).code, 125);
}

/// As in containers with a user of any number: results are kept, and sandboxes made, where temporary files are.
#[test]
fn a_memory_that_cannot_be_is_no_obstacle() {
    need("bwrap");
    let p = Project::new();
    let tmp = p.dir.path().join("tmp");
    fs::create_dir(&tmp).unwrap();
    // Nobody makes a directory there, nor root.
    for (name, sandbox) in [("HOME", "none"), ("XDG_CACHE_HOME", "none"), ("XDG_CACHE_HOME", "bwrap")] {
        let run = || {
            let options =
                ["run", "--json", "--no-inputs", "--task", name, "--sandbox", sandbox, "--output", "o"];
            let mut c = p.command(&[&options[..], &["--", "sh", "-c", "echo 1 > o"]].concat());
            c.env_remove("HOME").env_remove("XDG_CACHE_HOME").env(name, "/proc/nothing").env("TMPDIR", &tmp);
            Ran::of(c)
        };
        assert_eq!(run().kept(true).record["warnings"], serde_json::json!([]));
        run().is_hit();
    }
}

#[test]
fn a_session_without_a_store_is_none() {
    let p = Project::new();
    let broken = |c: &mut Command| {
        c.env("OUTFS_STORE", "/proc/nothing/store");
    };
    let outfs = env!("CARGO_BIN_EXE_outfs");
    let script = format!("echo fine; {outfs} run --ephemeral --no-inputs -- sh -c 'exit 3'");
    let mut c = p.command(&["session", "--", "sh", "-c", &script]);
    broken(&mut c);
    let out = c.output().unwrap();
    assert_eq!((out.status.code(), &out.stdout[..]), (Some(3), &b"fine\n"[..]), "{}", said(&out));
    assert!(said(&out).contains("there is no session"), "{}", said(&out));
    // No home, and so no store.
    let mut c = homeless(&p, &["session", "--", "sh", "-c", "exit 7"]);
    assert_eq!(c.env_remove("OUTFS_STORE").output().unwrap().status.code(), Some(7));
    // Whoever wants its name is told that there is none.
    let mut c = p.command(&["session", "--pid", &std::process::id().to_string()]);
    broken(&mut c);
    assert_eq!(c.output().unwrap().status.code(), Some(1));
}

#[test]
fn a_store_that_goes_away_costs_a_session_no_exit_code() {
    let p = Project::new();
    let script = "touch started; while [ ! -e go ]; do sleep 0.01; done; exit 4";
    let mut c = p.command(&["session", "--", "sh", "-c", script]);
    let child = c.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the session", || p.path("started").exists());
    fs::rename(&p.store, p.dir.path().join("gone")).unwrap();
    p.write("go", "");
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(4), "{}", said(&out));
    assert!(said(&out).contains("the end of the session cannot be told"), "{}", said(&out));
}

#[test]
fn a_session_that_is_none_is_a_warning() {
    let p = Project::new();
    let run = |options: &[&str]| {
        let mut c =
            p.command(&[&["run", "--json", "--no-inputs"], options, &["--", "echo", "fine"]].concat());
        c.env("OUTFS_SESSION", "garbage");
        let ran = Ran::of(c);
        assert_eq!((ran.code, &ran.stdout[..]), (0, "fine\n"), "{ran:#?}");
        ran.says("warning: this run is in no session");
        let told = ran.record["warnings"][0].as_str().unwrap_or_default().to_owned();
        assert!(told.contains("\"garbage\" is no session"), "{ran:#?}");
        ran
    };
    run(&["--task", "t"]).kept(true);
    run(&["--task", "t"]).is_hit();
    assert_eq!(run(&["--task", "t", "--ephemeral"]).kept(false).record["result"], "uncached");
}

/// A store on a file system that cannot be written to gives hits to who only reads, and stays as it is.
#[test]
fn a_store_that_is_mounted_read_only() {
    need("bwrap");
    let p = Project::new();
    let run = ["run", "--json", "--policy", "readonly", "--task", "t", "--no-inputs", "--output", "o"];
    let command = ["--", "sh", "-c", "echo 1 > o; echo said"];
    let made = Ran::of(p.command(&[&["run", "--json"], &run[4..], &command].concat()));
    made.kept(true);
    let read_only = |more: &[&str]| {
        let args = [&run[..], more, &command].concat();
        let c = p.command(&args);
        let mut bwrap = Command::new("bwrap");
        bwrap.args(["--dev-bind", "/", "/", "--ro-bind"]).args([&p.store, &p.store]).arg("--");
        bwrap.arg(c.get_program()).args(args).current_dir(&p.cwd);
        bwrap.envs(c.get_envs().filter_map(|(name, value)| Some((name, value?))));
        fs::remove_file(p.path("o")).unwrap();
        Ran::of(bwrap)
    };
    let before = tree(&p.store);
    let hit = read_only(&[]);
    assert_eq!((hit.is_hit().stdout.as_str(), p.read("o").as_str()), ("said\n", "1\n"));
    read_only(&["--param", "other=1"]).is_miss(&["params_changed"]).kept(false);
    // What was rejected or evicted is no hit there either.
    p.ok(&["reject", made.key(), "--reason", "bad"]);
    read_only(&[]).is_miss(&["rejected"]).kept(false);
    assert!(before != tree(&p.store), "it is what changes it, and reading does not");
    let before = tree(&p.store);
    read_only(&[]);
    assert!(before == tree(&p.store));
    assert!(fs::read_dir(p.dir.path().join("memory/outfs-run/rooms")).unwrap().next().is_none());
}

/// Where no more threads are to be had, those that are do the work, or it is said that it cannot be done: nothing waits for one
/// that never came.
#[test]
fn a_run_that_gets_no_more_threads_ends() {
    need_root();
    ["setpriv", "prlimit", "timeout", "chown"].into_iter().for_each(need);
    let p = Project::new();
    (0..300).for_each(|n| p.write(&format!("src/small{n}"), &n.to_string()));
    (0..3).for_each(|n| p.write(&format!("src/large{n}"), &n.to_string().repeat(300_000)));
    // The limit counts all processes of a user; nobody else is this one.
    let id = "61235";
    let (top, program) = (p.dir.path(), p.dir.path().join("outfs"));
    fs::copy(env!("CARGO_BIN_EXE_outfs"), &program).unwrap();
    assert!(Command::new("chown").args(["-R", id]).arg(top).status().unwrap().success());
    let run = |threads: usize| {
        let limit = format!("--nproc={threads}");
        let mut c = Command::new("timeout");
        c.args(["60", "setpriv", "--reuid", id, "--regid", id, "--clear-groups", "prlimit", &limit]);
        c.arg(&program).args(["run", "--json", "--input", "src", "--output", "out"]);
        c.args(["--param", &limit[2..], "--", "cp", "-r", "src", "out"]).current_dir(&p.cwd);
        for name in ["OUTFS_CONFIG", "OUTFS_LOG", "OUTFS_SESSION", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"] {
            c.env_remove(name);
        }
        c.env("OUTFS_STORE", &p.store).env("HOME", top.join("home"));
        c.stdin(Stdio::null());
        let _ = fs::remove_dir_all(p.path("out"));
        let out = c.output().expect("timeout starts");
        let code = out.status.code();
        assert!(!said(&out).contains("panicked"), "{threads}: {}", said(&out));
        // The command itself is a process.
        assert!(matches!(code, Some(0 | 125 | 126)), "{threads}: {code:?}, {}", said(&out));
        if code == Some(0) {
            assert_eq!(tree(&p.path("out")), tree(&p.path("src")), "{threads}");
        }
        (code, said(&out))
    };
    let kept = |(code, said): (Option<i32>, String)| code == Some(0) && said.contains("\"result\":\"hit\"");
    let mut few = Vec::new();
    for threads in 2..12 {
        run(threads);
        few.push(kept(run(threads)));
    }
    assert!(!few[0] && few.contains(&true), "no limit left a few threads: {few:?}");
    run(64);
    assert!(kept(run(64)));
}
