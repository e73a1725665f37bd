//! What a command prints, kept within bounds, and the order in which it came.
//!
//! Invariants: the start and the end of a long log are kept, with a line between them that says how much is
//! missing; memory is bounded whatever is printed. Must not know: where it comes from.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

/// Bytes kept of the start, and as many of the end.
const HALF: usize = 4 << 20;
/// So many changes between the two streams are remembered.
const MAX_TURNS: usize = 10_000;

/// One stream.
#[derive(Debug, Default)]
pub struct Capture {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    dropped: u64,
}

impl Capture {
    /// Takes what was printed.
    pub fn push(&mut self, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(HALF - self.head.len()));
        self.head.extend_from_slice(head);
        self.tail.extend(rest);
        let over = self.tail.len().saturating_sub(HALF);
        self.tail.drain(..over);
        self.dropped += over as u64;
    }

    /// All of it was kept.
    pub fn is_whole(&self) -> bool {
        self.dropped == 0
    }

    /// The log.
    pub fn into_bytes(mut self) -> Vec<u8> {
        if self.dropped > 0 {
            let cut = format!("\n[outfs: {} bytes were not kept]\n", self.dropped);
            self.head.extend_from_slice(cut.as_bytes());
        }
        self.head.extend(self.tail);
        self.head
    }
}

/// In which order two logs were written: how many bytes of one, then of the other, and so on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Order(Vec<(bool, u64)>);

impl Order {
    /// So many bytes came, of standard error if `stderr`.
    pub fn push(&mut self, stderr: bool, bytes: u64) {
        let turns = self.0.len();
        match self.0.last_mut() {
            Some((last, n)) if *last == stderr => *n += bytes,
            // Later ones come one after the other.
            _ if turns >= MAX_TURNS => {}
            _ => self.0.push((stderr, bytes)),
        }
    }

    /// Writes two logs as they came; what the order does not speak of comes last.
    pub fn replay(&self, logs: [&[u8]; 2], to: &mut dyn FnMut(bool, &[u8])) {
        let mut left = logs;
        let rest = [(false, u64::MAX), (true, u64::MAX)];
        for (stderr, bytes) in self.0.iter().chain(&rest) {
            let log = &mut left[usize::from(*stderr)];
            let (now, later) = log.split_at((*bytes).min(log.len() as u64) as usize);
            *log = later;
            if !now.is_empty() {
                to(*stderr, now);
            }
        }
    }
}

/// As `o12 e3 o4`.
impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (stderr, bytes)) in self.0.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{}{bytes}", if *stderr { 'e' } else { 'o' })?;
        }
        Ok(())
    }
}

/// What cannot be read is no order.
impl FromStr for Order {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let turn = |word: &str| Some((word.strip_prefix('e').is_some(), word.get(1..)?.parse().ok()?));
        Ok(Order(text.split_whitespace().map_while(turn).collect()))
    }
}

/// Where live output goes; a reader that went away is no reason to end the command.
pub trait Sink {
    /// Bytes of standard output, or of standard error.
    fn wrote(&mut self, stderr: bool, bytes: &[u8]);
}

/// Two writers.
pub struct Writers<O, E>(pub O, pub E);

impl<O: Write, E: Write> Sink for Writers<O, E> {
    fn wrote(&mut self, stderr: bool, bytes: &[u8]) {
        let both = |w: &mut dyn Write| -> io::Result<()> {
            w.write_all(bytes)?;
            w.flush()
        };
        let _ = if stderr { both(&mut self.1) } else { both(&mut self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_keeps_its_start_and_its_end() {
        let mut short = Capture::default();
        short.push(b"abc");
        short.push(b"");
        assert!(short.is_whole());
        assert_eq!(short.into_bytes(), b"abc");
        let mut long = Capture::default();
        for n in 0..3_000_000u32 {
            long.push(format!("{n:07}\n").as_bytes());
        }
        assert!(!long.is_whole());
        let text = String::from_utf8(long.into_bytes()).unwrap();
        assert!(text.starts_with("0000000\n") && text.ends_with("2999999\n"));
        let dropped = 24_000_000 - 2 * HALF;
        assert!(text.contains(&format!("\n[outfs: {dropped} bytes were not kept]\n")));
        assert!(text.len() < 2 * HALF + 100);
        let mut full = Capture::default();
        full.push(&vec![b'x'; 2 * HALF]);
        assert!(full.is_whole());
        assert_eq!(full.into_bytes().len(), 2 * HALF);
    }

    #[test]
    fn two_logs_come_back_in_order() {
        let mut order = Order::default();
        for (stderr, bytes) in [(false, 2), (false, 1), (true, 2), (false, 1)] {
            order.push(stderr, bytes);
        }
        assert_eq!(order.to_string(), "o3 e2 o1");
        assert_eq!(order.to_string().parse(), Ok(order.clone()));
        let play = |order: &Order| {
            let mut seen = Vec::new();
            order.replay([b"abcdef", b"123"], &mut |stderr, bytes| {
                seen.push((stderr, String::from_utf8(bytes.to_vec()).unwrap()));
            });
            seen
        };
        let all = |list: &[(bool, &str)]| list.iter().map(|(s, t)| (*s, t.to_string())).collect::<Vec<_>>();
        assert_eq!(
            play(&order),
            all(&[(false, "abc"), (true, "12"), (false, "d"), (false, "ef"), (true, "3")])
        );
        assert_eq!(play(&Order::default()), all(&[(false, "abcdef"), (true, "123")]));
        assert_eq!(play(&"e99 junk".parse().unwrap()), all(&[(true, "123"), (false, "abcdef")]));
        let mut many = Order::default();
        (0..3 * MAX_TURNS).for_each(|n| many.push(n % 2 == 0, 1));
        assert_eq!(many.0.len(), MAX_TURNS);
    }
}
