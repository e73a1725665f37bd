//! Tests of single flights.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::flights::Flights;

#[test]
fn many_want_it_and_one_does_it() {
    let (flights, done) = (Arc::new(Flights::<u8, u32>::default()), AtomicU32::new(0));
    let by = Instant::now() + Duration::from_secs(60);
    let (first, pilot) = flights.board(&7);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let (flight, other) = flights.board(&7);
            assert!(other.is_none());
            let done = &done;
            scope.spawn(move || done.fetch_add(flight.wait(by).unwrap(), Ordering::Relaxed));
        }
        pilot.unwrap().land(5);
    });
    assert_eq!((done.into_inner(), first.wait(by)), (40, Some(5)));
    assert!(flights.board(&7).1.is_some(), "the next one does it again");
}

#[test]
fn nobody_waits_for_what_never_comes() {
    let flights = Arc::new(Flights::<u8, u32>::default());
    let (flight, pilot) = flights.board(&7);
    assert_eq!(flight.wait(Instant::now()), None, "too late");
    drop(pilot);
    assert_eq!(flight.wait(Instant::now() + Duration::from_secs(60)), None, "given up");
}
