//! `outfs diff`: what is different between two entries.

use clap::Args;
use serde_json::{Value, json};

use super::out;
use super::session::Session;
use super::{Context, Output, unexpected};
use crate::control::{Failure, Reply, Request};
use crate::model::{EntryKey, Metadata};
use crate::run::{MEMBER, Nodes, Parts, Reason, compare};

/// Compare two entries: what their keys are made of, their metadata, their outputs
#[derive(Args)]
#[command(
    after_help = "Example: outfs diff \"$OLD\" \"$NEW\"\n\nA run's key is 64 hexadecimal digits: 'outfs run --json', 'outfs why TASK' and 'outfs ls' tell it."
)]
pub(crate) struct Diff {
    /// One entry
    old: EntryKey,
    /// The other
    new: EntryKey,
    #[command(flatten)]
    output: Output,
}

/// An entry, as far as it is compared.
struct Side {
    metadata: Option<Metadata>,
    parts: Option<Parts>,
    nodes: Nodes,
}

impl Diff {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        let (old, new) = (side(&mut session, &self.old)?, side(&mut session, &self.new)?);
        session.close()?;
        let parts: Vec<Reason> = match (&old.parts, &new.parts) {
            (Some(old), Some(new)) => compare(old, new),
            _ => Vec::new(),
        };
        let metadata = metadata(&old, &new);
        let outputs = outputs(&old.nodes, &new.nodes);
        if self.output.json {
            let outputs: Vec<Value> =
                outputs.iter().map(|(sign, path)| json!({ "change": sign, "path": path })).collect();
            return out::json(&json!({ "parts": parts, "metadata": metadata, "outputs": outputs }));
        }
        let same = parts.is_empty() && metadata.is_empty() && outputs.is_empty();
        for reason in parts {
            out::line(&format!("key: {}", out::clean(&reason.to_string())))?;
        }
        for (name, [a, b]) in &metadata {
            out::line(&out::clean(&format!("metadata: {name}: {a} -> {b}")))?;
        }
        for (change, path) in &outputs {
            out::line(&out::clean(&format!("output {change}: {path}")))?;
        }
        match same {
            true => out::line("no difference"),
            false => Ok(()),
        }
    }
}

fn side(session: &mut Session, key: &EntryKey) -> Result<Side, Failure> {
    let reply = session.call(Request::Show { key: key.clone() })?;
    let Reply::Show(facts) = reply else { return Err(unexpected(reply)) };
    let reply = session.call(Request::Nodes { key: key.clone() })?;
    let Reply::Nodes { nodes } = reply else { return Err(unexpected(reply)) };
    let mut metadata = facts.metadata;
    let member = metadata.as_mut().and_then(|m| m.extra.remove(MEMBER));
    Ok(Side { metadata, parts: member.and_then(parts), nodes })
}

/// What a key was made of, of what metadata say; a task may have written anything there.
fn parts<T: serde::de::DeserializeOwned>(mut member: Value) -> Option<T> {
    serde_json::from_value(member.get_mut("parts")?.take()).ok()
}

/// Members that differ, but not those that always do.
fn metadata(old: &Side, new: &Side) -> Vec<(String, [Value; 2])> {
    let all = |side: &Side| serde_json::to_value(&side.metadata).unwrap_or_default();
    let (old, new) = (all(old), all(new));
    let names = old.as_object().into_iter().chain(new.as_object()).flat_map(|o| o.keys());
    let mut names: Vec<&String> =
        names.filter(|n| !["digest", "created_at"].contains(&n.as_str()) && old[*n] != new[*n]).collect();
    names.sort();
    names.dedup();
    names.into_iter().map(|n| (n.clone(), [old[n].clone(), new[n].clone()])).collect()
}

fn outputs<'a>(old: &'a Nodes, new: &'a Nodes) -> Vec<(&'static str, &'a str)> {
    let gone = old.keys().filter(|p| !new.contains_key(*p)).map(|p| ("removed", p.as_str()));
    let there = new.iter().filter_map(|(path, node)| match old.get(path) {
        None => Some(("added", path.as_str())),
        Some(before) if before != node => Some(("changed", path.as_str())),
        Some(_) => None,
    });
    let mut all: Vec<_> = gone.chain(there).collect();
    all.sort_by_key(|(_, path)| *path);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_of_another_make_have_no_parts() {
        for text in ["\"x\"", "7", "[]", "{}", "{\"parts\":7}", "null"] {
            let member: Value = serde_json::from_str(text).unwrap();
            assert_eq!(parts::<Vec<String>>(member), None, "{text}");
        }
    }
}
