//! What was read first of a task's entries: opaque lists, for who fetches ahead.
//!
//! Invariants: bounded, the oldest goes first; it is a hint, lost with the index at no harm, and of entries that may be gone.
//! Must not know: what is in a list.

use rusqlite::{Connection, OptionalExtension, params};

use super::{Index, Result, sqlite};
use crate::model::EntryKey;

/// Entries of one task that are remembered.
const OF_A_TASK: i64 = 4;
/// Entries that are remembered of all tasks.
const IN_ALL: i64 = 256;

impl Index {
    /// What `list` makes of what was noted of an entry is noted from now on, the newest of its task.
    pub fn note_learned(
        &self,
        task_id: &str,
        key: &EntryKey,
        list: impl Fn(Option<Vec<u8>>) -> Vec<u8> + Send + 'static,
    ) -> Result<()> {
        let (task_id, key) = (task_id.to_owned(), key.clone());
        self.writer.run(move |db| note(db, &task_id, &key, &list).map_err(sqlite("note what was read")))
    }

    /// What was noted of a task's entries, the newest first.
    pub fn learned(&self, task_id: &str) -> Result<Vec<Vec<u8>>> {
        self.readers.with("list what was read", |db| {
            let mut q = db.prepare_cached("SELECT list FROM learned WHERE task_id = ?1 ORDER BY id DESC")?;
            q.query_map([task_id], |r| r.get(0))?.collect()
        })
    }
}

fn note(
    db: &Connection,
    task_id: &str,
    key: &EntryKey,
    list: &dyn Fn(Option<Vec<u8>>) -> Vec<u8>,
) -> rusqlite::Result<()> {
    let old = db
        .prepare_cached("DELETE FROM learned WHERE task_id = ?1 AND key = ?2 RETURNING list")?
        .query_row(params![task_id, key.as_str()], |r| r.get(0))
        .optional()?;
    db.prepare_cached("INSERT INTO learned(task_id, key, list) VALUES(?1, ?2, ?3)")?.execute(params![
        task_id,
        key.as_str(),
        list(old)
    ])?;
    db.prepare_cached(
        "DELETE FROM learned WHERE task_id = ?1 AND id NOT IN
            (SELECT id FROM learned WHERE task_id = ?1 ORDER BY id DESC LIMIT ?2)",
    )?
    .execute(params![task_id, OF_A_TASK])?;
    db.prepare_cached(
        "DELETE FROM learned WHERE id NOT IN (SELECT id FROM learned ORDER BY id DESC LIMIT ?1)",
    )?
    .execute([IN_ALL])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{key, open};

    #[test]
    fn the_newest_entries_of_a_task_are_remembered() {
        let (_dir, index) = open();
        let note = |task: &str, k: u8, what: u8| {
            let list = move |old: Option<Vec<u8>>| [old.unwrap_or_default(), vec![what]].concat();
            index.note_learned(task, &key(k), list).unwrap();
        };
        assert_eq!(index.learned("task").unwrap(), Vec::<Vec<u8>>::new());
        for k in 1..=6 {
            note("task", k, k);
        }
        note("other", 1, 9);
        assert_eq!(index.learned("task").unwrap(), [[6], [5], [4], [3]]);
        note("task", 4, 7);
        assert_eq!(index.learned("task").unwrap(), [vec![4, 7], vec![6], vec![5], vec![3]]);
        for n in 0..300 {
            note(&format!("task {n}"), 1, 1);
        }
        assert_eq!(index.learned("task").unwrap(), Vec::<Vec<u8>>::new(), "in all they are bounded, too");
        assert_eq!(index.learned("task 299").unwrap(), [[1]]);
    }
}
