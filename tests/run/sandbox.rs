//! Runs in a sandbox of bubblewrap.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Mount, eventually, need};
use crate::ends::{nothing_left, stubborn};
use crate::project::{Project, Ran, said, tree};

const BWRAP: [&str; 2] = ["--sandbox", "bwrap"];

fn inside(p: &Project, options: &[&str], script: &str) -> Ran {
    need("bwrap");
    p.sh(&[&["--task", "t"], &BWRAP, options].concat(), script)
}

/// What is left of places of runs, in the memory and in the store.
fn left_over(p: &Project) -> Vec<String> {
    let names = |dir: std::path::PathBuf| {
        let names = fs::read_dir(dir).map(|d| d.flatten().map(|e| e.file_name()).collect::<Vec<_>>());
        names.unwrap_or_default().into_iter().map(|n| n.to_string_lossy().into_owned())
    };
    // What is being deleted has a hidden name.
    let drafts = names(p.store.join("drafts")).filter(|n| !n.starts_with('.'));
    drafts.chain(names(p.dir.path().join("memory/outfs-run/rooms"))).collect()
}

/// S14.1 In a sandbox only declared inputs of the project exist; a command that fails for want of another is told which.
#[test]
fn only_declared_inputs_exist() {
    let p = Project::new();
    p.write("in", "1\n");
    p.write("secret", "2\n");
    p.write("lib/a", "a\n");
    p.write("lib/hidden", "h\n");
    p.write("src/deep/x", "x\n");
    let options = ["--input", "in", "--input", "lib/a", "--input", "src", "--output", "o"];
    let ran = inside(&p, &options, "find . -type f > o; sort -o o o; cat in lib/a src/deep/x");
    assert_eq!(ran.is_miss(&["first_run"]).kept(true).stdout, "1\na\nx\n");
    assert_eq!(p.read("o"), "./in\n./lib/a\n./o\n./src/deep/x\n");
    inside(&p, &options, "find . -type f > o; sort -o o o; cat in lib/a src/deep/x").is_hit();
    let failed = inside(&p, &options, "touch o; cat secret");
    failed.kept(false).says("only declared inputs exist").says("secret");
    assert_eq!((failed.code, &failed.stdout[..]), (1, ""));
    assert!(failed.stderr.contains("No such file"), "{failed:#?}");
    let again = inside(&p, &options, "touch o; cat secret");
    again.is_miss(&["previous_run_incomplete"]).says("it lacked secret");
    inside(&p, &[&options[..], &["--input", "secret"]].concat(), "touch o; cat secret").kept(true);
    assert_eq!(left_over(&p), Vec::<String>::new());
}

/// S14.2 In a sandbox all but its outputs, and directories that are private to it, is read-only, and there is no network unless
/// it is asked for.
#[test]
fn the_machine_is_read_only_and_has_no_network() {
    let p = Project::new();
    p.write("src/1", "");
    (2..20).for_each(|n| p.write(&format!("src/{n}"), ""));
    let before = tree(&p.cwd);
    fs::create_dir_all(&p.store).unwrap();
    let script = "touch /etc/outfs-test && exit 1; touch src/new && exit 2; echo x >> src/1 && exit 3; \
        touch /tmp/mine /var/tmp/mine || exit 4; [ \"$(ls /tmp/mine /tmp | wc -l)\" -ge 2 ] || exit 5; \
        [ -w /dev/null ] || exit 6; ls /proc/self/fd > /dev/null || exit 7; pwd";
    let ran = inside(&p, &["--input", "src"], script);
    assert_eq!((ran.code, ran.stdout.trim()), (0, p.cwd.to_str().unwrap()), "{ran:#?}");
    assert_eq!(tree(&p.cwd), before);
    assert!(!Path::new("/tmp/mine").exists());
    let hidden = inside(&p, &["--no-inputs"], &format!("ls -A {}", p.store.display()));
    assert_eq!((hidden.code, &hidden.stdout[..]), (0, ""), "the store is nobody's business");
    let links = "cat /proc/net/dev | wc -l";
    let alone = inside(&p, &["--no-inputs"], links);
    let with = inside(&p, &["--no-inputs", "--net"], links);
    with.is_miss(&["cache_key_mismatch"]).says("the key changed: network none -> network host");
    assert_eq!(alone.stdout.trim(), "3", "nothing but the loopback device");
    let ours = fs::read_to_string("/proc/net/dev").unwrap().lines().count();
    assert_eq!(with.stdout.trim(), ours.to_string());
    let outside = p.sh(&["--task", "t", "--no-inputs"], links);
    outside.is_miss(&["cache_key_mismatch"]).says("sandbox bwrap/2 -> sandbox none");
}

/// S14.3 What a command makes in a sandbox stands at its outputs afterwards as if it had run in the project.
#[test]
fn a_build_in_a_sandbox_is_a_build() {
    let p = Project::in_c();
    need("bwrap");
    let plain = p.make(&["--policy", "disabled"]);
    let built = tree(&p.path("out"));
    fs::remove_dir_all(p.path("out")).unwrap();
    let ran = p.make(&BWRAP);
    assert_eq!(ran.is_miss(&["first_run"]).kept(true).stdout, plain.stdout);
    assert_eq!(tree(&p.path("out")), built);
    p.make(&BWRAP).is_hit();
    fs::remove_dir_all(p.path("out")).unwrap();
    p.make(&BWRAP).is_hit();
    assert_eq!(tree(&p.path("out")), built);
    p.write("h.h", "#define N 2\n");
    p.make(&BWRAP).is_miss(&["dep_changed"]).kept(true);
    let again = p.make(&[&BWRAP[..], &["--verify"]].concat());
    assert_eq!((again.code, &again.record["differs"]), (0, &serde_json::json!([])), "{again:#?}");
}

#[test]
fn outputs_of_every_kind() {
    let mut p = Project::new();
    p.write("in/1", "1");
    let options = [
        "--input",
        "in",
        "--output",
        "file",
        "--output",
        "d/sub/dir",
        "--output",
        "in/made",
        "--output",
        "l",
    ];
    let script = "cat in/1 > file; mkdir d || exit 9; mkdir -p d/sub/dir; ln file d/sub/dir/again; chmod 755 file; \
        echo x > in/made; ln -s file l; echo beside > d/beside; echo beside > other; mkdir ign; echo > ign/x";
    p.write(".gitignore", "ign\n");
    p.write("file", "before");
    p.write("d/sub/dir/before", "before");
    fs::remove_dir_all(p.path("d")).unwrap();
    let ran = inside(&p, &options, script);
    ran.is_miss(&["first_run"]).kept(true).says("not declared as outputs");
    assert_eq!(ran.record["undeclared"], serde_json::json!(["d/beside", "other"]));
    assert_eq!(
        (p.read("file"), p.read("d/sub/dir/again"), p.read("l")),
        ("1".into(), "1".into(), "1".into())
    );
    assert!(!p.path("other").exists() && !p.path("d/beside").exists(), "it was private to the sandbox");
    assert_eq!(p.path("file").metadata().unwrap().mode() & 0o777, 0o755);
    let made = tree(&p.cwd);
    for output in ["file", "l", "in/made"] {
        fs::remove_file(p.path(output)).unwrap();
    }
    inside(&p, &options, script).is_hit();
    assert_eq!(tree(&p.cwd), made);
    // What failed is there to be looked at, as without a sandbox.
    let failed = inside(&p, &["--no-inputs", "--output", "log"], "echo why > log; exit 3");
    assert_eq!((failed.code, p.read("log")), (3, "why\n".into()));
    let missing = inside(&p, &["--no-inputs", "--output", "a"], "true");
    assert_eq!(missing.kept(false).says("the declared output a is missing").code, 125);
    // A symlink on the way would lead out of the place.
    symlink("/etc", p.dir.path().join("etc")).unwrap();
    let leads = inside(&p, &["--no-inputs", "--output", "w/passwd"], "ln -s /etc w");
    assert_eq!(leads.says("behind the symlink").code, 125);
    assert!(Path::new("/etc/passwd").exists());
    // Nor one that the command puts in the place of its own directory.
    let (top, others) = (p.cwd.clone(), tempfile::tempdir().unwrap());
    fs::write(others.path().join("theirs"), "theirs").unwrap();
    p.cwd = top.join("deep");
    fs::create_dir_all(&p.cwd).unwrap();
    let swap = format!("cd .. && mv deep away && ln -s {} deep", others.path().display());
    let leads = inside(&p, &["--no-inputs", "--output", "theirs"], &swap);
    assert_eq!(leads.says("behind the symlink").code, 125);
    assert!(others.path().join("theirs").exists() && !p.cwd.join("theirs").exists());
    p.cwd = top;
    assert_eq!(left_over(&p), Vec::<String>::new());
}

/// A run whose command writes into a draft: it is one for as long as the command runs, and no longer than outfs lives.
#[test]
fn the_command_writes_into_a_draft() {
    for served in [false, true] {
        need("bwrap");
        let mount = served.then(Mount::new);
        let mut p = Project::new();
        if let Some(m) = &mount {
            p.store = m.store().to_owned();
        }
        let begin = |script: &str| {
            let mut c =
                p.command(&["run", "--task", "slow", "--sandbox", "bwrap", "--no-inputs", "--output", "o"]);
            c.args(["--", "sh", "-c", script]).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut child = c.spawn().expect("outfs starts");
            let mut byte = [0];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).expect("it starts");
            child
        };
        let mut child = begin("mkdir o; echo 1 > o/f; echo; sleep 60");
        let drafts = || p.ok(&["drafts", "--json"]);
        let draft: serde_json::Value = serde_json::from_str(&drafts()).unwrap();
        let path = Path::new(draft["path"].as_str().unwrap());
        assert_eq!(draft["kind"], "native");
        assert!(draft["name"].as_str().unwrap().ends_with(" slow"), "{draft}");
        assert_eq!(fs::read_to_string(path.join("o/f")).unwrap(), "1\n");
        p.ok(&["gc"]);
        assert!(path.exists(), "its run lives");
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("the draft to be gone", || drafts().is_empty() && !path.exists());
        let mut child = begin("mkdir o; echo 2 > o/f; echo");
        assert!(child.wait().unwrap().success());
        assert_eq!((p.read("o/f"), drafts()), ("2\n".into(), String::new()));
        let ran = inside(&p, &["--no-inputs", "--output", "o"], "(pwd; pwd -P; readlink /proc/self/cwd) > o");
        let paths = p.read("o");
        assert!(paths.lines().all(|l| l == p.cwd.to_str().unwrap()), "no path of the store: {ran:#?}");
    }
}

#[test]
fn without_the_cache_it_is_the_same() {
    let p = Project::new();
    p.write("in", "1");
    let disabled = ["--policy", "disabled", "--input", "in", "--output", "o"];
    let ran = inside(&p, &disabled, "cat in > o; ls -A | wc -l; ls out 2>&1");
    assert_eq!((ran.record["result"].as_str(), p.read("o").as_str()), (Some("uncached"), "1"));
    assert!(ran.stdout.starts_with("2\n") && !p.store.exists(), "{ran:#?}");
    let readonly = ["--policy", "readonly", "--input", "in", "--output", "o"];
    inside(&p, &readonly, "cat in in > o").is_miss(&["first_run"]).kept(false);
    assert_eq!(p.read("o"), "11");
    assert!(!p.store.exists());
}

#[test]
fn what_cannot_be_made_is_said() {
    let p = Project::new();
    p.write("tool.sh", "#!/bin/sh\necho hi\n");
    crate::common::chmod(p.path("tool.sh"), 0o755).unwrap();
    let tool = |input: &[&str]| p.run(&[&["--task", "t"], &BWRAP, input].concat(), &["./tool.sh"]);
    assert_eq!(tool(&["--no-inputs"]).says("only declared inputs").code, 127);
    assert_eq!(tool(&["--input", "tool.sh"]).stdout, "hi\n");
    // Without bubblewrap.
    let bin = p.dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    for program in ["sh", "git"] {
        let path = std::env::var_os("PATH").unwrap();
        let real = std::env::split_paths(&path).map(|d| d.join(program)).find(|f| f.is_file());
        symlink(real.unwrap(), bin.join(program)).unwrap();
    }
    let mut c = p.command(&["run", "--sandbox", "bwrap", "--no-inputs", "--", "sh", "-c", "true"]);
    let out = c.env("PATH", &bin).output().unwrap();
    assert_eq!(out.status.code(), Some(125));
    assert!(said(&out).contains("install it"), "{}", said(&out));
}

#[test]
fn the_end_of_a_sandboxed_run_is_the_end_of_all() {
    let p = Project::new();
    let mark = &format!("outfs-test-enclosed-{}", std::process::id());
    let task =
        [&["run", "--task", "t", "--no-inputs", "--output", "o"], &BWRAP[..], &["--", "sh", "-c"]].concat();
    let begin = |script: &str| {
        need("bwrap");
        let mut c = p.command(&[&task[..], &[script]].concat());
        c.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("outfs starts")
    };
    // A line on its standard output says that it has started: there is no file to be seen.
    let started = |child: &mut std::process::Child| {
        use std::io::Read;
        let mut byte = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut byte).expect("it starts");
    };
    let script = stubborn(mark).replace("> started", "");
    let mut child = begin(&script);
    started(&mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    nothing_left(mark);
    assert_eq!(left_over(&p).len(), 1, "a kill leaves its place");
    assert_eq!(inside(&p, &["--no-inputs"], "echo fine").stdout, "fine\n");
    assert_eq!(left_over(&p), Vec::<String>::new(), "the next run sweeps it");
    assert_eq!(p.ok(&["drafts", "--json"]), "");
    // Asked to end, it may end in its own way.
    let polite = format!("trap 'echo told > o; exit 1' TERM; echo; sh -c 'sleep 60' {mark} & wait");
    let mut child = begin(&polite);
    started(&mut child);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(p.read("o"), "told\n");
    nothing_left(mark);
    let late = inside(&p, &["--no-inputs", "--timeout", "300ms"], &script);
    assert_eq!(late.kept(false).code, 124);
    nothing_left(mark);
    eventually("no place to be left", || left_over(&p).is_empty());
}

/// S13.7 However a run ends, nothing of its command is left behind: all that was started has the grace, also when the command itself
/// ends at once, and it looks the same in a sandbox.
#[test]
fn what_was_started_in_a_sandbox_has_the_grace() {
    let p = Project::new();
    let mark = &format!("outfs-test-grace-{}", std::process::id());
    // One in the command's own group and one in a session of its own: both clean up after the command has ended.
    let cleans = |name: &str| {
        format!(
            "sh -c 'trap \"sleep 1; touch o/{name}; exit\" TERM; touch o/{name}-is-there; while :; do sleep 0.05; done' {mark}"
        )
    };
    let script = format!(
        "mkdir o; {} & setsid {} & while [ ! -e o/near-is-there -o ! -e o/far-is-there ]; do sleep 0.01; done; echo; exec sleep 4731",
        cleans("near"),
        cleans("far")
    );
    let cleaned = || {
        nothing_left(mark);
        for name in ["near", "far", "near-is-there", "far-is-there"] {
            assert!(fs::remove_file(p.path(&format!("o/{name}"))).is_ok(), "{name}");
        }
    };
    let options = ["--no-inputs", "--output", "o"];
    let late = inside(&p, &[&options[..], &["--timeout", "10s"]].concat(), &script);
    assert_eq!(late.kept(false).code, 124);
    cleaned();
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let mut c = p
            .command(&[&["run", "--task", "t"], &BWRAP[..], &options, &["--", "sh", "-c", &script]].concat());
        let mut child = c.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("outfs starts");
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).expect("it starts");
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        cleaned();
    }
    // Who does not want to end has no more than that; what was left behind by a command that ended by itself has none.
    let left = inside(&p, &options, &format!("mkdir o; setsid {} & exit 0", cleans("far")));
    assert_eq!(left.kept(true).code, 0);
    nothing_left(mark);
}

/// What asks a run to end while its sandbox is being made asks the command, or ends it before it begins.
#[test]
fn a_sandbox_is_ended_at_any_moment() {
    let p = Project::new();
    let mark = &format!("outfs-test-early-{}", std::process::id());
    let script = format!("exec sh -c 'while :; do sleep 0.05; done' {mark}");
    let begun = std::time::Instant::now();
    for round in 0..20u64 {
        need("bwrap");
        let mut c = p.command(&[
            "run",
            "--task",
            "t",
            "--sandbox",
            "bwrap",
            "--no-inputs",
            "--",
            "sh",
            "-c",
            &script,
        ]);
        let mut child = c.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("outfs starts");
        std::thread::sleep(std::time::Duration::from_millis(round * 5));
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success(), "{status}");
        nothing_left(mark);
    }
    assert!(
        begun.elapsed().as_secs() < 90,
        "no signal is lost, and no grace waited for: {:?}",
        begun.elapsed()
    );
}

/// The guard inside is the first process, and as read-only as the rest of the machine.
#[test]
fn the_guard_inside_cannot_be_changed() {
    let p = Project::new();
    let script = "tr '\\0' ' ' < /proc/1/cmdline | head -c 24; echo; (: >> /proc/1/exe) 2> /dev/null && exit 1; \
        (: >> /dev/outfs-guard) 2> /dev/null && exit 2; rm -f /dev/outfs-guard 2> /dev/null; kill -9 1; \
        ls -l /proc/self/fd | grep -c outfs; exit 0";
    let ran = inside(&p, &["--no-inputs"], script);
    assert_eq!((ran.code, &ran.stdout[..]), (0, "/dev/outfs-guard guard -\n0\n"), "{ran:#?}");
}

/// In a sandbox: what `script` does where these variables are set.
fn with(p: &Project, variables: &[(&str, &str)], options: &[&str], script: &str) -> Ran {
    need("bwrap");
    let run = ["run", "--json", "--task", "t", "--sandbox", "bwrap", "--no-inputs"];
    let mut c = p.command(&[&run[..], options, &["--", "sh", "-c", script]].concat());
    c.envs(variables.iter().copied());
    Ran::of(c)
}

/// S14.9 Variables that are not declared are not set in a sandbox, or the same for everybody: a caller's cannot make another result
/// under the same key.
#[test]
fn variables_that_are_not_declared_do_not_count() {
    let p = Project::new();
    let all = "env | grep -v -e ^PWD= -e ^OUTFS_WITHIN= | cut -d = -f 1 | sort | xargs; echo $LANG $TZ $TERM $TMPDIR";
    let one =
        [("FOO", "1"), ("LANG", "de_DE"), ("TZ", "Asia/Tokyo"), ("LC_ALL", "C"), ("http_proxy", "http://p")];
    let ran = with(&p, &one, &[], all);
    let (names, values) = ran.is_miss(&["first_run"]).stdout.split_once('\n').unwrap();
    let mut fine =
        vec!["HOME", "LANG", "LOGNAME", "OUTFS_STORE", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER"];
    fine.extend(["CARGO_HOME", "RUSTUP_HOME"]);
    // What a shell sets for itself.
    let own = ["OLDPWD", "SHLVL", "_"];
    let odd: Vec<_> = names.split(' ').filter(|n| !fine.contains(n) && !own.contains(n)).collect();
    assert!(odd.is_empty(), "{odd:?} of {names}");
    assert_eq!(values, "C.UTF-8 UTC dumb /tmp\n");
    with(&p, &[("FOO", "2")], &[], all).is_hit();
    // Declared, they are the caller's, and part of the key.
    let print = "echo $FOO $LANG $TOKEN";
    let options = ["--env", "FOO", "--env", "LANG", "--secret", "TOKEN"];
    let of = |foo| {
        with(&p, &[("FOO", foo), ("LANG", "C"), ("TOKEN", "t"), ("OUTFS_SECRET_KEY", "k")], &options, print)
    };
    assert_eq!(of("1").stdout, "1 C t\n");
    assert_eq!(of("2").is_miss(&["env_changed"]).stdout, "2 C t\n");
    of("1").is_hit();
    // With the network a command knows how it is reached.
    assert_eq!(with(&p, &one, &["--net"], "echo $FOO$http_proxy").stdout, "http://p\n");
}

/// S14.9 A command that fails for want of a variable is told so, then and later.
#[test]
fn a_variable_that_is_wanted_is_named() {
    let p = Project::new();
    let wanted = [("DEPLOY_TARGET", "there"), ("OTHER", "x")];
    let run = || with(&p, &wanted, &[], ": ${DEPLOY_TARGET:?}");
    run().kept(false).says("the command names what is none: DEPLOY_TARGET (--env or --secret declares it)");
    run().is_miss(&["previous_run_incomplete"]).says("it lacked the variable DEPLOY_TARGET");
    let fine =
        with(&p, &wanted, &["--env", "DEPLOY_TARGET"], ": ${DEPLOY_TARGET:?}; echo $DEPLOY_TARGET; exit 3");
    assert_eq!((fine.code, &fine.stdout[..]), (3, "there\n"));
    assert!(!fine.stderr.contains("declared variables"), "{fine:#?}");
}

/// S14.2 Without the network services of the machine cannot be reached by their sockets either.
#[test]
fn sockets_of_services_are_not_there() {
    let p = Project::new();
    let of_user = format!("/run/user/{}", nix::unistd::geteuid());
    let room = ["/run", &of_user].iter().find_map(|dir| tempfile::Builder::new().tempdir_in(dir).ok());
    let found = room.as_ref().map(|room| room.path().join("socket"));
    let _listener = found.as_ref().map(|path| std::os::unix::net::UnixListener::bind(path).unwrap());
    let look = found.as_ref().map_or("true".into(), |path| format!("test -S {}", path.display()));
    let alone = with(&p, &[], &[], &look);
    let nets = with(&p, &[], &["--net"], &look);
    let all = with(&p, &[], &[], "find /run /var/run/ -type s; touch /run/mine && echo fine");
    assert_eq!(all.stdout, "fine\n", "{all:#?}");
    assert_eq!(nets.code, 0, "{nets:#?}");
    assert_eq!(alone.code, i32::from(found.is_some()), "{alone:#?}");
    // What is needed of it is there: what programs are found by, and inputs.
    if let Some(path) = room.as_ref().map(|room| room.path().join("d")) {
        fs::create_dir(&path).unwrap();
        fs::write(path.join("in"), "in\n").unwrap();
        fs::write(path.join("outfs-tool"), "#!/bin/sh\necho tool\n").unwrap();
        crate::common::chmod(path.join("outfs-tool"), 0o755).unwrap();
        // A program that is behind a link to where it was installed leads beside its directory.
        let installed = path.with_extension("installed");
        fs::create_dir_all(installed.join("bin")).unwrap();
        fs::create_dir(installed.join("lib")).unwrap();
        fs::write(installed.join("lib/linked"), "#!/bin/sh\necho linked\n").unwrap();
        crate::common::chmod(installed.join("lib/linked"), 0o755).unwrap();
        std::os::unix::fs::symlink("../lib/linked", installed.join("bin/outfs-linked")).unwrap();
        std::os::unix::fs::symlink(&installed, path.join("shell")).unwrap();
        let dirs = format!("{}/shell/bin:{}", path.display(), std::env::var("PATH").unwrap());
        let linked = with(&p, &[("PATH", &dirs)], &[], "outfs-linked");
        assert_eq!(linked.stdout, "linked\n", "{linked:#?}");
        let dirs = format!("{}:{}", path.display(), std::env::var("PATH").unwrap());
        let tool = with(&p, &[("PATH", &dirs)], &[], "outfs-tool");
        let input = path.join("in").display().to_string();
        let read = p.run(&[&BWRAP[..], &["--input", &input]].concat(), &["cat", &input]);
        assert_eq!((&tool.stdout[..], &read.stdout[..]), ("tool\n", "in\n"), "{tool:#?} {read:#?}");
    }
}

/// A run inside of a sandbox has no store but an empty one of its own, and runs its command.
#[test]
fn a_run_inside_of_a_sandbox() {
    let p = Project::new();
    let outfs = env!("CARGO_BIN_EXE_outfs");
    let nested = ["run", "--task", "in", "--no-inputs", "--", "echo", "nested"];
    let ran = p.run(&[&BWRAP[..], &["--input", outfs]].concat(), &[&[outfs][..], &nested].concat());
    assert_eq!((ran.kept(true).code, &ran.stdout[..]), (0, "nested\n"), "{ran:#?}");
    assert_eq!(p.ok(&["ls"]).lines().count(), 1, "what it keeps goes with the sandbox");
}

#[test]
fn what_looks_like_the_sandboxs_word_is_the_commands() {
    need("bwrap");
    let p = Project::new();
    let options = ["--sandbox", "bwrap", "--task", "t", "--no-inputs"];
    assert_eq!(p.sh(&options, "echo 'bwrap: oops' >&2; exit 1").says("bwrap: oops").code, 1);
}

/// S14.1 What counts by its content is what runs: a program that was found outside where it is not inside is no other one of that name.
#[test]
fn the_program_that_counts_is_the_one_that_runs() {
    let p = Project::new();
    need("bwrap");
    p.write("bin/true", "#!/bin/sh\necho from the project\n");
    p.write("bin/cat", "#!/bin/sh\n");
    for name in ["bin/true", "bin/cat"] {
        fs::set_permissions(p.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", p.path("bin").display(), std::env::var("PATH").unwrap());
    let run = |options: &[&str], command: &[&str]| {
        let mut c = p.command(&[&["run", "--json"], &BWRAP, options, &["--"], command].concat());
        c.env("PATH", &path);
        Ran::of(c)
    };
    let absent = run(&["--no-inputs"], &["true"]);
    assert_eq!(absent.says("bin/true does not exist in the sandbox").code, 127);
    let tool = run(&["--no-inputs", "--tool", "cat"], &["echo", "x"]);
    assert_eq!(tool.says("bin/cat does not exist in the sandbox").code, 127);
    assert_eq!(run(&["--input", "bin"], &["true"]).kept(true).stdout, "from the project\n");
}

/// S13.15 What is written at an output while a command runs in a sandbox is not taken away, if git does not have it.
#[test]
fn work_that_is_done_meanwhile_is_not_taken_away() {
    let p = Project::new();
    need("bwrap");
    p.write("gen/a", "1\n");
    p.git(&["add", "."]);
    let outfs = |script: &str| {
        let task = ["run", "--json", "--task", "t", "--no-inputs", "--output", "gen"];
        p.command(&[&task[..], &BWRAP, &["--", "sh", "-c", script]].concat())
    };
    let mut child = outfs("echo started; sleep 2; mkdir -p gen; echo made > gen/a")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut String::new()).unwrap();
    p.write("gen/a", "edited\n");
    p.write("gen/notes", "mine\n");
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(125), "{}", said(&ended));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("not in git as"), "{}", said(&ended));
    assert_eq!((p.read("gen/a"), p.read("gen/notes")), ("edited\n".into(), "mine\n".into()));
    assert_eq!(left_over(&p), Vec::<String>::new());
    // Nor by the next run.
    let again = Ran::of(outfs("mkdir -p gen; echo made > gen/a"));
    assert_eq!((again.code, p.read("gen/a")), (125, "edited\n".into()), "{again:#?}");
    p.git(&["add", "."]);
    Ran::of(outfs("mkdir -p gen; echo made > gen/a")).kept(true);
    assert_eq!(p.read("gen/a"), "made\n");
}
