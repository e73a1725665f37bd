//! The systemd journal's native protocol: one datagram of fields for each record.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::control::Failure;

const SOCKET: &str = "/run/systemd/journal/socket";

/// How long a record may wait to be taken.
const PATIENCE: Duration = Duration::from_millis(200);

/// A connection to the journal.
#[derive(Clone)]
pub(super) struct Journal {
    socket: Arc<UnixDatagram>,
}

impl Journal {
    pub(super) fn connect() -> Result<Self, Failure> {
        let connect = || -> io::Result<UnixDatagram> {
            let socket = UnixDatagram::unbound()?;
            socket.connect(SOCKET)?;
            // A journal that stands still loses records and holds nobody up.
            socket.set_write_timeout(Some(PATIENCE))?;
            Ok(socket)
        };
        let socket = connect().map_err(|e| {
            Failure::failed(format!(
                "there is no journal to log to ({SOCKET}: {e}); use --log stderr or --log FILE"
            ))
        })?;
        Ok(Self { socket: Arc::new(socket) })
    }

    fn record(&self, priority: u8) -> JournalRecord {
        JournalRecord { socket: self.socket.clone(), priority, message: Vec::new() }
    }
}

/// The fields of one record.
fn datagram(priority: u8, message: &[u8]) -> Vec<u8> {
    let message = message.trim_ascii_end();
    let mut out = format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=outfs\nMESSAGE\n").into_bytes();
    out.extend_from_slice(&(message.len() as u64).to_le_bytes());
    out.extend_from_slice(message);
    out.push(b'\n');
    out
}

/// Collects one record and sends it when dropped.
pub(super) struct JournalRecord {
    socket: Arc<UnixDatagram>,
    priority: u8,
    message: Vec<u8>,
}

impl Write for JournalRecord {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.message.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for JournalRecord {
    fn drop(&mut self) {
        if !self.message.is_empty() {
            // A record the journal does not take has nowhere else to go.
            let _ = self.socket.send(&datagram(self.priority, &self.message));
        }
    }
}

impl<'a> MakeWriter<'a> for Journal {
    type Writer = JournalRecord;

    fn make_writer(&'a self) -> JournalRecord {
        self.record(6)
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> JournalRecord {
        let priority = match *meta.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        self.record(priority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_several_lines_is_one_message() {
        let d = datagram(4, b"one\ntwo\n");
        assert!(d.starts_with(b"PRIORITY=4\nSYSLOG_IDENTIFIER=outfs\nMESSAGE\n\x07\0\0\0\0\0\0\0one\ntwo\n"));
    }
}
