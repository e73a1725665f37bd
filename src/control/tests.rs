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
            Request::Pin { .. } => panic!("as a fault inside would"),
            Request::Newest { task } => {
                let long = "x".repeat(task.parse().unwrap());
                Ok(Reply::Newest { key: None, outputs_hash: Some(long) })
            }
            Request::Stop { lazy } => Ok(Reply::Unmounted { ends: lazy }),
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
fn an_answer_that_is_too_long_is_a_failure_and_not_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let _server = serve(dir.path());
    let mut client = Client::connect(dir.path()).unwrap();
    let mut ask = |bytes: u64| {
        client.call(Request::Newest { task: bytes.to_string() }, &mut Memory::new(vec![])).map_err(|e| e.kind)
    };
    assert_eq!(ask(wire::MAX_LINE), Err(Kind::TooMany));
    assert!(ask(wire::MAX_LINE - 1024).is_ok());
    let mut endless = io::BufReader::new(io::repeat(b'x'));
    assert_eq!(wire::receive_line(&mut endless).unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn a_panic_is_answered_and_keeps_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path());
    let mut client = Client::connect(dir.path()).unwrap();
    let pin = Request::Pin { name: "p".into(), key: "key1".parse().unwrap() };
    let failure = client.call(pin, &mut Memory::new(vec![])).unwrap_err();
    assert_eq!((failure.kind, failure.exit_code()), (Kind::Fault, 1));
    assert!(client.call(Request::Drafts, &mut Memory::new(vec![])).is_ok(), "the same connection goes on");
    drop(client);
    let begun = std::time::Instant::now();
    server.close(Duration::from_secs(600));
    assert!(begun.elapsed() < Duration::from_secs(300), "nothing counts as running");
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
    for (line, part) in [
        (r#"{"outfs":99,"request":{"op":"who_knows"}}"#, "version"),
        (r#"{"outfs":VERSION,"place":"","request":{"op":"who_knows"}}"#, "not understood"),
        ("hello", "no outfs request"),
    ] {
        let mut stream = BufReader::new(socket::connect(dir.path()).unwrap());
        // What follows may be input: it is no request, whatever it says.
        let lines = format!("{line}\n{}\n", r#"{"outfs":1,"request":{"op":"stop","lazy":true}}"#);
        write!(stream.get_mut(), "{}", lines.replace("VERSION", &VERSION.to_string())).unwrap();
        let mut answer = String::new();
        stream.read_line(&mut answer).unwrap();
        assert!(answer.contains(r#""kind":"protocol""#) && answer.contains(part), "{answer}");
        answer.clear();
        // Where there was more to read, the end is told as an error.
        assert!(!stream.read_line(&mut answer).is_ok_and(|n| n > 0), "{answer}");
    }
}

/// These lines are never to change: they are what programs of other versions send and understand.
#[test]
fn stop_is_the_same_in_all_versions() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let _server = serve(dir.path());
    let mut stream = BufReader::new(socket::connect(dir.path()).unwrap());
    for (version, lazy) in [(1, false), (VERSION, true), (99, true)] {
        let (more, place) = if version == 99 { (r#","more":[1]"#, "") } else { ("", r#","place":"x""#) };
        writeln!(
            stream.get_mut(),
            r#"{{"outfs":{version}{place},"request":{{"op":"stop","lazy":{lazy}{more}}}}}"#
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_line(&mut answer).unwrap();
        let wanted =
            format!(r#"{{"frame":"done","reply":{{"reply":"unmounted","facts":{{"ends":{lazy}}}}}}}"#);
        assert_eq!(answer.trim_end(), wanted);
    }
    let asked = wire::Asked { outfs: VERSION, place: "p".into(), request: Request::Stop { lazy: false } };
    let sent = serde_json::to_value(&asked).unwrap();
    assert_eq!(
        sent,
        serde_json::json!({ "outfs": VERSION, "place": "p", "request": { "op": "stop", "lazy": false } })
    );
    let failure = |kind: &str| format!(r#"{{"kind":"{kind}","message":"why"}}"#);
    let kind = |text: &str| serde_json::from_str::<Failure>(&failure(text)).unwrap().kind;
    assert_eq!([kind("busy"), kind("one of another version")], [Kind::Busy, Kind::Failed]);
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
    let sized = |text: &str| LimitFlags { size: Some(text.parse().unwrap()), ..Default::default() };
    let mut large = running.clone();
    sized("1T").apply(&mut large);
    assert_eq!(sized("1070G").conflicts(&large).len(), 1, "both read 1.0 TiB");
    assert!(sized("1024G").conflicts(&large).is_empty());
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
