//! The tables, their versions, and how a file becomes an open connection.
//!
//! Invariants: `user_version` says which migrations ran; a version above [`VERSION`] is refused
//! and left alone; a file that is no index at all is set aside, never deleted. The page caches
//! are bounded, so that memory does not grow with the number of entries.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::functions::FunctionFlags;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use super::keys::Name;
use super::{IndexError, Result, log, sqlite};
use crate::model::EntryKey;
use crate::store::port::{self, paths};

/// The newest `user_version` this program knows.
pub(super) const VERSION: u32 = 9;

/// Migration `i` leads from version `i` to `i + 1`.
const MIGRATIONS: [&str; VERSION as usize] = [
    "
    CREATE TABLE entries(
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT NOT NULL UNIQUE,
        manifest BLOB NOT NULL,
        task_id TEXT NOT NULL,
        sealed_at INTEGER NOT NULL,
        accessed_at INTEGER NOT NULL,
        logical INTEGER NOT NULL,
        files INTEGER NOT NULL,
        inferred INTEGER NOT NULL,
        readable INTEGER NOT NULL);
    CREATE INDEX entries_accessed ON entries(accessed_at);
    CREATE INDEX entries_manifest ON entries(manifest);
    CREATE INDEX entries_task ON entries(task_id, sealed_at);
    CREATE TABLE blobs(
        hash BLOB PRIMARY KEY,
        size INTEGER NOT NULL,
        refs INTEGER NOT NULL,
        pack INTEGER NOT NULL,
        off INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX blobs_pack ON blobs(pack) WHERE pack > 0;
    CREATE INDEX blobs_unreferenced ON blobs(refs) WHERE refs = 0;
    CREATE TABLE packs(
        id INTEGER PRIMARY KEY,
        total INTEGER NOT NULL,
        live INTEGER NOT NULL,
        blobs INTEGER NOT NULL);
    CREATE TABLE totals(
        one INTEGER PRIMARY KEY CHECK(one = 1),
        epoch INTEGER NOT NULL,
        entries INTEGER NOT NULL,
        blobs INTEGER NOT NULL,
        loose_bytes INTEGER NOT NULL,
        unreferenced_bytes INTEGER NOT NULL,
        pack_bytes INTEGER NOT NULL,
        live_bytes INTEGER NOT NULL,
        logical_bytes INTEGER NOT NULL);
    ",
    // Null in rows that were there before: their manifests are read instead.
    "
    ALTER TABLE entries ADD COLUMN top_perm INTEGER;
    ALTER TABLE entries ADD COLUMN top_nlink INTEGER;
    ALTER TABLE entries ADD COLUMN top_mtime INTEGER;
    ",
    // What manifest and table of the rows that were there occupy is an estimate.
    "
    ALTER TABLE entries ADD COLUMN metadata INTEGER NOT NULL DEFAULT 8192;
    ALTER TABLE totals ADD COLUMN occupied_bytes INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE totals ADD COLUMN metadata_bytes INTEGER NOT NULL DEFAULT 0;
    UPDATE totals SET metadata_bytes = entries * 8192, occupied_bytes =
        (SELECT coalesce(sum((size + 4095) / 4096), 0) * 4096 FROM blobs WHERE pack = 0) +
        (SELECT coalesce(sum((total + 4095) / 4096), 0) * 4096 FROM packs);
    ",
    // Keys are found by a short number, whose tree is small enough to stay in memory. That a key is there
    // once is seen to by the one writer.
    "
    CREATE TABLE entries_by_number(
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT NOT NULL,
        number INTEGER NOT NULL,
        manifest BLOB NOT NULL,
        task_id TEXT NOT NULL,
        sealed_at INTEGER NOT NULL,
        accessed_at INTEGER NOT NULL,
        logical INTEGER NOT NULL,
        files INTEGER NOT NULL,
        inferred INTEGER NOT NULL,
        readable INTEGER NOT NULL,
        top_perm INTEGER,
        top_nlink INTEGER,
        top_mtime INTEGER,
        metadata INTEGER NOT NULL);
    INSERT INTO entries_by_number SELECT id, key, key_number(key), manifest, task_id, sealed_at, accessed_at,
        logical, files, inferred, readable, top_perm, top_nlink, top_mtime, metadata FROM entries;
    DELETE FROM sqlite_sequence WHERE name = 'entries_by_number';
    INSERT INTO sqlite_sequence(name, seq)
        SELECT 'entries_by_number', seq FROM sqlite_sequence WHERE name = 'entries';
    DROP TABLE entries;
    ALTER TABLE entries_by_number RENAME TO entries;
    CREATE INDEX entries_number ON entries(number);
    CREATE INDEX entries_accessed ON entries(accessed_at);
    CREATE INDEX entries_manifest ON entries(manifest);
    CREATE INDEX entries_task ON entries(task_id, sealed_at);
    ",
    // From here on a blob may be in no file: what counts a row without a pack as one must not read it.
    "
    ALTER TABLE totals ADD COLUMN elsewhere_bytes INTEGER NOT NULL DEFAULT 0;
    ",
    // Of older rows it is not known that a tier has them: they are evicted as a whole.
    "
    ALTER TABLE entries ADD COLUMN backed INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE entries ADD COLUMN tier TEXT NOT NULL DEFAULT '';
    ALTER TABLE entries ADD COLUMN dropped_at INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE blobs ADD COLUMN backed INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX entries_backed ON entries(accessed_at, id) WHERE backed > 0;
    ",
    "
    CREATE TABLE learned(
        id INTEGER PRIMARY KEY,
        task_id TEXT NOT NULL,
        key TEXT NOT NULL,
        list BLOB NOT NULL);
    CREATE INDEX learned_task ON learned(task_id, key);
    ",
    "
    CREATE TABLE digests(hash BLOB PRIMARY KEY, other BLOB NOT NULL) WITHOUT ROWID;
    ",
    // The lists were of windows, and are of groups.
    "
    DELETE FROM learned;
    ",
];

/// The number by which a key is found: the first eight bytes of its BLAKE3 hash, little-endian. Two keys may
/// share one. SQLite has it as a signed number.
pub(super) fn key_number(key: &EntryKey) -> u64 {
    key_name(key).number
}

/// What the table in memory finds a key by.
pub(super) fn key_name(key: &EntryKey) -> Name {
    name(key.as_str())
}

fn name(text: &str) -> Name {
    let [a, b, c, d, e, f, g, h, i, j, ..] = *blake3::hash(text.as_bytes()).as_bytes();
    Name { number: u64::from_le_bytes([a, b, c, d, e, f, g, h]), check: u16::from_le_bytes([i, j]) }
}

/// One process has the index, as it has the store: what its connections share is kept in memory, and not
/// in a file that a full disk would have no room for.
const VFS: &std::ffi::CStr = c"unix-excl";

/// Who uses a connection; decides its page cache.
pub(super) enum Role {
    Writer,
    Reader,
}

/// A connection with our settings. Does not look at the content.
fn connect(file: &Path, role: Role, op: &'static str) -> Result<Connection> {
    let db = open(file, &role).map_err(sqlite(op))?;
    if let Role::Writer = role {
        // Before it has a log, which takes its mode.
        let refused = |source| IndexError::Io { op: "set the mode of", path: file.to_owned(), source };
        paths::chmod(file, 0o600).map_err(refused)?;
    }
    set_up(&db, &role).map_err(sqlite(op))?;
    Ok(db)
}

fn open(file: &Path, role: &Role) -> rusqlite::Result<Connection> {
    let access = match role {
        Role::Writer => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
        Role::Reader => OpenFlags::SQLITE_OPEN_READ_WRITE,
    };
    let db = Connection::open_with_flags_and_vfs(file, access | OpenFlags::SQLITE_OPEN_NO_MUTEX, VFS)?;
    // SQLite makes do with that when it cannot open the file for writing, if only this once.
    if db.is_readonly(rusqlite::MAIN_DB)? {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
        let why = "it cannot be opened for writing: check its owner and mode, and the limit of open files";
        return Err(rusqlite::Error::SqliteFailure(code, Some(why.into())));
    }
    Ok(db)
}

fn set_up(db: &Connection, role: &Role) -> rusqlite::Result<()> {
    db.busy_timeout(std::time::Duration::from_secs(10))?;
    db.set_prepared_statement_cache_capacity(32);
    db.pragma_update(None, "mmap_size", 0)?;
    match role {
        Role::Writer => {
            // For migrations.
            let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
            db.create_scalar_function("key_number", 1, flags, |c| {
                Ok(name(c.get_raw(0).as_str()?).number as i64)
            })?;
            db.pragma_update_and_check(None, "journal_mode", "WAL", |r| r.get::<_, String>(0))?;
            db.pragma_update(None, "synchronous", "FULL")?;
            db.pragma_update(None, "journal_size_limit", 64 << 20)?;
            db.pragma_update(None, "cache_size", -8192)?;
        }
        Role::Reader => {
            db.pragma_update(None, "query_only", true)?;
            // The inner pages of a large store's trees; its leaves the kernel has, and no cache would have room for
            // them.
            db.pragma_update(None, "cache_size", -1024)?;
        }
    }
    Ok(())
}

/// A connection for the pool of readers. It has opened all its files.
pub(super) fn open_reader(file: &Path) -> Result<Connection> {
    let db = connect(file, Role::Reader, "open its file for reading")?;
    db.query_row("SELECT one FROM totals", [], |_| Ok(())).map_err(sqlite("read its file"))?;
    Ok(db)
}

/// Device and number.
type Which = Option<(u64, u64)>;

/// Which files have the names of an index and its log, in which store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Files {
    /// The directory, and the file beside the index that makes it a store.
    pub store: [Which; 2],
    files: [Which; 2],
}

impl Files {
    pub(super) fn at(file: &Path) -> std::io::Result<Files> {
        let store = [
            paths::which(file.parent().unwrap_or(Path::new(".")))?,
            paths::which(&file.with_file_name("format"))?,
        ];
        Ok(Files { store, files: [paths::which(file)?, paths::which(&beside(file, "-wal"))?] })
    }
}

/// Writes what an open index holds into new files, which take the place of what has its names now.
pub(super) fn write_anew(db: &Connection, file: &Path) -> Result<Connection> {
    let io = |op, path: &Path| {
        let path = path.to_owned();
        move |source| IndexError::Io { op, path, source }
    };
    let new = beside(file, ".new");
    // Empty, and for the owner alone from the start.
    paths::create(&new).map_err(io("create", &new))?;
    let name = ToSqlOutput::Borrowed(ValueRef::Text(new.as_os_str().as_encoded_bytes()));
    db.execute("VACUUM INTO ?1", [name]).map_err(sqlite("write its file anew"))?;
    paths::open(&new).and_then(port::sync_data).map_err(io("sync", &new))?;
    set_aside(file)?;
    paths::rename(&new, file).map_err(io("rename", &new))?;
    let dir = file.parent().unwrap_or(Path::new("."));
    paths::open_dir(dir).and_then(|dir| port::sync_dir(dir.as_fd())).map_err(io("sync", dir))?;
    Ok(try_open(file)?.0)
}

/// The `application_id` of an index that was not told yet that it knows all that the store has.
const UNFINISHED: u32 = 0x6f75_7466;

/// Written when an index that was new knows all that the store has.
pub(super) fn finish(db: &Connection) -> Result<()> {
    db.pragma_update(None, "application_id", 0).map_err(sqlite("mark it as whole"))
}

/// The writer's connection, migrated; true when it does not know what the store has: the file was new or
/// had to be set aside, or what was to be written into a new one never was.
pub(super) fn open_writer(file: &Path) -> Result<(Connection, bool)> {
    let log = beside(file, "-wal");
    if log::is_damaged(&log).map_err(|e| IndexError::Io { op: "read", path: log, source: e })? {
        tracing::warn!(file = %file.display(), "the index's log is damaged: the index is set aside");
        set_aside(file)?;
        return Ok((try_open(file)?.0, true));
    }
    match try_open(file) {
        Ok(opened) => Ok(opened),
        Err(IndexError::Sqlite { source, .. }) if is_unusable(&source) || file.is_dir() => {
            tracing::warn!(file = %file.display(), error = %source, "the index is unusable and set aside");
            set_aside(file)?;
            let (db, _) = try_open(file)?;
            Ok((db, true))
        }
        Err(e) => Err(e),
    }
}

fn try_open(file: &Path) -> Result<(Connection, bool)> {
    let mut db = connect(file, Role::Writer, "open its file")?;
    let read = |db: &Connection| db.query_row("PRAGMA user_version", [], |r| r.get::<_, u32>(0));
    let found = read(&db).map_err(sqlite("read its version"))?;
    if found > VERSION {
        return Err(IndexError::TooNew { found, known: VERSION });
    }
    let tx = db.transaction().map_err(sqlite("begin a migration"))?;
    for step in &MIGRATIONS[found as usize..] {
        tx.execute_batch(step).map_err(sqlite("migrate its tables"))?;
    }
    if found == 0 {
        tx.execute("INSERT INTO totals VALUES(1, ?1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)", [fresh_epoch()])
            .map_err(sqlite("write its first totals"))?;
        tx.pragma_update(None, "application_id", UNFINISHED).map_err(sqlite("mark it as new"))?;
    }
    if found < VERSION {
        tx.pragma_update(None, "user_version", VERSION).map_err(sqlite("write its version"))?;
    }
    // Proves that the tables are ours, whatever the version says.
    tx.query_row("SELECT epoch FROM totals WHERE one = 1", [], |r| r.get::<_, u32>(0))
        .map_err(sqlite("read its totals"))?;
    for probe in [
        "SELECT id, key, number, manifest, accessed_at, top_perm, backed FROM entries LIMIT 1",
        "SELECT size, refs, backed, pack, off FROM blobs LIMIT 1",
        "SELECT total, live, blobs FROM packs LIMIT 1",
        "SELECT task_id, key, list FROM learned LIMIT 1",
        "SELECT seq FROM sqlite_sequence WHERE name = 'entries'",
    ] {
        tx.query_row(probe, [], |_| Ok(())).optional().map_err(sqlite("read its tables"))?;
    }
    let mark: u32 = tx
        .query_row("PRAGMA application_id", [], |r| r.get(0))
        .map_err(sqlite("read whether it is whole"))?;
    tx.commit().map_err(sqlite("commit a migration"))?;
    Ok((db, mark == UNFINISHED))
}

/// Seconds since 1970: grows from one index to the next without anything to remember it by.
pub(super) fn fresh_epoch() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_secs() as u32)
}

/// The file is no index, or one that cannot be read: as opposed to a disk or a system in trouble.
pub(super) fn is_unusable(e: &rusqlite::Error) -> bool {
    match e {
        rusqlite::Error::SqliteFailure(e, text) => {
            matches!(e.code, ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
                || e.code == ErrorCode::Unknown
                    && text.as_deref().is_some_and(|t| t.contains("no such") || t.contains("already exists"))
        }
        rusqlite::Error::SqlInputError { .. }
        | rusqlite::Error::QueryReturnedNoRows
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::IntegralValueOutOfRange(..) => true,
        _ => false,
    }
}

/// Copies the files of an index that nobody has open.
pub(super) fn copy(file: &Path, to: &Path) -> std::io::Result<()> {
    for suffix in ["", "-wal"] {
        let mut from = match paths::open(&beside(file, suffix)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !suffix.is_empty() => continue,
            opened => opened?,
        };
        std::io::copy(&mut from, &mut paths::create(&beside(to, suffix))?)?;
    }
    Ok(())
}

/// The file whose name ends with `suffix` beside that.
fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Renames the file to `<file>.bad` (an older one goes) and drops its journal: a journal
/// without its database says nothing.
pub(super) fn set_aside(file: &Path) -> Result<()> {
    let io = |op, path: &Path, source| IndexError::Io { op, path: path.to_owned(), source };
    let bad = beside(file, ".bad");
    let older = if bad.is_dir() { paths::remove_tree(&bad) } else { paths::remove_file(&bad) };
    match older {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io("remove", &bad, e)),
        _ => {}
    }
    match paths::rename(file, &bad) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io("set aside", file, e)),
        _ => {}
    }
    for journal in [beside(file, "-wal"), beside(file, "-shm")] {
        match paths::remove_file(&journal) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io("remove", &journal, e)),
            _ => {}
        }
    }
    Ok(())
}
