//! A tree as the Remote Execution API stores it, for buildbox-fuse: blobs and Directory messages named by SHA-256.

use std::fs;
use std::io;
use std::path::Path;

use crate::hash::sha256;

/// Stores a tree below `cas` and gives its digest as `hash/size`.
pub fn capture(tree: &Path, cas: &Path) -> io::Result<String> {
    let objects = cas.join("objects");
    for n in 0..256 {
        fs::create_dir_all(objects.join(format!("{n:02x}")))?;
    }
    let (hash, size) = directory(tree, &objects)?;
    Ok(format!("{hash}/{size}"))
}

fn store(data: &[u8], objects: &Path) -> io::Result<(String, u64)> {
    let hash = sha256(data);
    let path = objects.join(&hash[..2]).join(&hash[2..]);
    if !path.exists() {
        fs::write(path, data)?;
    }
    Ok((hash, data.len() as u64))
}

/// Directory { files = 1, directories = 2, symlinks = 3 }, each sorted by name.
fn directory(dir: &Path, objects: &Path) -> io::Result<(String, u64)> {
    let mut names: Vec<_> = fs::read_dir(dir)?.map(|e| Ok(e?.file_name())).collect::<io::Result<_>>()?;
    names.sort();
    let mut parts = [vec![], vec![], vec![]];
    for name in names {
        let path = dir.join(&name);
        let facts = fs::symlink_metadata(&path)?;
        let name = name.as_encoded_bytes();
        if facts.is_dir() {
            let node = [field(1, name), field(2, &digest(directory(&path, objects)?))].concat();
            parts[1].extend(field(2, &node));
        } else if facts.is_symlink() {
            let target = fs::read_link(&path)?;
            parts[2].extend(field(
                3,
                &[field(1, name), field(2, target.as_os_str().as_encoded_bytes())].concat(),
            ));
        } else {
            let mut node = [field(1, name), field(2, &digest(store(&fs::read(&path)?, objects)?))].concat();
            if std::os::unix::fs::PermissionsExt::mode(&facts.permissions()) & 0o100 != 0 {
                node.extend([4 << 3, 1]);
            }
            parts[0].extend(field(1, &node));
        }
    }
    store(&parts.concat(), objects)
}

/// Digest { hash = 1, size_bytes = 2 }.
fn digest((hash, size): (String, u64)) -> Vec<u8> {
    let mut message = field(1, hash.as_bytes());
    if size > 0 {
        message.push(2 << 3);
        message.extend(varint(size));
    }
    message
}

/// A length-delimited field.
fn field(number: u8, data: &[u8]) -> Vec<u8> {
    let mut all = vec![number << 3 | 2];
    all.extend(varint(data.len() as u64));
    all.extend(data);
    all
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut all = vec![];
    while value >= 0x80 {
        all.push(value as u8 | 0x80);
        value >>= 7;
    }
    all.push(value as u8);
    all
}
