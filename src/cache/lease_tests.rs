//! Leases, choices, reservations and claims, one thread after another. (All orders: `tests/interleavings`.)

use parking_lot::Mutex;

use super::lease::*;
use crate::model::BlobHash;

fn blob(n: u8) -> BlobHash {
    BlobHash::of(&[n])
}

#[test]
fn leasing_and_choosing_exclude_each_other() {
    let t = LeaseTable::default();
    let lease = t.take(1, LeaseKind::View).unwrap();
    assert!(t.choose(1, false).is_none());
    drop(lease);
    let choice = t.choose(1, false).unwrap();
    assert!(t.take(1, LeaseKind::Hold).is_none());
    assert!(t.choose(1, true).is_none());
    drop(choice);
    assert!(t.take(1, LeaseKind::Hold).is_some());
    assert!(t.choose(1, false).unwrap().condemn());
    assert!(t.take(1, LeaseKind::Hold).is_none(), "it is gone for good");
    assert_eq!(t.next_condemned(), None);
}

#[test]
fn a_condemned_entry_comes_to_the_reaper_after_its_last_lease() {
    let t = LeaseTable::default();
    let a = t.take(1, LeaseKind::View).unwrap();
    let choice = t.choose(1, true).unwrap();
    assert!(!choice.condemn());
    let b = a.another(LeaseKind::Hold);
    assert_eq!(t.counts(1), Counts { view: 1, hold: 1 });
    drop(a);
    assert_eq!(t.next_condemned(), None);
    drop(b);
    assert_eq!((t.next_condemned(), t.next_condemned()), (Some(1), None));
    assert_eq!(t.counts(1), Counts::default());
}

#[test]
fn a_lease_dropped_while_chosen_is_not_forgotten() {
    let t = LeaseTable::default();
    let a = t.take(1, LeaseKind::View).unwrap();
    let choice = t.choose(1, true).unwrap();
    drop(a);
    assert!(choice.condemn(), "nobody holds it: freed at once");
    assert_eq!(t.next_condemned(), None);
}

#[test]
fn an_entry_replaced_while_chosen_is_reaped_once() {
    let t = LeaseTable::default();
    let choice = t.choose(1, true).unwrap();
    assert!(!t.condemn(1));
    assert!(t.take(1, LeaseKind::Hold).is_none());
    drop(choice);
    assert_eq!((t.next_condemned(), t.next_condemned()), (Some(1), None));
    assert!(t.condemn(2), "nobody holds it");
}

#[test]
fn reserved_blobs_cannot_be_claimed_and_claimed_ones_make_reservers_wait() {
    let t = LeaseTable::default();
    let r = t.reserve([blob(1), blob(1)]);
    let claim = t.claim([blob(1), blob(2)]);
    assert!(!claim.has(&blob(1)) && claim.has(&blob(2)));
    assert!(!t.claim([blob(2)]).has(&blob(2)));
    assert!(t.is_claimed(&blob(2)) && !t.is_claimed(&blob(1)) && t.is_reserved(&blob(1)));
    let order = Mutex::new(Vec::new());
    std::thread::scope(|s| {
        let waiting = s.spawn(|| {
            let r = t.reserve([blob(2)]);
            order.lock().push("reserved");
            r
        });
        order.lock().push("freed");
        drop(claim);
        assert_eq!(waiting.join().unwrap().hashes(), [blob(2)]);
    });
    assert_eq!(*order.lock(), ["freed", "reserved"]);
    drop(r);
    assert!(!t.is_reserved(&blob(1)) && t.claim([blob(1)]).has(&blob(1)));
}
