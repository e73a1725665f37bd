//! The trees that are read: made once, from the sources that `scripts/bench` fetched and from fixed random numbers.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::hash;
use crate::place::Place;

/// A tree on the native file system.
pub struct Tree {
    pub name: &'static str,
    pub dir: PathBuf,
    /// The regular files below it, relative, sorted.
    pub files: Vec<String>,
    pub bytes: u64,
}

/// Every tree there is.
pub const NAMES: [&str; 9] =
    ["source", "source-8k", "source-2k", "target", "big", "quarter-big", "tiny", "few", "small-big"];

/// Whether a tree is one large file.
pub fn is_big(name: &str) -> bool {
    name.ends_with("big")
}

/// Makes a tree unless it is there.
pub fn make(place: &Place, name: &'static str) -> Result<Tree, String> {
    let dir = place.kept.join("trees").join(name);
    let failed = |e: io::Error| format!("making the tree {name}: {e}");
    if !dir.exists() {
        let tmp = place.kept.join(format!("trees/{name}.tmp"));
        let _ = fs::remove_dir_all(&tmp);
        fs::create_dir_all(&tmp).map_err(failed)?;
        match name {
            "source" => sources(place, &tmp, usize::MAX),
            "source-8k" => sources(place, &tmp, 8000),
            "source-2k" => sources(place, &tmp, 2000),
            "target" => copy(&place.kept.join("target-tree/debug"), &tmp, |_, _| true, usize::MAX),
            "big" => random_file(&tmp.join("big"), 1024),
            "quarter-big" => random_file(&tmp.join("big"), 256),
            "small-big" => random_file(&tmp.join("big"), 16),
            "tiny" => many(&tmp, 100_000),
            _ => many(&tmp, 300),
        }
        .and_then(|()| fs::rename(&tmp, &dir))
        .map_err(failed)?;
    }
    let all = hash::walk(&dir).map_err(failed)?;
    let files: Vec<_> = all.iter().filter(|(_, facts)| facts.is_file()).collect();
    let names = files.iter().map(|(path, _)| path.to_str().map(str::to_owned));
    let names = names.collect::<Option<Vec<_>>>().ok_or(format!("tree {name}: a name is no text"))?;
    let bytes = files.iter().map(|(_, facts)| facts.len()).sum();
    Ok(Tree { name, dir, files: names, bytes })
}

/// Vendored crates without what is no source: archives, and a few huge generated files. A limit takes every other
/// crate until it is reached.
fn sources(place: &Place, to: &Path, limit: usize) -> io::Result<()> {
    let wanted = |path: &Path, facts: &fs::Metadata| {
        !path.extension().is_some_and(|e| ["a", "lib", "dll"].iter().any(|x| e == *x))
            && facts.len() <= 1 << 20
    };
    copy(&place.kept.join("vendor"), to, wanted, limit)
}

/// Copies what is wanted of a tree, in sorted order.
fn copy(
    from: &Path,
    to: &Path,
    wanted: impl Fn(&Path, &fs::Metadata) -> bool,
    limit: usize,
) -> io::Result<()> {
    let mut crates: Vec<_> = fs::read_dir(from)?.map(|e| Ok(e?.file_name())).collect::<io::Result<_>>()?;
    crates.sort();
    let step = if limit == usize::MAX { 1 } else { 2 };
    let mut count = 0;
    for name in crates.iter().step_by(step) {
        let top = from.join(name);
        if !top.is_dir() {
            fs::copy(&top, to.join(name))?;
            continue;
        }
        fs::create_dir(to.join(name))?;
        for (path, facts) in hash::walk(&top)? {
            let target = to.join(name).join(&path);
            if facts.is_dir() {
                fs::create_dir(&target)?;
            } else if facts.is_symlink() {
                std::os::unix::fs::symlink(fs::read_link(top.join(&path))?, &target)?;
            } else if wanted(&path, &facts) && count < limit {
                fs::copy(top.join(&path), &target)?;
                // Some crates have files that only their owner may read; an ordinary user reads them here, too.
                fs::set_permissions(&target, fs::Permissions::from_mode(facts.permissions().mode() | 0o444))?;
                count += 1;
            }
        }
    }
    Ok(())
}

/// The same numbers on every run.
pub struct Random(u64);

impl Random {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// `length` bytes that do not compress.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut data: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        data.truncate(length);
        data
    }
}

fn random_file(path: &Path, mib: u64) -> io::Result<()> {
    let mut random = Random::new(1);
    let mut file = File::create(path)?;
    for _ in 0..mib {
        file.write_all(&random.bytes(1 << 20))?;
    }
    Ok(())
}

/// Files of up to 1,000 bytes, 100 to a directory.
pub fn many(to: &Path, count: usize) -> io::Result<()> {
    let mut random = Random::new(2);
    for n in 0..count {
        let dir = to.join(format!("d{:03}", n / 100));
        if n % 100 == 0 {
            fs::create_dir(&dir)?;
        }
        let length = random.next() as usize % 1000;
        fs::write(dir.join(format!("f{n:06}")), random.bytes(length))?;
    }
    Ok(())
}
