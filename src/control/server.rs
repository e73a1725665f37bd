//! The server: one thread that accepts, one for each connection. Only the store's owner and
//! root are answered, and a handler that panics is answered for. Must not know: what requests mean (a [`Handler`] does).

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::wire::{self, Asked, ClientFrame, ServerFrame};
use super::{Caller, Channel, Failure, Kind, Progress, Reply, Request, VERSION, socket};
use crate::model::units::human_bytes;

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Answers one.
    fn handle(&self, caller: &Caller, request: Request, channel: &mut dyn Channel) -> Result<Reply, Failure>;
}

/// The listening socket.
pub struct Server {
    listener: UnixListener,
    shared: Arc<Shared>,
    address: std::path::PathBuf,
}

#[derive(Default)]
struct Shared {
    closed: AtomicBool,
    running: AtomicUsize,
    next: AtomicU64,
    /// What `close` shuts, so that no thread waits for the next request of a silent client.
    open: Mutex<HashMap<u64, UnixStream>>,
}

impl Shared {
    fn enter(&self, stream: &UnixStream) -> io::Result<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().insert(number, stream.try_clone()?);
        Ok(number)
    }
}

impl Server {
    /// Binds the store's socket; the caller owns the store.
    pub fn bind(store: &Path) -> Result<Server, Failure> {
        let listener = socket::bind(store).map_err(|e| {
            Failure::failed(format!("cannot listen on {}: {e}", store.join(super::SOCKET).display()))
        })?;
        Ok(Server { listener, shared: Arc::default(), address: store.to_owned() })
    }

    /// Answers in the background from now on.
    pub fn serve(&self, handler: Arc<dyn Handler>) -> io::Result<()> {
        let listener = self.listener.try_clone()?;
        let shared = self.shared.clone();
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&listener, &shared, &handler))?;
        Ok(())
    }

    /// Accepts nobody any more and waits, at most so long, until running requests are answered.
    pub fn close(&self, patience: Duration) {
        self.shared.closed.store(true, Ordering::SeqCst);
        let _ = std::fs::remove_file(self.address.join(super::SOCKET));
        // Wakes the accepting thread (on Linux a listening socket can be shut down); it sees `closed`.
        let _ = nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&self.listener),
            nix::sys::socket::Shutdown::Both,
        );
        let deadline = Instant::now() + patience;
        while self.shared.running.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Ends the threads; clients see the end only when the server is dropped, after the store was closed.
        for stream in self.shared.open.lock().values() {
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>, handler: &Arc<dyn Handler>) {
    for stream in listener.incoming() {
        if shared.closed.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else {
            // Out of descriptors, most likely: others must end first.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        let (shared, handler) = (shared.clone(), handler.clone());
        let spawned = std::thread::Builder::new().name("control-client".into()).spawn(move || {
            let number = match shared.enter(&stream) {
                Ok(number) => number,
                Err(e) => return tracing::warn!("cannot serve a control connection: {e}"),
            };
            if let Err(e) = converse(stream, &shared, &*handler) {
                tracing::debug!("a control connection ended: {e}");
            }
            if !shared.closed.load(Ordering::SeqCst) {
                shared.open.lock().remove(&number);
            }
        });
        if let Err(e) = spawned {
            tracing::warn!("cannot start a thread for a control connection: {e}");
        }
    }
}

fn converse(stream: UnixStream, shared: &Shared, handler: &dyn Handler) -> io::Result<()> {
    let uid = socket::peer_uid(&stream)?;
    let mut input = BufReader::new(stream.try_clone()?);
    let mut output = stream;
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        let failure = Failure::new(Kind::Denied, "only the store's owner and root may ask its daemon");
        return wire::send(&mut output, &ServerFrame::Failed { failure });
    }
    let caller = Caller { uid };
    while let Some(line) = wire::receive_line(&mut input)? {
        if shared.closed.load(Ordering::SeqCst) {
            let failure = Failure::new(Kind::Stopping, "the daemon is about to end; ask again");
            return wire::send(&mut output, &ServerFrame::Failed { failure });
        }
        shared.running.fetch_add(1, Ordering::SeqCst);
        let result = answer(&line, &caller, &mut input, &mut output, handler);
        shared.running.fetch_sub(1, Ordering::SeqCst);
        if !result? {
            return Ok(());
        }
    }
    Ok(())
}

/// Answers a request; false when nothing can follow. What follows one that is not understood may be the input that belongs to it,
/// which is never to be taken for requests.
fn answer(
    line: &[u8],
    caller: &Caller,
    input: &mut BufReader<UnixStream>,
    output: &mut UnixStream,
    handler: &dyn Handler,
) -> io::Result<bool> {
    let Asked { place, request, .. } = match parse(line) {
        Ok(asked) => asked,
        Err(failure) => return wire::send(output, &ServerFrame::Failed { failure }).map(|()| false),
    };
    let ended = !request.wants_input();
    let mut channel = WireChannel { input: InputFrames { input, left: 0, ended }, output };
    let result = match request.names_paths() && place != socket::place() {
        true => Err(Failure::failed(
            "the daemon sees other files than this command does (it runs in another mount namespace or root \
             directory, as in a container); use 'put --tar -' and 'restore --tar -' from here",
        )),
        false => guarded(|| handler.handle(caller, request, &mut channel)),
    };
    // All input is read before the answer: a client that still writes would never see it.
    io::copy(&mut channel.input, &mut io::sink())?;
    let frame = match result {
        Ok(reply) => ServerFrame::Done { reply: Box::new(reply) },
        Err(failure) => ServerFrame::Failed { failure },
    };
    let failure = match wire::send(channel.output, &frame) {
        // Nothing was sent: a fact that JSON cannot say.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
            Failure::failed(format!("the answer cannot be sent: {e}"))
        }
        Err(e) if e.kind() == io::ErrorKind::FileTooLarge => {
            let most = human_bytes(wire::MAX_LINE);
            Failure::new(Kind::TooMany, format!("the answer would be larger than {most}; ask for less"))
        }
        other => return other.map(|()| true),
    };
    wire::send(channel.output, &ServerFrame::Failed { failure }).map(|()| true)
}

/// A panic is this request's failure, and nobody else's.
fn guarded(answer: impl FnOnce() -> Result<Reply, Failure>) -> Result<Reply, Failure> {
    catch_unwind(AssertUnwindSafe(answer)).unwrap_or_else(|_| {
        tracing::error!("a command panicked; it is answered with a failure");
        Err(Failure::new(
            Kind::Fault,
            "the daemon has met a fault in itself while it answered; its log says where, and it goes on",
        ))
    })
}

pub(super) fn parse(line: &[u8]) -> Result<Asked, Failure> {
    #[derive(serde::Deserialize)]
    struct Version {
        outfs: u32,
    }
    let protocol = |why: String| Failure::new(Kind::Protocol, why);
    let version: Version =
        serde_json::from_slice(line).map_err(|e| protocol(format!("this is no outfs request: {e}")))?;
    if version.outfs != VERSION {
        return stop_of_any_version(line).ok_or_else(|| {
            protocol(format!(
                "the daemon speaks version {VERSION} of the control protocol, the client {}; 'outfs stop' ends it",
                version.outfs
            ))
        });
    }
    serde_json::from_slice(line).map_err(|e| protocol(format!("the request is not understood: {e}")))
}

/// The one request that is the same in all versions of the protocol, as are its answers: whatever program is installed
/// by now, it can end the daemon.
fn stop_of_any_version(line: &[u8]) -> Option<Asked> {
    #[derive(serde::Deserialize)]
    struct Line {
        request: Only,
    }
    #[derive(serde::Deserialize)]
    #[serde(tag = "op", rename_all = "snake_case")]
    enum Only {
        Stop { lazy: bool },
    }
    let Line { request: Only::Stop { lazy } } = serde_json::from_slice(line).ok()?;
    Some(Asked { outfs: VERSION, place: socket::place(), request: Request::Stop { lazy } })
}

/// The client's data frames as a stream.
struct InputFrames<'a> {
    input: &'a mut BufReader<UnixStream>,
    left: usize,
    ended: bool,
}

impl Read for InputFrames<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 && !self.ended {
            match wire::receive(self.input)? {
                Some(ClientFrame::Data { bytes }) => self.left = bytes,
                Some(ClientFrame::End) => self.ended = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        if self.ended {
            return Ok(0);
        }
        let want = buffer.len().min(self.left);
        let n = self.input.read(&mut buffer[..want])?;
        if n == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n;
        Ok(n)
    }
}

struct WireChannel<'a> {
    input: InputFrames<'a>,
    output: &'a mut UnixStream,
}

impl Channel for WireChannel<'_> {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(wire::MAX_DATA) {
            wire::send(self.output, &ServerFrame::Data { bytes: piece.len() })?;
            self.output.write_all(piece)?;
        }
        Ok(())
    }
    fn input(&mut self) -> &mut dyn Read {
        &mut self.input
    }
    fn progress(&mut self, progress: Progress) {
        let _ = wire::send(self.output, &ServerFrame::Progress { progress });
    }
}
