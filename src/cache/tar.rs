//! `outputs/` as a tar stream (GNU, with pax records for what a header has no room for).
//!
//! Invariants: members come in a fixed order, directories before what is in them; unpacked, the
//! stream gives the same tree as a restore. `untar` reads it back.

use std::io::{self, Read, Write};
use std::rc::Rc;

use tar::{Builder, EntryType, Header};

use super::{CacheError, Entry, Result, at};
use crate::model::{Manifest, RecordKind};

/// Prefix of pax records that hold an extended attribute.
pub(super) const PAX_XATTR: &str = "SCHILY.xattr.";
/// Longest name or link target that fits a header.
const SHORT: usize = 100;

impl Entry {
    /// Writes `outputs/` as a tar stream.
    pub fn write_tar(&self, out: &mut dyn Write) -> Result<()> {
        self.cache().touch(self);
        let mut tar = Builder::new(out);
        let manifest = &*self.manifest()?;
        if let Some(outputs) = manifest.find(b"outputs") {
            // Depth first, by name: directories before what is in them.
            let top: Rc<[u8]> = Rc::default();
            let mut waiting: Vec<_> = manifest.children(outputs).rev().map(|c| (c, top.clone())).collect();
            let mut first_names = std::collections::HashMap::new();
            while let Some((record, parent)) = waiting.pop() {
                let path = at::join(&parent, manifest.name(record));
                self.write_member(manifest, &mut tar, record, &path, &mut first_names)?;
                let path: Rc<[u8]> = path.into();
                waiting.extend(manifest.children(record).rev().map(|c| (c, path.clone())));
            }
        }
        tar.finish().map_err(|e| CacheError::io("write", "the tar stream", e))
    }

    fn write_member(
        &self,
        manifest: &Manifest,
        tar: &mut Builder<&mut dyn Write>,
        record: u32,
        path: &[u8],
        first_names: &mut std::collections::HashMap<u32, Vec<u8>>,
    ) -> Result<()> {
        let fail = |e| CacheError::io("write", "the tar stream", e);
        let r = manifest.get(record).expect("children are records");
        let mut header = Header::new_gnu();
        let (uid, gid) = manifest.owner(r);
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_mtime(r.mtime_ns().div_euclid(1_000_000_000).max(0) as u64);
        header.set_size(0);
        let mut name = path.to_vec();
        let mut target = None;
        match r.kind() {
            RecordKind::Dir => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(r.perm() | 0o200);
                name.push(b'/');
            }
            kind => {
                let is_link = kind == RecordKind::Symlink;
                header.set_mode(if is_link { 0o777 } else { r.perm() | 0o200 });
                if let Some(first) = first_names.get(&r.canonical()) {
                    header.set_entry_type(EntryType::Link);
                    target = Some(first.clone());
                } else if is_link {
                    header.set_entry_type(EntryType::Symlink);
                    target = Some(manifest.target(record).to_vec());
                } else {
                    header.set_entry_type(EntryType::Regular);
                    header.set_size(r.size());
                }
                if manifest.nlink(r) > 1 {
                    first_names.entry(r.canonical()).or_insert_with(|| path.to_vec());
                }
            }
        }
        write_pax(manifest, tar, record).map_err(fail)?;
        put_name(tar, &mut header, EntryType::GNULongName, &name).map_err(fail)?;
        if let Some(target) = target {
            put_name(tar, &mut header, EntryType::GNULongLink, &target).map_err(fail)?;
        }
        header.set_cksum();
        let left = header.size().map_err(fail)?;
        let mut data = Content { entry: self, record, at: 0, left, failed: None };
        let written = tar.append(&header, &mut data);
        match data.failed {
            Some(e) => Err(e),
            None => written.map_err(fail),
        }
    }
}

/// What a header has no room for: fractions of a second and attributes.
fn write_pax(manifest: &Manifest, tar: &mut Builder<&mut dyn Write>, record: u32) -> io::Result<()> {
    let r = manifest.get(record).expect("children are records");
    let mut records = Vec::new();
    let (s, ns) = (r.mtime_ns().div_euclid(1_000_000_000), r.mtime_ns().rem_euclid(1_000_000_000));
    if ns != 0 || s < 0 {
        records.push(("mtime".to_owned(), pax_time(r.mtime_ns()).into_bytes()));
    }
    for (attr, value) in manifest.xattrs(r) {
        if let Ok(attr) = std::str::from_utf8(attr) {
            records.push((format!("{PAX_XATTR}{attr}"), value.to_vec()));
        }
    }
    if records.is_empty() {
        return Ok(());
    }
    tar.append_pax_extensions(records.iter().map(|(k, v)| (k.as_str(), v.as_slice())))
}

/// Seconds with a fraction, as pax writes them.
fn pax_time(ns: i64) -> String {
    let sign = if ns < 0 { "-" } else { "" };
    let abs = ns.unsigned_abs();
    format!("{sign}{}.{:09}", abs / 1_000_000_000, abs % 1_000_000_000)
}

/// Puts a name or target into the header, or before it when it is too long.
fn put_name(
    tar: &mut Builder<&mut dyn Write>,
    header: &mut Header,
    long: EntryType,
    bytes: &[u8],
) -> io::Result<()> {
    let old = header.as_old_mut();
    let field = if long == EntryType::GNULongName { &mut old.name } else { &mut old.linkname };
    let short = &bytes[..bytes.len().min(SHORT)];
    field[..short.len()].copy_from_slice(short);
    if bytes.len() <= SHORT {
        return Ok(());
    }
    let mut extra = Header::new_gnu();
    extra.set_entry_type(long);
    extra.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
    extra.set_mode(0o644);
    extra.set_size(bytes.len() as u64 + 1);
    extra.set_cksum();
    tar.append(&extra, bytes.chain(&b"\0"[..]))
}

/// A file's content as a stream; keeps the real error, which a stream cannot carry.
struct Content<'a> {
    entry: &'a Entry,
    record: u32,
    at: u64,
    left: u64,
    failed: Option<CacheError>,
}

impl Read for Content<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        match self.entry.read(self.record, self.at, &mut buf[..want]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                self.at += n as u64;
                self.left -= n as u64;
                Ok(n)
            }
            Err(e) => {
                self.failed = Some(e);
                Err(io::Error::other("the content cannot be read"))
            }
        }
    }
}
