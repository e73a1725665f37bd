//! Trees as tar streams: `outputs/` out, a stream into a draft's tree.
//!
//! Invariants: a stream is unpacked descriptor-relative and never through a symlink, so no member
//! leaves the tree; members that are no file, directory or link are refused; what is
//! written comes in a fixed order and says the same as a restore would make.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::fcntl::AtFlags;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use tar::{Archive, Builder, EntryType, Header};

use super::{CacheError, Entry, Result, at};
use crate::model::RecordKind;

/// Prefix of pax records that hold an extended attribute.
const PAX_XATTR: &str = "SCHILY.xattr.";
/// Longest name or link target that fits a header.
const SHORT: usize = 100;

impl Entry {
    /// Writes `outputs/` as a tar stream.
    pub fn write_tar(&self, out: &mut dyn Write) -> Result<()> {
        self.cache.touch(self);
        let mut tar = Builder::new(out);
        if let Some(outputs) = self.manifest.find(b"outputs") {
            // Depth first, by name: directories before what is in them.
            let mut waiting: Vec<_> =
                self.manifest.children(outputs).rev().map(|c| (c, Vec::new())).collect();
            let mut first_names = std::collections::HashMap::new();
            while let Some((record, parent)) = waiting.pop() {
                let path = at::join(&parent, self.manifest.name(record));
                self.write_member(&mut tar, record, &path, &mut first_names)?;
                waiting.extend(self.manifest.children(record).rev().map(|c| (c, path.clone())));
            }
        }
        tar.finish().map_err(|e| CacheError::io("write", "the tar stream", e))
    }

    fn write_member(
        &self,
        tar: &mut Builder<&mut dyn Write>,
        record: u32,
        path: &[u8],
        first_names: &mut std::collections::HashMap<u32, Vec<u8>>,
    ) -> Result<()> {
        let fail = |e| CacheError::io("write", "the tar stream", e);
        let r = self.manifest.get(record).expect("children are records");
        let mut header = Header::new_gnu();
        let (uid, gid) = self.manifest.owner(r);
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
            RecordKind::Symlink => {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                target = Some(self.manifest.target(record).to_vec());
            }
            RecordKind::File => {
                header.set_mode(r.perm() | 0o200);
                match first_names.get(&r.canonical()) {
                    Some(first) => {
                        header.set_entry_type(EntryType::Link);
                        target = Some(first.clone());
                    }
                    None => {
                        header.set_entry_type(EntryType::Regular);
                        header.set_size(r.size());
                        first_names.insert(r.canonical(), path.to_vec());
                    }
                }
            }
        }
        self.write_pax(tar, record).map_err(fail)?;
        put_name(tar, &mut header, EntryType::GNULongName, &name).map_err(fail)?;
        if let Some(target) = target {
            put_name(tar, &mut header, EntryType::GNULongLink, &target).map_err(fail)?;
        }
        header.set_cksum();
        let data = Content { entry: self, record, at: 0, left: header.size().unwrap_or(0), failed: None };
        let mut data = data;
        let written = tar.append(&header, &mut data);
        match data.failed {
            Some(e) => Err(e),
            None => written.map_err(fail),
        }
    }

    /// What a header has no room for: fractions of a second and attributes.
    fn write_pax(&self, tar: &mut Builder<&mut dyn Write>, record: u32) -> io::Result<()> {
        let r = self.manifest.get(record).expect("children are records");
        let mut records = Vec::new();
        let (s, ns) = (r.mtime_ns().div_euclid(1_000_000_000), r.mtime_ns().rem_euclid(1_000_000_000));
        if ns != 0 || s < 0 {
            records.push(("mtime".to_owned(), pax_time(r.mtime_ns()).into_bytes()));
        }
        for (attr, value) in self.manifest.xattrs(r) {
            if let Ok(attr) = std::str::from_utf8(attr) {
                records.push((format!("{PAX_XATTR}{attr}"), value.to_vec()));
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        tar.append_pax_extensions(records.iter().map(|(k, v)| (k.as_str(), v.as_slice())))
    }
}

/// Seconds with a fraction, as pax writes them.
fn pax_time(ns: i64) -> String {
    let sign = if ns < 0 { "-" } else { "" };
    let abs = ns.unsigned_abs();
    format!("{sign}{}.{:09}", abs / 1_000_000_000, abs % 1_000_000_000)
}

fn parse_pax_time(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (s, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let fraction: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let ns = s.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_add(fraction.parse().ok()?)?;
    Some(if negative { -ns } else { ns })
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

/// Unpacks a stream below an empty directory.
pub(super) fn unpack(stream: &mut dyn Read, top: BorrowedFd<'_>) -> Result<()> {
    let mut unpacker = Unpacker { top, dirs: Vec::new() };
    let mut archive = Archive::new(stream);
    let broken = |e: io::Error| bad("the tar stream", &e.to_string());
    for member in archive.entries().map_err(broken)? {
        unpacker.member(member.map_err(broken)?)?;
    }
    unpacker.finish()
}

fn bad(what: &str, why: &str) -> CacheError {
    CacheError::BadInput { what: what.to_owned(), why: why.to_owned() }
}

/// What a member's attributes are set to.
struct Meta {
    mode: u32,
    mtime_ns: i64,
    owner: (u64, u64),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

struct Unpacker<'a> {
    top: BorrowedFd<'a>,
    /// Directories get their attributes last.
    dirs: Vec<(Vec<Vec<u8>>, Meta)>,
}

/// The components of a member's path; what leads out of the tree is refused.
fn components(path: &[u8]) -> Result<Vec<Vec<u8>>> {
    let refuse = |why| Err(bad(&format!("the member {:?}", at::show(path)), why));
    if path.starts_with(b"/") {
        return refuse("its path is absolute");
    }
    let mut names = Vec::new();
    for name in path.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return refuse("its path leads out of the tree"),
            _ if name.contains(&0) || name.len() > 255 => return refuse("its name cannot be a file name"),
            _ => names.push(name.to_vec()),
        }
    }
    Ok(names)
}

impl Unpacker<'_> {
    fn member<R: Read>(&mut self, mut member: tar::Entry<'_, R>) -> Result<()> {
        let path = member.path_bytes().into_owned();
        let kind = member.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let names = components(&path)?;
        let meta = read_meta(&mut member).map_err(|e| bad("the tar stream", &e.to_string()))?;
        if kind == EntryType::Directory {
            self.open_dir(&names, &path)?;
            self.dirs.push((names, meta));
            return Ok(());
        }
        let Some((name, parents)) = names.split_last() else {
            return Err(bad("the tar stream", "a member that is no directory has no name"));
        };
        let dir = self.open_dir(parents, &path)?;
        let fail = |e: io::Error| CacheError::io("unpack", at::show(&path), e);
        self.make_way(dir.as_fd(), name).map_err(fail)?;
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = at::create_new(dir.as_fd(), name, 0o600).map_err(fail)?;
                io::copy(&mut member, &mut file).map_err(fail)?;
            }
            EntryType::Symlink => {
                let target = member.link_name_bytes().unwrap_or_default().into_owned();
                symlinkat(OsStr::from_bytes(&target), dir.as_fd(), &name[..]).map_err(|e| fail(e.into()))?;
            }
            EntryType::Link => return self.link(&member, &path, dir.as_fd(), name),
            other => {
                let what = match other {
                    EntryType::Fifo => "fifo",
                    EntryType::Char | EntryType::Block => "device",
                    _ => "member of an unknown kind",
                };
                return Err(CacheError::SpecialFile { path: at::show(&path), what });
            }
        }
        apply(dir.as_fd(), name, &meta, kind == EntryType::Symlink).map_err(fail)
    }

    /// Opens a directory below the top, making what is missing.
    fn open_dir(&self, names: &[Vec<u8>], path: &[u8]) -> Result<OwnedFd> {
        let fail = |e: io::Error| match e.raw_os_error() {
            Some(libc::ENOTDIR | libc::ELOOP) => bad(
                &format!("the member {:?}", at::show(path)),
                "its path leads through something that is no directory",
            ),
            _ => CacheError::io("unpack", at::show(path), e),
        };
        let mut fd = self.top.try_clone_to_owned().map_err(fail)?;
        for name in names {
            if at::stat_if_any(fd.as_fd(), name).map_err(fail)?.is_none() {
                at::mkdir(fd.as_fd(), name, 0o755).map_err(fail)?;
            }
            fd = at::pass(fd.as_fd(), name).map_err(fail)?;
        }
        Ok(fd)
    }

    /// A later member of the same name replaces an earlier one.
    fn make_way(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        match at::stat_if_any(dir, name)? {
            Some(stat) if at::kind(&stat) == libc::S_IFDIR => {
                Err(io::Error::other("the stream has a directory of the same name"))
            }
            Some(_) => Ok(unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?),
            None => Ok(()),
        }
    }

    fn link<R: Read>(
        &self,
        member: &tar::Entry<'_, R>,
        path: &[u8],
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<()> {
        let target = member.link_name_bytes().unwrap_or_default().into_owned();
        let names = components(&target)?;
        let Some((last, parents)) = names.split_last() else {
            return Err(bad(&format!("the member {:?}", at::show(path)), "it is a hard link to nothing"));
        };
        let from = self.open_dir(parents, &target)?;
        linkat(from.as_fd(), &last[..], dir, name, AtFlags::empty())
            .map_err(|e| CacheError::io("link", at::show(path), e.into()))
    }

    fn finish(self) -> Result<()> {
        for (names, meta) in self.dirs.iter().rev() {
            let fail = |e| CacheError::io("unpack", at::show(&names.join(&b'/')), e);
            let (parents, name) = match names.split_last() {
                Some((name, parents)) => (parents, &name[..]),
                None => (&[][..], &b"."[..]),
            };
            let dir = at::descend(self.top, parents.iter().map(|n| &n[..])).map_err(fail)?;
            apply(dir.as_fd(), name, meta, false).map_err(fail)?;
        }
        Ok(())
    }
}

fn read_meta<R: Read>(member: &mut tar::Entry<'_, R>) -> io::Result<Meta> {
    let header = member.header();
    let mut meta = Meta {
        mode: header.mode()? & 0o7777,
        mtime_ns: i64::try_from(header.mtime()?).unwrap_or(i64::MAX).saturating_mul(1_000_000_000),
        owner: (header.uid()?, header.gid()?),
        xattrs: Vec::new(),
    };
    for record in member.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        let Ok(key) = record.key() else { continue };
        if let Some(attr) = key.strip_prefix(PAX_XATTR) {
            meta.xattrs.push((attr.as_bytes().to_vec(), record.value_bytes().to_vec()));
        } else if key == "mtime" {
            meta.mtime_ns = parse_pax_time(record.value_bytes()).unwrap_or(meta.mtime_ns);
        }
    }
    Ok(meta)
}

fn apply(dir: BorrowedFd<'_>, name: &[u8], meta: &Meta, symlink: bool) -> io::Result<()> {
    if nix::unistd::geteuid().is_root() {
        // Owners that do not exist here are numbers all the same; what is out of range is left.
        let id = |n: u64| u32::try_from(n).ok().filter(|&n| n != u32::MAX);
        let (uid, gid) = (id(meta.owner.0).map(Uid::from_raw), id(meta.owner.1).map(Gid::from_raw));
        fchownat(dir, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    if !symlink {
        at::set_xattrs(dir, name, meta.xattrs.iter().map(|(k, v)| (&k[..], &v[..])))?;
        at::chmod(dir, name, meta.mode)?;
    }
    at::set_mtime(dir, name, meta.mtime_ns)
}
