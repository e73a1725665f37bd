//! `outfs ls`: entries, or the tree of one.

use std::path::PathBuf;

use clap::Args;

use super::out::{self, Table};
use super::session::Session;
use super::{Context, Output, unexpected};
use crate::control::{EntryFacts, Failure, NodeFacts, RawPath, Reply, Request};
use crate::model::EntryKey;
use crate::model::units::human_bytes;

const PAGE: usize = 1000;

/// List entries, or the files of one
#[derive(Args)]
#[command(after_help = "Examples: outfs ls -l\n          outfs ls -R \"$KEY\" outputs")]
pub(crate) struct Ls {
    /// List this entry's files
    key: Option<EntryKey>,
    /// Below this path of the entry
    path: Option<PathBuf>,
    /// With sizes, times and more
    #[arg(short, long)]
    long: bool,
    /// All directories below, too
    #[arg(short = 'R', long, requires = "key")]
    recursive: bool,
    #[command(flatten)]
    output: Output,
}

impl Ls {
    pub(super) fn run(self, cx: &Context) -> Result<(), Failure> {
        let mut session = Session::open(&cx.store)?;
        match &self.key {
            None => self.entries(&mut session)?,
            Some(key) => {
                let nodes = self.tree(&mut session, key)?;
                self.print_nodes(&nodes)?;
            }
        }
        session.close()
    }

    fn entries(&self, session: &mut Session) -> Result<(), Failure> {
        let mut table = Table::new(&["KEY", "SEALED", "SIZE", "FILES", "WHERE", "TASK"], &[2, 3]);
        let mut after = 0;
        loop {
            let reply = session.call(Request::Entries { after, limit: PAGE })?;
            let Reply::Entries { entries, next } = reply else { return Err(unexpected(reply)) };
            for e in &entries {
                match (self.output.json, self.long) {
                    (true, _) => out::json(e)?,
                    (false, true) => table.row(long(e)),
                    (false, false) => out::line(e.key.as_str())?,
                }
            }
            match next {
                Some(next) => after = next,
                None if self.long && !self.output.json => return table.print(),
                None => return Ok(()),
            }
        }
    }

    /// Depth first, a directory before what is in it.
    fn tree(&self, session: &mut Session, key: &EntryKey) -> Result<Vec<NodeFacts>, Failure> {
        let mut found = Vec::new();
        let mut waiting = vec![RawPath(self.path.clone().unwrap_or_default())];
        while let Some(path) = waiting.pop() {
            let reply = session.call(Request::Tree { key: key.clone(), path })?;
            let Reply::Tree { nodes } = reply else { return Err(unexpected(reply)) };
            if self.recursive {
                let dirs = nodes.iter().filter(|n| n.kind == "dir");
                waiting.extend(dirs.map(|n| n.path.clone()));
            }
            found.extend(nodes);
        }
        if self.recursive {
            found.sort_by(|a, b| a.path.0.cmp(&b.path.0));
        }
        Ok(found)
    }

    fn print_nodes(&self, nodes: &[NodeFacts]) -> Result<(), Failure> {
        if self.output.json {
            return nodes.iter().try_for_each(out::json);
        }
        if !self.long {
            return nodes.iter().try_for_each(|n| out::line(&name(n)));
        }
        let mut table = Table::new(&["MODE", "OWNER", "SIZE", "MODIFIED", "PATH"], &[2]);
        for n in nodes {
            let target = n.target.as_ref().map(|t| format!(" -> {}", out::clean_path(t))).unwrap_or_default();
            table.row(vec![
                n.mode.clone(),
                format!("{}:{}", n.uid, n.gid),
                n.size.to_string(),
                out::time(n.mtime),
                name(n) + &target,
            ]);
        }
        table.print()
    }
}

fn name(n: &NodeFacts) -> String {
    out::clean_path(&n.path) + if n.kind == "dir" { "/" } else { "" }
}

fn long(e: &EntryFacts) -> Vec<String> {
    let mut task = out::clean(&e.task_id);
    if !e.readable {
        task.push_str(" (metadata broken: a miss)");
    }
    if e.inferred {
        task.push_str(" (sealed by quiet)");
    }
    let here = e.residency.map_or("?".into(), |r| r.to_string());
    vec![e.key.to_string(), out::time(e.sealed_at), human_bytes(e.bytes), e.files.to_string(), here, task]
}
