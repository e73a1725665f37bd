//! A table of decisions: a situation, the reasons, their text and their JSON.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::decide::*;
use super::key::tests::{input, parts};
use super::key::{ABSENT, Kind, Parts, VERSION, value_hash};
use super::lock::Block;
use super::shelf::{Found, Held};
use crate::model::{EntryKey, ManifestHash};

/// A situation that owns what it refers to.
struct Case {
    now: Parts,
    force: bool,
    cache_failures: bool,
    found: Found,
    lock: Option<Option<Option<Block>>>,
    /// The lock file has the task with a key of this form.
    other_form: Option<u32>,
    history: Vec<Earlier>,
}

fn earlier(parts: Parts) -> Earlier {
    Earlier { key: parts.key(), parts }
}

fn changed(change: impl FnOnce(&mut Parts)) -> Parts {
    let mut parts = parts();
    change(&mut parts);
    parts
}

fn block(parts: Parts, status: Option<&str>) -> Block {
    Block { key: parts.key(), outputs_hash: None, status: status.map(Into::into), parts }
}

/// The task as it is now, run once before as `before`.
fn after(before: Parts) -> Case {
    Case { history: vec![earlier(before)], ..never() }
}

fn never() -> Case {
    Case {
        now: parts(),
        force: false,
        cache_failures: false,
        found: Found::UNKNOWN,
        lock: None,
        other_form: None,
        history: vec![],
    }
}

fn held(change: impl FnOnce(&mut Held)) -> Found {
    let mut held = Held {
        manifest: ManifestHash::of(b""),
        outputs_hash: "77".into(),
        task_id: "t".into(),
        made_at: Timestamp::UNIX_EPOCH,
        duration_ms: 5,
        exit_code: 0,
        inferred: false,
        missing: None,
        order: String::new(),
    };
    change(&mut held);
    Found::Entry(Box::new(held))
}

fn found(found: Found) -> Case {
    Case { found, ..never() }
}

fn evicted() -> Found {
    Found::Nothing { evicted: Some("2026-01-02T03:04:05.678Z".parse().unwrap()), failed: None }
}

fn failed(status: &str) -> Found {
    Found::Nothing { evicted: None, failed: Some(status.into()) }
}

fn locked(block: Block) -> Case {
    Case { lock: Some(Some(Some(block))), ..never() }
}

fn forced(case: Case) -> Case {
    Case { force: true, ..case }
}

impl Case {
    fn decide(&self) -> Decision {
        let locked = match &self.lock {
            None => self.other_form.map_or(Locked::NotAsked, Locked::OtherForm),
            Some(None) => Locked::NoFile,
            Some(Some(None)) => Locked::NoTask,
            Some(Some(Some(block))) => Locked::Has(block),
        };
        decide(&Situation {
            key: &self.now.key(),
            parts: &self.now,
            force: self.force,
            cache_failures: self.cache_failures,
            found: &self.found,
            locked,
            history: &self.history,
        })
    }
}

fn set(map: &mut std::collections::BTreeMap<String, String>, name: &str, value: &str) {
    map.insert(name.into(), value.into());
}

fn mismatch(before: &Parts) -> (String, Value) {
    let (old, new): (EntryKey, EntryKey) = (before.key(), parts().key());
    other(old.as_str(), new.as_str())
}

fn other(old: &str, new: &str) -> (String, Value) {
    (
        format!("the key changed: {old} -> {new}"),
        json!({ "why": "cache_key_mismatch", "old": old, "new": new }),
    )
}

fn hit() -> Vec<(String, Value)> {
    Vec::new()
}

fn one(text: &str, json: Value) -> Vec<(String, Value)> {
    vec![(text.to_owned(), json)]
}

fn first() -> Vec<(String, Value)> {
    one("first run: no earlier result is known", json!({ "why": "first_run" }))
}

fn incomplete(status: &str) -> Vec<(String, Value)> {
    one(
        &format!("the run before gave no result: {status}"),
        json!({ "why": "previous_run_incomplete", "status": status }),
    )
}

fn unusable(why: &str) -> Vec<(String, Value)> {
    one(&format!("the entry cannot be used: {why}"), json!({ "why": "unusable", "detail": why }))
}

fn named(text: &str, reason: &str, field: &str, name: &str) -> Vec<(String, Value)> {
    one(text, json!({ "why": reason, field: name }))
}

fn tool(name: &str) -> Vec<(String, Value)> {
    named(&format!("the program {name} changed"), "tool_changed", "name", name)
}

fn env(name: &str) -> Vec<(String, Value)> {
    named(&format!("the variable {name} changed"), "env_changed", "name", name)
}

fn newly(what: &str, reason: &str, name: &str) -> Vec<(String, Value)> {
    let why = format!("{reason}_changed");
    one(&format!("the {what} {name} is new"), json!({ "why": why, "name": name, "new": true }))
}

fn no_more(what: &str, reason: &str, name: &str) -> Vec<(String, Value)> {
    let why = format!("{reason}_changed");
    one(
        &format!("the {what} {name} is not named any more"),
        json!({ "why": why, "name": name, "removed": true }),
    )
}

fn param(name: &str) -> Vec<(String, Value)> {
    named(&format!("the parameter {name} changed"), "params_changed", "name", name)
}

fn upstream(task: &str) -> Vec<(String, Value)> {
    let text = format!("the task {task} ran again and made other outputs");
    named(&text, "upstream_rerun", "task", task)
}

fn outputs() -> Vec<(String, Value)> {
    one("the declared outputs changed", json!({ "why": "outputs_changed" }))
}

fn cmd(old: &str, new: &str) -> Vec<(String, Value)> {
    one(
        &format!("the command changed: {old} -> {new}"),
        json!({ "why": "cmd_changed", "old": old, "new": new }),
    )
}

fn dep(path: &str, old: Option<&str>, new: Option<&str>) -> Vec<(String, Value)> {
    let text = match (old, new) {
        (Some(old), Some(new)) => format!("the input {path} changed: {old} -> {new}"),
        (None, _) => format!("the input {path} is new"),
        (_, None) => format!("the input {path} was removed"),
    };
    one(&text, json!({ "why": "dep_changed", "path": path, "old": old, "new": new }))
}

fn short(content: &str) -> String {
    value_hash(Some(content.as_bytes()))[..12].to_owned()
}

type Row = (&'static str, Case, Vec<(String, Value)>);

fn table() -> Vec<Row> {
    let (a, b, c) = (short("a"), short("b"), short("c"));
    let forced_reason =
        || one("forced: results are not looked up (--force, or the policy)", json!({ "why": "forced" }));
    let evicted_reason = || {
        one(
            "the entry was evicted at 2026-01-02T03:04:05Z",
            json!({ "why": "evicted", "when": "2026-01-02T03:04:05.678Z" }),
        )
    };
    let rejected = || Found::Rejected { reason: "bad compiler".into() };
    let inputs = |list: &[(&str, &str)]| {
        let list = list.iter().map(|(p, c)| input(p, c)).collect();
        changed(|p| p.set_inputs(list))
    };
    let both = |x: Vec<(String, Value)>, y: Vec<(String, Value)>| [x, y].concat();
    vec![
        // what the store has
        ("a result is a hit", found(held(|_| {})), hit()),
        ("a hit needs no history", Case { history: vec![], ..found(held(|_| {})) }, hit()),
        ("a hit whatever the lock says", Case { lock: Some(None), ..found(held(|_| {})) }, hit()),
        ("a failed run is none", found(held(|h| h.exit_code = 3)), incomplete("exit code 3")),
        (
            "unless failures are results",
            Case { cache_failures: true, ..found(held(|h| h.exit_code = 3)) },
            hit(),
        ),
        (
            "sealed by quiet is none",
            found(held(|h| h.inferred = true)),
            incomplete("sealed by quiet, not by a run"),
        ),
        (
            "sealed by quiet is none with failures either",
            Case { cache_failures: true, ..found(held(|h| h.inferred = true)) },
            incomplete("sealed by quiet, not by a run"),
        ),
        (
            "an output is missing",
            found(held(|h| h.missing = Some("lib".into()))),
            named("the entry lacks the output lib", "output_missing", "path", "lib"),
        ),
        (
            "rejected",
            found(rejected()),
            named("the entry was rejected: bad compiler", "rejected", "reason", "bad compiler"),
        ),
        ("unreadable", found(Found::Unreadable { why: "torn".into() }), unusable("torn")),
        ("evicted", found(evicted()), evicted_reason()),
        (
            "evicted, whatever the history says",
            Case { found: evicted(), ..after(changed(|p| p.cwd.clear())) },
            evicted_reason(),
        ),
        (
            "evicted, whatever the lock says",
            Case { found: evicted(), lock: Some(None), ..never() },
            evicted_reason(),
        ),
        ("failed before", found(failed("exit code 2")), incomplete("exit code 2")),
        ("timed out before", found(failed("timed out after 10s")), incomplete("timed out after 10s")),
        (
            "evicted after it failed",
            found(Found::Nothing {
                evicted: Some("2026-01-02T03:04:05.678Z".parse().unwrap()),
                failed: Some("x".into()),
            }),
            evicted_reason(),
        ),
        // force
        ("forced with a result", forced(found(held(|_| {}))), forced_reason()),
        ("forced without", forced(never()), forced_reason()),
        ("forced and rejected", forced(found(rejected())), forced_reason()),
        // history
        ("the first run", never(), first()),
        (
            "another command",
            after(changed(|p| p.argv = vec!["make".into(), "it's".into()])),
            cmd(r"make 'it'\''s'", "make all"),
        ),
        ("no argument", after(changed(|p| drop(p.argv.pop()))), cmd("make", "make all")),
        (
            "another program under another name is one change",
            after(changed(|p| {
                p.argv[0] = "gmake".into();
                p.program = value_hash(Some(b"gmake"));
            })),
            cmd("gmake all", "make all"),
        ),
        ("the program's content", after(changed(|p| p.program = "00".into())), tool("make")),
        ("a tool's content", after(changed(|p| set(&mut p.tools, "cc", "12"))), tool("cc")),
        ("a tool more", after(changed(|p| p.tools.clear())), newly("program", "tool", "cc")),
        ("a tool less", after(changed(|p| set(&mut p.tools, "ld", "12"))), no_more("program", "tool", "ld")),
        ("a variable's value", after(changed(|p| set(&mut p.env, "CC", "0"))), env("CC")),
        ("a variable that was absent", after(changed(|p| set(&mut p.env, "CC", ABSENT))), env("CC")),
        (
            "a variable that was empty",
            after(changed(|p| set(&mut p.env, "CC", &value_hash(Some(b""))))),
            env("CC"),
        ),
        (
            "a variable that was not declared",
            after(changed(|p| p.env.clear())),
            newly("variable", "env", "CC"),
        ),
        (
            "a variable that is not declared any more",
            after(changed(|p| set(&mut p.env, "LD", ABSENT))),
            no_more("variable", "env", "LD"),
        ),
        ("a secret's value", after(changed(|p| set(&mut p.secrets, "TOKEN", "23"))), env("TOKEN")),
        ("a parameter's value", after(changed(|p| set(&mut p.params, "level", "2"))), param("level")),
        ("a parameter more", after(changed(|p| p.params.clear())), newly("parameter", "params", "level")),
        (
            "a parameter less",
            after(changed(|p| set(&mut p.params, "x", ""))),
            one(
                "the parameter x is not given any more",
                json!({ "why": "params_changed", "name": "x", "removed": true }),
            ),
        ),
        (
            "a task before it more",
            after(changed(|p| p.after.clear())),
            one(
                "it comes after the task gen now",
                json!({ "why": "upstream_rerun", "task": "gen", "new": true }),
            ),
        ),
        (
            "a task before it less",
            after(changed(|p| set(&mut p.after, "lint", "1"))),
            one(
                "it does not come after the task lint any more",
                json!({ "why": "upstream_rerun", "task": "lint", "removed": true }),
            ),
        ),
        (
            "another base",
            after(changed(|p| p.base = [("another".to_owned(), "56".to_owned())].into())),
            vec![other("base another", "base step")],
        ),
        ("other outputs", after(changed(|p| drop(p.outputs.pop()))), outputs()),
        (
            "the task before made something else",
            after(changed(|p| set(&mut p.after, "gen", "34"))),
            upstream("gen"),
        ),
        ("the base was made again", after(changed(|p| set(&mut p.base, "step", "56"))), upstream("step")),
        (
            "the base is called otherwise",
            after(changed(|p| {
                p.base = [("another".to_owned(), "55".to_owned())].into();
                p.params.clear();
            })),
            newly("parameter", "params", "level"),
        ),
        ("there was no base", after(changed(|p| p.base.clear())), vec![other("no base", "a base")]),
        (
            "a result that is read was made again",
            after(changed(|p| set(&mut p.from, "lib", "45"))),
            upstream("dep"),
        ),
        (
            "another result is read there",
            after(changed(|p| {
                set(&mut p.from, "lib", "45");
                set(&mut p.sources, "lib", "another");
            })),
            dep("lib", Some("45"), Some("44")),
        ),
        (
            "a result that is read, too",
            after(changed(|p| {
                p.from.clear();
                p.sources.clear();
            })),
            dep("lib", None, Some("44")),
        ),
        (
            "an input's content",
            after(inputs(&[("sub/a.c", "c"), ("sub/b.c", "b")])),
            dep("sub/a.c", Some(&c), Some(&a)),
        ),
        ("an input more", after(inputs(&[("sub/a.c", "a")])), dep("sub/b.c", None, Some(&b))),
        ("an input more, first in order", after(inputs(&[("sub/b.c", "b")])), dep("sub/a.c", None, Some(&a))),
        (
            "an input less",
            after(inputs(&[("sub/a.c", "a"), ("sub/b.c", "b"), ("sub/c.c", "c")])),
            dep("sub/c.c", Some(&c), None),
        ),
        (
            "an input was renamed",
            after(inputs(&[("sub/a.c", "a"), ("sub/z.c", "b")])),
            both(dep("sub/b.c", None, Some(&b)), dep("sub/z.c", Some(&b), None)),
        ),
        (
            "an input can be executed no more",
            after(changed(|p| {
                let mut program = input("sub/a.c", "a");
                program.kind = Kind::Program;
                p.set_inputs(vec![program, input("sub/b.c", "b")]);
            })),
            dep("sub/a.c", Some(&format!("{a} executable")), Some(&a)),
        ),
        (
            "an input was a symlink",
            after(changed(|p| {
                let mut link = input("sub/a.c", "b");
                link.kind = Kind::Link;
                p.set_inputs(vec![link, input("sub/b.c", "b")]);
            })),
            dep("sub/a.c", Some(&format!("{b} symlink")), Some(&a)),
        ),
        (
            "several things at once, in a fixed order",
            after(changed(|p| {
                set(&mut p.env, "CC", ABSENT);
                p.outputs.clear();
                p.set_inputs(vec![input("sub/b.c", "b")]);
            })),
            [env("CC"), outputs(), dep("sub/a.c", None, Some(&a))].concat(),
        ),
        // what has no reason of its own
        ("another directory", after(changed(|p| p.cwd.clear())), vec![other("directory .", "directory sub")]),
        (
            "another platform",
            after(changed(|p| p.platform = "linux-aarch64".into())),
            vec![other("platform linux-aarch64", "platform linux-x86_64")],
        ),
        (
            "another sandbox, and a variable",
            after(changed(|p| {
                p.sandbox = "bwrap".into();
                p.env.clear();
            })),
            both(newly("variable", "env", "CC"), vec![other("sandbox bwrap", "sandbox none")]),
        ),
        (
            "another sandbox and network",
            after(changed(|p| {
                p.sandbox = "bwrap".into();
                p.network = "none".into();
            })),
            vec![other("sandbox bwrap, network none", "sandbox none, network host")],
        ),
        (
            "inputs of which no list was kept",
            after(changed(|p| {
                p.set_inputs(vec![input("sub/a.c", "c")]);
                p.inputs.clear();
            })),
            vec![mismatch(&changed(|p| p.set_inputs(vec![input("sub/a.c", "c")])))],
        ),
        // which earlier run
        (
            "the nearest run counts",
            Case {
                history: vec![
                    earlier(changed(|p| {
                        p.env.clear();
                        p.params.clear();
                    })),
                    earlier(changed(|p| set(&mut p.env, "CC", "0"))),
                ],
                ..never()
            },
            env("CC"),
        ),
        (
            "a run of the same sandbox counts before a nearer one",
            Case {
                history: vec![
                    earlier(changed(|p| p.sandbox = "bwrap".into())),
                    earlier(changed(|p| {
                        set(&mut p.env, "CC", "0");
                        p.params.clear();
                    })),
                ],
                ..never()
            },
            both(env("CC"), newly("parameter", "params", "level")),
        ),
        (
            "of equally near ones the newest",
            Case {
                history: vec![
                    earlier(changed(|p| p.params.clear())),
                    earlier(changed(|p| set(&mut p.env, "CC", "0"))),
                ],
                ..never()
            },
            newly("parameter", "params", "level"),
        ),
        (
            "fewer changed inputs are nearer",
            Case { history: vec![earlier(inputs(&[])), earlier(inputs(&[("sub/a.c", "a")]))], ..never() },
            dep("sub/b.c", None, Some(&b)),
        ),
        // lock files
        (
            "no lock file",
            Case { lock: Some(None), ..after(parts()) },
            one("there is no lock file yet", json!({ "why": "no_lock_file" })),
        ),
        (
            "not in the lock file",
            Case { lock: Some(Some(None)), ..after(parts()) },
            one("the lock file does not have this task", json!({ "why": "task_not_in_lock" })),
        ),
        (
            "locked by another version of this program",
            Case { other_form: Some(99), ..after(parts()) },
            vec![other("a key of form 99", &format!("a key of form {VERSION}"))],
        ),
        (
            "locked, and not here",
            locked(block(parts(), None)),
            one("the lock file has this key, and the store no entry of it", json!({ "why": "not_in_store" })),
        ),
        ("locked as failed", locked(block(parts(), Some("exit code 1"))), incomplete("exit code 1")),
        (
            "locked with another variable",
            locked(block(changed(|p| p.env.clear()), None)),
            newly("variable", "env", "CC"),
        ),
        (
            "the lock wins over the history",
            Case {
                history: vec![earlier(changed(|p| p.env.clear()))],
                ..locked(block(changed(|p| p.params.clear()), None))
            },
            newly("parameter", "params", "level"),
        ),
        (
            "locked elsewhere",
            locked(block(changed(|p| p.platform = "linux-aarch64".into()), None)),
            vec![other("platform linux-aarch64", "platform linux-x86_64")],
        ),
    ]
}

#[test]
fn every_case_of_the_table() {
    let table = table();
    assert!(table.len() >= 40, "{} cases", table.len());
    for (name, case, wanted) in &table {
        let reasons = match case.decide() {
            Decision::Hit => Vec::new(),
            Decision::Miss(reasons) => {
                assert!(!reasons.is_empty(), "{name}: a miss has a reason");
                reasons
            }
        };
        let text: Vec<String> = reasons.iter().map(ToString::to_string).collect();
        assert_eq!(text, wanted.iter().map(|(t, _)| t.clone()).collect::<Vec<_>>(), "{name}");
        let json: Vec<Value> = reasons.iter().map(|r| serde_json::to_value(r).unwrap()).collect();
        assert_eq!(json, wanted.iter().map(|(_, j)| j.clone()).collect::<Vec<_>>(), "{name}");
        let back: Vec<Reason> = json.into_iter().map(|j| serde_json::from_value(j).unwrap()).collect();
        assert_eq!(back, reasons, "{name}");
    }
}

#[test]
fn the_table_has_every_reason() {
    let mut seen: Vec<String> = table()
        .into_iter()
        .flat_map(|(_, _, wanted)| wanted)
        .map(|(_, json)| json["why"].as_str().unwrap().to_owned())
        .collect();
    seen.sort();
    seen.dedup();
    let all = [
        "cache_key_mismatch",
        "cmd_changed",
        "dep_changed",
        "env_changed",
        "evicted",
        "first_run",
        "forced",
        "no_lock_file",
        "not_in_store",
        "output_missing",
        "outputs_changed",
        "params_changed",
        "previous_run_incomplete",
        "rejected",
        "task_not_in_lock",
        "tool_changed",
        "unusable",
        "upstream_rerun",
    ];
    assert_eq!(seen, all);
}

#[test]
fn a_near_result_is_enough() {
    let near = |before: Parts| is_near(&earlier(before), &parts());
    let of = |count: u8| (0..count).map(|n| input(&format!("sub/more{n}"), "x")).collect::<Vec<_>>();
    let more = |count| changed(|p| p.set_inputs([p.inputs.clone(), of(count)].concat()));
    assert!(near(changed(|p| p.env.clear())) && near(more(1)) && near(more(8)));
    assert!(!near(more(9)));
    assert!(!near(changed(|p| p.sandbox = "bwrap".into())));
    assert!(!near(changed(|p| {
        p.env.clear();
        p.params.clear();
    })));
}
