//! The command line without a mount: usage, exit codes, what is printed, and a store's whole life.
//!
//! Must not know: the crate's inside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

/// A store of its own, nothing in it yet.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_outfs"));
        for name in ["OUTFS_LOG", "OUTFS_CONFIG", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"] {
            c.env_remove(name);
        }
        c.env("HOME", self.dir.path()).env("OUTFS_STORE", self.path("store")).args(args);
        c
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("outfs starts")
    }

    /// Runs it with a terminal and gives all that it shows.
    #[track_caller]
    fn on_terminal(&self, args: &[&str]) -> String {
        let line = format!("{} {}", env!("CARGO_BIN_EXE_outfs"), args.join(" "));
        let mut c = Command::new("script");
        c.env("HOME", self.dir.path()).env("OUTFS_STORE", self.path("store")).env("TERM", "xterm");
        let out = c.args(["-qec", &line, "/dev/null"]).output().expect("script (of bsdutils) starts");
        assert!(out.status.success(), "{line}: {}", said(&out));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert_eq!(out.status.code(), Some(0), "outfs {args:?}: {}", said(&out));
        String::from_utf8(out.stdout).expect("text")
    }

    /// Fails with this code and says this.
    #[track_caller]
    fn fails(&self, code: i32, part: &str, args: &[&str]) {
        let out = self.run(args);
        assert_eq!(out.status.code(), Some(code), "outfs {args:?}: {}", said(&out));
        assert!(said(&out).contains(part), "outfs {args:?} says {part:?}: {}", said(&out));
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Vec<Value> {
        let text = self.ok(&[args, &["--json"]].concat());
        text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e} in {l}"))).collect()
    }

    /// A directory with a few outputs.
    fn outputs(&self) -> PathBuf {
        let dir = self.path("outputs");
        fs::create_dir_all(dir.join("sub")).expect("mkdir");
        fs::write(dir.join("hello"), "hello\n").expect("write");
        fs::write(dir.join("sub/big"), vec![7u8; 1_000_000]).expect("write");
        let _there = std::os::unix::fs::symlink("hello", dir.join("link"));
        dir
    }

    /// Puts the outputs under a key.
    fn put(&self, key: &str) {
        self.ok(&["put", key, text(&self.outputs()), "--task-id", "build"]);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn usage_errors_are_2_and_help_is_0() {
    let p = Place::new();
    for args in [
        &[][..],
        &["nonsense"],
        &["put"],
        &["put", "key1"],
        &["put", "key1", "dir", "--tar", "-"],
        &["show", "../x"],
        &["show", "key1", "--nonsense"],
        &["mount", "x", "--size", "big"],
        &["mount", "x", "--size", "0"],
        &["mount", "x", "--threads", "1"],
        &["mount", "x", "--overwrite", "maybe"],
        &["mount", "x", "--log", "stderr"],
        &["gc", "--older-than", "soon"],
        &["reject", "key1"],
        &["store", "destroy"],
    ] {
        assert_eq!(p.run(args).status.code(), Some(2), "outfs {args:?}");
    }
    assert!(!p.path("store").exists(), "a usage error makes no store");
    let help = p.ok(&["--help"]);
    for command in help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty()) {
        let name = command.split_whitespace().next().expect("a name");
        if name != "help" && name != "store" {
            let text = p.ok(&[name, "--help"]);
            assert!(text.contains("Example"), "outfs {name} --help has an example");
        }
    }
    assert!(help.contains("umount") && help.contains("get") && !help.contains("  daemon "), "{help}");
}

#[test]
fn without_a_store_nothing_is_made() {
    let p = Place::new();
    for command in ["ls", "stats", "drafts", "events", "fsck", "gc"] {
        p.fails(1, "there is no store", &[command]);
    }
    p.ok(&["status"]);
    p.ok(&["stop"]);
    assert_eq!(p.json(&["status"])[0]["running"], false);
    assert!(!p.path("store").exists());
}

#[test]
fn an_unusable_configuration_names_file_and_line() {
    let p = Place::new();
    fs::write(p.path("conf"), "[limits]\nsize = '5G'\nsiez = 1\n").expect("write");
    let put = ["put", "key1", text(&p.outputs()).to_owned().leak()];
    let out = p.command(&put).env("OUTFS_CONFIG", p.path("conf")).output().expect("outfs starts");
    assert_eq!(out.status.code(), Some(2));
    assert!(said(&out).contains("conf:3:"), "{}", said(&out));
}

#[test]
fn generated_texts() {
    let p = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(p.ok(&["completions", shell]).contains("outfs"));
    }
    assert!(p.ok(&["man"]).contains(".TH outfs 1"));
    let dir = p.path("share/man/man1");
    p.ok(&["man", text(&dir)]);
    assert!(dir.join("outfs-mount.1").exists());
}

#[test]
fn doctor_has_an_answer() {
    let p = Place::new();
    let out = p.run(&["doctor", "--json"]);
    let lines = String::from_utf8(out.stdout).expect("text");
    let checks: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let missing = checks.iter().any(|c| c["health"] == "missing");
    assert_eq!(out.status.code(), Some(i32::from(missing)));
    assert!(checks.iter().any(|c| c["what"] == "/dev/fuse"));
}

#[test]
fn put_and_look() {
    let p = Place::new();
    fs::write(p.path("out"), "printed\n").expect("write");
    fs::write(p.path("err"), "warned\n").expect("write");
    let dir = p.outputs();
    let args =
        ["put", "sha256:key1", text(&dir), "--task-id", "a\x1bb", "--command", "make", "--command", "-j"];
    let (out, err) = (p.path("out"), p.path("err"));
    let more = ["--exit-code", "-3", "--duration-ms", "12", "--stdout", text(&out), "--stderr", text(&err)];
    let put = p.json(&[&args[..], &more[..]].concat());
    assert_eq!((&put[0]["key"], &put[0]["new"]), (&"key1".into(), &true.into()));
    assert_eq!(p.ok(&["ls"]), "key1\n");
    assert!(p.ok(&["ls", "-l"]).contains("a\\u{1b}b"), "control characters are escaped");
    assert_eq!(p.ok(&["ls", "key1", "outputs"]), "outputs/hello\noutputs/link\noutputs/sub/\n");
    let all = p.json(&["ls", "-R", "key1"]);
    let big = all.iter().find(|n| n["path"] == "outputs/sub/big").expect("it is listed");
    assert_eq!((&big["kind"], &big["size"]), (&"file".into(), &1_000_000.into()));
    assert_eq!(big["blake3"], blake3::hash(&[7u8; 1_000_000]).to_hex().as_str());
    let show = &p.json(&["show", "key1"])[0];
    assert_eq!(show["metadata"]["command"], serde_json::json!(["make", "-j"]));
    assert_eq!(show["metadata"]["exit_code"], -3);
    assert_eq!(show["origin"]["how"], "put");
    assert_eq!(p.ok(&["cat", "key1", "outputs/hello"]), "hello\n");
    let logs = p.run(&["logs", "key1"]);
    assert_eq!((&logs.stdout[..], &logs.stderr[..]), (&b"printed\n"[..], &b"warned\n"[..]));
    assert_eq!(p.ok(&["logs", "key1", "--stderr"]), "warned\n");
}

#[test]
fn what_is_not_there_is_3_with_a_hint() {
    let p = Place::new();
    p.put("key1");
    for args in [
        &["show", "nokey"][..],
        &["restore", "nokey", "/nonexistent/dest"],
        &["cat", "nokey", "x"],
        &["cat", "key1", "outputs/none"],
        &["logs", "nokey"],
        &["ls", "nokey"],
        &["du", "nokey"],
        &["evict", "nokey"],
        &["pin", "nokey"],
        &["seal", "nodraft"],
    ] {
        let out = p.run(args);
        assert_eq!(out.status.code(), Some(3), "outfs {args:?}: {}", said(&out));
    }
    p.fails(3, "outfs ls", &["show", "nokey"]);
    p.fails(1, "is a directory", &["cat", "key1", "outputs"]);
}

#[test]
fn restores_merge_and_replace_only_when_forced() {
    let p = Place::new();
    p.put("key1");
    let dest = p.path("dest");
    fs::create_dir(&dest).expect("mkdir");
    fs::write(dest.join("mine"), "mine").expect("write");
    let done = &p.json(&["restore", "key1", text(&dest)])[0];
    assert_eq!(done["bytes"], 1_000_006);
    assert_eq!(fs::read(dest.join("hello")).expect("restored"), b"hello\n");
    assert_eq!(fs::read_link(dest.join("link")).expect("restored"), Path::new("hello"));
    assert_eq!(fs::read(dest.join("mine")).expect("kept"), b"mine");
    fs::write(dest.join("hello"), "changed").expect("owner-writable");
    p.fails(1, "--force", &["get", "key1", text(&dest)]);
    p.ok(&["get", "key1", text(&dest), "--force"]);
    assert_eq!(fs::read(dest.join("hello")).expect("restored"), b"hello\n");
    p.fails(1, "mount", &["restore", "key1", text(&p.path("l")), "--as", "link"]);
}

#[test]
fn tar_in_and_out() {
    let p = Place::new();
    p.put("key1");
    let tar = p.run(&["restore", "key1", "--tar", "-"]).stdout;
    let put = p.command(&["put", "key2", "--tar", "-"]).write_stdin(tar.clone()).output().expect("outfs");
    assert_eq!(put.status.code(), Some(0), "{}", said(&put));
    assert_eq!(p.run(&["restore", "key2", "--tar", "-"]).stdout, tar, "the same tree again");
    let cut = p.command(&["put", "key3", "--tar", "-"]).write_stdin(&tar[..tar.len() / 2]).output();
    assert_eq!(cut.expect("outfs").status.code(), Some(1));
    p.fails(3, "no entry", &["show", "key3"]);
    assert!(p.json(&["drafts"]).is_empty(), "nothing is left behind");
    let file = p.path("out.tar");
    let to = file.to_str().expect("a path");
    std::fs::write(&file, "precious").expect("a file");
    p.fails(3, "no entry", &["restore", "key3", "--tar", to]);
    assert_eq!(std::fs::read(&file).expect("a file"), b"precious", "what stands there stays");
    p.ok(&["restore", "key1", "--tar", to]);
    assert_eq!(std::fs::read(&file).expect("a file"), tar);
}

#[test]
fn the_first_result_wins() {
    let p = Place::new();
    p.put("key1");
    assert_eq!(p.json(&["put", "key1", text(&p.path("outputs"))])[0]["new"], false);
    fs::write(p.path("outputs/hello"), "other").expect("write");
    p.fails(1, "hello", &["put", "key1", text(&p.path("outputs"))]);
    let events = p.json(&["events"]);
    assert!(events.iter().any(|e| e["event"] == "not_deterministic" && e["key"] == "key1"));
}

#[test]
fn pins_hold_and_eviction_frees() {
    let p = Place::new();
    p.put("key1");
    p.ok(&["pin", "key1", "--name", "release"]);
    let pins = p.json(&["pin"]);
    assert_eq!((&pins[0]["name"], &pins[0]["key"]), (&"release".into(), &"key1".into()));
    p.fails(1, "release", &["evict", "key1"]);
    p.ok(&["unpin", "--name", "release"]);
    p.ok(&["evict", "key1"]);
    p.fails(3, "no entry", &["show", "key1"]);
    assert_eq!(p.json(&["stats"])[0]["totals"]["entries"], 0);
}

#[test]
fn rejected_entries_miss_until_lifted() {
    let p = Place::new();
    p.put("key1");
    p.ok(&["reject", "key1", "--reason", "a broken compiler"]);
    p.fails(3, "a broken compiler", &["restore", "key1", text(&p.path("dest"))]);
    assert_eq!(p.json(&["show", "key1"])[0]["rejected"], "a broken compiler");
    p.ok(&["reject", "key1", "--lift"]);
    p.ok(&["restore", "key1", text(&p.path("dest"))]);
}

#[test]
fn sizes_are_told_apart() {
    let p = Place::new();
    p.put("key1");
    fs::write(p.path("outputs/own"), vec![9u8; 50_000]).expect("write");
    p.ok(&["put", "key2", text(&p.path("outputs"))]);
    let du = &p.json(&["du"])[0];
    let row = |key: &str| {
        let rows = du["entries"].as_array().expect("a list");
        rows.iter().find(|r| r["key"] == key).expect("the entry").clone()
    };
    assert!(row("key2")["exclusive"].as_u64() >= Some(50_000));
    assert!(row("key1")["shared"].as_u64() >= Some(1_000_000));
    let stats = &p.json(&["stats"])[0];
    assert_eq!((&stats["totals"]["entries"], &stats["pid"]), (&2.into(), &Value::Null));
}

#[test]
fn garbage_is_collected_on_request() {
    let p = Place::new();
    p.put("key1");
    assert!(p.json(&["gc"])[0]["evicted"].as_array().expect("a list").is_empty(), "nothing is over a limit");
    let said = p.ok(&["gc", "--older-than", "0s"]);
    assert!(said.contains("1 more is younger than --min-age"), "what keeps it is said: {said}");
    fs::create_dir_all(p.path(".config/outfs")).expect("mkdir");
    fs::write(p.path(".config/outfs/config.toml"), "[limits]\nmin_age = '0s'\n").expect("write");
    let plan = &p.json(&["gc", "--dry-run", "--older-than", "0s"])[0];
    assert_eq!(plan["evicted"], serde_json::json!(["key1"]));
    p.ok(&["show", "key1"]);
    p.ok(&["gc", "--older-than", "0s"]);
    p.fails(3, "no entry", &["show", "key1"]);
}

#[test]
fn events_page_and_go_on_after_a_cursor() {
    let p = Place::new();
    p.put("key1");
    p.put("key2");
    let first = p.json(&["events", "--limit", "1"]);
    assert_eq!((first.len(), &first[0]["event"]), (2, &"sealed".into()));
    let end = &first[1];
    assert_eq!(
        (&end["more"], &end["trimmed"], &end["cursor"]),
        (&true.into(), &false.into(), &first[0]["cursor"])
    );
    let cursor = end["cursor"].as_str().expect("a cursor");
    let mut rest = p.json(&["events", "--since", cursor]);
    let end = rest.pop().expect("an end");
    assert!(!rest.is_empty() && rest.iter().all(|e| e["seq"].as_u64() > first[0]["seq"].as_u64()));
    assert_eq!((&end["more"], &end["cursor"]), (&false.into(), &rest[rest.len() - 1]["cursor"]));
    let last = |args: &[&str]| p.ok(args).lines().last().expect("a line").to_owned();
    assert_eq!(last(&["events"]), format!("# cursor {}", end["cursor"].as_str().expect("text")));
    assert_eq!(
        last(&["events", "--limit", "0"]),
        format!("# cursor {cursor}, and there is more").replace(".1,", ".0,")
    );
    p.fails(2, "not a cursor", &["events", "--since", "nonsense"]);
    p.fails(2, "another store", &["events", "--since", "00c0ffee00c0ffee.1.42"]);
    let (store, _) = cursor.split_once('.').expect("dots");
    p.fails(2, "ahead of the log", &["events", "--since", &format!("{store}.1.4711")]);
    p.fails(2, "more than the 10000", &["events", "--limit", "10001"]);
}

#[test]
fn logs_page_by_lines() {
    let p = Place::new();
    fs::create_dir(p.path("src")).expect("mkdir");
    let long = "y".repeat(200_000);
    let out: String = (0..2500).map(|n| format!("line {n}\n")).collect();
    fs::write(p.path("out"), &out).expect("write");
    fs::write(p.path("err"), format!("{long}\nlast")).expect("write");
    let (src, stdout, stderr) = (p.path("src"), p.path("out"), p.path("err"));
    let paths = [&src, &stdout, &stderr].map(|p| p.to_str().expect("text"));
    p.ok(&["put", "key1", paths[0], "--stdout", paths[1], "--stderr", paths[2]]);
    let page = |args: &[&str]| p.json(&[&["logs", "key1"], args].concat());
    // All pages together are the logs, whatever their size.
    for limit in ["1000", "999", "10000"] {
        let (mut texts, mut start) = ([String::new(), String::new()], 0);
        loop {
            let mut lines = page(&["--limit", limit, "--start", &start.to_string()]);
            let end = lines.pop().expect("an end");
            for line in lines {
                assert_eq!(line["line"].as_u64(), Some(start));
                start += 1;
                texts[usize::from(line["stream"] == "stderr")] += line["text"].as_str().expect("text");
            }
            assert_eq!(end["next"].as_u64(), Some(start));
            if end["more"] == false {
                break;
            }
        }
        assert_eq!(texts[0], out);
        assert_eq!(texts[1], format!("{long}\nlast"));
        assert_eq!(start, 2500 + 4 + 1, "a long line comes in pieces");
    }
    assert_eq!(p.ok(&["logs", "key1", "--start", "7", "--limit", "2"]), "line 7\nline 8\n");
    assert_eq!(p.ok(&["logs", "key1", "--stderr", "--start", "4"]), "last");
    assert_eq!(page(&["--stdout", "--start", "2500"]).len(), 1);
    assert_eq!(page(&["--limit", "0"]), [serde_json::json!({"next": 0, "more": true})]);
    p.fails(2, "behind the end", &["logs", "key1", "--stdout", "--start", "2501"]);
    p.fails(2, "more than the 10000", &["logs", "key1", "--limit", "10001"]);
    p.fails(3, "no entry", &["logs", "key2", "--limit", "1"]);
    assert!(said(&p.run(&["logs", "key1", "--stdout", "--limit", "5"])).contains("there is more: --start 5"));
}

#[test]
fn damage_is_4() {
    let p = Place::new();
    p.put("key1");
    p.ok(&["fsck", "--verify-data"]);
    let hash = blake3::hash(&[7u8; 1_000_000]).to_hex();
    let blob = p.path("store/blobs").join(&hash[..2]).join(hash.as_str());
    let mut bytes = fs::read(&blob).expect("a loose blob");
    bytes[500_000] ^= 1;
    fs::remove_file(&blob).expect("unlink");
    fs::write(&blob, bytes).expect("write");
    p.fails(4, "damage", &["fsck", "--verify-data"]);
    p.fails(4, "", &["cat", "key1", "outputs/sub/big"]);
    let repaired = p.ok(&["fsck", "--verify-data", "--repair"]);
    assert!(repaired.contains("dropped the entry key1") && repaired.contains("repaired all"), "{repaired}");
    assert_eq!(p.ok(&["fsck", "--verify-data"]), "checked 0 entries and 0 blobs, 0 B re-hashed\n");
}

#[test]
fn a_damaged_format_file_says_what_to_do_and_doing_it_helps() {
    let p = Place::new();
    p.put("key1");
    let format = p.path("store/format");
    let good = fs::read_to_string(&format).expect("a text");
    for bad in [String::new(), good.replace("version", "vers"), good.replace("id ", "id 0")] {
        fs::write(&format, bad).expect("write");
        p.fails(1, "delete this file", &["fsck", "--repair"]);
    }
    fs::remove_file(&format).expect("unlink");
    p.put("key2");
    assert_eq!(p.ok(&["ls"]), "key1\nkey2\n");
}

#[test]
fn a_lost_index_gives_back_everything() {
    let p = Place::new();
    p.put("key1");
    p.ok(&["pin", "key1"]);
    let before = p.json(&["show", "key1"]);
    let events = p.json(&["events"]).len();
    for name in ["index.sqlite", "index.sqlite-wal"] {
        let _ = fs::remove_file(p.path("store").join(name));
    }
    let after = p.json(&["show", "key1"]);
    assert_eq!((&after[0]["manifest"], &after[0]["pins"]), (&before[0]["manifest"], &before[0]["pins"]));
    assert!(p.json(&["events"]).len() >= events);
    p.ok(&["fsck", "--rebuild-index"]);
    p.ok(&["fsck", "--verify-data"]);
}

#[test]
fn imports_may_be_run_again() {
    let p = Place::new();
    let entry = p.path("old/ab/cd/abcdef");
    fs::create_dir_all(entry.join("outputs")).expect("mkdir");
    fs::write(entry.join("outputs/f"), "x").expect("write");
    let metadata = r#"{"task_id":"t","digest":"sha256:abcdef","command":["c"],
        "created_at":"2026-01-02T03:04:05Z","duration_ms":1,"exit_code":0}"#;
    fs::write(entry.join("metadata.json"), metadata).expect("write");
    assert_eq!(p.json(&["import", "cuenv", text(&p.path("old"))])[0]["imported"], 1);
    let again = &p.json(&["import", "cuenv", text(&p.path("old"))])[0];
    assert_eq!((&again["imported"], &again["same"]), (&0.into(), &1.into()));
    assert_eq!(p.ok(&["cat", "abcdef", "outputs/f"]), "x");
    p.ok(&["import", "dir", text(&p.path("old/ab/cd"))]);
    p.fails(1, "none", &["import", "dir", text(&p.path("none"))]);
}

#[test]
fn eight_at_once_take_turns() {
    let p = Place::new();
    p.outputs();
    std::thread::scope(|s| {
        for i in 0..8 {
            let p = &p;
            s.spawn(move || p.ok(&["put", &format!("key{i}"), text(&p.path("outputs"))]));
        }
    });
    assert_eq!(p.ok(&["ls"]).lines().count(), 8);
}

#[test]
fn a_store_is_destroyed_and_nothing_else_is() {
    let p = Place::new();
    fs::create_dir(p.path("mine")).expect("mkdir");
    fs::write(p.path("mine/file"), "x").expect("write");
    p.fails(1, "", &["store", "destroy", "--yes", "--store", text(&p.path("mine"))]);
    assert!(p.path("mine/file").exists());
    p.put("key1");
    p.ok(&["store", "destroy", "--yes"]);
    assert!(!p.path("store").exists());
}

#[test]
fn a_closed_output_is_no_error() {
    let p = Place::new();
    p.put("key1");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_outfs"))
        .args(["cat", "key1", "outputs/sub/big", "--store", text(&p.path("store"))])
        .env("HOME", p.dir.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("outfs starts");
    drop(child.stdout.take());
    let out = child.wait_with_output().expect("our own child");
    assert_eq!((out.status.code(), out.stderr.len()), (Some(0), 0), "{}", said(&out));
}

#[test]
fn a_closed_standard_error_ends_nothing() {
    let p = Place::new();
    p.put("key1");
    for pin in ["one", "two"] {
        p.ok(&["pin", "key1", "--name", pin]);
    }
    for pin in fs::read_dir(p.path("store/pins")).expect("pins").flatten() {
        fs::write(pin.path(), "junk").expect("write");
    }
    // It warns of pins that are set aside, to nobody.
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_outfs"))
        .args(["ls", "--store", text(&p.path("store"))])
        .env("HOME", p.dir.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("outfs starts");
    drop(child.stderr.take());
    let out = child.wait_with_output().expect("our own child");
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(0), &b"key1\n"[..]));
}

#[test]
fn an_empty_environment_variable_is_none() {
    let p = Place::new();
    p.outputs();
    let put = p.command(&["put", "key1", text(&p.path("outputs"))]).env("OUTFS_STORE", "").output();
    assert_eq!(put.expect("outfs").status.code(), Some(0));
    assert!(p.path(".cache/outfs/format").exists(), "the default store is below the home directory");
}

/// Long work shows progress on a terminal, with figures once it takes long, and none elsewhere.
#[test]
fn long_work_shows_progress_on_a_terminal() {
    let p = Place::new();
    let many = p.path("many");
    for key in ["a1b2", "c3d4"] {
        fs::create_dir_all(many.join(key)).expect("mkdir");
        for i in 0..6000 {
            fs::write(many.join(format!("{key}/f{i}")), format!("{key} {i} {}", "x".repeat(2000)))
                .expect("write");
        }
    }
    let (from, back, tar) = (many.join("a1b2"), p.path("back"), p.path("a.tar"));
    let steps: [(&[&str], &[&str]); 9] = [
        (&["put", "a1b2", text(&from)], &["storing a1b2", "of 6001 files"]),
        (&["restore", "a1b2", text(&back)], &["restoring a1b2", "of 6001 files"]),
        (&["restore", "a1b2", "--tar", text(&tar)], &["restoring a1b2", "written"]),
        (&["evict", "a1b2"], &[]),
        (&["put", "a1b2", "--tar", text(&tar)], &["storing a1b2", "read"]),
        (&["import", "dir", text(&many)], &["importing"]),
        (&["fsck", "--verify-data"], &["checking"]),
        // Nothing is left to be collected: whether that takes long enough for a meter is not known.
        (&["gc"], &[]),
        (&["store", "destroy", "--yes"], &["destroying"]),
    ];
    for (args, shown) in steps {
        let on_terminal = p.on_terminal(args);
        assert!(
            shown.iter().all(|s| on_terminal.contains(s)),
            "outfs {args:?} shows {shown:?}: {on_terminal}"
        );
    }
    for args in [steps[0].0, &["gc"], steps[8].0] {
        let out = p.run(args);
        assert!(out.stderr.is_empty(), "outfs {args:?} is silent: {}", said(&out));
    }
}
