//! What must hold of packs and location tables, whatever bytes they are made of.

use std::path::Path;

use super::manifests::{LOC_CHECK, LOC_HEADER, LOC_SLOT, decode_table, encode_table, names_table};
use super::packs::{BLOB_HEADER, PACK_HEADER, blob_header, pack_header};
use super::{Access, Location, PackId, Store};
use crate::model::{BlobHash, ManifestHash};

/// A location table that is accepted is written with the same bytes.
pub fn table(data: &[u8]) {
    let Some(named) = data.get(8..40) else { return };
    let manifest = ManifestHash(named.try_into().expect("32 bytes"));
    table_holds(&manifest, data);
    // No damage comes with the right check, but its slots may say anything.
    let Some(slots) = data.first_chunk().and_then(|header| names_table(header, &manifest)) else { return };
    let end = slots.checked_mul(LOC_SLOT as u64).and_then(|n| n.checked_add(LOC_HEADER as u64));
    let Some(body) = end.and_then(|end| data.get(..usize::try_from(end).ok()?)) else { return };
    table_holds(&manifest, &[body, blake3::hash(body).as_bytes()].concat());
}

fn table_holds(manifest: &ManifestHash, bytes: &[u8]) {
    if let Some(table) = decode_table(manifest, bytes) {
        let end = LOC_HEADER + table.len() * LOC_SLOT + LOC_CHECK;
        assert_eq!(encode_table(manifest, &table), bytes[..end]);
    }
}

const PACK: PackId = PackId(1);

/// What is found in a pack lies in it, without overlaps; what verifies can be read, what does not cannot, and a pack in
/// which all verifies is written with the same bytes.
pub fn pack(data: &[u8]) {
    thread_local! {
        static STORE: (tempfile::TempDir, Store) = {
            // In memory, where there is such a place.
            let shm = Path::new("/dev/shm");
            let dir = tempfile::tempdir_in(shm).or_else(|_| tempfile::tempdir()).expect("a directory");
            let store = Store::open(&dir.path().join("store"), Access::Own).expect("a store");
            (dir, store)
        };
    }
    let Some((how, rest)) = data.split_first() else { return };
    let bytes = if how & 1 == 0 { renamed(rest) } else { composed(rest) };
    STORE.with(|(_, store)| {
        std::fs::write(store.pack_path(PACK), &bytes).expect("a pack");
        pack_holds(store, &bytes);
    });
}

/// The bytes of a pack under another number.
fn renamed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(id) = bytes.get_mut(8..16) {
        id.copy_from_slice(&PACK.0.to_le_bytes());
    }
    bytes
}

/// A pack of blobs that are described one after another: what is wrong with it, how long it is, its content.
fn composed(mut rest: &[u8]) -> Vec<u8> {
    let mut bytes = pack_header(PACK).to_vec();
    while let [wrong, low, high, after @ ..] = rest {
        let (content, after) =
            after.split_at(after.len().min(usize::from(u16::from_le_bytes([*low, *high]))));
        let mut hash = BlobHash::of(content);
        hash.0[0] ^= wrong & 1;
        let len = content.len() as u32 + u32::from(wrong >> 4);
        let mut header = blob_header(&hash, len);
        header[BLOB_HEADER - 1] ^= wrong >> 1 & 1;
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(content);
        rest = after;
    }
    bytes
}

fn pack_holds(store: &Store, bytes: &[u8]) {
    let scan = |verify| {
        let mut found = Vec::new();
        let result = store.scan_pack(PACK, verify, &mut |hash, len, at| {
            let Location::Pack { pack, offset } = at else { panic!("a blob in a pack is loose") };
            assert_eq!(pack, PACK);
            found.push((hash, len, offset));
            true
        });
        (found, result.is_ok())
    };
    let (all, sound) = scan(false);
    let (good, verified) = scan(true);
    assert!(sound || !verified, "a damaged pack verifies");
    let mut end = PACK_HEADER;
    let mut written = pack_header(PACK).to_vec();
    let mut next = good.iter();
    for blob @ (hash, len, offset) in &all {
        assert_eq!(*offset, end + BLOB_HEADER as u64);
        end = offset + len;
        let content = &bytes[*offset as usize..end as usize];
        let is_good = hash.names(content);
        assert!(!is_good || next.next() == Some(blob), "a good blob was left out");
        let (mut read, at) = (vec![0; *len as usize], Location::Pack { pack: PACK, offset: *offset });
        let n = store.read_verified(hash, *len, &[], at, 0, &mut read);
        match n {
            Ok(n) => assert!(n == content.len() && read == content && (is_good || n == 0)),
            Err(_) => assert!(!is_good && read.iter().all(|b| *b == 0)),
        }
        written.extend_from_slice(&blob_header(hash, *len as u32));
        written.extend_from_slice(content);
    }
    assert!(next.next().is_none(), "a damaged blob was taken for good");
    if sound {
        assert_eq!(written, bytes);
    }
}
