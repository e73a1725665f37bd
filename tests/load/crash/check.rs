//! Whether a store that lost its power kept what was promised.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use crate::daemon::Daemon;
use crate::work::{EVICTING, PINNED, SEALED, UNPINNING};

/// What was told by the moment of the cut.
#[derive(Default)]
pub struct Told {
    sealed: HashSet<String>,
    pinned: HashSet<String>,
}

impl Told {
    /// Takes a mark into account.
    pub fn learn(&mut self, mark: &str) {
        let (what, key) = mark.split_once(' ').expect("a mark is a word and a key");
        match what {
            SEALED => drop(self.sealed.insert(key.into())),
            EVICTING => drop(self.sealed.remove(key)),
            PINNED => drop(self.pinned.insert(key.into())),
            UNPINNING => drop(self.pinned.remove(key)),
            _ => panic!("unknown mark {mark}"),
        }
    }

    /// Entries that must be there.
    pub fn entries(&self) -> usize {
        self.sealed.len()
    }
}

/// Starts outfs on the store and looks at everything; `Err` says what was not kept.
pub fn check(
    daemon: &Daemon,
    told: &Told,
    whole: impl Fn(&Path, &str) -> Result<(), String>,
) -> Result<(), String> {
    let mnt = daemon.mnt();
    daemon.ask(&["mount", mnt.to_str().expect("a path of this program's own is text")])?;
    let kept = go_on_with_drafts(&mnt)
        .and_then(|()| entries(daemon, &mnt, told, &whole))
        .and_then(|()| pins(daemon, told));
    let stopped = daemon.ask(&["stop"]).map(drop);
    let sound = daemon.ask(&["fsck", "--verify-data"]).map(drop);
    let said = || std::fs::read_to_string(daemon.store().join("daemon.log")).unwrap_or_default();
    kept.and(stopped)
        .and(sound.clone())
        .map_err(|why| format!("{why}\nfsck: {sound:?}\nthe log of the daemons:\n{}", said()))
}

/// Whoever finds a draft goes on writing in it: that must not show in any entry.
fn go_on_with_drafts(mnt: &Path) -> Result<(), String> {
    for dir in [mnt.to_owned(), mnt.join(".outfs/work")] {
        let fail = |e| format!("{}: {e}", dir.display());
        for draft in std::fs::read_dir(&dir).map_err(fail)? {
            for name in ["large", "small"] {
                let file = draft.as_ref().map_err(|e| format!("{e}"))?.path().join("outputs").join(name);
                match OpenOptions::new().write(true).open(&file).and_then(|mut f| f.write_all(b"others")) {
                    // An entry, or a draft that has no such file.
                    Err(e)
                        if matches!(e.raw_os_error(), Some(libc::EROFS | libc::ENOENT | libc::ENOTDIR)) => {}
                    other => other.map_err(|e| format!("{}: {e}", file.display()))?,
                }
            }
        }
    }
    Ok(())
}

fn entries(
    daemon: &Daemon,
    mnt: &Path,
    told: &Told,
    whole: &dyn Fn(&Path, &str) -> Result<(), String>,
) -> Result<(), String> {
    let listed = keys(&daemon.ask(&["ls", "--json"])?);
    if let Some(lost) = told.sealed.difference(&listed).next() {
        return Err(format!("{lost} was reported sealed and is lost"));
    }
    // Whether a second look finds the same says what kind of a fault it is.
    let look = |key: &String| whole(mnt, key).map_err(|why| format!("{why}; again: {:?}", whole(mnt, key)));
    listed.iter().try_for_each(look)
}

fn pins(daemon: &Daemon, told: &Told) -> Result<(), String> {
    let listed = keys(&daemon.ask(&["pin", "--json"])?);
    match told.pinned.difference(&listed).next() {
        Some(lost) => Err(format!("the pin of {lost} is lost")),
        None => Ok(()),
    }
}

/// The keys in lines of JSON.
fn keys(lines: &str) -> HashSet<String> {
    let key = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).expect("outfs prints JSON");
        value["key"].as_str().expect("every line has a key").to_owned()
    };
    lines.lines().map(key).collect()
}
