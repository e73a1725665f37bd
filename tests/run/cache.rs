//! The cache behind runs: with a daemon and without, policies, and stores that fail.

use std::fs;

use crate::common::{Mount, eventually};
use crate::project::{Project, tree};

/// A project whose store a daemon serves.
fn served() -> (Mount, Project) {
    let m = Mount::new();
    let mut p = Project::new();
    p.store = m.store().to_owned();
    (m, p)
}

fn task(p: &Project, options: &[&str]) -> crate::project::Ran {
    let named = ["--task", "t", "--no-inputs", "--output", "o"];
    p.sh(&[&named, options].concat(), "echo out; echo err >&2; mkdir o; echo 1 > o/f; ln -s f o/l")
}

#[test]
fn with_a_daemon_and_without_it_is_the_same() {
    let (mut m, p) = served();
    let first = task(&p, &[]);
    first.is_miss(&["first_run"]).kept(true);
    fs::remove_dir_all(p.path("o")).unwrap();
    task(&p, &[]).is_hit();
    let made = tree(&p.path("o"));
    m.terminate();
    fs::remove_dir_all(p.path("o")).unwrap();
    let without = task(&p, &[]);
    without.is_hit();
    assert_eq!((without.key(), &without.stdout[..]), (first.key(), "out\n"));
    assert_eq!(tree(&p.path("o")), made);
    m.start();
    p.ok(&["evict", first.key()]);
    task(&p, &[]).is_miss(&["evicted"]);
    assert_eq!(p.events().iter().filter(|e| e["event"] == "hit").count(), 2);
}

/// A hit changes nothing that has a name elsewhere, too.
#[test]
fn what_is_linked_elsewhere_is_placed_anew() {
    use std::os::unix::fs::MetadataExt;
    let p = Project::new();
    let run = || {
        let task = ["--task", "t", "--no-inputs", "--output", "o", "--output", "d"];
        p.sh(&task, "echo 1 > o; mkdir d; echo 2 > d/a; ln d/a d/b")
    };
    run().kept(true);
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(5000);
    let set =
        |name: &str| fs::File::options().write(true).open(p.path(name)).unwrap().set_modified(old).unwrap();
    for linked in ["o", "d/a"] {
        let elsewhere = p.dir.path().join(format!("elsewhere-{}", &linked[..1]));
        fs::hard_link(p.path(linked), &elsewhere).unwrap();
        set(linked);
        run().is_hit();
        let (theirs, ours) = (elsewhere.metadata().unwrap(), p.path(linked).metadata().unwrap());
        assert_eq!((theirs.modified().unwrap(), theirs.nlink()), (old, 1), "{linked}");
        assert!(ours.ino() != theirs.ino() && ours.modified().unwrap() > old, "{linked}");
    }
    // Those that are linked with each other stay so, and are touched where nobody else has them.
    let ino = |name: &str| p.path(name).metadata().unwrap().ino();
    let before = ino("d/a");
    set("d/b");
    run().is_hit();
    assert_eq!((ino("d/a"), ino("d/b")), (before, before));
    assert!(p.path("d/b").metadata().unwrap().modified().unwrap() > old);
}

#[test]
fn links_lead_into_a_mount_and_are_not_written_through() {
    let (m, p) = served();
    let key = task(&p, &[]).key().to_owned();
    let made = tree(&p.path("o"));
    task(&p, &["--as", "link"]).is_hit();
    assert!(p.path("o").is_symlink());
    assert_eq!(fs::read_link(p.path("o")).unwrap(), m.path(&key).join("outputs/o"));
    assert_eq!(tree(&p.path("o")), made);
    task(&p, &["--as", "link"]).is_hit();
    // Leased: it is hidden, but the bytes stay while the link stands.
    task(&p, &["--force"]).is_miss(&["forced"]);
    assert!(!p.path("o").is_symlink() && p.path("o").is_dir(), "the command made its own");
    task(&p, &["--as", "link"]).is_hit();
    task(&p, &[]).is_hit();
    assert!(!p.path("o").is_symlink());
    assert_eq!(tree(&p.path("o")), made);
}

#[test]
fn links_without_a_mount_are_files() {
    let p = Project::new();
    task(&p, &[]);
    fs::remove_dir_all(p.path("o")).unwrap();
    task(&p, &["--as", "link"]).is_hit().says("not links");
    assert_eq!(p.read("o/f"), "1\n");
}

#[test]
fn policies() {
    let p = Project::new();
    let readonly = task(&p, &["--policy", "readonly"]);
    readonly.is_miss(&["first_run"]).kept(false);
    assert!(!p.store.exists(), "readonly writes nothing");
    let disabled = task(&p, &["--policy", "disabled"]);
    assert_eq!((&disabled.record["result"], disabled.code), (&"uncached".into(), 0));
    assert!(!p.store.exists());
    task(&p, &["--policy", "writeonly"]).is_miss(&["forced"]).kept(true);
    task(&p, &["--policy", "writeonly"]).is_miss(&["forced"]).kept(true);
    task(&p, &["--policy", "readonly"]).is_hit();
    task(&p, &["--policy", "normal"]).is_hit();
    assert_eq!(task(&p, &["--policy", "disabled"]).record["result"], "uncached");
}

/// S13.5 An entry that has lost content is a miss with that reason, never half a result.
#[test]
fn lost_content_is_a_miss_with_that_reason() {
    let p = Project::new();
    let run = || p.sh(&["--task", "t", "--no-inputs", "--output", "o"], "head -c 1000000 /dev/zero > o");
    run().is_miss(&["first_run"]);
    let blobs = tree(&p.store.join("blobs"));
    assert_eq!(blobs.len(), 1);
    fs::remove_file(p.store.join("blobs").join(&blobs[0].0)).unwrap();
    run().is_hit();
    fs::remove_file(p.path("o")).unwrap();
    run().is_miss(&["output_missing"]).kept(true).says("lost content");
    assert_eq!(p.path("o").metadata().unwrap().len(), 1_000_000);
    fs::remove_file(p.path("o")).unwrap();
    run().is_hit();
}

#[test]
fn an_entry_sealed_by_quiet_is_no_result() {
    let m = Mount::with(&["--size", "4G", "--seal-quiet", "100ms"]);
    let mut p = Project::new();
    p.store = m.store().to_owned();
    let key = task(&p, &["--dry-run"]).key().to_owned();
    fs::create_dir(m.path(&key)).unwrap();
    crate::common::fill_entry(&m.path(&key), |o| fs::create_dir(o.join("o")).unwrap());
    eventually("it to be sealed", || m.is_sealed(&key));
    task(&p, &[]).is_miss(&["previous_run_incomplete"]).kept(true).says("sealed by quiet");
    task(&p, &[]).is_hit();
}

/// S13.6 A cache that fails never fails the task.
#[test]
fn a_store_that_fails_fails_no_task() {
    let mut p = Project::new();
    let runs = |p: &Project| {
        let ran = task(p, &[]);
        assert_eq!((ran.code, &ran.stdout[..]), (0, "out\n"), "{ran:#?}");
        ran.is_miss(&["first_run"]).kept(false).says("the cache fails");
        assert_eq!(p.read("o/f"), "1\n");
    };
    // No directory can be made there.
    fs::write(p.dir.path().join("file"), "").unwrap();
    p.store = p.dir.path().join("file/store");
    runs(&p);
    // It is of another version.
    p.store = p.dir.path().join("other");
    fs::create_dir(&p.store).unwrap();
    fs::write(p.store.join("format"), "something else\n").unwrap();
    runs(&p);
    // There is no memory either.
    let mut c = p.command(&["run", "--task", "t", "--no-inputs", "--", "echo", "fine"]);
    let out = c.env("XDG_CACHE_HOME", "/proc/nothing").output().unwrap();
    assert_eq!((out.status.code(), &out.stdout[..]), (Some(0), &b"fine\n"[..]));
}

#[test]
fn a_daemon_that_dies_in_the_middle_fails_no_task() {
    let (mut m, p) = served();
    let script = "touch started; while [ ! -e go ]; do sleep 0.01; done; echo 1 > o";
    let options = ["run", "--json", "--task", "t", "--no-inputs", "--output", "o", "--", "sh", "-c", script];
    let mut c = p.command(&options);
    let child = c.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    eventually("the command to start", || p.path("started").exists());
    m.kill9();
    p.write("go", "");
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", crate::project::said(&out));
    assert_eq!(p.read("o"), "1\n");
    m.start();
    fs::remove_file(p.path("o")).unwrap();
    assert_eq!(p.sh(&options[2..7], script).code, 0);
}
