//! Frames: JSON lines, with raw bytes after `data` lines. Knows no meaning of requests.

use std::io::{self, BufRead, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Failure, Progress, Reply, Request};

/// The longest line either side accepts; less in unit tests, which fill one.
pub(super) const MAX_LINE: u64 = if cfg!(test) { 8 << 20 } else { 256 << 20 };
/// The most bytes in one data frame.
pub(super) const MAX_DATA: usize = 1 << 20;

/// A client's request line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Asked {
    pub outfs: u32,
    /// What paths mean to the client, see [`super::socket::place`].
    pub place: String,
    pub request: Request,
}

/// What a client sends after a request that wants input.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "snake_case")]
pub(super) enum ClientFrame {
    /// So many raw bytes follow the line.
    Data { bytes: usize },
    /// The input ends.
    End,
}

/// What the server sends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "snake_case")]
pub(super) enum ServerFrame {
    /// So many raw bytes of the result follow the line.
    Data { bytes: usize },
    /// How far it is.
    Progress { progress: Progress },
    /// The request was answered.
    Done { reply: Box<Reply> },
    /// The request failed.
    Failed { failure: Failure },
}

/// Writes one line. Nothing is sent, and the error is `InvalidInput` when JSON cannot say it, `FileTooLarge` when nobody
/// would accept so long a line.
pub(super) fn send(out: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message).map_err(|e| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("cannot be written as JSON: {e}"))
    })?;
    line.push(b'\n');
    if line.len() as u64 > MAX_LINE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    out.write_all(&line)
}

/// Reads one line; `None` at the end of the stream.
pub(super) fn receive<T: DeserializeOwned>(input: &mut impl BufRead) -> io::Result<Option<T>> {
    match receive_line(input)? {
        Some(line) => serde_json::from_slice(&line)
            .map(Some)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("not understood: {e}"))),
        None => Ok(None),
    }
}

/// Reads one line's bytes; `None` at the end of the stream.
pub(super) fn receive_line(input: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let n = input.take(MAX_LINE).read_until(b'\n', &mut line)?;
    if n == 0 {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        if n as u64 == MAX_LINE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
        }
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a line was cut off"));
    }
    Ok(Some(line))
}

/// Reads the raw bytes of a data frame.
pub(super) fn receive_data(input: &mut impl Read, bytes: usize) -> io::Result<Vec<u8>> {
    if bytes > MAX_DATA {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a data frame is too long"));
    }
    let mut data = vec![0; bytes];
    input.read_exact(&mut data)?;
    Ok(data)
}
