//! A program that has the library ask the daemon, instead of running `outfs` or going through a mount.

use std::io::{self, Read};

use outfs::cache::TaskFacts;
use outfs::control::{Channel, Client, Failure, Kind, Progress, PutRequest, RawPath, Reply, Request};
use outfs::model::EntryKey;

use crate::daemon::Daemon;
use crate::ingest::{files, write_files};

/// What an answer streams.
#[derive(Default)]
struct Answer {
    data: Vec<u8>,
    nothing: io::Empty,
}

impl Channel for Answer {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.data.extend(bytes);
        Ok(())
    }
    fn input(&mut self) -> &mut dyn Read {
        &mut self.nothing
    }
    fn progress(&mut self, _progress: Progress) {}
}

/// That there is no such entry, another one, or no room is an answer; all else is an error.
fn refused(failure: Failure) -> Result<(), String> {
    let promised =
        matches!(failure.kind, Kind::NotFound | Kind::Exists) || failure.message.contains("has no room");
    if promised { Ok(()) } else { Err(failure.message) }
}

fn ask(client: &mut Client, request: Request, answer: &mut Answer) -> Result<Option<Reply>, String> {
    match client.call(request, answer) {
        Ok(reply) => Ok(Some(reply)),
        Err(failure) => refused(failure).map(|()| None),
    }
}

/// On one connection: stores an entry under `own`, and reads every file of `other` if there is such an entry. Was both done?
pub fn put_and_read(daemon: &Daemon, own: &str, other: &str) -> Result<bool, String> {
    let key = |name: &str| EntryKey::parse(name).expect("a key");
    let mut client = Client::connect(&daemon.store()).map_err(|e| e.to_string())?;
    let dir = daemon.scratch().join(format!("library-{own}"));
    write_files(&dir, own).map_err(|e| format!("{}: {e}", dir.display()))?;
    let (facts, dir) = (TaskFacts::default(), RawPath(dir));
    let put =
        PutRequest { key: key(own), dir: Some(dir.clone()), facts, stdout: None, stderr: None, run: None };
    let stored = ask(&mut client, Request::Put(put), &mut Answer::default());
    std::fs::remove_dir_all(&dir.0).map_err(|e| e.to_string())?;
    let mut done = stored?.is_some();
    for (name, data) in files(other) {
        let mut answer = Answer::default();
        let path = RawPath::from_bytes(format!("outputs/{name}").as_bytes());
        let found = ask(&mut client, Request::Cat { key: key(other), path }, &mut answer)?;
        assert!(
            found.is_none() || answer.data == data,
            "{other}: {name}: its bytes are not those that were written"
        );
        done &= found.is_some();
    }
    Ok(done)
}
