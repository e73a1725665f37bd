//! Hashes of trees, and SHA-256, by which content-addressed peers name things.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Every file, directory and symlink below a directory, sorted; relative paths.
pub fn walk(top: &Path) -> io::Result<Vec<(PathBuf, fs::Metadata)>> {
    let mut all = vec![];
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(top.join(&dir))? {
            let path = dir.join(entry?.file_name());
            let facts = fs::symlink_metadata(top.join(&path))?;
            if facts.is_dir() {
                todo.push(path.clone());
            }
            all.push((path, facts));
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

/// One hash of all names, kinds, sizes and contents below a directory. Modes and times are what peers differ in.
pub fn tree(top: &Path) -> io::Result<String> {
    let mut all = blake3::Hasher::new();
    if top.is_file() {
        return Ok(blake3::Hasher::new().update_reader(File::open(top)?)?.finalize().to_hex().to_string());
    }
    for (path, facts) in walk(top)? {
        let full = top.join(&path);
        let named = |e: io::Error| io::Error::other(format!("{}: {e}", full.display()));
        let (kind, content) = if facts.is_dir() {
            (b"d", blake3::hash(b""))
        } else if facts.is_symlink() {
            (b"l", blake3::hash(fs::read_link(&full).map_err(named)?.as_os_str().as_encoded_bytes()))
        } else {
            let mut content = blake3::Hasher::new();
            let read = content.update_reader(File::open(&full).map_err(named)?).map_err(named)?.count();
            if read != facts.len() {
                return Err(io::Error::other(format!("{}: {read} of {} bytes", full.display(), facts.len())));
            }
            (b"f", content.finalize())
        };
        all.update(kind).update(path.as_os_str().as_encoded_bytes()).update(&[0]).update(content.as_bytes());
    }
    Ok(all.finalize().to_hex().to_string())
}

#[rustfmt::skip]
const ROUND: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

/// SHA-256, in hexadecimal.
pub fn sha256(data: &[u8]) -> String {
    let mut state: [u32; 8] =
        [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];
    let (whole, rest) = data.as_chunks::<64>();
    whole.iter().for_each(|block| sha256_block(&mut state, block));
    let mut tail = rest.to_vec();
    tail.push(0x80);
    while tail.len() % 64 != 56 {
        tail.push(0);
    }
    tail.extend((data.len() as u64 * 8).to_be_bytes());
    tail.as_chunks::<64>().0.iter().for_each(|block| sha256_block(&mut state, block));
    state.iter().map(|word| format!("{word:08x}")).collect()
}

fn sha256_block(state: &mut [u32; 8], block: &[u8; 64]) {
    let mut w = [0u32; 64];
    for (word, bytes) in w.iter_mut().zip(block.as_chunks::<4>().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    for i in 16..64 {
        let s0 = w[i - 15].rotate_right(7) ^ w[i - 15].rotate_right(18) ^ (w[i - 15] >> 3);
        let s1 = w[i - 2].rotate_right(17) ^ w[i - 2].rotate_right(19) ^ (w[i - 2] >> 10);
        w[i] = w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1);
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for i in 0..64 {
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let t1 =
            h.wrapping_add(s1).wrapping_add((e & f) ^ (!e & g)).wrapping_add(ROUND[i]).wrapping_add(w[i]);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t2 = s0.wrapping_add((a & b) ^ (a & c) ^ (b & c));
        (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
    }
    for (word, more) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *word = word.wrapping_add(more);
    }
}
