//! A proxy that breaks things, or is far away: between whoever reads a tier and the server that it is in.
//!
//! Invariants: what it hands on it has taken, but for what ails it; a connection that it gave up stays given up. It ends
//! with its process. Must not know: what it hands on, but for where a request ends.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What ails it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ails {
    Nothing,
    /// Every piece takes its time.
    Delays,
    /// Connections are reset in the middle of anything.
    Resets,
    /// Answers end too soon.
    Cuts,
    /// Bits of answers are wrong.
    Flips,
    /// It answers itself: 503 or 429.
    Refuses,
    /// It takes everything and answers nothing, on connections on which that happened for ever.
    Swallows,
}

/// All of it.
pub const ALL: [Ails; 7] =
    [Ails::Nothing, Ails::Delays, Ails::Resets, Ails::Cuts, Ails::Flips, Ails::Refuses, Ails::Swallows];

/// A pseudo-random number; each call another.
pub fn chance(state: &AtomicU64) -> u64 {
    let mut x = state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

pub struct Proxy {
    pub port: u16,
    ails: Arc<Mutex<Ails>>,
}

#[derive(Clone)]
struct Line {
    ails: Arc<Mutex<Ails>>,
    dice: Arc<AtomicU64>,
    /// How long everything is on its way, each way.
    way: Duration,
}

impl Proxy {
    /// To the server at this port.
    pub fn start(server: u16, seed: u64) -> Proxy {
        Proxy::with(server, seed, Duration::ZERO)
    }

    /// To the server at this port, a round trip away. Nothing ails it.
    pub fn far(server: u16, round_trip: Duration) -> Proxy {
        Proxy::with(server, 1, round_trip / 2)
    }

    fn with(server: u16, seed: u64, way: Duration) -> Proxy {
        let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
        let port = listener.local_addr().expect("it has one").port();
        let ails = Arc::new(Mutex::new(Ails::Nothing));
        let line = Line { ails: ails.clone(), dice: Arc::new(AtomicU64::new(seed)), way };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let line = line.clone();
                std::thread::spawn(move || drop(line.serve(client, server)));
            }
        });
        Proxy { port, ails }
    }

    pub fn set(&self, ails: Ails) {
        *self.ails.lock().unwrap() = ails;
    }
}

impl Line {
    fn serve(&self, client: TcpStream, server: u16) -> io::Result<()> {
        let server = TcpStream::connect(("127.0.0.1", server))?;
        let (from, to) = (client.try_clone()?, server.try_clone()?);
        if !self.way.is_zero() {
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            // To say hello takes a round trip, too.
            std::thread::sleep(2 * self.way);
            let way = self.way;
            std::thread::spawn(move || carry(from, to, way));
            carry(server, client, way);
            return Ok(());
        }
        let up = self.clone();
        std::thread::spawn(move || up.hand_on(from, to, false));
        self.hand_on(server, client, true);
        Ok(())
    }

    /// One time in so many.
    fn now(&self, one_in: u64) -> bool {
        chance(&self.dice).is_multiple_of(one_in)
    }

    fn hand_on(&self, mut from: TcpStream, mut to: TcpStream, answers: bool) {
        let mut piece = vec![0; 32 << 10];
        let mut swallowed = false;
        loop {
            let n = match from.read(&mut piece) {
                Ok(n) if n > 0 => n,
                _ => break,
            };
            let mut bytes = &mut piece[..n];
            let ails = *self.ails.lock().unwrap();
            match ails {
                _ if swallowed => bytes = &mut [],
                Ails::Delays => std::thread::sleep(Duration::from_millis(chance(&self.dice) % 60)),
                Ails::Resets if self.now(8) => break,
                Ails::Cuts if answers && self.now(4) => {
                    let _ = to.write_all(&bytes[..n / 2]);
                    break;
                }
                Ails::Flips if answers && self.now(4) => {
                    let at = chance(&self.dice) as usize % n;
                    bytes[at] ^= 1 << (at % 8);
                }
                Ails::Refuses if !answers && self.now(2) => {
                    let status = ["503 Slow Down", "429 Too Many Requests"][self.now(2) as usize];
                    let answer =
                        format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                    let _ = from.write_all(answer.as_bytes());
                    break;
                }
                Ails::Swallows => (bytes, swallowed) = (&mut [], true),
                _ => {}
            }
            if to.write_all(bytes).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}

/// Hands everything on when it has been on its way for so long; what comes meanwhile follows it.
fn carry(mut from: TcpStream, to: TcpStream, way: Duration) {
    let (sender, pieces) = sync_channel::<(Instant, Vec<u8>)>(1024);
    let Ok(mut arrives) = to.try_clone() else { return };
    let arriving = std::thread::spawn(move || {
        for (due, bytes) in pieces {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if arrives.write_all(&bytes).is_err() {
                return;
            }
        }
    });
    let mut piece = vec![0; 32 << 10];
    while let Ok(n @ 1..) = from.read(&mut piece) {
        if sender.send((Instant::now() + way, piece[..n].to_vec())).is_err() {
            break;
        }
    }
    drop(sender);
    let _ = (arriving.join(), from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
