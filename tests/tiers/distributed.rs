//! Three nodes of Garage that keep everything three times, one of which dies while something is read, and one while something
//! is brought.
//!
//! `scripts/test-distributed` runs it: it is left out otherwise, and needs Garage.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::common::{eventually, read};
use super::garage::program;
use super::others::free_port;
use super::program::{mount, noise};
use super::s3::{KEY, SECRET};

/// How long all of one thing may take, on a busy machine.
const LONG: Duration = Duration::from_secs(240);

struct Node {
    program: PathBuf,
    config: PathBuf,
    port: u16,
    child: Child,
}

impl Node {
    fn new(program: PathBuf, dir: &std::path::Path, n: usize) -> Node {
        let (port, rpc) = (free_port(), free_port());
        let at = dir.join(n.to_string());
        fs::create_dir(&at).expect("mkdir");
        let config = at.join("config.toml");
        let at = at.display();
        let text = format!(
            "metadata_dir = '{at}/meta'\ndata_dir = '{at}/data'\nreplication_factor = 3\n\
             rpc_bind_addr = '127.0.0.1:{rpc}'\nrpc_public_addr = '127.0.0.1:{rpc}'\nrpc_secret = '{SECRET}'\n\
             [s3_api]\ns3_region = 'here'\napi_bind_addr = '127.0.0.1:{port}'\n"
        );
        fs::write(&config, text).expect("write");
        let child = run(&program, &config);
        Node { program, config, port, child }
    }

    fn garage(&self, args: &[&str]) -> Option<String> {
        let out =
            Command::new(&self.program).arg("-c").arg(&self.config).args(args).output().expect("garage");
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    fn ok(&self, args: &[&str]) -> String {
        let end = Instant::now() + LONG;
        loop {
            if let Some(said) = self.garage(args) {
                return said;
            }
            assert!(Instant::now() < end, "garage {args:?} fails: {}", self.config.display());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn tier(&self) -> String {
        format!("s3://bucket/team?endpoint=http://127.0.0.1:{}&region=here", self.port)
    }

    fn kill(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    fn start_again(&mut self) {
        self.child = run(&self.program, &self.config);
        self.ok(&["status"]);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(program: &PathBuf, config: &PathBuf) -> Child {
    let log = File::options().create(true).append(true).open(config.with_file_name("log")).expect("a log");
    Command::new(program)
        .arg("-c")
        .arg(config)
        .arg("server")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second descriptor"))
        .stderr(log)
        .spawn()
        .expect("garage starts")
}

/// Three nodes that know each other, with a bucket.
fn cluster(program: PathBuf, dir: &std::path::Path) -> Vec<Node> {
    let nodes: Vec<Node> = (0..3).map(|n| Node::new(program.clone(), dir, n)).collect();
    let ids: Vec<String> = nodes.iter().map(|n| n.ok(&["node", "id", "-q"])).collect();
    let first = &nodes[0];
    ids[1..].iter().for_each(|id| drop(first.ok(&["node", "connect", id])));
    for id in &ids {
        let id = id.split('@').next().expect("an id");
        first.ok(&["layout", "assign", "-z", "here", "-c", "1GB", id]);
    }
    first.ok(&["layout", "apply", "--version", "1"]);
    first.ok(&["key", "import", "--yes", "-n", "test", KEY, SECRET]);
    first.ok(&["bucket", "create", "bucket"]);
    first.ok(&["bucket", "allow", "--read", "--write", "--owner", "bucket", "--key", KEY]);
    nodes
}

#[test]
#[ignore = "scripts/test-distributed runs it"]
fn a_node_that_dies_is_missed_by_nobody() {
    let program = program().expect("Garage is not installed: scripts/test-tiers installs it");
    let dir = tempfile::Builder::new().prefix("outfs-test-").tempdir().expect("a temporary directory");
    let mut nodes = cluster(program, dir.path());
    let large = noise(100_000_000, 7);
    let small = |n: usize| format!("{n} ").repeat(300 * n + 1);

    // In the midst of bringing.
    let mut one = mount(&[&nodes[0].tier(), "--push"]);
    one.start();
    let begun = Instant::now();
    one.entry("built-here", |outputs| {
        fs::write(outputs.join("large"), &large).expect("write");
        (0..200).for_each(|n| fs::write(outputs.join(format!("small-{n}")), small(n)).expect("write"));
    });
    let sent = || one.json(&["stats"])["tiers"][0]["push"]["sent"].as_u64().expect("a number");
    eventually("it is on its way", || sent() > 20_000_000);
    assert_eq!(one.json(&["push"])["push"]["waiting"], 1, "it is not there yet");
    nodes[2].kill();
    one.ok(&["push", "--wait"]);
    eprintln!("brought in {:?}, with a node that died meanwhile", begun.elapsed());
    assert!(begun.elapsed() < LONG);
    nodes[2].start_again();
    eventually("all nodes are there", || nodes[0].ok(&["status"]).split("FAILED NODES").count() == 1);

    // In the midst of reading, which goes on with another node.
    let mut other = mount(&[&nodes[1].tier(), &nodes[2].tier()]);
    other.start();
    let file = File::open(other.path("built-here/outputs/large")).expect("it is found");
    let (begun, mut piece) = (Instant::now(), vec![0; 1 << 20]);
    for (n, wanted) in large.chunks(1 << 20).enumerate() {
        if n == 20 {
            nodes[1].kill();
        }
        let piece = &mut piece[..wanted.len()];
        file.read_exact_at(piece, (n << 20) as u64).unwrap_or_else(|e| panic!("{e} at {n} MiB"));
        assert!(piece == wanted, "wrong bytes at {n} MiB");
    }
    for n in 0..200 {
        assert!(
            read(other.path(format!("built-here/outputs/small-{n}"))) == small(n).as_bytes(),
            "small-{n}"
        );
    }
    eprintln!("read in {:?}, with a node that died meanwhile", begun.elapsed());
    assert!(begun.elapsed() < LONG);
    let doctor = other.ok(&["doctor"]);
    assert!(doctor.contains(&format!("{} answers", nodes[2].tier())), "{doctor}");
    nodes[1].start_again();
    // What is stored is what was made.
    other.ok(&["fsck", "--verify-data"]);
}
