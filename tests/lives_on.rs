//! What is in use lives on: through sealing, replacing, eviction attempts, compaction and trash.

#[macro_use]
mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use common::*;

/// A shell whose working directory lies in the mount, asked now and then what it sees.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn at(dir: &Path) -> Shell {
        let mut c = Command::new("sh");
        let mut child =
            c.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Shell { child, input, output }
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.input, "{question}; echo").expect("the shell lives");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the shell answers");
        line.trim_end().to_owned()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that can be in use, all of it in the outputs of one entry.
struct InUse {
    file: File,
    map: Mapping,
    map_small: Mapping,
    program: Child,
    program_in: Option<ChildStdin>,
    program_out: BufReader<ChildStdout>,
    shell: Shell,
    bind: Mounted,
    _dir: tempfile::TempDir,
}

/// What an entry holds: a small and a large file, a program, a directory.
fn fill(out: &Path) {
    write(out.join("small"), noise(1, 5000));
    write(out.join("large"), noise(2, 1 << 20));
    mkdir(out.join("dir"));
    write(out.join("dir/in"), "inside");
    // `cat` answers each line it is given, and pages itself in from the mount.
    fs::copy("/bin/cat", out.join("cat")).expect("a program");
    chmod(out.join("cat"), 0o755).expect("chmod");
}

impl InUse {
    fn of(outputs: &Path) -> InUse {
        need_root();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let open = |n: &str| File::open(outputs.join(n)).expect("open");
        let mut program = Command::new(outputs.join("cat"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts from the mount");
        InUse {
            file: open("small"),
            map: Mapping::shared(&open("large"), 1 << 20, false),
            map_small: Mapping::shared(&open("small"), 5000, false),
            program_in: program.stdin.take(),
            program_out: BufReader::new(program.stdout.take().expect("a pipe")),
            program,
            shell: Shell::at(&outputs.join("dir")),
            bind: Mounted::bind(outputs, &dir.path().join("bound")),
            _dir: dir,
        }
    }

    #[track_caller]
    fn check(&mut self, when: &str) {
        let mut bytes = vec![0; 5000];
        self.file.read_exact_at(&mut bytes, 0).unwrap_or_else(|e| panic!("the open file {when}: {e}"));
        assert!(bytes == noise(1, 5000), "the open file {when}");
        assert!(self.map.bytes() == noise(2, 1 << 20), "the mapping {when}");
        assert!(self.map_small.bytes() == noise(1, 5000), "the small mapping {when}");
        self.program_in.as_mut().expect("open").write_all(b"ping\n").expect("the program lives");
        let mut line = String::new();
        self.program_out.read_line(&mut line).expect("the program answers");
        assert_eq!(line, "ping\n", "the running program {when}");
        assert_eq!(self.shell.ask("cat in"), "inside", "the shell's working directory {when}");
        assert!(read(self.bind.0.join("large")) == noise(2, 1 << 20), "the bind mount {when}");
        assert_eq!(read(self.bind.0.join("dir/in")), b"inside", "the bind mount {when}");
        assert!(is_mounted(&self.bind.0), "the bind mount {when}");
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        drop(self.program_in.take());
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// "A bind mount of a sealed entry, an open file, a mapping, a running binary and a shell's working
/// directory each live on through … eviction attempts …"
#[test]
fn through_eviction_attempts() {
    let m = Mount::with(&["--size", "40M", "--reserve", "0", "--min-age", "0s"]);
    let top = m.entry("key1", fill);
    let mut used = InUse::of(&top.join("outputs"));
    used.check("before anything happens");
    for i in 0..12u64 {
        m.entry_of(&format!("filler{i}"), noise(50 + i, 6 << 20));
        used.check("while entries are evicted");
    }
    m.ok(&["gc"]);
    used.check("after gc");
    eventually("eviction of others", || names(m.mnt()).len() < 9);
    assert!(m.is_sealed("key1"), "an entry in use is not evicted to make room");
    m.evict("key1");
    assert_errno!(fs::symlink_metadata(m.path("key1")), ENOENT);
    used.check("after an explicit eviction");
    assert_eq!(used.shell.ask("pwd -P >/dev/null && echo there"), "there", "getcwd works");
    drop(used);
    m.ok(&["gc"]);
}

/// The same in read-only views, one that passes large files through and one that does not.
#[test]
fn in_read_only_views() {
    let mut m = Mount::with(&["--size", "40M", "--reserve", "0", "--min-age", "0s"]);
    m.entry("key1", fill);
    let possible = m.json(&["status"])["views"][0]["passthrough"] == true;
    let mut used = Vec::new();
    for way in if possible { &["require", "off"][..] } else { &["off"] } {
        let view = m.add_view(way, &["--read-only", "--passthrough", way]);
        used.push((way, InUse::of(&view.join("key1/outputs"))));
    }
    let mut check = |when: &str| used.iter_mut().for_each(|(way, u)| u.check(&format!("{when}, {way}")));
    check("before anything happens");
    for i in 0..8u64 {
        m.entry_of(&format!("filler{i}"), noise(70 + i, 6 << 20));
        check("while entries are evicted");
    }
    m.evict("key1");
    check("after its own eviction");
    m.ok(&["gc"]);
    check("after gc");
    drop(used);
    eventually("its space is free", || m.manifests() == names(m.mnt()).len());
}

/// "… and `mv` to trash."
#[test]
fn through_the_trash() {
    let m = Mount::new();
    let top = m.entry("key1", fill);
    let mut used = InUse::of(&top.join("outputs"));
    sh("mv", &[&top, &m.path(".outfs/trash/")]);
    used.check("in the trash");
    m.entry("key1", |out| write(out.join("small"), "another result of the same key"));
    used.check("when the key has another result");
    assert_eq!(read(m.path("key1/outputs/small")), b"another result of the same key");
    let manifests = m.manifests();
    assert_eq!(manifests, 2, "what is in use is kept");
    drop(used);
    eventually("the trashed entry to be freed", || m.manifests() == 1);
}

/// "… through … re-publishing the same key …" (a view with `--overwrite replace`)
#[test]
fn through_replacing() {
    let m = Mount::with(&["--size", "4G", "--overwrite", "replace"]);
    let top = m.entry("key1", fill);
    let mut used = InUse::of(&top.join("outputs"));
    used.check("before the replacement");
    write(top.join("outputs/small"), "replaced");
    fs::remove_file(top.join("outputs/large")).expect("unlink");
    used.check("while the replacing draft is written");
    m.seal(&["key1"]);
    used.check("after the replacement");
    assert_eq!(read(m.path("key1/outputs/small")), b"replaced");
    assert!(!m.path("key1/outputs/large").exists());
    drop(used);
    eventually("the replaced entry to be freed", || m.manifests() == 1);
}

/// "… through … re-publishing the same key …" (with the same outputs, and a refused one)
#[test]
fn through_publishing_again() {
    let m = Mount::new();
    let top = m.entry("key1", fill);
    let mut used = InUse::of(&top.join("outputs"));
    m.draft("same", fill);
    m.seal(&["same", "key1"]);
    used.check("after the same result was sealed");
    let other = m.draft("other", |out| write(out.join("small"), "different"));
    assert_errno!(fs::rename(&other, m.path("key1")), EEXIST);
    used.check("after another result was refused");
}

/// "… each live on through sealing …"
#[test]
fn through_sealing() {
    for (passthrough, gesture) in [("auto", "rename"), ("off", "rename"), ("auto", "seal"), ("off", "chmod")]
    {
        let mut m = Mount::with(&["--size", "4G", "--passthrough", passthrough]);
        let (from, to) = match gesture {
            "rename" => (m.work("w"), m.path("key1")),
            _ => (m.path("key1"), m.path("key1")),
        };
        mkdir(&from);
        fill_entry(&from, fill);
        let mut used = InUse::of(&from.join("outputs"));
        used.check("in the draft");
        match gesture {
            "rename" => fs::rename(&from, &to).expect("seal"),
            "seal" => m.seal(&["key1"]),
            _ => chmod(&to, 0o555).expect("seal"),
        }
        assert!(m.is_sealed("key1"));
        used.check(&format!("after sealing by {gesture}, passthrough {passthrough}"));
        assert!(read(to.join("outputs/large")) == noise(2, 1 << 20));
        let mut dir = used.shell.ask("pwd -P");
        dir.truncate(dir.len().min(200));
        assert!(dir.ends_with("outputs/dir"), "getcwd says {dir}");
        // What was opened before is read anew after the caches are gone.
        let mut again = Vec::new();
        File::open(used.bind.0.join("small")).expect("open").read_to_end(&mut again).expect("read");
        assert!(again == noise(1, 5000));
        drop(used);
        m.restart();
        assert!(read(m.path("key1/outputs/large")) == noise(2, 1 << 20));
    }
}

/// "… through … compaction …"
#[test]
fn through_compaction() {
    let m = Mount::with(&["--size", "4G", "--min-age", "0s"]);
    // Small files only, sealed together with much that dies at once: their packs become mostly dead.
    let fill_small = |out: &Path| {
        write(out.join("small"), noise(1, 5000));
        (0..40).for_each(|i| write(out.join(format!("s{i}")), noise(100 + i, 4000)));
    };
    let top = m.entry("key1", fill_small);
    // Shares `small` and one other file with key1, so that these outlive it.
    m.entry("key2", |out| {
        write(out.join("small"), noise(1, 5000));
        write(out.join("s0"), noise(100, 4000));
    });
    let kept = m.path("key2/outputs");
    let file = File::open(kept.join("small")).expect("open");
    let map = Mapping::shared(&file, 5000, false);
    let mut shell = Shell::at(&kept);
    let packs = || -> u64 {
        files_below(&m.store().join("packs")).iter().filter_map(|p| Some(fs::metadata(p).ok()?.len())).sum()
    };
    let before = packs();
    drop(top);
    m.evict("key1");
    m.ok(&["gc"]);
    eventually("the dead part of the packs to go", || packs() < before / 2);
    let mut bytes = vec![0; 5000];
    file.read_exact_at(&mut bytes, 0).expect("the open file");
    assert!(bytes == noise(1, 5000) && map.bytes() == noise(1, 5000));
    assert_eq!(shell.ask("wc -c <small"), "5000");
    assert!(read(kept.join("s0")) == noise(100, 4000), "what was not open yet is found at its new place");
    assert_eq!(m.code(&["fsck", "--verify-data"]), 0);
}

/// One pass over a mapped file, which the kernel copies: what cannot be had is an error and no signal.
fn copy_mapped(file: &File, len: usize) -> std::io::Result<()> {
    use std::io::Seek;
    use std::os::fd::AsRawFd;
    let mut copy = tempfile::tempfile()?;
    let mut at = 0;
    while at < len {
        let size = (len - at).min(1 << 18);
        // SAFETY: a new mapping where the kernel chooses; written from, and unmapped once, before it is forgotten.
        let wrote = unsafe {
            let fd = file.as_raw_fd();
            let map =
                libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ, libc::MAP_SHARED, fd, at as i64);
            assert!(map != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
            let wrote = libc::write(copy.as_raw_fd(), map, size);
            let failed = std::io::Error::last_os_error();
            libc::munmap(map, size);
            if wrote < 0 { Err(failed) } else { Ok(wrote as usize) }
        }?;
        at += wrote;
        copy.rewind()?;
    }
    // The next pass asks the daemon again.
    let dontneed = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    Ok(nix::fcntl::posix_fadvise(file, 0, 0, dontneed)?)
}

/// Whoever reads, maps, syncs or looks up when the daemon is killed gets an error, and soon; the next mount on the same place
/// works.
#[test]
fn a_kill_leaves_nobody_waiting() {
    // A few milliseconds as a rule.
    const SOON_BACK: Duration = Duration::from_secs(5);
    const LARGE: usize = 8 << 20;
    let mut m = Mount::with(&["--size", "4G", "--passthrough", "off", "--transport", "dev"]);
    let entry = m.entry("key-read", |out| {
        write(out.join("large"), noise(1, LARGE));
        (0..200).for_each(|n| write(out.join(n.to_string()), noise(n, 5000)));
    });
    let draft = m.draft("written", |_| {}).join("outputs");
    type Once = Box<dyn FnMut(u64) -> std::io::Result<()> + Send>;
    let open = |path: &Path| File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (outputs, mapped, large) =
        (entry.join("outputs"), open(&entry.join("outputs/large")), open(&entry.join("outputs/large")));
    let one = move |n: u64| fs::read(outputs.join((n % 200).to_string())).map(drop);
    let mut synced = File::create(draft.join("synced")).expect("create");
    let (looked, made) = (draft.clone(), draft.clone());
    let users: Vec<(&str, Once)> = vec![
        ("open and read", Box::new(one.clone())),
        ("open and read, too", Box::new(one)),
        (
            "read of what is open",
            Box::new(move |n| {
                let dontneed = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                nix::fcntl::posix_fadvise(&large, 0, 0, dontneed)?;
                large.read_exact_at(&mut [0; 4096], n * 131_072 % LARGE as u64)
            }),
        ),
        ("read of what is mapped", Box::new(move |_| copy_mapped(&mapped, LARGE))),
        ("fsync", Box::new(move |_| synced.write_all(b"more").and_then(|()| synced.sync_all()))),
        (
            "look-up",
            Box::new(move |n| match fs::symlink_metadata(looked.join(format!("absent{n}"))) {
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                other => other.map(drop),
            }),
        ),
        (
            "create and unlink",
            Box::new(move |n| {
                let name = made.join(format!("made{n}"));
                File::create(&name).and_then(|_| fs::remove_file(&name))
            }),
        ),
    ];
    let (count, busy) = (users.len(), std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let (back, all) = std::sync::mpsc::channel();
    for (what, mut once) in users {
        let (busy, back) = (busy.clone(), back.clone());
        std::thread::spawn(move || {
            let mut n = 0;
            let failed = loop {
                if let Err(e) = once(n) {
                    break e;
                }
                n += 1;
                // Well under way.
                if n == 3 {
                    busy.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
            };
            let _ = back.send((what, n, failed));
        });
    }
    eventually("all to be at it", || busy.load(std::sync::atomic::Ordering::SeqCst) == count);
    m.kill9();
    let killed = Instant::now();
    let mut returned: Vec<&str> = Vec::new();
    for _ in 0..count {
        let left = SOON_BACK.saturating_sub(killed.elapsed());
        let (what, n, failed) = all
            .recv_timeout(left)
            .unwrap_or_else(|_| panic!("only {returned:?} are back after {SOON_BACK:?}"));
        assert!(n >= 3, "{what} failed before: {failed}");
        let dead = [libc::ENOTCONN, libc::ECONNABORTED, libc::EIO, libc::EFAULT];
        assert!(dead.contains(&failed.raw_os_error().unwrap_or(0)), "{what}: {failed}");
        returned.push(what);
    }
    println!("all were back {:.0?} after the kill", killed.elapsed());
    m.start();
    assert_eq!(read(entry.join("outputs/7")), noise(7, 5000));
    m.entry_of("key-after", "stored again");
}
