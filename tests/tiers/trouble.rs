//! A reader that reads anywhere, through a proxy that breaks everything: no wrong byte, no error that comes late, and all of it
//! once the trouble is over.
//!
//! `OUTFS_TROUBLE` says for how many seconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use outfs::cache::{Cache, Entry, LeaseKind, Limits, TierOptions};
use outfs::tier::{self, ship};

use super::proxy::{ALL, Ails, Proxy, chance};
#[cfg(feature = "s3")]
use super::s3::credentials;
use super::suite::{Made, TEXT, key, soon};

/// How long one trouble lasts.
const PHASE: Duration = Duration::from_millis(1500);
const READ: Duration = Duration::from_secs(3);
/// A machine on which everything is slow.
const BUSY: Duration = Duration::from_secs(60);

/// An entry, and where its files are in it.
struct Far {
    made: Made,
    files: Vec<String>,
}

fn far(make: impl Fn(&str, &[(&str, usize, u8)]) -> Made) -> Far {
    let names: Vec<String> = (0..60).map(|n| format!("small-{n}")).collect();
    let mut files: Vec<_> =
        names.iter().enumerate().map(|(n, name)| (name.as_str(), 20_000 + n * 500, n as u8)).collect();
    files.extend([("metadata.json", 80, 1), ("large", 24 << 20, 2), ("larger", 40 << 20, 3)]);
    files.push(("text", 8 << 20, TEXT));
    let made = make("far-away", &files);
    let paths = made.manifest.paths().into_iter().enumerate();
    let is_file = |n: usize| made.manifest.records()[n].hash().is_some();
    let files =
        paths.filter(|(n, _)| is_file(*n)).map(|(_, path)| String::from_utf8(path).expect("text")).collect();
    Far { made, files }
}

impl Far {
    fn content(&self, path: &str) -> &[u8] {
        let record = self.made.manifest.find(path.as_bytes()).and_then(|n| self.made.manifest.get(n));
        self.made.content(&record.and_then(|r| r.hash()).expect("a file"))
    }
}

/// Reads somewhere; false when that failed, in time.
fn read_somewhere(entry: &Entry, far: &Far, dice: &AtomicU64) -> bool {
    let path = &far.files[chance(dice) as usize % far.files.len()];
    let wanted = far.content(path);
    let at = chance(dice) as usize % wanted.len();
    let mut buf = vec![0; 1 + chance(dice) as usize % 200_000];
    let begun = Instant::now();
    let read = entry.file(path.as_bytes()).and_then(|record| entry.read(record, at as u64, &mut buf));
    match read {
        Ok(n) => {
            let right = &wanted[at..(at + buf.len()).min(wanted.len())];
            assert!(buf[..n] == *right, "wrong bytes at {at} of {path}");
            true
        }
        Err(e) => {
            assert!(begun.elapsed() < READ + BUSY, "after {:?}: {e}", begun.elapsed());
            false
        }
    }
}

/// Has readers read for so long while everything is broken in turn.
fn survives(server: u16, tier: impl Fn(u16) -> String, far: &Far) {
    let seconds = std::env::var("OUTFS_TROUBLE").ok().and_then(|s| s.parse().ok()).unwrap_or(11);
    let proxy = Proxy::start(server, 1);
    #[cfg(feature = "s3")]
    credentials();
    let dir = tempfile::Builder::new().prefix("outfs-test-").tempdir().expect("a temporary directory");
    let cache = Cache::open(&dir.path().join("store"), Limits::default()).expect("a new store");
    let address = tier(proxy.port).parse().expect("an address");
    let options = TierOptions {
        look_up: READ,
        answer: READ,
        read: READ,
        absent: Duration::ZERO,
        ..TierOptions::default()
    };
    cache.attach_tiers(vec![tier::open(&address, false).expect("it opens")], options);
    let find = || cache.find(&key("far-away"), LeaseKind::Hold).expect("it can be looked for");
    let (dice, end) = (Arc::new(AtomicU64::new(7)), Instant::now() + Duration::from_secs(seconds));
    let mut told: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut phase = 0;
    while Instant::now() < end {
        let ails = ALL[phase % ALL.len()];
        phase += 1;
        proxy.set(ails);
        let over = Instant::now() + PHASE;
        let read = |_| {
            let (mut good, mut bad) = (0, 0);
            while Instant::now() < over {
                let begun = Instant::now();
                match find() {
                    Some(entry) if read_somewhere(&entry, far, &dice) => good += 1,
                    Some(_) => bad += 1,
                    None => {
                        assert!(begun.elapsed() < READ + BUSY, "a look-up took {:?}", begun.elapsed());
                        bad += 1;
                    }
                }
                // Now and then all has to come again.
                if chance(&dice).is_multiple_of(60) {
                    let _ = cache.evict(&key("far-away"), "request");
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            (good, bad)
        };
        let counts: Vec<(u64, u64)> = std::thread::scope(|scope| {
            let readers: Vec<_> = (0..3).map(|n| scope.spawn(move || read(n))).collect();
            readers.into_iter().map(|r| r.join().expect("a reader")).collect()
        });
        let sum = told.entry(format!("{ails:?}")).or_default();
        counts.iter().for_each(|(good, bad)| *sum = (sum.0 + good, sum.1 + bad));
    }
    eprintln!("reads that were right, and that failed in time, by what ailed: {told:?}");
    assert!(told.values().map(|(good, _)| good).sum::<u64>() > 0);
    proxy.set(Ails::Nothing);
    let recovered = Instant::now() + 2 * BUSY;
    'again: loop {
        assert!(Instant::now() < recovered, "it does not recover: {:?}", cache.tier_facts());
        std::thread::sleep(Duration::from_millis(50));
        let Some(entry) = find() else { continue };
        for path in &far.files {
            let Ok(record) = entry.file(path.as_bytes()) else {
                // Nothing says whether a result of the Remote Execution API came as it was sent.
                let _ = cache.evict(&key("far-away"), "request");
                continue 'again;
            };
            match entry.read_all(record, u64::MAX) {
                Ok(bytes) => assert!(bytes == far.content(path), "{path}"),
                Err(_) => continue 'again,
            }
        }
        break;
    }
    let facts = &cache.tier_facts()[0];
    assert!(!facts.ill && facts.failed > 0, "{facts:?}");
}

/// S15.10 Whatever goes wrong between here and a tier: what is read is right, or an error in time; when it is over, all is read.
#[cfg(feature = "s3")]
mod buckets {
    use super::*;
    use crate::s3::open;
    use crate::server::Server;

    fn tier(port: u16) -> String {
        format!("s3://bucket/p?endpoint=http://127.0.0.1:{port}&region=here")
    }

    #[test]
    fn a_random_reader_survives_everything() {
        let (server, far) = (Server::start(), far(Made::new));
        ship(&*open(&server, "p", true), &far.made.manifest, &far.made, &soon).expect("it can be sent");
        survives(server.port, tier, &far);
    }

    #[test]
    fn a_random_reader_survives_everything_before_garage() {
        let Some(garage) = crate::garage::Garage::start() else { return };
        let far = far(Made::new);
        ship(&*garage.open("p"), &far.made.manifest, &far.made, &soon).expect("it can be sent");
        survives(garage.port, tier, &far);
    }
}

/// The same of servers of the Remote Execution API.
#[cfg(feature = "reapi")]
mod actions {
    use bazel_remote_apis::build::bazel::remote::execution::v2::digest_function::Value;

    use super::*;
    use crate::cas::Server;
    use crate::others::Other;
    use crate::reapi::open;

    fn tier(port: u16) -> String {
        format!("grpc://127.0.0.1:{port}/main")
    }

    fn survives_before(port: u16) {
        let far = far(Made::outputs);
        ship(&*open(&tier(port), true), &far.made.manifest, &far.made, &soon).expect("it can be sent");
        survives(port, tier, &far);
    }

    #[test]
    fn a_random_reader_survives_everything() {
        let server = Server::start("main", Value::Sha256);
        survives_before(server.port());
    }

    #[test]
    fn a_random_reader_survives_everything_before_casd() {
        let Some(casd) = Other::casd("main") else { return };
        survives_before(casd.port);
    }
}
