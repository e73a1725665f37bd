//! Unpacking a tar stream below a directory.
//!
//! Invariants: members are written descriptor-relative and never through a symlink, so none leaves
//! the tree; members that are no file, directory or link are refused; a stream that is cut off
//! or damaged is an error. Reads ustar, GNU and pax; the `tar` crate's reader is not used because
//! it loses pax records whose values have line ends in them, and so renames files.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::unistd::{Gid, Uid};
use tar::{EntryType, Header};

use super::tar::PAX_XATTR;
use super::way::Way;
use super::{CacheError, Result, at};
use crate::model::manifest::{MAX_DIR_PATH, TreeError, path_len};
use crate::store::port;

const BLOCK: u64 = 512;
/// Most bytes of a long name or of pax records: more is no honest stream.
const MAX_EXTRA: u64 = 16 << 20;

/// Below what it will stand in the entry.
const OUTPUTS: &str = "outputs";

/// Bytes written at a time, and between two questions for room.
const PIECE: usize = 1 << 20;

/// Unpacks a stream below an empty directory. `room` is asked now and then whether there is room for so many bytes in all.
pub(super) fn unpack(
    stream: &mut dyn Read,
    top: BorrowedFd<'_>,
    room: &dyn Fn(u64) -> Result<()>,
) -> Result<()> {
    let mut unpacker = Unpacker { top, dirs: Vec::new(), way: Way::default(), room, bytes: 0, asked: 0 };
    let mut members = Members { stream, data: 0, padding: 0, first: true };
    while let Some(member) = members.next()? {
        unpacker.member(member, &mut members)?;
    }
    unpacker.finish()
}

fn bad(what: &str, why: &str) -> CacheError {
    CacheError::BadInput { what: what.to_owned(), why: why.to_owned() }
}

fn broken(why: impl std::fmt::Display) -> CacheError {
    bad("the tar stream", &why.to_string())
}

/// One member, without its data.
struct Member {
    path: Vec<u8>,
    link: Vec<u8>,
    kind: EntryType,
    mode: u32,
    mtime_ns: i64,
    owner: (u64, u64),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The members of a stream; [`Read`] gives the data of the last one.
struct Members<'r> {
    stream: &'r mut dyn Read,
    data: u64,
    padding: u64,
    first: bool,
}

/// What stands before a member and overrides its header.
#[derive(Default)]
struct Overrides {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    mtime_ns: Option<i64>,
    owner: (Option<u64>, Option<u64>),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: bool,
}

impl Read for Members<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf.len().min(usize::try_from(self.data).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let n = self.stream.read(&mut buf[..want])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= n as u64;
        Ok(n)
    }
}

impl Members<'_> {
    /// The next header block; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>> {
        io::copy(&mut *self, &mut io::sink()).map_err(broken)?;
        io::copy(&mut (&mut *self.stream).take(self.padding), &mut io::sink()).map_err(broken)?;
        self.padding = 0;
        let mut block = Vec::new();
        (&mut *self.stream).take(BLOCK).read_to_end(&mut block).map_err(broken)?;
        if block.is_empty() && !self.first || block.len() as u64 == BLOCK && block.iter().all(|&b| b == 0) {
            // What fills up the last record is read too: its writer should not fail.
            io::copy(self.stream, &mut io::sink()).map_err(broken)?;
            return Ok(None);
        }
        if (block.len() as u64) < BLOCK {
            return Err(broken("it ends in the middle of a header, or is none"));
        }
        self.first = false;
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 =
            (0..).zip(&block).map(|(i, &b)| if (148..156).contains(&i) { 32 } else { u32::from(b) }).sum();
        if header.cksum().ok() != Some(sum) {
            return Err(broken("a header's checksum is wrong"));
        }
        self.set_size(header.entry_size().map_err(broken)?);
        Ok(Some(header))
    }

    fn set_size(&mut self, size: u64) {
        self.data = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    fn extra(&mut self) -> Result<Vec<u8>> {
        if self.data > MAX_EXTRA {
            return Err(broken("a name or attribute is too long"));
        }
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).map_err(broken)?;
        Ok(bytes)
    }

    fn next(&mut self) -> Result<Option<Member>> {
        let mut over = Overrides::default();
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            match header.entry_type() {
                EntryType::XGlobalHeader => {}
                EntryType::XHeader => over.pax(&self.extra()?)?,
                EntryType::GNULongName => over.path = Some(until_nul(self.extra()?)),
                EntryType::GNULongLink => over.link = Some(until_nul(self.extra()?)),
                kind => return self.member(&header, kind, over).map(Some),
            }
        }
    }

    fn member(&mut self, header: &Header, kind: EntryType, over: Overrides) -> Result<Member> {
        let path = over.path.unwrap_or_else(|| header.path_bytes().into_owned());
        if kind == EntryType::GNUSparse || over.sparse {
            return Err(bad(
                &format!("the member {:?}", at::show(&path)),
                "it is stored as a sparse file; write the stream without --sparse",
            ));
        }
        let seconds = seconds(header).map_err(broken)?;
        let owner = |given: Option<u64>, header: io::Result<u64>| given.map_or(header, Ok).map_err(broken);
        let link = header.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default();
        if let Some(size) = over.size {
            self.set_size(size);
        }
        // By their nature without data, whatever the size field says.
        if matches!(kind, EntryType::Link | EntryType::Symlink | EntryType::Directory) {
            self.set_size(0);
        }
        Ok(Member {
            link: over.link.unwrap_or(link),
            kind,
            mode: header.mode().map_err(broken)? & 0o7777,
            mtime_ns: over.mtime_ns.unwrap_or(seconds.saturating_mul(1_000_000_000)),
            owner: (owner(over.owner.0, header.uid())?, owner(over.owner.1, header.gid())?),
            xattrs: over.xattrs,
            path,
        })
    }
}

/// When a header says that its file was changed, in seconds since 1970. GNU's tar writes what was before as a binary number
/// below zero: all its upper bits are set.
fn seconds(header: &Header) -> io::Result<i64> {
    let (upper, lower) = header.as_old().mtime.split_at(4);
    if upper[0] != 0xff {
        return Ok(i64::try_from(header.mtime()?).unwrap_or(i64::MAX));
    }
    let lower = <[u8; 8]>::try_from(lower).map_or(i64::MIN, i64::from_be_bytes);
    Ok(if upper == [0xff; 4] && lower < 0 { lower } else { i64::MIN })
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len()));
    bytes
}

impl Overrides {
    /// Takes pax records: `length key=value\n`, the length counting all of it.
    fn pax(&mut self, mut bytes: &[u8]) -> Result<()> {
        let malformed = || broken("a pax record is malformed");
        while !bytes.is_empty() {
            let space = bytes.iter().position(|&b| b == b' ').ok_or_else(malformed)?;
            let length: usize = number(&bytes[..space]).ok_or_else(malformed)?;
            let record = bytes.get(space + 1..length).ok_or_else(malformed)?;
            bytes = &bytes[length..];
            let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(malformed)?;
            self.record(&record[..equals], &record[equals + 1..]).ok_or_else(malformed)?;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"mtime" => self.mtime_ns = Some(parse_pax_time(value)?),
            b"uid" => self.owner.0 = Some(number(value)?),
            b"gid" => self.owner.1 = Some(number(value)?),
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(attr) = key.strip_prefix(PAX_XATTR.as_bytes()) {
                    self.xattrs.push((attr.to_vec(), value.to_vec()));
                }
            }
        }
        Some(())
    }
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
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

struct Unpacker<'a> {
    top: BorrowedFd<'a>,
    /// Directories get their attributes last.
    dirs: Vec<(Vec<Vec<u8>>, Member)>,
    way: Way,
    room: &'a dyn Fn(u64) -> Result<()>,
    /// Written so far.
    bytes: u64,
    /// How many that were when room was asked for.
    asked: u64,
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
    fn member(&mut self, member: Member, data: &mut Members<'_>) -> Result<()> {
        let (path, kind) = (member.path.clone(), member.kind);
        let names = components(&path)?;
        if kind == EntryType::Directory {
            self.open_dir(&names, &path)?;
            self.dirs.push((names, member));
            return Ok(());
        }
        let Some((name, parents)) = names.split_last() else {
            return Err(bad("the tar stream", "a member that is no directory has no name"));
        };
        let dir = self.open_dir(parents, &path)?;
        let fail = |e: io::Error| CacheError::io("unpack", at::show(&path), e);
        self.make_way(dir.as_fd(), name).map_err(fail)?;
        match kind {
            EntryType::Regular | EntryType::Continuous => {
                let file = at::create_new(dir.as_fd(), name, 0o600).map_err(fail)?;
                self.write(data, &file, &path)?;
            }
            EntryType::Symlink => {
                at::symlink(&member.link, dir.as_fd(), name).map_err(fail)?;
            }
            EntryType::Link => return self.link(&member, dir.as_fd(), name),
            other => {
                let what = match other {
                    EntryType::Fifo => "fifo",
                    EntryType::Char | EntryType::Block => "device",
                    _ => "member of an unknown kind",
                };
                return Err(CacheError::SpecialFile { path: at::show(&path), what });
            }
        }
        apply(dir.as_fd(), name, &member).map_err(fail)
    }

    /// Writes a member's data. What its header says of their size is not believed before they come.
    fn write(&mut self, data: &mut Members<'_>, file: &File, path: &[u8]) -> Result<()> {
        let fail = |e: io::Error| CacheError::io("unpack", at::show(path), e);
        let mut piece = Vec::new();
        loop {
            piece.clear();
            (&mut *data).take(PIECE as u64).read_to_end(&mut piece).map_err(fail)?;
            if piece.is_empty() {
                return Ok(());
            }
            self.bytes += piece.len() as u64;
            if self.bytes - self.asked >= PIECE as u64 {
                (self.room)(self.bytes)?;
                self.asked = self.bytes;
            }
            port::write_all(file, &piece).map_err(fail)?;
        }
    }

    /// Opens a directory below the top, making what is missing.
    fn open_dir(&mut self, names: &[Vec<u8>], path: &[u8]) -> Result<Rc<OwnedFd>> {
        if names.iter().fold(OUTPUTS.len(), |len, name| path_len(len, name)) > MAX_DIR_PATH {
            let start = names.iter().take(4).map(|name| at::show(name)).collect::<Vec<_>>().join("/");
            return Err(TreeError::TooDeep { start }.into());
        }
        let fail = |e: io::Error| match e.raw_os_error() {
            Some(libc::ENOTDIR | libc::ELOOP) => bad(
                &format!("the member {:?}", at::show(path)),
                "its path leads through something that is no directory",
            ),
            _ => CacheError::io("unpack", at::show(path), e),
        };
        let names: Vec<_> = names.iter().map(|name| &name[..]).collect();
        let mut open_or_make = |dir: BorrowedFd<'_>, name: &[u8]| match at::pass(dir, name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                at::mkdir(dir, name, 0o755)?;
                at::pass(dir, name)
            }
            other => other,
        };
        self.way.open_by(self.top, &names, &mut open_or_make).map_err(fail)
    }

    /// A later member of the same name replaces an earlier one.
    fn make_way(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        match at::stat_if_any(dir, name)? {
            Some(stat) if at::kind(&stat) == libc::S_IFDIR => {
                Err(io::Error::other("the stream has a directory of the same name"))
            }
            Some(_) => at::unlink(dir, name),
            None => Ok(()),
        }
    }

    fn link(&mut self, member: &Member, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let path = &member.path;
        let names = components(&member.link)?;
        let Some((last, parents)) = names.split_last() else {
            return Err(bad(&format!("the member {:?}", at::show(path)), "it is a hard link to nothing"));
        };
        let from = self.open_dir(parents, &member.link)?;
        at::link(from.as_fd(), last, dir, name).map_err(|e| CacheError::io("link", at::show(path), e))
    }

    fn finish(mut self) -> Result<()> {
        for (names, meta) in self.dirs.iter().rev() {
            let fail = |e| CacheError::io("unpack", at::show(&names.join(&b'/')), e);
            let (parents, name) = match names.split_last() {
                Some((name, parents)) => (parents, &name[..]),
                None => (&[][..], &b"."[..]),
            };
            let parents: Vec<_> = parents.iter().map(|name| &name[..]).collect();
            let dir = self.way.open(self.top, &parents).map_err(fail)?;
            apply(dir.as_fd(), name, meta).map_err(fail)?;
        }
        Ok(())
    }
}

/// Sets what a header says of a name.
fn apply(dir: BorrowedFd<'_>, name: &[u8], meta: &Member) -> io::Result<()> {
    if nix::unistd::geteuid().is_root() {
        // Owners that do not exist here are numbers all the same; what is out of range is left.
        let id = |n: u64| u32::try_from(n).ok().filter(|&n| n != u32::MAX);
        let (uid, gid) = (id(meta.owner.0).map(Uid::from_raw), id(meta.owner.1).map(Gid::from_raw));
        at::chown(dir, name, uid, gid)?;
    }
    if meta.kind != EntryType::Symlink {
        at::set_xattrs(dir, name, meta.xattrs.iter().map(|(k, v)| (&k[..], &v[..])))?;
        at::chmod(dir, name, meta.mode)?;
    }
    at::set_mtime(dir, name, meta.mtime_ns)
}
