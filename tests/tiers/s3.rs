//! A tier in an S3 bucket, against a server of our own that is as ill as it is told to be.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use outfs::model::BlobHash;
use outfs::tier::{self, Object, Tier, TierErrorKind, ship};

use super::server::{Server, Wrong};
use super::suite::{Made, conforms, key, odd_entry, soon};

/// Of the form that Garage wants.
pub const KEY: &str = "GK5f1d7c0a4be28e9637d1a0c2";
pub const SECRET: &str = "7d1f0ab3c25e48960bd1a2c3e4f5061728394a5b6c7d8e9f0a1b2c3d4e5f6071";

/// Credentials, where programs of S3 look for them.
pub fn credentials() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (name, value) in [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET)] {
            // SAFETY: whoever else reads the environment in these tests does so through the standard library, which
            // keeps readers and writers apart.
            unsafe { std::env::set_var(name, value) };
        }
    });
}

pub fn open(server: &Server, prefix: &str, push: bool) -> Arc<dyn Tier> {
    credentials();
    tier::open(&server.tier(prefix).parse().expect("an address"), push).expect("it opens")
}

#[test]
fn it_conforms() {
    let server = Server::start();
    let next = AtomicU64::new(0);
    conforms(&|| {
        let n = next.fetch_add(1, Ordering::Relaxed);
        open(&server, &format!("some/prefix-{n}"), true)
    });
    conforms(&|| open(&Server::start(), "", true));
}

#[test]
fn objects_lie_where_the_format_says() {
    let server = Server::start();
    let tier = open(&server, "team/a", true);
    let made = odd_entry("entry-one");
    ship(&*tier, &made.manifest, &made, &soon).unwrap();
    let keys = server.keys();
    let below = |dir: &str| keys.iter().filter(|k| k.starts_with(&format!("team/a/{dir}/"))).count();
    assert_eq!((below("entries"), below("trees"), below("packs"), below("blobs")), (1, 1, 2, 2), "{keys:?}");
    assert!(keys.contains(&"team/a/entries/entry-one".to_owned()));
    assert_eq!(tier.name(), server.tier("team/a"));
}

#[test]
fn large_contents_go_in_parts_and_wrong_ones_not_at_all() {
    let server = Server::start();
    let tier = open(&server, "p", true);
    let bytes: Vec<u8> = (0..20_000_001u32).map(|i| (i ^ i >> 8) as u8).collect();
    let object = Object::Blob(BlobHash::of(&bytes), bytes.len() as u64);
    let size = bytes.len() as u64;
    tier.put(&object, size, &mut &bytes[..], soon()).unwrap();
    assert_eq!(tier.get(&object, 0..size, soon()).unwrap(), bytes);
    assert_eq!(server.uploads(), 0);
    let other = Object::Blob(BlobHash::of(b"other"), 5);
    for wrong in [&bytes[..], &bytes[..19_000_000]] {
        let refused = tier.put(&other, size, &mut &*wrong, soon()).unwrap_err();
        assert_eq!(refused.kind, TierErrorKind::Permanent, "{refused}");
        let small = tier.put(&other, 5, &mut &b"wrong"[..], soon()).unwrap_err();
        assert_eq!(small.kind, TierErrorKind::Permanent, "{small}");
    }
    assert_eq!(tier.missing(&[object, other], soon()).unwrap(), [other]);
    assert_eq!(server.uploads(), 0, "what was begun was given up");
}

/// A content that is there by half, whoever left it so, is brought again.
#[test]
fn what_is_there_in_another_size_is_not_there() {
    let server = Server::start();
    let tier = open(&server, "p", true);
    let made = Made::new("entry-one", &[("large", 300_000, 1), ("other", 400_000, 2)]);
    ship(&*tier, &made.manifest, &made, &soon).unwrap();
    let (hash, size, _) = made.manifest.blobs()[0];
    let object = Object::Blob(hash, size);
    assert!(tier.missing(&[object], soon()).unwrap().is_empty());
    server.set(&format!("p/{}", object.path()), &made.content(&hash)[..100_000]);
    assert_eq!(tier.missing(&[object], soon()).unwrap(), [object]);
    ship(&*tier, &made.manifest, &made, &soon).unwrap();
    assert!(tier.get(&object, 0..size, soon()).unwrap() == made.content(&hash));
}

#[test]
fn one_that_is_for_reading_takes_nothing() {
    let server = Server::start();
    let made = odd_entry("entry-one");
    assert!(ship(&*open(&server, "p", false), &made.manifest, &made, &soon).is_err());
    assert!(server.keys().is_empty());
}

#[test]
fn a_passing_trouble_is_not_noticed() {
    let server = Server::start();
    let tier = open(&server, "p", true);
    for wrong in [Wrong::Slow, Wrong::Often, Wrong::Reset] {
        let n = AtomicU64::new(0);
        server.set_wrong(move |_, _| n.fetch_add(1, Ordering::Relaxed).is_multiple_of(3).then_some(wrong));
        let name = format!("entry-{wrong:?}");
        let made = Made::new(&name, &[("f", 1000, wrong as u8), ("large", 300_000, wrong as u8)]);
        ship(&*tier, &made.manifest, &made, &soon).unwrap_or_else(|e| panic!("{wrong:?}: {e}"));
        let found = tier.find(&key(&name), soon()).unwrap_or_else(|e| panic!("{wrong:?}: {e}"));
        assert_eq!(found.manifest.hash(), made.manifest.hash());
    }
}

#[test]
fn what_ails_a_server_is_told_apart() {
    let server = Server::start();
    let tier = open(&server, "p", true);
    let made = odd_entry("entry-one");
    ship(&*tier, &made.manifest, &made, &soon).unwrap();
    let blob = Object::Blob(BlobHash::of(b"12345678"), 8);
    tier.put(&blob, 8, &mut &b"12345678"[..], soon()).unwrap();
    let ails = |wrong| {
        server.set_wrong(move |_, _| Some(wrong));
        let by = Instant::now() + Duration::from_millis(if wrong == Wrong::Silent { 300 } else { 60_000 });
        let got = tier.get(&blob, 0..8, by).unwrap_err();
        server.set_wrong(|_, _| None);
        let said = got.to_string();
        assert!(!said.contains(KEY) && !said.contains(SECRET), "no credentials: {said}");
        got
    };
    assert_eq!(ails(Wrong::Denied).kind, TierErrorKind::Permanent);
    assert!(ails(Wrong::Denied).to_string().contains("AccessDenied"));
    for wrong in [Wrong::Slow, Wrong::Often, Wrong::Reset, Wrong::Cut, Wrong::Silent] {
        let said = ails(wrong);
        assert!(said.is_transient(), "{wrong:?}: {said}");
    }
    assert!(ails(Wrong::Slow).to_string().contains("SlowDown"));
    server.set_wrong(|_, _| Some(Wrong::Flipped));
    assert_eq!(tier.find(&key("entry-one"), soon()).unwrap_err().kind, TierErrorKind::Corrupt);
    server.set_wrong(|_, _| None);
    assert_eq!(tier.get(&blob, 0..8, soon()).unwrap(), b"12345678");
    let begun = Instant::now();
    server.set_wrong(|_, _| Some(Wrong::Silent));
    assert!(tier.missing(&[blob], begun + Duration::from_millis(100)).unwrap_err().is_transient());
    assert!(begun.elapsed() < Duration::from_secs(60), "it ends by its deadline");
}

#[test]
fn no_more_is_taken_than_was_asked_for() {
    let server = Server::start();
    let tier = open(&server, "p", true);
    let made = odd_entry("entry-one");
    ship(&*tier, &made.manifest, &made, &soon).unwrap();
    let blob = Object::Blob(BlobHash::of(b"12345678"), 8);
    tier.put(&blob, 8, &mut &b"12345678"[..], soon()).unwrap();
    let get = || tier.get(&blob, 0..8, soon()).map(drop);
    let find = || tier.find(&key("entry-one"), soon()).map(drop);
    let cases: [(Wrong, &dyn Fn() -> _, _); 4] = [
        (Wrong::Endless, &get, TierErrorKind::Corrupt),
        (Wrong::Endless, &find, TierErrorKind::Corrupt),
        (Wrong::EndlessDenied, &get, TierErrorKind::Permanent),
        (Wrong::EndlessDenied, &find, TierErrorKind::Permanent),
    ];
    for (wrong, ask, kind) in cases {
        server.set_wrong(move |_, _| Some(wrong));
        let (requests, sent) = server.traffic();
        let error = ask().unwrap_err();
        assert_eq!(error.kind, kind, "{wrong:?}: {error}");
        let (after, more) = server.traffic();
        assert_eq!(after - requests, 1, "it is not asked for again");
        // What is on its way is in the kernel's buffers.
        assert!(more - sent < 64 << 20, "{wrong:?}: {} bytes", more - sent);
    }
    server.set_wrong(|_, _| None);
    get().unwrap();
}

#[test]
fn a_bucket_that_is_not_there_is_no_empty_one() {
    let server = Server::start();
    credentials();
    let address = server.tier("p").replace("//bucket/", "//other/").parse().unwrap();
    let error = tier::open(&address, false).unwrap().find(&key("entry-one"), soon()).unwrap_err();
    assert_eq!(error.kind, TierErrorKind::Permanent, "{error}");
    let nobody = "s3://bucket/p?endpoint=http://127.0.0.1:9&region=here".parse().unwrap();
    let error = tier::open(&nobody, false).unwrap().find(&key("entry-one"), soon()).unwrap_err();
    assert!(error.is_transient(), "{error}");
}
