//! A server that speaks as much of S3 as a tier needs, and is as ill as it is told to be.
//!
//! Invariants: it takes nothing unsigned and nothing conditional, and what it answers is what it was given, but for faults.
//! It ends with its process. Must not know: what objects mean.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::s3::KEY;

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// 503 with the code `SlowDown`.
    Slow,
    /// 429.
    Often,
    /// 403.
    Denied,
    /// The connection is closed without an answer.
    Reset,
    /// It is closed in the middle of the answer's body.
    Cut,
    /// A bit of the answer's body is wrong.
    Flipped,
    /// There is no answer.
    Silent,
    /// It says that these are the bytes that were asked for, and sends for ever.
    Endless,
    /// It refuses, and says for ever why.
    EndlessDenied,
}

type Chooser = Arc<dyn Fn(&str, &str) -> Option<Wrong> + Send + Sync>;

/// The server.
pub struct Server {
    pub port: u16,
    state: Arc<State>,
}

struct State {
    /// By bucket and key.
    objects: Mutex<BTreeMap<String, Arc<Vec<u8>>>>,
    uploads: Mutex<HashMap<String, BTreeMap<u32, Vec<u8>>>>,
    wrong: Mutex<Chooser>,
    requests: AtomicU64,
    sent: AtomicU64,
    next: AtomicU64,
}

struct Request {
    method: String,
    path: String,
    query: HashMap<String, String>,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: &'static str) -> Answer {
        let headers =
            vec![("ETag", "\"0\"".to_owned()), ("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT".to_owned())];
        Answer { status, headers, body: Vec::new() }
    }

    fn error(status: &'static str, code: &str) -> Answer {
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
        Answer { body: body.into_bytes(), ..Answer::new(status) }
    }
}

impl Server {
    /// With an empty bucket called `bucket`; nobody else knows it.
    pub fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("it has one").port();
        let state = Arc::new(State {
            objects: Mutex::default(),
            uploads: Mutex::default(),
            wrong: Mutex::new(Arc::new(|_, _| None)),
            requests: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            next: AtomicU64::new(1),
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || serve(&state, stream));
            }
        });
        Server { port, state }
    }

    /// The address of a tier in it.
    pub fn tier(&self, prefix: &str) -> String {
        format!("s3://bucket/{prefix}?endpoint=http://127.0.0.1:{}&region=here", self.port)
    }

    /// From now on, `choose` is asked what goes wrong with each request, by its method and path.
    pub fn set_wrong(&self, choose: impl Fn(&str, &str) -> Option<Wrong> + Send + Sync + 'static) {
        *self.state.wrong.lock().unwrap() = Arc::new(choose);
    }

    /// Requests that came so far, and bytes of bodies that it sent.
    pub fn traffic(&self) -> (u64, u64) {
        (self.state.requests.load(Ordering::SeqCst), self.state.sent.load(Ordering::SeqCst))
    }

    /// It has this object, whatever its key says.
    pub fn set(&self, key: &str, bytes: &[u8]) {
        self.state.objects.lock().unwrap().insert(format!("/bucket/{key}"), Arc::new(bytes.to_vec()));
    }

    /// The keys of all objects.
    pub fn keys(&self) -> Vec<String> {
        self.state.objects.lock().unwrap().keys().map(|k| k["/bucket/".len()..].to_owned()).collect()
    }

    /// Uploads in parts that were neither finished nor given up.
    pub fn uploads(&self) -> usize {
        self.state.uploads.lock().unwrap().len()
    }
}

fn serve(state: &State, stream: TcpStream) {
    let Ok(reading) = stream.try_clone() else { return };
    let _ = stream.set_nodelay(true);
    let (mut reader, mut stream) = (BufReader::new(reading), stream);
    while let Ok(Some(request)) = read(&mut reader) {
        state.requests.fetch_add(1, Ordering::SeqCst);
        let choose = state.wrong.lock().unwrap().clone();
        let wrong = choose(&request.method, &request.path);
        if wrong == Some(Wrong::Reset) {
            return;
        }
        if wrong == Some(Wrong::Silent) {
            // Until who asked has gone, or for ever.
            let _ = stream.set_read_timeout(Some(Duration::from_secs(600)));
            let _ = reader.read(&mut [0]);
            return;
        }
        let answer = match wrong {
            Some(Wrong::Slow) => Answer::error("503 Service Unavailable", "SlowDown"),
            Some(Wrong::Often) => Answer::error("429 Too Many Requests", "TooManyRequests"),
            Some(Wrong::Denied | Wrong::EndlessDenied) => Answer::error("403 Forbidden", "AccessDenied"),
            _ => answer(state, &request),
        };
        if matches!(wrong, Some(Wrong::Endless | Wrong::EndlessDenied)) {
            let _ = send_for_ever(state, &mut stream, answer);
            return;
        }
        match send(state, &mut stream, &request, answer, wrong) {
            Ok(true) => {}
            _ => return,
        }
    }
}

/// Until the other side has gone.
fn send_for_ever(state: &State, stream: &mut TcpStream, answer: Answer) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {}\r\nTransfer-Encoding: chunked\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    const PIECE: usize = 64 << 10;
    let piece = [format!("{PIECE:x}\r\n").as_bytes(), &[b'x'; PIECE], b"\r\n"].concat();
    loop {
        stream.write_all(&piece)?;
        state.sent.fetch_add(PIECE as u64, Ordering::SeqCst);
    }
}

/// False when the connection is to be closed.
fn send(
    state: &State,
    stream: &mut TcpStream,
    request: &Request,
    mut answer: Answer,
    wrong: Option<Wrong>,
) -> io::Result<bool> {
    let length = answer.body.len();
    if wrong == Some(Wrong::Flipped) && request.method == "GET" && length > 0 {
        answer.body[length / 2] ^= 4;
    }
    let mut head = format!("HTTP/1.1 {}\r\nContent-Length: {length}\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(true);
    }
    let cut = wrong == Some(Wrong::Cut) && length > 0;
    let body = if cut { &answer.body[..length / 2] } else { &answer.body[..] };
    stream.write_all(body)?;
    state.sent.fetch_add(body.len() as u64, Ordering::SeqCst);
    Ok(!cut)
}

fn read(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let query = query.map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    let (method, path) = (method.to_owned(), path.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Request { method, path, query, headers, body }))
}

fn answer(state: &State, request: &Request) -> Answer {
    let signed = request.headers.get("authorization").is_some_and(|a| {
        a.starts_with(&format!("AWS4-HMAC-SHA256 Credential={KEY}/")) && a.contains("/here/s3/aws4_request")
    });
    if !signed {
        return Answer::error("403 Forbidden", "AccessDenied");
    }
    assert!(
        request.method == "GET" || !request.headers.keys().any(|name| name.starts_with("if-")),
        "not all servers know conditional puts: {:?}",
        request.headers
    );
    if !request.path.starts_with("/bucket/") {
        return Answer::error("404 Not Found", "NoSuchBucket");
    }
    let path = &request.path;
    match (&request.method[..], request.query.get("uploadId")) {
        ("POST", None) if request.query.contains_key("uploads") => {
            let id = format!("upload-{}", state.next.fetch_add(1, Ordering::SeqCst));
            state.uploads.lock().unwrap().insert(id.clone(), BTreeMap::new());
            let body = format!(
                "<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>k</Key><UploadId>{id}</UploadId>\
                 </InitiateMultipartUploadResult>"
            );
            Answer { body: body.into_bytes(), ..Answer::new("200 OK") }
        }
        ("PUT", Some(id)) => {
            let number: u32 = request.query["partNumber"].parse().expect("a number");
            match state.uploads.lock().unwrap().get_mut(id) {
                Some(parts) => drop(parts.insert(number, request.body.clone())),
                None => return Answer::error("404 Not Found", "NoSuchUpload"),
            }
            Answer::new("200 OK")
        }
        ("POST", Some(id)) => {
            let Some(parts) = state.uploads.lock().unwrap().remove(id) else {
                return Answer::error("404 Not Found", "NoSuchUpload");
            };
            let last = parts.len();
            let short = parts.values().take(last - 1).any(|p| p.len() < 5 << 20);
            if short {
                return Answer::error("400 Bad Request", "EntityTooSmall");
            }
            let whole: Vec<u8> = parts.into_values().flatten().collect();
            state.objects.lock().unwrap().insert(path.clone(), Arc::new(whole));
            let body = "<CompleteMultipartUploadResult><ETag>\"0\"</ETag></CompleteMultipartUploadResult>";
            Answer { body: body.into(), ..Answer::new("200 OK") }
        }
        ("DELETE", Some(id)) => {
            state.uploads.lock().unwrap().remove(id);
            Answer::new("204 No Content")
        }
        ("PUT", None) => {
            state.objects.lock().unwrap().insert(path.clone(), Arc::new(request.body.clone()));
            Answer::new("200 OK")
        }
        ("GET" | "HEAD", None) => match state.objects.lock().unwrap().get(path).cloned() {
            Some(object) => part_of(request, &object),
            None => Answer::error("404 Not Found", "NoSuchKey"),
        },
        _ => Answer::error("400 Bad Request", "InvalidRequest"),
    }
}

fn part_of(request: &Request, object: &[u8]) -> Answer {
    let Some(range) = request.headers.get("range") else {
        return Answer { body: object.to_vec(), ..Answer::new("200 OK") };
    };
    let parsed = range.strip_prefix("bytes=").and_then(|r| r.split_once('-'));
    let (start, end): (u64, u64) =
        parsed.and_then(|(s, e)| Some((s.parse().ok()?, e.parse().ok()?))).expect("a range with both ends");
    let length = object.len() as u64;
    if start >= length {
        return Answer::error("416 Requested Range Not Satisfiable", "InvalidRange");
    }
    let end = end.min(length - 1);
    let mut answer =
        Answer { body: object[start as usize..=end as usize].to_vec(), ..Answer::new("206 Partial Content") };
    answer.headers.push(("Content-Range", format!("bytes {start}-{end}/{length}")));
    answer
}
