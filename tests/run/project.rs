//! A small project, a store and a memory of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::common::{need, outfs};

pub struct Project {
    pub dir: tempfile::TempDir,
    pub cwd: PathBuf,
    pub store: PathBuf,
}

/// All that a process said.
pub fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

impl Project {
    /// An empty one, in git.
    pub fn new() -> Project {
        Project::below(&std::env::temp_dir())
    }

    /// One of very many files: in memory, where there is room for them.
    pub fn large() -> Project {
        let memory = Path::new("/dev/shm");
        let room = nix::sys::statvfs::statvfs(memory).map(|s| s.blocks_available() * s.fragment_size());
        match room.is_ok_and(|bytes| bytes > 1 << 30) {
            true => Project::below(memory),
            false => Project::new(),
        }
    }

    fn below(place: &Path) -> Project {
        need("git");
        let dir =
            tempfile::Builder::new().prefix("outfs-test-").tempdir_in(place).expect("a temporary directory");
        let root = dir.path().canonicalize().expect("it exists");
        let project = Project { cwd: root.join("project"), store: root.join("store"), dir };
        fs::create_dir(&project.cwd).expect("mkdir");
        project.git(&["init", "-q"]);
        project
    }

    /// A C program of two files and a header.
    pub fn in_c() -> Project {
        need("cc");
        need("make");
        let p = Project::new();
        p.write("main.c", "#include \"h.h\"\nint other(void);\nint main(void) { return other() - N; }\n");
        p.write("other.c", "#include \"h.h\"\nint other(void) { return N; }\n");
        p.write("h.h", "#define N 1\n");
        p.write(
            "Makefile",
            "out/app: out/main.o out/other.o\n\tcc -o $@ $^\n\t@echo linked; echo warned >&2\n\
             out/%.o: %.c h.h\n\t@mkdir -p out\n\tcc -c -o $@ $<\n",
        );
        p.write(".gitignore", "out\n");
        p
    }

    pub fn git(&self, args: &[&str]) {
        let done = Command::new("git").args(args).current_dir(&self.cwd).status().expect("git starts");
        assert!(done.success(), "git {args:?}");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.cwd.join(name)
    }

    #[track_caller]
    pub fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("below the project")).expect("mkdir");
        fs::write(path, content).expect("write");
    }

    #[track_caller]
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("reading {name}: {e}"))
    }

    /// `outfs ARGS` here.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = outfs();
        c.env("OUTFS_STORE", &self.store).env("XDG_CACHE_HOME", self.dir.path().join("memory"));
        c.current_dir(&self.cwd).args(args);
        c
    }

    #[track_caller]
    pub fn outfs(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("outfs starts")
    }

    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.outfs(args);
        assert!(out.status.success(), "outfs {args:?}: {}", said(&out));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// `outfs run --json OPTIONS -- sh -c SCRIPT`: what it said, and its record.
    #[track_caller]
    pub fn sh(&self, options: &[&str], script: &str) -> Ran {
        self.run(options, &["sh", "-c", script])
    }

    #[track_caller]
    pub fn run(&self, options: &[&str], command: &[&str]) -> Ran {
        Ran::of(self.command(&[&["run", "--json"], options, &["--"], command].concat()))
    }

    /// `make`, as a cached run.
    #[track_caller]
    pub fn make(&self, options: &[&str]) -> Ran {
        let task = ["--task", "build", "--output", "out"];
        self.run(&[&task, options].concat(), &["make", "-s", "out/app"])
    }

    pub fn events(&self) -> Vec<Value> {
        let page = self.ok(&["events", "--json", "--limit", "10000"]);
        let lines = page.lines().map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
        lines.filter(|line| line["event"].is_string()).collect()
    }
}

/// A run that has ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    /// Standard output without the record.
    pub stdout: String,
    pub stderr: String,
    pub record: Value,
}

impl Ran {
    #[track_caller]
    pub fn of(mut command: Command) -> Ran {
        Ran::ended(command.output().expect("outfs starts"))
    }

    #[track_caller]
    pub fn ended(out: Output) -> Ran {
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let last = text.lines().last().unwrap_or_default();
        let record = serde_json::from_str(last).unwrap_or(Value::Null);
        let stdout =
            if record.is_null() { text.clone() } else { text[..text.len() - last.len() - 1].to_owned() };
        Ran {
            code: out.status.code().expect("it was not killed"),
            stdout,
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
            record,
        }
    }

    pub fn key(&self) -> &str {
        self.record["key"].as_str().unwrap_or_default()
    }

    #[track_caller]
    pub fn is_hit(&self) -> &Ran {
        assert_eq!((&self.record["result"], self.code), (&"hit".into(), 0), "{self:#?}");
        assert!(self.stderr.contains("outfs: hit "), "{self:#?}");
        self
    }

    /// A run for exactly these reasons.
    #[track_caller]
    pub fn is_miss(&self, reasons: &[&str]) -> &Ran {
        let why = self.record["reasons"].as_array().cloned().unwrap_or_default();
        let why: Vec<&str> = why.iter().filter_map(|r| r["why"].as_str()).collect();
        assert_eq!((&self.record["result"], &why[..]), (&"miss".into(), reasons), "{self:#?}");
        self
    }

    #[track_caller]
    pub fn kept(&self, kept: bool) -> &Ran {
        assert_eq!(self.record["kept"], kept, "{self:#?}");
        self
    }

    #[track_caller]
    pub fn says(&self, part: &str) -> &Ran {
        assert!(self.stderr.contains(part), "{part:?} in {self:#?}");
        self
    }
}

/// The tree as a plain build has it: names and contents.
pub fn tree(top: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => waiting.push(path),
                false => all.push((
                    path.strip_prefix(top).expect("below").to_owned(),
                    fs::read(&path).expect("a file"),
                )),
            }
        }
    }
    all.sort();
    all
}
