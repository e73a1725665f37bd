//! What a tree is read through: native, its peers, and outfs's views.
//!
//! Peers run as Debian's packages set them up by default, which is what a user would get.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cas;
use crate::options::Options;
use crate::place::{self, Place, Store};
use crate::trees::Tree;

/// A way to a tree.
pub struct Peer {
    pub name: &'static str,
    /// The tree as it shows it.
    pub root: PathBuf,
    /// Whether an ordinary user reads it.
    pub user: bool,
}

/// The stores of a tree; their daemons end with it.
pub struct Served {
    pub peers: Vec<Peer>,
    _stores: Vec<Store>,
}

type SetUp = fn(&Place, &Tree, &Path) -> Result<(), String>;

/// The entry of every tree.
pub const KEY: &str = "bench.entry";

const OTHERS: [(&str, SetUp); 7] = [
    ("erofs", erofs),
    ("overlayfs", overlayfs),
    ("fuse-overlayfs", fuse_overlayfs),
    ("bindfs", bindfs),
    ("mergerfs", mergerfs),
    ("squashfuse", squashfuse),
    ("buildbox-fuse", buildbox),
];

/// Sets all wanted peers up for a tree; what is not to be had here is noted and left out.
pub fn serve(
    place: &Place,
    tree: &Tree,
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<Served, String> {
    let mut peers = vec![Peer { name: "native", root: tree.dir.clone(), user: false }];
    for (name, set_up) in OTHERS {
        if !options.wants_peer(name) {
            continue;
        }
        let at = place.fresh(&format!("{}-{name}", tree.name))?;
        match set_up(place, tree, &at) {
            Ok(()) => peers.push(Peer { name, root: at, user: false }),
            Err(e) => notes.push(format!("{name} left out: {e}")),
        }
    }
    let mut stores = vec![];
    if options.wants_peer("outfs ro") || options.wants_peer("outfs rw") {
        let store = put(place, tree, false)?;
        // The daemon starts with the first view.
        let all: [(_, &[&str]); 2] = [("outfs rw", &["--size", "20G"]), ("outfs ro", &["--read-only"])];
        for (name, flags) in all {
            let at = store.mount(name, flags)?;
            if options.wants_peer(name) {
                peers.push(Peer { name, root: at.join(KEY).join("outputs"), user: false });
            }
        }
        let note = format!("outfs gets requests through {}", transport(&store)?);
        if !notes.contains(&note) {
            notes.push(note);
        }
        stores.push(store);
    }
    if options.wants_peer("outfs user") {
        match put(place, tree, true)
            .and_then(|s| Ok((s.mount("view", &["--read-only", "--size", "20G"])?, s)))
        {
            Ok((at, store)) => {
                peers.push(Peer { name: "outfs user", root: at.join(KEY).join("outputs"), user: true });
                stores.push(store);
            }
            Err(e) => notes.push(format!("outfs user left out: {e}")),
        }
    }
    Ok(Served { peers, _stores: stores })
}

fn transport(store: &Store) -> Result<&'static str, String> {
    Ok(match store.transport()?.as_str() {
        "uring" => "io_uring",
        _ => "/dev/fuse",
    })
}

/// A new store that holds the tree.
pub fn put(place: &Place, tree: &Tree, user: bool) -> Result<Store, String> {
    let store = Store::new(
        place,
        &place.run.join(format!("{}-outfs{}", tree.name, if user { "-user" } else { "" })),
        user,
    )?;
    place::run(store.command(["put", KEY]).arg(&tree.dir))?;
    Ok(store)
}

/// An image of the tree, kept for later runs.
pub fn image(
    place: &Place,
    tree: &Tree,
    kind: &str,
    make: impl Fn(&Path) -> Command,
) -> Result<PathBuf, String> {
    let path = place.kept.join(format!("images/{}.{kind}", tree.name));
    let newer = |path: &Path| -> Option<bool> {
        Some(fs::metadata(path).ok()?.modified().ok()? > fs::metadata(&tree.dir).ok()?.modified().ok()?)
    };
    if newer(&path) != Some(true) {
        let tmp = place.kept.join(format!("images/{}.{kind}.tmp", tree.name));
        let _ = fs::remove_file(&tmp);
        place::run(&mut make(&tmp))?;
        fs::rename(&tmp, &path).map_err(|e| format!("naming {}: {e}", path.display()))?;
    }
    Ok(path)
}

fn erofs(place: &Place, tree: &Tree, at: &Path) -> Result<(), String> {
    let image = image(place, tree, "erofs", |to| {
        let mut make = Command::new("mkfs.erofs");
        make.arg(to).arg(&tree.dir);
        make
    })?;
    let mount = |options: &str| {
        place::run(Command::new("mount").args(["-t", "erofs", "-o", options]).arg(&image).arg(at))
    };
    // Backed by the file itself, or, before Linux 6.12, by a loop device.
    place::run(Command::new("mount").args(["-i", "-t", "erofs", "-o", "ro"]).arg(&image).arg(at))
        .or_else(|_| mount("ro,loop"))
}

fn layers(place: &Place, tree: &Tree, kind: &str) -> Result<String, String> {
    let dir = |what: &str| place.fresh(&format!("{}-{kind}-{what}", tree.name));
    let (upper, work) = (dir("upper")?, dir("work")?);
    Ok(format!("lowerdir={},upperdir={},workdir={}", tree.dir.display(), upper.display(), work.display()))
}

fn overlayfs(place: &Place, tree: &Tree, at: &Path) -> Result<(), String> {
    let layers = layers(place, tree, "overlayfs")?;
    place::run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &layers]).arg(at))
}

fn fuse_overlayfs(place: &Place, tree: &Tree, at: &Path) -> Result<(), String> {
    let layers = layers(place, tree, "fuse-overlayfs")?;
    place::run(Command::new("fuse-overlayfs").args(["-o", &layers]).arg(at))
}

fn bindfs(_: &Place, tree: &Tree, at: &Path) -> Result<(), String> {
    place::run(Command::new("bindfs").arg(&tree.dir).arg(at))
}

fn mergerfs(_: &Place, tree: &Tree, at: &Path) -> Result<(), String> {
    place::run(Command::new("mergerfs").arg(&tree.dir).arg(at))
}

fn squashfuse(place: &Place, tree: &Tree, at: &Path) -> Result<(), String> {
    let image = image(place, tree, "squashfs", |to| {
        let mut make = Command::new("mksquashfs");
        // Uncompressed, like everybody else here.
        make.arg(&tree.dir).arg(to).args(["-noI", "-noD", "-noF", "-noX", "-quiet", "-no-progress"]);
        make
    })?;
    place::run(Command::new("squashfuse_ll").arg(&image).arg(at))
}

fn buildbox(place: &Place, tree: &Tree, at: &Path) -> Result<(), String> {
    let program = std::env::var_os("BENCH_BUILDBOX").map(|d| PathBuf::from(d).join("buildbox-fuse"));
    let program = program.filter(|p| p.exists()).ok_or("it is not there")?;
    let cas = place.fresh(&format!("{}-cas", tree.name))?;
    let digest = cas::capture(&tree.dir, &cas).map_err(|e| format!("storing the tree: {e}"))?;
    // It stays in the foreground, and ends with the run's process namespace.
    Command::new(program)
        .arg(format!("--local={}", cas.display()))
        .arg(format!("--input-digest-value={digest}"))
        .arg(at)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("starting it: {e}"))?;
    place::wait_for_mount(at)
}
