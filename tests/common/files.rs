//! Files as tests make and look at them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::METADATA;

/// Writes metadata, logs and outputs below an entry's top directory.
#[track_caller]
pub fn fill_entry(top: &Path, fill: impl FnOnce(&Path)) {
    fs::create_dir(top.join("outputs")).expect("outputs/");
    fs::create_dir(top.join("logs")).expect("logs/");
    write(top.join("logs/stdout.log"), "out\n");
    write(top.join("logs/stderr.log"), "err\n");
    fill(&top.join("outputs"));
    write(top.join("metadata.json"), METADATA);
}

/// Writes a file.
#[track_caller]
pub fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    let path = path.as_ref();
    fs::write(path, content).unwrap_or_else(|e| panic!("writing {}: {e}", path.display()));
}

/// Reads a file.
#[track_caller]
pub fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = path.as_ref();
    fs::read(path).unwrap_or_else(|e| panic!("reading {}: {e}", path.display()))
}

/// Makes a directory.
#[track_caller]
pub fn mkdir(path: impl AsRef<Path>) {
    let path = path.as_ref();
    fs::DirBuilder::new()
        .mode(0o755)
        .create(path)
        .unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
}

/// Changes a mode.
pub fn chmod(path: impl AsRef<Path>, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Names in a directory, sorted.
#[track_caller]
pub fn names(dir: impl AsRef<Path>) -> Vec<String> {
    let dir = dir.as_ref();
    let mut v: Vec<String> = fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("listing {}: {e}", dir.display()))
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    v.sort();
    v
}

/// An extended attribute as text; `None` when there is none.
pub fn xattr_text(path: impl AsRef<Path>, name: &str) -> Option<String> {
    let value = xattr::get(path, name).ok()??;
    Some(String::from_utf8(value).expect("these attributes are text"))
}

/// All regular files below a directory.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(d) = todo.pop() {
        let Ok(list) = fs::read_dir(&d) else { continue };
        for e in list.flatten() {
            match e.file_type() {
                Ok(t) if t.is_dir() => todo.push(e.path()),
                Ok(t) if t.is_file() => found.push(e.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// Bytes that no compressor or deduplicator makes smaller; the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A memory mapping of a file's first bytes.
pub struct Mapping {
    at: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes, shared; writable when asked.
    pub fn shared(file: &File, len: usize, writable: bool) -> Mapping {
        use std::os::fd::AsRawFd;
        let prot = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping at an address the kernel chooses; the result is checked.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert!(at != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        Mapping { at, len }
    }

    /// A copy of the mapped bytes as they are now.
    pub fn bytes(&self) -> Vec<u8> {
        let mut v = vec![0; self.len];
        // SAFETY: the mapping is `len` bytes long and lives as long as `self`; a copy, because
        // others may write to the file meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(self.at.cast::<u8>(), v.as_mut_ptr(), self.len) };
        v
    }

    /// Writes one byte through the mapping.
    pub fn set(&self, at: usize, byte: u8) {
        assert!(at < self.len);
        // SAFETY: in bounds of a mapping that was made writable.
        unsafe { self.at.cast::<u8>().add(at).write_volatile(byte) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `shared`, unmapped once.
        unsafe { libc::munmap(self.at, self.len) };
    }
}
