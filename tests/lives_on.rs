//! What is in use lives on: through sealing, replacing, eviction attempts, compaction and trash.

#[macro_use]
mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

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
