//! Tiers behind TLS: who answers is whom an authority vouches for that the environment names, or is asked nothing.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bazel_remote_apis::build::bazel::remote::execution::v2 as re;
use outfs::tier::ship;
use re::digest_function::Value;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

use super::common::{Mount, read, sh, write};
use super::s3::{KEY, SECRET};
use super::suite::{Made, soon};
use super::{cas, s3, server};

/// An authority, and the certificate that it gave to `localhost`.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Authority {
        let dir = tempfile::Builder::new().prefix("outfs-test-").tempdir().expect("a temporary directory");
        let at = Authority(dir);
        let openssl = |args: &str| {
            let words: Vec<String> =
                args.split(' ').map(|word| word.replace('@', at.0.path().to_str().expect("text"))).collect();
            let words: Vec<&dyn AsRef<std::ffi::OsStr>> = words.iter().map(|word| word as _).collect();
            sh("openssl", &words);
        };
        write(at.path("names"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n");
        openssl(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout @/ca.key -out @/ca.pem",
        );
        openssl("req -new -newkey rsa:2048 -nodes -subj /CN=localhost -keyout @/key.pem -out @/request.pem");
        openssl(
            "x509 -req -in @/request.pem -CA @/ca.pem -CAkey @/ca.key -CAcreateserial -days 2 -extfile @/names -out @/cert.pem",
        );
        at
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Speaks TLS in front of the server at this port; the port that it does so at. It ends with its process.
    fn vouches_for(&self, server: u16, protocol: &str) -> u16 {
        let certificates = CertificateDer::pem_file_iter(self.path("cert.pem")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(self.path("key.pem")).expect("a key");
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(certificates.collect::<Result<_, _>>().expect("certificates"), key)
                .expect("they fit");
        config.alpn_protocols = vec![protocol.into()];
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("it has one").port();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let session = ServerConnection::new(config.clone()).expect("a session");
                std::thread::spawn(move || drop(serve(session, client, server)));
            }
        });
        port
    }
}

/// Hands on what comes through the session, in both directions.
fn serve(session: ServerConnection, client: TcpStream, server: u16) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", server))?;
    let session = Arc::new(Mutex::new(session));
    let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
    let answering = session.clone();
    std::thread::spawn(move || {
        let mut piece = [0; 16 << 10];
        while let Ok(n @ 1..) = from.read(&mut piece) {
            let mut session = answering.lock().unwrap();
            if session.writer().write_all(&piece[..n]).is_err() || flush(&mut session, &mut to).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    let done = ask(&session, &client, &server);
    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
    done
}

fn ask(session: &Mutex<ServerConnection>, mut client: &TcpStream, mut server: &TcpStream) -> io::Result<()> {
    let mut piece = [0; 16 << 10];
    loop {
        let n = client.read(&mut piece)?;
        if n == 0 {
            return Ok(());
        }
        let mut sealed = &piece[..n];
        while !sealed.is_empty() {
            let mut plain = Vec::new();
            {
                let mut session = session.lock().unwrap();
                session.read_tls(&mut sealed)?;
                let state = session.process_new_packets().map_err(io::Error::other);
                // What is wrong with it is said to the other side.
                flush(&mut session, &mut client)?;
                plain.resize(state?.plaintext_bytes_to_read(), 0);
                session.reader().read_exact(&mut plain)?;
            }
            server.write_all(&plain)?;
        }
    }
}

fn flush(session: &mut ServerConnection, to: &mut impl Write) -> io::Result<()> {
    while session.wants_write() {
        session.write_tls(to)?;
    }
    Ok(())
}

/// A mount with this tier, which trusts the authorities in the file that the variable names.
fn mount(tier: &str, (variable, authorities): (&str, &Path)) -> Mount {
    let mut m = Mount::unmounted(&["--size", "1G", "--tier", tier])
        .with_env("AWS_ACCESS_KEY_ID", KEY)
        .with_env("AWS_SECRET_ACCESS_KEY", SECRET)
        .with_env(variable, authorities.to_str().expect("text"))
        .with_env("OUTFS_GRPC_TOKEN", "hunter2");
    m.start();
    m
}

/// A server behind TLS, and what it has.
struct Behind<'a> {
    port: u16,
    protocol: &'a str,
    tier: &'a dyn Fn(&str, u16) -> String,
    /// What names a file of authorities.
    variable: &'a str,
    path: &'a str,
    content: &'a [u8],
}

/// What the server has is read by who trusts its authority, and by nobody else.
fn is_checked(Behind { port, protocol, tier, variable, path, content }: Behind) {
    let (authority, other) = (Authority::new(), Authority::new());
    let port = authority.vouches_for(port, protocol);
    let trusting = mount(&tier("localhost", port), (variable, &authority.path("ca.pem")));
    assert!(read(trusting.path(path)) == content, "{}", trusting.log_text());
    // Another authority, and another name than the one that was vouched for.
    for (host, trusted) in [("localhost", &other), ("127.0.0.1", &authority)] {
        let m = mount(&tier(host, port), (variable, &trusted.path("ca.pem")));
        assert!(fs::metadata(m.path(path)).is_err(), "{host} is nobody who can be trusted");
        let stats = m.json(&["stats"]);
        let said = stats["tiers"][0]["last_failure"][1].as_str().unwrap_or_default().to_owned();
        assert!(said.contains("certificate"), "{stats}");
        assert!(!m.log_text().contains("hunter2") && !stats.to_string().contains("hunter2"));
    }
}

/// S15.17 A server with TLS is believed to be who it says if an authority vouches for it; a token goes to such servers alone.
#[test]
fn servers_of_the_api_are_whom_an_authority_vouches_for() {
    let server = cas::Server::start("main", Value::Sha256);
    let content = vec![7; 3_000_000];
    let digest = Some(server.add(&content));
    let file = re::OutputFile { path: "f".into(), digest, ..Default::default() };
    let action = server.add(b"an action");
    server.set_result(&action, re::ActionResult { output_files: vec![file], ..Default::default() });
    let path = format!("{}-{}/outputs/f", action.hash, action.size_bytes);
    let tier = |host: &str, port| format!("grpcs://{host}:{port}/main");
    let (port, variable, path, content) = (server.port(), "SSL_CERT_FILE", &path[..], &content[..]);
    is_checked(Behind { port, protocol: "h2", tier: &tier, variable, path, content });
    assert_eq!(server.token().as_deref(), Some("Bearer hunter2"));
    let plain = mount(&server.tier(), (variable, Path::new("/dev/null")));
    assert!(read(plain.path(path)) == content);
    assert_eq!(server.token(), None, "it is for servers with TLS");
}

#[test]
fn buckets_are_whom_an_authority_vouches_for() {
    let server = server::Server::start();
    let made = Made::new("far-away", &[("metadata.json", 80, 1), ("f", 3_000_000, 2)]);
    ship(&*s3::open(&server, "p", true), &made.manifest, &made, &soon).expect("it can be sent");
    let record = made.manifest.find(b"f").and_then(|n| made.manifest.get(n)?.hash()).expect("a file");
    let tier = |host: &str, port| format!("s3://bucket/p?endpoint=https://{host}:{port}&region=here");
    let (port, variable, content) = (server.port, "AWS_CA_BUNDLE", made.content(&record));
    is_checked(Behind { port, protocol: "http/1.1", tier: &tier, variable, path: "far-away/f", content });
}
