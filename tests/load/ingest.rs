//! Entries whose files follow from their key, made through each of the gestures: for programs that check afterwards
//! what became of them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::calls::{COMMAND, call, within};
use crate::daemon::{Daemon, Random};

/// The files of an entry follow from its key; one is shared by many entries.
pub fn files(key: &str) -> Vec<(&'static str, Vec<u8>)> {
    let mut random = Random::new(key.bytes().fold(7, |sum, b| sum * 31 % 0xffff_fffb + u64::from(b)));
    let shared = Random::new(random.below(40)).bytes(3000);
    vec![
        ("small", random.bytes(100)),
        ("deep/er/medium", random.bytes(40_000)),
        ("large", random.bytes(300_000)),
        ("shared", shared),
    ]
}

/// Writes them below a directory.
pub fn write_files(outputs: &Path, key: &str) -> io::Result<()> {
    call("mkdir -p in a draft", outputs, || fs::create_dir_all(outputs.join("deep/er")))?;
    for (name, data) in files(key) {
        call("write in a draft", outputs, || fs::write(outputs.join(name), data))?;
    }
    Ok(())
}

/// Writes one entry and seals it by one of the gestures; `Ok(true)` is reported sealed.
pub fn ingest(daemon: &Daemon, key: &str, gesture: u64) -> io::Result<bool> {
    let mnt = daemon.mnt();
    match gesture {
        0 | 1 => {
            let work = mnt.join(".outfs/work").join(key);
            call("mkdir of a draft", &work, || fs::create_dir(&work))?;
            write_files(&work.join("outputs"), key)?;
            call("rename that publishes", &work, || fs::rename(&work, mnt.join(key)))?;
        }
        2 => {
            let entry = mnt.join(key);
            call("mkdir of a draft", &entry, || fs::create_dir(&entry))?;
            write_files(&entry.join("outputs"), key)?;
            fs::write(
                entry.join("metadata.json"),
                format!(
                    "{{\"task_id\":\"load\",\"digest\":\"{key}\",\"command\":[],\"created_at\":\"2026-01-01T00:00:00Z\",\"duration_ms\":1,\"exit_code\":0}}"
                ),
            )?;
            call("chmod that seals", &entry, || {
                fs::set_permissions(&entry, fs::Permissions::from_mode(0o555))
            })?;
        }
        3 => {
            let source = daemon.scratch().join(key);
            write_files(&source, key)?;
            let put = ["put", key, source.to_str().expect("a temporary path is text")];
            let put = within(COMMAND, "a command", &source, || daemon.try_run(&put));
            fs::remove_dir_all(&source)?;
            if !put.status.success() {
                return Err(io::Error::other(String::from_utf8_lossy(&put.stderr).into_owned()));
            }
        }
        _ => {
            fs::create_dir(mnt.join(key))?;
            write_files(&mnt.join(key).join("outputs"), key)?;
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether an entry in a view has each of its files with each of its bytes; else what is wrong.
pub fn whole(mnt: &Path, key: &str) -> Result<(), String> {
    whole_in(&mnt.join(key).join("outputs"), key)
}

/// The same of a directory of outputs, with the key that its files follow from.
pub fn whole_in(outputs: &Path, key: &str) -> Result<(), String> {
    for (name, data) in files(key) {
        let path = outputs.join(name);
        let read = call("open and read", &path, || fs::read(&path))
            .map_err(|e| format!("{}: {e}", path.display()))?;
        if read != data {
            return Err(format!("{}: its bytes are not those that were written", path.display()));
        }
    }
    Ok(())
}
