//! The lock file: what each task's last run was made of, to be committed beside the sources.
//!
//! Invariants: TOML with a schema version, tasks and their parts in a fixed order, one input a line,
//! so that it merges; written aside and renamed; one that is damaged is an error that names the line, never
//! half believed: a task's key must be the key of its parts. A task whose key has another form than this program's is kept as it
//! is written, until that task runs here. Must not know: what is decided by it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::key::{Parts, VERSION};
use super::{Result, RunError};
use crate::cache::temp_name;
use crate::model::EntryKey;

/// The version of the file's form.
const SCHEMA: u32 = 1;
/// The form of keys of tasks that do not name one.
const UNNAMED: u32 = 2;

/// What the file says of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The key of its last run.
    pub key: EntryKey,
    /// What the outputs hash to; absent after a run without a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs_hash: Option<String>,
    /// How the run ended, if without a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// What the key is made of.
    #[serde(flatten)]
    pub parts: Parts,
}

/// A lock file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lock {
    /// By task.
    pub tasks: BTreeMap<String, Block>,
    /// Tasks whose keys have another form.
    pub others: BTreeMap<String, Other>,
}

/// What the file says of a task whose key is not made as this program makes keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// The version of its key's form.
    pub form: u32,
    /// As it is written.
    lines: String,
}

/// As it is parsed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    version: toml::Spanned<u32>,
    #[serde(default)]
    task: BTreeMap<String, toml::Spanned<Block>>,
}

impl Lock {
    /// Reads one; `None` when there is no such file.
    pub fn read(path: &Path) -> Result<Option<Lock>> {
        match std::fs::read(path) {
            Ok(bytes) => Lock::parse(path, &bytes).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(RunError::io("read", path, e)),
        }
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Lock> {
        let damaged = |bytes: &[u8], at: usize, why: String| {
            let line = 1 + bytes[..at.min(bytes.len())].iter().filter(|&&b| b == b'\n').count();
            Err(RunError::Lock { path: path.to_owned(), line, why })
        };
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => return damaged(bytes, e.valid_up_to(), "not UTF-8".into()),
        };
        let (text, others) = set_apart(text);
        let damaged = |at: usize, why: String| damaged(text.as_bytes(), at, why);
        let form: Form = match toml::from_str(&text) {
            Ok(form) => form,
            Err(e) => return damaged(e.span().map_or(0, |s| s.start), e.message().to_owned()),
        };
        if *form.version.get_ref() != SCHEMA {
            let why = format!("version {}, this program knows {SCHEMA}", form.version.get_ref());
            return damaged(form.version.span().start, why);
        }
        let mut lock = Lock { others, ..Lock::default() };
        for (task, block) in form.task {
            let at = block.span().start;
            let block = block.into_inner();
            let mut again = block.parts.clone();
            again.set_inputs(again.inputs.clone());
            if again != block.parts || again.key() != block.key {
                return damaged(at, format!("the key of the task {task} is not the key of its parts"));
            }
            lock.tasks.insert(task, block);
        }
        Ok(lock)
    }

    /// The file that is read and written at `path`: what that leads to, if it is a symlink.
    pub fn behind(path: &Path) -> PathBuf {
        let mut path = path.to_owned();
        // As many as the kernel follows.
        for _ in 0..40 {
            let Ok(target) = std::fs::read_link(&path) else { break };
            path = dir_of(&path).join(target);
        }
        path
    }

    /// Puts a task into the file at `path` as it is then: others may have written it meanwhile.
    pub fn update(path: &Path, task: String, block: Block) -> Result<()> {
        let path = &Lock::behind(path);
        let dir = std::fs::File::open(dir_of(path)).map_err(|e| RunError::io("open", dir_of(path), e))?;
        // Held until the end; whoever does not know of it is no worse off than with two editors.
        let _turn = nix::fcntl::Flock::lock(dir, nix::fcntl::FlockArg::LockExclusive)
            .map_err(|(_, e)| RunError::io("lock", path, e.into()))?;
        let mut lock = Lock::read(path)?.unwrap_or_default();
        lock.others.remove(&task);
        lock.tasks.insert(task, block);
        lock.write(path)
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let mut out =
            format!("# Written by 'outfs run --lock': commit it, do not edit it.\nversion = {SCHEMA}\n");
        let mut all: BTreeMap<&String, String> =
            self.others.iter().map(|(task, other)| (task, format!("\n{}", other.lines))).collect();
        for (task, block) in &self.tasks {
            block.write(all.entry(task).or_default(), task);
        }
        out.extend(all.into_values());
        out
    }

    /// Writes it aside and renames it.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = self.to_text();
        let write = || {
            let mut new = aside(dir_of(path))?;
            new.write_all(text.as_bytes())?;
            Ok(new)
        };
        put(path, write).map_err(|e| RunError::io("write", path, e))
    }
}

/// Has what is written aside stand at `path`. If it is gone it is written once more: a run in a container, where processes have other numbers,
/// takes it for what a dead one left, and sweeps once.
fn put(path: &Path, mut write: impl FnMut() -> io::Result<NamedTempFile>) -> io::Result<()> {
    let put = match write()?.persist(path) {
        Err(e) if e.error.kind() == io::ErrorKind::NotFound => write()?.persist(path),
        put => put,
    };
    put.map(drop).map_err(|e| e.error)
}

/// A new file under a name that is nobody's input, as it would be another run's.
fn aside(dir: &Path) -> io::Result<NamedTempFile> {
    loop {
        let name = OsString::from_vec(temp_name());
        let mut new = tempfile::Builder::new();
        new.prefix(&name).rand_bytes(0).permissions(PermissionsExt::from_mode(0o666));
        match new.tempfile_in(dir) {
            // Left by a process that had the number of this one.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            made => return made,
        }
    }
}

/// Takes the tasks out whose keys have another form; the lines of the rest keep their numbers.
fn set_apart(text: &str) -> (String, BTreeMap<String, Other>) {
    let (mut rest, mut others) = (String::with_capacity(text.len()), BTreeMap::new());
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut from = 0;
    while from < lines.len() {
        let begun = lines[from].trim_end().strip_prefix("[task.").and_then(|l| l.strip_suffix(']'));
        let ends = |line: &&str| {
            let name = begun.and_then(|name| line.strip_prefix("[task.")?.strip_prefix(name));
            line.starts_with("[task.") && !name.is_some_and(|more| more.starts_with('.'))
        };
        let to = lines[from + 1..].iter().position(ends).map_or(lines.len(), |at| from + 1 + at);
        let block = &lines[from..to];
        let form = block.iter().find_map(|line| line.strip_prefix("key_version = "));
        let form = form.map_or(Ok(UNNAMED), |form| form.trim().parse());
        match (begun.map(serde_json::from_str::<String>), form) {
            (Some(Ok(task)), Ok(form)) if form != VERSION => {
                let lines = block.concat();
                rest.extend(block.iter().map(|_| '\n'));
                others.insert(task, Other { form, lines: format!("{}\n", lines.trim_end()) });
            }
            _ => rest.extend(block.iter().copied()),
        }
        from = to;
    }
    (rest, others)
}

fn dir_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// A TOML string: JSON's form, which has one character less to escape.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\x7f', "\\u007f")
}

impl Block {
    fn write(&self, out: &mut String, task: &str) {
        let p = &self.parts;
        let name = quoted(task);
        let _ = writeln!(out, "\n[task.{name}]");
        let _ = writeln!(out, "key_version = {VERSION}");
        let mut one = |field: &str, value: &str| {
            let _ = writeln!(out, "{field} = {}", quoted(value));
        };
        one("key", self.key.as_str());
        self.outputs_hash.iter().for_each(|hash| one("outputs_hash", hash));
        self.status.iter().for_each(|status| one("status", status));
        one("program", &p.program);
        one("cwd", &p.cwd);
        one("platform", &p.platform);
        one("sandbox", &p.sandbox);
        one("network", &p.network);
        one("inputs_hash", &p.inputs_hash);
        let _ = writeln!(out, "input_count = {}", p.input_count);
        let mut list = |field: &str, values: &mut dyn Iterator<Item = String>| {
            let lines: String = values.map(|v| format!("  {},\n", quoted(&v))).collect();
            let _ = match lines.is_empty() {
                true => writeln!(out, "{field} = []"),
                false => writeln!(out, "{field} = [\n{lines}]"),
            };
        };
        list("argv", &mut p.argv.iter().cloned());
        list("outputs", &mut p.outputs.iter().cloned());
        list("inputs", &mut p.inputs.iter().map(ToString::to_string));
        let maps = [
            ("tools", &p.tools),
            ("env", &p.env),
            ("secrets", &p.secrets),
            ("params", &p.params),
            ("after", &p.after),
            ("from", &p.from),
            ("sources", &p.sources),
            ("base", &p.base),
        ];
        for (field, map) in maps.into_iter().filter(|(_, map)| !map.is_empty()) {
            let _ = writeln!(out, "[task.{name}.{field}]");
            for (k, v) in map {
                let _ = writeln!(out, "{} = {}", quoted(k), quoted(v));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::tests::{input, parts};
    use super::*;

    fn lock() -> Lock {
        let mut odd = Parts { argv: vec!["a \"b\"\n\\ \u{7f}é".into()], ..Parts::default() };
        odd.set_inputs(vec![input("with space", "1"), input("x\ty", "2")]);
        let block = |parts: Parts, status: Option<&str>| Block {
            key: parts.key(),
            outputs_hash: status.is_none().then(|| "77".into()),
            status: status.map(Into::into),
            parts,
        };
        let tasks = [("build", block(parts(), None)), ("//a b:\"c\"", block(odd, Some("exit code 2")))];
        Lock { tasks: tasks.map(|(k, v)| (k.to_owned(), v)).into(), ..Lock::default() }
    }

    #[test]
    fn what_is_written_is_read_and_has_one_form() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outfs.lock");
        assert_eq!(Lock::read(&path).unwrap(), None);
        Lock::default().write(&path).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), Some(Lock::default()));
        lock().write(&path).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), Some(lock()));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), lock().to_text());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left aside");
        let text = lock().to_text();
        assert!(text.contains(&format!("\n[task.\"build\"]\nkey_version = {VERSION}\nkey = \"")), "{text}");
        assert!(text.lines().any(|l| l.starts_with("  \"f ") && l.ends_with(" sub/a.c\",")), "{text}");
    }

    #[test]
    fn what_another_one_swept_away_is_written_once_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outfs.lock");
        let mut written = 0;
        let mut write = |swept: usize| {
            written += 1;
            let new = aside(dir.path())?;
            if written <= swept {
                std::fs::remove_file(new.path())?;
            }
            Ok(new)
        };
        put(&path, || write(1)).unwrap();
        assert!(path.exists());
        assert_eq!(put(&path, || write(9)).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(written, 4);
    }

    #[test]
    fn while_it_is_written_it_is_nobodys_input() {
        use crate::run::{Apart, Inputs, Place, Remembered, gather};
        use std::sync::Arc;
        use std::sync::atomic::{AtomicBool, Ordering};
        const GATHERS: usize = 200;
        const LEFT: u64 = 20;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let path = root.join("outfs.lock");
        std::fs::write(root.join("f"), "").unwrap();
        // Of a process that had this number and died: they are met as names are given away, also when other tests take some.
        let given = || -> u64 {
            let name = String::from_utf8(temp_name()).unwrap();
            name.strip_suffix(".tmp").unwrap().rsplit('-').next().unwrap().parse().unwrap()
        };
        let first = given() + 1;
        for n in first..first + LEFT {
            std::fs::write(root.join(format!(".outfs-{}-{n}.tmp", std::process::id())), "").unwrap();
        }
        let apart = Apart { outputs: vec![path.clone()], stay: false, own: Vec::new() };
        let place = Place { root: root.clone(), cwd: root };
        let gathered_all = Arc::new(AtomicBool::new(false));
        let over = gathered_all.clone();
        let writing = std::thread::spawn(move || {
            let mut written = 0;
            while !over.load(Ordering::Relaxed) || written < GATHERS {
                Lock::update(&path, "build".into(), lock().tasks["build"].clone()).unwrap();
                written += 1;
            }
        });
        for _ in 0..GATHERS {
            let inputs = Inputs::Named(vec![".".into()]);
            let gathered = gather(&inputs, &place, &apart, &mut Remembered::open(None)).unwrap();
            let names: Vec<_> = gathered.inputs.into_iter().map(|input| input.path).collect();
            assert_eq!(names, ["f"]);
        }
        gathered_all.store(true, Ordering::Relaxed);
        writing.join().unwrap();
        assert!(given() >= first + LEFT, "names of the dead were met");
    }

    /// Of another version of this program: not damaged, and not lost.
    #[test]
    fn keys_of_another_form_are_left_alone() {
        let good = lock().to_text();
        let named = format!("key_version = {VERSION}\n");
        let parse = |text: &str| Lock::parse(Path::new("l"), text.as_bytes());
        // Files were written before the form had a name.
        assert_eq!(parse(&good.replace(&named, "")).unwrap(), lock());
        // Each of the two; what a later form has is not known here.
        for at in [1, 2] {
            let mut parts: Vec<String> = good.split("\n[task.").map(Into::into).collect();
            parts[at] = parts[at]
                .replace(&named, "key_version = 99\nnew = { a = [1] }\n")
                .replace("input_count", "n");
            let text = parts.join("\n[task.");
            let read = parse(&text).unwrap();
            assert_eq!((read.tasks.len(), read.others.len()), (1, 1), "{text}");
            assert_eq!((read.to_text(), read.others.values().next().unwrap().form), (text.clone(), 99));
            // Damage further down has the number of its line.
            let damaged = format!("{text}\n[task.\"z\"]\nkey = = 7\n");
            let Err(RunError::Lock { line, .. }) = parse(&damaged) else { panic!("{damaged}") };
            assert_eq!(line, damaged.lines().count());
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outfs.lock");
        std::fs::write(&path, good.replace(&named, "key_version = 1\n")).unwrap();
        Lock::update(&path, "build".into(), lock().tasks["build"].clone()).unwrap();
        let now = Lock::read(&path).unwrap().unwrap();
        assert_eq!(now.tasks.keys().collect::<Vec<_>>(), ["build"]);
        assert_eq!(
            now.others.iter().map(|(task, o)| (task.as_str(), o.form)).collect::<Vec<_>>(),
            [("//a b:\"c\"", 1)]
        );
    }

    #[test]
    fn damage_names_the_line() {
        let good = lock().to_text();
        let line_of = |part: &str| 1 + good[..good.find(part).unwrap()].matches('\n').count();
        let build = "[task.\"build\"]";
        let cases = [
            (good.replace("version = 1", "version = 2"), 2, "version 2"),
            (good.replace("cwd = \"sub\"", "cwd = \"else\""), line_of(build), "not the key of its parts"),
            (good.replace("sub/a.c", "sub/q.c"), line_of(build), "not the key of its parts"),
            (good.replace("cwd = \"sub\"", "cwd = \"sub"), line_of("cwd = \"sub\""), ""),
            (good.replace("cwd = \"sub\"\n", "<<<<<<< HEAD\ncwd = \"sub\"\n"), line_of("cwd = \"sub\""), ""),
            (good.replacen("  \"make\",", "  7,", 1), 0, ""),
        ];
        for (text, line, why) in cases {
            assert_ne!(text, good);
            match Lock::parse(Path::new("outfs.lock"), text.as_bytes()) {
                Err(e @ RunError::Lock { .. }) => {
                    let said = e.to_string();
                    assert!(said.contains(why), "{said}");
                    assert!(line == 0 || said.contains(&format!("line {line}:")), "line {line}: {said}");
                }
                other => panic!("{other:?} of {text}"),
            }
        }
        let torn = &good.as_bytes()[..good.len() / 2];
        assert!(matches!(Lock::parse(Path::new("l"), torn), Err(RunError::Lock { .. })));
        assert!(matches!(
            Lock::parse(Path::new("l"), b"version = 1\n\xff"),
            Err(RunError::Lock { line: 2, .. })
        ));
    }
}
