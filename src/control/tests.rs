//! The protocol, end to end over a real socket with a handler that answers from memory.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::*;

struct Echo;

impl Handler for Echo {
    fn handle(&self, caller: &Caller, request: Request, channel: &mut dyn Channel) -> Result<Reply, Failure> {
        assert_eq!(*caller, Caller::this());
        match request {
            Request::Put(put) if put.key.as_str() == "fails" => {
                Err(Failure::new(Kind::Exists, "taken, without reading the input"))
            }
            Request::Put(_) => {
                let mut all = Vec::new();
                channel.input().read_to_end(&mut all).unwrap();
                channel.progress(Progress { what: "x".into(), done: 1, total: Some(2) });
                channel.data(&all).unwrap();
                Ok(Reply::Done)
            }
            Request::Drafts => Ok(Reply::Drafts { drafts: Vec::new() }),
            _ => Err(Failure::new(Kind::NotFound, "no")),
        }
    }
}

struct Memory {
    input: io::Cursor<Vec<u8>>,
    output: Vec<u8>,
    seen: Vec<Progress>,
}

impl Memory {
    fn new(input: Vec<u8>) -> Self {
        Self { input: io::Cursor::new(input), output: Vec::new(), seen: Vec::new() }
    }
}

impl Channel for Memory {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)
    }
    fn input(&mut self) -> &mut dyn Read {
        &mut self.input
    }
    fn progress(&mut self, progress: Progress) {
        self.seen.push(progress);
    }
}

fn put(key: &str) -> Request {
    Request::Put(PutRequest {
        key: key.parse().unwrap(),
        dir: None,
        facts: Default::default(),
        stdout: None,
        stderr: None,
        run: None,
    })
}

fn serve(store: &Path) -> Server {
    let server = Server::bind(store).unwrap();
    server.serve(Arc::new(Echo)).unwrap();
    server
}

#[test]
fn streams_both_ways_and_several_requests_on_one_connection() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path());
    let mut client = Client::connect(dir.path()).unwrap();
    let bytes: Vec<u8> = (0..5_000_000u32).map(|i| i as u8).collect();
    let mut memory = Memory::new(bytes.clone());
    assert_eq!(client.call(put("good"), &mut memory), Ok(Reply::Done));
    assert_eq!(memory.output, bytes);
    assert_eq!(memory.seen.len(), 1);
    assert_eq!(client.call(Request::Drafts, &mut memory), Ok(Reply::Drafts { drafts: vec![] }));
    let failure = client.call(Request::Pins, &mut memory).unwrap_err();
    assert_eq!((failure.kind, failure.exit_code()), (Kind::NotFound, 3));
    drop(client);
    server.close(Duration::from_secs(5));
    assert!(matches!(Client::connect(dir.path()), Err(ConnectError::NoDaemon)));
}

#[test]
fn a_failure_before_the_input_was_read_reaches_the_client() {
    let dir = tempfile::tempdir().unwrap();
    let _server = serve(dir.path());
    let mut client = Client::connect(dir.path()).unwrap();
    let failure = client.call(put("fails"), &mut Memory::new(vec![7; 3_000_000])).unwrap_err();
    assert_eq!(failure.kind, Kind::Exists);
    assert_eq!(client.call(put("good"), &mut Memory::new(vec![1])), Ok(Reply::Done));
}

#[test]
fn long_store_paths_and_the_sockets_mode() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("d".repeat(120));
    std::fs::create_dir(&store).unwrap();
    let _server = serve(&store);
    let mode = std::fs::metadata(store.join(SOCKET)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut client = Client::connect(&store).unwrap();
    assert!(client.call(Request::Drafts, &mut Memory::new(vec![])).is_ok());
}

#[test]
fn a_socket_file_without_a_listener_is_no_daemon_and_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Client::connect(dir.path()), Err(ConnectError::NoDaemon)));
    drop(Server::bind(dir.path()).unwrap());
    assert!(matches!(Client::connect(dir.path()), Err(ConnectError::NoDaemon)));
    let _server = serve(dir.path());
    assert!(Client::connect(dir.path()).is_ok());
}

#[test]
fn other_versions_and_nonsense_are_refused_in_words() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let _server = serve(dir.path());
    let mut stream = BufReader::new(socket::connect(dir.path()).unwrap());
    for (line, part) in [
        (r#"{"outfs":99,"request":{"op":"who_knows"}}"#, "version"),
        (r#"{"outfs":3,"place":"","request":{"op":"who_knows"}}"#, "not understood"),
        ("hello", "no outfs request"),
    ] {
        writeln!(stream.get_mut(), "{line}").unwrap();
        let mut answer = String::new();
        stream.read_line(&mut answer).unwrap();
        assert!(answer.contains(r#""kind":"protocol""#) && answer.contains(part), "{answer}");
    }
}

#[test]
fn every_path_survives_json() {
    for bytes in [&b"plain"[..], b"\xff\xfe\n", b""] {
        let path = RawPath::from_bytes(bytes);
        let text = serde_json::to_string(&path).unwrap();
        assert_eq!(serde_json::from_str::<RawPath>(&text).unwrap(), path, "{text}");
    }
}

#[test]
fn limits_conflict_only_where_they_were_given_and_differ() {
    let running = crate::cache::Limits::default();
    assert!(LimitFlags::default().conflicts(&running).is_empty());
    let same = LimitFlags { min_age: Some("10m".parse().unwrap()), ..Default::default() };
    assert!(same.conflicts(&running).is_empty());
    let other = LimitFlags { size: Some("5G".parse().unwrap()), ..same };
    assert_eq!(other.conflicts(&running).len(), 1);
    let mut limits = running;
    LimitFlags::of(&limits.clone()).apply(&mut limits);
    assert!(LimitFlags::of(&limits).conflicts(&limits).is_empty());
}

#[test]
fn paths_are_refused_from_where_they_mean_something_else() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let _server = serve(dir.path());
    let mut stream = BufReader::new(socket::connect(dir.path()).unwrap());
    let import = Request::Import { kind: ImportKind::Dir, source: RawPath("/x".into()) };
    for (request, part) in [(import, "mount namespace"), (Request::Drafts, "drafts")] {
        let asked = wire::Asked { outfs: VERSION, place: "elsewhere".into(), request };
        wire::send(stream.get_mut(), &asked).unwrap();
        let mut answer = String::new();
        stream.read_line(&mut answer).unwrap();
        assert!(answer.contains(part), "{answer}");
    }
}
