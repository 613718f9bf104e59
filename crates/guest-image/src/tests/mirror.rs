//! A mirror of our own on the loopback interface: a few small packages, a key, and faults on demand.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgp::composed::{
    CleartextSignedMessage, KeyType, SecretKeyParamsBuilder, SignedPublicKey, SignedSecretKey,
    SubkeyParamsBuilder,
};
use pgp::types::Password;
use sha2::{Digest, Sha256};

use crate::deb::tests::package;
use crate::fetch::hex;
use crate::modules::tests::module_file;
use crate::vmlinux::tests::bz_image;

/// Where the packages of the mirror say they are.
const PACKAGES: &str = "main/binary-amd64/Packages.gz";

/// What the server does when asked for a path, once.
#[derive(Clone, Copy)]
pub enum Fault {
    /// Closes the connection after so many bytes of the body.
    CutAfter(usize),
    /// Stops sending after so many bytes, and keeps the connection open.
    StallAfter(usize),
    /// Answers 503.
    Busy,
}

#[derive(Default)]
struct State {
    files: HashMap<String, Vec<u8>>,
    faults: HashMap<String, Vec<Fault>>,
    log: Vec<(String, Option<String>)>,
}

/// A server; ends with the test's process.
pub struct Mirror {
    state: Arc<Mutex<State>>,
    pub url: String,
}

impl Mirror {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/debian", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { state, url }
    }

    pub fn put(&self, path: &str, bytes: Vec<u8>) {
        self.state.lock().unwrap().files.insert(format!("/debian/{path}"), bytes);
    }

    pub fn get(&self, path: &str) -> Vec<u8> {
        self.state.lock().unwrap().files[&format!("/debian/{path}")].clone()
    }

    pub fn fault(&self, path: &str, fault: Fault) {
        self.state.lock().unwrap().faults.entry(format!("/debian/{path}")).or_default().push(fault);
    }

    /// `Range` headers of the requests for a path, in order.
    pub fn ranges(&self, path: &str) -> Vec<Option<String>> {
        let state = self.state.lock().unwrap();
        state
            .log
            .iter()
            .filter(|(asked, _)| *asked == format!("/debian/{path}"))
            .map(|(_, range)| range.clone())
            .collect()
    }

    pub fn n_requests(&self) -> usize {
        self.state.lock().unwrap().log.len()
    }

    /// Publishes packages as `suite`, signed.
    pub fn publish(&self, suite: &str, packages: &[Deb], key: &SignedSecretKey, fields: &str) {
        let mut index = String::new();
        for deb in packages {
            let path = deb.pool_path();
            index.push_str(&format!(
                "Package: {}\nVersion: {}\nArchitecture: amd64\nDepends: {}\nFilename: {path}\nSize: {}\nSHA256: {}\nDescription: x\n y\n\n",
                deb.name, deb.version, deb.depends, deb.bytes.len(), hex(&Sha256::digest(&deb.bytes))
            ));
            self.put(&path, deb.bytes.clone());
        }
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(index.as_bytes()).unwrap();
        let compressed = encoder.finish().unwrap();
        let release = format!(
            "Suite: {suite}\n{fields}SHA256:\n {} {} {PACKAGES}\n",
            hex(&Sha256::digest(&compressed)),
            compressed.len()
        );
        self.put(&format!("dists/{suite}/{PACKAGES}"), compressed);
        self.put(&format!("dists/{suite}/InRelease"), sign(&release, key).into_bytes());
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    let mut input = BufReader::new(stream.try_clone().unwrap());
    let (mut request, mut range) = (String::new(), None);
    if input.read_line(&mut request).is_err() {
        return;
    }
    loop {
        let mut line = String::new();
        if input.read_line(&mut line).unwrap_or(0) < 3 {
            break;
        }
        if let Some((name, value)) =
            line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("range"))
        {
            assert_eq!(name.to_ascii_lowercase(), "range");
            range = Some(value.trim().to_owned());
        }
    }
    let path = request.split_whitespace().nth(1).unwrap_or("").to_owned();
    let (file, fault) = {
        let mut state = state.lock().unwrap();
        state.log.push((path.clone(), range.clone()));
        let fault =
            state.faults.get_mut(&path).filter(|faults| !faults.is_empty()).map(|faults| faults.remove(0));
        (state.files.get(&path).cloned(), fault)
    };
    let start: usize = range
        .as_deref()
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
        .unwrap_or(0);
    let (status, body) = match (&file, fault) {
        (_, Some(Fault::Busy)) => ("503 Busy", &b""[..]),
        (None, _) => ("404 Not Found", &b""[..]),
        (Some(file), _) if start > 0 => ("206 Partial Content", &file[start..]),
        (Some(file), _) => ("200 OK", &file[..]),
    };
    let total = file.as_ref().map_or(0, Vec::len);
    let header = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{total}\r\nConnection: close\r\n\r\n",
        body.len(),
        total.saturating_sub(1)
    );
    let sent = match fault {
        Some(Fault::CutAfter(n) | Fault::StallAfter(n)) => &body[..n.min(body.len())],
        _ => body,
    };
    let _ = stream.write_all(header.as_bytes()).and_then(|()| stream.write_all(sent));
    if matches!(fault, Some(Fault::StallAfter(_))) {
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// A package to publish.
#[derive(Clone)]
pub struct Deb {
    pub name: String,
    pub version: String,
    pub depends: String,
    pub bytes: Vec<u8>,
}

impl Deb {
    pub fn new(name: &str, version: &str, depends: &str, files: &[(&str, &[u8])]) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            depends: depends.to_owned(),
            bytes: package("xz", files),
        }
    }

    pub fn pool_path(&self) -> String {
        format!("pool/{}_{}.deb", self.name, self.version)
    }
}

/// The ELF kernel inside the published one; large enough to be cut in the middle.
pub fn elf(abi: u32) -> Vec<u8> {
    let mut elf = b"\x7fELF".to_vec();
    let mut word = abi;
    for _ in 0..100_000 {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        elf.extend(word.to_le_bytes());
    }
    elf
}

/// Metapackage and kernel of an ABI, as Debian publishes them.
pub fn kernel(abi: u32) -> Vec<Deb> {
    let (release, version) = (format!("6.1.0-{abi}-amd64"), format!("6.1.{abi}-1"));
    let image = format!("linux-image-{release}");
    let payload = zstd::encode_all(&elf(abi)[..], 1).unwrap();
    let module = |name: &str| format!("./lib/modules/{release}/kernel/drivers/{name}.ko");
    let files: Vec<(String, Vec<u8>)> = vec![
        (format!("./boot/vmlinuz-{release}"), bz_image(&payload)),
        (module("virtio_ring"), module_file(&["depends="])),
        (module("virtio_mmio"), module_file(&["depends=virtio_ring,surprise"])),
        (module("surprise"), module_file(&["depends="])),
        (module("unwanted"), module_file(&["depends="])),
        (module("virtio_blk"), module_file(&["depends=virtio_ring"])),
        (module("erofs"), module_file(&["depends="])),
        (format!("./lib/modules/{release}/modules.builtin"), b"kernel/fs/overlayfs/overlay.ko\n".to_vec()),
    ];
    let files: Vec<_> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    vec![
        Deb::new("linux-image-amd64", &version, &format!("{image} (= {version})"), &[]),
        Deb::new(&image, &version, "kmod", &files),
    ]
}

/// Userland of every guest.
pub fn base() -> Vec<Deb> {
    vec![
        Deb::new("busybox-static", "1:1.35", "", &[("./bin/busybox", b"\x7fELF\0[\0[[\0ash\0cat\0sh\0")]),
        Deb::new("base-files", "12", "", &[("./usr/lib/os-release", b"ID=debian\n")]),
    ]
}

/// A key with a signing subkey, like those of Debian.
pub fn key() -> SignedSecretKey {
    let subkey =
        SubkeyParamsBuilder::default().key_type(KeyType::Ed25519Legacy).can_sign(true).build().unwrap();
    let mut params = SecretKeyParamsBuilder::default();
    params
        .key_type(KeyType::Ed25519Legacy)
        .can_certify(true)
        .can_sign(true)
        .primary_user_id("Archive".into())
        .subkeys(vec![subkey]);
    params.build().unwrap().generate(rand::thread_rng()).unwrap()
}

fn sign(text: &str, key: &SignedSecretKey) -> String {
    let message = CleartextSignedMessage::sign(
        rand::thread_rng(),
        text,
        &key.secret_subkeys[0].key,
        &Password::empty(),
    )
    .unwrap();
    message.to_armored_string(Default::default()).unwrap()
}

/// Writes `etc/apt` of a host that uses these suites of the mirror and trusts the key.
pub fn write_apt_root(root: &Path, url: &str, suites: &str, key: &SignedSecretKey) {
    let folder = root.join("etc/apt/trusted.gpg.d");
    std::fs::create_dir_all(&folder).unwrap();
    let public = SignedPublicKey::from(key.clone());
    std::fs::write(folder.join("archive.asc"), public.to_armored_string(Default::default()).unwrap())
        .unwrap();
    let sources = suites.split(' ').map(|suite| format!("deb {url} {suite} main\n"));
    std::fs::write(root.join("etc/apt/sources.list"), sources.collect::<String>()).unwrap();
}
