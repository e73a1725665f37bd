//! A table of decisions: a situation, the reasons, their text and their JSON.

#[path = "decide_table.rs"]
mod table;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::decide::*;
use super::key::tests::{input, parts};
use super::key::{ABSENT, Kind, Parts, VERSION, value_hash};
use super::lock::Block;
use super::shelf::{Found, Held};
use crate::model::{EntryKey, ManifestHash};
use table::table;

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
