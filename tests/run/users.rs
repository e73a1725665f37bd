//! Several users of one machine: what each of them has of `outfs run`, and who meets whom.
//!
//! All of it needs root, which becomes other users here.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::{eventually, is_mounted, need, need_root};
use crate::project::{Project, Ran, said, tree};

const ROOT: u32 = 0;
const NOBODY: u32 = 65534;
const SOMEBODY: u32 = 65533;

/// Runs until it is told to end, and leaves a line for each time.
const SLOW: &str = "echo run >> ../runs; while [ ! -e ../go ]; do sleep 0.01; done; echo 1 > o";

/// A store of the user `nobody`, and a checkout of the same project for each user.
struct Users {
    p: Project,
    program: PathBuf,
    /// Its mount namespace has a FUSE device that is for all; some machines give theirs to root only.
    place: Option<Child>,
    daemon: Option<Child>,
}

impl Users {
    fn new() -> Users {
        need_root();
        ["setpriv", "bwrap", "chown"].into_iter().for_each(need);
        let p = Project::new();
        // The program under test may lie where only root can go.
        let program = p.dir.path().join("outfs");
        fs::copy(env!("CARGO_BIN_EXE_outfs"), &program).unwrap();
        // Here all users leave word that they have run.
        fs::set_permissions(p.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        Users { p, program, place: None, daemon: None }
    }

    fn with_fuse() -> Users {
        ["unshare", "nsenter", "mknod", "mount"].into_iter().for_each(need);
        let mut users = Users::new();
        let script = "mknod -m 666 ../fuse c 10 229 && mount --bind ../fuse /dev/fuse && touch ../ready && exec sleep 3600";
        let mut c = Command::new("setpriv");
        c.args(["--pdeathsig", "KILL", "unshare"])
            .args(["--mount", "--kill-child", "sh", "-c", script])
            .current_dir(&users.p.cwd)
            .stdin(Stdio::null());
        users.place = Some(c.spawn().expect("unshare starts"));
        let ready = users.at("ready");
        eventually("a FUSE device for all", || ready.exists());
        users
    }

    fn at(&self, name: &str) -> PathBuf {
        self.p.dir.path().canonicalize().unwrap().join(name)
    }

    /// A user's directory, made for them.
    fn own(&self, uid: u32, name: &str) -> PathBuf {
        let dir = self.at(&format!("{name}-{uid}"));
        if !dir.exists() {
            fs::create_dir(&dir).unwrap();
            std::os::unix::fs::chown(&dir, Some(uid), Some(uid)).unwrap();
        }
        dir
    }

    /// A user's checkout.
    fn checkout(&self, uid: u32, files: &[(&str, &str)]) -> PathBuf {
        let dir = self.own(uid, "project");
        fs::create_dir_all(dir.join(".git")).unwrap();
        for (name, content) in files {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let done = Command::new("chown").arg("-R").arg(format!("{uid}:{uid}")).arg(&dir).status().unwrap();
        assert!(done.success());
        dir
    }

    /// `outfs ARGS` as a user, in their checkout, with the store of `nobody`.
    fn command(&self, uid: u32, args: &[&str]) -> Command {
        let id = uid.to_string();
        let mut words: Vec<String> = Vec::new();
        if let Some(place) = &self.place {
            let enter = format!("--mount=/proc/{}/ns/mnt", place.id());
            words.extend(["nsenter", &enter, "--wd=.", "--"].map(String::from));
        }
        words.extend(
            ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--pdeathsig", "KILL"]
                .map(String::from),
        );
        let mut c = Command::new(&words[0]);
        c.args(&words[1..]).arg(&self.program).args(args);
        // Root works where the others do.
        let whose = if uid == ROOT { NOBODY } else { uid };
        c.current_dir(self.own(whose, "project"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        c.env("HOME", self.own(uid, "home")).env("XDG_CACHE_HOME", self.own(uid, "home"));
        c.env("OUTFS_STORE", self.own(NOBODY, "home").join("store"));
        c
    }

    #[track_caller]
    fn ok(&self, uid: u32, args: &[&str]) -> String {
        let out = self.command(uid, args).output().expect("it starts");
        assert!(out.status.success(), "outfs {args:?}: {}", said(&out));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// `outfs run --json OPTIONS -- sh -c SCRIPT` as a user.
    fn run(&self, uid: u32, options: &[&str], script: &str) -> Ran {
        Ran::of(self.command(uid, &[&["run", "--json"], options, &["--", "sh", "-c", script]].concat()))
    }

    fn begin(&self, uid: u32, options: &[&str], script: &str) -> Child {
        let mut c = self.command(uid, &[&["run", "--json"], options, &["--", "sh", "-c", script]].concat());
        c.spawn().expect("it starts")
    }

    /// A daemon of `nobody`, with a mount.
    fn serve(&mut self) {
        let mnt = self.own(NOBODY, "mnt");
        let mut c = self.command(NOBODY, &["mount", "--foreground", mnt.to_str().unwrap()]);
        c.stdout(Stdio::null()).stderr(Stdio::null());
        self.daemon = Some(c.spawn().expect("it starts"));
        eventually("the daemon to answer", || self.views() == 1);
        assert!(!is_mounted(&mnt), "that is seen in its namespace only");
    }

    fn views(&self) -> usize {
        let out = self.command(NOBODY, &["status", "--json"]).output().expect("it starts");
        let status: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        status["views"].as_array().map_or(0, Vec::len)
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.at("runs")).unwrap_or_default().lines().count()
    }

    fn nothing_flies(&self) -> bool {
        fs::read_dir(self.own(NOBODY, "home").join("store/runs")).unwrap().next().is_none()
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = self.command(NOBODY, &["stop", "--lazy"]).output();
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if let Some(mut place) = self.place.take() {
            let _ = place.kill();
            let _ = place.wait();
        }
    }
}

const TASK: [&str; 6] = ["--task", "t", "--input", "in", "--output", "o"];

/// S13.9 Of runs of one key at the same time one executes, also when they are of the store's user and of root.
#[test]
fn root_and_the_stores_user_take_turns() {
    let mut users = Users::with_fuse();
    users.serve();
    let dir = users.checkout(NOBODY, &[("in", "1")]);
    for (first, second) in [(NOBODY, ROOT), (ROOT, NOBODY)] {
        let _ = fs::remove_file(users.at("go"));
        fs::write(users.at("runs"), "").unwrap();
        crate::common::chmod(users.at("runs"), 0o666).unwrap();
        let param = format!("first={first}");
        let options = [&TASK[..], &["--param", &param]].concat();
        let winner = users.begin(first, &options, SLOW);
        eventually("the command to start", || users.runs() == 1);
        let mut waits = users.begin(second, &options, SLOW);
        let mut stderr = std::io::BufReader::new(waits.stderr.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut stderr, &mut line).unwrap();
        assert_eq!(line, format!("outfs: waiting for process {}, which runs t already\n", winner.id()));
        fs::write(users.at("go"), "").unwrap();
        // The store's daemon cannot read root's own files: what root made is not kept, and the next one executes.
        let kept = first == NOBODY;
        Ran::ended(winner.wait_with_output().unwrap()).kept(kept);
        let mut out = waits.wait_with_output().unwrap();
        std::io::Read::read_to_end(&mut stderr, &mut out.stderr).unwrap();
        let waited = Ran::ended(out);
        assert_eq!((&waited.record["result"], waited.code), (&(if kept { "hit" } else { "miss" }).into(), 0));
        assert_eq!(users.runs(), if kept { 1 } else { 2 });
        assert_eq!((waited.kept(true).code, fs::read_to_string(dir.join("o")).unwrap()), (0, "1\n".into()));
        assert!(users.nothing_flies());
    }
}

/// Ordinary users have stores of their own. Who names another one's runs the task without it, and waits for nobody.
#[test]
fn ordinary_users_do_not_meet() {
    let users = Users::new();
    [NOBODY, SOMEBODY].into_iter().for_each(|uid| drop(users.checkout(uid, &[("in", "1")])));
    let first = users.begin(NOBODY, &TASK, SLOW);
    eventually("the command to start", || users.runs() == 1);
    fs::set_permissions(users.at("runs"), fs::Permissions::from_mode(0o666)).unwrap();
    let script = "echo run >> ../runs; echo 1 > o";
    let other = users.run(SOMEBODY, &TASK, script);
    assert_eq!((other.kept(false).code, users.runs()), (0, 2), "{other:#?}");
    other.says("the cache fails, the task goes on without it").says("are you its owner?");
    assert_eq!(fs::read_to_string(users.own(SOMEBODY, "project").join("o")).unwrap(), "1\n");
    // In a store of their own they find their own results, and no others.
    let own = users.own(SOMEBODY, "home").join("store");
    let c = users.command(
        SOMEBODY,
        &[&["--store", own.to_str().unwrap(), "run", "--json"], &TASK[..], &["--", "sh", "-c", SLOW]]
            .concat(),
    );
    fs::write(users.at("go"), "").unwrap();
    Ran::of(c).is_miss(&["first_run"]).kept(true);
    let first = Ran::ended(first.wait_with_output().unwrap());
    assert_eq!((first.kept(true).code, users.runs()), (0, 3));
    assert!(users.nothing_flies());
    users.run(NOBODY, &TASK, SLOW).is_hit();
}

#[test]
fn an_ordinary_user_has_sandboxes_too() {
    let users = Users::new();
    let src: Vec<String> = (0..20).map(|n| format!("src/{n}")).collect();
    let mut files: Vec<(&str, &str)> = src.iter().map(|name| (&name[..], "")).collect();
    files.extend([("in", "1\n"), ("secret", "2\n")]);
    let dir = users.checkout(NOBODY, &files);
    let options = ["--task", "t", "--sandbox", "bwrap", "--input", "in", "--input", "src", "--output", "o"];
    let run = |script: &str| users.run(NOBODY, &options, script);
    let script = "mkdir o; cat in > o/f; id -u; ls src | wc -l; touch src/new /etc/new; ls secret";
    let ran = run(&format!("{script}; true"));
    ran.is_miss(&["first_run"]).kept(true);
    assert_eq!(ran.stdout, "65534\n20\n", "{ran:#?}");
    assert_eq!(fs::read(dir.join("o/f")).unwrap(), b"1\n");
    assert_eq!(dir.join("o/f").metadata().unwrap().uid(), NOBODY);
    run(&format!("{script}; true")).is_hit();
    run(script).kept(false).says("only declared inputs exist").says("secret");
}

/// S14.4, S14.6 Also for an ordinary user: a base is laid down to be changed, a result that is read is read-only: mounted where
/// there is a mount, copied where there is none.
#[test]
fn an_ordinary_user_starts_from_results_and_reads_them() {
    let mut users = Users::with_fuse();
    let dir = users.checkout(NOBODY, &[]);
    let one = "mkdir -p t/sub; echo a > t/a; echo b > t/sub/b; head -c 400000 /dev/zero > t/large";
    let key = users
        .run(NOBODY, &["--task", "one", "--no-inputs", "--output", "t"], one)
        .kept(true)
        .key()
        .to_owned();
    let in_entry = |path: &str| users_cat(&users, &key, path);
    assert_eq!(in_entry("outputs/t/a"), "a\n");
    for served in [false, true] {
        if served {
            users.serve();
        }
        let param = format!("served={served}");
        let inside = ["--no-inputs", "--sandbox", "bwrap", "--param", &param];
        // By its key, and what stands there is another tree.
        let _ = fs::remove_dir_all(dir.join("t"));
        let base = [&inside[..], &["--task", "two", "--base", &key, "--output", "t"]].concat();
        let change = "cat t/a t/sub/b; echo more >> t/a; rm t/sub/b";
        let ran = users.run(NOBODY, &base, change);
        assert_eq!(ran.kept(true).stdout, "a\nb\n", "{ran:#?}");
        let names = |top: &Path| {
            tree(top).into_iter().map(|(n, c)| (n.display().to_string(), c.len())).collect::<Vec<_>>()
        };
        assert_eq!(names(&dir.join("t")), [("a".to_owned(), 7), ("large".to_owned(), 400_000)]);
        users.run(NOBODY, &base, change).is_hit();
        // Nothing that is read can be changed, wherever it lies.
        let lib = format!("lib={key}");
        let from = [&inside[..], &["--task", "r", "--from", &lib, "--output", "o"]].concat();
        let write = "for f in lib/new lib/t/a lib/t/new; do (echo x >> $f) 2> /dev/null && echo WROTE $f; done; \
            rm -rf lib/t 2> /dev/null && echo REMOVED; chmod -R u+w lib 2> /dev/null; mv lib/t/a lib/t/b 2> /dev/null && echo MOVED; \
            stat -f -c %T lib; cat lib/t/a lib/t/sub/b > o; exit 0";
        let ran = users.run(NOBODY, &from, write);
        let kind = ran.kept(true).stdout.trim();
        assert_eq!(kind.starts_with("fuse"), served, "{ran:#?}");
        assert!(!kind.contains('\n'), "nothing was written: {ran:#?}");
        assert_eq!(fs::read_to_string(dir.join("o")).unwrap(), "a\nb\n");
        assert!(!dir.join("lib").exists());
        users.run(NOBODY, &from, write).is_hit();
        assert_eq!(
            (users_cat(&users, &key, "outputs/t/a"), users_cat(&users, &key, "outputs/t/sub/b")),
            ("a\n".into(), "b\n".into())
        );
        if served {
            eventually("the view to be gone", || users.views() == 1);
        }
    }
    users.ok(NOBODY, &["fsck", "--verify-data"]);
}

fn users_cat(users: &Users, key: &str, path: &str) -> String {
    users.ok(NOBODY, &["cat", key, path])
}

/// A cache that fails never fails the task: outputs may be what nobody can read, or directories that nobody may write in.
#[test]
fn outputs_without_rights_are_no_obstacle() {
    let users = Users::new();
    let dir = users.checkout(NOBODY, &[("in", "1")]);
    let secret = users.run(NOBODY, &TASK, "echo 1 > o; chmod 000 o");
    assert_eq!(secret.kept(false).says("warning: the result is not kept").code, 0);
    let locked = |n: &str| {
        fs::write(dir.join("in"), n).unwrap();
        users.run(NOBODY, &TASK, "mkdir -p o/sub; cp in o/sub/f; chmod 555 o/sub o")
    };
    assert_eq!(locked("2").kept(true).code, 0);
    assert_eq!(locked("3").kept(true).code, 0);
    assert!(crate::common::chmod(dir.join("o/sub"), 0o555).is_ok());
    locked("2").is_hit();
    assert_eq!(fs::read(dir.join("o/sub/f")).unwrap(), b"2");
}

/// The same in a sandbox, out of which outputs are moved.
#[test]
fn outputs_without_rights_leave_a_sandbox() {
    let users = Users::new();
    let dir = users.checkout(NOBODY, &[("in", "1")]);
    let task = ["--task", "t", "--sandbox", "bwrap", "--input", "in", "--output", "o", "--output", "p/q"];
    let locked = |n: &str, options: &[&str]| {
        fs::write(dir.join("in"), n).unwrap();
        let make = "mkdir -p o/sub p/q; cp in o/sub/f; cp in p/q/f; chmod 555 o/sub o p/q p";
        users.run(NOBODY, &[&task, options].concat(), &format!("chmod -R u+w . 2> /dev/null; {make}"))
    };
    let mode = |path: &str| dir.join(path).metadata().unwrap().mode() & 0o777;
    for n in ["2", "3"] {
        let ran = locked(n, &[]);
        assert_eq!((ran.kept(true).code, mode("o"), mode("o/sub"), mode("p/q")), (0, 0o555, 0o555, 0o555));
        assert_eq!(fs::read(dir.join("p/q/f")).unwrap(), n.as_bytes());
    }
    locked("2", &[]).is_hit();
    assert_eq!(fs::read(dir.join("o/sub/f")).unwrap(), b"2");
    // What stands there is moved in as a base, and out again.
    for n in ["4", "5"] {
        assert_eq!(locked(n, &["--base", "t"]).kept(true).code, 0);
        assert_eq!((fs::read(dir.join("o/sub/f")).unwrap(), mode("o")), (n.as_bytes().to_vec(), 0o555));
    }
    users.ok(NOBODY, &["fsck", "--verify-data"]);
}

/// As root keeps it that was a user before (`sudo` with HOME): what that user remembers is not believed, and nothing of root's
/// is left there to lock them out.
#[test]
fn root_with_a_users_home_remembers_elsewhere() {
    ["unshare", "mount"].into_iter().for_each(need);
    let users = Users::new();
    let home = users.own(NOBODY, "home");
    let project = users.checkout(NOBODY, &[("in", "1")]);
    let root = |made: &str| {
        // Its own home is where nobody else sees it.
        let script = format!(
            "mount -t tmpfs tmpfs ~root && cd {} && \"$@\"; ls -A ~root/.cache/outfs-run > {made}",
            project.display()
        );
        let mut c = Command::new("unshare");
        c.args(["--mount", "sh", "-c", &script, "sh"]).arg(&users.program);
        c.args(["run", "--json"]).args(TASK).args(["--", "sh", "-c", "echo 1 > o"]);
        c.env("HOME", &home)
            .env_remove("XDG_CACHE_HOME")
            .env("OUTFS_STORE", users.own(ROOT, "store").join("s"));
        Ran::of(c).kept(true);
        assert!(!fs::read_to_string(project.join(made)).unwrap().is_empty());
    };
    root("first");
    assert_eq!(fs::read_dir(&home).unwrap().count(), 0, "nothing is made there");
    fs::remove_file(project.join("o")).unwrap();
    let own = |uid, home: &Path| {
        let mut c =
            users.command(uid, &[&["run", "--json"], &TASK[..], &["--", "sh", "-c", "echo 1 > o"]].concat());
        c.env("HOME", home).env_remove("XDG_CACHE_HOME");
        Ran::of(c)
    };
    own(NOBODY, &home).kept(true);
    let theirs =
        |top: &Path| tree(top).iter().all(|(name, _)| top.join(name).metadata().unwrap().uid() == NOBODY);
    assert!(home.join(".cache/outfs-run").is_dir());
    fs::remove_file(project.join("o")).unwrap();
    root("second");
    assert!(theirs(&home.join(".cache")), "all is theirs");
}

/// … and has a store of its own, unless that user has one.
#[test]
fn root_makes_no_store_in_a_users_home() {
    ["unshare", "mount"].into_iter().for_each(need);
    let users = Users::new();
    let home = users.own(NOBODY, "home");
    let project = users.checkout(NOBODY, &[("in", "1")]);
    let root = |args: &str, then: &str| {
        // Its own home is where nobody else sees it.
        let script =
            format!("mount -t tmpfs tmpfs ~root && cd {} && \"$0\" {args}; {then}", project.display());
        let mut c = Command::new("unshare");
        c.args(["--mount", "sh", "-c", &script]).arg(&users.program);
        c.env("HOME", &home).env_remove("XDG_CACHE_HOME").env_remove("OUTFS_STORE");
        let out = c.output().unwrap();
        assert!(out.status.success(), "{}", said(&out));
        said(&out)
    };
    let run = "run --no-inputs --output o -- touch o";
    let out = root(run, "[ -e ~root/.cache/outfs/format ] && \"$0\" ls -l");
    assert!(
        out.contains("root's store is /root/.cache/outfs") && out.contains("belongs to user 65534"),
        "{out}"
    );
    assert!(
        out.contains("FILES") && out.matches("root's store").count() == 1,
        "it is said when it is made: {out}"
    );
    assert_eq!(fs::read_dir(&home).unwrap().count(), 0, "nothing is made there");
    // Theirs is not root's either, but it is the one that is meant.
    let mut c = users.command(NOBODY, &["run", "--no-inputs", "--output", "o", "--", "touch", "o"]);
    c.env("HOME", &home).env_remove("XDG_CACHE_HOME").env_remove("OUTFS_STORE");
    assert!(c.status().unwrap().success() && home.join(".cache/outfs/format").exists());
    let out = root(run, "[ ! -e ~root/.cache/outfs ]");
    assert!(out.contains("belongs to user 65534; run this as that user"), "{out}");
}

/// Root in a namespace of users is an ordinary user as far as files go, and remembers projects as one.
#[test]
fn root_in_a_namespace_of_users_remembers() {
    need("unshare");
    let users = Users::new();
    users.checkout(NOBODY, &[("in", "1")]);
    let run = || {
        let args = [&["run", "--json"], &TASK[..], &["--", "cp", "in", "o"]].concat();
        let plain = users.command(NOBODY, &args);
        let at = plain.get_args().position(|arg| arg == users.program.as_os_str()).unwrap();
        let words: Vec<_> = plain.get_args().collect();
        let mut c = Command::new(plain.get_program());
        c.args(&words[..at]).args(["unshare", "--user", "--map-root-user"]).args(&words[at..]);
        c.current_dir(plain.get_current_dir().unwrap());
        plain.get_envs().for_each(|(name, value)| {
            c.env(name, value.unwrap());
        });
        Ran::of(c)
    };
    run().kept(true);
    let hit = run();
    assert_eq!(hit.is_hit().record["inputs_read"], 0, "it is remembered: {hit:#?}");
    assert!(users.own(NOBODY, "home").join("outfs-run").is_dir());
}

/// A directory that root was to find where temporary files are, with a room in it that says that somebody else's directory is to
/// go with it.
#[test]
fn what_others_have_put_where_temporary_files_are_is_not_believed() {
    let users = Users::new();
    users.checkout(NOBODY, &[("in", "1")]);
    let (tmp, precious) = (users.own(ROOT, "tmp"), users.own(ROOT, "precious"));
    crate::common::chmod(&tmp, 0o1777).unwrap();
    let rooms = tmp.join("outfs-rooms-0");
    let room = rooms.join("run-1");
    fs::create_dir_all(&room).unwrap();
    fs::write(room.join("lock"), "").unwrap();
    let meta = precious.metadata().unwrap();
    let made = meta.created().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
    let owned = format!("w{}.{}.{} {}\0", meta.dev(), meta.ino(), made.as_nanos(), precious.display());
    fs::write(room.join("owns"), owned).unwrap();
    for path in [&rooms, &room, &room.join("lock"), &room.join("owns")] {
        std::os::unix::fs::chown(path, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    }
    let run = || {
        let mut c = users.command(
            ROOT,
            &[&["run", "--json", "--force"], &TASK[..], &["--", "sh", "-c", "echo 1 > o"]].concat(),
        );
        c.env_remove("HOME").env_remove("XDG_CACHE_HOME").env("TMPDIR", &tmp);
        c.env("OUTFS_STORE", users.own(ROOT, "store").join("s"));
        Ran::of(c).kept(true);
        assert!(precious.exists());
    };
    run();
    assert!(room.exists());
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 1, "nothing of the run is left");
    // Were it root's own, it would be done.
    for path in [&rooms, &room, &room.join("lock"), &room.join("owns")] {
        std::os::unix::fs::chown(path, Some(ROOT), Some(ROOT)).unwrap();
        crate::common::chmod(path, 0o700).unwrap();
    }
    let mut c =
        users.command(ROOT, &[&["run", "--force"], &TASK[..], &["--", "sh", "-c", "echo 1 > o"]].concat());
    c.env_remove("HOME").env_remove("XDG_CACHE_HOME").env("TMPDIR", &tmp);
    assert!(c.env("OUTFS_STORE", users.own(ROOT, "store").join("s")).status().unwrap().success());
    assert!(!precious.exists() && !room.exists());
}
