//! Runs of one key at the same time: one is in the air at any moment, whoever waits goes on when it has landed or died, and
//! nothing stays behind. Without parts of the protocol two are in the air, and that is found.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use shuttle::rand::Rng;
use shuttle::thread::yield_now;

use crate::model::EntryKey;
use crate::run::flight::{Flight, Takeoff};
use crate::run::marker::{self as kernel, Fault, Guard};
use crate::sync::Mutex;
use crate::{explore_in, orders};

const DIR: &str = "/runs";
const KEY: &str = "aaaa";

/// What becomes of a run that executes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Run {
    Keeps,
    Fails,
    /// Fails, and is run again and again.
    FailsOften,
    /// Killed at some moment, or not.
    Dies,
    /// The same, and its guard ends the command after that.
    DiesGuarded,
    /// Of another key.
    Elsewhere,
}

#[derive(Default)]
struct World {
    kept: Mutex<bool>,
    executed: AtomicU32,
}

impl World {
    /// As `outfs run`: looks, takes off, looks again, executes, keeps, lands.
    fn run(&self, run: Run) -> io::Result<()> {
        let mortal = matches!(run, Run::Dies | Run::DiesGuarded);
        let me = kernel::begin(mortal.then(|| shuttle::rand::thread_rng().gen_range(1..40)));
        let key = EntryKey::parse(if run == Run::Elsewhere { "bbbb" } else { KEY }).expect("a key");
        loop {
            if run != Run::Elsewhere && *self.kept.lock() {
                return Ok(());
            }
            match Flight::take(Path::new(DIR), &key)? {
                Takeoff::Mine(_) if run == Run::Elsewhere => return Ok(()),
                Takeoff::Mine(_) if *self.kept.lock() => return Ok(()),
                Takeoff::Mine(flight) => return self.execute(run, &flight),
                Takeoff::Others(other) => {
                    assert_ne!(other.pid(), Some(me), "it waits for itself");
                    other.wait()?;
                }
                Takeoff::Nowhere => unreachable!("there is a place"),
            }
        }
    }

    fn execute(&self, run: Run, _flight: &Flight) -> io::Result<()> {
        let path = Path::new(DIR).join(KEY);
        kernel::take_off(&path)?;
        let guard = (run == Run::DiesGuarded).then(Guard::start).transpose()?;
        let ended = (0..8).try_for_each(|_| kernel::work());
        if let Some(guard) = guard {
            yield_now();
            guard.end();
        }
        ended?;
        self.executed.fetch_add(1, Ordering::SeqCst);
        kernel::work()?;
        if !matches!(run, Run::Fails | Run::FailsOften) {
            *self.kept.lock() = true;
        }
        kernel::land(&path)
    }
}

/// Has all `runs` run at once, by a kernel with this fault.
fn check(fault: Fault, runs: &'static [Run]) {
    // It ends with the first order that shows the fault: a few hundred, as a rule.
    let orders = if fault == Fault::None { orders() } else { 100_000 };
    explore_in(orders, move || {
        kernel::boot(fault);
        let world = Arc::new(World::default());
        let thread = |run: &Run| {
            let (world, run) = (world.clone(), *run);
            shuttle::thread::spawn(move || {
                let times = if run == Run::FailsOften { 3 } else { 1 };
                let ended = (0..times).try_for_each(|_| world.run(run));
                assert!(ended.is_ok() || matches!(run, Run::Dies | Run::DiesGuarded), "{ended:?}");
            })
        };
        let running: Vec<_> = runs.iter().map(thread).collect();
        running.into_iter().for_each(|t| t.join().expect("a thread that does not panic"));

        let of = |kind: Run| runs.iter().filter(|run| **run == kind).count() as u32;
        let executed = world.executed.load(Ordering::SeqCst);
        if of(Run::Keeps) > 0 {
            assert!(*world.kept.lock(), "nobody has kept a result");
        }
        if runs.iter().all(|run| matches!(run, Run::Keeps | Run::Elsewhere)) {
            assert_eq!(executed, 1, "the others take the first one's result");
        }
        // What deaths left is swept by whoever comes next.
        kernel::grow_late();
        world.run(Run::Elsewhere).expect("nobody is killed any more");
        assert_eq!(kernel::names(), 0, "something is left behind");
    });
}

#[test]
fn one_executes_and_the_others_take_its_result() {
    check(Fault::None, &[Run::Keeps, Run::Keeps, Run::Keeps, Run::Elsewhere]);
}

#[test]
fn who_fails_hands_over() {
    check(Fault::None, &[Run::Fails, Run::Keeps, Run::Fails, Run::Elsewhere]);
}

#[test]
fn who_dies_hands_over_and_is_swept() {
    check(Fault::None, &[Run::Dies, Run::Keeps, Run::Dies, Run::Elsewhere]);
    check(Fault::None, &[Run::Dies, Run::Elsewhere, Run::Dies, Run::Elsewhere, Run::Keeps]);
}

#[test]
fn a_guard_holds_the_key_until_nothing_of_the_command_is_left() {
    check(Fault::None, &[Run::DiesGuarded, Run::Keeps, Run::DiesGuarded, Run::Elsewhere]);
}

#[test]
#[should_panic(expected = "two in the air")]
fn without_a_second_look_two_would_be_in_the_air() {
    check(Fault::NoSecondLook, &[Run::FailsOften, Run::FailsOften]);
}

#[test]
#[should_panic(expected = "two in the air")]
fn a_sweep_without_the_lock_would_let_two_into_the_air() {
    check(Fault::SweepsWhatIsLocked, &[Run::FailsOften, Run::FailsOften, Run::Elsewhere]);
}

#[test]
#[should_panic(expected = "two in the air")]
fn a_landing_that_unlocks_first_would_let_two_into_the_air() {
    check(Fault::RemovesWithoutLock, &[Run::FailsOften, Run::FailsOften, Run::FailsOften]);
}
