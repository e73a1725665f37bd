//! Garage, a real server of S3, on the loopback: the suite, and two machines that share what one of them makes.
//!
//! `scripts/test-tiers` installs it. Where it is not installed, this says so and tests nothing.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::common::{SOON, eventually, read};
use super::others::{fetched, free_port, start};
use super::program::mount;
use super::s3::{KEY, SECRET, credentials};
use super::suite::{conforms, key};
use outfs::tier::{self, Tier};

/// As `scripts/test-tiers` has it.
const VERSION: &str = "2.5.0";

/// A node with an empty bucket called `bucket`; it ends when this is dropped.
pub struct Garage {
    program: PathBuf,
    dir: tempfile::TempDir,
    pub port: u16,
    node: Child,
}

pub fn program() -> Option<PathBuf> {
    fetched(&format!("garage-{VERSION}/bin/garage"))
}

impl Garage {
    pub fn start() -> Option<Garage> {
        let program = program()?;
        for _ in 0..5 {
            let dir =
                tempfile::Builder::new().prefix("outfs-test-").tempdir().expect("a temporary directory");
            let (port, rpc) = (free_port(), free_port());
            let at = dir.path().display();
            let config = format!(
                "metadata_dir = '{at}/meta'\ndata_dir = '{at}/data'\nreplication_factor = 1\n\
                 rpc_bind_addr = '127.0.0.1:{rpc}'\nrpc_public_addr = '127.0.0.1:{rpc}'\nrpc_secret = '{SECRET}'\n\
                 [s3_api]\ns3_region = 'here'\napi_bind_addr = '127.0.0.1:{port}'\n"
            );
            fs::write(dir.path().join("config.toml"), config).expect("write");
            let node = node(&program, &dir);
            let mut garage = Garage { program: program.clone(), dir, port, node };
            if garage.answers() {
                return Some(garage);
            }
            // Somebody else got a port.
        }
        panic!("Garage does not start");
    }

    pub fn tier(&self, prefix: &str) -> String {
        format!("s3://bucket/{prefix}?endpoint=http://127.0.0.1:{}&region=here", self.port)
    }

    pub fn open(&self, prefix: &str) -> std::sync::Arc<dyn Tier> {
        credentials();
        tier::open(&self.tier(prefix).parse().expect("an address"), true).expect("it opens")
    }

    /// Waits until it does; false when it has ended.
    fn answers(&mut self) -> bool {
        let tier = self.open("");
        let end = Instant::now() + SOON;
        while self.node.try_wait().expect("our own child").is_none() {
            match tier.find(&key("nothing-there"), Instant::now() + Duration::from_secs(5)) {
                Err(e) if e.is_absent() => return true,
                other => {
                    assert!(Instant::now() < end, "Garage does not answer: {:?}\n{}", other.err(), self.log())
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn kill(&mut self) {
        self.node.kill().expect("our own child");
        self.node.wait().expect("our own child");
    }

    fn start_again(&mut self) {
        self.node = node(&self.program, &self.dir);
        assert!(self.answers(), "{}", self.log());
    }
}

fn node(program: &PathBuf, dir: &tempfile::TempDir) -> Child {
    let mut garage = Command::new(program);
    garage
        .arg("-c")
        .arg(dir.path().join("config.toml"))
        .args(["server", "--single-node", "--default-bucket"])
        .envs([("GARAGE_DEFAULT_ACCESS_KEY", KEY), ("GARAGE_DEFAULT_SECRET_KEY", SECRET)])
        .env("GARAGE_DEFAULT_BUCKET", "bucket");
    start(&mut garage, dir.path())
}

impl Drop for Garage {
    fn drop(&mut self) {
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}

#[test]
fn it_conforms() {
    let Some(garage) = Garage::start() else { return };
    let next = AtomicU32::new(0);
    conforms(&|| garage.open(&format!("prefix-{}", next.fetch_add(1, Ordering::Relaxed))));
}

#[test]
fn two_machines_share_and_outlive_a_dead_server() {
    let Some(mut garage) = Garage::start() else { return };
    let address = garage.tier("team");
    let mut one = mount(&[&address, "--push"]);
    one.start();
    let large: Vec<u8> = (0..40_000_000u32).map(|i| (i ^ i >> 7 ^ i >> 15) as u8).collect();
    one.entry("built-here", |outputs| {
        fs::write(outputs.join("large"), &large).expect("write");
        for n in 0..300 {
            fs::write(outputs.join(format!("small-{n}")), format!("{n}").repeat(n + 1)).expect("write");
        }
    });
    one.ok(&["push", "--wait"]);
    let mut other = mount(&[&address]);
    other.start();
    other.entry_of("its-own", "here");
    let far = |name: &str| other.path("built-here/outputs").join(name);
    assert_eq!(read(far("small-7")), b"77777777");

    garage.kill();
    assert_eq!(fs::read(far("large")).unwrap_err().raw_os_error(), Some(libc::EIO), "in time");
    assert_eq!(read(other.path("its-own/outputs/f")), b"here");
    assert_eq!(read(far("small-8")), b"888888888", "it came with its neighbours");
    one.entry_of("made-meanwhile", "waits");
    garage.start_again();

    eventually("the tier is asked again", || fs::read(far("large")).is_ok());
    assert!(read(far("large")) == large);
    for n in 0..300 {
        assert!(read(far(&format!("small-{n}"))) == format!("{n}").repeat(n + 1).as_bytes(), "small-{n}");
    }
    one.ok(&["push", "--wait"]);
    eventually("the other finds it", || fs::read(other.path("made-meanwhile/outputs/f")).is_ok());
}
