//! Everything below some directories, looked at in threads.
//!
//! Invariants: symlinks are looked at and not followed; what vanishes while it is looked at is an error that names it.
//! Must not know: what it is looked at for.

use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

use super::{Result, RunError};
use crate::cache::workers;

/// Paths and what is there.
pub(super) type Found = Vec<(PathBuf, Metadata)>;

/// Fewer directories are not worth a thread.
const DIRECTORIES: usize = 4;
/// Nor are fewer files.
pub(super) const FILES: usize = 64;

/// All that is in these directories and below, the directories among it, in no order; `enter` is told a directory's path
/// and how many levels deep it lies, the first being 1.
pub(super) fn walk(tops: Vec<PathBuf>, enter: &dyn Fn(&Path, usize) -> bool) -> Result<Found> {
    let (mut all, mut dirs, mut depth) = (Found::new(), tops, 0);
    while !dirs.is_empty() {
        depth += 1;
        let level = in_threads(&dirs, DIRECTORIES, |dirs| {
            let mut found = Found::new();
            dirs.iter().try_for_each(|dir| read(dir, &mut found)).map(|()| found)
        })?;
        let below = level.iter().filter(|(path, meta)| meta.is_dir() && enter(path, depth));
        dirs = below.map(|(path, _)| path.clone()).collect();
        all.extend(level);
    }
    Ok(all)
}

fn read(dir: &Path, found: &mut Found) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(|e| RunError::io("read", dir, e))? {
        let entry = entry.map_err(|e| RunError::io("read", dir, e))?;
        let path = entry.path();
        match entry.metadata() {
            Ok(meta) => found.push((path, meta)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(RunError::Unstable { path, what: "vanished" });
            }
            Err(e) => return Err(RunError::io("look at", path, e)),
        }
    }
    Ok(())
}

/// Does `work` on parts of a list, of so many at least, in some threads; the results in order.
pub(super) fn in_threads<T: Sync, U: Send>(
    list: &[T],
    least: usize,
    work: impl Fn(&[T]) -> Result<Vec<U>> + Sync,
) -> Result<Vec<U>> {
    let each = list.len().div_ceil(workers()).max(least);
    if list.len() <= each {
        return work(list);
    }
    let work = &work;
    std::thread::scope(|scope| {
        let parts: Vec<_> = list.chunks(each).map(|part| scope.spawn(move || work(part))).collect();
        let mut all = Vec::with_capacity(list.len());
        for part in parts {
            all.extend(part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_and_no_deeper_than_asked() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..30 {
            let sub = dir.path().join(format!("{n}/deep"));
            std::fs::create_dir_all(&sub).unwrap();
            std::fs::write(sub.join("f"), "").unwrap();
            std::os::unix::fs::symlink("deep", dir.path().join(format!("{n}/l"))).unwrap();
        }
        let count =
            |enter: &dyn Fn(&Path, usize) -> bool| walk(vec![dir.path().to_owned()], enter).unwrap().len();
        assert_eq!(count(&|_, _| true), 30 * 4);
        assert_eq!(count(&|_, level| level < 2), 30 * 3);
        assert_eq!(count(&|path, _| !path.ends_with("3")), 30 * 4 - 3);
        assert!(walk(vec![dir.path().join("none")], &|_, _| true).is_err());
    }
}
