//! Scans of a mount with entries that only a tier has.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

use super::common::{Mount, need, read};
use super::program::{mount, send};
use super::server::Server;

/// Entries, each with a file `f` that is not here.
const ENTRIES: u8 = 12;
/// Of so many a process can read something: each counts as 4 MiB, and the next one is too many.
const BUDGET: &str = "--scan-budget=26M";
const READ: usize = 7;

fn file(m: &Mount, n: u8) -> std::path::PathBuf {
    m.path(format!("entry-{n:02}/f"))
}

/// A mount in which all entries are shown, and their contents are in the tier only.
fn world(server: &Server, options: &[&str]) -> Mount {
    for n in 0..ENTRIES {
        send(server, "p", &format!("entry-{n:02}"), &[("metadata.json", 80, 100 + n), ("f", 3000, n)]);
    }
    let address = server.tier("p");
    let mut m = mount(&[&[&address[..]], options].concat());
    m.start();
    (0..ENTRIES).for_each(|n| assert_eq!(fs::metadata(file(&m, n)).expect("it is there").len(), 3000));
    m
}

/// Events of budgets that were used up.
fn told(m: &Mount) -> Vec<serde_json::Value> {
    m.events().into_iter().filter(|event| event["event"] == "over_budget").collect()
}

/// S15.20 What a process has come from tiers by reading is bounded (`--scan-budget`); then it gets EDQUOT for what is not here, and one event
/// tells of it, `outfs stats` and `outfs doctor` too.
#[test]
fn a_scan_ends_early_and_is_told_of_once() {
    need("grep");
    let server = Server::start();
    let m = world(&server, &[BUDGET]);
    assert!(!m.ok(&["stats"]).contains("scans") && !m.ok(&["doctor"]).contains("EDQUOT"));
    let asked = server.traffic().0;
    let mut grep = Command::new("grep");
    grep.args(["-r", "-c", "--include=f", "needle"]).arg(m.mnt()).env("LC_ALL", "C");
    let grep = grep.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("grep starts");
    let pid = grep.id();
    let out = grep.wait_with_output().expect("grep ends");
    let refused = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{refused}");
    assert_eq!(refused.lines().count(), usize::from(ENTRIES) - READ, "{refused}");
    assert!(refused.lines().all(|line| line.ends_with("/f: Disk quota exceeded")), "{refused}");
    assert_eq!(server.traffic().0 - asked, READ as u64, "no more was asked for");

    let told = told(&m);
    assert_eq!(told.len(), 1, "{told:?}");
    let (event, go_on) = (&told[0], told[0]["go_on"].as_str().expect("text"));
    assert_eq!((&event["pid"], &event["program"]), (&pid.into(), &"grep".into()), "{event}");
    assert_eq!((&event["entries"], &event["bytes"]), (&READ.into(), &(READ * 3000).into()), "{event}");
    let key = event["key"].as_str().expect("an entry");
    assert!(go_on.contains(&format!("outfs prefetch {key}")) && go_on.contains("--scan-budget"), "{event}");
    assert!(m.log_text().contains(&format!("process {pid}")));
    let stats = m.json(&["stats"]);
    assert_eq!((&stats["scans"]["stopped"], &stats["scans"]["last"][2]), (&1.into(), &"grep".into()));
    assert!(stats["scans"]["refused"].as_u64() >= Some(u64::from(ENTRIES) - READ as u64), "{stats}");
    assert!(m.ok(&["stats"]).contains(&format!("process {pid} (grep)")));
    assert!(m.ok(&["doctor"]).contains("grep"));

    // What the event says helps.
    m.ok(&["prefetch", key]);
    assert_eq!(read(m.path(format!("{key}/f"))).len(), 3000);
}

/// S15.20 The budget is a process's, of all its threads; what is here is read all the same, and other processes read on.
#[test]
fn a_budget_is_all_threads_and_no_other_processs() {
    need("cat");
    let server = Server::start();
    let m = world(&server, &[BUDGET]);
    let reads = std::thread::scope(|scope| {
        let read = |n| {
            (
                n,
                scope.spawn({
                    let at = file(&m, n);
                    move || fs::read(at)
                }),
            )
        };
        let threads: Vec<_> = (0..ENTRIES).map(read).collect();
        threads.into_iter().map(|(n, t)| (n, t.join().expect("no panic"))).collect::<BTreeMap<_, _>>()
    });
    let refused: Vec<u8> = reads.iter().filter(|(_, read)| read.is_err()).map(|(n, _)| *n).collect();
    assert_eq!(refused.len(), usize::from(ENTRIES) - READ, "{refused:?}");
    for n in &refused {
        assert_eq!(fs::read(file(&m, *n)).unwrap_err().raw_os_error(), Some(libc::EDQUOT));
        let other = Command::new("cat").arg(file(&m, *n)).output().expect("cat starts");
        assert_eq!((other.status.success(), other.stdout.len()), (true, 3000), "{other:?}");
        assert_eq!(fs::read(file(&m, *n)).expect("it is here now").len(), 3000);
    }
    assert_eq!(told(&m).len(), 1);
}

/// What is read ahead for a process is taken from its budget, too, or who reads in order would find all of it here.
#[test]
fn one_large_file_is_no_way_around_a_budget() {
    need("cat");
    let server = Server::start();
    send(&server, "p", "large-one", &[("large", 64 << 20, 3)]);
    let address = server.tier("p");
    // Of which the entry counts as 4 MiB.
    let mut m = mount(&[&address, "--scan-budget=12M"]);
    m.start();
    assert_eq!(fs::metadata(m.path("large-one/large")).expect("it is there").len(), 64 << 20);
    let before = server.traffic().1;
    let out =
        Command::new("cat").arg(m.path("large-one/large")).env("LC_ALL", "C").output().expect("cat starts");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.ends_with(": Disk quota exceeded\n"), "{said}");
    let (read, moved) = (out.stdout.len(), server.traffic().1 - before);
    // What was under way came.
    assert!((8 << 20..32 << 20).contains(&moved), "{moved} bytes came");
    assert!(read > 0 && read as u64 <= moved, "{read} bytes were read");
    assert_eq!(told(&m).len(), 1);
}

#[test]
fn who_wants_no_budget_has_none() {
    let server = Server::start();
    let m = world(&server, &["--scan-budget=0"]);
    (0..ENTRIES).for_each(|n| assert_eq!(read(file(&m, n)).len(), 3000));
    let out = m.run(&["mount", "elsewhere", "--scan-budget", "1G"]);
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("--scan-budget 1.0 GiB (it runs with no limit)"),
        "{out:?}"
    );
    // By default it is more than that.
    let m = world(&server, &[]);
    (0..ENTRIES).for_each(|n| assert_eq!(read(file(&m, n)).len(), 3000));
    assert_eq!(told(&m).len(), 0);
}
