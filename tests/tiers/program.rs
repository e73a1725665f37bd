//! `outfs mount --tier`, as a user gives it: entries that others put into a bucket, through a mount.

use std::fs;

use super::common::{Mount, eventually, fill_entry, read, write};
use super::s3::{KEY, SECRET, credentials, open};
use super::server::{Server, Wrong};
use super::suite::{Made, soon};
use outfs::tier::ship;

/// A mount with these tiers, or other options.
pub fn mount(tiers: &[&str]) -> Mount {
    let mut args = vec!["--size", "4G"];
    for tier in tiers {
        args.extend(Some("--tier").filter(|_| !tier.starts_with("--")));
        args.push(tier);
    }
    Mount::unmounted(&args).with_env("AWS_ACCESS_KEY_ID", KEY).with_env("AWS_SECRET_ACCESS_KEY", SECRET)
}

/// Puts an entry of these files into a tier of the server.
pub fn send(server: &Server, prefix: &str, name: &str, files: &[(&str, usize, u8)]) -> Made {
    let made = Made::new(name, files);
    ship(&*open(server, prefix, true), &made.manifest, &made, &soon).expect("it can be sent");
    made
}

/// What does not become smaller when it is compressed.
pub fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn content(made: &Made, name: &str) -> Vec<u8> {
    let record = made.manifest.find(name.as_bytes()).expect("it has it");
    made.content(&made.manifest.get(record).and_then(|r| r.hash()).expect("a file")).to_vec()
}

/// S15.1 What is not here is looked up in the tiers, in their order; S15.6 Credentials for tiers come from the environment or a
/// profile, and are never part of an address, a message or a log.
#[test]
fn entries_of_buckets_appear_in_a_mount() {
    let server = Server::start();
    let files = [("metadata.json", 80, 1), ("small", 1000, 2), ("large", 3_000_000, 3)];
    let made = send(&server, "one", "in-one", &files);
    send(&server, "two", "in-two", &[("other", 500, 4)]);
    let (one, two) = (server.tier("one"), server.tier("two"));
    let mut m = mount(&[&one, &two]);
    m.start();
    assert_eq!(read(m.path("in-one/small")), content(&made, "small"));
    assert_eq!(read(m.path("in-one/large")), content(&made, "large"));
    assert_eq!(fs::metadata(m.path("in-two/other")).expect("the second tier has it").len(), 500);
    assert!(fs::metadata(m.path("in-none")).is_err());
    assert!(m.has_event("found", "in-one"));
    let status = m.json(&["status"]);
    assert_eq!(status["tiers"], serde_json::json!([one, two]));
    let stats = m.json(&["stats"]);
    assert!(stats["tiers"][0]["asked"].as_u64() > Some(2) && stats["tiers"][0]["ill"] == false, "{stats}");
    let log = m.log_text();
    assert!(!log.contains(KEY) && !log.contains(SECRET), "no credentials in the log");
    // A small content is here now, and stays so without its server.
    m.restart_with(&["--size", "4G"]);
    assert_eq!(read(m.path("in-one/small")), content(&made, "small"));
    assert_eq!(fs::read(m.path("in-two/other")).unwrap_err().raw_os_error(), Some(libc::EIO));
}

/// S15.2 Its content is fetched when it is read, as far as it is read, and no byte is returned that was not verified.
#[test]
fn little_is_moved_for_little_that_is_read() {
    use std::os::unix::fs::FileExt;
    let server = Server::start();
    let made = send(&server, "p", "large-one", &[("large", 64 << 20, 3)]);
    let address = server.tier("p");
    let mut m = mount(&[&address]);
    m.start();
    let file = fs::File::open(m.path("large-one/large")).expect("open");
    let (before_requests, before) = server.traffic();
    let mut page = [0; 4096];
    file.read_exact_at(&mut page, 40_000_000).expect("read");
    assert_eq!(page[..], content(&made, "large")[40_000_000..40_004_096]);
    let (requests, after) = server.traffic();
    assert!(after - before <= 1 << 20, "{} bytes for 4 KiB", after - before);
    assert_eq!(requests - before_requests, 1);
}

/// S15.5 A tier that fails again and again, or does not answer at all, is left alone for a while; `outfs stats` and
/// `outfs doctor` say which one and why.
#[test]
fn a_server_that_is_down_is_said_to_be_and_does_not_hold_anybody_up() {
    let server = Server::start();
    send(&server, "p", "far-away", &[("f", 400_000, 3)]);
    let address = server.tier("p");
    let mut m = mount(&[&address]);
    m.start();
    m.entry_of("near-by", "content");
    assert!(fs::metadata(m.path("far-away/f")).is_ok());
    server.set_wrong(|_, _| Some(Wrong::Denied));
    assert_eq!(fs::read(m.path("far-away/f")).unwrap_err().raw_os_error(), Some(libc::EIO));
    for n in 0..5 {
        assert!(fs::metadata(m.path(format!("absent-{n}"))).is_err());
    }
    assert_eq!(read(m.path("near-by/outputs/f")), b"content");
    let tier = || m.json(&["stats"])["tiers"][0].clone();
    let ill = tier();
    assert!(ill["ill"] == true && ill["last_failure"][1].as_str().unwrap().contains("AccessDenied"), "{ill}");
    assert!(m.ok(&["stats"]).contains("does not answer"));
    let doctor = m.ok(&["doctor"]);
    assert!(doctor.contains(&address) && doctor.contains("AccessDenied"), "{doctor}");
    server.set_wrong(|_, _| None);
    eventually("the tier is asked again", || fs::read(m.path("far-away/f")).is_ok());
    assert_eq!(tier()["ill"], false);
    assert!(m.ok(&["doctor"]).contains(&format!("{address} answers")));
    server.set_wrong(|_, _| Some(Wrong::Flipped));
    assert!(fs::metadata(m.path("absent-9")).is_err());
    send(&server, "p", "another", &[("f", 300_000, 4)]);
    assert!(fs::metadata(m.path("another")).is_err());
    assert!(tier()["corrupt"].as_u64() > Some(0), "{}", tier());
    assert!(m.ok(&["doctor"]).contains("gave wrong bytes"));
}

/// S15.9 Listing an entry that only a tier has moves only what says what is in it; reading all of it, hardly more than its
/// contents.
#[test]
fn the_first_byte_is_three_round_trips_away() {
    let server = Server::start();
    let made =
        send(&server, "p", "far-away", &[("metadata.json", 80, 1), ("f", 5000, 2), ("large", 3_000_000, 3)]);
    send(&server, "p", "large-one", &[("large", 64 << 20, 3)]);
    let address = server.tier("p");
    let mut m = mount(&[&address]);
    m.start();
    let asked = |what: &dyn Fn()| {
        let before = server.traffic().0;
        what();
        server.traffic().0 - before
    };
    assert_eq!(asked(&|| assert_eq!(read(m.path("far-away/f")), content(&made, "f"))), 3);
    let first = |path: std::path::PathBuf| {
        use std::io::Read;
        fs::File::open(path).and_then(|mut f| f.read_exact(&mut [0])).expect("read");
    };
    // The kernel reads ahead; what it asks for lies in the same window.
    assert_eq!(asked(&|| first(m.path("large-one/large"))), 3);
}

/// S15.22 A file of more than 256 KiB goes into a bucket compressed where that makes it an eighth smaller, and is read from there in
/// parts, as it was.
#[test]
fn what_becomes_smaller_goes_compressed() {
    use std::os::unix::fs::FileExt;
    const LARGE: usize = 96 << 20;
    // Half of each 100 kB is noise: of all of it more remains than is kept to be sent.
    let mut content = noise(LARGE, 5);
    content.chunks_mut(50_000).step_by(2).for_each(|piece| piece.fill(b'x'));
    let server = Server::start();
    let address = server.tier("p");
    let mut one = mount(&[&address, "--push"]);
    one.start();
    let dir = one.outside("made");
    fs::create_dir(&dir).expect("mkdir");
    for (name, size) in [("large", LARGE), ("less", 700_000)] {
        fs::write(dir.join(name), &content[LARGE - size..]).expect("write");
    }
    one.ok(&["put", "some-key", dir.to_str().expect("text")]);
    one.ok(&["push", "--wait"]);
    assert!(server.keys().iter().all(|key| !key.contains("/blobs/")), "{:?}", server.keys());
    let sent = one.json(&["stats"])["tiers"][0]["push"]["sent"].as_u64().expect("a number");
    assert!(sent < LARGE as u64 / 5 * 3, "{sent} bytes");
    // What is there is not sent again.
    one.ok(&["put", "other-key", dir.to_str().expect("text")]);
    one.ok(&["push", "--wait"]);
    let again = one.json(&["stats"])["tiers"][0]["push"]["sent"].as_u64().expect("a number");
    assert!(again - sent < 1 << 20, "{} bytes", again - sent);

    let mut two = mount(&[&address]);
    two.start();
    let before = server.traffic().1;
    let file = fs::File::open(two.path("some-key/outputs/large")).expect("open");
    let mut page = [0; 4096];
    file.read_exact_at(&mut page, 40_000_000).expect("read");
    assert!(page[..] == content[40_000_000..40_004_096]);
    assert!(server.traffic().1 - before < 600_000, "{} bytes", server.traffic().1 - before);
    assert!(read(two.path("some-key/outputs/large")) == content);
    assert!(read(two.path("other-key/outputs/less")) == content[LARGE - 700_000..]);
    assert!(server.traffic().1 - before < LARGE as u64 / 5 * 3, "{} bytes", server.traffic().1 - before);
    two.ok(&["fsck", "--verify-data"]);
}

/// S15.12 What is brought is no more than `--push-limit` bytes a second to each tier; `outfs stats` says how far it is.
#[test]
fn what_is_brought_is_bounded_and_outlives_a_death_in_the_midst() {
    let server = Server::start();
    let address = server.tier("p");
    let mut m = mount(&[&address, "--push", "--push-limit=1M"]);
    m.start();
    let large = noise(30_000_000, 6);
    let begun = std::time::Instant::now();
    m.entry_of("large-one", &large);
    let sent = |m: &Mount| m.json(&["stats"])["tiers"][0]["push"]["sent"].as_u64().expect("a number");
    eventually("it is on its way", || sent(&m) > 1_000_000);
    let (sent_so_far, limit) = (sent(&m), 1 << 20);
    assert!(sent_so_far <= limit * (begun.elapsed().as_secs() + 2), "{sent_so_far} in {:?}", begun.elapsed());
    assert_eq!(m.json(&["push"])["push"]["waiting"], 1);
    m.kill9();
    assert!(!server.keys().iter().any(|k| k.contains("entries/")), "nothing is half there");
    m.start_with(&["--size", "4G", "--tier", &address, "--push"]);
    m.ok(&["push", "--wait"]);
    let mut other = mount(&[&address]);
    other.start();
    assert!(read(other.path("large-one/outputs/f")) == large);
    // An orderly end does not wait for what is under way either.
    server.set_wrong(|method, _| (method == "PUT").then_some(Wrong::Silent));
    m.entry_of("another", &large[5..]);
    eventually("it is on its way", || sent(&m) > 31_000_000);
    m.terminate();
}

#[test]
fn what_is_wrong_with_tiers_is_said_when_mounting() {
    credentials();
    let m = mount(&[]);
    let at = m.mnt().to_str().expect("text").to_owned();
    let said = |args: &[&str]| {
        let out = m.run(&[&["mount", &at][..], args].concat());
        assert!(!out.status.success());
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    assert!(said(&["--tier", "s3://user:hunter2@b/p"]).contains("no credentials"));
    assert!(said(&["--tier", "ftp://b/p"]).contains("no kind of tier"));
    let mut m = mount(&["s3://one/p?endpoint=http://127.0.0.1:9&region=here"]);
    m.start();
    let second = m.outside("second");
    fs::create_dir(&second).expect("mkdir");
    let out = m.run(&["mount", second.to_str().expect("text"), "--tier", "s3://two/p"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("s3://one/p") && said.contains("s3://two/p"), "{said}");
}

/// S15.7 With `--push` what is sealed here is brought to the tiers in the background; what was not brought before the daemon ended
/// is brought by the next one.
#[test]
fn what_one_machine_seals_another_one_finds() {
    let server = Server::start();
    let address = server.tier("team");
    let mut one = mount(&[&address, "--push"]);
    one.start();
    one.entry_of("first", "of one machine");
    let large: Vec<u8> = (0..10_000_000u32).map(|i| (i ^ i >> 7) as u8).collect();
    one.entry_of("second", &large);
    one.ok(&["push", "--wait"]);
    let mut other = mount(&[&address]);
    other.start();
    assert_eq!(read(other.path("first/outputs/f")), b"of one machine");
    assert!(read(other.path("second/outputs/f")) == large);
    assert!(!other.run(&["push"]).status.success(), "it brings nothing");
    other.entry_of("of-the-other", "stays there");

    server.set_wrong(|method, _| (method != "GET").then_some(Wrong::Slow));
    one.entry_of("third", "while the server takes nothing");
    eventually("the tier is ill", || one.json(&["stats"])["tiers"][0]["failed"].as_u64() > Some(0));
    assert_eq!(one.json(&["push"])["push"]["waiting"], 1);
    one.terminate();
    server.set_wrong(|_, _| None);
    one.start();
    let pushed = one.json(&["push", "--wait"]);
    assert_eq!((&pushed["push"]["waiting"], &pushed["push"]["brought"]), (&0.into(), &1.into()), "{pushed}");
    eventually("the other finds it", || fs::metadata(other.path("third/outputs/f")).is_ok());
    assert!(fs::metadata(one.path("of-the-other")).is_err(), "nobody brought it");
}

/// S15.8 What is inferred, rejected or came from a tier is never brought.
#[test]
fn what_is_a_guess_goes_nowhere() {
    let server = Server::start();
    send(&server, "p", "found-there", &[("metadata.json", 80, 1), ("f", 1000, 2)]);
    let before = server.keys();
    let address = server.tier("p");
    let mut m = mount(&[&address]);
    m.start();
    m.entry_of("rejected", "content");
    m.ok(&["reject", "rejected", "--reason", "wrong"]);
    assert_eq!(fs::metadata(m.path("found-there/f")).expect("the tier has it").len(), 1000);
    m.restart_with(&["--size", "4G", "--tier", &address, "--push", "--seal-quiet", "100ms"]);
    let top = m.path("guessed");
    fs::create_dir(&top).expect("mkdir");
    fill_entry(&top, |outputs| write(outputs.join("f"), "a guess"));
    eventually("it is sealed", || m.has_event("sealed", "guessed"));
    m.ok(&["push", "--wait"]);
    assert_eq!(server.keys(), before);
    assert_eq!(m.json(&["push"])["push"]["brought"], 0);
}

/// S15.11 What a tier has gives up its bytes here before anything is evicted, stays visible, and comes back when it is read.
/// `outfs ls -l` and `outfs du` say how much is here. What is damaged here comes from a tier that has it.
#[test]
fn what_a_tier_has_stays_visible_when_there_is_no_room() {
    let server = Server::start();
    let address = server.tier("p");
    let args = ["--size", "80M", "--min-age", "0s", "--tier", &address, "--push"];
    let mut m =
        Mount::unmounted(&args).with_env("AWS_ACCESS_KEY_ID", KEY).with_env("AWS_SECRET_ACCESS_KEY", SECRET);
    m.start();
    let made = |n: u32| -> Vec<u8> { (0..10_000_000u32).map(|i| ((i ^ i >> 7) + n) as u8).collect() };
    for n in 0..12 {
        m.entry_of(&format!("entry-{n}"), made(n));
        m.ok(&["push", "--wait"]);
    }
    let listed = m.json_lines(&["ls", "-l"]);
    assert_eq!(listed.len(), 12, "all are visible: {listed:?}");
    // What the logs have is in all of them, and so it is still here.
    let gave_up = |e: &&serde_json::Value| e["residency"] == "partial" || e["residency"] == "remote";
    assert!(listed.iter().filter(gave_up).count() >= 4, "{listed:?}");
    assert!(m.has_event("let_go", "entry-0"));
    assert!(m.ok(&["ls", "-l"]).contains("partial"));
    let here =
        |n: u32| m.json(&["du", &format!("entry-{n}")])["entries"][0]["here"].as_u64().expect("a number");
    assert!(here(0) < 100_000, "{}", here(0));
    for n in 0..12 {
        assert!(read(m.path(format!("entry-{n}/outputs/f"))) == made(n), "{n}");
    }
    assert!(here(11) > 9_000_000);
    // Damaged at rest: the daemon's own reading finds it.
    let blobs = super::common::files_below(&m.store().join("blobs"));
    assert!(!blobs.is_empty());
    for blob in &blobs {
        let mut content = fs::read(blob).expect("read");
        content[5_000_000] ^= 1;
        fs::remove_file(blob).expect("remove");
        fs::write(blob, content).expect("write");
    }
    m.restart();
    let damaged = m.run(&["fsck", "--verify-data"]);
    assert!(!damaged.status.success());
    for n in 0..12 {
        assert!(read_verified(&m, n) == made(n), "{n}");
    }
}

/// What the daemon reads of an entry's file.
fn read_verified(m: &Mount, n: u32) -> Vec<u8> {
    let out = m.run(&["cat", &format!("entry-{n}"), "outputs/f"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// S15.13 `outfs prefetch` has what is wanted of an entry come before it is read; with `--prefetch all` all of it comes once it was
/// looked up.
#[test]
fn what_will_be_read_comes_before_it_is() {
    let server = Server::start();
    let names: Vec<String> = (0..40).map(|n| format!("small-{n}")).collect();
    let mut files: Vec<(&str, usize, u8)> =
        names.iter().zip(0..).map(|(name, n)| (name.as_str(), 30_000 + usize::from(n), n)).collect();
    files.extend([("metadata.json", 80, 1), ("large", 5_000_000, 2), ("other", 5_000_000, 3)]);
    let made = send(&server, "p", "far-away", &files);
    send(&server, "p", "another", &[("metadata.json", 80, 1), ("large", 2_000_000, 4), ("small", 20, 5)]);
    let address = server.tier("p");
    let mut m = mount(&[&address]);
    m.start();
    let came = m.json(&["prefetch", "far-away", "large", "small-7"]);
    assert_eq!((&came["contents"], &came["bytes"]), (&2.into(), &5_030_007.into()));
    let asked = server.traffic().0;
    assert_eq!(read(m.path("far-away/large")), content(&made, "large"));
    assert_eq!(read(m.path("far-away/small-7")), content(&made, "small-7"));
    assert_eq!(server.traffic().0, asked, "it was here");
    assert!(m.ok(&["prefetch", "far-away"]).contains("fetched"));
    // A large content counts as here once the background has put it in its place.
    super::common::eventually("nothing is left", || m.json(&["prefetch", "far-away"])["contents"] == 0);
    assert_eq!(m.code(&["prefetch", "far-away", "nothing"]), 3);
    assert_eq!(m.code(&["prefetch", "absent"]), 3);
    m.restart_with(&["--size", "4G", "--tier", &address, "--prefetch", "all"]);
    let asked = server.traffic().0;
    for name in names.iter().map(String::as_str).chain(["large", "other"]) {
        assert_eq!(read(m.path(format!("far-away/{name}"))), content(&made, name), "{name}");
    }
    assert_eq!(server.traffic().0, asked, "all of it was here");
    assert!(fs::metadata(m.path("another/large")).is_ok());
    let residency =
        || m.json_lines(&["ls"]).iter().find(|e| e["key"] == "another").map(|e| e["residency"].clone());
    eventually("all of it comes", || residency().is_some_and(|r| r == "local"));
}
