//! What is here of entries that a tier has: in part, wholly, and no more.

use super::tests::{Fixture, bytes, eventually, key};
use super::tier_tests::*;
use super::*;
use crate::model::groups::GROUP;

const WINDOW: usize = 2 * GROUP;

/// Reads some of a file of an entry; an error where it is not here and no tier has it.
fn piece(entry: &Entry, name: &str, at: usize, len: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0; len];
    let n = entry.read(entry.file(format!("outputs/{name}").as_bytes())?, at as u64, &mut buf)?;
    buf.truncate(n);
    Ok(buf)
}

/// The file that has what is here of the only large content.
fn partial_files(f: &Fixture) -> Vec<std::path::PathBuf> {
    let dir = f.cache.store().root().join("partial");
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect()
}

fn near(w: &World, name: &str) -> Entry {
    w.near.cache.entry(&key(name), LeaseKind::Hold).unwrap().unwrap()
}

/// A world whose tier has an entry `abcd` with a file `large` of ten windows and some bytes.
fn with_large() -> (World, Vec<u8>) {
    let (w, large) = (World::new(), bytes(10 * WINDOW + 77, 1));
    w.send_files("abcd", &[("large", large.clone()), ("small", bytes(100, 2))]);
    (w, large)
}

#[test]
fn what_came_of_a_large_content_stays() {
    let (mut w, large) = with_large();
    let entry = w.find("abcd").unwrap();
    let all = large.len();
    let reads = |entry: &Entry, at: usize, len: usize| {
        assert!(piece(entry, "large", at, len).unwrap() == large[at..(at + len).min(all)], "{at}, {len}");
    };
    reads(&entry, 3 * WINDOW + 5, 10);
    reads(&entry, all - 3, 100);
    let used = w.near.cache.usage().unwrap();
    assert_eq!(used.partial, WINDOW as u64 + 77);
    assert_eq!(w.traffic(|| reads(&entry, 3 * WINDOW, WINDOW)).calls, 0);
    sound(&w.near);
    drop(entry);
    // Nothing but the file says what is there of it.
    w.near = w.near.reopen();
    assert!(w.near.cache.usage().unwrap().partial >= WINDOW as u64 + 77);
    let entry = near(&w, "abcd");
    reads(&entry, 3 * WINDOW + GROUP - 1, 2);
    reads(&entry, all - 77, 77);
    is_elsewhere(piece(&entry, "large", 4 * WINDOW, 1));
    is_elsewhere(piece(&entry, "large", 3 * WINDOW - 1, 2));
    // It is not believed either.
    let [file] = &partial_files(&w.near)[..] else { panic!("one content is here in part") };
    let mut wrong = std::fs::read(file).unwrap();
    assert_eq!(wrong.len(), all);
    wrong[3 * WINDOW + 1] ^= 1;
    std::fs::write(file, &wrong).unwrap();
    is_elsewhere(piece(&entry, "large", 3 * WINDOW, 10));
    w.attach(patient());
    reads(&entry, 3 * WINDOW, 10);
    sound(&w.near);
}

#[test]
fn what_is_whole_becomes_a_blob_like_any_other() {
    let (w, large) = with_large();
    let entry = w.find("abcd").unwrap();
    let record = entry.file(b"outputs/large").unwrap();
    assert!(entry.backing(record).unwrap().is_none());
    let moved = w.traffic(|| assert!(read(&entry, "large").unwrap() == large));
    assert!(moved.given * 100 <= large.len() as u64 * 102, "{moved:?}");
    eventually("the move", || entry.backing(record).unwrap().is_some());
    assert!(partial_files(&w.near).is_empty());
    assert_eq!(w.near.cache.usage().unwrap().partial, 0);
    w.detach();
    assert!(read(&entry, "large").unwrap() == large);
    sound(&w.near);
    drop(entry);
    assert!(w.near.cache.evict(&key("abcd"), "request").unwrap());
    assert_eq!(w.near.cache.index().totals().unwrap(), crate::index::Totals::default());
    sound(&w.near);
}

#[test]
fn what_was_whole_at_a_death_becomes_a_blob_after_it() {
    let (mut w, large) = with_large();
    let entry = w.find("abcd").unwrap();
    let hash = entry.manifest().unwrap().get(entry.file(b"outputs/large").unwrap()).unwrap().hash().unwrap();
    drop(entry);
    let path = w.near.cache.store().root().join("partial").join(hash.to_hex());
    for wrong in [true, false] {
        let mut content = large.clone();
        content[7] ^= wrong as u8;
        std::fs::write(&path, content).unwrap();
        w.near = w.near.reopen();
        let entry = near(&w, "abcd");
        // Its end is right in any case.
        assert!(piece(&entry, "large", large.len() - 5, 5).unwrap() == large[large.len() - 5..]);
        eventually("it is looked at as a whole", || !path.exists());
        w.near.cache.settle();
        match wrong {
            true => is_elsewhere(read(&entry, "large")),
            false => assert!(read(&entry, "large").unwrap() == large),
        }
        sound(&w.near);
    }
}

#[test]
fn what_is_here_in_part_goes_with_its_entry_or_when_it_comes_whole() {
    let (w, large) = with_large();
    drop(piece(&w.find("abcd").unwrap(), "large", 0, 1).unwrap());
    assert_eq!(partial_files(&w.near).len(), 1);
    assert!(w.near.cache.evict(&key("abcd"), "request").unwrap());
    assert!(partial_files(&w.near).is_empty());
    assert_eq!(w.near.cache.usage().unwrap().partial, 0);
    let entry = w.find("abcd").unwrap();
    drop(piece(&entry, "large", 0, 1).unwrap());
    let dir = w.near.beside("dir");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("same"), &large).unwrap();
    w.near.put("other", &dir).unwrap();
    w.near.cache.tick();
    assert!(partial_files(&w.near).is_empty());
    w.detach();
    assert!(read(&entry, "large").unwrap() == large);
    sound(&w.near);
}

#[test]
fn what_cannot_be_kept_is_read_all_the_same() {
    let (w, large) = with_large();
    let entry = w.find("abcd").unwrap();
    w.near.cache.inner.limits.write().size = Some(crate::model::units::Size::Bytes(1));
    // That there was room a moment ago counts no more.
    assert_eq!(w.near.cache.usage().unwrap().available, 0);
    let again = w.traffic(|| {
        for _ in 0..3 {
            assert!(piece(&entry, "large", WINDOW, 100).unwrap() == large[WINDOW..WINDOW + 100]);
        }
    });
    assert_eq!(again.calls, 1, "the last windows are in memory");
    assert!(read(&entry, "large").unwrap() == large);
    assert!(partial_files(&w.near).is_empty());
    sound(&w.near);
}
