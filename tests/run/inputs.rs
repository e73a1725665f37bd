//! Inputs of large projects: what a run reads of them.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::common::{eventually, need, need_root};
use crate::project::{Project, Ran, said};

const DIRS: usize = 50;
const FILES: usize = 1000;

/// Sees whatever opens a file in some directories, whoever it is.
struct Watch {
    events: File,
}

impl Watch {
    fn of<'a>(dirs: impl Iterator<Item = &'a Path>) -> Watch {
        // SAFETY: the call takes flags and gives a new descriptor, which is nobody else's.
        let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        assert!(fd >= 0, "inotify_init1: {}", std::io::Error::last_os_error());
        for dir in dirs {
            let name = CString::new(dir.as_os_str().as_bytes()).expect("a path");
            // SAFETY: the path is terminated and lives as long as the call.
            let added = unsafe { libc::inotify_add_watch(fd, name.as_ptr(), libc::IN_OPEN) };
            assert!(added >= 0, "inotify_add_watch: {}", std::io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made above.
        Watch { events: unsafe { OwnedFd::from_raw_fd(fd) }.into() }
    }

    /// How many files were opened since the last time.
    fn opened(&mut self) -> usize {
        const HEADER: usize = size_of::<libc::inotify_event>();
        let (mut count, mut buffer) = (0, vec![0; 1 << 16]);
        while let Ok(n) = self.events.read(&mut buffer) {
            let mut rest = &buffer[..n];
            while rest.len() >= HEADER {
                let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().expect("four bytes"));
                assert_eq!(word(4) & libc::IN_Q_OVERFLOW, 0, "more than can be counted");
                count += usize::from(word(4) & libc::IN_ISDIR == 0);
                rest = &rest[HEADER + word(12) as usize..];
            }
        }
        count
    }
}

/// Waits until the clock has moved on from when a file was last changed: before, git's racy case would have it read again.
fn old_enough(file: &Path) {
    let meta = file.metadata().expect("it is there");
    let changed = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
    eventually("the clock to move on", || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as i128;
        now - changed > 100_000_000
    });
}

#[track_caller]
fn read(ran: &Ran) -> u64 {
    assert_eq!(ran.record["inputs"], (DIRS * FILES) as u64, "{ran:#?}");
    ran.record["inputs_read"].as_u64().expect("a number")
}

/// A second run of 50,000 inputs opens none of them, one after a change opens that one.
#[test]
fn a_second_run_of_50_000_inputs_reads_none() {
    let p = Project::large();
    let dirs: Vec<_> = (0..DIRS).map(|d| p.path(&format!("src/{d}"))).collect();
    for (d, dir) in dirs.iter().enumerate() {
        fs::create_dir_all(dir).unwrap();
        (0..FILES).for_each(|f| fs::write(dir.join(f.to_string()), format!("{d} {f}")).unwrap());
    }
    let last = dirs[DIRS - 1].join((FILES - 1).to_string());
    old_enough(&last);
    let run = || p.sh(&["--task", "t", "--output", "o"], "echo 1 > o");
    assert_eq!(read(run().is_miss(&["first_run"]).kept(true)), (DIRS * FILES) as u64);
    let mut watch = Watch::of(dirs.iter().map(|d| d.as_path()));
    assert_eq!(read(run().is_hit()), 0);
    assert_eq!(watch.opened(), 0, "nothing was opened");
    // Another key of the same inputs, named in another way.
    let named = p.sh(&["--task", "t", "--input", "src", "--output", "o", "--param", "a=b"], "echo 1 > o");
    assert_eq!(read(named.is_miss(&["params_changed"])), 0);
    assert_eq!(watch.opened(), 0);
    // Other bytes, again and again, within a tick of the clock and at the time it had.
    let mtime = last.metadata().unwrap().modified().unwrap();
    for content in ["a", "b"] {
        fs::write(&last, content).unwrap();
        File::options().write(true).open(&last).unwrap().set_modified(mtime).unwrap();
        watch.opened();
        let ran = run();
        ran.is_miss(&["dep_changed"]).says("the input src/49/999 changed");
        assert_eq!(read(&ran), 1);
        assert!(watch.opened() > 0, "the watch sees what is opened");
    }
}

/// Unmounts it at the end.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// On a file system of whole seconds what changes within one is seen.
#[test]
fn whole_seconds_hide_no_change() {
    need_root();
    need("mkfs.ext4");
    let p = Project::new();
    let (image, disk) = (p.dir.path().join("image"), p.path("disk"));
    File::create(&image).and_then(|f| f.set_len(16 << 20)).unwrap();
    fs::create_dir(&disk).unwrap();
    let done = |c: &mut Command| assert!(c.status().expect("it starts").success(), "{c:?}");
    done(Command::new("mkfs.ext4").args(["-q", "-I", "128"]).arg(&image).stderr(std::process::Stdio::null()));
    done(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&disk));
    let _mounted = Mounted(&disk);
    let run = || p.sh(&["--task", "t", "--input", "disk/in", "--output", "disk/o"], "cp disk/in disk/o");
    for n in 0..8 {
        p.write("disk/in", &format!("{n}"));
        run().is_miss(&[if n == 0 { "first_run" } else { "dep_changed" }]).kept(true);
        assert_eq!(p.read("disk/o"), format!("{n}"));
    }
    // What stands there is not known by a time that is no older.
    p.write("disk/o", "x");
    run().is_hit();
    assert_eq!(p.read("disk/o"), "7");
    // Nor what changes while the command runs.
    p.write("disk/in", "a");
    let late = p.sh(
        &["--task", "u", "--input", "disk/in", "--output", "disk/u"],
        "printf b > disk/in; cp disk/in disk/u",
    );
    late.kept(false).says("the input disk/in changed while the command ran");
}

/// Inputs that are dated in the future are remembered, and outputs that cannot be newer stay as they are.
#[test]
fn inputs_from_the_future() {
    let p = Project::new();
    p.write("in", "1");
    let to_come = SystemTime::now() + std::time::Duration::from_secs(86_400);
    File::options().write(true).open(p.path("in")).unwrap().set_modified(to_come).unwrap();
    old_enough(&p.path("in"));
    let run = || p.sh(&["--task", "t", "--input", "in", "--output", "o"], "cp in o");
    run().is_miss(&["first_run"]).kept(true);
    let made = p.path("o").metadata().unwrap();
    let again = run();
    assert_eq!(again.is_hit().record["inputs_read"], 0);
    let stands = p.path("o").metadata().unwrap();
    assert_eq!((stands.modified().unwrap(), stands.ino()), (made.modified().unwrap(), made.ino()));
}

/// However a lock file is named, it is no input.
#[test]
fn a_lock_file_by_another_name() {
    let p = Project::new();
    p.write("in", "1");
    p.write("sub/x", "");
    for lock in ["./outfs.lock", "sub/../outfs.lock", "sub/./../outfs.lock"] {
        let run = || p.sh(&["--task", "t", "--lock", lock, "--output", "o"], "cp in o");
        let first = run();
        assert_eq!(first.record["undeclared"], serde_json::json!([]), "{first:#?}");
        run().is_hit();
        run().is_hit();
        fs::remove_file(p.path("outfs.lock")).unwrap();
    }
    // One that is a symlink stays one: what it leads to is written, and is no input either.
    p.write("sub/locks/real", "");
    fs::remove_file(p.path("sub/locks/real")).unwrap();
    std::os::unix::fs::symlink("locks/real", p.path("sub/link")).unwrap();
    std::os::unix::fs::symlink("sub/link", p.path("outfs.lock")).unwrap();
    let run = || p.sh(&["--task", "t", "--lock", "outfs.lock", "--output", "o"], "cp in o");
    let first = run();
    assert_eq!(first.is_miss(&["no_lock_file"]).record["undeclared"], serde_json::json!([]), "{first:#?}");
    run().is_hit();
    assert!(p.path("outfs.lock").is_symlink() && p.path("sub/link").is_symlink());
    assert!(p.read("sub/locks/real").contains("[task.\"t\"]"));
    let lost = p.sh(&["--no-inputs", "--lock", "outfs.lock", "--output", "sub/locks"], "true");
    assert_eq!(lost.says("with which it would be deleted").code, 125);
}

/// What is no glob's is not read.
#[test]
fn a_glob_looks_no_deeper_than_it_reaches() {
    let p = Project::new();
    for name in ["a.c", "sub/b.c", "sub/deep/c.c"] {
        p.write(name, name);
    }
    let count = |glob: &str| p.sh(&["--input", glob], "true").record["inputs"].as_u64();
    assert_eq!(
        ["*.c", "*/*.c", "s*/deep/*.c", "**/*.c", "{a.c,sub/deep/*.c}"].map(count),
        [Some(1), Some(1), Some(1), Some(3), Some(2)]
    );
    // Root may read it all the same.
    fs::set_permissions(p.path("sub"), std::os::unix::fs::PermissionsExt::from_mode(0o0)).unwrap();
    let ran = p.sh(&["--input", "*.c"], "true");
    fs::set_permissions(p.path("sub"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!((ran.code, ran.record["inputs"].as_u64()), (0, Some(1)), "{ran:#?}");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let p = Project::new();
    p.write("in", "1");
    let both = p.sh(&["--input", "./in", "--output", "in"], "cat in");
    assert_eq!((both.says("the input ./in is an output, too").code, p.read("in")), (125, "1".into()));
    p.write("d/in", "1");
    assert_eq!(p.sh(&["--input", "d/in", "--output", "d"], "cat d/in").says("is an output, too").code, 125);
    let value = p.sh(&["--no-inputs", "--env", "CC=gcc"], "true");
    assert_ne!(value.code, 0);
    value.says("name it only").says("env CC=gcc outfs run --env CC");
}

#[test]
fn what_is_named_for_the_first_time_is_new_and_may_be_gone_again() {
    let p = Project::new();
    let run = |more: &[&str]| p.sh(&[&["--task", "t", "--no-inputs"], more].concat(), "true");
    run(&[]).is_miss(&["first_run"]);
    run(&["--tool", "cat"]).is_miss(&["tool_changed"]).says("the program cat is new");
    run(&["--tool", "cat", "--env", "SOME"]).is_miss(&["env_changed"]).says("the variable SOME is new");
    let run = |more: &[&str]| p.sh(&[&["--task", "u", "--no-inputs"], more].concat(), "true; true");
    run(&["--tool", "cat", "--env", "SOME"]).is_miss(&["first_run"]);
    run(&["--tool", "cat"]).is_miss(&["env_changed"]).says("the variable SOME is not named any more");
    run(&[]).is_miss(&["tool_changed"]).says("the program cat is not named any more");
}

/// A team's key is the same from a file and from a variable.
#[test]
fn a_key_file_may_end_with_a_newline() {
    let p = Project::new();
    let file = p.dir.path().join("key");
    fs::write(&file, "team\n").unwrap();
    let named = ["run", "--json", "--task", "t", "--no-inputs", "--secret", "TOKEN"];
    let from_file =
        p.command(&[&named[..], &["--secret-key-file", file.to_str().unwrap(), "--", "true"]].concat());
    let mut from_variable = p.command(&[&named[..], &["--", "true"]].concat());
    from_variable.env("OUTFS_SECRET_KEY", "team");
    Ran::of(from_file).kept(true);
    Ran::of(from_variable).is_hit();
}

/// S13.4 … no input changed meanwhile: nor came one.
#[test]
fn what_was_made_with_an_input_that_came_is_not_kept() {
    let p = Project::new();
    p.write("src/a", "a\n");
    for inputs in [&["--input", "src/*"][..], &["--input", "src"], &[]] {
        let run = |script: &str| p.sh(&[&["--task", "t", "--output", "o"], inputs].concat(), script);
        let ran = run("echo b > src/b; cat src/* > o");
        ran.kept(false).says("src/b came among the inputs while the command ran; nothing is kept");
        assert_eq!((ran.code, &ran.record["undeclared"]), (0, &serde_json::json!(["src/b"])), "{ran:#?}");
        assert!(!ran.stderr.contains("not declared as outputs"), "it is said once: {ran:#?}");
        fs::remove_file(p.path("src/b")).unwrap();
        run("echo b > src/b; cat src/* > o").is_miss(&["previous_run_incomplete"]).kept(false);
        fs::remove_file(p.path("src/b")).unwrap();
        run("cp src/a o; chmod +x src; mv src/a o; cp -p o src/a; echo o > o.tmp; rm o.tmp").kept(true);
    }
    // Who comes after it finds what stands there.
    let ran = p.sh(&["--task", "t", "--output", "o", "--input", "src"], "echo b > src/b; cat src/* > o");
    ran.kept(false);
    p.sh(&["--task", "next", "--after", "t", "--no-inputs", "--output", "n"], "cp o n").kept(true);
}

/// S13.14 An input that git has in another form is an input, whatever else the command makes.
#[test]
fn what_is_made_beside_an_edited_input_does_not_make_that_undeclared() {
    let p = Project::new();
    p.write("src/a", "a\n");
    p.git(&["add", "src/a"]);
    p.write("src/a", "b\n");
    let ran = p.sh(&["--task", "t", "--input", "src", "--output", "o"], "cp src/a o; touch src/a zz");
    assert_eq!(ran.kept(true).record["undeclared"], serde_json::json!(["zz"]), "{ran:#?}");
}

/// S13.14 … nor what a run beside it has not finished.
#[test]
fn what_is_unfinished_is_not_named() {
    let p = Project::new();
    let script = "mkdir .outfs-1-2.tmp; touch .outfs-1-2.tmp/f o";
    let ran = p.sh(&["--task", "t", "--no-inputs", "--output", "o"], script);
    assert_eq!(ran.kept(true).record["undeclared"], serde_json::json!([]), "{ran:#?}");
}

/// S13.14 … also where git takes capitals for the same letters: what it ignores is ignored so, what is declared is not.
#[test]
fn what_only_looks_like_an_input_in_capitals_is_named() {
    let p = Project::new();
    p.git(&["config", "core.ignorecase", "true"]);
    p.write("src/a", "a\n");
    p.write(".gitignore", "ignored\n");
    let script = "cp src/a o; mkdir SRC; touch SRC/made O IGNORED";
    let ran = p.sh(&["--task", "t", "--input", "src", "--output", "o"], script);
    assert_eq!(ran.kept(true).record["undeclared"], serde_json::json!(["O", "SRC/made"]), "{ran:#?}");
}

/// What tools leave beside their sources is no change of the inputs.
#[test]
fn what_git_ignores_may_come_below_an_input() {
    let p = Project::new();
    p.write("src/a", "a\n");
    p.write(".gitignore", "__pycache__/\n");
    let run = || {
        let script = "mkdir -p src/__pycache__; echo x > src/__pycache__/a.pyc; cp src/a o";
        p.sh(&["--task", "t", "--input", "src", "--output", "o"], script)
    };
    run().kept(true);
    fs::remove_dir_all(p.path("src/__pycache__")).unwrap();
    run().is_hit();
}

/// S14.1 … also not in a sandbox that sees it.
#[test]
fn what_a_sandbox_sees_of_an_input_that_came_is_not_kept() {
    need("bwrap");
    let p = Project::new();
    (0..20).for_each(|n| p.write(&format!("src/{n}"), "a\n"));
    let run = |script: &str| {
        let task = ["run", "--json", "--task", "t", "--sandbox", "bwrap", "--input", "src", "--output", "o"];
        p.command(&[&task[..], &["--timeout", "60s", "--", "sh", "-c", script]].concat())
    };
    let script = "echo started; while [ ! -e src/b ]; do sleep 0.01; done; cat src/* > o";
    let mut child = run(script).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut byte = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    p.write("src/b", "b\n");
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", said(&out));
    assert!(said(&out).contains("src/b came among the inputs"), "{}", said(&out));
    fs::remove_file(p.path("src/b")).unwrap();
    assert!(p.ok(&["ls"]).is_empty(), "nothing is kept");
}

/// S13.1 A store, its mounts and the memory of runs may lie in the project, as CI wants its caches: they are no inputs, and are in no sandbox.
#[test]
fn what_is_our_own_in_a_project_is_no_input() {
    need("bwrap");
    let p = Project::new();
    p.write("a", "1");
    let run = |options: &[&str], script: &str| {
        let task = ["run", "--json", "--output", "o"];
        let mut c = p.command(&[&task, options, &["--", "sh", "-c", script]].concat());
        c.env("OUTFS_STORE", ".cache/outfs").env("XDG_CACHE_HOME", p.path(".cache"));
        Ran::of(c)
    };
    for (n, inputs) in
        [&[][..], &["--input", "."], &["--input", ".cache/*/**", "--input", "a"]].iter().enumerate()
    {
        p.write(".cache/others/b", "");
        for sandbox in ["none", "bwrap"] {
            let options = [inputs, &["--sandbox", sandbox][..]].concat();
            let script = format!("cp a o; ls -A .cache >> o; : {n}");
            let ran = run(&options, &script);
            assert_eq!(ran.kept(true).record["inputs"], 2, "{ran:#?}");
            let listed = if sandbox == "none" { "1others\noutfs\noutfs-run\n" } else { "1others\n" };
            assert_eq!(p.read("o"), listed);
            for _ in 0..2 {
                assert_eq!(run(&options, &script).is_hit().record["inputs"], 2);
            }
        }
    }
    // Whoever names it means it.
    assert_eq!(
        run(&["--input", ".cache/outfs/format"], "cp .cache/outfs/format o").kept(true).record["inputs"],
        1
    );
}

/// S13.1 … However the way to the project is named: `$PWD` may go through a symlink.
#[test]
fn paths_through_a_symlink_to_the_project_are_in_it() {
    let p = Project::new();
    p.write("sub/a", "1");
    p.write("sub/deep/b", "1");
    let link = p.dir.path().join("link");
    std::os::unix::fs::symlink(p.path("sub"), &link).unwrap();
    let top = p.dir.path().join("top");
    std::os::unix::fs::symlink(&p.cwd, &top).unwrap();
    let keys = |dirs: &[&Path]| -> Vec<String> {
        let run = |dir: &&Path| {
            let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
            let (a, glob, out) = (at("a"), at("deep/*"), at("new/o"));
            let task = ["run", "--json", "--task", "t", "--input", &a, "--input", &glob, "--output", &out];
            let mut c = p.command(&[&task[..], &["--", "sh", "-c", "mkdir -p new; cp a new/o"]].concat());
            c.current_dir(p.path("sub"));
            Ran::of(c).kept(true).key().to_owned()
        };
        dirs.iter().map(run).collect()
    };
    let keys = keys(&[Path::new(""), &link, &top.join("sub"), &p.path("sub")]);
    assert!(!keys[0].is_empty() && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    // The directory itself, whatever it is called.
    let whole = |name: &str| {
        let mut c = p.command(&["run", "--json", "--input", name, "--", "true"]);
        Ran::of({
            c.current_dir(p.path("sub"));
            c
        })
    };
    let here = whole(".");
    assert_eq!(whole(link.to_str().unwrap()).key(), here.key());
    let mut c =
        p.command(&["run", "--json", "--no-inputs", "--output", link.to_str().unwrap(), "--", "true"]);
    c.current_dir(p.path("sub"));
    assert_eq!(Ran::of(c).says("is the working directory itself").code, 125);
}

/// What directories above are called is no part of a glob.
#[test]
fn a_directory_may_be_called_like_a_glob() {
    let p = Project::new();
    p.write("p[1]/a.c", "1");
    p.write("p1/a.c", "another's");
    let run = || {
        let mut c = p.command(&["run", "--json", "--task", "t", "--input", "*.c", "--", "cat", "a.c"]);
        c.current_dir(p.path("p[1]"));
        Ran::of(c)
    };
    assert_eq!(run().is_miss(&["first_run"]).kept(true).record["inputs"], 1);
    p.write("p1/a.c", "changed");
    run().is_hit();
    p.write("p[1]/a.c", "2");
    assert_eq!(run().is_miss(&["dep_changed"]).kept(true).stdout, "2\n");
}

/// S13.4 … no input changed meanwhile …: nor did the command or a tool, which count by their content.
#[test]
fn a_tool_that_changes_meanwhile_has_nothing_kept() {
    let p = Project::new();
    let tool = p.dir.path().join("tool");
    fs::write(&tool, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    let name = tool.to_str().unwrap();
    let run = |script: &str| p.sh(&["--task", "t", "--no-inputs", "--tool", name], script);
    run(&format!("echo '# new' >> {name}")).kept(false).says("tool changed while the command ran");
    run(&format!("touch {name}")).kept(true);
}
