//! The orders in which threads and processes may come: small state machines, model-checked.
//!
//! The files of `src/` that decide who may free, seal, change and execute are taken here as they are, with shuttle's locks
//! and counters in place of real ones (`src/sync.rs`), and a kernel made of them in place of flock (`kernel.rs`); each test
//! runs its threads in thousands of random orders. What goes wrong is told with the schedule that `shuttle::replay`
//! takes. `OUTFS_INTERLEAVINGS` is the number of orders of each test (default 1,000).

#[allow(dead_code)]
#[path = "../../src/cache/flights.rs"]
mod fetched_once;
#[allow(dead_code)]
#[path = "../../src/cache/gate.rs"]
mod gate;
#[allow(dead_code)]
#[path = "../../src/cache/lease.rs"]
mod lease;
#[allow(dead_code)]
#[path = "../../src/cache/sealing.rs"]
mod sealing;
#[allow(dead_code)]
mod sync;
#[allow(dead_code)]
#[path = "../../src/cache/turns.rs"]
mod turns;

mod blobs;
mod drafts;
mod entries;
mod fetches;
mod flights;
#[allow(dead_code)]
mod run;
mod slots;
#[allow(dead_code)]
mod vfs;

/// What `lease.rs` and `flight.rs` know of other rooms.
mod model {
    pub use outfs::model::{BlobHash, EntryKey};
}

/// What `slots.rs` knows of other rooms.
mod cache {
    use std::sync::Arc;

    /// An entry, leased.
    #[derive(Clone)]
    pub struct Entry(pub Arc<crate::lease::Lease>);

    impl Entry {
        pub fn id(&self) -> i64 {
            self.0.entry
        }
    }
}

/// How many orders are tried.
fn orders() -> usize {
    std::env::var("OUTFS_INTERLEAVINGS").map_or(1000, |n| n.parse().expect("a number"))
}

/// Runs `threads` in many orders.
fn explore(threads: impl Fn() + Send + Sync + 'static) {
    explore_in(orders(), threads);
}

/// Runs `threads` in so many orders: half of them with few changes at unlikely moments, half random at each step.
fn explore_in(orders: usize, threads: impl Fn() + Send + Sync + 'static) {
    let mut config = shuttle::Config::new();
    config.stack_size = 256 << 10;
    config.silence_warnings = true;
    let threads = std::sync::Arc::new(threads);
    let again = threads.clone();
    let few_changes = shuttle::scheduler::PctScheduler::new(4, orders / 2);
    shuttle::Runner::new(few_changes, config.clone()).run(move || again());
    let random = shuttle::scheduler::RandomScheduler::new(orders / 2);
    shuttle::Runner::new(random, config).run(move || threads());
}

/// Runs all of them at once and waits for them.
fn together(threads: Vec<Box<dyn FnOnce() + Send>>) {
    let running: Vec<_> = threads.into_iter().map(shuttle::thread::spawn).collect();
    running.into_iter().for_each(|t| t.join().expect("a thread that does not panic"));
}

/// The same, with what they share.
fn together_in<World: Send + Sync + 'static>(world: &std::sync::Arc<World>, threads: &[fn(&World)]) {
    let thread = |work: &fn(&World)| -> Box<dyn FnOnce() + Send> {
        let (world, work) = (world.clone(), *work);
        Box::new(move || work(&world))
    };
    together(threads.iter().map(thread).collect());
}

#[test]
fn one_is_at_a_key_at_a_time_and_nobody_waits_forever() {
    explore(|| {
        let turns = std::sync::Arc::new(turns::Turns::<u8>::default());
        let inside = std::sync::Arc::new([const { std::sync::atomic::AtomicUsize::new(0) }; 2]);
        let thread = |key: u8| -> Box<dyn FnOnce() + Send> {
            let (turns, inside) = (turns.clone(), inside.clone());
            Box::new(move || {
                let _turn = turns.enter(&key);
                let at = &inside[usize::from(key)];
                assert_eq!(at.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0, "two at one key");
                shuttle::thread::yield_now();
                at.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            })
        };
        together(vec![thread(0), thread(0), thread(1), thread(0)]);
    });
}
