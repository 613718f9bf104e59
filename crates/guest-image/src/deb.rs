//! Reads the files of a Debian package, streaming: nothing is unpacked that nobody asked for.
//!
//! Control files and maintainer scripts are not looked at. Spec: deb(5), ar(5), POSIX ustar with GNU long names.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use crate::error::{BuildError, IoContext, malformed};

/// Largest sum of file sizes that is taken from one package, in bytes.
const UNPACKED_BYTES_MAX: u64 = 16 << 30;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// Folder.
    Folder,
    /// Regular file of so many bytes.
    File(u64),
    /// Symbolic link and its target, as written.
    Symlink(String),
    /// Hard link to an earlier path of the same package.
    HardLink(String),
}

/// One entry of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path with no leading slash or dot; every component is a plain name.
    pub path: String,
    /// Permission bits, including set-uid and the like.
    pub permissions: u32,
    /// What it is.
    pub kind: EntryKind,
}

/// Calls `on_entry` for each entry of the package in `path`; the reader gives the contents of a regular file.
///
/// Device nodes and the like are passed over.
///
/// # Errors
/// [`BuildError::Malformed`] for a broken package and for paths that lead out of the root; what `on_entry` says.
pub fn for_each(
    path: &Path,
    mut on_entry: impl FnMut(Entry, &mut dyn Read) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let what = path.display().to_string();
    let file = File::open(path).at("cannot read", path)?;
    let (name, member) = find_data(BufReader::with_capacity(128 << 10, file))
        .map_err(|error| malformed(what.as_str(), error))?;
    let stream: Box<dyn Read> = match name.as_str() {
        "data.tar.xz" => Box::new(liblzma::bufread::XzDecoder::new(member)),
        "data.tar.zst" => {
            Box::new(zstd::Decoder::with_buffer(member).map_err(|error| malformed(what.as_str(), error))?)
        }
        "data.tar.gz" => Box::new(flate2::bufread::GzDecoder::new(member)),
        "data.tar" => Box::new(member),
        _ => return Err(BuildError::Unsupported { what, reason: format!("its contents are in {name}") }),
    };
    let mut archive = tar::Archive::new(stream);
    let mut left = UNPACKED_BYTES_MAX;
    for tar_entry in archive.entries().map_err(|error| malformed(what.as_str(), error))? {
        let mut tar_entry = tar_entry.map_err(|error| malformed(what.as_str(), error))?;
        let Some(entry) = describe(&tar_entry).map_err(|reason| malformed(what.as_str(), reason))? else {
            continue;
        };
        left = left
            .checked_sub(tar_entry.size())
            .ok_or_else(|| malformed(what.as_str(), "it unpacks to more than 16 GiB"))?;
        on_entry(entry, &mut tar_entry)?;
    }
    Ok(())
}

/// Reads a whole file of a package; for use inside [`for_each`].
///
/// # Errors
/// [`BuildError::Malformed`] when the package ends early.
pub fn contents(entry: &Entry, reader: &mut dyn Read) -> Result<Vec<u8>, BuildError> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(|error| malformed(entry.path.as_str(), error))?;
    Ok(bytes)
}

fn describe<R: Read>(entry: &tar::Entry<'_, R>) -> Result<Option<Entry>, String> {
    let raw = entry.path_bytes();
    let Some(path) = plain_path(&String::from_utf8_lossy(&raw))? else { return Ok(None) };
    let link = || {
        entry
            .link_name_bytes()
            .map(|name| String::from_utf8_lossy(&name).into_owned())
            .ok_or_else(|| format!("{path} links to nothing"))
    };
    let kind = match entry.header().entry_type() {
        tar::EntryType::Directory => EntryKind::Folder,
        tar::EntryType::Regular | tar::EntryType::Continuous => EntryKind::File(entry.size()),
        tar::EntryType::Symlink => EntryKind::Symlink(link()?),
        tar::EntryType::Link => EntryKind::HardLink(plain_path(&link()?)?.ok_or("a hard link to the root")?),
        _ => return Ok(None),
    };
    let permissions = entry.header().mode().map_err(|error| error.to_string())? & 0o7777;
    Ok(Some(Entry { path, permissions, kind }))
}

/// Drops a leading `./`; `None` for the root itself.
fn plain_path(path: &str) -> Result<Option<String>, String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(format!("the path {path:?} leads out of the root")),
            _ if part.contains('\0') => return Err(format!("bad path {path:?}")),
            _ => parts.push(part),
        }
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

/// Seeks to the member whose name begins with `data.tar`.
fn find_data(mut input: BufReader<File>) -> io::Result<(String, io::Take<BufReader<File>>)> {
    let bad = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    let mut magic = [0; 8];
    input.read_exact(&mut magic)?;
    if &magic != b"!<arch>\n" {
        return Err(bad("it is no ar archive"));
    }
    loop {
        if input.fill_buf()?.is_empty() {
            return Err(bad("it has no data.tar"));
        }
        let mut header = [0; 60];
        input.read_exact(&mut header)?;
        let text =
            |range: std::ops::Range<usize>| String::from_utf8_lossy(&header[range]).trim_end().to_owned();
        let size: u64 = text(48..58).parse().map_err(|_| bad("a member has no size"))?;
        if &header[58..] != b"`\n" {
            return Err(bad("a member's header is broken"));
        }
        let name = text(0..16).trim_end_matches('/').to_owned();
        if name.starts_with("data.tar") {
            return Ok((name, input.take(size)));
        }
        let skip = i64::try_from(size + (size & 1)).map_err(|_| bad("a member is too long"))?;
        input.seek(SeekFrom::Current(skip))?;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// Makes a package of `(path, contents)`; a path that ends in `/` is a folder, contents `-> x` a link.
    pub(crate) fn package(compression: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, contents) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(if path.ends_with('/') || path.contains("bin/") { 0o755 } else { 0o644 });
            // `set_path` refuses what we want to test.
            let raw = &mut header.as_gnu_mut().unwrap().name;
            raw[..path.len()].copy_from_slice(path.as_bytes());
            let target = contents.strip_prefix(b"-> ");
            header.set_entry_type(match target {
                Some(_) => tar::EntryType::Symlink,
                None if path.ends_with('/') => tar::EntryType::Directory,
                None => tar::EntryType::Regular,
            });
            if let Some(target) = target {
                header.set_link_name(std::str::from_utf8(target).unwrap()).unwrap();
            }
            let body: &[u8] = if target.is_some() { b"" } else { contents };
            header.set_size(body.len() as u64);
            header.set_cksum();
            archive.append(&header, body).unwrap();
        }
        let tar = archive.into_inner().unwrap();
        let data = match compression {
            "xz" => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(&tar).unwrap();
                encoder.finish().unwrap()
            }
            "zst" => zstd::encode_all(&tar[..], 1).unwrap(),
            _ => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&tar).unwrap();
                encoder.finish().unwrap()
            }
        };
        let mut package = b"!<arch>\n".to_vec();
        for (name, body) in [
            ("debian-binary", &b"2.0\n"[..]),
            ("control.tar.gz", b"odd"),
            (&format!("data.tar.{compression}"), &data),
        ] {
            package.extend(
                format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, "100644", body.len()).bytes(),
            );
            package.extend(body);
            package.extend(&b"\n"[..body.len() % 2]);
        }
        package
    }

    fn listing(package: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, BuildError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), package).unwrap();
        let mut found = Vec::new();
        for_each(file.path(), |entry, reader| {
            let bytes = contents(&entry, reader)?;
            found.push((entry, bytes));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn packages_of_every_compression_are_read() {
        for compression in ["xz", "zst", "gz"] {
            let files = listing(&package(
                compression,
                &[("./", b""), ("./bin/", b""), ("./bin/a", b"hello"), ("./bin/b", b"-> a")],
            ))
            .unwrap();
            let paths: Vec<_> = files
                .iter()
                .map(|(entry, bytes)| (entry.path.as_str(), entry.kind.clone(), bytes.as_slice()))
                .collect();
            assert_eq!(
                paths,
                [
                    ("bin", EntryKind::Folder, &b""[..]),
                    ("bin/a", EntryKind::File(5), b"hello"),
                    ("bin/b", EntryKind::Symlink("a".to_owned()), b"")
                ]
            );
            assert_eq!(files[1].0.permissions, 0o755);
        }
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for path in ["../etc/passwd", "./a/../../b"] {
            let message = listing(&package("gz", &[(path, b"x")])).unwrap_err().to_string();
            assert!(message.contains("leads out of the root"), "{message}");
        }
    }

    #[test]
    fn a_package_cut_short_is_an_error() {
        let whole = package("xz", &[("./a", &vec![7; 100_000])]);
        for length in [0, 7, 60, 100, whole.len() / 2, whole.len() - 40] {
            assert!(listing(&whole[..length]).is_err(), "{length}");
        }
    }
}
