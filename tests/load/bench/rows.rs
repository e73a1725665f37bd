//! The rows of the table: what is measured, and what it must not exceed.

/// Names of the views in the order of a row's targets.
pub const VIEWS: [&str; 3] = ["outfs ro", "outfs rw", "outfs user"];

/// What a reading row does.
#[derive(Clone, Copy)]
pub enum Work {
    /// Opens and reads every file with so many threads.
    ReadAll(usize),
    /// Runs a program in the tree.
    Program(&'static [&'static str]),
    /// Reads the large file from its start to its end.
    Sequential,
    /// 100,000 reads of 4 KiB.
    Random,
    /// 100,000 pages of a new mapping.
    Mapped,
}

/// A kind of reading, its two rows, and their targets for the read-only, read-write and ordinary user's view.
pub struct Reading {
    pub name: &'static str,
    pub title: &'static str,
    pub work: Work,
    /// Of the tree that is one large file, instead of the others.
    pub big: bool,
    pub cold: Option<[f64; 3]>,
    pub warm: Option<[f64; 3]>,
}

const fn row(
    name: &'static str,
    title: &'static str,
    work: Work,
    big: bool,
    cold: Option<[f64; 3]>,
    warm: Option<[f64; 3]>,
) -> Reading {
    Reading { name, title, work, big, cold, warm }
}

/// Everything that is read, as time over native ext4. The ordinary user's view is read-only.
#[rustfmt::skip]
pub const READING: [Reading; 9] = [
    row("read-1", "open and read all, 1 thread", Work::ReadAll(1), false, Some([1.0, 1.6, 1.1]), Some([1.25, 6.0, 1.3])),
    row("read-2", "open and read all, 2 threads", Work::ReadAll(2), false, Some([0.55, 0.9, 0.6]), None),
    row("read-grep", "grep -r", Work::Program(&["grep", "-r", "-F", "no such words", "."]), false, Some([0.75, 1.3, 0.8]), Some([1.2, 4.0, 1.2])),
    row("read-find", "find", Work::Program(&["find", "."]), false, Some([1.3, 1.3, 1.3]), Some([0.9, 0.9, 0.9])),
    row("read-ls", "ls -lR", Work::Program(&["ls", "-lR"]), false, None, Some([0.95, 0.95, 0.95])),
    row("read-tar", "tar", Work::Program(&["sh", "-c", "tar -cf - . | cat >/dev/null"]), false, None, Some([1.05, 2.5, 1.1])),
    row("read-big", "sequential read", Work::Sequential, true, Some([1.3, 1.03, 1.3]), Some([0.8, 1.0, 0.8])),
    row("read-pread", "random pread of 4 KiB", Work::Random, true, None, Some([1.05, 1.05, 1.05])),
    row("read-mmap", "random mapped pages", Work::Mapped, true, None, Some([1.0, 1.0, 1.0])),
];
