//! Who may do what, and clients that do what no task should: a second user on a shared mount, drafts full of
//! traps, writers that fork, mappings that are cut, very many open files.
//!
//! Must not know: the crate's inside.

#[path = "../common/mod.rs"]
#[macro_use]
mod common;

mod traps;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use common::{Mapping, Mount, chmod, eventually, eventually_some, mkdir, need_root, read, write};

/// `nobody`.
const STRANGER: u32 = 65534;

/// A mount that others may enter, down to it.
fn shared() -> Mount {
    need_root();
    let m = Mount::with(&["--size", "4G", "--allow-other"]);
    for dir in m.mnt().ancestors().skip(1).take_while(|dir| dir.starts_with(m.outside(""))) {
        chmod(dir, 0o755).expect("chmod");
    }
    m
}

/// Runs a shell script as the stranger.
fn stranger(script: &str, args: &[&Path]) -> Output {
    let mut c = Command::new("sh");
    c.arg("-c").arg(script).arg("stranger").args(args).uid(STRANGER).gid(STRANGER).current_dir("/");
    c.output().expect("sh starts")
}

#[track_caller]
fn may(script: &str, args: &[&Path]) {
    let out = stranger(script, args);
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
}

#[track_caller]
fn may_not(script: &str, args: &[&Path]) {
    let out = stranger(script, args);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success(), "{script} was done");
    let reasons = ["Permission denied", "Operation not permitted", "ermission", "only the store's owner"];
    assert!(reasons.iter().any(|r| said.contains(r)), "{script}: {said}");
}

#[test]
fn a_stranger_on_a_shared_mount_has_the_rights_that_the_modes_say() {
    let m = shared();
    let sealed = m.entry("key-sealed", |out| {
        write(out.join("open"), "for all");
        write(out.join("secret"), "for its owner");
        chmod(out.join("secret"), 0o600).expect("chmod");
    });
    may("cat \"$1\"/outputs/open", &[&sealed]);
    may_not("cat \"$1\"/outputs/secret", &[&sealed]);

    let mnt = m.mnt();
    may_not("mkdir \"$1\"/key-strange", &[mnt]);
    may_not("mkdir \"$1\"/.outfs/work/strange", &[mnt]);
    may_not("mv \"$1\"/key-sealed \"$1\"/.outfs/trash/", &[mnt]);
    assert!(m.is_sealed("key-sealed"));

    let draft = m.path("key-draft");
    mkdir(&draft);
    write(draft.join("mine"), "root's");
    write(draft.join("metadata.json"), "{}");
    mkdir(draft.join("common"));
    chmod(draft.join("common"), 0o1777).expect("chmod");
    write(draft.join("common/mine"), "root's");
    may("cat \"$1\"/mine >/dev/null", &[&draft]);
    may_not("echo more >>\"$1\"/mine", &[&draft]);
    may_not("rm -f \"$1\"/mine", &[&draft]);
    may_not("chmod a-w \"$1\"", &[&draft]);
    may_not("mv \"$1\" \"$2\"/.outfs/trash/", &[&draft, mnt]);
    may("umask 077; echo strange >\"$1\"/common/file", &[&draft]);
    may_not("rm -f \"$1\"/common/mine", &[&draft]);
    let made = fs::metadata(draft.join("common/file")).expect("it was made");
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o777), (STRANGER, STRANGER, 0o600), "its maker's");
}

/// S6.8 `MNT/.outfs/blobs`, `by-task`, `stats.json`, `metrics` and `events.jsonl` are for the user who mounted alone …
/// Who was handed an open file reads it, whoever he is, as on any file system, and nothing else.
#[test]
fn a_stranger_reads_what_he_was_handed() {
    need_root();
    for passthrough in ["auto", "off"] {
        let m = Mount::with(&["--size", "4G", "--passthrough", passthrough]);
        let file = m.draft("w", |out| write(out.join("f"), "handed down\n")).join("outputs/f");
        let mut c = Command::new("sh");
        // Longer than the kernel believes the attributes of a draft.
        let script = "for i in 1 2 3; do sleep 0.7; read line || exit 1; done; ! cat \"$1\" 2>/dev/null";
        write(&file, "handed down\n".repeat(3));
        c.args(["-c", script, "stranger"]).arg(&file).stdin(fs::File::open(&file).expect("open"));
        let out = c.uid(STRANGER).gid(STRANGER).current_dir("/").output().expect("sh starts");
        assert!(out.status.success(), "{passthrough}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn a_stranger_reads_nothing_below_outfs_but_drafts() {
    let mut m = shared();
    let secret = "for its owner";
    m.entry("key-sealed", |out| {
        write(out.join("secret"), secret);
        chmod(out.join("secret"), 0o600).expect("chmod");
    });
    let blob = format!("blobs/{}", blake3::hash(secret.as_bytes()).to_hex());
    let read_only = m.add_view("read-only", &["--read-only", "--allow-other"]);
    let scoped = m.add_view("scoped", &["--key", "key-sealed", "--allow-other"]);
    for (view, all) in [(m.mnt(), true), (&read_only, true), (&scoped, false)] {
        let control = view.join(".outfs");
        // Known to the kernel or not.
        for _ in 0..2 {
            may_not("cat \"$1\"", &[&control.join(&blob)]);
            may_not("ls \"$1\"", &[&control.join("blobs")]);
            assert_eq!(read(control.join(&blob)), secret.as_bytes(), "its owner's");
        }
        may("ls -l \"$1\"", &[&control]);
        let mode = |name: &str| fs::metadata(control.join(name)).expect("stat").mode() & 0o7777;
        assert_eq!((mode(""), mode("blobs"), mode(&blob)), (0o555, 0o500, 0o400));
        if !all {
            continue;
        }
        for file in ["stats.json", "metrics", "events.jsonl"] {
            may_not("cat \"$1\"", &[&control.join(file)]);
            assert_eq!(mode(file), 0o400);
        }
        let task = "by-task/%2F%2Fpkg:build";
        may_not("ls \"$1\"", &[&control.join("by-task")]);
        may_not("ls \"$1\"/latest/outputs", &[&control.join(task)]);
        assert_eq!((mode("by-task"), mode(task)), (0o500, 0o500));
    }
    let draft = m.draft("given", |out| chmod(out, 0o1777).expect("chmod"));
    may("echo strange >\"$1\"/outputs/file && cat \"$1\"/outputs/file", &[&draft]);
}

#[test]
fn a_stranger_cannot_command_the_daemon() {
    let m = shared();
    m.entry_of("key-sealed", "content");
    let program = m.outside("outfs-for-all");
    // Not by this process: a test beside this one could be forking while the copy is open for writing.
    common::sh("cp", &[&env!("CARGO_BIN_EXE_outfs"), &program]);
    chmod(&program, 0o755).expect("chmod");
    // It is not said that there is no store or no daemon.
    for command in ["ls", "fsck", "status", "stop", "put key-strange /etc/skel"] {
        may_not(&format!("\"$1\" --store \"$2\" {command}"), &[&program, m.store()]);
    }
    // Even where the store's own protection was taken away.
    chmod(m.store(), 0o777).expect("chmod");
    chmod(m.store().join("control.sock"), 0o777).expect("chmod");
    for command in [
        "evict key-sealed",
        "pin key-sealed",
        "seal key-sealed",
        "reject key-sealed --reason x",
        "gc",
        "stop",
    ] {
        may_not(&format!("\"$1\" --store \"$2\" {command}"), &[&program, m.store()]);
    }
    assert!(m.is_sealed("key-sealed"), "the daemon runs and has the entry");
}

/// The store's directory keeps others out; so does every file of its own, should it be opened one day.
#[test]
fn nothing_in_a_store_is_for_others() {
    let mut m = Mount::new();
    m.entry_of("key-sealed", "content");
    m.entry_of("key-large", vec![1; 1 << 20]);
    m.ok(&["pin", "key-large"]);
    m.ok(&["reject", "key-sealed", "--reason", "x"]);
    m.draft("open", |out| write(out.join("f"), "content"));
    m.kill9();
    m.start();
    assert_eq!(fs::metadata(m.store()).expect("the store").mode() & 0o777, 0o700);
    for file in common::files_below(m.store()) {
        // The daemon makes and removes files meanwhile.
        let Ok(mode) = fs::symlink_metadata(&file).map(|m| m.mode()) else { continue };
        // In a draft modes are the task's.
        let others = if file.starts_with(m.store().join("drafts")) { 0o022 } else { 0o077 };
        assert_eq!(mode & others, 0, "{}: {mode:o}", file.display());
    }
}

/// Whoever of a forked client's processes closes last is the last writer: only then the draft can be sealed, with what all
/// of them wrote.
#[test]
fn a_client_that_forks_while_it_writes() {
    const SCRIPT: &str = r#"
        lines() { n=0; while [ $n -lt 500 ]; do n=$((n + 1)); echo "$1 $n"; done; }
        exec 3>"$1"
        head -c 400000 /dev/zero >&3
        { lines child >&3; read -r go <"$2"; echo "last words" >&3; } &
        lines parent >&3"#;
    for passthrough in ["auto", "off"] {
        let m = Mount::with(&["--size", "4G", "--passthrough", passthrough]);
        let draft = m.draft("forks", |_| {});
        let go = m.outside("go");
        nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let mut parent = Command::new("sh");
        parent.args(["-ec", SCRIPT, "sh"]).arg(draft.join("outputs/f")).arg(&go);
        assert!(parent.status().expect("sh starts").success());
        // The child lives on.
        assert_errno!(fs::rename(&draft, m.path("key-forks")), EBUSY);
        write(&go, "go\n");
        eventually("the child to have closed the file", || match fs::rename(&draft, m.path("key-forks")) {
            Ok(()) => true,
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => false,
            Err(e) => panic!("sealing: {e}"),
        });

        let file = m.path("key-forks/outputs/f");
        let bytes = read(&file);
        let hash = common::xattr_text(&file, "user.outfs.blake3").expect("a hash");
        assert_eq!(hash, blake3::hash(&bytes).to_hex().as_str(), "passthrough {passthrough}");
        let (zeros, text) = bytes.split_at(400_000);
        assert!(zeros.iter().all(|b| *b == 0), "passthrough {passthrough}");
        let text = std::str::from_utf8(text).expect("text");
        assert!(text.ends_with("\nlast words\n"), "passthrough {passthrough}");
        for writer in ["parent", "child"] {
            let theirs = text.lines().filter(|l| l.starts_with(writer));
            let all: Vec<String> = (1..=500).map(|n| format!("{writer} {n}")).collect();
            assert!(theirs.eq(all.iter()), "passthrough {passthrough}: lines of the {writer} are missing");
        }
        assert_eq!(text.lines().count(), 1001, "passthrough {passthrough}");
    }
}

/// Does `work` in a child process; the signal that ended it, if one did. The child has one thread: `work` must not
/// allocate.
fn forked(work: impl FnOnce()) -> Option<nix::sys::signal::Signal> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    use nix::sys::wait::{WaitStatus, waitpid};
    // SAFETY: the child makes system calls and touches memory it has, and ends without returning.
    match unsafe { nix::unistd::fork() }.expect("fork") {
        nix::unistd::ForkResult::Child => {
            let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
            // SAFETY: the default action instead of the test runner's handler.
            let _ = unsafe { signal(Signal::SIGBUS, SigHandler::SigDfl) };
            work();
            // SAFETY: ends the child at once, without what the parent has registered.
            unsafe { libc::_exit(0) }
        }
        nix::unistd::ForkResult::Parent { child } => match waitpid(child, None).expect("our own child") {
            WaitStatus::Signaled(_, signal, _) => Some(signal),
            _ => None,
        },
    }
}

/// Whoever cuts a file that he has mapped is killed by the kernel when he touches what is gone; nobody else is.
#[test]
fn a_client_that_cuts_what_it_has_mapped() {
    const PAGE: usize = 4096;
    let bus = Some(nix::sys::signal::Signal::SIGBUS);
    for passthrough in ["auto", "off"] {
        let m = Mount::with(&["--size", "4G", "--passthrough", passthrough]);
        let draft = m.draft("cut", |out| write(out.join("f"), vec![b'.'; 3 * PAGE]));
        let file = fs::File::options().read(true).write(true).open(draft.join("outputs/f")).expect("open");
        let (all, first) = (Mapping::shared(&file, 3 * PAGE, true), Mapping::shared(&file, PAGE, true));
        all.set(2 * PAGE, b'M');
        let touches = |at: usize| all.set(at, b'X');
        let cuts = || {
            file.set_len(PAGE as u64).expect("ftruncate");
            touches(2 * PAGE);
        };
        assert_eq!(forked(cuts), bus, "passthrough {passthrough}");
        assert_eq!(forked(|| touches(PAGE)), bus, "passthrough {passthrough}");
        assert_eq!(forked(|| touches(10)), None, "passthrough {passthrough}");
        assert_eq!(first.bytes()[10], b'X', "passthrough {passthrough}: what is still there is shared");
        assert_eq!(fs::metadata(draft.join("outputs/f")).expect("stat").len(), PAGE as u64);
        file.set_len(2 * PAGE as u64).expect("ftruncate");
        assert_eq!(forked(|| touches(PAGE)), None, "passthrough {passthrough}");
        drop((all, first, file));

        eventually("the mappings to be gone", || fs::rename(&draft, m.path("key-cut")).is_ok());
        let mut expected = vec![b'.'; PAGE];
        expected.resize(2 * PAGE, 0);
        (expected[10], expected[PAGE]) = (b'X', b'X');
        assert!(read(m.path("key-cut/outputs/f")) == expected, "passthrough {passthrough}");
    }
}

/// Processes of one client, each with as many files open as it may have.
struct Hoarders(Vec<(Child, BufReader<ChildStdout>)>);

impl Hoarders {
    /// Has files opened by this redirection, in which `$1` is `dir` and `$n` the file's number, until `count` are open
    /// or one is refused; gives the number of open ones.
    fn open(redirection: &str, dir: &Path, count: usize) -> (Hoarders, usize) {
        const SCRIPT: &str = r#"
            ulimit -n "$(ulimit -Hn)"
            for ((n = $2; n < $3; n++)); do
                { exec {fd}REDIRECTION; } 2>/dev/null || break
            done
            echo $((n - $2))
            read -r"#;
        common::need("bash");
        let script = SCRIPT.replace("REDIRECTION", redirection);
        // Some stay for the shell itself.
        let each = most_descriptors() - 100;
        let start = |first: usize| {
            let mut c = Command::new("bash");
            c.args(["-c", &script, "bash"]).arg(dir);
            c.args([first, (first + each).min(count)].map(|n| n.to_string()));
            let mut child = c.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("bash starts");
            let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
            (child, stdout)
        };
        let mut all = Hoarders((0..count).step_by(each).map(start).collect());
        let number = |(_, stdout): &mut (Child, BufReader<ChildStdout>)| {
            let mut line = String::new();
            stdout.read_line(&mut line).expect("a line");
            line.trim().parse::<usize>().unwrap_or_else(|e| panic!("{e} in {line:?}"))
        };
        let opened = all.0.iter_mut().map(number).sum();
        (all, opened)
    }
}

impl Drop for Hoarders {
    fn drop(&mut self) {
        for (child, _) in &mut self.0 {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}

/// What a process may raise its limit of descriptors to.
fn most_descriptors() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit").1.min(1 << 30) as usize
}

/// What the daemon's rings take: two for each, and each has a thread.
fn descriptors_of_rings(m: &Mount) -> usize {
    let threads = fs::read_dir(format!("/proc/{}/task", m.pid())).expect("the daemon's");
    let name =
        |t: std::io::Result<fs::DirEntry>| fs::read_to_string(t.expect("a thread").path().join("comm"));
    2 * threads.filter_map(|t| name(t).ok()).filter(|name| name.starts_with("ring-")).count()
}

/// What has no name any more and is held by somebody takes the daemon a descriptor each, whether or not it was told that it is open
/// (O_PATH is not told). When these are used up removing fails, and others go on reading and storing.
#[test]
fn very_many_files_without_names() {
    // A quarter of them is left by open files, and of that a half by what has no name.
    const DESCRIPTORS: u64 = 800;
    const FILES: usize = 750;
    let mut m = Mount::unmounted(&["--size", "4G"]).with_descriptors(DESCRIPTORS);
    m.start();
    let hard = most_descriptors() as u64;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard)
        .expect("setrlimit");
    m.entry("key-read", |out| write(out.join("f"), "content"));
    let draft = m.draft("hoard", |_| {}).join("outputs");
    let name = |n: usize| draft.join(n.to_string());
    let held: Vec<fs::File> = (0..FILES)
        .map(|n| {
            write(name(n), n.to_string());
            let named = fs::File::options().read(true).custom_flags(libc::O_PATH).open(name(n));
            named.expect("a descriptor that only names")
        })
        .collect();
    let removed: Vec<_> = (0..FILES).map(|n| fs::remove_file(name(n))).collect();
    let refused = removed.iter().filter(|r| r.is_err()).count();
    let most = FILES - 600 + descriptors_of_rings(&m);
    assert!((1..=most).contains(&refused), "{refused} were not removed");
    for (n, removed) in removed.into_iter().enumerate().filter(|(_, r)| r.is_err()) {
        assert_errno!(removed, ENFILE);
        assert!(name(n).exists(), "it is still there");
    }
    assert_eq!(held[0].metadata().expect("it lives on").nlink(), 0);
    assert_errno!(fs::File::create(draft.join("one-more")), ENFILE);
    assert_eq!(read(m.path("key-read/outputs/f")), b"content");
    let tree = m.outside("tree");
    mkdir(&tree);
    m.ok(&["put", "key-other", tree.to_str().expect("text")]);
    drop(held);
    eventually("files to be removed again", || {
        (0..FILES).all(|n| fs::remove_file(name(n)).is_ok() || !name(n).exists())
    });
    m.entry_of("key-after", "others go on");
    fs::rename(m.work("hoard"), m.path(".outfs/trash/hoard")).expect("thrown away");
}

/// A kernel may say that files were closed after it has asked for the next one.
#[test]
fn who_wants_a_file_waits_a_moment_for_those_that_are_closed() {
    let mut m = Mount::unmounted(&["--size", "4G"]).with_descriptors(400);
    m.start();
    let draft = m.draft("hoard", |_| {}).join("outputs");
    let mut held = Vec::new();
    let refused = loop {
        match fs::File::create(draft.join(held.len().to_string())) {
            Ok(file) => held.push(file),
            Err(e) => break e,
        }
    };
    assert_eq!(refused.raw_os_error(), Some(libc::ENFILE));
    // One that comes back can be had, and from then on there is hope again.
    held.pop();
    let name = draft.join("again");
    held.push(eventually_some("a descriptor to come back", || fs::File::create(&name).ok()));
    let closing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(held);
    });
    fs::File::create(draft.join("one-more")).expect("it waits");
    closing.join().expect("no panic");
}

/// A hundred thousand files that are open in a view without opens cost the daemon nothing. Those of drafts take
/// a descriptor each; when there are no more to spare the client gets ENFILE, and others go on reading and storing.
#[test]
fn very_many_open_files() {
    const MANY: usize = 100_000;
    let mut m = Mount::new();
    let names =
        m.entry("key-many", |out| (0..1000).for_each(|n| write(out.join(n.to_string()), n.to_string())));
    let view = m.add_view("view", &["--read-only"]);
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", m.pid())).expect("the daemon's").count();
    let before = descriptors();
    let (all, opened) = Hoarders::open(r#"<"$1/$((n % 1000))""#, &view.join("key-many/outputs"), MANY);
    assert_eq!(opened, MANY);
    assert!(descriptors() < before + 50, "{before} and {} descriptors", descriptors());
    drop(all);

    let draft = m.draft("hoard", |_| {}).join("outputs");
    let (all, opened) = Hoarders::open(r#">"$1/$n""#, &draft, MANY);
    let to_spare = most_descriptors() - (most_descriptors() / 4).min(1024);
    assert_eq!(opened, MANY.min(to_spare - descriptors_of_rings(&m)));
    if opened < MANY {
        assert_errno!(fs::File::create(draft.join("one-more")), ENFILE);
        assert_errno!(fs::File::open(draft.join("0")), ENFILE);
    }
    assert_eq!(read(names.join("outputs/7")), b"7");
    m.ok(&["put", "key-other", view.join("key-many/outputs").to_str().expect("text")]);
    assert_eq!(read(m.path("key-other/outputs/8")), b"8");
    drop(all);
    eventually("the descriptors to be free", || descriptors() < before + 50);
    m.entry_of("key-after", "others go on");
    fs::rename(m.work("hoard"), m.path(".outfs/trash/hoard")).expect("thrown away");
}
