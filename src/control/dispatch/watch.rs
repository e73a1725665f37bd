//! Long work, and telling how far it is meanwhile.

use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use parking_lot::Mutex;

use super::super::{Channel, Progress};
use crate::cache::Work;
use crate::model::units::{counted, human_bytes};

/// Often enough for people, rarely enough for the connection.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Does `work` and tells how many of `things` are done until it ends.
pub(super) fn watched<T: Send>(
    channel: &mut dyn Channel,
    (what, thing, things): (&str, &str, &str),
    work: impl FnOnce(&Work) -> T + Send,
) -> T {
    let figures = Work::default();
    beside(channel, &|| Some(told(&figures, what, thing, things)), || work(&figures))
}

/// Does `work` in a thread of its own, and tells how far it is until it ends: who does not listen holds up nothing. Where no thread
/// can be had it is done without a word.
pub(super) fn beside<T: Send>(
    channel: &mut dyn Channel,
    tell: &dyn Fn() -> Option<Progress>,
    work: impl FnOnce() -> T + Send,
) -> T {
    let (end, ended) = bounded::<()>(0);
    let work = Mutex::new(Some((work, end)));
    let done = || {
        let (work, _end) = work.lock().take().expect("it is done once, by whom it was left to");
        work()
    };
    std::thread::scope(|scope| {
        let Ok(running) = std::thread::Builder::new().spawn_scoped(scope, done) else { return done() };
        while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(TELL_EVERY) {
            if let Some(progress) = tell() {
                channel.progress(progress);
            }
        }
        running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn told(figures: &Work, what: &str, thing: &str, things: &str) -> Progress {
    let ((n, bytes), (of, all)) = (figures.done(), figures.expected());
    if of == 0 {
        return Progress {
            what: format!("{what}: {}, {}", counted(n, thing, things), human_bytes(bytes)),
            done: n,
            total: None,
        };
    }
    let (n, bytes) = (n.min(of), bytes.min(all));
    let what = format!(
        "{what}: {n} of {}, {} of {}",
        counted(of, thing, things),
        human_bytes(bytes),
        human_bytes(all)
    );
    match all {
        0 => Progress { what, done: n, total: Some(of) },
        _ => Progress { what, done: bytes, total: Some(all) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Heard(crossbeam_channel::Sender<Progress>);
    impl Channel for Heard {
        fn data(&mut self, _: &[u8]) -> std::io::Result<()> {
            Ok(())
        }
        fn input(&mut self) -> &mut dyn std::io::Read {
            unreachable!("nothing reads")
        }
        fn progress(&mut self, progress: Progress) {
            let _ = self.0.send(progress);
        }
    }

    #[test]
    fn what_takes_long_tells_how_far_it_is() {
        let (tell, told) = crossbeam_channel::unbounded();
        let answer = watched(&mut Heard(tell), ("storing k", "file", "files"), |work| {
            let wait = |what: &str, done, total| {
                let heard = || told.recv_timeout(Duration::from_secs(20)).unwrap();
                let wanted = Progress { what: what.into(), done, total };
                while heard() != wanted {}
            };
            wait("storing k: 0 files, 0 B", 0, None);
            work.expect(4, 2048);
            work.did(1, 1024);
            wait("storing k: 1 of 4 files, 1.0 KiB of 2.0 KiB", 1024, Some(2048));
            7
        });
        assert_eq!(answer, 7);
    }
}
