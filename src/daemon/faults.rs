//! Panics of this process: each is logged with its place, and counted. A daemon has no standard error on which
//! anybody would read of one, and whoever catches it goes on. Must not know: who caught it.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

static SEEN: AtomicU64 = AtomicU64::new(0);

/// From now on panics are logged and counted, before what was done about them so far.
pub(super) fn watch() {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            SEEN.fetch_add(1, Ordering::Relaxed);
            let thread = std::thread::current();
            tracing::error!(thread = thread.name().unwrap_or("?"), "a fault of outfs: {info}");
            before(info);
        }));
    });
}

/// How many there were.
pub(super) fn seen() -> u64 {
    SEEN.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_that_is_caught_is_counted() {
        watch();
        let before = seen();
        assert!(std::panic::catch_unwind(|| panic!("as a fault inside would")).is_err());
        assert!(seen() > before);
    }
}
