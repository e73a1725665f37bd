//! A slow link: how soon the first byte comes, and a compiler that is read over it.
//!
//! The link is two network namespaces with a pair of interfaces between them, which let 200 Mbit/s through (`tc`, tbf), and the
//! proxy, which is 20 ms away; only root can make one. The server, and the machine that brings entries to it, are on the far side.
//! What time it takes means something on a machine that does nothing else.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use super::common::{Mount, need_root, sh};
use super::program::{mount, send};
use super::proxy::Proxy;
use super::server::Server;

const ROUND_TRIP: Duration = Duration::from_millis(20);

/// The shortest time until the first byte of a file is here that only the tier at this address has, of entries called `far-N`.
fn first_byte(address: &str, entries: usize) -> Duration {
    let mut m = mount(&[address]);
    m.start();
    // From here on there is a connection.
    assert!(fs::metadata(m.path("not-there")).is_err());
    let times = (0..entries).map(|n| {
        let begun = Instant::now();
        let path = m.path(format!("far-{n}/f"));
        fs::File::open(path).and_then(|mut f| f.read_exact(&mut [0])).expect("read");
        begun.elapsed()
    });
    times.min().expect("there are some")
}

fn send_many(server: &Server, entries: usize) {
    for n in 0..entries {
        send(server, "p", &format!("far-{n}"), &[("metadata.json", 80, 1), ("f", 5000 + n, n as u8)]);
    }
}

fn through(proxy: &Proxy, host: &str) -> String {
    format!("s3://bucket/p?endpoint=http://{host}:{}&region=here", proxy.port)
}

/// S15.9 The first byte of a file that only a tier has is three round trips away.
#[test]
fn the_first_byte_comes_within_three_round_trips() {
    let server = Server::start();
    send_many(&server, 5);
    // So long that what a busy machine adds is less than one.
    let round_trip = Duration::from_millis(600);
    let took = first_byte(&through(&Proxy::far(server.port, round_trip), "127.0.0.1"), 5);
    assert!(3 * round_trip <= took && took < 4 * round_trip, "{took:?}");
}

/// Does `far` in a network namespace of its own, and then `near` with what came of it in another one, at the ends of the link.
fn at_both_ends<T: Send + 'static>(
    far: impl FnOnce() -> T + Send + 'static,
    near: impl FnOnce(T) + Send + 'static,
) {
    let ip = |args: &str| {
        drop(sh("ip", &args.split(' ').collect::<Vec<_>>().iter().map(|a| a as _).collect::<Vec<_>>()))
    };
    let apart = || unshare(CloneFlags::CLONE_NEWNET).expect("root may have a network of its own");
    let end = move |name: &str, address: &str| {
        ip(&format!("address add {address}/24 dev {name}"));
        ip(&format!("link set {name} up"));
        let limit =
            "qdisc add dev NAME root tbf rate 200mbit burst 128kb latency 100ms".replace("NAME", name);
        sh("tc", &limit.split(' ').collect::<Vec<_>>().iter().map(|a| a as _).collect::<Vec<_>>());
    };
    // Threads have networks: the other tests keep theirs.
    let both = std::thread::spawn(move || {
        apart();
        let (tell, told) = channel();
        let (go, begin) = channel();
        let other = std::thread::spawn(move || {
            apart();
            ip("link set lo up");
            tell.send(nix::unistd::gettid()).expect("somebody listens");
            begin.recv().expect("it is made");
            end("far", FAR);
            far()
        });
        let there = told.recv().expect("it has a network");
        ip(&format!("link add name near type veth peer name far netns {there}"));
        end("near", "10.77.0.1");
        go.send(()).expect("it waits");
        near(other.join().expect("the far end"));
    });
    both.join().expect("the near end");
}

const FAR: &str = "10.77.0.2";

#[test]
#[ignore = "scripts/test-tiers runs it"]
fn the_first_byte_over_a_slow_link() {
    need_root();
    let far = || {
        let server = Server::start();
        send_many(&server, 20);
        Proxy::far(server.port, ROUND_TRIP)
    };
    at_both_ends(far, |proxy| {
        let took = first_byte(&through(&proxy, FAR), 20);
        eprintln!("the first byte over a link of {ROUND_TRIP:?}: {took:?}");
        assert!(3 * ROUND_TRIP <= took && took < 4 * ROUND_TRIP, "more than three round trips");
    });
}

/// What the toolchain entry has in all.
const ALL: u64 = 1 << 30;
const GCC: &str = "lib/gcc/here";

/// Makes a toolchain of the one that is here: the compiler and what it needs, and libraries that nobody reads.
fn toolchain(top: &Path) {
    let copy = |from: &Path, to: &Path| {
        fs::create_dir_all(to.parent().expect("it is below")).expect("mkdir");
        sh("cp", &[&"-rL", &from, &to]);
    };
    let asked = |what: &str| PathBuf::from(sh("gcc", &[&what]).trim());
    let of_gcc = asked("-print-libgcc-file-name");
    copy(of_gcc.parent().expect("a directory"), &top.join(GCC));
    copy(Path::new("/usr/include"), &top.join("include"));
    for name in ["as", "ld"] {
        let found = sh("sh", &[&"-c", &format!("command -v {name}")]);
        copy(Path::new(found.trim()), &top.join(GCC).join(name));
    }
    copy(Path::new(sh("sh", &[&"-c", &"command -v gcc"]).trim()), &top.join("bin/gcc"));
    for name in ["crt1.o", "crti.o", "crtn.o", "libc.a", "libm.a", "libmvec.a"] {
        copy(&asked(&format!("-print-file-name={name}")), &top.join("lib").join(name));
    }
    for program in ["cc1", "as", "ld"] {
        for line in sh("ldd", &[&top.join(GCC).join(program)]).lines() {
            let Some(library) = line.split(" => ").nth(1).and_then(|l| l.split(' ').next()) else { continue };
            let name = library.rsplit('/').next().expect("a name");
            if !name.starts_with("libc.so") {
                copy(Path::new(library), &top.join("lib").join(name));
            }
        }
    }
    let has: u64 =
        sh("du", &[&"-sb", &top]).split('\t').next().and_then(|n| n.parse().ok()).expect("a number");
    let dice = std::sync::atomic::AtomicU64::new(3);
    for n in 0..64 {
        let bytes =
            (0..ALL.saturating_sub(has) / 64 / 8).flat_map(|_| super::proxy::chance(&dice).to_le_bytes());
        fs::write(top.join(format!("lib/other-{n}.so")), bytes.collect::<Vec<u8>>()).expect("write");
    }
}

/// The next release: its programs and libraries are others.
fn release(top: &Path) {
    let name = |path: &Path| path.file_name().is_some_and(|n| n.to_string_lossy().contains(".so"));
    let programs = ["bin/gcc".into(), format!("{GCC}/cc1"), format!("{GCC}/as"), format!("{GCC}/ld")];
    let libraries = fs::read_dir(top.join("lib")).expect("list").map(|e| e.expect("an entry").path());
    for path in programs.iter().map(|p| top.join(p)).chain(libraries.filter(|path| name(path))) {
        let mut bytes = fs::read(&path).expect("read");
        bytes.extend_from_slice(b"the next release");
        fs::write(&path, bytes).expect("write");
    }
}

/// SQLite, as one of this project's dependencies has it.
fn source() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let out = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--offline", "--manifest-path", manifest])
        .output()
        .expect("cargo runs");
    let all: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let packages = all["packages"].as_array().expect("packages").iter();
    let mut sqlite = packages.filter(|p| p["name"] == "libsqlite3-sys");
    let at = sqlite.next().and_then(|p| p["manifest_path"].as_str()).expect("it depends on SQLite");
    Path::new(at).with_file_name("sqlite3")
}

/// Compiles SQLite and a program with the toolchain in there; how long that took, and whether the program runs.
fn compile(tool: &Path, source: &Path) -> Duration {
    let dir = tempfile::Builder::new().prefix("outfs-test-").tempdir().expect("a temporary directory");
    let main = "#include <stdio.h>\n#include \"sqlite3.h\"\nint main(void) { return puts(sqlite3_libversion()) < 0; }\n";
    fs::write(dir.path().join("main.c"), main).expect("write");
    let at = |below: &str| tool.join(below).display().to_string();
    let gcc = |args: &[String]| {
        let mut c = Command::new(tool.join("bin/gcc"));
        c.arg(format!("-B{}", at(GCC))).args(args).current_dir(&dir).env("LD_LIBRARY_PATH", at("lib"));
        let out = c.output().expect("the compiler runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    let begun = Instant::now();
    for file in [source.join("sqlite3.c"), "main.c".into()] {
        let mut args = vec!["-c".to_owned(), "-g".into(), "-nostdinc".into(), file.display().to_string()];
        for include in [&format!("{GCC}/include")[..], "include", "include/x86_64-linux-gnu"] {
            args.extend(["-isystem".into(), at(include)]);
        }
        args.extend(["-DSQLITE_THREADSAFE=0".into(), "-DSQLITE_OMIT_LOAD_EXTENSION".into()]);
        args.push(format!("-I{}", source.display()));
        gcc(&args);
    }
    let mut args: Vec<String> = ["-static", "-nostdlib", "-o", "program"].map(str::to_owned).to_vec();
    args.extend(["lib/crt1.o", "lib/crti.o", &format!("{GCC}/crtbeginT.o")].map(at));
    args.extend(["main.o", "sqlite3.o", "-Wl,--start-group"].map(str::to_owned));
    args.extend([&format!("{GCC}/libgcc.a")[..], &format!("{GCC}/libgcc_eh.a"), "lib/libc.a"].map(at));
    args.push("-Wl,--end-group".into());
    args.extend([&format!("{GCC}/crtend.o")[..], "lib/crtn.o"].map(at));
    gcc(&args);
    let took = begun.elapsed();
    let version = sh("sh", &[&"-c", &format!("{}/program", dir.path().display())]);
    assert!(version.starts_with("3."), "{version}");
    took
}

struct Far {
    server: Server,
    proxy: Proxy,
}

/// A bucket with two releases of the toolchain in it, which another machine brought there.
fn bucket() -> Far {
    let server = Server::start();
    let mut m = mount(&[&server.tier("p"), "--push"]);
    m.start();
    let dir = m.outside("toolchain");
    toolchain(&dir);
    for key in ["release-1", "release-2"] {
        m.ok(&["put", key, dir.to_str().expect("text"), "--task-id", "toolchain"]);
        release(&dir);
    }
    m.ok(&["push", "--wait"]);
    let proxy = Proxy::far(server.port, ROUND_TRIP);
    Far { server, proxy }
}

/// The times of a compilation with what the far end has, in seconds.
#[derive(Debug)]
struct Times {
    download: f64,
    local: f64,
    lazy: f64,
    learned: f64,
}

/// Has a machine have nothing of an entry, nor the kernel.
fn forget(m: &mut Mount, key: &str) {
    m.ok(&["evict", key]);
    m.restart();
    // What was held until then.
    m.ok(&["gc"]);
}

fn measure(far: &Far) -> Times {
    let (address, source) = (through(&far.proxy, FAR), source());
    let compile_of = |m: &Mount, key: &str| compile(&m.path(format!("{key}/outputs")), &source).as_secs_f64();
    let begin = |more: &[&str]| {
        let mut m = mount(&[&[&address[..]], more].concat());
        m.start();
        m
    };
    let anew = |m: &mut Mount, key: &str| {
        forget(m, key);
        let before = far.server.traffic().1;
        let took = compile_of(m, key);
        (took, far.server.traffic().1 - before)
    };
    let mut m = begin(&[]);
    let begun = Instant::now();
    m.ok(&["prefetch", "release-1"]);
    let download = begun.elapsed().as_secs_f64();
    let mut local = compile_of(&m, "release-1");
    for _ in 0..2 {
        m.restart();
        local = local.min(compile_of(&m, "release-1"));
    }
    let runs = [anew(&mut m, "release-1"), anew(&mut m, "release-1")];
    let (lazy, moved) = (runs[0].0.min(runs[1].0), runs[0].1.max(runs[1].1));
    drop(m);
    let percent = |moved: u64| moved as f64 * 100. / ALL as f64;
    eprintln!("downloaded in {download:.1} s; compiled in {local:.2} s");
    eprintln!("as it is read: {lazy:.2} s, {:.1} % moved", percent(moved));
    assert!(runs.iter().all(|(_, came)| *came > moved / 10 * 9), "it was not all to be fetched: {runs:?}");

    let mut m = begin(&["--prefetch=learned"]);
    compile_of(&m, "release-1");
    // What was read is written down.
    m.restart();
    forget(&mut m, "release-1");
    let runs = [0, 1].map(|_| {
        let before = far.server.traffic().1;
        let took = compile_of(&m, "release-2");
        let came = far.server.traffic().1 - before;
        eprintln!("as was learned: {took:.2} s, {:.1} % moved", percent(came));
        forget(&mut m, "release-2");
        (took, came)
    });
    let learned = runs[0].0.min(runs[1].0);
    // Less than without, as nothing comes with what was read that was not.
    assert!(runs.iter().all(|(_, came)| *came > moved / 2), "it was not all to be fetched: {runs:?}");
    Times { download, local, lazy, learned }
}

/// A compilation that reads a twentieth of a toolchain ends sooner than it would have begun if all had to be fetched before.
#[test]
#[ignore = "scripts/test-tiers runs it"]
fn a_compilation_over_a_slow_link() {
    need_root();
    at_both_ends(bucket, |far| {
        let times = measure(&far);
        let (sooner, slower) = ((times.download + times.local) / times.lazy, times.learned / times.local);
        eprintln!(
            "{sooner:.1} times sooner than downloading first; learned, {slower:.2} times the local time"
        );
        assert!(sooner >= 5., "not five times sooner: {times:?}");
        assert!(slower <= 1.3, "slower than 1.3 times: {times:?}");
    });
}
