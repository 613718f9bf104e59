//! Fetches files of an archive into the cache: resumes, retries, verifies, then renames.
//!
//! A file gets its final name only once its SHA-256 was checked, so whatever has a final name is good; what was
//! interrupted stays behind as `.part` and is continued. `file:` URLs are copied. Blocking.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::Progress;
use crate::apt::release::Checksum;
use crate::error::{BuildError, IoContext};

/// How often a transfer is begun again when it makes no progress.
const ATTEMPTS_MAX: u32 = 4;
/// Longest wait for the next bytes of a mirror.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest file without a known size (an InRelease) that is taken.
pub const UNSIZED_BYTES_MAX: u64 = 16 << 20;

/// Proxies by scheme; `None` and `DIRECT` mean none.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// For http.
    pub http: Option<String>,
    /// For https.
    pub https: Option<String>,
}

/// Client of mirrors.
pub struct Client {
    http: ureq::Agent,
    https: ureq::Agent,
}

/// Why one attempt failed, and whether another one may succeed.
struct Failure {
    error: BuildError,
    is_final: bool,
}

impl Client {
    /// Makes a client; nothing is connected yet.
    ///
    /// # Errors
    /// [`BuildError::Fetch`] for a proxy that is no URL.
    pub fn new(proxies: &Proxies) -> Result<Self, BuildError> {
        let agent = |proxy: &Option<String>| -> Result<ureq::Agent, BuildError> {
            let proxy = match proxy
                .as_deref()
                .filter(|proxy| !proxy.is_empty() && !proxy.eq_ignore_ascii_case("DIRECT"))
            {
                Some(url) => Some(ureq::Proxy::new(url).map_err(|error| BuildError::Fetch {
                    url: url.to_owned(),
                    reason: format!("bad proxy: {error}"),
                })?),
                None => None,
            };
            let tls =
                ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build();
            let config = ureq::Agent::config_builder()
                .tls_config(tls)
                .proxy(proxy)
                .http_status_as_error(false)
                .timeout_resolve(Some(Duration::from_secs(15)))
                .timeout_connect(Some(Duration::from_secs(15)))
                .timeout_recv_response(Some(STALL_TIMEOUT))
                .timeout_per_read(Some(STALL_TIMEOUT))
                .user_agent("coracle");
            Ok(config.build().new_agent())
        };
        Ok(Self { http: agent(&proxies.http)?, https: agent(&proxies.https)? })
    }

    /// Fetches a small file whose hash is not known beforehand (its signature is checked by the caller).
    ///
    /// # Errors
    /// [`BuildError::Fetch`].
    pub fn get(&self, url: &str) -> Result<Vec<u8>, BuildError> {
        let mut attempt = 1;
        loop {
            match self.get_once(url) {
                Ok(bytes) => return Ok(bytes),
                Err(failure) if failure.is_final || attempt == ATTEMPTS_MAX => return Err(failure.error),
                Err(_) => std::thread::sleep(back_off(attempt)),
            }
            attempt += 1;
        }
    }

    fn get_once(&self, url: &str) -> Result<Vec<u8>, Failure> {
        let (mut body, _) = self.open(url, 0)?;
        let mut bytes = Vec::new();
        body.by_ref()
            .take(UNSIZED_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|error| unreachable_mirror(url, error))?;
        Ok(bytes)
    }

    /// Fetches `url` to `path`, which then has exactly the checksum; continues `path.part` if there is one.
    ///
    /// # Errors
    /// [`BuildError::Fetch`], [`BuildError::Hash`], [`BuildError::NoSpace`].
    pub fn download(
        &self,
        url: &str,
        checksum: &Checksum,
        path: &Path,
        progress: &dyn Progress,
    ) -> Result<(), BuildError> {
        let part = path.with_extension("part");
        let mut counted = 0;
        let mut attempt = 1;
        loop {
            let before = length(&part);
            let failure = match self.download_once(url, checksum, &part, &mut counted, progress) {
                Ok(()) => break,
                Err(failure) => failure,
            };
            if failure.is_final {
                return Err(failure.error);
            }
            let has_advanced = length(&part) > before;
            attempt = if has_advanced { 1 } else { attempt + 1 };
            if attempt > ATTEMPTS_MAX {
                return Err(failure.error);
            }
            std::thread::sleep(back_off(attempt));
        }
        std::fs::rename(&part, path).at("cannot write", path)
    }

    fn download_once(
        &self,
        url: &str,
        checksum: &Checksum,
        part: &Path,
        counted: &mut u64,
        progress: &dyn Progress,
    ) -> Result<(), Failure> {
        let local = |error: std::io::Error| Failure {
            error: Err::<(), _>(error).at("cannot write", part).expect_err("made from an error"),
            is_final: true,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(part)
            .map_err(local)?;
        let mut hasher = Sha256::new();
        let mut have = resume_point(&mut file, checksum, &mut hasher).map_err(local)?;
        let is_resumed = have > 0;
        if have < checksum.bytes {
            let (mut body, is_partial) = self.open(url, have)?;
            if !is_partial && have > 0 {
                file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(local)?;
                (have, hasher) = (0, Sha256::new());
            }
            let mut buffer = vec![0; 128 << 10];
            report(progress, counted, have);
            while have < checksum.bytes {
                let room = buffer.len().min(usize::try_from(checksum.bytes - have).unwrap_or(usize::MAX));
                let n = body.read(&mut buffer[..room]).map_err(|error| unreachable_mirror(url, error))?;
                if n == 0 {
                    return Err(unreachable_mirror(
                        url,
                        format!("the transfer ended after {have} of {} bytes", checksum.bytes),
                    ));
                }
                file.write_all(&buffer[..n]).map_err(local)?;
                hasher.update(&buffer[..n]);
                have += n as u64;
                report(progress, counted, have);
            }
        }
        let found = hex(&hasher.finalize());
        if found != checksum.sha256 {
            file.set_len(0).map_err(local)?;
            let error = BuildError::Hash { what: url.to_owned(), expected: checksum.sha256.clone(), found };
            // What was kept from an earlier run may be the part that is wrong.
            return Err(Failure { error, is_final: !is_resumed });
        }
        file.sync_all().map_err(local)
    }

    /// Opens a URL at an offset; also says whether the offset was honoured.
    fn open(&self, url: &str, offset: u64) -> Result<(Box<dyn Read>, bool), Failure> {
        if let Some(path) = url.strip_prefix("file:") {
            let path = Path::new("/").join(path.trim_start_matches('/'));
            let mut file = File::open(&path)
                .map_err(|error| Failure { error: fetch_error(url, error), is_final: true })?;
            file.seek(SeekFrom::Start(offset))
                .map_err(|error| Failure { error: fetch_error(url, error), is_final: true })?;
            return Ok((Box::new(file), true));
        }
        let agent = if url.starts_with("https:") { &self.https } else { &self.http };
        let mut request = agent.get(url);
        if offset > 0 {
            request = request.header("Range", format!("bytes={offset}-"));
        }
        let response = request.call().map_err(|error| unreachable_mirror(url, error))?;
        let status = response.status().as_u16();
        let is_partial = status == 206 && {
            let range =
                response.headers().get("content-range").and_then(|value| value.to_str().ok()).unwrap_or("");
            range
                .trim_start()
                .strip_prefix("bytes")
                .is_some_and(|rest| rest.trim_start().starts_with(&format!("{offset}-")))
        };
        match status {
            200 => {
                Ok((Box::new(response.into_body().into_with_config().limit(u64::MAX).reader()), offset == 0))
            }
            206 if is_partial => {
                Ok((Box::new(response.into_body().into_with_config().limit(u64::MAX).reader()), true))
            }
            206 | 416 if offset > 0 => self.open(url, 0).map(|(body, _)| (body, false)),
            500.. | 429 | 408 => Err(unreachable_mirror(url, format!("HTTP status {status}"))),
            _ => Err(Failure { error: fetch_error(url, format!("HTTP status {status}")), is_final: true }),
        }
    }
}

/// Whether a file has this checksum; `false` if it is missing.
///
/// # Errors
/// [`BuildError::Io`] when it cannot be read.
pub fn has_checksum(path: &Path, checksum: &Checksum) -> Result<bool, BuildError> {
    if length(path) != checksum.bytes || !path.exists() {
        return Ok(false);
    }
    let mut hasher = Sha256::new();
    let mut file = File::open(path).at("cannot read", path)?;
    copy(&mut file, &mut hasher, u64::MAX).at("cannot read", path)?;
    Ok(hex(&hasher.finalize()) == checksum.sha256)
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hashes what is there of a `.part` and returns its length; a file that is too long is emptied.
fn resume_point(file: &mut File, checksum: &Checksum, hasher: &mut Sha256) -> std::io::Result<u64> {
    if file.metadata()?.len() > checksum.bytes {
        file.set_len(0)?;
    }
    copy(file, hasher, checksum.bytes)
}

fn copy(from: &mut impl Read, to: &mut impl Write, limit: u64) -> std::io::Result<u64> {
    std::io::copy(&mut from.by_ref().take(limit), to)
}

/// Tells the progress, which only ever advances, about a position that may go back.
fn report(progress: &dyn Progress, counted: &mut u64, position: u64) {
    if position > *counted {
        progress.advance(position - *counted);
        *counted = position;
    }
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn back_off(attempt: u32) -> Duration {
    Duration::from_millis(200 << attempt.min(5))
}

fn fetch_error(url: &str, reason: impl ToString) -> BuildError {
    BuildError::Fetch { url: url.to_owned(), reason: reason.to_string() }
}

fn unreachable_mirror(url: &str, reason: impl ToString) -> Failure {
    Failure { error: fetch_error(url, reason), is_final: false }
}
