//! moon, a task runner that caches on servers of the Remote Execution API, and outfs on one server (buildbox-casd): each uses
//! what the other wrote there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::common::{Mount, files_below, read, sh, write};
use super::others::{Other, fetched};

/// The version stands in `scripts/test-tiers`, too.
fn program() -> Option<PathBuf> {
    fetched("moon-2.5.5/moon")
}

/// The instance that moon asks for when it is told nothing else.
const INSTANCE: &str = "moon-outputs";

const LIB: &str = r#"
tasks:
  build:
    script: 'echo lib >> "$MOON_WORKSPACE_ROOT/ran" && mkdir -p dist/deep && cp src.txt dist/one.txt && echo tool > dist/deep/tool
      && chmod 750 dist/deep/tool && chmod 600 dist/one.txt && seq 1000000 > dist/large && : > dist/empty && echo building'
    inputs: ['src.txt']
    outputs: ['dist']
"#;
const APP: &str = r#"
dependsOn: ['lib']
tasks:
  build:
    script: 'echo app >> "$MOON_WORKSPACE_ROOT/ran" && cat ../lib/dist/one.txt src.txt > out.txt'
    deps: ['^:build']
    inputs: ['src.txt']
    outputs: ['out.txt']
"#;

/// A workspace of two projects, the same each time, in a place of its own.
struct Workspace {
    moon: PathBuf,
    at: tempfile::TempDir,
}

/// A task that was run.
struct Task {
    key: String,
    /// Below the workspace.
    outputs: Vec<PathBuf>,
}

impl Workspace {
    fn new(moon: &Path) -> Workspace {
        let at = tempfile::Builder::new().prefix("outfs-test-").tempdir().expect("a temporary directory");
        for (path, text) in [
            (".moon/workspace.yml", "projects: ['lib', 'app']\ntelemetry: false\n"),
            (".gitignore", ".moon/cache\nhome\nran\ndist\nout.txt\n"),
            ("lib/moon.yml", LIB),
            ("lib/src.txt", "of the library\n"),
            ("app/moon.yml", APP),
            ("app/src.txt", "of the program\n"),
        ] {
            let path = at.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
            write(path, text);
        }
        // moon wants a commit.
        for args in ["init -q", "add .", "-c user.name=nobody -c user.email=nobody@localhost commit -qm all"]
        {
            let words: Vec<&str> =
                ["-C", at.path().to_str().expect("text")].into_iter().chain(args.split(' ')).collect();
            let words: Vec<&dyn AsRef<std::ffi::OsStr>> = words.iter().map(|word| word as _).collect();
            sh("git", &words);
        }
        Workspace { moon: moon.to_owned(), at }
    }

    fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.at.path().join(below)
    }

    /// Has all built, with this server as the cache; what moon says.
    fn build(&self, server: &Other) -> String {
        let out = Command::new(&self.moon)
            .args(["run", "app:build"])
            .current_dir(self.at.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").expect("a path"))
            .env("HOME", self.path("home"))
            // Not by the name localhost, which moon does not ask when nobody sits before it.
            .env("MOON_REMOTE_HOST", format!("grpc://127.0.0.1:{}", server.port))
            .output()
            .expect("moon starts");
        let said = [out.stdout, out.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(out.status.success(), "moon says: {said}");
        said
    }

    /// Which tasks were run, and not had from the cache.
    fn ran(&self) -> String {
        fs::read_to_string(self.path("ran")).unwrap_or_default()
    }

    /// The tasks with the keys that their entries have: the digest of an action is the task's hash, with the size of what
    /// was hashed.
    fn tasks(&self) -> Vec<Task> {
        let task = |project: &str, outputs: &str| {
            let last = read(self.path(format!(".moon/cache/states/{project}/build/lastRun.json")));
            let last: serde_json::Value = serde_json::from_slice(&last).expect("JSON");
            let hash = last["hash"].as_str().expect("a hash");
            let hashed = self.path(format!(".moon/cache/hashes/{hash}.json"));
            let key = format!("{hash}-{}", fs::metadata(hashed).expect("it is there").len());
            let at = self.path(project).join(outputs);
            let below = |path: PathBuf| path.strip_prefix(self.at.path()).expect("below").to_owned();
            let all = if at.is_dir() { files_below(&at) } else { vec![at] };
            Task { key, outputs: all.into_iter().map(below).collect() }
        };
        vec![task("lib", "dist"), task("app", "out.txt")]
    }
}

/// Content, mode and time.
fn seen(path: PathBuf) -> (Vec<u8>, u32, i64, i64) {
    let meta = fs::metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (read(path), meta.mode(), meta.mtime(), meta.mtime_nsec())
}

/// S15.14 What other tools wrote to a server of the Remote Execution API is shown under `<hash>-<size>` of its action; S15.16 With
/// `--push` entries become results of actions there, which other tools can use.
#[test]
fn moon_and_outfs_use_what_the_other_wrote() {
    let Some(moon) = program() else { return };
    let (Some(one), Some(other)) = (Other::casd(INSTANCE), Other::casd(INSTANCE)) else { return };
    let built = Workspace::new(&moon);
    let said = built.build(&one);
    assert_eq!(built.ran(), "lib\napp\n", "{said}");
    let tasks = built.tasks();
    assert_eq!(tasks.iter().map(|t| t.outputs.len()).collect::<Vec<_>>(), [4, 1]);

    let mut shows = Mount::with(&["--size", "1G", "--tier", &one.tier()]);
    let mut brings = Mount::with(&["--size", "1G", "--tier", &other.tier(), "--push"]);
    for task in &tasks {
        let top = shows.path(&task.key);
        let shown: Vec<_> = files_below(&top.join("outputs"));
        let below = |path: &PathBuf| path.strip_prefix(top.join("outputs")).expect("below").to_owned();
        let mut shown: Vec<_> = shown.iter().map(below).collect();
        let mut outputs = task.outputs.clone();
        shown.sort();
        outputs.sort();
        assert_eq!(shown, outputs);
        for path in &outputs {
            let (shown, made) = (seen(top.join("outputs").join(path)), seen(built.path(path)));
            assert!(shown.0 == made.0, "{} has other bytes", path.display());
            // What is sealed cannot be written to.
            assert_eq!((shown.1, shown.2, shown.3), (made.1 & !0o222, made.2, made.3), "{}", path.display());
        }
        let restored = shows.outside(&task.key);
        shows.ok(&["restore", &task.key, restored.to_str().expect("text")]);
        for path in &outputs {
            assert!(seen(restored.join(path)) == seen(built.path(path)), "{}", path.display());
        }
        let metadata: serde_json::Value =
            serde_json::from_slice(&read(top.join("metadata.json"))).expect("JSON");
        assert_eq!((&metadata["exit_code"], &metadata["worker"]), (&0.into(), &"moon".into()));
        let age = fs::metadata(&top).expect("it is there").modified().expect("a time").elapsed();
        assert!(age.expect("in the past").as_secs() < 3600, "it was sealed when it was sent");

        // The same in a store that knows nothing of it.
        brings.entry(&task.key, |to| {
            for path in &task.outputs {
                fs::create_dir_all(to.join(path).parent().expect("a parent")).expect("mkdir");
                fs::copy(built.path(path), to.join(path)).expect("copy");
            }
        });
    }
    // With the end of the line, or without: moon sends both.
    assert_eq!(read(shows.path(&tasks[0].key).join("logs/stdout.log")).trim_ascii_end(), b"building");
    shows.terminate();
    let pushed = brings.json(&["push", "--wait"]);
    assert_eq!((&pushed["push"]["waiting"], &pushed["push"]["brought"]), (&0.into(), &2.into()), "{pushed}");
    brings.terminate();

    // Another place, without a cache, with the server that has only what outfs brought.
    let elsewhere = Workspace::new(&moon);
    let said = elsewhere.build(&other);
    assert_eq!(elsewhere.ran(), "", "nothing was built again: {said}");
    assert!(said.contains("2 cached") && said.contains("out"), "{said}");
    for path in tasks.iter().flat_map(|task| &task.outputs) {
        let (had, made) = (seen(elsewhere.path(path)), seen(built.path(path)));
        assert!(had.0 == made.0, "{} has other bytes", path.display());
        assert_eq!(had.1, made.1, "{}", path.display());
    }
}
