//! Extended attributes: outfs's own (`user.outfs.*`), those of manifests, those of draft files.
//!
//! `security.*` does not exist here and is answered at once: kernels ask for it at every write.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::draft_node::DraftNode;
use super::sealed::SealedRef;
use super::types::{Ino, Kind};
use super::{Result, Target, VfsError, View, sys};

const KEY: &[u8] = b"user.outfs.key";
const STATE: &[u8] = b"user.outfs.state";
const BLAKE3: &[u8] = b"user.outfs.blake3";
const SHA256: &[u8] = b"user.outfs.sha256";
const RESIDENCY: &[u8] = b"user.outfs.residency";
/// There are no labels at all. Told so, `ls -l` asks once; of a file that merely has none it asks for each.
const SELINUX: &[u8] = b"security.selinux";
/// Names that belong to outfs.
const OWN: &[u8] = b"user.outfs.";

impl View {
    /// The value of an extended attribute.
    pub fn get_xattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        let name_bytes = name.as_bytes();
        if name_bytes == SELINUX {
            return Err(VfsError::Unsupported);
        }
        if !name_bytes.starts_with(b"user.") {
            return Err(VfsError::NoAttribute);
        }
        match self.target(ino)? {
            Target::Sealed(r) => self.sealed_xattr(&r, name_bytes),
            Target::Draft(node) if name_bytes.starts_with(OWN) => self.draft_own_xattr(&node, name_bytes),
            Target::Draft(node) => {
                let (fd, _) = self.reach.pin(&node)?;
                Ok(sys::get_xattr(&fd, name)?)
            }
            Target::Blob(b) if name_bytes == BLAKE3 => Ok(b.hash.to_hex().into_bytes()),
            _ => Err(VfsError::NoAttribute),
        }
    }

    /// Whether asking for this attribute may have a file hashed, which takes as long as the file is large.
    pub fn hashes(&self, ino: Ino, name: &OsStr) -> bool {
        name.as_bytes() == BLAKE3
            && match self.target(ino) {
                Ok(Target::Draft(_)) => true,
                Ok(Target::Sealed(r)) => r.entry.has_to_hash(r.record).unwrap_or(false),
                _ => false,
            }
    }

    fn sealed_xattr(&self, r: &SealedRef, name: &[u8]) -> Result<Vec<u8>> {
        let m = r.manifest()?;
        let rec = &m.records()[r.record as usize];
        let own = match name {
            KEY => Some(r.entry.key().as_str().to_owned()),
            STATE => Some(if m.seal().inferred { "inferred" } else { "sealed" }.to_owned()),
            BLAKE3 => r.entry.blake3(r.record)?.map(|h| h.to_hex()),
            SHA256 => r.entry.sha256(r.record)?.map(|h| h.to_hex()),
            RESIDENCY => {
                let remote = rec.hash().is_some() && r.entry.is_remote(r.record)?;
                Some(if remote { "remote" } else { "local" }.to_owned())
            }
            _ => None,
        };
        match own {
            Some(v) => Ok(v.into_bytes()),
            None => {
                m.xattrs(rec).find(|(n, _)| *n == name).map(|(_, v)| v.to_vec()).ok_or(VfsError::NoAttribute)
            }
        }
    }

    fn draft_own_xattr(&self, node: &Arc<DraftNode>, name: &[u8]) -> Result<Vec<u8>> {
        match name {
            STATE => Ok(b"draft".to_vec()),
            RESIDENCY => Ok(b"local".to_vec()),
            KEY => {
                let place = node.draft.place();
                place.key().map(|k| k.as_str().into()).ok_or(VfsError::NoAttribute)
            }
            BLAKE3 if node.kind == Kind::File => self.draft_hash(node),
            _ => Err(VfsError::NoAttribute),
        }
    }

    /// The hash of a closed file: remembered, or made now.
    fn draft_hash(&self, node: &Arc<DraftNode>) -> Result<Vec<u8>> {
        let (fd, st) = self.reach.pin(node)?;
        if let Some(hash) = node.draft.known_hash(&st) {
            return Ok(hash.to_hex().into_bytes());
        }
        let file = sys::reopen(&fd, sys::OFlag::O_RDONLY)?.into();
        if !self.cache.ingest(&node.draft, &file)? {
            return Err(VfsError::NoAttribute);
        }
        let st = sys::stat(&file)?;
        node.draft.known_hash(&st).map(|h| h.to_hex().into_bytes()).ok_or(VfsError::NoAttribute)
    }

    /// All names, each followed by NUL. outfs's own are answered but not listed: programs that
    /// copy attributes (`rsync -X`, `cp -a`, `tar --xattrs`) would carry them along, and remove them here.
    pub fn list_xattr(&self, ino: Ino) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut add = |name: &[u8]| {
            out.extend_from_slice(name);
            out.push(0);
        };
        match self.target(ino)? {
            Target::Sealed(r) => {
                let m = r.manifest()?;
                m.xattrs(&m.records()[r.record as usize]).for_each(|(n, _)| add(n));
            }
            Target::Draft(node) => {
                let (fd, _) = self.reach.pin(&node)?;
                // Only what can be read back: not security.*, not ACLs.
                let names = sys::list_xattr(&fd)?;
                names.split(|&b| b == 0).filter(|n| n.starts_with(b"user.")).for_each(&mut add);
            }
            _ => {}
        }
        Ok(out)
    }

    /// Sets an attribute of a draft's file.
    pub fn set_xattr(&self, ino: Ino, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        let node = self.changing_xattr(ino, name)?;
        let _gate = self.gate(&node)?;
        let (fd, _) = self.reach.pin(&node)?;
        sys::set_xattr(&fd, name, value, flags)?;
        self.attributes_changed(&[node.ino]);
        Ok(())
    }

    /// Removes an attribute of a draft's file.
    pub fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        let node = self.changing_xattr(ino, name)?;
        let _gate = self.gate(&node)?;
        let (fd, _) = self.reach.pin(&node)?;
        sys::remove_xattr(&fd, name)?;
        self.attributes_changed(&[node.ino]);
        Ok(())
    }

    fn changing_xattr(&self, ino: Ino, name: &OsStr) -> Result<Arc<DraftNode>> {
        match self.target(ino)? {
            _ if self.read_only() => Err(VfsError::ReadOnly),
            Target::Sealed(r) => Err(self.refuse_change(&r.entry)),
            Target::Draft(_) if name.as_bytes().starts_with(OWN) => Err(VfsError::NotPermitted),
            Target::Draft(node) if name.as_bytes().starts_with(b"user.") => Ok(node),
            _ => Err(VfsError::Unsupported),
        }
    }
}
