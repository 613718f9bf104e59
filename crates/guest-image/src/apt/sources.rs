//! Where packages come from: sources.list(5), in both its formats.
//!
//! Keeps only what looks like the main archive of Debian or Ubuntu; a host's other sources (vendors' repositories)
//! have no kernel and their keys are none of our business.

use std::path::{Path, PathBuf};

use super::deb822::Paragraphs;
use crate::error::{BuildError, IoContext, malformed};

/// Keys that one source may be signed with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// Keyring files, binary or armored.
    pub files: Vec<PathBuf>,
    /// Armored keys written into the source itself.
    pub embedded: Vec<String>,
    /// When not empty, only keys of these fingerprints (upper-case hexadecimal) count.
    pub fingerprints: Vec<String>,
    /// `trusted=yes`: the owner of the host asked for no verification.
    pub unverified: bool,
}

/// One suite of one archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Base URL with no slash at its end.
    pub url: String,
    /// Suite, like `bookworm-security`.
    pub suite: String,
    /// Components, like `main`.
    pub components: Vec<String>,
    /// Who must have signed it.
    pub trust: Trust,
}

impl Source {
    /// URL of a file below the suite.
    pub fn dist_url(&self, file: &str) -> String {
        format!("{}/dists/{}/{file}", self.url, self.suite)
    }
}

/// Sources of the host, from `etc/apt` below `root`.
///
/// # Errors
/// [`BuildError::Sources`] or [`BuildError::Malformed`] for a file that is malformed, [`BuildError::NoSources`] when nothing suits.
pub fn load(root: &Path) -> Result<Vec<Source>, BuildError> {
    let mut files = vec![root.join("etc/apt/sources.list")];
    let mut parts: Vec<_> = std::fs::read_dir(root.join("etc/apt/sources.list.d"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            path.extension().is_some_and(|extension| extension == "list" || extension == "sources")
        })
        .collect();
    parts.sort();
    files.append(&mut parts);
    let mut sources: Vec<Source> = Vec::new();
    for file in files.iter().filter(|file| file.exists()) {
        let text = std::fs::read(file).at("cannot read", file)?;
        let found = if file.extension().is_some_and(|extension| extension == "sources") {
            deb822(root, file, &text)?
        } else {
            one_line(root, file, &String::from_utf8_lossy(&text))?
        };
        for source in found {
            if is_main_archive(&source)
                && !sources.iter().any(|known| known.url == source.url && known.suite == source.suite)
            {
                sources.push(source);
            }
        }
    }
    if sources.is_empty() { Err(BuildError::NoSources(root.join("etc/apt"))) } else { Ok(sources) }
}

/// The single source of a mirror that the caller names. Without a suite, that of the host's own release, or `stable`.
///
/// # Errors
/// [`BuildError::BadMirror`] for anything but an http, https or file URL.
pub fn of_mirror(root: &Path, mirror: &str, suite: Option<&str>) -> Result<Source, BuildError> {
    if !["http://", "https://", "file:/"].iter().any(|scheme| mirror.starts_with(scheme)) {
        return Err(BuildError::BadMirror(mirror.to_owned()));
    }
    let suite = suite.map(str::to_owned).or_else(|| host_suite(root)).unwrap_or_else(|| "stable".to_owned());
    let url = mirror.trim_end_matches('/').to_owned();
    Ok(Source { url, suite, components: vec!["main".to_owned()], trust: default_trust(root) })
}

fn host_suite(root: &Path) -> Option<String> {
    let text = std::fs::read_to_string(root.join("etc/os-release")).ok()?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"'))
    };
    matches!(field("ID"), Some("debian" | "ubuntu"))
        .then(|| field("VERSION_CODENAME").map(str::to_owned))
        .flatten()
}

/// Keys that apt trusts for every source, and the archives' own keyrings.
pub fn default_trust(root: &Path) -> Trust {
    let mut files: Vec<_> = std::fs::read_dir(root.join("etc/apt/trusted.gpg.d"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "gpg" || extension == "asc"))
        .collect();
    files.push(root.join("etc/apt/trusted.gpg"));
    for keyring in ["debian-archive-keyring.gpg", "ubuntu-archive-keyring.gpg"] {
        files.push(root.join("usr/share/keyrings").join(keyring));
    }
    files.retain(|file| file.exists());
    files.sort();
    Trust { files, ..Trust::default() }
}

fn is_main_archive(source: &Source) -> bool {
    let path = source.url.rsplit("://").next().unwrap_or(&source.url);
    let is_ppa = path.contains("ppa.launchpad");
    let is_named = path.split('/').any(|part| ["debian", "debian-security", "ubuntu"].contains(&part))
        || path.starts_with("security.debian.org");
    is_named
        && !is_ppa
        && source.components.iter().any(|component| component == "main")
        && !source.suite.ends_with('/')
}

/// Reads `deb [option=value ...] URL SUITE COMPONENT...` lines.
fn one_line(root: &Path, file: &Path, text: &str) -> Result<Vec<Source>, BuildError> {
    let mut sources = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim();
        let Some(rest) = line.strip_prefix("deb").filter(|rest| rest.starts_with([' ', '\t', '['])) else {
            if line.is_empty() || line.starts_with("deb-src") {
                continue;
            }
            return Err(BuildError::Sources {
                file: file.to_owned(),
                line: index + 1,
                reason: format!("not a source: {line:?}"),
            });
        };
        let mut rest = rest.trim_start();
        let mut options = "";
        if let Some(after) = rest.strip_prefix('[') {
            let Some((inside, outside)) = after.split_once(']') else {
                return Err(BuildError::Sources {
                    file: file.to_owned(),
                    line: index + 1,
                    reason: "a [ is not closed".to_owned(),
                });
            };
            (options, rest) = (inside, outside);
        }
        let mut words = rest.split_whitespace();
        let (Some(url), Some(suite)) = (words.next(), words.next()) else {
            return Err(BuildError::Sources {
                file: file.to_owned(),
                line: index + 1,
                reason: "a source needs a URL and a suite".to_owned(),
            });
        };
        let option = |name: &str| {
            options
                .split_whitespace()
                .find_map(|word| word.strip_prefix(name)?.trim_start_matches('+').strip_prefix('='))
        };
        if option("arch").is_some_and(|architectures| {
            !architectures.split(',').any(|architecture| architecture == "amd64")
        }) {
            continue;
        }
        let mut trust = signed_by(root, option("signed-by").map(|value| value.replace(',', " ")).as_deref());
        trust.unverified = option("trusted").is_some_and(is_yes);
        let components: Vec<_> = words.map(str::to_owned).collect();
        sources.extend(urls(root, url).into_iter().map(|url| Source {
            url,
            suite: suite.to_owned(),
            components: components.clone(),
            trust: trust.clone(),
        }));
    }
    Ok(sources)
}

fn deb822(root: &Path, file: &Path, text: &[u8]) -> Result<Vec<Source>, BuildError> {
    let mut sources = Vec::new();
    let mut paragraphs = Paragraphs::new(text);
    loop {
        let paragraph = paragraphs.read().map_err(|error| malformed(file.display().to_string(), error))?;
        let Some(paragraph) = paragraph else { return Ok(sources) };
        let words = |name: &str| {
            paragraph.field(name).unwrap_or("").split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let is_off = paragraph.field("Enabled").is_some_and(|value| !is_yes(value));
        let architectures = words("Architectures");
        let is_other_architecture =
            !architectures.is_empty() && !architectures.iter().any(|name| name == "amd64");
        if is_off || is_other_architecture || !words("Types").iter().any(|name| name == "deb") {
            continue;
        }
        let mut trust = signed_by(root, paragraph.field("Signed-By"));
        trust.unverified = paragraph.field("Trusted").is_some_and(is_yes);
        for url in words("URIs").iter().flat_map(|url| urls(root, url)) {
            for suite in words("Suites") {
                sources.push(Source {
                    url: url.clone(),
                    suite,
                    components: words("Components"),
                    trust: trust.clone(),
                });
            }
        }
    }
}

fn is_yes(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "yes" | "true" | "1" | "on" | "with" | "enable")
}

/// A URL without its last slash; the first mirror of a `mirror+file:` list. Other schemes (cdrom, tor) are dropped.
fn urls(root: &Path, url: &str) -> Option<String> {
    let url = match url.strip_prefix("mirror+file:") {
        Some(list) => {
            let list = root.join(list.trim_start_matches('/'));
            std::fs::read_to_string(list).ok()?.lines().find_map(|line| {
                line.split_whitespace().next().filter(|word| !word.starts_with('#')).map(str::to_owned)
            })?
        }
        None => url.to_owned(),
    };
    let is_known = ["http://", "https://", "file:/"].iter().any(|scheme| url.starts_with(scheme));
    is_known.then(|| url.trim_end_matches('/').to_owned())
}

/// Reads a Signed-By value: paths, fingerprints, or a whole armored key with ` .` for empty lines.
fn signed_by(root: &Path, value: Option<&str>) -> Trust {
    let Some(value) = value.filter(|value| !value.trim().is_empty()) else { return default_trust(root) };
    if value.contains("-----BEGIN PGP") {
        let key: Vec<_> =
            value.trim().lines().map(|line| if line.trim() == "." { "" } else { line.trim() }).collect();
        return Trust { embedded: vec![key.join("\n") + "\n"], ..Trust::default() };
    }
    let (files, fingerprints): (Vec<_>, Vec<_>) =
        value.split_whitespace().partition(|word| word.starts_with('/'));
    let files: Vec<_> = files.iter().map(|path| root.join(path.trim_start_matches('/'))).collect();
    let fingerprints: Vec<_> =
        fingerprints.iter().map(|word| word.trim_end_matches('!').to_ascii_uppercase()).collect();
    if fingerprints.is_empty() {
        return Trust { files, ..Trust::default() };
    }
    Trust { files: [files, default_trust(root).files].concat(), fingerprints, ..Trust::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    fn names(root: &Path) -> Vec<String> {
        load(root).unwrap().iter().map(|source| format!("{} {}", source.url, source.suite)).collect()
    }

    #[test]
    fn both_formats_are_read_and_other_vendors_are_left_out() {
        let root = root_with(&[
            (
                "etc/apt/sources.list",
                "# c\ndeb [arch=amd64 signed-by=/k.gpg] http://deb.debian.org/debian/ bookworm main contrib # x\ndeb-src http://deb.debian.org/debian bookworm main\ndeb [arch=arm64] http://deb.debian.org/debian sid main\n",
            ),
            (
                "etc/apt/sources.list.d/g.list",
                "deb https://packages.cloud.google.com/apt cloud-sdk-bookworm main\ndeb https://download.docker.com/linux/debian bookworm stable\n",
            ),
            (
                "etc/apt/sources.list.d/s.sources",
                "Types: deb deb-src\nURIs: http://deb.debian.org/debian-security\nSuites: bookworm-security\nComponents: main\n\nEnabled: no\nTypes: deb\nURIs: http://deb.debian.org/debian\nSuites: sid\nComponents: main\n",
            ),
        ]);
        assert_eq!(
            names(root.path()),
            [
                "http://deb.debian.org/debian bookworm",
                "http://deb.debian.org/debian-security bookworm-security"
            ]
        );
        let sources = load(root.path()).unwrap();
        assert_eq!(sources[0].components, ["main", "contrib"]);
        assert_eq!(sources[0].trust.files, [root.path().join("k.gpg")]);
    }

    #[test]
    fn a_mirror_list_gives_its_first_mirror() {
        let root = root_with(&[
            (
                "etc/apt/sources.list.d/u.sources",
                "Types: deb\nURIs: mirror+file:/etc/apt/m.txt\nSuites: noble noble-updates\nComponents: main\n",
            ),
            (
                "etc/apt/m.txt",
                "http://azure.archive.ubuntu.com/ubuntu/\tpriority:1\nhttps://archive.ubuntu.com/ubuntu/\tpriority:2\n",
            ),
        ]);
        assert_eq!(
            names(root.path()),
            [
                "http://azure.archive.ubuntu.com/ubuntu noble",
                "http://azure.archive.ubuntu.com/ubuntu noble-updates"
            ]
        );
    }

    #[test]
    fn an_embedded_key_loses_its_dots() {
        let trust = signed_by(
            Path::new("/"),
            Some("\n-----BEGIN PGP PUBLIC KEY BLOCK-----\n.\nabc\n-----END PGP PUBLIC KEY BLOCK-----"),
        );
        assert_eq!(
            trust.embedded,
            ["-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nabc\n-----END PGP PUBLIC KEY BLOCK-----\n"]
        );
    }

    #[test]
    fn errors_name_file_and_line() {
        let root = root_with(&[("etc/apt/sources.list", "\ndeb [arch=amd64 http://x/debian y main\n")]);
        let message = load(root.path()).unwrap_err().to_string();
        assert!(message.ends_with("sources.list line 2: a [ is not closed"), "{message}");
        let root = root_with(&[("etc/apt/sources.list.d/x.sources", "Types: deb\nnonsense\n")]);
        let message = load(root.path()).unwrap_err().to_string();
        assert!(message.ends_with("x.sources is malformed: line 2 is not a field"), "{message}");
        let empty = root_with(&[]);
        assert!(matches!(load(empty.path()), Err(BuildError::NoSources(_))));
    }

    #[test]
    fn a_mirror_takes_the_hosts_release_when_no_suite_is_given() {
        let root = root_with(&[("etc/os-release", "ID=debian\nVERSION_CODENAME=bookworm\n")]);
        assert_eq!(of_mirror(root.path(), "http://m/debian/", None).unwrap().suite, "bookworm");
        assert_eq!(
            of_mirror(root.path(), "http://m/debian", Some("sid")).unwrap().dist_url("InRelease"),
            "http://m/debian/dists/sid/InRelease"
        );
        assert!(matches!(of_mirror(root.path(), "ftp://m", None), Err(BuildError::BadMirror(_))));
    }
}
