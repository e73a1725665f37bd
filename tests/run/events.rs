//! What happened is told once, in order, and to the end.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::common::Mount;
use crate::project::Project;

fn task(p: &Project, options: &[&str], script: &str) -> crate::project::Ran {
    p.sh(&[&["--task", "t", "--no-inputs", "--output", "o"], options].concat(), script)
}

/// Which records there are of a kind, by a member.
fn of(events: &[Value], kind: &str, member: &str) -> Vec<String> {
    let of_kind = events.iter().filter(|e| e["event"] == kind);
    of_kind.map(|e| e[member].as_str().map_or_else(|| e[member].to_string(), str::to_owned)).collect()
}

/// S13.10 Every hit, miss, failure, seal, eviction, pin and repair of a run's entry is one record of the event log.
#[test]
fn everything_is_one_record() {
    let p = Project::new();
    let key = task(&p, &[], "echo 1 > o").key().to_owned();
    task(&p, &[], "echo 1 > o").is_hit();
    assert_eq!(task(&p, &[], "echo 1 > o; exit 3").code, 3);
    task(&p, &["--force"], "echo 1 > o").kept(true);
    p.ok(&["pin", &key, "--name", "mine"]);
    p.ok(&["unpin", "--name", "mine"]);
    p.ok(&["evict", &key]);
    task(&p, &["--policy", "readonly"], "echo 1 > o").is_miss(&["evicted"]);
    task(&p, &["--policy", "disabled"], "echo 1 > o");
    task(&p, &["--policy", "normal"], "echo 1 > o").kept(true);
    assert_eq!(task(&p, &["--verify"], "echo 1 > o").record["differs"], serde_json::json!([]));
    let events = p.events();
    let count = |kind: &str| events.iter().filter(|e| e["event"] == kind).count();
    assert_eq!((count("hit"), count("miss"), count("failed")), (2, 3, 1), "{events:#?}");
    assert_eq!(of(&events, "evicted", "why"), ["replaced", "request"]);
    assert_eq!(of(&events, "hit", "saved_ms")[1], "0", "nothing was spared");
    assert_eq!(count("sealed"), 3, "{events:#?}");
    assert_eq!(of(&events, "pinned", "on"), ["true", "false"]);
    assert!(of(&events, "failed", "status")[0].contains("exit code 3"));
    let seqs: Vec<_> = events.iter().map(|e| e["seq"].as_u64().unwrap()).collect();
    assert!(seqs.windows(2).all(|w| w[0] < w[1]), "{seqs:?}");
    // Damage and repair.
    task(&p, &[], "head -c 300000 /dev/zero > o").kept(true);
    let blob = &crate::project::tree(&p.store.join("blobs"))[0].0;
    fs::remove_file(p.store.join("blobs").join(blob)).unwrap();
    p.outfs(&["fsck", "--verify-data", "--repair"]);
    let events = p.events();
    assert!(events.iter().any(|e| e["event"] == "repaired"), "{events:#?}");
}

/// Who follows with a cursor whose followers are gone is told so where the records are.
#[test]
fn a_follower_is_told_what_was_trimmed() {
    let p = Project::new();
    task(&p, &[], "echo 1 > o");
    let cursor = p.events()[0]["cursor"].as_str().unwrap().to_owned();
    task(&p, &[], "echo 2 > o");
    // As it is trimmed, by whole segments: the second record is gone.
    let segment = |first: u64| p.store.join(format!("events/{first:020}.jsonl"));
    let lines = fs::read_to_string(segment(1)).unwrap();
    let rest: String = lines.split_inclusive('\n').skip(2).collect();
    fs::write(segment(3), rest).unwrap();
    fs::remove_file(segment(1)).unwrap();
    let page = p.ok(&["events", "--json", "--follow", "--since", &cursor, "--limit", "1"]);
    let first: Value = serde_json::from_str(page.lines().next().unwrap()).unwrap();
    assert_eq!((&first["trimmed"], &first["cursor"]), (&true.into(), &cursor[..].into()), "{page}");
    assert!(page.lines().nth(1).unwrap().contains("\"event\""), "{page}");
}

#[test]
fn a_follower_sees_what_happens_and_where_it_is() {
    let m = Mount::new();
    let mut p = Project::new();
    p.store = m.store().to_owned();
    let before = p.ok(&["events", "--json", "--limit", "0"]);
    let cursor: Value = serde_json::from_str(&before).unwrap();
    let cursor = cursor["cursor"].as_str().unwrap();
    let mut follow = p.command(&["events", "--json", "--follow", "--since", cursor, "--limit", "3"]);
    let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    task(&p, &[], "echo 1 > o");
    assert_eq!((&next()["event"], &next()["event"]), (&"sealed".into(), &"miss".into()));
    task(&p, &[], "echo 1 > o").is_hit();
    let hit = next();
    assert_eq!(hit["event"], "hit");
    let end = next();
    assert_eq!((&end["cursor"], &end["more"]), (&hit["cursor"], &false.into()));
    assert!(follow.wait().unwrap().success());
}
