//! Servers that are git's own: the daemon, `http-backend` behind a few lines of HTTP, with TLS and without, and ssh without
//! the network.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::world::{World, git};

/// A way to reach the repositories of a folder.
pub enum Server {
    File(PathBuf),
    Daemon(Child, u16),
    Web(u16, Arc<Authority>),
    Secure(u16, Arc<Authority>),
    Ssh(PathBuf, PathBuf),
}

impl Server {
    /// All ways to the repositories of `world`.
    pub fn all(world: &World) -> Vec<Self> {
        let folder = world.folder.path();
        let mut all =
            vec![Self::File(folder.to_owned()), Self::daemon(folder), Self::web(folder), Self::ssh(world)];
        all.extend(Self::secure(world));
        all
    }

    /// The URL of `name`. `work` is told how to get there, where that is needed.
    pub fn url(&self, name: &str, work: &Path) -> String {
        match self {
            Self::File(folder) => format!("file://{}/{name}", folder.display()),
            Self::Daemon(_, port) => format!("git://127.0.0.1:{port}/{name}"),
            Self::Web(port, _) => format!("http://127.0.0.1:{port}/{name}"),
            Self::Secure(port, authority) => {
                git(work, &["config", "http.sslCAInfo", &authority.certificate.display().to_string()]);
                format!("https://localhost:{port}/{name}")
            }
            Self::Ssh(folder, program) => {
                git(work, &["config", "core.sshCommand", &program.display().to_string()]);
                format!("ssh://somebody@far.example/{}/{name}", folder.display())
            }
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Daemon(..) => "git",
            Self::Web(..) => "http",
            Self::Secure(..) => "https",
            Self::Ssh(..) => "ssh",
        }
    }

    fn daemon(folder: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let base = format!("--base-path={}", folder.display());
        let port_argument = format!("--port={port}");
        // Not by `git daemon`, which would leave its child behind when it is killed.
        let program = Path::new(&git(folder, &["--exec-path"])).join("git-daemon");
        let mut child = Command::new(program)
            .args(["--reuseaddr", "--export-all", "--enable=receive-pack", &base, "--listen=127.0.0.1"])
            .arg(port_argument)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..500 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Self::Daemon(child, port);
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
        panic!("git daemon does not listen");
    }

    fn ssh(world: &World) -> Self {
        let program = world.path("bin/ssh");
        std::fs::create_dir(world.path("bin")).unwrap();
        // What sshd does with a command: hand it to a shell. Options and the host are skipped.
        std::fs::write(&program, "#!/bin/sh\nwhile [ \"${1#-}\" != \"$1\" ]; do [ \"$1\" = -o ] && shift; shift; done\nshift\nexec sh -c \"$*\"\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self::Ssh(world.folder.path().to_owned(), program)
    }

    /// Over plain HTTP.
    pub fn web(folder: &Path) -> Self {
        let authority = Arc::new(Authority::default());
        Self::Web(serve(folder, None, &authority), authority)
    }

    /// Over TLS, with a certificate made for it. `None`, having said why, where there is no openssl.
    pub fn secure(world: &World) -> Option<Self> {
        let (authority, config) = Authority::make(&world.path("authority"))?;
        let authority = Arc::new(authority);
        Some(Self::Secure(serve(world.folder.path(), Some(config), &authority), authority))
    }

    /// What was sent by who was asked for a password.
    pub fn passwords(&self) -> Vec<String> {
        match self {
            Self::Web(_, authority) | Self::Secure(_, authority) => authority.seen.lock().unwrap().clone(),
            _ => Vec::new(),
        }
    }
}

/// Name and password at the door of `/private/`.
pub const LOGIN: (&str, &str) = ("somebody", "open sesame");

/// Who made a certificate; and what was seen at the door.
#[derive(Default)]
pub struct Authority {
    pub certificate: PathBuf,
    seen: Mutex<Vec<String>>,
}

impl Authority {
    fn make(folder: &Path) -> Option<(Self, rustls::ServerConfig)> {
        if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
            println!("SKIP: no openssl, so no https");
            return None;
        }
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost\n").unwrap();
        let openssl = |arguments: &str| {
            let mut command = Command::new("openssl");
            command.current_dir(folder).args(arguments.split_whitespace()).stderr(Stdio::null());
            assert!(command.status().unwrap().success(), "openssl {arguments}");
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj";
        openssl(&format!("req -x509 {key} /CN=authority -keyout ca.key -out ca.pem -days 2"));
        openssl(&format!("req {key} /CN=localhost -keyout key.pem -out request.pem"));
        let signed = "-CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out server.pem -days 2";
        openssl(&format!("x509 -req -in request.pem {signed}"));
        let chain = CertificateDer::pem_file_iter(folder.join("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.map(Result::unwrap).collect(), key)
            .unwrap();
        Some((Self { certificate: folder.join("ca.pem"), seen: Mutex::default() }, config))
    }
}

/// Serves the repositories of a folder; the port.
fn serve(folder: &Path, config: Option<rustls::ServerConfig>, authority: &Arc<Authority>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (folder, authority, config) = (folder.to_owned(), Arc::clone(authority), config.map(Arc::new));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (folder, authority, config) = (folder.clone(), Arc::clone(&authority), config.clone());
            thread::spawn(move || match config {
                None => talk(stream, &folder, &authority),
                Some(config) => {
                    let connection = rustls::ServerConnection::new(config).unwrap();
                    talk(rustls::StreamOwned::new(connection, stream), &folder, &authority);
                }
            });
        }
    });
    port
}

/// Answers requests until the other side has had enough.
fn talk(stream: impl Read + Write, folder: &Path, authority: &Authority) {
    let mut stream = BufReader::new(stream);
    while answer(&mut stream, folder, authority).unwrap_or(false) {}
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Self::Daemon(child, _) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Answers one request by `git http-backend`; whether another may follow.
fn answer(
    reader: &mut BufReader<impl Read + Write>,
    folder: &Path,
    authority: &Authority,
) -> std::io::Result<bool> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(false);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_lowercase(), value.to_owned())),
            None => break,
        }
    }
    let header =
        |name: &str| headers.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value.as_str());
    let login = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", LOGIN.0, LOGIN.1));
    let is_known = header("authorization") == format!("Basic {login}");
    if !header("authorization").is_empty() {
        authority.seen.lock().unwrap().push(header("authorization").to_owned());
    }
    if target.starts_with("/locked") || (target.starts_with("/private") && !is_known) {
        let refusal =
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n";
        reader.get_mut().write_all(refusal.as_bytes())?;
        return Ok(true);
    }
    let target = target.trim_start_matches("/private").to_owned();
    let body = body(reader, header("transfer-encoding"), header("content-length"))?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", folder)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("REQUEST_METHOD", method)
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().unwrap();
    let writer = thread::spawn(move || stdin.write_all(&body));
    let mut said = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut said)?;
    let _ = writer.join();
    child.wait()?;
    let end = said.windows(4).position(|window| window == b"\r\n\r\n").map_or(said.len(), |end| end + 4);
    let head = String::from_utf8_lossy(&said[..end]).into_owned();
    let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK");
    let mut out = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{head}", said.len() - end).into_bytes();
    out.extend_from_slice(&said[end..]);
    reader.get_mut().write_all(&out)?;
    reader.get_mut().flush()?;
    Ok(true)
}

fn body(reader: &mut impl BufRead, encoding: &str, length: &str) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if encoding != "chunked" {
        reader.take(length.parse().unwrap_or(0)).read_to_end(&mut body)?;
        return Ok(body);
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim(), 16).unwrap();
        reader.by_ref().take(size).read_to_end(&mut body)?;
        reader.read_line(&mut String::new())?;
        if size == 0 {
            return Ok(body);
        }
    }
}
