//! Small contents that come together, of a tier where each is an object of its own.

use std::sync::Arc;
use std::sync::mpsc::channel;

use parking_lot::Mutex;

use super::tests::{Fixture, bytes};
use super::tier_tests::{World, patient, read};
use super::*;
use crate::model::BlobHash;
use crate::tier::{Call, Capabilities, Fault, MemoryTier, Object};

fn world() -> World {
    let tier = MemoryTier::new("memory", Capabilities { push: true, packs: false });
    let world = World { far: Fixture::new(), near: Fixture::new(), tier: Arc::new(tier) };
    world.attach(patient());
    world
}

/// What becomes of a content is no business of who waits for another one of its window.
#[test]
fn who_waits_for_another_content_of_a_window_gets_that() {
    const ROUNDS: u64 = 20;
    let w = world();
    for n in 0..ROUNDS {
        let files = [("gone", bytes(100, n)), ("there", bytes(100, 1000 + n))];
        w.send_files(&format!("entry{n}"), &files);
    }
    for n in 0..ROUNDS {
        let entry = w.find(&format!("entry{n}")).unwrap();
        let gone = Object::Blob(BlobHash::of(&bytes(100, n)), 100);
        let ((enter, entered), (let_go, held)) = (channel::<()>(), channel::<()>());
        let (enter, held) = (Mutex::new(enter), Mutex::new(held));
        w.tier.set_faults(move |call| {
            let asked = matches!(call, Call::Get(object, _) if **object == gone);
            asked.then(|| {
                enter.lock().send(()).ok();
                held.lock().recv().ok();
                Fault::Absent
            })
        });
        std::thread::scope(|scope| {
            let first = scope.spawn(|| read(&entry, "gone"));
            entered.recv().unwrap();
            let (tell, about_to) = channel();
            let second = scope.spawn({
                let entry = &entry;
                move || {
                    let by = |options: &TierOptions| {
                        tell.send(()).ok();
                        std::time::Instant::now() + options.read
                    };
                    let (record, mut buf) = (entry.file(b"outputs/there").unwrap(), [0; 100]);
                    entry
                        .read_by(
                            record,
                            0,
                            &mut buf,
                            &Reader { by: &by, payer: None, exact: false, patient: false },
                        )
                        .map(|_| buf)
                }
            });
            about_to.recv().unwrap();
            // Most of the time it waits for the first by then.
            (0..1000).for_each(|_| std::thread::yield_now());
            drop(let_go);
            first.join().unwrap().unwrap_err();
            assert_eq!(second.join().unwrap().unwrap()[..], bytes(100, 1000 + n), "round {n}");
        });
    }
}
