//! The single flight of fetches: one is at a thing at a time, whoever has the time is told what came of it, and nothing
//! stays behind. A pilot who leaves too early, or is gone and tells nobody, is found.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use shuttle::thread::yield_now;

use crate::fetched_once::{Flights, Pilot};
use crate::sync::Mutex;
use crate::{explore, explore_in, together_in};

/// Which thing of two.
type Key = u8;
/// Why it did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// It may come for who tries again.
    Transient,
    Permanent,
}
type Came = Result<Key, Failure>;

/// What fetching does, for who is at it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fetch {
    Comes,
    Fails(Failure),
    /// The fetch ends without a result.
    Breaks,
}

#[derive(Default)]
struct World {
    flights: Arc<Flights<Key, Came>>,
    things: Arc<[Thing; 2]>,
    apart: Mutex<Vec<shuttle::thread::JoinHandle<()>>>,
}

#[derive(Default)]
struct Thing {
    /// Who is at it.
    fetching: AtomicU32,
    asked: AtomicU32,
    here: Mutex<bool>,
}

impl Thing {
    /// As the cache does it: what came since somebody looked is not asked for again.
    fn fetch(&self, key: Key, fetch: Fetch) -> Result<Came, ()> {
        assert_eq!(self.fetching.fetch_add(1, Ordering::SeqCst), 0, "two are at one thing");
        yield_now();
        let mut came = Ok(Ok(key));
        if !*self.here.lock() {
            self.asked.fetch_add(1, Ordering::SeqCst);
            yield_now();
            match fetch {
                Fetch::Comes => *self.here.lock() = true,
                Fetch::Fails(failure) => came = Ok(Err(failure)),
                Fetch::Breaks => came = Err(()),
            }
        }
        self.fetching.fetch_sub(1, Ordering::SeqCst);
        came
    }
}

/// Time enough.
fn patient() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

impl World {
    fn thing(&self, key: Key) -> &Thing {
        &self.things[usize::from(key)]
    }

    /// As windows are fetched: by who wants them.
    fn share(&self, key: Key, fetch: Fetch, by: Instant) -> Result<Option<Came>, ()> {
        self.flights.share(&key, by, |e| *e == Failure::Transient, || self.thing(key).fetch(key, fetch))
    }

    /// Wants it and is to have it, whatever becomes of one other.
    fn has(&self, key: Key) {
        assert_eq!(self.share(key, Fetch::Comes, patient()), Ok(Some(Ok(key))), "who can wait has it");
    }

    fn fails(&self, fetch: Fetch) {
        let came = self.share(0, fetch, patient());
        let expected = match fetch {
            Fetch::Comes | Fetch::Breaks => Err(()),
            Fetch::Fails(failure) => Ok(Some(Err(failure))),
        };
        assert!(came == Ok(Some(Ok(0))) || came == expected, "{came:?}");
    }

    /// Cannot wait.
    fn hurries(&self) {
        let came = self.share(0, Fetch::Comes, Instant::now());
        assert!(matches!(came, Ok(None | Some(Ok(0)))), "{came:?}");
    }

    /// As whole contents and look-ups come: on a thread of their own, which goes on when nobody waits any more.
    fn apart(&self, by: Instant) -> Option<Came> {
        let (flight, pilot) = self.flights.board(&0);
        if let Some(pilot) = pilot {
            let things = self.things.clone();
            let bring = move || pilot.land(things[0].fetch(0, Fetch::Comes).expect("it comes"));
            self.apart.lock().push(shuttle::thread::spawn(bring));
        }
        flight.wait(by)
    }

    /// With a fault: the pilot is given away before the fetch begins.
    fn faulty(&self, leave: fn(Pilot<Key, Came>)) {
        let (flight, pilot) = self.flights.board(&0);
        if let Some(pilot) = pilot {
            leave(pilot);
            assert_eq!(self.thing(0).fetch(0, Fetch::Comes), Ok(Ok(0)));
        }
        flight.wait(patient());
    }
}

fn end(world: &World) {
    let apart = std::mem::take(&mut *world.apart.lock());
    apart.into_iter().for_each(|t| t.join().expect("a thread that does not panic"));
    assert_eq!(world.flights.under_way(), 0, "something is left");
}

/// Each thing that is wanted is asked for so often.
fn check(threads: &'static [fn(&World)], asked: std::ops::RangeInclusive<u32>) {
    explore(move || {
        let world = Arc::new(World::default());
        together_in(&world, threads);
        end(&world);
        for thing in world.things.iter() {
            let times = thing.asked.load(Ordering::SeqCst);
            assert!(asked.contains(&times), "asked {times} times");
        }
    });
}

#[test]
fn what_several_want_is_asked_for_once() {
    check(&[|w| w.has(0), |w| w.has(0), |w| w.has(1), |w| w.has(0)], 1..=1);
}

#[test]
fn whoever_was_too_late_for_it_holds_up_nobody() {
    check(&[World::hurries, |w| w.has(0), World::hurries, |w| w.has(1)], 1..=1);
}

#[test]
fn after_a_failure_that_is_no_last_word_the_others_try() {
    check(&[|w| w.fails(Fetch::Fails(Failure::Transient)), |w| w.has(0), |w| w.has(0), |w| w.has(1)], 1..=2);
    check(&[|w| w.fails(Fetch::Breaks), |w| w.has(0), |w| w.has(0), |w| w.has(1)], 1..=2);
}

#[test]
fn a_last_word_is_for_all_who_wait() {
    let fails: fn(&World) = |w| w.fails(Fetch::Fails(Failure::Permanent));
    explore(move || {
        let world = Arc::new(World::default());
        together_in(&world, &[fails, fails, fails]);
        end(&world);
    });
}

#[test]
fn what_comes_on_a_thread_of_its_own_comes_to_all_who_wait() {
    let waits: fn(&World) = |w| assert_eq!(w.apart(patient()), Some(Ok(0)));
    let leaves: fn(&World) = |w| assert!(matches!(w.apart(Instant::now()), None | Some(Ok(0))));
    explore(move || {
        let world = Arc::new(World::default());
        together_in(&world, &[leaves, waits, leaves, waits]);
        end(&world);
        assert_eq!(world.thing(0).asked.load(Ordering::SeqCst), 1);
    });
}

#[test]
#[should_panic(expected = "two are at one thing")]
fn a_pilot_who_leaves_before_the_end_lets_two_at_it() {
    let leaves: fn(&World) = |w| w.faulty(drop);
    explore_in(100_000, move || together_in(&Arc::new(World::default()), &[leaves, leaves]));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_pilot_who_is_gone_and_tells_nobody_leaves_the_others_waiting() {
    let leaves: fn(&World) = |w| w.faulty(std::mem::forget);
    explore_in(100_000, move || together_in(&Arc::new(World::default()), &[leaves, leaves]));
}
