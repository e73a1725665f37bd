//! A file that is mapped, and looked at in such a way that what is lost is an error and no signal.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;

/// A shared mapping of a whole file; whoever made it may close the file.
pub struct Mapped {
    at: *mut libc::c_void,
    len: usize,
}

impl Mapped {
    pub fn new(file: &File) -> io::Result<Self> {
        let len = file.metadata()?.len() as usize;
        // SAFETY: a new mapping where the kernel chooses; the result is checked.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { at, len }) }
    }

    /// The first bytes, this many at most. The kernel copies them: a page that cannot be had is EFAULT.
    pub fn bytes(&self, most: usize) -> io::Result<Vec<u8>> {
        let mut copy = tempfile::tempfile()?;
        let (most, mut done) = (most.min(self.len), 0);
        while done < most {
            // SAFETY: these bytes lie within the mapping, which lives as long as `self`.
            let wrote =
                unsafe { libc::write(copy.as_raw_fd(), self.at.cast::<u8>().add(done).cast(), most - done) };
            match usize::try_from(wrote) {
                Ok(wrote) => done += wrote,
                Err(_) => return Err(io::Error::last_os_error()),
            }
        }
        let mut bytes = Vec::with_capacity(most);
        copy.rewind()?;
        copy.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, unmapped once.
        unsafe { libc::munmap(self.at, self.len) };
    }
}
