//! The client: asks a running daemon, and waits for it unless it was stopped. Must not know: what requests mean.

use std::io::{self, BufReader};
use std::path::Path;

use super::patient::Patient;
use super::wire::{self, Asked, ClientFrame, ServerFrame};
use super::{Channel, Failure, Kind, Reply, Request, VERSION, socket};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens: no daemon.
    #[error("no daemon runs for this store")]
    NoDaemon,
    /// Somebody may, but it cannot be reached.
    #[error("cannot reach the daemon: {0}")]
    Io(#[from] io::Error),
}

/// A connection to a store's daemon.
pub struct Client {
    stream: BufReader<Patient>,
}

impl Client {
    /// Connects to the daemon that owns the store.
    pub fn connect(store: &Path) -> Result<Client, ConnectError> {
        match socket::connect(store) {
            Ok(stream) => Ok(Client { stream: BufReader::new(Patient::new(stream)?) }),
            Err(e) => Err(match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
                    ConnectError::NoDaemon
                }
                _ => ConnectError::Io(e),
            }),
        }
    }

    /// Asks, and waits for the answer; what is streamed goes through `channel`.
    pub fn call(&mut self, request: Request, channel: &mut dyn Channel) -> Result<Reply, Failure> {
        let wants_input = request.wants_input();
        let asked = Asked { outfs: VERSION, place: socket::place(), request };
        match wire::send(self.stream.get_mut(), &asked) {
            Ok(()) if wants_input => self.stream_input(channel)?,
            // Who hangs up on a question has answered before: why is there to be read.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(lost(e)),
            _ => {}
        }
        loop {
            let frame: Option<ServerFrame> = wire::receive(&mut self.stream).map_err(lost)?;
            match frame {
                Some(ServerFrame::Data { bytes }) => {
                    let data = wire::receive_data(&mut self.stream, bytes).map_err(lost)?;
                    channel.data(&data).map_err(output)?;
                }
                Some(ServerFrame::Progress { progress }) => channel.progress(progress),
                Some(ServerFrame::Done { reply }) => return Ok(*reply),
                Some(ServerFrame::Failed { failure }) => return Err(failure),
                None => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }

    /// The server reads all input, even after it has failed, or hangs up, so this never waits for ever.
    fn stream_input(&mut self, channel: &mut dyn Channel) -> Result<(), Failure> {
        match self.send_input(channel) {
            // As above.
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Ok(())
            }
            Err(e) => Err(lost(e)),
            Ok(sent) => sent,
        }
    }

    /// The outer error is of the connection.
    fn send_input(&mut self, channel: &mut dyn Channel) -> io::Result<Result<(), Failure>> {
        let mut buffer = vec![0; wire::MAX_DATA];
        loop {
            let n = match channel.input().read(&mut buffer) {
                Ok(n) => n,
                Err(e) => return Ok(Err(Failure::failed(format!("cannot read the input: {e}")))),
            };
            let out = self.stream.get_mut();
            if n == 0 {
                return wire::send(out, &ClientFrame::End).map(Ok);
            }
            wire::send(out, &ClientFrame::Data { bytes: n })?;
            io::Write::write_all(out, &buffer[..n])?;
        }
    }

    /// The daemon's process, if it can be seen from here.
    pub fn daemon(&self) -> Option<u32> {
        self.stream.get_ref().daemon()
    }

    /// Waits until the daemon closes the connection: after a stop, that it has closed the store or is gone.
    pub fn wait_for_end(mut self) -> Result<(), Failure> {
        match io::copy(&mut self.stream, &mut io::sink()) {
            Err(e) if e.kind() == io::ErrorKind::TimedOut => Err(lost(e)),
            _ => Ok(()),
        }
    }
}

fn lost(e: io::Error) -> Failure {
    match e.kind() {
        io::ErrorKind::InvalidData => Failure::new(
            Kind::Protocol,
            format!(
                "the daemon's answer is not understood ({e}); 'outfs stop' ends a daemon of another version"
            ),
        ),
        io::ErrorKind::FileTooLarge => {
            Failure::new(Kind::TooMany, "the request is larger than a daemon takes; ask for less")
        }
        io::ErrorKind::TimedOut => Failure::new(Kind::Halted, e.to_string()),
        _ => Failure::new(Kind::Lost, "the daemon went away before it answered; ask again"),
    }
}

fn output(e: io::Error) -> Failure {
    match e.kind() {
        io::ErrorKind::BrokenPipe => Failure::new(Kind::Hangup, "the output was closed"),
        _ => Failure::failed(format!("cannot write the output: {e}")),
    }
}
