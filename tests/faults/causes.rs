//! Which errors a fault may show as: what is at the bottom of one, as a type.

use std::io;

use nix::errno::Errno;
use outfs::cache::CacheError;
use outfs::index::IndexError;
use outfs::store::StoreError;
use outfs::vfs::VfsError;
use rusqlite::ErrorCode;

use super::doors::{Door, Kind};

fn is(kind: Kind, source: &io::Error) -> bool {
    source.raw_os_error() == Some(kind.errno())
}

/// Whether a use case may answer this where a call at the door fails so; whether that was a sync.
pub fn explains(door: Door, kind: Kind, sync: bool, e: &CacheError) -> bool {
    match e {
        _ if kind.is_no_failure() => false,
        CacheError::NoSpace(_) => kind == Kind::Full,
        CacheError::Unwritten { .. } => door == Door::Store && (sync || kind != Kind::NoDescriptor),
        CacheError::Io { source, .. } => door == Door::Store && is(kind, source),
        CacheError::Store(StoreError::Io { source, .. } | StoreError::Unwritten { source, .. }) => {
            door == Door::Store && is(kind, source)
        }
        CacheError::Index(IndexError::Io { source, .. }) => door == Door::Store && is(kind, source),
        CacheError::Index(IndexError::Sqlite { source, .. }) => {
            door == Door::Index && is_of_sqlite(kind, source)
        }
        _ => false,
    }
}

fn is_of_sqlite(kind: Kind, e: &rusqlite::Error) -> bool {
    match e.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => kind == Kind::Full,
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => true,
        // So SQLite calls EIO of a read: pages that cannot be read are as good as damaged.
        Some(ErrorCode::DatabaseCorrupt) => kind.errno() == libc::EIO,
        _ => false,
    }
}

/// Whether a client may be told this: the fault's own errno where its draft's file system answers, EIO (or ENOSPC) where the store does.
pub fn explains_to_client(door: Door, kind: Kind, sync: bool, e: &VfsError) -> bool {
    let told = outfs::fuse::errno(e);
    match e {
        _ if kind.is_no_failure() => false,
        VfsError::Draft(errno) => door == Door::Store && *errno as i32 == kind.errno(),
        VfsError::Cache(e) if explains(door, kind, sync, e) => {
            told == Errno::EIO || told == Errno::ENOSPC && kind == Kind::Full
        }
        _ => false,
    }
}
